"""The cover of a study's book: one slide as the model saw it at its scales, and what came out."""

from __future__ import annotations

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.transforms import Affine2D

from dmsmil.figures.base import bare, finish, in_percent, short, some_ties, to_own_child
from dmsmil.training.baselines import CHEAP
from dmsmil.training.results import GATHERED, NOTHING, no_result, number

NIGHT, INK, FAINT = "#0e1729", "#e8eef8", "#8a9ab4"
MINE, OTHERS = "#f2a93b", "#6cbcec"
LEAN, FLAT, RISE = 0.34, 0.50, 0.66  # a plane seen from the side: x' = x - LEAN y, y' = FLAT y; and the next one above
DIM, TIES = 0.86, 40
FEW, MANY = 7, 15  # rows that fill the height, rows that can still be read
CROWDED = 0.8  # an AUC to the right of which no words fit
AUC = ["AUC_mean", "AUC_low", "AUC_high"]


def cover(results: pd.DataFrame | None, slide: dict | None, out) -> Figure:
    """The AUC of every row of `results` with its 95 % interval, beside one slide's scales as stacked planes.

    results: as `training.results.result_table`. slide: slide_id, label, thumbnail (H, W, 3) uint8, dimensions (w, h),
    coords, places and side by scale, as `features.views.slide_views`, with normalised scores {scale: (N,)} and plans,
    (N, N') of each two neighbouring scales, or none. A tile is the brighter the higher its score within its scale; ties
    are couplings of the plans, white where a tile meets its own child. Rows are ordered by AUC; the first of `results`,
    the study's own, is bright wherever it comes out. Either part may be missing (None), not both. Data: what each part
    shows, as arrays.
    """
    parts = [part for part in (slide, results) if part is not None]
    widths = [5.9 if part is slide else 3.9 for part in parts]
    figure, axes = plt.subplots(
        1, len(parts), figsize=(sum(widths), 5.0), width_ratios=widths, squeeze=False, facecolor=NIGHT
    )
    data: dict = {}
    for ax, part in zip(axes[0], parts):
        ax.set_facecolor(NIGHT)
        data |= _planes(ax, part) if part is slide else _intervals(ax, part)
    return finish(figure, out, data)


def _planes(ax: Axes, slide: dict) -> dict[str, np.ndarray]:
    """The slide once a scale, the finest on top, with its tiles by score and the ties between."""
    width, height = slide["dimensions"]
    scales, centres = sorted(slide["scores"]), {}
    for floor, scale in enumerate(scales):
        lift = Affine2D(np.array([[1, -LEAN, 0], [0, FLAT, -floor * RISE * height], [0, 0, 1]]))
        frame = np.array([[0, 0], [width, 0], [width, height], [0, height]])
        ax.add_patch(
            Polygon(
                lift.transform(frame),
                facecolor="#1a2742",
                edgecolor="#33476e",
                linewidth=0.9,
                alpha=0.55,
                zorder=3 * floor,
            )
        )
        ax.imshow(
            _without_glass(slide["thumbnail"]),
            extent=(0, width, height, 0),
            transform=lift + ax.transData,
            zorder=3 * floor,
            interpolation="antialiased",
        )
        corners = slide["coords"][scale][:, None] + slide["side"][scale] * np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
        value = slide["scores"][scale]
        face = plt.get_cmap("inferno")(0.25 + 0.7 * value)
        face[:, 3] = 0.12 + 0.83 * value
        boxes = [Polygon(lift.transform(box)) for box in corners]
        ax.add_collection(
            PatchCollection(boxes, facecolors=face, edgecolors=(1, 1, 1, 0.55), linewidths=0.5, zorder=3 * floor + 1)
        )
        centres[scale] = lift.transform(corners.mean(1))
        ax.text(
            *lift.transform((-0.03 * width, 0.42 * height)),
            f"{scale}x",
            color=INK,
            fontsize=14,
            fontweight="bold",
            ha="right",
            va="center",
        )
    said = f"{slide['slide_id']}, {slide['label']}: the brighter a tile, the higher its score"
    data = {"slide_id": np.array(slide["slide_id"])} | {f"scores_{s}": slide["scores"][s] for s in scales}
    shares, chances = [], []
    for (low, high), plan in zip(pairwise(scales), slide["plans"]):
        places, finer = slide["places"][low], slide["places"][high]
        rows, columns = some_ties(plan, TIES)
        _ties(ax, np.stack([centres[low][rows], centres[high][columns]], 1), places[rows] == finer[columns])
        share, chance = to_own_child(plan, places, finer)
        shares, chances = [*shares, share], [*chances, chance]
        data[f"plan_{low}x_{high}x"] = plan
    if shares:
        said += (
            f"\nOT ties a tile to its own child (white) with {in_percent(shares)} of the mass; chance "
            f"{in_percent(chances)}"
        )
    top = -(len(scales) - 1) * RISE * height
    ax.set(
        xlim=(-(LEAN + 0.02) * width, 1.01 * width),
        ylim=(FLAT * height + 0.01 * height, top - 0.01 * height),
        aspect="equal",
    )
    bare(ax)
    ax.text(0, -0.02, said, transform=ax.transAxes, color=FAINT, fontsize=8.5, va="top", linespacing=1.5)
    return data


def _ties(ax: Axes, ends: np.ndarray, own: np.ndarray) -> None:
    """Lines between two planes, ends (N, 2, 2); own (N,): those that join a tile with its own child."""
    for which, colour, line, alpha in ((~own, "#9fdcff", 0.9, 0.65), (own, "white", 1.9, 0.95)):
        ax.add_collection(LineCollection(ends[which], colors=colour, linewidths=line, alpha=alpha, zorder=2.5))


def _without_glass(thumbnail: np.ndarray) -> np.ndarray:
    """RGBA in 0..1, a little darker so that tiles glow: what is no tissue (every channel bright) is see-through."""
    darkest = thumbnail.min(-1).astype(float)
    return np.dstack([DIM * thumbnail / 255.0, np.clip((228 - darkest) / 28, 0, 1)])


def _intervals(ax: Axes, results: pd.DataFrame) -> dict[str, np.ndarray]:
    """AUC with its interval, highest first; the study's own method bright, the cheap rules hollow."""
    name, _ = number(results.iloc[0], "AUC")
    results = results.assign(AUC_mean=[number(row, "AUC")[1] for _, row in results.iterrows()])
    own, rows, nothing = results.name[0], _ranked(results), no_result(results)
    y, size = np.arange(len(rows))[::-1], min(10.0, 150 / len(rows))
    room = max(0.0, (FEW - len(rows)) / 2)
    ax.axvline(0.5, color=FAINT, linewidth=1, linestyle=(0, (2, 3)))
    ax.text(
        0.5,
        y[0] + room + 0.95,
        "guessing",
        color=FAINT,
        fontsize=8,
        ha="center",
        va="top",
        bbox={"facecolor": NIGHT, "edgecolor": "none", "pad": 2},
    )
    for place, row in zip(y, rows.itertuples()):
        mine, cheap = row.name == own, row.name in CHEAP
        colour = MINE if mine else FAINT if cheap else OTHERS
        ax.text(
            -0.03,
            place,
            short(row.name, 26) + "†" * bool(getattr(row, GATHERED, 0)),
            transform=ax.get_yaxis_transform(),
            fontsize=size,
            color=MINE if mine else INK,
            fontweight="bold" if mine else "normal",
            ha="right",
            va="center",
        )
        if nothing[row.Index]:
            said = "collapsed: no result" if row.collapsed else "learned nothing"
            ax.text(
                0.02,
                place,
                said,
                transform=ax.get_yaxis_transform(),
                color=FAINT,
                fontsize=0.85 * size,
                va="center",
                fontstyle="italic",
            )
            continue
        some = getattr(row, NOTHING, 0)
        if some:
            beyond = row.AUC_high < CROWDED
            ax.text(
                row.AUC_high + 0.01 if beyond else row.AUC_low - 0.01,
                place,
                f"{some} of {row.runs} runs learned nothing",
                color=FAINT,
                fontsize=0.75 * size,
                ha="left" if beyond else "right",
                va="center",
                fontstyle="italic",
            )
        ax.hlines(place, row.AUC_low, row.AUC_high, color=colour, linewidth=3.2 if mine else 2)
        ax.plot(
            row.AUC_mean,
            place,
            "o",
            color=colour,
            markersize=9 if mine else 6,
            markeredgewidth=1.4,
            markerfacecolor=NIGHT if cheap or some else colour,
        )
    least = min(0.4, rows[AUC].to_numpy().min()) - 0.02
    more = f", {len(rows)} of {len(results)} rows" if len(rows) < len(results) else ""
    ax.set(xlim=(least, 1.02), ylim=(-0.6 - room, y[0] + room + 1), yticks=[])
    ax.set_title(f"{name} and its 95 % interval{more}", color=INK, fontsize=11, pad=10)
    if (rows.get(GATHERED, pd.Series(0, rows.index)) > 0).any():
        ax.set_xlabel("† attention gathered on few tiles", color=FAINT, fontsize=8.5)
    ax.grid(axis="x", color="#24344f", linewidth=0.8)
    ax.tick_params(colors=FAINT, length=0, labelsize=8.5)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return {"name": rows.name.to_numpy(str)} | {name: rows[name].to_numpy(float) for name in AUC}


def _ranked(results: pd.DataFrame) -> pd.DataFrame:
    """By AUC, what is `no_result` last; of many rows the best, and always the first of the table and the
    cheap rules."""
    kept = results.name.isin([results.name[0], *CHEAP])
    ranked = results.assign(last=no_result(results))
    order = ranked.sort_values(["last", "AUC_mean"], ascending=[True, False], kind="stable").index
    others = [row for row in order if not kept[row]][: max(0, MANY - kept.sum())]
    return results.loc[[row for row in order if kept[row] or row in others]]
