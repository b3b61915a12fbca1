"""How well the tiles of two scales match, where tiles differ in weight: what `dmsmil_select` minimises besides L_ce."""

from __future__ import annotations

import numpy as np
import ot
import torch
from torch import Tensor

TEMPERATURE = 0.1  # of L_link, in mean squared distances of the bag


def squared_distances(x1: Tensor, x2: Tensor) -> Tensor:
    """|x1_j - x2_k|^2, at least 0: (N, K, d), (N, L, d) -> (N, K, L)."""
    lengths = x1.square().sum(-1).unsqueeze(2) + x2.square().sum(-1).unsqueeze(1)
    return torch.baddbmm(lengths, x1, x2.transpose(1, 2), alpha=-2).clamp(min=0)


def weighted_distance(x1: Tensor, x2: Tensor, squares: Tensor, weight1: Tensor, weight2: Tensor) -> Tensor:
    """W1 between tiles of unequal weight: x1 (N, K, d), x2 (N, L, d), their squared distances (N, K, L), weights (N, K)
    and (N, L), each summing to 1 -> (N,). By POT's exact solver; tiles without weight take no part.

    Its gradient in the features is that of the matched distances. In the weights it is the dual potentials (the
    envelope theorem): to give less weight to a tile that is dear to match.
    """
    cost = squares.detach().sqrt().double().cpu().numpy()
    first, second = (weight.detach().double().cpu().numpy() for weight in (weight1, weight2))
    entries, potentials = [], [np.zeros(first.shape), np.zeros(second.shape)]
    for i, (mine, theirs) in enumerate(zip(first, second)):
        rows, columns = np.flatnonzero(mine), np.flatnonzero(theirs)
        plan, log = ot.emd(
            mine[rows] / mine.sum(),
            theirs[columns] / theirs.sum(),
            np.ascontiguousarray(cost[i][np.ix_(rows, columns)]),
            log=True,
        )
        row, column = np.nonzero(plan)
        entries.append((np.full(len(row), i), rows[row], columns[column], plan[row, column]))
        potentials[0][i, rows], potentials[1][i, columns] = log["u"], log["v"]
    slide, row, column, mass = (  # type: ignore[assignment]  # tensors now, where there were arrays
        torch.from_numpy(np.concatenate(part)).to(x1.device) for part in zip(*entries)
    )
    mass = mass.to(x1.dtype)
    apart = torch.linalg.vector_norm(x1[slide, row] - x2[slide, column], dim=-1)
    matched = x1.new_zeros(len(x1)).index_add(0, slide, mass * apart)
    for weight, potential in zip((weight1, weight2), potentials):  # 0 in value, the potentials in gradient
        matched = matched + (torch.from_numpy(potential).to(x1) * (weight - weight.detach())).sum(-1)
    return matched


def link_loss(squares: Tensor, linked: Tensor) -> Tensor:
    """L_link of squared distances (N, K, K) between tiles of which j is linked with j where linked (N, K) is True ->
    (N,); 0 for one tile."""
    count = linked.sum(-1)
    logits = (-squares / TEMPERATURE).masked_fill(~(linked.unsqueeze(1) & linked.unsqueeze(2)), -1e4)
    right = logits.diagonal(dim1=1, dim2=2)
    each = (logits.logsumexp(1) + logits.logsumexp(2)) / 2 - right
    return (each * linked).sum(-1) / (count * count.clamp(min=2).log()).clamp(min=1)


def heaviest(gates: Tensor, count: int) -> Tensor:
    """The `count` places that weigh most, all scales together: gates (N, S, K) -> (N, count). Of places that weigh the
    same, as all do before the first step, those that `far_apart` has first."""
    apart = far_apart(gates.shape[2]).to(gates.device)
    order = gates.detach().sum(1)[:, apart].argsort(dim=1, descending=True, stable=True)
    return apart[order[:, :count]]


def far_apart(count: int) -> Tensor:
    """The places 0 to count - 1 in an order of which any beginning is spread evenly over all of them; more places, such
    as padding, leave the order of these as it is. (By the fractions of the multiples of the golden ratio.)"""
    return (torch.arange(count, dtype=torch.float64) * (5**0.5 - 1) / 2 % 1).argsort()
