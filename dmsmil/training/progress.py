"""How far the runs in training are, and which are to come: what a study's watcher reads while it trains.

A unit of runs keeps a line in the folder of its first run. Where somebody listens, each question for runs adds how many
of each method it wants and how many of them are trained for it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dmsmil.jobs.files import write_text

NAME, ASKED = "progress.txt", "asked.txt"
SECONDS = 10.0  # between two lines
OLD = 600.0  # seconds after which a line is of a process that is gone


class Progress:
    """What one unit of runs says of itself, in the folder of its first run; gone when the unit ends.

    A context: `with Progress(folder, epochs) as progress: ...`
    """

    def __init__(self, folder: Path, epochs: int):
        self.path, self.epochs, self.said = folder / NAME, epochs, 0.0
        self.found: int | None = None

    def say(self, runs: int, epoch: int) -> None:
        """So many runs have ended this epoch; written at most every `SECONDS`. What came before the first epoch that is
        said was trained by an earlier process."""
        self.found = epoch - 1 if self.found is None else self.found
        if time.monotonic() - self.said > SECONDS:
            write_text(f"{runs} {epoch} {self.epochs} {self.found}\n", self.path)
            self.said = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing trains here any more."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Unit:
    """Runs that train in one pass: how many, the epoch they have ended, of how many, and where this process began."""

    folder: Path
    runs: int
    epoch: int
    epochs: int
    found: int

    @property
    def method(self) -> str:
        """Of the name of its configuration, <method>-<hash>."""
        return self.folder.parent.name.rpartition("-")[0]


def read_progress(home: Path) -> list[Unit]:
    """Every unit of a study that is in training."""
    units = []
    for path in sorted((Path(home) / "runs").glob(f"*/*/{NAME}")):
        try:
            if abs(time.time() - path.stat().st_mtime) < OLD:
                units.append(Unit(path.parent, *map(int, path.read_text().split())))
        except (OSError, ValueError, TypeError):  # it has just ended, or begins
            continue
    return units


@contextmanager
def listening(home: Path) -> Iterator[None]:
    """As long as this lasts, `say_asked` writes."""
    path = Path(home) / "runs" / ASKED
    write_text("", path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def say_asked(home: Path, wanted: Iterable[str], missing: Iterable[str]) -> None:
    """The method of each run that is wanted, and of each that is to be trained for it; only where somebody listens."""
    path = Path(home) / "runs" / ASKED
    if path.exists():
        trained = Counter(missing)
        with path.open("a") as file:
            file.writelines(f"{method} {runs} {trained[method]}\n" for method, runs in Counter(wanted).items())


def read_asked(home: Path) -> tuple[Counter[str], Counter[str]]:
    """How many runs of each method were wanted since `listening` began, and how many of them were to be trained."""
    wanted: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    path = Path(home) / "runs" / ASKED
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(ValueError):  # half a line, of a full disk
            method, runs, trained = line.split()
            missing[method] += int(trained)
            wanted[method] += int(runs)
    return wanted, missing
