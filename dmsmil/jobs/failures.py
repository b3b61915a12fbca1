"""The table of failures of a study: what failed (a slide, a run), in which stage, and why."""

from __future__ import annotations

import traceback
from pathlib import Path

import pandas as pd

from dmsmil.jobs.files import one_line, write_csv

FAILURE_COLUMNS = ["unit", "stage", "reason", "traceback"]


def failure_row(unit: str, stage: str, error: BaseException) -> dict:
    """One row of failures.csv for `unit` (a slide or a run) that raised `error` in `stage`."""
    trace = "".join(traceback.format_exception(error))
    return dict(unit=unit, stage=stage, reason=one_line(error), traceback=trace)


def read_failures(folder) -> pd.DataFrame:
    """The failures of a study: columns unit, stage, reason, traceback (empty when there are none)."""
    path = Path(folder) / "failures.csv"
    return (
        pd.read_csv(path, dtype=str, keep_default_na=False) if path.exists() else pd.DataFrame(columns=FAILURE_COLUMNS)
    )


def write_failures(folder, stage: str, rows: list[dict]) -> pd.DataFrame:
    """Replace the rows of `stage` in failures.csv by `rows`, so that what works now is no longer listed."""
    old = read_failures(folder)
    kept = old[old.stage != stage]
    if not rows and len(kept) == len(old):
        return old  # nothing to write, as in a study that is only read
    table = pd.concat([kept, pd.DataFrame(rows, columns=FAILURE_COLUMNS)], ignore_index=True)
    path = Path(folder) / "failures.csv"
    if len(table):
        write_csv(table, path)
    else:
        path.unlink(missing_ok=True)
    return table
