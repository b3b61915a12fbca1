"""The run store and cross-validation: ask for the runs of a configuration; only what is missing is trained.

The run store is the memo of a study: a run is named by everything that decides its result, so whoever asks for it
again reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import numpy as np
import pandas as pd

from dmsmil.cohorts.folds import fold_count
from dmsmil.features.bags import Bags
from dmsmil.jobs.failures import failure_row, write_failures
from dmsmil.jobs.files import DiskFull, InputError, fingerprint, one_line
from dmsmil.jobs.parallel import check_shared, is_remote, pick_device, progress, run_units, worker_count
from dmsmil.training.config import RunConfig, scales_name
from dmsmil.training.fit import fit
from dmsmil.training.metrics import score
from dmsmil.training.progress import say_asked
from dmsmil.training.record import check_files, read_record
from dmsmil.training.together import fit_together, shape_of, stacks

ON_CPU, ON_GPU = 10, 32  # runs in one pass, at most: on a CPU more bring nothing, a GPU is idle with few
ENOUGH = 5  # runs in one pass for which it takes as long a run as with more, on a CPU


@dataclass(frozen=True)
class Runs:
    """The runs of one configuration.

    predictions: pooled test predictions with columns fold and seed; history: one row an epoch, with fold and seed;
    records: what each config.json says, one row a run; folders: where each (fold, seed) lies.
    """

    config: RunConfig
    predictions: pd.DataFrame
    history: pd.DataFrame
    records: pd.DataFrame
    folders: dict[tuple[int, int], Path]

    @property
    def collapsed(self) -> int:
        """How many of the runs are marked collapsed."""
        return int(self.records.collapsed.sum())

    @property
    def learned_nothing(self) -> int:
        """How many of the runs know no more than the class shares."""
        return int(self.records.learned_nothing.sum())

    @property
    def gathered(self) -> int:
        """How many of the runs spread their attention over few tiles."""
        return int(self.records.gathered.sum())

    @property
    def test_share(self) -> float:
        """n_test / (n_test + n_train) of a run, mean over the runs: `comparison.corrected_resampled_ttest` asks for it.

        As they were: without slides that have no features, that no part of the fold names, or that are selected on.
        """
        return float(np.mean([run["test"] / (run["test"] + run["train"]) for run in self.records.slides]))

    @property
    def effective(self) -> float:
        """Over what share of a tested slide's tiles the scores are spread, mean over runs of the scale where it is
        least (`health.effective_share`)."""
        shares = [
            [value for name, value in seen.items() if name.startswith("effective_")] for seen in self.records.attention
        ]
        return float(np.mean(np.min(shares, axis=1)))


def run_folder(study: Path, config: RunConfig, fold: int, seed: int) -> Path:
    """Where a run lies: runs/<method>-<config hash>/fold<k>-seed<s>."""
    return Path(study) / "runs" / config.name / f"fold{fold}-seed{seed}"


def finished(folder: Path, config: RunConfig) -> dict | None:
    """The record of a run that was made by exactly this configuration; None where there is none.

    Raises InputError that names a file of it which is not what was written.
    """
    record = read_record(folder)
    if record is None or fingerprint(record["config"]) != fingerprint(config.record()):
        return None
    check_files(folder, record)
    return record


def get_runs(
    study: str | Path,
    bags: Bags,
    folds: pd.DataFrame,
    configs: RunConfig | list[RunConfig],
    seeds: list[int] | tuple[int, ...] = (0,),
    workers: int = 0,
    device: str = "auto",
    report: Callable[[str], None] = print,
    stage: str = "train",
    scheduler: str = "",
    only_folds: tuple[int, ...] | None = None,
) -> list[Runs]:
    """The runs of each configuration over all folds and seeds: read where they exist, trained where they do not.

    Runs that can train in one pass do (`together`), each as it would alone. One single-thread process a unit, as many
    as cores (one on a GPU); `report` gets one line a trained run, and one for
    a run whose files are not what was written, which is trained anew. A run that fails is a row of failures.csv and a
    line; the others go on. The rows of `stage` are those of this call alone. scheduler: as for `run_units`; the workers
    of a running cluster read the bags from the study's folder, on a disk they share, and `auto` is the device each has.
    only_folds: these folds alone, in whatever order they are named; what comes back holds no other, trained or not.
    Raises InputError when a configuration has no run at all, for seeds that are none or named twice, or for a fold that
    the study does not have.
    """
    check_shared(study, scheduler)
    study, configs = Path(study), [configs] if isinstance(configs, RunConfig) else list(configs)
    chosen, seeds = _chosen(folds, only_folds), check_seeds(seeds)
    wanted = {}
    for config in configs:
        for fold in chosen:
            for seed in seeds:
                folder = run_folder(study, config, fold, seed)
                wanted[f"{config.name}/{folder.name}"] = (config, fold, seed, folder, device)
    records = {name: _read(name, args[3], args[0], report) for name, args in wanted.items()}
    missing = {name: args for name, args in wanted.items() if records[name] is None}
    say_asked(study, *([args[0].method for args in runs.values()] for runs in (wanted, missing)))
    rows = []
    if missing:
        if not is_remote(scheduler) and pick_device(device).type == "cuda":
            workers = workers or 1
        if scheduler or worker_count(workers, len(missing)) > 1:
            bags = bags.share()
        units = in_units(missing, worker_count(workers, len(missing)), _limit(device, scheduler))
        done = _train(missing, units, stage, workers, (bags, folds), scheduler)
        for number, (name, line, row) in enumerate(progress(done, len(missing), "runs"), 1):
            if row is None:
                records[name] = read_record(missing[name][3])
            else:
                rows.append(row)
                line = f"{name} failed: {row['reason']}"
            report(f"[{number}/{len(missing)}] {line}")
    write_failures(study, stage, rows)
    return [
        gather(config, [(args, records[name]) for name, args in wanted.items() if name.startswith(f"{config.name}/")])
        for config in configs
    ]


def check_seeds(seeds) -> list[int]:
    """Seeds as a list. Raises InputError for none, one named twice, or one that is no whole number of 0 or more."""
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
            raise InputError(f"seeds holds {seed!r}: give whole numbers, 0 or more")
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(
            f"seeds is {list(seeds)}: name one or more, each once, for a second run of one seed is the same run"
        )
    return [int(seed) for seed in seeds]


def _read(name: str, folder: Path, config: RunConfig, report: Callable[[str], None]) -> dict | None:
    """The record of a run, None where it is to be trained; a run that was changed since is said so."""
    try:
        return finished(folder, config)
    except InputError as error:
        report(f"{name}: {error}, so the run is trained anew")
        return None


def _chosen(folds: pd.DataFrame, only: tuple[int, ...] | None) -> list[int]:
    """The folds asked for, ascending, each once: None asks for all."""
    there = range(fold_count(folds))
    strange = [] if only is None else [fold for fold in only if fold not in there]
    if strange or only is not None and not only:
        raise InputError(f"only_folds is {list(only)}: name one or more of the folds 0 to {len(there) - 1}")
    return sorted(set(there if only is None else only))


_held: tuple[Bags, pd.DataFrame] | None = None


def _hold(bags: Bags, folds: pd.DataFrame) -> None:
    """Keep the study's bags in this process: they are sent to a worker once, not once a run."""
    global _held
    _held = bags, folds


def _limit(device: str, scheduler: str) -> int:
    """The most runs in one pass."""
    return ON_GPU if not is_remote(scheduler) and pick_device(device).type == "cuda" else ON_CPU


def in_units(missing: dict[str, tuple], workers: int, limit: int) -> list[list[str]]:
    """The names of missing runs {name: (config, fold, seed, folder, device)} in units of work.

    Runs of one shape that train together are one unit, at most `limit` of them. They are shared among the workers
    while each gets ENOUGH, for nobody knows which shape takes longest; and among more where one would have no work.
    Every other run is a unit of its own. Largest units first.
    """
    shapes: dict[str, list[str]] = {}
    for name, (config, *_) in missing.items():
        shapes.setdefault(shape_of(config) if stacks(config, limit == ON_CPU) else name, []).append(name)
    units = []
    for names in shapes.values():
        count = max(-(-len(names) // limit), min(workers, len(names) // ENOUGH))
        size = -(-len(names) // count)
        units += [names[at : at + size] for at in range(0, len(names), size)]
    while len(units) < workers and max(map(len, units)) > 1:
        largest = units.pop(max(range(len(units)), key=lambda at: len(units[at])))
        units += [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
    return sorted(units, key=len, reverse=True)


def _train(
    missing: dict[str, tuple], units: list[list[str]], stage: str, workers: int, held: tuple, scheduler: str
) -> Iterator[tuple[str, str, dict | None]]:
    """Yield (name, line, failure row or None) of every run as it ends. Where a worker died with several runs, each of
    them is tried once more alone."""
    named = {names[0]: ({name: missing[name] for name in names}, stage) for names in units}
    again: dict[str, str] = {}  # name: why it is tried once more
    for first, outcomes, error in run_units(_unit, named, workers, _hold, held, scheduler):
        names = list(named[first][0])
        if error is None:
            yield from outcomes
        elif len(names) > 1:
            for name in names:
                config, fold, seed, folder, _ = missing[name]
                if _read(name, folder, config, lambda line: None) is None:
                    again[name] = one_line(error)
                else:  # it had ended before its worker died
                    yield name, _said(config, fold, seed, folder, ""), None
        else:
            yield first, "", failure_row(first, stage, error)
    error = None  # its traceback holds what the failed pass had on the device
    if again:
        for name, line, row in _train(missing, [[name] for name in again], stage, workers, held, scheduler):
            yield name, f"{line}  alone, for it failed with others: {again[name]}" if row is None else line, row


def _unit(runs: dict[str, tuple], stage: str) -> list[tuple[str, str, dict | None]]:
    """Train the runs of one unit in this process: (name, line, failure row or None) of each."""
    names, units, device = list(runs), [args[:4] for args in runs.values()], next(iter(runs.values()))[4]
    place = pick_device(device)
    together = stacks(units[0][0], place.type == "cpu")
    ended = fit_together(*_held, units, device) if together else _fit_alone(units[0], device)
    said: list[tuple[str, str, dict | None]] = [
        (names[number], _said(*units[number], note), None)
        if error is None
        else (names[number], "", failure_row(names[number], stage, error))
        for number, error, note in ended
    ]
    if place.type == "cuda":
        import torch

        torch.cuda.empty_cache()  # the next unit asks how much is free
    return said


def _fit_alone(unit: tuple, device: str) -> Iterator[tuple[int, Exception | None, str]]:
    """One run by itself, as `fit_together` yields it."""
    notes: list[str] = []
    try:
        fit(*_held, *unit, device, notes.append)
    except DiskFull:
        raise
    except Exception as error:
        yield 0, error, ""
    else:
        yield 0, None, "  ".join(notes)


def _said(config: RunConfig, fold: int, seed: int, folder: Path, note: str) -> str:
    """A finished run in one line."""
    notes = [note] if note else []
    record = read_record(folder)
    if record["collapsed"]:
        notes.append("COLLAPSED: the features have shrunk to a point, this is no result")
    elif record["learned_nothing"]:
        notes.append("LEARNED NOTHING: L_ce stays at the entropy of the class shares")
    if record["gathered"]:
        notes.append("GATHERED: its attention is spread over fewer than a tenth of the tiles")
    scores = score(read_predictions(folder))
    numbers = [
        f"{name} not defined" if math.isnan(scores[name]) else f"{name} {scores[name]:.3f}" for name in ("ACC", "AUC")
    ]
    who = f"{config.method} {scales_name(config.scales)}{config.own_options}"
    return "  ".join([who, f"fold {fold}", f"seed {seed}", *numbers, *notes])


def read_predictions(folder: Path) -> pd.DataFrame:
    """predictions.csv of a run; ids and labels stay text."""
    return pd.read_csv(
        folder / "predictions.csv",
        dtype={c: str for c in ("slide_id", "patient_id", "label", "pred")},
        keep_default_na=False,
    )


def gather(config: RunConfig, made: list[tuple[tuple, dict | None]]) -> Runs:
    """The runs of one configuration from (unit, record) of each; those without a record failed."""
    predictions, history, records, folders = [], [], [], {}
    for (_, fold, seed, folder, _), record in made:
        if record is not None:
            predictions.append(read_predictions(folder).assign(fold=fold, seed=seed))
            history.append(pd.read_csv(folder / "history.csv").assign(fold=fold, seed=seed))
            records.append(record)
            folders[fold, seed] = folder
    if not predictions:
        raise InputError(f"no run of {config.method} succeeded: see failures.csv")
    return Runs(
        config,
        pd.concat(predictions, ignore_index=True),
        pd.concat(history, ignore_index=True),
        pd.DataFrame(records),
        folders,
    )
