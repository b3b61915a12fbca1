"""Walkthrough 4, optimal transport on eight points: pairings, the plan, the pull on each point, Sinkhorn's blur."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from dmsmil.figures import base
from dmsmil.models import transport

BLUE, ORANGE = base.SCALE_COLOURS[10], base.SCALE_COLOURS[20]


def _clouds(ax, x10: np.ndarray, x20: np.ndarray, numbers: bool = True) -> None:
    """Both clouds (8, 2), 10x as disks and 20x as squares, each with the number of its tile."""
    for x, colour, marker in ((x10, BLUE, "o"), (x20, ORANGE, "s")):
        ax.scatter(
            *x.T, s=80 if numbers else 26, color=colour, marker=marker, edgecolor="white", linewidth=0.8, zorder=3
        )
        for number, place in enumerate(x if numbers else ()):
            ax.text(*place, number, color="white", fontsize=6.5, fontweight="bold", ha="center", va="center", zorder=4)
    base.bare(ax)
    ax.set_aspect("equal")
    ax.margins(0.08)


def _ties(ax, x10: np.ndarray, x20: np.ndarray, plan: np.ndarray) -> None:
    """A line for each entry of the plan (8, 8), as dark as its mass."""
    rows, columns = np.nonzero(plan > 1e-4 / len(plan))
    share = plan[rows, columns] * len(plan)
    colours = [(0.2, 0.2, 0.2, min(1.0, s)) for s in share]
    ax.add_collection(LineCollection(np.stack([x10[rows], x20[columns]], 1), colors=colours, linewidths=1.4, zorder=1))


def _plan(x10: Tensor, x20: Tensor, eps: float) -> np.ndarray:
    """The coupling of both clouds (n, 2): the optimal one for eps = 0, else the entropic one; (n, n)."""
    mask = torch.ones(1, len(x10), dtype=torch.bool)
    kind = dict(kind="entropic", entropy=eps) if eps else dict(kind="exact")
    return transport.plan(x10[None], x20[None], mask, mask, **kind)[0].numpy()


def points_and_costs(x10: Tensor, x20: Tensor) -> Figure:
    """Eight tiles at 10x (disks) and at 20x (squares) as points of the plane, and the distance of every pair.

    x10, x20 (8, 2). Row j of the matrix is tile j at 10x, column k tile k at 20x.
    """
    cost = torch.cdist(x10, x20).numpy()
    figure, axes = plt.subplots(1, 2, figsize=(6.0, 3.0))
    _clouds(axes[0], x10.numpy(), x20.numpy())
    axes[0].set_title("10x (disks) and 20x (squares)", fontsize=9)
    axes[1].imshow(cost, cmap="cividis_r")
    for (row, column), value in np.ndenumerate(cost):
        axes[1].text(
            column,
            row,
            f"{value:.1f}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if value > 0.6 * cost.max() else "black",
        )
    axes[1].grid(False)
    axes[1].tick_params(length=0)
    axes[1].set(xticks=range(len(cost)), yticks=range(len(cost)), xlabel="tile at 20x", ylabel="tile at 10x")
    axes[1].set_title("Cost of every pair", fontsize=9)
    plt.close(figure)
    return figure


def pairings(x10: Tensor, x20: Tensor, ways: dict[str, np.ndarray]) -> Figure:
    """Ways to give every 10x tile one 20x tile, a panel a way, with the mean distance of the pairs.

    x10, x20 (8, 2); ways: by name, the 20x tile (8,) of every 10x tile.
    """
    a, b = x10.numpy(), x20.numpy()
    figure, axes = plt.subplots(1, len(ways), figsize=(2.0 * len(ways), 2.3))
    for ax, (name, columns) in zip(axes, ways.items()):
        _ties(ax, a, b, np.eye(len(a))[np.asarray(columns)] / len(a))
        _clouds(ax, a, b)
        ax.set_title(f"{name}: {np.linalg.norm(a - b[columns], axis=1).mean():.3f}", fontsize=9)
    plt.close(figure)
    return figure


def all_pairings(costs: np.ndarray, marks: dict[str, float]) -> Figure:
    """The mean distance of every possible pairing, and where the named ones lie among them."""
    figure, ax = plt.subplots(figsize=(6.0, 2.6))
    ax.hist(costs, bins=120, color="#bbbbbb")
    top = ax.get_ylim()[1]
    for number, (name, value) in enumerate(sorted(marks.items(), key=lambda pair: pair[1])):
        ax.axvline(value, color=(ORANGE, "#444444", BLUE)[number % 3], linewidth=1.4)
        ax.text(
            value,
            top * (0.95 - 0.16 * number),
            f" {name}",
            fontsize=8,
            va="top",
            color=(ORANGE, "#444444", BLUE)[number % 3],
        )
    ax.set(xlabel="mean distance of the pairs", ylabel="pairings", title=f"All {len(costs):,} pairings")
    plt.close(figure)
    return figure


def pulls(x10: Tensor, x20: Tensor, force10: Tensor, force20: Tensor) -> Figure:
    """The pull of L_ot on every point, an arrow along the negative gradient; grey: the optimal pairs.

    x10, x20 and the forces (8, 2); arrows are drawn 2.5 times as long as the forces are.
    """
    figure, ax = plt.subplots(figsize=(4.6, 4.0))
    _ties(ax, x10.numpy(), x20.numpy(), _plan(x10, x20, 0) * 0.4)
    for x, force, colour in ((x10, force10, BLUE), (x20, force20, ORANGE)):
        ax.quiver(
            *x.numpy().T,
            *(2.5 * force.numpy()).T,
            color=colour,
            angles="xy",
            scale_units="xy",
            scale=1,
            width=0.009,
            zorder=2,
        )
    _clouds(ax, x10.numpy(), x20.numpy())
    plt.close(figure)
    return figure


# ------------------------------------------------------------------------------------------------ Sinkhorn's blur


def _blur(axes, x10: Tensor, x20: Tensor, eps: float) -> None:
    plan = _plan(x10, x20, eps)
    _ties(axes[0], x10.numpy(), x20.numpy(), plan)
    _clouds(axes[0], x10.numpy(), x20.numpy(), numbers=False)
    axes[0].set_title(f"ε = {eps:g}" if eps else "exact", fontsize=9)
    axes[1].imshow(plan * len(plan), cmap="Greys", vmin=0, vmax=1)
    axes[1].set(xticks=[], yticks=[])
    axes[1].grid(False)
    mean = float((plan * torch.cdist(x10, x20).numpy()).sum())
    axes[1].set_xlabel(f"mean distance {mean:.3f}", fontsize=8)


def blurs(x10: Tensor, x20: Tensor, strengths: tuple[float, ...]) -> Figure:
    """Couplings of growing blur ε (0: the optimal one): above as lines between the clouds, below as matrices.

    x10, x20 (n, 2); a line or an entry is as dark as the mass it carries.
    """
    figure, axes = plt.subplots(2, len(strengths), figsize=(1.75 * len(strengths), 3.7))
    for column, eps in zip(axes.T, strengths):
        _blur(column, x10, x20, eps)
    plt.close(figure)
    return figure


def blur(x10: Tensor, x20: Tensor, eps: float) -> Figure:
    """One coupling of blur ε (0: the optimal one): left as lines between the clouds, right as a matrix; as `blurs`."""
    figure, axes = plt.subplots(1, 2, figsize=(6.0, 2.9))
    _blur(axes, x10, x20, eps)
    plt.close(figure)
    return figure


def drift(x10: Tensor, x20: Tensor, eps: float, steps: int, rate: float = 0.4) -> tuple[Tensor, Tensor]:
    """Both clouds (n, 2) after `steps` steps down the gradient of their transport cost, the coupling found anew in
    each and held constant for the gradient, as `transport.distance` does."""
    pair = [x10.clone(), x20.clone()]
    for _ in range(steps):
        pair = [x.detach().requires_grad_() for x in pair]
        plan = torch.from_numpy(_plan(*(x.detach() for x in pair), eps))
        cost = (plan * torch.cdist(*pair, compute_mode="donot_use_mm_for_euclid_dist")).sum()
        pair = [x - rate * g for x, g in zip(pair, torch.autograd.grad(cost, pair))]
    return pair[0].detach(), pair[1].detach()


def endings(x10: Tensor, x20: Tensor, strengths: tuple[float, ...], steps: int = 60) -> Figure:
    """Where the clouds go when every point follows its pull, for couplings of growing blur ε (0: the optimal one).

    x10, x20 (n, 2). Lines lead from where the points started; the title says what is left of the spread, the root mean
    squared distance of all points to their mean.
    """
    figure, axes = plt.subplots(1, len(strengths), figsize=(2.1 * len(strengths), 2.5), sharex=True, sharey=True)
    start = torch.cat([x10, x20])
    for ax, eps in zip(axes, strengths):
        ends = drift(x10, x20, eps, steps)
        for before, after, colour in ((x10, ends[0], BLUE), (x20, ends[1], ORANGE)):
            lines = np.stack([before.numpy(), after.numpy()], 1)
            ax.add_collection(LineCollection(lines, colors=colour, linewidths=0.8, alpha=0.6))
        _clouds(ax, ends[0].numpy(), ends[1].numpy(), numbers=False)
        ax.scatter(*start.numpy().T, s=4, color="#999999", zorder=0)
        left = _spread(torch.cat(ends)) / _spread(start)
        ax.set_title((f"ε = {eps:g}" if eps else "exact") + f": spread {left:.0%}", fontsize=8)
    plt.close(figure)
    return figure


def _spread(x: Tensor) -> float:
    return float((x - x.mean(0)).square().sum(1).mean().sqrt())


def own_child(table: pd.DataFrame) -> Figure:
    """How far transport goes below pairing each tile with its own child, and how many it matches with the own child,
    against the noise between parents and children; a line for each number of channels.

    table: columns channels, noise, ratio (transported by paired distance), own (a share).
    """
    figure, axes = plt.subplots(1, 2, figsize=(6.0, 2.7))
    looks = zip((BLUE, ORANGE, "#009E73", "#CC79A7"), "os^D")
    for (channels, rows), (colour, marker) in zip(table.groupby("channels"), looks):
        for ax, column in zip(axes, ("ratio", "own")):
            ax.plot(rows.noise, rows[column], color=colour, marker=marker, markersize=4, label=f"{channels} channels")
    for ax, title in zip(axes, ("Transported by paired distance", "Share matched with the own child")):
        ax.set_title(title, fontsize=9)
        ax.set(xscale="log", xlabel="noise between parent and child", ylim=(-0.03, 1.05))
    axes[0].legend(loc="lower right")
    plt.close(figure)
    return figure
