"""What a number is worth: rules that know nothing of tissue, on the same folds as the methods.

A method that does not beat the first has learned nothing, the second stain, the third who prepared the slide.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from dmsmil.cohorts.folds import fold_count
from dmsmil.features.bags import Bags
from dmsmil.jobs.files import InputError
from dmsmil.training.metrics import predictions_table

MAJORITY, COLOUR, SITE = "always the majority", "six colour numbers", "the site alone"
CHEAP = (COLOUR, SITE, MAJORITY)  # as rows of a table


def baseline_predictions(bags: Bags, folds: pd.DataFrame, cohort: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The predictions of each baseline that this cohort allows, by name: the site alone needs two sites or more, colour
    the tiles' colours, which features made elsewhere do not tell.

    Raises InputError where bags and folds disagree about a slide: a rule and the method beside it would be asked
    different questions.
    """
    _agree(bags, folds)
    folds = folds[folds.slide_id.isin(bags.slide_ids)]  # a slide that failed is asked of nobody
    found = {} if bags.colour is None or bags.colour.isnan().any() else {COLOUR: colour_predictions(bags, folds)}
    if cohort.site[cohort.site != ""].nunique() > 1:
        found[SITE] = site_predictions(folds, cohort)
    return {**found, MAJORITY: majority_predictions(folds)}


def _agree(bags: Bags, folds: pd.DataFrame) -> None:
    """InputError when a slide has another label or patient in the folds table than in the bags."""
    known = folds.set_index("slide_id")
    for slide, patient, label in zip(bags.slide_ids, bags.patient_ids, bags.labels.tolist()):
        if slide in known.index and tuple(known.loc[slide, ["patient_id", "label"]]) != (patient, bags.classes[label]):
            raise InputError(
                f"slide {slide} has another label or patient in folds.csv than in cohort.csv: run 00_cohort again"
            )


def colour_predictions(bags: Bags, folds: pd.DataFrame) -> pd.DataFrame:
    """Logistic regression on six colour numbers: mean and deviation of R, G, B over a slide's tiles. No tuning."""
    names, parts = np.asarray(bags.classes)[bags.labels], []
    here = folds.set_index("slide_id").reindex(bags.slide_ids)
    for fold in asked(here):
        test = (here[f"fold_{fold}"] == "test").to_numpy()
        model = fit_colour(bags, folds, fold)
        share = np.zeros((test.sum(), len(bags.classes)))  # 0 of a class that no slide of the training part has
        share[:, [bags.classes.index(name) for name in model.classes_]] = model.predict_proba(
            np.asarray(bags.colour)[test]
        )
        table = predictions_table(
            np.asarray(bags.slide_ids)[test], np.asarray(bags.patient_ids)[test], names[test], share, bags.classes
        )
        parts.append(table.assign(fold=fold, seed=0))
    return pd.concat(parts, ignore_index=True)


def fit_colour(bags: Bags, folds: pd.DataFrame, fold: int) -> Pipeline:
    """The colour rule of a fold, fitted on the slides that its models may learn from."""
    rest = _parts(folds.set_index("slide_id").reindex(bags.slide_ids), fold)[1].to_numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return model.fit(np.asarray(bags.colour)[rest], np.asarray(bags.classes)[bags.labels][rest])


def class_shares(folds: pd.DataFrame, fold: int) -> pd.Series:
    """class -> its share of the slides that the models of a fold may learn from."""
    rest = folds[_parts(folds, fold)[1]]
    return rest.label.value_counts(normalize=True).reindex(sorted(folds.label.unique()), fill_value=0.0)


def site_predictions(folds: pd.DataFrame, cohort: pd.DataFrame) -> pd.DataFrame:
    """The class shares of the site's training patients, one pseudo-patient of the prior added to each site. Who has
    slides of two sites is a patient of both.

    A site that was not trained on, or is not named, gets the prior: on site-preserved folds this rule is blind.
    """
    classes, parts = sorted(folds.label.unique()), []
    table = folds.assign(site=cohort.set_index("slide_id").site.reindex(folds.slide_id).fillna("").to_numpy())
    for fold in asked(folds):
        test, rest = (table[where] for where in _parts(folds, fold))
        prior = rest.drop_duplicates("patient_id").label.value_counts(normalize=True).reindex(classes, fill_value=0.0)
        seen = rest[rest.site != ""].drop_duplicates(["patient_id", "site"])
        counts = seen.groupby(["site", "label"]).size().unstack(fill_value=0)
        share = counts.reindex(columns=classes, fill_value=0).add(prior)
        share = share.div(share.sum(axis=1), axis=0).reindex(test.site).fillna(prior).to_numpy()
        said = predictions_table(test.slide_id, test.patient_id, test.label, share, classes)
        parts.append(said.assign(fold=fold, seed=0))
    return pd.concat(parts, ignore_index=True)


def majority_predictions(folds: pd.DataFrame) -> pd.DataFrame:
    """The always-majority rule: each fold's tested slides get the commonest class of its training slides."""
    classes, parts = sorted(folds.label.unique()), []
    for fold in asked(folds):
        test, prior = folds[folds[f"fold_{fold}"] == "test"], class_shares(folds, fold).to_numpy()
        table = predictions_table(test.slide_id, test.patient_id, test.label, np.tile(prior, (len(test), 1)), classes)
        parts.append(table.assign(fold=fold, seed=0))
    return pd.concat(parts, ignore_index=True)


def asked(folds: pd.DataFrame) -> list[int]:
    """The folds that test a slide and can learn from two classes, of the rows of a folds table whose slides did not
    fail: of the others a method has no run either (`fit`)."""
    parts = {fold: _parts(folds, fold) for fold in range(fold_count(folds))}
    return [fold for fold, (test, rest) in parts.items() if test.any() and folds.label[rest].nunique() > 1]


def _parts(folds: pd.DataFrame, fold: int) -> tuple[pd.Series, pd.Series]:
    """Which rows fold `fold` tests, and which it may learn from."""
    column = folds[f"fold_{fold}"]
    return column == "test", (column == "train") | (column == "val")
