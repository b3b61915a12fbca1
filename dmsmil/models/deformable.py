"""Deformable attention over a map of tiles, eq. (3)-(8), in the exact pooled form.

The mean over tiles (9) comes right after (8), and bilinear sampling, W'_m, W_m and the mean are all linear. The pooled
vector of a map is therefore exactly

    sum_m W_m W'_m ( sum_j w_mj x_j ),      w_mj = (1/n) sum_q sum_u A_mqu beta_j(r_q + dr_mqu)

with beta_j the bilinear weight of cell j. So only the weight map w is computed, never the sampled features; and w_mj
is the attention mass that tile j receives, with no approximation.

Shapes: S scales, N maps a scale, L cells (or tiles) a map, C channels, M heads, U points, d = C / M. The scale axis
comes first, so that every layer of all scales is one batched product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmsmil.jobs.files import InputError
from dmsmil.models.grid import grid_shape


class ScaleLinear(nn.Module):
    """An affine map for each scale, all in one product: (S, N, in) -> (S, N, out).

    weight (G, in, out), bias (G, out); G = S, or G = 1 when all scales share it. Initialised as nn.Linear.
    """

    def __init__(self, groups: int, in_dim: int, out_dim: int, bias: bool = True):
        super().__init__()
        bound = 1 / math.sqrt(in_dim)
        self.weight = nn.Parameter(torch.empty(groups, in_dim, out_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(groups, out_dim).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(len(self.weight), -1, x.shape[-1])
        out = flat @ self.weight if self.bias is None else torch.baddbmm(self.bias[:, None], flat, self.weight)
        return out.reshape(*x.shape[:-1], -1)

    def each(self, parts: list[Tensor]) -> Tensor:
        """The same for the given features of R runs, (S, N, in) each, groups run by run: (R S, N, out)."""
        runs, width = len(parts), self.weight.shape[-1]
        flat = [part.reshape(len(self.weight) // runs, -1, part.shape[-1]) for part in parts]
        weight, bias = self.weight.unflatten(0, (runs, -1)), self.bias.unflatten(0, (runs, -1))
        return _EachTimes.apply(weight, bias, *flat).view(runs * len(parts[0]), -1, width)


def for_each(weight: Tensor, scales: int) -> Tensor:
    """The weights (G, ...) of each of `scales` scales (S, ...), where S / G neighbours share them."""
    return weight if len(weight) == scales else weight.repeat_interleave(scales // len(weight), 0)


class _EachTimes(torch.autograd.Function):
    """parts[r] @ weight[r] + bias[r] without joining the parts, which are views of the study's features and need no
    gradient: weight (R, G, in, out), bias (R, G, out), parts R of (G, N, in) -> (R, G, N, out)."""

    @staticmethod
    def forward(ctx, weight: Tensor, bias: Tensor, *parts: Tensor) -> Tensor:
        ctx.parts = parts
        out = weight.new_empty(*weight.shape[:2], parts[0].shape[1], weight.shape[-1])
        for run, part in enumerate(parts):
            torch.baddbmm(bias[run, :, None], part, weight[run], out=out[run])
        return out

    @staticmethod
    def backward(ctx, slope: Tensor):
        parts = ctx.parts
        weight = slope.new_empty(*slope.shape[:2], parts[0].shape[-1], slope.shape[-1])
        for run, part in enumerate(parts):
            torch.bmm(part.transpose(1, 2), slope[run], out=weight[run])
        return weight, slope.sum(2), *[None] * len(parts)


@dataclass
class Maps:
    """Where the tiles of each map lie. All int64: height, width, count (S, N); cell, tile (S, N, L).

    The `count` tiles of a map fill its height x width cells row by row; cells from `count` on are empty.
    cell[l] = the cell that tile l fills; tile[c] = the tile in cell c (beyond `count` both are harmless indices).
    """

    height: Tensor
    width: Tensor
    count: Tensor
    cell: Tensor
    tile: Tensor


def lay_out(mask: Tensor) -> Maps:
    """The map of each bag: mask (..., L) -> Maps. Its n tiles fill H x W cells in their order (raster order).

    H x W depends on n alone (`grid_shape`: 10 x 20 for n = 200), so padding changes nothing.
    """
    count = mask.sum(-1).clamp(min=1)
    height, width = grid_shape(count).unbind(-1)
    cell = (mask.cumsum(-1) - 1).clamp(min=0)
    tile = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)
    return Maps(height, width, count, cell, tile)


def full_maps(height: int, width: int, lead: tuple[int, ...], device) -> Maps:
    """Maps of `height` x `width` cells without an empty one, with leading axes `lead` = (S, N)."""
    cells = torch.arange(height * width, device=device).expand(*lead, -1)
    size = [torch.full(lead, value, device=device) for value in (height, width, height * width)]
    return Maps(*size, cells, cells)


def corners(x: Tensor, y: Tensor, maps: Maps) -> tuple[Tensor, Tensor]:
    """Bilinear weights of the points (x, y) (S, N, ...) -> index, weight (S, N, ..., 4): four tiles a point.

    Unit: cells, whole numbers at cell centres (align_corners=False: a zero offset reads exactly its own cell).
    Outside the map the border counts, and in a column without a cell in the last row the border is the row above.
    A corner on an empty cell gets weight 0 and the other three are renormalised: weights always sum to 1.
    """
    lead = (...,) + (None,) * (x.dim() - 2)
    height, width, count = maps.height[lead], maps.width[lead], maps.count[lead]
    x = x.clamp(min=0).minimum((width - 1).to(x.dtype))
    left = x.detach().long().clamp(min=0)  # also where x is not a number: the weight then is none either
    last_row = height - 1 - (left >= count - (height - 1) * width).long()
    y = y.clamp(min=0).minimum(last_row.to(y.dtype))
    # at the lower border the pair of rows is (H-2, H-1), so that only the lower two corners can be empty
    upper = torch.minimum(y.detach().long().clamp(min=0), (height - 2).clamp(min=0))
    fx, fy = x - left, y - upper
    right = torch.minimum(left + 1, width - 1)
    below = (upper + 1) * width
    index = torch.stack([upper * width + left, upper * width + right, below + left, below + right], -1)
    gx = 1 - fx
    lower_left, lower_right = gx * fy, fx * fy
    kept = lower_right * (below + right < count)
    weight = torch.stack([gx - lower_left, fx - lower_right, lower_left, kept], -1)
    weight = weight / (1 - lower_right + kept).unsqueeze(-1)
    index = torch.minimum(index, (count - 1).unsqueeze(-1))
    return maps.tile.gather(-1, index.flatten(2)).view_as(index), weight


@dataclass
class Samples:
    """The sampling of every query: x, y, attention (S, N, L, M, U); index, weight (S, N, L, M, U, 4).

    x, y in cells, before the border clamps them; attention is A_mqu; index and weight as `corners` gives them.
    """

    x: Tensor
    y: Tensor
    attention: Tensor
    index: Tensor
    weight: Tensor


class DeformableAttention(nn.Module):
    """Eq. (3)-(8), pooled (9). Parameters a scale: W_q, the linear layer of 3MU channels, W', W (and W_k).

    offset="cells": dr = c tanh(.) with c = U + 1 cells, bias initialised on rings (head m looks in direction
        2 pi m / M, point u lies u cells away), as Deformable DETR does. offset="dat": c = s/H with s = 2 in the
        [-1, 1] range of a map of H cells, which is one cell; no ring.
    attention="linear": logits from the query, eq. (4). attention="dot": eq. (6), <z_q, W_k x(r + dr)> / sqrt(d) a
        head; W_v is then W' (both map the sampled feature to the head's value).
    softmax="points": over the U points of a head. softmax="all": over all M U of a query.
    """

    def __init__(self, groups: int, dim: int, heads: int, points: int, offset: str, attention: str, softmax: str):
        super().__init__()
        if heads < 1 or points < 1 or dim % heads:
            raise InputError(f"projection_dim {dim} in {heads} heads of {points} points: heads must divide "
                             "projection_dim, and both heads and points must be at least 1")
        self.heads, self.points, self.softmax = heads, points, softmax
        self.dot = attention == "dot"
        self.reach = points + 1.0 if offset == "cells" else 1.0
        self.query = ScaleLinear(groups, dim, dim)
        self.plan = ScaleLinear(groups, dim, (2 if self.dot else 3) * heads * points)
        self.key = ScaleLinear(groups, dim, dim, bias=False) if self.dot else None
        self.value = ScaleLinear(groups, dim, dim)
        self.output = ScaleLinear(groups, dim, dim)
        self._initialise(offset)

    @torch.no_grad()
    def _initialise(self, offset: str) -> None:
        m, u = self.heads, self.points
        if offset == "cells":
            angle = 2 * math.pi * torch.arange(m) / m
            direction = torch.stack([angle.cos(), angle.sin()], -1)  # (M, 2), (x, y)
            direction = direction / direction.abs().amax(-1, keepdim=True)
            ring = direction[:, None] * torch.arange(1, u + 1)[:, None] / self.reach  # (M, U, 2)
            self.plan.bias[:, :2 * m * u] = ring.atanh().flatten()
            # small, not zero: exactly on a cell centre bilinear interpolation has a kink
            self.plan.weight[..., :2 * m * u].normal_(std=0.01)
        else:
            self.plan.bias[:, :2 * m * u] = 0
        self.plan.weight[..., 2 * m * u:] = 0  # attention starts uniform
        self.plan.bias[:, 2 * m * u:] = 0
        for layer in (self.value, self.output):
            for weight in layer.weight:
                nn.init.xavier_uniform_(weight)
            layer.bias.zero_()

    def sample(self, x: Tensor, maps: Maps) -> Samples:
        """Where every cell of the maps looks, and how much: x (S, N, L, C)."""
        m, u = self.heads, self.points
        z = self.query(x)
        offsets, *logits = self.plan(z).split(2 * m * u, -1)  # (S, N, L, 2MU), and (S, N, L, MU) unless dot
        dx, dy = (self.reach * offsets.tanh()).unflatten(-1, (m, u, 2)).unbind(-1)
        column, row = maps.cell % maps.width[..., None], maps.cell // maps.width[..., None]
        px, py = column[..., None, None] + dx, row[..., None, None] + dy
        index, weight = corners(px, py, maps)
        if self.dot:
            key = self.key(x).unflatten(-1, (m, -1))
            scores = torch.einsum("snqmd,snkmd->snqmk", z.unflatten(-1, (m, -1)), key) / math.sqrt(key.shape[-1])
            logits = (scores.gather(-1, index.flatten(-2)).unflatten(-1, (u, 4)) * weight).sum(-1)
        else:
            logits = logits[0].unflatten(-1, (m, u))
        if self.softmax == "all":
            attention = logits.flatten(-2).softmax(-1).unflatten(-1, (m, u))
        else:
            attention = logits.softmax(-1)
        return Samples(px, py, attention, index, weight)

    def weights(self, x: Tensor, maps: Maps, share: Tensor) -> Tensor:
        """The weight map w (S, N, M, L) of x (S, N, L, C). share (S, N, L): weight of each query in the pooled mean.

        sum_j w_mj = 1 for each head (softmax="points"), or sum_mj w_mj = 1 (softmax="all"), if the shares sum to 1.
        """
        samples = self.sample(x, maps)
        mass = (samples.attention * share[..., None, None]).unsqueeze(-1) * samples.weight
        cells, device = x.shape[2], x.device
        head = torch.arange(0, self.heads * cells, cells, device=device)[:, None, None]
        flat = torch.zeros(*x.shape[:2], self.heads * cells, dtype=mass.dtype, device=device)
        flat = flat.scatter_add(-1, (samples.index + head).flatten(2), mass.flatten(2))
        return flat.unflatten(-1, (self.heads, cells))

    def mix(self, pooled: Tensor, mass: Tensor) -> Tensor:
        """sum_m W_m (W'_m pooled_m + mass_m b'_m) + b: (S, N, M, C), (S, N, M) -> (S, N, C).

        pooled_m = sum_j w_mj x_j and mass_m = sum_j w_mj, which is what the bias of W' was weighted with.
        """
        scales = len(pooled)
        weight = for_each(self.value.weight.unflatten(-1, (self.heads, -1)), scales)  # (S, C, M, d)
        bias = for_each(self.value.bias.unflatten(-1, (self.heads, -1)), scales)  # (S, M, d)
        values = torch.einsum("snmc,scmd->snmd", pooled, weight) + mass[..., None] * bias[:, None]
        return self.output(values.flatten(-2))

    def passed(self, carried: Tensor) -> Tensor:
        """W_m W'_m v_m, what head m adds to the pooled vector for v_m, biases apart: (..., M, C) with S first."""
        scales = len(carried)
        value = for_each(self.value.weight.unflatten(-1, (self.heads, -1)), scales)  # (S, C, M, d)
        output = for_each(self.output.weight.unflatten(1, (self.heads, -1)), scales)  # (S, M, d, C)
        return torch.einsum("s...mc,scmd,smde->s...me", carried, value, output)
