"""What all figures share: the style, the colours, letters for every name, and how one is saved with its data."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pylopdf_fonts_zh_cn
from matplotlib import font_manager
from matplotlib.axis import Axis
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, NullLocator

from dmsmil.jobs.files import atomic, write_csv

font_manager.fontManager.addfont(pylopdf_fonts_zh_cn.sans_path())  # Noto Sans SC: Chinese names, on any machine
font_manager.fontManager.ttflist.append(replace(font_manager.fontManager.ttflist[-1], weight=700))  # for bold as well
plt.style.use(Path(__file__).with_name("dmsmil.mplstyle"))
FONTS = plt.rcParams["font.family"]
warnings.filterwarnings("ignore", "Glyph .* missing from font.*Noto Sans SC")  # once a letter: `finish` says it better

BLUE, ORANGE, GREEN, PINK, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
DARK, GREY, FAINT = "#444444", "#777777", "#999999"
SCALE_COLOURS = {5: GREEN, 10: BLUE, 20: ORANGE, 40: PINK}
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def finish(figure: Figure, out: str | Path, data: pd.DataFrame | dict[str, np.ndarray]) -> Figure:
    """Save picture and data, close the figure (a notebook shows what is returned), and return it.

    out: without a suffix; dots in it are of a name, such as TCGA's.
    """
    picture, table, arrays = (Path(f"{out}{suffix}") for suffix in (".png", ".csv", ".npz"))
    _as_written(figure)
    with atomic(picture) as temporary:
        figure.savefig(temporary, format="png")
    if isinstance(data, pd.DataFrame):
        write_csv(data, table, digits=6)
    else:
        with atomic(arrays) as temporary, open(temporary, "wb") as handle:
            np.savez_compressed(handle, **data)
    plt.close(figure)
    return figure


def absent(out: str | Path, why: str) -> str:
    """Where there is nothing to draw: `why`. The picture and data that an earlier run left at `out` go."""
    for suffix in (".png", ".csv", ".npz"):
        Path(f"{out}{suffix}").unlink(missing_ok=True)
    return why


# ------------------------------------------------------------------------------------------------ words


def _as_written(figure: Figure) -> None:
    """Every text of a figure as it was written: two `$` in a name make no formula. What no font has is said."""
    texts = figure.findobj(Text)
    for text in texts:
        text.set_parse_math(False)
    missing = set("".join(text.get_text() for text in texts)) - _letters() - {"\n"}
    if missing:
        warnings.warn(
            f"no font has {' '.join(sorted(missing))}: boxes stand for it in the figures. Write the name in "
            "other letters.",
            stacklevel=3,
        )


@cache
def _letters() -> set[str]:
    """All characters that the fonts of the style can draw."""
    files = [font_manager.findfont(family, fallback_to_default=False) for family in FONTS]
    return {chr(code) for file in files for code in font_manager.get_font(file).get_charmap()}


def in_legend(name: str) -> str:
    """A name as the label of a legend, from which matplotlib leaves out what begins with `_`."""
    return f" {name}" if name.startswith("_") else name


def short(name: str, letters: int) -> str:
    """A name that is too long for its place, with … at its end; the whole name is in the data."""
    return name if len(name) <= letters else name[: letters - 1].rstrip(" ,") + "…"


def plain_numbers(axis: Axis) -> None:
    """Numbers of a log axis as plain text: formulas are switched off with those that names would make."""
    axis.set_major_formatter(FuncFormatter(_plain_number))
    axis.set_minor_locator(NullLocator())


def _plain_number(value: float, _: int) -> str:
    power = np.log10(value)
    far = abs(power) > 4 and np.isclose(power, round(power))
    return "10" + str(round(power)).translate(RAISED) if far else f"{value:g}"


# ------------------------------------------------------------------------------------------------ rows of dots


def dot_and_bar(
    ax,
    y,
    value,
    low,
    high,
    colour: str,
    hollow: bool = False,
    label: str = "",
    size: float = 5,
    width: float = 1.8,
    alpha: float = 1.0,
) -> None:
    """A value and its interval in row `y` (or several values in several rows); hollow: not told apart, or no result."""
    ax.hlines(y, low, high, color=colour, linewidth=width, alpha=alpha)
    ax.plot(
        value,
        y,
        "o",
        color=colour,
        markersize=size,
        markerfacecolor="white" if hollow else colour,
        label=label or None,
        zorder=3,
    )


def verdict_colour(difference: float, sure: bool, equivalent: bool = False) -> str:
    """Of a difference: grey as long as it may be noise, blue for the reference, orange against it; green where it is
    shown to be too small to matter."""
    if not sure:
        return GREEN if equivalent else GREY
    return BLUE if difference > 0 else ORANGE


def only_rows(ax) -> None:
    """An axis whose rows have names: no lines across, no ticks."""
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)


@contextmanager
def same_jitter() -> Iterator[None]:
    """Points that are drawn apart at random lie where they lay the last time."""
    before = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(before)


# ------------------------------------------------------------------------------------------------ slides


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


def some_ties(plan: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of at most `count` couplings of a plan (N, N'), evenly from the heaviest to the lightest."""
    rows, columns = np.nonzero(plan > 0)
    order = np.argsort(-plan[rows, columns], kind="stable")
    order = order[np.linspace(0, len(order) - 1, min(count, len(order))).astype(int)]
    return rows[order], columns[order]


def to_own_child(plan: np.ndarray, places: np.ndarray, finer: np.ndarray) -> tuple[float, float]:
    """What share of a plan's mass goes from a tile to its own child, and what share would if the same masses were
    coupled at random. plan (N, N'); places (N,), finer (N',): of its tiles in the bag, the same for a tile and its
    child."""
    own = places[:, None] == finer
    random = np.outer(plan.sum(1), plan.sum(0)) / plan.sum()
    return float(plan[own].sum() / plan.sum()), float(random[own].sum() / plan.sum())


def in_percent(shares: list[float]) -> str:
    """Shares in words; once where all are the same."""
    return " and ".join(dict.fromkeys(f"{share:.0%}" for share in shares))
