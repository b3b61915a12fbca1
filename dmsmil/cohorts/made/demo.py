"""The demo cohort: synthetic slides that look like H&E, whose truth is known.

Two classes, "ductal-like" and "lobular-like", differ in two ways, and only inside the signal region of a slide, a
little more than half of its tissue: tumour cells lie in nests and glands or in single files (arrangement, seen at 10x),
and their nuclei are larger with open chromatin or smaller and even (size, seen at 20x). Both run from -1 to +1 and are
the same for all slides of a patient. In a third of the patients both follow the class, in a third only the arrangement
does, in a third only the size; the other is then drawn without regard to the class, so that neither alone can be right
about everyone. Each magnification shows something of both, though: a cohort that needs two scales is `planted.py`'s.
Both classes have the same share of nuclear area, cytoplasm and white space, and stain varies by site and patient, so
colour tells next to nothing. How strong the signal is was chosen, on one seed, so that methods can learn it: the cohort
proves that a study runs, and nothing about any method.

The pictures are painted by `histology.py`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from dmsmil.cohorts.made.painted import SITES, check_size, make_slides

LABELS = ("ductal-like", "lobular-like")


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
            rows.append(
                dict(
                    slide_id=slide_id,
                    patient_id=f"{site}{patient:03d}",
                    site=site,
                    label=LABELS[label],
                    path=f"slides/{slide_id}.svs",
                    patient=patient,
                    number=number,
                    arrangement=arrangement,
                    size=size,
                )
            )
    return pd.DataFrame(rows)


def make_demo(
    folder, patients: int = 40, seed: int = 0, side: int = 4608, workers: int = 0, scheduler: str = ""
) -> pd.DataFrame:
    """Make the demo cohort in `folder`; what is there already and was made with the same settings is kept.

    It has the files of `make_slides`, and a slide depends on the seed and on its own place in the cohort.

    Returns the table of cohort.csv: slide_id, patient_id, site, label, path (relative to `folder`).
    Raises InputError for fewer than 4 patients or a side that is below 1024 or no multiple of 64.
    """
    check_size("demo", patients, side)
    return make_slides(folder, plan_cohort(patients, seed), seed, side, workers=workers, scheduler=scheduler)
