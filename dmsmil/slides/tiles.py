"""Choose the densest tiles of a slide at its first scale and, linked to them, its finer ones (paper 2.2: 10x and 20x).

The selection is exactly that of reading and scoring every tile, at a fraction of its cost (`screen`, `select_tiles`).
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import cv2
import numpy as np

from dmsmil.jobs.files import InputError
from dmsmil.slides.density import check_black, padding_pixels, screen, screening_level, tissue_pixels
from dmsmil.slides.magnification import tile_size_level0
from dmsmil.slides.reader import Slide, shrink

FULL = 0.9  # of a slide's tiles: where so many may be tissue through and through, glass may be among them


@dataclass
class Tiles:
    """The tiles chosen on one slide: row i of every scale belongs together, each tile in that of the scale before it;
    rows in raster order of the first scale.

    coords: {scale: (N, 2) int64} top-left corners (x, y) in level-0 pixels. density: (N,) of the first scale's tile.
    colour: (N, 6) float32, mean R, G, B then standard deviation R, G, B of that tile, in [0, 1]. parent: (N,) int64,
    row of the first scale's tile that holds row i. dimensions: (width, height) of level 0, (0, 0) where none tells it
    (tiles of another program, whose slide is not at hand); magnification: of level 0.
    grid, read: how many tiles the slide has, how many of them were read to choose. pixels: {scale: uint8 (N, tile_px,
    tile_px, 3)} if asked for.
    """

    slide_id: str
    tile_px: int
    coords: dict[int, np.ndarray]
    density: np.ndarray
    colour: np.ndarray
    parent: np.ndarray
    dimensions: tuple[int, int]
    magnification: float
    grid: int
    read: int
    pixels: dict[int, np.ndarray] | None = field(default=None, repr=False)

    @property
    def extent(self) -> tuple[int, int]:
        """(width, height) of level 0, or where that is not known how far the tiles reach: room to draw them in."""
        if min(self.dimensions) > 0 or not len(self.density):
            return self.dimensions
        reach = [
            coords.max(0) + tile_size_level0(self.magnification, scale, self.tile_px)
            for scale, coords in self.coords.items()
        ]
        return tuple(np.max(reach, 0).tolist())


def how_linked(scales: tuple[int, ...]) -> dict[str, str]:
    """What a configuration says of how tiles are linked: of two scales nothing. (Of three the last scale's tile once
    lay in the first's and not in the second's: what was made so is made again.)"""
    return {"links": "nested"} if len(scales) > 2 else {}


def child_corner(seed: int, slide_id: str, parent: tuple[int, int], scale: int, room: int) -> tuple[int, int]:
    """Corner of the random tile of `scale` inside the tile at `parent`, uniform over the (room + 1)² level-0 offsets.

    A hash of (seed, slide, tile, scale) decides, so that neither order nor parallelism changes it.
    """
    digest = hashlib.sha256(f"{seed}|{slide_id}|{parent[0]}|{parent[1]}|{scale}".encode()).digest()
    dx, dy = (int.from_bytes(part, "big") % (room + 1) for part in (digest[:16], digest[16:]))
    return parent[0] + dx, parent[1] + dy


def tile_grid(slide: Slide, scales: tuple[int, ...], tile_px: int) -> tuple[int, int]:
    """(columns, rows) of the tiles of the first scale that lie whole inside a slide.

    Raises InputError: slide scanned below one of `scales`, or smaller than a tile.
    """
    for scale in scales:
        slide.source(scale, tile_px)  # refuses a scale above the slide's own
    side = tile_size_level0(slide.magnification, scales[0], tile_px)
    columns, rows = (n // side for n in slide.dimensions)
    if not columns or not rows:
        raise InputError(
            f"slide {slide.path.name} ({slide.dimensions[0]} x {slide.dimensions[1]} px) is smaller than "
            f"one {scales[0]}x tile of {side} px: take it out of the cohort table or lower tile_px"
        )
    return columns, rows


def select_tiles(
    slide: Slide,
    k: int = 200,
    tile_px: int = 512,
    seed: int = 0,
    min_density: float = 0.05,
    scales: tuple[int, ...] = (10, 20),
    pixels: bool = False,
    black: str = "padding",
) -> Tiles:
    """The `k` densest tiles of the first scale and, inside each, one random tile of the next scale, and so on: of 5x,
    10x and 20x the 20x tile lies in the 10x tile that lies in the 5x tile.

    Tiles of `tile_px` lie on a grid without overlap, whole inside the slide; those less dense than `min_density` are
    glass, so that fewer than `k` is normal. Equal densities are ranked by position (y, then x). Black padding is no
    tissue, and the slide's warnings say how many tiles are mostly that; with `black` "tissue" it is as dense as tissue
    can be.

    Exact at a fraction of the cost: tiles are read in the order of their upper bounds (`screen`), until the worst of
    the k best read so far ranks before the best that the next tile could still reach; then no unread tile can displace
    any. `pixels` keeps the decoded tiles (k pairs in memory), so that choosing and encoding need one decode.

    Raises InputError: no tissue, slide smaller than a tile or scanned below a scale, damaged file, unknown `black`.
    """
    if k < 1 or tile_px < 1:
        raise InputError(f"k = {k} and tile_px = {tile_px}: both must be at least 1")
    check_black(black)
    name, first, area = slide.path.name, scales[0], tile_px**2
    columns, rows = tile_grid(slide, scales, tile_px)
    level = screening_level(slide, first, tile_px)
    if level is None:
        bounds, taken = np.full((rows, columns), float(area)), np.zeros((rows, columns))
    else:
        bounds, taken = screen(slide, level, first, tile_px, columns, rows, black)
    waiting = sorted((-bound, *cell) for cell, bound in np.ndenumerate(bounds) if bound / area >= min_density)
    best = Best(slide, min(k, bounds.size), tile_px, seed, min_density, scales, pixels, black)
    side, done = best.sides[first], set()
    while waiting:
        for bound, row, column in waiting:
            corner = column * side, row * side
            if best.surpass(-bound, *corner):
                waiting = []
                break
            done.add((row, column))
            tissue, taken[row, column] = best.read(*corner)
            if tissue > -bound:  # what the screen assumes is not so on this slide: read all the others
                slide.warnings.append(
                    f"slide {name}: its low-resolution level does not match its pixels; every tile was read"
                )
                waiting = [(-float(area), *cell) for cell in np.ndindex(rows, columns) if cell not in done]
                break
        else:
            waiting = []
    padded = int((taken > area / 2).sum())
    if padded:
        slide.warnings.append(
            f"slide {name}: {padded} or more of {bounds.size} {first}x tiles are mostly black "
            "padding, which is not counted as tissue (`black: tissue` counts it)"
        )
    choice = len(best.heap) == best.k < bounds.size
    if choice and level is not None and best.heap[0][0] == area and (bounds == area).mean() > FULL:
        slide.warnings.append(
            f"slide {name}: all of its {best.k} tiles are dense through and through, and more may be, so they were "
            "taken from the top of the slide: is its glass as dark as tissue?"
        )
    if not best.heap:
        raise InputError(
            f"slide {name} has no tissue: no {first}x tile reaches density {min_density:g}"
            + (f", {padded} or more of {bounds.size} are mostly black padding" if padded else "")
            + "; look at its thumbnail, then take it out of the cohort table or lower min_density"
        )
    return best.tiles(grid=bounds.size, read=len(done))


class Best:
    """The k densest tiles read so far: a heap of (tissue pixels, -y, -x), the worst first, and what they are."""

    def __init__(self, slide, k, tile_px, seed, min_density, scales, pixels, black):
        self.slide, self.k, self.tile_px, self.seed = slide, k, tile_px, seed
        self.min_density, self.scales, self.black = min_density, scales, black
        self.sides = {scale: tile_size_level0(slide.magnification, scale, tile_px) for scale in scales}
        self.heap, self.known = [], {}
        self.images = {scale: np.empty((k, tile_px, tile_px, 3), np.uint8) for scale in scales} if pixels else None

    def surpass(self, tissue: float, x: int, y: int) -> bool:
        """Whether a tile with this many tissue pixels, or fewer, at this corner or later, cannot be among the best."""
        return len(self.heap) == self.k and self.heap[0] > (tissue, -y, -x)

    def read(self, x: int, y: int) -> tuple[int, int]:
        """Read and score the tile at a level-0 corner, keep it if it is among the best; return its numbers of pixels
        that are tissue, and that are padding."""
        slide, first, tile_px = self.slide, self.scales[0], self.tile_px
        corners = {first: (x, y)}
        source, size = slide.source(first, tile_px)
        region = slide.region(source, *corners[first], size)
        tile = shrink(region, tile_px)
        padding = padding_pixels(tile) if self.black == "padding" else 0
        tissue = tissue_pixels(tile) - padding
        if tissue / tile_px**2 < self.min_density or self.surpass(tissue, x, y):
            return tissue, padding
        slot = len(self.heap) if len(self.heap) < self.k else self.known.pop(heapq.heappop(self.heap))[0]
        for coarse, scale in pairwise(self.scales):
            room = self.sides[coarse] - self.sides[scale]
            corners[scale] = child_corner(self.seed, slide.slide_id, corners[coarse], scale, room)
        heapq.heappush(self.heap, (tissue, -y, -x))
        mean, deviation = cv2.meanStdDev(tile)
        self.known[tissue, -y, -x] = slot, corners, np.concatenate([mean, deviation])[:, 0] / 255
        if self.images is not None:
            self.images[first][slot] = tile
            for scale, cut in _inside(slide, region, corners, self.scales, tile_px).items():
                self.images[scale][slot] = cut
        return tissue, padding

    def tiles(self, grid: int, read: int) -> Tiles:
        """The best, in raster order."""
        order = sorted(self.heap, key=lambda key: (-key[1], -key[2]))
        slots, corners, colours = zip(*(self.known[key] for key in order))
        tiles = Tiles(
            slide_id=self.slide.slide_id,
            tile_px=self.tile_px,
            parent=np.arange(len(order)),
            coords={scale: np.array([at[scale] for at in corners], np.int64) for scale in self.scales},
            density=np.array([key[0] for key in order]) / self.tile_px**2,
            colour=np.array(colours, np.float32),
            dimensions=self.slide.dimensions,
            magnification=self.slide.magnification,
            grid=grid,
            read=read,
        )
        if self.images is None:
            return tiles
        tiles.pixels = {}
        for scale in self.scales:
            if scale == self.scales[0] or _shared(self.slide, self.scales[0], scale, self.tile_px):
                tiles.pixels[scale] = _arrange(self.images[scale], slots)
            else:
                tiles.pixels[scale] = self.images[scale][: len(order)]
                for image, at in zip(tiles.pixels[scale], corners):
                    image[:] = self.slide.read(*at[scale], scale, self.tile_px)
        return tiles


def _arrange(images: np.ndarray, slots: tuple[int, ...]) -> np.ndarray:
    """images[slots] without a second copy in memory: `slots` is a permutation of the first rows, followed in cycles."""
    waiting = dict(enumerate(slots))
    while waiting:
        start, source = waiting.popitem()
        first, row = images[start].copy(), start
        while source != start:
            images[row] = images[source]
            row, source = source, waiting.pop(source)
        images[row] = first
    return images[: len(slots)]


def read_tiles(slide: Slide, tiles: Tiles) -> Iterator[dict[int, np.ndarray]]:
    """The pixels of `tiles`, row by row: {scale: uint8 (tile_px, tile_px, 3)}. One decode a row where levels allow."""
    scales = tuple(tiles.coords)
    source, size = slide.source(scales[0], tiles.tile_px)
    for i in range(len(tiles.density)):
        corners = {scale: tuple(tiles.coords[scale][i].tolist()) for scale in scales}
        region = slide.region(source, *corners[scales[0]], size)
        cuts = _inside(slide, region, corners, scales, tiles.tile_px)
        yield {scales[0]: shrink(region, tiles.tile_px)} | {
            scale: cuts[scale] if scale in cuts else slide.read(*corners[scale], scale, tiles.tile_px)
            for scale in scales[1:]
        }


def _shared(slide: Slide, first: int, scale: int, tile_px: int) -> bool:
    """Whether every tile of `scale` can be cut out of the pixels that its tile of the first scale is read from."""
    return slide.source(first, tile_px)[0] is slide.source(scale, tile_px)[0] is slide.levels[0]


def _inside(slide: Slide, region: np.ndarray, corners: dict, scales, tile_px: int) -> dict[int, np.ndarray]:
    """The tiles of the other scales that can be cut out of `region`, the pixels that the first scale's is read from."""
    first, cuts = scales[0], {}
    for scale in scales[1:]:
        if _shared(slide, first, scale, tile_px):
            left, top = (at - origin for at, origin in zip(corners[scale], corners[first]))
            size = slide.source(scale, tile_px)[1]
            cuts[scale] = shrink(region[top : top + size, left : left + size], tile_px)
    return cuts
