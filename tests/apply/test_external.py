"""External evaluation: only slides that the study does not know count, beside its own numbers and cheap rules."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from dmsmil import figures
from dmsmil.apply.external import _one_model, external_predictions, external_sentences, external_shown, external_table
from dmsmil.training.metrics import bootstrap, decision_curve, score
from tests.apply.conftest import NEW

pytestmark = [pytest.mark.xdist_group("apply"), pytest.mark.slow]


@pytest.fixture(scope="module")
def labelled(made):
    """All painted slides with their labels: three are new to the study."""
    return made.apply(made.place / "cohort/cohort.csv")[0]


def test_only_slides_that_the_study_does_not_know_count(made, labelled):
    each, means = external_predictions(labelled)
    assert sorted(means["DMSMIL"].slide_id) == NEW and len(each["DMSMIL"]) == 2 * len(NEW)
    table = external_table(made.kit, labelled)
    assert list(table.name.unique()) == list(made.kit.panels)
    assert list(table["where"][:3]) == ["study", "one", "mean"]
    here, study = table[table["where"] != "study"], table[table["where"] == "study"]
    assert (here.slides == 3).all() and (here.patients == 2).all() and (study.slides == 7).all()


def test_the_numbers_are_those_of_scikit_learn(made, labelled):
    table = external_table(made.kit, labelled).set_index(["name", "where"])
    rows = labelled.table.set_index("slide_id").loc[NEW]
    truth, value = rows.label == "lobular-like", rows["prob_lobular-like"]
    assert table.loc[("DMSMIL", "mean"), "AUC"] == pytest.approx(roc_auc_score(truth, value))
    assert table.loc[("DMSMIL", "mean"), "ACC"] == pytest.approx(accuracy_score(rows.label, rows.pred))
    each = labelled.each["DMSMIL"]
    each = each[each.slide_id.isin(NEW)]
    one = [roc_auc_score(part.label == "lobular-like", part["prob_lobular-like"]) for _, part in each.groupby("fold")]
    assert table.loc[("DMSMIL", "one"), "AUC"] == pytest.approx(np.mean(one))


def test_the_interval_of_one_model_is_of_the_mean_over_models(made, labelled):
    """Each model is asked about the same drawn patients; pooled predictions would have an F1 of their own."""
    each = labelled.each["DMSMIL"]
    each = each[each.slide_id.isin(NEW)]
    fixed = each.assign(pred=np.where(each.fold == 0, "ductal-like", "lobular-like"))
    low, high = _one_model(fixed, "lobular-like")
    one = np.mean([score(part, "lobular-like")["F1"] for _, part in fixed.groupby("fold")])
    assert low["F1"] <= one <= high["F1"] and one < bootstrap(fixed, "lobular-like")[0]["F1"] + 1e-9
    alone, same = _one_model(each[each.fold == 0], "lobular-like"), bootstrap(each[each.fold == 0], "lobular-like")
    for metric in ("ACC", "F1", "AUC"):
        assert [part[metric] for part in alone] == pytest.approx([part[metric] for part in same])


def test_beside_them_stand_the_out_of_fold_values_of_the_study(made, labelled):
    table = external_table(made.kit, labelled)
    study = table[table["where"] == "study"].set_index("name")
    for _, row in made.kit.results.iterrows():
        for metric in ("ACC", "AUC"):
            for part, name in (("", "_mean"), ("_low", "_low"), ("_high", "_high")):
                assert study.loc[row["name"], f"{metric}{part}"] == pytest.approx(row[f"{metric}{name}"], nan_ok=True)
    assert study.ECE.notna().tolist() == [True, False, False, False]


def test_of_slides_that_show_the_same_one_counts_and_none_where_their_labels_differ(made, labelled):
    table = labelled.table.assign(copy_of=lambda t: t.copy_of.mask(t.slide_id == NEW[1], NEW[0]))
    label = table.set_index("slide_id").label
    assert label[NEW[0]] == label[NEW[1]] and (labelled.table.copy_of == "").all()
    means = external_predictions(replace(labelled, table=table))[1]["DMSMIL"]
    assert sorted(means.slide_id) == [NEW[0], NEW[2]]
    unlabelled = table.assign(label=table.label.mask(table.slide_id == NEW[0], ""))
    means = external_predictions(replace(labelled, table=unlabelled))[1]["DMSMIL"]
    assert sorted(means.slide_id) == NEW[1:], "the one that has a label"
    torn = table.assign(label=table.label.mask(table.slide_id == NEW[0], label[NEW[2]]))
    assert label[NEW[0]] != label[NEW[2]]
    assert list(external_predictions(replace(labelled, table=torn))[1]["DMSMIL"].slide_id) == [NEW[2]]


def test_without_labels_there_is_nothing_to_evaluate(made, whole):
    table = external_table(made.kit, whole[0])
    assert table.empty and "AUC_low" in table
    assert external_sentences(table) == "No slide with a label that the study does not know: nothing to evaluate."
    assert external_shown(table).empty


def test_one_class_has_no_auc_and_says_so(made, labelled):
    keep = labelled.table.slide_id.isin(NEW[:2])
    one = replace(labelled, table=labelled.table[keep].reset_index(drop=True))
    table = external_table(made.kit, one)
    assert table[table["where"] == "mean"].AUC.isna().all() and "AUC and F1 are not defined" in external_sentences(
        table
    )
    shown = external_shown(table)
    assert (shown.AUC[1:3] == "not defined").all() and (shown.F1[1:3] == "not defined").all()
    said = external_sentences(table)
    assert "lower" not in said and "higher" not in said and "above" not in said, "the study's ACC is of both classes"
    assert "share of its slides that are told rightly" in said


def row(where, auc, low, high, name="DMSMIL"):
    numbers = {
        f"{metric}{part}": value
        for metric in ("ACC", "F1", "AUC")
        for part, value in (("", auc), ("_low", low), ("_high", high))
    }
    return {"name": name, "where": where, "slides": 9, "patients": 8, **numbers, "ECE": 0.1}


@pytest.mark.parametrize(
    "here, word, told",
    [
        ((0.70, 0.60, 0.80), "0.200 lower", "does not hold the study's value"),
        ((0.85, 0.70, 0.95), "0.050 lower", "holds the study's value: no change is shown"),
        ((0.95, 0.92, 0.99), "0.050 higher", "does not hold the study's value"),
        ((1.00, 1.00, 1.00), "0.100 higher", "has no width, so nothing follows from it"),
    ],
)
def test_the_drop_is_said_and_whether_it_is_shown(here, word, told):
    table = pd.DataFrame(
        [
            row("study", 0.9, 0.8, 1.0),
            row("one", *here),
            row("mean", *here),
            *(row(where, 0.75, 0.5, 1.0, "Mean pooling") for where in ("study", "one", "mean")),
        ]
    )
    said = external_sentences(table)
    assert f"{word}; the interval here {told}." in said and "9 slides of 8 patients" in said
    assert f"It is {'above' if here[0] > 0.75 else 'not above'} *Mean pooling*" in said


def test_a_decision_curve_by_hand():
    """Four slides: at 0.5 two are acted on, one rightly: 1/4 - 1/4 x 1."""
    table = pd.DataFrame({"label": list("baab"), "prob_a": [0.9, 0.2, 0.6, 0.4], "prob_b": [0.1, 0.8, 0.4, 0.6]})
    curve = decision_curve(table, "b").set_index("threshold")
    curve.index = curve.index.round(2)
    assert curve.benefit[0.5] == pytest.approx(1 / 4 - 1 / 4) and curve["all"][0.5] == pytest.approx(0)
    assert curve.benefit[0.2] == pytest.approx(1 / 4 - 2 / 4 * 0.25)
    assert curve["all"][0.2] == pytest.approx(2 / 4 - 2 / 4 * 0.25)
    perfect = table.assign(prob_b=[1.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(decision_curve(perfect, "b").benefit, 0.5)


def test_the_figures_hold_their_numbers(made, labelled, tmp_path):
    figures.said_of_slides(labelled.table, "lobular-like", tmp_path / "a")
    data = pd.read_csv(tmp_path / "a.csv")
    assert sorted(data.slide_id) == sorted(labelled.table.slide_id)
    assert data["prob_lobular-like"].is_monotonic_increasing
    many = pd.concat([labelled.table.assign(slide_id=labelled.table.slide_id + str(i)) for i in range(8)])
    figure = figures.said_of_slides(many, "lobular-like", tmp_path / "m")
    assert figure.axes[0].get_ylabel() == "80 slides" and not len(figure.axes[0].get_yticks())
    own = {"features": np.array([0.5, 1.0]), "colours": np.array([0.2, 0.9])}
    figures.slide_likeness(labelled.table, own, tmp_path / "b")
    for distance, scale in ((1.5, "linear"), (30.0, "log")):
        shown = figures.slide_likeness(labelled.table.assign(distance_colours=distance), own, tmp_path / "d").axes[0]
        assert shown.get_xscale() == scale and (shown.get_xlim()[0] == 0) == (scale == "linear")
    data = pd.read_csv(tmp_path / "b.csv")
    np.testing.assert_allclose(data.distance[(data.what == "colours") & (data.slides == "own")], [0.2, 0.9])
    assert (data.slides == "new").sum() == 2 * len(labelled.table)
    here = external_predictions(labelled)[1]["DMSMIL"]
    figures.external_curves(made.kit.tested, here, "lobular-like", tmp_path / "c")
    data = pd.read_csv(tmp_path / "c.csv")
    mine = data[(data.curve == "decision") & (data.slides == "these slides")]
    np.testing.assert_allclose(mine.benefit, decision_curve(here, "lobular-like").benefit, atol=1e-6)
