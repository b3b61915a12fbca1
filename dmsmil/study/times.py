"""How long the notebooks of a study take: the first time, with all its work, and the latest, which may only read."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from dmsmil.jobs.files import write_csv

TRAINING = ("03_train", "04_compare", "05_ablation", "06_lambda")  # the notebooks that train
COLUMNS = ["notebook", "first", "latest"]  # seconds; first is empty where the first attempt did not end


def begin_time(home: Path, notebook: str) -> bool:
    """Note that a notebook begins; True when it never began before, so that what it takes is its first time."""
    times = _read(home)
    if (times.notebook == notebook).any():
        return False
    _write(home, pd.concat([times, pd.DataFrame([{"notebook": notebook}])], ignore_index=True))
    return True


def end_time(home: Path, notebook: str, seconds: float, first: bool) -> None:
    """Write how long a notebook took into times.csv; first: as `begin_time` said."""
    times = _read(home)
    times.loc[times.notebook == notebook, ["first", "latest"] if first else ["latest"]] = round(seconds, 1)
    _write(home, times)


def _read(home: Path) -> pd.DataFrame:
    path = home / "times.csv"
    times = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=COLUMNS)
    return times.reindex(columns=COLUMNS).astype({"first": float, "latest": float})


def _write(home: Path, times: pd.DataFrame) -> None:
    write_csv(times.sort_values("notebook"), home / "times.csv")
