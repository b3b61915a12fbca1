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
from torch.nn import functional as F

from dmsmil.jobs.files import InputError
from dmsmil.models.maps import Maps, corners


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
        return affine(x, self.weight, self.bias)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (S, N, in) @ weight (G, in, out) + bias (G, out) -> (S, N, out), where S / G neighbours share a group."""
    flat = x.reshape(len(weight), -1, x.shape[-1])
    out = flat @ weight if bias is None else torch.baddbmm(bias[:, None], flat, weight)
    return out.reshape(*x.shape[:-1], -1)


def affine_each(parts: list[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """`affine` for the given features of R runs, (S, N, in) each, groups run by run: (R S, N, out)."""
    runs, width = len(parts), weight.shape[-1]
    flat = [part.reshape(len(weight) // runs, -1, part.shape[-1]) for part in parts]
    weight, bias = weight.unflatten(0, (runs, -1)), bias.unflatten(0, (runs, -1))
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
class Samples:
    """The sampling of every query: x, y, attention (S, N, L, M, U); index, weight (S, N, L, M, U, 4).

    x, y in cells, before the border clamps them; attention is A_mqu; index and weight as `corners` gives them.
    """

    x: Tensor
    y: Tensor
    attention: Tensor
    index: Tensor
    weight: Tensor


def reach(offset: str, points: int) -> float:
    """c of eq. (3) in cells: how far a point lies from its query at most, in x and in y."""
    return points + 1.0 if offset == "cells" else 1.0


class DeformableAttention(nn.Module):
    """Eq. (3)-(8), pooled (9). Parameters a scale: W_q, the linear layer of 3MU channels, W', W (and W_k).

    offset="cells": dr = c tanh(.) with c = U + 1 cells, bias initialised on rings (head m looks in direction
        2 pi m / M, point u lies u cells away), as Deformable DETR does. offset="dat": c = s/H with s = 2 in the
        [-1, 1] range of a map of H cells, which is one cell; no ring.
    offset_lr: the offsets' layer is trained at this share of the learning rate, as in Deformable DETR (0.1). Adam's
        step does not depend on how large a gradient is, so a layer whose output is multiplied by 0.1, and whose weights
        start ten times as large, takes the steps of one that is trained at a tenth of the rate.
    query="norm": what offsets and logits are made of is normalised first (LayerNorm), as in DAT.
    attention="linear": logits from the query, eq. (4). attention="dot": eq. (6), <z_q, W_k x(r + dr)> / sqrt(d) a
        head; W_v is then W' (both map the sampled feature to the head's value).
    softmax="points": over the U points of a head. softmax="all": over all M U of a query.
    """

    def __init__(
        self,
        groups: int,
        dim: int,
        heads: int,
        points: int,
        offset: str,
        attention: str,
        softmax: str,
        offset_lr: float = 1.0,
        query: str = "plain",
    ):
        super().__init__()
        if heads < 1 or points < 1 or dim % heads:
            raise InputError(
                f"projection_dim {dim} in {heads} heads of {points} points: heads must divide "
                "projection_dim, and both heads and points must be at least 1"
            )
        if not 0 < offset_lr <= 1:
            raise InputError(f"offset_lr is {offset_lr}: a share of the learning rate is needed, above 0 and up to 1")
        self.heads, self.points, self.softmax = heads, points, softmax
        self.offset_lr, self.normed = offset_lr, query == "norm"
        self.dot = attention == "dot"
        self.reach = reach(offset, points)
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
            self.plan.bias[:, : 2 * m * u] = ring.atanh().flatten()
            # small, not zero: exactly on a cell centre bilinear interpolation has a kink
            self.plan.weight[..., : 2 * m * u].normal_(std=0.01)
        else:
            self.plan.bias[:, : 2 * m * u] = 0
        self.plan.weight[..., : 2 * m * u] /= self.offset_lr
        self.plan.bias[:, : 2 * m * u] /= self.offset_lr
        self.plan.weight[..., 2 * m * u :] = 0  # attention starts uniform
        self.plan.bias[:, 2 * m * u :] = 0
        for layer in (self.value, self.output):
            for weight in layer.weight:
                nn.init.xavier_uniform_(weight)
            layer.bias.zero_()

    def sample(self, x: Tensor, maps: Maps) -> Samples:
        """Where every cell of the maps looks, and how much: x (S, N, L, C)."""
        m, u = self.heads, self.points
        z = self.query(x)
        plan = self.plan(F.layer_norm(z, z.shape[-1:]) if self.normed else z)
        offsets, *logits = plan.split(2 * m * u, -1)  # (S, N, L, 2MU), and (S, N, L, MU) unless dot
        if self.offset_lr != 1:
            offsets = self.offset_lr * offsets
        dx, dy = (self.reach * offsets.tanh()).unflatten(-1, (m, u, 2)).unbind(-1)
        column, row = maps.places()
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

        sum_j w_mj = 1 for each head (softmax="points"), or sum_mj w_mj = 1 (softmax="all"), if the shares sum to 1;
        less on maps in place, where a point can hold nothing.
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
