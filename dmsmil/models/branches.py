"""What each scale of DMSMIL has of its own, from features to a pooled vector; all scales in one pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmsmil.jobs.files import InputError
from dmsmil.models.deformable import DeformableAttention, Maps, ScaleLinear, corners, full_maps, lay_out

TILE_SIDE = 4  # map="tile": a feature is a map of 4 x 4 cells
SQUARE_SIDE = 14  # grid="square": the slide map is resampled to 14 x 14 cells

CHOICES = dict(
    fusion=("attention", "mean"),
    ot=("exact", "none", "entropic", "paired", "squared", "blocks"),
    ot_on=("projection", "raw", "unit"),
    map=("slide", "tile"),
    grid=("fill", "square"),
    attention=("linear", "dot"),
    softmax=("points", "all"),
    offset=("cells", "dat"),
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

    def __init__(self, in_dim: int, n_scales: int, *, projection_dim: int, heads: int, points: int, deformable: bool,
                 map: str, grid: str, attention: str, softmax: str, offset: str, activation: str, score: str,
                 shared: bool):
        super().__init__()
        check_choices(map=map, grid=grid, attention=attention, softmax=softmax, offset=offset, activation=activation,
                      score=score)
        self.cells = TILE_SIDE ** 2 if map == "tile" else 1  # cells that one tile fills
        if in_dim % self.cells:
            raise InputError(f"map 'tile' reshapes a feature to {TILE_SIDE} x {TILE_SIDE} cells: {in_dim} features "
                             f"cannot be divided by {self.cells}, use map 'slide'")
        if map == "tile" and grid == "square":
            raise InputError("grid 'square' resamples the slide map: with map 'tile' leave grid at 'fill'")
        self.square, self.activation, self.score = grid == "square", activation, score
        groups = 1 if shared else n_scales
        self.project = ScaleLinear(groups, in_dim // self.cells, projection_dim)
        if "layernorm" in activation:
            self.norm_weight = nn.Parameter(torch.ones(groups, 1, projection_dim))
            self.norm_bias = nn.Parameter(torch.zeros(groups, 1, projection_dim))
        self.attend = DeformableAttention(groups, projection_dim, heads, points, offset, attention,
                                          softmax) if deformable else None

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
        x = self.project.each(tiles) if isinstance(bags, list) else self.project(tiles[0])
        if "layernorm" in self.activation:
            x = F.layer_norm(x, x.shape[-1:]) * self.norm_weight + self.norm_bias
        if "relu" in self.activation:
            x = x.relu()
        if self.activation == "gelu":
            x = F.gelu(x)
        return x.view(s, b, k, self.cells, -1).masked_fill(~mask[..., None, None], 0)

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
        resample = torch.zeros(s, b, SQUARE_SIDE ** 2, k, dtype=x.dtype, device=x.device)
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

    def geometry(self, mask: Tensor) -> dict[str, Tensor]:
        """The layout of the slide maps, `deformable.Maps` by name, for mask (B, S, K); map="tile" needs none."""
        return {} if self.cells > 1 or self.attend is None else vars(lay_out(mask))

    def sampling(self, bags: Tensor, mask: Tensor, coords: Tensor | None,
                 geometry: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `BranchedMIL.sampling`."""
        if self.attend is None:
            raise InputError("deformable=False samples nothing: ask a deformable model")
        x = self.project_tiles(bags, mask.transpose(0, 1))
        features, maps, resample = self.lay_maps(x, geometry)
        samples = self.attend.sample(features, maps)
        reference = torch.stack([maps.cell % maps.width[..., None], maps.cell // maps.width[..., None]], -1)
        found = dict(reference=reference.to(x.dtype), deformed=torch.stack([samples.x, samples.y], -1),
                     attention=samples.attention)
        if coords is not None and self.cells == 1:
            place = coords.transpose(0, 1).to(x.dtype)  # (S, B, K, 2)
            place = place if resample is None else resample @ place
            corner = place.gather(2, samples.index.flatten(2).unsqueeze(-1).expand(-1, -1, -1, 2))
            corner = corner.unflatten(2, samples.index.shape[2:])  # (S, B, L, M, U, 4, 2)
            found |= dict(reference_px=place, deformed_px=(corner * samples.weight.unsqueeze(-1)).sum(-2))
        lead = x.shape[1:2] if self.cells == 1 else x.shape[1:3]
        return {name: value.unflatten(1, lead).transpose(0, 1) for name, value in found.items()}
