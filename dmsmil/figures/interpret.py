"""Notebook 07: scores over slides and classes, and whether a map is right."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from dmsmil.figures.base import (
    BLUE,
    DARK,
    FAINT,
    GREEN,
    GREY,
    ORANGE,
    SCALE_COLOURS,
    SKY,
    YELLOW,
    bare,
    dot_and_bar,
    finish,
    same_jitter,
    short,
    show_slide,
)

ORDERS = {"highest": ("highest first", ORANGE), "lowest": ("lowest first", BLUE), "random": ("at random", GREY)}


def extreme_tiles(tiles: dict[int, dict[str, list[dict]]], out) -> Figure:
    """The highest and the lowest tiles of a slide at full resolution, a pair of rows a scale.

    tiles: scale -> {'highest': [...], 'lowest': [...]}, each dict: tile (px, px, 3), place, normalised.
    """
    scales = sorted(tiles)
    columns = max(len(row) for scale in scales for row in tiles[scale].values())
    figure, axes = plt.subplots(2 * len(scales), columns, figsize=(1.55 * columns, 3.5 * len(scales)), squeeze=False)
    for ax in axes.flat:
        bare(ax)
    rows = [(scale, which) for scale in scales for which in ("highest", "lowest")]
    for line, (scale, which) in zip(axes, rows):
        colour = ORDERS[which][1]
        line[0].set_ylabel(f"{which}\n{scale}x", color=colour)
        for ax, tile in zip(line, tiles[scale][which]):
            ax.imshow(tile["tile"])
            ax.set_title(f"{tile['normalised']:.3f}", fontsize=8, fontweight="normal", pad=2)
            for spine in ax.spines.values():
                spine.set(visible=True, color=colour, linewidth=1.6)
    data = pd.DataFrame(
        [
            {"scale": scale, "which": which, "place": t["place"], "normalised": t["normalised"]}
            for scale, which in rows
            for t in tiles[scale][which]
        ]
    )
    return finish(figure, out, data)


def score_distributions(scores: pd.DataFrame, out) -> Figure:
    """Normalised scores of all tiles by class, and above them one point a slide: its mean. A panel a scale.

    scores: `explain.tile_scores`.
    """
    scales = sorted(scores.scale.unique())
    figure, axes = plt.subplots(1, len(scales), figsize=(4.1 * len(scales), 3), sharey=True, squeeze=False)
    order = sorted(scores.label.unique())
    for ax, scale in zip(axes[0], scales):
        part = scores[scores.scale == scale]
        means = part.groupby(["slide_id", "label"], as_index=False).normalised.mean()
        sns.violinplot(
            part,
            x="normalised",
            y="label",
            order=order,
            hue="label",
            hue_order=order,
            ax=ax,
            inner=None,
            cut=0,
            linewidth=0.8,
            alpha=0.35,
            legend=False,
        )
        with same_jitter():
            sns.stripplot(means, x="normalised", y="label", order=order, color="black", size=3.5, jitter=0.18, ax=ax)
        ax.set(
            title=f"{scale}x: tiles (shapes), slide means (dots)",
            xlabel="normalised score",
            ylabel="",
            xlim=(-0.02, 1.02),
        )
    data = scores.groupby(["scale", "label", "slide_id"], as_index=False).normalised.mean()
    return finish(figure, out, data)


def attention_flow(slide: dict, start: np.ndarray, end: np.ndarray, mass: np.ndarray, out) -> Figure:
    """Where each tile's attention goes, a panel a head: an arrow from a tile to the attention-weighted mean of the
    head's sampling points. Dots: the attention a tile receives from all (1 = its equal share).

    start (N, 2) and end (N, M, 2) in level-0 px; mass (N,), which sums to 1.
    """
    heads = end.shape[1]
    figure, axes = plt.subplots(1, heads, figsize=(2.6 * heads + 0.9, 2.9), squeeze=False)
    for head, ax in enumerate(axes[0]):
        show_slide(ax, slide["thumbnail"], slide["dimensions"])
        ax.images[0].set_alpha(0.55)
        ax.quiver(
            *start.T,
            *(end[:, head] - start).T,
            angles="xy",
            scale_units="xy",
            scale=1,
            width=0.008,
            color=DARK,
            headwidth=4,
            headlength=4.5,
        )
        dots = ax.scatter(
            *start.T, s=22, c=mass * len(mass), cmap="viridis", vmin=0, edgecolor="white", linewidth=0.5, zorder=3
        )
        ax.set_title(f"head {head + 1}", fontsize=9)
    figure.colorbar(dots, ax=axes[0].tolist(), shrink=0.8, label="attention received\n(1 = an equal share)")
    return finish(figure, out, {"start": start, "end": end, "mass": mass})


def removal_curves(curves: pd.DataFrame, out, way: str = "replaced") -> Figure:
    """Probability of the predicted class as tiles go, a panel a method.

    curves: of `faithfulness.measure`.
    """
    names = list(dict.fromkeys(curves.name))
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.35 * columns + 0.4, 2.2 * rows), sharex=True, sharey=True, squeeze=False
    )
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    for i, (ax, name) in enumerate(zip(axes.flat, names)):
        part = curves[curves.name == name]
        for order, (label, colour) in ORDERS.items():
            line = part[part.order == order]
            ax.plot(
                line.share,
                line[way],
                color=colour,
                linewidth=2 if order != "random" else 1.2,
                linestyle="-" if order != "random" else ":",
                label=label,
            )
        high, low = (part[part.order == o].set_index("share")[way] for o in ("highest", "lowest"))
        ax.fill_between(high.index, high, low, color=FAINT, alpha=0.18, linewidth=0)
        ax.set_title(short(name, 26), fontsize=8.5)
        if i + columns >= len(names):
            ax.set_xlabel(f"share of tiles {way}")
        if i % columns == 0:
            ax.set_ylabel("P(predicted class)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return finish(figure, out, curves)


def map_quality(summary: pd.DataFrame, out) -> Figure:
    """Each method's map, measured: area between the removal curves, rank agreement, and AUC against the truth.

    summary: `faithfulness.measure`. Filled: trained weights; hollow grey: fresh weights. Bars are 95 % intervals.
    """
    truth = [c for c in summary if c.startswith("truth_") and c.count("_") == 1]
    panels = ["area", "agreement"] + (["truth"] if truth else [])
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.1 * len(panels) + 0.6, 0.42 * len(summary) + 1.5), sharey=True
    )
    y = np.arange(len(summary))[::-1]

    def draw(ax, column: str, shift: float, colour: str, label: str, hollow: bool = False):
        known = summary[column].notna().to_numpy()
        values = summary.loc[known, [column, f"{column}_low", f"{column}_high"]].to_numpy().T
        dot_and_bar(ax, y[known] + shift, *values, colour, hollow, label, size=4.5, width=1.6)

    draw(axes[0], "replaced", 0.13, BLUE, "tiles replaced by the mean")
    draw(axes[0], "removed", -0.13, SKY, "tiles removed")
    axes[0].set(title="Does it decide?", xlabel="area between the curves")
    for column, shift, colour, label in (
        ("gradient", 0.2, GREEN, "gradient x input"),
        ("occlusion", 0.0, YELLOW, "occlusion"),
        ("random_weights", -0.2, FAINT, "fresh weights"),
    ):
        draw(axes[1], column, shift, colour, label, column == "random_weights")
    axes[1].set(title="Does it agree?", xlabel="rank correlation", xlim=(-1.05, 1.05))
    if truth:
        shifts = np.linspace(0.16, -0.16, len(truth)) if len(truth) > 1 else [0.0]
        for column, shift in zip(truth, shifts):
            scale = int(column[6:-1])
            draw(axes[2], column, shift, SCALE_COLOURS.get(scale, "black"), f"{scale}x")
            draw(axes[2], f"truth_random_{scale}x", shift, FAINT, "", True)
        axes[2].set(title="Does it find the signal?", xlabel="AUC against the truth", xlim=(-0.02, 1.02))
    for ax, zero in zip(axes, (0, 0, 0.5)):
        ax.axvline(zero, color=DARK, linewidth=0.9, linestyle=":")
        ax.set(yticks=y, yticklabels=[short(name, 26) for name in summary.name], ylim=(-0.6, len(summary) - 0.4))
        ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.55 / (0.42 * len(summary) + 0.3)))
    return finish(figure, out, summary)


def nuclei_against_score(table: pd.DataFrame, associations: pd.DataFrame, out) -> Figure:
    """Nuclear measurements against the score, by class: means in fifths of the score, and the rank correlation.

    table: `morphology.scored_nuclei`; associations: `morphology.associations`. A mean is one over patients of their own
    means, and its band draws patients. Data: the associations, and below them the means (what, label, fifth, mean).
    """
    what = {
        "area_um2": "median nuclear area, µm²",
        "density_mm2": "nuclei per mm² of tissue",
        "lymphocyte_share": "lymphocyte-like share",
    }
    figure, axes = plt.subplots(1, len(what), figsize=(3.1 * len(what), 3))
    fifth = np.minimum(np.floor(table.normalised * 5), 4) / 5 + 0.1
    keys = ["patient_id", "label", "fifth"]
    means = table.assign(fifth=fifth).groupby(keys, as_index=False)[list(what)].mean()
    palette = dict(zip(sorted(table.label.unique()), sns.color_palette("colorblind")))
    for ax, (column, title) in zip(axes, what.items()):
        if len(means):
            sns.lineplot(
                means,
                x="fifth",
                y=column,
                hue="label",
                palette=palette,
                ax=ax,
                marker="o",
                errorbar=("ci", 95),
                n_boot=200,
                seed=0,
                legend=False,
            )
        ax.set(title="", xlabel="normalised score (fifths)", ylabel=title, xlim=(0, 1))
        found = associations[associations.what == column]
        for row, height in zip(found.itertuples(), np.arange(len(found))[::-1]):
            interval = "" if np.isnan(row.low) else f" [{row.low:+.2f}, {row.high:+.2f}]"
            said = f"{row.label}: " + (f"ρ = {row.rho:+.2f}{interval}" if row.slides else "not defined")
            ax.text(
                0,
                1.03 + 0.075 * height,
                said,
                transform=ax.transAxes,
                fontsize=7.5,
                color=palette.get(row.label, "black"),
            )
    lines = means.melt(keys, list(what), var_name="what", value_name="mean")
    lines = lines.groupby(["what", "label", "fifth"], as_index=False)["mean"].mean()
    return finish(figure, out, pd.concat([associations, lines], ignore_index=True))
