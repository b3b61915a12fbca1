"""TransMIL (Shao 2021): two Nystrom attention layers with a convolutional position encoding between them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmsmil.models.base import MIL, Output, full_mask
from dmsmil.models.nystrom import NystromAttention, by_count


class PPEG(nn.Module):
    """Pyramid position encoding: (B, 1 + w*w, C), the tiles as a w x w map f -> f + conv7(f) + conv5(f) + conv3(f).

    Depth-wise, zero padding, the class token untouched. The four terms are linear in f: one 7 x 7 convolution with the
    sum of the kernels does them all.
    """

    def __init__(self, width: int):
        super().__init__()
        self.conv7, self.conv5, self.conv3 = (
            nn.Conv2d(width, width, k, padding=k // 2, groups=width) for k in (7, 5, 3)
        )

    def forward(self, tokens: Tensor, side: int) -> Tensor:
        kernel = self.conv7.weight + F.pad(self.conv5.weight, (1,) * 4) + F.pad(self.conv3.weight, (2,) * 4)
        bias = self.conv7.bias + self.conv5.bias + self.conv3.bias
        field = tokens[:, 1:].mT.unflatten(2, (side, side))
        field = field + F.conv2d(field, kernel, bias, padding=3, groups=len(kernel))
        return torch.cat([tokens[:, :1], field.flatten(2).mT], 1)


class TransMIL(MIL):
    """TransMIL. Shao et al., "TransMIL: Transformer based Correlated Multiple Instance Learning", NeurIPS 2021.

        h = relu(W x), n tokens;  w = ceil(sqrt(n));  the first w*w - n tokens once more;  a class token in front
        h = h + Nystrom(LN(h));  h = PPEG(h);  h = h + Nystrom(LN(h));  logits = W' LN(h)[class]

    Eight heads and width / 2 landmarks, as published. The order of the tiles matters (raster order). Everything
    depends on n, so slides of unequal n are computed apart. scores: the class token's row of the last attention,
    F1 F2^+ F3, mean over heads; the approximation can make a weight negative, which counts as 0 (raw values in
    extras["attention"] (B, K)). They are not normalised: the rest of the row is on the class token and the repeats.
    Loss: cross-entropy. The repository pins an attention package that shifts the rows when n is padded; see
    NystromAttention. 3,196,434 parameters at 2048-d.

    Options: width (of the tokens, published 512), dropout (of the attention output).
    """

    def __init__(self, in_dim: int, n_classes: int, scales: tuple[int, ...], *, width: int = 512, dropout: float = 0.1):
        super().__init__(in_dim, n_classes, scales)
        self.project = nn.Linear(in_dim, width)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.norm1, self.norm2, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.attention1, self.attention2 = (
            NystromAttention(width, landmarks=width // 2, dropout=dropout) for _ in range(2)
        )
        self.position = PPEG(width)
        self.classifier = nn.Linear(width, n_classes)

    def forward(
        self,
        bags: Tensor,
        mask: Tensor | None = None,
        coords: Tensor | None = None,
        geometry: dict[str, Tensor] | None = None,
    ) -> Output:
        """(B, 1, K, C) -> Output; extras: attention (B, K), bag_feature (B, width)."""
        mask = full_mask(bags, mask)[:, 0]
        tokens = self.project(bags[:, 0]).relu()
        attention, feature = tokens.new_zeros(mask.shape), tokens.new_zeros(len(tokens), tokens.shape[2])
        for n, slides, tiles in by_count(mask):
            value, weight = self.slides(tokens[slides[:, None], tiles])
            feature = feature.index_copy(0, slides, value)
            attention[slides[:, None], tiles] = weight.detach()
        return Output(
            self.classifier(feature), attention.clamp(min=0)[:, None], {"attention": attention, "bag_feature": feature}
        )

    def slides(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Slides of n tiles each: (b, n, width) -> class token (b, width), its attention to the tiles (b, n)."""
        b, n, _ = tokens.shape
        side = math.isqrt(n - 1) + 1
        h = torch.cat([self.token.expand(b, -1, -1), tokens, tokens[:, : side * side - n]], 1)
        h = h + self.attention1(self.norm1(h))[0]
        h = self.position(h, side)
        update, weights = self.attention2(self.norm2(h), row=0)
        return self.norm(h[:, 0] + update[:, 0]), weights[..., 1 : n + 1].mean(1)
