"""Is a slide like those that a study learned from? Its mean features, and its colours, against theirs.

A slide's distance is its local outlier factor (Breunig et al. 2000): how many times as far it lies from the nearest
slides of the study as these lie from theirs. The border is where the study's own slides lie when they are left out in
turn, patients whole: farther than all but one of a hundred of them is unlike.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from dmsmil.features.bags import Bags
from dmsmil.models.base import masked_mean

NEIGHBOURS, TURNS = 10, 10  # slides that are compared with; turns in which all are left out, at most
LEVEL = 0.99
WHAT = ("features", "colours")


def slide_vectors(bags: Bags) -> dict[str, np.ndarray]:
    """features (N, S C): the mean of each slide's tiles, scale beside scale; colours (N, 6), where they are known."""
    features = np.concatenate(
        [masked_mean(bags.x[row], bags.mask[row]).reshape(1, -1).numpy() for row in range(len(bags))]
    )  # slide by slide: they may be memory-mapped
    known = bags.colour is not None and not bags.colour.isnan().any()
    return {"features": features, **({"colours": np.asarray(bags.colour)} if known else {})}


def left_out(vectors: dict[str, np.ndarray], patients) -> dict[str, np.ndarray]:
    """(N,) distance of each slide of a study from the others, while its patient's slides are left out."""
    turns = GroupKFold(min(TURNS, len(set(patients))))
    found = {}
    for what, values in vectors.items():
        found[what] = np.zeros(len(values))
        for rest, out in turns.split(values, groups=list(patients)):
            found[what][out] = _distance(_fit(values[rest]), values[out])
    return found


def border(distances: np.ndarray) -> float:
    """The distance beyond which a slide is unlike the study's: of `left_out` all but one in a hundred are within."""
    return float(np.quantile(distances, LEVEL, method="higher"))


def in_borders(own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`left_out` as multiples of the border."""
    return {what: values / border(values) for what, values in own.items()}


def likeness(vectors: dict[str, np.ndarray], own: dict[str, np.ndarray], bags: Bags) -> pd.DataFrame:
    """One row a slide of `bags`: distance_features, distance_colours, as multiples of the border, and unlike: in what
    it is beyond ("features, colours" or ""). vectors: of the study's slides; own: their `left_out`."""
    new = slide_vectors(bags)
    table = pd.DataFrame(
        {
            f"distance_{what}": _distance(_fit(vectors[what]), new[what]) / border(own[what])
            for what in WHAT
            if what in vectors and what in new
        },
        index=bags.slide_ids,
    )
    beyond = [
        [name.removeprefix("distance_") for name, value in row.items() if value > 1] for row in table.to_dict("records")
    ]
    return table.assign(unlike=[", ".join(names) for names in beyond])


def _fit(values: np.ndarray) -> Pipeline:
    """The detector, after each number is brought to the spread that it has among the slides."""
    neighbours = max(1, min(NEIGHBOURS, len(values) // 3))
    return make_pipeline(StandardScaler(), LocalOutlierFactor(n_neighbors=neighbours, novelty=True)).fit(values)


def _distance(detector: Pipeline, values: np.ndarray) -> np.ndarray:
    return -detector.score_samples(values)
