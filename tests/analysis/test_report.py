"""Sentences and tables follow from the numbers, the bad ones too."""

import pandas as pd
import pytest

from dmsmil.analysis.paper import NOT_LEGIBLE, printed_results
from dmsmil.analysis.report import (
    adaptations,
    failures_table,
    paired_tests,
    ranking,
    run_ledger,
    saved_environment,
    saved_results,
    saved_settings,
    saved_tables,
    saved_times,
)
from dmsmil.jobs.files import InputError
from dmsmil.training.results import is_pooling, part, pretty, result_table, save_table, verdict
from dmsmil.training.runs import get_runs
from tests.training.test_baselines import cohort_of
from tests.training.test_fit import folds_of, make_bags, quick


def row(name, acc, auc, low=0.4, high=0.9, collapsed=0, method="", scales=""):
    means = {"ACC": acc, "F1": 0.5, "AUC": auc}
    return {
        "name": name,
        "method": method,
        "scales": scales,
        **{f"{m}_mean": v for m, v in means.items()},
        **{f"{m}_std": 0.1 for m in means},
        **{f"{m}_low": low for m in means},
        **{f"{m}_high": high for m in means},
        "runs": 5,
        "collapsed": collapsed,
        "parameters": 636386,
    }


def table(acc=0.8, auc=0.8, **more):
    return pd.DataFrame(
        [row("DMSMIL", acc, auc, **more), row("six colour numbers", 0.6, 0.7), row("always the majority", 0.6, 0.5)]
    )


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


@pytest.mark.slow
def test_the_result_table_names_options_and_scales(tmp_path):
    bags = make_bags()
    folds = folds_of(bags)
    configs = [quick(bags, folds), quick(bags, folds, "damil", scale=10), quick(bags, folds, lam=0.1)]
    runs = get_runs(tmp_path, bags, folds, configs, workers=1, report=lambda line: None)
    made = result_table(runs, bags, folds, cohort_of(bags))
    assert list(made.name) == ["DMSMIL", "DAMIL 10x", "DMSMIL, lam=0.1", "six colour numbers", "always the majority"]
    assert list(made.method) == ["dmsmil", "damil", "dmsmil", "", ""]
    assert list(made.scales) == ["10x+20x", "10x", "10x+20x", "", ""]
    assert made.AUC_mean.iloc[-1] == 0.5 and (made.runs == 2).all()
    ledger = run_ledger(tmp_path)
    assert len(ledger) == 3 and ledger.runs.sum() == 6
    assert sorted(ledger.options) == ["lam=0.1, lr=0.001", "lr=0.001", "lr=0.001"]


@pytest.mark.slow
def test_two_runs_of_one_table_never_share_a_name(tmp_path):
    bags = make_bags()
    folds = folds_of(bags)
    configs = [quick(bags, folds, "meanpool", **more) for more in ({}, {"lr": 1e-2}, {"batch_size": 4, "epochs": 2})]
    runs = get_runs(tmp_path, bags, folds, configs, workers=1, report=lambda line: None)
    made = result_table(runs, bags, folds, cohort_of(bags))
    assert list(made.name[:3]) == ["Mean pooling", "Mean pooling, lr=0.01", "Mean pooling, batch_size=4, 2 epochs"]
    tests = paired_tests(runs)
    assert set(tests.reference) == {"Mean pooling"} and list(tests.name) == list(made.name[1:3])


def grid():
    """A result table with methods of one scale and of two."""
    rows = [
        ("DMSMIL", 0.7, "dmsmil", "10x+20x"),
        ("DAMIL 10x", 0.8, "damil", "10x"),
        ("DAMIL 20x", 0.6, "damil", "20x"),
        ("Mean pooling 10x", 0.9, "meanpool", "10x"),
        ("Mean pooling", 0.9, "meanpool", "10x+20x"),
        ("ABMIL 10x", 0.75, "abmil", "10x"),
        ("HiFuse, 8 epochs", 0.6, "hifuse", "10x+20x"),
        ("DMSMIL, lam=0.1", 0.5, "dmsmil", "10x+20x"),
    ]
    rows = [row(name, value, value, method=method, scales=scales) for name, value, method, scales in rows]
    return pd.DataFrame([*rows, row("six colour numbers", 0.6, 0.7), row("always the majority", 0.6, 0.5)])


def test_a_part_holds_one_comparison_with_all_that_it_must_beat():
    cheap = ["six colour numbers", "always the majority"]
    assert list(part(grid(), 10).name) == ["DAMIL 10x", "ABMIL 10x", "Mean pooling 10x", *cheap]
    assert list(part(grid(), 20).name) == ["DAMIL 20x", *cheap]
    assert list(part(grid()).name) == ["DMSMIL", "HiFuse, 8 epochs", "DMSMIL, lam=0.1", "Mean pooling", *cheap]
    assert list(part(part(grid(), 10)).name) == list(part(grid(), 10).name), "a study of one scale has one part"
    assert is_pooling("topk") and not is_pooling("abmil") and not is_pooling("")


def test_the_papers_values_stand_beside_the_rows_they_belong_to():
    shown = pretty(grid(), printed_results("brca"))
    assert list(shown.columns[:4]) == ["ACC", "ACC in the paper", "F1", "F1 in the paper"]
    theirs = shown["ACC in the paper"]
    assert (theirs["DMSMIL"], theirs["HiFuse, 8 epochs"]) == ("0.8539", "0.8098±0.0272")
    assert (theirs.drop(["DMSMIL", "HiFuse, 8 epochs"]) == "—").all(), "no variant, scale or pooling of ours is theirs"
    assert shown["AUC in the paper"]["DMSMIL"] == NOT_LEGIBLE
    assert pretty(grid(), printed_results("")).equals(pretty(grid()))


def test_the_ranking_names_who_is_above_and_who_learned_nothing():
    both = pd.concat(
        [
            table(0.8, 0.75),
            pd.DataFrame([row("MEANPOOL", 0.9, 0.9), row("ABMIL 10x", 0.5, 0.6), row("RELU", 0.99, 0.99, collapsed=1)]),
        ],
        ignore_index=True,
    )
    said = ranking(both)
    assert "Highest AUC: **MEANPOOL**, 0.900" in said and "1 of 5 rows is above it: MEANPOOL" in said
    assert "Not above the six colour numbers: ABMIL 10x." in said and "Collapsed, and so no result: RELU." in said
    assert "no row is above it" in ranking(table(0.8, 0.8))
    vain = table(0.8, 0.99).assign(learned_nothing=[5, 0, 0])
    assert "Highest AUC: **six colour numbers**" in ranking(vain) and "no row is above it" not in ranking(vain)
    assert "which is guessing" not in verdict(vain) and "learned nothing in 5 of 5 runs" in verdict(vain)
    assert "Highest AUC: **DMSMIL**" in ranking(vain.assign(learned_nothing=[4, 0, 0])), "one of five has learned"
    assert ranking(vain.head(1)) == "- No method has learned anything: no AUC here is a result."


@pytest.mark.slow
def test_what_was_adapted_is_said_wherever_it_is_shown(tmp_path):
    bags = make_bags(channels=32)
    folds = folds_of(bags)
    runs = get_runs(
        tmp_path,
        bags,
        folds,
        [quick(bags, folds, "multiattn", epochs=1), quick(bags, folds, epochs=1)],
        workers=1,
        report=lambda line: None,
    )
    assert "Wibawa (2022), not" in adaptations(runs) and adaptations(runs[1:]) == "Nothing was adapted here."


def test_a_study_without_results_says_what_to_run(tmp_path):
    with pytest.raises(InputError, match="run 03_train first"):
        saved_results(tmp_path)


def test_tables_come_back_as_they_were_saved(tmp_path):
    save_table(grid(), tmp_path, "04_compare")
    save_table(pd.DataFrame(columns=["name", "seeds"]), tmp_path, "04_seeds")
    found = saved_tables(tmp_path)
    assert list(found) == ["04_compare", "04_seeds"] and found["04_seeds"].empty
    pd.testing.assert_frame_equal(found["04_compare"], grid(), check_dtype=False)
    assert list(part(saved_results(tmp_path)).name) == list(part(grid()).name)


def test_times_are_read_where_they_were_taken(tmp_path):
    assert saved_times(tmp_path).empty and list(saved_times(tmp_path)) == ["notebook", "first", "latest"]
    (tmp_path / "times.csv").write_text("notebook,first,latest\n02_features,,2.0\n03_train,12.5,3.0\n")
    assert saved_times(tmp_path)["first"].sum() == 12.5


def test_the_report_reads_what_the_study_wrote(smoke):
    home, _ = smoke
    assert saved_results(home).name[0] == "DMSMIL"
    assert saved_settings(home).loc["study", "value"] == "smoke"
    assert saved_environment(home).loc["torch", "value"].count(".") >= 2
    assert failures_table(home).empty
