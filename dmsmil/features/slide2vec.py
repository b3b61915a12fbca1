"""The folder of one scale that slide2vec made, which has hs2p choose its tiles.

    tiles/<slide>.coordinates.npz         x, y: top-left corners in level-0 px
    tiles/<slide>.coordinates.meta.json   tiling: side of a tile in px and in level-0 px, its mpp, the overlap; slide:
                                          dimensions, mpp of level 0
    tile_embeddings/<slide>.npz or .pt    features (N, D), in the order of the corners
    tile_embeddings/<slide>.meta.json     encoder_name
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from dmsmil.features.foreign import BrokenSlide, Files, tensor
from dmsmil.jobs.files import InputError, one_line, read_json
from dmsmil.slides.linking import Part
from dmsmil.slides.magnification import AGREE, base_magnification


def is_slide2vec(folder: Path) -> bool:
    """Whether a folder is one that slide2vec made."""
    return (folder / "tile_embeddings").is_dir() and (folder / "tiles").is_dir()


def read_slide2vec(files: Files, scale: int, tile_px: int, mpp: float) -> Part:
    """slide2vec's features of a slide, and hs2p's tiles. The size of level 0 and its magnification are hs2p's word."""
    path = files["features"]
    if missing := [role for role in ("tiles", "tiling") if role not in files]:
        raise BrokenSlide(f"{path.name} has no hs2p file of its {missing[0]} beside it: copy the folder tiles too")
    try:
        about, said = read_json(files["tiling"]), path.with_suffix(".meta.json")
        encoder = str(read_json(said).get("encoder_name", "")) if said.exists() else ""
        tiling, slide = about["tiling"], about["slide"]
        coords = np.stack(_arrays(files["tiles"], "x", "y"), 1).astype(np.int64)
        features = tensor(path) if path.suffix == ".pt" else _arrays(path, "features")[0].astype(np.float32)
        px, at = tiling["requested_tile_size_px"], 10 / tiling["requested_spacing_um"]
        side, overlap, size = float(tiling["tile_size_lv0"]), float(tiling["overlap"]), tuple(slide["dimensions"])
        base = base_magnification(path.name, 0, float(slide["base_spacing_um"]))[0]
    except InputError:
        raise
    except (OSError, KeyError, ValueError, TypeError, ZeroDivisionError, zipfile.BadZipFile) as error:
        raise BrokenSlide(f"{path.name}, or its tiles, are damaged or incomplete ({one_line(error)[:80]}): copy them "
                          "again, or make them again") from error
    if px != tile_px or max(at / scale, scale / at) > AGREE or overlap:
        raise InputError(f"{path.name} has tiles of {px} px at {at:.3g}x with {overlap:.0%} overlap, not of {tile_px} "
                         f"px at {scale}x without: set tile_px and scales to what is there")
    return Part(features, coords, side, magnification=base, size=size, encoder=encoder)


def _arrays(path: Path, *names: str) -> list[np.ndarray]:
    with open(path, "rb") as handle, np.load(handle) as found:  # numpy itself leaves a damaged file open
        return [found[name] for name in names]
