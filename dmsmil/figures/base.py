"""What all figures share: the style, and how one is saved with the data behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dmsmil.jobs.files import atomic, write_csv

plt.style.use(Path(__file__).with_name("dmsmil.mplstyle"))
SCALE_COLOURS = {10: "#0072B2", 20: "#D55E00"}


def finish(figure: Figure, out: str | Path, data: pd.DataFrame | dict[str, np.ndarray]) -> Figure:
    """Save picture and data, close the figure (a notebook shows what is returned), and return it."""
    out = Path(out)
    with atomic(out.with_suffix(".png")) as temporary:
        figure.savefig(temporary, format="png")
    if isinstance(data, pd.DataFrame):
        write_csv(data, out.with_suffix(".csv"), digits=6)
    else:
        with atomic(out.with_suffix(".npz")) as temporary, open(temporary, "wb") as handle:
            np.savez_compressed(handle, **data)
    plt.close(figure)
    return figure


@contextmanager
def same_jitter() -> Iterator[None]:
    """Points that are drawn apart at random lie where they lay the last time."""
    before = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(before)


def bare(ax) -> None:
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def show_slide(ax, thumbnail: np.ndarray, dimensions: tuple[int, int]) -> None:
    """A thumbnail in level-0 pixel coordinates."""
    width, height = dimensions
    ax.imshow(thumbnail, extent=(0, width, height, 0), interpolation="antialiased")
    bare(ax)


def draw_tiles(ax, coords: np.ndarray, side: int, values: np.ndarray | None = None, **style) -> PatchCollection:
    """Squares of `side` level-0 pixels at `coords` (N, 2), coloured by `values` where given."""
    boxes = PatchCollection([Rectangle(xy, side, side) for xy in coords], **style)
    if values is not None:
        boxes.set_array(values)
    return ax.add_collection(boxes)
