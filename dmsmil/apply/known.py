"""Which slides a study was trained on, and which of its models have seen a slide: by its id, its patient, its content.

Ids are kept as hashes, so that a model that travels names nobody. (Who has a list of ids can hash them too.)
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from dmsmil.apply.words import MARKS
from dmsmil.cohorts.folds import fold_count
from dmsmil.cohorts.ids import alike, bare_name
from dmsmil.features.bags import Bags
from dmsmil.jobs.files import content_hash, fingerprint
from dmsmil.slides.store import Store


def mark(what: str, name: str) -> str:
    """The hash of the id of a slide or patient; "" of none. Case, spaces and the file's suffix do not count."""
    return fingerprint([what, alike(bare_name(name))], 32) if name else ""


def content(store: Store, slide_id: str) -> str:
    """A hash of what the first scale's tiles show: where they lie, their density and colour. It is the same for a copy
    under another name, of which no byte need be read. Where features were made elsewhere it is that of the features."""
    tiles = store.read_tiles(slide_id)
    if np.isnan(tiles.density).any():
        return store.features_made_by(slide_id).hashes[0]["features"]
    return content_hash(
        np.ascontiguousarray(tiles.coords[store.scales[0]]),
        np.ascontiguousarray(tiles.density),
        np.ascontiguousarray(tiles.colour.astype(float).round(4)),
    )


def trained_on(bags: Bags, folds: pd.DataFrame) -> pd.DataFrame:
    """One row a slide of a study: columns slide, patient, content (hashes, "" where not known), and fold_0, ...:
    whether the models of that fold trained on it, or were selected by it."""
    there = set(bags.slide_ids)
    table = pd.DataFrame(
        {
            "slide": [mark("slide", name) for name in folds.slide_id],
            "patient": [mark("patient", name) for name in folds.patient_id],
            "content": [content(bags.store, name) if name in there else "" for name in folds.slide_id],
        }
    )
    for fold in range(fold_count(folds)):
        table[f"fold_{fold}"] = folds[f"fold_{fold}"].isin(["train", "val"]).to_numpy()
    return table


def recognise(trained: pd.DataFrame, slides: pd.DataFrame, store: Store) -> pd.DataFrame:
    """One row a slide, by slide_id: known, by what the study knows it ("slide, patient", ... or ""), seen, the folds
    whose models have seen it, and copy_of, the first of these slides that shows the same ("" for that one). A patient
    of whom the study knows one slide, under whatever name, is known by all. trained: `trained_on`; slides: with
    features in `store`."""
    rows, folds = {}, [name for name in trained if name.startswith("fold_")]
    first: dict[str, str] = {}
    for row in slides.itertuples():
        own = {
            "slide": mark("slide", row.slide_id),
            "patient": mark("patient", row.patient_id),
            "content": content(store, row.slide_id),
        }
        same = {what: (trained[what] == own[what]).to_numpy() for what in MARKS if own[what]}
        mine = trained[np.any(list(same.values()), 0)]
        rows[row.slide_id] = {
            "known": ", ".join(what for what, hits in same.items() if hits.any()),
            "seen": [int(name[5:]) for name in folds if mine[name].any()],
            "copy_of": first.get(own["content"], ""),
        }
        first.setdefault(own["content"], row.slide_id)
    patients: dict[str, set[str]] = {}
    for row in slides.itertuples():
        patients.setdefault(mark("patient", row.patient_id) or row.slide_id, set()).add(row.slide_id)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["known", "seen", "copy_of"])
    for names in map(list, patients.values()):
        if table.known[names].any():
            seen = sorted(set().union(*table.seen[names]))
            for name in names:
                table.at[name, "known"], table.at[name, "seen"] = table.known[name] or "patient", seen
    return table
