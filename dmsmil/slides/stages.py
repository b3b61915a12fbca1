"""The tiles of a whole cohort: one slide a unit, finished slides are not done again, a broken slide is a row of
failures.csv and a line."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from dmsmil.jobs.files import fingerprint, is_file, read_json, sampled_hash, write_json
from dmsmil.slides.density import check_black
from dmsmil.slides.given import BY, Given, chosen_by, open_given, take_tiles, tally
from dmsmil.slides.over import over_slides
from dmsmil.slides.reader import Slide, open_slide, reads_more
from dmsmil.slides.store import Store
from dmsmil.slides.tiles import Tiles, how_linked, select_tiles


def tile_cohort(
    store: Store,
    cohort: pd.DataFrame,
    k: int = 200,
    min_density: float = 0.05,
    seed: int = 0,
    mpp: float = 0.0,
    workers: int = 0,
    report: Callable[[str], None] = print,
    scheduler: str = "",
    black: str = "padding",
    tiles: str = "",
) -> pd.DataFrame:
    """Choose the tiles of every slide of a cohort and keep them in the store.

    mpp: of slides that do not say, in the file or in the cohort table; black: as for `select_tiles`; tiles: where they
    were chosen elsewhere, as for `open_given`, and then `min_density` is not asked; workers, scheduler: as for
    `run_units`.
    Returns one row a slide that has tiles: slide_id, label, tiles, density (mean), magnification, warnings, seconds.
    Raises InputError when no slide could be tiled, or for an unknown `black`.
    """
    given, units = given_tiles(store, cohort, tiles, report), {}
    forget_replaced(store, cohort, report)
    for row in cohort.itertuples():
        own = given.get(row.slide_id)
        config = tile_config(store, row, k, min_density, seed, mpp, black, own)
        units[row.slide_id] = store, row.slide_id, row.path, own, config
    return over_slides(store, cohort, units, _tile_slide, "tiles", store.has_tiles, workers, report, scheduler)


def given_tiles(store: Store, cohort: pd.DataFrame, tiles: str, report: Callable[[str], None]) -> dict[str, Given]:
    """The tiles of each slide that were chosen elsewhere, and a line that says so; none where `tiles` is empty."""
    if not tiles:
        return {}
    found = open_given(tiles, cohort.slide_id, store.scales[0], store.tile_px)
    report(
        f"tiles chosen elsewhere, {BY[chosen_by(tiles)]} ({Path(tiles).name}): {tally(found)} at {store.scales[0]:g}x"
    )
    return found


def seen(path: str | Path) -> str:
    """What tiles remember of the file that they were chosen on: a sampled hash. Of a MIRAX slide the names and sizes of
    the files that hold its pixels count too."""
    return fingerprint([sampled_hash(path), [[other.name, other.stat().st_size] for other in _beside(path)]], 16)


def _beside(path: str | Path) -> list[Path]:
    """The files that hold the pixels of a MIRAX slide; of others none."""
    path = Path(path)
    return sorted(path.with_suffix("").glob("*")) if path.suffix.lower() == ".mrxs" else []


def forget_replaced(store: Store, cohort: pd.DataFrame, report: Callable[[str], None] = print) -> None:
    """Forget the tiles of each slide whose file is another than the one they were chosen on (`Store.forget`), under the
    same name and, as exports of one region have it, of the same size. A file that was only copied or touched is the
    same; one that has not been touched since this was last asked is not read."""
    kept = store.home / "features" / ".seen.json"
    try:
        asked = dict(read_json(kept))
    except (OSError, ValueError, TypeError):
        asked = {}
    now = {}
    for row in cohort.itertuples():
        known = store.seen(row.slide_id) if is_file(row.path) else ""
        if not known:
            continue
        try:
            state = [known, max(path.stat().st_mtime_ns for path in (Path(row.path), *_beside(row.path)))]
            same = asked.get(row.slide_id) == state or known == seen(row.path)
        except OSError:  # whoever reads the slide will say why it cannot be read
            continue
        if same:
            now[row.slide_id] = state
        else:
            store.forget(row.slide_id)
            report(f"{row.slide_id}: its file is another one than before, and what was made of it is made anew")
    if now != {name: state for name, state in asked.items() if name in now}:
        write_json({**asked, **now}, kept)


def tile_config(
    store: Store,
    row,
    k: int,
    min_density: float,
    seed: int,
    mpp: float,
    black: str = "padding",
    given: Given | None = None,
) -> dict:
    """Everything that decides a slide's tiles; the size of the file stands for its content.

    mpp is the cohort table's word for this slide, fallback_mpp the study's for slides that do not say. Tiles that were
    chosen elsewhere are `given`: whose they are and where they lie decide, and no density does.
    """
    check_black(black)
    path, there = Path(row.path), is_file(row.path)
    made = {} if there else store.tiling(row.slide_id)  # a file that was moved away decides what it did
    size = path.stat().st_size if there else int(getattr(row, "size", 0) or made.get("bytes", 0))
    config = {
        "k": k,
        "tile_px": store.tile_px,
        "scales": list(store.scales),
        "min_density": min_density,
        "seed": seed,
        "mpp": float(row.mpp),
        "fallback_mpp": float(mpp),
        "black": black,
        "bytes": size,
        **how_linked(store.scales),
    }
    if given is not None:
        del config["min_density"]
        config |= {"tiles": given.by, "corners": given.identity}
    if reads_more(path) if there else "reader" in made:  # other pixels than OpenSlide's, whose files have no such key
        config["reader"] = "tifffile"
    return config


def open_configured(path: str, slide_id: str, config: dict) -> Slide:
    """A slide as `tile_config` reads it."""
    return open_slide(path, config["mpp"], slide_id, config["fallback_mpp"])


def _tile_slide(store: Store, slide_id: str, path: str, given: Given | None, config: dict) -> dict:
    """Choose and keep the tiles of one slide (in a worker)."""
    started = time.perf_counter()
    with open_configured(path, slide_id, config) as slide:
        tiles = choose_tiles(slide, config, given)
        store.write_tiles(tiles, config, seen(path), "; ".join(slide.warnings))
        return slide_row(tiles, slide, started)


def choose_tiles(slide: Slide, config: dict, given: Given | None = None, pixels: bool = False) -> Tiles:
    if given is not None:
        return take_tiles(
            slide,
            given,
            config["k"],
            config["tile_px"],
            config["seed"],
            tuple(config["scales"]),
            pixels,
            config["black"],
        )
    return select_tiles(
        slide,
        config["k"],
        config["tile_px"],
        config["seed"],
        config["min_density"],
        tuple(config["scales"]),
        pixels,
        config["black"],
    )


def slide_row(tiles: Tiles, slide: Slide, started: float) -> dict:
    return {
        "tiles": len(tiles.density),
        "warnings": "; ".join(slide.warnings),
        "seconds": time.perf_counter() - started,
    }
