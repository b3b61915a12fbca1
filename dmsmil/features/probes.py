"""Are the features what they should be: are linked tiles alike, do slides part by class or by site, and what do the
means of one scale say of the class, and those of all?"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from dmsmil.cohorts.folds import fold_count
from dmsmil.features.bags import Bags

COMPONENTS, STRENGTH = 24, 0.1  # of the probe: principal components of a scale, and C of the logistic regression


def linked_similarity(bags: Bags) -> pd.DataFrame:
    """Are linked tiles alike? Mean cosine, by slide, of each tile with its own child at the next scale (`linked`) and
    with the other children of the same slide (`other`); features centred on the cohort's mean of each scale. One row a
    slide and two neighbouring scales (`scales`, such as "10x and 20x")."""
    centre = [bags.x[:, s][bags.mask[:, s]].mean(0).numpy() for s in range(len(bags.scales))]
    rows = []
    for first, second in pairwise(range(len(bags.scales))):
        scales = f"{bags.scales[first]:g}x and {bags.scales[second]:g}x"
        for i, slide_id in enumerate(bags.slide_ids):
            keep = bags.mask[i, first] & bags.mask[i, second]
            if keep.sum() < 2:
                continue
            a, b = (normalize(bags.x[i, s][keep].numpy() - centre[s]) for s in (first, second))
            cosine = a @ b.T
            n = len(cosine)
            rows.append(
                {
                    "slide_id": slide_id,
                    "scales": scales,
                    "linked": float(np.trace(cosine)) / n,
                    "other": float(cosine.sum() - np.trace(cosine)) / (n * (n - 1)),
                }
            )
    return pd.DataFrame(rows, columns=["slide_id", "scales", "linked", "other"])


def slide_means(bags: Bags, weights: np.ndarray | None = None) -> np.ndarray:
    """(N, S, C) mean features of each slide and scale; weights (N, S, K): of its tiles, instead of 1 each, NaN or 0 for
    those that do not count. NaN where no tile of a scale counts."""
    weight = np.nan_to_num(np.ones(bags.mask.shape) if weights is None else weights) * bags.mask.numpy()
    total = weight.sum(-1, keepdims=True)
    share = np.divide(weight, total, out=np.full(weight.shape, np.nan), where=total > 0).astype(np.float32)
    return np.stack([np.matmul(w[:, None], x.numpy())[:, 0] for w, x in zip(share, bags.x)])


def project(bags: Bags) -> np.ndarray:
    """(N, 2) first two principal components of the slides' mean features, all scales side by side."""
    means = np.nan_to_num(slide_means(bags)).reshape(len(bags), -1)
    points = PCA(2, svd_solver="full").fit_transform(means)
    return points * np.where(np.abs(points).max(0) == points.max(0), 1, -1)  # a sign that does not depend on the solver


def scale_probes(bags: Bags, folds: pd.DataFrame, weights: np.ndarray | None = None) -> pd.DataFrame:
    """What a plain rule reads off the slides' mean features, from each scale alone and from all of them side by side.

    The rule: each channel standardised, the first `COMPONENTS` principal components of each scale, each standardised,
    and logistic regression. (Components of all scales together would lack those that one scale needs.) It learns from a
    fold's training and validation slides and is asked about the tested ones. weights: as for `slide_means`, such as the
    truth of a painted cohort, for a mean over the signal alone; a slide of which no tile counts is left out.

    Returns one row a probe: scales ("10x", "20x", "10x + 20x"), AUC (of three classes or more the mean over classes,
    each against the rest) as mean over the folds in which it is defined, as in none of leave-one-out; std over them,
    folds, slides; of more than two classes classes.
    """
    means = slide_means(bags, weights)
    kept = np.isfinite(means).all((1, 2))
    parts = folds.set_index("slide_id").reindex(bags.slide_ids)
    names = [f"{scale:g}x" for scale in bags.scales]
    sets = {name: [s] for s, name in enumerate(names)} | {" + ".join(names): list(range(len(names)))}
    rows = []
    for name, scales in sets.items():
        aucs = []
        for fold in range(fold_count(folds)):
            part = parts[f"fold_{fold}"]
            train, test = (part.isin(which).to_numpy() & kept for which in (["train", "val"], ["test"]))
            aucs.append(_auc([means[:, s] for s in scales], bags.labels.numpy(), train, test))
        defined = pd.Series(aucs).dropna()
        rows.append(
            {
                "scales": name,
                "AUC": defined.mean(),
                "std": defined.std(),
                "folds": len(defined),
                "slides": int(kept.sum()),
                **({"classes": len(bags.classes)} if len(bags.classes) > 2 else {}),
            }
        )
    return pd.DataFrame(rows)


def probe_table(bags: Bags, folds: pd.DataFrame, truth: np.ndarray | None = None) -> pd.DataFrame:
    """`scale_probes` of all tiles (column tiles: "all") and, where truth (N, S, K) tells how much of each tile carries
    the signal, of the tiles weighted by it ("signal"): what a perfect selection of tiles would leave to be told."""
    tables = {"all": scale_probes(bags, folds)}
    if truth is not None:
        tables["signal"] = scale_probes(bags, folds, truth)
    return pd.concat(tables, names=["tiles", None]).reset_index(level=0)


def _auc(parts: list[np.ndarray], labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """AUC of the probe that learns from the rows `train` of each scale's means (N, C), on the rows `test`; NaN where
    either has but one class."""
    classes = np.unique(labels[train])
    if len(classes) < 2 or len(np.unique(labels[test])) < 2:
        return float("nan")
    components = min(COMPONENTS, train.sum() - 1, parts[0].shape[1])
    seen, asked = [], []
    for values in parts:
        shrink = make_pipeline(StandardScaler(), PCA(components, whiten=True, svd_solver="full")).fit(values[train])
        seen.append(shrink.transform(values[train]))
        asked.append(shrink.transform(values[test]))
    rule = LogisticRegression(C=STRENGTH, max_iter=1000).fit(np.hstack(seen), labels[train])
    said = rule.predict_proba(np.hstack(asked))
    aucs = [
        roc_auc_score(labels[test] == label, said[:, column])
        for column, label in enumerate(classes)
        if 0 < (labels[test] == label).sum() < test.sum()
    ]
    return float(np.mean(aucs))
