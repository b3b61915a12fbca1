"""Which slides, whose, which label, and where they lie.

A cohort is a table with one row a slide: slide_id, patient_id, label, and where known site, path and mpp.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import pandas as pd

from dmsmil.cohorts.download import downloadable, slide_path
from dmsmil.jobs.failures import failure_row, write_failures
from dmsmil.jobs.files import InputError, write_csv

SLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm")
REQUIRED = ("slide_id", "patient_id", "label")
ALIASES = {"case_id": "patient_id", "slide": "slide_id", "patient": "patient_id"}  # case_id is CLAM's name
COLUMNS = ["slide_id", "patient_id", "label", "site", "path", "mpp"]
FETCHED = ["file_id", "file_name", "md5", "size"]  # of slides that a server has


def load_cohort(table: str | Path, slides: str | Path = "",
                slides_needed: bool = True, fetched_later: bool = False) -> tuple[pd.DataFrame, list[dict]]:
    """Read a cohort table (CSV) and say what is wrong with it, slide by slide.

    table: CSV with columns slide_id, patient_id, label (CLAM's case_id serves as patient_id), optionally site, path
    (relative to the CSV), mpp, and file_id, md5, size of slides that a server has (`download`). slides: the folder to
    find `<slide_id>.<suffix>` in when there is no path column. slides_needed: False where features are there already;
    the path of a slide without a file is then empty. fetched_later: a slide that a server has may be absent now; its
    path is where it will be.

    Returns (cohort, failures). The cohort has columns slide_id, patient_id, label, site, path, mpp (and file_id,
    file_name, md5, size when the table says what to fetch), sorted by slide_id, and holds the slides that can be used.
    Each slide that cannot (no label, id given twice, patient in two classes, no file) is a row of failures. Raises
    InputError when nothing can be done with the table itself.
    """
    table = Path(table)
    if not table.is_file():
        raise InputError(f"the cohort table {table.parent.name}/{table.name} does not exist: check the key 'cohort'")
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
    columns = COLUMNS + FETCHED * downloadable(frame)
    frame = frame.reindex(columns=columns, fill_value="").apply(lambda column: column.str.strip())
    frame["mpp"] = pd.to_numeric(frame.mpp.replace("", "0"), errors="coerce").fillna(0.0)
    frame["path"] = _paths(frame, table.parent, slides)
    if downloadable(frame):
        frame["path"] = [str(slide_path(row, slides or table.parent)) if row.file_id else row.path
                         for row in frame.itertuples()]
        frame["size"] = pd.to_numeric(frame["size"], errors="coerce").fillna(0).astype(int)
    if not slides_needed:
        frame["path"] = [path if path and Path(path).is_file() else "" for path in frame.path]
    reasons = pd.Series("", index=frame.index)
    expected = frame if slides_needed else frame[:0]
    if fetched_later and "file_id" in frame:
        expected = expected[expected.file_id == ""]
    for index, reason in _problems(frame, expected, Path(slides or table.parent)):
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
        found = _slide_files(Path(slides or folder))
    except OSError as error:
        raise InputError(f"the slides folder {Path(slides).name} cannot be read ({error.strerror})") from error
    paths = []
    for slide_id, path in zip(frame.slide_id, frame.path):
        stem = slide_id[: -len(Path(slide_id).suffix)] if slide_id.lower().endswith(SLIDE_SUFFIXES) else slide_id
        given = next((p for p in (folder / path, Path(slides) / path) if p.exists()), folder / path) if path else None
        paths.append(str(given or found.get(stem) or found.get(slide_id) or ""))
    return paths


def _slide_files(folder: Path) -> dict[str, Path]:
    """The slide files below a folder by their names without suffix."""
    return {f.stem: f for f in sorted(folder.rglob("*")) if f.suffix.lower() in SLIDE_SUFFIXES}


def _problems(frame: pd.DataFrame, expected: pd.DataFrame, folder: Path):
    """(row, reason) for each row that cannot be used; `expected`: those whose file must be there, in `folder` maybe."""
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
    unclaimed = set() if expected.path.all() else _slide_files(folder).keys() - set(frame.slide_id)
    for i, row in expected.iterrows():
        if not row.path:
            near = difflib.get_close_matches(row.slide_id, unclaimed, 1)
            hint = f"did you mean {near[0]}? Else " if near else ""
            yield i, f"no slide file named {row.slide_id}.*: {hint}check the key 'slides', or add a column 'path'"
        elif not Path(row.path).is_file():
            kind = "is a folder" if Path(row.path).is_dir() else "does not exist"
            yield i, f"the slide file {Path(row.path).name} {kind}: check the column 'path'"


def describe(cohort: pd.DataFrame) -> pd.DataFrame:
    """Patients and slides by class (and by site where sites are known): the first table of any study."""
    keys = ["label", "site"] if cohort.site.any() else ["label"]
    table = cohort.groupby(keys).agg(patients=("patient_id", "nunique"), slides=("slide_id", "size"))
    return table.unstack("site", fill_value=0) if len(keys) == 2 else table


def save_cohort(home: str | Path, cohort: pd.DataFrame, folds: pd.DataFrame, failures: list[dict],
                missed: list[dict] = ()) -> None:
    """Write cohort.csv and folds.csv of a study, and into failures.csv the slides left out and those `missed`, that
    could not be fetched (which are not said to be absent as well)."""
    write_csv(cohort, Path(home) / "cohort.csv")
    write_csv(folds, Path(home) / "folds.csv")
    unfetched = {row["unit"] for row in missed}
    write_failures(home, "cohort", [row for row in failures if row["unit"] not in unfetched])
    write_failures(home, "download", list(missed))


def read_cohort(home: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(cohort, folds) of a study, as 00_cohort wrote them."""
    tables = []
    for name in ("cohort.csv", "folds.csv"):
        path = Path(home) / name
        if not path.exists():
            raise InputError(f"the study has no {name}: run 00_cohort first")
        text = {c: str for c in ("slide_id", "patient_id", "label", "site", "path", "file_id", "file_name", "md5")}
        tables.append(pd.read_csv(path, dtype=text, keep_default_na=False))
    return tables[0], tables[1]


def with_files(cohort: pd.DataFrame) -> pd.DataFrame:
    """The slides of a cohort whose files are on the disk: pixels can be read of these alone."""
    return cohort[[Path(path).is_file() for path in cohort.path]]
