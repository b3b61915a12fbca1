"""Are the features what they should be: are linked tiles alike, do slides part by class or by site?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from dmsmil.features.bags import Bags


def linked_similarity(bags: Bags) -> pd.DataFrame:
    """Are linked tiles alike? Mean cosine, by slide, of each tile of the first scale with its own child (`linked`) and
    with the other children of the same slide (`other`); features centred on the cohort's mean of each scale."""
    centre = [bags.x[:, s][bags.mask[:, s]].mean(0).numpy() for s in (0, -1)]
    rows = []
    for i, slide_id in enumerate(bags.slide_ids):
        keep = bags.mask[i, 0] & bags.mask[i, -1]
        if keep.sum() < 2:
            continue
        a, b = (normalize(bags.x[i, s][keep].numpy() - c) for s, c in zip((0, -1), centre))
        cosine = a @ b.T
        n = len(cosine)
        rows.append({"slide_id": slide_id, "linked": float(np.trace(cosine)) / n,
                     "other": float(cosine.sum() - np.trace(cosine)) / (n * (n - 1))})
    return pd.DataFrame(rows, columns=["slide_id", "linked", "other"])


def project(bags: Bags) -> np.ndarray:
    """(N, 2) first two principal components of the slides' mean features, all scales side by side."""
    weight = bags.mask.float() / bags.mask.float().sum(-1, keepdim=True).clamp(min=1)
    means = np.concatenate([(w[:, None] @ x).reshape(1, -1).numpy() for x, w in zip(bags.x, weight)])
    points = PCA(2, svd_solver="full").fit_transform(means)
    return points * np.where(np.abs(points).max(0) == points.max(0), 1, -1)  # a sign that does not depend on the solver
