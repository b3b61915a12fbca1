"""A slide's scores for other programs: QuPath and others that read GeoJSON, and any viewer of OME-TIFF."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import tifffile
from matplotlib import colormaps

from dmsmil.jobs.files import InputError, atomic, write_text

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "dmsmil.slides.tiles")  # the same tile has the same id in every export
BANDS = 5  # classes of the normalised score, so that QuPath colours tiles without a measurement map
KINDS = ("nested", "flat", "both")  # of GeoJSON: for QuPath, for others, or a file of each
CELL = 16  # pixels of the heatmap along a tile of the finest scale


def qupath_features(scores: pd.DataFrame, side: dict[int, int], extra: pd.DataFrame | None = None) -> dict:
    """A GeoJSON FeatureCollection of one slide: tiles of the first scale as QuPath tile objects, those of the next
    nested inside, and so on.

    scores: `explain.tile_scores` of one slide; side: scale -> a tile's side in level-0 px; extra: further measurements
    (such as nuclei), one row a tile with columns scale, place and numbers, NaN where there is none: it is left out. As
    QuPath's reader wants it: ids are UUIDs, objectType and measurements inside `properties`, level-0 pixels, children
    in childObjects.
    A tile without one at the scale before it lies in that of the scale before that, and at the top where there is none.
    Raises InputError for scores of several slides.
    """
    if scores.slide_id.nunique() != 1:
        raise InputError(f"scores of {scores.slide_id.nunique()} slides were given: export one slide a file")
    slide_id, scales = scores.slide_id.iloc[0], sorted(scores.scale.unique())
    if extra is not None:
        scores = scores.merge(extra, on=["scale", "place"], how="left", validate="one_to_one")
    numbers = [c for c in scores if c not in ("slide_id", "patient_id", "label", "fold", "scale", "place", "x", "y")]
    top: list = []
    parents: dict = {}
    for scale in scales:
        for row in scores[scores.scale == scale].to_dict("records"):
            feature = _feature(slide_id, row, side[scale], numbers)
            parent, parents[row["place"]] = parents.get(row["place"]), feature
            (top if parent is None else parent["properties"].setdefault("childObjects", [])).append(feature)
    return {"type": "FeatureCollection", "features": top}


def _feature(slide_id: str, row: dict, side: int, numbers: list[str]) -> dict:
    x, y = int(row["x"]), int(row["y"])
    band = min(int(row["normalised"] * BANDS), BANDS - 1)
    colour = [int(round(255 * c)) for c in colormaps["inferno"]((band + 0.5) / BANDS)[:3]]
    said = {name: float(row[name]) for name in numbers if np.isfinite(row[name])}  # a NaN is text to most readers
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(NAMESPACE, f"{slide_id}/{row['scale']}/{row['place']}")),
        "geometry": {
            "type": "Polygon",
            "coordinates": [[[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]],
        },
        "properties": {
            "objectType": "tile",
            "name": f"{row['scale']}x tile {row['place']}",
            "classification": {"name": f"score {band / BANDS:.1f}-{(band + 1) / BANDS:.1f}", "color": colour},
            "measurements": said,
            "isLocked": True,
        },
    }


def flat_features(features: dict) -> dict:
    """The same tiles for readers of plain GeoJSON (geopandas, LazySlide): all at the top, a measurement a property.

    They would pass over what is in childObjects, and keep an object of measurements as text. `scale`, and `parent`, the
    id of the tile of the scale before that a tile lies in, are properties too.
    """
    found = [flat for feature in features["features"] for flat in _with_children(feature, {})]
    return {"type": "FeatureCollection", "features": found}


def _with_children(feature: dict, more: dict) -> Iterator[dict]:
    """A tile and all that lie in it, flat."""
    yield _flat(feature, more)
    for child in feature["properties"].get("childObjects", []):
        yield from _with_children(child, {"parent": feature["id"]})


def _flat(feature: dict, more: dict) -> dict:
    said = {name: value for name, value in feature["properties"].items() if name != "childObjects"}
    numbers, scale = said.pop("measurements"), int(said["name"].partition("x")[0])  # "10x tile 3"
    return {**feature, "properties": {**numbers, **said, "scale": scale, **more}}


def counted_from(features: dict, origin: tuple[int, int]) -> dict:
    """The same tiles in pixels counted from `origin`."""
    return {**features, "features": [_moved(feature, origin) for feature in features["features"]]}


def _moved(feature: dict, origin: tuple[int, int]) -> dict:
    """A tile and all that lie in it, counted from `origin`."""
    corners = [[x - origin[0], y - origin[1]] for x, y in feature["geometry"]["coordinates"][0]]
    said = dict(feature["properties"])
    if "childObjects" in said:
        said["childObjects"] = [_moved(child, origin) for child in said["childObjects"]]
    return {**feature, "geometry": {"type": "Polygon", "coordinates": [corners]}, "properties": said}


def write_qupath(features: dict, path: str | Path, kind: str = "both", origin: tuple[int, int] = (0, 0)) -> list[Path]:
    """Write a FeatureCollection as .geojson, and return what was written: "nested" at `path`, for QuPath's File >
    Import objects; "flat" at `flat_path`, what `flat_features` makes of it; or both. A file of the other kind that an
    earlier call left there goes. origin: the corner of `Slide.bounds`, from which QuPath counts, for it shows only what
    was scanned; the flat file counts from that of the whole slide, as OpenSlide does. Raises InputError for another
    kind."""
    if kind not in KINDS:
        raise InputError(f"qupath is '{kind}': it is {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    places = {"nested": Path(path), "flat": flat_path(path)}
    chosen = [name for name in places if kind in (name, "both")]
    for name, place in places.items():
        if name not in chosen:
            place.unlink(missing_ok=True)
            continue
        value = counted_from(features, origin) if name == "nested" else flat_features(features)
        write_text(json.dumps(value), place)
    return [places[name] for name in chosen]


def flat_path(path: str | Path) -> Path:
    """Where the flat variant of a .geojson lies."""
    return Path(path).with_name(Path(path).name.removesuffix(".geojson") + "_flat.geojson")


def heatmap(scores: pd.DataFrame, side: dict[int, int], bounds: tuple[int, int, int, int]) -> tuple[np.ndarray, float]:
    """(S, H, W) float32 normalised scores, NaN where there is no tile, and how many level-0 px a pixel covers.

    bounds: (x, y, width, height) of what the map covers, in level-0 px: the whole slide, or what was scanned of it.
    One channel a scale, coarse to fine; a tile of the finest scale is about CELL pixels wide.
    """
    step = min(side.values()) / CELL
    width, height = (int(np.ceil(size / step)) for size in bounds[2:])
    scales = sorted(scores.scale.unique())
    image = np.full((len(scales), height, width), np.nan, np.float32)
    for channel, scale in zip(image, scales):
        for x, y, value in scores.loc[scores.scale == scale, ["x", "y", "normalised"]].itertuples(index=False):
            left, top = x - bounds[0], y - bounds[1]
            edges = left, top, left + side[scale], top + side[scale]
            left, top, right, bottom = (max(0, int(round(v / step))) for v in edges)
            channel[top:bottom, left:right] = value
    return image, step


def write_heatmap(
    scores: pd.DataFrame, side: dict[int, int], bounds: tuple[int, int, int, int], mpp: float, path: str | Path
) -> Path:
    """Write `heatmap` as a pyramidal OME-TIFF (.ome.tif), a channel a scale; mpp: um a level-0 pixel of the slide.

    bounds: `Slide.bounds`, what QuPath shows of the slide, so that the map covers just that.
    Its pixel size in the OME metadata is that of the slide times the step, so that a viewer which knows both lays the
    one over the other. NaN (no tile) is kept.
    """
    image, step = heatmap(scores, side, bounds)
    levels = max(0, int(np.log2(max(image.shape[1:]) / 256)))
    names = [f"score {scale}x" for scale in sorted(scores.scale.unique())]
    size = {
        "PhysicalSizeX": mpp * step,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": mpp * step,
        "PhysicalSizeYUnit": "µm",
    }
    options: dict[str, Any] = dict(photometric="minisblack", tile=(256, 256), compression="zlib")
    with atomic(path) as temporary, tifffile.TiffWriter(temporary, ome=True) as tif:
        tif.write(image, subifds=levels, metadata={"axes": "CYX", "Channel": {"Name": names}, **size}, **options)
        for level in range(1, levels + 1):
            shape = tuple(max(1, n >> level) for n in image.shape[1:])
            small = np.stack([cv2.resize(c, shape[::-1], interpolation=cv2.INTER_NEAREST) for c in image])
            tif.write(small, subfiletype=1, **options)
    return Path(path)
