"""Every plot of the study. Each function draws one figure, saves it as PNG with the data behind it, and returns it.

`out` is the figure's path without suffix: the picture goes to `<out>.png`, its data to `<out>.csv` (or `.npz` for
arrays), so that a figure can be checked against numbers.
"""

from dmsmil.figures.inside import sampling_points, tile_scores, transport_plan
from dmsmil.figures.results import (
    calibration_curve,
    confusion_matrix,
    critical_difference,
    learning_curves,
    paired_differences,
    result_intervals,
    roc,
    toy_comparison,
)
from dmsmil.figures.slides import (
    chosen_tiles,
    cohort_overview,
    feature_map,
    linked_pairs,
    scale_similarity,
    slide_thumbnails,
    tile_counts,
)

__all__ = [
    "calibration_curve",
    "chosen_tiles",
    "cohort_overview",
    "confusion_matrix",
    "critical_difference",
    "feature_map",
    "learning_curves",
    "linked_pairs",
    "paired_differences",
    "result_intervals",
    "roc",
    "sampling_points",
    "scale_similarity",
    "slide_thumbnails",
    "tile_counts",
    "tile_scores",
    "toy_comparison",
    "transport_plan",
]
