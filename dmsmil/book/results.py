"""What is committed of a study, in docs/results/<study>/: copied from its folder here, and read again for the pages.

docs/results/<study>/ is laid out as the study is: tables/*.csv, figures/cover.png, times.csv; study.json says what was
run, on what, and when.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import yaml
from PIL import Image

from dmsmil.analysis.report import saved_tables
from dmsmil.jobs.files import ROOT, InputError, atomic, read_json, write_json

RESULTS = "docs/results"  # committed, so small: tables of a few kilobytes, and one picture
NEEDED = "tables/04_compare.csv"
COPIED = (
    NEEDED,
    "tables/02_probes.csv",
    "tables/04_power.csv",
    "tables/04_tests.csv",
    "tables/04_tests_cheap.csv",
    "tables/05_ablation.csv",
    "tables/05_collapse.csv",
    "tables/05_variants.csv",
    "tables/05_witness.csv",
    "tables/06_lambda.csv",
    "tables/07_maps.csv",
    "tables/08_cost.csv",
    "tables/09_claims.csv",
    "times.csv",
)
PICTURE, WIDTH = "figures/cover.png", 1200  # px at most, in 256 colours
SETTINGS = (
    "folds",
    "repeats",
    "seeds",
    "epochs",
    "k",
    "encoder",
    "paper",
    "tile_px",
    "scales",
    "lam",
    "lr",
    "batch_size",
    "select",
    "split",
)  # of params.yaml
PLANTED = ("witness_rate",)  # of params.yaml too, where the cohort is `planted`: elsewhere it says nothing
MACHINE = ("cores", "gpu", "memory_gib", "system", "python")  # of environment.json
SENTENCE = re.compile(r".+?\.(?=\s+[^\sa-z\d]|$)")  # the first; "et al. 2019" ends none


class Lacking(InputError):
    """docs/results does not hold a file of a study; `short` says the same in a few words."""

    def __init__(self, message: str, short: str):
        super().__init__(message)
        self.short = short


# ------------------------------------------------------------------------------------------------ into docs/results


def collect(home: str | Path, results: str | Path, params: str | Path = ROOT / "params") -> Path:
    """Copy what the pages show of the study `home` into <results>/<study>/, and return that folder.

    What the study no longer has is removed there: no two numbers come from different studies. study.json says what was
    run: purpose (the first sentence of <params>/<study>.yaml), slides, patients, classes, settings, machine, and date,
    the day (UTC) on which the main table was written. No slide or patient is named but by the picture, which shows one.
    Raises InputError when `home` is no study that has been compared.
    """
    home = Path(home)
    for name in ("cohort.csv", "params.yaml", "environment.json", NEEDED):
        if not (home / name).is_file():
            raise InputError(f"{home.name} is no study that has been compared, it has no {name}: run the study first")
    values = yaml.safe_load((home / "params.yaml").read_text(encoding="utf-8"))
    cohort, machine = pd.read_csv(home / "cohort.csv", dtype=str), read_json(home / "environment.json")
    wanted = SETTINGS + (PLANTED if values.get("cohort") == "planted" else ())
    written = datetime.fromtimestamp((home / NEEDED).stat().st_mtime, UTC)
    folder = Path(results) / values["study"]
    write_json(
        {
            "purpose": purpose(Path(params) / f"{values['study']}.yaml"),
            "date": written.date().isoformat(),
            "slides": len(cohort),
            "patients": cohort.patient_id.nunique(),
            "classes": cohort.label.value_counts().sort_index().to_dict(),
            **{key: values[key] for key in wanted if key in values},
            **{key: machine[key] for key in MACHINE if key in machine},
        },
        folder / "study.json",
    )
    for name in COPIED:
        _mirror(home / name, folder / name, shutil.copyfile)
    _mirror(home / PICTURE, folder / PICTURE, _shrink)
    return folder


def purpose(params: Path) -> str:
    """The first sentence of the comment with which a params file begins; empty where there is no file or no comment."""
    lines = params.read_text(encoding="utf-8").splitlines() if params.is_file() else []
    words = []
    for line in lines:
        if not line.startswith("#") or not line.strip("# "):
            break
        words.append(line.strip("# "))
    found = SENTENCE.match(" ".join(words))
    return found[0] if found else ""


def _mirror(source: Path, target: Path, copy: Callable) -> None:
    if source.is_file():
        with atomic(target) as temporary:
            copy(source, temporary)
    else:
        target.unlink(missing_ok=True)


def _shrink(source: Path, target: Path) -> None:
    with Image.open(source) as image:
        small = image.convert("RGB")
    small.thumbnail((WIDTH, WIDTH))
    small.quantize(256, dither=Image.Dither.NONE).save(target, "PNG", optimize=True)


# ------------------------------------------------------------------------------------------------ out of docs/results


@dataclass(frozen=True)
class Study:
    """A study in docs/results, as a page shows it. folder: <results>/<study>; page: from the project's folder."""

    folder: Path
    page: str = "README.md"

    @property
    def name(self) -> str:
        return self.folder.name

    def settings(self) -> dict:
        """study.json. Raises Lacking."""
        self.needs("study.json")
        return read_json(self.folder / "study.json")

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table that was copied, by name."""
        return saved_tables(self.folder)

    def table(self, name: str) -> pd.DataFrame:
        """tables/<name>.csv. Raises Lacking."""
        self.needs(f"tables/{name}.csv")
        return saved_tables(self.folder, name)[name]

    def needs(self, file: str) -> None:
        """Raises Lacking when the folder has no `file`."""
        if not (self.folder / file).is_file():
            raise Lacking(
                f"{self.page} shows {posixpath.basename(file)} of the study {self.name}, which "
                f"{RESULTS}/{self.name}/ does not hold: run the study, then python -m dmsmil.book.readme "
                f"outputs/{self.name}",
                f"the study {self.name} has no {file}",
            )

    def link(self, file: str) -> str:
        """How the page reaches a file of the study's folder."""
        return posixpath.relpath(f"{RESULTS}/{self.name}/{file}", posixpath.dirname(self.page) or ".")


def shown_studies(results: Path, page: str = "README.md") -> list[Study]:
    """The studies in docs/results, by name."""
    return [Study(path.parent, page) for path in sorted(results.glob("*/study.json"))]
