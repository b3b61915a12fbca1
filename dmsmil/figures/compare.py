"""Notebook 04: methods beside each other, their ranks, and how far they are from the reference."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dmsmil.analysis.comparison import ALPHA, EQUIVALENT_WITHIN, TESTED, equivalent, p_value
from dmsmil.figures.base import (
    BLUE,
    DARK,
    FAINT,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    YELLOW,
    bare,
    dot_and_bar,
    finish,
    only_rows,
    short,
    verdict_colour,
)
from dmsmil.training.baselines import CHEAP, COLOUR, MAJORITY, SITE
from dmsmil.training.metrics import METRICS, called
from dmsmil.training.results import GATHERED, HOLLOW, is_pooling, unlearned

LINES = {"mean pooling": (GREEN, "-"), COLOUR: (PINK, "--"), SITE: (YELLOW, "-."), MAJORITY: (DARK, ":")}
# what a method must beat: colour, line


def method_comparison(parts: dict[str, pd.DataFrame], out, highlight: tuple[str, ...] = ("dmsmil", "damil")) -> Figure:
    """ACC, F1 and AUC of every method with 95 % intervals, the highest ACC on top, beside lines for the cheap rules.

    parts: title -> rows of a result table, as `training.results.part` gives them, a row of panels each; {"10x": ...,
    "20x": ...} draws Fig. 4 and 5. A point is the mean over folds and seeds; `highlight` (registry keys) is orange,
    pooling grey, what collapsed or learned nothing hollow. The lines are mean pooling and the rules that know nothing
    of tissue.
    Data: the rows drawn, with columns part and label.
    """
    drawn = pd.concat([_labelled(rows).assign(part=title) for title, rows in parts.items()], ignore_index=True)
    line = drawn.name.isin(CHEAP) | (drawn.method == "meanpool")
    heights = [0.24 * ((drawn.part == title) & ~line).sum() + 0.25 for title in parts]
    figure, axes = plt.subplots(
        len(parts),
        3,
        figsize=(8.8, sum(heights) + 0.1 * len(parts) + 1.1),
        sharex="col",
        sharey="row",
        squeeze=False,
        height_ratios=heights,
    )
    for panels, title in zip(axes, parts):
        rows = drawn[(drawn.part == title) & ~line].sort_values("ACC_mean", kind="stable").reset_index(drop=True)
        hollow, worth = unlearned(rows), drawn[(drawn.part == title) & line]
        for ax, metric in zip(panels, METRICS):
            for row in worth.itertuples():
                colour, style = LINES[row.label]
                ax.axvline(
                    getattr(row, f"{metric}_mean"),
                    color=colour,
                    linestyle=style,
                    linewidth=1.3,
                    zorder=1,
                    label=row.label,
                )
            for y, row in rows.iterrows():
                colour = ORANGE if row.method in highlight else GREY if is_pooling(row.method) else BLUE
                dot_and_bar(
                    ax,
                    y,
                    row[f"{metric}_mean"],
                    row[f"{metric}_low"],
                    row[f"{metric}_high"],
                    colour,
                    hollow=hollow[y],
                    size=5.5,
                    width=2,
                    alpha=0.45 if hollow[y] else 0.9,
                )
            only_rows(ax)
        panels[0].set(yticks=range(len(rows)), yticklabels=rows.label, ylim=(-0.6, len(rows) - 0.4))
        for tick, name in zip(panels[0].get_yticklabels(), rows.method):
            tick.set(
                fontweight="bold" if name in highlight else "normal", color=ORANGE if name in highlight else "black"
            )
        panels[0].set_ylabel(title, fontsize=10, fontweight="bold")
    for top, bottom, metric in zip(axes[0], axes[-1], METRICS):
        top.set_title(called(metric, drawn))
        bottom.set_xlim(right=min(bottom.get_xlim()[1], 1.02))
    handles = {label: line for ax in axes[:, 0] for line, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=4, title=_footnote(drawn[~line]), title_fontsize=8
    )
    return finish(figure, out, drawn)


def _labelled(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a column label: the name without scale and options, * where there are options, † where attention has
    gathered."""
    short = [
        name.partition(",")[0].removesuffix(f" {scales}") + "*" * ("," in name)
        for name, scales in zip(rows.name, rows.scales)
    ]
    again = pd.Series(short).duplicated(keep=False)
    label = [name if twice else text for name, text, twice in zip(rows.name, short, again)]
    label = ["mean pooling" if m == "meanpool" else text for m, text in zip(rows.method, label)]
    few = rows.get(GATHERED, pd.Series(0, rows.index)) > 0
    return rows.assign(label=[text + "†" * gathered for text, gathered in zip(label, few)])


def _footnote(rows: pd.DataFrame) -> str:
    said = {
        "points: mean over folds and seeds; bars: 95 % interval, patients drawn again": True,
        "* options or settings of its own, see the table": rows.label.str.contains("*", regex=False).any(),
        "† attention gathered on few tiles": rows.label.str.endswith("†").any(),
        HOLLOW: unlearned(rows).any(),
    }
    return "\n".join(text for text, true in said.items() if true)


def paired_differences(table: pd.DataFrame, out, reference: str = "DMSMIL") -> Figure:
    """How far each method is from the reference: difference, 95 % interval, and p after Holm's correction.

    table: as `dmsmil.analysis.comparison.compare`; a difference is reference minus method. Filled and coloured: told
    apart at .05 after correction (blue for the reference, orange against it), or shown to be equivalent (green). The
    band is what counts as equivalent.
    """
    auc = called("AUC", table)
    room = " " if auc == "AUC" else "\n"  # a longer name needs a line of its own
    panels = {"AUC": f"{auc},{room}mean over folds", "ACC": "ACC, mean over folds", "DeLong": _delong_title(table)}
    figure, axes = plt.subplots(1, len(panels), figsize=(9.4, 0.36 * len(table) + 1.25), sharex=True, sharey=True)
    y = np.arange(len(table))[::-1]
    for ax, (metric, title) in zip(axes, panels.items()):
        ax.axvline(0, color=DARK, linewidth=1)
        if metric in TESTED:
            ax.axvspan(-EQUIVALENT_WITHIN, EQUIVALENT_WITHIN, color=FAINT, alpha=0.15, linewidth=0)
        for place, (_, row) in zip(y, table.iterrows()):
            difference, low, high, p = (float(row[f"{metric}_{c}"]) for c in ("difference", "low", "high", "p_holm"))
            sure, same = p < ALPHA, equivalent(row, metric)
            colour, said = verdict_colour(difference, sure, same), _said(p)
            if same and not sure:
                said = "equivalent"
            dot_and_bar(ax, place, difference, low, high, colour, hollow=not (sure or same), size=5.5)
            ax.text(1.02, place, said, transform=ax.get_yaxis_transform(), va="center", fontsize=7.5, color=colour)
        ax.text(
            1.02,
            len(table) - 0.35,
            "p (Holm)",
            transform=ax.get_yaxis_transform(),
            va="center",
            fontsize=7.5,
            color=DARK,
        )
        ax.set(
            title=title,
            yticks=y,
            yticklabels=table.name,
            ylim=(-0.6, len(table) - 0.1),
            xlabel=f"{reference} minus method",
        )
        only_rows(ax)
        ax.spines["left"].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    shown = table[[f"{metric}_{c}" for metric in panels for c in ("difference", "low", "high")]].to_numpy(float)
    low, high = np.nanmin(np.append(shown, -0.02)), np.nanmax(np.append(shown, 0.02))
    axes[0].set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    return finish(figure, out, table)


def _delong_title(table: pd.DataFrame) -> str:
    """What DeLong's test compares: the pooled AUC, of more than two classes that of one against the rest, if one was
    named."""
    name = table.DeLong_class.iloc[0] if "DeLong_class" in table and len(table) else ""
    if name:
        return f"AUC of {short(name, 14)} against\nthe rest, pooled (DeLong)"
    return "AUC, pooled (DeLong)" + ("\nneeds two classes" if called("AUC", table) != "AUC" else "")


def _said(p: float) -> str:
    return "not tested" if np.isnan(p) else p_value(p).removeprefix("p ").removeprefix("= ")


def critical_difference(ranks: pd.Series, cd: float, out) -> Figure:
    """Critical-difference diagram: methods on the axis of average ranks (1 = best, left), bars join what is not told
    apart.

    ranks: method -> average rank; cd: Nemenyi's critical difference (dmsmil.analysis.ranks.friedman_nemenyi).
    Data: name, rank, cd, and the numbers of the bars that a method lies under.
    """
    ranks = ranks.sort_values(kind="stable")
    values, names, k = ranks.to_numpy(float), [str(n) for n in ranks.index], len(ranks)
    groups, low, high = _cliques(values, cd), 1, max(k, 2)
    left = -(-k // 2)
    first = 0.5 + 0.24 * len(groups)  # below the axis: bars, then names
    depth = first + 0.42 * (left - 1)
    figure, ax = plt.subplots(figsize=(6.8, 0.62 * (depth + 1.9)))
    ax.hlines(0, low, high, color=DARK, linewidth=1.2)
    for rank in range(low, high + 1):
        ax.vlines(rank, -0.14, 0, color=DARK, linewidth=1.2)
        if high <= 12 or rank % 5 == 0 or rank == 1:
            ax.text(rank, -0.22, str(rank), ha="center", va="bottom", fontsize=8)
    ax.text(
        (low + high) / 2, -0.56, "average rank over folds (1 = best)", ha="center", va="bottom", fontsize=8, color=DARK
    )
    reach = min(cd, high - low)  # a CD longer than the axis is drawn open-ended
    ax.hlines(-1.15, low, low + reach, color=DARK, linewidth=1.2)
    ax.vlines([low] if reach < cd else [low, low + cd], -1.23, -1.07, color=DARK, linewidth=1.2)
    ax.text(
        low + reach / 2,
        -1.26,
        f"CD = {cd:.2f}" + (", longer than the axis" if reach < cd else ""),
        ha="center",
        va="bottom",
        fontsize=8,
    )
    margin = 0.04 * (high - low)
    for i, (rank, name) in enumerate(zip(values, names)):
        side = i < left
        y = first + 0.42 * (i if side else k - 1 - i)
        x = low - margin if side else high + margin
        ax.plot([rank, rank, x], [0, y, y], color=FAINT, linewidth=0.8, solid_joinstyle="miter")
        ax.plot(rank, 0, "o", color=BLUE, markersize=4, zorder=3)
        label = f"{short(name, 30)}  {rank:.2f}" if side else f"{rank:.2f}  {short(name, 30)}"
        ax.text(x, y, f" {label} ", ha="right" if side else "left", va="center", fontsize=8.5)
    for i, (start, end) in enumerate(groups):
        pad = 0.012 * (high - low)
        ax.hlines(0.28 + 0.24 * i, values[start] - pad, values[end] + pad, color=ORANGE, linewidth=3.2, zorder=2)
    ax.set(xlim=(low - 0.42 * (high - low), high + 0.42 * (high - low)), ylim=(depth + 0.3, -1.65))
    bare(ax)
    under = [" ".join(str(g + 1) for g, (start, end) in enumerate(groups) if start <= i <= end) for i in range(k)]
    return finish(figure, out, pd.DataFrame({"name": names, "rank": values, "cd": cd, "bars": under}))


def _cliques(ranks: np.ndarray, cd: float) -> list[tuple[int, int]]:
    """First and last of each largest group of ascending ranks that spans less than cd, groups of one left out."""
    ends = [int(np.searchsorted(ranks, rank + cd)) - 1 for rank in ranks]
    return [(i, end) for i, end in enumerate(ends) if end > i and (i == 0 or end > ends[i - 1])]
