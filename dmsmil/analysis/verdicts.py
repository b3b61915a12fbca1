"""What a comparison answers beyond its table: DAMIL at one scale, the rules that know no tissue, luck against patients.

Every question is a family of tests of its own (Holm's correction), and every sentence follows from numbers.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from dmsmil.analysis.comparison import compare, holm, sentence
from dmsmil.analysis.paper import LEADS
from dmsmil.jobs.text import as_written
from dmsmil.training.baselines import MAJORITY, baseline_predictions
from dmsmil.training.config import scales_name
from dmsmil.training.metrics import METRICS, called, counted_classes, score_by_fold
from dmsmil.training.results import is_pooling, is_published, no_result, note, part, run_names
from dmsmil.training.runs import Runs


def best_other(table: pd.DataFrame, name: str, pooling: bool = False) -> pd.Series | None:
    """The row with the highest ACC among other published methods than `name` (registry key), without those that are
    `no_result`.

    table: a result table or a part of one; pooling: whether plain pooling counts. None where there is no such row.
    """
    rows = table[(table.method != "") & (table.method != name) & ~no_result(table)]
    rows = rows[(~rows.method.map(is_pooling).astype(bool) | pooling) & rows.method.map(is_published).astype(bool)]
    return rows.loc[rows.ACC_mean.idxmax()] if len(rows) else None


# ------------------------------------------------------------------------------------------------ one scale


def scale_tests(runs: list[Runs], positive: str = "") -> pd.DataFrame:
    """DAMIL at one scale against every other method there: columns scales and reference, then `comparison.compare`'s.

    Each scale is a family. No row where DAMIL shares no scale with another method.
    """
    named, found = dict(zip(run_names(runs), runs)), []
    for scales in dict.fromkeys(r.config.scales for r in runs if len(r.config.scales) == 1):
        here = {name: r for name, r in named.items() if r.config.scales == scales}
        damil = [name for name, r in here.items() if r.config.method == "damil"]
        mine = min(damil, key=lambda name: ", " in name, default=None)  # without options of its own, if it is there
        others = {name: r.predictions for name, r in here.items() if name != mine}
        if mine and others:
            tests = compare(here[mine].predictions, others, positive, here[mine].test_share)
            found.append(pd.concat({(scales_name(scales), mine): tests}, names=["scales", "reference"]).droplevel(2))
    return pd.concat(found).reset_index() if found else pd.DataFrame(columns=["scales", "reference", "name"])


def scale_sentences(table: pd.DataFrame, tests: pd.DataFrame) -> str:
    """Markdown: at each scale, DAMIL against the best other published method and against mean pooling, by ACC.

    table: a result table; tests: `scale_tests`.
    """
    lines = []
    for scales, family in tests.groupby("scales", sort=False):
        name, rows = family.reference.iloc[0], family.set_index("name", drop=False)
        scale = int(scales.removesuffix("x"))
        best, lead = best_other(part(table, scale), "damil"), LEADS.get(scale)
        said = (
            "no other published method was run, or none has learned anything."
            if best is None
            else "of the others the best is "
            + best["name"]
            + ". "
            + sentence(rows.loc[best["name"]], name, "ACC")
            + (f" The paper: ahead of the second best by {lead}." if lead else "")
        )
        mine = table[table.name == name]
        if no_result(mine).iloc[0]:
            said = f"{name} is no result: {note(mine.iloc[0])}."
        lines.append(f"**{scales}**: {as_written(said)}")
        mean = table.name[(table.method == "meanpool") & (table.scales == scales)]
        lines += [f"**{scales}**: {as_written(sentence(rows.loc[m], name, 'ACC'))}" for m in mean]
    return "\n".join(f"- {line}" for line in lines) or "DAMIL was not compared with another method at one scale."


# ------------------------------------------------------------------------------------------------ cheap rules


def cheap_tests(runs: list[Runs], bags, folds: pd.DataFrame, cohort: pd.DataFrame, positive: str = "") -> pd.DataFrame:
    """The first of `runs` against the baselines, which know no tissue: reference, `comparison.compare`'s.

    The majority rule says the same of all slides of a fold; pooled it would rank folds, so it has no DeLong test.
    """
    first = run_names(runs)[0]
    found = compare(runs[0].predictions, baseline_predictions(bags, folds, cohort), positive, runs[0].test_share)
    constant = found.name == MAJORITY
    found.loc[constant, [f"DeLong_{column}" for column in ("difference", "low", "high", "p")]] = np.nan
    found.loc[constant, "DeLong_note"] = "the same answer for all slides of a fold"
    found["DeLong_p_holm"] = holm(found.DeLong_p)
    found.insert(0, "reference", first)
    return found


def cheap_sentences(tests: pd.DataFrame) -> str:
    """Markdown: whether the reference of `cheap_tests` is better than each; by AUC, the majority rule by ACC."""
    said = [sentence(row, row.reference, "ACC" if row["name"] == MAJORITY else "AUC") for _, row in tests.iterrows()]
    return "\n".join(f"- {as_written(line)}" for line in said)


# ------------------------------------------------------------------------------------------------ seeds


def seed_scatter(runs: list[Runs], positive: str = "") -> pd.DataFrame:
    """How far runs differ by seed and by fold: one row a method, no row where one seed was run.

    Columns: name, seeds, and for each metric <metric>_seeds, the standard deviation among the seeds of a fold (root
    of the mean variance), and <metric>_folds, that of the folds' means over their seeds.
    """
    rows = []
    for name, r in zip(run_names(runs), runs):
        scores = score_by_fold(r.predictions, positive)
        by_fold = scores.groupby("fold")[list(METRICS)]
        if scores.seed.nunique() > 1:
            rows.append(
                {
                    "name": name,
                    "seeds": scores.seed.nunique(),
                    **by_fold.var().mean().pow(0.5).add_suffix("_seeds"),
                    **by_fold.mean().std().add_suffix("_folds"),
                }
            )
    columns = ["name", "seeds", *(f"{m}_{of}" for of in ("seeds", "folds") for m in METRICS)]
    return pd.DataFrame(rows, columns=columns).assign(**counted_classes(runs[0].predictions))


def seed_sentence(scatter: pd.DataFrame) -> str:
    """Markdown: whether training luck or the choice of patients moves ACC more."""
    if scatter.empty:
        return "One seed a fold was run: training luck and the choice of patients cannot be told apart here."
    middle = scatter.median(numeric_only=True)
    more = middle.ACC_folds > middle.ACC_seeds
    metrics = [metric for metric in ("ACC", "AUC") if not np.isnan(middle[f"{metric}_folds"])]
    seeds, folds = (
        " and ".join(f"**{middle[f'{metric}_{of}']:.3f}**" for metric in metrics) for of in ("seeds", "folds")
    )
    names = " and ".join(called(metric, scatter) for metric in metrics)
    return (
        f"Standard deviation of {names}, median over methods: {seeds} among the {middle.seeds:.0f} "
        f"seeds of a fold, {folds} among folds. "
        + (
            "Folds differ more than seeds: further seeds would hardly narrow an interval, more patients would."
            if more
            else "Seeds differ as much as folds: here more seeds are worth their time."
        )
    )
