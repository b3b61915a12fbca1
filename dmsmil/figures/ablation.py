"""The ablation: what each reading is worth, where L_ot collapses the features, and λ."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from dmsmil.analysis.ablation import OPEN
from dmsmil.analysis.comparison import ALPHA
from dmsmil.analysis.sweep import ALONE, SHRUNK, STUCK
from dmsmil.figures.base import finish

FLOOR = 1e-6  # a log axis has no 0: what is below is drawn here
LOOKS = [("#0072B2", "o"), ("#D55E00", "s"), ("#CC79A7", "D"), ("#009E73", "^"), ("#E69F00", "v"), ("#555555", "P")]


def variant_differences(table: pd.DataFrame, out) -> Figure:
    """How far DMSMIL is from itself under other readings of the paper: differences in AUC and ACC, 95 % intervals.

    table: as `ablation.variant_table`, grouped by the open point; a difference is default minus reading. Coloured:
    beyond noise after Holm's correction (blue for the default, orange against it). A collapsed reading has no point,
    and says so.
    """
    rows, y, heads = [], 0.0, []
    for number, part in table.groupby("ambiguity", sort=True):
        heads.append((y, f"{number} · {OPEN[number]}"))
        for _, row in part.iterrows():
            y -= 1
            rows.append((y, row))
        y -= 1.35
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.235 * -y + 0.9), sharey=True, sharex=True)
    for ax, metric in zip(axes, ("AUC", "ACC")):
        ax.axvline(0, color="#444444", linewidth=1)
        for place, row in rows:
            if np.isnan(row[f"{metric}_difference"]):
                said = f"collapsed in {row.collapsed} of {row.runs} runs" if row.collapsed else "not compared"
                ax.text(0.5, place, f"{said}: no result", transform=ax.get_yaxis_transform(), fontsize=7.5,
                        ha="center", va="center", style="italic", color="#777777",
                        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
                continue
            value, sure = row[f"{metric}_difference"], row[f"{metric}_p_holm"] < ALPHA
            colour = "#777777" if not sure else "#0072B2" if value > 0 else "#D55E00"
            ax.plot([row[f"{metric}_low"], row[f"{metric}_high"]], [place] * 2, color=colour, linewidth=1.8)
            ax.plot(value, place, "o", markersize=5, color=colour, markerfacecolor=colour if sure else "white")
        ax.set(title=metric, xlabel="default minus reading (right: default better)", ylim=(y + 0.6, 0.7))
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes[0].set_yticks([place for place, _ in rows], [row.reading for _, row in rows])
    for place, head in heads:
        axes[0].annotate(head, (0, place), xycoords=axes[0].get_yaxis_transform(), xytext=(-3, 0), ha="right",
                         va="center", textcoords="offset points", fontsize=8, fontweight="bold", color="#444444")
    reach = np.abs(table[[f"{m}_{c}" for m in ("AUC", "ACC") for c in ("difference", "low", "high")]].to_numpy(float))
    axes[0].set_xlim(*np.array([-1.06, 1.06]) * min(1, np.nanmax(np.append(reach, 0.02))))
    return finish(figure, out, table)


def collapse_curves(table: pd.DataFrame, out) -> Figure:
    """Feature spread and L_ce at the end against λ, a line a placement of L_ot; hollow where the run collapsed.

    table: `sweep.collapse_table`. Dotted: a run has collapsed when its spread is below 1 % of its start while its L_ce
    is above 90 % of the entropy of the class shares. What is below FLOOR is drawn there.
    """
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.3))
    for (name, part), (colour, marker) in zip(table.groupby("placement", sort=False), LOOKS):
        part = part.sort_values("lam")
        for ax, column in zip(axes, ("spread_relative", "ce_relative")):
            value = part[column].clip(lower=FLOOR)
            ax.plot(part.lam, value, color=colour, linewidth=1.4, label=name, marker=marker, markersize=5)
            gone = part.collapsed.to_numpy(bool)
            ax.plot(part.lam[gone], value[gone], marker, color=colour, markersize=8, markerfacecolor="white",
                    markeredgewidth=1.6, zorder=3)
    axes[0].set(title="Feature spread at the end", ylabel="spread / spread at the start", yscale="log")
    axes[1].set(title="L_ce at the end", ylabel="L_ce / entropy of the class shares", yscale="log")
    axes[0].set_ylim(bottom=min(SHRUNK / 2, table.spread_relative.clip(lower=FLOOR).min() / 2))
    for ax, level in zip(axes, (SHRUNK, STUCK)):
        ax.axhline(level, color="#444444", linestyle=":", linewidth=1)
        ax.set(xscale="log", xlabel="λ, the weight of L_ce")
        ax.xaxis.set_major_locator(FixedLocator(sorted(table.lam.unique())))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter("{x:g}")
    axes[0].plot([], [], "o", color="#444444", markerfacecolor="white", markersize=8, markeredgewidth=1.6,
                 label="collapsed")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", title="L_ot acts on")
    return finish(figure, out, table)


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
