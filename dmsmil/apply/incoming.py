"""The slides that a study is applied to: one file, a folder of them, or a table with or without labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from dmsmil.cohorts.checks import COLUMNS
from dmsmil.cohorts.finding import SlideFiles, called
from dmsmil.cohorts.ids import LONGEST_ID, SLIDE_SUFFIXES, TABLE_SUFFIXES, alike, plain_name, tcga_patient
from dmsmil.cohorts.table import load_cohort
from dmsmil.jobs.failures import failure_row
from dmsmil.jobs.files import InputError


def read_slides(
    place: str | Path, classes: list[str], slides_needed: bool = True, report: Callable[[str], None] = print
) -> tuple[pd.DataFrame, list[dict]]:
    """(slides, failures) of a slide file, of all slide files below a folder, or of a table as `load_cohort` reads it,
    in which slide_id alone must be filled in; files are found by a column path, or below the table's own folder.

    slides: columns slide_id, patient_id, label, site, path, mpp; what is not known is empty. Of a name that is a TCGA
    barcode the patient is known, unless the table names one. classes: those of the study, of which every label must be
    one. slides_needed: False where features are there already. Raises InputError when there is nothing to apply to.
    """
    place = Path(place)
    if not place.exists():
        raise InputError(f"there is no {place.name} to apply to: name a slide, a folder of slides, or a table of them")
    if place.is_file() and place.suffix.lower() not in (*SLIDE_SUFFIXES, *TABLE_SUFFIXES):
        raise InputError(
            f"{place.name} is no slide that is read ({', '.join(SLIDE_SUFFIXES)}) and no table "
            f"({', '.join(TABLE_SUFFIXES)}): convert it, or name another file"
        )
    if place.is_file() and place.suffix.lower() in TABLE_SUFFIXES:
        slides, failures = load_cohort(place, "", slides_needed, report=report, required=("slide_id",))
        told = slides.slide_id.map(tcga_patient)
        barcodes = slides.patient_id.map(tcga_patient)  # where no patient is known, some tables name the slide again
        own = (slides.patient_id != "") & (barcodes != told)
        slides["patient_id"] = slides.patient_id.where(own | (told == ""), told)
    else:
        slides, failures = _files(place)
    if strange := sorted(set(slides.label) - {"", *classes}):
        raise InputError(
            f"{place.name} has the label '{strange[0]}', and the study's classes are {', '.join(classes)}"
            ": write the labels as the study does, or leave them empty"
        )
    return slides, failures


def _files(place: Path) -> tuple[pd.DataFrame, list[dict]]:
    """The slides of a file or folder, called by their files' names, or by the labels of DICOM slides."""
    paths = [place] if place.is_file() else SlideFiles(place).paths
    if not paths:
        raise InputError(
            f"the folder {place.name} has no slide file to apply to ({', '.join(SLIDE_SUFFIXES[:4])}, ...)"
        )
    names = {path: called(path) for path in paths}
    counts, rows, failures = Counter(map(alike, names.values())), [], []
    for path, name in names.items():
        try:
            if counts[alike(name)] > 1:
                raise InputError(f"{counts[alike(name)]} slide files are called {name}: keep one, or write a table")
            rows.append([plain_name(name, LONGEST_ID), tcga_patient(name), "", "", str(path), 0.0])
        except InputError as error:
            failures.append(failure_row(name, "cohort", error))
    if not rows:
        raise InputError(f"{place.name} has no usable slide (the first: {failures[0]['reason']})")
    return pd.DataFrame(rows, columns=COLUMNS).sort_values("slide_id", ignore_index=True), failures
