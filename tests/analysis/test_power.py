"""The difference a study could show: against simulated studies, against arithmetic, and in words."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dmsmil.analysis.comparison import compare, corrected_resampled_ttest, metric_table
from dmsmil.analysis.power import detectable, floor, paired_spread, power_of, power_sentences, power_table
from dmsmil.analysis.report import average_ranks, paired_tests
from dmsmil.jobs.files import InputError
from tests.analysis.test_comparison import study


def simulated(rng, difference, spread, n, share, draws):
    """(draws, n) differences of studies whose resamples correlate by `share`, and spread as they say within a study."""
    whole = spread / np.sqrt(1 - share)
    common = rng.normal(size=(draws, 1))
    return difference + whole * (np.sqrt(share) * common + np.sqrt(1 - share) * rng.normal(size=(draws, n)))


@pytest.mark.slow
@pytest.mark.parametrize("n, share, alpha", [(5, 0.2, 0.05), (25, 0.2, 0.05), (10, 0.1, 0.01)])
def test_four_fifths_of_simulated_studies_find_the_detectable_difference(n, share, alpha):
    rng, wanted = np.random.default_rng(n), detectable(0.05, n, share, alpha)
    tests = [corrected_resampled_ttest(row, share) for row in simulated(rng, wanted, 0.05, n, share, 2000)]
    assert np.mean([test.p < alpha and test.difference > 0 for test in tests]) == pytest.approx(0.8, abs=0.03)


def test_power_is_the_level_without_a_difference_and_rises_to_one():
    assert power_of(0.0, 0.05, 10, 0.1) == pytest.approx(0.025)  # of 5 %, half say the right sign
    assert power_of(1.0, 0.05, 10, 0.1) == pytest.approx(1.0)
    assert power_of(detectable(0.07, 5, 0.2), 0.07, 5, 0.2) == pytest.approx(0.8)
    assert detectable(0.1, 5, 0.2) == pytest.approx(2 * detectable(0.05, 5, 0.2))


def test_repeats_come_nearer_to_the_floor_and_not_below():
    found = [detectable(0.05, 5 * repeats, 0.2) for repeats in (1, 2, 5, 20, 1000)]
    assert found == sorted(found, reverse=True) and found[0] > 1.7 * floor(0.05, 0.2)
    assert found[-1] == pytest.approx(floor(0.05, 0.2), rel=0.01) and found[-1] > floor(0.05, 0.2)
    assert floor(0.05, 0.2) == pytest.approx((1.95996 + 0.84162) * 0.05 * 0.5, rel=1e-4)  # n_test / n_train is 1/4


def test_where_nothing_is_known_nothing_is_said():
    for spread, n in ((math.nan, 5), (0.0, 5), (0.1, 1)):
        assert math.isnan(detectable(spread, n, 0.2))
    assert detectable(0.05, 2, 0.5, 0.05 / 400) > 100, "two folds find nothing that there can be"


def runs_of(tables):
    """Runs with these predictions, named as their methods."""
    config = dict(scales=(10,), own_options="", lr=1, weight_decay=0, batch_size=1, select="last", epochs=1)
    return [
        SimpleNamespace(predictions=table, config=SimpleNamespace(method=name, **config), test_share=0.2)
        for name, table in tables.items()
    ]


@pytest.fixture
def runs():
    tables = study(n=100)
    return runs_of(dict(zip(("dmsmil", "abmil", "meanpool", "maxpool"), tables.values())))


@pytest.mark.slow
def test_the_spread_is_the_middle_one_of_the_paired_differences(runs):
    tables = {r.config.method: r.predictions for r in runs}
    scores = metric_table(tables, "AUC", "ILC").to_numpy()
    by_hand = sorted(np.std(scores[0] - other, ddof=1) for other in scores[1:])
    assert paired_spread(tables, "AUC", "ILC") == pytest.approx(by_hand[1])
    twin = {"a": tables["dmsmil"], "twin": tables["dmsmil"], "b": tables["meanpool"]}
    assert paired_spread(twin, "AUC", "ILC") == pytest.approx(np.std(scores[0] - scores[2], ddof=1))
    assert math.isnan(paired_spread({"a": tables["dmsmil"], "twin": tables["dmsmil"]}, "AUC", "ILC"))


@pytest.mark.slow
def test_the_table_counts_the_tests_and_takes_the_share_of_the_study(runs):
    table = power_table(runs, "ILC").set_index("metric")
    tests = compare(runs[0].predictions, {r.config.method: r.predictions for r in runs[1:]}, "ILC", 0.2)
    assert (table.tests == len(tests) * 2).all() and (table.resamples == 5).all() and (table.test_share == 0.2).all()
    auc = table.loc["AUC"]
    assert auc.alone == detectable(auc.spread, 5, 0.2) and auc.corrected == detectable(auc.spread, 5, 0.2, 0.05 / 6)
    pilot = power_table(runs, "ILC", 0.04).set_index("metric")
    assert pilot.spread["AUC"] == 0.04 and pilot.source.to_list() == ["pilot", "runs"]
    assert pilot.spread["ACC"] == table.spread["ACC"]
    with pytest.raises(InputError, match="no method to compare with"):
        power_table(runs[:1])


@pytest.mark.slow
def test_two_repeats_are_ten_folds_that_each_test_a_fifth(runs):
    again = [
        SimpleNamespace(
            config=r.config,
            test_share=r.test_share,
            predictions=pd.concat(
                [r.predictions, r.predictions.assign(fold=(r.predictions.fold + 1) % 5 + 5)], ignore_index=True
            ),
        )
        for r in runs
    ]
    table = power_table(again, "ILC")
    assert (table.resamples == 10).all() and (table.test_share == 0.2).all()
    assert (table.alone < power_table(runs, "ILC").alone).all() and (table.alone > table.floor).all()


@pytest.mark.slow
def test_a_fold_without_an_auc_is_no_resample_of_it(runs):
    for r in runs:
        r.predictions = r.predictions[(r.predictions.fold != 0) | (r.predictions.label == "ILC")]
    table = power_table(runs, "ILC").set_index("metric")
    assert table.resamples.to_dict() == {"AUC": 4, "ACC": 5}
    assert table.alone["AUC"] == detectable(table.spread["AUC"], 4, 0.2)


@pytest.mark.slow
def test_a_comparison_takes_the_share_and_the_class_that_the_study_has(runs):
    tables = {r.config.method: r.predictions for r in runs[1:]}
    for r in runs:
        r.test_share = 0.4  # of a cohort of which half failed
    for positive in ("IDC", "ILC"):
        found = paired_tests(runs, positive).drop(columns=["reference", "name"])
        pd.testing.assert_frame_equal(found, compare(runs[0].predictions, tables, positive, 0.4).drop(columns="name"))


@pytest.mark.slow
def test_the_ranks_of_two_repeats_are_of_as_many_patients_as_of_one(runs):
    one = average_ranks(runs, "ILC")
    for r in runs:
        r.predictions = pd.concat([r.predictions, r.predictions.assign(fold=r.predictions.fold + 5)], ignore_index=True)
    two = average_ranks(runs, "ILC")
    assert (two.cd, two.p, two.blocks) == (pytest.approx(one.cd), pytest.approx(one.p), 5)


def test_the_words_follow_from_the_numbers():
    rows = [
        dict(
            metric="AUC",
            spread=0.02,
            source="pilot",
            resamples=25,
            test_share=0.2,
            tests=32,
            alone=0.0314,
            corrected=0.052,
            floor=0.028,
        ),
        dict(
            metric="ACC",
            spread=0.9,
            source="runs",
            resamples=2,
            test_share=0.5,
            tests=32,
            alone=18.0,
            corrected=500.0,
            floor=2.5,
        ),
    ]
    said = power_sentences(pd.DataFrame(rows)).splitlines()
    assert said[0] == (
        "- **A difference of 0.031 in AUC would be found in 80 % of such studies** by one test alone; after the "
        "correction for 32 tests, 0.052 (the spread of a difference over folds is 0.020 in an earlier study, with 25 "
        "folds)."
    )
    assert said[1].startswith("- **No difference in ACC would be found** in 80 % of such studies: it would have to be")
    assert "to 0.028 AUC at best" in said[2] and "to 0.016, as far as" in said[2] and len(said) == 3
    assert "none at all (the spread" in power_sentences(pd.DataFrame(rows[:1]).assign(corrected=1.2))
    unknown = power_sentences(pd.DataFrame(rows).assign(alone=math.nan))
    assert "repeats" not in unknown and unknown.splitlines()[0] == (
        "- What difference in AUC would be found cannot be said: no spread over folds is known."
    )
