"""A slide to zoom into, its scores laid over it, for whoever sits before the notebook; a figure for all others."""

from __future__ import annotations

import numpy as np
import pandas as pd
from IPython import get_ipython
from ipywidgets import Dropdown, FloatSlider, HBox, VBox
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from dmsmil.export import heatmap


def watched() -> bool:
    """Whether a person runs this cell: papermill and nbclient tell the kernel that nobody can answer a question."""
    shell = get_ipython()
    return bool(getattr(getattr(shell, "kernel", None), "_allow_stdin", False))


def overlay(scores: pd.DataFrame, side: dict[int, int], dimensions: tuple[int, int], scale: int) -> Image.Image:
    """RGBA picture of one scale's normalised scores over the whole slide, clear where there is no tile."""
    image, _ = heatmap(scores, side, dimensions)
    value = image[sorted(scores.scale.unique()).index(scale)]
    colour = colormaps["inferno"](np.nan_to_num(value))
    colour[..., 3] = np.isfinite(value)
    return Image.fromarray((colour * 255).round().astype(np.uint8), "RGBA")


def zoomable(view: dict, scores: pd.DataFrame, figure: Figure) -> VBox | Figure:
    """A zoomable slide with the scores over it (jupyter-islide), a choice of scale, and a slider of opacity.

    view: `features.slide_views`; scores: `explain.tile_scores` of this slide; figure: what is returned where nobody
    watches, or where the slide's format is not one that the viewer reads.
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
    opacity = FloatSlider(0.5, min=0, max=1, step=0.05, description="opacity")

    def show(_=None):
        viewer.set_overlay(overlay(scores, view["side"], view["dimensions"], scale.value), opacity.value, None)

    scale.observe(show, "value")
    opacity.observe(show, "value")
    show()
    return VBox([HBox([scale, opacity]), viewer])
