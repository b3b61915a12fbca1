"""Average ranks of methods over folds: Friedman's test, and Nemenyi's critical difference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from dmsmil.analysis.comparison import ALPHA
from dmsmil.jobs.files import InputError


@dataclass(frozen=True)
class Ranks:
    """Average ranks (1 = best, ascending), Friedman's p, Nemenyi's critical difference, and the blocks counted."""

    ranks: pd.Series
    p: float
    cd: float
    blocks: float


def friedman_nemenyi(table: pd.DataFrame, times: float = 1.0) -> Ranks:
    """Friedman's test and Nemenyi's critical difference (Demsar, JMLR 7, 2006) of a table methods x blocks.

    Higher is better; ties share their mean rank; blocks with a NaN are left out. Two methods whose average ranks
    differ by less than cd = q sqrt(k (k + 1) / (6 N)) are not told apart at alpha .05; q is the studentized range's
    quantile over sqrt 2. Blocks are folds (`metric_table`), which share training data and are therefore not the
    independent blocks that the test assumes: it describes, and the tests of `compare` decide.
    times: how many folds test a slide, on average. Folds of further repeats test the same patients again: their ranks
    are averaged too, but N is the number of folds by `times`, the folds of one repeat.
    p is NaN when all methods tie in all blocks. Raises InputError below three methods or two blocks.
    """
    whole = table.dropna(axis=1).round(12)  # one AUC comes out in two ways that differ in the last bit
    k, n = whole.shape
    if k < 3 or n < 2:
        raise InputError(f"{k} methods and {n} complete folds: ranks need at least 3 methods and 2 folds")
    ranks = whole.rank(axis=0, ascending=False).mean(axis=1).sort_values(kind="stable").rename("rank")
    tied = (whole.nunique() == 1).all()
    blocks = n / times
    statistic = float("nan") if tied else stats.friedmanchisquare(*whole.to_numpy()).statistic / times
    p = float(stats.chi2.sf(statistic, k - 1))
    q = stats.studentized_range.ppf(1 - ALPHA, k, np.inf) / np.sqrt(2)
    return Ranks(ranks, p, float(q * np.sqrt(k * (k + 1) / (6 * blocks))), blocks)
