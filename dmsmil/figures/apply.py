"""Notebook 10: what is said of new slides, whether they are like the study's, and what it is worth."""

from __future__ import annotations

from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from dmsmil.figures.base import (
    BLUE,
    DARK,
    FAINT,
    GREY,
    ORANGE,
    bare,
    dot_and_bar,
    finish,
    only_rows,
    plain_numbers,
    same_jitter,
    short,
)
from dmsmil.training.metrics import (
    NEEDS_TWO,
    asked_class,
    calibration,
    class_names,
    curve_classes,
    decision_curve,
    told_class,
)

FAR = 4  # times the border: beyond, distances are drawn on a logarithmic axis
NAMED = 40  # slides that are called by their names
WHAT = {"distance_features": "mean features", "distance_colours": "colours"}


def said_of_slides(table: pd.DataFrame, positive: str, out) -> Figure:
    """What the models say of each slide: the mean of their probabilities, and a bar from the lowest to the highest.
    Orange: unlike the study's slides; hollow: the study knows the slide, and only models that have not seen it were
    asked.

    Of two classes the probability of `positive`, of more that of the predicted class, whose name stands beside the
    slide's. table: `predict.Applied`; slides of which nothing is said are left out. Data: its rows, and their value.
    """
    classes = class_names(table)
    several = len(classes) > 2
    rows = table[table.models > 0]
    told = [told_class(name, classes, positive) for name in rows.pred]
    rows = rows.assign(value=[row[f"prob_{name}"] for name, (_, row) in zip(told, rows.iterrows())])
    rows = rows.sort_values(["pred"] * several + ["value"], kind="stable").reset_index(drop=True)
    few = len(rows) <= NAMED
    figure, ax = plt.subplots(figsize=(7.2, min(9.0, 1.2 + 0.24 * len(rows)) if few else 6.4))
    looks = {
        (False, False): "like the study's slides",
        (False, True): "the study knows it",
        (True, False): "unlike the study's slides",
        (True, True): "known, and unlike",
    }
    for (unlike, known), label in looks.items():
        mine = rows[((rows.unlike != "") == unlike) & ((rows.known != "") == known)]
        if len(mine):
            dot_and_bar(
                ax,
                mine.index,
                mine.value,
                mine.lowest,
                mine.highest,
                ORANGE if unlike else BLUE,
                known,
                label,
                size=5 if few else 3,
            )
    if not several:
        ax.axvline(0.5, color=DARK, linestyle=":", linewidth=1)
    names = [
        f"{short(row.slide_id, 26)}"
        + (f"  ({short(row.label, 14)})" if row.label else "")
        + (f": {short(row.pred, 14)}" if several else "")
        for row in rows.itertuples()
    ]
    ax.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.7, len(rows) - 0.3),
        xlabel="P(predicted class), which stands after the slide" if several else f"P({short(positive, 24)})",
        yticks=range(len(rows)) if few else [],
        yticklabels=names if few else [],
        ylabel="" if few else f"{len(rows)} slides",
    )
    only_rows(ax)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=8)
    return finish(figure, out, rows)


def slide_likeness(table: pd.DataFrame, own: dict[str, np.ndarray], out) -> Figure:
    """How far each slide lies from the study's slides, by its mean features and by its colours, as a multiple of the
    border. Grey: the study's own slides, each left out in turn; orange: the new ones beyond the border.

    table: `predict.Applied`; own: by features and colours, distances of the study's slides as multiples of the border.
    """
    panels = [name for name in WHAT if name in table]
    figure, axes = plt.subplots(len(panels), 1, figsize=(7.2, 1.5 * len(panels) + 0.5), sharex=True, squeeze=False)
    far, parts = max(table[name].max() for name in panels) > FAR, []
    for ax, name in zip(axes[:, 0], panels):
        with same_jitter():
            for row, (which, values) in enumerate((("new", table[name].to_numpy()), ("own", own[name[9:]]))):
                colours = [FAINT if row else ORANGE if value > 1 else BLUE for value in values]
                ax.scatter(values, row + np.random.uniform(-0.22, 0.22, len(values)), s=22, c=colours, alpha=0.85)
                parts.append(pd.DataFrame({"what": name[9:], "slides": which, "distance": values}))
        ax.axvline(1, color=DARK, linestyle=":", linewidth=1)
        ax.set(title=WHAT[name], yticks=[0, 1], yticklabels=["these slides", "the study's own"], ylim=(-0.6, 1.6))
        only_rows(ax)
        if far:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            plain_numbers(ax.xaxis)
        else:
            ax.set_xlim(left=0)
    axes[-1, 0].set_xlabel("distance, 1: the border")
    return finish(figure, out, pd.concat(parts, ignore_index=True))


def external_curves(study: pd.DataFrame, here: pd.DataFrame, positive: str, out) -> Figure:
    """Calibration and decision curve on new slides, beside those of the study out of fold. Left: said against observed
    probability. Right: the net benefit of acting on a prediction, against acting on everyone and on nobody.

    study, here: predictions tables. Of more than two classes the left has a line a class, each against the rest, and
    the right needs `positive`, the one that is set against the rest.
    """
    sides = ((study, "in the study, out of fold", GREY), (here, "these slides", BLUE))
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.5))
    parts = _calibrations(left, sides, positive)
    if asked_class(class_names(here), positive):
        parts += _decisions(right, sides, positive)
    else:
        bare(right)
        right.text(0.5, 0.5, fill(f"The decision curve {NEEDS_TWO}.", 36), ha="center", va="center", color=DARK)
    for ax in (left, right):
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return finish(figure, out, pd.concat(parts, ignore_index=True))


def _calibrations(ax, sides: tuple, positive: str) -> list[pd.DataFrame]:
    """Said against observed probability of each class that has a curve; returns the bins."""
    ax.plot([0, 1], [0, 1], color=FAINT, linestyle=":", linewidth=1)
    parts = []
    for predictions, side, colour in sides:
        classes = curve_classes(class_names(predictions), positive)
        found = {name: calibration(predictions, name) for name in classes}
        error = np.mean([error for _, error in found.values()])
        for number, (name, (bins, _)) in enumerate(found.items()):
            label = f"{side}: {'mean ' * (len(classes) > 1)}error {error:.3f}"
            ax.plot(
                bins.predicted,
                bins.observed,
                marker="osD^v"[number % 5],
                color=colour,
                label=label if not number else f"_{name}",
            )
            parts.append(bins.assign(curve="calibration", slides=side, **({"class": name} if len(classes) > 1 else {})))
    name = short(classes[0], 20) if len(classes) == 1 else "class"
    title = "Calibration" + (", a line a class" if len(classes) > 1 else "")
    ax.set(
        title=title,
        xlabel=f"said: P({name})",
        ylabel=f"observed: share of {name}",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    return parts


def _decisions(ax, sides: tuple, positive: str) -> list[pd.DataFrame]:
    """The net benefit of acting on the probability of a class; returns the curves."""
    ax.axhline(0, color=FAINT, linewidth=1, label="nobody")
    parts = []
    for predictions, side, colour in sides:
        curve = decision_curve(predictions, positive)
        ax.plot(curve.threshold, curve.benefit, color=colour, linewidth=2, label=side)
        parts.append(curve.assign(curve="decision", slides=side))
    ax.plot(curve.threshold, curve["all"], color=ORANGE, linestyle="--", linewidth=1.2, label="everyone, these slides")
    lowest = min(0.0, *(part.benefit.min() for part in parts))
    top = max(curve["all"].max(), *(part.benefit.max() for part in parts), 0.1)
    several = len(class_names(predictions)) > 2
    ax.set(
        title="Decision curve" + (f": {short(positive, 14)} against the rest" if several else ""),
        xlabel="probability from which one acts",
        ylabel="net benefit",
        xlim=(0, 1),
        ylim=(max(lowest, -0.25) - 0.02, top * 1.08),
    )
    return parts
