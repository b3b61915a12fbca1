"""ABMIL: attention-based multiple instance learning. Also the attention that CLAM, DTFD-MIL and HAG-MIL build on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmsmil.jobs.files import InputError
from dmsmil.models.base import MIL, Output, full_mask, masked_softmax


class Attention(nn.Module):
    """Unnormalised attention of tiles: (..., in_dim) -> (..., branches).

    gated:  s = w( tanh(V h) * sigma(U h) )      plain:  s = w( tanh(V h) )      V, U: in_dim -> hidden; all have biases

    `dropout` acts after each non-linearity, in training only.
    """

    def __init__(self, in_dim: int, hidden: int, branches: int = 1, gated: bool = True, dropout: float = 0.0):
        super().__init__()
        self.V = nn.Linear(in_dim, hidden)
        self.U = nn.Linear(in_dim, hidden) if gated else None
        self.w = nn.Linear(hidden, branches)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        gate = self.dropout(self.V(h).tanh())
        if self.U is not None:
            gate = gate * self.dropout(self.U(h).sigmoid())
        return self.w(gate)


class ABMIL(MIL):
    """Attention pooling of one scale (Ilse, Tomczak and Welling, ICML 2018, arXiv:1802.04712, eq. 7 to 9).

        h_i = relu(W x_i + b)                                    in_dim -> M
        s_i = w( tanh(V h_i) * sigma(U h_i) )                    M -> L -> 1; without the sigma factor when not gated
        a = softmax over tiles of s;   z = sum_i a_i h_i;   y = classifier(z)

    bags (B, 1, K, in_dim) -> logits (B, n_classes). scores: a. extras: `bag_feature` z (B, M).

    Options: `gated` (the paper's second form, usual on slides; the official script's default is the plain one), `M`
    and `L` (the paper's names), `one_logit`: the official head for two classes, one unit s with a sigmoid; logits are
    then (0, s), whose softmax is the same probability, and the loss is the official one, with the probability clamped
    to [1e-5, 1 - 1e-5]. No dropout.

    Against the official code (AMLab-Amsterdam/AttentionDeepMIL): its convolutional stem, made for MNIST digits, gives
    way to tile features. As there, and unlike the paper, attention layers have biases (that of w changes nothing).
    """

    stacks = True
    gains_on_cpu = False  # products and weights of this size fill a core: a stack takes up to a quarter longer

    def __init__(
        self,
        in_dim: int,
        n_classes: int,
        scales: tuple[int, ...],
        *,
        gated: bool = True,
        M: int = 500,
        L: int = 128,
        one_logit: bool = False,
    ):
        super().__init__(in_dim, n_classes, scales)
        check_one_logit(one_logit, n_classes)
        self.one_logit = one_logit
        self.project = nn.Linear(in_dim, M)
        self.attention = Attention(M, L, gated=gated)
        self.classifier = nn.Linear(M, 1 if one_logit else n_classes)

    def forward(self, bags, mask=None, coords=None, geometry=None) -> Output:
        mask = full_mask(bags, mask)
        h = self.project(bags[:, 0]).relu()  # (B, K, M)
        scores = masked_softmax(self.attention(h).transpose(1, 2), mask)  # (B, 1, K)
        z = (scores @ h).squeeze(1)  # (B, M)
        y = self.classifier(z)
        return Output(two_logits(y) if self.one_logit else y, scores, {"bag_feature": z})

    def loss(self, output: Output, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_ce; with `one_logit` the official -(Y log p + (1 - Y) log(1 - p)), p clamped."""
        if not self.one_logit:
            return super().loss(output, labels)
        p = output.logits[..., 1].sigmoid().clamp(1e-5, 1 - 1e-5)
        nll = -torch.where(labels == 1, p, 1 - p).log().mean(-1)
        return nll, {"L_ce": nll.detach()}


def check_one_logit(one_logit: bool, n_classes: int) -> None:
    """InputError when a single sigmoid unit is asked to tell more than two classes apart."""
    if one_logit and n_classes != 2:
        raise InputError(f"one_logit is a head for two classes, got {n_classes}: set one_logit to false")


def two_logits(y: Tensor) -> Tensor:
    """One sigmoid unit (B, 1) as two logits (B, 2) = (0, y): their softmax gives the probability sigma(y)."""
    return torch.cat([torch.zeros_like(y), y], -1)
