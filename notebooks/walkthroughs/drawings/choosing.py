"""Walkthrough 9, choosing tiles: the planted halves, what weights each method gives, the bound, transport by gates."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import ot
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dmsmil.figures import base
from drawings.maps import _map

SCALES = (10, 20)


def halves(seen: np.ndarray, truth: np.ndarray, names: list[str], shape: tuple[int, int]) -> Figure:
    """What each scale shows of the planted signal: a row a scale, a column a slide, planted tiles outlined.

    seen (N, 2, K): the one direction of each scale that carries its half; truth (N, K) bool; shape: of the slides.
    """
    figure, axes = plt.subplots(2, len(names), figsize=(2.1 * len(names) + 0.8, 3.6))
    for column, (values, known, name) in zip(axes.T, zip(seen, truth, names)):
        for ax, scale, value in zip(column, SCALES, values):
            shown = _map(
                ax,
                value.reshape(shape),
                name if scale == SCALES[0] else "",
                known.reshape(shape),
                cmap="cividis",
                vmin=-2,
                vmax=5,
            )
    for ax, scale in zip(axes[:, 0], SCALES):
        ax.set_ylabel(f"{scale}x", fontweight="bold")
    figure.colorbar(shown, ax=axes.ravel().tolist(), shrink=0.7, label="along the planted direction")
    plt.close(figure)
    return figure


def components(given: Tensor, white: Tensor) -> Figure:
    """The deviation of all tiles along their principal components, as given and half-whitened: (C,) each."""
    figure, ax = plt.subplots(figsize=(5.6, 2.5))
    number = np.arange(1, len(given) + 1)
    ax.plot(number, given, "o-", markersize=3.5, color=base.GREY, label="features as given")
    ax.plot(number, white, "s-", markersize=3.5, color=base.BLUE, label="half-whitened")
    ax.set(yscale="log", xlabel="principal component, the loudest first", ylabel="deviation of the tiles")
    base.plain_numbers(ax.yaxis)
    ax.set_yticks([0.3, 1, 3, 10])
    ax.legend()
    plt.close(figure)
    return figure


def bounded(bounds: list[float], tiles: int) -> Figure:
    """What one tile of many weighs, in 1/n, as its logit grows and all others stay at the lowest: a line a bound.

    The gate is a softmax over `tiles` logits; a bound b makes b tanh(l / b) of a logit l, and 0 leaves it free.
    """
    figure, ax = plt.subplots(figsize=(5.6, 2.6))
    logit = np.linspace(0, 8, 161)
    for bound, colour in zip(bounds, (base.GREY, base.BLUE, base.ORANGE)):
        high, low = (bound * np.tanh(value / bound) if bound else value for value in (logit / 2, -logit / 2))
        ratio = np.exp(high - low)
        ax.plot(
            logit,
            tiles * ratio / (ratio + tiles - 1),
            color=colour,
            label=f"bound {bound:g}: at most {np.exp(2 * bound):.1f} times another" if bound else "free",
        )
    ax.set(yscale="log", xlabel="logit of the tile, less that of the others", ylabel=f"its weight, in 1/{tiles}")
    ax.set_yticks([1, 3, 10, 30])
    base.plain_numbers(ax.yaxis)
    ax.legend()
    plt.close(figure)
    return figure


def weights(scores: dict[str, np.ndarray], truth: np.ndarray, shape: tuple[int, int]) -> Figure:
    """One slide as each method weighs it: a column a method, a row a scale, planted tiles outlined.

    scores: by method (2, K), each row summing to 1; truth (K,) bool. Each map has its own colours; above it stand its
    lowest and highest weight, in 1/n, and what the planted tiles have together.
    """
    figure, axes = plt.subplots(2, len(scores), figsize=(2.35 * len(scores), 4.1))
    for column, (name, both) in zip(axes.T, scores.items()):
        for ax, scale, values in zip(column, SCALES, both):
            times = len(values) * values
            told = f"{times.min():.1f} to {times.max():.1f} × 1/n\nplanted: {values[truth].sum():.0%}"
            top = times.max() if np.ptp(times) > 1e-6 else 2 * times.max()  # a mean is grey, and not a map of rounding
            _map(
                ax,
                times.reshape(shape),
                f"{name}\n{told}" if scale == SCALES[0] else told,
                truth.reshape(shape),
                vmin=0,
                vmax=top,
            )
    for ax, scale in zip(axes[:, 0], SCALES):
        ax.set_ylabel(f"{scale}x", fontweight="bold")
    plt.close(figure)
    return figure


def matched(x: Tensor, weight: Tensor) -> np.ndarray:
    """The plan of transport between the scales of one slide: features x (2, K, d), weights (2, K) -> (K, K).

    Rows are tiles at 10x; its row sums are the weights there, its column sums those at 20x.
    """
    return ot.emd(*(w.double().numpy() / w.double().sum().item() for w in weight), torch.cdist(*x).double().numpy())


def plans(several: dict[str, np.ndarray], planted: int) -> Figure:
    """Plans between tiles at 10x and at 20x (K, K) by name, tile j of one scale being linked with tile j of the other.

    Planted tiles come first, `planted` of them; the bars are the weights of the tiles at either scale.
    """
    figure, axes = plt.subplots(1, len(several), figsize=(3.1 * len(several), 3.3), squeeze=False)
    for ax, (name, plan) in zip(axes[0], several.items()):
        count, top = len(plan), plan.max()
        ax.imshow(plan, cmap="Greys", vmin=0, vmax=top)
        ax.axhline(planted - 0.5, color=base.ORANGE, linewidth=1)
        ax.axvline(planted - 0.5, color=base.ORANGE, linewidth=1)
        scale = 2.2 / max(plan.sum(0).max(), plan.sum(1).max())
        ax.barh(range(count), scale * plan.sum(1), left=count - 0.2, color=base.SCALE_COLOURS[10], height=0.8)
        ax.bar(range(count), -scale * plan.sum(0), bottom=-0.8, color=base.SCALE_COLOURS[20], width=0.8)
        ax.set(xlim=(-0.5, count + 2.2), ylim=(count - 0.5, -3.2), xticks=[], yticks=[])
        ax.set_xlabel("tile at 20x", color=base.SCALE_COLOURS[20])
        ax.set_ylabel("tile at 10x", color=base.SCALE_COLOURS[10])
        ax.grid(False)
        for spine in ax.spines.values():
            spine.set_visible(False)
        ax.set_title(f"{name}\nto the own child: {np.trace(plan):.0%}", fontsize=8.5, fontweight="normal")
    plt.close(figure)
    return figure
