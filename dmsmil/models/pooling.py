"""The baselines no honest comparison leaves out: mean and max pooling with a linear head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmsmil.models.base import MIL, Output, full_mask, masked_mean


class MeanPool(MIL):
    """y = W [z^1, ..., z^S] + b,   z^s = mean over the tiles of scale s of x.

    bags (B, S, K, in_dim), any number of scales, joined coarse to fine -> logits (B, n_classes). scores: 1 / (number of
    tiles of the scale), a constant: mean pooling prefers no tile. extras: `bag_feature` z (B, S in_dim). A scale
    without tiles gives 0. No options, no dropout.
    """

    stacks = True

    def __init__(self, in_dim: int, n_classes: int, scales: tuple[int, ...]):
        super().__init__(in_dim, n_classes, scales)
        self.classifier = nn.Linear(in_dim * len(self.scales), n_classes)

    def forward(self, bags, mask=None, coords=None, geometry=None) -> Output:
        feature, scores = self.pool(bags, full_mask(bags, mask))
        feature = feature.flatten(1)
        return Output(self.classifier(feature), scores, {"bag_feature": feature})

    def pool(self, bags: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, K, C), (B, S, K) -> pooled (B, S, C), scores (B, S, K)."""
        weight = mask.to(bags.dtype)
        return masked_mean(bags, mask), weight / weight.sum(-1, keepdim=True).clamp(min=1)


class MaxPool(MeanPool):
    """y = W [z^1, ..., z^S] + b,   z^s_c = max over the tiles of scale s of x_c, channel by channel.

    As `MeanPool` otherwise. scores: the share of channels whose maximum the tile gives (sums to 1 in each scale). This
    pools features; it is not the max over tiles of an instance classifier, which is DSMIL's first stream.
    """

    picks = True

    def pool(self, bags: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, K, C), (B, S, K) -> pooled (B, S, C), scores (B, S, K)."""
        largest, where = bags.masked_fill(~mask.unsqueeze(-1), -torch.inf).max(2)  # (B, S, C)
        there = mask.any(-1, keepdim=True)  # (B, S, 1)
        share = torch.zeros_like(bags[..., 0]).scatter_add_(2, where, torch.ones_like(largest)) / bags.shape[-1]
        return largest.masked_fill(~there, 0), share * there
