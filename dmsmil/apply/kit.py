"""A finished study as something that can be applied: its models, what its features were made by, whom it knows."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from dmsmil.apply.finished import finished_runs
from dmsmil.apply.known import trained_on
from dmsmil.apply.members import Colour, Member, Network, Shares
from dmsmil.apply.novelty import left_out, slide_vectors
from dmsmil.features.bags import OF_ONE_SLIDE, Bags
from dmsmil.jobs.files import InputError
from dmsmil.slides.hdf5 import difference, reading
from dmsmil.training.baselines import COLOUR, MAJORITY, asked, class_shares, fit_colour
from dmsmil.training.config import RunConfig, configure
from dmsmil.training.fit import load_model
from dmsmil.training.metrics import METRICS, asked_class
from dmsmil.training.results import note, result_table, run_names
from dmsmil.training.runs import Runs

RIVAL = "meanpool"
NEVER = -1e9  # the logit of a class that cannot be answered
OURS = ["name", *(f"{metric}_{part}" for metric in METRICS for part in ("mean", "low", "high", "pooled")), "classes"]


@dataclass(frozen=True)
class Kit:
    """All that a study leaves to be applied.

    about: name (of the method, as tables call it), config (of its runs, as their records have it), rival (the same of
    mean pooling, where the study has it), classes, positive ("" of more than two where none is named), made (what made
    its tiles and features), dim (numbers a tile), study, slides, patients, note (how the runs went). panels: who is
    asked, by the name in a result table, the method first. trained: `known.trained_on`. vectors, own: of its slides, as
    `novelty` has them. results: rows of the study's own result table; tested: its out-of-fold predictions, without ids.
    """

    about: dict
    panels: dict[str, list[Member]]
    trained: pd.DataFrame
    vectors: dict[str, np.ndarray]
    own: dict[str, np.ndarray]
    results: pd.DataFrame
    tested: pd.DataFrame

    @property
    def classes(self) -> list[str]:
        """The classes, in the order of all probabilities."""
        return self.about["classes"]

    @property
    def scales(self) -> tuple[int, ...]:
        """The scales that the method takes."""
        return tuple(self.about["config"]["scales"])


# ------------------------------------------------------------------------------------------------ from a study


def study_kit(
    home: str | Path,
    bags: Bags,
    folds: pd.DataFrame,
    cohort: pd.DataFrame,
    method: str,
    scale: int = 0,
    options: dict | None = None,
    lam: float = 1.0,
    seeds: list[int] | tuple[int, ...] = (0,),
    positive: str = "",
    **settings,
) -> Kit:
    """The kit of a method of a study that has trained it: nothing is trained here, and nothing encoded.

    Arguments as for `configure` and `get_runs`. Raises InputError where a run is absent.
    """
    config = configure(bags, folds, method, scale, options, lam, **settings)
    runs = finished_runs(home, bags, folds, config, seeds)
    if runs is None and bags.missing:
        name, reason = next(iter(bags.missing.items()))
        raise InputError(
            f"slide {name} of study '{Path(home).name}' has no whole features ({reason}): run 02_features first, with "
            "the same params, for its models were trained with it"
        )
    if runs is None:
        raise InputError(
            f"study '{Path(home).name}' has not all the runs of {method} with these settings: run its "
            "03_train first, with the same params"
        )
    rival = configure(bags, folds, RIVAL, scale, None, lam, **settings)
    pooled = None if method == RIVAL else _rivals(home, bags, folds, rival, seeds)
    trained = [runs, *([pooled] if pooled else [])]
    table, dim = result_table(trained, bags, folds, cohort, positive), bags.x.shape[-1]
    panels = {
        name: [
            Network(fold, seed, load_model(folder, dim, len(bags.classes)))
            for (fold, seed), folder in one.folders.items()
        ]
        for name, one in zip(run_names(trained), trained)
    }
    there = asked(folds[folds.slide_id.isin(bags.slide_ids)])
    if COLOUR in set(table.name):
        panels[COLOUR] = [_colour(bags, folds, fold) for fold in there]
    panels[MAJORITY] = [Shares(fold, class_shares(folds, fold).to_numpy()) for fold in there]
    about = {
        "name": table.name[0],
        "config": config.record(),
        "rival": rival.record() if pooled else {},
        "classes": bags.classes,
        "positive": asked_class(bags.classes, positive),
        "dim": dim,
        "made": _of_all(bags.store.features_made_by(bags.slide_ids[0]).config),
        "study": Path(home).name,
        "slides": len(bags),
        "patients": len(set(bags.patient_ids)),
        "note": note(table.iloc[0]),
    }
    vectors = slide_vectors(bags)
    return Kit(
        about,
        panels,
        trained_on(bags, folds),
        vectors,
        left_out(vectors, bags.patient_ids),
        table.loc[table.name.isin(panels), [c for c in OURS if c in table]].reset_index(drop=True),
        runs.predictions.drop(columns=["slide_id", "patient_id"]),
    )


def _rivals(home, bags: Bags, folds: pd.DataFrame, config: RunConfig, seeds) -> Runs | None:
    """The runs of mean pooling, which a study need not have."""
    try:
        return finished_runs(home, bags, folds, config, seeds)
    except InputError:
        return None


def _colour(bags: Bags, folds: pd.DataFrame, fold: int) -> Colour:
    scaler, model = (step for _, step in fit_colour(bags, folds, fold).steps)
    weights, bias = model.coef_, model.intercept_
    if len(model.classes_) < len(bags.classes):  # no slide of a class to learn from: it is never answered
        if len(weights) == 1:
            weights, bias = np.vstack([0 * weights, weights]), np.append(0 * bias, bias)
        rows = [bags.classes.index(name) for name in model.classes_]
        whole = np.zeros((len(bags.classes), weights.shape[1])), np.full(len(bags.classes), NEVER)
        whole[0][rows], whole[1][rows] = weights, bias
        weights, bias = whole
    return Colour(fold, scaler.mean_, scaler.scale_, weights, bias)


# ------------------------------------------------------------------------------------------------ the same, or refused


def made_by(home: str | Path, slide_ids) -> list[dict]:
    """What made the features in a study's folder, without what is of one slide alone; the latest last. Asked of the
    first slide that has any."""
    for slide_id in slide_ids:
        found = sorted(
            Path(home).glob(f"features/*x_*px_*/features_*/{glob.escape(slide_id)}.h5"),
            key=lambda path: path.stat().st_mtime_ns,
        )
        if configs := [config for config in map(_config, found) if config]:
            return configs
    raise InputError(f"study '{Path(home).name}' has no features: run it first, dmsmil run with the same params")


def _config(path: Path) -> dict:
    """What made a file of features; nothing where it cannot be read."""
    try:
        with reading(path) as written:
            return _of_all(written.config() or {})
    except (OSError, KeyError, ValueError):
        return {}


def _of_all(config: dict) -> dict:
    return {name: value for name, value in config.items() if name not in OF_ONE_SLIDE}


def check_same(wanted: dict, made: list[dict]) -> None:
    """InputError that names the first setting in which `wanted` differs from what a study was made with, in every entry
    of `made`.

    wanted: keys as in a store's `config`, encoder by its name or its identity; of those, what the study does not have
    does not count (features made elsewhere have no min_density).
    """
    said = [next(_differences(wanted, one), "") for one in made]
    if all(said):
        raise InputError(f"{said[-1]}: it is applied as it was made, or not at all")


def _differences(wanted: dict, made: dict) -> Iterator[str]:
    for key in [key for key in wanted if key in made]:
        have, want = made[key], wanted[key]
        if key == "encoder":
            have = {name: have.get(name) for name in want}
        for name in want if isinstance(want, dict) else [None]:
            mine, theirs = (want, have) if name is None else (want[name], have[name])
            if difference(theirs, mine):
                called = "mpp" if key == "fallback_mpp" else key if name in (None, "name") else f"the encoder's {name}"
                hint = " (amp is of a GPU, fp32 of a CPU: see the key device)" if name == "precision" else ""
                yield f"{called} is {mine!r}, and the study was made with {theirs!r}{hint}"


def with_classes(bags: Bags, classes: list[str], labels: pd.Series) -> Bags:
    """The bags of new slides with a study's classes; labels: by slide_id, empty where not known (0, and unused)."""
    index = {name: number for number, name in enumerate(classes)}
    known = bags.labels.new_tensor([index.get(label, 0) for label in labels.reindex(bags.slide_ids)])
    return replace(bags, classes=list(classes), labels=known)
