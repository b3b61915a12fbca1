"""What several studies of docs/results say together: which there are, and when DMSMIL loses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from dmsmil.book.best import best_rows, by_auc, mine_of, ranked, trained
from dmsmil.book.grid import grid, markdown
from dmsmil.book.names import named
from dmsmil.book.results import Lacking, Study, shown_studies
from dmsmil.jobs.text import as_written
from dmsmil.training.results import cell, no_result, with_marks

RATES = ("planted_05", "planted", "planted_40")  # the same patients, more and more of their tissue with the signal
FEW = 3  # names in the sentence


def studies_block(results: Path, page: str) -> str:
    """The studies that have a page: what each is for, how large, when."""
    rows = {}
    for study in shown_studies(results, page):
        values = study.settings()
        rows[f"[{study.name}]({study.link('README.md')})"] = (
            as_written(values.get("purpose", "")),
            values["slides"],
            values["epochs"],
            values.get("date", ""),
        )
    table = pd.DataFrame(rows.values(), index=list(rows), columns=["what it is", "slides", "epochs", "date"])
    return grid(table, "study")


def rates_block(results: Path, page: str) -> str:
    """AUC where little and where much of the tissue carries the signal: a study a column, the rows of `_rows`."""
    studies, rows = _studies(results, page), _rows(results, page)
    shown = pd.DataFrame({"options": list(rows.options)}, index=list(rows.said))
    for study in studies:
        table = study.table("04_compare")
        shown[f"AUC, {_rate(study)} of the tissue"] = [_at(table, name) for name in rows["name"]]
    links = ", ".join(f"[{study.name}]({study.link('README.md')})" for study in studies)
    return (
        f"{markdown(shown, 'method')}\n\nA column a study ({links}): the same patients, the signal in so much of "
        f"their tissue. {when_block(results, page)}"
    )


def when_block(results: Path, page: str) -> str:
    """When DMSMIL loses, in a sentence: against whom of all that was trained, at each share of the tissue."""
    lost = [f"with {_rate(study)} {_lost(study.table('04_compare'))}" for study in _studies(results, page)]
    return f"By the share of the tissue that carries the signal, DMSMIL loses in AUC: {'; '.join(lost)}."


def _studies(results: Path, page: str) -> list[Study]:
    return [Study(results / name, page) for name in RATES]


def _rows(results: Path, page: str) -> pd.DataFrame:
    """The best rows of `planted`, the study in the middle, with their names as pages say them."""
    return best_rows(Study(results / "planted", page).table("04_compare"))


def _rate(study: Study) -> str:
    """The share of a planted study's tissue that carries the signal: 5 %."""
    rate = study.settings().get("witness_rate")
    if rate is None:
        raise Lacking(
            f"the study {study.name} says no witness_rate: collect it again, python -m dmsmil.book.readme "
            f"outputs/{study.name}",
            f"the study {study.name} says no witness_rate",
        )
    return f"{100 * rate:g} %"


def _at(table: pd.DataFrame, name: str) -> str:
    """The AUC of a row with its marks, where the study has the row."""
    found = table[table["name"] == name]
    if found.empty:
        return "not run"
    row = found.iloc[0]
    return with_marks(cell(row, "AUC"), row)


def _lost(table: pd.DataFrame) -> str:
    """Against whom DMSMIL has the lower AUC, in a few words."""
    auc, mine, others = by_auc(table), mine_of(table), trained(table)
    if mine is None or no_result(table)[mine.name]:
        return "nothing, for it has no result,"
    above = ranked(others[auc[others.index] > auc[mine.name]])
    names = [as_written(name) for name in named(table).said[above.index]]
    if not names:
        return f"to none of {len(others)} rows"
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return f"to {len(names)} of {len(others)} rows ({', '.join(names[:FEW])}{more})"


WIDE: dict[str, Callable[[Path, str], str]] = {"studies": studies_block, "rates": rates_block, "when": when_block}
