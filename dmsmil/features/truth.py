"""Where the class was planted: how much of each tile lies in the signal region of a painted slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.ndimage import map_coordinates

from dmsmil.cohorts.made.painted import has_truth, read_truth
from dmsmil.cohorts.made.pyramid import MAGNIFICATION
from dmsmil.features.bags import Bags
from dmsmil.slides.magnification import tile_size_level0


def witness_share(truth: dict[str, np.ndarray], coords: np.ndarray, side: int) -> np.ndarray:
    """(N,) share of each tile's area inside the signal region of `histology.paint_slide`.

    coords (N, 2) top-left corners and side, in level-0 px; outside the slide there is no signal.
    """
    # the integral of a map of constant cells is bilinear between their corners, so this is exact
    integral = np.pad(truth["signal"].astype(float), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    low = np.asarray(coords, float)[:, ::-1].T / int(truth["downsample"])
    high = low + side / int(truth["downsample"])

    def until(row, column):
        return map_coordinates(integral, [row, column], order=1, mode="nearest")

    inside = until(*high) - until(high[0], low[1]) - until(low[0], high[1]) + until(*low)
    return inside / (high - low).prod(0)


def slide_shares(bags: Bags, folder: str | Path) -> np.ndarray:
    """(N, S, K) `witness_share` of every tile of painted slides, NaN where there is no tile; folder: that of
    `make_slides`.

    Raises InputError for a slide without truth.
    """
    shares = np.full(bags.mask.shape, np.nan)
    for row, slide_id in enumerate(bags.slide_ids):
        truth = read_truth(folder, slide_id)
        for s, scale in enumerate(bags.scales):
            there, side = bags.mask[row, s].numpy(), tile_size_level0(MAGNIFICATION, scale, bags.store.tile_px)
            shares[row, s, there] = witness_share(truth, bags.coords[row, s].numpy()[there], side)
    return shares


def known_shares(bags: Bags, folder: str | Path) -> np.ndarray | None:
    """`slide_shares`, or None where no slide is a painted one; InputError where some are and others are not."""
    known = any(has_truth(folder, slide_id) for slide_id in bags.slide_ids)
    return slide_shares(bags, folder) if known else None
