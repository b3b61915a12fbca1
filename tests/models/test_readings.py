"""The readings of the cited methods: L_ot free of scale, slow offsets, the query normalised, features standardised."""

import numpy as np
import ot
import pytest
import torch
from torch.nn import functional as F

from dmsmil.jobs.files import InputError
from dmsmil.models import create
from dmsmil.models.contract import bags_of, check_batch_and_padding, check_gradients, close, model_of
from dmsmil.models.stacked import Stack
from dmsmil.models.transport import distance, mean_distance

DIM = 12


def clouds(seed=0, k=15, d=6):
    x = torch.randn(2, 2, k, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[:, 1] = 3 * x[:, 1] + 1
    return x, torch.ones(2, 2, k, dtype=torch.bool)


def relative(x, mask):
    return distance(x / mean_distance(x, mask)[..., None, None, None], mask)


def test_mean_distance_is_that_of_all_pairs():
    x, mask = clouds()
    mask[0, 0, 9:] = False
    for slide, there, found in zip(x, mask, mean_distance(x, mask)):
        pairs = torch.cdist(slide[0][there[0]], slide[1][there[1]])
        close(found, pairs.square().mean().sqrt(), 1e-10)


def test_relative_transport_has_no_unit():
    x, mask = clouds()
    value = relative(x, mask)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    for other in (1000 * x, x + 7, x @ turn):
        close(relative(other, mask), value, 1e-9)
    plain = [ot.emd2([], [], ot.dist(a.numpy(), b.numpy(), metric="euclidean")) for a, b in x]
    ratios = [w / d for w, d in zip(plain, mean_distance(x, mask).tolist())]
    assert value.item() == pytest.approx(np.mean(ratios), rel=1e-9)
    for seed in range(20):
        assert 0 <= relative(*clouds(seed)) <= 1


def test_relative_transport_does_not_reward_shrinking():
    """The slope of L_ot along x itself, which is what shrinks the features, is 0; that of the plain one is L_ot."""
    x, mask = clouds()
    x.requires_grad_()
    (slope,) = torch.autograd.grad(relative(x, mask), x)
    assert abs((slope * x).sum().item()) < 1e-12 and slope.abs().max() > 1e-3
    plain = distance(x, mask)
    (slope,) = torch.autograd.grad(plain, x)
    close((slope * x).sum(), plain, 1e-9)


def test_coinciding_tiles_cost_nothing():
    x = torch.ones(1, 2, 4, 3, requires_grad=True)
    value = relative(x, torch.ones(1, 2, 4, dtype=torch.bool))
    value.backward()
    assert value == 0 and x.grad.isfinite().all()


def trained(model, lr_of, steps=4):
    """Weights after some steps of Adam; lr_of: the rate of a parameter by its name."""
    bags, mask, coords = bags_of((20,), 2, DIM)
    optimiser = torch.optim.Adam([{"params": [p], "lr": lr_of(name)} for name, p in model.named_parameters()], eps=0)
    for _ in range(steps):
        optimiser.zero_grad()
        model.loss(model(bags.to(model.classify.weight.dtype), mask, coords), torch.tensor([1]))[0].backward()
        optimiser.step()
    return model


def test_slow_offsets_are_those_of_a_smaller_rate():
    """Against an optimiser that gives the offsets' own weights a tenth of the rate."""
    options = dict(projection_dim=8, heads=2, points=3, ot="none")
    plain, slow = (model_of("dmsmil", 2, DIM, **options, offset_lr=rate).double() for rate in (1.0, 0.1))
    attend = slow.branches.attend
    edge = 2 * attend.heads * attend.points

    class Apart(torch.nn.Module):  # the plan's two halves as two parameters
        def __init__(self, plan):
            super().__init__()
            self.offsets = torch.nn.ParameterList([plan.weight[..., :edge].clone(), plan.bias[:, :edge].clone()])
            self.logits = torch.nn.ParameterList([plan.weight[..., edge:].clone(), plan.bias[:, edge:].clone()])

        def forward(self, z):
            weight, bias = (torch.cat([a, b], -1) for a, b in zip(self.offsets, self.logits))
            return torch.baddbmm(bias[:, None], z.flatten(1, 2), weight).view(*z.shape[:-1], -1)

    plain.branches.attend.plan = Apart(plain.branches.attend.plan)
    trained(plain, lambda name: 1e-4 if ".offsets." in name else 1e-3)
    trained(slow, lambda name: 1e-3)
    weight, bias = (part.detach() for part in (attend.plan.weight, attend.plan.bias))
    theirs = plain.branches.attend.plan
    close(0.1 * weight[..., :edge], theirs.offsets[0], 1e-7)
    close(0.1 * bias[:, :edge], theirs.offsets[1], 1e-7)
    close(weight[..., edge:], theirs.logits[0], 1e-7)


@pytest.mark.parametrize("value", [0.0, -1.0, 1.5])
def test_a_share_of_the_rate(value):
    with pytest.raises(InputError, match="offset_lr is"):
        create("dmsmil", DIM, 2, offset_lr=value)


def test_a_normalised_query_has_no_size():
    """Ten times larger queries look to the same places; as they are, they look elsewhere."""
    bags, mask, coords = bags_of((20,), 2, DIM)
    for query, same in (("norm", True), ("plain", False)):
        model = model_of("dmsmil", 2, DIM, query=query)
        before = model.sampling(bags, mask, coords)["deformed"]
        with torch.no_grad():
            for part in model.branches.attend.query.parameters():
                part.mul_(10)
        assert torch.allclose(model.sampling(bags, mask, coords)["deformed"], before, atol=1e-3) == same


def learnt(bags, mask, **options):
    model = model_of("dmsmil", 2, DIM, standardise=True, **options)
    model.learn_inputs(iter(bags), iter(mask))
    return model


def test_standardised_features():
    bags, mask, coords = bags_of((20, 9), 2, DIM)
    strange = bags * torch.logspace(-2, 3, DIM) + torch.arange(DIM)
    strange[..., 5] = 4.0  # constant
    model, plain = learnt(strange, mask), model_of("dmsmil", 2, DIM)
    tiles = [strange[:, s][mask[:, s]].double() for s in range(2)]
    mean, deviation = (torch.stack([getattr(part, how)(0) for part in tiles]) for how in ("mean", "std"))
    close(model.branches.centre.double(), mean, 1e-4)
    given = (strange - mean.view(1, 2, 1, -1)) / torch.where(deviation > 1e-6, deviation, 1).view(1, 2, 1, -1)
    given = given / ((tiles[0].shape[0] - 1) / tiles[0].shape[0]) ** 0.5  # the deviation of all tiles, not an estimate
    close(model(strange, mask, coords).logits, plain(given.float(), mask, coords).logits, 1e-3)
    assert not any(name.endswith(("centre", "deviation")) for name, p in model.named_parameters() if p.requires_grad)


def test_standardised_the_unit_does_not_matter():
    bags, mask, coords = bags_of((20, 9), 2, DIM)
    here, there = learnt(bags, mask), learnt(1000 * bags, mask)
    close(here(bags, mask, coords).logits, there(1000 * bags, mask, coords).logits, 1e-3)
    for model in (here, learnt(bags, mask, shared=True)):
        check_batch_and_padding(model, scales=2)
        check_gradients(model, scales=2)


def test_each_run_of_a_stack_has_its_own_standard():
    bags, mask, coords = bags_of((20, 20), 2, DIM)
    models = [learnt(bags[:1], mask[:1]), learnt(5 * bags[1:] + 1, mask[1:])]
    stack, geometry = Stack(models), models[0].geometry(mask, coords)
    output = stack.forward([bags[:1], bags[1:]], mask, coords, geometry)
    assert len(stack.parameters()) == len(stack.values) - 2
    for run, model in enumerate(models):
        close(output.logits[run], model(bags[run : run + 1], mask[run : run + 1], coords[run : run + 1]).logits)
        close(stack.weights(run)["branches.centre"], model.branches.centre)


@pytest.mark.parametrize(
    "options", [{}, dict(grid="position"), dict(grid="square"), dict(offset="dat"), dict(map="tile")], ids=str
)
def test_looks_counts_what_sampling_shows(options):
    dim = 32
    model = model_of("dmsmil", 2, dim, projection_dim=16, **options)
    with torch.no_grad():
        model.branches.attend.plan.bias.add_(torch.randn(model.branches.attend.plan.bias.shape))
    bags, mask, coords = bags_of((20, 9), 2, dim)
    seen, shown = model.looks(bags, mask, coords), model.sampling(bags, mask, coords)
    step = shown["deformed"] - shown["reference"][..., None, None, :]
    far = (step.abs() > 0.95 * model.branches.attend.reach).any(-1)
    for slide, n in enumerate((20, 9)):
        for s in range(2):
            mine = far[slide, s] if options.get("grid") == "square" else far[slide, s][:n]
            close(seen["beyond_reach"][slide, s], mine.float().mean())
    if not options:  # 20 tiles fill 3 x 7 cells
        outside = ((shown["deformed"] < 0) | (shown["deformed"] > torch.tensor([6, 2]))).any(-1)
        close(seen["at_border"][0, 0], outside[0, 0].float().mean())
    assert model_of("dmsmil", 2, dim, deformable=False).looks(bags, mask, coords) == {}


def test_who_pulls_at_the_projection():
    bags, mask, coords = bags_of((20,), 2, DIM)
    model, labels = model_of("dmsmil", 2, DIM, lam=3.0), torch.tensor([1])
    output = model(bags, mask, coords)
    found = model.pulls(output, labels)
    weight = model.branches.project.weight
    alone = distance(output.extras["projection"], mask), 3 * F.cross_entropy(output.logits, labels)
    between, entropy = (torch.autograd.grad(term, weight, retain_graph=True)[0].norm() for term in alone)
    assert found["gradient_ot"] == pytest.approx(between.item(), rel=1e-5)
    assert found["gradient_ce"] == pytest.approx(entropy.item(), rel=1e-5)
    model = model_of("dmsmil", 2, DIM, ot="none")
    assert model.pulls(model(bags, mask, coords), labels)["gradient_ot"] == 0
