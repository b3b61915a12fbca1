"""The comparison's further questions: whom DAMIL is tested against, what the cheap rules are worth, seeds and folds."""

import numpy as np
import pandas as pd
import pytest

from dmsmil.analysis.comparison import compare, corrected_resampled_ttest
from dmsmil.analysis.report import paired_tests
from dmsmil.analysis.verdicts import (
    best_other,
    cheap_sentences,
    cheap_tests,
    scale_sentences,
    scale_tests,
    seed_scatter,
    seed_sentence,
)
from dmsmil.training.baselines import baseline_predictions
from dmsmil.training.metrics import METRICS, score_by_fold
from dmsmil.training.results import result_table
from dmsmil.training.runs import get_runs
from tests.analysis.test_report import grid
from tests.training.test_baselines import cohort_of
from tests.training.test_fit import folds_of, make_bags, quick

pytestmark = pytest.mark.xdist_group("verdicts")  # the study is compared once


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """(runs, bags, folds, cohort) of DMSMIL, and of DAMIL, ABMIL and mean pooling at one scale or both."""
    bags = make_bags(30)
    folds = folds_of(bags, 3)
    asked = [("dmsmil", 0), ("damil", 10), ("abmil", 10), ("meanpool", 10), ("meanpool", 0), ("abmil", 20)]
    configs = [quick(bags, folds, name, scale=scale, epochs=2) for name, scale in asked]
    runs = get_runs(tmp_path_factory.mktemp("study"), bags, folds, configs, (0, 1), workers=1, report=lambda line: None)
    return runs, bags, folds, cohort_of(bags)


@pytest.mark.slow
def test_damil_is_tested_within_its_scale_alone(compared):
    runs, bags, *_ = compared
    tests = scale_tests(runs)
    assert list(tests.columns[:3]) == ["scales", "reference", "name"] and set(tests.reference) == {"DAMIL 10x"}
    assert list(tests.name) == ["ABMIL 10x", "Mean pooling 10x"], "20x has no DAMIL, and so no question"
    alone = compare(
        runs[1].predictions,
        {"ABMIL 10x": runs[2].predictions, "Mean pooling 10x": runs[3].predictions},
        test_share=10 / 30,
    )
    pd.testing.assert_frame_equal(tests[alone.columns], alone)
    assert scale_tests(runs[:1]).empty


@pytest.mark.slow
def test_names_in_tests_are_those_of_the_table(compared):
    runs, bags, folds, cohort = compared
    table = result_table(runs, bags, folds, cohort)
    assert set(scale_tests(runs).name) | set(cheap_tests(runs, bags, folds, cohort).name) <= set(table.name)
    assert list(paired_tests(runs).name) == list(table.name[1:6])


@pytest.mark.slow
def test_cheap_rules_are_a_family_of_their_own_and_the_constant_one_is_not_ranked(compared):
    runs, bags, folds, cohort = compared
    tests = cheap_tests(runs, bags, folds, cohort).set_index("name")
    assert list(tests.index) == ["six colour numbers", "always the majority"]
    assert np.isnan(tests.DeLong_p["always the majority"]) and "same answer" in tests.DeLong_note["always the majority"]
    assert tests.DeLong_p_holm["six colour numbers"] == tests.DeLong_p["six colour numbers"], (
        "one test is left, not two"
    )
    theirs = baseline_predictions(bags, folds, cohort)["six colour numbers"]
    gap = [score_by_fold(table).groupby("fold").ACC.mean() for table in (runs[0].predictions, theirs)]
    p = corrected_resampled_ttest(gap[0] - gap[1], 1 / 3).p
    assert tests.ACC_p["six colour numbers"] == pytest.approx(p, nan_ok=True)
    said = cheap_sentences(cheap_tests(runs, bags, folds, cohort)).splitlines()
    assert [" AUC" in line for line in said] == [True, False] and " ACC" in said[1]


@pytest.mark.slow
def test_no_comparison_has_two_p_values(compared):
    """Mean pooling was in the family of the methods and in that of the cheap rules: shown in one, not in the other."""
    runs, bags, folds, cohort = compared
    assert not set(paired_tests(runs).name) & set(cheap_tests(runs, bags, folds, cohort).name)


def test_the_best_other_is_no_pooling_no_variant_and_not_collapsed():
    table = grid()
    assert best_other(table, "dmsmil")["name"] == "DAMIL 10x"
    assert best_other(table, "dmsmil", pooling=True)["name"] == "Mean pooling 10x"
    table.loc[table.name == "DAMIL 10x", "collapsed"] = 1
    assert best_other(table, "dmsmil")["name"] == "ABMIL 10x"
    assert best_other(table[table.method.isin(["dmsmil", "meanpool", ""])], "dmsmil") is None


def paired(differences, p=0.01):
    """A tests table of DAMIL 10x: method -> difference of ACC."""
    return pd.DataFrame(
        [
            dict(
                scales="10x",
                reference="DAMIL 10x",
                name=name,
                ACC_difference=d,
                ACC_low=d - 0.02,
                ACC_high=d + 0.02,
                ACC_p_holm=p,
                ACC_note="",
            )
            for name, d in differences.items()
        ]
    )


def test_the_sentence_about_damil_turns_with_the_number():
    both = paired({"ABMIL 10x": 0.05, "Mean pooling 10x": 0.0})
    good = scale_sentences(grid(), paired({"ABMIL 10x": 0.05, "Mean pooling 10x": -0.1}))
    assert "the best is ABMIL 10x. DAMIL 10x is better than ABMIL 10x by 0.050 ACC" in good and "about 3 %" in good
    assert "DAMIL 10x is worse than Mean pooling 10x by 0.100 ACC" in good
    bad = scale_sentences(grid(), paired({"ABMIL 10x": 0.05, "Mean pooling 10x": 0.1}, p=0.4))
    assert bad.count("is not shown to be better") == 2
    fallen = grid()
    fallen.loc[fallen.name == "DAMIL 10x", "collapsed"] = 2
    assert "DAMIL 10x is no result: 2 of 5 runs collapsed." in scale_sentences(fallen, both)
    assert "not compared" in scale_sentences(grid(), both[:0])


@pytest.mark.slow
def test_seed_scatter_is_the_arithmetic_it_says(compared):
    runs = compared[0]
    scatter = seed_scatter(runs)
    assert list(scatter.seeds) == [2] * 6
    scores = score_by_fold(runs[0].predictions).sort_values(["fold", "seed"])
    for metric in METRICS:
        by = scores[metric].to_numpy().reshape(3, 2)  # folds x seeds
        assert scatter[f"{metric}_seeds"][0] == pytest.approx(np.sqrt(((by[:, 0] - by[:, 1]) ** 2 / 2).mean()))
        assert scatter[f"{metric}_folds"][0] == pytest.approx(np.std(by.mean(1), ddof=1))


def test_the_word_on_seeds_follows_the_larger_part():
    def said(seeds, folds):
        return seed_sentence(
            pd.DataFrame(
                [
                    {
                        "name": "a",
                        "seeds": 3,
                        **{f"{m}_seeds": seeds for m in METRICS},
                        **{f"{m}_folds": folds for m in METRICS},
                    }
                ]
            )
        )

    assert "more patients would" in said(0.01, 0.08) and "among the 3 seeds" in said(0.01, 0.08)
    assert "worth their time" in said(0.08, 0.01)
    assert "One seed a fold" in seed_sentence(pd.DataFrame())


def test_a_method_of_ones_own_decides_no_claim(monkeypatch):
    """It may lead the table; the paper's claims are about published methods."""
    from dmsmil.analysis.verdicts import best_other
    from dmsmil.models import METHODS, Method

    table = pd.DataFrame(
        {
            "method": ["dmsmil", "abmil", "mine"],
            "name": ["DMSMIL", "ABMIL 10x", "Mine"],
            "ACC_mean": [0.6, 0.7, 0.9],
            "collapsed": 0,
        }
    )
    assert best_other(table, "dmsmil")["name"] == "Mine"
    monkeypatch.setitem(METHODS, "mine", Method("mine", "Mine", "topk:TopK", "many", "me", published=False))
    assert best_other(table, "dmsmil")["name"] == "ABMIL 10x"
