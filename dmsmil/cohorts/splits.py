"""Splits as the field keeps them in files: read who is trained on and who is tested; write ours for CLAM.

Four ways are read, whatever the file is called:

    slide_id (or case_id alone), fold_0, fold_1, ...   our folds.csv; the k=all.tsv of Patho-Bench
    splits_0.csv, splits_1.csv, ...                    a folder of CLAM's: columns train, val, test of slide ids
    splits_0_bool.csv, splits_1_bool.csv, ...          the same as slide ids against true and false
    {"splits": [{"train_patients": [...], ...}]}       the splits.json of STAMP
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from dmsmil.cohorts.ids import bare_name
from dmsmil.cohorts.reading import is_missing, read_table
from dmsmil.jobs.files import InputError, read_json, write_csv, write_text
from dmsmil.jobs.text import as_written

PARTS = ("train", "val", "test")
FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
COLUMNS = ["fold", "part", "name", "patient_id", "of_patient"]
KNOWN = "a table with columns slide_id and fold_0, fold_1, ..., a folder of splits_<i>.csv, or a splits.json"


def read_splits(path: str | Path) -> pd.DataFrame:
    """A split as its files say it: one row a fold and name, columns fold, part (of PARTS), name, patient_id and
    of_patient.

    name: of a slide or of a patient, without the suffix of a slide file; patient_id: empty where the file has none;
    of_patient: whether the file says that it names patients.
    A name may stand in several folds, and in several parts of one. Folds are numbered from 0 without a gap.
    Raises InputError for what cannot be read as a split.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"the split {path.name} does not exist: name {KNOWN}")
    try:
        rows = _folder(path) if path.is_dir() else _file(path)
        rows = rows[~is_missing(rows.name)].drop_duplicates(ignore_index=True)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path.name} cannot be read as a split: name {KNOWN}") from error
    there = sorted(rows.fold.unique())
    if there != list(range(len(there))) or not there:
        raise InputError(
            f"the split {path.name} has the folds {', '.join(map(str, there)) or '(none)'}: they must be "
            "numbered from 0 without a gap, and none be empty"
        )
    return rows


def export_clam(cohort: pd.DataFrame, folds: pd.DataFrame, folder: str | Path) -> Path:
    """Write the cohort and its folds as CLAM reads them, and return the folder.

    dataset.csv (case_id, slide_id, label), and for each fold splits_<i>.csv (columns train, val, test of slide ids),
    splits_<i>_bool.csv (slides x parts) and splits_<i>_descriptor.csv (classes x parts: slides). Those of folds
    that only an earlier partition had go.
    """
    folder, names = Path(folder), [c for c in folds if c.startswith("fold_")]
    for left in folder.glob("splits_*.csv"):
        if (number := re.match(r"splits_(\d+)[_.]", left.name)) and f"fold_{int(number[1])}" not in names:
            left.unlink()
    write_csv(
        cohort[["patient_id", "slide_id", "label"]].rename(columns={"patient_id": "case_id"}), folder / "dataset.csv"
    )
    for name in names:
        stem, part = f"splits_{name[5:]}", folds[name]
        columns = {p: folds.slide_id[part == p].reset_index(drop=True) for p in PARTS}
        flags = pd.DataFrame({p: (part == p).to_numpy() for p in PARTS}, index=folds.slide_id.to_list())
        counts = flags.groupby(folds.label.to_numpy()).sum()
        for table, kind in ((pd.DataFrame(columns), ""), (flags[flags.any(axis=1)], "_bool"), (counts, "_descriptor")):
            write_text(table.to_csv(lineterminator="\n"), folder / f"{stem}{kind}.csv")
    return folder


# ------------------------------------------------------------------------------------------------ a cohort's folds


def read_split_table(path: str | Path, cohort: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """(folds table, what to know of it) of an official or own split: any file or folder of `splits.read_splits`.

    A name is a slide, with or without the suffix of its file, else a patient, who brings all of their slides; where the
    file says that it names patients, it is a patient. Slides
    of the split that the cohort lacks are left out, slides of the cohort that a fold does not name take no part in it;
    both are counted. A patient may be in two parts (as in public splits: see `leakage`), a slide may not; it may be
    tested in several folds, as in Monte-Carlo splits, or in none.
    Raises InputError for one fold alone, a slide in two parts of a fold, or a fold that tests no slide or trains on no
    slide of a class.
    """
    rows, name = read_splits(path), Path(path).name
    slides = cohort[["slide_id", "patient_id"]].assign(name=cohort.slide_id.map(bare_name))
    slides["patient_name"] = slides.patient_id.map(bare_name)
    of_slide = rows.name.isin(slides.name) & ~rows.of_patient
    by_slide, rest = rows[of_slide].drop(columns="patient_id").merge(slides, on="name"), rows[~of_slide]
    by_patient = rest.drop(columns="patient_id").merge(
        slides.drop(columns="name"), left_on="name", right_on="patient_name"
    )
    strange = rest[~rest.name.isin(slides.patient_name)].name.nunique()
    joined = pd.concat([by_slide, by_patient]).drop_duplicates(["fold", "part", "slide_id"])
    if joined.empty:
        raise InputError(
            f"the split {name} names no slide or patient of the cohort: it has {rows.name[0]}, the cohort "
            f"{cohort.slide_id.iloc[0]}"
        )
    twice = joined[joined.duplicated(["fold", "slide_id"])]
    if len(twice):
        fold, slide = twice.iloc[0][["fold", "slide_id"]]
        parts = joined.part[(joined.fold == fold) & (joined.slide_id == slide)]
        raise InputError(f"the split {name} has slide {slide} in {' and '.join(parts)} of fold {fold}: keep one")
    table = cohort[["slide_id", "patient_id", "label"]].sort_values("slide_id").reset_index(drop=True)
    by_fold = joined.pivot(index="slide_id", columns="fold", values="part").fillna("")
    by_fold = by_fold.reindex(index=table.slide_id, columns=range(rows.fold.nunique()), fill_value="")
    table = table.assign(**{f"fold_{fold}": by_fold[fold].to_numpy() for fold in by_fold})
    _check(table, name)
    return table, _split_note(table, name, strange)


def _check(table: pd.DataFrame, name: str) -> None:
    """InputError unless there are two folds or more, and each can be trained and tested."""
    columns = {c[5:]: table[c] for c in table if c.startswith("fold_")}
    if len(columns) < 2:
        raise InputError(f"the split {name} has one fold: a study compares over folds and needs at least 2")
    for fold, part in columns.items():
        if not (part == "test").any():
            raise InputError(f"the split {name} tests no slide of the cohort in fold {fold}: is it of this cohort?")
        if lost := sorted(set(table.label) - set(table.label[part.isin(["train", "val"])])):
            raise InputError(f"the split {name} trains on no {lost[0]} slide in fold {fold}: is it of this cohort?")


def _split_note(table: pd.DataFrame, name: str, strange: int) -> str:
    """What to know of folds from a split table."""
    parts = table[[c for c in table if c.startswith("fold_")]]
    tested, unused = (parts == "test").sum(axis=1), (~parts.isin(PARTS)).sum(axis=1)
    often = {"once": (tested == 1).sum(), "several times": (tested > 1).sum(), "never": (tested == 0).sum()}
    said = [
        f"{parts.shape[1]} folds of {as_written(name)}; the keys folds, repeats and val_share do not count.",
        f"Slides tested {', '.join(f'{word}: {number}' for word, number in often.items())}.",
    ]
    if strange:
        said.append(f"{strange} names of the split are not in the cohort and are left out.")
    if unused.any():
        said.append(
            f"{(unused == parts.shape[1]).sum()} slides of the cohort are in no fold at all, "
            f"{((unused > 0) & (unused < parts.shape[1])).sum()} not in every one; they take no part there."
        )
    if lacking := [c[5:] for c in parts if not (parts[c] == "val").any()]:
        said.append(f"Without a validation part: fold {', '.join(lacking)}.")
    return " ".join(said)


# ------------------------------------------------------------------------------------------------ the four ways


def _folder(folder: Path) -> pd.DataFrame:
    """CLAM's files, splits_<i>.csv or, where there is none, splits_<i>_bool.csv."""
    for kind in ("", "_bool"):
        found = {
            int(match[1]): file
            for file in sorted(folder.iterdir())
            if (match := re.fullmatch(rf"splits_(\d+){kind}\.csv", file.name))
        }
        if found:
            return pd.concat([_file(file).assign(fold=i) for i, file in sorted(found.items())])
    raise InputError(f"the folder {folder.name} has no splits_<i>.csv: name {KNOWN}")


def _file(path: Path) -> pd.DataFrame:
    if path.suffix == ".json":
        return _stamp(read_json(path))
    table = read_table(path)
    for reason in table.bad.values():
        raise InputError(f"{path.name}: {reason}")
    frame = table.frame
    if any(re.fullmatch(r"fold_\d+", c) for c in frame):
        return _fold_columns(frame, path.name)
    if {"train", "test"} <= set(frame):
        return _clam(frame)
    raise InputError(f"{path.name} has the columns {', '.join(frame.columns[:6])}: name {KNOWN}")


def _rows(fold: int, part: str, names, patients="", of_patient: bool = False) -> pd.DataFrame:
    rows = pd.DataFrame({"fold": fold, "part": part, "name": [bare_name(str(name)) for name in names]})
    return rows.assign(patient_id=patients, of_patient=of_patient)[COLUMNS]


def _fold_columns(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """A row a slide (or patient), a column a fold that holds the part, or nothing."""
    ids = frame["slide_id"] if "slide_id" in frame else frame["patient_id"]
    patients = frame["patient_id"] if "patient_id" in frame else pd.Series("", index=frame.index)
    parts = []
    for column in [c for c in frame if re.fullmatch(r"fold_\d+", c)]:
        said = frame[column].str.lower().mask(is_missing(frame[column]), "")
        if strange := sorted(set(said) - {*PARTS, ""}):
            raise InputError(f"{name} says '{strange[0]}' in {column}: a part is {', '.join(PARTS)}, or nothing")
        parts += [
            _rows(int(column[5:]), part, ids[said == part], patients[said == part].to_numpy(), "slide_id" not in frame)
            for part in PARTS
        ]
    return pd.concat(parts)


def _clam(frame: pd.DataFrame) -> pd.DataFrame:
    """One fold: columns of slide ids, or of true and false (or 1 and 0) beside a first column of slide ids."""
    columns = [part for part in PARTS if part in frame]
    flags = frame[columns].apply(lambda column: column.str.lower().map(FLAGS))
    if flags.notna().all(axis=None) and frame.columns[0] not in columns:
        return pd.concat([_rows(0, part, frame.iloc[:, 0][flags[part].astype(bool)]) for part in columns])
    return pd.concat([_rows(0, part, frame[part]) for part in columns])


def _stamp(value: dict) -> pd.DataFrame:
    for split in value["splits"]:
        for part in ("train_patients", "test_patients"):
            if not isinstance(split[part], list):
                raise TypeError(part)
    found = [
        _rows(i, part, split.get(f"{part}_patients", ()), of_patient=True)
        for i, split in enumerate(value["splits"])
        for part in PARTS
    ]
    return pd.concat(found).assign(patient_id=lambda rows: rows.name)
