"""Each baseline finds what it looks at, and nothing else."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from dmsmil.apply.kit import _colour
from dmsmil.cohorts.folds import make_folds
from dmsmil.jobs.files import InputError
from dmsmil.training.baselines import (
    COLOUR,
    MAJORITY,
    SITE,
    baseline_predictions,
    colour_predictions,
    majority_predictions,
    site_predictions,
)
from dmsmil.training.metrics import score
from tests.training.test_fit import folds_of, make_bags


def cohort_of(bags, sites=("",)):
    """The cohort table of bags; patient i comes from site i mod len(sites)."""
    return pd.DataFrame(
        [
            dict(slide_id=s, patient_id=p, label=bags.classes[int(label)], site=sites[i % len(sites)])
            for i, (s, p, label) in enumerate(zip(bags.slide_ids, bags.patient_ids, bags.labels))
        ]
    )


def sites_and_labels(n=60, seed=0):
    """Three sites that send class b with probability 0.1, 0.5 and 0.9."""
    rng = np.random.default_rng(seed)
    site = np.arange(n) % 3
    label = np.where(rng.uniform(size=n) < np.array([0.1, 0.5, 0.9])[site], "b", "a")
    return pd.DataFrame(
        dict(
            slide_id=[f"s{i:03d}" for i in range(n)],
            patient_id=[f"p{i:03d}" for i in range(n)],
            label=label,
            site=np.array(["X", "Y", "Z"])[site],
        )
    )


def test_majority_rule_learns_from_training_patients_alone():
    frame = pd.DataFrame([dict(slide_id=f"s{i}", patient_id=f"p{i}", label="a" if i % 3 else "b") for i in range(30)])
    t = majority_predictions(make_folds(frame, 5))
    assert set(t.pred) == {"a"} and len(t) == 30 and score(t)["AUC"] == pytest.approx(0.5, abs=0.1)


def test_colour_baseline_finds_colour_and_only_colour():
    bags = make_bags(40)
    assert score(colour_predictions(bags, folds_of(bags)))["AUC"] < 0.8
    bags.colour[:, 0] += 4 * bags.labels
    assert score(colour_predictions(bags, folds_of(bags)))["AUC"] > 0.95


def test_site_baseline_finds_the_site_and_only_the_site():
    cohort = sites_and_labels()
    folds = make_folds(cohort, 5)
    assert score(site_predictions(folds, cohort))["AUC"] > 0.75
    shuffled = cohort.assign(site=np.random.default_rng(1).permutation(cohort.site))
    assert abs(score(site_predictions(folds, shuffled))["AUC"] - 0.5) < 0.2


def test_site_baseline_is_the_smoothed_share_of_training_patients():
    cohort = sites_and_labels()
    folds = make_folds(cohort, 5)
    said = site_predictions(folds, cohort).set_index("slide_id")
    slide = folds[folds.fold_2 == "test"].iloc[0].slide_id
    rest = cohort[(folds.fold_2 != "test").to_numpy()]
    here = rest[rest.site == cohort.set_index("slide_id").site[slide]]
    expected = ((here.label == "b").sum() + (rest.label == "b").mean()) / (len(here) + 1)
    assert said.prob_b[slide] == pytest.approx(expected)


def test_a_patient_of_two_sites_counts_at_each_and_many_slides_count_once():
    cohort = sites_and_labels()
    folds = make_folds(cohort, 5)
    slide = folds[folds.fold_2 == "test"].iloc[0].slide_id
    site = cohort.set_index("slide_id").site
    moved = folds[(folds.fold_2 != "test") & (site.reindex(folds.slide_id) != site[slide]).to_numpy()].iloc[0]
    copies = [moved.to_frame().T.assign(slide_id=f"z{i}") for i in range(3)]  # further slides of one patient, from here
    more = pd.concat([folds, *copies], ignore_index=True)
    there = pd.concat(
        [cohort, *(copy[["slide_id", "patient_id", "label"]].assign(site=site[slide]) for copy in copies)]
    )
    said = site_predictions(more, there).query("fold == 2").set_index("slide_id")
    rest = folds[folds.fold_2 != "test"]
    here = rest[(site.reindex(rest.slide_id) == site[slide]).to_numpy()].label.to_list() + [moved.label]
    expected = (here.count("b") + (rest.label == "b").mean()) / (len(here) + 1)
    assert said.prob_b[slide] == pytest.approx(expected)


def test_an_unseen_or_unnamed_site_gets_the_prior():
    cohort = sites_and_labels()
    folds = make_folds(cohort, 5)
    lonely = cohort.assign(site=[f"only{i}" if i % 2 else "" for i in range(len(cohort))])
    pd.testing.assert_series_equal(site_predictions(folds, lonely).prob_b, majority_predictions(folds).prob_b)


def test_a_rule_and_a_method_are_never_asked_about_different_labels():
    """cohort.csv was edited, folds.csv was not."""
    bags = make_bags(24)
    folds = folds_of(bags)
    with pytest.raises(InputError, match="slide slide000 has another label or patient.*run 00_cohort again"):
        baseline_predictions(replace(bags, labels=1 - bags.labels), folds, cohort_of(bags))
    with pytest.raises(InputError, match="slide slide000 has another label or patient"):
        baseline_predictions(replace(bags, patient_ids=["x", *bags.patient_ids[1:]]), folds, cohort_of(bags))


def test_a_fold_that_lost_a_class_asks_nothing_and_a_class_that_it_lost_is_never_answered():
    """As of methods: a fold that can learn one class alone has no run."""
    bags = make_bags(24)
    folds, cohort = folds_of(bags), cohort_of(bags, ("x", "y"))
    names = np.asarray(bags.classes)[bags.labels]
    gone = (folds.fold_0 != "test").to_numpy() & (names == bags.classes[1])
    here = bags.subset([name for name, lost in zip(bags.slide_ids, gone) if not lost])
    for table in baseline_predictions(here, folds, cohort).values():
        assert set(table.fold) == {1} and not table.isna().any(axis=None)
    three = replace(bags, classes=["a", "b", "c"], labels=torch.arange(24) % 3)
    folds["label"] = np.asarray(three.classes)[three.labels]
    gone = (folds.fold_0 != "test").to_numpy() & (folds.label == "b").to_numpy()
    here = three.subset([name for name, lost in zip(bags.slide_ids, gone) if not lost])
    table = colour_predictions(here, folds[~gone])
    assert list(table.filter(like="prob_")) == ["prob_a", "prob_b", "prob_c"]
    assert (table.prob_b[table.fold == 0] == 0).all() and (table.prob_b[table.fold == 1] > 0).all()
    assert np.allclose(table.filter(like="prob_").sum(axis=1), 1)
    kept = _colour(here, folds[~gone], 0)
    rows = table[table.fold == 0].set_index("slide_id").filter(like="prob_")
    said = pd.DataFrame(kept.ask(here)[0], here.slide_ids).loc[rows.index]
    np.testing.assert_allclose(said, rows, atol=1e-6)


def test_a_site_baseline_stands_only_where_sites_are_known():
    bags = make_bags(24)
    folds = folds_of(bags)
    assert list(baseline_predictions(bags, folds, cohort_of(bags))) == [COLOUR, MAJORITY]
    assert list(baseline_predictions(bags, folds, cohort_of(bags, ("A",)))) == [COLOUR, MAJORITY]
    assert list(baseline_predictions(bags, folds, cohort_of(bags, ("A", "B")))) == [COLOUR, SITE, MAJORITY]


def test_rules_are_asked_about_the_slides_that_methods_are_asked_about():
    """A slide that failed is in the folds, and in no bag; where it was all that a fold tests, that fold is left out."""
    bags = make_bags()
    folds, cohort = folds_of(bags), cohort_of(bags, ("x", "y"))
    alone = bags.slide_ids[0]
    folds["fold_0"] = np.where(folds.slide_id == alone, "test", "train")
    lost = [alone, bags.slide_ids[5]]
    here = bags.subset([name for name in bags.slide_ids if name not in lost])
    found = baseline_predictions(here, folds, cohort)
    assert set(found) == {COLOUR, SITE, MAJORITY}
    expected = {(1, name) for name in folds.slide_id[folds.fold_1 == "test"] if name not in lost}
    for table in found.values():
        assert set(zip(table.fold, table.slide_id)) == expected
