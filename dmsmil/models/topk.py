"""Top-k pooling: the plainest method that selects, and the example to copy for a method of one's own."""

from __future__ import annotations

from torch import nn

from dmsmil.models.base import MIL, Output, full_mask


class TopK(MIL):
    """y = mean over the k tiles with the largest margin of their own logits,   logits of tile j = W x_j + b.

    The tiles of all scales compete with one another. A tile's margin is its largest logit less the mean of its
    logits. bags (B, S, K, in_dim) -> logits (B, n_classes). scores (B, S, K): 1 / (number chosen) for the
    chosen, else 0.
    A bag with fewer than k tiles uses them all. Loss: L_ce.
    """

    stacks = True
    picks = True

    def __init__(self, in_dim: int, n_classes: int, scales: tuple[int, ...], *, k: int = 8):
        super().__init__(in_dim, n_classes, scales)
        self.k = k
        self.classifier = nn.Linear(in_dim, n_classes)

    def forward(self, bags, mask=None, coords=None, geometry=None) -> Output:
        mask = full_mask(bags, mask)
        instance = self.classifier(bags)  # (B, S, K, n_classes)
        margin = (instance.amax(-1) - instance.mean(-1)).masked_fill(~mask, -1e9).flatten(1)  # (B, S K)
        chosen = margin.topk(min(self.k, margin.shape[1]), dim=1).indices  # (B, k)
        kept = mask.flatten(1).gather(1, chosen).to(bags.dtype)  # 0 where there were too few tiles
        weight = kept / kept.sum(1, keepdim=True).clamp(min=1)
        scores = margin.new_zeros(margin.shape).scatter(1, chosen, weight)
        logits = (scores.view(*mask.shape, 1) * instance).sum((1, 2))
        return Output(logits, scores.view(mask.shape))
