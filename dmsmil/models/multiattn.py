"""MultiAttnMIL: attention at three depths of a shared embedding, over the tiles of all scales."""

from __future__ import annotations

import torch
from torch import nn

from dmsmil.models.abmil import Attention
from dmsmil.models.base import MIL, Output, full_mask, masked_softmax


class MultiAttnMIL(MIL):
    """Multi-attention MIL (Wibawa et al. 2022, arXiv:2209.03041) over the union of all scales' tiles.

        h_0 = x;   for k = 1, 2, 3:   h_k = dropout(relu(W_k h_{k-1} + b_k))              in_dim -> D -> D -> D
                                      a_k = softmax over tiles of w_k(tanh(V_k h_k))       D -> D -> 1
        y = classifier( sum_k sum_i a_ki h_ki )                                           the three pooled vectors added

    bags (B, S, K, in_dim) -> logits (B, n_classes); a bag has the S K tiles of its slide (400 in this study), of which
    none knows its scale. scores: the mean of the three attentions (sums to 1 over both scales). extras: `attention`
    (B, 3, S K), `bag_feature` (B, D).

    Options: `D` (officially 128; 256 gives the 854,789 parameters that the DMSMIL paper states), `dropout` (.5, its
    training notebook's rate; in training only).

    The DMSMIL paper cites Konstantinov and Utkin 2021 for MultiAttnMIL; its parameter count is that of this method, by
    Wibawa et al., and theirs has a convolutional extractor on raw tiles. Against the official code
    (mdsatria/MultiAttentionMIL): there, dropout is made inside forward and stays on in evaluation; here it does not.
    """

    def __init__(self, in_dim: int, n_classes: int, scales: tuple[int, ...], *, D: int = 256, dropout: float = 0.5):
        super().__init__(in_dim, n_classes, scales)
        self.embed = nn.ModuleList(
            nn.Sequential(nn.Linear(width, D), nn.ReLU(), nn.Dropout(dropout)) for width in (in_dim, D, D)
        )
        self.attention = nn.ModuleList(Attention(D, D, gated=False) for _ in range(3))
        self.classifier = nn.Linear(D, n_classes)

    def forward(self, bags, mask=None, coords=None, geometry=None) -> Output:
        mask = full_mask(bags, mask)
        tiles = mask.flatten(1).unsqueeze(1)  # (B, 1, S K)
        h, weights, pooled = bags.flatten(1, 2), [], 0  # (B, S K, in_dim)
        for embed, attention in zip(self.embed, self.attention):
            h = embed(h)  # (B, S K, D)
            weights.append(masked_softmax(attention(h).transpose(1, 2), tiles))  # (B, 1, S K)
            pooled = pooled + (weights[-1] @ h).squeeze(1)  # (B, D)
        weights = torch.cat(weights, 1)  # (B, 3, S K)
        return Output(
            self.classifier(pooled), weights.mean(1).view(mask.shape), dict(attention=weights, bag_feature=pooled)
        )
