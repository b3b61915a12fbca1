"""Slides and tiles to draw."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd

from dmsmil.cohorts.download import Remote
from dmsmil.features.bags import Bags
from dmsmil.jobs.files import InputError, is_file
from dmsmil.slides.magnification import tile_size_level0
from dmsmil.slides.reader import open_slide
from dmsmil.slides.store import Store
from dmsmil.slides.tiles import Tiles


def slide_views(
    cohort: pd.DataFrame,
    store: Store | None = None,
    limit: int = 0,
    slide_ids: list[str] | None = None,
    px: int = 500,
    bags: Bags | None = None,
    mpp: float = 0.0,
    source: Remote | None = None,
) -> list[dict]:
    """Slides to draw: slide_id, label, thumbnail (H, W, 3), dimensions (w, h), bounds (what was scanned: x, y, w, h),
    path ("" without a file) and mpp (um a level-0 px, as it is read with); with a store also coords and side by scale
    and density of its tiles, with bags those of the tiles in the bag and their places in it. mpp: of slides that do
    not say.

    The slides named, or `limit` slides, the classes in turn, those that cannot be opened passed over. source: slides
    that are not on the disk are fetched from there, and stay. Where only features are at hand, a slide is an empty
    sheet with its tiles. Raises InputError when a slide that is named cannot be opened.
    """
    rows = cohort if slide_ids is None else cohort.set_index("slide_id").loc[slide_ids].reset_index()
    if slide_ids is None:  # the classes in turn, one patient once
        rank = rows.drop_duplicates("patient_id").groupby("label").cumcount()
        rows = rows.loc[rank.sort_values(kind="stable").index]
    views = []
    for row in rows.itertuples():
        kept = store or (bags.store if bags else None)
        try:
            if source is not None and row.path and not is_file(row.path):
                source.fetch(row.file_id, row.path, row.size, row.md5)
            view = {"slide_id": row.slide_id, "label": row.label, "path": row.path}
            tiles = kept.read_tiles(row.slide_id) if kept else None
            view |= _sheet(tiles, px) if kept and not row.path else _picture(row, mpp, px)
            if kept:
                view |= {
                    "coords": tiles.coords,
                    "density": tiles.density,
                    "tile_px": tiles.tile_px,
                    "side": {s: tile_size_level0(tiles.magnification, s, tiles.tile_px) for s in tiles.coords},
                }
            if bags is not None:
                at = bags.slide_ids.index(row.slide_id)
                view["coords"] = {s: bags.coords[at, i][bags.mask[at, i]].numpy() for i, s in enumerate(bags.scales)}
                view["places"] = {s: bags.mask[at, i].nonzero()[:, 0].numpy() for i, s in enumerate(bags.scales)}
                view["density"] = bags.density[at][bags.mask[at, 0]].numpy()
        except InputError:
            if slide_ids is not None:  # asked for by name
                raise
            continue
        views.append(view)
        if limit and len(views) == limit:
            break
    return views


def _picture(row, fallback_mpp: float, px: int) -> dict:
    """What a slide looks like, how large it is, and its micrometres a pixel."""
    with open_slide(row.path, row.mpp, row.slide_id, fallback_mpp) as slide:
        return {
            "thumbnail": slide.thumbnail(px),
            "dimensions": slide.dimensions,
            "bounds": slide.bounds,
            "mpp": slide.mpp,
        }


def _sheet(tiles: Tiles, px: int) -> dict:
    """An empty sheet of the slide's proportions, for a slide of which only features are at hand."""
    width, height = tiles.extent
    shape = (max(1, round(px * height / max(width, height))), max(1, round(px * width / max(width, height))), 3)
    return {
        "thumbnail": np.full(shape, 245, np.uint8),
        "dimensions": tiles.extent,
        "bounds": (0, 0, width, height),
        "mpp": 10 / tiles.magnification,
    }


def pair_views(view: dict, store: Store, count: int = 5) -> list[dict]:
    """Linked tiles to draw: title, tiles by scale, and inside, by scale where a tile lies in that of the scale before
    it and how large it is, (x, y, share) in units of that one's side; none for a slide without a file."""
    if not view["path"]:
        return []
    tiles = store.read_tiles(view["slide_id"])
    rows = np.unique(np.linspace(0, len(tiles.density) - 1, count).astype(int))
    pairs = []
    with open_slide(view["path"], view["mpp"], view["slide_id"]) as slide:
        for i in rows:
            images = {s: slide.read(*tiles.coords[s][i].tolist(), s, tiles.tile_px) for s in tiles.coords}
            inside = {}
            for coarse, scale in pairwise(sorted(tiles.coords)):
                offset = (tiles.coords[scale][i] - tiles.coords[coarse][i]) / view["side"][coarse]
                inside[scale] = (*offset.tolist(), view["side"][scale] / view["side"][coarse])
            pairs.append({"title": f"density {tiles.density[i]:.2f}", "tiles": images, "inside": inside})
    return pairs
