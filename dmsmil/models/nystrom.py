"""Nystrom attention (Xiong 2021), as TransMIL and HAG-MIL use it, without its padding."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmsmil.jobs.files import InputError


def by_count(mask: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    """The slides of a batch grouped by their number of tiles, which decides padding and landmarks.

    mask (B, K) -> a list of (n, slides (b,), tiles (b, n)): indices of the slides with n tiles and of their tiles in
    order, so that `x[slides[:, None], tiles]` is (b, n, C). One group when all slides are equally full.
    Raises InputError when a slide has no tile.
    """
    counts = mask.sum(1)
    first = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    groups = []
    for n in sorted(set(counts.tolist())):
        if n == 0:
            raise InputError(f"slide {int(counts.argmin())} of the batch has no tile: leave it out")
        slides = (counts == n).nonzero()[:, 0]
        groups.append((n, slides, first[slides, :n]))
    return groups


def pseudo_inverse(matrix: Tensor, column_sum: Tensor, iterations: int) -> Tensor:
    """Iterative Moore-Penrose inverse (Razavi 2014) of (B, h, r, r); column_sum (B,) scales the first guess.

    Z <- Z (13 I - M Z (15 I - M Z (7 I - M Z))) / 4
    """
    flat = matrix.flatten(0, 1)
    inverse = (matrix.mT / column_sum[:, None, None, None]).flatten(0, 1)
    for _ in range(iterations):  # the identities multiplied out, so that each line is one fused product
        product = flat @ inverse
        inner = torch.baddbmm(product, product, product, beta=7, alpha=-1)
        inner = torch.baddbmm(product, product, inner, beta=15, alpha=-1)
        inverse = torch.baddbmm(inverse, inverse, inner, beta=13 / 4, alpha=-1 / 4)
    return inverse.view_as(matrix)


class NystromAttention(nn.Module):
    """(B, n, width) -> (B, n, width): attention through m landmarks.

        q, k, v = u W^T, heads = consecutive column groups, q / sqrt(width / heads)
        p zero rows in front until l = (n + p) / m is whole; q~, k~ = means of l consecutive rows
        F1 = softmax(q k~^T)   F2 = softmax(q~ k~^T)   F3 = softmax(q~ k^T)
        o = F1 F2^+ (F3 v) + conv_33x1(v),   F2^+ by 6 iterations,   u' = dropout(W_o o)

    The padding is never made. Its z = p // l all-zero landmarks are interchangeable: every matrix above is constant
    over them, so in the orthonormal basis {their normalised sum, the other landmarks} the same products are (m - z + 1)
    wide instead of m, and a zero key is one more logit, log of how many there are. This is exact (F2^+ included, whose
    iteration never leaves that space) and, when a bag has fewer tiles than landmarks, several times less work.

    Where the published package (nystrom-attention 0.0.14) differs: it scales the first guess of F2^+ by maxima over
    the whole batch, so that a slide's result depends on its neighbours; here they are the slide's own (the same for
    a batch of one). The rows kept are the last n, as since 0.0.11 (0.0.9, pinned by TransMIL, shifted them).
    """

    def __init__(
        self,
        width: int,
        heads: int = 8,
        landmarks: int = 256,
        iterations: int = 6,
        kernel: int = 33,
        dropout: float = 0.1,
    ):
        super().__init__()
        if width % heads:
            raise InputError(f"width {width} is not a multiple of {heads} heads: change one of them")
        self.heads, self.landmarks, self.iterations = heads, landmarks, iterations
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.value_conv = nn.Conv2d(heads, heads, (kernel, 1), padding=(kernel // 2, 0), groups=heads, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, u: Tensor, row: int | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, n, width) -> the same shape, and row `row` of F1 F2^+ F3 (B, heads, n) when asked for."""
        b, n, width = u.shape
        m = self.landmarks
        length = -(-n // m)
        padding = length * m - n
        zeros = padding // length
        q, k, v = self.to_qkv(u).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q = q * (width // self.heads) ** -0.5

        def landmark(x: Tensor) -> Tensor:
            """Means of `length` rows; only the first mean may still hold zero rows."""
            x = F.pad(x, (0, 0, padding % length, 0)) if padding % length else x
            return x.unflatten(2, (m - zeros, length)).mean(3)

        q_mean, k_mean = landmark(q), landmark(k)
        first = attend(q @ k_mean.mT, zeros, zeros**0.5)  # b, h, n, r
        second = attend(q_mean @ k_mean.mT, zeros, zeros**0.5)
        third = attend(q_mean @ k.mT, padding, None)  # b, h, r, n
        sums = second.sum(2)
        if zeros:  # the row of the zero landmarks: all logits equal
            second = torch.cat([second, second.new_full((b, self.heads, 1, m - zeros + 1), zeros**0.5 / m)], 2)
            second[..., -1, -1] = zeros / m
            third = torch.cat([third, third.new_full((b, self.heads, 1, n), zeros**0.5 / (n + padding))], 2)
            sums = torch.cat([sums[..., :-1], sums[..., -1:] / zeros**0.5], -1) + zeros / m
        inverse = pseudo_inverse(second, sums.amax((1, 2)), self.iterations)
        mixed = first @ (inverse @ (third @ v)) + self.value_conv(v)
        weights = None if row is None else (first[:, :, row : row + 1] @ inverse @ third)[:, :, 0]
        return self.dropout(self.out(mixed.transpose(1, 2).reshape(b, n, width))), weights


def attend(logits: Tensor, zeros: int, divide: float | None) -> Tensor:
    """Softmax over the last axis and `zeros` further logits of 0; their joint weight, divided, is the last column
    (left out when `divide` is None)."""
    if not zeros:
        return logits.softmax(-1)
    count = logits.new_full((*logits.shape[:-1], 1), math.log(zeros))
    weights = torch.cat([logits, count], -1).softmax(-1)
    return weights[..., :-1] if divide is None else torch.cat([weights[..., :-1], weights[..., -1:] / divide], -1)
