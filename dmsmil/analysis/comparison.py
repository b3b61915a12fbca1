"""Is one method better than another? Tests that respect shared training sets, shared slides and many comparisons.

A predictions table is that of training.metrics: one row a tested slide and run, with fold and seed. A difference is
always reference minus method, so that a positive one speaks for the reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from dmsmil.jobs.files import InputError
from dmsmil.training.metrics import METRICS, NEEDS_TWO, asked_class, called, class_names, counted_classes, score_by_fold

ALPHA = 0.05
EQUIVALENT_WITHIN = 0.02  # of AUC or ACC: a smaller difference is none that a reader of slides would notice
TESTED = ("ACC", "AUC")  # F1 is shown, not tested: each further test costs every other one power


@dataclass(frozen=True)
class PairedTest:
    """A difference, its 95 % interval, statistic (t or z), two-sided p, and how many units it saw.

    p_equivalent: of the two one-sided tests of `corrected_resampled_ttest`, NaN for other tests. Where nothing can be
    said, p and interval are NaN and `reason` is the cause in words.
    """

    difference: float
    low: float = float("nan")
    high: float = float("nan")
    statistic: float = float("nan")
    p: float = float("nan")
    units: int = 0
    reason: str = ""
    p_equivalent: float = float("nan")


def _decide(difference: float, error: float, units: int, law, margin: float = float("nan")) -> PairedTest:
    """The test of a difference with standard error `error` whose ratio follows `law` (a frozen distribution), and with
    a margin also that of equivalence.

    Without any variation there is no interval. If the difference is 0 as well, nothing speaks against equality and
    p = 1; else p would be 0, which no finite sample can show, so it is NaN.
    """
    if error <= 1e-12:
        if abs(difference) <= 1e-12:
            return PairedTest(0.0, statistic=0.0, p=1.0, units=units, reason="the two do not differ anywhere")
        return PairedTest(difference, units=units, reason="the difference does not vary: its error cannot be estimated")
    ratio, reach = difference / error, law.ppf(1 - ALPHA / 2) * error
    equivalent = float(law.sf((margin - abs(difference)) / error))  # the larger of the two one-sided p values
    return PairedTest(
        difference,
        difference - reach,
        difference + reach,
        ratio,
        float(2 * law.sf(abs(ratio))),
        units,
        p_equivalent=equivalent,
    )


def widening(n: int, test_share: float) -> float:
    """The corrected standard error of a mean over n resamples, by their standard deviation: the root of
    1 / n + n_test / n_train. InputError for a share that is none."""
    if not 0 <= test_share < 1:
        raise InputError(f"test_share is {test_share:g}: it is the share of slides tested by one fold, 0 <= share < 1")
    return float(np.sqrt(1 / n + test_share / (1 - test_share)))


def corrected_resampled_ttest(differences, test_share: float) -> PairedTest:
    """The corrected resampled t-test of Nadeau and Bengio (Machine Learning 52, 2003, section 3).

    differences: one metric difference for each of n resamples (the folds of all repeats: Bouckaert and Frank, PAKDD
    2004); NaN ones are left out. test_share: n_test / (n_test + n_train) of one resample, so that
    n_test / n_train = test_share / (1 - test_share), which no number of repeats changes.

        t = mean / sqrt((1 / n + n_test / n_train) s^2),  s^2 the sample variance (ddof = 1),  n - 1 degrees of freedom

    The plain t-test has 1 / n alone, as if resamples were independent; but their training sets overlap, so their
    differences move together and it finds differences that are none. A resample is a new split: seeds on the same
    split are no resamples and must be averaged first (see `metric_table`). Zero variance: see `PairedTest.reason`.

    Equivalence is two such tests, one-sided (Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987):
    that the difference is above -EQUIVALENT_WITHIN, and that it is below EQUIVALENT_WITHIN; p_equivalent is the larger.
    """
    values = np.asarray(differences, float)
    values = values[~np.isnan(values)]
    n = len(values)
    wider = widening(max(n, 1), test_share)
    if n == 0:
        return PairedTest(float("nan"), reason="it is not defined in any fold, at least 2 are needed")
    if n == 1:
        return PairedTest(float(values[0]), units=1, reason="folds that can be compared: 1, at least 2 are needed")
    error = wider * float(values.std(ddof=1))
    return _decide(float(values.mean()), error, n, stats.t(n - 1), EQUIVALENT_WITHIN)


@dataclass(frozen=True)
class DeLong:
    """Two AUCs on the same slides, and the test of their difference (its units are patients)."""

    auc_a: float
    auc_b: float
    slides: int
    test: PairedTest


def delong(predictions_a: pd.DataFrame, predictions_b: pd.DataFrame, positive: str = "") -> DeLong:
    """DeLong's paired test of two correlated AUCs (Biometrics 44, 1988), `positive` against the rest. Of more than two
    classes where none is named there is no such question: all is NaN, for that reason.

    On the pooled out-of-fold predictions of the slides that both tested: a slide's probability is averaged over its
    seeds and repeats first (that is an ensemble: give both the same number of them). Placements come from midranks, in
    n log n (Sun and Xu, IEEE Signal Processing Letters 21, 2014). A patient's slides are not independent, so placements
    are summed by patient before their variance is taken (Obuchowski, Biometrics 53, 1997); with one slide a patient
    that is DeLong's test exactly.

    The pooled AUC compares slides across folds, whose models need not share a scale, so it is not the mean of the
    folds' AUCs; and the test takes the models as they are: it says nothing of another training set.
    Raises InputError when the two tables share no slide or disagree about a label.
    """
    classes = class_names(predictions_a)
    name = asked_class(classes, positive)
    a, b = (_pooled(table, name or classes[-1]) for table in (predictions_a, predictions_b))
    both = a.merge(b[["label", "value"]], left_index=True, right_index=True, suffixes=("", "_b"))
    if both.empty:
        raise InputError("the two predictions tables share no slide: compare methods on the same folds")
    if (both.label != both.label_b).any():
        slide = both.index[both.label != both.label_b][0]
        raise InputError(f"slide '{slide}' has another label in the other table: compare methods on the same cohort")
    nan = float("nan")
    if not name:
        return DeLong(nan, nan, len(both), PairedTest(nan, reason=f"it {NEEDS_TWO}"))
    truth = both.label.eq(name).to_numpy()
    patients = [pd.factorize(both.patient_id[side])[0] for side in (truth, ~truth)]
    sizes = [len(np.unique(ids)) for ids in patients]
    values = both[["value", "value_b"]].to_numpy().T
    if min(sizes) == 0:
        return DeLong(nan, nan, len(both), PairedTest(nan, reason="only one class was tested"))
    placements = [_placements(value, truth) for value in values]
    auc_a, auc_b = (float(up.mean()) for up, _ in placements)
    difference, units = auc_a - auc_b, sum(sizes)
    if min(sizes) < 2:
        test = PairedTest(difference, units=units, reason="a class has one patient: at least 2 are needed")
    else:
        variance = 0.0
        for side, ids, size in zip(range(2), patients, sizes):
            gap = placements[0][side] - placements[1][side] - difference
            by_patient = np.bincount(ids, gap)
            variance += size / (size - 1) * (by_patient**2).sum() / len(ids) ** 2
        test = _decide(difference, float(np.sqrt(variance)), units, stats.norm())
    return DeLong(auc_a, auc_b, len(both), test)


def _pooled(predictions: pd.DataFrame, name: str) -> pd.DataFrame:
    """One row a slide: patient_id, label, and the probability of class `name` averaged over seeds and repeats."""
    return predictions.groupby("slide_id").agg(
        patient_id=("patient_id", "first"), label=("label", "first"), value=(f"prob_{name}", "mean")
    )


def _placements(value: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each positive the share of negatives below it, for each negative the share of positives above it.

    Ties count half; the mean of either is the AUC.
    """
    ranks = stats.rankdata(value)
    up, down = stats.rankdata(value[truth]), stats.rankdata(value[~truth])
    return (ranks[truth] - up) / len(down), 1 - (ranks[~truth] - down) / len(up)


def holm(pvalues) -> np.ndarray:
    """Holm's adjusted p values (Scandinavian Journal of Statistics 6, 1979), in the order given.

    The i-th smallest of m is multiplied by m - i + 1, and none may fall below a smaller one's; at most 1. NaN stays
    NaN and does not count: it is no test.
    """
    values = np.asarray(pvalues, float)
    adjusted = np.full(values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted


def metric_table(tables: dict[str, pd.DataFrame], metric: str = "AUC", positive: str = "") -> pd.DataFrame:
    """Methods x folds: the metric of each fold, averaged over its seeds.

    Seeds of a fold share their training and test slides: counted as runs of their own they would be the same
    evidence several times (on data without a difference, the t-test above then rejects up to 19 % at alpha .05).
    """
    return pd.DataFrame(
        {name: score_by_fold(table, positive).groupby("fold")[metric].mean() for name, table in tables.items()}
    ).T


def compare(
    reference: pd.DataFrame, others: dict[str, pd.DataFrame], positive: str = "", test_share: float = 0.0
) -> pd.DataFrame:
    """The reference against each other method: one row a method, differences are reference minus method.

    reference, others: predictions tables on the same folds; test_share: as for `corrected_resampled_ttest`, of the
    reference (`Runs.test_share`; 0: as if a fold trained on all slides that the others test).
    Columns: name, folds (compared, of all repeats), slides (compared); for ACC and AUC <metric>_difference (mean over
    folds), _low, _high, _p (corrected resampled t-test, seeds averaged), _p_holm (adjusted over all methods and both
    metrics), _p_equivalent and _p_equivalent_holm (that it is within EQUIVALENT_WITHIN; adjusted likewise, a family of
    its own), _units (the folds in which both have it) and _note (why there is no p); F1_difference;
    DeLong_difference, _low, _high, _p, _p_holm (over all methods), _units (patients), _note, and DeLong_class: of more
    than two classes the one that it sets against the rest, else empty. Of more than two classes also classes, how many
    there are.
    Intervals are 95 % each, not adjusted.
    Raises InputError when there is nothing to compare with or a method shares no fold or slide with the reference.
    """
    if not others:
        raise InputError("there is no method to compare with: name at least one besides the reference")
    tested = pd.concat([reference, *others.values()])
    share = test_share or reference.groupby("fold").slide_id.nunique().mean() / tested.slide_id.nunique()
    if share >= 1:
        raise InputError("one fold tests all slides: a comparison needs predictions of at least 2 folds")
    classes = class_names(reference)
    against_rest = asked_class(classes, positive) if len(classes) > 2 else ""
    mine = score_by_fold(reference, positive).groupby("fold")[list(METRICS)].mean()
    rows = []
    for name, table in others.items():
        gap = mine - score_by_fold(table, positive).groupby("fold")[list(METRICS)].mean()
        gap = gap.loc[sorted(set(mine.index) & set(table.fold))]
        if gap.empty:
            raise InputError(f"{name} has no fold in common with the reference: run it on the same folds")
        pooled = delong(reference, table, positive)
        row = {"name": name, "folds": len(gap), "slides": pooled.slides}
        for metric in TESTED:
            test = corrected_resampled_ttest(gap[metric], share)
            row |= _columns(metric, test) | {f"{metric}_p_equivalent": test.p_equivalent}
        rows.append(row | {"F1_difference": float(gap.F1.mean())} | _columns("DeLong", pooled.test))
    result = pd.DataFrame(rows)
    for question in ("p", "p_equivalent"):
        family = [f"{metric}_{question}" for metric in TESTED]
        adjusted = holm(result[family].to_numpy().ravel()).reshape(-1, len(family))
        result[[f"{column}_holm" for column in family]] = adjusted
    result["DeLong_p_holm"] = holm(result.DeLong_p)
    parts = ("difference", "low", "high", "p", "p_holm", "p_equivalent", "p_equivalent_holm", "units", "note")
    order = [f"{test}_{part}" for test in (*TESTED, "DeLong") for part in parts if f"{test}_{part}" in result]
    result["DeLong_class"] = against_rest
    return result[["name", "folds", "slides", *order, "DeLong_class", "F1_difference"]].assign(
        **counted_classes(reference)
    )


def _columns(prefix: str, test: PairedTest) -> dict:
    return {
        f"{prefix}_difference": test.difference,
        f"{prefix}_low": test.low,
        f"{prefix}_high": test.high,
        f"{prefix}_p": test.p,
        f"{prefix}_units": test.units,
        f"{prefix}_note": test.reason,
    }


def seen_from(tests: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of `compare`, with their column reference, that are about `name`, as if it were the reference of all:
    where it is what the reference was set against, the two are exchanged and the differences turned."""
    mine = tests[tests.reference == name]
    theirs = tests[(tests["name"] == name) & (tests.reference != name)]
    turned = theirs.assign(name=theirs.reference, reference=name)
    for column in [column for column in tests if column.endswith("_difference")]:
        metric = column.removesuffix("_difference")
        turned[column] = -theirs[column]
        if f"{metric}_low" in tests:
            turned[f"{metric}_low"], turned[f"{metric}_high"] = -theirs[f"{metric}_high"], -theirs[f"{metric}_low"]
    return pd.concat([mine, turned]) if len(turned) else mine


def equivalent(row: pd.Series, metric: str) -> bool:
    """Whether a row of `compare` shows a difference of less than EQUIVALENT_WITHIN, either way."""
    return bool(row.get(f"{metric}_p_equivalent_holm", np.nan) < ALPHA)


def equivalents(table: pd.DataFrame) -> str:
    """The rows of `compare` that are equivalent and not shown to differ, as 'a, b by AUC; c by ACC'; empty for none."""
    said = []
    for metric in ("AUC", "ACC"):
        names = [
            row["name"]
            for _, row in table.iterrows()
            if equivalent(row, metric) and not row[f"{metric}_p_holm"] < ALPHA
        ]
        said += [f"{', '.join(names)} by {called(metric, table)}"] if names else []
    return "; ".join(said)


def p_value(p: float) -> str:
    """A p value in words; beside ALPHA with so many digits that it is seen on which side it lies."""
    if f"{p:.3f}" == f"{ALPHA:.3f}":
        return f"p = {p:.4f}" if f"{p:.4f}" != f"{ALPHA:.4f}" else f"p {'<' if p < ALPHA else '≥'} {ALPHA:g}"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.0995 else f"p = {p:.2f}"


def sentence(row: pd.Series, name: str, metric: str = "AUC") -> str:
    """What a row of `compare` says about `name` (the reference), in words that follow from its numbers.

    metric: 'AUC' or 'ACC' (corrected resampled t-test) or 'DeLong' (pooled AUC), which also speaks where no fold has an
    AUC. Better, worse or equivalent is said only when the p value after Holm's correction is below .05: a difference
    that is shown is said first, and what shows neither is not shown.
    """
    other, difference, p = row["name"], row[f"{metric}_difference"], row[f"{metric}_p_holm"]
    unit = "pooled AUC" if metric == "DeLong" else called(metric, row)
    of = row.get("DeLong_class", "")  # a column of nothing is read back from a file as numbers
    if metric == "DeLong" and of and pd.notna(of):
        unit += f" of {of} against the rest"
    if np.isnan(p):
        seen = "" if np.isnan(difference) else f" ({difference:+.3f})"
        said = f"{name} against {other} by {unit}{seen} is not tested: {row[f'{metric}_note']}."
        pooled = metric == "AUC" and np.isnan(difference) and not np.isnan(row.get("DeLong_p_holm", np.nan))
        return f"{said} {sentence(row, name, 'DeLong')}" if pooled else said
    worse = p < ALPHA and difference < 0
    low, high = sorted((-1 if worse else 1) * row[[f"{metric}_low", f"{metric}_high"]])
    interval = "" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]"
    if p < ALPHA:
        direction = "worse" if worse else "better"
        return f"{name} is {direction} than {other} by {abs(difference):.3f} {unit}{interval}, corrected {p_value(p)}."
    if equivalent(row, metric):
        law = stats.t(row.get(f"{metric}_units", np.nan) - 1)
        narrower = law.ppf(1 - ALPHA) / law.ppf(1 - ALPHA / 2)  # two one-sided tests go with the 90 % interval
        ends = [difference + narrower * (end - difference) for end in (low, high)]
        ninety = "" if np.isnan(ends).any() else f" [90 %: {ends[0]:.3f}, {ends[1]:.3f}]"
        return (
            f"{name} and {other} are equivalent: they differ by less than {EQUIVALENT_WITHIN:g} {unit}, "
            f"{difference:+.3f}{ninety}, corrected {p_value(row[f'{metric}_p_equivalent_holm'])}."
        )
    return f"{name} is not shown to be better than {other}: {difference:+.3f} {unit}{interval}, corrected {p_value(p)}."
