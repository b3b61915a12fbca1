"""Notebook 03: how training went, and how good the tested slides' predictions are."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from dmsmil.figures.base import finish
from dmsmil.training.metrics import (
    METRICS,
    calibration,
    class_names,
    confusion,
    positive_class,
    roc_points,
    score_by_fold,
)


def result_intervals(table: pd.DataFrame, out) -> Figure:
    """Each row's metrics with their 95 % intervals. Columns: name, and <metric>_mean, _low, _high."""
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 0.42 * len(table) + 1.1), sharey=True)
    y = np.arange(len(table))[::-1]
    for ax, metric in zip(axes, METRICS):
        ax.hlines(y, table[f"{metric}_low"], table[f"{metric}_high"], color="#0072B2", linewidth=2)
        ax.plot(table[f"{metric}_mean"], y, "o", color="#0072B2", markersize=5)
        ax.set(title=metric, xlim=(0, 1.02), yticks=y, yticklabels=table.name)
    return finish(figure, out, table)


def learning_curves(history: pd.DataFrame, out, prior_entropy: float | None = None) -> Figure:
    """L_ce, L_ot and the feature spread by epoch: one thin line a run, the mean thick."""
    terms = [name for name in ("L_ce", "L_ot", "spread") if name in history] or ["loss"]
    labels = {"L_ce": "L_ce (cross-entropy)", "L_ot": "L_ot (optimal transport)", "spread": "feature spread"}
    figure, axes = plt.subplots(1, len(terms), figsize=(3.2 * len(terms), 2.7), squeeze=False)
    for ax, term in zip(axes[0], terms):
        for _, part in history.groupby(["fold", "seed"]):
            ax.plot(part.epoch, part[term], color="#bbbbbb", linewidth=0.8)
        mean = history.groupby("epoch")[term].mean()
        ax.plot(mean.index, mean, color="#0072B2", linewidth=2)
        ax.set(title=labels.get(term, term), xlabel="epoch")
        ax.set_ylim(bottom=0)
        if term == "L_ce" and prior_entropy is not None:
            ax.axhline(prior_entropy, color="#D55E00", linestyle=":", linewidth=1.2)
            ax.text(mean.index[-1], prior_entropy, "knowing only the class shares ", ha="right", va="bottom",
                    fontsize=7, color="#D55E00")
    return finish(figure, out, history)


def roc(predictions: pd.DataFrame, out, positive: str = "") -> Figure:
    """ROC curve of each fold (thin), and of the pooled out-of-fold predictions (thick)."""
    name = positive_class(class_names(predictions), positive)
    points = roc_points(predictions, positive)
    pooled = roc_points(predictions.assign(fold=-1, seed=-1), positive)
    by_fold = score_by_fold(predictions, positive)
    figure, ax = plt.subplots(figsize=(4.6, 3.4))
    for row, (_, part) in zip(by_fold.itertuples(), points.groupby(["fold", "seed"])):
        ax.plot(part.fpr, part.tpr, linewidth=0.9, alpha=0.8,
                label=f"fold {row.fold}, AUC {row.AUC:.2f}" if len(by_fold) <= 10 else None)
    ax.plot(pooled.fpr, pooled.tpr, color="black", linewidth=2, label="all folds pooled")
    ax.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1)
    ax.set(title=f"ROC, positive = {name}", xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return finish(figure, out, pd.concat([points, pooled]))


def confusion_matrix(predictions: pd.DataFrame, out) -> Figure:
    """Pooled confusion matrix: counts, coloured by the share of the true class."""
    matrix = confusion(predictions)
    share = matrix.div(matrix.sum(axis=1).clip(lower=1), axis=0)
    figure, ax = plt.subplots(figsize=(1.2 * len(matrix) + 1.6, 1.1 * len(matrix) + 1))
    notes = matrix.astype(str) + "\n" + (share * 100).round().astype(int).astype(str) + " %"
    sns.heatmap(share, annot=notes, fmt="", cmap="Blues", vmin=0, vmax=1, cbar=False, square=True, ax=ax)
    ax.set(title="Confusion, all folds", xlabel="predicted", ylabel="truth")
    return finish(figure, out, matrix.reset_index())


def calibration_curve(predictions: pd.DataFrame, out, positive: str = "") -> Figure:
    """Said against observed probability in bins of equal count, with the expected calibration error."""
    table, error = calibration(predictions, positive)
    figure, ax = plt.subplots(figsize=(3.4, 3.2))
    ax.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1)
    ax.plot(table.predicted, table.observed, marker="o")
    for row in table.itertuples():
        ax.annotate(str(row.slides), (row.predicted, row.observed), textcoords="offset points", xytext=(5, -9),
                    fontsize=7, color="#666666")
    name = positive_class(class_names(predictions), positive)
    ax.set(title=f"Calibration, ECE {error:.3f}", xlabel=f"said: P({name})",
           ylabel="observed share", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    return finish(figure, out, table)
