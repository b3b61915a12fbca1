"""The contract every method keeps: bags in, `Output` out, its own loss.

Shapes, everywhere: B slides, S scales (coarse to fine), K tiles, C channels.

    bags   (B, S, K, C) float     tile features, tiles in raster order of their slide position
    mask   (B, S, K)    bool      True where there is a tile; None = all are tiles
    coords (B, S, K, 2) int64     top-left corner of each tile, level-0 pixels (x, y)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Output:
    """What a method says of a batch of slides.

    logits (B, n_classes); scores (B, S, K), the method's own importance of each tile, exactly 0 where there is
    no tile; extras: anything its loss or the study's figures need, by name.
    """

    logits: Tensor
    scores: Tensor
    extras: dict = field(default_factory=dict)

    @property
    def probabilities(self) -> Tensor:
        """(B, n_classes) softmax of the logits."""
        return self.logits.softmax(-1)


class MIL(nn.Module):
    """Base of all methods. A subclass sets its layers and `forward`; single-scale methods have S = 1.

    Promises, all tested for every method: padding a bag changes nothing; a batch gives what its slides give one by
    one; gradients are finite on bags of 1, 2 and K tiles.
    """

    stacks = False  # whether several of it train in one pass (`stacked`): only where forward draws no random number
    gains_on_cpu = True  # whether that saves time on a CPU too
    picks = False  # whether it scores few tiles by its form, such as max pooling: that is then no sign of anything

    def __init__(self, in_dim: int, n_classes: int, scales: tuple[int, ...]):
        super().__init__()
        self.in_dim, self.n_classes, self.scales = in_dim, n_classes, tuple(scales)

    def geometry(self, mask: Tensor, coords: Tensor) -> dict[str, Tensor]:
        """What depends on tile positions alone, as tensors with leading axis B: computed once a slide and kept.

        Training calls it once for the whole study and hands the rows of each batch to `forward(geometry=...)`;
        a forward without it computes it on the spot, with the same result. Most methods need nothing.
        """
        return {}

    def learn_inputs(self, bags: Iterable[Tensor], masks: Iterable[Tensor]) -> None:
        """What a model takes from the slides that it will be trained on, before the first step: bags (S, K, C) and
        masks (S, K), slide by slide. Most methods take nothing."""

    def forward(
        self,
        bags: Tensor,
        mask: Tensor | None = None,
        coords: Tensor | None = None,
        geometry: dict[str, Tensor] | None = None,
    ) -> Output:
        """(B, S, K, C), (B, S, K), (B, S, K, 2) -> Output."""
        raise NotImplementedError

    def loss(self, output: Output, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar to minimise and its named terms (detached). labels (B,) int64. Default: L_ce, eq. (13).

        Whatever is minimised, the term L_ce is the plain cross-entropy of what is predicted: a run that has learned
        nothing is known by it.

        Of a method that stacks everything may have a leading axis of runs, in logits, extras, labels and the result.
        """
        ce = mean_cross_entropy(output.logits, labels)
        return ce, {"L_ce": ce.detach()}

    def grouped(self) -> str:
        """The name of the part whose parameters all have a leading axis of groups, for `stacked`; "" for none."""
        return ""


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """L_ce, eq. (13), the mean over slides: logits (..., B, n_classes), labels (..., B) -> (...)."""
    each = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return each.view(labels.shape).mean(-1)


def full_mask(bags: Tensor, mask: Tensor | None) -> Tensor:
    """`mask`, or all True (B, S, K) when it is None."""
    return torch.ones(bags.shape[:3], dtype=torch.bool, device=bags.device) if mask is None else mask


def masked_softmax(logits: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Softmax over the True entries of `mask` (broadcastable); exactly 0 elsewhere, and 0 where nothing is True."""
    weights = torch.softmax(logits.masked_fill(~mask, torch.finfo(logits.dtype).min), dim)
    return weights * mask


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tile axis: values (..., K, C), mask (..., K) -> (..., C); 0 where there is no tile."""
    weight = mask.to(values.dtype)
    return torch.einsum("...k,...kc->...c", weight, values) / weight.sum(-1, keepdim=True).clamp(min=1)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
