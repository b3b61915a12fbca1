"""A study at a real cohort's size without its pixels: its slides, patients, sites and labels, and drawn features.

It answers what a night of computing will cost before a terabyte is fetched: how long, how much memory, how large on
the disk. The classes are planted, and so is a mark of each site, so that it also shows what folds that share sites
are worth. What comes out says nothing about tissue.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pandas as pd

from dmsmil.jobs.files import InputError, fingerprint
from dmsmil.slides.magnification import tile_size_level0
from dmsmil.slides.over import over_slides
from dmsmil.slides.store import Store
from dmsmil.slides.tiles import Tiles, how_linked

DRAWN = "drawn"  # the key `features` of a study that is rehearsed
MAGNIFICATION = 40.0  # of level 0, as most slides of TCGA
SHARE, SIGNAL, CHANNELS = 0.1, 1.0, 16  # of the tiles that carry the class; how far they are shifted, in how many
MARK = 0.03  # of a site: the standard deviation of its shift over the channels


def draw_features(
    store: Store,
    cohort: pd.DataFrame,
    k: int = 200,
    dim: int = 2048,
    seed: int = 0,
    workers: int = 0,
    report: Callable[[str], None] = print,
    scheduler: str = "",
    agree: Callable[[dict], None] = lambda identity: None,
) -> pd.DataFrame:
    """Draw features for every slide of a cohort (columns slide_id, label, site) and keep them in the store.

    Each slide gets k tiles at every scale, `dim` standard normal numbers each, linked by row. Those of a site are
    shifted alike, by N(0, MARK) a channel; in SHARE of them the first CHANNELS are shifted by +SIGNAL or -SIGNAL, by
    class. Depends on the ids, labels, sites and the seed alone.
    Slides that were drawn before are not drawn again. agree: as `import_features` takes it. Returns one row a slide, as
    `over_slides`. Raises InputError when there are not two classes.
    """
    classes = two_classes(cohort)
    made_by = {"name": store.encoder, "dim": dim, "share": SHARE, "signal": SIGNAL, "mark": MARK}
    agree(made_by)
    units = {}
    for row in cohort.itertuples():
        config = {
            "k": k,
            "tile_px": store.tile_px,
            "scales": list(store.scales),
            "drawn": seed,
            "label": row.label,
            "site": row.site,
            "encoder": made_by,
            **how_linked(store.scales),
        }
        units[row.slide_id] = store, row.slide_id, 1 if row.label == classes[1] else -1, config
    return over_slides(store, cohort, units, _draw_slide, "features", store.has_features, workers, report, scheduler)


def two_classes(cohort: pd.DataFrame) -> list[str]:
    """The classes of a cohort that can be rehearsed. Raises InputError when they are not two."""
    classes = sorted(cohort.label.unique())
    if len(classes) != 2:
        raise InputError(f"a rehearsal needs a cohort of two classes, this one has {', '.join(classes)}")
    return classes


def _draw_slide(store: Store, slide_id: str, sign: int, config: dict) -> dict:
    """Draw and keep the tiles and features of one slide (in a worker)."""
    started = time.perf_counter()
    seed, k, dim, site = config["drawn"], config["k"], config["encoder"]["dim"], config["site"]
    rng = np.random.default_rng(int(fingerprint([slide_id, seed]), 16))
    tiles = _tiles(store, slide_id, k, rng)
    store.write_tiles(tiles, {name: value for name, value in config.items() if name != "encoder"})
    shift = _mark(site, dim, seed) if site else np.zeros(dim, np.float32)
    chosen = rng.permutation(k)[: max(1, round(SHARE * k))]
    features = {scale: _draw(rng, k, dim, shift, sign, chosen) for scale in store.scales}
    store.write_features(slide_id, features, tiles, config)
    return {"tiles": k, "warnings": "", "seconds": time.perf_counter() - started}


def _tiles(store: Store, slide_id: str, k: int, rng: np.random.Generator) -> Tiles:
    """k tiles in a round piece of tissue on the grid of the first scale, in each one of the next scale, and so on."""
    side = {s: tile_size_level0(MAGNIFICATION, s, store.tile_px) for s in store.scales}
    first = side[store.scales[0]]
    across = 2 * int(np.ceil(np.sqrt(k / np.pi))) + 3
    y, x = np.divmod(np.arange(across**2), across)
    nearest = np.argsort((x - across / 2) ** 2 + (y - across / 2) ** 2 + rng.normal(0, across / 8, across**2))[:k]
    corner = np.stack([x, y], 1)[np.sort(nearest)].astype(np.int64) * first
    coords = {store.scales[0]: corner}
    for coarse, s in pairwise(store.scales):
        coords[s] = coords[coarse] + rng.integers(0, side[coarse] - side[s] + 1, (k, 2))
    colour = rng.normal(0.7, 0.05, (k, 6)).astype(np.float32)
    return Tiles(
        slide_id,
        store.tile_px,
        coords,
        np.ones(k),
        colour,
        np.arange(k),
        (across * first, across * first),
        MAGNIFICATION,
        across**2,
        k,
    )


def _mark(site: str, dim: int, seed: int) -> np.ndarray:
    """What a site's stain and scanner do to every feature."""
    return np.random.default_rng(int(fingerprint(["site", site, seed]), 16)).normal(0, MARK, dim).astype(np.float32)


def _draw(rng: np.random.Generator, k: int, dim: int, shift: np.ndarray, sign: int, chosen: np.ndarray) -> np.ndarray:
    features = rng.standard_normal((k, dim), np.float32) + shift
    features[chosen, :CHANNELS] += sign * SIGNAL
    return features
