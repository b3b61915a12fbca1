"""Notebook 08: what methods cost, and how the parts of DMSMIL grow with the number of tiles."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from dmsmil.cost.growth import PARTS, larger_half
from dmsmil.figures.base import BLUE, DARK, GREEN, GREY, ORANGE, PINK, dot_and_bar, finish, only_rows, plain_numbers

LOOKS = dict(zip(PARTS, ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PINK, "v"))))  # colour, marker


def cost_panels(table: pd.DataFrame, out) -> Figure:
    """Parameters, operations, time and memory of every method on log axes, the fastest epoch on top, DMSMIL in blue.

    table: as `dmsmil.cost.tables.method_costs`. Filled: multi-scale; open: single-scale. Bars: the least and the most
    of the turns.
    """
    table = table.sort_values("epoch_median_s", kind="stable", ignore_index=True)
    panels = [
        ("parameters", ["parameters"] * 3, 1),
        ("MFLOP a slide", ["flops"] * 3, 1e-6),
        ("s an epoch", [f"epoch_{n}_s" for n in ("median", "min", "max")], 1),
        ("ms a slide, inference", [f"inference_{n}_ms" for n in ("median", "min", "max")], 1),
        ("MB, peak of a step", ["memory_mb"] * 3, 1),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 0.33 * len(table) + 1.3), sharey=True)
    y = np.arange(len(table))[::-1]
    for ax, (title, columns, unit) in zip(axes, panels):
        for row, (_, cost) in zip(y, table.iterrows()):
            value, least, most = (cost[column] * unit for column in columns)
            colour = BLUE if cost.method == "dmsmil" else GREY
            dot_and_bar(ax, row, value, least, most, colour, hollow="+" not in cost.scales, width=1.4)
            ax.annotate(
                f"{value:,.0f}" if value >= 100 else f"{value:.3g}",
                (most, row),
                va="center",
                fontsize=7,
                textcoords="offset points",
                xytext=(6, 0),
                color=colour,
            )
        low, high = table[columns[1]].min() * unit, table[columns[2]].max() * unit
        wide = max(10.0, high / low)
        ax.set(
            xscale="log",
            xlim=(low / wide**0.1, high * wide**0.7),
            yticks=y,
            yticklabels=table.name,
            ylim=(-0.6, len(table) - 0.4),
        )  # on the right is room for the last number
        ax.set_title(title, fontsize=9)
        ax.xaxis.set_major_locator(LogLocator(numticks=4))
        plain_numbers(ax.xaxis)
        only_rows(ax)
    for label, name in zip(axes[0].get_yticklabels(), table.method):
        label.set_color(BLUE if name == "dmsmil" else "black")
    first = table.iloc[0]
    figure.supxlabel(
        f"{first.device}; K = {first.k} tiles a scale, {first.dim} features, {first.slides} slides an "
        "epoch; filled: all scales, open: one scale",
        fontsize=8,
        color=DARK,
    )
    return finish(figure, out, table)


def growth_curves(table: pd.DataFrame, out) -> Figure:
    """How time and peak memory of each part grow with the number of tiles, on log axes.

    table: as `dmsmil.cost.growth.growth`. Bands: the least and the most of the turns. Dashed: the power of K fitted
    over the larger half of K.
    """
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.4))
    for ax, value, power, title, unit in (
        (axes[0], "median_ms", "slope_time", "Time, forward and backward", "ms"),
        (axes[1], "memory_mb", "slope_memory", "Peak memory", "MB"),
    ):
        for part, rows in table.groupby("part", sort=False):
            colour, marker = LOOKS[part]
            p, fitted = rows[power].iloc[0], larger_half(rows.k)
            ax.plot(rows.k, rows[value], color=colour, marker=marker, markersize=4, label=f"{PARTS[part]}: K^{p:.2f}")
            if value == "median_ms":
                ax.fill_between(rows.k, rows.min_ms, rows.max_ms, color=colour, alpha=0.15, linewidth=0)
            middle = np.exp(np.log(rows[value][rows.k.isin(fitted)]).mean() - p * np.log(fitted).mean())
            ax.plot(fitted, middle * fitted**p, color="black", linewidth=0.9, linestyle=(0, (3, 2)), zorder=3)
        ax.set(xscale="log", yscale="log", title=title, xlabel="K, tiles", ylabel=unit, xticks=sorted(set(table.k)))
        ax.tick_params(axis="x", labelsize=7)
        for axis in (ax.xaxis, ax.yaxis):
            plain_numbers(axis)
        decades = np.log10(table[value].max() / table[value].min())
        ax.yaxis.set_major_locator(LogLocator(subs=(1,) if decades > 2 else (1, 2, 5)))
        ax.legend(loc="best")
    figure.supxlabel(f"{table.device.iloc[0]}; dashed: fit over the larger half of K", fontsize=8, color=DARK)
    return finish(figure, out, table)
