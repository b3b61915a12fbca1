"""Tiles and features of a whole cohort: one slide a unit, finished slides are not done again, one broken slide is a row
of failures.csv and a line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from dmsmil.cohorts.download import Remote
from dmsmil.features.bags import Bags
from dmsmil.features.formats import import_features
from dmsmil.features.rehearsal import DRAWN, draw_features
from dmsmil.jobs.files import InputError
from dmsmil.jobs.parallel import is_remote, pick_device, usable_cores, worker_count
from dmsmil.slides.reader import Slide, open_slide, tile_size_level0
from dmsmil.slides.store import Store, over_slides
from dmsmil.slides.tiles import Tiles, read_tiles, select_tiles


def take_features(store: Store, cohort: pd.DataFrame, source: str, k: int = 200, seed: int = 0, mpp: float = 0.0,
                  workers: int = 0, report: Callable[[str], None] = print, scheduler: str = "") -> pd.DataFrame:
    """Features that nobody encodes here: those of a folder (`formats.import_features`), or, where `source` is DRAWN,
    random ones (`rehearsal.draw_features`). Returns one row a slide, as `encode_cohort`."""
    if source == DRAWN:
        return draw_features(store, cohort, k, seed=seed, report=report)
    return import_features(store, cohort, source, k, seed, mpp, workers, report, scheduler)


def tile_cohort(store: Store, cohort: pd.DataFrame, k: int = 200, min_density: float = 0.05, seed: int = 0,
                mpp: float = 0.0, workers: int = 0, report: Callable[[str], None] = print,
                scheduler: str = "") -> pd.DataFrame:
    """Choose the tiles of every slide of a cohort and keep them in the store.

    workers, scheduler: as for `run_units`.
    Returns one row a slide that has tiles: slide_id, label, tiles, density (mean), magnification, warnings, seconds.
    Raises InputError when no slide could be tiled.
    """
    units = {row.slide_id: (store, row.slide_id, row.path, row.mpp or mpp,
                            _tile_config(store, row, k, min_density, seed, mpp)) for row in cohort.itertuples()}
    return over_slides(store, cohort, units, _tile_slide, "tiles", store.has_tiles, workers, report, scheduler)


def encode_cohort(store: Store, cohort: pd.DataFrame, k: int = 200, min_density: float = 0.05, seed: int = 0,
                  mpp: float = 0.0, weights: str = "", px: int = 0, device: str = "auto", workers: int = 0,
                  report: Callable[[str], None] = print, scheduler: str = "",
                  source: Remote | None = None) -> pd.DataFrame:
    """Encode the tiles of every slide of a cohort and keep the features in the store.

    Slides without tiles are tiled on the way, with one decode for both. On a GPU a few processes share it, so that
    reading keeps up with encoding. With a scheduler, `auto` is the kind of device that this process has, for the
    features' precision depends on it. source: a slide that is not on the disk is fetched from there (columns file_id,
    size, md5), and deleted when it is encoded or has failed; a slide that is on the disk stays. Returns one row a
    slide, as `tile_cohort`.
    """
    from dmsmil.features.encoders import (
        create_encoder,  # it imports timm, seconds that the other notebooks need not spend
    )

    place = pick_device(device)
    encoder = create_encoder(store.encoder, weights, device, px)
    report(f"{store.encoder}: {encoder.dim} numbers a tile, fed {encoder.px} x {encoder.px} px; {encoder.weights}")
    units = {}
    for row in cohort.itertuples():
        config = _tile_config(store, row, k, min_density, seed, mpp)
        fetch = None if source is None else partial(source.fetch, row.file_id, row.path, row.size, row.md5)
        units[row.slide_id] = (store, row.slide_id, row.path, row.mpp or mpp, fetch, config,
                               {**config, "encoder": encoder.identity})
    if place.type == "cuda":
        workers = workers or min(4, usable_cores())
    elif source is not None:
        workers = workers or max(4, usable_cores())  # some fetch while others encode
    threads = 1 if is_remote(scheduler) else max(1, usable_cores() // worker_count(workers, len(units)))
    hold = (store.encoder, weights, str(place), px, threads)
    return over_slides(store, cohort, units, _encode_slide, "features", store.has_features, workers, report, scheduler,
                       _hold_encoder, hold)


def _tile_config(store: Store, row, k: int, min_density: float, seed: int, mpp: float) -> dict:
    """Everything that decides a slide's tiles; the size of the file stands for its content."""
    size = Path(row.path).stat().st_size if Path(row.path).is_file() else int(getattr(row, "size", 0) or 0)
    return {"k": k, "tile_px": store.tile_px, "scales": list(store.scales), "min_density": min_density, "seed": seed,
            "mpp": float(row.mpp or mpp), "bytes": size}


def _tile_slide(store: Store, slide_id: str, path: str, mpp: float, config: dict) -> dict:
    """Choose and keep the tiles of one slide (in a worker)."""
    started = time.perf_counter()
    with open_slide(path, mpp, slide_id) as slide:
        tiles = _choose(slide, config)
        store.write_tiles(tiles, config)
        return _told(tiles, slide, started)


def _choose(slide: Slide, config: dict, pixels: bool = False) -> Tiles:
    return select_tiles(slide, config["k"], config["tile_px"], config["seed"], config["min_density"],
                        tuple(config["scales"]), pixels)


def _told(tiles: Tiles, slide: Slide, started: float) -> dict:
    return {"tiles": len(tiles.density), "warnings": "; ".join(slide.warnings),
            "seconds": time.perf_counter() - started}


_encoder = None


def _hold_encoder(name: str, weights: str, device: str, px: int, threads: int) -> None:
    """One encoder a worker, made once."""
    from dmsmil.features.encoders import create_encoder

    global _encoder
    _encoder = create_encoder(name, weights, device, px, threads=threads)


@contextmanager
def _at_hand(path: str, fetch: Callable[[], Path] | None) -> Iterator[None]:
    """The slide on the disk; one that was not there is fetched, and gone afterwards."""
    if fetch is None or Path(path).is_file():
        yield
        return
    fetch()
    try:
        yield
    finally:
        Path(path).unlink(missing_ok=True)


def _encode_slide(store: Store, slide_id: str, path: str, mpp: float, fetch: Callable[[], Path] | None, tiling: dict,
                  config: dict) -> dict:
    """Encode and keep the features of one slide (in a worker)."""
    started = time.perf_counter()
    with _at_hand(path, fetch), open_slide(path, mpp, slide_id) as slide:
        if store.has_tiles(slide_id, tiling):
            tiles = store.read_tiles(slide_id)
            features = _encode_stream(read_tiles(slide, tiles), tuple(tiles.coords))
        else:  # one decode to choose and to encode
            tiles = _choose(slide, tiling, pixels=True)
            store.write_tiles(tiles, tiling)
            features = {scale: _encoder.encode(images) for scale, images in tiles.pixels.items()}
        store.write_features(slide_id, features, tiles, config)
        return _told(tiles, slide, started)


def _encode_stream(rows: Iterator[dict[int, np.ndarray]], scales: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Features of tiles as they are read, a few batches in memory at a time."""
    parts, waiting = {scale: [] for scale in scales}, []

    def flush():
        for scale in scales:
            parts[scale].append(_encoder.encode(np.stack([images[scale] for images in waiting])))
        waiting.clear()

    for images in rows:
        waiting.append(images)
        if len(waiting) == max(32, _encoder.batch):
            flush()
    if waiting:
        flush()
    return {scale: np.concatenate(blocks) for scale, blocks in parts.items()}


def slide_views(cohort: pd.DataFrame, store: Store | None = None, limit: int = 0, slide_ids: list[str] | None = None,
                px: int = 500, bags: Bags | None = None, mpp: float = 0.0, source: Remote | None = None) -> list[dict]:
    """Slides to draw: slide_id, label, thumbnail (H, W, 3), dimensions (w, h), path ("" without a file), mpp (what the
    cohort or else the study says, 0 if neither does) and slide_mpp (as it is read with, um a level-0 px); with a store
    also coords and side by scale and density of its tiles, with bags those of the tiles in the bag.

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
            if source is not None and row.path and not Path(row.path).is_file():
                source.fetch(row.file_id, row.path, row.size, row.md5)
            view = {"slide_id": row.slide_id, "label": row.label, "path": row.path, "mpp": row.mpp or mpp}
            tiles = kept.read_tiles(row.slide_id) if kept else None
            view |= _sheet(tiles, px) if kept and not row.path else _picture(view, px)
            if kept:
                view |= {"coords": tiles.coords, "density": tiles.density, "tile_px": tiles.tile_px,
                         "side": {s: tile_size_level0(tiles.magnification, s, tiles.tile_px) for s in tiles.coords}}
            if bags is not None:
                at = bags.slide_ids.index(row.slide_id)
                view["coords"] = {s: bags.coords[at, i][bags.mask[at, i]].numpy() for i, s in enumerate(bags.scales)}
                view["density"] = bags.density[at][bags.mask[at, 0]].numpy()
        except InputError:
            if slide_ids is not None:  # asked for by name
                raise
            continue
        views.append(view)
        if limit and len(views) == limit:
            break
    return views


def _picture(view: dict, px: int) -> dict:
    """What a slide looks like, how large it is, and its micrometres a pixel."""
    with open_slide(view["path"], view["mpp"]) as slide:
        return {"thumbnail": slide.thumbnail(px), "dimensions": slide.dimensions, "slide_mpp": slide.mpp}


def _sheet(tiles: Tiles, px: int) -> dict:
    """An empty sheet of the slide's proportions, for a slide of which only features are at hand."""
    width, height = tiles.dimensions
    shape = (max(1, round(px * height / max(width, height))), max(1, round(px * width / max(width, height))), 3)
    return {"thumbnail": np.full(shape, 245, np.uint8), "dimensions": tiles.dimensions,
            "slide_mpp": 10 / tiles.magnification}


def with_files(cohort: pd.DataFrame) -> pd.DataFrame:
    """The slides of a cohort whose files are on the disk: pixels can be read of these alone."""
    return cohort[[Path(path).is_file() for path in cohort.path]]


def pair_views(view: dict, store: Store, count: int = 5) -> list[dict]:
    """Linked tiles to draw: title, tiles by scale, offset and share of the last scale's tile inside its parent; none
    for a slide without a file."""
    if not view["path"]:
        return []
    tiles = store.read_tiles(view["slide_id"])
    rows = np.unique(np.linspace(0, len(tiles.density) - 1, count).astype(int))
    first, last = min(tiles.coords), max(tiles.coords)
    pairs = []
    with open_slide(view["path"], view["mpp"], view["slide_id"]) as slide:
        for i in rows:
            images = {s: slide.read(*tiles.coords[s][i].tolist(), s, tiles.tile_px) for s in tiles.coords}
            offset = (tiles.coords[last][i] - tiles.coords[first][i]) / view["side"][first]
            pairs.append({"title": f"density {tiles.density[i]:.2f}", "tiles": images, "offset": tuple(offset.tolist()),
                          "share": view["side"][last] / view["side"][first]})
    return pairs


def linked_similarity(bags: Bags) -> pd.DataFrame:
    """Are linked tiles alike? Mean cosine, by slide, of each tile of the first scale with its own child (`linked`) and
    with the other children of the same slide (`other`); features centred on the cohort's mean of each scale."""
    centre = [bags.x[:, s][bags.mask[:, s]].mean(0).numpy() for s in (0, -1)]
    rows = []
    for i, slide_id in enumerate(bags.slide_ids):
        keep = bags.mask[i, 0] & bags.mask[i, -1]
        if keep.sum() < 2:
            continue
        a, b = (normalize(bags.x[i, s][keep].numpy() - c) for s, c in zip((0, -1), centre))
        cosine = a @ b.T
        n = len(cosine)
        rows.append({"slide_id": slide_id, "linked": float(np.trace(cosine)) / n,
                     "other": float(cosine.sum() - np.trace(cosine)) / (n * (n - 1))})
    return pd.DataFrame(rows, columns=["slide_id", "linked", "other"])


def project(bags: Bags) -> np.ndarray:
    """(N, 2) first two principal components of the slides' mean features, all scales side by side."""
    weight = bags.mask.float() / bags.mask.float().sum(-1, keepdim=True).clamp(min=1)
    means = np.concatenate([(w[:, None] @ x).reshape(1, -1).numpy() for x, w in zip(bags.x, weight)])
    points = PCA(2, svd_solver="full").fit_transform(means)
    return points * np.where(np.abs(points).max(0) == points.max(0), 1, -1)  # a sign that does not depend on the solver
