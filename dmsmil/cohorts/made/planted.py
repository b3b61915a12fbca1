"""The planted cohort: painted slides whose class neither magnification can tell alone, in a share of the tissue.

The class is a conjunction. A "conjoined" slide has, in its signal region, epithelium in islands (arrangement +1, seen
at 10x) and nuclei with open, granular chromatin (size +1, seen at 20x). A "disjoined" one lacks exactly one of the two:
half of these patients have pockets of stroma instead of islands, half have smooth nuclei. Whoever sees one of the two
perfectly, and of the other nothing, reaches an AUC of 0.75; who sees both can be right about everyone. `islands.py` and
`brushes.chromatin_to_stamp` say why one magnification sees little of the other's part.

`rate` is the share of the tissue that is signal region. What lies outside of it (fat, benign glands, stroma,
lymphocytes) is alike in both classes, and the same patient has the same tissue, stain and cells at every rate, but for
what the region displaces. Stain varies little, as if it had been normalised, and there is as much fat in every slide:
the demo's variation of both hides a signal of 15 % from every method that was tried. Density, radius and ink of the
nuclei and the share of epithelium vary by patient, without regard to the class; in them the little that leaks from one
magnification to the other drowns.

The strengths were chosen on seed 101, 120 patients, rate .15, by the probe of 02 (`features/probes.py`) on the means of
the signal's tiles, ten partitions: AUC .738 at 10x, .718 at 20x, .923 of both (wanted: each below .75, both above .85).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from dmsmil.cohorts.made.histology import Recipe
from dmsmil.cohorts.made.painted import SITES, check_size, make_slides
from dmsmil.jobs.files import InputError

LABELS = ("conjoined", "disjoined")
RECIPE = Recipe(
    islands=True,
    radius_step=0.0,
    open_step=0.3,
    radius_spread=0.08,
    dense_spread=0.15,
    ink_spread=0.08,
    stain_spread=0.1,
    fat=(0.17, 0.17),
)


def plan_planted(patients: int = 160, rate: float = 0.15, seed: int = 0) -> pd.DataFrame:
    """The cohort before any slide is painted: one row a slide, one slide a patient, as `demo.plan_cohort`.

    Patients come in pairs, one of each class; from pair to pair the disjoined one lacks the other part. Site is drawn
    without regard to both. (If every site had as many of each class, a fold that tests more of one would train on fewer
    of it, and a rule that knows the site alone would be right less often than by chance.)
    The rate stands in every row (column rate), and decides no other column.
    """
    rows = []
    for patient in range(patients):
        pair, label = divmod(patient, 2)
        rng = np.random.default_rng([seed, 1, patient])
        sign = np.array([1.0, 1.0])
        sign[pair % 2] -= 2.0 * label
        arrangement, size = sign * rng.uniform(0.85, 1.0, 2)
        site = SITES[rng.integers(len(SITES))]
        slide_id = f"planted-{site}{patient:03d}"
        rows.append(
            dict(
                slide_id=slide_id,
                patient_id=f"{site}{patient:03d}",
                site=site,
                label=LABELS[label],
                path=f"slides/{slide_id}.svs",
                patient=patient,
                number=0,
                arrangement=arrangement,
                size=size,
                rate=rate,
            )
        )
    return pd.DataFrame(rows)


def make_planted(
    folder,
    patients: int = 160,
    rate: float = 0.15,
    seed: int = 0,
    side: int = 4608,
    workers: int = 0,
    scheduler: str = "",
) -> pd.DataFrame:
    """Make the planted cohort in `folder`; what is there already and was made with the same settings is kept.

    It has the files of `painted.make_slides`, and a slide depends on seed and rate and on its own place in the cohort.

    Returns the table of cohort.csv: slide_id, patient_id, site, label, path (relative to `folder`).
    Raises InputError as `painted.check_size`, and for a rate that is not above 0 and below 0.8.
    """
    check_size("planted", patients, side)
    if not 0 < rate < 0.8:
        raise InputError(f"witness_rate is {rate}: a share of the tissue above 0 and below 0.8 is needed, such as 0.15")
    return make_slides(folder, plan_planted(patients, rate, seed), seed, side, RECIPE, workers, scheduler)
