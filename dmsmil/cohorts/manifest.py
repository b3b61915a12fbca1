"""A TCGA cohort as a study froze it: manifest.csv, why others were left out, and where its slides come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from dmsmil.cohorts.checks import sizes
from dmsmil.cohorts.download import Remote
from dmsmil.cohorts.fetching import downloadable
from dmsmil.cohorts.gdc import COLUMNS, LEFT_OUT, RULE, cohort_of, connect, one_text, query_cohort
from dmsmil.cohorts.ids import plain_name
from dmsmil.jobs.files import InputError, is_file, read_json, walk, write_csv, write_json
from dmsmil.jobs.text import many


def keep_source(home: str | Path, remote: Remote) -> None:
    """Remember in the study where its slides come from: source.json, which holds no token, only where one is."""
    write_json({"server": remote.server, "token": remote.token}, Path(home) / "source.json")


def source_of(home: str | Path, cohort: pd.DataFrame) -> Remote | None:
    """Where slides of a study's cohort are fetched from when they are not on the disk; None for the user's own."""
    path = Path(home) / "source.json"
    if not (path.exists() and downloadable(cohort)):
        return None
    return connect(**read_json(path), checked=Path(home) / "checked.txt")


def counts_table(manifest: pd.DataFrame, left_out: pd.DataFrame, name: str) -> pd.DataFrame:
    """Slides and patients of each class beside the paper's slides, then of each reason to be left out."""
    paper = cohort_of(name).paper
    groups = {label: manifest[manifest.label == label] for label in paper} | {"all": manifest}
    printed = paper | {"all": sum(paper.values())}
    reasons = left_out.groupby("reason", sort=False)
    groups |= {f"left out: {reason}": rows for reason, rows in sorted(reasons, key=lambda g: (-len(g[1]), g[0]))}
    rows = [
        (len(rows), rows.patient_id[rows.patient_id != ""].nunique(), printed.get(what, ""))
        for what, rows in groups.items()
    ]
    return pd.DataFrame(rows, index=list(groups), columns=["slides", "patients", "slides in the paper"])


def read_manifest(home: str | Path, name: str) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """(manifest, left_out, facts) that a study froze. facts: when and from which data release, where it is known.

    Raises InputError when manifest.csv is of another cohort or lacks a column.
    """
    home, cohort = Path(home), cohort_of(name)
    manifest = pd.read_csv(home / "manifest.csv", dtype=str, keep_default_na=False)
    if missing := [column for column in COLUMNS if column not in manifest]:
        raise InputError(
            f"manifest.csv of the study has no column '{missing[0]}': put the whole file back, or remove "
            "it to query the cohort anew"
        )
    ours = set(manifest.project) <= set(cohort.projects) and set(manifest.label) <= set(cohort.paper)
    if manifest.empty or not ours:
        raise InputError(
            f"manifest.csv of the study is not of {cohort.title}: give the study another name, or remove the file"
        )
    numbers, wrong = sizes(manifest["size"])
    if wrong or (numbers == 0).any():
        row = next(iter(wrong), (numbers == 0).idxmax())
        raise InputError(
            f"manifest.csv of the study gives {manifest.file_name[row]} the size '{manifest['size'][row][:40]}', which "
            "is no number of bytes: put the whole file back, or remove it to query the cohort anew"
        )
    manifest["size"] = numbers.astype(str)
    left, facts = home / "left_out.csv", home / "manifest.json"
    left_out = pd.read_csv(left, dtype=str, keep_default_na=False) if left.exists() else pd.DataFrame(columns=LEFT_OUT)
    return manifest, left_out, read_json(facts) if facts.exists() else {}


def tcga_table(
    name: str,
    home: str | Path,
    slides: str | Path = "",
    remote: Remote | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """The table of a TCGA cohort for `load_cohort`: <home>/cohort/cohort.csv, from the study's frozen manifest.

    The first time the GDC is asked and its answer written to <home>/manifest.csv (with left_out.csv, and manifest.json:
    the rule, the day, the data release); from then on, or when the file was brought from another study, nothing is
    asked. slides: the folder where slides are or will be (<home>/slides if empty); what is in it, in sub-folders too,
    is joined by file name, for ids change. Columns: slide_id, patient_id, label, site, path, file_id, file_name, md5,
    size. Raises InputError as `query_cohort` and `read_manifest`.
    """
    home = Path(home)
    if not (home / "manifest.csv").exists():
        _freeze(name, home, remote or connect(), report)
    return write_csv(locate(read_manifest(home, name)[0], slides or home / "slides"), home / "cohort" / "cohort.csv")


def locate(manifest: pd.DataFrame, slides: str | Path) -> pd.DataFrame:
    """The cohort table of a manifest: with the path of each slide in the folder `slides`, where it is or will be."""
    folder = Path(slides).absolute()
    there: dict[str, list[Path]] = {}
    for path in sorted(path for path in walk(folder) if path.suffix == ".svs"):
        there.setdefault(path.name, []).append(path)
    path = [_path(there.get(row.file_name, []), row.size, folder, row.file_name) for row in manifest.itertuples()]
    columns = ["slide_id", "patient_id", "label", "site", "path", "file_id", "file_name", "md5", "size"]
    return manifest.assign(path=path)[columns]


def _path(copies: list[Path], size: str | int, folder: Path, name: str) -> str:
    """Of several copies of a file the first that is whole, else the first; without one where it will be, and nowhere
    where its name is none."""
    whole = [path for path in copies if is_file(path) and path.stat().st_size == int(size)]
    if whole or copies:
        return str((whole or copies)[0])
    try:
        return str(folder / plain_name(name))
    except InputError:  # `load_cohort` makes it a row of failures
        return ""


def _freeze(name: str, home: Path, remote: Remote, report: Callable[[str], None]) -> None:
    """Ask the GDC and write what it says into the study, manifest.csv last: where it is, the others are whole."""
    manifest, left_out = query_cohort(name, remote, report)
    try:
        release = one_text(replace(remote, attempts=1).ask("status"), "data_release")
    except InputError:
        release = ""
    write_csv(left_out, home / "left_out.csv")
    write_json(
        {
            "cohort": name,
            "rule": RULE,
            "server": remote.server,
            "data_release": release or "not told",
            "date": datetime.now(UTC).date().isoformat(),
            "slides": manifest.label.value_counts().to_dict(),
            "left_out": left_out.reason.value_counts().to_dict(),
        },
        home / "manifest.json",
    )
    write_csv(manifest, home / "manifest.csv")
    report(
        f"{cohort_of(name).title}: {many(len(manifest), 'slide')} of {many(manifest.patient_id.nunique(), 'patient')}, "
        f"{len(left_out)} left out ({release or 'data release not told'}); frozen in manifest.csv"
    )
