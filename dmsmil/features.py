"""Tiles and features of a whole cohort: one slide a unit, finished slides are not done again, one broken slide is a row
of failures.csv and a line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from dmsmil.bags import Bags
from dmsmil.files import InputError, failure_row, one_line, write_failures
from dmsmil.parallel import check_shared, is_remote, pick_device, progress, run_units, usable_cores, worker_count
from dmsmil.slides import Slide, open_slide, tile_size_level0
from dmsmil.store import Store
from dmsmil.tiles import Tiles, read_tiles, select_tiles


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
    return _over_slides(store, cohort, units, _tile_slide, "tiles", workers, report, scheduler)


def encode_cohort(store: Store, cohort: pd.DataFrame, k: int = 200, min_density: float = 0.05, seed: int = 0,
                  mpp: float = 0.0, weights: str = "", px: int = 0, device: str = "auto", workers: int = 0,
                  report: Callable[[str], None] = print, scheduler: str = "") -> pd.DataFrame:
    """Encode the tiles of every slide of a cohort and keep the features in the store.

    Slides without tiles are tiled on the way, with one decode for both. On a GPU a few processes share it, so that
    reading keeps up with encoding. With a scheduler, `auto` is the kind of device that this process has, for the
    features' precision depends on it. Returns one row a slide, as `tile_cohort`.
    """
    from dmsmil.encoders import create_encoder  # it imports timm, seconds that the other notebooks need not spend

    place = pick_device(device)
    encoder = create_encoder(store.encoder, weights, device, px)
    report(f"{store.encoder}: {encoder.dim} numbers a tile, fed {encoder.px} x {encoder.px} px; {encoder.weights}")
    units = {}
    for row in cohort.itertuples():
        config = _tile_config(store, row, k, min_density, seed, mpp)
        units[row.slide_id] = (store, row.slide_id, row.path, row.mpp or mpp, config,
                               {**config, "encoder": encoder.identity})
    if place.type == "cuda":
        workers = workers or min(4, usable_cores())
    threads = 1 if is_remote(scheduler) else max(1, usable_cores() // worker_count(workers, len(units)))
    hold = (store.encoder, weights, str(place), px, threads)
    return _over_slides(store, cohort, units, _encode_slide, "features", workers, report, scheduler, _hold_encoder,
                        hold)


def _tile_config(store: Store, row, k: int, min_density: float, seed: int, mpp: float) -> dict:
    """Everything that decides a slide's tiles; the size of the file stands for its content."""
    size = Path(row.path).stat().st_size if Path(row.path).is_file() else 0
    return {"k": k, "tile_px": store.tile_px, "scales": list(store.scales), "min_density": min_density, "seed": seed,
            "mpp": float(row.mpp or mpp), "bytes": size}


def _over_slides(store, cohort, units, function, stage, workers, report, scheduler, initializer=None,
                 initargs=()) -> pd.DataFrame:
    check_shared(store.home, scheduler)
    has = store.has_tiles if stage == "tiles" else store.has_features
    todo = {name: args for name, args in units.items() if not has(name, args[-1])}
    failures, done = [], {}
    for number, (name, result, error) in enumerate(
            progress(run_units(function, todo, workers, initializer, initargs, scheduler), len(todo), stage), 1):
        if error is not None:
            failures.append(failure_row(name, stage, error))
            report(f"[{number}/{len(todo)}] {name} failed: {one_line(error)}")
        else:
            done[name] = result
            report(f"[{number}/{len(todo)}] {name}  {result['tiles']} tiles  {result['seconds']:.1f} s"
                   + (f"  note: {result['warnings']}" if result["warnings"] else ""))
    write_failures(store.home, stage, failures)
    if len(units) > len(todo):
        report(f"{len(units) - len(todo)} of {len(units)} slides were done before")
    failed = {row["unit"] for row in failures}
    rows = [_summary(store, row, done.get(row.slide_id)) for row in cohort.itertuples() if row.slide_id not in failed]
    if not rows:
        raise InputError(f"no slide could be done ({len(failures)} failed, the first: {failures[0]['reason']})")
    return pd.DataFrame(rows)


def _summary(store: Store, row, result: dict | None) -> dict:
    tiles = store.read_tiles(row.slide_id)
    return {"slide_id": row.slide_id, "label": row.label, "tiles": len(tiles.density),
            "density": float(tiles.density.mean()), "magnification": tiles.magnification,
            "warnings": (result or {}).get("warnings", ""), "seconds": (result or {}).get("seconds", 0.0)}


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
    from dmsmil.encoders import create_encoder

    global _encoder
    _encoder = create_encoder(name, weights, device, px, threads=threads)


def _encode_slide(store: Store, slide_id: str, path: str, mpp: float, tiling: dict, config: dict) -> dict:
    """Encode and keep the features of one slide (in a worker)."""
    started = time.perf_counter()
    with open_slide(path, mpp, slide_id) as slide:
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
                px: int = 500, bags: Bags | None = None, mpp: float = 0.0) -> list[dict]:
    """Slides to draw: slide_id, label, thumbnail (H, W, 3), dimensions (w, h), path, mpp (what the
    cohort or else the study says, 0 if neither does) and slide_mpp (as it is read with, um a level-0 px); with a store
    also coords and side by scale and density of its tiles, with bags those of the tiles in the bag.

    The slides named, or `limit` slides, the classes in turn, those that cannot be opened passed over. Raises InputError
    when a slide that is named cannot be opened.
    """
    rows = cohort if slide_ids is None else cohort.set_index("slide_id").loc[slide_ids].reset_index()
    if slide_ids is None:  # the classes in turn, one patient once
        rank = rows.drop_duplicates("patient_id").groupby("label").cumcount()
        rows = rows.loc[rank.sort_values(kind="stable").index]
    views = []
    for row in rows.itertuples():
        try:
            with open_slide(row.path, row.mpp or mpp) as slide:
                view = {"slide_id": row.slide_id, "label": row.label, "thumbnail": slide.thumbnail(px),
                        "dimensions": slide.dimensions, "path": row.path, "mpp": row.mpp or mpp,
                        "slide_mpp": slide.mpp}
            if source := store or (bags.store if bags else None):
                tiles = source.read_tiles(row.slide_id)
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


def pair_views(view: dict, store: Store, count: int = 5) -> list[dict]:
    """Linked tiles to draw: title, tiles by scale, offset and share of the last scale's tile inside its parent."""
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
