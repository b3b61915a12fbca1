"""Which tiles of the scales of a slide belong together, where only their places are known, and which to keep."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from dmsmil.jobs.files import InputError
from dmsmil.slides.reader import NEAR
from dmsmil.slides.tiles import Tiles, child_corner


def link(
    slide_id: str, parts: dict[int, Part], tile_px: int, k: int, seed: int, magnification: float
) -> tuple[Tiles, dict[int, np.ndarray]]:
    """The tiles to keep of a slide, linked, and the rows of each of `parts` that they are.

    A tile belongs to the tile of the first scale that its file names as `parent`, or else to the one that contains its
    centre (`containing`), at the third scale and further only if it lies so in the tile that is linked at the scale
    before it; of several in one, one is drawn (`draw_children`). Of the first scale `k` tiles are kept
    (`choose_rows`): those that have a tile at every other scale, and if there are fewer, others too, which then stand
    alone. Raises InputError for parents that are no rows, or when no tile holds one of every other scale.
    """
    first = next(iter(parts))
    own, n = parts[first], len(parts[first].coords)
    child, paired, before = {}, np.ones(n, bool), first
    for scale, part in list(parts.items())[1:]:
        if part.parent is None:
            parent = containing(own.coords, round(own.side), part.coords, round(part.side))
        elif own.parent is None:
            parent = part.parent
        else:  # both are numbered by a still coarser scale
            row = {number: row for row, number in enumerate(own.parent.tolist())}
            parent = np.array([row.get(number, -1) for number in part.parent.tolist()], np.int64)
        if parent.min() < -1 or parent.max() >= n:
            raise InputError(
                f"slide {slide_id} has parents at {scale}x that are no rows of its {n} tiles at {first}x: "
                "make its features again"
            )
        if child and part.parent is None:
            parent = np.where(_within(parts[before], child[before], part) == parent, parent, -1)
        child[scale], before = draw_children(parent, own.coords, part.coords, seed, slide_id, scale), scale
        paired &= child[scale] >= 0
    if not paired.any():
        raise InputError(
            f"slide {slide_id} has no tile at {first}x that holds one of every other scale: are these the "
            "features of one slide?"
        )
    density = np.full(n, np.nan) if own.density is None else own.density
    colour = np.full((n, 6), np.nan, np.float32) if own.colour is None else own.colour
    linked, alone = np.flatnonzero(paired), np.flatnonzero(~paired)
    kept = linked[choose_rows(own.coords[linked], density[linked], k)]
    kept = np.concatenate([kept, alone[choose_rows(own.coords[alone], density[alone], k - len(kept))]])
    kept = kept[np.lexsort((own.coords[kept, 0], own.coords[kept, 1]))]
    rows = {scale: child[scale][kept[paired[kept]]] if scale in child else kept for scale in parts}
    size = tuple(round(float(side)) for side in own.size)
    return Tiles(
        slide_id,
        tile_px,
        {scale: parts[scale].coords[rows[scale]] for scale in parts},
        density[kept],
        colour[kept],
        np.flatnonzero(paired[kept]),
        size,
        magnification,
        grid=n,
        read=n,
    ), rows


def _within(coarse: Part, child: np.ndarray, part: Part) -> np.ndarray:
    """The row of the first scale in whose linked tile at a scale, coarse[child], each tile of `part` lies: (M,), -1 for
    none."""
    linked = np.flatnonzero(child >= 0)
    held = containing(coarse.coords[child[linked]], round(coarse.side), part.coords, round(part.side))
    return np.where(held >= 0, linked[held], -1) if len(linked) else held


def choose_rows(coords: np.ndarray, density: np.ndarray, k: int) -> np.ndarray:
    """At most `k` rows of the tiles at coords (N, 2), in raster order (y, then x): the densest (paper 2.2).

    Where density (N,) is not known (NaN: tiles of another program), k evenly spaced ones in raster order. They cover
    the tissue as its tiles do and depend on no random number; they are not the paper's choice, which needs pixels.
    """
    raster = np.lexsort((coords[:, 0], coords[:, 1]))
    if len(raster) <= k:
        return raster
    if np.isnan(density).any():
        return raster[np.round(np.linspace(0, len(raster) - 1, k)).astype(int)]
    best = np.argsort(-density[raster], kind="stable")[:k]  # ties by position
    return raster[np.sort(best)]


def containing(corners: np.ndarray, side: int, inner: np.ndarray, inner_side: int) -> np.ndarray:
    """The row of the tile that contains the centre of each inner tile: (M,) int64, -1 where none does.

    corners (N, 2) and inner (M, 2) are top-left corners, sides in the same pixels. A tile holds its left and upper
    edges, not its right and lower ones. Of several that overlap it is the one with the nearest centre (the larger of
    the distances in x and y), then the first row.
    """
    if not len(corners) or not len(inner):
        return np.full(len(inner), -1, np.int64)
    centre = 2 * inner + inner_side  # in half pixels, so that all are whole numbers
    near = min(4, len(corners))  # tiles that overlap by chance, as at the seams of two outlines
    _, rows = cKDTree(2 * corners + side).query(centre, k=range(1, near + 1), p=np.inf)
    offset = centre[:, None] - 2 * corners[rows]  # (M, near, 2)
    inside = ((offset >= 0) & (offset < 2 * side)).all(-1)
    distance = np.abs(offset - side).max(-1)
    best = np.lexsort((rows, distance, ~inside), axis=-1)[:, :1]
    found = np.take_along_axis(rows, best, 1)[:, 0]
    return np.where(np.take_along_axis(inside, best, 1)[:, 0], found, -1).astype(np.int64)


def draw_children(
    parent: np.ndarray, corners: np.ndarray, inner: np.ndarray, seed: int, slide_id: str, scale: int
) -> np.ndarray:
    """One inner tile for each tile: (N,) int64 rows of `inner`, -1 for a tile that has none.

    parent (M,) is the tile of each inner one, -1 for none. Of several one is drawn at random, as the paper draws a 20x
    tile inside a 10x tile, by the hash that `child_corner` draws with: the order of rows never matters.
    """
    order = np.lexsort((inner[:, 0], inner[:, 1], parent))
    order = order[parent[order] >= 0]
    parents, first, count = np.unique(parent[order], return_index=True, return_counts=True)
    drawn = [
        child_corner(seed, slide_id, (x, y), scale, n - 1)[0] - x
        for (x, y), n in zip(corners[parents].tolist(), count.tolist())
    ]
    child = np.full(len(corners), -1, np.int64)
    child[parents] = order[first + np.array(drawn, np.int64)]
    return child


def grid_step(coords: np.ndarray) -> int:
    """The distance of neighbours in a row of the grid that tiles at coords (N, 2) lie on; 0 when they lie on none."""
    order = np.lexsort((coords[:, 0], coords[:, 1]))
    step, same_row = np.diff(coords[order, 0]), np.diff(coords[order, 1]) == 0
    steps, counts = np.unique(step[same_row & (step > 0)], return_counts=True)
    return int(steps[counts.argmax()]) if len(steps) and 4 * counts.max() >= len(coords) else 0


def overlapping(corners: np.ndarray, side: float) -> int:
    """How many of the tiles at corners (N, 2) share more than a rounded edge with another one."""
    if len(corners) < 2 or side <= 0:
        return 0
    nearest, _ = cKDTree(corners).query(corners, k=[2], p=np.inf)
    return int((nearest[:, 0] < (1 - NEAR) * side).sum())


class Part(NamedTuple):
    """One scale of one slide as its files have it; zero, empty or None is what they do not say.

    features (N, D) float32; coords (N, 2) int64, top-left corners in level-0 px; side of a tile in level-0 px; parent
    (N,) row of the first scale's tile; magnification and size (width, height) of level 0; encoder's name; density (N,)
    and colour (N, 6), which only this package writes.
    """

    features: np.ndarray
    coords: np.ndarray
    side: float = 0.0
    parent: np.ndarray | None = None
    magnification: float = 0.0
    size: tuple[float, float] = (0.0, 0.0)
    encoder: str = ""
    density: np.ndarray | None = None
    colour: np.ndarray | None = None
