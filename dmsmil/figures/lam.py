"""Notebook 06: λ, the weight of the cross-entropy (Fig. 3)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dmsmil.analysis.sweep import ALONE
from dmsmil.figures.base import finish


def lam_curves(table: pd.DataFrame, out) -> Figure:
    """ACC, F1 and AUC against λ (Fig. 3); under them L_ot, L_ce and the feature spread of the last epoch.

    table: `sweep.lam_table`. Cross-entropy alone stands to the right of a gap. Thin bars: 95 % interval (patients drawn
    again); thick: ± one standard deviation over runs. Hollow: a run collapsed, so it is no result.
    """
    figure, axes = plt.subplots(2, 3, figsize=(8.8, 4.8), sharex=True)
    swept = np.log10(table.lam[table.lam != ALONE])
    x = np.log10(table.lam).where(table.lam != ALONE, swept.max() + 1).to_numpy()
    ends = [table.lam != ALONE, table.lam == ALONE]
    fill = np.where(table.collapsed > 0, "white", "#0072B2")
    for ax, metric in zip(axes[0], ("ACC", "F1", "AUC")):
        mean, std = table[f"{metric}_mean"], table[f"{metric}_std"]
        ax.vlines(x, table[f"{metric}_low"], table[f"{metric}_high"], color="#0072B2", linewidth=0.9)
        ax.vlines(x, mean - std, mean + std, color="#0072B2", linewidth=3.6, alpha=0.35)
        ax.plot(x[ends[0]], mean[ends[0]], color="#0072B2", linewidth=1.4)
        ax.scatter(x, mean, s=30, color=fill, edgecolor="#0072B2", linewidth=1.3, zorder=3)
        ax.set_title(metric)
    low = min((table[f"{m}_{part}"] if part == "low" else table[f"{m}_mean"] - table[f"{m}_std"]).min()
              for m in ("ACC", "F1", "AUC") for part in ("low", "std"))
    for ax in axes[0]:
        ax.set_ylim(max(0, np.floor(low * 10) / 10), 1.03)
    titles = {"L_ot": "L_ot (optimal transport)", "L_ce": "L_ce (cross-entropy)", "spread": "feature spread"}
    for ax, (term, title) in zip(axes[1], titles.items()):
        ax.plot(x[ends[0]], table[term][ends[0]], color="#D55E00", linewidth=1.4)
        ax.scatter(x, table[term], s=30, color=np.where(fill == "white", "white", "#D55E00"), edgecolor="#D55E00",
                   linewidth=1.3, zorder=3)
        if table[term].min() > 0 and table[term].max() > 20 * table[term].min():
            ax.set_yscale("log")
        else:
            ax.set_ylim(bottom=0)
        ax.set(title=title, xlabel="λ, the weight of L_ce")
    for ax in axes.flat:
        ax.axvline(0, color="#777777", linestyle=":", linewidth=1, zorder=0)
        ax.axvline(swept.max() + 0.5, color="#eeeeee", linewidth=7, zorder=0)
        ax.set_xticks(x, ["L_ce\nalone" if lam == ALONE else f"{lam:g}" for lam in table.lam])
        ax.set_xlim(min(x) - 0.35, max(x) + 0.4)
    for ax, place, said, where in ((axes[0, 0], (0.06, 0.03), "the paper's λ", "left"),
                                   (axes[1, 0], (x[-1], 0.5), "not\ncomputed", "center")):
        ax.text(*place, said, transform=ax.get_xaxis_transform(), ha=where, fontsize=7, color="#777777")
    return finish(figure, out, table)
