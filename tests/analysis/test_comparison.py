"""Tests of methods against independent formulas, against scipy, and against data where nothing is to be found."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from dmsmil.analysis.comparison import (
    EQUIVALENT_WITHIN,
    compare,
    corrected_resampled_ttest,
    delong,
    equivalents,
    holm,
    metric_table,
    p_value,
    seen_from,
    sentence,
)
from dmsmil.analysis.ranks import friedman_nemenyi
from dmsmil.jobs.files import InputError
from dmsmil.training.metrics import predictions_table, score

CLASSES = ["IDC", "ILC"]


def predictions(truth, value, slides_a_patient=1, folds=5, seed=0):
    """A predictions table of slides s0, s1, ... whose positive probability rises with `value`."""
    n, p = len(truth), 1 / (1 + np.exp(-np.asarray(value, float)))
    patients = [f"p{i // slides_a_patient}" for i in range(n)]
    table = predictions_table(
        [f"s{i}" for i in range(n)],
        patients,
        np.asarray(CLASSES)[np.asarray(truth, int)],
        np.stack([1 - p, p], 1),
        CLASSES,
    )
    return table.assign(fold=np.arange(n) // (2 * slides_a_patient) % folds, seed=seed)


def two_readers(rng, n=60, signals=(1.0, 1.0), shared=0.7):
    """Truth (n,), alternating, and two correlated scores (2, n)."""
    truth = np.arange(n) % 2 == 1
    noise = np.sqrt(shared) * rng.normal(size=n) + np.sqrt(1 - shared) * rng.normal(size=(2, n))
    return truth, np.asarray(signals)[:, None] * truth + noise


# ------------------------------------------------------------------------------------------------ corrected t-test


def test_ttest_without_overlap_is_scipys_and_overlap_widens_it_by_the_formula():
    d = np.random.default_rng(0).normal(0.3, 1, 10)
    plain, theirs = corrected_resampled_ttest(d, 0.0), stats.ttest_1samp(d, 0)
    interval = theirs.confidence_interval()
    assert (plain.statistic, plain.p) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert (plain.low, plain.high) == pytest.approx((interval.low, interval.high))
    mine = corrected_resampled_ttest(d, 0.1)  # ten folds: n_test / n_train = 1 / 9
    assert mine.statistic == pytest.approx(theirs.statistic * np.sqrt((1 / 10) / (1 / 10 + 1 / 9)))
    assert mine.p == pytest.approx(2 * stats.t.sf(abs(mine.statistic), 9)) and mine.p > plain.p
    assert (mine.low + mine.high) / 2 == pytest.approx(mine.difference) == pytest.approx(d.mean())


def test_ttest_by_hand():
    """1, 2, 3 with a third tested: s^2 = 1, t = 2 / sqrt(1/3 + 1/2)."""
    mine = corrected_resampled_ttest([1, 2, np.nan, 3], 1 / 3)
    assert (mine.difference, mine.statistic, mine.units) == (pytest.approx(2), pytest.approx(2 / np.sqrt(5 / 6)), 3)
    other = corrected_resampled_ttest([-1, -2, -3], 1 / 3)
    assert (other.statistic, other.p, other.low) == pytest.approx((-mine.statistic, mine.p, -mine.high))


def test_the_interval_excludes_zero_exactly_when_p_is_small():
    rng = np.random.default_rng(1)
    tests = [corrected_resampled_ttest(rng.normal(rng.uniform(-1, 1), 1, 8), 0.2) for _ in range(100)]
    assert all((t.low > 0 or t.high < 0) == (t.p < 0.05) for t in tests)
    assert 0 < sum(t.p < 0.05 for t in tests) < 100


def test_no_variance_is_never_p_zero():
    same = corrected_resampled_ttest([0, 0, 0], 0.2)
    assert same.p == 1 and np.isnan(same.low) and "do not differ" in same.reason
    constant = corrected_resampled_ttest([0.1, 0.1, 0.1], 0.2)
    assert np.isnan(constant.p) and constant.difference == pytest.approx(0.1) and "does not vary" in constant.reason
    for few in ([], [0.3], [0.3, np.nan]):
        test = corrected_resampled_ttest(few, 0.2)
        assert np.isnan(test.p) and "at least 2" in test.reason
    for share in (-0.1, 1.0, np.nan):
        with pytest.raises(InputError, match="test_share"):
            corrected_resampled_ttest([1, 2], share)


def cross_validated_differences(rng, folds=5, seeds=3, n=60, dim=8, seed_noise=0.05):
    """(folds, seeds) AUC differences of two nearest-centroid methods of equal worth, really trained on the folds.

    Each sees features of its own, drawn alike, so that in expectation neither is better.
    """
    truth, fold = np.arange(n) % 2 == 1, np.arange(n) // 2 % folds
    x = rng.normal(size=(2, n, dim)) + 0.4 * truth[:, None]
    gaps = np.empty((folds, seeds))
    for f in range(folds):
        aucs = []
        for features in x:
            train, test = fold != f, fold == f
            direction = features[train & truth].mean(0) - features[train & ~truth].mean(0)
            scores = features[test] @ (direction[:, None] + seed_noise * rng.normal(size=(dim, seeds)))
            aucs.append((scores[truth[test]][:, None] > scores[~truth[test]][None]).mean((0, 1)))
        gaps[f] = aucs[0] - aucs[1]
    return gaps


@pytest.mark.slow
def test_under_the_null_the_corrected_test_keeps_its_level_and_the_plain_one_does_not():
    """Really trained models on overlapping training sets; and seeds must not pass for folds."""
    rng = np.random.default_rng(2)
    gaps = [cross_validated_differences(rng) for _ in range(500)]
    rate = {
        "corrected": np.mean([corrected_resampled_ttest(g.mean(1), 0.2).p < 0.05 for g in gaps]),
        "plain": np.mean([stats.ttest_1samp(g.mean(1), 0).pvalue < 0.05 for g in gaps]),
        "seeds as folds": np.mean([corrected_resampled_ttest(g.ravel(), 0.2).p < 0.05 for g in gaps]),
    }
    assert 0.02 < rate["corrected"] < 0.08, rate
    assert rate["plain"] > 0.09 and rate["seeds as folds"] > 0.08, rate


@pytest.mark.slow
def test_equally_correlated_differences_are_rejected_at_the_level():
    """The correction's own assumption: runs correlate by the tested share. Then the level is exact."""
    rng, share, n, draws = np.random.default_rng(3), 0.2, 10, 2000
    d = np.sqrt(share) * rng.normal(size=(draws, 1)) + np.sqrt(1 - share) * rng.normal(size=(draws, n))
    p = [corrected_resampled_ttest(row, share).p for row in d]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(stats.ttest_1samp(d, 0, axis=1).pvalue < 0.05) > 0.2


# ------------------------------------------------------------------------------------------------ equivalence


def test_equivalence_is_two_one_sided_tests_by_scipy():
    """Without overlap they are scipy's; the share widens their error as it does the t-test's."""
    rng = np.random.default_rng(8)
    for centre in (0.0, 0.005, -0.015, 0.03):
        d = rng.normal(centre, 0.01, 12)
        above = stats.ttest_1samp(d, -EQUIVALENT_WITHIN, alternative="greater").pvalue
        below = stats.ttest_1samp(d, EQUIVALENT_WITHIN, alternative="less").pvalue
        assert corrected_resampled_ttest(d, 0.0).p_equivalent == pytest.approx(max(above, below))
        mine, error = corrected_resampled_ttest(d, 0.25), np.sqrt((1 / 12 + 1 / 3) * d.var(ddof=1))
        sides = [(EQUIVALENT_WITHIN - d.mean()) / error, (d.mean() + EQUIVALENT_WITHIN) / error]
        assert mine.p_equivalent == pytest.approx(max(stats.t.sf(sides, 11)))
        assert mine.p_equivalent == corrected_resampled_ttest(-d, 0.25).p_equivalent


def test_equivalence_is_the_90_per_cent_interval_inside_the_margin():
    rng, inside = np.random.default_rng(9), 0
    for _ in range(100):
        d = rng.normal(rng.uniform(-0.03, 0.03), 0.012, 10)
        test = corrected_resampled_ttest(d, 0.1)
        reach = (test.high - test.low) / 2 / stats.t.ppf(0.975, 9) * stats.t.ppf(0.95, 9)
        within = abs(test.difference) + reach < EQUIVALENT_WITHIN
        assert within == (test.p_equivalent < 0.05)
        inside += within
    assert 10 < inside < 90


@pytest.mark.slow
def test_at_the_margin_equivalence_is_said_as_often_as_the_level_allows():
    rng, share, n = np.random.default_rng(10), 0.2, 10
    d = EQUIVALENT_WITHIN + 0.005 * (
        np.sqrt(share) * rng.normal(size=(2000, 1)) + np.sqrt(1 - share) * rng.normal(size=(2000, n))
    )
    assert np.mean([corrected_resampled_ttest(row, share).p_equivalent < 0.05 for row in d]) == pytest.approx(
        0.05, abs=0.015
    )


def test_what_does_not_vary_is_not_called_equivalent():
    assert np.isnan(corrected_resampled_ttest([0, 0, 0], 0.2).p_equivalent)
    assert np.isnan(corrected_resampled_ttest([0.3], 0.2).p_equivalent)


def near(shift=0.0, n=400, folds=10):
    """Two predictions tables whose values differ by noise so small that their AUC hardly does."""
    rng = np.random.default_rng(11)
    truth = np.arange(n) % 2 == 1
    value = 1.5 * truth + rng.normal(size=n)
    return (
        predictions(truth, value + shift * truth, folds=folds),
        predictions(truth, value + 0.05 * rng.normal(size=n), folds=folds),
    )


def test_the_sentence_sets_equivalent_apart_from_not_shown():
    reference, other = near()
    row = compare(reference, {"twin": other}, "ILC").iloc[0]
    assert row.AUC_p_equivalent_holm < 0.05 < row.AUC_p_holm and equivalents(row.to_frame().T) == "twin by AUC"
    said = sentence(row, "DMSMIL")
    assert (
        said.startswith("DMSMIL and twin are equivalent: they differ by less than 0.02 AUC, ")
        and f"{row.AUC_difference:+.3f} [90 %: {_ninety(row)}]" in said
        and said.endswith(f"corrected p {_told(row.AUC_p_equivalent_holm)}.")
    )
    open_question = row.copy()
    open_question["AUC_p_equivalent_holm"] = 0.051
    assert sentence(open_question, "DMSMIL").startswith("DMSMIL is not shown to be better than twin")
    shown = row.copy()
    shown["AUC_p_holm"] = 0.01  # small, and yet there: the difference is said
    assert " is better than " in sentence(shown, "DMSMIL") or " is worse than " in sentence(shown, "DMSMIL")
    assert equivalents(shown.to_frame().T) == ""


def _ninety(row):
    """The interval of two one-sided tests at .05, of a mean over ten folds, from that of one test at .05, two-sided."""
    error = (row.AUC_high - row.AUC_low) / (2 * 2.262157)
    return f"{row.AUC_difference - 1.833113 * error:.3f}, {row.AUC_difference + 1.833113 * error:.3f}"


@pytest.mark.slow
def test_the_90_per_cent_interval_counts_the_folds_that_have_an_auc():
    """A fold that tests one class has none: it is no degree of freedom, though it is one for ACC."""
    reference, other = near(n=440, folds=11)
    one = (reference.fold != 10) | (reference.label == "ILC")
    with_it = compare(reference[one], {"twin": other[one]}, "ILC", 0.1).iloc[0]
    without = compare(reference[reference.fold != 10], {"twin": other[other.fold != 10]}, "ILC", 0.1).iloc[0]
    assert (with_it.folds, with_it.ACC_units, with_it.AUC_units, without.AUC_units) == (11, 11, 10, 10)
    assert with_it.AUC_p_equivalent == without.AUC_p_equivalent < 0.05
    assert f"[90 %: {_ninety(with_it)}]" in sentence(with_it, "DMSMIL")


def _told(p):
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.0995 else f"= {p:.2f}"


@pytest.mark.slow
def test_equivalence_is_a_family_of_its_own_over_methods_and_metrics():
    tables = study()
    table = compare(tables.pop("DMSMIL"), tables, "ILC")
    both = holm([*table.ACC_p_equivalent, *table.AUC_p_equivalent])
    np.testing.assert_allclose([*table.ACC_p_equivalent_holm, *table.AUC_p_equivalent_holm], both)
    assert not any("DeLong" in name and "equivalent" in name for name in table)


# ------------------------------------------------------------------------------------------------ DeLong


def delong_by_pairs(truth, values):
    """DeLong's 1988 formulas written out over all pairs: (auc_a, auc_b, standard error of the difference)."""
    m, n = truth.sum(), (~truth).sum()
    kernels = []
    for v in values:
        kernel = np.empty((m, n))
        for i, x in enumerate(v[truth]):
            for j, y in enumerate(v[~truth]):
                kernel[i, j] = 1.0 if x > y else 0.5 if x == y else 0.0
        kernels.append(kernel)
    s10 = np.cov([k.mean(1) for k in kernels])
    s01 = np.cov([k.mean(0) for k in kernels])
    s = s10 / m + s01 / n
    return kernels[0].mean(), kernels[1].mean(), np.sqrt(s[0, 0] + s[1, 1] - 2 * s[0, 1])


@pytest.mark.parametrize("digits", [9, 0])  # 0: many ties
def test_delong_is_the_formula_over_all_pairs(digits):
    truth, values = two_readers(np.random.default_rng(4), 50, (1.5, 0.5))
    truth[:7] = True  # unequal class sizes
    values = values.round(digits)
    mine = delong(*(predictions(truth, v) for v in values), "ILC")
    auc_a, auc_b, error = delong_by_pairs(truth, values)
    assert (mine.auc_a, mine.auc_b) == pytest.approx((auc_a, auc_b))
    assert (mine.auc_a, mine.auc_b) == pytest.approx([roc_auc_score(truth, v) for v in values])
    z = (auc_a - auc_b) / error
    assert (mine.test.statistic, mine.test.p) == pytest.approx((z, 2 * stats.norm.sf(abs(z))))
    assert mine.test.high - mine.test.low == pytest.approx(2 * 1.959964 * error, rel=1e-6)
    assert mine.slides == mine.test.units == 50


def test_delongs_error_is_the_bootstraps():
    rng = np.random.default_rng(5)
    truth, values = two_readers(rng, 120, (1.2, 0.7))
    test = delong(*(predictions(truth, v) for v in values), "ILC").test
    draws, up, down = [], np.flatnonzero(truth), np.flatnonzero(~truth)
    for _ in range(800):
        i, j = rng.choice(up, len(up)), rng.choice(down, len(down))
        draws.append(
            np.subtract(*[(v[i][:, None] > v[j]).mean() + 0.5 * (v[i][:, None] == v[j]).mean() for v in values])
        )
    assert test.difference / test.statistic == pytest.approx(np.std(draws), rel=0.1)


def test_delong_swapped_mirrored_and_reordered():
    truth, values = two_readers(np.random.default_rng(6), 40, (1.5, 0.5))
    a, b = (predictions(truth, v) for v in values)
    one, swapped, other = delong(a, b, "ILC"), delong(b, a, "ILC"), delong(a, b, "IDC")
    assert (swapped.auc_a, swapped.auc_b) == (one.auc_b, one.auc_a)
    assert (swapped.test.statistic, swapped.test.p) == pytest.approx((-one.test.statistic, one.test.p))
    assert (swapped.test.low, swapped.test.high) == pytest.approx((-one.test.high, -one.test.low))
    assert (other.auc_a, other.test.p) == pytest.approx((one.auc_a, one.test.p))  # of two classes either tells it
    shuffled = b.sample(frac=1, random_state=0)
    assert delong(a, shuffled, "ILC").test.p == pytest.approx(one.test.p)


def test_delong_averages_seeds_by_slide():
    truth, values = two_readers(np.random.default_rng(7), 40)
    a, b = (predictions(truth, v) for v in values)
    moved = [a.assign(prob_ILC=a.prob_ILC + s * 0.3, prob_IDC=a.prob_IDC - s * 0.3, seed=s) for s in (-1, 0, 1)]
    assert delong(pd.concat(moved), b, "ILC").test.p == pytest.approx(delong(a, b, "ILC").test.p)


def test_copied_slides_of_a_patient_are_no_new_evidence():
    truth, values = two_readers(np.random.default_rng(8), 40, (1.5, 0.5))
    one = delong(*(predictions(truth, v) for v in values), "ILC")
    copied = delong(*(predictions(truth.repeat(4), v.repeat(4), slides_a_patient=4) for v in values), "ILC")
    assert (copied.auc_a, copied.test.p) == pytest.approx((one.auc_a, one.test.p)) and copied.slides == 160
    alone = delong(*(predictions(truth.repeat(4), v.repeat(4)) for v in values), "ILC")
    assert alone.test.p < one.test.p / 2


@pytest.mark.slow
def test_delong_keeps_its_level_under_the_null():
    rng, p = np.random.default_rng(9), []
    for _ in range(250):
        truth, values = two_readers(rng, 60)
        p.append(delong(*(predictions(truth, v) for v in values), "ILC").test.p)
    assert 0.015 < np.mean(np.asarray(p) < 0.05) < 0.09
    assert stats.kstest(p, "uniform").pvalue > 0.005


def test_delong_where_nothing_can_be_said():
    truth, values = two_readers(np.random.default_rng(10), 20)
    a = predictions(truth, values[0])
    assert delong(a, a, "ILC").test.p == 1 and delong(a, a, "ILC").test.difference == 0
    perfect = delong(predictions(truth, 9.0 * truth), predictions(truth, np.zeros(20)), "ILC")
    assert perfect.test.difference == 0.5 and np.isnan(perfect.test.p) and "does not vary" in perfect.test.reason
    assert "one patient" in delong(a[a.slide_id.isin(["s0", "s1", "s2"])], a, "ILC").test.reason
    assert "one class" in delong(a[a.label == "IDC"], a, "ILC").test.reason
    with pytest.raises(InputError, match="share no slide"):
        delong(a.assign(slide_id="x" + a.slide_id), a, "ILC")
    with pytest.raises(InputError, match="slide 's0' has another label"):
        delong(a, a.assign(label=a.label.where(a.slide_id != "s0", "ILC")), "ILC")
    with pytest.raises(InputError, match="positive is 'LUAD'"):
        delong(a, a, "LUAD")


# ------------------------------------------------------------------------------------------------ many comparisons


def test_holm_by_hand_and_nan_is_no_test():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04])
    assert np.isnan(holm([np.nan, np.nan])).all() and holm([]).size == 0 and holm([0.9, 0.8]).tolist() == [1, 1]


def test_holm_lies_between_nothing_and_bonferroni_and_keeps_the_order():
    p = np.random.default_rng(11).uniform(size=(50, 7)) ** 3
    for row in p:
        adjusted = holm(row)
        assert (adjusted >= row).all() and (adjusted <= np.minimum(row * 7, 1) + 1e-12).all()
        assert (np.diff(adjusted[np.argsort(row)]) >= 0).all()
        assert adjusted.min() == pytest.approx(min(7 * row.min(), 1))
        step = next((i for i, v in enumerate(np.sort(row)) if v > 0.05 / (7 - i)), 7)  # Holm's own step-down rule
        assert (adjusted <= 0.05).sum() == step


def test_holm_keeps_the_familywise_level():
    p = np.random.default_rng(12).uniform(size=(2000, 10))
    assert np.mean([holm(row).min() < 0.05 for row in p]) < 0.065 < np.mean(p.min(1) < 0.05)


@pytest.mark.parametrize("k, q", [(3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_critical_difference_of_the_printed_table(k, q):
    """q at .05 as printed by Demsar (2006), table 5."""
    table = pd.DataFrame(np.random.default_rng(k).normal(size=(k, 14)))
    assert friedman_nemenyi(table).cd == pytest.approx(q * np.sqrt(k * (k + 1) / (6 * 14)), abs=1e-3)


def test_ranks_by_hand_ties_and_gaps():
    table = pd.DataFrame([[0.9, 0.8, 0.7, np.nan], [0.5, 0.8, 0.6, 0.1], [0.1, 0.2, 0.3, 0.9]], index=["a", "b", "c"])
    got = friedman_nemenyi(table)
    assert got.ranks.to_dict() == pytest.approx({"a": (1 + 1.5 + 1) / 3, "b": (2 + 1.5 + 2) / 3, "c": 3.0})
    assert list(got.ranks.index) == ["a", "b", "c"] and got.blocks == 3
    assert got.p == pytest.approx(stats.friedmanchisquare(*table.iloc[:, :3].to_numpy()).pvalue)
    assert friedman_nemenyi(np.exp(table)).ranks.equals(got.ranks)  # ranks alone count
    assert np.isnan(friedman_nemenyi(pd.DataFrame(np.ones((3, 4)))).p)
    twice = friedman_nemenyi(pd.concat([table, table], axis=1), 2)  # the folds of two repeats: no further patients
    assert (twice.ranks.to_dict(), twice.cd, twice.p) == (
        got.ranks.to_dict(),
        pytest.approx(got.cd),
        pytest.approx(got.p),
    ) and twice.blocks == 3
    for few in (table.iloc[:2], table.iloc[:, 2:]):
        with pytest.raises(InputError, match="at least 3 methods and 2 folds"):
            friedman_nemenyi(few)


# ------------------------------------------------------------------------------------------------ the whole table


def study(seeds=2, signals={"DMSMIL": 1.5, "ABMIL": 1.4, "mean": 0.0, "best": 6.0}, n=200, folds=5):
    """Predictions of several methods on one cohort: common noise, and a little of each method and seed."""
    rng = np.random.default_rng(13)
    truth = np.arange(n) % 2 == 1
    common = rng.normal(size=n)
    return {
        name: pd.concat(
            [
                predictions(truth, signal * (truth - 0.5) + common + 0.5 * rng.normal(size=n), 1, folds, s)
                for s in range(seeds)
            ],
            ignore_index=True,
        )
        for name, signal in signals.items()
    }


@pytest.mark.slow
def test_metric_table_is_each_folds_mean_over_seeds():
    tables = study()
    made = metric_table(tables, "AUC", "ILC")
    assert list(made.index) == list(tables) and list(made.columns) == list(range(5))
    part = tables["ABMIL"].query("fold == 3")
    assert made.loc["ABMIL", 3] == pytest.approx(np.mean([score(p, "ILC")["AUC"] for _, p in part.groupby("seed")]))


@pytest.mark.slow
def test_compare_is_made_of_its_parts():
    tables = study()
    reference = tables.pop("DMSMIL")
    table = compare(reference, tables, "ILC")
    assert list(table.name) == list(tables) and (table.folds == 5).all() and (table.slides == 200).all()
    for metric in ("ACC", "AUC"):
        gap = metric_table({"a": reference}, metric, "ILC").loc["a"] - metric_table(tables, metric, "ILC")
        for row in table.itertuples():
            one = corrected_resampled_ttest(gap.loc[row.name], 1 / 5)
            assert getattr(row, f"{metric}_difference") == pytest.approx(gap.loc[row.name].mean())
            assert getattr(row, f"{metric}_p") == pytest.approx(one.p)
            assert getattr(row, f"{metric}_low") == pytest.approx(one.low)
    both = holm([*table.ACC_p, *table.AUC_p])  # one family: a method is not given two chances for one price
    np.testing.assert_allclose([*table.ACC_p_holm, *table.AUC_p_holm], both)
    np.testing.assert_allclose(table.DeLong_p_holm, holm(table.DeLong_p))
    assert table.DeLong_p[1] == delong(reference, tables["mean"], "ILC").test.p


@pytest.mark.slow
def test_swapping_reference_and_method_turns_every_sign():
    tables = study()
    one = compare(tables["DMSMIL"], {"x": tables["mean"]}, "ILC").iloc[0]
    back = compare(tables["mean"], {"x": tables["DMSMIL"]}, "ILC").iloc[0]
    for name in ("ACC", "AUC", "F1", "DeLong"):
        assert back[f"{name}_difference"] == pytest.approx(-one[f"{name}_difference"])
    for name in ("ACC", "AUC", "DeLong"):
        assert (back[f"{name}_p"], back[f"{name}_low"]) == pytest.approx((one[f"{name}_p"], -one[f"{name}_high"]))
    whole, others = compare(tables["DMSMIL"], {"x": tables["mean"]}, "ILC"), {"DMSMIL": tables["DMSMIL"]}
    turned = seen_from(compare(tables["mean"], others, "ILC").assign(reference="x"), "DMSMIL")
    pd.testing.assert_frame_equal(turned.drop(columns="reference"), whole)
    assert set(turned.reference) == {"DMSMIL"} and seen_from(turned, "y").empty


@pytest.mark.slow
def test_copied_seeds_are_no_new_evidence_and_a_baseline_of_one_seed_is_compared():
    tables = study(seeds=1)
    copied = {name: pd.concat([t.assign(seed=s) for s in range(5)]) for name, t in tables.items()}
    columns = ["ACC_p", "AUC_p", "AUC_low", "DeLong_p"]
    one = compare(tables["DMSMIL"], {"x": tables["mean"]}, "ILC")[columns]
    for reference, other in ((copied["DMSMIL"], copied["mean"]), (copied["DMSMIL"], tables["mean"])):
        pd.testing.assert_frame_equal(compare(reference, {"x": other}, "ILC")[columns], one)


@pytest.mark.slow
def test_a_missing_fold_is_left_out_and_the_share_stays_the_studys():
    tables = study()
    lost = tables["mean"].query("fold != 4")
    row = compare(tables["DMSMIL"], {"x": lost}, "ILC").iloc[0]
    folds = metric_table({"DMSMIL": tables["DMSMIL"], "lost": lost}, "AUC", "ILC")
    gap = folds.loc["DMSMIL"] - folds.loc["lost"]
    assert (row.folds, row.slides) == (4, 160)
    assert row.AUC_p == pytest.approx(corrected_resampled_ttest(gap.dropna(), 1 / 5).p)
    half = compare(lost, {"x": lost.assign(prob_ILC=lost.prob_IDC)}, "ILC", test_share=0.16).iloc[0]
    assert half.AUC_p < compare(lost, {"x": lost.assign(prob_ILC=lost.prob_IDC)}, "ILC").iloc[0].AUC_p


@pytest.mark.slow
def test_repeats_are_further_resamples_of_the_same_share_and_no_further_slides():
    """Two partitions of the same patients: n is 10, a fold still tests a fifth, DeLong pools a slide over both."""
    one, two = study(seeds=1), study(seeds=2)
    tables = {}
    for name in ("DMSMIL", "mean"):
        second = two[name][two[name].seed == 1].assign(seed=0)
        second = second.assign(fold=5 + (second.fold + np.arange(len(second)) // 20) % 5)
        tables[name] = pd.concat([one[name], second], ignore_index=True)
    row = compare(tables["DMSMIL"], {"x": tables["mean"]}, "ILC").iloc[0]
    folds = metric_table(tables, "AUC", "ILC")
    expected = corrected_resampled_ttest(folds.loc["DMSMIL"] - folds.loc["mean"], 1 / 5)
    assert (row.folds, row.slides) == (10, 200) and row.AUC_p == pytest.approx(expected.p)
    pooled = {
        name: t.assign(prob_ILC=t.groupby("slide_id").prob_ILC.transform("mean")).drop_duplicates("slide_id")
        for name, t in tables.items()
    }
    assert row.DeLong_p == pytest.approx(delong(pooled["DMSMIL"], pooled["mean"], "ILC").test.p)


def test_compare_says_what_it_cannot_do():
    tables = study()
    reference = tables["DMSMIL"]
    with pytest.raises(InputError, match="no method to compare with"):
        compare(reference, {})
    with pytest.raises(InputError, match="at least 2 folds"):
        compare(reference.assign(fold=0), {"x": reference.assign(fold=0)})
    with pytest.raises(InputError, match="x has no fold in common"):
        compare(reference, {"x": reference.assign(fold=reference.fold + 9)})


@pytest.mark.slow
def test_the_sentence_follows_from_the_numbers():
    tables = study()
    reference = tables.pop("DMSMIL")
    table = compare(reference, tables, "ILC").set_index("name", drop=False)
    said = {name: sentence(row, "DMSMIL") for name, row in table.iterrows()}
    assert said["mean"].startswith(f"DMSMIL is better than mean by {table.AUC_difference['mean']:.3f} AUC [")
    assert said["best"].startswith(f"DMSMIL is worse than best by {-table.AUC_difference['best']:.3f} AUC [")
    assert said["ABMIL"].startswith(
        f"DMSMIL is not shown to be better than ABMIL: {table.AUC_difference['ABMIL']:+.3f} AUC ["
    )
    assert f"[{-table.AUC_high['best']:.3f}, {-table.AUC_low['best']:.3f}]" in said["best"]
    row = table.loc["mean"].copy()
    assert "pooled AUC" in sentence(row, "DMSMIL", "DeLong")
    row["AUC_p_holm"] = 0.0501  # significant before the correction is not enough
    assert "not shown" in sentence(row, "DMSMIL") and sentence(row, "DMSMIL").endswith("corrected p = 0.0501.")
    row["AUC_p_holm"] = 0.0499
    assert "is better than" in sentence(row, "DMSMIL")


def test_the_sentence_says_so_when_there_is_no_test():
    truth = np.arange(40) % 2 == 1
    perfect, blind = predictions(truth, 9.0 * truth - 4.5), predictions(truth, np.zeros(40))
    row = compare(perfect, {"blind": blind}, "ILC").iloc[0]
    assert sentence(row, "DMSMIL") == (
        "DMSMIL against blind by AUC (+0.500) is not tested: the difference does not "
        "vary: its error cannot be estimated."
    )
    same = compare(perfect, {"twin": perfect}, "ILC").iloc[0]
    assert sentence(same, "DMSMIL") == "DMSMIL is not shown to be better than twin: +0.000 AUC, corrected p = 1.00."


@pytest.mark.slow
def test_of_three_classes_the_pooled_test_names_the_one_it_sets_against_the_rest():
    rng = np.random.default_rng(3)
    tables = []
    for _ in range(2):
        p = rng.dirichlet([1, 1, 1], 30)
        table = predictions_table(
            [f"s{i}" for i in range(30)],
            [f"p{i}" for i in range(30)],
            np.array(["a", "b", "c"])[np.arange(30) % 3],
            p,
            ["a", "b", "c"],
        )
        tables.append(table.assign(fold=np.arange(30) // 3 % 2, seed=0))
    row = compare(tables[0], {"other": tables[1]}, "b").iloc[0]
    assert row.DeLong_class == "b" and "pooled AUC of b against the rest" in sentence(row, "DMSMIL", "DeLong")
    assert not any("against the rest" in sentence(row, "DMSMIL", metric) for metric in ("ACC", "AUC"))
    two = predictions([0, 1] * 10, np.arange(20))
    assert compare(two, {"other": two}, "ILC").iloc[0].DeLong_class == ""
    assert "one-vs-rest AUC" in sentence(row, "DMSMIL") and row.classes == 3
    assert "classes" not in compare(two, {"other": two}, "ILC")


def test_where_none_of_three_classes_is_named_the_pooled_test_needs_two():
    p = np.random.default_rng(3).dirichlet([1, 1, 1], 30)
    table = predictions_table(
        [f"s{i}" for i in range(30)],
        [f"p{i}" for i in range(30)],
        np.array(["a", "b", "c"])[np.arange(30) % 3],
        p,
        ["a", "b", "c"],
    )
    row = compare(
        table.assign(fold=np.arange(30) // 3 % 2, seed=0), {"other": table.assign(fold=np.arange(30) // 3 % 2, seed=0)}
    ).iloc[0]
    assert np.isnan(row.DeLong_p) and row.DeLong_class == "" and not np.isnan(row.AUC_p)
    assert sentence(row, "DMSMIL", "DeLong") == (
        "DMSMIL against other by pooled AUC is not tested: it needs two classes, or one that the key positive "
        "sets against the rest."
    )


def test_a_p_beside_alpha_shows_its_side():
    assert [p_value(p) for p in (0.0002, 0.0494, 0.0498, 0.0502, 0.0506, 0.3)] == [
        "p < 0.001",
        "p = 0.049",
        "p = 0.0498",
        "p = 0.0502",
        "p = 0.051",
        "p = 0.30",
    ]
    assert (p_value(0.049999), p_value(0.050001)) == ("p < 0.05", "p ≥ 0.05")


def test_equal_values_that_differ_in_the_last_bit_share_a_rank():
    u = 0.6388888888888888
    table = pd.DataFrame([[u, 0.7, 0.8], [u + 2e-16, 0.6, 0.9], [0.5, 0.5, 0.5]], index=list("abc"))
    assert u + 2e-16 != u and friedman_nemenyi(table).ranks.to_dict() == {"a": 1.5, "b": 1.5, "c": 3.0}
