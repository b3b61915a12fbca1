"""Notebooks 03 and 07: the insides of a trained model on one slide."""

from __future__ import annotations

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from dmsmil.figures.base import (
    GREY,
    SCALE_COLOURS,
    bare,
    draw_tiles,
    finish,
    in_percent,
    show_slide,
    some_ties,
    to_own_child,
)


def transport_plan(slide: dict, plans: list[np.ndarray], out, lines: int = 40) -> Figure:
    """The OT plans of one slide, drawn between its scales: each tile tied to the tile of the next scale it is matched
    with.

    slide: thumbnail, dimensions, coords {10, 20}, places {10, 20}, side {10, 20}; plans: of each two neighbouring
    scales, (K10, K20) whose rows sum to 1 / K10. Of the ties of each `lines` are drawn, from the heaviest to the
    lightest; one is dark when it joins a tile with its own child.
    """
    scales = sorted(slide["coords"])
    figure, ax = plt.subplots(figsize=(3.7 * len(scales), 3.9))
    width, height = slide["dimensions"]
    gap = 0.12 * width
    centres = {}
    for column, scale in enumerate(scales):
        shift = column * (width + gap)
        ax.imshow(slide["thumbnail"], extent=(shift, shift + width, height, 0), alpha=0.75)
        moved = slide["coords"][scale] + [shift, 0]
        draw_tiles(
            ax,
            moved,
            slide["side"][scale],
            facecolor="none",
            linewidth=0.8,
            edgecolor=SCALE_COLOURS.get(scale, "black"),
        )
        centres[scale] = moved + slide["side"][scale] / 2
        ax.text(shift + width / 2, -0.02 * height, f"{scale}x", ha="center", va="bottom", fontweight="bold")
    data = {f"coords_{s}": slide["coords"][s] for s in scales}
    shares, chances = [], []
    for (coarse, fine), plan in zip(pairwise(scales), plans):
        rows, columns = some_ties(plan, lines)
        ends = np.stack([centres[coarse][rows], centres[fine][columns]], 1)
        places, finer = slide["places"][coarse], slide["places"][fine]
        own = places[rows] == finer[columns]
        for which, colour, line in ((~own, GREY, 0.9), (own, "#111111", 1.8)):
            ax.add_collection(LineCollection(ends[which], colors=colour, linewidths=line, alpha=0.8))
        share, chance = to_own_child(plan, places, finer)
        shares, chances = [*shares, share], [*chances, chance]
        data[f"plan_{coarse}x_{fine}x"] = plan.astype(np.float32)
    ax.set(xlim=(0, len(scales) * width + (len(scales) - 1) * gap), ylim=(height, -0.1 * height), aspect="equal")
    bare(ax)
    ax.set_title(
        f"OT plan: {in_percent(shares)} of the mass goes from a tile to its own child (dark); "
        f"chance {in_percent(chances)}",
        fontsize=9,
    )
    return finish(figure, out, data)


def sampling_points(slide: dict, query: np.ndarray, points: np.ndarray, weights: np.ndarray, out) -> Figure:
    """Where queries look: reference points (rings) and their deformed sampling points on the slide.

    query (Q, 2) and points (Q, N, 2) in level-0 pixels; weights (Q, N), drawn as the size of a point.
    """
    figure, ax = plt.subplots(figsize=(5.6, 5.2))
    show_slide(ax, slide["thumbnail"], slide["dimensions"])
    palette = sns.color_palette("bright", len(query))
    for colour, start, ends, weight in zip(palette, query, points, weights):
        ax.add_collection(LineCollection([(start, end) for end in ends], colors=[colour], linewidths=0.7, alpha=0.7))
        ax.scatter(
            *ends.T, s=10 + 90 * weight / weight.max(), color=[colour], edgecolor="white", linewidth=0.5, zorder=3
        )
        ax.scatter(*start, s=90, facecolor="none", edgecolor="black", linewidth=1.6, zorder=4)
    ax.set_title("Reference tiles (rings) and their sampling points", fontsize=9)
    return finish(figure, out, {"query": query, "points": points, "weights": weights})


def tile_scores(slide: dict, scores: dict[int, np.ndarray], out) -> Figure:
    """Tile scores in place, a panel a scale beside the plain slide; min-max normalised within the slide.

    scores: scale -> (N,), as `explain.normalise` makes them, drawn as they are.
    """
    figure, axes = plt.subplots(1, 1 + len(scores), figsize=(3.2 * (1 + len(scores)), 3.3))
    show_slide(axes[0], slide["thumbnail"], slide["dimensions"])
    axes[0].set_title(slide["slide_id"], fontsize=9)
    for ax, scale in zip(axes[1:], sorted(scores)):
        show_slide(ax, slide["thumbnail"], slide["dimensions"])
        value = scores[scale]
        colour = colormaps["inferno"](value)
        colour[:, 3] = 0.2 + 0.6 * value  # what scores low stays visible
        draw_tiles(ax, slide["coords"][scale], slide["side"][scale], facecolor=colour, edgecolor=GREY, linewidth=0.3)
        ax.set_title(f"score at {scale}x", fontsize=9)
    shown = ScalarMappable(Normalize(0, 1), "inferno")
    figure.colorbar(shown, ax=axes.tolist(), shrink=0.7, label="normalised score")
    return finish(figure, out, {f"scores_{s}": v for s, v in scores.items()})
