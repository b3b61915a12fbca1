"""Which slides, whose, which label, which fold.

A cohort is a table with one row a slide: slide_id, patient_id, label, and where known site, path and mpp.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit

from dmsmil.files import InputError, failure_row, write_csv, write_failures

SLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm")
REQUIRED = ("slide_id", "patient_id", "label")
ALIASES = {"case_id": "patient_id", "slide": "slide_id", "patient": "patient_id"}  # case_id is CLAM's name
COLUMNS = ["slide_id", "patient_id", "label", "site", "path", "mpp"]


def load_cohort(table: str | Path, slides: str | Path = "") -> tuple[pd.DataFrame, list[dict]]:
    """Read a cohort table (CSV) and say what is wrong with it, slide by slide.

    table: CSV with columns slide_id, patient_id, label (CLAM's case_id serves as patient_id), optionally site, path
    (relative to the CSV), mpp. slides: the folder to find `<slide_id>.<suffix>` in when there is no path column.

    Returns (cohort, failures). The cohort has columns slide_id, patient_id, label, site, path, mpp, sorted by
    slide_id, and holds the slides that can be used. Each slide that cannot (no label, id given twice, patient in
    two classes, no file) is a row of failures. Raises InputError when nothing can be done with the table itself.
    """
    table = Path(table)
    if not table.is_file():
        raise InputError(f"the cohort table {table.name} does not exist: check the key 'cohort'")
    try:
        frame = pd.read_csv(table, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{table.name} is not a CSV table ({' '.join(str(error).split())})") from error
    frame = frame.rename(columns=lambda name: ALIASES.get(name.strip(), name.strip()))
    for name in REQUIRED:
        if name not in frame:
            near = difflib.get_close_matches(name, frame.columns, 1)
            hint = f"rename its column '{near[0]}'" if near else "its columns are " + ", ".join(frame.columns)
            raise InputError(f"{table.name} has no column '{name}': {hint}")
    if frame.empty:
        raise InputError(f"{table.name} has no rows: one row a slide is needed")
    frame = frame.reindex(columns=COLUMNS, fill_value="").apply(lambda column: column.str.strip())
    frame["mpp"] = pd.to_numeric(frame.mpp.replace("", "0"), errors="coerce").fillna(0.0)
    frame["path"] = _paths(frame, table.parent, slides)
    reasons = pd.Series("", index=frame.index)
    for index, reason in _problems(frame):
        reasons[index] = reasons[index] or reason
    failures = [failure_row(frame.slide_id[i] or f"row {i + 2}", "cohort", InputError(reasons[i]))
                for i in frame.index[reasons != ""].unique()]
    cohort = frame[reasons == ""].sort_values("slide_id").reset_index(drop=True)
    classes = sorted(cohort.label.unique())
    if len(classes) < 2:
        found = f"only the class '{classes[0]}'" if classes else "no usable slide"
        why = f" ({len(failures)} slides left out, the first: {failures[0]['reason']})" if failures else ""
        raise InputError(f"{table.name} has {found}{why}: a study needs at least two classes")
    return cohort, failures


def _paths(frame: pd.DataFrame, folder: Path, slides: str | Path) -> list[str]:
    """The slide files: the path column (relative to the table), else `<slide_id>.<suffix>` in the slides folder."""
    if slides and not Path(slides).is_dir():
        raise InputError(f"the slides folder {Path(slides).name} does not exist: check the key 'slides'")
    try:
        found = {f.stem: f for f in sorted(Path(slides or folder).rglob("*")) if f.suffix.lower() in SLIDE_SUFFIXES}
    except OSError as error:
        raise InputError(f"the slides folder {Path(slides).name} cannot be read ({error.strerror})") from error
    paths = []
    for slide_id, path in zip(frame.slide_id, frame.path):
        stem = slide_id[: -len(Path(slide_id).suffix)] if slide_id.lower().endswith(SLIDE_SUFFIXES) else slide_id
        given = next((p for p in (folder / path, Path(slides) / path) if p.exists()), folder / path) if path else None
        paths.append(str(given or found.get(stem) or found.get(slide_id) or ""))
    return paths


def _problems(frame: pd.DataFrame):
    """(row, reason) for each row that cannot be used."""
    for i, row in frame.iterrows():
        for name in REQUIRED:
            if not row[name]:
                yield i, f"no {name}: fill it in, or remove the row"
    for slide_id, rows in frame[frame.slide_id != ""].groupby("slide_id"):
        if len(rows) > 1:
            for i in rows.index:
                yield i, f"slide_id '{slide_id}' stands in {len(rows)} rows: ids must be unique"
    named = frame[(frame.patient_id != "") & (frame.label != "")]
    for patient, rows in named.groupby("patient_id"):
        if rows.label.nunique() > 1:
            labels = " and ".join(sorted(rows.label.unique()))
            for i in rows.index:
                yield i, f"patient '{patient}' is in two classes ({labels}): correct a label, or remove the patient"
    for i, row in frame.iterrows():
        if not row.path:
            yield i, f"no slide file named {row.slide_id}.*: check the key 'slides', or add a column 'path'"
        elif not Path(row.path).is_file():
            kind = "is a folder" if Path(row.path).is_dir() else "does not exist"
            yield i, f"the slide file {Path(row.path).name} {kind}: check the column 'path'"


def make_folds(cohort: pd.DataFrame, folds: int = 5, seed: int = 0, val_share: float = 0.2) -> pd.DataFrame:
    """Patient-level stratified k-fold: each patient is tested once, and is never on two sides of a fold.

    Returns one row a slide: slide_id, patient_id, label, and fold_0 ... fold_{folds-1} with 'train', 'val' or 'test'.
    'val' is the inner validation part (val_share of a fold's training patients, stratified) that model selection may
    use; without selection it is trained on like 'train'. It is empty where a class is too small to spare a patient.
    Depends on the patients, labels and seed alone, not on the order of rows. InputError when a class is too small.
    """
    patients = cohort.groupby("patient_id").label.first().sort_index()
    counts = patients.value_counts()
    if folds < 2:
        raise InputError(f"folds is {folds}: at least 2 are needed, one to test while the other trains")
    if counts.min() < folds:
        raise InputError(f"class '{counts.idxmin()}' has {counts.min()} patients, fewer than folds = {folds}: "
                         f"set folds to {max(counts.min(), 2)} or less, or add patients")
    names = patients.index.to_numpy()
    table = cohort[["slide_id", "patient_id", "label"]].sort_values("slide_id").reset_index(drop=True)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for fold, (rest, test) in enumerate(splitter.split(names, patients)):
        part = pd.Series("train", index=names)
        part.iloc[test] = "test"
        part.iloc[_validation(patients.iloc[rest], rest, val_share, seed + fold)] = "val"
        table[f"fold_{fold}"] = table.patient_id.map(part)
    return table


def bag_folds(bags, folds: int = 5, seed: int = 0) -> pd.DataFrame:
    """`make_folds` for bags that have no cohort table, such as toy bags."""
    labels = [bags.classes[label] for label in bags.labels]
    return make_folds(pd.DataFrame({"slide_id": bags.slide_ids, "patient_id": bags.patient_ids, "label": labels}),
                      folds, seed)


def _validation(labels: pd.Series, rows: np.ndarray, share: float, seed: int) -> np.ndarray:
    """The rows of the inner validation part: at least one patient of each class, or none at all."""
    n_classes = labels.nunique()
    size = max(round(share * len(labels)), n_classes) if share > 0 else 0
    if not size or labels.value_counts().min() < 3:
        return rows[:0]
    splitter = StratifiedShuffleSplit(1, test_size=size, random_state=seed)
    return rows[next(splitter.split(rows, labels))[1]]


def fold_count(folds: pd.DataFrame) -> int:
    """How many folds a folds table has."""
    return sum(name.startswith("fold_") for name in folds.columns)


def describe(cohort: pd.DataFrame) -> pd.DataFrame:
    """Patients and slides by class (and by site where sites are known): the first table of any study."""
    keys = ["label", "site"] if cohort.site.any() else ["label"]
    table = cohort.groupby(keys).agg(patients=("patient_id", "nunique"), slides=("slide_id", "size"))
    return table.unstack("site", fill_value=0) if len(keys) == 2 else table


def leakage(folds: pd.DataFrame) -> pd.DataFrame:
    """Patients shared between the parts of each fold: all zeros, or the folds cannot be trusted."""
    rows = []
    for name in [c for c in folds.columns if c.startswith("fold_")]:
        parts = {part: set(rows_.patient_id) for part, rows_ in folds.groupby(name)}
        test, val, train = (parts.get(part, set()) for part in ("test", "val", "train"))
        rows.append({"fold": int(name[5:]), "train": len(train), "val": len(val), "test": len(test),
                     "shared with test": len(test & (train | val)), "shared train/val": len(train & val)})
    return pd.DataFrame(rows).set_index("fold")


def save_cohort(home: str | Path, cohort: pd.DataFrame, folds: pd.DataFrame, failures: list[dict]) -> None:
    """Write cohort.csv and folds.csv of a study, and the slides left out into failures.csv."""
    write_csv(cohort, Path(home) / "cohort.csv")
    write_csv(folds, Path(home) / "folds.csv")
    write_failures(home, "cohort", failures)


def read_cohort(home: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(cohort, folds) of a study, as 00_cohort wrote them."""
    tables = []
    for name in ("cohort.csv", "folds.csv"):
        path = Path(home) / name
        if not path.exists():
            raise InputError(f"the study has no {name}: run 00_cohort first")
        text = {c: str for c in ("slide_id", "patient_id", "label", "site", "path")}
        tables.append(pd.read_csv(path, dtype=text, keep_default_na=False))
    return tables[0], tables[1]
