"""What is wrong with a row of a cohort table, and what is read otherwise than it is written."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator

import pandas as pd

from dmsmil.cohorts.ids import LONGEST_ID, alike, bare_name, plain_name, tcga_patient
from dmsmil.cohorts.reading import micrometres
from dmsmil.jobs.files import InputError
from dmsmil.jobs.text import many

REQUIRED = ("slide_id", "patient_id", "label")
COLUMNS = ["slide_id", "patient_id", "label", "site", "path", "mpp"]
ROUNDED = r"\d+([.,]\d+)?E\+\d+"  # 123456789012 as a spreadsheet shows it
SYNONYMS = {  # what other programs and people call a column that is read
    "mpp": ("mpp_x", "microns_per_pixel", "um_per_px", "spacing", "spacing_at_level_0", "resolution"),
    "site": ("center", "centre", "hospital", "institution", "institute", "tss"),
    "label": ("class", "diagnosis", "target", "subtype"),
}
FETCHED = ["file_id", "file_name", "md5", "size"]  # of slides that a server has

Reasons = Iterator[tuple[int, str]]  # (row, why it cannot be used)


def unread(frame: pd.DataFrame, table: str) -> Iterator[str]:
    """A line for each column that is not read though its name is nearly that of one which would be, or another word for
    it."""
    others = {_column(column): column for column in frame.columns if column not in COLUMNS + FETCHED}
    for name in COLUMNS:
        if name in frame:
            continue
        near = difflib.get_close_matches(name, others, 1, cutoff=0.75)
        near += [word for word in SYNONYMS.get(name, ()) if word in others]
        if near:
            yield f"{table}: the column '{others[near[0]]}' is not read; if it is the {name}, rename it to {name}"


def _column(name: str) -> str:
    """The name of a column as it is compared: without the unit in brackets behind it."""
    return re.sub(r"[\s_-]+", "_", re.sub(r"\(.*\)", "", name).strip().lower())


def gaps(frame: pd.DataFrame, given: pd.DataFrame, required: tuple[str, ...] = REQUIRED) -> Reasons:
    """The rows that lack what every slide needs; `given`: the cells as they were written."""
    for name in required:
        for row in frame.index[frame[name] == ""]:
            word = f" ('{given.at[row, name]}' counts as none)" if given.at[row, name] else ""
            yield row, f"no {name}{word}: fill it in, or remove the row"


def resolutions(cells: pd.Series, table: str, report: Callable[[str], None]) -> tuple[pd.Series, dict[int, str]]:
    """Micrometres a pixel of each row, 0 where it does not say, and which cells are no such number."""
    numbers, wrong, changed = {}, {}, []
    for row, cell in cells.items():
        try:
            numbers[row] = micrometres(cell) if cell else 0.0
        except ValueError:
            numbers[row] = 0.0
            wrong[row] = f"its mpp '{cell[:40]}' is no number of micrometres a pixel, such as 0.25: correct it"
            continue
        if cell and not cell.replace(".", "").isdigit():
            changed.append(f"'{cell}' as {numbers[row]:g}")
    if changed:
        report(f"{table}: mpp of {many(len(changed), 'slide')} is read as micrometres a pixel, {changed[0]}")
    return pd.Series(numbers, dtype=float), wrong


def sizes(cells: pd.Series) -> tuple[pd.Series, dict[int, str]]:
    """Bytes of each row's file, 0 where it does not say, and which cells are no such number: a spreadsheet shows a long
    one rounded, and saves what it shows."""
    whole = cells.str.fullmatch(r"\d+(\.0*)?")
    wrong = {
        row: f"its size '{cell[:40]}' is no whole number of bytes (a spreadsheet rounds long ones): write it out"
        for row, cell in cells[~whole & (cells != "")].items()
    }
    return cells.where(whole, "0").str.partition(".")[0].astype(int), wrong


def identities(frame: pd.DataFrame) -> Reasons:
    """The rows whose slide or patient cannot be told apart from others, or whose id no file can have."""
    for row, slide_id in frame.slide_id[frame.slide_id != ""].items():
        try:
            plain_name(slide_id, LONGEST_ID)
        except InputError as error:
            yield row, f"a slide_id names files, and {error}: rename it"
    ids = frame.slide_id[frame.slide_id != ""]
    for _, same in ids.groupby(ids.map(bare_name).map(alike)):
        if len(same) == 1:
            continue
        several = " and ".join(repr(name) for name in sorted(set(same)))
        for row in same.index:
            yield (
                row,
                (
                    f"slide_id {several} stands in {len(same)} rows: ids must be unique"
                    if same.nunique() == 1
                    else f"the ids {several} differ in case or suffix alone, and would share their files: rename one"
                ),
            )
    named = frame[(frame.patient_id != "") & (frame.label != "")]
    for patient, rows in named.groupby("patient_id"):
        if rows.label.nunique() > 1:
            labels = " and ".join(sorted(rows.label.unique()))
            for row in rows.index:
                yield row, f"patient '{patient}' is in two classes ({labels}): correct a label, or remove the patient"


def spelling_questions(cohort: pd.DataFrame) -> list[str]:
    """A question for each two classes, patients or sites of a cohort that differ in case, in spaces, in signs that look
    alike or in the zeros around a number alone; for a patient who is several by the table and one by the TCGA barcodes
    of the slides; and for ids that a spreadsheet has rounded."""
    asked = []
    for column, what in (("label", "classes"), ("patient_id", "patients"), ("site", "sites")):
        counts = cohort[column].value_counts().sort_index()
        for _, same in counts.groupby([_plain(name) for name in counts.index]):
            if len(same) > 1:
                told = " and ".join(f"{name!r} ({many(slides, 'slide')})" for name, slides in same.items())
                asked.append(
                    f"the {what} {told} differ in case, spaces, dashes or zeros alone: write them alike if they are one"
                )
    for patient, rows in cohort.groupby(cohort.slide_id.map(tcga_patient)):
        if patient and rows.patient_id.nunique() > 1:
            asked.append(
                f"{many(len(rows), 'slide')} are of patient {patient} by their barcodes, and of "
                f"{rows.patient_id.nunique()} patients by patient_id: give them one patient_id, or one person is "
                "trained on and tested"
            )
    for column in ("slide_id", "patient_id"):
        rounded = cohort[column][cohort[column].str.fullmatch(ROUNDED)]
        if len(rounded):
            asked.append(
                f"the {column} '{rounded.iloc[0]}' is a number as a spreadsheet rounds it, in "
                f"{many(len(rounded), 'row')}: format the column as text, and export it again"
            )
    return asked


def _plain(name: str) -> str:
    """A name without what people do not see in it."""
    plain = alike(bare_name(name))
    return plain.lstrip("0") or "0" if plain.isdigit() else plain
