"""A test part of one class, as leave-one-out has: AUC of the fold is not defined and said so, pooled numbers stay."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dmsmil import figures
from dmsmil.analysis.claims import claims, worth
from dmsmil.analysis.report import average_ranks, paired_sentences, paired_tests, ranking, saved_results
from dmsmil.analysis.sweep import lam_configs, lam_sentences, lam_table, lam_tests, pretty_lams
from dmsmil.analysis.variants import VARIANTS, pretty_variants, variant_configs, variant_sentences, variant_table
from dmsmil.analysis.verdicts import (
    cheap_sentences,
    cheap_tests,
    scale_sentences,
    scale_tests,
    seed_scatter,
    seed_sentence,
)
from dmsmil.training.config import configure_all
from dmsmil.training.metrics import score_by_fold
from dmsmil.training.results import part, pretty, result_table, save_table, verdict
from dmsmil.training.runs import get_runs
from tests.training.test_baselines import cohort_of
from tests.training.test_fit import make_bags

pytestmark = [pytest.mark.xdist_group("leave_one_out"), pytest.mark.slow]  # its table is made once

SETTINGS = dict(epochs=2, lr=1e-2, weight_decay=0.0, batch_size=1, select="last")
METHODS = ["dmsmil", "damil", "meanpool"]


def leave_one_out(cohort):
    """A fold a slide, which alone is tested."""
    folds = cohort[["slide_id", "patient_id", "label"]]
    return folds.assign(
        **{f"fold_{fold}": np.where(np.arange(len(folds)) == fold, "test", "train") for fold in range(len(folds))}
    )


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """(home, bags, folds, cohort, runs): six slides, each tested alone, in two seeds."""
    home, bags = tmp_path_factory.mktemp("loo"), make_bags(6)
    cohort = cohort_of(bags)
    folds, lines = leave_one_out(cohort), []
    configs = configure_all(bags, folds, METHODS, **SETTINGS)
    runs = get_runs(home, bags, folds, configs, [0, 1], 1, report=lines.append)
    assert len(lines) == 6 * 2 * 6 and all("AUC not defined" in line for line in lines)
    return home, bags, folds, cohort, runs


def test_the_table_says_not_defined_and_holds_the_pooled_number(left):
    _, bags, folds, cohort, runs = left
    table = result_table(runs, bags, folds, cohort)
    assert table.AUC_mean.isna().all() and table.AUC_pooled.notna().all() and table.ACC_mean.notna().all()
    assert (table.undefined == table.runs).all()
    for row, r in zip(table.itertuples(), runs):
        by_seed = [roc_auc_score(one.label == "b", one.prob_b) for _, one in r.predictions.groupby("seed")]
        assert row.AUC_pooled == pytest.approx(np.mean(by_seed)) and row.AUC_low <= row.AUC_pooled <= row.AUC_high
        assert row.ACC_mean == pytest.approx((r.predictions.label == r.predictions.pred).mean())
    shown = pretty(table)
    assert shown.AUC.str.startswith("not defined, pooled ").all() and "nan" not in shown.to_string()
    assert shown.note.iloc[0].endswith("F1 or AUC not defined in 12 of 12 runs, which test one class")


def test_f1_of_a_class_that_is_neither_tested_nor_said_is_left_out(left):
    """One slide of class a, called a: 0 / 0, which must not count as the worst F1 there is."""
    by_fold = score_by_fold(left[4][0].predictions)
    right = by_fold.ACC == 1
    truth = [left[3].label[fold] for fold in by_fold.fold]
    expected = [math.nan if ok and label == "a" else float(ok) for ok, label in zip(right, truth)]
    np.testing.assert_array_equal(by_fold.F1, expected)


def test_sentences_compare_what_can_be_compared(left):
    home, bags, folds, cohort, runs = left
    table = result_table(runs, bags, folds, cohort)
    said = verdict(table)
    assert "pooled AUC" in said and "interval of its pooled AUC" in said
    assert "Highest pooled AUC: **" in ranking(table) and "DMSMIL's pooled AUC is" in ranking(table)
    tests = paired_tests(runs)
    assert tests.AUC_p.isna().all() and tests.AUC_note.str.startswith("it is not defined in any fold").all()
    assert tests.DeLong_p_holm.notna().any(), "pooled predictions can be compared"
    words = paired_sentences(tests, "DMSMIL")
    assert words.count("by AUC is not tested: it is not defined in any fold") == len(tests) and "pooled AUC" in words
    cheap = cheap_tests(runs, bags, folds, cohort)
    one, scatter = scale_tests(runs), seed_scatter(runs)
    assert average_ranks(runs) is None
    for text in (
        said,
        ranking(table),
        words,
        cheap_sentences(cheap),
        scale_sentences(table, one),
        seed_sentence(scatter),
    ):
        assert "nan" not in text.replace("meanpool", "")
    for name, rows in (("04_compare", table), ("04_tests", tests), ("04_tests_cheap", cheap)):
        save_table(rows, home, name)
    said = worth(home, saved_results(home))
    assert (
        "not defined" in said
        and "nan" not in said.replace("meanpool", "")
        and part(saved_results(home)).name[0] == "DMSMIL"
    )
    assert len(claims(home)) > 5


def test_readings_and_lams_are_compared_by_what_is_defined(left):
    home, bags, folds, _, _ = left
    configs, left_out = variant_configs(
        bags, folds, {name: VARIANTS[name] for name in ("map_tile", "select_val_loss")}, **SETTINGS
    )
    found = get_runs(home, bags, folds, list(configs.values()), [0], 1, report=lambda line: None, stage="variants")
    table = variant_table(dict(zip(configs, found)))
    said = variant_sentences(table, left_out)
    assert "Furthest in ACC is `map_tile`" in said and "no validation part" in said and "nan" not in said
    assert pretty_variants(table).AUC.tolist() == ["not defined"]
    configs = lam_configs(bags, folds, [0.1, 1.0], **SETTINGS)
    found = get_runs(home, bags, folds, list(configs.values()), [0], 1, report=lambda line: None, stage="lambda")
    runs = dict(zip(configs, found))
    table, tests = lam_table(runs), lam_tests(runs)
    said = lam_sentences(table, tests)
    assert "AUC is not defined" in said and "nan" not in said and "nan" not in pretty_lams(table).to_string()
    save_table(table, home, "06_lambda")
    judged = claims(home).set_index("claim").loc["λ = 1 is best, in ACC, F1 and AUC"]
    assert judged.verdict == "not run" and "AUC is not defined" in judged.number


def test_figures_draw_it(left, tmp_path):
    _, bags, folds, cohort, runs = left
    table, first = result_table(runs, bags, folds, cohort), runs[0].predictions
    figures.result_intervals(table, tmp_path / "intervals")
    figures.roc(first, tmp_path / "roc")
    figures.calibration_curve(first, tmp_path / "calibration")
    figures.method_comparison({"10x": part(table, 10), "20x": part(table, 20)}, tmp_path / "single")
    figures.paired_differences(paired_tests(runs), tmp_path / "differences")


def test_a_reading_that_is_the_studys_own_setting_is_left_out(left):
    """Else the default would be compared with itself, and cost every other comparison power."""
    _, bags, folds, _, _ = left
    configs, left_out = variant_configs(
        bags, folds, {"batch_size_16": VARIANTS["batch_size_16"]}, **{**SETTINGS, "batch_size": 16}
    )
    assert list(configs) == ["default"] and left_out == {"batch_size_16": "it is what this study does by default"}
