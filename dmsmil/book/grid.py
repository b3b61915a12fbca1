"""Tables of a page, in Markdown."""

from __future__ import annotations

import pandas as pd

from dmsmil.jobs.text import as_written


def markdown(table: pd.DataFrame, index: str) -> str:
    """`table`, as it was written, in Markdown; its index first, called `index`; an empty column is left out."""
    return grid(table.rename(index=as_written, columns=as_written).map(as_written), index)


def grid(table: pd.DataFrame, index: str) -> str:
    """A table of Markdown cells as Markdown."""
    cells = table.rename_axis(index).reset_index().astype(str)
    cells = cells.loc[:, (cells != "").any()]
    head, *rows = ["| " + " | ".join(row) + " |" for row in [cells.columns, *cells.to_numpy()]]
    return "\n".join([head, "|" + " --- |" * cells.shape[1], *rows])
