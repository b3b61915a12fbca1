"""Walkthrough 7, reading an attention map: maps beside the truth, removal, fresh weights, two ways to be fooled."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from dmsmil.figures import base
from dmsmil.figures.base import BLUE, GREEN, ORANGE, PINK
from dmsmil.interpret.explain import normalise
from dmsmil.interpret.faithfulness import agreement

ORDERS = {
    "highest": ("highest first (deletion)", "#D55E00", "-"),
    "random": ("at random", "#777777", ":"),
    "lowest": ("lowest first", "#0072B2", "--"),
}


def _edges(truth: np.ndarray) -> np.ndarray:
    """The sides (N, 2, 2) of the True cells of a map (H, W) that border on a False one, as x, y from and to."""
    padded, found = np.pad(truth, 1), []
    for row, column in np.argwhere(truth):
        for dy, dx, ends in (
            (-1, 0, ((0, 0), (1, 0))),
            (1, 0, ((0, 1), (1, 1))),
            (0, -1, ((0, 0), (0, 1))),
            (0, 1, ((1, 0), (1, 1))),
        ):
            if not padded[row + 1 + dy, column + 1 + dx]:
                found.append(np.array(ends) + (column - 0.5, row - 0.5))
    return np.array(found).reshape(-1, 2, 2)


def _map(ax: Axes, values: np.ndarray, title: str, truth: np.ndarray | None = None, **colours):
    shown = ax.imshow(values, **({"cmap": "inferno"} | colours))
    if truth is not None:
        ax.add_collection(LineCollection(_edges(truth), colors="black", linewidths=3.2, capstyle="projecting"))
        ax.add_collection(LineCollection(_edges(truth), colors="white", linewidths=1.5, capstyle="projecting"))
    base.bare(ax)
    ax.set_title(title, fontsize=8.5, fontweight="normal")
    return shown


def planted(signal: np.ndarray, truth: np.ndarray, names: list[str]) -> Figure:
    """The one channel that tells the classes apart, on the grid of each slide, with the planted tiles outlined.

    signal (N, H, W), truth (N, H, W) bool.
    """
    figure, axes = plt.subplots(1, len(names), figsize=(2.3 * len(names), 1.75))
    for ax, values, known, name in zip(axes, signal, truth, names):
        shown = _map(ax, values, name, known, cmap="cividis", vmin=-3, vmax=6)
    figure.colorbar(shown, ax=axes.tolist(), shrink=0.8, label="first channel")
    plt.close(figure)
    return figure


def beside(maps: dict[str, np.ndarray], names: list[str], truth: np.ndarray | None = None) -> Figure:
    """Maps of several methods, each stretched from its lowest tile to its highest; a row a method, a column a slide.

    maps: by method (N, H, W). With truth (N, H, W) bool its tiles are outlined, and above each map stands the AUC of
    its scores against them.
    """
    figure, axes = plt.subplots(len(maps), len(names), figsize=(2.2 * len(names), 1.55 * len(maps)), squeeze=False)
    for row, (method, several) in zip(axes, maps.items()):
        for number, (ax, values, name) in enumerate(zip(row, several, names)):
            known = None if truth is None else truth[number]
            title = name if known is None else f"{name}: AUC {roc_auc_score(known.ravel(), values.ravel()):.2f}"
            _map(ax, normalise(values), title, known, vmin=0, vmax=1)
        row[0].set_ylabel(method, fontsize=9, fontweight="bold")
    plt.close(figure)
    return figure


def removal(curves: pd.DataFrame) -> Figure:
    """What a prediction loses as tiles go, the highest of a map first, the lowest first, or at random.

    curves: `faithfulness.measure`'s third table; a row for each way of going, a column for each method. The shaded area
    is lowest minus highest: above 0 where the high tiles carry the prediction.
    """
    names, ways = curves.name.unique(), ("replaced", "removed")
    figure, axes = plt.subplots(2, len(names), figsize=(3.3 * len(names), 4.2), sharex=True, sharey=True, squeeze=False)
    for row, way in zip(axes, ways):
        for ax, name in zip(row, names):
            table = curves[curves.name == name].pivot(index="share", columns="order", values=way)
            ax.fill_between(table.index, table.highest, table.lowest, color="#0072B2", alpha=0.12, linewidth=0)
            for order, (label, colour, line) in ORDERS.items():
                ax.plot(table.index, table[order], line, color=colour, label=label)
            ax.set_title(f"{name.split(',')[0]}: area {(table.lowest - table.highest).mean():+.2f}", fontsize=9)
            ax.set_ylim(0, 1.03)
        row[0].set_ylabel(f"probability, tiles {way}")
    for ax in axes[1]:
        ax.set_xlabel("share of the tiles gone")
    axes[0, 0].legend(loc="lower left")
    plt.close(figure)
    return figure


def fresh(trained: dict[str, np.ndarray], untrained: dict[str, list[np.ndarray]]) -> Figure:
    """The map of each trained method, and of the same method with weights that never saw a slide, of one slide.

    By method: (H, W), and several of them. Above each stands its rank correlation with the trained one.
    """
    columns = 1 + max(map(len, untrained.values()))
    figure, axes = plt.subplots(len(trained), columns, figsize=(2.2 * columns, 1.55 * len(trained)), squeeze=False)
    for row, (method, mine) in zip(axes, trained.items()):
        _map(row[0], normalise(mine), "trained")
        row[0].set_ylabel(method, fontsize=9, fontweight="bold")
        for ax, other in zip(row[1:], untrained[method]):
            _map(ax, normalise(other), f"fresh weights: {agreement(mine.ravel(), other.ravel()):+.2f}")
    plt.close(figure)
    return figure


def stretched(noise: float) -> Figure:
    """A map that says nothing: each of K = 72 tiles scores 1/K, but for `noise` relative to it. As it is, and stretched
    from its lowest tile to its highest."""
    score = 1 + noise * np.random.default_rng(0).normal(size=(6, 12))
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 1.95))
    digits = max(1, 1 - int(np.floor(np.log10(noise))))
    told = f"as it is: {score.min():.{digits}f} to {score.max():.{digits}f} of 1/K"
    for ax, values, title, top in (
        (axes[0], score, told, 2),
        (axes[1], (score - score.min()) / np.ptp(score), "stretched", 1),
    ):
        figure.colorbar(_map(ax, values, title, vmin=0, vmax=top), ax=ax, shrink=0.9)
    plt.close(figure)
    return figure


def averages(maps: dict[str, np.ndarray], truth: np.ndarray) -> Figure:
    """The mean of each method's maps over slides: what it says of every slide, whatever is in it.

    maps: by name (N, H, W), in units of 1/K, each with a scale of its own; truth (N, H, W) bool: its mean comes first.
    """
    figure, axes = plt.subplots(1, 1 + len(maps), figsize=(2.3 * (1 + len(maps)), 1.9))
    drawn = {
        "where the truth lies": (truth.mean(0), "share of slides", "Greys"),
        **{name: (several.mean(0), "score, in 1/K", "inferno") for name, several in maps.items()},
    }
    for ax, (name, (values, label, cmap)) in zip(axes, drawn.items()):
        figure.colorbar(_map(ax, values, name, cmap=cmap, vmin=0), ax=ax, orientation="horizontal", label=label)
    plt.close(figure)
    return figure


def scorecard(summary: pd.DataFrame) -> Figure:
    """Three questions to the maps of several methods: does it find the truth, does it decide, was it learned?

    summary: `faithfulness.measure`'s first table, with the truth at 10x; bars are its 95 % intervals.
    """
    names = [name.split(",")[0] for name in summary.name]
    rows = np.arange(len(names))
    panels = {
        "does it find the truth?": (("truth_10x", "trained", "o"), ("truth_random_10x", "fresh weights", "D")),
        "does it decide?": (("replaced", "tiles replaced", "o"), ("removed", "tiles removed", "s")),
        "was it learned?": (("random_weights", "", "o"),),
    }
    limits = {
        0: ((0, 1), 0.5, "AUC at 10x"),
        1: ((-0.15, 0.6), 0, "area"),
        2: ((-0.4, 1), 0.5, "rank correlation\nwith fresh weights"),
    }
    figure, axes = plt.subplots(1, 3, figsize=(7.2, 1.1 + 0.55 * len(names)), sharey=True)
    for number, (ax, (title, columns)) in enumerate(zip(axes, panels.items())):
        colours = (GREEN, PINK) if number == 1 else (BLUE, ORANGE)
        for shift, colour, (column, label, marker) in zip((-0.13, 0.13), colours, columns):
            value = summary[column].to_numpy()
            ends = [value - summary[f"{column}_low"], summary[f"{column}_high"] - value]
            bars = dict(xerr=np.abs(ends), fmt=marker, capsize=2.5, markersize=5, color=colour)
            ax.errorbar(value, rows + shift, **bars, label=label)
        span, line, label = limits[number]
        ax.axvline(line, color="#444444", linestyle=":", linewidth=1)
        ax.set(xlim=span, ylim=(len(names) - 0.5, -0.5), yticks=rows, yticklabels=names, xlabel=label)
        ax.set_title(title, fontsize=9)
        ax.grid(axis="y", visible=False)
        if len(columns) > 1:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.45), fontsize=8)
    plt.close(figure)
    return figure
