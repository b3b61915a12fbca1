"""The demo cohort: synthetic slides that look like H&E, whose truth is known.

Two classes, "ductal-like" and "lobular-like", differ in two ways, and only inside the signal region of a slide, a
little more than half of its tissue: tumour cells lie in nests and glands or in single files (arrangement, seen at 10x),
and their nuclei are larger with open chromatin or smaller and even (size, seen at 20x). Both run from -1 to +1 and are
the same for all slides of a patient. In a third of the patients both follow the class, in a third only the arrangement
does, in a third only the size; the other is then drawn without regard to the class, so that no scale alone can be right
about everyone. Both classes have the same share of nuclear area, cytoplasm and white space, and stain varies by site
and patient, so colour tells next to nothing. How strong the signal is was chosen, on one seed, so that methods can
learn it: the cohort proves that a study runs, and nothing about any method.

The pictures are painted by `histology.py`.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from zipfile import BadZipFile

import cv2
import numpy as np
import pandas as pd

from dmsmil.cohorts.made import brushes, histology, pyramid, tissue
from dmsmil.jobs.files import InputError, atomic, fingerprint, write_csv
from dmsmil.jobs.parallel import check_shared, run_units

LABELS = ("ductal-like", "lobular-like")
SITES = tuple(histology.STAINS)


def plan_cohort(patients: int = 40, seed: int = 0) -> pd.DataFrame:
    """The cohort before any slide is painted: one row a slide.

    Columns slide_id, patient_id, site, label, path (relative to the cohort's folder), and what decides the picture:
    arrangement (+1 nests and glands, -1 single files) and size (+1 large nuclei, -1 small). Two of any eight patients
    have two slides. Patients come in pairs, one of each class, of one site.
    """
    rows = []
    for patient in range(patients):
        pair, label = divmod(patient, 2)
        rng = np.random.default_rng([seed, 1, patient])
        sign = 1.0 - 2.0 * label
        telling = sign * rng.uniform(0.8, 1.0, 2)
        free = rng.uniform(-0.6, 0.6, 2)
        follows = ((True, True), (True, False), (False, True))[(pair + pair // 3) % 3]
        arrangement, size = np.where(follows, telling, free)
        site = SITES[pair % 3]
        for number in range(1 + (patient % 8 in (3, 6))):
            slide_id = f"demo-{site}{patient:03d}-{number + 1}"
            rows.append(dict(slide_id=slide_id, patient_id=f"{site}{patient:03d}", site=site, label=LABELS[label],
                             path=f"slides/{slide_id}.svs", patient=patient, number=number,
                             arrangement=arrangement, size=size))
    return pd.DataFrame(rows)


def _settings(row, seed, side):
    """What decides a slide: what was asked for, and the code that paints it."""
    code = [inspect.getsource(part) for part in (plan_cohort, brushes, tissue, histology, pyramid)]
    return fingerprint(dict(row=row, seed=seed, side=side, code=code), 32)


def _truth_path(folder, slide_id):
    return Path(folder) / "truth" / f"{slide_id}.npz"


def read_truth(folder, slide_id: str) -> dict[str, np.ndarray]:
    """The truth of one demo slide, as `histology.paint_slide` describes it."""
    path = _truth_path(folder, slide_id)
    if not path.exists():
        raise InputError(f"no truth for slide {slide_id} in {folder}: only the demo's slides have one (make_demo)")
    with np.load(path) as truth:
        return {name: truth[name] for name in truth.files}


def _is_made(folder, row, settings):
    """Whether the slide is whole and made with these settings: its truth, written after it, vouches for both."""
    slide, truth = Path(folder) / row["path"], _truth_path(folder, row["slide_id"])
    try:
        with open(truth, "rb") as handle, np.load(handle) as known:
            return str(known["settings"]) == settings and int(known["slide_bytes"]) == slide.stat().st_size
    except (OSError, KeyError, ValueError, EOFError, BadZipFile):
        return False


def _make_slide(folder, row, seed, side):
    """Paint and write one slide, then its truth."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        rgb, truth = histology.paint_slide(row, seed, side)
        slide = Path(folder) / row["path"]
        with atomic(slide) as temporary:
            pyramid.write_svs(rgb, temporary)
        with atomic(_truth_path(folder, row["slide_id"])) as temporary, open(temporary, "wb") as handle:
            np.savez_compressed(handle, **truth, settings=_settings(row, seed, side), slide_bytes=slide.stat().st_size)
    finally:
        cv2.setNumThreads(threads)


def make_demo(folder, patients: int = 40, seed: int = 0, side: int = 4608, workers: int = 0,
              scheduler: str = "") -> pd.DataFrame:
    """Make the demo cohort in `folder`; what is there already and was made with the same settings is kept.

    Writes slides/<slide_id>.svs (side x side px at 20x, 0.5 um a pixel), truth/<slide_id>.npz (see `read_truth`) and,
    last, cohort.csv. A slide depends on the seed and on its own place in the cohort, never on `workers` and
    `scheduler` (as for `run_units`).

    Returns the table of cohort.csv: slide_id, patient_id, site, label, path (relative to `folder`).
    Raises InputError for fewer than 4 patients or a side that is below 1024 or no multiple of 64.
    """
    if patients < 4:
        raise InputError(f"the demo cohort needs at least 4 patients, got {patients}: two of each class")
    if side < 1024 or side % 64:
        raise InputError(f"the side of a demo slide must be a multiple of 64 and at least 1024 px, got {side}")
    check_shared(folder, scheduler)
    plan = plan_cohort(patients, seed)
    rows = [row for row in plan.to_dict("records") if not _is_made(folder, row, _settings(row, seed, side))]
    units = {row["slide_id"]: (folder, row, seed, side) for row in rows}
    for _, _, error in run_units(_make_slide, units, workers, scheduler=scheduler):
        if error is not None:
            raise error
    table = plan[["slide_id", "patient_id", "site", "label", "path"]]
    write_csv(table, Path(folder) / "cohort.csv")
    return table
