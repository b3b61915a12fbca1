"""Who is asked: the trained models of a study, and the rules that know nothing of tissue, each of one fold and seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import softmax

from dmsmil.features.bags import Bags
from dmsmil.models import MIL

Answer = tuple[np.ndarray, np.ndarray | None]  # (N, n_classes) probabilities; (N, S, K) scores, of models alone


@dataclass(frozen=True)
class Network:
    """A trained model, in evaluation mode."""

    fold: int
    seed: int
    model: MIL

    @torch.inference_mode()
    def ask(self, bags: Bags) -> Answer:
        """What it says of each slide, and its own score of each tile at its scales, 0 where there is no tile."""
        data, said, scores = bags.view(self.model.scales), [], []
        for x, mask, coords, _, _ in data.batches(range(len(data))):
            output = self.model(x, mask, coords)
            said.append(output.probabilities)
            scores.append(output.scores)
        return torch.cat(said).double().numpy(), torch.cat(scores).double().numpy()


@dataclass(frozen=True)
class Colour:
    """Logistic regression on six colour numbers (`baselines.fit_colour`): mean, scale (6,); weights (1 or n, 6) and
    bias, one row where there are two classes."""

    fold: int
    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    seed: int = 0

    def ask(self, bags: Bags) -> Answer:
        """What it says of each slide."""
        value = (np.asarray(bags.colour, float) - self.mean) / self.scale @ np.asarray(self.weights).T + self.bias
        if value.shape[1] == 1:  # of two classes the second, against 0 of the first
            value = np.hstack([np.zeros_like(value), value])
        return softmax(value, 1), None


@dataclass(frozen=True)
class Shares:
    """Always the class shares: shares (n,)."""

    fold: int
    shares: np.ndarray
    seed: int = 0

    def ask(self, bags: Bags) -> Answer:
        """The same of each slide."""
        return np.tile(np.asarray(self.shares, float), (len(bags), 1)), None


Member = Network | Colour | Shares
