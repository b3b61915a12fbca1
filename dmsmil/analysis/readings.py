"""Which reading of the paper is the default: the candidates and the rule of docs/readings.md."""

from __future__ import annotations

import pandas as pd

from dmsmil.analysis.comparison import EQUIVALENT_WITHIN
from dmsmil.features.bags import Bags
from dmsmil.jobs.files import InputError
from dmsmil.training.config import RunConfig, configure
from dmsmil.training.metrics import score_by_fold
from dmsmil.training.results import COLLAPSED, EFFECTIVE, GATHERED, NOTHING, marks
from dmsmil.training.runs import Runs

MARKS = (COLLAPSED, NOTHING, GATHERED)
_PLAIN = {
    "offset": "cells",
    "offset_lr": 1.0,
    "query": "plain",
    "grid": "fill",
    "standardise": False,
    "ot": "exact",
    "ot_on": "projection",
}  # all that the candidates differ in, whatever today's default is
_CITED = {**_PLAIN, "offset": "dat", "offset_lr": 0.1, "query": "norm"}
CANDIDATES = {  # nearest to the cited text first
    "cited": _CITED,
    "cited_unit": {**_CITED, "ot_on": "unit"},
    "cited_relative": {**_CITED, "ot_on": "relative"},
    "dat_relative": {**_PLAIN, "offset": "dat", "ot_on": "relative"},
    "cells": _PLAIN,
    "cells_relative": {**_PLAIN, "ot_on": "relative"},
    "position_relative": {**_CITED, "grid": "position", "ot_on": "relative"},
    "standardised_relative": {**_CITED, "standardise": True, "ot_on": "relative"},
}
CONTROL = "without"  # cannot be chosen: it has no L_ot
FOLDS, SEEDS, EPOCHS = (0, 1, 2), (0,), 40  # of the rule


def candidate_configs(bags: Bags, folds: pd.DataFrame, **settings) -> dict[str, RunConfig]:
    """name -> RunConfig of every candidate and of the control; settings: as for `configure`, without epochs."""
    options = {**CANDIDATES, CONTROL: {**_CITED, "ot": "none"}}
    return {
        name: configure(bags, folds, "dmsmil", 0, mine, epochs=EPOCHS, **settings) for name, mine in options.items()
    }


def choice_rows(cohort: str, runs: dict[str, Runs], positive: str = "") -> pd.DataFrame:
    """One row a candidate and the control, of one cohort: cohort, name, AUC (mean over folds), and its `marks`."""
    auc = {name: float(score_by_fold(r.predictions, positive).AUC.mean()) for name, r in runs.items()}
    return pd.DataFrame([{"cohort": cohort, "name": name, "AUC": auc[name], **marks(r)} for name, r in runs.items()])


def choose(rows: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """The default by the rule, and what the rule saw.

    rows: `choice_rows` of all cohorts. Returns (name, table): one row a candidate, nearest to the cited text first,
    with name, AUC in each cohort, score (their mean), effective (mean over cohorts), healthy, ties (with the best
    healthy score) and chosen; the control last, which is neither. InputError when a candidate lacks a cohort.
    """
    scores = rows.pivot(index="name", columns="cohort", values="AUC")
    names = [*CANDIDATES, CONTROL]
    if missing := [name for name in names if name not in scores.index or scores.loc[name].isna().any()]:
        raise InputError(f"the reading '{missing[0]}' was not trained on every cohort: run dmsmil choose again")
    marked = rows.assign(marked=rows[list(MARKS)].sum(axis=1) > 0)
    marked = marked.pivot(index="name", columns="cohort", values="marked")
    held_against = marked & ~marked.loc[CONTROL]
    table = scores.loc[names]
    table.columns = [f"AUC_{cohort}" for cohort in table.columns]
    table = table.assign(
        score=table.mean(axis=1), effective=rows.groupby("name")[EFFECTIVE].mean(), healthy=~held_against.any(axis=1)
    )
    candidates = table.loc[list(CANDIDATES)]
    pool = candidates[candidates.healthy] if candidates.healthy.any() else candidates
    ties = pool.score > pool.score.max() - EQUIVALENT_WITHIN
    chosen = pool.index[ties][0]
    table["ties"] = table.index.isin(pool.index[ties])
    table["chosen"] = table.index == chosen
    return chosen, table.reset_index()


def choice_sentence(name: str, table: pd.DataFrame) -> str:
    """What the rule chose and by how much, in words that follow from the table."""
    row, control = (table[table["name"] == which].iloc[0] for which in (name, CONTROL))
    others = table[~table["name"].isin([name, CONTROL])]
    best = others.loc[others.score.idxmax()]
    ill = ", ".join(table["name"][~table.healthy]) or "none"
    return (
        f"Chosen: {name}, score {row.score:.3f}; the best other is {best['name']}, {best.score:.3f}; without L_ot "
        f"{control.score:.3f}. Out by their health: {ill}."
    )
