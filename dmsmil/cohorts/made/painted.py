"""A planned cohort becomes files: its slides, what is true of each, and its table."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from pathlib import Path
from zipfile import BadZipFile

import cv2
import numpy as np
import pandas as pd

from dmsmil.cohorts.made import brushes, histology, islands, pyramid, tissue
from dmsmil.jobs.files import InputError, atomic, fingerprint, write_csv
from dmsmil.jobs.parallel import check_shared, run_units

SITES = tuple(histology.STAINS)
COLUMNS = ["slide_id", "patient_id", "site", "label", "path"]  # of cohort.csv; the rest of a plan is its truth


def check_size(cohort: str, patients: int, side: int, classes: int = 2) -> None:
    """InputError for fewer than two patients a class, or a side that is below 1024 or no multiple of 64."""
    if patients < 2 * classes:
        raise InputError(
            f"the {cohort} cohort needs at least {2 * classes} patients, got {patients}: two of each class"
        )
    if side < 1024 or side % 64:
        raise InputError(f"the side of a {cohort} slide must be a multiple of 64 and at least 1024 px, got {side}")


def make_slides(
    folder,
    plan: pd.DataFrame,
    seed: int,
    side: int,
    recipe: histology.Recipe = histology.Recipe(),
    workers: int = 0,
    scheduler: str = "",
) -> pd.DataFrame:
    """Paint the slides of a plan in `folder`; what is there already and was made with the same settings is kept.

    Writes slides/<slide_id>.svs (side x side px at 20x, 0.5 um a pixel), truth/<slide_id>.npz (see `read_truth`) and,
    last, cohort.csv, which is returned. plan: COLUMNS, and those that `histology.paint_slide` reads. A slide depends on
    seed, side, recipe and its own row, never on `workers` and `scheduler` (as for `run_units`).
    """
    check_shared(folder, scheduler)
    rows = [row for row in plan.to_dict("records") if not _is_made(folder, row, _settings(row, seed, side, recipe))]
    units = {row["slide_id"]: (folder, row, seed, side, recipe) for row in rows}
    for _, _, error in run_units(_make_slide, units, workers, scheduler=scheduler):
        if error is not None:
            raise error
    write_csv(plan[COLUMNS], Path(folder) / "cohort.csv")
    return plan[COLUMNS]


def has_truth(folder, slide_id: str) -> bool:
    """Whether a slide was painted in this folder, so that `read_truth` knows what is in it."""
    return _truth_path(folder, slide_id).is_file()


def read_truth(folder, slide_id: str) -> dict[str, np.ndarray]:
    """The truth of one painted slide, as `histology.paint_slide` describes it."""
    if not has_truth(folder, slide_id):
        raise InputError(
            f"no truth for slide {slide_id} in {folder}: only slides that are painted here have one "
            "(make_demo, make_planted)"
        )
    with np.load(_truth_path(folder, slide_id)) as truth:
        return {name: truth[name] for name in truth.files}


def _settings(row, seed, side, recipe):
    """What decides a slide: what was asked for, and the code that paints it."""
    code = [inspect.getsource(part) for part in (brushes, tissue, islands, histology, pyramid)]
    return fingerprint(dict(row=row, seed=seed, side=side, recipe=asdict(recipe), code=code), 32)


def _truth_path(folder, slide_id):
    return Path(folder) / "truth" / f"{slide_id}.npz"


def _is_made(folder, row, settings):
    """Whether the slide is whole and made with these settings: its truth, written after it, vouches for both."""
    slide, truth = Path(folder) / row["path"], _truth_path(folder, row["slide_id"])
    try:
        with open(truth, "rb") as handle, np.load(handle) as known:
            return str(known["settings"]) == settings and int(known["slide_bytes"]) == slide.stat().st_size
    except (OSError, KeyError, ValueError, EOFError, BadZipFile):
        return False


def _make_slide(folder, row, seed, side, recipe):
    """Paint and write one slide, then its truth."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        rgb, truth = histology.paint_slide(row, seed, side, recipe)
        slide = Path(folder) / row["path"]
        with atomic(slide) as temporary:
            pyramid.write_svs(rgb, temporary)
        with atomic(_truth_path(folder, row["slide_id"])) as temporary, open(temporary, "wb") as handle:
            np.savez_compressed(
                handle, **truth, settings=_settings(row, seed, side, recipe), slide_bytes=slide.stat().st_size
            )
    finally:
        cv2.setNumThreads(threads)
