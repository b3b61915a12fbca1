"""Transport between scales: against POT, and by the properties of a distance."""

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from dmsmil.jobs.files import InputError
from dmsmil.models import transport
from dmsmil.models.transport import _assign, deal, distance, plan

KINDS = ["exact", "squared", "paired", "entropic"]


def pair(n1=20, n2=None, d=5, slides=3, seed=0, dtype=torch.float64):
    """features (B, 2, K, d), mask (B, 2, K): n1 and n2 tiles, the rest rubbish."""
    generator = torch.Generator().manual_seed(seed)
    n2 = n1 if n2 is None else n2
    features = torch.randn(slides, 2, max(n1, n2), d, generator=generator, dtype=dtype)
    features[:, 1] += 0.5
    mask = torch.arange(max(n1, n2)) < torch.tensor([n1, n2])[:, None]
    features[:, ~mask] = 1e3
    return features, mask.expand(slides, -1, -1)


def pot(features, mask, metric):
    """The mean of ot.emd2 over slides, differentiable, slide by slide."""
    found = []
    for x, m in zip(features, mask):
        a, b = x[0][m[0]], x[1][m[1]]
        cost = (a[:, None] - b).square().sum(-1)
        cost = cost.sqrt() if metric == "exact" else cost
        found.append(ot.emd2(ot.unif(len(a), type_as=a), ot.unif(len(b), type_as=b), cost))
    return torch.stack(found).mean()


@pytest.mark.parametrize("kind", ["exact", "squared"])
@pytest.mark.parametrize("n1,n2", [(20, 20), (20, 13), (7, 20), (1, 20), (1, 1), (2, 2)])
def test_value_and_gradient_are_pots(kind, n1, n2):
    features, mask = pair(n1, n2)
    mine, theirs = (features.clone().requires_grad_() for _ in range(2))
    a, b = distance(mine, mask, kind), pot(theirs, mask, kind)
    torch.testing.assert_close(a, b)
    a.backward(), b.backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
    assert (mine.grad[~mask] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_is_a_coupling_and_gives_the_distance(kind):
    features, mask = pair(20, 20 if kind == "paired" else 14)
    x1, x2, m1, m2 = features[:, 0], features[:, 1], mask[:, 0], mask[:, 1]
    coupling = plan(x1, x2, m1, m2, kind)
    assert (coupling >= 0).all()
    torch.testing.assert_close(coupling.sum(2), m1 / m1.sum(1, keepdim=True).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(coupling.sum(1), m2 / m2.sum(1, keepdim=True).double(), atol=1e-5, rtol=0)
    cost = torch.cdist(x1, x2)
    cost = cost.square() if kind == "squared" else cost
    torch.testing.assert_close((coupling * cost).sum((1, 2)).mean(), distance(features, mask, kind))


@pytest.mark.parametrize("kind", ["exact", "squared", "entropic"])
def test_order_of_tiles_does_not_matter(kind):
    features, mask = pair()
    mixed = features.clone()
    mixed[:, 0] = features[:, 0, torch.randperm(20)]
    torch.testing.assert_close(distance(mixed, mask, kind), distance(features, mask, kind))


@pytest.mark.parametrize("kind", ["exact", "squared", "paired"])
def test_symmetry(kind):
    features, mask = pair(20, 20 if kind == "paired" else 13)
    torch.testing.assert_close(distance(features.flip(1), mask.flip(1), kind), distance(features, mask, kind))


@pytest.mark.parametrize("kind,expected", [("exact", 3.0), ("paired", 3.0), ("squared", 9.0)])
def test_a_translated_cloud_is_as_far_as_it_was_moved(kind, expected):
    x = torch.randn(2, 1, 30, 9, dtype=torch.float64)
    step = torch.full((9,), 1.0, dtype=torch.float64)  # length 3
    found = distance(torch.cat([x, x + step], 1), torch.ones(2, 2, 30, dtype=torch.bool), kind)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_paired_tiles_are_never_nearer_than_the_best_match():
    features, mask = pair()
    assert distance(features, mask, "paired") > distance(features, mask, "exact") > 0
    own = (features[:, 0] - features[:, 1]).norm(dim=-1).mean()
    torch.testing.assert_close(distance(features, mask, "paired"), own)


@pytest.mark.slow
def test_entropic_tends_to_exact():
    features, mask = pair()
    x1, x2, m1, m2 = features[:, 0], features[:, 1], mask[:, 0], mask[:, 1]
    cost, exact = torch.cdist(x1, x2), distance(features, mask, "exact")
    excess = [(plan(x1, x2, m1, m2, "entropic", e) * cost).sum((1, 2)).mean() - exact for e in (0.5, 0.1, 0.02)]
    assert excess[0] > excess[1] > excess[2] > -1e-6
    assert excess[2] < 0.01 * exact


def test_entropic_gradient_holds_the_coupling():
    features, mask = pair(12, 9)
    features.requires_grad_()
    (gradient,) = torch.autograd.grad(distance(features, mask, "entropic"), features)
    coupling = plan(features[:, 0].detach(), features[:, 1].detach(), mask[:, 0], mask[:, 1], "entropic")
    unit = features[:, 0, :, None] - features[:, 1, None]
    unit = unit / unit.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    torch.testing.assert_close(gradient[:, 0], (coupling[..., None] * unit).sum(2).detach() / 3)


@pytest.mark.parametrize("kind", KINDS)
def test_coincident_tiles(kind):
    """Where both scales say the same, the distance is 0 and no gradient is NaN."""
    x = torch.randn(2, 1, 12, 4).expand(-1, 2, -1, -1).clone().requires_grad_()
    found = distance(x, torch.ones(2, 2, 12, dtype=torch.bool), kind)
    found.backward()
    assert x.grad.isfinite().all() and found.isfinite()
    if kind != "entropic":
        assert found.item() == pytest.approx(0, abs=1e-6)
    same = torch.ones(1, 2, 6, 3, requires_grad=True)
    distance(same, torch.ones(1, 2, 6, dtype=torch.bool), kind).backward()
    assert torch.equal(same.grad, torch.zeros_like(same))


def test_a_collapsed_cloud_far_away_keeps_its_distance():
    """Single precision, spread 1e-3 around a point 100 away from zero: the shape survives, to what the input keeps."""
    features, mask = pair(40, d=8)
    exact = distance(features, mask, "exact")
    far = (features * 1e-3 + 100).float()
    assert distance(far, mask, "exact").item() == pytest.approx(1e-3 * exact.item(), rel=5e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_batches(kind):
    features, mask = pair(12)
    padded = torch.cat([features, torch.full((3, 2, 37, 5), -1e6, dtype=torch.float64)], 2)
    longer = torch.cat([mask, torch.zeros(3, 2, 37, dtype=torch.bool)], 2)
    together = distance(padded, longer, kind)
    one_by_one = torch.stack([distance(features[i : i + 1], mask[i : i + 1], kind) for i in range(3)]).mean()
    torch.testing.assert_close(together, one_by_one)


def test_three_scales_are_two_pairs():
    generator = torch.Generator().manual_seed(0)
    x, mask = torch.randn(2, 3, 9, 4, generator=generator), torch.ones(2, 3, 9, dtype=torch.bool)
    expected = (distance(x[:, :2], mask[:, :2]) + distance(x[:, 1:], mask[:, 1:])) / 2
    torch.testing.assert_close(distance(x, mask), expected)


@pytest.mark.parametrize("n", [1, 2, 37, 80])
def test_comparable_rows_and_columns_keep_the_assignment(n):
    rng = np.random.default_rng(n)
    cost = rng.random((n, n)) + 5 * rng.random((n, 1)) + 5 * rng.random((1, n))
    row, column = _assign(cost)
    assert cost[row, column].sum() == pytest.approx(cost[linear_sum_assignment(cost)].sum(), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slide_without_tiles(kind):
    features, mask = pair(5)
    empty = mask.clone()
    empty[1, 1] = False
    with pytest.raises(InputError, match="without tiles"):
        distance(features, empty, kind)


def test_in_blocks_is_exact_up_to_a_block_and_between_exact_and_paired_beyond(monkeypatch):
    features, mask = pair(40, d=6)
    exact, paired = distance(features, mask, "exact"), distance(features, mask, "paired")
    torch.testing.assert_close(distance(features, mask, "blocks"), exact)
    found = []
    for size in (20, 8, 1):
        monkeypatch.setattr(transport, "BLOCK", size)
        found.append(distance(features, mask, "blocks"))
    assert exact < found[0] < found[1] < paired
    torch.testing.assert_close(found[2], paired)  # a tile alone in its block is matched with its own child


@pytest.mark.parametrize("n1,n2", [(40, 40), (40, 33), (9, 40)])
def test_in_blocks_is_a_coupling_inside_blocks(monkeypatch, n1, n2):
    monkeypatch.setattr(transport, "BLOCK", 10)
    features, mask = pair(n1, n2)
    coupling = plan(features[:, 0], features[:, 1], mask[:, 0], mask[:, 1], "blocks")
    rows, columns = np.arange(n1), np.arange(n2)
    blocks = deal(rows, columns)
    assert sorted(np.concatenate([a for a, _ in blocks])) == list(rows)
    assert sorted(np.concatenate([b for _, b in blocks])) == list(columns)
    assert all(max(len(a), len(b)) <= 10 for a, b in blocks)
    inside = torch.zeros(coupling.shape[1:], dtype=torch.bool)
    for a, b in blocks:
        inside[np.ix_(a, b)] = True
    assert (coupling[:, ~inside] == 0).all()
    torch.testing.assert_close(coupling.sum((1, 2)), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(coupling.sum(2), mask[:, 0] / mask[:, 0].sum(1, keepdim=True).double())
    tolerance = 1e-12 if n1 == n2 else 0.35 / n2  # else a block's columns share what its rows weigh
    torch.testing.assert_close(
        coupling.sum(1), mask[:, 1] / mask[:, 1].sum(1, keepdim=True).double(), atol=tolerance, rtol=0
    )


def test_in_blocks_linked_tiles_stay_together_when_a_child_is_missing(monkeypatch):
    """One missing tile dealt the scales apart: L_ot of children beside their parents was fifty times the exact one."""
    monkeypatch.setattr(transport, "BLOCK", 10)
    features, mask = pair(60, d=6)
    features[:, 1] = features[:, 0] + 0.01 * features[:, 1]
    mask = mask.clone()
    mask[:, 1, 17] = False
    exact = distance(features, mask, "exact")
    torch.testing.assert_close(distance(features, mask, "blocks"), exact, rtol=0.5, atol=0)
    for one, two in deal(np.arange(60), np.delete(np.arange(60), 17)):
        assert set(one) - {17} == set(two)


@pytest.mark.parametrize("n1,n2", [(60, 2), (2, 60), (60, 1)])
def test_in_blocks_every_block_has_a_tile_of_each_scale(monkeypatch, n1, n2):
    monkeypatch.setattr(transport, "BLOCK", 10)
    features, mask = pair(n1, n2)
    assert distance(features, mask, "blocks").isfinite()
    for rows, columns in ((np.arange(n1), np.arange(n2)), (np.arange(n1), 100 + np.arange(n2))):
        assert all(len(one) and len(two) for one, two in deal(rows, columns))


@pytest.mark.slow
def test_in_blocks_has_the_gradient_of_the_matched_distances(monkeypatch):
    monkeypatch.setattr(transport, "BLOCK", 8)
    features, mask = pair(30)
    assert torch.autograd.gradcheck(lambda x: distance(x, mask, "blocks"), features.requires_grad_())


@pytest.mark.parametrize("squared", [False, True])
def test_assignments_of_a_batch_on_a_device_are_the_exact_ones(squared):
    """With the extra `gpu`, here on whatever device there is: slides of different sizes, padded with rubbish."""
    solver = pytest.importorskip("torch_linear_assignment").batch_linear_assignment
    device = "cuda" if torch.cuda.is_available() else "cpu"
    features, _ = pair(20, slides=4, dtype=torch.float32)
    counts = torch.tensor([20, 13, 1, 7])
    mask = (torch.arange(20) < counts[:, None]).unsqueeze(1).expand(-1, 2, -1)
    features = features.masked_fill(~mask.unsqueeze(-1), 1e3).to(device)
    mask = mask.to(device)
    both = features[:, 0], features[:, 1], mask[:, 0], mask[:, 1]
    _, column, mass = transport.match_on_device(*both, squared, solver)
    assert transport.equally_many(mask[:, 0], mask[:, 1])
    chosen = features[:, 1].gather(1, column.unsqueeze(-1).expand(-1, -1, features.shape[-1]))
    cost = (features[:, 0] - chosen).square().sum(-1)
    found = (mass * (cost if squared else cost.sqrt())).sum(1).mean()
    expected = distance(features.cpu(), mask.cpu(), "squared" if squared else "exact")
    torch.testing.assert_close(found.cpu().float(), expected)
    torch.testing.assert_close(mass.sum(1).cpu(), torch.ones(4, dtype=torch.float64))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_and_cpu_transport_agree():
    features, mask = pair(30, dtype=torch.float32)
    torch.testing.assert_close(distance(features.cuda(), mask.cuda()).cpu(), distance(features, mask))


def test_slides_with_unequal_counts_are_not_for_the_device():
    _, mask = pair(20, 13)
    assert not transport.equally_many(mask[:, 0], mask[:, 1])
    assert not transport.equally_many(torch.zeros(1, 4, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.bool))
