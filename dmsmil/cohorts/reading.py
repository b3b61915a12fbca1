"""A table as people save it: commas, semicolons or tabs; UTF-8, or what a byte-order mark says."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dmsmil.jobs.files import InputError

NAMES = ("slide_id", "patient_id", "label", "site", "path", "mpp", "file_id", "file_name", "md5", "size")
ALIASES = {"case_id": "patient_id", "slide": "slide_id", "patient": "patient_id"}  # case_id is CLAM's name
SPLIT_NAME = re.compile(r"train|val|test|fold_\d+")
# what people write where they have nothing to write, in lower case
MISSING = frozenset(
    {
        "",
        "?",
        "na",
        "n/a",
        "#n/a",
        "<na>",
        "nan",
        "none",
        "null",
        "nil",
        "missing",
        "unknown",
        "not available",
        "not applicable",
        "not reported",
        "not allowed to collect",
        "not evaluated",
        "not known",
        "tbd",
        "pending",
        "[discrepancy]",
        "[not evaluated]",
        "[not reported]",
        "[pending]",
        "#ref!",
        "#value!",
        "#name?",
        "#div/0!",
        "#num!",
        "#null!",
        "[not available]",
        "[not applicable]",
        "[unknown]",
    }
)
STROKES = MISSING | {"-", "--", "–", "—", "."}  # where no class is asked for: one can be called + and another -
UNSEEN = "\u200b\u2060\ufeff"  # signs of no width, which text from web pages and other programs brings along
SEPARATORS = (",", ";", "\t")
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # how .xlsx, .ods and .numbers begin, and .xls
SAVE_AS = "save it as CSV in UTF-8 (Excel: Save As 'CSV UTF-8'; LibreOffice: 'Text CSV', UTF-8; Numbers: Export To CSV)"


@dataclass(frozen=True)
class Table:
    """A table of text as it was read.

    frame: the rows that have the header's length, their cells stripped; the index is the row's number in a
    spreadsheet, whose header is row 1. bad: why another row was not taken, by its number. notes: what was read
    otherwise than it is written. header: the names of the columns as they are written.
    """

    frame: pd.DataFrame
    bad: dict[int, str]
    notes: list[str]
    header: list[str]


def read_table(path: str | Path) -> Table:
    """Read a CSV table whose first row names its columns.

    Columns of NAMES and of splits are known in any case, with spaces for underscores, and by their ALIASES; others
    keep their name. Empty cells at the end of a row are no cells, so a comma too many shifts nothing. Raises
    InputError where the encoding is not certain, or two columns have one meaning.
    """
    path = Path(path)
    numbered = list(enumerate(_rows(_text(path), path.name), 1))
    filled = [(number, cells) for number, cells in numbered if any(cells)]
    while len(filled) > 1 and filled[0][1][0].startswith("#"):  # `_rows` has passed them too
        filled.pop(0)
    if not filled:
        raise InputError(f"{path.name} is empty: a first row of column names is needed, then one row a slide")
    (_, header), *body = filled
    header = _without_end(header, 0)
    names, notes = _columns(header, path.name)
    rows, bad = {}, {}
    for number, cells in body:
        cells = _without_end(cells, len(header))
        if len(cells) == len(header):
            rows[number] = cells
        else:
            bad[number] = (
                f"row {number} has {len(cells)} cells, the header {len(header)}: put cells that hold a "
                "separator in quotes, and give each row all its separators"
            )
    frame = pd.DataFrame(list(rows.values()), index=list(rows), columns=names, dtype=str)
    return Table(frame.loc[:, ~frame.columns.duplicated()], bad, notes, header)


def need_columns(frame: pd.DataFrame, names: tuple[str, ...], header: list[str], table: str) -> None:
    """InputError where a table lacks one of `names`; header: its columns as they are written."""
    missing = [name for name in names if name not in frame]
    if missing:
        near = difflib.get_close_matches(missing[0], frame.columns, 1)
        there = "its columns are " + ", ".join(" ".join(name.split())[:80] for name in header[:9])
        if len(header) == 1 and "|" in header[0]:
            there = "its columns are separated by |: use commas, semicolons or tabs"
        hint = f"rename its column '{near[0]}'" if near and len(missing) == 1 else there
        lacking = " and no ".join(f"'{name}'" for name in missing)
        raise InputError(f"{table} has no column {lacking}: {hint}")


def is_missing(values: pd.Series) -> pd.Series:
    """Which values are nothing, or a word or sign for it; in a column label a sign may be a class."""
    return values.str.lower().isin(MISSING if values.name == "label" else STROKES)


def micrometres(text: str) -> float:
    """The number of a cell such as 0.25, "0,25" or "0.25 µm/px"; ValueError for anything else."""
    number, unit = r"(\d*[.,]?\d+(?:e-?\d+)?)", r"(?:[uµμ]m|microns?|mpp)?(?:\s*/\s*(?:px|pixel))?"
    found = re.fullmatch(rf"{number}\s*{unit}", text.lower())
    if not found:
        raise ValueError(text)
    return float(found[1].replace(",", "."))


def _text(path: Path) -> str:
    """What a text file says; InputError where its encoding is not certain."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path.name} cannot be read ({error.strerror})") from error
    if content.startswith(WORKBOOKS):
        raise InputError(f"{path.name} is a workbook, not a CSV table: open it and {SAVE_AS}")
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path.name} is not a CSV table in UTF-8 (byte {content[error.start]:#x} in line {line}): {SAVE_AS}"
        ) from error
    if "\0" in text:
        raise InputError(f"{path.name} is not a CSV table in UTF-8 (it holds zero bytes): {SAVE_AS}")
    return text


def _rows(text: str, name: str) -> list[list[str]]:
    """The cells of each line, stripped."""
    lines = [line for line in text.splitlines() if line.strip()]
    first = next((line for line in lines if not line.startswith("#")), "".join(lines[:1]))  # # of cBioPortal's columns
    if told := re.fullmatch("sep=([,;\t])", first.strip('"')):  # Excel's own way to say it
        separator, text = told[1], text.replace(first, "", 1)
    else:
        separator = _separator(first)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        return [[_plain(cell) for cell in row] for row in reader]
    except csv.Error as error:
        raise InputError(
            f"{name} is not a CSV table: a quote that does not end well, in or before line {reader.line_num} ({error})"
        ) from error


def _plain(cell: str) -> str:
    """A cell in one line, without what is not seen at its ends."""
    return " ".join(line.strip().strip(UNSEEN).strip() for line in cell.strip().splitlines())


def _separator(header: str) -> str:
    """What separates the columns: the sign by which the header names most columns that are known, else most columns."""

    def count(sign: str) -> tuple[int, int]:
        cells = next(csv.reader([header], delimiter=sign, skipinitialspace=True), [])
        return sum(_known(cell.strip()) != "" for cell in cells), len(cells)

    return max(SEPARATORS, key=count)


def _known(cell: str) -> str:
    """The column of NAMES or of splits that the cell of a header means; "" if it is none of them."""
    plain = re.sub(r"[\s_-]+", "_", cell.lower())
    name = ALIASES.get(plain, plain)
    return name if name in NAMES or SPLIT_NAME.fullmatch(name) else ""


def _without_end(cells: list[str], least: int) -> list[str]:
    """The cells without the empty ones at their end, but `least` of them."""
    length = len(cells)
    while length > least and not cells[length - 1]:
        length -= 1
    return cells[:length]


def _columns(header: list[str], table: str) -> tuple[list[str], list[str]]:
    """(names, notes) of the columns; InputError where two that are read have one meaning."""
    names, notes, written = [], [], {}
    for cell in header:
        name = _known(cell)
        if not name:
            names.append(cell)
            continue
        if name in written:
            raise InputError(f"{table} has two columns for {name} ('{written[name]}' and '{cell}'): remove one")
        if cell not in (name, *ALIASES):
            notes.append(f"{table}: the column '{cell}' is read as {name}")
        written[name] = cell
        names.append(name)
    return names, notes
