"""Who is trained on and who is tested, fold by fold: by patient, by site, or as a split table has it.

A folds table has one row a slide: slide_id, patient_id, label, and fold_0, fold_1, ... with 'train', 'val' or 'test';
empty where a slide takes no part in a fold. 'val' is the inner validation part that model selection may use; without
selection it is trained on like 'train'.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit

from dmsmil.cohorts.splits import read_split_table
from dmsmil.jobs.files import InputError
from dmsmil.jobs.text import as_written

WAYS = ("patient", "site")
GAP = 0.05  # relative: a search ends when no split can have a spread smaller by more than this
VAL_SECONDS = 5.0


def fold_count(folds: pd.DataFrame) -> int:
    """How many folds a folds table has."""
    return sum(name.startswith("fold_") for name in folds.columns)


def span(values: pd.Series) -> str:
    """The smallest and largest count, as '4 to 17', or the one there is."""
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low} to {high}"


def choose_folds(cohort: pd.DataFrame, split: str | Path = "patient", folds: int = 5, seed: int = 0,
                 val_share: float = 0.2) -> tuple[pd.DataFrame, str]:
    """(folds table, what to know of it in a sentence or more) as `split` asks.

    split: 'patient' (`make_folds`), 'site' (`site_folds`), or a path (`read_split_table`, which decides the number of
    folds and the validation parts by itself). Raises InputError as they do.
    """
    if split == "patient":
        table, note = make_folds(cohort, folds, seed, val_share), "Patients are dealt to the folds"
        apart = (cohort.site != "").any()
        return table, note + (", sites are not: one site may be trained on and tested." if apart else ".")
    if split == "site":
        table, gap = site_folds(cohort, folds, seed, val_share)
        return table, _site_note(cohort, table, gap)
    if not Path(split).exists():
        raise InputError(f"split is '{Path(split).name}': choose {' or '.join(WAYS)}, or name a split that exists")
    return read_split_table(split, cohort)


# ------------------------------------------------------------------------------------------------ by patient


def make_folds(cohort: pd.DataFrame, folds: int = 5, seed: int = 0, val_share: float = 0.2) -> pd.DataFrame:
    """Patient-level stratified k-fold: each patient is tested once, and is never on two sides of a fold.

    Returns a folds table. 'val' is val_share of a fold's training patients, stratified; it is empty where a class is
    too small to spare a patient. Depends on the patients, labels and seed alone, not on the order of rows. InputError
    when a class is too small.
    """
    patients = _patients(cohort)
    counts = patients.value_counts()
    _check(folds, val_share)
    if counts.min() < folds:
        raise InputError(f"class '{counts.idxmin()}' has {counts.min()} patients, fewer than folds = {folds}: "
                         f"set folds to {max(counts.min(), 2)} or less, or add patients")
    names, parts = patients.index.to_numpy(), []
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for fold, (rest, test) in enumerate(splitter.split(names, patients)):
        part = pd.Series("train", index=names)
        part.iloc[test] = "test"
        part.iloc[_validation(patients.iloc[rest], rest, val_share, seed + fold)] = "val"
        parts.append(part)
    return _folds_table(cohort, parts)


def bag_folds(bags, folds: int = 5, seed: int = 0) -> pd.DataFrame:
    """`make_folds` for bags that have no cohort table, such as toy bags."""
    labels = [bags.classes[label] for label in bags.labels]
    return make_folds(pd.DataFrame({"slide_id": bags.slide_ids, "patient_id": bags.patient_ids, "label": labels}),
                      folds, seed)


def _patients(cohort: pd.DataFrame) -> pd.Series:
    """The class of each patient, patients in alphabetical order."""
    return cohort.groupby("patient_id").label.first().sort_index()


def _check(folds: int, val_share: float) -> None:
    if folds < 2:
        raise InputError(f"folds is {folds}: at least 2 are needed, one to test while the other trains")
    if not 0 <= val_share < 1:
        raise InputError(f"val_share is {val_share}: a share of the training patients is needed, 0 or more, below 1")


def _folds_table(cohort: pd.DataFrame, parts: list[pd.Series]) -> pd.DataFrame:
    """The folds table of parts by patient, a Series a fold."""
    table = cohort[["slide_id", "patient_id", "label"]].sort_values("slide_id").reset_index(drop=True)
    return table.assign(**{f"fold_{fold}": table.patient_id.map(part) for fold, part in enumerate(parts)})


def _validation(labels: pd.Series, rows: np.ndarray, share: float, seed: int) -> np.ndarray:
    """The rows of the inner validation part: at least one patient of each class, or none at all."""
    n_classes = labels.nunique()
    size = max(round(share * len(labels)), n_classes) if share > 0 else 0
    size = min(size, len(labels) - n_classes)  # someone must be left to train on
    if not size or labels.value_counts().min() < 3:
        return rows[:0]
    splitter = StratifiedShuffleSplit(1, test_size=size, random_state=seed)
    return rows[next(splitter.split(rows, labels))[1]]


# ------------------------------------------------------------------------------------------------ by site


def site_folds(cohort: pd.DataFrame, folds: int = 5, seed: int = 0, val_share: float = 0.2,
               seconds: float = 60.0) -> tuple[pd.DataFrame, float]:
    """Site-preserved folds: no site in two of them, each class dealt as evenly as the sites allow.

    Sites leave a signature in a slide that tells the class where classes and sites go together (Howard et al., Nature
    Communications 12, 2021, who ask for such folds). Sites that share a patient count as one. A patient whose site is
    not known counts as a site: to put all of them in one would say of them what nobody knows, so two that come from
    one place may be on two sides of a fold.

    'val' is a set of whole sites too, as near to val_share of each class as whole sites come; where none comes within
    half of that it is drawn by patient, as in `make_folds`.

    Returns (folds table, relative optimality gap of the balance): up to `GAP` when the search was finished, more when
    it was stopped after `seconds`; then another run may find other folds, else the same cohort and seed give the same.
    Raises InputError when no site is known, or the sites are too few for each fold to test every class.
    """
    patients, groups = _patients(cohort), site_groups(cohort)
    counts = pd.crosstab(groups, patients)
    _check(folds, val_share)
    if not (cohort.site != "").any():
        raise InputError("folds by site need a site: add the column 'site' to the cohort, or use split: patient")
    homes = (counts > 0).sum()
    if homes.min() < folds:
        fewer = f"set folds to {homes.min()} or less, or " if homes.min() > 1 else ""
        raise InputError(f"sites with patients of class '{homes.idxmin()}': {homes.min()}, fewer than folds = {folds}, "
                         f"so a fold would test none of it: {fewer}use split: patient")
    where, gap = _deal(counts.to_numpy(), folds, seed, seconds)
    fold_of, parts = groups.map(pd.Series(where, counts.index)), []
    for fold in range(folds):
        part = fold_of.eq(fold).map({True: "test", False: "train"})
        rest = np.flatnonzero(part == "train")
        chosen = _whole_sites(counts[where != fold], val_share, seed + fold)
        part.iloc[_validation(patients.iloc[rest], rest, val_share, seed + fold) if chosen is None else
                  rest[groups.iloc[rest].isin(chosen)]] = "val"
        parts.append(part)
    return _folds_table(cohort, parts), gap


def site_groups(cohort: pd.DataFrame) -> pd.Series:
    """A number for each patient (alphabetical order): the same for those whose sites share patients, else another."""
    patients = pd.Index(sorted(cohort.patient_id.unique()))
    known = cohort[cohort.site != ""]
    site, names = pd.factorize(known.site, sort=True)
    size = len(patients) + len(names)
    links = sparse.coo_array((np.ones(len(known)), (patients.get_indexer(known.patient_id), len(patients) + site)),
                             (size, size))
    return pd.Series(connected_components(links, directed=False)[1][:len(patients)], patients)


def _deal(counts: np.ndarray, folds: int, seed: int, seconds: float) -> tuple[np.ndarray, float]:
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
    rules = [LinearConstraint(sparse.hstack([sparse.kron(one, np.ones((1, folds))), sparse.coo_array((k, 2 * c))]),
                              sizes, sizes),
             LinearConstraint(sparse.hstack([tested, -edges, nothing]), -np.inf, 0),
             LinearConstraint(sparse.hstack([tested, nothing, -edges]), 0, np.inf)]
    free = np.where(np.arange(folds) < sizes.cumsum()[:, None], sizes[:, None], 0)
    low = np.concatenate([np.zeros(free.size), np.ceil(mean), np.ones(c)])
    high = np.concatenate([free.ravel(), counts.sum(0), np.floor(mean)])
    found = milp(np.concatenate([np.zeros(free.size), 1 / mean, -1 / mean]), integrality=np.ones(len(low)),
                 bounds=Bounds(low, high), constraints=rules, options={"time_limit": seconds, "mip_rel_gap": GAP})
    if found.x is None:
        why = "there are none where each fold tests every class" if found.status == 2 else \
            f"none were found in {seconds:g} s"
        raise InputError(f"no folds by site: {why}; set folds below {folds}, or use split: patient")
    where, names = np.empty(len(counts), int), rng.permutation(folds)
    for row, number in zip(found.x[:free.size].reshape(free.shape).round().astype(int), order):
        where[rng.permutation(np.flatnonzero(kind == number))] = np.repeat(names, row)
    return where, float(found.mip_gap)


def _whole_sites(counts: pd.DataFrame, share: float, seed: int) -> np.ndarray | None:
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
    rules = [LinearConstraint(np.hstack([sites, -away]), -np.inf, wanted),
             LinearConstraint(np.hstack([sites, away]), wanted, np.inf),
             LinearConstraint(np.hstack([sites, 0 * away]), least, most)]
    found = milp(np.concatenate([np.zeros(n), 1 / wanted]), integrality=np.repeat([1, 0], [n, c]), constraints=rules,
                 bounds=Bounds(0, np.repeat([1, np.inf], [n, c])),
                 options={"time_limit": VAL_SECONDS, "mip_rel_gap": GAP})
    return None if found.x is None else counts.index[found.x[:n] > 0.5].to_numpy()


def _site_note(cohort: pd.DataFrame, table: pd.DataFrame, gap: float) -> str:
    """What to know of folds by site."""
    patients, known = table.drop_duplicates("patient_id").set_index("patient_id"), cohort[cohort.site != ""]
    folds = [patients[c] for c in patients if c.startswith("fold_")]
    tested = pd.DataFrame([patients.label[part == "test"].value_counts() for part in folds])
    counts = ", ".join(f"{span(tested[name])} {as_written(name)}" for name in sorted(tested))
    said = [f"{known.site.nunique()} sites are dealt whole to {len(folds)} folds; each tests {counts} patients "
            f"(optimality gap of the balance {gap:.1%})."]
    if gap > GAP:
        said.append("The search was stopped by the clock: a better balance may exist, and another run may find other "
                    "folds; to keep these, copy the study's folds.csv and name the copy as split.")
    if unknown := cohort.patient_id.nunique() - known.patient_id.nunique():
        said.append(f"{unknown} patients have no site and count as one each: those of one place may be parted.")
    sites = known.drop_duplicates(["patient_id", "site"])
    if joined := sites[sites.patient_id.duplicated(keep=False)].site.nunique():
        said.append(f"{joined} sites share patients with another, and stay together with it.")
    groups = site_groups(cohort)
    mixed = [f"{fold}" for fold, part in enumerate(folds)
             if set(groups[part.index[part == "val"]]) & set(groups[part.index[part == "train"]])]
    if mixed:
        said.append(f"Fold {', '.join(mixed)}: no whole sites make a validation part of this size, so it was drawn by "
                    "patient, from sites that are trained on.")
    return " ".join(said)

