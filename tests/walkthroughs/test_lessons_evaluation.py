"""Walkthrough 6: simulated cohorts are what they say, closed forms hold, the answers print what they say."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from dmsmil.analysis.paper import printed_results
from dmsmil.cohorts.folds import fold_count, make_folds
from dmsmil.training.metrics import score
from drawings import evaluation
from tests.walkthroughs.answers import check_answers

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks/walkthroughs/6_honest_evaluation.ipynb"


def test_a_cohort_has_the_shares_and_looks_it_is_asked_for():
    x, cohort = evaluation.draw_cohort(160, 3, 16, tilt=0.4, channels=400)
    assert x.shape == (480, 400) and cohort.slide_id.is_unique and list(cohort.slide_id) == sorted(cohort.slide_id)
    patients = cohort.groupby("patient_id").agg({"label": ["first", "nunique"], "site": "nunique"})
    assert len(patients) == 160 and patients.iloc[:, 1:].eq(1).all(axis=None)
    shares = (cohort.label == "b").groupby(cohort.site).mean()
    np.testing.assert_allclose(shares, [0.1, 0.9] * 8)
    same, other = (np.mean(d**2) / 400 for d in evaluation.distances(x, cohort.patient_id.to_numpy()))
    assert same == pytest.approx(2, rel=0.05) and other == pytest.approx(2 + 2 * 0.49 + 2 * 0.25 * 15 / 16, rel=0.1)


def test_only_the_signal_tells_the_classes_apart():
    for signal in (0.0, 3.0):
        x, cohort = evaluation.draw_cohort(600, 1, signal=signal, channels=3)
        gap = np.diff([x[cohort.label == name].mean(0) for name in "ab"], axis=0)[0]
        np.testing.assert_allclose(gap, [signal, 0, 0], atol=0.35)


def test_folds_as_a_split_test_what_they_name():
    _, cohort = evaluation.draw_cohort(30, 2, channels=2)
    folds = make_folds(cohort, 3)
    for fold, (train, test) in enumerate(evaluation.as_split(folds).split()):
        assert set(folds.slide_id.iloc[test]) == set(folds.slide_id[folds[f"fold_{fold}"] == "test"])
        assert not set(folds.patient_id.iloc[test]) & set(folds.patient_id.iloc[train])
    assert fold == fold_count(folds) - 1


@pytest.mark.parametrize("auc, alike", [(0.8, 0.8), (0.6, 0.0)])
def test_predictions_have_the_auc_and_the_likeness_they_are_drawn_with(auc, alike):
    table = evaluation.draw_predictions(4000, 2, auc, alike)
    assert score(table)["AUC"] == pytest.approx(auc, abs=0.02)
    logit = np.log(table.prob_b / table.prob_a)
    values = (logit - logit.groupby(table.label).transform("mean")).to_numpy().reshape(-1, 2)
    assert np.corrcoef(values.T)[0, 1] == pytest.approx(alike, abs=0.03)


def test_the_constant_rule_scores_its_closed_forms():
    truth = np.repeat([1, 0], [426, 120])
    said = {name: value[0] for name, value in evaluation.constant_scores(np.array([426 / 546])).items()}
    one = np.ones_like(truth)
    assert said["accuracy"] == pytest.approx((truth == one).mean())
    assert said["F1, positive = commoner class"] == pytest.approx(f1_score(truth, one))
    assert said["F1, positive = rarer class"] == f1_score(truth, one, pos_label=0, zero_division=0)
    assert said["AUC, and balanced accuracy"] == roc_auc_score(truth, one) == balanced_accuracy_score(truth, one)


def test_aucs_are_scikit_learns_ties_too():
    scores = np.random.default_rng(0).integers(0, 6, (3, 4, 30)).astype(float)
    truth = np.arange(30) % 3 == 0
    wanted = [[roc_auc_score(truth, row) for row in part] for part in scores]
    np.testing.assert_allclose(evaluation.aucs(scores, truth), wanted)


@pytest.mark.parametrize("tries, slides", [(1, 40), (50, 40), (10, 160)])
def test_the_best_of_chance_is_what_tries_give(tries, slides):
    axis, one, best = evaluation.best_of_chance(tries, slides)
    noise = np.random.default_rng(0).normal(size=(300, tries, slides))
    drawn = evaluation.aucs(noise, np.arange(slides) % 2 == 1).max(1)
    assert (axis * best).sum() / best.sum() == pytest.approx(drawn.mean(), abs=0.015)
    single = evaluation.aucs(noise[:, 0], np.arange(slides) % 2 == 1)
    deviation = np.sqrt(((axis - 0.5) ** 2 * one).sum() / one.sum())
    assert deviation == pytest.approx(single.std(), rel=0.12)


@pytest.mark.slow
def test_figures_show_the_numbers_and_are_closed():
    before = plt.get_fignums()
    x, cohort = evaluation.draw_cohort(12, 2, 4, channels=3)
    aucs = {"one": np.array([0.5, 0.7]), "two": np.array([0.4, 0.4])}
    rule = {"ACC": 0.78, "F1": 0.877, "AUC": 0.5}
    beside = evaluation.beside_rule(printed_results("brca"), rule, "always IDC")
    assert [t.get_text().strip() for t in beside.axes[1].texts].count("not legible") == 1
    leak = evaluation.same_patient(x, cohort.patient_id.to_numpy(), aucs)
    assert {"0.60", "0.40"} <= {t.get_text() for t in leak.axes[1].texts}
    results = pd.DataFrame([{"signal": s, "slides": 0.8, "sites": 0.5} for s in (0.0, 2.0)])
    sizes = evaluation.studies([20, 80], repeats=4, draws=100).axes[0].texts
    narrow, wide = (float(re.search(r"width ([\d.]+)", t.get_text())[1]) for t in (sizes[1], sizes[0]))
    assert narrow < wide
    for figure in (
        beside,
        leak,
        evaluation.by_site(cohort, results),
        evaluation.interval(20, 1, draws=100),
        evaluation.constant_answer({"BRCA": 0.78}),
        evaluation.best_of(10, 40),
        evaluation.wandering(np.full((2, 5), 0.5), {"last epoch": 0.5, "best on the test fold": 0.7}),
    ):
        assert isinstance(figure, Figure)
    assert plt.get_fignums() == before


@pytest.mark.slow
def test_the_answers_print_what_they_say():
    """The cells that an answer needs, then the answers."""
    cells, names = nbformat.read(NOTEBOOK, 4).cells, {}
    for cell in [c for c in cells if c.cell_type == "code"][:6]:
        exec(cell.source, names)
    check_answers(cells[-1].source, names)
