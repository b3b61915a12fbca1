"""Figures of the walkthrough on multiple-instance learning: toy bags of two channels, drawn in their plane.

Class "a" is blue, class "b" orange; `planted` (N, K) bool says which tiles of a bag carry the class.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import norm
from torch import Tensor

from dmsmil.features.bags import Bags
from dmsmil.models import MIL
from dmsmil.training.metrics import score_by_fold

COLOURS = {"a": "#0072B2", "b": "#D55E00"}
OTHER = "#a6a6a6"  # a tile that carries nothing
FINE = np.linspace(-8, 16, 4001)  # where densities are integrated


def _closed(figure: Figure) -> Figure:
    plt.close(figure)
    return figure


def _plane(ax) -> None:
    ax.set(xlim=(-3.4, 5.6), ylim=(-3.4, 3.4), xticks=[-2, 0, 2, 4], yticks=[-2, 0, 2], aspect="equal")


def tiles_in_plane(bags: Bags, planted: Tensor, each: int = 4) -> Figure:
    """The first bags of either class, a panel a bag and a dot a tile, with rings around the planted tiles."""
    figure, axes = plt.subplots(2, each, figsize=(1.75 * each + 0.3, 3.7), sharex=True, sharey=True)
    for panels, (label, name) in zip(axes, enumerate(bags.classes)):
        for ax, row in zip(panels, np.flatnonzero(bags.labels == label)):
            there = bags.mask[row, 0]
            ax.scatter(*bags.x[row, 0][there].T, s=11, color=COLOURS[name], alpha=0.75, linewidth=0)
            ax.scatter(*bags.x[row, 0][planted[row]].T, s=55, facecolor="none", edgecolor="black", linewidth=1)
            _plane(ax)
            ax.set_title(f"{bags.slide_ids[row]}: {name}", fontsize=9, color=COLOURS[name])
            ax.text(
                0.98,
                0.02,
                f"{int(there.sum())} tiles",
                transform=ax.transAxes,
                ha="right",
                va="bottom",
                fontsize=7,
                color="#666666",
            )
    figure.supxlabel("channel 1", fontsize=9)
    figure.supylabel("channel 2", fontsize=9)
    return _closed(figure)


def excess(bags: Bags, planted: Tensor) -> Figure:
    """Histogram of channel 1 over all tiles of each class, with what class b has more than class a filled.

    The black outline is the truth: the planted tiles. Heights are tiles a bin per 100 tiles of the class.
    """
    edges = np.arange(-4, 7.01, 0.5)
    counts, value = {}, bags.x[:, 0, :, 0]
    for label, name in enumerate(bags.classes):
        there = bags.mask[:, 0] & (bags.labels == label).unsqueeze(1)
        counts[name] = 100 * np.histogram(value[there], edges)[0] / int(there.sum())
    truth = 100 * np.histogram(value[planted], edges)[0] / int(there.sum())
    figure, ax = plt.subplots(figsize=(6.4, 2.8))
    ax.stairs(
        counts["b"],
        edges,
        baseline=np.minimum(counts["a"], counts["b"]),
        fill=True,
        color=COLOURS["b"],
        alpha=0.3,
        label="b more than a",
    )
    for name in bags.classes:
        ax.stairs(counts[name], edges, color=COLOURS[name], linewidth=2, label=f"tiles of class {name}")
    ax.stairs(truth, edges, color="black", linewidth=1.2, linestyle=":", label="the planted tiles")
    ax.set(
        title=f"All tiles of {len(bags)} slides, by the label of their slide",
        xlabel="channel 1",
        ylabel="of 100 tiles",
        xlim=(-4, 7),
    )
    ax.legend()
    return _closed(figure)


@torch.inference_mode()
def weights(models: dict[str, MIL], bags: Bags, planted: Tensor, row: int) -> Figure:
    """One bag under each pooling: the area of a dot is the weight of its tile, planted tiles are orange.

    models: single-scale ones by name; where a model has an attention layer, the shade behind is the score that it gives
    to every place of the plane, tile or not.
    """
    there = bags.mask[row, 0]
    figure, axes = plt.subplots(1, len(models), figsize=(2.75 * len(models), 2.75), sharey=True)
    for ax, (name, model) in zip(axes, models.items()):
        weight = model(bags.x[row : row + 1], bags.mask[row : row + 1]).scores[0, 0]
        if hasattr(model, "attention"):
            axis = torch.linspace(-3.4, 5.6, 80)
            grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
            score = model.attention(model.project(grid).relu())[..., 0]
            ax.contourf(axis, axis, score, levels=9, cmap="Greys", alpha=0.55, zorder=0)
        for mine, colour in ((there & ~planted[row], OTHER), (planted[row], COLOURS["b"])):
            ax.scatter(
                *bags.x[row, 0][mine].T,
                s=700 * weight[mine] + 2,
                color=colour,
                edgecolor="black",
                linewidth=0.5,
                alpha=0.85,
            )
        ax.grid(False)
        ax.set(title=name, xlabel="channel 1")
        _plane(ax)
        ax.text(
            0.02,
            0.02,
            f"planted tiles: {float(weight[planted[row]].sum()):.0%} of the weight",
            transform=ax.transAxes,
            fontsize=7.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )
    axes[0].set_ylabel("channel 2")
    return _closed(figure)


def padded(bags: Bags, extra: int, value: float) -> tuple[Tensor, Tensor]:
    """Features (N, S, K + extra, C) with `extra` further rows of `value`, and their mask: those rows are no tiles."""
    n, scales, _, channels = bags.x.shape
    x = torch.where(bags.mask.unsqueeze(-1), bags.x, value)
    return (
        torch.cat([x, torch.full((n, scales, extra, channels), float(value))], 2),
        torch.cat([bags.mask, torch.zeros(n, scales, extra, dtype=torch.bool)], 2),
    )


@torch.inference_mode()
def padding(models: dict[str, MIL], bags: Bags, values: tuple[float, ...] = (0.0, 3.0), most: int = 96) -> Figure:
    """P(b) of each bag as its tensor grows by rows that are no tiles: without a mask, and with one.

    A panel a model and value that the rows hold, a line a bag in the colour of its class.
    """
    figure, axes = plt.subplots(
        len(values),
        len(models),
        figsize=(2.75 * len(models), 1.75 * len(values) + 0.7),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    extras = list(range(0, most + 1, 8))
    for panels, value in zip(axes, values):
        for ax, (name, model) in zip(panels, models.items()):
            tensors = [padded(bags, extra, value) for extra in extras]
            for shown, style in ((True, "-"), (False, "--")):
                said = np.array([model(x, mask if shown else None).probabilities[:, 1] for x, mask in tensors])
                for line, label in zip(said.T, bags.labels):
                    ax.plot(
                        extras,
                        line,
                        style,
                        color=COLOURS[bags.classes[label]],
                        linewidth=1.3,
                        alpha=0.9 if shown else 0.6,
                    )
            ax.set(ylim=(-0.04, 1.04), xticks=[0, most // 3, 2 * most // 3, most])
        panels[0].set_ylabel(f"rows of {value:g}\nP(b)")
    for top, bottom, name in zip(axes[0], axes[-1], models):
        top.set_title(name)
        bottom.set_xlabel("rows added")
    keys = [
        Line2D([], [], color="#444444", linestyle=style, label=label)
        for style, label in (("-", "with a mask"), ("--", "without"))
    ]
    keys += [Line2D([], [], color=COLOURS[name], linewidth=3, label=f"slides of class {name}") for name in bags.classes]
    figure.legend(handles=keys, loc="outside lower center", ncols=4)
    return _closed(figure)


# ------------------------------------------------------------------------------------------------ who wins where


def mean_densities(tiles: int, signal: float, k: int) -> dict[str, np.ndarray]:
    """Density over `FINE` of a bag's mean of channel 1, by class: N(0, 1/k) and N(tiles signal / k, 1/k)."""
    return {"a": norm.pdf(FINE, 0, k**-0.5), "b": norm.pdf(FINE, tiles * signal / k, k**-0.5)}


def max_densities(tiles: int, signal: float, k: int) -> dict[str, np.ndarray]:
    """Density over `FINE` of a bag's largest value, by class: what Φ(v)ᵏ and Φ(v)^(k - tiles) Φ(v - signal)^tiles have
    as their derivatives."""
    plain, moved = norm.cdf(FINE), norm.cdf(FINE - signal)
    rest = plain ** (k - tiles - 1) if tiles < k else 0.0
    b = (k - tiles) * norm.pdf(FINE) * rest * moved**tiles
    b = b + tiles * norm.pdf(FINE - signal) * moved ** (tiles - 1) * plain ** (k - tiles)
    return {"a": k * norm.pdf(FINE) * plain ** (k - 1), "b": b}


def auc_of(densities: dict[str, np.ndarray]) -> float:
    """P(a bag of b exceeds a bag of a): the AUC of the best that one number a bag can do."""
    step = FINE[1] - FINE[0]
    below = np.cumsum(densities["a"]) * step - densities["a"] * step / 2
    return float(np.sum(densities["b"] * below) * step)


def evidence(tiles: int, signal: float, k: int = 32) -> Figure:
    """How far a bag's mean and its largest tile tell the classes apart, as two pairs of densities."""
    return cases([(tiles, signal)], k)


def cases(several: list[tuple[int, float]], k: int = 32) -> Figure:
    """A row for each (planted tiles, signal): the densities of a bag's mean and of its largest tile, by class."""
    figure, axes = plt.subplots(len(several), 2, figsize=(6.0, 1.25 * len(several) + 0.75), squeeze=False, sharex="col")
    for panels, (tiles, signal) in zip(axes, several):
        both = [rule(tiles, signal, k) for rule in (mean_densities, max_densities)]
        aucs = [auc_of(densities) for densities in both]
        for ax, densities, auc in zip(panels, both, aucs):
            for name, density in densities.items():
                ax.fill_between(FINE, density, color=COLOURS[name], alpha=0.3, linewidth=0)
                ax.plot(FINE, density, color=COLOURS[name], label=f"class {name}")
            ax.text(
                0.98,
                0.93,
                f"AUC {auc:.2f}",
                transform=ax.transAxes,
                ha="right",
                va="top",
                fontweight="bold" if auc == max(aucs) else "normal",
            )
            ax.set(yticks=[], ylim=(0, None))
            ax.grid(False)
        panels[0].set_ylabel(f"{tiles} of {k} tiles\nshifted by {signal:g}", fontsize=8)
    axes[0, 0].set(title="the mean of a bag", xlim=(-0.8, 2.2))
    axes[0, 1].set(title="its largest tile", xlim=(0, 8))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return _closed(figure)


def winners(marked: dict[str, tuple[int, float]], k: int = 32) -> Figure:
    """Map of share of planted tiles against their signal: red where the largest tile tells classes apart better, blue
    where the mean does, the line where they are alike; dotted lines bound where both are good, and where both fail.

    marked: name -> (planted tiles, signal), drawn as points.
    """
    tiles, signals = np.arange(1, k + 1), np.linspace(0.1, 6, 60)
    largest, mean = (
        np.array([[auc_of(rule(t, s, k)) for t in tiles] for s in signals]) for rule in (max_densities, mean_densities)
    )
    share, good, bad = 100 * tiles / k, np.minimum(largest, mean), np.maximum(largest, mean)
    figure, ax = plt.subplots(figsize=(5.8, 3.3))
    drawn = ax.contourf(share, signals, largest - mean, levels=np.arange(-0.35, 0.36, 0.1), cmap="RdBu_r")
    ax.contour(
        share, signals, np.where(good > 0.999, np.nan, largest - mean), levels=[0], colors="black", linewidths=1.4
    )
    ax.contour(share, signals, good, levels=[0.95], colors="#444444", linestyles=":", linewidths=1.2)
    ax.contour(share, signals, bad, levels=[0.6], colors="#444444", linestyles=":", linewidths=1.2)
    ax.text(96, 5.7, "both above 0.95", ha="right", va="top", fontsize=8, color="#333333")
    ax.text(3.3, 0.22, "neither above 0.6", fontsize=8, color="#333333")
    for name, (t, s) in marked.items():
        ax.plot(100 * t / k, s, "o", color="black", markersize=5, clip_on=False, zorder=5)
        ax.annotate(
            name,
            (100 * t / k, s),
            textcoords="offset points",
            xytext=(-6 if t == k else 7, 6),
            fontsize=8,
            ha="right" if t == k else "left",
            fontweight="bold",
        )
    ax.set(
        xscale="log",
        xlabel="tiles that carry the class, of 100",
        ylabel="how loud they are (signal)",
        title="Which tells the classes apart better?",
        xticks=[3.125, 10, 30, 100],
        xticklabels=[3, 10, 30, 100],
    )
    ax.minorticks_off()
    ax.grid(False)
    bar = figure.colorbar(
        drawn, label="AUC of the largest tile − AUC of the mean", ticks=[-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3]
    )
    bar.outline.set_visible(False)
    return _closed(figure)


LOOKS = {
    "meanpool": ("mean", "#0072B2", "o"),
    "maxpool": ("max", "#E69F00", "^"),
    "abmil": ("attention", "#009E73", "D"),
}


def trained(runs: dict[str, list]) -> Figure:
    """AUC of trained mean, max and attention pooling in each case: a small point a fold, a large one their mean.

    runs: {case: [Runs, ...]}.
    """
    figure, ax = plt.subplots(figsize=(6.0, 2.9))
    for place, several in enumerate(runs.values()):
        for number, run in enumerate(several):
            name, colour, marker = LOOKS[run.config.method]
            auc, x = score_by_fold(run.predictions).AUC, place + 0.2 * (number - (len(several) - 1) / 2)
            ax.plot([x] * len(auc), auc, marker, color=colour, markersize=4, alpha=0.45)
            ax.plot(x, auc.mean(), marker, color=colour, markersize=9, label=name if place == 0 else None)
            ax.text(x, 0.435, f"{auc.mean():.2f}", ha="center", fontsize=8, color=colour, fontweight="bold")
    ax.axhline(0.5, color="#999999", linestyle=":", linewidth=1.2)
    ax.set(
        xticks=range(len(runs)),
        xticklabels=list(runs),
        ylim=(0.4, 1.03),
        xlim=(-0.5, len(runs) - 0.5),
        ylabel="AUC on held-out slides",
    )
    ax.grid(axis="x", visible=False)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return _closed(figure)
