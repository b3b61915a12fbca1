"""How far the runs in training are: a line in the folder of each unit, for whoever watches the study."""

from __future__ import annotations

import time
from pathlib import Path

from dmsmil.jobs.files import write_text

NAME = "progress.txt"
SECONDS = 10.0  # between two lines


class Progress:
    """What one unit of runs says of itself, in the folder of its first run; gone when the unit ends.

    A context: `with Progress(folder, epochs) as progress: ...`
    """

    def __init__(self, folder: Path, epochs: int):
        self.path, self.epochs, self.said = folder / NAME, epochs, 0.0

    def say(self, runs: int, epoch: int) -> None:
        """So many runs are at this epoch; written at most every `SECONDS`."""
        if time.monotonic() - self.said > SECONDS:
            write_text(f"{runs} {epoch} {self.epochs}\n", self.path)
            self.said = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing trains here any more."""
        self.path.unlink(missing_ok=True)


def read_progress(home: Path) -> list[tuple[int, int, int]]:
    """(runs, epoch, epochs) of every unit of a study that is in training. A line that is older than ten minutes is of
    a process that is gone."""
    found = []
    for path in sorted((Path(home) / "runs").glob(f"*/*/{NAME}")):
        try:
            if time.time() - path.stat().st_mtime < 600:
                found.append(tuple(map(int, path.read_text().split())))
        except (OSError, ValueError):  # it has just ended, or begins
            continue
    return [part for part in found if len(part) == 3]
