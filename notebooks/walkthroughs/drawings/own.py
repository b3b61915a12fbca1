"""Figures of the walkthrough on a method of one's own: who leads with which seed, and where a gate looks."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from dmsmil.features.bags import Bags
from dmsmil.figures import base
from dmsmil.jobs.files import InputError
from dmsmil.training.fit import load_model
from dmsmil.training.metrics import score_by_fold
from dmsmil.training.results import run_names
from dmsmil.training.runs import Runs

COLOURS = [*base.SCALE_COLOURS.values(), "#009E73", "#CC79A7"]


def fold_scores(runs: list[Runs]) -> pd.DataFrame:
    """AUC of every fold: columns name (as tables call the run), seed, fold, AUC."""
    return pd.concat([score_by_fold(r.predictions).assign(name=name) for name, r in zip(run_names(runs), runs)])


def seeds_apart(runs: list[Runs]) -> Figure:
    """A panel a seed, a column a method: the AUC of each fold, joined between methods, and the mean in numbers."""
    scores = fold_scores(runs)
    names, seeds = list(dict.fromkeys(scores.name)), sorted(scores.seed.unique())
    figure, axes = plt.subplots(1, len(seeds), figsize=(3.4 * len(seeds), 2.9), sharey=True, squeeze=False)
    for ax, seed in zip(axes[0], seeds):
        table = scores[scores.seed == seed].pivot(index="fold", columns="name", values="AUC")[names]
        ax.plot(range(len(names)), table.T, color="#bbbbbb", linewidth=0.8, zorder=1)
        for x, (name, colour) in enumerate(zip(names, COLOURS)):
            ax.scatter(np.full(len(table), x), table[name], s=22, color=colour, zorder=2)
            ax.hlines(table[name].mean(), x - 0.22, x + 0.22, color="#222222", linewidth=2, zorder=3)
            ax.text(x, 0.03, f"{table[name].mean():.2f}", transform=ax.get_xaxis_transform(), ha="center")
        ax.set(
            title=f"seed {seed}: {table.mean().idxmax()} leads",
            xlim=(-0.5, len(names) - 0.5),
            ylim=(min(0.6, scores.AUC.min()) - 0.1, 1.03),
        )
        ax.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
        ax.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel("AUC of a fold (below: their mean)")
    plt.close(figure)
    return figure


def fusion_weights(runs: list[Runs], bags: Bags, folds: pd.DataFrame, signal: Sequence[str]) -> pd.DataFrame:
    """The weight a^s that each run's fusion gives the first scale of the slides it was tested on.

    signal: in words, by slide of `bags`, where its signal lies. Columns name, seed, fold, slide_id, signal, weight.
    """
    rows = []
    parts = folds.set_index("slide_id").reindex(bags.slide_ids)
    for name, r in zip(run_names(runs), runs):
        for (fold, seed), folder in r.folders.items():
            test = np.flatnonzero(parts[f"fold_{fold}"] == "test")
            model = load_model(folder, bags.x.shape[-1], len(bags.classes))
            with torch.no_grad():
                extras = model(bags.x[test], bags.mask[test], bags.coords[test]).extras
            if "fusion" not in extras:
                raise InputError(f"{name} tells no fusion weights: put them into extras['fusion'], or leave it out")
            fusion = extras["fusion"]
            rows += [
                dict(name=name, seed=seed, fold=fold, slide_id=bags.slide_ids[i], signal=signal[i], weight=weight)
                for i, weight in zip(test, fusion[:, 0].tolist())
            ]
    return pd.DataFrame(rows)


def where_it_looks(weights: pd.DataFrame, scale: str = "10x") -> Figure:
    """The weight that each method's fusion gives to one scale, a column for each place that the signal can have.

    weights: `fusion_weights`; medians in numbers.
    """
    names, places = list(dict.fromkeys(weights.name)), sorted(weights.signal.unique())
    figure, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names), 2.7), sharey=True, squeeze=False)
    jitter = np.random.default_rng(0)
    for ax, name in zip(axes[0], names):
        for x, (place, colour) in enumerate(zip(places, COLOURS)):
            values = weights.weight[(weights.name == name) & (weights.signal == place)]
            ax.scatter(x + jitter.uniform(-0.18, 0.18, len(values)), values, s=9, color=colour, alpha=0.6)
            ax.hlines(values.median(), x - 0.3, x + 0.3, color="#222222", linewidth=2)
            ax.text(x + 0.33, values.median(), f"{values.median():.2f}", va="center")
        ax.axhline(0.5, color="#999999", linestyle=":", linewidth=1)
        ax.set(title=name, ylim=(-0.03, 1.03), xlim=(-0.5, len(places) - 0.2))
        ax.set_xticks(range(len(places)), places)
        ax.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel(f"weight of {scale} in the fusion")
    plt.close(figure)
    return figure
