"""What a trained model attends to: tile scores, the transport plan, the sampling points of one slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dmsmil.bags import Bags
from dmsmil.models import transport
from dmsmil.runs import Runs
from dmsmil.training import load_model


@dataclass(frozen=True)
class Inside:
    """One slide as a model sees it.

    scores: scale -> (N,) the method's own importance of each tile. plan: (N, N') coupling between the two scales, or
    None for methods without transport. sampling: (query (Q, 2), points (Q, M U, 2), weights (Q, M U)) in level-0
    pixels for a few queries of the first scale, or None for methods without deformable attention.
    """

    scores: dict[int, np.ndarray]
    plan: np.ndarray | None
    sampling: tuple[np.ndarray, np.ndarray, np.ndarray] | None


@torch.inference_mode()
def look_inside(runs: Runs, bags: Bags, view: dict, queries: int = 6) -> Inside:
    """The scores, plan and sampling points of a tested slide, by the model of the fold that did not train on it."""
    slide_id = view["slide_id"]
    row = runs.predictions[runs.predictions.slide_id == slide_id].iloc[0]
    data = bags.view(runs.config.scales)
    model = load_model(runs.folders[row.fold, row.seed], data.x.shape[-1], len(data.classes))
    pick = slice(data.slide_ids.index(slide_id), data.slide_ids.index(slide_id) + 1)
    x, mask, coords = data.x[pick], data.mask[pick], data.coords[pick]
    output = model(x, mask, coords)
    scores = {s: output.scores[0, i][mask[0, i]].numpy() for i, s in enumerate(runs.config.scales)}
    return Inside(scores, _plan(model, output), _sampling(model, x, mask, coords, view, queries))


def _plan(model, output) -> np.ndarray | None:
    """The coupling of eq. (1) between the first two scales, in the space the loss uses."""
    if getattr(model, "ot", "none") == "none":
        return None
    features, mask = output.extras["transported"], output.extras["mask"]
    coupling = transport.plan(features[:, 0], features[:, 1], mask[:, 0], mask[:, 1], model.ot)[0]
    return coupling[mask[0, 0]][:, mask[0, 1]].numpy()


def _sampling(model, x, mask, coords, view, queries):
    """A few queries of the first scale, spread over the slide, with where their heads sample."""
    if getattr(getattr(model, "branches", None), "attend", None) is None:
        return None
    points = model.sampling(x, mask, coords)
    if "deformed_px" not in points:
        return None
    count = int(mask[0, 0].sum())
    rows = np.unique(np.linspace(0, count - 1, queries + 2).astype(int)[1:-1])
    half = view["side"][min(view["side"])] / 2
    deformed = points["deformed_px"][0, 0, rows].flatten(1, 2).numpy() + half
    return (points["reference_px"][0, 0, rows].numpy() + half, deformed,
            points["attention"][0, 0, rows].flatten(1, 2).numpy())
