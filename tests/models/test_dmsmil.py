"""DMSMIL and DAMIL: every variant against the naive model, counts, the contract, controls, what the figures ask for."""

import math

import pytest
import torch
from torch.nn import functional as F

from dmsmil.jobs.files import InputError
from dmsmil.models import count_parameters, create, method
from dmsmil.models.branches import CHOICES
from dmsmil.models.contract import bags_of, check_batch_and_padding, check_gradients, check_learns, close, model_of
from dmsmil.models.transport import distance
from tests.models.naive_dmsmil import NaiveDMSMIL, compare, step, step_naive

DIM, D = 32, 8
VARIANTS = [
    {},
    dict(deformable=False),
    dict(fusion="mean"),
    dict(ot="none"),
    dict(ot="entropic"),
    dict(ot="paired"),
    dict(ot="squared"),
    dict(ot_on="raw"),
    dict(ot_on="unit"),
    dict(map="tile"),
    dict(grid="square"),
    dict(attention="dot"),
    dict(softmax="all"),
    dict(offset="cells", offset_lr=1.0, query="plain"),
    dict(gate="projection"),
    dict(gate="projected"),
    dict(head="sigmoid"),
    dict(shared=True),
    dict(activation="relu"),
    dict(activation="gelu"),
    dict(activation="layernorm"),
    dict(activation="layernorm_relu"),
    dict(score="norm"),
    dict(lam=10.0),
    dict(ot_on="relative"),
    dict(ot_on="relative", ot="squared"),
    dict(query="plain"),
    dict(offset_lr=1.0),
    dict(offset="dat", offset_lr=0.1, query="norm", ot_on="relative"),
    dict(offset="cells"),
    dict(ot_on="projection"),
    dict(deformable=False, ot="none"),
    dict(map="tile", attention="dot", gate="projection", score="norm"),
    dict(grid="square", attention="dot", softmax="all", shared=True, activation="layernorm", score="norm"),
]


def name_of(options):
    return "-".join(f"{key}={value}" for key, value in options.items()) or "default"


def perturbed(options, seed=0, scales=(10, 20)):
    """A model in float64, off its initial values (where attention is uniform and points lie on kinks)."""
    torch.manual_seed(seed)
    model = create("dmsmil", DIM, 2, scales, projection_dim=D, heads=2, points=3, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def data(lengths=(23, 14, 7), scales=2, seed=0):
    bags, mask, coords = bags_of(lengths, scales, DIM, seed)
    return bags.double(), mask, coords, torch.arange(len(lengths)) % 2


@pytest.mark.slow
@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_values_and_gradients_of_the_naive_model(options):
    model = perturbed(options)
    naive = NaiveDMSMIL.like(
        model, projection_dim=D, heads=2, points=3, **{key: value for key, value in options.items() if key != "score"}
    )
    bags, mask, _, labels = data()
    output = model(bags, mask)
    loss, _ = model.loss(output, labels)
    logits, transported = naive(bags, mask)
    expected = naive.loss(logits, transported, labels)
    # the entropic plan is iterated to 1e-6 from costs that differ in the last digit
    tight = dict(rtol=1e-4, atol=1e-6) if options.get("ot") == "entropic" else dict(rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(output.logits, logits, **tight)
    torch.testing.assert_close(loss, expected, **tight)
    loss.backward(), expected.backward()
    pairs = list(naive.twins(model, of=lambda parameter: parameter.grad))
    assert sum(mine.numel() for mine, _ in pairs) == count_parameters(model)
    for mine, theirs in pairs:
        torch.testing.assert_close(theirs, mine.grad, **tight)


@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_scores(options):
    model = perturbed(options)
    bags, mask, *_ = data()
    output = model(bags, mask)
    assert (output.scores >= 0).all() and (output.scores[~mask] == 0).all()
    weights, projection, pooled = (output.extras[key] for key in ("weights", "projection", "pooled"))
    if options.get("score") != "norm":
        torch.testing.assert_close(output.scores.sum(-1), torch.ones(3, 2, dtype=torch.float64))
        torch.testing.assert_close(output.scores, weights.sum(2) / weights.sum((2, 3))[..., None])
    if options.get("map") == "tile":  # nothing passes between tiles, so each keeps its share
        share = mask / mask.sum(-1, keepdim=True).double()
        torch.testing.assert_close(weights, share.unsqueeze(2).expand_as(weights))
    elif options.get("deformable", True):  # the weights rebuild the pooled vector: the scores are exact
        attend = model.branches.attend
        rebuilt = attend.mix((weights @ projection).transpose(0, 1), weights.sum(-1).transpose(0, 1)).transpose(0, 1)
        torch.testing.assert_close(rebuilt, pooled)
        if options.get("score") == "norm":
            value, out = attend.value.weight[-1].unflatten(-1, (2, -1)), attend.output.weight[-1].unflatten(0, (2, -1))
            one = sum((projection[0, 1, 5] @ value[:, m] @ out[m]).norm() * weights[0, 1, m, 5] for m in range(2))
            torch.testing.assert_close(output.scores[0, 1, 5], one)
    else:
        torch.testing.assert_close(pooled, (weights @ projection).squeeze(2))


def expected_count(
    d=128,
    mu=16,
    groups=2,
    in_dim=2048,
    projected=None,
    deformable=True,
    dot=False,
    norm=False,
    gate=0,
    fusion=True,
    logits=2,
):
    """Parameters counted by hand."""
    scale = (projected or in_dim) * d + d + 2 * d * norm
    if deformable:
        scale += 3 * (d * d + d) + (d + 1) * (2 if dot else 3) * mu + d * d * dot
    return groups * scale + d * fusion + gate + (d + 1) * logits


COUNTS = [
    ({}, {}),
    (dict(deformable=False), dict(deformable=False)),
    (dict(fusion="mean"), dict(fusion=False)),
    (dict(ot="none"), {}),
    (dict(map="tile"), dict(projected=128)),
    (dict(grid="square"), {}),
    (dict(attention="dot"), dict(dot=True)),
    (dict(softmax="all"), {}),
    (dict(offset="dat"), {}),
    (dict(gate="projected"), dict(gate=128 * 128 + 128)),
    (dict(head="sigmoid"), dict(logits=1)),
    (dict(shared=True), dict(groups=1)),
    (dict(activation="layernorm"), dict(norm=True)),
    (dict(activation="gelu"), {}),
    (dict(projection_dim=64, heads=8, points=2), dict(d=64)),
]


@pytest.mark.parametrize("options,how", COUNTS, ids=lambda value: name_of(value))
def test_parameters(options, how):
    assert count_parameters(create("dmsmil", 2048, 2, **options)) == expected_count(**how)


def test_training_steps_stay_together():
    """Five steps of both models, fused Adam against Adam: the same losses, the same parameters."""
    model = perturbed({})
    naive = NaiveDMSMIL.like(model, projection_dim=D, heads=2, points=3)
    ours, theirs = torch.optim.Adam(model.parameters(), 1e-3, fused=True), torch.optim.Adam(naive.parameters(), 1e-3)
    bags, _, _, labels = data((20, 20))
    for _ in range(5):
        assert step(model, ours, bags, labels) == pytest.approx(step_naive(naive, theirs, bags, labels), rel=1e-9)
    for mine, package in naive.twins(model):
        torch.testing.assert_close(package, mine, rtol=1e-6, atol=1e-8)


def test_the_comparison_runs():
    found = compare(batch=2, rounds=2, tiles=9, in_dim=16, projection_dim=8)
    assert found.keys() == {"naive", "dmsmil", "ratio"} and all(value > 0 for value in found.values())


def test_published_sizes():
    assert count_parameters(create("dmsmil")) == 636_386
    assert 600_096 <= count_parameters(create("dmsmil")) <= 677_796  # what is legible of the paper's figure
    assert count_parameters(create("damil", scales=(20,))) == 318_258
    assert count_parameters(create("dmsmil", scales=(5, 10, 20))) == expected_count(groups=3)


@pytest.mark.parametrize("name,scales", [("dmsmil", 2), ("damil", 1)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(map="tile"),
        dict(grid="square"),
        dict(attention="dot"),
        dict(deformable=False),
        dict(activation="layernorm_relu", score="norm"),
    ],
    ids=name_of,
)
def test_contract(name, scales, options):
    model = model_of(name, scales, DIM, projection_dim=16, heads=4, **options)
    check = [bags_of(lengths, scales, DIM) for lengths in ((1,), (2,), (31,), (1, 2, 31))]
    for bags, mask, coords in check:
        output = model(bags, mask, coords)
        for b in range(len(bags)):
            n = int(mask[b, 0].sum())
            one = model(bags[b : b + 1, :, :n])
            close(output.logits[b : b + 1], one.logits)
            close(output.scores[b : b + 1, :, :n], one.scores)
        model.zero_grad()
        model.loss(output, torch.arange(len(bags)) % 2)[0].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name,scales", [("dmsmil", 2), ("damil", 1)])
def test_common_contract(name, scales):
    model = model_of(name, scales, projection_dim=16)
    check_batch_and_padding(model, scales=scales)
    check_gradients(model, scales=scales)
    check_learns(model_of(name, scales, projection_dim=16, **({"ot": "none"} if name == "dmsmil" else {})), scales)


@pytest.mark.parametrize("options", [{}, dict(grid="square"), dict(map="tile"), dict(attention="dot")], ids=name_of)
def test_padding_is_never_seen(options):
    """K -> K + 37 rows of large rubbish: outputs, losses and gradients stay."""
    model = perturbed(options)
    bags, mask, coords, labels = data((20, 9))
    more = torch.cat([bags, torch.full((2, 2, 37, DIM), 1e6, dtype=torch.float64)], 2)
    longer = torch.cat([mask, torch.zeros(2, 2, 37, dtype=torch.bool)], 2)
    results = []
    for b, m in ((bags, mask), (more, longer)):
        model.zero_grad()
        output = model(b, m)
        loss, terms = model.loss(output, labels)
        loss.backward()
        results.append(
            [
                output.logits,
                output.scores[:, :, :20],
                loss,
                terms["L_ot"],
                terms["spread"],
                *[p.grad.clone() for p in model.parameters()],
            ]
        )
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


def test_padding_may_be_anything():
    model = perturbed({})
    bags, mask, *_ = data((20, 9))
    spoilt = bags.masked_fill(~mask[..., None], float("nan"))
    output, expected = model(spoilt, mask), model(bags, mask)
    assert torch.equal(output.logits, expected.logits) and torch.equal(output.scores, expected.scores)
    assert (output.extras["projection"][~mask] == 0).all()


def test_holes_in_the_mask_are_padding_too():
    model = perturbed({})
    bags, _, _, _ = data((20,))
    mask = torch.ones(1, 2, 20, dtype=torch.bool)
    mask[..., [3, 4, 11]] = False
    kept = mask[0, 0].nonzero()[:, 0]
    output, packed = model(bags, mask), model(bags[:, :, kept])
    torch.testing.assert_close(output.logits, packed.logits)
    torch.testing.assert_close(output.scores[:, :, kept], packed.scores)


def test_geometry_kept_or_computed():
    model = perturbed({})
    bags, mask, coords, _ = data()
    geometry = model.geometry(mask, coords)
    assert all(len(value) == len(bags) for value in geometry.values())
    rows = torch.tensor([2, 0])
    kept = model(bags[rows], mask[rows], coords[rows], {key: value[rows] for key, value in geometry.items()})
    assert torch.equal(kept.logits, model(bags[rows], mask[rows], coords[rows]).logits)


def test_scales_may_have_different_numbers_of_tiles():
    model = perturbed({})
    bags, mask, _, labels = data((20, 9))
    mask = mask.clone()
    mask[:, 1, 5:] = False
    naive = NaiveDMSMIL.like(model, projection_dim=D, heads=2, points=3)
    torch.testing.assert_close(model.loss(model(bags, mask), labels)[0], naive.loss(*naive(bags, mask), labels))


def test_three_scales():
    model = perturbed({}, scales=(5, 10, 20))
    naive = NaiveDMSMIL.like(model, projection_dim=D, heads=2, points=3)
    bags, mask, _, labels = data(scales=3)
    torch.testing.assert_close(model.loss(model(bags, mask), labels)[0], naive.loss(*naive(bags, mask), labels))


def gradients(options, labels, bags, mask):
    model = perturbed(options)
    loss, terms = model.loss(model(bags, mask), labels)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}, terms


def test_transport_of_raw_features_is_a_null_control():
    bags, mask, _, labels = data()
    raw, terms = gradients(dict(ot_on="raw"), labels, bags, mask)
    none, without = gradients(dict(ot="none"), labels, bags, mask)
    assert terms["L_ot"] == distance(bags, mask) > 0 and without["L_ot"] == 0
    assert all(torch.equal(raw[name], none[name]) for name in none)
    projected, _ = gradients({}, labels, bags, mask)
    assert not torch.equal(projected["branches.project.weight"], none["branches.project.weight"])


def test_loss_and_its_terms():
    bags, mask, _, labels = data()
    model = perturbed(dict(lam=0.25))
    output = model(bags, mask)
    total, terms = model.loss(output, labels)
    assert list(terms) == ["L_ce", "L_ot", "spread"] and not any(term.requires_grad for term in terms.values())
    torch.testing.assert_close(terms["L_ce"], F.cross_entropy(output.logits, labels).detach())
    torch.testing.assert_close(total, terms["L_ot"] + 0.25 * terms["L_ce"])
    clouds = [output.extras["projection"][:, s][mask[:, s]].detach() for s in range(2)]
    spread = sum((cloud - cloud.mean(0)).square().sum(1).mean().sqrt() for cloud in clouds) / 2
    torch.testing.assert_close(terms["spread"], spread)


@pytest.mark.slow
def test_transport_alone_shrinks_the_projection():
    """Why spread is logged: with lam = 0 nothing holds the tiles apart."""
    torch.manual_seed(0)
    model = create("dmsmil", DIM, 2, projection_dim=16, lam=0.0)
    bags, mask, *_ = bags_of((30, 30), 2, DIM)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    spreads = []
    for _ in range(100):
        optimiser.zero_grad()
        loss, terms = model.loss(model(bags, mask), torch.tensor([0, 1]))
        loss.backward()
        optimiser.step()
        spreads.append(terms["spread"].item())
    assert spreads[-1] < spreads[0] / 3


def test_fusion_weights():
    bags, mask, *_ = data()
    model = perturbed({})
    extras = model(bags, mask).extras
    e = torch.exp(torch.tanh(extras["pooled"]) @ model.omega)  # eq. (11)
    torch.testing.assert_close(extras["fusion"], e / e.sum(1, keepdim=True))
    assert torch.equal(perturbed(dict(fusion="mean"))(bags, mask).extras["fusion"], torch.full((3, 2), 0.5).double())


def test_one_logit_is_a_sigmoid():
    model = perturbed(dict(head="sigmoid"))
    bags, mask, _, labels = data()
    output = model(bags, mask)
    z = output.logits[:, 1]
    torch.testing.assert_close(output.probabilities[:, 1], z.sigmoid())
    torch.testing.assert_close(
        model.loss(output, labels)[1]["L_ce"], F.binary_cross_entropy_with_logits(z, labels.double()).detach()
    )


def test_shared_weights_treat_both_scales_alike():
    model = perturbed(dict(shared=True))
    bags, mask, *_ = data()
    pooled = model(bags[:, :1].expand(-1, 2, -1, -1), mask).extras["pooled"]
    torch.testing.assert_close(pooled[:, 0], pooled[:, 1])


def test_damil_is_the_branch_of_dmsmil():
    both, one = perturbed({}), create("damil", DIM, 2, (20,), projection_dim=D, heads=2, points=3).double()
    state = {
        key: value[1:] if key.startswith("branches") else value
        for key, value in both.state_dict().items()
        if key != "omega"
    }
    one.load_state_dict(state)
    bags, mask, *_ = data()
    output, single = both(bags, mask), one(bags[:, 1:], mask[:, 1:])
    torch.testing.assert_close(single.extras["pooled"][:, 0], output.extras["pooled"][:, 1])
    torch.testing.assert_close(single.scores[:, 0], output.scores[:, 1])


@pytest.mark.parametrize("grid", ["fill", "square"])
def test_sampling(grid):
    model = perturbed(dict(grid=grid))
    bags, mask, coords, _ = data((18,))
    found = model.sampling(bags, mask, coords)
    cells = 18 if grid == "fill" else 196
    assert found["reference"].shape == (1, 2, cells, 2) and found["deformed"].shape == (1, 2, cells, 2, 3, 2)
    torch.testing.assert_close(found["attention"].sum(-1), torch.ones(1, 2, cells, 2, dtype=torch.float64))
    assert ((found["deformed"] - found["reference"][:, :, :, None, None]).abs() <= model.branches.attend.reach).all()
    # 18 tiles fill a map of 3 x 6, and coords lie on that very grid: pixels are cells times the tile size
    width, height = (6, 3) if grid == "fill" else (14, 14)
    size = torch.tensor([width, height], dtype=torch.float64)
    inside = found["deformed"].clamp(min=torch.zeros(2), max=size - 1)
    if grid == "fill":
        torch.testing.assert_close(found["reference_px"], coords.double())
        torch.testing.assert_close(found["deformed_px"], inside * 1024)
    else:
        assert (found["deformed_px"] >= 0).all()
        assert (found["deformed_px"] <= torch.tensor([5, 2]).double() * 1024 + 1e-6).all()


def test_sampling_of_tile_maps():
    model = perturbed(dict(map="tile"))
    bags, mask, coords, _ = data((5,))
    found = model.sampling(bags, mask, coords)
    assert found["deformed"].shape == (1, 2, 5, 16, 2, 3, 2) and "deformed_px" not in found


@pytest.mark.parametrize("key", sorted(CHOICES))
def test_unknown_choice(key):
    with pytest.raises(InputError, match=f"unknown {key} 'nonsense': choose one of .*{CHOICES[key][-1]}"):
        create("dmsmil", DIM, 2, **{key: "nonsense"})
    assert CHOICES[key][0] == method("dmsmil").options()[key]  # the first choice is the default


@pytest.mark.slow
def test_every_choice_runs():
    bags, mask, coords = bags_of((9, 4), 2, DIM)
    for key, values in CHOICES.items():
        for value in values:
            model = create("dmsmil", DIM, 2, projection_dim=8, **{key: value})
            loss, _ = model.loss(model(bags, mask, coords), torch.tensor([0, 1]))
            assert math.isfinite(loss.item()), (key, value)


@pytest.mark.parametrize(
    "options,text",
    [
        (dict(scales=(10,)), "DAMIL"),
        (dict(projection_dim=10), "heads"),
        (dict(in_dim=30, map="tile"), "divided"),
        (dict(map="tile", grid="square"), "grid"),
        (dict(n_classes=3, head="sigmoid"), "one logit"),
    ],
)
def test_what_cannot_be_built(options, text):
    with pytest.raises(InputError, match=text):
        create("dmsmil", **(dict(in_dim=DIM) | options))


def test_sampling_without_deformable_attention():
    with pytest.raises(InputError, match="samples nothing"):
        perturbed(dict(deformable=False)).sampling(data()[0])
