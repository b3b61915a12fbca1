"""Where few tiles carry the signal."""

from __future__ import annotations

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dmsmil.analysis.witness import blind_bound
from dmsmil.figures.base import finish

LOOKS = (("#0072B2", "o", "-"), ("#56B4E9", "s", "--"), ("#D55E00", "^", "-"), ("#E69F00", "v", "--"),
         ("#444444", "D", ":"), ("#009E73", "P", ":"), ("#CC79A7", "X", "-"))  # colour, marker, line


def witness_rates(table: pd.DataFrame, out) -> Figure:
    """AUC and ACC against the witness rate with 95 % intervals, and the weight that signal tiles receive.

    table: that of `witness.witness_table`. Rates are evenly spaced, methods side by side, the first one thick. The
    weight is in units of what a mean gives (rate 0, where there is none, left out); its dotted line is `blind_bound`.
    """
    rates, names = sorted(table.rate.unique()), list(dict.fromkeys(table.name))
    place = {rate: i for i, rate in enumerate(rates)}
    counts = table.drop_duplicates("rate").set_index("rate").witnesses
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.6))
    for number, (name, (colour, marker, line)) in enumerate(zip(names, cycle(LOOKS))):
        rows = table[table.name == name].sort_values("rate")
        x = rows.rate.map(place) + 0.09 * (number - (len(names) - 1) / 2)
        look = dict(color=colour, marker=marker, linestyle=line, markersize=5,
                    linewidth=1.3 if number else 2.2, zorder=3 if number else 4)
        for ax, metric in zip(axes, ("AUC", "ACC")):
            ax.vlines(x, rows[f"{metric}_low"], rows[f"{metric}_high"], color=colour, linewidth=1, alpha=0.55)
            ax.plot(x, rows[f"{metric}_mean"], label=name if ax is axes[0] else None, **look)
        some = rows.rate > 0
        axes[2].plot(x[some], (rows.witness_weight / rows.rate)[some], **look)
    for ax, metric in zip(axes, ("AUC", "ACC")):
        ax.axhline(0.5, color="#999999", linestyle=":", linewidth=1.2)
        ax.text(1.01, 0.5, "chance", transform=ax.get_yaxis_transform(), va="center", fontsize=7, color="#777777")
        ax.set(title=f"{metric}, 95 % interval", ylim=(min(0.2, table[f"{metric}_low"].min() - 0.03), 1.03))
    shown = [rate for rate in rates if rate > 0]
    bound = [blind_bound(counts[rate], table.tiles.iloc[0]) / rate for rate in shown]
    axes[2].plot([place[rate] for rate in shown], bound, color="#0072B2", linestyle=(0, (1, 1)), linewidth=1.2)
    if shown:
        axes[2].annotate("most DMSMIL can give\nsignal tiles in random places", (place[shown[0]], bound[0]),
                         textcoords="offset points", xytext=(2, 5), fontsize=7, color="#0072B2")
    axes[2].set(title="Weight of the signal tiles", ylabel="relative to a mean's",
                ylim=(0, 1.25 * max(bound + [(table.witness_weight / table.rate)[table.rate > 0].max(), 1])
                      if shown else 1))
    labels = [f"{counts[rate]} of {table.tiles.iloc[0]}\n{rate:.0%}" for rate in rates]
    for ax in axes:
        ax.set(xticks=np.arange(len(rates)), xticklabels=labels, xlim=(-0.5, len(rates) - 0.5),
               xlabel="tiles that carry the signal")
        ax.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=min(len(names), 6))
    return finish(figure, out, table)
