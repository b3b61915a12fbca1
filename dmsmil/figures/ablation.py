"""Notebook 05: what each reading is worth, where L_ot collapses the features, and where few tiles carry the signal."""

from __future__ import annotations

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator

from dmsmil.analysis.comparison import ALPHA, equivalent
from dmsmil.analysis.witness import blind_bound
from dmsmil.figures.base import (
    BLUE,
    DARK,
    FAINT,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    YELLOW,
    dot_and_bar,
    finish,
    in_legend,
    only_rows,
    plain_numbers,
    verdict_colour,
)
from dmsmil.training.health import GATHERED, SHRUNK, STUCK
from dmsmil.training.metrics import called
from dmsmil.training.results import COLLAPSED, EFFECTIVE, marked

FLOOR = 1e-6  # a log axis has no 0: what is below is drawn here
LOOKS = [(ORANGE, "o"), (YELLOW, "s"), (PINK, "D"), (BLUE, "^"), (SKY, "v"), (GREEN, "P"), (DARK, "X")]
# colour and marker of `sweep.PLACEMENTS`: warm where L_ot is as printed, cold where it is free of the features' scale
RATES = [
    (BLUE, "o", "-"),
    (SKY, "s", "--"),
    (ORANGE, "^", "-"),
    (YELLOW, "v", "--"),
    (DARK, "D", ":"),
    (GREEN, "P", ":"),
    (PINK, "X", "-"),
]  # colour, marker, line


def variant_differences(table: pd.DataFrame, out) -> Figure:
    """How far DMSMIL is from itself under other readings of the paper, in AUC and ACC with 95 % intervals; and
    the share of tiles that count for its attention (●), and of sampling points near the end of their reach (|).

    table: as `variants.variant_table`, grouped by the point; a difference is default minus reading. Coloured:
    beyond noise after Holm's correction (blue for the default, orange against it), or equivalent (green). A collapsed
    reading has no point, and says so, as does one that learned nothing or gathered its attention.
    """
    rows, y, heads = [], 0.0, []
    for point, part in table.groupby("point", sort=False):
        heads.append((y, point))
        for _, row in part.iterrows():
            y -= 1
            rows.append((y, row))
        y -= 1.35
    size = (9, 0.235 * -y + 0.9)
    figure, (*axes, health) = plt.subplots(1, 3, figsize=size, sharey=True, width_ratios=[3, 3, 1.4])
    axes[1].sharex(axes[0])
    for ax, metric in zip(axes, ("AUC", "ACC")):
        ax.axvline(0, color=DARK, linewidth=1)
        for place, row in rows:
            value, low, high = (row[f"{metric}_{part}"] for part in ("difference", "low", "high"))
            if np.isnan(value):
                said = f"collapsed in {row.collapsed} of {row.runs} runs" if row.collapsed else "not compared"
                ax.text(
                    0.5,
                    place,
                    f"{said}: no result",
                    transform=ax.get_yaxis_transform(),
                    fontsize=7.5,
                    ha="center",
                    va="center",
                    style="italic",
                    color=GREY,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                )
                continue
            sure, same = row[f"{metric}_p_holm"] < ALPHA, equivalent(row, metric)
            dot_and_bar(ax, place, value, low, high, verdict_colour(value, sure, same), hollow=not (sure or same))
        ax.set(
            title=called(metric, table), xlabel="default minus reading\n(right: default better)", ylim=(y + 0.6, 0.7)
        )
        only_rows(ax)
        ax.spines["left"].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    for column, marker in ((EFFECTIVE, "o"), ("beyond_reach", "|")):
        values = [row.get(column, np.nan) for _, row in rows]
        health.plot(values, [place for place, _ in rows], marker, color=DARK, markersize=5)
    health.axvline(GATHERED, color=DARK, linestyle=":", linewidth=1)
    health.set(title="attention", xlabel="share of tiles (●),\nof points (|)", xlim=(-0.04, 1.04))
    only_rows(health)
    health.spines["left"].set_visible(False)
    axes[0].set_yticks([place for place, _ in rows], [_reading(row) for _, row in rows])
    for place, head in heads:
        axes[0].annotate(
            head,
            (0, place),
            xycoords=axes[0].get_yaxis_transform(),
            xytext=(-3, 0),
            ha="right",
            va="center",
            textcoords="offset points",
            fontsize=8,
            fontweight="bold",
            color=DARK,
        )
    reach = np.abs(table[[f"{m}_{c}" for m in ("AUC", "ACC") for c in ("difference", "low", "high")]].to_numpy(float))
    axes[0].set_xlim(*np.array([-1.06, 1.06]) * min(1, np.nanmax(np.append(reach, 0.02))))
    return finish(figure, out, table)


def _reading(row: pd.Series) -> str:
    """A reading and its marks; a collapse stands where its point would be."""
    return ", ".join([row.reading, *(mark for mark in marked(row) if mark != COLLAPSED)])


def collapse_curves(table: pd.DataFrame, out) -> Figure:
    """Against λ, a line a placement of L_ot: how hard both terms pull at the projection before the first step (L_ot
    drawn through, λ L_ce dashed), and feature spread, L_ce and effective tiles at the end; hollow where the run
    collapsed or learned nothing.

    table: `sweep.collapse_table`. Dotted: 1 % of the spread's start and 90 % of the entropy of the class shares, beyond
    which a run has collapsed (both) or learned nothing (L_ce); the share of tiles below which attention has gathered.
    What is below FLOOR is drawn there; an L_ot without a gradient has no line in the first panel.
    """
    figure, axes = plt.subplots(2, 2, figsize=(9, 5.8), sharex=True)
    pull = table.gradient_ot.where(table.gradient_ot > 0)
    shown = table.assign(pull=pull, spread=table.spread_relative.clip(lower=FLOOR), ce=table.ce_relative.clip(FLOOR))
    panels = {
        "pull": ("Gradients before the first step", "norm at the projection: L_ot (—), λ L_ce (- -)", None),
        "spread": ("Feature spread at the end", "spread / spread at the start", SHRUNK),
        "ce": ("L_ce at the end", "L_ce / entropy of the class shares", STUCK),
        "effective": ("Effective tiles at the end", "share of a slide's tiles", GATHERED),
    }
    for ax, (column, (title, ylabel, level)) in zip(axes.flat, panels.items()):
        for (name, part), (colour, marker) in zip(shown.groupby("placement", sort=False), LOOKS):
            part = part.sort_values("lam")
            ax.plot(part.lam, part[column], color=colour, linewidth=1.4, label=name, marker=marker, markersize=5)
            if column == "pull":
                ax.plot(part.lam, part.gradient_ce, color=colour, linewidth=1, linestyle="--")
            gone = part[part.collapsed | part.learned_nothing]
            ax.plot(
                gone.lam,
                gone[column],
                marker,
                color=colour,
                markersize=8,
                markerfacecolor="white",
                markeredgewidth=1.6,
                zorder=3,
            )
        if level is not None:
            ax.axhline(level, color=DARK, linestyle=":", linewidth=1)
        ax.set(title=title, ylabel=ylabel, xscale="log")
        if column == "effective":
            ax.set_ylim(0, 1.04)
        else:
            ax.set_yscale("log")
            plain_numbers(ax.yaxis)
        ax.xaxis.set_major_locator(FixedLocator(sorted(table.lam.unique())))
        plain_numbers(ax.xaxis)
    axes[0, 1].set_ylim(bottom=min(SHRUNK / 2, shown.spread.min() / 2))
    for ax in axes[1]:
        ax.set_xlabel("λ, the weight of L_ce")
    handles, labels = axes[0, 1].get_legend_handles_labels()
    hollow = Line2D(
        [], [], marker="o", linestyle="", color=DARK, markerfacecolor="white", markersize=8, markeredgewidth=1.6
    )
    figure.legend(
        [*handles, hollow], [*labels, "collapsed or\nlearned nothing"], loc="outside right center", title="L_ot acts on"
    )
    return finish(figure, out, table)


def witness_rates(table: pd.DataFrame, out) -> Figure:
    """AUC and ACC against the witness rate with 95 % intervals, and the weight that signal tiles receive.

    table: that of `witness.witness_table`. Rates are evenly spaced, methods side by side, the first one thick. The
    weight is in units of what a mean gives (rate 0, where there is none, left out); its dotted line is `blind_bound`.
    """
    rates, names = sorted(table.rate.unique()), list(dict.fromkeys(table.name))
    place = {rate: i for i, rate in enumerate(rates)}
    counts = table.drop_duplicates("rate").set_index("rate").witnesses
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.6))
    for number, (name, (colour, marker, line)) in enumerate(zip(names, cycle(RATES))):
        rows = table[table.name == name].sort_values("rate")
        x = rows.rate.map(place) + 0.09 * (number - (len(names) - 1) / 2)
        look = dict(
            color=colour,
            marker=marker,
            linestyle=line,
            markersize=5,
            linewidth=1.3 if number else 2.2,
            zorder=3 if number else 4,
        )
        for ax, metric in zip(axes, ("AUC", "ACC")):
            ax.vlines(x, rows[f"{metric}_low"], rows[f"{metric}_high"], color=colour, linewidth=1, alpha=0.55)
            ax.plot(x, rows[f"{metric}_mean"], label=in_legend(name) if ax is axes[0] else None, **look)
        some = rows.rate > 0
        axes[2].plot(x[some], (rows.witness_weight / rows.rate)[some], **look)
    for ax, metric in zip(axes, ("AUC", "ACC")):
        ax.axhline(0.5, color=FAINT, linestyle=":", linewidth=1.2)
        ax.text(1.01, 0.5, "chance", transform=ax.get_yaxis_transform(), va="center", fontsize=7, color=GREY)
        ax.set(
            title=f"{called(metric, table)}, 95 % interval", ylim=(min(0.2, table[f"{metric}_low"].min() - 0.03), 1.03)
        )
    shown = [rate for rate in rates if rate > 0]
    bound = [blind_bound(counts[rate], table.tiles.iloc[0]) / rate for rate in shown]
    axes[2].plot([place[rate] for rate in shown], bound, color=BLUE, linestyle=(0, (1, 1)), linewidth=1.2)
    if shown:
        axes[2].annotate(
            "most DMSMIL can give\nsignal tiles in random places",
            (place[shown[0]], bound[0]),
            textcoords="offset points",
            xytext=(2, 5),
            fontsize=7,
            color=BLUE,
        )
    axes[2].set(
        title="Weight of the signal tiles",
        ylabel="relative to a mean's",
        ylim=(0, 1.25 * max(bound + [(table.witness_weight / table.rate)[table.rate > 0].max(), 1]) if shown else 1),
    )
    labels = [f"{counts[rate]} of {table.tiles.iloc[0]}\n{rate:.0%}" for rate in rates]
    for ax in axes:
        ax.set(
            xticks=np.arange(len(rates)),
            xticklabels=labels,
            xlim=(-0.5, len(rates) - 0.5),
            xlabel="tiles that carry the signal",
        )
        ax.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=min(len(names), 6))
    return finish(figure, out, table)
