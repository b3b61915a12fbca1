"""The cohort of three classes: painted slides whose tumours grow in three arrangements.

"island-like" slides have epithelium in islands (arrangement +1), "pocket-like" ones stroma in pockets of epithelium
(-1), and in "maze-like" ones neither side of the border is round (0): epithelium and stroma wind through each other.
`islands.py` says what the three share: as much epithelium and as many cells. Size, the chromatin of the nuclei, is
drawn without regard to the class, and so is the stain. Like the demo, it proves that a study runs, and nothing of any
method.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from dmsmil.cohorts.made.histology import Recipe
from dmsmil.cohorts.made.painted import SITES, check_size, make_slides

LABELS = ("island-like", "maze-like", "pocket-like")
ARRANGEMENTS = (1.0, 0.0, -1.0)  # of each label
RECIPE = Recipe(islands=True, radius_step=0.0, open_step=0.3)


def plan_three(patients: int = 12, seed: int = 0) -> pd.DataFrame:
    """The cohort before any slide is painted: one row a slide, one slide a patient, as `demo.plan_cohort`.

    Patients come in threes, one of each class, of one site.
    """
    rows = []
    for patient in range(patients):
        trio, label = divmod(patient, 3)
        size = np.random.default_rng([seed, 1, patient]).uniform(-1.0, 1.0)
        site = SITES[trio % len(SITES)]
        slide_id = f"three-{site}{patient:03d}"
        rows.append(
            dict(
                slide_id=slide_id,
                patient_id=f"{site}{patient:03d}",
                site=site,
                label=LABELS[label],
                path=f"slides/{slide_id}.svs",
                patient=patient,
                number=0,
                arrangement=ARRANGEMENTS[label],
                size=size,
            )
        )
    return pd.DataFrame(rows)


def make_three(
    folder, patients: int = 12, seed: int = 0, side: int = 4608, workers: int = 0, scheduler: str = ""
) -> pd.DataFrame:
    """Make the cohort of three classes in `folder`; what is there already and was made with the same settings is kept.

    It has the files of `painted.make_slides`, and a slide depends on the seed and on its own place in the cohort.

    Returns the table of cohort.csv: slide_id, patient_id, site, label, path (relative to `folder`).
    Raises InputError as `painted.check_size`.
    """
    check_size("three", patients, side, len(LABELS))
    return make_slides(folder, plan_three(patients, seed), seed, side, RECIPE, workers, scheduler)
