"""DSMIL: dual-stream multiple instance learning on concatenated scales."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmsmil.models.abmil import check_one_logit, two_logits
from dmsmil.models.base import MIL, Output, full_mask, masked_softmax, mean_cross_entropy


class DSMIL(MIL):
    """A max-instance stream and an attention stream round its critical tile (Li, Li and Eliceiri, CVPR 2021,
    arXiv:2011.08939); linked tiles of all scales joined, finest first: x_j = [x_20j, x_10j], d = S in_dim.

        c_j = W0 x_j + b0                                   d -> C    instance stream; critical tile m_c = argmax_j c_jc
        q_j = tanh(W2 relu(W1 x_j + b1) + b2)               d -> 128 -> 128
        A_jc = softmax over tiles of q_j . q_{m_c} / sqrt(128)
        B_c = sum_j A_jc v_j,   v = x, or relu(Wv dropout(x) + bv) with `passing_v`
        y_o = b_o + sum_{c,d} w_ocd B_cd                    bag stream: every class mixes the rows of all classes

    bags (B, S, K, in_dim) -> logits y (B, n_classes). A row counts where all its scales have a tile. scores: A of the
    predicted class, the same for the linked tiles of a row. extras: `attention` A (B, K, C), `instance_logits`
    (B, K, C), `max_logits` (B, C), `critical` m (B, C), `bag_feature` B (B, C, d), `bag_logits` (B, C).

    Loss: .5 L_bag + .5 L_max, binary cross-entropies of y and of max_j c_j against the one-hot label.

    Options, by their official names: `passing_v`; `dropout_node`, before v, only used with `passing_v`, in training
    only, rate 0; `one_logit`: C = 1, as its Camelyon16 runs; logits are then (0, y), whose softmax is sigma(y).

    Weights start orthogonal, biases 0, as in its TCGA runs. Against the paper, but as in the official code
    (binli123/dsmil-wsi): attention is divided by sqrt(128), q has a hidden layer, v is x itself; the prediction is the
    bag stream's alone (the paper averages both). For C = 2 the official test takes sigma(y_c) of each class; the
    contract's probability is softmax(y), the same argmax. Its random dropping of tiles (rate 0) is left out.
    """

    def __init__(
        self,
        in_dim: int,
        n_classes: int,
        scales: tuple[int, ...],
        *,
        passing_v: bool = False,
        dropout_node: float = 0.0,
        one_logit: bool = False,
    ):
        super().__init__(in_dim, n_classes, scales)
        check_one_logit(one_logit, n_classes)
        self.one_logit = one_logit
        classes, d = 1 if one_logit else n_classes, in_dim * len(self.scales)
        self.instance = nn.Linear(d, classes)
        self.q = nn.Sequential(nn.Linear(d, 128), nn.ReLU(), nn.Linear(128, 128), nn.Tanh())
        self.v = nn.Sequential(nn.Dropout(dropout_node), nn.Linear(d, d), nn.ReLU()) if passing_v else nn.Identity()
        self.bag = nn.Conv1d(classes, classes, kernel_size=d)
        for layer in self.modules():
            if isinstance(layer, (nn.Linear, nn.Conv1d)):
                nn.init.orthogonal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, bags, mask=None, coords=None, geometry=None) -> Output:
        mask = full_mask(bags, mask).all(1)  # (B, K)
        x = torch.cat(bags.unbind(1)[::-1], -1)  # (B, K, d), finest scale first
        c = self.instance(x)  # (B, K, C)
        max_logits, critical = c.masked_fill(~mask.unsqueeze(-1), -torch.inf).max(1)  # (B, C)
        q = self.q(x)  # (B, K, 128)
        q_critical = q.gather(1, critical.unsqueeze(-1).expand(-1, -1, q.shape[-1]))  # (B, C, 128)
        attention = masked_softmax(q_critical @ q.transpose(1, 2) / q.shape[-1] ** 0.5, mask.unsqueeze(1))  # (B, C, K)
        feature = attention @ self.v(x)  # (B, C, d)
        y = self.bag(feature).squeeze(-1)  # (B, C)
        logits = two_logits(y) if self.one_logit else y
        row = torch.zeros_like(logits[:, 0], dtype=torch.long) if self.one_logit else logits.argmax(-1)
        scores = attention[torch.arange(len(x), device=x.device), row].unsqueeze(1).expand(-1, len(self.scales), -1)
        return Output(
            logits,
            scores,
            dict(
                attention=attention.transpose(1, 2),
                instance_logits=c,
                critical=critical,
                max_logits=max_logits,
                bag_feature=feature,
                bag_logits=y,
            ),
        )

    def loss(self, output: Output, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """.5 L_bag + .5 L_max."""
        e = output.extras
        one_hot = F.one_hot(labels, self.n_classes).to(output.logits.dtype)
        target = one_hot[:, 1:] if self.one_logit else one_hot
        bag = F.binary_cross_entropy_with_logits(e["bag_logits"], target)
        largest = F.binary_cross_entropy_with_logits(e["max_logits"], target)
        terms = {"L_ce": mean_cross_entropy(output.logits, labels), "L_bag": bag, "L_max": largest}
        return 0.5 * bag + 0.5 * largest, {name: term.detach() for name, term in terms.items()}
