"""ACC, F1 and AUC; mean and deviation over folds; intervals by patient; calibration.

A predictions table has one row a tested slide: slide_id, patient_id, label, prob_<class> for each class, pred, and
fold and seed where several runs are pooled. A slide then has a row for each seed, and for each repeat of the folds.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, roc_auc_score, roc_curve

from dmsmil.cohorts.folds import repeat_of
from dmsmil.jobs.files import InputError

METRICS = ("ACC", "F1", "AUC")
DRAWS = 1000  # of patients, for an interval
OF_SEVERAL = {"F1": "macro-F1", "AUC": "one-vs-rest AUC"}  # what these are of more than two classes
NEEDS_TWO = "needs two classes, or one that the key positive sets against the rest"


def predictions_table(slide_ids, patient_ids, labels, probabilities: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """A predictions table from (N, n_classes) probabilities; labels are class names."""
    table = pd.DataFrame({"slide_id": slide_ids, "patient_id": patient_ids, "label": labels})
    for c, name in enumerate(classes):
        table[f"prob_{name}"] = probabilities[:, c]
    table["pred"] = np.asarray(classes)[probabilities.argmax(1)]
    return table


def class_names(predictions: pd.DataFrame) -> list[str]:
    """The classes of a predictions table, in the order of its columns."""
    return [c[5:] for c in predictions.columns if c.startswith("prob_")]


def called(metric: str, rows: pd.DataFrame | pd.Series | dict[str, int]) -> str:
    """What a metric is called in a table, or in a row of one: of more than two classes (column classes, which tables of
    two lack) F1 is macro-F1, and AUC one-vs-rest AUC."""
    several = "classes" in rows and np.nanmax(np.append(rows["classes"], 0)) > 2  # a table may have no row
    return OF_SEVERAL.get(metric, metric) if several else metric


def counted_classes(predictions: pd.DataFrame) -> dict[str, int]:
    """The column classes of a row of a table: how many there are, where there are more than two; else nothing."""
    count = len(class_names(predictions))
    return {"classes": count} if count > 2 else {}


def positive_class(classes: list[str], positive: str = "") -> str:
    """Of two classes the one that F1 and AUC are about, of more one of them: the one named, else the last in
    alphabetical order."""
    if positive and positive not in classes:
        raise InputError(f"positive is '{positive}', which is no class: choose one of {', '.join(classes)}")
    return positive or sorted(classes)[-1]


def asked_class(classes: list[str], positive: str = "") -> str:
    """The class that a question with two answers is about: as `positive_class`, but "" of more than two classes where
    none is named, for then there is no such question (`NEEDS_TWO`)."""
    return positive_class(classes, positive) if positive or len(classes) == 2 else ""


def curve_classes(classes: list[str], positive: str = "") -> list[str]:
    """The classes that have a curve: of two the positive one, of more each against the rest."""
    return [positive_class(classes, positive)] if len(classes) == 2 else list(classes)


def told_class(predicted: str, classes: list[str], positive: str) -> str:
    """The class whose probability is told of a prediction: of two the positive one, of more the predicted one."""
    return positive if len(classes) == 2 else predicted


def scored(classes: list[str], positive: str = "") -> str:
    """In words, what F1 and AUC of these classes are about."""
    name = asked_class(classes, positive)
    if len(classes) == 2:
        return f"F1 and AUC are about the class {name}."
    asked = f"set {name} against the rest" if name else NEEDS_TWO.replace("needs", "need")
    return (
        f"macro-F1 and one-vs-rest AUC are means over the {len(classes)} classes, each against the rest; DeLong's "
        f"test and the decision curve {asked}."
    )


def score(predictions: pd.DataFrame, positive: str = "") -> dict[str, float]:
    """ACC, F1 and AUC of a predictions table.

    Two classes: F1 and AUC of the `positive` class. More: macro F1 and macro one-against-rest AUC, over the classes of
    which there is something to say. AUC is NaN, not defined, where only one class was tested, as leave-one-out does; F1
    is where its class is neither tested nor predicted (0 / 0).
    """
    classes = class_names(predictions)
    labels, pred = predictions.label, predictions.pred
    result = {"ACC": float(accuracy_score(labels, pred))}
    if len(classes) == 2:
        name = positive_class(classes, positive)
        result["F1"] = float(f1_score(labels.eq(name), pred.eq(name), zero_division=np.nan))
        truth, value = labels.eq(name), predictions[f"prob_{name}"]
        result["AUC"] = float(roc_auc_score(truth, value)) if truth.nunique() == 2 else float("nan")
    else:
        result["F1"] = float(f1_score(labels, pred, average="macro", labels=classes, zero_division=np.nan))
        aucs = [roc_auc_score(labels.eq(c), predictions[f"prob_{c}"]) for c in classes if labels.eq(c).nunique() == 2]
        result["AUC"] = float(np.mean(aucs)) if aucs else float("nan")
    return result


def score_by_fold(predictions: pd.DataFrame, positive: str = "") -> pd.DataFrame:
    """One row a (fold, seed): fold, seed, slides, ACC, F1, AUC."""
    rows = [
        {"fold": fold, "seed": seed, "slides": len(part), **score(part, positive)}
        for (fold, seed), part in predictions.groupby(["fold", "seed"])
    ]
    return pd.DataFrame(rows)


def summarise(predictions: pd.DataFrame, positive: str = "", draws: int = DRAWS, seed: int = 0) -> dict[str, float]:
    """Mean and standard deviation over runs, and a 95 % interval by patient, of each metric, as `score` has them.

    Keys: ACC_mean, ACC_std (over folds and seeds, ddof = 1; runs in which a metric is not defined are left out),
    ACC_low, ACC_high (bootstrap of patients on the pooled out-of-fold predictions), ACC_pooled (of all predictions of a
    seed and repeat as if one model had made them, mean over these), and so for F1 and AUC; undefined, the runs in which
    F1 or AUC is not defined. Where AUC is defined in no run, as in leave-one-out, F1 is in none either, and intervals
    are those of the pooled ones.
    Of more than two classes also classes, how many there are: tables then call F1 and AUC what they are (`called`).
    """
    by_fold = score_by_fold(predictions, positive)
    whole = predictions.assign(fold=predictions.fold.map(repeat_of(predictions)))
    pooled = score_by_fold(whole, positive)
    if by_fold.AUC.isna().all():  # each run tests one class: its F1 counts no true negative, and is no F1
        by_fold["F1"] = np.nan
    low, high = bootstrap(predictions if by_fold.AUC.notna().any() else whole, positive, draws, seed)
    result = {}
    for name in METRICS:
        result |= {
            f"{name}_mean": float(by_fold[name].mean()),
            f"{name}_std": float(by_fold[name].std(ddof=1)),
            f"{name}_low": low[name],
            f"{name}_high": high[name],
            f"{name}_pooled": float(pooled[name].mean()),
        }
    return {**result, "undefined": int(by_fold[list(METRICS)].isna().any(axis=1).sum()), **counted_classes(predictions)}


def bootstrap(
    predictions: pd.DataFrame, positive: str = "", draws: int = DRAWS, seed: int = 0, level: float = 0.95
) -> tuple[dict[str, float], dict[str, float]]:
    """Percentile interval of each metric on the pooled predictions, when patients, not slides, are drawn again.

    Each class's patients are drawn among themselves, so that no draw lacks a class. With several seeds or repeats a
    slide is predicted several times: a drawn patient brings all of its rows, for they are not independent.
    Returns ({metric: low}, {metric: high}).
    """
    rng = np.random.default_rng(seed)
    values = draw_metrics(predictions, patient_draws(predictions, draws, rng), positive)
    edges = (1 - level) / 2, (1 + level) / 2
    low, high = (values.quantile(q) for q in edges)
    return low.to_dict(), high.to_dict()


def patient_draws(predictions: pd.DataFrame, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, rows) how often each row is drawn when patients are drawn with replacement within their class."""
    patients = predictions.groupby("patient_id").label.first().sort_index()
    counts = np.zeros((draws, len(patients)))
    for label in sorted(patients.unique()):
        where = np.flatnonzero(patients == label)
        counts[:, where] = rng.multinomial(len(where), np.full(len(where), 1 / len(where)), size=draws)
    return counts[:, patients.index.get_indexer(predictions.patient_id)]


def mean_interval(
    values, patients, draws: int = DRAWS, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean over patients of a value a slide (a patient's slides averaged first), and its interval when patients are
    drawn again: (mean, low, high). NaN values are left out; all NaN where none is left, the interval where one is."""
    means = pd.Series(np.asarray(values, float)).groupby(np.asarray(patients)).mean().dropna().to_numpy()
    if not len(means):
        return float("nan"), float("nan"), float("nan")
    if len(means) == 1:
        return float(means[0]), float("nan"), float("nan")
    drawn = np.random.default_rng(seed).choice(means, (draws, len(means))).mean(1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(means.mean()), float(low), float(high)


def draw_metrics(predictions: pd.DataFrame, weights: np.ndarray, positive: str = "") -> pd.DataFrame:
    """ACC, F1 and AUC of weighted rows: weights (draws, rows) -> one row a draw.

    AUC counts pairs within a run (fold and seed) alone: the probabilities of two models do not share a scale, and
    comparing them across folds would punish a rule for its folds' different class shares.
    """
    runs = [np.arange(len(predictions))]
    if "fold" in predictions:
        runs = list(predictions.groupby(["fold", "seed"]).indices.values())
    classes = class_names(predictions)
    labels, pred = predictions.label.to_numpy(), predictions.pred.to_numpy()
    names = curve_classes(classes, positive)
    f1s, aucs = [], []
    for name in names:
        truth, said, value = labels == name, pred == name, predictions[f"prob_{name}"].to_numpy()
        hits = weights @ (truth & said)
        counted = weights @ truth.astype(float) + weights @ said.astype(float)
        f1s.append(2 * hits / np.where(counted > 0, counted, np.nan))  # 0 / 0 is not defined, as in `score`
        above, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        for rows in runs:
            up, down = rows[truth[rows]], rows[~truth[rows]]
            wins = (value[up, None] > value[None, down]) + 0.5 * (value[up, None] == value[None, down])
            above += ((weights[:, up] @ wins) * weights[:, down]).sum(1)
            pairs += weights[:, up].sum(1) * weights[:, down].sum(1)
        aucs.append(above / np.where(pairs > 0, pairs, np.nan))
    f1, auc = (pd.DataFrame(values).mean().to_numpy() for values in (f1s, aucs))  # without what is not defined
    return pd.DataFrame({"ACC": weights @ (labels == pred) / weights.sum(1), "F1": f1, "AUC": auc})


def confusion(predictions: pd.DataFrame) -> pd.DataFrame:
    """Confusion matrix with class names: rows are the truth, columns the prediction. It counts predictions, of which a
    slide has `predicted_times`."""
    classes = class_names(predictions)
    matrix = confusion_matrix(predictions.label, predictions.pred, labels=classes)
    return pd.DataFrame(matrix, index=pd.Index(classes, name="truth"), columns=pd.Index(classes, name="predicted"))


def predicted_times(predictions: pd.DataFrame) -> int:
    """How often a slide was predicted, at most: once for each seed and each repeat of the folds."""
    return int(predictions.slide_id.value_counts().max())


def roc_points(predictions: pd.DataFrame, positive: str = "") -> pd.DataFrame:
    """ROC curve of each (fold, seed) that tests two classes: fold, seed, fpr, tpr; `positive` against the rest."""
    name = positive_class(class_names(predictions), positive)
    parts = [pd.DataFrame({"fold": [], "seed": [], "fpr": [], "tpr": []}).astype({"fold": int, "seed": int})]
    for (fold, seed), part in predictions.groupby(["fold", "seed"]):
        if part.label.eq(name).nunique() == 2:
            fpr, tpr, _ = roc_curve(part.label.eq(name), part[f"prob_{name}"])
            parts.append(pd.DataFrame({"fold": fold, "seed": seed, "fpr": fpr, "tpr": tpr}))
    return pd.concat(parts, ignore_index=True)


def calibration(predictions: pd.DataFrame, positive: str = "", bins: int = 5) -> tuple[pd.DataFrame, float]:
    """Reliability in bins of equal count, and the expected calibration error.

    Returns (table with columns predicted, observed, predictions, how many there are in a bin; ECE = sum over bins of
    share x |observed - predicted|). A slide counts as often as it was predicted; equal probabilities share a bin.
    """
    name = positive_class(class_names(predictions), positive)
    ordered = predictions.sort_values(f"prob_{name}", kind="stable")
    value = ordered[f"prob_{name}"].to_numpy()
    edges = [part[0] for part in np.array_split(np.arange(len(value)), min(bins, len(value)))[1:]]
    ties = [(np.searchsorted(value, value[at]), np.searchsorted(value, value[at], side="right")) for at in edges]
    cuts = {int(min(ends, key=lambda end: abs(end - at))) for at, ends in zip(edges, ties)} - {0, len(value)}
    parts = np.split(np.arange(len(value)), sorted(cuts))
    table = pd.DataFrame(
        [
            {
                "predicted": ordered[f"prob_{name}"].iloc[p].mean(),
                "observed": ordered.label.eq(name).iloc[p].mean(),
                "predictions": len(p),
            }
            for p in parts
        ]
    )
    gap = (table.observed - table.predicted).abs()
    return table, float((gap * table.predictions).sum() / table.predictions.sum())


def calibration_error(predictions: pd.DataFrame, positive: str = "") -> float:
    """The expected calibration error: of two classes that of the positive one, of more the mean over the classes, each
    against the rest (classwise ECE: Kull et al., NeurIPS 2019)."""
    classes = curve_classes(class_names(predictions), positive)
    return float(np.mean([calibration(predictions, name)[1] for name in classes]))


def decision_curve(predictions: pd.DataFrame, positive: str = "", steps: int = 19) -> pd.DataFrame:
    """What acting on the predictions is worth (Vickers and Elkin 2006): columns threshold, benefit, all.

    Whoever acts on a probability of at least t says that a miss weighs (1 - t) / t false alarms. The net benefit is
    then TP / n - FP / n t / (1 - t), of `positive` against the rest; all: of acting on everyone. Acting on nobody is
    worth 0.
    """
    name = positive_class(class_names(predictions), positive)
    truth, value = predictions.label.eq(name).to_numpy(), predictions[f"prob_{name}"].to_numpy()
    threshold = np.linspace(0, 1, steps + 2)[1:-1]
    odds, acted = threshold / (1 - threshold), value >= threshold[:, None]
    benefit = (acted & truth).mean(1) - (acted & ~truth).mean(1) * odds
    return pd.DataFrame({"threshold": threshold, "benefit": benefit, "all": truth.mean() - (~truth).mean() * odds})
