"""Walkthrough 5, fusing two scales and the total loss: what the gate does, what λ does, how features collapse."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import binomtest
from torch import Tensor

from dmsmil.figures import base

BLUE, ORANGE, GREEN, PINK, GREY = base.SCALE_COLOURS[10], base.SCALE_COLOURS[20], "#009E73", "#CC79A7", "#777777"
LIMIT = 2.6  # of the plane that `gate` draws
FORMS = ((ORANGE, "-"), (ORANGE, "--"), (BLUE, "-"), (GREY, ":"))  # colour and line of `few_tiles`


def fused(x10: np.ndarray, x20: np.ndarray, omega: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gate a (2,) of eq. (11) and the fused vector g of eq. (10) for two vectors and ω, all of one length."""
    both = np.stack([x10, x20])
    grown = np.exp(np.tanh(both) @ omega)
    gate = grown / grown.sum()
    return gate, gate @ both


def _gate(ax, x10, x20, omega) -> None:
    x10, x20, omega = (np.asarray(v, float) for v in (x10, x20, omega))
    a, g = fused(x10, x20, omega)
    side = np.linspace(-LIMIT, LIMIT, 80)
    plane = np.stack(np.meshgrid(side, side), -1)
    most = max(np.abs(omega).sum(), 1e-9)
    ax.contourf(side, side, np.tanh(plane) @ omega, levels=np.linspace(-most, most, 15), cmap="PuOr", alpha=0.45)
    ax.plot(*zip(x10, x20), color="#444444", linestyle=":", linewidth=1.2)
    for x, colour, name, weight in ((x10, BLUE, "10x", a[0]), (x20, ORANGE, "20x", a[1])):
        ax.annotate("", x, (0, 0), arrowprops=dict(arrowstyle="-|>", color=colour, linewidth=1.8, shrinkA=0, shrinkB=0))
        ax.text(
            *(x + 0.16 * np.sign(x) + (0, 0.12)),
            f"{name}\n{weight:.2f}",
            color=colour,
            fontsize=8,
            ha="center",
            va="bottom" if x[1] > 0 else "top",
            fontweight="bold",
        )
    ax.scatter(*g, s=60, color="black", zorder=4)
    ax.text(g[0] + 0.05, g[1] - 0.42, "g", fontsize=9, fontweight="bold")
    ax.set(
        xlim=(-LIMIT, LIMIT),
        ylim=(-LIMIT, LIMIT),
        aspect="equal",
        xticks=[-2, 0, 2],
        yticks=[-2, 0, 2],
        xlabel="channel 1",
    )
    ax.set_title(f"|ω| = {np.linalg.norm(omega):.1f}", fontsize=9)


def gates(x10: Tensor, x20: Tensor, omegas: list[Tensor]) -> Figure:
    """Two scales as arrows with their weights, and the fused vector g on the line between their tips; a panel for each
    ω. Shade: the score that ω gives to a vector at each place of the plane, high in violet.

    x10, x20 and each ω: (2,).
    """
    figure, axes = plt.subplots(1, len(omegas), figsize=(2.1 * len(omegas), 2.4), sharey=True)
    for ax, omega in zip(axes, omegas):
        _gate(ax, x10, x20, omega)
    axes[0].set_ylabel("channel 2")
    plt.close(figure)
    return figure


def gate(x10: Tensor, x20: Tensor, angle: int, length: float) -> Figure:
    """Two scales as arrows with their weights, and the fused vector g, for an ω of `length` that points at `angle`
    degrees; as `gates`."""
    figure, ax = plt.subplots(figsize=(3.9, 3.9))
    _gate(ax, x10, x20, length * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))]))
    ax.set_ylabel("channel 2")
    plt.close(figure)
    return figure


# ------------------------------------------------------------------------------------------------ λ


def lam_terms(table: pd.DataFrame, slides: int, before: pd.Series) -> Figure:
    """What λ does: both terms of the loss, the feature spread and L_ot measured by it at the end of training, and the
    accuracy on slides held out with its 95 % interval (Wilson's). Dashed: where training began.

    table: a row a run, indexed by its name, in order; columns L_ot, L_ce, spread, accuracy. slides: how many were held
    out. before: L_ot and spread before the first step.
    """
    figure, axes = plt.subplots(2, 2, figsize=(6.0, 5.0), sharex=True)
    axes, place = axes.ravel(), np.arange(len(table))
    look = dict(marker="o", markersize=5, linestyle=":", linewidth=1)
    axes[0].plot(place, table.L_ot, color=ORANGE, label="L_ot", **look)
    axes[0].plot(place, table.L_ce, color=GREEN, label="L_ce", **{**look, "marker": "s"})
    axes[1].plot(place, table.spread, color=ORANGE, **look)
    axes[2].plot(place, table.L_ot / table.spread, color=ORANGE, **look)
    axes[3].plot(place, table.accuracy, color=BLUE, **look)
    intervals = [binomtest(round(share * slides), slides).proportion_ci(method="wilson") for share in table.accuracy]
    axes[3].vlines(place, *zip(*intervals), color=BLUE, linewidth=1.2)
    for ax, level in zip(axes, (before.L_ot, before.spread, before.L_ot / before.spread, 0.5)):
        ax.axhline(level, color=GREY, linestyle="--", linewidth=1, zorder=0)
    for ax, title in zip(axes, ("The two terms", "Feature spread", "L_ot by spread", "Accuracy, held out")):
        ax.set_title(title, fontsize=9)
        ax.set_xticks(place, table.index, rotation=90, fontsize=7)
        ax.grid(axis="x", visible=False)
    for ax in axes[:2]:
        ax.set_yscale("log")
    axes[0].legend()
    axes[2].set_ylim(bottom=0)
    axes[3].set_ylim(0.3, 1.02)
    plt.close(figure)
    return figure


def gradient_shares(norms: pd.DataFrame) -> Figure:
    """The share of λ L_ce in the gradient on the projection, against λ; a line for each model.

    norms: a row a model, indexed by its name; columns L_ot, L_ce: lengths of the gradients. Dotted: where both are
    equally strong.
    """
    figure, ax = plt.subplots(figsize=(5.2, 2.9))
    lam = np.logspace(-2, 3, 200)
    for (name, row), colour in zip(norms.iterrows(), (BLUE, ORANGE, GREEN, PINK)):
        ax.plot(lam, lam * row.L_ce / (lam * row.L_ce + row.L_ot), color=colour, label=name)
        ax.scatter(row.L_ot / row.L_ce, 0.5, color=colour, zorder=3)
        ax.annotate(
            f"λ = {row.L_ot / row.L_ce:.1f}",
            (row.L_ot / row.L_ce, 0.5),
            textcoords="offset points",
            xytext=(6, -10),
            fontsize=8,
            color=colour,
        )
    ax.axhline(0.5, color=GREY, linestyle=":", linewidth=1)
    ax.set(xscale="log", xlabel="λ", ylabel="share of λ L_ce", ylim=(-0.02, 1.02))
    ax.legend()
    plt.close(figure)
    return figure


def few_tiles(losses: pd.DataFrame, pulls: pd.DataFrame) -> Figure:
    """How hard both terms pull at the projection before the first step, and what L_ce then comes to, epoch by epoch.

    losses: columns run, epoch, L_ce, a row a step, runs in order; an epoch is drawn as the mean of its steps. pulls: a
    row a run, indexed by its name; columns L_ot, L_ce: lengths of the gradients, 0 where there is none. Dotted right:
    L_ce of a coin, ln 2.
    """
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 2.9), width_ratios=(1, 1.2))
    place = np.arange(len(pulls))[::-1]
    for term, colour in (("L_ot", ORANGE), ("L_ce", GREEN)):
        there = (pulls[term] > 0).to_numpy()
        axes[0].scatter(pulls[term][there], place[there], s=45, color=colour, label=term, zorder=3)
    axes[0].set(xscale="log", yticks=place, yticklabels=pulls.index, ylim=(-0.6, len(pulls) - 0.4))
    axes[0].set_title("Gradient at the first step", fontsize=9)
    axes[0].legend(fontsize=7, loc="lower right")
    for (name, rows), (colour, line) in zip(losses.groupby("run", sort=False), FORMS):
        mean = rows.groupby("epoch").L_ce.mean()
        axes[1].plot(mean.index, mean, color=colour, linestyle=line, label=name)
    axes[1].axhline(np.log(2), color=GREY, linestyle=":", linewidth=1)
    axes[1].set(xlabel="epoch", ylim=(0, None))
    axes[1].set_title("L_ce", fontsize=9)
    axes[1].legend(fontsize=7)
    plt.close(figure)
    return figure


# ------------------------------------------------------------------------------------------------ collapse

LOOKS = ((BLUE, "-"), (BLUE, "--"), (ORANGE, "-"), (ORANGE, "--"), (GREEN, "-"), (GREY, ":"))


def collapse(history: pd.DataFrame) -> Figure:
    """The feature spread, relative to its start, and L_ce, step by step, for each run.

    history: columns run, step, spread, L_ce, runs in order. Dotted right: L_ce of a coin, ln 2.
    """
    figure, axes = plt.subplots(1, 2, figsize=(6.0, 3.3))
    for (name, rows), (colour, line) in zip(history.groupby("run", sort=False), LOOKS):
        relative = rows.spread / rows.spread.iloc[0]
        axes[0].plot(rows.step, relative.clip(lower=1e-4), color=colour, linestyle=line, label=name)
        axes[1].plot(rows.step, rows.L_ce, color=colour, linestyle=line)
    axes[0].set(yscale="log", ylim=(0.8e-4, 4))
    axes[0].set_title("Spread by its start (0.0001: or less)", fontsize=9)
    axes[1].set_title("L_ce", fontsize=9)
    axes[1].axhline(np.log(2), color=GREY, linestyle=":", linewidth=1)
    for ax in axes:
        ax.set_xlabel("step")
    figure.legend(loc="outside lower center", ncols=3)
    plt.close(figure)
    return figure


def shrinking(clouds: dict[int, Tensor]) -> Figure:
    """The projected tiles of all slides at 10x (blue) and 20x (orange), in two of their channels, as training goes on.

    clouds: by step, (B, 2, K, d); all panels have the limits of the first.
    """
    figure, axes = plt.subplots(1, len(clouds), figsize=(2.1 * len(clouds), 2.3), sharex=True, sharey=True)
    for ax, (step, tiles) in zip(axes, clouds.items()):
        for scale, colour in enumerate((BLUE, ORANGE)):
            ax.scatter(*tiles[:, scale, :, :2].flatten(0, 1).numpy().T, s=5, color=colour, alpha=0.6, linewidth=0)
        ax.set_title(f"step {step}", fontsize=9)
        ax.set(xticks=[], yticks=[])
    first = np.abs(next(iter(clouds.values()))[..., :2].numpy()).max()
    axes[0].set(xlim=(-first, first), ylim=(-first, first))
    plt.close(figure)
    return figure
