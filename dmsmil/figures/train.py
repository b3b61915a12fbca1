"""Notebook 03: how training went, and how good the tested slides' predictions are."""

from __future__ import annotations

from functools import partial
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from sklearn.metrics import auc

from dmsmil.figures.base import (
    BLUE,
    DARK,
    FAINT,
    GREY,
    ORANGE,
    SCALE_COLOURS,
    dot_and_bar,
    finish,
    only_rows,
    plain_numbers,
    short,
)
from dmsmil.training.health import GATHERED
from dmsmil.training.metrics import (
    METRICS,
    calibration,
    called,
    class_names,
    confusion,
    curve_classes,
    positive_class,
    predicted_times,
    roc_points,
    score_by_fold,
)

MANY = 10  # folds that a legend names one by one
TERMS = {"L_ce": "L_ce (cross-entropy)", "L_ot": "L_ot (optimal transport)", "spread": "feature spread"}
GRADIENTS = {"gradient_ot": (ORANGE, "-", "of L_ot"), "gradient_ce": (BLUE, "-", "of λ L_ce")}  # colour, line, label


def result_intervals(table: pd.DataFrame, out) -> Figure:
    """Each row's metrics with their 95 % intervals. Columns: name, and <metric>_mean, _low, _high."""
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 0.42 * len(table) + 1.1), sharey=True)
    y = np.arange(len(table))[::-1]
    for ax, metric in zip(axes, METRICS):
        dot_and_bar(ax, y, table[f"{metric}_mean"], table[f"{metric}_low"], table[f"{metric}_high"], BLUE, width=2)
        ax.set(
            title=called(metric, table), xlim=(0, 1.02), yticks=y, yticklabels=table.name, ylim=(-0.6, len(table) - 0.4)
        )
        only_rows(ax)
    return finish(figure, out, table)


def learning_curves(history: pd.DataFrame, out, prior_entropy: float | None = None) -> Figure:
    """How training went, by epoch: one thin line a run, the mean thick.

    history: `results.whole_history`. The terms of the loss and the feature spread; then, with a marker wherever a run
    was looked at and the first epochs drawn wide: over what share of a slide's tiles the scores are spread (dotted: a
    run below is marked), which share of sampling points is near the end of its reach or off the map, and how strongly
    both terms pull at the projection. A method has the panels of what it has.
    """
    terms = [name for name in TERMS if name in history] or ["loss"]
    parts = [partial(_term, term=term, prior_entropy=prior_entropy if term == "L_ce" else None) for term in terms]
    for panel, names in (
        (_effective, _columns(history, "effective")),
        (_sampling, _columns(history, "beyond_reach", "at_border")),
        (_gradients, [name for name in GRADIENTS if name in history and history[name].max() > 0]),
    ):
        if len(names) > (panel is _gradients):  # L_ot alone or L_ce alone pulls against nothing
            parts.append(partial(panel, names=names))
    rows = -(-len(parts) // 3)
    wide = -(-len(parts) // rows)
    figure, axes = plt.subplots(rows, wide, figsize=(3.2 * wide, 2.7 * rows), squeeze=False)
    for ax, part in zip(axes.flat, parts):
        part(ax, history)
    for ax in axes.flat[len(parts) :]:
        ax.set_visible(False)
    return finish(figure, out, history)


def _columns(history: pd.DataFrame, *kinds: str) -> list[str]:
    """Columns such as effective_10x."""
    return [name for name in history if name.rpartition("_")[0] in kinds]


def _term(ax, history: pd.DataFrame, term: str, prior_entropy: float | None) -> None:
    """A term of the loss after each epoch; dotted what L_ce is for who knows only the class shares."""
    trained = history[history.epoch > 0]
    for _, part in trained.groupby(["fold", "seed"]):
        ax.plot(part.epoch, part[term], color=FAINT, alpha=0.6, linewidth=0.8)
    mean = trained.groupby("epoch")[term].mean()
    ax.plot(mean.index, mean, color=BLUE, linewidth=2)
    ax.set(title=TERMS.get(term, term), xlabel="epoch")
    ax.set_ylim(bottom=0)
    if prior_entropy is not None:
        ax.axhline(prior_entropy, color=ORANGE, linestyle=":", linewidth=1.2)
        ax.text(
            mean.index[-1],
            prior_entropy,
            "knowing only the class shares ",
            ha="right",
            va="bottom",
            fontsize=7,
            color=ORANGE,
        )


def _effective(ax, history: pd.DataFrame, names: list[str]) -> None:
    _watched(ax, history, {name: (_scale_colour(name), "-", name.rpartition("_")[2]) for name in names})
    ax.axhline(GATHERED, color=DARK, linestyle=":", linewidth=1.2)
    ax.set(title="effective tiles", ylabel="share of a slide's tiles", ylim=(0, 1.04))


def _sampling(ax, history: pd.DataFrame, names: list[str]) -> None:
    words = {"beyond_reach": ("-", "near the end of reach"), "at_border": ("--", "off the map")}
    looks = {}
    for name in names:
        kind, _, scale = name.rpartition("_")
        line, said = words[kind]
        looks[name] = (_scale_colour(name), line, f"{scale}, {said}")
    _watched(ax, history, looks)
    ax.set(title="sampling points", ylabel="share of the points", ylim=(-0.02, 1.04))


def _gradients(ax, history: pd.DataFrame, names: list[str]) -> None:
    _watched(ax, history, {name: look for name, look in GRADIENTS.items() if name in names})
    ax.set(title="pull at the projection", yscale="log", ylabel="norm of the gradient")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    plain_numbers(ax.yaxis)
    first = history[history.epoch == 0][names].mean()
    ax.legend(
        title=f"L_ot / λ L_ce before the first step: {first.gradient_ot / first.gradient_ce:.3g}",
        fontsize=7,
        title_fontsize=7,
    )


def _watched(ax, history: pd.DataFrame, looks: dict[str, tuple[str, str, str]]) -> None:
    """Columns that only the epochs hold after which a run was looked at; looks: colour, line and label of each."""
    for name, (colour, line, label) in looks.items():
        seen = history[history[name].notna()]
        for _, part in seen.groupby(["fold", "seed"]):
            ax.plot(part.epoch, part[name], color=colour, linestyle=line, alpha=0.35, linewidth=0.8)
        mean = seen.groupby("epoch")[name].mean()
        ax.plot(mean.index, mean, color=colour, linestyle=line, linewidth=2, marker="o", markersize=4, label=label)
    last = history.epoch.max()
    ax.set_xscale("symlog", linthresh=1)
    ticks = [0, *(10**power for power in range(len(str(last))))]
    ax.set_xticks(ticks, map(str, ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("epoch, 0: before the first step")
    ax.legend(fontsize=7)


def _scale_colour(name: str) -> str:
    """Of a column such as effective_10x."""
    return SCALE_COLOURS.get(int(name.rpartition("_")[2][:-1]), DARK)


def roc(predictions: pd.DataFrame, out, positive: str = "") -> Figure:
    """ROC curve of each fold (thin), and of the pooled out-of-fold predictions (thick).

    The legend has the area below each. A fold whose test slides are all of one side has no curve, which the legend
    says. Data: the points; fold and seed are -1 where all are pooled. Of more than two classes: `_roc_of_each`.
    """
    if len(class_names(predictions)) > 2:
        return _roc_of_each(predictions, out)
    points = roc_points(predictions, positive)
    pooled = roc_points(predictions.assign(fold=-1, seed=-1), positive)
    curves = dict(tuple(points.groupby(["fold", "seed"])))
    several = predictions.seed.nunique() > 1
    names = {
        (fold, seed): f"fold {fold}, seed {seed}" if several else f"fold {fold}"
        for fold, seed in predictions.groupby(["fold", "seed"]).groups
    }
    figure, ax = plt.subplots(figsize=(4.6, 3.4))
    for run, part in curves.items():
        _curve(ax, part, names[run] if len(names) <= MANY else "_", linewidth=0.9, alpha=0.8)
    lacking = [name for run, name in names.items() if run not in curves]
    if lacking:
        more = f" and {len(lacking) - MANY} more" if len(lacking) > MANY else ""
        said = f"no curve, one class tested: {', '.join(lacking[:MANY])}{more}"
        ax.plot([], [], " ", label=fill(said, 30))
    if len(pooled):
        _curve(ax, pooled, "all folds pooled", color="black", linewidth=2)
    ax.plot([0, 1], [0, 1], color=FAINT, linestyle=":", linewidth=1)
    ax.set(
        title=f"ROC: {_question(predictions, positive)}",
        xlabel="false positive rate",
        ylabel="true positive rate",
        aspect="equal",
    )
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return finish(figure, out, pd.concat([points, pooled]))


def _roc_of_each(predictions: pd.DataFrame, out) -> Figure:
    """ROC curves of each class against the rest, a colour a class: of each fold (thin), of all pooled (thick).

    The legend has the area below the pooled curves, and the one-vs-rest AUC, its mean over classes in each fold, mean
    over folds. Data as of two classes, with a column class.
    """
    figure, ax = plt.subplots(figsize=(5.4, 3.4))
    parts = []
    for number, name in enumerate(class_names(predictions)):
        points, colour = roc_points(predictions, name), f"C{number}"
        pooled = roc_points(predictions.assign(fold=-1, seed=-1), name)
        for _, part in points.groupby(["fold", "seed"]):
            ax.plot(part.fpr, part.tpr, color=colour, linewidth=0.8, alpha=0.4)
        if len(pooled):
            _curve(ax, pooled, f"{short(name, 18)} against the rest", color=colour, linewidth=2)
        parts.append(pd.concat([points, pooled]).assign(**{"class": name}))
    mean = score_by_fold(predictions).AUC.mean()
    ax.plot([], [], " ", label=f"one-vs-rest AUC, mean over folds: {mean:.2f}")
    ax.plot([0, 1], [0, 1], color=FAINT, linestyle=":", linewidth=1)
    ax.set(
        title="ROC: each class against the rest",
        xlabel="false positive rate",
        ylabel="true positive rate",
        aspect="equal",
    )
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="thick: all folds pooled; thin: a fold")
    return finish(figure, out, pd.concat(parts))


def _curve(ax, points: pd.DataFrame, name: str, **style) -> None:
    """A curve, named with the area below it: its own AUC. A name that begins with _ is in no legend."""
    ax.plot(points.fpr, points.tpr, label=f"{name}, AUC {auc(points.fpr, points.tpr):.2f}", **style)


def _question(predictions: pd.DataFrame, positive: str) -> str:
    """What curves are about: one class against the other, or each of several against the rest."""
    classes = class_names(predictions)
    if len(classes) > 2:
        return "each class against the rest"
    name = positive_class(classes, positive)
    return f"{short(name, 24)} against {short(next(other for other in classes if other != name), 24)}"


def confusion_matrix(predictions: pd.DataFrame, out) -> Figure:
    """Pooled confusion matrix: counts, coloured by the share of the true class. A slide counts as often as it was
    predicted, which the title says."""
    matrix = confusion(predictions)
    share = matrix.div(matrix.sum(axis=1).clip(lower=1), axis=0)
    figure, ax = plt.subplots(figsize=(1.2 * len(matrix) + 1.6, 1.1 * len(matrix) + 1))
    notes = matrix.astype(str) + "\n" + (share * 100).round().astype(int).astype(str) + " %"
    sns.heatmap(
        share,
        annot=notes,
        fmt="",
        cmap="Blues",
        vmin=0,
        vmax=1,
        cbar=False,
        square=True,
        ax=ax,
        xticklabels=False,
        yticklabels=False,
    )
    middles = np.arange(len(matrix)) + 0.5  # the names are set here: seaborn would read them as formulas
    names = [short(name, 24) for name in matrix.index]
    ax.set_xticks(middles, names, rotation=90 if max(map(len, names)) > 12 else 0)
    ax.set_yticks(middles, names)
    times = predicted_times(predictions)
    title = "Confusion, all folds" + (f"\neach slide {times} times" if times > 1 else "")
    ax.set(title=title, xlabel="predicted", ylabel="truth")
    return finish(figure, out, matrix.reset_index())


def calibration_curve(predictions: pd.DataFrame, out, positive: str = "") -> Figure:
    """Said against observed probability, in bins of equal count, with the expected calibration error.

    Of two classes of the positive one: `positive`, else the last in alphabetical order; of more a line a class, against
    the rest, with the mean error, and a column class in the data. Small numbers: predictions in a bin.
    """
    classes = curve_classes(class_names(predictions), positive)
    several = len(classes) > 1
    figure, ax = plt.subplots(figsize=(5.4 if several else 3.4, 3.2))
    ax.plot([0, 1], [0, 1], color=FAINT, linestyle=":", linewidth=1)
    tables, errors = [], []
    for name in classes:
        table, error = calibration(predictions, name)
        errors.append(error)
        ax.plot(table.predicted, table.observed, marker="o", label=f"{short(name, 18)}, ECE {error:.3f}")
        for row in table.itertuples():
            ax.annotate(
                str(row.predictions),
                (row.predicted, row.observed),
                textcoords="offset points",
                xytext=(5, -9),
                fontsize=7,
                color=GREY,
            )
        tables.append(table.assign(**{"class": name}) if several else table)
    ax.set_title(
        f"Calibration: {_question(predictions, positive)}\n{'mean ' * several}ECE {np.mean(errors):.3f}", fontsize=9
    )
    name = "class" if several else short(classes[0], 24)
    ax.set(
        xlabel=f"said: P({name})",
        ylabel=f"observed: share of {name}",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        aspect="equal",
    )
    if several:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return finish(figure, out, pd.concat(tables))
