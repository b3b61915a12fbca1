"""What a trained model attends to: tile scores, the transport plan, the sampling points; and other explanations of the
same prediction, against which the scores are held in faithfulness.py.

A place is a row of a slide's bag: one tile, or a tile with those linked to it at the finer scales.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import ot
import pandas as pd
import torch
from torch import Tensor

from dmsmil.features.bags import Bags
from dmsmil.jobs.files import InputError
from dmsmil.models import MIL, transport
from dmsmil.models.base import masked_mean
from dmsmil.models.matching import heaviest
from dmsmil.slides.reader import open_slide
from dmsmil.training.fit import load_model
from dmsmil.training.runs import Runs

ROWS = 64  # bags in one forward of occlusion and removal: bounds their memory


@dataclass(frozen=True)
class Inside:
    """One slide as a model sees it.

    scores: scale -> (N,) the method's own importance of each tile, as `normalise` makes it. plans: (N, N') couplings of
    each two neighbouring scales, none for methods without transport. sampling: (query (Q, 2), points (Q, M U, 2),
    weights (Q, M U)) in level-0 pixels for a few queries of the first scale, or None for methods without deformable
    attention.
    """

    scores: dict[int, np.ndarray]
    plans: list[np.ndarray]
    sampling: tuple[np.ndarray, np.ndarray, np.ndarray] | None


@dataclass(frozen=True)
class Case:
    """A tested slide and the model of the fold that did not train on it (of the first seed and repeat that are there).

    x (1, S, K, C), mask (1, S, K), coords (1, S, K, 2) of the method's scales, with their padding; label: its index.
    """

    slide_id: str
    patient_id: str
    label: int
    fold: int
    model: MIL
    x: Tensor
    mask: Tensor
    coords: Tensor

    @property
    def bag(self) -> tuple[Tensor, Tensor, Tensor]:
        """(x, mask, coords), as a model takes them."""
        return self.x, self.mask, self.coords

    @property
    def places(self) -> np.ndarray:
        """(P,) rows of the bag with a tile at any scale."""
        return np.flatnonzero(self.mask[0].any(0).numpy())


def cases(runs: Runs, bags: Bags, slide_ids: list[str] | None = None) -> Iterator[Case]:
    """A `Case` for each tested slide, or for those named, fold by fold. InputError for a slide that was not tested."""
    data = bags.view(runs.config.scales)
    tested = runs.predictions.sort_values(["seed", "fold"], kind="stable")  # a run may have failed: the next is taken
    tested = tested.drop_duplicates("slide_id").set_index("slide_id")
    if unknown := [name for name in slide_ids or [] if name not in tested.index]:
        near = [name for name in tested.index if unknown[0] in name]
        hint = f"did you mean {near[0]}?" if near else f"one that was is {tested.index[0]}"
        raise InputError(f"slide {unknown[0]} was not tested in this study: {hint}")
    for (fold, seed), part in tested.loc[slide_ids or tested.index].groupby(["fold", "seed"]):
        model = load_model(runs.folders[fold, seed], data.x.shape[-1], len(data.classes))
        for slide_id in part.index:
            row = data.slide_ids.index(slide_id)
            pick = slice(row, row + 1)
            yield Case(
                slide_id,
                data.patient_ids[row],
                int(data.labels[row]),
                int(fold),
                model,
                data.x[pick],
                data.mask[pick],
                data.coords[pick],
            )


def tile_scores(runs: Runs, bags: Bags, slide_ids: list[str] | None = None) -> pd.DataFrame:
    """The method's own scores of all tiles of tested slides, as Fig. 6 and 7 draw them.

    Columns: slide_id, patient_id, label, fold, scale, place, x, y (level-0 px), score (as the method gives it) and
    normalised (min-max within the slide and scale; 0.5 where all tiles score alike).
    """
    parts = []
    for case in cases(runs, bags, slide_ids):
        about = {
            "slide_id": case.slide_id,
            "patient_id": case.patient_id,
            "label": bags.classes[case.label],
            "fold": case.fold,
        }
        parts.append(
            score_rows(own_scores(case), case.mask[0].numpy(), case.coords[0].numpy(), runs.config.scales, about)
        )
    return pd.concat(parts, ignore_index=True)


def score_rows(
    score: np.ndarray, mask: np.ndarray, coords: np.ndarray, scales: tuple[int, ...], about: dict
) -> pd.DataFrame:
    """Scores of one slide as rows of `tile_scores`: score, mask (S, K), coords (S, K, 2); about: its first columns."""
    parts = []
    for s, scale in enumerate(scales):
        places = np.flatnonzero(mask[s])
        parts.append(
            pd.DataFrame(
                {
                    **about,
                    "scale": scale,
                    "place": places,
                    "x": coords[s, places, 0],
                    "y": coords[s, places, 1],
                    "score": score[s, places],
                    "normalised": normalise(score[s, places]),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def normalise(score: np.ndarray) -> np.ndarray:
    """Min-max to [0, 1]; 0.5 throughout where `is_flat`."""
    low, high = score.min(), score.max()
    return np.full(score.shape, 0.5) if is_flat(score) else (score - low) / (high - low)


def is_flat(score: np.ndarray) -> bool:
    """Whether all scores are alike, to rounding in single precision: then they rank nothing."""
    return bool(np.ptp(score) <= 1e-6 * max(np.abs(score).max(), 1e-30))


# ------------------------------------------------------------------------------------------------ explanations


@torch.inference_mode()
def own_scores(case: Case) -> np.ndarray:
    """(S, K) the method's own scores, 0 where there is no tile."""
    return case.model(*case.bag).scores[0].double().numpy()


def at_places(score: np.ndarray, case: Case) -> np.ndarray:
    """(S, K) scores -> (P,) one a place: each scale's share of its sum, averaged over scales."""
    total = np.abs(score).sum(1, keepdims=True)
    return (score / np.where(total > 0, total, 1)).mean(0)[case.places]


def own(case: Case) -> np.ndarray:
    """(P,) the method's own scores of places; all the same where they are to rounding."""
    score = at_places(own_scores(case), case)
    return np.full_like(score, score.mean()) if is_flat(score) else score


def occlusion(case: Case) -> np.ndarray:
    """(P,) how far the probability of the predicted class moves, up or down, when a place shows only the mean tile."""
    keep = np.ones((1 + len(case.places), len(case.places)), bool)
    keep[1 + np.arange(len(case.places)), np.arange(len(case.places))] = False
    said = probabilities(case, keep, replace=True)
    return np.abs(said[1:] - said[0])


def gradient_times_input(case: Case) -> np.ndarray:
    """(P,) sum over scales of |sum_c x_jc dz/dx_jc|, z the predicted class's logit less the mean of all logits."""
    x = case.x.clone().requires_grad_()
    with torch.enable_grad():
        logits = case.model(x, case.mask, case.coords).logits[0]
        (slope,) = torch.autograd.grad(logits.max() - logits.mean(), x)
    return (x * slope).sum(-1).abs()[0].sum(0).detach().double().numpy()[case.places]


EXPLANATIONS = {"own": own, "occlusion": occlusion, "gradient": gradient_times_input}


@torch.inference_mode()
def probabilities(case: Case, keep: np.ndarray, replace: bool = False) -> np.ndarray:
    """(R,) probability of the class predicted from the whole bag, when only these places are left.

    keep (R, P) bool, at least one True a row; a place goes at all scales together. The others are taken out of the bag,
    which moves the tiles of methods that lay them out on a map; or, with `replace`, they stay where they are and show
    the mean of the slide's tiles.
    """
    predicted = int(case.model(*case.bag).logits[0].argmax())
    left = torch.zeros(len(keep), 1, case.mask.shape[2], dtype=torch.bool)
    left[:, 0, case.places] = torch.from_numpy(keep)
    mean = masked_mean(case.x, case.mask).unsqueeze(2)
    said = []
    for part in left.split(ROWS):
        count = len(part)
        x, mask = case.x.expand(count, -1, -1, -1), case.mask.expand(count, -1, -1)
        if replace:
            x = torch.where((part | ~mask).unsqueeze(-1), x, mean)
        output = case.model(x, mask if replace else mask & part, case.coords.expand(count, -1, -1, -1))
        said.append(output.probabilities[:, predicted])
    return torch.cat(said).double().numpy()


# ------------------------------------------------------------------------------------------------ inside one slide


@torch.inference_mode()
def look_inside(runs: Runs, bags: Bags, view: dict, queries: int = 6) -> Inside:
    """The scores, plans and sampling points of a tested slide, by the model of the fold that did not train on it."""
    case = next(cases(runs, bags, [view["slide_id"]]))
    output = case.model(*case.bag)
    own = {s: output.scores[0, i][case.mask[0, i]].double().numpy() for i, s in enumerate(runs.config.scales)}
    scores = {scale: normalise(score) for scale, score in own.items()}
    return Inside(scores, _plans(case.model, output), _sampling(case.model, *case.bag, view, queries))


def attention_flow(case: Case, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Where the attention of each tile of the first scale goes: start (N, 2), end (N, M, 2), mass received (N,).

    start: tile centres, level-0 px; end: for each head, the mean of the tile's sampling points weighted by their
    attention; mass: what a tile receives from all, as shares; it is the score of methods with score="mass" alone.
    side: of a tile. None for methods without deformable attention between tiles.
    """
    branches = getattr(case.model, "branches", None)
    if getattr(branches, "attend", None) is None or branches.cells > 1 or branches.square:
        return None
    points = case.model.sampling(*case.bag)
    there = case.mask[0, 0].numpy()
    weight = points["attention"][0, 0] / points["attention"][0, 0].sum(2, keepdim=True)
    end = (points["deformed_px"][0, 0] * weight.unsqueeze(-1)).sum(2).numpy()[there]
    mass = _received(case)[there]
    return case.coords[0, 0].numpy()[there] + side / 2, end + side / 2, mass / mass.sum()


@torch.inference_mode()
def _received(case: Case) -> np.ndarray:
    """(K,) what each tile of the first scale receives of the attention of all, over all heads."""
    branches, mask = case.model.branches, case.mask.transpose(0, 1)
    x = branches.project_tiles(case.x, mask)
    features, maps, _ = branches.lay_maps(x, case.model.geometry(case.mask, case.coords))
    return branches.attend.weights(features, maps, mask.to(x.dtype))[0, 0].sum(0).double().numpy()


def extremes(view: dict, scores: pd.DataFrame, count: int = 6) -> dict[int, dict[str, list[dict]]]:
    """The `count` highest and lowest tiles of a slide at full resolution: scale -> {'highest', 'lowest'} -> dicts of
    tile (px, px, 3), place, normalised. view: `features.views.slide_views`; scores: `tile_scores` of this slide."""
    found = {}
    with open_slide(view["path"], view["mpp"]) as slide:
        for scale, part in scores.groupby("scale"):
            ordered = part.sort_values(["normalised", "place"], ascending=[False, True])
            found[int(scale)] = {
                which: [
                    {
                        "tile": slide.read(row.x, row.y, scale, view["tile_px"]),
                        "place": row.place,
                        "normalised": row.normalised,
                    }
                    for row in rows.itertuples()
                ]
                for which, rows in (("highest", ordered.head(count)), ("lowest", ordered.tail(count).iloc[::-1]))
            }
    return found


def _plans(model, output) -> list[np.ndarray]:
    """The couplings of eq. (1) between neighbouring scales, in the space the loss uses; none where it has none."""
    if getattr(model, "transport", getattr(model, "ot", "none")) == "none":  # the first is DMSMIL-Select's
        return []
    features, mask, found = model.transported(output), output.extras["mask"], []
    weights = _chosen(model, output) if hasattr(model, "transport") else None
    for s, t in pairwise(range(len(model.scales))):
        if weights is None:
            coupling = transport.plan(features[:, s], features[:, t], mask[:, s], mask[:, t], model.ot)[0].numpy()
        else:
            apart = torch.cdist(features[0, s].double(), features[0, t].double()).numpy()
            coupling = ot.emd(weights[s], weights[t], apart)
        found.append(coupling[mask[0, s]][:, mask[0, t]])
    return found


def _chosen(model, output) -> np.ndarray:
    """(S, K) what DMSMIL-Select transports: the gates, or equal weights, of the `matched` places that weigh most."""
    gates, mask = output.extras["gates"], output.extras["mask"][0]
    weights, place = gates[0] if model.transport == "gates" else mask, heaviest(gates, model.matched)[0]
    kept = torch.zeros(weights.shape, dtype=torch.float64)
    kept[:, place] = weights[:, place].double()
    return (kept / kept.sum(-1, keepdim=True)).numpy()


def _sampling(model, x, mask, coords, view, queries):
    """A few queries of the first scale, spread over the slide, with where their heads sample."""
    if getattr(getattr(model, "branches", None), "attend", None) is None:
        return None
    points = model.sampling(x, mask, coords)
    if "deformed_px" not in points:
        return None
    cells = points["reference_px"].shape[2]  # as many as tiles, but for grid="square", where all ask
    asking = np.arange(cells) if model.branches.square else np.flatnonzero(mask[0, 0])
    rows = asking[np.unique(np.linspace(0, len(asking) - 1, queries + 2).astype(int)[1:-1])]
    half = view["side"][model.scales[0]] / 2
    deformed = points["deformed_px"][0, 0, rows].flatten(1, 2).numpy() + half
    return (
        points["reference_px"][0, 0, rows].numpy() + half,
        deformed,
        points["attention"][0, 0, rows].flatten(1, 2).numpy(),
    )
