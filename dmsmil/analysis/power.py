"""Which difference could this study have shown? Said before the tests, from how much paired differences spread.

A test that shows nothing says little where it could have shown nothing.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import optimize, stats

from dmsmil.analysis.comparison import ALPHA, TESTED, metric_table, widening
from dmsmil.jobs.files import InputError
from dmsmil.training.metrics import called, counted_classes
from dmsmil.training.results import run_names
from dmsmil.training.runs import Runs

POWER = 0.8  # of studies like this one that would show the difference
SHARE = f"{100 * POWER:.0f} %"


def power_of(difference: float, spread: float, resamples: int, test_share: float, alpha: float = ALPHA) -> float:
    """The share of studies in which the corrected resampled t-test, two-sided, shows a true difference as what it is.

    spread: the standard deviation of the differences over resamples; test_share: as for
    `comparison.corrected_resampled_ttest`. If resamples correlate by test_share, as its correction assumes, its t is
    noncentral with n - 1 degrees of freedom and the noncentrality

        difference / (spread sqrt(1 / n + n_test / n_train))
    """
    noncentrality = difference / (spread * widening(resamples, test_share))
    return float(stats.nct.sf(stats.t.ppf(1 - alpha / 2, resamples - 1), resamples - 1, noncentrality))


def detectable(spread: float, resamples: int, test_share: float, alpha: float = ALPHA) -> float:
    """The smallest true difference that `POWER` of such studies would show. spread, resamples, test_share: as for
    `power_of`; NaN where the spread is unknown or nothing, or there are fewer than two resamples."""
    if not spread > 0 or resamples < 2:
        return math.nan
    error = spread * widening(resamples, test_share)
    least = error * stats.t.ppf(1 - alpha / 2, resamples - 1)  # a true difference as large as this is shown in half
    return float(
        optimize.brentq(
            lambda difference: power_of(difference, spread, resamples, test_share, alpha) - POWER,
            0.1 * least,
            10 * least,
        )
    )


def floor(spread: float, test_share: float, alpha: float = ALPHA) -> float:
    """What `detectable` falls to with ever more repeats: n_test / n_train is the same in each, so it ends above 0."""
    wanted = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(POWER)
    return float(wanted * spread * np.sqrt(test_share / (1 - test_share))) if spread > 0 else math.nan


def paired_spread(tables: dict[str, pd.DataFrame], metric: str, positive: str = "") -> float:
    """The median, over the other methods, of the standard deviation over folds of the first one's difference to each.

    tables: predictions tables by name, seeds of a fold averaged (`metric_table`). A method that never differs from the
    first is left out; NaN where no spread is left.
    """
    return _spread(metric_table(tables, metric, positive))


def _spread(scores: pd.DataFrame) -> float:
    """`paired_spread` of a `metric_table`."""
    spreads = (scores.iloc[0] - scores.iloc[1:]).std(axis=1, ddof=1)
    return float(spreads[spreads > 1e-12].median())


def power_table(runs: list[Runs], positive: str = "", pilot_spread: float = 0.0) -> pd.DataFrame:
    """What the tests of `report.paired_tests` could show: one row for each of AUC and ACC.

    pilot_spread: the spread of a difference in AUC in an earlier study, 0 for that of these runs.
    Columns: metric (as it is called), spread, source ('pilot' or 'runs'), resamples (folds in which the first method
    has the metric), test_share, tests (how many Holm's correction counts), alone (the `detectable` difference of one
    test), corrected (of the one with the smallest p among all of them), and floor (of one test). NaN where the spread
    is not known. InputError for runs of one method.
    """
    tables = {name: r.predictions for name, r in zip(run_names(runs), runs)}
    if len(tables) < 2:
        raise InputError("there is no method to compare with: name at least one besides the reference")
    first, tests, rows = runs[0].predictions, len(TESTED) * (len(runs) - 1), []
    share = runs[0].test_share
    for metric in ("AUC", "ACC"):
        pilot = metric == "AUC" and pilot_spread > 0
        scores = metric_table(tables, metric, positive)
        resamples = int(scores.iloc[0].notna().sum())
        spread = pilot_spread if pilot else _spread(scores)
        rows.append(
            {
                "metric": called(metric, counted_classes(first)),
                "spread": spread,
                "source": "pilot" if pilot else "runs",
                "resamples": resamples,
                "test_share": share,
                "tests": tests,
                "alone": detectable(spread, resamples, share),
                "corrected": detectable(spread, resamples, share, ALPHA / tests),
                "floor": floor(spread, share),
            }
        )
    return pd.DataFrame(rows)


def power_sentences(table: pd.DataFrame) -> str:
    """Markdown: which difference would be found, and what more repeats or more patients would bring."""
    known = table[table.alone.notna()]
    lines = [_found(row) for row in known.itertuples()]
    lines += [
        f"What difference in {metric} would be found cannot be said: no spread over folds is known."
        for metric in table.metric[table.alone.isna()]
    ]
    for row in known.head(1).itertuples():
        lines.append(
            f"More repeats of the folds would bring one test alone to {_size(row.floor)} {row.metric} at "
            "best: a fold tests the same share of the slides, however often they are dealt. Four times "
            f"as many patients would halve the difference, to {_size(row.alone / 2)}, as far as the spread "
            "comes from who is tested and not from the luck of training."
        )
    return "\n".join(f"- {line}" for line in lines)


def _found(row) -> str:
    """The sentence on one metric."""
    whence = "an earlier study" if row.source == "pilot" else "these runs"
    spread = f"the spread of a difference over folds is {row.spread:.3f} in {whence}, with {row.resamples} folds"
    if row.alone > 1:
        return (
            f"**No difference in {row.metric} would be found** in {SHARE} of such studies: it would have to be "
            f"{row.alone:.2g}, and none is above 1 ({spread})."
        )
    corrected = _size(row.corrected) if row.corrected <= 1 else "none at all"
    return (
        f"**A difference of {_size(row.alone)} in {row.metric} would be found in {SHARE} of such studies** by "
        f"one test alone; after the correction for {row.tests} tests, {corrected} ({spread})."
    )


def _size(difference: float) -> str:
    """A difference to two digits after the point, to three where it is small."""
    return f"{difference:.3f}" if difference < 0.0995 else f"{difference:.2f}"
