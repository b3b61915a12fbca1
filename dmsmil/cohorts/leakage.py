"""What two parts of a fold have in common: patients, sites, and slides with the same content.

A model that is tested on a patient it was trained on is tested on its memory; on a site it was trained on, it may know
the stain; on a copy of a slide, it knows the slide.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from dmsmil.cohorts.folds import span
from dmsmil.cohorts.ids import TCGA, alike, tcga_patient
from dmsmil.cohorts.sites import site_groups
from dmsmil.cohorts.splits import PARTS, read_splits
from dmsmil.jobs.files import file_md5, is_file

MANY = 10  # folds that are listed one by one
UNITS = {"patient_id": "patients", "site": "sites", "copy": "copies"}


def leakage(
    folds: pd.DataFrame, cohort: pd.DataFrame | None = None, copies: pd.DataFrame | None = None
) -> pd.DataFrame:
    """One row a fold: how many patients, sites and copies each part has, and how many each two parts share.

    Columns: (what, where); what is patients, sites (of a cohort that knows any) and copies (contents that several
    slides have, of `duplicates`: None where none could be looked for); where is train, val, test, and train & test,
    train & val, and rest & test: those that are in both, the rest being train and val together. Slides without a site
    do not count as one. Patients whom a TCGA barcode calls one are one, whatever the table says, and so are two names
    that differ in case, in spaces or in signs that look alike alone.
    """
    names = [c for c in folds if c.startswith("fold_")]
    rows = folds.melt(["slide_id", "patient_id"], names, "fold", "part")
    rows["fold"] = rows.fold.str[5:].astype(int)
    rows["patient_id"] = rows.patient_id.astype(str).map(alike)
    rows["patient_id"] = rows.patient_id.map(site_groups(rows.assign(site=rows.slide_id.map(tcga_patient))))
    if cohort is not None and (cohort.site != "").any():
        sites = dict(zip(cohort.slide_id, cohort.site))
        rows["site"] = [sites.get(slide_id, "") for slide_id in rows.slide_id]
    if copies is not None:
        firsts = dict(zip(copies.slide_id, copies.copy_of))
        rows["copy"] = [firsts.get(slide_id, "") for slide_id in rows.slide_id]
    return _audit(rows)


def audit_splits(path: str | Path) -> pd.DataFrame:
    """`leakage` of a split without its cohort: any file or folder of `splits.read_splits`, such as public lists.

    Names that are TCGA barcodes tell patient and site. Of others the patient is what the split says, else the name
    itself (it says nothing better), and there is no site.
    """
    rows = read_splits(path)
    codes = rows.name.str.extract(f"^{TCGA.pattern}")
    named = codes.patient.fillna(rows.patient_id.where(rows.patient_id != "", rows.name))
    rows["patient_id"] = named.astype(str).map(alike)
    if codes.site.notna().any():
        rows["site"] = codes.site.fillna("")
    return _audit(rows)


def _audit(rows: pd.DataFrame) -> pd.DataFrame:
    """rows: fold, part, patient_id and where known site and copy, empty where a slide has none."""
    table: dict = {}
    for fold, mine in rows.groupby("fold"):
        table[fold] = {}
        for column, what in UNITS.items():
            if column in mine:
                parts = {part: set(mine[column][(mine.part == part) & (mine[column] != "")]) for part in PARTS}
                train, val, test = parts.values()
                table[fold] |= {(what, part): len(units) for part, units in parts.items()}
                table[fold] |= {
                    (what, "train & val"): len(train & val),
                    (what, "train & test"): len(train & test),
                    (what, "rest & test"): len((train | val) & test),
                }
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("fold")


def duplicates(cohort: pd.DataFrame) -> pd.DataFrame | None:
    """The slides whose content another slide has too: slide_id, patient_id, label, copy_of (the first such slide_id).

    The content is told by the column md5 where the cohort has it, else by the file, of which only those of equal size
    are read. A slide with neither md5 nor file is not compared, nor an md5 with a file of which no other has the size.
    None where no two slides could be compared.
    """
    known = cohort.md5 if "md5" in cohort else pd.Series("", index=cohort.index)
    files = {i: Path(path) for i, path in cohort.path.items() if not known[i] and is_file(path)}
    if len(files) < 2 and (known != "").sum() < 2:
        return None
    sizes = pd.Series({i: file.stat().st_size for i, file in files.items()}, dtype=float)
    read = sizes.index[sizes.duplicated(keep=False)]
    with ThreadPoolExecutor() as pool:
        found = dict(zip(read, pool.map(file_md5, [files[i] for i in read])))
    content = known.where(known != "", pd.Series(found, dtype=object).reindex(cohort.index))
    twice = cohort[["slide_id", "patient_id", "label"]].assign(content=content)[content.notna()]
    twice = twice[twice.content.duplicated(keep=False)].sort_values("slide_id")
    return (
        twice.assign(copy_of=twice.groupby("content").slide_id.transform("first"))
        .drop(columns="content")
        .sort_values(["copy_of", "slide_id"], ignore_index=True)
    )


# ------------------------------------------------------------------------------------------------ in words


def audit_sentences(audit: pd.DataFrame) -> str:
    """Markdown: what a table of `leakage` means: whether patients, sites or copies are trained on and tested."""
    lines, what = [], audit.columns.unique(0)
    if (shared := audit["patients", "rest & test"]).any():
        lines.append(
            f"**Patients leak**: {span(shared)} of the {span(audit['patients', 'test'])} patients a fold "
            f"tests are in its training or validation part too, {_folds(shared)}. Its numbers are too good by "
            "what a model remembers of them."
        )
    else:
        lines.append("No patient that a fold tests is in its training or validation part.")
    if (inner := audit["patients", "train & val"]).any():
        lines.append(
            f"{span(inner)} patients a fold are in both training and validation: a model selected there is "
            "selected for memory."
        )
    if "sites" in what:
        sites, tested = audit["sites", "rest & test"], audit["sites", "test"]
        lines.append(
            f"Of the {span(tested)} sites a fold tests, {span(sites)} are in its training or validation "
            "part too: where sites differ in their classes, to know the site is to know more. The site-only "
            "rule among the baselines says how much; `split: site` keeps sites apart."
            if sites.any()
            else "No site that a fold tests is in its training or validation part."
        )
    if "copies" in what:
        copies = audit["copies", "rest & test"]
        lines.append(
            f"**Copies leak**: {span(copies)} slides a fold are tested although a slide of the same content "
            f"is in training or validation, {_folds(copies)}."
            if copies.any()
            else "No slide that a fold tests has a copy in its training or validation part."
        )
    else:
        lines.append("Copies were not looked for: no two slides have a file here, or an md5 in the table.")
    return "\n".join(f"- {line}" for line in lines)


def audit_summary(audit: pd.DataFrame, others: Iterable[str | Path] = ()) -> pd.DataFrame:
    """One row a split, this study's first and the public ones at the paths `others` below, to stand beside each other.

    Columns: folds (of all repeats); patients tested a fold; of them in train, fold by fold or, of many folds, from the
    least to the most, and as a share; sites tested a fold; of them in train. A dash where sites are not known.
    """
    names = _told_apart([Path(path) for path in others])
    named = {"this study": audit} | {name: audit_splits(path) for name, path in zip(names, others)}
    rows = {}
    for name, table in named.items():
        shared, tested = table["patients", "train & test"], table["patients", "test"]
        sites = table["sites"] if "sites" in table.columns.unique(0) else None
        rows[name] = {
            "folds": len(table),
            "patients tested": span(tested),
            "of them in train": span(shared) if len(shared) > MANY else ", ".join(map(str, shared)),
            "share": f"{shared.sum() / tested.sum():.1%}",
            "sites tested": "—" if sites is None else span(sites["test"]),
            "sites in train too": "—" if sites is None else span(sites["train & test"]),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("split")


def _told_apart(paths: list[Path]) -> list[str]:
    """The name of each path, with as many of the folders above it as tell it from the others and from this study."""
    names = []
    for path in paths:
        parts, others = path.absolute().parts, [other.absolute().parts for other in paths if other != path]
        enough = next(
            (
                count
                for count in range(1, len(parts))
                if parts[-count:] != ("this study",) and all(other[-count:] != parts[-count:] for other in others)
            ),
            len(parts),
        )
        names.append("/".join(parts[-enough:]))
    return names


def _folds(values: pd.Series) -> str:
    """Where a count is not 0."""
    if values.all():
        return "in every fold"
    where = values.index[values > 0]
    return f"in {len(where)} of {len(values)} folds" if len(where) > MANY else f"in fold {', '.join(map(str, where))}"
