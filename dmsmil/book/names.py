"""How a page calls a row of a result table: by a short name, its options beside it and never in it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pandas as pd

from dmsmil.models import METHODS

OPTION = re.compile(r", (?=\w+=|\d+ epochs$)")  # between two options of a name; a list has commas of its own
WORDS = {"deformable=False": "deformable attention", "ot=none": "transport"}  # options that have a name in plain words


def named(table: pd.DataFrame) -> pd.DataFrame:
    """`table` (columns name, method and scales, as `results.result_table`) with three more columns.

    short: the method and its one scale. said: the same, with what it is without ("DMSMIL without transport"), and a
    number where another row is called so too. options: what neither says, as in the params file.
    """
    parts = [_parts(*row) for row in table[["name", "method", "scales"]].itertuples(index=False)]
    short, said, options = ([part[place] for part in parts] for place in range(3))
    return table.assign(short=short, said=_numbered(said, options), options=options)


def _parts(name: str, method: str, scales: str) -> tuple[str, str, str]:
    """short, said and options of one row, from the name that `results.run_names` gave it."""
    short = METHODS[method].title if method in METHODS else ""
    if "+" not in scales:
        short = f"{short} {scales}"
    if not method or not name.startswith(short):
        short = name.partition(", ")[0]
    options = OPTION.split(name.removeprefix(short).removeprefix(", "))
    without = [WORDS[option] for option in options if option in WORDS]
    said = short + (f" without {' and '.join(without)}" if without else "")
    return short, said, ", ".join(option for option in options if option not in WORDS)


def _numbered(names: list[str], options: list[str]) -> list[str]:
    """`names` with (2), (3), ... after those that were there before, by their options, a row without any first: so a
    table in another order calls its rows the same."""
    counts, found = {}, list(names)
    for place in sorted(range(len(names)), key=lambda place: options[place]):
        name = names[place]
        counts[name] = counts.get(name, 0) + 1
        if counts[name] > 1:
            found[place] = f"{name} ({counts[name]})"
    return found


def retold(text: str, table: pd.DataFrame, written: Callable[[str], str] = str) -> str:
    """`text` with the rows of `table` called as `named` says them; written: how names stand in `text`."""
    rows = named(table)
    told = {written(name): written(said) for name, said in zip(rows["name"], rows.said) if name != said}
    if not told:
        return text
    longest = sorted(told, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest)), lambda found: told[found[0]], text)
