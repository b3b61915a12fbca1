"""Walkthrough 3, deformable attention on a small map: where a query looks, what it reads, what a tile weighs."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dmsmil.figures import base
from dmsmil.models.deformable import DeformableAttention, Samples
from dmsmil.models.maps import corners, full_maps, lay_out

HEADS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
RATE = 0.02  # of the steps of `moving`


def _cells(ax, values: np.ndarray) -> None:
    """The tiles as grey cells, dark where `values` (H, W) is high, with the numbers of columns and rows."""
    height, width = values.shape
    low, high = np.min(values), np.max(values)
    ax.imshow(values, cmap="Greys", vmin=low - 0.1 * (high - low), vmax=high + 0.8 * (high - low))
    base.bare(ax)
    ax.vlines(np.arange(width + 1) - 0.5, -0.5, height - 0.5, color="white", linewidth=0.7)
    ax.hlines(np.arange(height + 1) - 0.5, -0.5, width - 0.5, color="white", linewidth=0.7)
    ax.add_patch(Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor="#444444", linewidth=1.2))
    for column in range(width):
        ax.text(column, height - 0.3, column, ha="center", va="top", fontsize=6.5, color="#777777")
    for line in range(height):
        ax.text(width - 0.35, line, line, ha="left", va="center", fontsize=6.5, color="#777777")


def _query(ax, values: np.ndarray, reference, reach: float) -> None:
    """A ring, a dashed square of what it can reach, and the axes just large enough for it and the map."""
    height, width = values.shape
    (x, y), room = reference, reach + 0.2
    ax.set_xlim(min(-0.5, x - room), max(width - 0.2, x + room))
    ax.set_ylim(max(height + 0.2, y + room), min(-0.5, y - room))
    ax.add_patch(
        Rectangle(
            np.subtract(reference, reach),
            2 * reach,
            2 * reach,
            fill=False,
            edgecolor="#777777",
            linestyle=(0, (3, 2)),
            linewidth=1,
        )
    )
    ax.scatter(*reference, s=110, facecolor="none", edgecolor="black", linewidth=1.8, zorder=5)


def _points(ax, values: np.ndarray, points: np.ndarray, sizes: np.ndarray, colours) -> None:
    """Sampling points; one outside the map is hollow, with a dotted line to the place of the border that it reads."""
    held = np.clip(points, 0, np.array(values.shape[::-1]) - 1)
    for point, at, size, colour in zip(points, held, sizes, colours):
        out = np.abs(point - at).max() > 0.5
        ax.plot(*zip(point, at), color=colour, linestyle=":", linewidth=1.3, zorder=3)
        ax.scatter(
            *point,
            s=size,
            facecolor="white" if out else colour,
            edgecolor=colour if out else "white",
            linewidth=1.3 if out else 0.7,
            zorder=4,
        )


def looking(values: np.ndarray, samples: Samples, reach: float, query: int) -> Figure:
    """One query (ring) and its sampling points, coloured by head, as large as their attention; dashed: its reach.

    values (H, W): the first channel of the map, drawn in grey; samples of one map; reach: c of eq. (3) in cells; query:
    the number of a cell, in raster order. Hollow points lie outside the map and read the border (dotted line).
    """
    values = np.asarray(values)
    reference = np.array([query % values.shape[1], query // values.shape[1]], float)
    points = np.stack([samples.x[0, 0, query], samples.y[0, 0, query]], -1)  # (M, U, 2)
    attention = np.asarray(samples.attention[0, 0, query])
    figure, ax = plt.subplots(figsize=(6.0, 4.0))
    _cells(ax, values)
    _query(ax, values, reference, reach)
    for head, colour in zip(range(len(points)), HEADS):
        for point in points[head]:
            ax.plot(*zip(reference, point), color=colour, linewidth=0.8, alpha=0.7, zorder=2)
        _points(ax, values, points[head], 25 + 130 * attention[head], [colour] * len(attention[head]))
        ax.scatter([], [], s=45, color=colour, label=f"head {head}")
    ax.set_title(
        f"The query at column {query % values.shape[1]}, row {query // values.shape[1]}, and where it looks", fontsize=9
    )
    figure.legend(loc="outside lower center", ncols=len(points))
    plt.close(figure)
    return figure


def bilinear(values: np.ndarray, point: tuple[float, float]) -> Figure:
    """Bilinear sampling: a corner's weight is the area of the rectangle across from it, in the same colour.

    values (H, W); point: (x, y) in cells, inside the map and not on its last row or column.
    """
    values, (x, y) = np.asarray(values), (float(v) for v in point)
    left, top = int(np.floor(x)), int(np.floor(y))
    figure, ax = plt.subplots(figsize=(4.6, 4.0))
    total = 0.0
    for number, colour in enumerate(HEADS):
        across, down = number % 2, number // 2  # the corner at (left + across, top + down)
        start = (left if across else x, top if down else y)
        size = (x - left if across else left + 1 - x, y - top if down else top + 1 - y)
        weight, value = size[0] * size[1], float(values[top + down, left + across])
        total += weight * value
        ax.add_patch(Rectangle(start, *size, facecolor=colour, alpha=0.35, edgecolor="white", linewidth=1.5))
        ax.scatter(left + across, top + down, s=170, marker="s", color=colour, zorder=3)
        ax.text(
            left + across,
            top + down + (0.09 if down else -0.09),
            f"value {value:.2f}\nweight {weight:.2f}",
            ha="center",
            va="top" if down else "bottom",
            fontsize=8,
        )
    ax.scatter(x, y, s=60, color="black", zorder=4)
    ax.annotate(
        f"reads {total:.2f}",
        (x, y),
        textcoords="offset points",
        fontsize=8,
        fontweight="bold",
        xytext=(8, 8) if x - left < 0.6 else (-8, 8),
        ha="left" if x - left < 0.6 else "right",
    )
    ax.set(
        xlim=(left - 0.2, left + 1.2),
        ylim=(top + 1.3, top - 0.3),
        aspect="equal",
        xlabel="column",
        ylabel="row",
        xticks=[left, left + 1],
        yticks=[top, top + 1],
    )
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    plt.close(figure)
    return figure


def climb(
    values: np.ndarray, points: np.ndarray, reference: tuple[float, float], reach: float, steps: int
) -> np.ndarray:
    """Sampling points that follow the gradient of what they read: (steps + 1, P, 2), in cells.

    values (H, W); points (P, 2): where they start, less than `reach` cells from `reference` in x and in y, because what
    moves is the number before the tanh of eq. (3).
    """
    height, width = values.shape
    maps, flat = full_maps(height, width, (1, 1), None), torch.as_tensor(values).flatten()
    start = torch.as_tensor(reference, dtype=flat.dtype)
    free = ((torch.as_tensor(points, dtype=flat.dtype) - start) / reach).atanh()
    trail = [start + reach * free.tanh()]
    for _ in range(steps):
        free = free.detach().requires_grad_()
        index, weight = corners(*(start + reach * free.tanh())[None, None].unbind(-1), maps)
        free = free.detach() + RATE * torch.autograd.grad((flat[index] * weight).sum(), free)[0]
        trail.append(start + reach * free.tanh())
    return torch.stack(trail).numpy()


def moving(values: np.ndarray, points: np.ndarray, reference: tuple[float, float], reach: float, step: int) -> Figure:
    """The sampling points of one query (ring) on their way to darker cells; small dots: where they started.

    Arguments as for `climb`; points (M, U, 2); step: how many steps they have gone.
    """
    values, points = np.asarray(values), np.asarray(points)
    trail = climb(values, points.reshape(-1, 2), reference, reach, step)
    figure, ax = plt.subplots(figsize=(6.0, 3.6))
    _cells(ax, values)
    _query(ax, values, reference, reach)
    colours = [colour for colour in HEADS[: len(points)] for _ in points[0]]
    for path, colour in zip(trail.transpose(1, 0, 2), colours):
        ax.plot(*path.T, color=colour, linewidth=1.5, zorder=2)
        ax.scatter(*path[0], s=12, color=colour, zorder=2)
    _points(ax, values, trail[-1], np.full(trail.shape[1], 55), colours)
    ax.set_title(f"After {step} steps", fontsize=9)
    plt.close(figure)
    return figure


def weight_map(weights: np.ndarray) -> Figure:
    """The weight of every tile in the pooled vector, in units of what a mean gives it.

    weights (H, W), divided by their mean.
    """
    relative = np.asarray(weights) / np.mean(np.asarray(weights))
    figure, ax = plt.subplots(figsize=(6.0, 2.8))
    image = ax.imshow(relative, cmap="viridis", vmin=0)
    for (row, column), value in np.ndenumerate(relative):
        ax.text(
            column,
            row,
            f"{value:.1f}",
            ha="center",
            va="center",
            fontsize=7.5,
            color="white" if value < 0.6 * relative.max() else "black",
        )
    base.bare(ax)
    ax.set_title("Weight in the pooled vector, mean over heads; 1: as in a mean", fontsize=9)
    figure.colorbar(image, ax=ax, shrink=0.85)
    plt.close(figure)
    return figure


def border_maps(sizes: tuple[int, ...]) -> Figure:
    """The weight of every tile before any training, in units of what a mean gives it, on maps of several sizes.

    sizes: tiles of each map. The title says how many of the sampling points lie outside the map.
    """
    drawn = [untrained(size) for size in sizes]
    figure, axes = plt.subplots(-(-len(sizes) // 2), 2, figsize=(6.0, 1.7 * -(-len(sizes) // 2)), squeeze=False)
    most = max(np.nanmax(weights) for weights, _ in drawn)
    for ax, size, (weights, outside) in zip(axes.flat, sizes, drawn):
        image = ax.imshow(weights, cmap="viridis", vmin=0, vmax=most)
        base.bare(ax)
        ax.set_title(f"K = {size}: {outside:.0%} outside", fontsize=8, fontweight="normal")
    figure.colorbar(image, ax=axes, shrink=0.7, label="weight; 1 in a mean")
    plt.close(figure)
    return figure


@torch.no_grad()
def untrained(size: int) -> tuple[np.ndarray, float]:
    """The weights (H, W) that a new layer of the default size gives the tiles of a map, with mean 1; empty cells are
    nan. And the share of its sampling points that lie outside the map."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer, x = DeformableAttention(1, 8, 4, 4, "cells", "linear", "points"), torch.randn(1, 1, size, 8)
    maps = lay_out(torch.ones(1, 1, size, dtype=torch.bool))
    height, width, samples = int(maps.height), int(maps.width), layer.sample(x, maps)
    outside = (samples.x < 0) | (samples.x > width - 1) | (samples.y < 0) | (samples.y > height - 1)
    weights = np.full(height * width, np.nan)
    weights[:size] = layer.weights(x, maps, torch.full((1, 1, size), 1 / layer.heads))[0, 0].sum(0)
    return weights.reshape(height, width), float(outside.double().mean())


def cost_curves(table: pd.DataFrame) -> Figure:
    """Reads and multiplications against the number of tiles, for full attention and for deformable attention.

    table: columns tiles; full pairs, deformable reads; full layer, deformable layer. At each number of tiles stands how
    many times fewer deformable attention has.
    """
    figure, axes = plt.subplots(1, 2, figsize=(6.0, 2.9))
    parts = (
        ("Reads", "full pairs", "deformable reads"),
        ("Multiplications of the whole layer", "full layer", "deformable layer"),
    )
    for ax, (title, full, ours) in zip(axes, parts):
        for column, colour, name, marker in (
            (full, "#D55E00", "full attention", "s"),
            (ours, "#0072B2", "deformable attention", "o"),
        ):
            ax.loglog(table.tiles, table[column], color=colour, marker=marker, markersize=4, label=name)
        for row in table.to_dict("records"):
            ax.annotate(
                f"{row[full] / row[ours]:.1f}×",
                (row["tiles"], max(row[full], row[ours])),
                ha="center",
                fontsize=7,
                textcoords="offset points",
                xytext=(-5, 6),
                color="#444444",
            )
        ax.margins(0.14)
        ax.axvline(200, color="#777777", linestyle=":", linewidth=1, zorder=0)
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("tiles K of a map")
    axes[0].legend(loc="lower right")
    plt.close(figure)
    return figure
