"""The folder of one scale that slide2vec made, which has hs2p choose its tiles.

tiles/                               hs2p's files of each slide (slides/hs2p.py)
tile_embeddings/<slide>.npz or .pt   features (N, D), in the order of the corners
tile_embeddings/<slide>.meta.json    encoder_name
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dmsmil.features.foreign import BrokenSlide, Files, tensor
from dmsmil.jobs.files import InputError, one_line, read_json
from dmsmil.slides.hs2p import DAMAGED, arrays, check_tiling, read_hs2p
from dmsmil.slides.linking import Part
from dmsmil.slides.magnification import base_magnification


def is_slide2vec(folder: Path) -> bool:
    """Whether a folder is one that slide2vec made."""
    return (folder / "tile_embeddings").is_dir() and (folder / "tiles").is_dir()


def read_slide2vec(files: Files, scale: int, tile_px: int, mpp: float) -> Part:
    """slide2vec's features of a slide, and hs2p's tiles. The size of level 0 and its magnification are hs2p's word."""
    path = files["features"]
    if missing := [role for role in ("tiles", "tiling") if role not in files]:
        raise BrokenSlide(f"{path.name} has no hs2p file of its {missing[0]} beside it: copy the folder tiles too")
    try:
        tiles, said = read_hs2p(files["tiles"], files["tiling"]), path.with_suffix(".meta.json")
        encoder = str(read_json(said).get("encoder_name", "")) if said.exists() else ""
        features = tensor(path) if path.suffix == ".pt" else arrays(path, "features")[0].astype(np.float32)
        base = base_magnification(path.name, 0, tiles.mpp)[0]
    except InputError:
        raise
    except DAMAGED as error:
        raise BrokenSlide(
            f"{path.name}, or its tiles, are damaged or incomplete ({one_line(error)[:80]}): copy them "
            "again, or make them again"
        ) from error
    check_tiling(tiles, scale, tile_px, path.name)
    return Part(features, tiles.coords, tiles.side, magnification=base, size=tiles.size, encoder=encoder)
