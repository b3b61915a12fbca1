"""Is a run healthy: how many tiles its attention is spread over, which of its losses decides, what it has learned.

What is here is looked at and decides no number of a run, so it is not part of a run's name.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dmsmil.features.bags import Bags
from dmsmil.models import MIL

SLIDES = 8  # of the training part, that are looked at while a run trains
SHRUNK = 0.01  # of its start: the spread of features that have shrunk to a point
STUCK = 0.9  # of the entropy of the class shares: an L_ce above it knows no more than these
LATE, LATEST = 0.1, 5  # of the epochs, and so many at least: what a run ends at, for one epoch alone may be a spike
GATHERED = 0.1  # of a slide's tiles: attention spread over fewer is marked


def watched(epoch: int, epochs: int) -> bool:
    """Whether a run is looked at after this epoch: 1, 2, 5, 10, 20, 50, ..., and the last."""
    return epoch == epochs or str(epoch).rstrip("0") in ("1", "2", "5")


def effective_share(scores: Tensor, mask: Tensor) -> Tensor:
    """Over what share of a slide's tiles its scores are spread: scores, mask (..., K) -> (...).

    exp(H) / n, with H the entropy of the scores as shares and n the number of tiles: 1 for a mean, 1 / n where one tile
    has everything, and in between as if so many tiles shared it equally. NaN where the scores are all 0.
    """
    total = scores.sum(-1, keepdim=True)
    shares = scores / total.clamp(min=torch.finfo(scores.dtype).tiny)
    entropy = -torch.special.xlogy(shares, shares).sum(-1)
    share = entropy.exp() / mask.sum(-1).clamp(min=1)
    return torch.where(total.squeeze(-1) > 0, share, torch.nan)


def examine(model: MIL, data: Bags, rows: np.ndarray, geometry: dict[str, Tensor], pulls: bool = False) -> dict:
    """Means over the slides `rows` of data, by name.

    effective_<s>x: `effective_share` of the scores at each scale; beyond_reach_<s>x and at_border_<s>x, of methods with
    deformable attention (`Branches.looks`); and with `pulls` gradient_ot and gradient_ce, of methods with L_ot.
    """
    device = next(model.parameters()).device
    model.eval()
    found: dict[str, list[float]] = {}
    for x, mask, coords, labels, batch in data.batches(rows, 1, None, device):
        where = {name: value[batch.to(value.device)] for name, value in geometry.items()}
        with torch.set_grad_enabled(pulls and hasattr(model, "pulls")):
            output = model(x, mask, coords, geometry=where)
            seen = model.pulls(output, labels) if torch.is_grad_enabled() else {}
        by_scale = {"effective": effective_share(output.scores.detach(), mask)}
        if hasattr(model, "looks"):
            by_scale |= model.looks(x, mask, coords)
        for name, value in by_scale.items():
            seen |= {f"{name}_{scale:g}x": float(value[0, s]) for s, scale in enumerate(model.scales)}
        for name, value in seen.items():
            found.setdefault(name, []).append(value)
    return {
        name: float(np.nanmean(values)) if np.isfinite(values).any() else float("nan") for name, values in found.items()
    }


def collapsed(spread_start: float | None, spread: float | None, ce: float | None, prior: np.ndarray) -> bool:
    """True when the representation is gone: the feature spread fell below 1 % of its start while L_ce is still at
    least 90 % of the prior's entropy, that is, the classifier knows no more than the class shares."""
    return _shrunk(spread_start, spread) and learned_nothing(ce, prior)


def learned_nothing(ce: float | None, prior: np.ndarray) -> bool:
    """True when L_ce, the mean over the training slides, is still at least 90 % of the prior's entropy, whatever the
    spread. False for a method that reports no L_ce, against its contract."""
    return _stuck(ce, entropy(prior))


def _shrunk(start: float | None, spread: float | None) -> bool:
    return bool(start and spread is not None and np.isfinite(spread) and spread < SHRUNK * start)


def _stuck(ce: float | None, prior_entropy: float) -> bool:
    return bool(ce is not None and ce > STUCK * prior_entropy)


def at_the_end(history: pd.DataFrame, used: int) -> pd.Series:
    """What a run ends at: the median of each column of its history over the last tenth of its epochs, five at least but
    no more than half of them, up to epoch `used`, the one whose weights are tested."""
    epochs = max(1, min(max(LATEST, round(LATE * used)), used // 2))
    return history.iloc[used - epochs : used].median()


def judged(record: dict, history: pd.DataFrame) -> dict[str, bool | str]:
    """The marks collapsed and learned_nothing of a finished run, by what it ends at (`at_the_end`): L_ce *stays* at the
    entropy of the class shares; and `judged`, which says so. Nothing for a record that does not say what it began with.
    """
    if "prior_entropy" not in record:
        return {}
    end = at_the_end(history, record["epoch_used"])
    nothing = _stuck(end.get("L_ce"), record["prior_entropy"])
    shrunk = _shrunk(record.get("spread_start"), end.get("spread"))
    return {"collapsed": shrunk and nothing, "learned_nothing": nothing, "judged": "by its last epochs"}


def gathered(model: MIL, seen: dict) -> bool:
    """True when the scores at some scale are spread over fewer than a tenth of the tiles, mean over the tested slides;
    never for a rule that picks tiles by its form, such as max pooling."""
    return not model.picks and any(value < GATHERED for name, value in seen.items() if name.startswith("effective_"))


def entropy(prior: np.ndarray) -> float:
    """Of class shares, in nats: the least L_ce of a model that knows nothing else."""
    return float(-(prior[prior > 0] * np.log(prior[prior > 0])).sum())
