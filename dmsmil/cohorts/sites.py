"""Sites dealt whole to folds, each class as evenly as they allow: a small integer programme, solved by HiGHS."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse.csgraph import connected_components

from dmsmil.jobs.files import InputError

GAP = 0.05  # relative: a search ends when no split can have a spread smaller by more than this
VAL_SECONDS = 5.0


def site_groups(cohort: pd.DataFrame) -> pd.Series:
    """A number for each patient (alphabetical order): the same for those whose sites share patients, else another. Of a
    site "" nothing is known."""
    patients = pd.Index(sorted(cohort.patient_id.unique()))
    known = cohort[cohort.site != ""]
    site, names = pd.factorize(known.site, sort=True)
    size = len(patients) + len(names)
    links = sparse.coo_array(
        (np.ones(len(known)), (patients.get_indexer(known.patient_id), len(patients) + site)), (size, size)
    )
    return pd.Series(connected_components(links, directed=False)[1][: len(patients)], patients)


def deal_sites(counts: np.ndarray, folds: int, seed: int, seconds: float) -> tuple[np.ndarray, float]:
    """The fold (G,) of each of G sites with counts (G, C) patients of each class, and the relative optimality gap.

    Sites with equal counts are one kind k of m_k sites; x[k, f] of them go to fold f:

        minimise    sum_c (most_c - least_c) / (mean of class c over folds)
        subject to  sum_f x[k, f] = m_k,    1 <= least_c <= sum_k counts[k, c] x[k, f] <= most_c    for all k, c, f

    most_c >= ceil(mean) and least_c <= floor(mean), which no deal can beat, let a perfect one be known as such. Folds
    are alike, so the largest sites may use the first folds alone: the i-th site one of i.
    """
    rng = np.random.default_rng(seed)
    kinds, kind, sizes = np.unique(counts, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(-(kinds / counts.sum(0)).sum(1), kind="stable")
    large = 1 + np.searchsorted(sizes[order].cumsum(), folds)
    order[large:] = rng.permutation(order[large:])  # the seed decides which of many equally good deals is found
    kinds, sizes = kinds[order], sizes[order]
    (k, c), mean = kinds.shape, counts.sum(0) / folds

    one, edges = sparse.eye_array(k), sparse.kron(sparse.eye_array(c), np.ones((folds, 1)))
    tested, nothing = sparse.kron(kinds.T, sparse.eye_array(folds)), sparse.coo_array((c * folds, c))
    rules = [
        LinearConstraint(
            sparse.hstack([sparse.kron(one, np.ones((1, folds))), sparse.coo_array((k, 2 * c))]), sizes, sizes
        ),
        LinearConstraint(sparse.hstack([tested, -edges, nothing]), -np.inf, 0),
        LinearConstraint(sparse.hstack([tested, nothing, -edges]), 0, np.inf),
    ]
    free = np.where(np.arange(folds) < sizes.cumsum()[:, None], sizes[:, None], 0)
    low = np.concatenate([np.zeros(free.size), np.ceil(mean), np.ones(c)])
    high = np.concatenate([free.ravel(), counts.sum(0), np.floor(mean)])
    found = milp(
        np.concatenate([np.zeros(free.size), 1 / mean, -1 / mean]),
        integrality=np.ones(len(low)),
        bounds=Bounds(low, high),
        constraints=rules,
        options={"time_limit": seconds, "mip_rel_gap": GAP},
    )
    if found.x is None:
        why = (
            "there are none where each fold tests every class"
            if found.status == 2
            else f"none were found in {seconds:g} s"
        )
        raise InputError(f"no folds by site: {why}; set folds below {folds}, or use split: patient")
    where, names = np.empty(len(counts), int), rng.permutation(folds)
    for row, number in zip(found.x[: free.size].reshape(free.shape).round().astype(int), order):
        where[rng.permutation(np.flatnonzero(kind == number))] = np.repeat(names, row)
    return where, float(found.mip_gap)


def whole_sites(counts: pd.DataFrame, share: float, seed: int) -> np.ndarray | None:
    """The sites (index of counts) that make a validation part, or None where whole sites cannot.

    Minimises the sum over classes of |chosen - wanted| / wanted; chosen is at most half of wanted away from it.
    """
    total = counts.sum().to_numpy()
    wanted = np.maximum((share * total).round(), 1)
    least, most = np.ceil(wanted / 2), np.minimum(np.maximum(np.floor(1.5 * wanted), 1), total - 1)
    if share <= 0 or total.min() < 3:
        return None
    counts = counts.iloc[np.random.default_rng(seed).permutation(len(counts))]
    sites, n, c = counts.to_numpy().T, *counts.shape
    away = np.eye(c)
    rules = [
        LinearConstraint(np.hstack([sites, -away]), -np.inf, wanted),
        LinearConstraint(np.hstack([sites, away]), wanted, np.inf),
        LinearConstraint(np.hstack([sites, 0 * away]), least, most),
    ]
    found = milp(
        np.concatenate([np.zeros(n), 1 / wanted]),
        integrality=np.repeat([1, 0], [n, c]),
        constraints=rules,
        bounds=Bounds(0, np.repeat([1, np.inf], [n, c])),
        options={"time_limit": VAL_SECONDS, "mip_rel_gap": GAP},
    )
    return None if found.x is None else counts.index[found.x[:n] > 0.5].to_numpy()
