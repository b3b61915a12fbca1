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

from dmsmil.cohorts.download import Remote, drop_claimed
from dmsmil.features.formats import import_features
from dmsmil.features.rehearsal import DRAWN, draw_features
from dmsmil.jobs.files import InputError
from dmsmil.jobs.limits import usable_cores
from dmsmil.jobs.parallel import is_remote, pick_device, worker_count
from dmsmil.slides.given import Given
from dmsmil.slides.over import over_slides
from dmsmil.slides.stages import (
    choose_tiles,
    forget_replaced,
    given_tiles,
    open_configured,
    seen,
    slide_row,
    tile_config,
)
from dmsmil.slides.store import Store
from dmsmil.slides.tiles import read_tiles


def take_features(
    store: Store,
    cohort: pd.DataFrame,
    source: str,
    k: int = 200,
    seed: int = 0,
    mpp: float = 0.0,
    workers: int = 0,
    report: Callable[[str], None] = print,
    scheduler: str = "",
    agree: Callable[[dict], None] = lambda identity: None,
) -> pd.DataFrame:
    """Features that nobody encodes here: those of a folder (`formats.import_features`), or, where `source` is DRAWN,
    random ones (`rehearsal.draw_features`). agree: as `encode_cohort` takes it. Returns one row a slide, as that."""
    if source == DRAWN:
        return draw_features(
            store, cohort, k, seed=seed, workers=workers, report=report, scheduler=scheduler, agree=agree
        )
    return import_features(store, cohort, source, k, seed, mpp, workers, report, scheduler, agree)


def fetching(workers: int) -> int:
    """How many slides of a server are here at once where no GPU encodes: as many as there are processes, of which some
    fetch while others encode. workers: as asked for, 0 = as many as cores, and four at least."""
    return workers or max(4, usable_cores())


def encode_cohort(
    store: Store,
    cohort: pd.DataFrame,
    k: int = 200,
    min_density: float = 0.05,
    seed: int = 0,
    mpp: float = 0.0,
    weights: str = "",
    px: int = 0,
    device: str = "auto",
    workers: int = 0,
    report: Callable[[str], None] = print,
    scheduler: str = "",
    source: Remote | None = None,
    black: str = "padding",
    tiles: str = "",
    agree: Callable[[dict], None] = lambda identity: None,
) -> pd.DataFrame:
    """Encode the tiles of every slide of a cohort and keep the features in the store.

    Slides without tiles are tiled on the way, with one decode for both. On a GPU a few processes share it, so that
    reading keeps up with encoding. With a scheduler, `auto` is the kind of device that this process has, for the
    features' precision depends on it. source: a slide that is not on the disk is fetched from there (columns file_id,
    size, md5), and deleted when it is encoded or has failed; a slide that is on the disk stays. tiles: where they were
    chosen elsewhere, as `tile_cohort` takes it. agree: gets the encoder's identity before anything is encoded, and
    raises where it will not do. Returns one row a slide, as `tile_cohort`. Raises InputError where `auto` is another
    kind of device than that which made the features that are there: all of them, and all runs, would be made anew.
    """
    from dmsmil.features.encoders import create_encoder  # it imports timm, seconds that others need not spend

    place = pick_device(device)
    encoder = create_encoder(store.encoder, weights, device, px)
    agree(encoder.identity)
    if device == "auto":
        _check_precision(store, cohort, encoder.identity)
    report(f"{store.encoder}: {encoder.dim} numbers a tile, fed {encoder.px} x {encoder.px} px; {encoder.weights}")
    given, units = given_tiles(store, cohort, tiles, report), {}
    forget_replaced(store, cohort, report)
    for row in cohort.itertuples():
        own = given.get(row.slide_id)
        config = tile_config(store, row, k, min_density, seed, mpp, black, own)
        fetch = None if source is None else partial(source.fetch, row.file_id, row.path, row.size, row.md5)
        units[row.slide_id] = (
            store,
            row.slide_id,
            row.path,
            fetch,
            own,
            config,
            {**config, "encoder": encoder.identity},
        )
    if source is not None:
        _finish_fetched(store, units)
    if place.type == "cuda":
        workers = workers or min(4, usable_cores())
    elif source is not None:
        workers = fetching(workers)
    threads = 1 if is_remote(scheduler) else max(1, usable_cores() // worker_count(workers, len(units)))
    hold = (store.encoder, weights, str(place), px, threads)
    return over_slides(
        store,
        cohort,
        units,
        _encode_slide,
        "features",
        store.has_features,
        workers,
        report,
        scheduler,
        _hold_encoder,
        hold,
    )


def _check_precision(store: Store, cohort: pd.DataFrame, identity: dict) -> None:
    """InputError where the study's features differ from what would be made now in their precision alone."""
    for slide_id in cohort.slide_id:
        try:
            made = store.features_made_by(slide_id).config["encoder"]
        except (InputError, KeyError):
            continue
        if made != identity and {**made, "precision": ""} == {**identity, "precision": ""}:
            raise InputError(
                "the features of this study were made on a GPU, and none is here: see to it, or set device: cpu to "
                "make all of them anew"
                if made["precision"] == "amp"
                else "the features of this study were made on a CPU, and here is a GPU: set device: cpu to go on with "
                "them, or device: cuda to make all of them anew"
            )
        return


_encoder = None


def _hold_encoder(name: str, weights: str, device: str, px: int, threads: int) -> None:
    """One encoder a worker, made once."""
    from dmsmil.features.encoders import create_encoder

    global _encoder
    _encoder = create_encoder(name, weights, device, px, threads=threads)


@contextmanager
def _at_hand(path: str, fetch: Callable[..., Path] | None) -> Iterator[None]:
    """The slide on the disk; one that was fetched for it is gone afterwards, also when it is a later process that ends
    the work. InputError where what is there is not what the server has."""
    claim = _claim(path)
    try:
        if fetch is not None:
            fetch(claim=claim)
        yield
    finally:
        if fetch is not None:
            drop_claimed(path, claim)


def _claim(path: str) -> Path:
    """The file beside a slide that says that it was fetched to be encoded, and is nobody's own."""
    return Path(path).with_name(f".{Path(path).name}.fetched")


def _finish_fetched(store: Store, units: dict[str, tuple]) -> None:
    """Delete the slides that a killed process had fetched and encoded, and could not delete any more."""
    for slide_id, (_, _, path, _, _, _, config) in units.items():
        if _claim(path).exists() and store.has_features(slide_id, config):
            drop_claimed(path, _claim(path))


def _encode_slide(
    store: Store,
    slide_id: str,
    path: str,
    fetch: Callable[..., Path] | None,
    given: Given | None,
    tiling: dict,
    config: dict,
) -> dict:
    """Encode and keep the features of one slide (in a worker)."""
    started = time.perf_counter()
    if _encoder.identity != config["encoder"]:
        raise InputError("this worker's encoder is not the study's: give every machine the same weights and packages")
    if given is not None:
        given.check()  # before a gigabyte is fetched
    with _at_hand(path, fetch), open_configured(path, slide_id, tiling) as slide:
        if store.has_tiles(slide_id, tiling):
            tiles = store.read_tiles(slide_id)
            features = _encode_stream(read_tiles(slide, tiles), tuple(tiles.coords))
        else:  # one decode to choose and to encode
            tiles = choose_tiles(slide, tiling, given, pixels=True)
            store.write_tiles(tiles, tiling, seen(path), "; ".join(slide.warnings))
            features = {scale: _encoder.encode(images) for scale, images in tiles.pixels.items()}
        store.write_features(slide_id, features, tiles, config, store.seen(slide_id))
        return slide_row(tiles, slide, started)


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
