"""Notebook 02: what the features of linked tiles share, and the cohort as a map."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from dmsmil.figures.base import finish, in_legend


def scale_similarity(table: pd.DataFrame, out) -> Figure:
    """Cosine of a tile with its own child at the next scale against another tile's child, a panel each two scales.
    Columns: slide_id, scales, linked, other."""
    panels = list(dict.fromkeys(table.scales))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 2.8), squeeze=False)
    for ax, scales in zip(axes[0], panels):
        part = table[table.scales == scales]
        long = part.melt("slide_id", ["linked", "other"], var_name="pair", value_name="cosine")
        sns.kdeplot(long, x="cosine", hue="pair", fill=True, common_norm=False, ax=ax, linewidth=1.2)
        which = f", {scales}" if len(panels) > 1 else ""
        ax.set(
            title=f"A tile and its child, or another's child{which}",
            xlabel="cosine of the features",
            yticks=[],
            ylabel="",
        )
    return finish(figure, out, table)


def feature_map(points: np.ndarray, slides: pd.DataFrame, out) -> Figure:
    """A cohort in two dimensions: one point a slide, coloured by class, and by site where there are several.

    points (N, 2); slides: slide_id, label, site in the same order.
    """
    data = slides[["slide_id", "label", "site"]].assign(x=points[:, 0], y=points[:, 1])
    hues = ["label"] + (["site"] if data.site.nunique() > 1 else [])
    figure, axes = plt.subplots(1, len(hues), figsize=(4 * len(hues), 3.4), squeeze=False)
    named = data.assign(**{hue: data[hue].map(in_legend) for hue in hues})
    for ax, hue in zip(axes[0], hues):
        sns.scatterplot(named, x="x", y="y", hue=hue, ax=ax, s=28, palette="deep" if hue == "site" else None)
        ax.set(title=f"by {'class' if hue == 'label' else hue}", xlabel="component 1", ylabel="component 2")
        ax.legend(title="")
    return finish(figure, out, data)
