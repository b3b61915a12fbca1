"""What each scale of DMSMIL has of its own, from features to a pooled vector; all scales in one pass."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmsmil.jobs.files import InputError
from dmsmil.models.deformable import DeformableAttention, ScaleLinear, affine, affine_each, for_each
from dmsmil.models.maps import Maps, corners, full_maps, lay_in_place, lay_out

TILE_SIDE = 4  # map="tile": a feature is a map of 4 x 4 cells
SQUARE_SIDE = 14  # grid="square": the slide map is resampled to 14 x 14 cells

CHOICES = dict(
    fusion=("attention", "mean"),
    ot=("exact", "none", "entropic", "paired", "squared", "blocks"),
    ot_on=("projection", "raw", "unit", "relative"),
    map=("slide", "tile"),
    grid=("fill", "square", "position"),
    attention=("linear", "dot"),
    softmax=("points", "all"),
    offset=("dat", "cells"),
    query=("norm", "plain"),
    gate=("pooled", "projection", "projected"),
    head=("ce", "sigmoid"),
    activation=("none", "relu", "gelu", "layernorm", "layernorm_relu"),
    score=("mass", "norm"),
)


def check_choices(**options: str) -> None:
    """InputError for an option that is not one of its `CHOICES`."""
    for name, value in options.items():
        if value not in CHOICES[name]:
            raise InputError(f"unknown {name} '{value}': choose one of " + ", ".join(CHOICES[name]))


class Branches(nn.Module):
    """What each scale has of its own: projection, deformable attention and the mean over tiles, eq. (3)-(9).

    Options are those of `DMSMIL`. forward(bags (B, S, K, C), mask (B, S, K), geometry) gives a dict of

        projection (B, S, K, D)   the learned projection x_j of each tile, 0 on padding; D = d, or 16 d with map="tile"
        pooled (B, S, d)          x^ of eq. (9)
        weights (B, S, M, K)      w_mj, the attention mass that a tile receives in head m, 0 on padding
        scores (B, S, K)          what `score` makes of them
    """

    Attention = DeformableAttention

    def __init__(
        self,
        in_dim: int,
        n_scales: int,
        *,
        projection_dim: int,
        heads: int,
        points: int,
        deformable: bool,
        map: str,
        grid: str,
        attention: str,
        softmax: str,
        offset: str,
        offset_lr: float,
        query: str,
        activation: str,
        standardise: bool,
        score: str,
        shared: bool,
    ):
        super().__init__()
        check_choices(
            map=map,
            grid=grid,
            attention=attention,
            softmax=softmax,
            offset=offset,
            query=query,
            activation=activation,
            score=score,
        )
        self.cells = TILE_SIDE**2 if map == "tile" else 1  # cells that one tile fills
        if in_dim % self.cells:
            raise InputError(
                f"map 'tile' reshapes a feature to {TILE_SIDE} x {TILE_SIDE} cells: {in_dim} features "
                f"cannot be divided by {self.cells}, use map 'slide'"
            )
        if map == "tile" and (grid != "fill" or standardise):
            raise InputError(
                "map 'tile' has no map of the slide, and cuts features to pieces: with it leave grid at "
                "'fill' and standardise at False"
            )
        self.square, self.in_place = grid == "square", grid == "position"
        self.activation, self.score = activation, score
        groups = 1 if shared else n_scales
        self.project = ScaleLinear(groups, in_dim // self.cells, projection_dim)
        self.standardise = standardise
        if standardise:  # not trained: parameters, so that a stack of runs has those of each
            self.centre = nn.Parameter(torch.zeros(n_scales, in_dim), requires_grad=False)
            self.deviation = nn.Parameter(torch.ones(n_scales, in_dim), requires_grad=False)
        if "layernorm" in activation:
            self.norm_weight = nn.Parameter(torch.ones(groups, 1, projection_dim))
            self.norm_bias = nn.Parameter(torch.zeros(groups, 1, projection_dim))
        self.attend = (
            self.Attention(groups, projection_dim, heads, points, offset, attention, softmax, offset_lr, query)
            if deformable
            else None
        )

    @torch.no_grad()
    def learn_inputs(self, bags: Iterable[Tensor], masks: Iterable[Tensor]) -> None:
        """With `standardise`, mean and deviation of every feature over the tiles of the slides that are trained on, for
        each scale: bags (S, K, C) and masks (S, K) of one slide after the other."""
        if not self.standardise:
            return
        count, total, squares = 0, 0, 0
        for bag, mask in zip(bags, masks):
            x, there = bag.double() * mask.unsqueeze(-1), mask.sum(-1, keepdim=True)
            count, total, squares = count + there, total + x.sum(1), squares + x.square().sum(1)
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        self.centre.copy_(mean)
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, 1.0))  # a feature that is constant stays so

    def forward(self, bags: Tensor | list[Tensor], mask: Tensor, geometry: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of a stack of R runs bags is a list, (B, S, K, C) of each run, and every S below is R S, run by run."""
        mask = mask.transpose(0, 1)  # scales first, up to the return
        x = self.project_tiles(bags, mask)  # (S, B, K, cells, d)
        share = mask.to(x.dtype) / mask.sum(-1, keepdim=True).clamp(min=1)  # (S, B, K), of each tile in eq. (9)
        if self.attend is None:
            weights, carried = share.unsqueeze(2), None
            pooled = (weights @ x.mean(3)).squeeze(2)
        else:
            gathered, weights, carried = self._gather(x, share, geometry)
            pooled = self.attend.mix(gathered, weights.sum(-1))
        scores = self._scores(x, weights, carried)
        found = dict(projection=x.flatten(3), pooled=pooled, weights=weights.detach(), scores=scores)
        return {name: value.transpose(0, 1) for name, value in found.items()}

    def project_tiles(self, bags: Tensor | list[Tensor], mask: Tensor) -> Tensor:
        """Projection and activation, 0 on padding: bags (B, S, K, C), mask (S, B, K) -> (S, B, K, cells, d)."""
        s, b, k = mask.shape
        runs = bags if isinstance(bags, list) else [bags]
        tiles = [run.transpose(0, 1).reshape(run.shape[1], b * k * self.cells, -1) for run in runs]
        weight, bias = self._projection()
        x = affine_each(tiles, weight, bias) if isinstance(bags, list) else affine(tiles[0], weight, bias)
        if "layernorm" in self.activation:
            x = F.layer_norm(x, x.shape[-1:]) * for_each(self.norm_weight, len(x)) + for_each(self.norm_bias, len(x))
        if "relu" in self.activation:
            x = x.relu()
        if self.activation == "gelu":
            x = F.gelu(x)
        return x.view(s, b, k, self.cells, -1).masked_fill(~mask[..., None, None], 0)

    def _projection(self) -> tuple[Tensor, Tensor]:
        """Weight and bias that make x_j of the given features; standardising them is part of both, which spares a copy
        of the features: ((f - centre) / deviation) W + b = f (W / deviation) + (b - (centre / deviation) W)."""
        weight, bias = self.project.weight, self.project.bias
        if not self.standardise:
            return weight, bias
        scales = len(self.deviation)
        weight = for_each(weight, scales) / self.deviation.unsqueeze(-1)
        return weight, for_each(bias, scales) - (self.centre.unsqueeze(1) @ weight).squeeze(1)

    def lay_maps(self, x: Tensor, geometry: dict[str, Tensor]) -> tuple[Tensor, Maps, Tensor | None]:
        """x (S, B, K, cells, d) as maps: features (S, N, L, d), their layout and, with grid="square", R.

        R (S, B, 196, K) resamples the filled map: the bilinear weight of each tile in each cell of the square.
        """
        s, b, k = x.shape[:3]
        if self.cells > 1:
            return x.flatten(1, 2), full_maps(TILE_SIDE, TILE_SIDE, (s, b * k), x.device), None
        x, filled = x.squeeze(3), Maps(**{name: value.transpose(0, 1) for name, value in geometry.items()})
        if not self.square:
            return x, filled, None
        square = full_maps(SQUARE_SIDE, SQUARE_SIDE, (s, b), x.device)
        centre = torch.stack([square.cell % SQUARE_SIDE, square.cell // SQUARE_SIDE]).to(x.dtype) + 0.5
        size = torch.stack([filled.width, filled.height]).unsqueeze(-1)
        index, weight = corners(*(centre * size / SQUARE_SIDE - 0.5), filled)
        resample = torch.zeros(s, b, SQUARE_SIDE**2, k, dtype=x.dtype, device=x.device)
        resample = resample.scatter_add(-1, index, weight)
        return resample @ x, square, resample

    def _gather(self, x: Tensor, share: Tensor, geometry: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """sum_j w_mj x_j (S, B, M, d), w (S, B, M, K) and, with score="norm", w_mj x_j (S, B, K, M, d)."""
        features, maps, resample = self.lay_maps(x, geometry)
        if self.cells > 1:  # attention stays inside each tile
            queries = share.flatten(1).unsqueeze(-1).expand(-1, -1, self.cells) / self.cells
            inside = self.attend.weights(features, maps, queries)  # (S, B * K, M, cells)
            carried = (inside @ features).unflatten(1, share.shape[1:])
            return carried.sum(2), inside.sum(-1).unflatten(1, share.shape[1:]).transpose(2, 3), carried
        if self.square:
            share = torch.full_like(features[..., 0], 1 / features.shape[2])
        weights = self.attend.weights(features, maps, share)  # over cells
        gathered = weights @ features
        if self.square:
            weights = weights @ resample  # over tiles
        carried = weights.transpose(2, 3).unsqueeze(-1) * x if self.score == "norm" else None
        return gathered, weights, carried

    @torch.no_grad()
    def _scores(self, x: Tensor, weights: Tensor, carried: Tensor | None) -> Tensor:
        if self.score == "mass":
            return weights.sum(2) / weights.sum((2, 3)).clamp(min=1e-12).unsqueeze(-1)
        if self.attend is None:
            return weights.squeeze(2) * x.mean(3).norm(dim=-1)
        return self.attend.passed(carried).norm(dim=-1).sum(-1)

    def geometry(self, mask: Tensor, coords: Tensor | None = None) -> dict[str, Tensor]:
        """The layout of the slide maps, `maps.Maps` by name, for mask (B, S, K) and coords (B, S, K, 2); map="tile"
        needs none. Raises InputError where grid="position" is not told the coords."""
        if self.cells > 1 or self.attend is None:
            return {}
        if not self.in_place:
            return lay_out(mask).tensors()
        if coords is None:
            raise InputError("grid 'position' needs the positions of the tiles: hand over coords (B, S, K, 2)")
        return lay_in_place(mask, coords).tensors()

    def sampling(
        self, bags: Tensor, mask: Tensor, coords: Tensor | None, geometry: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """See `BranchedMIL.sampling`."""
        if self.attend is None:
            raise InputError("deformable=False samples nothing: ask a deformable model")
        x = self.project_tiles(bags, mask.transpose(0, 1))
        features, maps, resample = self.lay_maps(x, geometry)
        samples = self.attend.sample(features, maps)
        reference = torch.stack(maps.places(), -1)
        found = dict(
            reference=reference.to(x.dtype),
            deformed=torch.stack([samples.x, samples.y], -1),
            attention=samples.attention,
        )
        if coords is not None and self.cells == 1:
            place = coords.transpose(0, 1).to(x.dtype)  # (S, B, K, 2)
            place = place if resample is None else resample @ place
            corner = place.gather(2, samples.index.flatten(2).unsqueeze(-1).expand(-1, -1, -1, 2))
            corner = corner.unflatten(2, samples.index.shape[2:])  # (S, B, L, M, U, 4, 2)
            found |= dict(reference_px=place, deformed_px=(corner * samples.weight.unsqueeze(-1)).sum(-2))
        if self.in_place and coords is not None:  # a point in the void has no tiles to lie between
            step = (found["deformed"] - reference[:, :, :, None, None]) * maps.pitch[..., None, None, None, None]
            found["deformed_px"] = found["reference_px"][:, :, :, None, None] + step.to(x.dtype)
        lead = x.shape[1:2] if self.cells == 1 else x.shape[1:3]
        return {name: value.unflatten(1, lead).transpose(0, 1) for name, value in found.items()}

    def looks(self, bags: Tensor, mask: Tensor, coords: Tensor | None) -> dict[str, Tensor]:
        """How far the sampling points go: beyond_reach and at_border (B, S), shares of all points of a scale.

        beyond_reach: those whose offset is above 95 % of its bound c in x or y, eq. (3), where tanh hardly has a slope
        left. at_border: those outside the map.
        """
        geometry, mask = self.geometry(mask, coords), mask.transpose(0, 1)
        features, maps, _ = self.lay_maps(self.project_tiles(bags, mask), geometry)
        samples = self.attend.sample(features, maps)
        column, row = maps.places()
        dx, dy = samples.x - column[..., None, None], samples.y - row[..., None, None]
        far = torch.maximum(dx.abs(), dy.abs()) > 0.95 * self.attend.reach
        wide, high = (size[..., None, None, None] - 1 for size in (maps.width, maps.height))
        outside = (samples.x < 0) | (samples.x > wide) | (samples.y < 0) | (samples.y > high)
        if self.square:
            asks = torch.ones_like(column)
        else:  # padding asks nothing
            asks = mask.unsqueeze(-1).expand(*mask.shape, self.cells)
        asks = asks.reshape(*mask.shape[:2], -1).float()

        def share(points: Tensor) -> Tensor:
            each = points.float().mean((-2, -1)).reshape(asks.shape)
            return ((each * asks).sum(-1) / asks.sum(-1).clamp(min=1)).transpose(0, 1)

        return {"beyond_reach": share(far), "at_border": share(outside)}
