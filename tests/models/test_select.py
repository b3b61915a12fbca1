"""DMSMIL-Select: it begins as a mean, its transport is POT's, its gradients are those of what it says it minimises."""

import numpy as np
import ot
import pytest
import torch
from sklearn.decomposition import PCA

from dmsmil.jobs.files import InputError
from dmsmil.models import create
from dmsmil.models.base import masked_mean
from dmsmil.models.contract import bags_of
from dmsmil.models.matching import link_loss, squared_distances, weighted_distance
from dmsmil.models.select import neighbours
from dmsmil.models.stacked import Stack
from dmsmil.models.transport import distance, mean_distance

DIM = 32


def model_of(seed=0, moved=0.3, **options):
    """In float64, off its initial values by `moved`, with all its parts."""
    torch.manual_seed(seed)
    options = {"transport": "gates", "link": True, **options}
    model = create("dmsmil_select", DIM, 2, (10, 20), projection_dim=8, heads=2, points=3, hidden=4, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * moved)
    return model


def data(lengths=(23, 14, 7)):
    bags, mask, coords = bags_of(lengths, 2, DIM, 0)
    return bags.double(), mask, coords, torch.arange(len(lengths)) % 2


def tiles(seed=0, n=3, k=9, width=4):
    draw = torch.Generator().manual_seed(seed)
    x1, x2 = torch.randn(2, n, k, width, generator=draw, dtype=torch.float64)
    first, second = torch.rand(2, n, k, generator=draw, dtype=torch.float64)
    return x1, x2, first / first.sum(-1, keepdim=True), second / second.sum(-1, keepdim=True)


def test_it_begins_as_the_mean_of_its_projected_tiles():
    model = model_of(moved=0)
    bags, mask, coords, _ = data()
    output = model(bags, mask, coords)
    extras = output.extras
    torch.testing.assert_close(extras["pooled"], masked_mean(extras["projection"], mask))
    torch.testing.assert_close(output.scores, mask / mask.sum(-1, keepdim=True).double())


def test_the_gate_has_a_gradient_from_the_first_step_and_so_has_attention():
    model = model_of(moved=0)
    bags, mask, coords, labels = data()
    model.loss(model(bags, mask, coords), labels)[0].backward()
    assert model.branches.gate.weigh.weight.grad.abs().max() > 0
    assert model.branches.attend.output.weight.grad.abs().max() > 0


def test_what_a_tile_reads_is_the_bilinear_sample_of_the_values():
    model = model_of()
    bags, mask, coords, _ = data()
    there = mask.transpose(0, 1)
    x = model.branches.project_tiles(bags, there)
    features, maps, _ = model.branches.lay_maps(x, model.geometry(mask, coords))
    attend = model.branches.attend
    samples = attend.sample(features, maps)
    values = attend.value(features)
    expected = torch.zeros_like(features)
    for s, b in np.ndindex(2, 3):
        heads = values[s, b].unflatten(-1, (2, -1))  # (K, M, d)
        for j in range(features.shape[2]):
            read = [
                sum(
                    samples.attention[s, b, j, m, u]
                    * samples.weight[s, b, j, m, u, c]
                    * heads[samples.index[s, b, j, m, u, c], m]
                    for u in range(3)
                    for c in range(4)
                )
                for m in range(2)
            ]
            expected[s, b, j] = torch.cat(read) @ attend.output.weight[s] + attend.output.bias[s]
    torch.testing.assert_close(attend.each(features, maps), expected)


def test_tiles_of_equal_weight_cost_what_the_assignment_costs():
    x1, x2, _, _ = tiles()
    equal = torch.full(x1.shape[:2], 1 / x1.shape[1], dtype=torch.float64)
    found = weighted_distance(x1, x2, squared_distances(x1, x2), equal, equal)
    there = torch.ones(3, 2, 9, dtype=torch.bool)
    torch.testing.assert_close(found.mean(), distance(torch.stack([x1, x2], 1), there))


def test_tiles_of_unequal_weight_cost_what_pot_says():
    x1, x2, first, second = tiles()
    expected = [ot.emd2(a.numpy(), b.numpy(), torch.cdist(x, y).numpy()) for a, b, x, y in zip(first, second, x1, x2)]
    found = weighted_distance(x1, x2, squared_distances(x1, x2), first, second)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.slow
def test_gradients_of_transport_are_its_slopes():
    x1, x2, logits, other = (part.requires_grad_() for part in tiles())

    def cost(x1, x2, logits, other):
        return weighted_distance(x1, x2, squared_distances(x1, x2), logits.softmax(-1), other.softmax(-1))

    assert torch.autograd.gradcheck(cost, (x1, x2, logits, other))


def test_a_tile_without_weight_takes_no_part():
    x1, x2, first, second = tiles()
    first[:, 4] = 0
    first = first / first.sum(-1, keepdim=True)
    kept = [0, 1, 2, 3, 5, 6, 7, 8]
    whole = weighted_distance(x1, x2, squared_distances(x1, x2), first, second)
    without = weighted_distance(x1[:, kept], x2, squared_distances(x1[:, kept], x2), first[:, kept], second)
    torch.testing.assert_close(whole, without)


def test_the_link_loss_is_0_where_pairs_are_found_and_1_where_nothing_is_told_apart():
    x = 10 * torch.eye(6, dtype=torch.float64)[None]
    linked = torch.ones(1, 6, dtype=torch.bool)
    assert link_loss(squared_distances(x, x), linked).item() == pytest.approx(0, abs=1e-12)
    same = torch.zeros_like(x)
    assert link_loss(squared_distances(same, same), linked).item() == pytest.approx(1)
    assert link_loss(squared_distances(x, x.flip(1)), linked).item() > 1
    assert link_loss(squared_distances(x, x), linked & (torch.arange(6) == 0)).item() == 0


def test_what_is_minimised_is_the_sum_that_is_said():
    model = model_of(mu=0.3)
    bags, mask, coords, labels = data()
    output = model(bags, mask, coords)
    loss, named = model.loss(output, labels)
    assert loss.item() == pytest.approx((named["L_ce"] + 0.3 * (named["L_ot"] + named["L_link"])).item())
    for off, name in (({"transport": "none"}, "L_ot"), ({"link": False}, "L_link")):
        without = model_of(mu=0.3, **off)
        _, less = without.loss(without(bags, mask, coords), labels)
        assert less[name] == 0 and less["L_ce"].item() == pytest.approx(named["L_ce"].item())


def test_what_is_matched_is_what_weighs_most():
    """With weight on five places only, L_ot of these five is L_ot of all; with all places matched nothing changes."""
    bags, mask, coords, labels = data((23, 23))
    few, many = model_of(matched=5), model_of(matched=99)
    output = few(bags, mask, coords)
    seen = torch.zeros_like(output.extras["gates"])
    seen[..., [2, 3, 11, 17, 20]] = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1]).double()
    output.extras["gates"] = seen
    assert few.parts(output, labels)[0].item() == pytest.approx(many.parts(output, labels)[0].item(), rel=1e-9)
    assert few.parts(output, labels)[1].item() != pytest.approx(many.parts(output, labels)[1].item())
    short = data((4, 3))
    torch.testing.assert_close(few.parts(few(*short[:3]), short[3]), many.parts(many(*short[:3]), short[3]))


def test_transport_and_link_do_not_depend_on_the_unit_of_the_features():
    model = model_of()
    bags, mask, coords, labels = data()
    output = model(bags, mask, coords)
    parts = model.parts(output, labels)
    output.extras["projection"] = 7 * output.extras["projection"]
    for before, after in zip(parts, model.parts(output, labels)):
        torch.testing.assert_close(before, after)
    assert mean_distance(output.extras["projection"], mask).min() > 0


def test_runs_in_one_pass_are_what_they_are_alone():
    models = [model_of(seed) for seed in (0, 1)]
    bags, mask, coords, labels = data((23, 14))
    stack = Stack(models)
    geometry = models[0].geometry(mask, coords)
    together = stack.forward([bags[:1], bags[1:]], mask, coords, geometry)
    losses, _ = stack.loss(together, labels)
    for i, model in enumerate(models):
        alone = model(bags[i : i + 1], mask[i : i + 1], coords[i : i + 1])
        torch.testing.assert_close(together.logits[i], alone.logits)
        torch.testing.assert_close(losses[i], model.loss(alone, labels[i : i + 1])[0])


def test_what_is_whitened_is_what_scikit_learn_whitens():
    bags, mask, _, _ = data((40, 30, 25))
    model = model_of(moved=0, components=6, power=1.0)
    half, none = (model_of(moved=0, components=6, power=power) for power in (0.5, 0.0))
    for one in (model, half, none):
        one.learn_inputs(bags, mask)
    for s in range(2):
        x = torch.cat([bag[s, there[s]] for bag, there in zip(bags, mask)]).numpy()
        white = x @ model.branches.whitening[s].numpy() + model.branches.shift[s].numpy()
        theirs = PCA(6, whiten=True, svd_solver="full").fit_transform(x) * np.sqrt(len(x) / (len(x) - 1))
        np.testing.assert_allclose(np.abs((white * theirs).mean(0)), 1, rtol=2e-3)  # up to sign, and FLOOR
        np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(6), atol=2e-3)
        spread = PCA(6, svd_solver="full").fit(x).explained_variance_
        for one, kept in ((half, np.sqrt(spread)), (none, spread)):
            found = np.cov((x @ one.branches.whitening[s].numpy()).T, bias=True)
            np.testing.assert_allclose(found, np.diag(kept / kept.mean()), atol=5e-3)


def test_whitened_tiles_do_not_depend_on_how_the_encoder_mixes_its_features():
    """Distances between whitened tiles are Mahalanobis distances: any invertible mixing leaves them."""
    bags, mask, _, _ = data((60, 50, 40))
    mixing = torch.eye(DIM).double() + 0.05 * torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(1)).double()
    found = []
    for given in (bags, bags @ mixing):
        model = model_of(moved=0, components=DIM, power=1.0)
        model.learn_inputs(given, mask)
        found.append(torch.cdist(*2 * [given[0, 0] @ model.branches.whitening[0]]))
    torch.testing.assert_close(*found, rtol=0.05, atol=0.01)


def test_linked_tiles_have_one_gate_and_none_weighs_more_than_the_bound_allows():
    bags, mask, coords, _ = data((23, 14, 7))
    gates = model_of(moved=9.0)(100 * bags, mask, coords).extras["gates"]
    torch.testing.assert_close(gates[:, 0], gates[:, 1])
    weighs = [row[row > 0] for row in gates[:, 0]]
    assert max((row.max() / row.min()).item() for row in weighs) == pytest.approx(np.exp(2), rel=1e-3)
    own = model_of(moved=9.0, joint=False)(100 * bags, mask, coords).extras["gates"]
    assert not torch.allclose(own[:, 0], own[:, 1])
    free = model_of(moved=9.0, bound=0, smooth=False)(100 * bags, mask, coords).extras["gates"]
    assert free.max() > 0.99


def test_the_gate_of_a_tile_is_that_of_its_neighbourhood():
    bags, mask, coords, _ = data((16, 9))
    grid = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="xy"), -1).view(-1, 2) * 512
    coords = coords.clone()
    coords[:, :, :16] = grid
    coords[:, 1] += 128  # a child lies in its parent
    near = neighbours(mask, coords)
    place = (grid // 512).numpy()
    for b, n in enumerate((16, 9)):
        for j in range(n):
            expected = {i for i in range(n) if i != j and np.abs(place[i] - place[j]).max() == 1}
            assert set(near[b, 0, j].tolist()) - {j} == expected == set(near[b, 1, j].tolist()) - {j}
    model = model_of(bound=0, joint=False)
    x = model.branches.project_tiles(bags, mask.transpose(0, 1)).squeeze(3)
    logits = model.branches.gate(x)[0, 0]
    found = model.branches.gate_logits(x, mask.transpose(0, 1), {"near": near})[0, 0]
    assert found[5].item() == pytest.approx(logits[[0, 1, 2, 4, 5, 6, 8, 9, 10]].mean().item())
    assert found[0].item() == pytest.approx(logits[[0, 1, 4, 5]].mean().item())


def test_its_logits_have_a_gradient_in_the_features():
    model, (bags, mask, coords, _) = model_of(), data((6, 5))
    model.learn_inputs(bags, mask)
    bags.requires_grad_()
    model(bags, mask, coords).logits[0, 1].backward()
    step = torch.zeros_like(bags)
    step[0, 1, 2] = torch.randn(DIM, generator=torch.Generator().manual_seed(0)).double() * 1e-6
    with torch.no_grad():
        moved = [model(bags + sign * step, mask, coords).logits[0, 1] for sign in (1, -1)]
    assert (moved[0] - moved[1]).item() / 2 == pytest.approx((bags.grad * step).sum().item(), rel=1e-4)


def test_where_its_attention_looks_can_be_asked():
    model, (bags, mask, coords, _) = model_of(), data()
    found = model.sampling(bags, mask, coords)
    assert found["deformed"].shape == (3, 2, bags.shape[2], 2, 3, 2)
    assert all(torch.isfinite(value).all() for value in model.looks(bags, mask, coords).values())
    with pytest.raises(InputError, match="positions of the tiles"):
        model(bags, mask)


def test_a_lone_tile_and_tiles_in_one_spot_have_gates_too():
    bags, mask, coords, _ = data((1, 5))
    coords = torch.zeros_like(coords)
    gates = model_of()(bags, mask, coords).extras["gates"]
    assert gates[0, 0, 0] == 1 and torch.isfinite(gates).all()


def test_the_gate_of_a_place_is_made_of_the_scales_that_have_a_tile_there():
    bags, mask, coords, _ = data((9, 9))
    model = model_of()
    full = model(bags, mask, coords).extras["gates"]
    mask[:, 1, 4] = False
    part = model(bags * mask.unsqueeze(-1), mask, coords).extras["gates"]
    assert (part[:, 1, 4] == 0).all() and not torch.allclose(full[:, 0, 4], part[:, 0, 4])
    torch.testing.assert_close(part.sum(-1), torch.ones_like(part.sum(-1)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"transport": "some"},
        {"grid": "square"},
        {"attention": "full"},
        {"inputs": "some"},
        {"components": 0},
        {"bound": -1.0},
        {"matched": 0},
    ],
)
def test_an_option_that_cannot_be_is_one_clear_line(wrong):
    with pytest.raises(InputError):
        model_of(**wrong)


@pytest.mark.parametrize("transport", ["gates", "plain"])
def test_places_that_weigh_the_same_are_spread_over_the_slide_whatever_the_padding(transport):
    """At the first step all gates are alike: what topk took of them was a stretch of rows, another one with padding."""
    bags, mask, coords, labels = data((23, 14, 7))
    model = model_of(moved=0.0, matched=4, transport=transport)
    whole = model.loss(model(bags, mask, coords), labels)[0]
    alone = [
        model.loss(model(bags[b : b + 1, :, :n], None, coords[b : b + 1, :, :n]), labels[b : b + 1])[0]
        for b, n in enumerate((23, 14, 7))
    ]
    assert whole.item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-6)
    places = torch.arange(100.0).double().view(1, 1, 100, 1)
    even = torch.full((1, 1, 100), 0.01).double()
    chosen = model.looked_at(places, even, even > 0)[0].flatten().sort().values
    assert chosen[0] < 25 and chosen[-1] >= 60 and chosen.diff().min() > 10


def test_equal_weights_are_those_of_the_places_that_the_gates_choose():
    bags, mask, coords, labels = data((23,))
    model = model_of(matched=5, transport="plain")
    output = model(bags, mask, coords)
    output.extras["gates"] = torch.zeros_like(output.extras["gates"])
    output.extras["gates"][..., [2, 3, 11, 17, 20]] = 0.2
    same = model_of(matched=5, transport="gates")
    assert model.parts(output, labels)[0].item() == pytest.approx(same.parts(output, labels)[0].item())
