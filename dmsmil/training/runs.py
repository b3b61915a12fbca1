"""The run store and cross-validation: ask for the runs of a configuration; only what is missing is trained.

The run store is the memo of a study: a run is named by everything that decides its result, so whoever asks for it
again reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dmsmil.cohorts.folds import fold_count
from dmsmil.features.bags import Bags
from dmsmil.jobs.failures import failure_row, write_failures
from dmsmil.jobs.files import InputError, fingerprint, read_json
from dmsmil.jobs.parallel import check_shared, is_remote, pick_device, progress, run_units, worker_count
from dmsmil.training.fit import RunConfig, fit
from dmsmil.training.metrics import score


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


def run_folder(study: Path, config: RunConfig, fold: int, seed: int) -> Path:
    """Where a run lies: runs/<method>-<config hash>/fold<k>-seed<s>."""
    return Path(study) / "runs" / config.name / f"fold{fold}-seed{seed}"


def is_finished(folder: Path, config: RunConfig) -> bool:
    """True when all four files of a run are there and it was made by exactly this configuration."""
    names = ("config.json", "predictions.csv", "history.csv", "model.safetensors")
    if not all((folder / name).is_file() for name in names):
        return False
    try:
        record = read_json(folder / "config.json")
    except ValueError:
        return False
    return bool(record.get("finished")) and fingerprint(record["config"]) == fingerprint(config.record())


def get_runs(study: str | Path, bags: Bags, folds: pd.DataFrame, configs: RunConfig | list[RunConfig],
             seeds: list[int] | tuple[int, ...] = (0,), workers: int = 0, device: str = "auto",
             report: Callable[[str], None] = print, stage: str = "train", scheduler: str = "",
             only_folds: tuple[int, ...] | None = None) -> list[Runs]:
    """The runs of each configuration over all folds and seeds: read where they exist, trained where they do not.

    One single-thread process a run, as many as cores (one on a GPU); `report` gets one line a trained run. A run
    that fails is a row of failures.csv and a line; the others go on. scheduler: as for `run_units`; the workers of a
    running cluster read the bags from the study's folder, on a disk they share, and `auto` is the device each has.
    only_folds: these folds alone, in whatever order they are named; what comes back holds no other, trained or not.
    Raises InputError when a configuration has no run at all, or for a fold that the study does not have.
    """
    check_shared(study, scheduler)
    study, configs = Path(study), [configs] if isinstance(configs, RunConfig) else list(configs)
    chosen = _chosen(folds, only_folds)
    wanted = {}
    for config in configs:
        for fold in chosen:
            for seed in seeds:
                folder = run_folder(study, config, fold, seed)
                wanted[f"{config.name}/{folder.name}"] = (config, fold, seed, folder, device)
    missing = {name: args for name, args in wanted.items() if not is_finished(args[3], args[0])}
    rows = []
    if missing:
        if not is_remote(scheduler) and pick_device(device).type == "cuda":
            workers = workers or 1
        if scheduler or worker_count(workers, len(missing)) > 1:
            bags = bags.share()
        done = run_units(_unit, missing, workers, _hold, (bags, folds), scheduler)
        for number, (name, line, error) in enumerate(progress(done, len(missing), "runs"), 1):
            if error is not None:
                rows.append(failure_row(name, stage, error))
                line = f"{name} failed: {rows[-1]['reason']}"
            report(f"[{number}/{len(missing)}] {line}")
    if missing or rows:
        write_failures(study, stage, rows)
    return [_read_runs(study, config, chosen, seeds) for config in configs]


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


def _unit(config: RunConfig, fold: int, seed: int, folder: Path, device: str) -> str:
    """Train one run in this process and say so in one line."""
    fit(*_held, config, fold, seed, folder, device)
    record, table = read_json(folder / "config.json"), read_predictions(folder)
    mark = "  COLLAPSED: the features have shrunk to a point, this is no result" if record["collapsed"] else ""
    return (f"{config.method} {'+'.join(f'{s}x' for s in config.scales)}  fold {fold}  seed {seed}  "
            + "  ".join(f"{k} {v:.3f}" for k, v in score(table).items() if k != "F1") + mark)


def read_predictions(folder: Path) -> pd.DataFrame:
    """predictions.csv of a run; ids and labels stay text."""
    return pd.read_csv(folder / "predictions.csv", dtype={c: str for c in ("slide_id", "patient_id", "label", "pred")},
                       keep_default_na=False)


def _read_runs(study: Path, config: RunConfig, folds: list[int], seeds) -> Runs:
    predictions, history, records, folders = [], [], [], {}
    for fold in folds:
        for seed in seeds:
            folder = run_folder(study, config, fold, seed)
            if is_finished(folder, config):
                tags = {"fold": fold, "seed": seed}
                predictions.append(read_predictions(folder).assign(**tags))
                history.append(pd.read_csv(folder / "history.csv").assign(**tags))
                records.append(read_json(folder / "config.json"))
                folders[fold, seed] = folder
    if not predictions:
        raise InputError(f"no run of {config.method} succeeded: see failures.csv")
    return Runs(config, pd.concat(predictions, ignore_index=True), pd.concat(history, ignore_index=True),
                pd.DataFrame(records), folders)
