"""Every plot of the study: a file a notebook.

Each function draws one figure, saves it as PNG with the data behind it, and returns it. `out` is the figure's path
without suffix: the picture goes to `<out>.png`, its data to `<out>.csv` (or `.npz` for arrays), so that a figure can be
checked against numbers.
"""

from dmsmil.figures.ablation import collapse_curves, variant_differences, witness_rates
from dmsmil.figures.apply import external_curves, said_of_slides, slide_likeness
from dmsmil.figures.base import absent
from dmsmil.figures.cohort import cohort_overview, site_balance, slide_thumbnails
from dmsmil.figures.compare import critical_difference, method_comparison, paired_differences
from dmsmil.figures.cost import cost_panels, growth_curves
from dmsmil.figures.cover import cover
from dmsmil.figures.features import feature_map, scale_similarity
from dmsmil.figures.inside import sampling_points, tile_scores, transport_plan
from dmsmil.figures.interpret import (
    attention_flow,
    extreme_tiles,
    map_quality,
    nuclei_against_score,
    removal_curves,
    score_distributions,
)
from dmsmil.figures.lam import lam_curves
from dmsmil.figures.report import claims_board
from dmsmil.figures.tiles import chosen_tiles, linked_pairs, tile_counts
from dmsmil.figures.train import calibration_curve, confusion_matrix, learning_curves, result_intervals, roc

__all__ = [
    "absent",
    "attention_flow",
    "calibration_curve",
    "chosen_tiles",
    "claims_board",
    "cohort_overview",
    "collapse_curves",
    "confusion_matrix",
    "cost_panels",
    "cover",
    "critical_difference",
    "external_curves",
    "extreme_tiles",
    "feature_map",
    "growth_curves",
    "lam_curves",
    "learning_curves",
    "linked_pairs",
    "map_quality",
    "method_comparison",
    "nuclei_against_score",
    "paired_differences",
    "removal_curves",
    "result_intervals",
    "roc",
    "said_of_slides",
    "sampling_points",
    "scale_similarity",
    "score_distributions",
    "site_balance",
    "slide_likeness",
    "slide_thumbnails",
    "tile_counts",
    "tile_scores",
    "transport_plan",
    "variant_differences",
    "witness_rates",
]
