"""Notebook 09: which of the paper's claims held."""

from __future__ import annotations

from textwrap import wrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from dmsmil.analysis.claims import EQUIVALENT, HELD, NOT_HELD, NOT_RUN, NOT_SHOWN
from dmsmil.figures.base import BLUE, DARK, FAINT, GREEN, GREY, ORANGE, bare, finish


def claims_board(claims: pd.DataFrame, out) -> Figure:
    """The paper's claims, a row each: whether it held here, what the paper says, and the number that decides.

    claims: as `dmsmil.analysis.claims.claims`.
    """
    marks = {
        HELD: ("✓", BLUE),
        EQUIVALENT: ("≈", GREEN),
        NOT_SHOWN: ("~", GREY),
        NOT_HELD: ("✗", ORANGE),
        NOT_RUN: ("–", FAINT),
    }
    cells = [
        (row, wrap(f"{row.claim} ({row['in the paper']})", 54, break_on_hyphens=False), wrap(row.number, 70))
        for _, row in claims.iterrows()
    ]
    depths = [max(len(claim), len(number), 2) + 0.7 for _, claim, number in cells]
    figure, ax = plt.subplots(figsize=(9.4, 0.155 * (sum(depths) + 2)))
    y = 0.0
    for x, head in ((0.055, "verdict"), (0.15, "the paper's claim"), (0.55, "here")):
        ax.text(x, y - 0.5, head, fontsize=8, fontweight="bold", va="bottom", color=DARK)
    for (row, claim, number), depth in zip(cells, depths):
        mark, colour = marks[row.verdict]
        ax.axhspan(y, y + depth, facecolor=colour, alpha=0.09, edgecolor="none")
        ax.plot([0, 0], [y, y + depth], color=colour, linewidth=5, solid_capstyle="butt")
        middle = y + depth / 2
        ax.text(0.03, middle, mark, fontsize=13, fontweight="bold", color=colour, ha="center", va="center")
        ax.text(0.055, middle, row.verdict, fontsize=8.5, fontweight="bold", color=colour, va="center")
        ax.text(0.15, middle, "\n".join(claim), fontsize=8, va="center", linespacing=1.25)
        ax.text(0.55, middle, "\n".join(number), fontsize=7.5, va="center", color=DARK, linespacing=1.25)
        y += depth + 0.12
    ax.set(xlim=(0, 1), ylim=(y, -1.6))
    bare(ax)
    return finish(figure, out, claims)
