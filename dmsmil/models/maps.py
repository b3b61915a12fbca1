"""Where the tiles of a bag lie on the map that deformable attention reads, and what lies at a point of it.

Two layouts: the n tiles *fill* their cells row by row (`lay_out`), or each lies where it lies in its slide
(`lay_in_place`).

Shapes as in `deformable`: S scales, N maps a scale, L tiles a map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from dmsmil.models.grid import grid_shape


@dataclass
class Maps:
    """Where the tiles of each map lie. int64: height, width, count (S, N); cell, tile (S, N, L).

    cell[l] = the cell that tile l fills, cells counted row by row. By `lay_out` the `count` tiles fill the first cells,
    and tile[c] = the tile in cell c; `held` is None. By `lay_in_place` held (S, N, L) are the cells that hold a tile,
    ascending, and tile[i] = the tile in cell held[i]; pitch (S, N) float64 is the side of a cell in level-0 px. Beyond
    `count` indices are harmless, and held is larger than any cell.
    """

    height: Tensor
    width: Tensor
    count: Tensor
    cell: Tensor
    tile: Tensor
    held: Tensor | None = None
    pitch: Tensor | None = None

    def places(self) -> tuple[Tensor, Tensor]:
        """Column and row (S, N, L) of the cell of each tile."""
        width = self.width[..., None]
        return self.cell % width, self.cell // width

    def tensors(self) -> dict[str, Tensor]:
        """By name, as `MIL.geometry` hands them on."""
        return {name: value for name, value in vars(self).items() if value is not None}


def lay_out(mask: Tensor) -> Maps:
    """The map of each bag: mask (..., L) -> Maps. Its n tiles fill H x W cells in their order (raster order).

    H x W depends on n alone (`grid_shape`: 10 x 20 for n = 200), so padding changes nothing.
    """
    count = mask.sum(-1).clamp(min=1)
    height, width = grid_shape(count).unbind(-1)
    cell = (mask.cumsum(-1) - 1).clamp(min=0)
    tile = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)
    return Maps(height, width, count, cell, tile)


def lay_in_place(mask: Tensor, coords: Tensor) -> Maps:
    """Each tile in the cell where it lies in its slide: mask (B, S, K), coords (B, S, K, 2) level-0 px -> Maps.

    All scales are laid out as the first, for row j of every scale belongs together: a child is where its parent is.
    A cell is as wide as the median distance, max(|x|, |y|), from a tile to its nearest; tiles on a regular grid each
    have a cell of their own. Of several in one cell all but the first take the nearest that is free. Neighbours on the
    map are neighbours in the tissue, and places without a tile are empty, where `lay_out` closes the ranks.
    """
    b, s, k = mask.shape
    place = torch.where(mask[:, :1, :, None], coords[:, :1], coords).cpu().numpy().astype(float)
    cell, tile = np.zeros((2, b, s, k), np.int64)
    held = np.full((b, s, k), np.iinfo(np.int64).max)
    size, pitch = np.ones((2, b, s), np.int64), np.ones((b, s))
    for at in np.ndindex(b, s):
        tiles = np.flatnonzero(mask[at].cpu().numpy())
        if len(tiles):
            columns, rows, pitch[at] = _cells(place[at][tiles])
            size[(slice(None), *at)] = rows.max() + 1, columns.max() + 1
            cells = rows * size[(1, *at)] + columns
            order = np.argsort(cells)
            cell[at][tiles], held[at][: len(tiles)], tile[at][: len(tiles)] = cells, cells[order], tiles[order]
    height, width = size
    parts = height, width, mask.sum(-1).clamp(min=1).cpu().numpy(), cell, tile, held, pitch
    return Maps(*(torch.from_numpy(part).to(mask.device) for part in parts))


def _cells(place: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Columns and rows (n,) of tiles at place (n, 2), one cell each, and the side of a cell in the unit of place."""
    if len(place) == 1:
        return np.zeros(1, int), np.zeros(1, int), 1.0
    nearest = KDTree(place).query(place, k=2, p=np.inf)[0][:, 1]
    pitch = float(np.median(nearest)) or 1.0
    wanted = np.round((place - place.min(0)) / pitch).astype(int)
    taken: set[tuple[int, int]] = set()
    for i, (column, row) in enumerate(wanted.tolist()):
        wanted[i] = _free(column, row, taken)
        taken.add(tuple(wanted[i].tolist()))
    columns, rows = wanted.T - wanted.min(0)[:, None]
    return columns, rows, pitch


def _free(column: int, row: int, taken: set[tuple[int, int]]) -> tuple[int, int]:
    """The cell that is asked for, or the nearest that is not taken."""
    reach = 0
    while True:
        ring = [
            (column + dx, row + dy)
            for dy in range(-reach, reach + 1)
            for dx in range(-reach, reach + 1)
            if max(abs(dx), abs(dy)) == reach and (column + dx, row + dy) not in taken
        ]
        if ring:
            return min(ring, key=lambda cell: (cell[0] - column) ** 2 + (cell[1] - row) ** 2)
        reach += 1


def full_maps(height: int, width: int, lead: tuple[int, ...], device) -> Maps:
    """Maps of `height` x `width` cells without an empty one, with leading axes `lead` = (S, N)."""
    cells = torch.arange(height * width, device=device).expand(*lead, -1)
    size = [torch.full(lead, value, device=device) for value in (height, width, height * width)]
    return Maps(*size, cells, cells)


def corners(x: Tensor, y: Tensor, maps: Maps) -> tuple[Tensor, Tensor]:
    """Bilinear weights of the points (x, y) (S, N, ...) -> index, weight (S, N, ..., 4): four tiles a point.

    Unit: cells, whole numbers at cell centres (align_corners=False: a zero offset reads exactly its own cell).
    Tiles that fill their cells: outside the map the border counts, and in a column without a cell in the last row the
    border is the row above. A corner on an empty cell gets weight 0 and the other three are renormalised: weights
    always sum to 1.
    Tiles in place: what lies outside the map or in an empty cell is 0, as `grid_sample` pads with zeros. A corner there
    gets weight 0 and nothing makes up for it: a point in the void holds nothing.
    """
    return _filled_corners(x, y, maps) if maps.held is None else _placed_corners(x, y, maps)


def _placed_corners(x: Tensor, y: Tensor, maps: Maps) -> tuple[Tensor, Tensor]:
    """`corners` of tiles in place."""
    lead = (...,) + (None,) * (x.dim() - 2)
    left, upper = x.detach().floor(), y.detach().floor()
    fx, fy = x - left, y - upper
    gx, gy = 1 - fx, 1 - fy
    weight = torch.stack([gx * gy, fx * gy, gx * fy, fx * fy], -1)
    column = torch.stack([left, left + 1, left, left + 1], -1).long()
    row = torch.stack([upper, upper, upper + 1, upper + 1], -1).long()
    height, width = maps.height[lead].unsqueeze(-1), maps.width[lead].unsqueeze(-1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    cell = (row * width + column).flatten(2)
    rank = torch.searchsorted(maps.held.contiguous(), cell).clamp(max=maps.held.shape[-1] - 1)
    holds = (maps.held.gather(-1, rank) == cell).view_as(inside) & inside
    return maps.tile.gather(-1, rank).view_as(inside), weight * holds


def _filled_corners(x: Tensor, y: Tensor, maps: Maps) -> tuple[Tensor, Tensor]:
    """`corners` of tiles that fill their cells."""
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
