"""Notebook 06: λ, the weight of the cross-entropy (Fig. 3)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dmsmil.analysis.sweep import ALONE
from dmsmil.figures.base import BLUE, GREY, ORANGE, finish, plain_numbers
from dmsmil.training.metrics import METRICS, called
from dmsmil.training.results import HOLLOW, unlearned


def lam_curves(table: pd.DataFrame, out) -> Figure:
    """ACC, F1 and AUC against λ (Fig. 3); under them L_ot, L_ce and the feature spread at the end.

    table: `sweep.lam_table`. Cross-entropy alone stands to the right of a gap. Thin bars: 95 % interval (patients drawn
    again); thick: ± one standard deviation over runs. Hollow: a run collapsed or learned nothing.
    """
    figure, axes = plt.subplots(2, 3, figsize=(8.8, 4.8), sharex=True)
    swept = table.lam != ALONE
    last = np.log10(table.lam[swept]).max()
    x = np.log10(table.lam).where(swept, last + 1).to_numpy()
    hollow = unlearned(table)
    lowest = 1.0
    for ax, metric in zip(axes[0], METRICS):
        mean, std = table[f"{metric}_mean"], table[f"{metric}_std"]
        ax.vlines(x, table[f"{metric}_low"], table[f"{metric}_high"], color=BLUE, linewidth=0.9)
        ax.vlines(x, (mean - std).clip(0), (mean + std).clip(upper=1), color=BLUE, linewidth=3.6, alpha=0.35)
        _points(ax, x, mean, swept, hollow, BLUE)
        ax.set_title(called(metric, table))
        lowest = min(lowest, table[f"{metric}_low"].min(), (mean - std).min())
    for ax in axes[0]:
        ax.set_ylim(max(0, np.floor(lowest * 10) / 10), 1.03)
    titles = {"L_ot": "L_ot (optimal transport)", "L_ce": "L_ce (cross-entropy)", "spread": "feature spread"}
    for ax, (term, title) in zip(axes[1], titles.items()):
        _points(ax, x, table[term], swept, hollow, ORANGE)
        if table[term].min() > 0 and table[term].max() > 20 * table[term].min():
            ax.set_yscale("log")
            plain_numbers(ax.yaxis)
        else:
            ax.set_ylim(bottom=0)
        ax.set(title=title, xlabel="λ, the weight of L_ce")
    for ax in axes.flat:
        ax.axvline(0, color=GREY, linestyle=":", linewidth=1, zorder=0)
        ax.axvline(last + 0.5, color="#eeeeee", linewidth=7, zorder=0)
        ax.set_xticks(x, ["L_ce\nalone" if lam == ALONE else f"{lam:g}" for lam in table.lam])
        ax.set_xlim(min(x) - 0.35, max(x) + 0.4)
    for ax, place, said, where in (
        (axes[0, 0], (0.06, 0.03), "the paper's λ", "left"),
        (axes[1, 0], (x[-1], 0.5), "not\ncomputed", "center"),
    ):
        ax.text(*place, said, transform=ax.get_xaxis_transform(), ha=where, fontsize=7, color=GREY)
    if hollow.any():
        figure.supxlabel(HOLLOW, fontsize=8)
    return finish(figure, out, table)


def _points(ax, x: np.ndarray, values: pd.Series, joined: pd.Series, hollow: pd.Series, colour: str) -> None:
    """A line through the points that are `joined`, and all points, some of them hollow."""
    ax.plot(x[joined], values[joined], color=colour, linewidth=1.4)
    ax.scatter(x, values, s=30, color=np.where(hollow, "white", colour), edgecolor=colour, linewidth=1.3, zorder=3)
