"""Which slides, whose, which label, and where they lie.

A cohort is a table with one row a slide: slide_id, patient_id, label, and where known site, path and mpp.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import pandas as pd

from dmsmil.cohorts.checks import (
    COLUMNS,
    FETCHED,
    REQUIRED,
    gaps,
    identities,
    resolutions,
    sizes,
    spelling_questions,
    unread,
)
from dmsmil.cohorts.fetching import downloadable
from dmsmil.cohorts.finding import SlideFiles, find_slides, without_file
from dmsmil.cohorts.ids import LONGEST_ID, plain_name
from dmsmil.cohorts.reading import is_missing, need_columns, read_table
from dmsmil.jobs.failures import failure_row, write_failures
from dmsmil.jobs.files import InputError, is_file, write_csv
from dmsmil.jobs.text import many


def load_cohort(
    table: str | Path,
    slides: str | Path = "",
    slides_needed: bool = True,
    fetched_later: bool = False,
    report: Callable[[str], None] = print,
    required: tuple[str, ...] = REQUIRED,
    missed: list[dict] = (),
    encoded: Collection[str] = (),
) -> tuple[pd.DataFrame, list[dict]]:
    """Read a cohort table and say what is wrong with it, slide by slide.

    table: CSV (as `read_table` reads it) with columns slide_id, patient_id, label (CLAM's case_id serves as
    patient_id), optionally site, path (relative to the CSV), mpp, and file_id, md5, size of slides that a server has
    (`download`). slides: the folder to find the slides in by their ids when there is no path column. slides_needed:
    False where features are there already; the path of a slide without a file is then empty. fetched_later: a slide
    that a server has may be absent now; its path is where it will be. report: gets a line for what was read otherwise
    than it is written. required: the columns that a row must fill in: all three of a cohort to train on, slide_id alone
    of slides to predict. missed: rows of failures of slides that a server was asked for in vain: what lies in their
    place, cut short or of another content, is not them. encoded: slides that a study has features of, which need their
    file no more (`study.opening.with_features`).

    Returns (cohort, failures). The cohort has columns slide_id, patient_id, label, site, path, mpp (and file_id,
    file_name, md5, size when the table says what to fetch), sorted by slide_id, and holds the slides that can be used.
    Each slide that cannot (no label, an id that no file can have or that is given twice, a patient in two classes, no
    file or several) is a row of failures. Raises InputError when nothing can be done with the table itself.
    """
    table = Path(table)
    frame, reasons = _read(table, report, required)
    from_server = fetched_later and "file_id" in frame
    if slides and not Path(slides).is_dir() and not from_server and not encoded:
        what = (
            "is a file: name the folder that holds it" if is_file(slides) else "does not exist: check the key 'slides'"
        )
        raise InputError(f"the slides folder {Path(slides).name} {what}")
    files = SlideFiles(slides or table.parent)
    unfetched = {row["unit"]: row["reason"] for row in missed}
    problems = list(identities(frame))
    problems += [(row, unfetched[name]) for row, name in frame.slide_id.items() if name in unfetched]
    named = frame.path != ""
    frame["path"], uncertain = find_slides(frame, table.parent, files)
    if slides_needed:
        expected = frame[frame.file_id == ""] if from_server else frame
        known = expected.slide_id.isin(list(encoded))
        gone = expected[known & named[expected.index]]
        gone = gone.drop(index=with_files(gone).index)
        if len(gone):
            report(
                f"{table.name}: the file that its column 'path' names of {many(len(gone), 'slide')} is not there "
                f"({gone.slide_id.iloc[0]}{', ...' * (len(gone) > 1)}): the features made before serve"
            )
        expected = expected[~known]
        advice = "check the key 'slides'" if slides or "label" in required else "put it below the folder of the table"
        problems += [*uncertain, *without_file(expected, files, set(frame.slide_id), advice)]
    else:
        frame["path"] = [path if is_file(path) else "" for path in frame.path]
    for row, reason in problems:
        reasons.setdefault(row, reason)
    failures = [failure_row(_unit(frame, row), "cohort", InputError(reason)) for row, reason in sorted(reasons.items())]
    if "label" in required:
        for question in spelling_questions(frame):
            report(f"{table.name}: {question}")
    cohort = frame.drop(index=frame.index.intersection(list(reasons))).sort_values("slide_id").reset_index(drop=True)
    classes = sorted(cohort.label.unique())
    if cohort.empty or len(classes) < 2 and "label" in required:
        found = "no usable slide" if cohort.empty else f"only the class '{classes[0]}'"
        why = f" ({many(len(failures), 'slide')} left out, the first: {failures[0]['reason']})" if failures else ""
        needed = "a study needs at least two classes" if "label" in required else "nothing can be said of it"
        raise InputError(f"{table.name} has {found}{why}: {needed}")
    return cohort, failures


def _read(table: Path, report: Callable[[str], None], required: tuple[str, ...]) -> tuple[pd.DataFrame, dict[int, str]]:
    """The rows of a table, words for nothing taken as nothing, and what is wrong with a row by its number."""
    if not table.is_file():
        what = "is a folder: name the table in it" if table.is_dir() else "does not exist: check the key 'cohort'"
        raise InputError(f"the cohort table {table.parent.name}/{table.name} {what}")
    found = read_table(table)
    need_columns(found.frame, required, found.header, table.name)
    if found.frame.empty and not found.bad:
        raise InputError(f"{table.name} has no rows: one row a slide is needed")
    for note in [*found.notes, *unread(found.frame, table.name)]:
        report(note)
    given = found.frame.reindex(columns=COLUMNS + FETCHED, fill_value="")
    frame = given.mask(given.apply(is_missing), "")
    frame["mpp"], wrong = resolutions(frame.mpp, table.name, report)
    reasons = found.bad | wrong
    for row, reason in gaps(frame, given, required):
        reasons.setdefault(row, reason)
    if not downloadable(frame):
        return frame[COLUMNS], reasons
    frame["size"], wrong = sizes(frame["size"])
    for row, reason in wrong.items():
        reasons.setdefault(row, reason)
    return frame, reasons


def _unit(frame: pd.DataFrame, row: int) -> str:
    """A slide as failures.csv names it: by its id where that is one, else by its row."""
    slide_id = frame.slide_id.get(row, "")
    return slide_id if slide_id.isprintable() and 0 < len(slide_id) <= LONGEST_ID else f"row {row}"


def describe(cohort: pd.DataFrame) -> pd.DataFrame:
    """Patients and slides by class (and by site where sites are known): the first table of any study."""
    keys = ["label", "site"] if cohort.site.any() else ["label"]
    table = cohort.groupby(keys).agg(patients=("patient_id", "nunique"), slides=("slide_id", "size"))
    return table.unstack("site", fill_value=0) if len(keys) == 2 else table


def with_files(cohort: pd.DataFrame) -> pd.DataFrame:
    """The slides of a cohort whose files are on the disk: pixels can be read of these alone."""
    return cohort[[is_file(path) for path in cohort.path]]


# ------------------------------------------------------------------------------------------------ in the study


def save_cohort(
    home: str | Path, cohort: pd.DataFrame, folds: pd.DataFrame, failures: list[dict], missed: list[dict] = ()
) -> None:
    """Write cohort.csv and folds.csv of a study, and into failures.csv the slides left out and those `missed`, that
    could not be fetched (which are not said to be absent as well)."""
    write_csv(cohort, Path(home) / "cohort.csv")
    write_csv(folds, Path(home) / "folds.csv")
    unfetched = {row["unit"] for row in missed}
    write_failures(home, "cohort", [row for row in failures if row["unit"] not in unfetched])
    write_failures(home, "download", list(missed))


def read_cohort(home: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(cohort, folds) of a study, as 00_cohort wrote them; InputError where one was changed since."""
    tables = []
    for name in ("cohort.csv", "folds.csv"):
        path = Path(home) / name
        if not path.exists():
            raise InputError(f"the study has no {name}: run 00_cohort first")
        text = {c: str for c in ("slide_id", "patient_id", "label", "site", "path", "file_id", "file_name", "md5")}
        tables.append(pd.read_csv(path, dtype=text, keep_default_na=False))
    cohort, folds = tables
    _agree(cohort, folds)
    for slide_id in cohort.slide_id:
        plain_name(slide_id, LONGEST_ID)
    return cohort, folds


def _agree(cohort: pd.DataFrame, folds: pd.DataFrame) -> None:
    """InputError unless both tables of a study have the same slides, of the same patients and classes."""
    again = "run 00_cohort again, which makes both from the study's own table"
    if not set(REQUIRED) <= set(cohort) & set(folds):
        raise InputError(f"cohort.csv or folds.csv of the study lacks a column of {', '.join(REQUIRED)}: {again}")
    ours, theirs = (table[list(REQUIRED)].sort_values("slide_id", ignore_index=True) for table in (cohort, folds))
    if ours.slide_id.to_list() != theirs.slide_id.to_list():
        odd = sorted(set(ours.slide_id) ^ set(theirs.slide_id))
        which = f"{odd[0]} is in one alone" if odd else "one is there twice"
        raise InputError(f"cohort.csv and folds.csv of the study have not the same slides ({which}): {again}")
    for name in REQUIRED[1:]:
        for row in ours.index[ours[name] != theirs[name]][:1]:
            raise InputError(
                f"cohort.csv and folds.csv of the study disagree: the {name} of {ours.slide_id[row]} is "
                f"'{ours[name][row]}' in one and '{theirs[name][row]}' in the other: {again}"
            )
