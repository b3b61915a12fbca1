"""DMSMIL with another fusion of its scales: a file to copy for a method that replaces one part."""

from __future__ import annotations

from torch import Tensor, nn

from dmsmil.models.dmsmil import DMSMIL


class JointGate(DMSMIL):
    """One layer looks at the pooled vectors of all scales at once and shares the weight out among them.

    a = softmax( V [x^1, ..., x^S] + b )      instead of eq. (11), which scores each scale without the others
    """

    def __init__(
        self, in_dim: int, n_classes: int, scales: tuple[int, ...], *, projection_dim: int = 128, lam: float = 1.0
    ):
        super().__init__(in_dim, n_classes, scales, projection_dim=projection_dim, fusion="mean", lam=lam)
        self.gate_all = nn.Linear(len(self.scales) * projection_dim, len(self.scales))

    def _fusion(self, found: dict[str, Tensor], mask: Tensor) -> Tensor:
        return self.gate_all(found["pooled"].flatten(1)).softmax(-1)  # (B, S d) -> (B, S)
