"""TCGA cohorts from the Genomic Data Commons (GDC), by query; frozen in the study as manifest.csv.

The paper names its cohorts but not its slides. The rule by which ours are found, in plain words:

1. All files of the cohort's projects that the GDC lists as slide images of the strategy Diagnostic Slide and whose name
   says so too (a TCGA barcode with DX, ending in .svs). The patient is the first 12 characters of the name, and the
   file must belong to the case of that patient. One file a name.
2. The class. TCGA-NSCLC: the project decides, TCGA-LUAD or TCGA-LUSC. TCGA-BRCA: the morphology (ICD-O-3) of the
   patient's primary disease decides, 8500/3 (infiltrating duct carcinoma) is IDC, 8520/3 (lobular carcinoma) is ILC.
   Where diagnoses say which is primary (diagnosis_is_primary_disease, else classification_of_tumor), only those
   count; where none does, those count that do not say that they are something else.
3. Left out, each with its reason: every other morphology (8522/3 and 8523/3 are mixed ones), a patient with several
   morphologies or in two classes, a record that lacks what is needed.

The site is the name of the institution that sent the tissue, not its code in the barcode: one institution has several
codes, one for each cancer, so that the code alone tells LUAD from LUSC. Names that the GDC spells in two ways are one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from dmsmil.cohorts.download import Remote
from dmsmil.cohorts.ids import plain_name
from dmsmil.cohorts.reading import MISSING
from dmsmil.jobs.files import InputError

RULE = __doc__.strip()
SERVER = "https://api.gdc.cancer.gov"
OUTAGE = 6 * 3600.0  # s that a download waits for the GDC: a night's work is not to be lost over an evening
PAGE = 500  # records an answer
FIELDS = (
    "file_id",
    "file_name",
    "md5sum",
    "file_size",
    "cases.submitter_id",
    "cases.project.project_id",
    "cases.tissue_source_site.code",
    "cases.tissue_source_site.name",
    "cases.diagnoses.primary_diagnosis",
    "cases.diagnoses.morphology",
    "cases.diagnoses.classification_of_tumor",
    "cases.diagnoses.diagnosis_is_primary_disease",
)
COLUMNS = [
    "slide_id",
    "patient_id",
    "label",
    "site",
    "file_id",
    "file_name",
    "md5",
    "size",
    "project",
    "diagnosis",
    "morphology",
    "site_code",
]
LEFT_OUT = ["slide_id", "patient_id", "reason"]
SPELLINGS = {
    "Fox Chase": "Fox Chase Cancer Center",
    "Mayo": "Mayo Clinic - Rochester",
    "Ontario Institute for Cancer Research (OICR)": "Ontario Institute for Cancer Research",
    "Ontario Institute for Cancer Research (OICR)/Ottawa": "Ontario Institute for Cancer Research",
    "St Joseph's Medical Center (MD)": "St. Joseph's Medical Center (MD)",
}  # of one institution
DIAGNOSTIC = re.compile(r"TCGA-\w\w-\w{4}-\d\d[A-Z]-\d\d-DX\d+\..*\.svs", re.ASCII)


@dataclass(frozen=True)
class Cohort:
    """A cohort of the paper: its GDC projects, what decides a slide's class (`by` and its value -> class), and how many
    slides of each class the paper has (its table of data sets)."""

    title: str
    projects: tuple[str, ...]
    by: str
    classes: dict[str, str]
    paper: dict[str, int]


COHORTS = {
    "tcga-brca": Cohort(
        "TCGA-BRCA", ("TCGA-BRCA",), "morphology", {"8500/3": "IDC", "8520/3": "ILC"}, {"IDC": 426, "ILC": 120}
    ),
    "tcga-nsclc": Cohort(
        "TCGA-NSCLC",
        ("TCGA-LUAD", "TCGA-LUSC"),
        "project",
        {"TCGA-LUAD": "LUAD", "TCGA-LUSC": "LUSC"},
        {"LUAD": 385, "LUSC": 405},
    ),
}


def cohort_of(name: str) -> Cohort:
    """The cohort of this name; InputError that names those there are."""
    if name not in COHORTS:
        raise InputError(f"unknown cohort '{name}': choose {' or '.join(COHORTS)}")
    return COHORTS[name]


def connect(server: str = SERVER, token: str = "", checked: str | Path = "", **patience) -> Remote:
    """The GDC as a server to query and to download from, a file whose id has changed included.

    token: path of a token file (TCGA's slides need none). checked: see Remote. patience: attempts, timeout, pause,
    outage (OUTAGE where nothing is said).
    """
    plain = Remote(server or SERVER, token, **{"outage": OUTAGE, **patience})
    return replace(plain, checked=str(checked), renew=partial(find_file, plain))


# ------------------------------------------------------------------------------------------------ the query


def query_cohort(
    name: str, remote: Remote | None = None, report: Callable[[str], None] = print
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(manifest, left_out) of a cohort of COHORTS as the GDC has it today, by the rule of this module.

    manifest: one row a slide, COLUMNS, sorted by slide_id; slide_id is the file name without .svs. left_out: slide_id,
    patient_id, reason of every diagnostic slide that is not in it. Raises InputError when the GDC cannot be had or
    lists nothing that can be used.
    """
    cohort, remote = cohort_of(name), remote or connect()
    asked = {
        "cases.project.project_id": list(cohort.projects),
        "files.data_type": ["Slide Image"],
        "files.experimental_strategy": ["Diagnostic Slide"],
    }
    manifest, left_out = sort_out(_records(remote, asked, report), cohort)
    if manifest.empty:
        why = f" ({len(left_out)} left out, the first: {left_out.reason[0]})" if len(left_out) else ""
        raise InputError(f"{remote.server} lists no usable slide of {name}{why}")
    return manifest, left_out


def _records(remote: Remote, asked: dict[str, list[str]], report: Callable[[str], None]) -> list[dict]:
    """All file records whose fields have one of the values asked for, page by page."""
    filters = {
        "op": "and",
        "content": [{"op": "in", "content": {"field": field, "value": values}} for field, values in asked.items()],
    }
    found, start, total = {}, 0, 1
    while start < total:
        answer = remote.ask(
            "files",
            {
                "filters": filters,
                "fields": ",".join(FIELDS),
                "format": "JSON",
                "size": PAGE,
                "from": start,
                "sort": "file_id:asc",
            },
        )
        try:
            hits, total = answer["data"]["hits"], int(answer["data"]["pagination"]["total"])
            found |= {one_text(hit, "file_id") or f"row {start + i}": hit for i, hit in enumerate(hits)}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{remote.server} does not answer as the GDC does: check the key 'gdc_server'") from error
        if start == 0 and answer.get("warnings"):
            report(f"the GDC warns: {str(answer['warnings'])[:300]}")
        start += len(hits)
        if not hits and start < total:
            break
    if len(found) != total:
        raise InputError(
            f"{remote.server} speaks of {total} files and lists {len(found)}: it may be changing, try again later"
        )
    return list(found.values())


def find_file(remote: Remote, name: str, md5: str) -> str:
    """The file_id that the file of this name and MD5 has today: ids change from one data release to another.

    Raises InputError when the GDC has no such file now.
    """
    records = _records(remote, {"files.file_name": [name]}, lambda line: None)
    for record in records:
        if one_text(record, "md5sum") == md5:
            return one_text(record, "file_id")
    what = "replaced by another file (its MD5 is another)" if records else "withdrawn"
    raise InputError(
        f"{name} was {what} since the manifest was made: leave it out, or remove manifest.csv from the "
        "study to query the cohort anew"
    )


# ------------------------------------------------------------------------------------------------ the rule


class _LeftOut(Exception):
    """Why a slide is not in the cohort."""


def sort_out(records: list[dict], cohort: Cohort) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(manifest, left_out) of the GDC's file records, by the rule of this module. Nothing in a record is trusted."""
    rows, left = [], []
    for record in records:
        try:
            rows.append(_slide(record, cohort))
        except _LeftOut as reason:
            name = one_text(record, "file_name")
            left.append((name.removesuffix(".svs"), name[:12] if DIAGNOSTIC.fullmatch(name) else "", str(reason)))
    manifest = pd.DataFrame(rows, columns=COLUMNS).sort_values(["slide_id", "file_id"], ignore_index=True)
    reasons = pd.Series("", index=manifest.index)
    for _, same in manifest.groupby("file_name"):
        if same.md5.nunique() > 1:
            reasons[same.index] = "several different files have its name"
        else:
            reasons[same.index[1:]] = "the same file under another id"
    for _, patient in manifest[reasons == ""].groupby("patient_id"):
        if patient.label.nunique() > 1:
            reasons[patient.index] = f"patient in two classes ({' and '.join(sorted(set(patient.label)))})"
    dropped = manifest.assign(reason=reasons)[reasons != ""]
    left_out = pd.concat([pd.DataFrame(left, columns=LEFT_OUT), dropped[LEFT_OUT]]).sort_values(LEFT_OUT)
    return manifest[reasons == ""].reset_index(drop=True), left_out.reset_index(drop=True)


def _slide(record: dict, cohort: Cohort) -> dict:
    """One row of the manifest; _LeftOut with the reason when the record gives none."""
    name = one_text(record, "file_name")
    try:
        plain_name(name)
    except InputError as error:
        raise _LeftOut("no file name, or one that is not plain") from error
    if not DIAGNOSTIC.fullmatch(name):
        raise _LeftOut("by its name no diagnostic slide of TCGA")
    patient, file_id = name[:12], one_text(record, "file_id")
    md5, size = one_text(record, "md5sum").lower(), one_text(record, "file_size")
    if not re.fullmatch(r"[\w-]+ [0-9a-f]{32} [1-9]\d*", f"{file_id} {md5} {size}", re.ASCII):
        raise _LeftOut("no file id, MD5 or size")
    case = next((case for case in _items(record, "cases") if one_text(case, "submitter_id") == patient), None)
    if case is None:
        raise _LeftOut("not of the case that its name says")
    project = one_text(case, "project", "project_id")
    if project not in cohort.projects:
        raise _LeftOut("not of the cohort's projects")
    diagnoses = _items(case, "diagnoses")
    diagnoses = [d for d in diagnoses if _primary(d)] or [d for d in diagnoses if _primary(d) is None]
    morphology = " + ".join(sorted({one_text(d, "morphology") for d in diagnoses} - {""}))
    diagnosis = " + ".join(sorted({one_text(d, "primary_diagnosis") for d in diagnoses} - {""}))
    if cohort.by == "morphology" and morphology not in cohort.classes:
        if not morphology:
            raise _LeftOut("no morphology of the primary disease")
        raise _LeftOut(f"morphology {morphology} ({diagnosis or 'no name'})")
    site = one_text(case, "tissue_source_site", "name")
    label = cohort.classes[morphology if cohort.by == "morphology" else project]
    return {
        "slide_id": name.removesuffix(".svs"),
        "patient_id": patient,
        "label": label,
        "site": SPELLINGS.get(site, site),
        "file_id": file_id,
        "file_name": name,
        "md5": md5,
        "size": int(size),
        "project": project,
        "diagnosis": diagnosis,
        "morphology": morphology,
        "site_code": one_text(case, "tissue_source_site", "code") or name[5:7],
    }


def _primary(diagnosis: dict) -> bool | None:
    """Whether a diagnosis is of the primary disease; None where it does not say. The GDC writes true and "true"."""
    said = one_text(diagnosis, "diagnosis_is_primary_disease").lower()
    if said in ("true", "yes"):
        return True
    if said in ("false", "no"):
        return False
    kind = one_text(diagnosis, "classification_of_tumor").lower()
    return None if kind in MISSING else kind == "primary"


def _items(record: dict, key: str) -> list[dict]:
    """The records in a list of a record; none where it is absent, null or something else."""
    found = record.get(key) if isinstance(record, dict) else None
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def one_text(record, *keys: str) -> str:
    """A value inside nested records as one line of text; "" where it is absent, null or something else."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return " ".join(str(record).split()) if isinstance(record, (str, int, float)) else ""
