"""Sentences and tables follow from the numbers, the bad ones too."""

import pandas as pd
import pytest

from dmsmil.files import InputError
from dmsmil.report import (
    adaptations,
    failures_table,
    pretty,
    ranking,
    result_table,
    run_ledger,
    saved_environment,
    saved_results,
    saved_settings,
    verdict,
)
from dmsmil.runs import get_runs
from tests.test_baselines import cohort_of
from tests.test_training import folds_of, make_bags, quick


def row(name, acc, auc, low=0.4, high=0.9, collapsed=0):
    means = {"ACC": acc, "F1": 0.5, "AUC": auc}
    return {"name": name, **{f"{m}_mean": v for m, v in means.items()}, **{f"{m}_std": 0.1 for m in means},
            **{f"{m}_low": low for m in means}, **{f"{m}_high": high for m in means}, "runs": 5, "collapsed": collapsed,
            "parameters": 636386, "epoch_seconds": 0.5}


def table(acc=0.8, auc=0.8, **more):
    return pd.DataFrame([row("DMSMIL", acc, auc, **more), row("six colour numbers", 0.6, 0.7),
                         row("always the majority", 0.6, 0.5)])


def test_the_sentence_turns_with_the_number():
    good, bad = verdict(table()), verdict(table(0.55, 0.65))
    assert "is above *six colour numbers*: AUC 0.800 against 0.700" in good
    assert "is not above *six colour numbers*: AUC 0.650" in bad and "is not above *always the majority*" in bad
    assert "includes 0.5" in good and "excludes 0.5" in verdict(table(low=0.6))


def test_a_tie_is_not_above():
    assert "is not above *six colour numbers*" in verdict(table(0.6, 0.7))


def test_a_collapse_is_said_first_and_stands_in_the_table():
    said = verdict(table(collapsed=3))
    assert said.startswith("- **DMSMIL collapsed in 3 of 5 runs**") and "no result" in said
    assert pretty(table(collapsed=3)).note.iloc[0] == "3 of 5 runs collapsed"
    assert pretty(table()).note.iloc[0] == ""


def test_the_result_table_names_options_and_scales(tmp_path):
    bags = make_bags()
    folds = folds_of(bags)
    configs = [quick(bags, folds), quick(bags, folds, "damil", scale=10), quick(bags, folds, lam=0.1)]
    runs = get_runs(tmp_path, bags, folds, configs, workers=1, report=lambda line: None)
    made = result_table(runs, bags, folds, cohort_of(bags))
    assert list(made.name) == ["DMSMIL", "DAMIL 10x", "DMSMIL, lam=0.1", "six colour numbers", "always the majority"]
    assert made.AUC_mean.iloc[-1] == 0.5 and (made.runs == 2).all()
    ledger = run_ledger(tmp_path)
    assert len(ledger) == 3 and ledger.runs.sum() == 6


def test_the_ranking_names_who_is_above_and_who_learned_nothing():
    both = pd.concat([table(0.8, 0.75), pd.DataFrame([row("MEANPOOL", 0.9, 0.9), row("ABMIL 10x", 0.5, 0.6),
                                                      row("RELU", 0.99, 0.99, collapsed=1)])], ignore_index=True)
    said = ranking(both)
    assert "Highest AUC: **MEANPOOL**, 0.900" in said and "1 of 5 rows are above it: MEANPOOL" in said
    assert "Not above the six colour numbers: ABMIL 10x." in said and "Collapsed, and so no result: RELU." in said
    assert "no row is above it" in ranking(table(0.8, 0.8))


def test_what_was_adapted_is_said_wherever_it_is_shown(tmp_path):
    bags = make_bags(channels=32)
    folds = folds_of(bags)
    runs = get_runs(tmp_path, bags, folds, [quick(bags, folds, "multiattn", epochs=1), quick(bags, folds, epochs=1)],
                    workers=1, report=lambda line: None)
    assert "Wibawa (2022), not" in adaptations(runs) and adaptations(runs[1:]) == "Nothing was adapted here."


def test_a_study_without_results_says_what_to_run(tmp_path):
    with pytest.raises(InputError, match="run 03_train first"):
        saved_results(tmp_path)


def test_the_report_reads_what_the_study_wrote(smoke):
    home, _ = smoke
    assert saved_results(home).name[0] == "DMSMIL"
    assert saved_settings(home).loc["study", "value"] == "smoke"
    assert saved_environment(home).loc["torch", "value"].count(".") >= 2
    assert failures_table(home).empty
