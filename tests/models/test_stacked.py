"""A stack of runs is each of its runs: the same losses, terms, scores and weights after the same steps."""

import pytest
import torch

from dmsmil.jobs.files import InputError
from dmsmil.models import METHODS, create, method
from dmsmil.models.stacked import Stack

pytestmark = pytest.mark.slow

SLIDES, K, CHANNELS = 8, 12, 80
STACKING = [name for name in METHODS if method(name).load().stacks]
OPTIONS = [
    dict(shared=True),
    dict(shared=True, score="norm"),
    dict(shared=True, activation="layernorm"),
    dict(deformable=False),
    dict(map="tile"),
    dict(grid="square"),
    dict(attention="dot"),
    dict(softmax="all"),
    dict(offset="cells"),
    dict(fusion="mean"),
    dict(gate="projection"),
    dict(gate="projected"),
    dict(head="sigmoid"),
    dict(activation="layernorm_relu"),
    dict(ot="none"),
    dict(ot="paired"),
    dict(ot="squared"),
    dict(ot="entropic"),
    dict(ot_on="raw"),
    dict(ot_on="unit"),
    dict(ot_on="relative"),
    dict(grid="position"),
    dict(offset_lr=1.0),
    dict(query="plain"),
    dict(standardise=True),
    dict(standardise=True, shared=True),
]


@pytest.fixture(autouse=True)
def double():
    """In double precision the order of additions does not show, so equal means equal to twelve digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def study(scales: int):
    """Slides of which every second has fewer tiles: x, mask, coords, labels."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(SLIDES, scales, K, CHANNELS, generator=draw)
    mask = torch.ones(SLIDES, scales, K, dtype=torch.bool)
    mask[::2, :, K - 3 :] = False
    coords = torch.stack([torch.arange(K) % 5, torch.arange(K) // 5], -1).expand(SLIDES, scales, K, 2) * 1024
    return x, mask, coords, torch.arange(SLIDES) % 2


def models_of(name: str, lams=(), **options):
    """Three models, whose weights are drawn one after the other."""
    torch.manual_seed(0)
    scales = (10,) if method(name).takes == "one" else (10, 20)
    return [create(name, CHANNELS, 2, scales, **options, **({"lam": lams[run]} if lams else {})) for run in range(3)]


def check_stack(models):
    """Five steps of a stack against five steps of each model alone; after three the second run leaves."""
    x, mask, coords, labels = study(len(models[0].scales))
    geometry = models[0].geometry(mask, coords)
    stack, runs = Stack(models), [0, 1, 2]
    together = torch.optim.Adam(stack.parameters(), lr=1e-3, weight_decay=1e-2)
    alone = [torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-2) for model in models]
    draw = torch.Generator().manual_seed(2)
    for step in range(5):
        if step == 3:
            runs = [0, 2]
            stack.keep(runs, together)
        rows = torch.randint(SLIDES, (len(runs),), generator=draw)
        where = {name: value[rows] for name, value in geometry.items()}
        output = stack.forward([x[row : row + 1] for row in rows], mask[rows], coords[rows], where)
        losses, terms = stack.loss(output, labels[rows])
        together.zero_grad()
        losses.sum().backward()
        together.step()
        for place, run in enumerate(runs):
            row = rows[place : place + 1]
            own = models[run](x[row], mask[row], coords[row], {name: value[row] for name, value in geometry.items()})
            loss, said = models[run].loss(own, labels[row])
            alone[run].zero_grad()
            loss.backward()
            alone[run].step()
            torch.testing.assert_close(losses[place], loss, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(output.scores[place], own.scores, rtol=1e-10, atol=1e-10)
            assert said.keys() == terms.keys()
            for name, value in said.items():
                torch.testing.assert_close(terms[name][place], value, rtol=1e-10, atol=1e-10)
    for place, run in enumerate(runs):
        weights = stack.weights(place)
        assert weights.keys() == dict(models[run].named_parameters()).keys()
        for name, value in models[run].named_parameters():
            torch.testing.assert_close(weights[name], value.detach(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", STACKING)
def test_a_stack_is_its_runs(name):
    check_stack(models_of(name))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_stack_is_its_runs_under_every_option(options):
    check_stack(models_of("dmsmil", **options))


def test_runs_of_a_stack_may_differ_in_lam():
    check_stack(models_of("dmsmil", lams=(0.01, 1.0, 100.0)))


def test_three_scales_stack():
    torch.manual_seed(0)
    check_stack([create("dmsmil", CHANNELS, 2, (5, 10, 20)) for _ in range(3)])


def test_the_official_head_of_abmil_stacks():
    check_stack(models_of("abmil", one_logit=True))


def test_a_run_that_is_no_longer_finite_leaves_the_others_as_they_are():
    models = models_of("dmsmil")
    x, mask, coords, labels = study(2)
    geometry, stack = models[0].geometry(mask, coords), Stack(models)
    rows = torch.tensor([0, 1, 2])
    where = {name: value[rows] for name, value in geometry.items()}
    slides = [x[:1], x[1:2] * float("nan"), x[2:3]]
    losses, _ = stack.loss(stack.forward(slides, mask[rows], coords[rows], where), labels[rows])
    assert losses.isfinite().tolist() == [True, False, True]
    losses.sum().backward()
    for name, value in stack.values.items():
        finite = stack.of_runs(value.grad, name).flatten(1).isfinite().all(1)
        assert finite[0] and finite[2], name


def test_the_features_of_a_stack_are_never_joined():
    """The slides of a stack are views of the study's array: autograd keeps those, no copy of R slides."""
    stack = Stack(models_of("dmsmil"))
    x, mask, coords, _ = study(2)
    rows = torch.tensor([0, 1, 2])
    geometry = {name: value[rows] for name, value in stack.model.geometry(mask, coords).items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        stack.forward([x[row : row + 1] for row in rows], mask[rows], coords[rows], geometry)
    assert kept and not [t.shape for t in kept if t.shape[-1] == CHANNELS and t.numel() >= 3 * x[0].numel()]


def test_a_method_that_does_not_stack_says_so():
    assert {"dmsmil", "dmsmil_select", "damil", "meanpool"} <= set(STACKING) and "clam_sb" not in STACKING
    scales = (10,) if method("clam_sb").takes == "one" else (10, 20)
    with pytest.raises(InputError, match="does not stack"):
        Stack([create("clam_sb", CHANNELS, 2, scales)] * 2)
