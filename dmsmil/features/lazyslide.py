"""The zarr of a slide that LazySlide (wsidata, a SpatialData store) made, one scale at a time.

attributes            slide_properties: shape (height, width), mpp, magnification; tile_spec: of each tile key its
                      height and width in px, and their mpp
shapes/<tile key>     a tile a row: tile_id, geometry (its outline in level-0 px)
tables/<name>         AnnData: X (N, D); obs says the tile_id of each row, the attribute `region` the tile key. Its
                      name is <model>_<tile key>
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dmsmil.features.foreign import BrokenSlide, Files
from dmsmil.jobs.files import InputError, one_line
from dmsmil.slides.linking import Part
from dmsmil.slides.magnification import AGREE
from dmsmil.slides.store import encoder_folder

NEEDED = "reading LazySlide's tiles needs geopandas and pyarrow: install them with `pip install dmsmil[interop]`"


def is_lazyslide(folder: Path) -> bool:
    """Whether a folder holds zarrs of LazySlide."""
    return any((path / "shapes").is_dir() and (path / "tables").is_dir() for path in zarrs(folder))


def zarrs(folder: Path) -> list[Path]:
    """The zarrs in a folder or in folders of it, without a look into them: each holds thousands of files."""
    found = [*folder.glob("[!.]*.zarr"), *folder.glob("[!.]*/[!.]*.zarr")]
    return sorted(path for path in found if path.is_dir() and path.parent.suffix != ".zarr")


def read_lazyslide(files: Files, scale: int, tile_px: int, mpp: float, encoder: str) -> Part:
    """LazySlide's tiles of `tile_px` px at `scale`, and their features by `encoder`.

    Their side in level-0 px is that of their outlines: it need not be a whole multiple of tile_px.
    """
    import zarr  # half a second, which only those who have such files need to spend

    path = files["features"]
    try:
        store = zarr.open_group(path, mode="r")
        about: dict[str, Any] = dict(store.attrs)
        key = _tile_key(path, about.get("tile_spec") or {}, scale, tile_px)
        table = _table(path, store["tables"], key, encoder)
        values, ids = table["X"], table[f"obs/{table.attrs['instance_key']}"]
        for array, what in ((values, "features"), (ids, "tile ids")):
            if absent := array.nchunks - array.nchunks_initialized:  # zarr would read zeros
                raise ValueError(f"{absent} of {array.nchunks} chunks of its {what} are absent")
        features, tile_ids = np.asarray(values[:], np.float32), ids[:]
        coords, side = _tiles(path / "shapes" / key / "shapes.parquet", tile_ids)
        base, size = told_of_slide(about.get("slide_properties") or {})
    except InputError:
        raise
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise BrokenSlide(
            f"{path.name} is damaged or incomplete ({one_line(error)[:80]}): copy it again, or make it again"
        ) from error
    return Part(features, coords, side, magnification=base, size=size)


def told_of_slide(about: dict) -> tuple[float, tuple[float, float]]:
    """Magnification and (width, height) of level 0; 0 for what is not said."""
    height, width = about.get("shape") or (0, 0)
    told, mpp = (float(about.get(name) or 0) for name in ("magnification", "mpp"))
    if not told > 0 or np.isinf(told):
        told = 10 / mpp if mpp > 0 else 0.0
    return told, (float(width), float(height))


def _tile_key(path: Path, specs: dict, scale: int, tile_px: int) -> str:
    """The one tile key of `tile_px` px at `scale`; InputError that names what is there."""
    found = {key: (spec["width"], spec["height"], 10 / spec["mpp"]) for key, spec in specs.items() if spec.get("mpp")}
    fits = [
        key
        for key, (width, height, at) in found.items()
        if width == height == tile_px and max(at / scale, scale / at) <= AGREE
    ]
    if len(fits) == 1:
        return fits[0]
    there = ", ".join(f"{key} ({width} px at {at:.3g}x)" for key, (width, _, at) in found.items()) or "none"
    if fits:
        raise InputError(f"{path.name} has several tilings of {tile_px} px at {scale}x, {', '.join(fits)}: keep one")
    raise InputError(
        f"{path.name} has no tiles of {tile_px} px at {scale}x, but {there[:120]}: set tile_px and scales "
        "to what is there"
    )


def _table(path: Path, tables, key: str, encoder: str):
    """The table of the features of a tile key by an encoder."""
    models = {
        name.removesuffix(f"_{key}"): name for name in tables.group_keys() if tables[name].attrs.get("region") == key
    }
    for model, name in models.items():
        if encoder_folder(model) == encoder_folder(encoder):
            return tables[name]
    raise InputError(
        f"{path.name} has no features of {key} by the study's encoder '{encoder}', but by "
        f"{', '.join(sorted(models)) or 'none'}: set encoder to what is there"
    )


def _tiles(path: Path, tile_ids: np.ndarray) -> tuple[np.ndarray, float]:
    """(N, 2) int64 top-left corners of the tiles of these ids, and their side, both in level-0 px."""
    box = outlines(path).loc[tile_ids].round().astype(np.int64)
    sides = pd.concat([box.maxx - box.minx, box.maxy - box.miny])
    if len(sides) and np.ptp(sides) > 1:  # of less they differ where they were rounded
        raise ValueError(f"its tiles are of {sides.min()} to {sides.max()} level-0 px")
    return box[["minx", "miny"]].to_numpy(), float(sides.median()) if len(sides) else 0.0


def outlines(path: Path) -> pd.DataFrame:
    """minx, miny, maxx and maxy of the outline of each tile, in level-0 px, by its tile_id."""
    try:
        import geopandas
        import pyarrow  # noqa: F401  by which geopandas reads parquet
    except ImportError as error:
        raise InputError(NEEDED) from error
    tiles = geopandas.read_parquet(path)
    return tiles.bounds.set_index(tiles["tile_id"])
