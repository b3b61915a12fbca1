"""Walkthrough 1, from a slide to two bags: the pyramid, magnification, density, linked tiles, the mask."""

from __future__ import annotations

import cv2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from dmsmil.figures import base
from dmsmil.slides.density import WHITE, tissue_pixels
from dmsmil.slides.magnification import tile_size_level0
from dmsmil.slides.reader import Slide
from dmsmil.slides.tiles import Tiles

COLOURS, CALM = 10, 35  # of a shrunk picture of tissue; grey levels between neighbours that are evened out


def _light(image: np.ndarray, px: int = 0) -> np.ndarray:
    """A picture of tissue in few colours, shrunk to `px` pixels on its longer side and without grain (0: as large as
    it is, every pixel). As a PNG it takes a third of the room, and nuclei, fibres and glass stay what they are."""
    if px and max(image.shape[:2]) > px:
        shrunk = px / max(image.shape[:2])
        image = cv2.resize(image, None, fx=shrunk, fy=shrunk, interpolation=cv2.INTER_AREA)
        image = cv2.bilateralFilter(image, 5, CALM, 2)
    colours = COLOURS if px else 2 * COLOURS
    return np.asarray(Image.fromarray(image).quantize(colours, dither=Image.Dither.NONE).convert("RGB"))


def _show(ax, image: np.ndarray, px: int = 0, title: str = "", **where) -> None:
    ax.imshow(_light(image, px), interpolation="nearest", **where)
    base.bare(ax)
    ax.set_title(title, fontsize=8.5, fontweight="normal")


def _ruler(ax, pixels: float, text: str, side: int) -> None:
    """A bar of `pixels` and its length in words, in the lower left corner of a picture of `side` pixels."""
    ax.add_patch(
        Rectangle(
            (0, 0.84 * side),
            max(pixels, 0.26 * side) + 0.08 * side,
            0.16 * side,
            facecolor="white",
            alpha=0.85,
            edgecolor="none",
        )
    )
    ax.plot([0.04 * side, 0.04 * side + pixels], [0.96 * side] * 2, color="black", linewidth=2.5, solid_capstyle="butt")
    ax.text(0.04 * side, 0.94 * side, text, fontsize=7, va="bottom")


def _overview(ax, slide: Slide, px: int) -> None:
    base.show_slide(ax, _light(slide.thumbnail(2 * px), px), slide.dimensions)


def pyramid(slide: Slide, corner: tuple[int, int], side: int = 128) -> Figure:
    """The levels of a slide drawn to one scale, a pixel as large on each, and one small field as each of them has it.

    corner, side: of the field, in level-0 pixels.
    """
    names = [f"{level.number}" for level in slide.levels]
    figure, axes = plt.subplot_mosaic([["whole"] * len(names), names], figsize=(6.4, 4.2), height_ratios=[1.35, 1])
    whole, thumbnail, left, wide = axes["whole"], slide.thumbnail(600), 0.0, slide.dimensions[0]
    for level in slide.levels:
        step, small = level.downsample, round(side / level.downsample)
        whole.imshow(
            _light(thumbnail, round(190 / step)),
            interpolation="nearest",
            extent=(left, left + level.width, level.height, 0),
        )
        whole.add_patch(
            Rectangle(
                (left + corner[0] / step, corner[1] / step),
                side / step,
                side / step,
                fill=False,
                edgecolor="black",
                linewidth=1.2,
            )
        )
        beside = level.number == 0
        whole.text(
            left + (level.width + 0.03 * wide if beside else 0),
            slide.dimensions[1] if beside else level.height + 0.03 * wide,
            f"level {level.number}\n{level.width} × {level.height} px",
            va="bottom" if beside else "top",
            fontsize=8,
        )
        left += level.width + (0.1 if beside else 0.35) * wide
        _show(
            axes[f"{level.number}"],
            slide.region(level, *corner, small),
            0,
            f"its square on level {level.number}: {small} × {small} px",
        )
    whole.set(xlim=(0, 2.1 * wide), ylim=(slide.dimensions[1], 0), aspect="equal", anchor="W")
    base.bare(whole)
    plt.close(figure)
    return figure


def magnifications(
    slide: Slide, centre: tuple[int, int], tile_px: int = 256, among: tuple[int, ...] = (5, 10, 20)
) -> Figure:
    """Tiles of the same number of pixels around one point, at several magnifications; the square is the next one.

    centre: in level-0 pixels.
    """
    figure, axes = plt.subplots(1, len(among), figsize=(5.8, 2.3))
    sides = [tile_size_level0(slide.magnification, scale, tile_px) for scale in among]
    for ax, scale, side, inner in zip(axes, among, sides, [*sides[1:], 0]):
        corner = [at - side // 2 for at in centre]
        mpp = slide.mpp * slide.magnification / scale
        _show(
            ax,
            slide.read(*corner, scale, tile_px),
            130,
            f"{scale}x: {mpp:g} µm a pixel,\n{tile_px * mpp:g} µm wide",
            extent=(0, tile_px, tile_px, 0),
        )
        _ruler(ax, 50 / mpp, "50 µm", tile_px)
        if inner:
            box = tile_px * inner / side
            ax.add_patch(Rectangle(((tile_px - box) / 2,) * 2, box, box, fill=False, linewidth=1.4))
    plt.close(figure)
    return figure


def counted(tiles: list[np.ndarray], names: list[str]) -> Figure:
    """Tiles, and below each its pixels again: those that count as tissue in colour, those that count as white in grey.

    tiles: RGB uint8 (px, px, 3).
    """
    figure, axes = plt.subplots(2, len(tiles), figsize=(1.4 * len(tiles), 3.2), squeeze=False)
    for (above, below), tile, name in zip(axes.T, tiles, names):
        white = (tile >= WHITE).all(-1, keepdims=True)
        _show(above, tile, 95, name)
        _show(below, np.where(white, np.uint8(215), tile), 95, f"density {tissue_pixels(tile) / white.size:.2f}")
    plt.close(figure)
    return figure


def densities(slide: Slide, every: Tiles) -> Figure:
    """A slide, and the density of every tile of its 10x grid.

    every: all tiles of the slide, as `select_tiles` gives them with min_density=0.
    """
    figure, axes = plt.subplots(1, 2, figsize=(6, 3))
    _overview(axes[0], slide, 130)
    side = tile_size_level0(slide.magnification, 10, every.tile_px)
    base.draw_tiles(axes[0], every.coords[10], side, facecolor="none", edgecolor="#555555", linewidth=0.5)
    axes[0].set_title(f"{every.grid} tiles of 10x", fontsize=9)
    shown = base.draw_tiles(axes[1], every.coords[10], side, every.density, cmap="Greys", edgecolor="white")
    shown.set_clim(0, 1.25)  # black numbers stay legible on the darkest tile
    for (x, y), value in zip(every.coords[10][every.density >= 0.005], every.density[every.density >= 0.005]):
        axes[1].text(
            x + side / 2,
            y + side / 2,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=6,
            color="white" if value > 0.8 else "black",
        )
    axes[1].set(xlim=(0, slide.dimensions[0]), ylim=(slide.dimensions[1], 0), aspect="equal")
    base.bare(axes[1])
    axes[1].set_title("density of each", fontsize=9)
    plt.close(figure)
    return figure


def densest(slide: Slide, every: Tiles, k: int, min_density: float = 0.05) -> Figure:
    """The k densest tiles outlined on the slide, and all densities in their order with the cut at k.

    every: as for `densities`; tiles below `min_density` are never taken.
    """
    order = np.argsort(-every.density, kind="stable")
    taken = order[:k][every.density[order[:k]] >= min_density]
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.1), width_ratios=[1, 1.2])
    side = tile_size_level0(slide.magnification, 10, every.tile_px)
    shown = base.draw_tiles(left, every.coords[10], side, every.density, cmap="Greys", edgecolor="white")
    shown.set_clim(0, 1.25)
    base.draw_tiles(
        left, every.coords[10][taken], side, facecolor="none", edgecolor=base.SCALE_COLOURS[10], linewidth=1.8
    )
    left.set(xlim=(0, slide.dimensions[0]), ylim=(slide.dimensions[1], 0), aspect="equal")
    base.bare(left)
    left.set_title(f"K = {k}: {len(taken)} tiles", fontsize=9)
    rank = np.arange(1, len(order) + 1)
    colours = np.where(np.isin(order, taken), base.SCALE_COLOURS[10], "#bbbbbb")
    right.bar(rank, every.density[order], color=colours, width=0.85)
    right.axvline(k + 0.5, color="#444444", linestyle=":", linewidth=1.2)
    right.axhline(min_density, color="#444444", linewidth=0.8)
    right.text(len(order), min_density + 0.02, f"below {min_density:g}: glass", ha="right", fontsize=7.5)
    right.set(xlabel="tiles, densest first", ylabel="density", ylim=(0, 1.02), xlim=(0.3, len(order) + 0.7))
    right.grid(axis="x", visible=False)
    plt.close(figure)
    return figure


def linked_pair(tiles: Tiles, row: int) -> Figure:
    """A 10x tile with its 20x tile as a square, and the middle of that square as each of the two has it.

    tiles: with pixels; row: which pair.
    """
    px, sides = tiles.tile_px, [tile_size_level0(tiles.magnification, scale, tiles.tile_px) for scale in (10, 20)]
    box = px * sides[1] / sides[0]
    x, y = (tiles.coords[20][row] - tiles.coords[10][row]) * px / sides[0]
    figure, axes = plt.subplots(1, 3, figsize=(6.2, 2.4))
    _show(axes[0], tiles.pixels[10][row], 140, "the 10x tile, and its 20x tile", extent=(0, px, px, 0))
    axes[0].add_patch(Rectangle((x, y), box, box, fill=False, edgecolor=base.SCALE_COLOURS[20], linewidth=2))
    axes[0].add_patch(Rectangle((x + box / 4, y + box / 4), box / 2, box / 2, fill=False, linewidth=1))
    for ax, scale, left, top, wide in (
        (axes[1], 10, x + box / 4, y + box / 4, box / 2),
        (axes[2], 20, px / 4, px / 4, px / 2),
    ):
        left, top, wide = round(left), round(top), round(wide)
        _show(
            ax,
            tiles.pixels[scale][row][top : top + wide, left : left + wide],
            0,
            f"its middle at {scale}x: {wide} × {wide} px",
        )
    plt.close(figure)
    return figure


def picture(x: Tensor, mask: Tensor, scales: tuple[int, ...] = (10, 20)) -> Figure:
    """A bag as it is: for each scale its C channels by its K places, and below them the mask.

    x (1, S, K, C), mask (1, S, K).
    """
    figure, axes = plt.subplots(
        2 * len(scales),
        1,
        figsize=(7, 1.35 * len(scales) + 0.4),
        sharex=True,
        height_ratios=[x.shape[-1], 1.3] * len(scales),
    )
    for number, scale in enumerate(scales):
        values, there = x[0, number].numpy().T, mask[0, number].numpy()[None]
        above, below = axes[2 * number : 2 * number + 2]
        above.imshow(values, aspect="auto", cmap="cividis", interpolation="nearest")
        below.imshow(
            there,
            aspect="auto",
            cmap=ListedColormap(["#e0e0e0", base.SCALE_COLOURS.get(scale, "black")]),
            vmin=0,
            vmax=1,
            interpolation="nearest",
        )
        above.set_ylabel(f"{scale}x\n{x.shape[-1]} channels", fontsize=8)
        below.set_ylabel("mask", fontsize=8, rotation=0, ha="right", va="center")
        count = int(there.sum())
        below.text(0, 0, f"{count} tiles", va="center", fontsize=7.5, color="white")
        if count < len(there[0]):
            below.text(count, 0, f"{len(there[0]) - count} empty", va="center", fontsize=7.5)
    for ax in axes:
        ax.set(yticks=[])
        ax.grid(False)
    axes[-1].set_xlabel(f"place in the bag, 0 to {x.shape[2] - 1}")
    plt.close(figure)
    return figure
