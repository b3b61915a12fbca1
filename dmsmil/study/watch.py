"""What a person hears while a study trains: how far it is, and how long its trainings will still take."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from dmsmil.cohorts.folds import fold_count
from dmsmil.jobs.files import InputError
from dmsmil.slides.store import Store
from dmsmil.study.forecast import Work, forecast, minutes, workers_of
from dmsmil.training.metrics import METRICS, called
from dmsmil.training.progress import read_progress
from dmsmil.training.results import marked

SILENCE = 60.0  # seconds without a line after which one is said
LOOK = 10.0  # seconds between two looks at what trains; a tenth of it before the first training


class Remaining:
    """How much of the training of a study is left, from the speed of what was trained so far.

    works: the forecast, by notebook; workers: how many trainings run side by side.
    """

    def __init__(self, works: list[Work], workers: int):
        self.works, self.workers = {work.notebook: work for work in works}, max(workers, 1)
        self.notebook, self.done, self.total = "", 0, 0
        self.began, self.spent, self.expected = 0.0, 0.0, 0.0
        self.under_way = 0.0  # of trainings that have not ended, counted as parts of one

    def enter(self, notebook: str) -> None:
        """A notebook begins."""
        self.notebook, self.done, self.total, self.began = notebook, 0, 0, time.perf_counter()
        self.under_way = 0.0

    def begin(self) -> None:
        """Its first training begins: the seconds before it, in which processes start, say nothing of the others."""
        self.began = time.perf_counter()

    def leave(self) -> None:
        """It is done: what it took corrects the forecast."""
        work = self.works.pop(self.notebook, None)
        if work and self.done:
            self.spent += time.perf_counter() - self.began
            self.expected += self._of(work, self.total)

    def count(self, done: int, total: int) -> None:
        """A line `[done/total]` of the notebook's trainings."""
        self.done, self.total, self.under_way = done, total, 0.0

    def _of(self, work: Work, runs: float) -> float:
        """Forecast seconds of `runs` of a notebook's trainings, side by side."""
        return work.seconds / self.workers * min(runs / max(work.runs, 1), 1.0)

    def seconds(self) -> float | None:
        """Seconds of training that are left; None before the first training has ended."""
        work = self.works.get(self.notebook)
        spent, expected, here = self.spent, self.expected, 0.0
        if work:
            done = self._of(work, self.done + self.under_way)
            here = self._of(work, self.total or work.runs) - done
            if done:
                spent += time.perf_counter() - self.began
                expected += done
        if not expected:
            return None
        later = sum(self._of(other, other.runs) for name, other in self.works.items() if name > self.notebook)
        return (here + later) * spent / expected


class Watch:
    """Hands on the lines of notebooks that train, and adds how far they are.

    notebooks: those that will be executed; what others train is not counted.
    """

    def __init__(self, home: Path, params: dict, say: Callable[[str], None], notebooks: Sequence[str]):
        self.home, self.say, self.said = home, say, time.perf_counter()
        works = [work for work in _works(home, params) if work.notebook in notebooks]
        self.remaining = Remaining(works, workers_of(params, works))

    @contextmanager
    def over(self, notebook: str) -> Iterator[Callable[[str], None]]:
        """Watch one notebook: yields what to say its lines to."""
        self.remaining.enter(notebook)
        over = threading.Event()
        looking = threading.Thread(target=self._look, args=(over,), daemon=True)
        looking.start()
        try:
            yield self._hear
        finally:
            over.set()
            looking.join()
            self.remaining.leave()

    def _hear(self, line: str) -> None:
        """A line of the notebook: handed on, and where it counts a training, with what is left."""
        self.say(line)
        if counted := re.match(r"\s+\[(\d+)/(\d+)\]", line):
            self.remaining.count(*map(int, counted.groups()))
            if time.perf_counter() - self.said > SILENCE / 2:
                self._tell()

    def _look(self, over: threading.Event) -> None:
        """See the first training begin, and say what trains now when nothing was said for long."""
        begun = False
        while not over.wait(LOOK if begun else LOOK / 10):
            if not begun and read_progress(self.home):
                begun = True
                self.remaining.begin()
            if time.perf_counter() - self.said > SILENCE:
                self._tell()

    def _tell(self) -> None:
        parts = read_progress(self.home)
        self.remaining.under_way = sum(runs * epoch / epochs for runs, epoch, epochs in parts)
        words = [
            f"{runs} together at epoch {epoch} of {epochs}" if runs > 1 else f"one at epoch {epoch} of {epochs}"
            for runs, epoch, epochs in parts
        ]
        left = self.remaining.seconds()
        if left is not None:
            words.append(f"about {minutes(left)} of training left")
        if words:
            self.say("    " + "; ".join(words))
            self.said = time.perf_counter()


def _works(home: Path, params: dict) -> list[Work]:
    """The forecast for a study whose features are there; none where it cannot be made."""
    try:
        cohort = pd.read_csv(home / "cohort.csv", dtype=str, keep_default_na=False)
        store = Store(home, params["tile_px"], tuple(params["scales"]), params["encoder"])
        count = fold_count(pd.read_csv(home / "folds.csv", nrows=1))
        channels = _channels(store, list(cohort.slide_id))
        return forecast(params, len(cohort), channels, sorted(cohort.label.unique()), count)
    except (InputError, OSError):
        return []


def _channels(store: Store, slide_ids: list[str]) -> int:
    """Numbers a tile of the first slide that has features; InputError when none has."""
    for slide_id in slide_ids:
        try:
            return store.features_made_by(slide_id)[1]
        except InputError:
            continue
    raise InputError("no slide has features")


RESULTS = {"03_train": "03_*_results", "04_compare": "04_compare"}  # the tables that hold what came out


def result_lines(home: Path, notebook: str) -> list[str]:
    """The result of a notebook as a table in the terminal, a line a row; none for a notebook without one."""
    found = sorted((home / "tables").glob(f"{RESULTS.get(notebook, '')}.csv"), key=lambda path: path.stat().st_mtime)
    if notebook not in RESULTS or not found:
        return []
    table = pd.read_csv(found[-1])
    wide = max(map(len, table.name))
    names = [called(metric, table) for metric in METRICS]
    lines = [f"    {'':<{wide}}  " + " ".join(f"{name:>6}" for name in names) + f"  95 % of {names[-1]}"]
    for _, row in table.iterrows():
        numbers = " ".join(f"{row[f'{metric}_mean']:{max(6, len(name))}.3f}" for metric, name in zip(METRICS, names))
        lines.append(
            (
                f"    {row['name']:<{wide}}  {numbers}  "
                f"[{row.AUC_low:.2f}, {row.AUC_high:.2f}]  {', '.join(marked(row))}"
            ).rstrip()
        )
    return lines
