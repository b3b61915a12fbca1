"""Inter-scale optimal transport, eq. (1)-(2): the Wasserstein distance between the tiles of two scales.

Tiles have equal weight. For equally many tiles the exact W1 is an assignment problem: solve it on the detached cost,
then average the matched distances. By the envelope theorem the gradient of that mean is the gradient of W1.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import ot
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dmsmil.jobs.files import InputError
from dmsmil.models.base import masked_mean

BLOCK = 256  # tiles of a block, at most: kind="blocks"
ENTROPY = 0.05  # regularisation of kind="entropic", times the mean cost of the slide


def distance(features: Tensor, mask: Tensor, kind: str = "exact") -> Tensor:
    """L_ot, eq. (2): features (..., B, S, K, D), mask (..., B, S, K) -> (...), the mean over slides.

    More than two scales: the mean over consecutive pairs. kind:

    exact     W1, the infimum of eq. (1) over all couplings with the Euclidean distance
    squared   the same with the squared distance (W2 squared)
    paired    no infimum: tile j of one scale with tile j of the next (a 10x tile with its own 20x child)
    blocks    exact inside blocks of about BLOCK tiles, into which one fixed random order deals them, linked tiles
              together: the time grows with K, not with K^2.2. Where both scales have equally many tiles, a coupling
              that respects the blocks is a coupling, so this is W1 or more, and no more than "paired" where every
              tile is linked; up to BLOCK tiles it is W1
    entropic  <P, distance> for the entropic coupling P, regularised by ENTROPY times the mean cost; P held constant

    Raises InputError for a slide that has no tile at one of the scales.
    """
    slides, there = features.flatten(0, -4), mask.flatten(0, -3)
    pairs = [
        _distances(slides[:, s], slides[:, t], there[:, s], there[:, t], kind)
        for s, t in pairwise(range(slides.shape[1]))
    ]
    return torch.stack(pairs).mean(0).view(mask.shape[:-2]).mean(-1)


def mean_distance(features: Tensor, mask: Tensor) -> Tensor:
    """How far apart a slide's tiles of two scales are: features (..., S, K, D), mask (..., S, K) -> (...).

    The root of the mean squared distance |x - y|^2 over all pairs of a tile x of one scale and a tile y of the next,
    and over consecutive pairs of scales; at least 1e-6. Matching at random costs the mean distance, which is no more,
    so W1 of tiles that are divided by it is at most 1.
    """
    centre = masked_mean(features, mask)
    variance = masked_mean((features - centre.unsqueeze(-2)).square().sum(-1, keepdim=True), mask).squeeze(-1)
    apart = (centre[..., 1:, :] - centre[..., :-1, :]).square().sum(-1)
    squares = variance[..., 1:] + variance[..., :-1] + apart  # the mean over all pairs, without forming them
    return squares.mean(-1).clamp(min=1e-12).sqrt()


def plan(x1: Tensor, x2: Tensor, mask1: Tensor, mask2: Tensor, kind: str = "exact", entropy: float = ENTROPY) -> Tensor:
    """The coupling behind `distance`: x1 (B, K1, D), x2 (B, K2, D), masks (B, K1), (B, K2) -> (B, K1, K2) float64.

    Row sums are 1/n1 on the tiles of x1, column sums 1/n2 on those of x2 ("blocks" of unequal bags: nearly), zero on
    padding; detached.
    """
    if kind == "entropic":
        return _entropic_plan(x1, x2, mask1, mask2, entropy)
    row, column, mass = _coupling(x1, x2, mask1, mask2, kind)
    dense = torch.zeros(len(x1), x1.shape[1] * x2.shape[1], dtype=torch.float64, device=x1.device)
    dense.scatter_add_(1, row * x2.shape[1] + column, mass)
    return dense.view(len(x1), x1.shape[1], x2.shape[1])


def _distances(x1: Tensor, x2: Tensor, mask1: Tensor, mask2: Tensor, kind: str) -> Tensor:
    """The distance of each slide (B,): x1 (B, K1, D), x2 (B, K2, D), masks (B, K1), (B, K2)."""
    if kind == "entropic":
        # without the matrix-product shortcut: it loses precision, and its gradient, at nearly coincident points
        cost = torch.cdist(x1, x2, compute_mode="donot_use_mm_for_euclid_dist")
        return (_entropic_plan(x1, x2, mask1, mask2, ENTROPY).to(cost.dtype) * cost).sum((1, 2))
    row, column, mass = _coupling(x1, x2, mask1, mask2, kind)
    width = x1.shape[-1]
    difference = x1.gather(1, row.unsqueeze(-1).expand(-1, -1, width)) - x2.gather(
        1, column.unsqueeze(-1).expand(-1, -1, width)
    )
    # vector_norm has gradient 0, not NaN, where two tiles coincide
    cost = difference.square().sum(-1) if kind == "squared" else torch.linalg.vector_norm(difference, dim=-1)
    return (mass.to(cost.dtype) * cost).sum(1)


def _coupling(x1: Tensor, x2: Tensor, mask1: Tensor, mask2: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """A sparse coupling: row, column (B, E) int64 and mass (B, E) float64, zero on the entries that fill up."""
    if kind in ("exact", "squared") and x1.is_cuda and (solver := device_solver()) and equally_many(mask1, mask2):
        return match_on_device(x1, x2, mask1, mask2, kind == "squared", solver)
    if kind == "paired":
        mask1 = mask2 = mask1 & mask2
        cost = None
    else:
        cost = _cost(x1, x2, mask1, kind == "squared") if kind != "blocks" else None
    slides = []
    for i, (rows, columns) in enumerate(_tiles(mask1, mask2)):
        if kind == "paired":
            slides.append((rows, columns, np.full(len(rows), 1 / len(rows))))
        elif kind == "blocks":
            slides.append(_in_blocks(x1[i], x2[i], rows, columns))
        else:
            j, k, mass = _solve(cost[i][np.ix_(rows, columns)])
            slides.append((rows[j], columns[k], mass))
    entries = max(len(mass) for _, _, mass in slides)
    row, column = np.zeros((2, len(slides), entries), dtype=np.int64)
    weight = np.zeros((len(slides), entries))
    for i, (rows, columns, mass) in enumerate(slides):
        row[i, : len(mass)], column[i, : len(mass)], weight[i, : len(mass)] = rows, columns, mass
    return tuple(torch.from_numpy(part).to(x1.device) for part in (row, column, weight))


def _solve(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The optimal coupling of equally heavy rows with equally heavy columns: rows, columns and mass of its entries."""
    rows, columns = cost.shape
    if rows == columns:
        return *_assign(cost), np.full(rows, 1 / rows)
    dense = ot.emd(np.full(rows, 1 / rows), np.full(columns, 1 / columns), cost)
    row, column = np.nonzero(dense)
    return row, column, dense[row, column]


def device_solver() -> Callable[[Tensor], Tensor] | None:
    """The solver of a batch of assignments on the GPU, if the extra `gpu` is installed: costs (B, K, K) -> (B, K)."""
    if find_spec("torch_linear_assignment") is None:
        return None
    return import_module("torch_linear_assignment").batch_linear_assignment


def equally_many(mask1: Tensor, mask2: Tensor) -> bool:
    """Whether every slide has as many tiles at one scale as at the other, and some: masks (B, K1), (B, K2)."""
    count1, count2 = mask1.sum(1), mask2.sum(1)
    return mask1.shape == mask2.shape and bool(((count1 == count2) & (count1 > 0)).all())


@torch.no_grad()
def match_on_device(
    x1: Tensor, x2: Tensor, mask1: Tensor, mask2: Tensor, squared: bool, solver: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """`_coupling` of slides with equally many tiles at both scales, solved where the features are.

    Padding is matched with padding: that costs nothing, and a tile with padding more than all tiles together.
    """
    centre = masked_mean(x1, mask1).unsqueeze(1)
    cost = torch.cdist(x1 - centre, x2 - centre).nan_to_num()
    cost = cost.square() if squared else cost
    real1, real2 = mask1.unsqueeze(2), mask2.unsqueeze(1)
    far = cost.amax((1, 2), keepdim=True) * cost.shape[1] + 1
    cost = torch.where(real1 & real2, cost, torch.where(real1 ^ real2, far, 0.0))
    column = solver(cost)
    row = torch.arange(cost.shape[1], device=cost.device).expand_as(column)
    return row, column, mask1 / mask1.sum(1, keepdim=True).double()


def _in_blocks(
    x1: Tensor, x2: Tensor, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and mass of the coupling of one slide, kind="blocks": x1 (K1, D), x2 (K2, D) and their tiles."""
    found = []
    for mine, theirs in deal(rows, columns):
        there = torch.ones(1, len(mine), dtype=torch.bool, device=x1.device)
        row, column, mass = _solve(_cost(x1[None, mine], x2[None, theirs], there, squared=False)[0])
        found.append((mine[row], theirs[column], mass * len(mine) / len(rows)))
    return tuple(np.concatenate(part) for part in zip(*found))


def deal(rows: np.ndarray, columns: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The tiles of both scales in equally many blocks of about BLOCK, each with some of both. Equal indices, linked
    tiles, stay together, and tiles without a linked one are spread evenly."""
    count = min(-(-max(len(rows), len(columns)) // BLOCK), len(rows), len(columns))
    if count == 1:
        return [(rows, columns)]
    draw = np.random.default_rng(0)
    linked, *alone = np.intersect1d(rows, columns), np.setdiff1d(rows, columns), np.setdiff1d(columns, rows)
    together = np.array_split(draw.permutation(linked), count)
    mine, theirs = (np.array_split(draw.permutation(part), count)[::-1] for part in alone)  # small blocks get more
    return [(np.concatenate(one), np.concatenate(two)) for one, two in zip(zip(together, mine), zip(together, theirs))]


def _entropic_plan(x1: Tensor, x2: Tensor, mask1: Tensor, mask2: Tensor, entropy: float) -> Tensor:
    cost = _cost(x1, x2, mask1, squared=False)
    dense = np.zeros(cost.shape)
    for i, (rows, columns) in enumerate(_tiles(mask1, mask2)):
        sub = cost[i][np.ix_(rows, columns)]
        strength = entropy * sub.mean() or 1.0  # all tiles coincide: any coupling is optimal
        dense[i][np.ix_(rows, columns)] = ot.sinkhorn(
            np.full(len(rows), 1 / len(rows)),
            np.full(len(columns), 1 / len(columns)),
            sub,
            strength,
            method="sinkhorn_log",
            numItermax=2000,
            stopThr=1e-6,
            warn=False,
        )
    return torch.from_numpy(dense).to(x1.device)


def _assign(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The optimal assignment of a square cost matrix: rows, columns.

    A constant added to a row or a column changes every assignment alike, so the answer stays; but the solver, which
    starts from zero prices, takes a third of the time or less when rows and columns are made comparable first.
    A cost that is not finite has no best assignment: the distance then is not finite either, whichever is taken.
    """
    if not np.isfinite(cost).all():
        return np.arange(len(cost)), np.arange(len(cost))
    cost = cost - cost.mean(1, keepdims=True)
    cost -= cost.mean(0)
    cost -= cost.min(1, keepdims=True)
    cost -= cost.min(0)
    return linear_sum_assignment(cost)


@torch.no_grad()
def _cost(x1: Tensor, x2: Tensor, mask1: Tensor, squared: bool) -> np.ndarray:
    """(B, K1, K2) float64 distances, moved to the CPU in one copy.

    Taken around the centre of x1: a collapsed cloud far from the origin keeps its distances in single precision.
    """
    centre = masked_mean(x1, mask1).unsqueeze(1)
    cost = torch.cdist(x1 - centre, x2 - centre)
    return (cost.square() if squared else cost).cpu().numpy().astype(np.float64)


def _tiles(mask1: Tensor, mask2: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Indices of the tiles of each slide at both scales."""
    found = [(np.flatnonzero(a), np.flatnonzero(b)) for a, b in zip(mask1.cpu().numpy(), mask2.cpu().numpy())]
    if any(len(rows) == 0 or len(columns) == 0 for rows, columns in found):
        raise InputError(
            "a slide without tiles at one of two linked scales: transport needs at least one at each; "
            "leave the slide out"
        )
    return found
