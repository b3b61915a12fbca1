"""Who is trained on and who is tested, fold by fold: by patient, by site, or as a split table has it.

A folds table has one row a slide: slide_id, patient_id, label, and fold_0, fold_1, ... with 'train', 'val' or 'test';
empty where a slide takes no part in a fold. 'val' is the inner validation part that model selection may use; without
selection it is trained on like 'train'.

With repeats the patients are parted anew, several times: r partitions of k folds are the folds 0 to rk - 1, each
partition k successive ones that test each patient once. Who needs to know which is which asks `repeat_of`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit

from dmsmil.cohorts.sites import GAP, deal_sites, site_groups, whole_sites
from dmsmil.cohorts.splits import read_split_table
from dmsmil.jobs.files import InputError
from dmsmil.jobs.text import as_written, many

WAYS = ("patient", "site")
TRIES = 10  # deals in succession that bring no new partition, after which no more are tried
NEXT_SEED = 10_000  # from a partition to the next: within one the seeds of the validation parts count on by 1


def fold_count(folds: pd.DataFrame) -> int:
    """How many folds a folds table has."""
    return sum(name.startswith("fold_") for name in folds.columns)


def repeat_of(tested: pd.DataFrame) -> dict[int, int]:
    """fold -> the repeat (0, 1, ...) it is of; tested: one row a fold and tested slide, columns fold and slide_id.

    A predictions table is such a table, and `slides_tested` makes one of a folds table. Folds are gathered in their
    order for as long as they test no slide twice; so the folds of a repeat together test each slide once, and folds
    that overlap, as in Monte-Carlo splits, are repeats of their own.
    """
    found, repeat, seen = {}, 0, set()
    for fold, slides in tested.groupby("fold").slide_id:
        if seen & set(slides):
            repeat, seen = repeat + 1, set()
        seen |= set(slides)
        found[int(fold)] = repeat
    return found


def slides_tested(folds: pd.DataFrame) -> pd.DataFrame:
    """One row a fold and slide that it tests, columns fold and slide_id."""
    return pd.concat(
        [
            pd.DataFrame({"fold": fold, "slide_id": folds.slide_id[folds[f"fold_{fold}"] == "test"]})
            for fold in range(fold_count(folds))
        ],
        ignore_index=True,
    )


def span(values: pd.Series) -> str:
    """The smallest and largest count, as '4 to 17', or the one there is."""
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low} to {high}"


def choose_folds(
    cohort: pd.DataFrame,
    split: str | Path = "patient",
    folds: int = 5,
    seed: int = 0,
    val_share: float = 0.2,
    repeats: int = 1,
) -> tuple[pd.DataFrame, str]:
    """(folds table, what to know of it in a sentence or more) as `split` asks.

    split: 'patient' (`make_folds`), 'site' (`site_folds`), or a path (`read_split_table`, which decides the number of
    folds, repeats and the validation parts by itself). Raises InputError as they do.
    """
    if split == "patient":
        table, apart = make_folds(cohort, folds, seed, val_share, repeats), (cohort.site != "").any()
        note = "Patients are dealt to the folds" + (
            ", sites are not: one site may be trained on and tested." if apart else "."
        )
        return table, note + _repeats_note(table, folds, repeats, "patients")
    if split == "site":
        table, gap = site_folds(cohort, folds, seed, val_share, repeats)
        return table, _site_note(cohort, table, gap, folds) + _repeats_note(table, folds, repeats, "sites")
    if not Path(split).exists():
        raise InputError(f"split is '{Path(split).name}': choose {' or '.join(WAYS)}, or name a split that exists")
    return read_split_table(split, cohort)


# ------------------------------------------------------------------------------------------------ by patient


def _repeats_note(table: pd.DataFrame, folds: int, repeats: int, units: str) -> str:
    """How many partitions there are, where there is more than one or fewer than asked for."""
    there, said = fold_count(table) // folds, ""
    if there > 1:
        said = (
            f" That is done {there} times, each time otherwise: {there * folds} folds, of which the first {folds} "
            f"test each patient once, and so do the next {folds}" + (", and so on." if there > 2 else ".")
        )
    if there < repeats:
        said += (
            f" repeats is {repeats}, but {TRIES} deals in succession brought no other partition of these {units}: "
            f"there {'is' if there == 1 else 'are'} {there}, and no partition counts twice."
        )
    return said


def make_folds(
    cohort: pd.DataFrame, folds: int = 5, seed: int = 0, val_share: float = 0.2, repeats: int = 1
) -> pd.DataFrame:
    """Patient-level stratified k-fold: each patient is tested once a repeat, and is never on two sides of a fold.

    Returns a folds table of `repeats` different partitions, or of as many as were found (leave-one-out has one). 'val'
    is val_share of a fold's training patients, stratified; it is empty where a class is too small to spare a patient.
    Depends on the patients, labels and seed alone, not on the order of rows. InputError when a class is too small.
    """
    patients = _patients(cohort)
    counts = patients.value_counts()
    _check(folds, val_share, repeats)
    if counts.min() < 2:
        raise InputError(
            f"class '{counts.idxmin()}' has 1 patient, who cannot be learned from and tested at once: add patients, or "
            "leave the class out"
        )
    if counts.min() < folds:
        raise InputError(
            f"class '{counts.idxmin()}' has {many(counts.min(), 'patient')}, fewer than folds = {folds}: "
            f"set folds to {counts.min()} or less, or add patients"
        )
    names = patients.index.to_numpy()

    def deal(seed: int) -> list[pd.Series]:
        parts, splitter = [], StratifiedKFold(folds, shuffle=True, random_state=seed)
        for fold, (rest, test) in enumerate(splitter.split(names, patients)):
            part = pd.Series("train", index=names)
            part.iloc[test] = "test"
            part.iloc[_validation(patients.iloc[rest], rest, val_share, seed + fold)] = "val"
            parts.append(part)
        return parts

    return _folds_table(cohort, _different(deal, seed, repeats))


def bag_folds(bags, folds: int = 5, seed: int = 0) -> pd.DataFrame:
    """`make_folds` for bags that have no cohort table, such as toy bags."""
    labels = [bags.classes[label] for label in bags.labels]
    return make_folds(
        pd.DataFrame({"slide_id": bags.slide_ids, "patient_id": bags.patient_ids, "label": labels}), folds, seed
    )


def _patients(cohort: pd.DataFrame) -> pd.Series:
    """The class of each patient, patients in alphabetical order."""
    return cohort.groupby("patient_id").label.first().sort_index()


def _different(deal: Callable[[int], list[pd.Series]], seed: int, repeats: int) -> list[pd.Series]:
    """The parts, fold after fold, of so many different partitions, or of fewer where `TRIES` deals bring no other.

    deal: seed -> the parts of a partition, a Series by patient a fold. Two partitions are one where they test the same
    patients together, in whatever order.
    """
    parts, known, misses = [], set(), 0
    for turn in range(repeats * (TRIES + 1)):
        if len(known) == repeats or misses == TRIES:
            break
        dealt = deal(seed + NEXT_SEED * turn)
        partition = frozenset(frozenset(part.index[part == "test"]) for part in dealt)
        misses = misses + 1 if partition in known else 0
        parts += [] if partition in known else dealt
        known.add(partition)
    return parts


def _check(folds: int, val_share: float, repeats: int) -> None:
    if repeats < 1:
        raise InputError(f"repeats is {repeats}: at least 1 is needed, which is one partition of the patients")
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
    chosen = next(splitter.split(rows, labels))[1]
    return rows[chosen] if labels.iloc[chosen].nunique() == n_classes else rows[:0]  # of a rare class it may take none


# ------------------------------------------------------------------------------------------------ by site


def site_folds(
    cohort: pd.DataFrame, folds: int = 5, seed: int = 0, val_share: float = 0.2, repeats: int = 1, seconds: float = 60.0
) -> tuple[pd.DataFrame, float]:
    """Site-preserved folds: no site in two of them, each class dealt as evenly as the sites allow.

    Sites leave a signature in a slide that tells the class where classes and sites go together (Howard et al., Nature
    Communications 12, 2021, who ask for such folds). Sites that share a patient count as one. A patient whose site is
    not known counts as a site: to put all of them in one would say of them what nobody knows, so two that come from
    one place may be on two sides of a fold.

    'val' is a set of whole sites too, as near to val_share of each class as whole sites come; where none comes within
    half of that it is drawn by patient, as in `make_folds`.

    Returns (folds table of `repeats` different deals or as many as were found, the largest relative optimality gap of
    their balance): up to `GAP` when the search was finished, more when it was stopped after `seconds`; then another run
    may find other folds, else the same cohort and seed give the same.
    Raises InputError when no site is known, or the sites are too few for each fold to test every class.
    """
    patients, groups = _patients(cohort), site_groups(cohort)
    counts = pd.crosstab(groups, patients)
    _check(folds, val_share, repeats)
    if not (cohort.site != "").any():
        raise InputError("folds by site need a site: add the column 'site' to the cohort, or use split: patient")
    homes = (counts > 0).sum()
    if homes.min() < folds:
        fewer = f"set folds to {homes.min()} or less, or " if homes.min() > 1 else ""
        raise InputError(
            f"sites with patients of class '{homes.idxmin()}': {homes.min()}, fewer than folds = {folds}, "
            f"so a fold would test none of it: {fewer}use split: patient"
        )
    gaps = []

    def deal(seed: int) -> list[pd.Series]:
        where, gap = deal_sites(counts.to_numpy(), folds, seed, seconds)
        gaps.append(gap)
        fold_of, parts = groups.map(pd.Series(where, counts.index)), []
        for fold in range(folds):
            part = fold_of.eq(fold).map({True: "test", False: "train"})
            rest = np.flatnonzero(part == "train")
            chosen = whole_sites(counts[where != fold], val_share, seed + fold)
            part.iloc[
                _validation(patients.iloc[rest], rest, val_share, seed + fold)
                if chosen is None
                else rest[groups.iloc[rest].isin(chosen)]
            ] = "val"
            parts.append(part)
        return parts

    return _folds_table(cohort, _different(deal, seed, repeats)), max(gaps)


def _site_note(cohort: pd.DataFrame, table: pd.DataFrame, gap: float, count: int) -> str:
    """What to know of folds by site."""
    patients, known = table.drop_duplicates("patient_id").set_index("patient_id"), cohort[cohort.site != ""]
    folds = [patients[c] for c in patients if c.startswith("fold_")]
    tested = pd.DataFrame([patients.label[part == "test"].value_counts() for part in folds])
    counts = ", ".join(f"{span(tested[name])} {as_written(name)}" for name in sorted(tested))
    said = [
        f"{many(known.site.nunique(), 'site')} are dealt whole to {count} folds; each tests {counts} patients "
        f"(optimality gap of the balance {gap:.1%})."
    ]
    if gap > GAP:
        said.append(
            "The search was stopped by the clock: a better balance may exist, and another run may find other "
            "folds; to keep these, copy the study's folds.csv and name the copy as split."
        )
    if unknown := cohort.patient_id.nunique() - known.patient_id.nunique():
        said.append(f"Patients without a site ({unknown}) count as one each: those of one place may be parted.")
    sites = known.drop_duplicates(["patient_id", "site"])
    if joined := sites[sites.patient_id.duplicated(keep=False)].site.nunique():
        said.append(f"{joined} sites share patients with another, and stay together with it.")
    groups = site_groups(cohort)
    mixed = [
        f"{fold}"
        for fold, part in enumerate(folds)
        if set(groups[part.index[part == "val"]]) & set(groups[part.index[part == "train"]])
    ]
    if mixed:
        said.append(
            f"Fold {', '.join(mixed)}: no whole sites make a validation part of this size, so it was drawn by "
            "patient, from sites that are trained on."
        )
    return " ".join(said)
