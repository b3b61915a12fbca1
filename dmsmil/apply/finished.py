"""The runs of a finished study as they are asked: nothing is trained here.

A run is named by the code that trained it too. For whoever asks a trained model that is nothing: it is the same model
as long as this code computes with its weights what was computed then, which its own predictions tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from dmsmil.cohorts.folds import fold_count
from dmsmil.features.bags import Bags
from dmsmil.jobs.files import InputError
from dmsmil.training.config import RunConfig
from dmsmil.training.fit import load_model, predict
from dmsmil.training.record import check_files, read_record
from dmsmil.training.runs import Runs, check_seeds, finished, gather, read_predictions, run_folder

NEAR = 1e-4  # how far a probability may be from what it was on another machine, or by another version


def finished_runs(home: str | Path, bags: Bags, folds: pd.DataFrame, config: RunConfig, seeds) -> Runs | None:
    """All runs of a configuration; those of another version of this code where there are none of this one and its
    models say of their test slides what they said then. None where one is absent. Raises InputError for a run whose
    files were changed, and for models that say something else."""
    pairs = [(fold, seed) for fold in range(fold_count(folds)) for seed in check_seeds(seeds)]
    own = {pair: _own(Path(home), config, *pair) for pair in pairs}
    if all(own.values()):
        return _gathered(config, own, {pair: run_folder(Path(home), config, *pair) for pair in pairs})
    different = []
    for folder in _of_other_versions(home, config):
        places = {(fold, seed): folder / f"fold{fold}-seed{seed}" for fold, seed in pairs}
        records = {pair: _record(place) for pair, place in places.items()}
        if not all(record and _same_but_code(record, config) for record in records.values()):
            continue
        for pair, place in places.items():
            with _named(Path(home), config, *pair):
                check_files(place, records[pair] or {})
        if all(_says_the_same(place, bags, config) for place in places.values()):
            return _gathered(config, records, places)
        different.append(folder)
    if different:
        raise InputError(
            f"the runs of {config.method} in study '{Path(home).name}' were trained by another version of dmsmil, and "
            "their models say something else by this one: use the version that trained them, or run 03_train again"
        )
    return None


def _own(home: Path, config: RunConfig, fold: int, seed: int) -> dict | None:
    """The record of a run by this version; InputError where a file of it was changed."""
    with _named(home, config, fold, seed):
        record = finished(run_folder(home, config, fold, seed), config)
    return record


def _record(folder: Path) -> dict | None:
    """The record of a run that may be of any configuration; None where it cannot be read, for it is not asked about."""
    try:
        return read_record(folder)
    except InputError:
        return None


@contextmanager
def _named(home: Path, config: RunConfig, fold: int, seed: int) -> Iterator[None]:
    """What is wrong with a file of a run, said with the run."""
    try:
        yield
    except InputError as error:
        raise InputError(
            f"fold {fold}, seed {seed} of {config.method} in study '{home.name}': {error}: run 03_train again, which "
            "trains it anew"
        ) from error


def _of_other_versions(home: str | Path, config: RunConfig) -> Iterator[Path]:
    """The folders of the method's other configurations, the latest first."""
    found = [folder for folder in (Path(home) / "runs").glob(f"{config.method}-*") if folder.name != config.name]
    yield from sorted(found, key=lambda folder: -folder.stat().st_mtime_ns)


def _same_but_code(record: dict, config: RunConfig) -> bool:
    ours, theirs = ({**made, "code": ""} for made in (config.record(), record["config"]))
    return ours == theirs


def _says_the_same(folder: Path, bags: Bags, config: RunConfig) -> bool:
    """Whether the model of a run says of the slides that it tested what it said then."""
    said = read_predictions(folder)
    columns = [f"prob_{name}" for name in bags.classes]
    if not set(said.slide_id) <= set(bags.slide_ids) or not set(columns) <= set(said):
        return False
    rows = np.array([bags.slide_ids.index(name) for name in said.slide_id])
    try:
        model = load_model(folder, bags.x.shape[-1], len(bags.classes))
    except (RuntimeError, TypeError):  # its weights or options are of another method by now
        return False
    now, _ = predict(model, bags.view(config.scales), rows)
    return float(np.abs(now - said[columns].to_numpy()).max()) <= NEAR


def _gathered(config: RunConfig, records: dict, places: dict[tuple[int, int], Path]) -> Runs:
    return gather(config, [((config, *pair, place, ""), records[pair]) for pair, place in places.items()])
