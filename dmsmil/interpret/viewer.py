"""What can be moved, for whoever sits before the notebook (a slide to zoom into, sliders); a figure for all others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.display import display
from ipywidgets import HTML, Dropdown, FloatSlider, HBox, SelectionSlider, VBox, interactive, link
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from dmsmil.interpret.export import heatmap

COLOURS = colormaps["inferno"]  # as in figures.tile_scores
SHORTEST = 200  # pixels of the overlay's shorter side, at least: rounded to less, its aspect ratio is not the slide's


def watched() -> bool:
    """Whether a person runs this cell: papermill and nbclient tell the kernel that nobody can answer a question."""
    shell = get_ipython()
    return bool(getattr(getattr(shell, "kernel", None), "_allow_stdin", False))


def overlay(scores: pd.DataFrame, side: dict[int, int], dimensions: tuple[int, int], scale: int) -> Image.Image:
    """RGBA picture of one scale's normalised scores over the whole slide, clear where there is no tile.

    scores, side: as `export.heatmap` takes them; dimensions: (width, height) of the slide. A low
    score covers less than a high one, so that the tissue under it stays visible. The picture has the slide's aspect
    ratio, for a viewer stretches it over the slide.
    """
    image, step = heatmap(scores, side, (0, 0, *dimensions))
    value = image[sorted(scores.scale.unique()).index(scale)]
    colour = COLOURS(np.nan_to_num(value), bytes=True)
    colour[..., 3] = np.where(np.isfinite(value), 255 * (0.2 + 0.6 * np.nan_to_num(value)), 0)
    zoom = max(1 / step, SHORTEST / min(dimensions))
    whole = (0, 0, dimensions[0] / step, dimensions[1] / step)  # the heatmap's last row and column may jut out
    return Image.fromarray(colour).resize([round(n * zoom) for n in dimensions], Image.Resampling.NEAREST, whole)


def zoomable(view: dict, scores: pd.DataFrame, figure: Figure) -> VBox | Figure:
    """A zoomable slide with the scores over it (jupyter-islide), a choice of scale, and a slider of opacity.

    view: `features.views.slide_views`; scores: `explain.tile_scores` of this slide; figure: what is returned where
    nobody watches, or where the slide's format is not one that the viewer reads.
    """
    if not watched():
        return figure
    from islide import SlideViewer
    from openslide import OpenSlideError

    try:
        viewer = SlideViewer(str(view["path"]), canvas_h=520)
    except (OpenSlideError, OSError):
        return figure
    scales = sorted(int(s) for s in scores.scale.unique())
    scale = Dropdown(options=[(f"score at {s}x", s) for s in scales], description="overlay")
    opacity = FloatSlider(0.6, min=0, max=1, step=0.05, description="opacity")
    colours = ", ".join(to_hex(COLOURS(i / 8)) for i in range(9))
    legend = HTML(
        "<span style='white-space: nowrap; margin-left: 1em'>low <span style='display: inline-block; "
        "width: 7em; height: 0.8em; margin: 0 0.3em; vertical-align: baseline; "
        f"background: linear-gradient(to right, {colours})'></span> high</span>"
    )

    def show(_=None):
        viewer.set_overlay(overlay(scores, view["side"], view["dimensions"], scale.value), transparent=None)

    scale.observe(show, "value")
    link((opacity, "value"), (viewer, "overlay_alpha"))
    show()
    return VBox([HBox([scale, opacity, legend]), viewer])


def slider(draw: Callable[..., Figure], **values: list) -> VBox | Figure:
    """`draw` with a slider for each of its arguments; where nobody watches, the figure at the first value of each.

    values: by argument, the values to slide through, the one that a page shows first.
    """
    first = {name: among[0] for name, among in values.items()}
    if not watched():
        return draw(**first)
    sliders = {
        name: SelectionSlider(options=sorted(among), value=among[0], continuous_update=False)
        for name, among in values.items()
    }
    # what is returned would not be shown, and of a partial ipywidgets cannot read the arguments
    return interactive(lambda **chosen: display(draw(**chosen)), **sliders)
