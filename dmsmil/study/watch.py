"""What a person hears while a study trains: how far it is, and how long its trainings will still take."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pandas as pd

from dmsmil.cohorts.folds import fold_count
from dmsmil.jobs.files import InputError
from dmsmil.slides.store import Store
from dmsmil.study.forecast import Work, forecast, minutes, workers_of
from dmsmil.training.metrics import METRICS
from dmsmil.training.progress import Unit, listening, read_asked, read_progress
from dmsmil.training.results import marked, number

SILENCE = 60.0  # seconds without a line after which one is said
LOOK = 10.0  # seconds between two looks at what trains; a tenth of it before the first training


class Remaining:
    """How much of the training of a study is left, from the speed of what was trained so far.

    works: the forecast, by notebook; workers: how many trainings run side by side. Trainings are weighed by what the
    forecast says of their method, for one may take a hundred times as long as another.
    """

    def __init__(self, works: list[Work], workers: int):
        self.works, self.workers = {work.notebook: work for work in works}, max(workers, 1)
        self.began, self.spent, self.expected = 0.0, 0.0, 0.0
        self.enter("")

    def enter(self, notebook: str) -> None:
        """A notebook begins."""
        self.notebook, self.began = notebook, time.perf_counter()
        self.done: Counter[str] = Counter()  # trainings by method
        self.wanted: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.units: list[Unit] = []
        self.found: dict[Path, Unit] = {}  # every unit that was seen, as it was first

    def begin(self) -> None:
        """Its first training begins: the seconds before it, in which processes start, say nothing of the others."""
        self.began = time.perf_counter()

    def leave(self) -> None:
        """It is done: what it took corrects the forecast."""
        work = self.works.pop(self.notebook, None)
        if work and self.done:
            self.spent += time.perf_counter() - self.began
            self.expected += self._trained(work)

    def count(self, method: str) -> None:
        """A training has ended."""
        self.done[method] += 1
        self.units = []

    def see(self, asked: tuple[Counter[str], Counter[str]], units: list[Unit]) -> None:
        """What was asked for since the notebook began (`read_asked`), and what is in training."""
        (self.wanted, self.missing), self.units = asked, units
        for unit in units:
            self.found.setdefault(unit.folder, unit)

    def _of(self, work: Work, runs: Mapping[str, float]) -> float:
        """Forecast seconds of trainings of a notebook, side by side: {method: how many}."""
        usual = work.seconds / max(work.runs, 1)
        return sum(count * work.of.get(method, (0, usual))[1] for method, count in runs.items()) / self.workers

    def _ended(self, work: Work) -> float:
        """Forecast seconds of what is trained by now, whoever trained it."""
        return self._of(work, self.done) + sum(
            self._of(work, {unit.method: unit.runs * unit.epoch / unit.epochs}) for unit in self.units
        )

    def _trained(self, work: Work) -> float:
        """Of them those that were not found in checkpoints of an earlier process."""
        found = (self._of(work, {unit.method: unit.runs * unit.found / unit.epochs}) for unit in self.found.values())
        return self._ended(work) - sum(found)

    def _here(self, work: Work) -> float:
        """Forecast seconds of what the notebook has still to train: of what it has asked for, and of what it will."""
        runs = {method: count for method, (count, _) in work.of.items()}
        later = {method: max(count - self.wanted[method], 0) for method, count in runs.items()}
        return max(self._of(work, self.missing) + self._of(work, later) - self._ended(work), 0.0)

    def seconds(self) -> float | None:
        """Seconds of training that are left; None before the first training has gone on."""
        work = self.works.get(self.notebook)
        spent, expected, here = self.spent, self.expected, 0.0
        if work:
            here, trained = self._here(work), self._trained(work)
            if trained > 0:
                spent += time.perf_counter() - self.began
                expected += trained
        if not expected:
            return None
        later = sum(work.seconds / self.workers for name, work in self.works.items() if name > self.notebook)
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
        with listening(self.home) if notebook in self.remaining.works else nullcontext():
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
        if counted := re.match(r"\s+\[\d+/\d+\] (\w+)", line):
            self.remaining.count(counted[1])
            if time.perf_counter() - self.said > SILENCE / 2:
                self._tell()

    def _look(self, over: threading.Event) -> None:
        """See the first training begin, and say what trains now when nothing was said for long."""
        begun = False
        while not over.wait(LOOK if begun else LOOK / 10):
            units = read_progress(self.home)
            self.remaining.see(read_asked(self.home), units)
            if not begun and units:
                begun = True
                self.remaining.begin()
            if time.perf_counter() - self.said > SILENCE:
                self._tell()

    def _tell(self) -> None:
        units = read_progress(self.home)
        self.remaining.see(read_asked(self.home), units)
        words = [
            f"{f'{unit.runs} together' if unit.runs > 1 else 'one'} at epoch {unit.epoch} of {unit.epochs}"
            for unit in units
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
    except (InputError, OSError, MemoryError, RuntimeError):  # the last: a GPU that is full, which training survives
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
    names = [number(table.iloc[0], metric)[0] for metric in METRICS]
    lines = [f"    {'':<{wide}}  " + " ".join(f"{name:>6}" for name in names) + f"  95 % of {names[-1]}"]
    for _, row in table.iterrows():
        numbers = " ".join(f"{number(row, metric)[1]:{max(6, len(name))}.3f}" for metric, name in zip(METRICS, names))
        lines.append(
            (
                f"    {row['name']:<{wide}}  {numbers}  "
                f"[{row.AUC_low:.2f}, {row.AUC_high:.2f}]  {', '.join(marked(row))}"
            ).rstrip()
        )
    return lines
