"""The tiles of a slide as hs2p writes them.

<slide>.coordinates.npz         x, y: top-left corners in level-0 px
<slide>.coordinates.meta.json   tiling: side of a tile in px and in level-0 px, its mpp, the overlap; slide:
                                dimensions, mpp of level 0
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dmsmil.jobs.files import InputError, read_json
from dmsmil.slides.magnification import AGREE

COORDINATES, ABOUT = ".coordinates.npz", ".coordinates.meta.json"  # what follows the name of a slide
DAMAGED = (OSError, KeyError, ValueError, TypeError, ZeroDivisionError, EOFError, zipfile.BadZipFile)  # of `read_hs2p`


class Hs2p(NamedTuple):
    """Tiles as hs2p's files have them: coords (N, 2) int64, top-left corners in level-0 px; side of a tile in level-0
    px; px, its side at magnification `at`; overlap, a share of it; size (width, height) and mpp of level 0."""

    coords: np.ndarray
    side: float
    px: int
    at: float
    overlap: float
    size: tuple[int, int]
    mpp: float


def read_hs2p(coordinates: Path, about: Path) -> Hs2p:
    """The tiles in a pair of files; one of DAMAGED for files that are that."""
    said = read_json(about)
    space = said.get("artifact", {}).get("coordinate_space", "level0_px")
    if space != "level0_px":
        raise ValueError(f"its corners are in {space}")
    tiling, slide = said["tiling"], said["slide"]
    width, height = slide["dimensions"]
    corners = np.stack(arrays(coordinates, "x", "y"), 1)
    if not np.isfinite(corners).all():
        raise ValueError("corners that are NaN or infinite")
    return Hs2p(
        corners.astype(np.int64),
        float(tiling["tile_size_lv0"]),
        int(tiling["requested_tile_size_px"]),
        10 / tiling["requested_spacing_um"],
        float(tiling["overlap"]),
        (int(width), int(height)),
        float(slide["base_spacing_um"]),
    )


def arrays(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays of an .npz."""
    with open(path, "rb") as handle, np.load(handle) as found:  # numpy itself leaves a damaged file open
        return [found[name] for name in names]


def check_tiling(tiles: Hs2p, scale: int, tile_px: int, name: str) -> None:
    """InputError unless the tiles have `tile_px` px at `scale`, without overlap."""
    if tiles.px != tile_px or max(tiles.at / scale, scale / tiles.at) > AGREE or tiles.overlap:
        raise InputError(
            f"{name} has tiles of {tiles.px} px at {tiles.at:.3g}x with {tiles.overlap:.0%} overlap, not "
            f"of {tile_px} px at {scale}x without: set tile_px and scales to what is there"
        )
