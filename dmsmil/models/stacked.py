"""Several models of one method, each with its own slide, in one pass.

The runs of a study are the same network trained on other slides: the same small operations again and again. A stack
does each operation once for all its runs. No number passes from one run to another, so each run is what it would be
alone, but for the order in which floating-point numbers are added.

A method that stacks says so (`MIL.stacks`): its forward pass draws no random number. DMSMIL and DAMIL already have an
axis of groups, one a scale, in every layer of their branches: a stack of R runs is a model of R x S groups. What
follows the branches, and all of every other method, runs under `torch.vmap`.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from dmsmil.jobs.files import InputError
from dmsmil.models.base import MIL, Output

VECTOR = 16  # numbers in the widest vectors of today's processors


class Stack:
    """R models of one method and one shape as one. It copies their weights; `weights` gives those of a run back.

    Only loss options (`lam`) may differ between the models. Raises InputError for a method that does not stack.
    """

    def __init__(self, models: list[MIL]):
        if not models[0].stacks:
            raise InputError(f"{type(models[0]).__name__} does not stack: train its runs one by one")
        self.model = copy.deepcopy(models[0]).requires_grad_(False)  # the form; its own weights are not used
        self.runs = len(models)
        self.grouped = models[0].grouped()
        weights = [dict(model.named_parameters()) for model in models]
        self.shapes = {name: value.shape for name, value in weights[0].items()}
        self.values = {
            name: nn.Parameter(self.joined(name, [mine[name].detach() for mine in weights]), value.requires_grad)
            for name, value in weights[0].items()
        }
        self._lam = torch.tensor([m.lam for m in models]) if hasattr(models[0], "lam") else None

    def joined(self, name: str, parts: list[Tensor]) -> Tensor:
        """What each run has for a weight, as one leaf: along the groups of a grouped layer, else (R, numbers).

        The numbers of a run are filled up to whole vectors of the processor: what does not fill one is computed by
        other instructions, and a run must not depend on its place among others.
        """
        if self._is_grouped(name):
            return torch.cat(parts)
        flat = torch.stack(parts).flatten(1)
        return F.pad(flat, (0, -flat.shape[1] % VECTOR))

    def _is_grouped(self, name: str) -> bool:
        return bool(self.grouped) and name.startswith(f"{self.grouped}.")

    def parameters(self) -> list[nn.Parameter]:
        """The leaves that an optimiser steps."""
        return list(self.trained().values())

    def trained(self) -> dict[str, nn.Parameter]:
        """The leaves that are trained, by name; the others are what each run took from its training slides."""
        return {name: value for name, value in self.values.items() if value.requires_grad}

    def weights(self, run: int) -> dict[str, Tensor]:
        """The weights of one run by name, as `load_state_dict` of its model takes them."""
        return {name: self.of_runs(value.detach(), name)[run].clone() for name, value in self.values.items()}

    def of_runs(self, value: Tensor, name: str) -> Tensor:
        """A leaf, or what an optimiser keeps of it, with the runs as first axis: (R, shape of the weight)."""
        if self._is_grouped(name):
            return value.unflatten(0, (self.runs, -1))
        shape = self.shapes[name]
        return value[:, : shape.numel()].reshape(-1, *shape)

    def _now(self) -> dict[str, Tensor]:
        """The weights as the forward pass takes them: grouped ones along their groups, others with the runs first."""
        return {
            name: value if self._is_grouped(name) else self.of_runs(value, name) for name, value in self.values.items()
        }

    def keep(self, runs: list[int], optimiser: torch.optim.Optimizer) -> None:
        """Go on with these runs alone; the optimiser keeps what it knows of them."""
        states = [optimiser.state.pop(value, {}) for value in self.values.values()]
        for (name, value), state in zip(list(self.values.items()), states):
            chosen = {
                key: self._chosen(part, name, runs) if part.shape == value.shape else part
                for key, part in state.items()
            }
            self.values[name] = nn.Parameter(self._chosen(value.detach(), name, runs), value.requires_grad)
            if chosen:
                optimiser.state[self.values[name]] = chosen
        optimiser.param_groups[0]["params"] = self.parameters()
        self.runs = len(runs)
        self._lam = None if self._lam is None else self._lam[runs]

    def _chosen(self, value: Tensor, name: str, runs: list[int]) -> Tensor:
        return self.of_runs(value, name)[runs].flatten(0, 1) if self._is_grouped(name) else value[runs]

    def forward(self, slides: list[Tensor], mask: Tensor, coords: Tensor, geometry: dict[str, Tensor]) -> Output:
        """One slide a run: slides, R of (1, S, K, C), which may be views of one array; mask (R, S, K); coords
        (R, S, K, 2); geometry by name, R first. Returns an Output of which everything has the leading axes (R, 1)."""
        if self.grouped:
            return self.model.forward_stacked(slides, mask, geometry, self._now())
        one = self.model

        def alone(values, bags, mask, coords, geometry):
            found = functional_call(one, values, (bags, mask, coords), {"geometry": geometry})
            return found.logits, found.scores, found.extras

        where = {name: value.unsqueeze(1) for name, value in geometry.items()}
        given = [self._now(), torch.stack(slides), mask.unsqueeze(1), coords.unsqueeze(1), where]
        if self.runs > 1:
            return Output(*torch.vmap(alone)(*given))
        # one product alone is added up in another order than in a batch: a run must not depend on its company
        found = torch.vmap(alone)(*tree_map(lambda part: part.expand(2, *part.shape[1:]), given))
        return Output(*tree_map(lambda part: part[:1], found))

    def loss(self, output: Output, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each run (R,) and its terms (R,), detached; labels (R,)."""
        if self._lam is not None:
            self.model.lam = self._lam.to(output.logits.device)
        return self.model.loss(output, labels.unsqueeze(1))
