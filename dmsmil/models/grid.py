"""The tiles of a slide as the cells of a grid: what HiFuse and AMGCFN, made for images, are run on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmsmil.jobs.files import InputError


def grid_shape(n: Tensor) -> Tensor:
    """Height and width of the grid for n tiles, twice as wide as high and just large enough: (...) -> (..., 2) int64.

    H = max(1, round(sqrt(n / 2))),   W = ceil(n / H)          n = 200: 10 x 20
    """
    height = (n / 2).sqrt().round().long().clamp(min=1)
    return torch.stack([height, -(-n.long() // height)], -1)


@dataclass
class Grid:
    """The slides of a batch that share one grid: slides (b,) indices in the batch; cells (b, H, W) bool, True where
    there is a tile; tiles (b, H, W) its position in the bag (0 where there is none); full: no cell is empty."""

    slides: Tensor
    cells: Tensor
    tiles: Tensor
    full: bool

    def take(self, values: Tensor) -> Tensor:
        """(B, K, C) -> (b, H, W, C), zero in empty cells."""
        values = values[self.slides[:, None, None], self.tiles]
        return values if self.full else values * self.cells[..., None]

    def put(self, into: Tensor, values: Tensor) -> None:
        """Write the (b, H, W) values of the cells to their tiles of `into` (B, K), in place."""
        slides = self.slides[:, None, None].expand_as(self.tiles)
        into[slides[self.cells], self.tiles[self.cells]] = values[self.cells]


def grids(mask: Tensor, shape: Tensor, even: bool = False) -> list[Grid]:
    """The tiles of each slide, in bag order (raster order), row by row in the cells of its grid.

    mask (B, K); shape (B, 2) from `grid_shape`, rounded up to even numbers if asked. Slides with the same grid are
    together; the last cells of a grid may be empty. Raises InputError when a slide has no tile.
    """
    counts = mask.sum(1)
    if not bool(counts.all()):
        raise InputError(f"slide {int(counts.argmin())} of the batch has no tile: leave it out")
    order = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    used = shape[:, 1]  # a column added to make the grid even stays empty
    shape = shape + shape % 2 if even else shape
    found = []
    for height, width in sorted({tuple(s) for s in shape.tolist()}):
        slides = ((shape[:, 0] == height) & (shape[:, 1] == width)).nonzero()[:, 0]
        columns = used[slides, None, None]
        row, column = (torch.arange(size, device=mask.device) for size in (height, width))
        rank = row[:, None] * columns + column
        cells = (column < columns) & (rank < counts[slides, None, None])
        tiles = order[slides].gather(1, rank.where(cells, 0).flatten(1)).view_as(rank) * cells
        found.append(Grid(slides, cells, tiles, bool(cells.all())))
    return found


def hide(x: Tensor, cells: Tensor | None) -> Tensor:
    """x (b, H, W, C) with empty cells set to zero; cells (b, H, W) or None when none is empty."""
    return x if cells is None else x * cells[..., None]


class CellNorm(nn.BatchNorm1d):
    """Batch normalisation of the last axis over the cells that hold a tile; empty cells come out as zero.

    x (..., C), cells (...) bool or None when none is empty. With a single cell, which has no variance, training uses
    the stored statistics. In training a slide's result depends on its batch, as always with batch normalisation.
    """

    def forward(self, x: Tensor, cells: Tensor | None = None) -> Tensor:
        rows = x.flatten(0, -2) if cells is None else x[cells]
        if self.training and len(rows) < 2:
            rows = F.batch_norm(rows, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        else:
            rows = super().forward(rows)
        return rows.view(x.shape) if cells is None else x.new_zeros(x.shape).index_put((cells,), rows)


class CellConv(nn.Conv2d):
    """A convolution of maps with channels last, (b, H, W, C) -> (b, H, W, C'), size kept, zeros outside."""

    def __init__(self, channels: int, out: int, kernel: int, groups: int = 1, bias: bool = True):
        super().__init__(channels, out, kernel, padding=kernel // 2, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
