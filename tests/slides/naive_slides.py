"""The straightforward selection with OpenSlide alone: every 10x tile read and scored, the best read again at 20x.

The oracle of tests/slides/test_tiles.py and the peer of `dmsmil bench`; slow on purpose, and sharing only the random
offset of the 20x tile with the package (a hash cannot be checked by writing it twice).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import openslide
import tifffile
from PIL import Image
from scipy import ndimage

from dmsmil.slides.tiles import child_corner
from tests.slides.pyramids import TILE, describe, shrink, texture


def read_tile(slide, x: int, y: int, base: float, magnification: float, tile_px: int) -> np.ndarray:
    """One tile as anyone would read it: best level, RGBA on white, area-averaged to tile_px."""
    downsample = base / magnification
    level = slide.get_best_level_for_downsample(downsample * (1 + 1e-6))
    size = round(round(tile_px * downsample) / slide.level_downsamples[level])
    region = slide.read_region((x, y), level, (size, size))
    image = Image.new("RGB", region.size, "white")
    image.paste(region, mask=region.getchannel("A"))
    pixels = np.asarray(image)
    return pixels if size == tile_px else cv2.resize(pixels, (tile_px, tile_px), interpolation=cv2.INTER_AREA)


def density(tile: np.ndarray, black: str = "padding") -> float:
    """Share of pixels with at least one of R, G, B below 200 in no 7 x 7 square of pixels up to (10, 10, 10)."""
    tissue = np.any(tile < 200, axis=2)
    dark = np.all(tile <= 10, axis=2)
    if black == "padding" and dark.any():
        squares = ndimage.binary_erosion(dark, np.ones((7, 7)), border_value=1)
        tissue &= ~ndimage.binary_dilation(squares, np.ones((7, 7)))
    return float(tissue.mean())


def naive_scores(path, tile_px: int, magnification: float, black: str = "padding") -> list[tuple[float, int, int]]:
    """(density, y, x) of every whole 10x tile of a slide."""
    with openslide.OpenSlide(path) as slide:
        side = round(tile_px * magnification / 10)
        width, height = slide.dimensions
        return [
            (density(read_tile(slide, x, y, magnification, 10, tile_px), black), y, x)
            for y in range(0, height - side + 1, side)
            for x in range(0, width - side + 1, side)
        ]


def naive_select(
    path, k: int, tile_px: int, seed: int, min_density: float, magnification: float, black: str = "padding"
) -> dict:
    """coords {10, 20: (N, 2)}, density (N,) and pixels {10, 20: (N, tile_px, tile_px, 3)} in raster order."""
    scores = [score for score in naive_scores(path, tile_px, magnification, black) if score[0] >= min_density]
    chosen = sorted(sorted(scores, key=lambda s: (-s[0], s[1], s[2]))[:k], key=lambda s: s[1:])
    room = round(tile_px * magnification / 10) - round(tile_px * magnification / 20)
    corners = {10: [(x, y) for _, y, x in chosen]}
    corners[20] = [child_corner(seed, Path(path).stem, corner, 20, room) for corner in corners[10]]
    with openslide.OpenSlide(path) as slide:
        pixels = {
            scale: [read_tile(slide, x, y, magnification, scale, tile_px) for x, y in corners[scale]]
            for scale in (10, 20)
        }
    return dict(
        coords={scale: np.array(at) for scale, at in corners.items()},
        density=np.array([score[0] for score in chosen]),
        pixels={scale: np.array(images) for scale, images in pixels.items()},
    )


KINDS = {"20x": (20, 0.5, 20_000, 20_000), "40x": (40, 0.25, 42_001, 34_003)}


def bench_slide(path, kind: str = "20x", side: int = 0, seed: int = 0) -> Path:
    """Write a large Aperio-like slide for timing, strip by strip (about 3 bytes a level-0 pixel / 16 of memory).

    kind "20x": 20,000 x 20,000 px at 20x; "40x": 42,001 x 34,003 px at 40x, whose downsamples are odd (4.0002, 16.001).
    `side` > 0 makes it that wide instead. About 40 % is tissue, from dense to loose and fatty, on bright glass.
    """
    objective, mpp, width, height = KINDS[kind]
    if side:
        width, height = side, round(side * height / width)
    rng = np.random.default_rng(seed)
    blocks = [
        texture(2048, 2048, seed=1, coverage=1),
        texture(2048, 2048, seed=2, coverage=1, loose=1.0),
        texture(2048, 2048, seed=3, coverage=0),
    ]
    outline, compact = (
        cv2.resize(
            rng.normal(size=(cells, cells)).astype(np.float32),
            (width // 64, height // 64),
            interpolation=cv2.INTER_CUBIC,
        )
        for cells in (5, 12)
    )
    kind_of = np.where(outline > np.quantile(outline, 0.6), compact < 0, 2).astype(np.uint8)
    level1 = np.empty((height // 4, width // 4, 3), np.uint8)

    def strips():
        """256-row strips of level 0 as rows of file tiles; the quarter-size level fills on the way."""
        for top in range(0, height, TILE):
            rows = np.arange(top, min(top + TILE, height))
            strip = np.empty((len(rows), width, 3), np.uint8)
            labels = kind_of[np.minimum(rows[0] // 64, len(kind_of) - 1) :][: -(-len(rows) // 64)]
            labels = cv2.resize(labels, (width, len(rows)), interpolation=cv2.INTER_NEAREST)
            for left in range(0, width, 2048):
                part = strip[:, left : left + 2048]
                label = labels[:, left : left + 2048]
                for number, block in enumerate(blocks):
                    source = np.roll(block[rows % 2048], 97 * (left // 2048 + number), 1)[:, : part.shape[1]]
                    np.copyto(part, source, where=(label == number)[..., None])
            lower = shrink(strip, 4)
            level1[top // 4 : top // 4 + len(lower)] = lower
            padded = np.pad(strip, ((0, TILE - len(rows)), (0, -width % TILE), (0, 0)), mode="edge")
            yield from (padded[:, left : left + TILE] for left in range(0, padded.shape[1], TILE))

    options = dict(
        tile=(TILE, TILE),
        compression="jpeg",
        compressionargs={"level": 80},
        photometric="rgb",
        metadata=None,
        description=describe(width, height, objective, mpp),
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        tif.write(strips(), shape=(height, width, 3), dtype=np.uint8, **options)
        tif.write(level1, subfiletype=1, **options)
        tif.write(shrink(level1, 4), subfiletype=1, **options)
    return Path(path)
