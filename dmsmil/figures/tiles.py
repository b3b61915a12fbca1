"""Notebook 01: which tiles of a slide were chosen, how they are linked, how many there are."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from dmsmil.figures.base import BLUE, DARK, bare, draw_tiles, finish, in_legend, same_jitter, show_slide


def chosen_tiles(slides: list[dict], out) -> Figure:
    """Chosen tiles of the first scale outlined on each slide and coloured by density, with their linked tiles inside.

    Each dict: slide_id, thumbnail, dimensions, coords {10: (N, 2), 20: (N, 2)}, side {10: px, 20: px}, density (N,),
    NaN where it is not known.
    """
    known = all(np.isfinite(slide["density"]).all() for slide in slides)
    figure, axes = plt.subplots(1, len(slides), figsize=(3.3 * len(slides) + 0.6, 3.5), squeeze=False)
    for ax, slide in zip(axes[0], slides):
        show_slide(ax, slide["thumbnail"], slide["dimensions"])
        first, *others = sorted(slide["coords"])
        for scale in others:
            draw_tiles(
                ax, slide["coords"][scale], slide["side"][scale], facecolor="none", linewidth=0.6, edgecolor="black"
            )
        outlines = draw_tiles(
            ax,
            slide["coords"][first],
            slide["side"][first],
            slide["density"] if known else None,
            facecolor="none",
            linewidth=1.2,
            **({"cmap": "plasma"} if known else {"edgecolor": BLUE}),
        )
        outlines.set_clim(0, 1)
        ax.set_title(f"{slide['slide_id']}: {len(slide['density'])} tiles", fontsize=9)
    if known:
        figure.colorbar(outlines, ax=axes[0].tolist(), shrink=0.7, label=f"density of the {first}x tile")
    corners = [s["coords"][min(s["coords"])] for s in slides]
    data = pd.concat(
        [
            pd.DataFrame({"slide_id": s["slide_id"], "x": xy[:, 0], "y": xy[:, 1], "density": s["density"]})
            for s, xy in zip(slides, corners)
        ]
    )
    return finish(figure, out, data)


def linked_pairs(pairs: list[dict], out) -> Figure:
    """Tiles of the first scale above, their linked tiles of the next scale below, and so on; the square in each is
    where the one below it lies.

    Each dict: title, tiles {10: image, 20: image}, inside {20: (x, y, share)}: where a tile lies in that of the scale
    before it, and how large it is, in units of that one's side. Data: title, scale, offset_x, offset_y, share.
    """
    scales = sorted(pairs[0]["tiles"])
    figure, axes = plt.subplots(
        len(scales), len(pairs), figsize=(1.9 * len(pairs), 1.95 * len(scales) + 0.3), squeeze=False
    )
    rows = []
    for column, pair in zip(axes.T, pairs):
        for ax, scale in zip(column, scales):
            ax.imshow(pair["tiles"][scale])
            bare(ax)
        for ax, coarse, scale in zip(column, scales, scales[1:]):
            x, y, share = pair["inside"][scale]
            side = pair["tiles"][coarse].shape[0]
            ax.add_patch(
                Rectangle(
                    (x * side, y * side), share * side, share * side, fill=False, edgecolor="black", linewidth=1.5
                )
            )
            rows.append({"title": pair["title"], "scale": scale, "offset_x": x, "offset_y": y, "share": share})
        column[0].set_title(pair["title"], fontsize=8, fontweight="normal")
    for ax, scale in zip(axes[:, 0], scales):
        ax.set_ylabel(f"{scale}x")
    return finish(figure, out, pd.DataFrame(rows, columns=["title", "scale", "offset_x", "offset_y", "share"]))


def tile_counts(summary: pd.DataFrame, k: int, out) -> Figure:
    """How many tiles each slide gave (K at most), and how dense they are. Columns: slide_id, label, tiles, density,
    NaN where it is not known."""
    known = summary.density.notna().all()
    named = summary.assign(label=summary.label.map(in_legend))
    figure, axes = plt.subplots(1, 2 if known else 1, figsize=(8 if known else 4, 2.6), squeeze=False)
    left, right = axes[0, 0], axes[0, -1]
    sns.histplot(named, x="tiles", hue="label", multiple="stack", ax=left, binrange=(0, k + 1), bins=min(k + 1, 25))
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    left.axvline(k, color=DARK, linestyle=":", linewidth=1)
    left.set(title=f"Tiles a slide (K = {k})", xlabel="tiles", ylabel="slides")
    left.get_legend().set_title("")
    if known:
        with same_jitter():
            sns.stripplot(named, x="density", y="label", hue="label", ax=right, size=4, legend=False, jitter=0.25)
        right.set(title="Mean density of the chosen tiles", xlabel="density", ylabel="", xlim=(0, 1.02))
    return finish(figure, out, summary[["slide_id", "label", "tiles", "density"]])
