"""Metrics against scikit-learn and against arithmetic done by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from dmsmil.jobs.files import InputError
from dmsmil.training.metrics import (
    METRICS,
    asked_class,
    bootstrap,
    calibration,
    calibration_error,
    called,
    confusion,
    curve_classes,
    draw_metrics,
    mean_interval,
    patient_draws,
    positive_class,
    predicted_times,
    predictions_table,
    roc_points,
    score,
    score_by_fold,
    summarise,
    told_class,
)

CLASSES = ["IDC", "ILC"]


def table(n=60, seed=0, signal=1.0, slides_a_patient=2, classes=CLASSES):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, len(classes), n // slides_a_patient).repeat(slides_a_patient)
    logits = rng.normal(size=(n, len(classes)))
    logits[np.arange(n), label] += signal
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    patients = [f"p{i // slides_a_patient}" for i in range(n)]
    made = predictions_table([f"s{i}" for i in range(n)], patients, np.asarray(classes)[label], p, list(classes))
    return made.assign(fold=np.arange(n) // slides_a_patient % 3, seed=0)


def test_score_agrees_with_scikit_learn_for_the_named_class():
    t = table()
    for name in CLASSES:
        mine = score(t, name)
        assert mine["ACC"] == accuracy_score(t.label, t.pred)
        assert mine["F1"] == pytest.approx(f1_score(t.label == name, t.pred == name))
        assert mine["AUC"] == pytest.approx(roc_auc_score(t.label == name, t[f"prob_{name}"]))


def test_three_classes_are_macro_averaged():
    t = table(classes=("a", "b", "c"))
    mine = score(t)
    assert mine["F1"] == pytest.approx(f1_score(t.label, t.pred, average="macro"))
    assert mine["AUC"] == pytest.approx(roc_auc_score(t.label, t[["prob_a", "prob_b", "prob_c"]], multi_class="ovr"))


def test_three_classes_have_the_intervals_of_what_is_macro_averaged():
    """Every row drawn once is what scikit-learn says of the rows; ties and odd sizes included."""
    t = table(51, slides_a_patient=1, classes=("a", "b", "c")).drop(columns=["fold", "seed"]).round(1)
    drawn = draw_metrics(t, np.ones((1, len(t)))).iloc[0]
    assert drawn.F1 == pytest.approx(f1_score(t.label, t.pred, average="macro"))
    assert drawn.AUC == pytest.approx(np.mean([roc_auc_score(t.label == c, t[f"prob_{c}"]) for c in "abc"]))
    two = t[(t.label != "c") & (t.pred != "c")]  # a class of which there is nothing to say
    for metric, value in draw_metrics(two, np.ones((1, len(two)))).iloc[0].items():
        assert value == pytest.approx(score(two)[metric]), metric


def test_other_names_for_the_classes_permute_the_columns_and_change_no_metric():
    t, names = table(90, classes=("a", "b", "c")), {"a": "z", "b": "m", "c": "k"}
    other = t.assign(label=t.label.map(names), pred=t.pred.map(names))
    other = other.rename(columns={f"prob_{a}": f"prob_{b}" for a, b in names.items()})
    order = [*other.columns[:3], "prob_k", "prob_m", "prob_z", *other.columns[6:]]
    other = other[order]  # classes are sorted, as Bags has them
    said, before = summarise(other, draws=5), summarise(t, draws=5)
    drawn = {name for name in before if name.endswith(("_low", "_high"))}  # of other random numbers
    assert {name: said[name] for name in said.keys() - drawn} == pytest.approx(
        {name: before[name] for name in before.keys() - drawn}
    )
    pd.testing.assert_frame_equal(score_by_fold(other), score_by_fold(t))
    weights = np.random.default_rng(0).integers(0, 3, (20, len(t))).astype(float)
    pd.testing.assert_frame_equal(draw_metrics(other, weights), draw_metrics(t, weights))
    assert calibration_error(other) == pytest.approx(calibration_error(t))
    matrix = confusion(t).rename(index=names, columns=names)
    pd.testing.assert_frame_equal(confusion(other), matrix.loc[["k", "m", "z"], ["k", "m", "z"]])


def test_metrics_of_more_than_two_classes_are_called_what_they_are():
    two, three = summarise(table(), draws=5), summarise(table(classes=("a", "b", "c")), draws=5)
    assert "classes" not in two and three["classes"] == 3
    for rows, names in ((two, ["ACC", "F1", "AUC"]), (three, ["ACC", "macro-F1", "one-vs-rest AUC"])):
        assert [called(metric, pd.DataFrame([rows])) for metric in METRICS] == names
        assert [called(metric, pd.Series(rows)) for metric in METRICS] == names


def test_a_question_with_two_answers_needs_two_classes_or_the_name_of_one():
    three = ["a", "b", "c"]
    assert (asked_class(CLASSES), asked_class(three, "b"), asked_class(three)) == ("ILC", "b", "")
    assert (told_class("IDC", CLASSES, "ILC"), told_class("c", three, "b")) == ("ILC", "c")
    assert curve_classes(CLASSES, "IDC") == ["IDC"] and curve_classes(three, "b") == three


def test_auc_of_one_class_is_nan_not_a_number_made_up():
    t = table()
    assert np.isnan(score(t[t.label == "IDC"])["AUC"])


def test_positive_class_is_named_or_last():
    assert positive_class(CLASSES) == "ILC" and positive_class(CLASSES, "IDC") == "IDC"
    with pytest.raises(InputError, match="positive is 'LUAD'.*IDC, ILC"):
        positive_class(CLASSES, "LUAD")


def test_the_papers_majority_arithmetic():
    """Always IDC on 426 / 120 gives ACC 0.780 and F1 0.877 (PAPER: read the tables beside that)."""
    label = np.array(["IDC"] * 426 + ["ILC"] * 120)
    t = predictions_table(range(546), range(546), label, np.tile([0.78, 0.22], (546, 1)), CLASSES)
    assert score(t, "IDC")["ACC"] == pytest.approx(426 / 546)
    assert score(t, "IDC")["F1"] == pytest.approx(2 * 426 / (2 * 426 + 120))
    assert score(t, "IDC")["AUC"] == 0.5


def test_weighted_draws_equal_repeating_rows():
    t = table(40).assign(fold=0)
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 3, (5, len(t))).astype(float)
    fast = draw_metrics(t, weights, "ILC")
    for w, row in zip(weights, fast.itertuples()):
        repeated = t.loc[t.index.repeat(w.astype(int))]
        slow = score(repeated, "ILC")
        assert (row.ACC, row.F1, row.AUC) == pytest.approx((slow["ACC"], slow["F1"], slow["AUC"]))


def test_auc_of_a_draw_compares_within_a_run_only():
    """Two folds whose models are both perfect, on different scales: pooled AUC would deny it."""
    p = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.6, 0.7, 0.8, 0.9])
    t = pd.concat(
        [
            predictions_table(
                [f"{f}{i}" for i in range(4)],
                [f"p{f}{i}" for i in range(4)],
                np.array(["IDC", "IDC", "ILC", "ILC"]),
                np.stack([1 - v, v], 1),
                CLASSES,
            ).assign(fold=f, seed=0)
            for f, v in enumerate(p)
        ],
        ignore_index=True,
    )
    assert draw_metrics(t, np.ones((1, 8))).AUC[0] == 1.0 and score(t)["AUC"] < 1.0


def test_draws_take_whole_patients_and_keep_the_classes():
    t = table(60)
    counts = patient_draws(t, 50, np.random.default_rng(0))
    for _, rows in t.reset_index().groupby("patient_id"):
        assert (np.ptp(counts[:, rows.index], axis=1) == 0).all()
    assert (counts[:, t.label == "IDC"].sum(1) == (t.label == "IDC").sum()).all()


@pytest.mark.slow
def test_interval_holds_the_estimate_narrows_with_data_and_repeats():
    small, large = table(40, 1), table(400, 1)
    for t in (small, large):
        low, high = bootstrap(t, draws=300)
        assert all(low[m] <= score_by_fold(t)[m].mean() <= high[m] for m in low)
    width = [bootstrap(t, draws=300)[1]["AUC"] - bootstrap(t, draws=300)[0]["AUC"] for t in (small, large)]
    assert width[1] < width[0] / 2
    assert bootstrap(small, draws=50, seed=4) == bootstrap(small, draws=50, seed=4)


def test_slides_of_one_patient_do_not_narrow_the_interval():
    """Each slide copied five times is no new evidence: resampling slides would say it is."""
    t = table(40, slides_a_patient=1)
    copied = pd.concat([t.assign(slide_id=t.slide_id + f"-{i}") for i in range(5)], ignore_index=True)
    one, five = bootstrap(t, draws=400), bootstrap(copied, draws=400)
    assert five[1]["AUC"] - five[0]["AUC"] == pytest.approx(one[1]["AUC"] - one[0]["AUC"], rel=0.05)


def test_summary_is_mean_and_deviation_over_folds():
    t = table()
    by_fold, said = score_by_fold(t), summarise(t, draws=20)
    assert said["ACC_mean"] == pytest.approx(np.mean(by_fold.ACC))
    assert said["ACC_std"] == pytest.approx(np.std(by_fold.ACC, ddof=1))


def test_a_fold_of_one_class_is_left_out_of_the_mean_and_counted():
    t = table()
    t = t[(t.fold != 0) | (t.label == "IDC")]
    said, rest = summarise(t, draws=20), score_by_fold(t[t.fold != 0])
    assert said["AUC_mean"] == pytest.approx(rest.AUC.mean()) and said["undefined"] == 1
    assert said["AUC_pooled"] == pytest.approx(roc_auc_score(t.label == "ILC", t.prob_ILC))
    assert set(roc_points(t).fold) == {1, 2}


def repeated(t, repeats=2):
    """A predictions table of three folds again, with other noise, on other partitions: folds 3, 4, 5, ..."""
    rng, parts = np.random.default_rng(5), []
    for repeat in range(repeats):
        value = np.clip(t.prob_ILC + 0.2 * repeat * rng.normal(size=len(t)), 0, 1)
        fold = 3 * repeat + (t.fold.to_numpy() + repeat * (np.arange(len(t)) // 2)) % 3
        parts.append(
            predictions_table(t.slide_id, t.patient_id, t.label, np.stack([1 - value, value], 1), CLASSES).assign(
                fold=fold, seed=0
            )
        )
    return pd.concat(parts, ignore_index=True)


def test_what_is_pooled_is_pooled_within_a_repeat():
    t = repeated(table())
    said, parts = summarise(t, draws=20), [t[t.fold < 3], t[t.fold >= 3]]
    assert said["AUC_pooled"] == pytest.approx(np.mean([score(part)["AUC"] for part in parts]))
    assert said["AUC_pooled"] != pytest.approx(score(t)["AUC"])
    assert said["ACC_mean"] == pytest.approx(np.mean([score(part)["ACC"] for _, part in t.groupby("fold")]))


def test_repeats_are_no_further_patients():
    """The same predictions under other fold numbers leave every interval where it was."""
    t = table(40)
    again = pd.concat([t, t.assign(fold=t.fold + 3), t.assign(fold=t.fold + 6)], ignore_index=True)
    for one, three in zip(bootstrap(t, draws=200), bootstrap(again, draws=200)):
        assert three == pytest.approx(one)
    assert predicted_times(t) == 1 and predicted_times(again) == 3 and confusion(again).to_numpy().sum() == 3 * 40
    assert calibration(again)[1] == pytest.approx(calibration(t)[1]) and calibration(again)[0].predictions.sum() == 120


def test_a_class_that_is_neither_tested_nor_said_has_no_f1():
    t = table(classes=("a", "b", "c"))
    two = t[(t.label != "c") & (t.pred != "c")]
    assert score(two)["F1"] == pytest.approx(f1_score(two.label, two.pred, average="macro"))


def test_confusion_has_the_truth_in_rows_and_counts_all():
    t = table().assign(pred="IDC")
    matrix = confusion(t)
    assert list(matrix.index) == list(matrix.columns) == CLASSES
    assert matrix.loc["ILC"].to_dict() == {"IDC": (t.label == "ILC").sum(), "ILC": 0} and matrix.to_numpy().sum() == 60


@pytest.mark.parametrize("positive", CLASSES)
def test_a_summary_is_of_the_class_that_is_asked_for(positive):
    t, draws = table(), np.random.default_rng(0)
    said = summarise(t, positive, draws=100)
    f1 = [f1_score(part.label == positive, part.pred == positive) for _, part in t.groupby("fold")]
    assert said["F1_mean"] == pytest.approx(np.mean(f1))
    drawn = draw_metrics(t, patient_draws(t, 100, draws), positive).F1
    assert (said["F1_low"], said["F1_high"]) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))


def test_no_f1_is_made_up_where_the_positive_class_is_neither_tested_nor_said():
    t = table()
    t = t[(t.label == "IDC") & (t.pred == "IDC")]
    said = summarise(t, "ILC", draws=20)
    assert np.isnan([said[f"F1_{part}"] for part in ("mean", "pooled", "low", "high")]).all()
    assert said["ACC_low"] == said["ACC_mean"] == 1


def test_the_interval_of_a_mean_is_the_normal_one_of_many_patients():
    values = np.random.default_rng(3).normal(size=2000)
    error = values.std(ddof=1) / np.sqrt(2000)
    for level, reach in ((0.95, 1.95996), (0.9, 1.64485)):
        mean, low, high = mean_interval(values, np.arange(2000), draws=4000, level=level)
        assert mean == pytest.approx(values.mean())
        assert [low, high] == pytest.approx([mean - reach * error, mean + reach * error], abs=0.1 * error)
    assert mean_interval(values, np.arange(2000)) == mean_interval(values, np.arange(2000), level=0.95)


def test_roc_encloses_the_auc():
    t = table()
    for (fold, _), part in roc_points(t).groupby(["fold", "seed"]):
        assert np.trapezoid(part.tpr, part.fpr) == pytest.approx(score(t[t.fold == fold])["AUC"])


def test_calibration_of_a_calibrated_and_of_a_boastful_model():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=20000)
    label = np.where(rng.uniform(size=p.size) < p, "ILC", "IDC")
    good = predictions_table(range(p.size), range(p.size), label, np.stack([1 - p, p], 1), CLASSES)
    bold_p = (p > 0.5).astype(float)
    bold = predictions_table(range(p.size), range(p.size), label, np.stack([1 - bold_p, bold_p], 1), CLASSES)
    assert calibration(good)[1] < 0.02 and calibration(bold, bins=2)[1] == pytest.approx(0.25, abs=0.02)
    assert calibration(good)[0].predictions.sum() == p.size


def test_equal_probabilities_share_a_bin_whatever_their_order():
    label = np.array(["IDC", "ILC"] * 50)
    half = np.full((100, 2), 0.5)
    for order in (np.arange(100), np.argsort(label)):
        table_, error = calibration(predictions_table(order, order, label[order], half, CLASSES))
        assert error == pytest.approx(0) and list(table_.predictions) == [100]
    p = np.repeat([0.1, 0.4, 0.9], [40, 50, 10])
    said = predictions_table(range(100), range(100), label, np.stack([1 - p, p], 1), CLASSES)
    table_, error = calibration(said)
    assert list(table_.predictions) == [40, 50, 10] and list(table_.predicted) == pytest.approx([0.1, 0.4, 0.9])
    assert error == pytest.approx(0.4 * 0.4 + 0.5 * 0.1 + 0.1 * 0.4)


def test_where_each_run_tests_one_class_f1_is_the_pooled_one():
    """A mean over one-slide folds counts no true negative: it is TP / (TP + FP + FN), below F1."""
    t = table(40, slides_a_patient=1)
    alone = summarise(t.assign(fold=np.arange(40)), draws=20)
    assert np.isnan([alone["F1_mean"], alone["F1_std"], alone["AUC_mean"]]).all()
    assert alone["F1_pooled"] == pytest.approx(f1_score(t.label == "ILC", t.pred == "ILC"))
    assert alone["F1_low"] <= alone["F1_pooled"] <= alone["F1_high"] and alone["undefined"] == 40


def test_one_patient_has_no_interval():
    mean, low, high = mean_interval([0.2, 0.4], ["p", "p"])
    assert mean == pytest.approx(0.3) and np.isnan([low, high]).all()
    assert np.isnan(mean_interval([np.nan], ["p"])).all() and not np.isnan(mean_interval([1, 2], ["p", "q"])).any()
