"""How much tissue a tile has (paper 2.2), and how much it can have at most, as a low-resolution level shows.

By the paper's words every pixel that is not white is tissue. The black that scanners and converters write outside the
scanned area is not white either; it is not counted, unless the paper's letter is asked for (`black: tissue`).
"""

from __future__ import annotations

import cv2
import numpy as np

from dmsmil.jobs.files import InputError
from dmsmil.slides.magnification import tile_size_level0
from dmsmil.slides.reader import Level, Slide

WHITE = 200  # a pixel with R, G or B below this is tissue (paper 2.2)
BLACK = 10  # a pixel with no channel above this is black
AREA_PX = 7  # a square of black pixels of this side is padding: ink and nuclei rise above BLACK in it
SCREEN_NOISE = 4  # grey levels between a low-resolution pixel and the mean of the pixels below it (JPEG)
SCREEN_STRAY = 0.002  # share of a tile's pixels that may be off by more than that
SCREEN_PIXELS = 200_000_000  # a level with more pixels is not screened on: it is held in memory whole
WAYS = ("padding", "tissue")  # what black may count as


def check_black(black: str) -> None:
    """Raises InputError for a word that is not one of WAYS."""
    if black not in WAYS:
        raise InputError(f"black is '{black}': it is 'padding' (outside of what was scanned, not tissue) or 'tissue'")


def padding(tile: np.ndarray) -> np.ndarray:
    """Where an RGB tile shows black padding: uint8 (height, width), 255 there.

    Black pixels without texture: those that a square of AREA_PX black pixels covers, as far as it lies in the tile.
    """
    black = cv2.inRange(tile, (0, 0, 0), (BLACK, BLACK, BLACK))
    return cv2.morphologyEx(black, cv2.MORPH_OPEN, np.ones((AREA_PX, AREA_PX), np.uint8)) if black.any() else black


def padding_pixels(tile: np.ndarray) -> int:
    """How many pixels of an RGB tile are black padding."""
    return cv2.countNonZero(padding(tile))


def tissue_pixels(tile: np.ndarray) -> int:
    """How many pixels of an RGB tile have at least one of R, G, B below 200 (paper 2.2): its padding is among them.

    Without the padding, their share is the tile's density.
    """
    white = cv2.inRange(tile, (WHITE, WHITE, WHITE), (255, 255, 255))
    return white.size - cv2.countNonZero(white)


def screening_level(slide: Slide, magnification: float, tile_px: int) -> Level | None:
    """The finest level on which tiles of `magnification` can be screened at less cost than reading them, if any.

    Its pixels must each be made of whole tile pixels: base magnification and step whole multiples, and a level size
    that is the slide's divided by the step (rounded, as scanners do, which is what makes downsamples odd).
    """
    source, _ = slide.source(magnification, tile_px)
    ratio, side = slide.magnification / magnification, tile_size_level0(slide.magnification, magnification, tile_px)
    for level in slide.levels:
        whole = ratio == round(ratio) and level.step % round(ratio) == 0
        blocks = all(
            abs(n * level.step - n0) < level.step for n, n0 in zip((level.width, level.height), slide.dimensions)
        )
        if (
            whole
            and blocks
            and 2 * source.downsample * (1 - 1e-3) <= level.step <= side
            and level.width * level.height <= SCREEN_PIXELS
        ):
            return level
    return None


def screen(
    slide: Slide, level: Level, magnification: float, tile_px: int, columns: int, rows: int, black: str = "padding"
) -> tuple[np.ndarray, np.ndarray]:
    """Upper bounds on the number of tissue pixels of every tile, from a low-resolution level, and how many pixels more
    each bound would have if black were tissue: two arrays (rows, columns).

    Suppose a pixel of `level` with mean m in a channel stands for n tile pixels, k of them below 200 in that channel
    and none brighter than W. Then n m <= 199 k + W (n - k), so k <= n (W - m) / (W - 199), rounded down. A tile pixel
    is tissue if it is below 200 in any channel: the bounds of the three channels add up, to n at most. W is 255, but on
    glass, where that would be too loose, it is the brightest of the 5 x 5 low-resolution pixels around.
    Where no low-resolution pixel around is brighter than BLACK, no tile pixel is: padding, none of it tissue.
    Assumed of the slide, then: m is that mean, and W that maximum, within SCREEN_NOISE, but for a share SCREEN_STRAY of
    the tile. `select_tiles` checks the bound on every tile that it reads and drops it for a slide where it fails once.
    Where the downsample is odd, one more pixel around each tile is counted in, as it may be shifted.
    """
    pixels = slide.whole(level)
    scale = level.step * magnification / slide.magnification  # tile pixels along a pixel of the level
    side, ring = tile_size_level0(slide.magnification, magnification, tile_px), 0 if level.exact else 1
    bound = _Bound(scale**2)
    around = -(-(AREA_PX // 2) // int(scale)) + ring  # level pixels that the square of `padding` may reach into

    def span(index: int) -> tuple[int, int]:
        """The pixels of `level` that tile row or column `index` touches."""
        return max(index * side // level.step - ring, 0), -(-(index + 1) * side // level.step) + ring

    def sums(strip: np.ndarray, height: int, beyond: float) -> np.ndarray:
        """Of each tile of a row, what `strip` (height or less, width) holds; each pixel left out by it holds `beyond`.

        The level leaves out pixels at the right and lower edges of the slide.
        """
        line = np.full(span(columns - 1)[1], beyond * height, float)
        line[: level.width] = cv2.reduce(strip, 0, cv2.REDUCE_SUM, dtype=cv2.CV_64F)[0, : len(line)]
        line[: level.width] += beyond * (height - len(strip))
        total = np.concatenate([[0.0], np.cumsum(line)])
        return np.array([total[right] - total[left] for left, right in map(span, range(columns))])

    bounds, taken = np.zeros((rows, columns)), np.zeros((rows, columns))
    for row in range(rows):
        top, bottom = span(row)
        tissue = bound.tissue(pixels, top, bottom)
        if black == "padding":
            empty = _black(pixels, top, bottom, around)
            if empty.any():
                taken[row] = sums(np.where(empty, tissue, 0), bottom - top, 0)
                tissue[empty] = 0
        bounds[row] = sums(tissue, bottom - top, bound.n)  # what is left out might all be tissue
    most = np.minimum(bounds + taken + SCREEN_STRAY * tile_px**2, tile_px**2)
    bounds = np.minimum(bounds + SCREEN_STRAY * tile_px**2, tile_px**2)
    return bounds, most - bounds


class _Bound:
    """How many of the n tile pixels below a low-resolution pixel can be tissue (see `screen`)."""

    def __init__(self, n: float):
        self.n = n
        below = n * (255 - np.arange(256)[:, None].repeat(3, 1) + SCREEN_NOISE) / (255 - (WHITE - 1))
        self.table = np.clip(np.floor(below), 0, n).astype(np.uint8 if 3 * n < 256 else np.float32)[None]
        # n (W - m + noise) < W - 199 with W = around + noise: no pixel below 200
        self.glass = (WHITE - 1) + (2 * n - 1) * SCREEN_NOISE

    def tissue(self, pixels: np.ndarray, top: int, bottom: int) -> np.ndarray:
        """(rows, width) of the rows from `top` to `bottom` of a level's `pixels`."""
        n, strip = self.n, pixels[top:bottom]
        tissue = cv2.min(cv2.transform(cv2.LUT(strip, self.table), np.ones((1, 3))), n)
        if self.glass < 255:
            around = cv2.dilate(pixels[max(top - 2, 0) : bottom + 2], np.ones((5, 5), np.uint8))[min(top, 2) :]
            clear = cv2.addWeighted(strip, n, around[: len(strip)], 1 - n, 0)
            tissue[cv2.inRange(clear, (self.glass + 1,) * 3, (255,) * 3) > 0] = 0
        return tissue


def _black(pixels: np.ndarray, top: int, bottom: int, around: int) -> np.ndarray:
    """Where the rows from `top` to `bottom` and all pixels within `around` of them are black, noise and all: bool."""
    high = (BLACK - SCREEN_NOISE,) * 3
    black = cv2.inRange(pixels[max(top - around, 0) : bottom + around], (0, 0, 0), high)
    square = np.ones((2 * around + 1, 2 * around + 1), np.uint8)
    return cv2.erode(black, square)[min(top, around) :][: len(pixels[top:bottom])] > 0
