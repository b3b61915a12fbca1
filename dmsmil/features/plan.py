"""Which tiles of a slide's files go into its bag, and where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dmsmil.jobs.files import InputError
from dmsmil.slides.linking import choose_rows
from dmsmil.slides.store import ScaleFeatures, Store


@dataclass
class Plan:
    """Where the tiles of one slide go: source (S, K) row in the feature file, -1 for padding."""

    slide_id: str
    source: np.ndarray
    coords: np.ndarray
    density: np.ndarray
    colour: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        return self.source >= 0

    @classmethod
    def of(cls, store: Store, slide_id: str, k: int) -> Plan:
        where, tiles = store.read_features(slide_id, values=False), store.read_tiles(slide_id)
        first, density, colour = where[store.scales[0]], tiles.density, tiles.colour
        if not np.array_equal(tiles.coords[store.scales[0]], first.coords):
            raise InputError(
                f"slide {slide_id} has features of {len(first.coords)} tiles that are not the "
                f"{len(density)} it has now: run the features stage again"
            )
        chosen = choose_rows(first.coords, density, k)
        plan = cls(
            slide_id,
            np.full((len(store.scales), k), -1),
            np.zeros((len(store.scales), k, 2), np.int64),
            np.zeros(k, np.float32),
            colour[chosen].mean(0).astype(np.float32) if len(chosen) else np.full(6, np.nan, np.float32),
        )
        plan.density[: len(chosen)] = density[chosen]
        for s, scale in enumerate(store.scales):
            linked = _linked(where[scale], first.parent[chosen], slide_id, scale) if s else chosen
            plan.source[s, : len(chosen)] = linked
            plan.coords[s, : len(chosen)][linked >= 0] = where[scale].coords[linked[linked >= 0]]
        return plan


def _linked(here: ScaleFeatures, parents: np.ndarray, slide_id: str, scale: int) -> np.ndarray:
    """The row of this scale that belongs to each of these parents, -1 where there is none."""
    if here.parent is None:
        raise InputError(
            f"the features of slide {slide_id} at {scale}x are not linked to the first scale (no "
            f"'parent'): use scales: [{scale}] alone"
        )
    children: dict = {}
    for row, parent in enumerate(here.parent.tolist()):
        children.setdefault(parent, row)  # of several, the first
    return np.array([children.get(parent, -1) for parent in parents.tolist()], np.int64)
