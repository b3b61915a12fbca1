"""CLAM: clustering-constrained attention, single-branch and multi-branch, and its instance loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmsmil.jobs.files import InputError
from dmsmil.models.abmil import Attention
from dmsmil.models.base import MIL, Output, full_mask, masked_softmax

SIZES = {"small": (512, 256), "big": (512, 384)}


class CLAM_SB(MIL):
    """CLAM with one attention branch (Lu et al., Nature Biomedical Engineering 2021, arXiv:2004.09666).

        h_i = relu(W x_i + b)                                     in_dim -> 512
        s_i = w( tanh(V h_i) * sigma(U h_i) )                     512 -> 256 -> R branches; R = 1 (SB), n_classes (MB)
        A_r = softmax over tiles of s_r;   M_r = sum_i A_ri h_i
        SB: y = classifier(M_1)                                   MB: y_c = classifier_c(M_c)

    bags (B, 1, K, in_dim) -> logits (B, n_classes). scores: the branch (of the predicted class, in MB, as the official
    heat maps). extras: `attention` A (B, R, K), `attention_raw` s (B, R, K), `bag_feature` M (B, R, 512),
    `instance_logits` (B, K, n_classes, 2) of the instance heads, `mask` (B, K).

    Loss: bag_weight * L_ce + (1 - bag_weight) * L_inst, see `instance_loss`; bag_weight = 1 is the official
    `no_inst_cluster`.

    Options, by their official names: `size` ("small" 512/256, "big" 512/384), `gate`, `dropout` (.25; in training,
    after the ReLU; inside the gates the official rate is .25 whenever it is not 0), `k_sample` (its B), `inst_loss`
    ("svm", smooth top-1 SVM, the authors' recommended run; "ce", their code's default), `subtyping` (true in the
    official subtyping task, which both tasks of this study are), `bag_weight`.

    Against the official code (mahmoodlab/CLAM): it stops when a bag has fewer than k_sample tiles; here k is then the
    number of tiles. When 2 k exceeds that number a tile may be among the highest and the lowest, with both targets, as
    there. Slides are averaged in a batch (officially one slide a step).
    """

    multi = False

    def __init__(
        self,
        in_dim: int,
        n_classes: int,
        scales: tuple[int, ...],
        *,
        size: str = "small",
        gate: bool = True,
        dropout: float = 0.25,
        k_sample: int = 8,
        inst_loss: str = "svm",
        subtyping: bool = True,
        bag_weight: float = 0.7,
    ):
        super().__init__(in_dim, n_classes, scales)
        if size not in SIZES or inst_loss not in INSTANCE_LOSSES:
            raise InputError(
                f"CLAM: size is one of {list(SIZES)}, inst_loss one of {list(INSTANCE_LOSSES)}; "
                f"got size '{size}' and inst_loss '{inst_loss}'"
            )
        width, hidden = SIZES[size]
        self.k_sample, self.inst_loss, self.subtyping, self.bag_weight = k_sample, inst_loss, subtyping, bag_weight
        self.project = nn.Linear(in_dim, width)
        self.dropout = nn.Dropout(dropout)
        self.attention = Attention(width, hidden, n_classes if self.multi else 1, gate, 0.25 if dropout else 0.0)
        # one linear row a class either way: SB reads every row from M_1, MB row c from M_c
        self.classifier = nn.Linear(width, n_classes)
        self.instance_classifiers = nn.Linear(width, 2 * n_classes)  # rows 2c, 2c + 1: the head of class c

    def forward(self, bags, mask=None, coords=None, geometry=None) -> Output:
        mask = full_mask(bags, mask)
        h = self.dropout(self.project(bags[:, 0]).relu())  # (B, K, 512)
        raw = self.attention(h).transpose(1, 2)  # (B, R, K)
        attention = masked_softmax(raw, mask)
        M = attention @ h  # (B, R, 512)
        logits = (M * self.classifier.weight).sum(-1) + self.classifier.bias if self.multi else self.classifier(M[:, 0])
        branch = logits.argmax(-1) if self.multi else logits.new_zeros(len(logits), dtype=torch.long)
        scores = attention[torch.arange(len(h), device=h.device), branch].unsqueeze(1)
        instance_logits = self.instance_classifiers(h).unflatten(-1, (self.n_classes, 2))
        return Output(
            logits,
            scores,
            dict(
                attention=attention, attention_raw=raw, bag_feature=M, instance_logits=instance_logits, mask=mask[:, 0]
            ),
        )

    def loss(self, output: Output, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """bag_weight * L_ce + (1 - bag_weight) * L_inst."""
        e = output.extras
        ce = F.cross_entropy(output.logits, labels)
        inst = instance_loss(
            e["instance_logits"], e["attention"], e["mask"], labels, self.k_sample, self.inst_loss, self.subtyping
        )
        return self.bag_weight * ce + (1 - self.bag_weight) * inst, {"L_ce": ce.detach(), "L_inst": inst.detach()}


class CLAM_MB(CLAM_SB):
    """CLAM with one attention branch and one classifier row a class; everything else as `CLAM_SB`."""

    multi = True


def smooth_svm(logits: Tensor, targets: Tensor, tau: float = 1.0) -> Tensor:
    """Smooth top-1 SVM of each row: logits (..., n), targets (...) -> (...) (Berrada et al., ICLR 2018).

        d_j = logit_j + 1[j != y] - logit_y;   loss = tau log sum_j exp(d_j / tau)

    A row whose two largest logits are tau ln(1000) or more apart takes max_j d_j instead, as the authors' library does.
    """
    own = F.one_hot(targets, logits.shape[-1]).to(logits.dtype)
    margin = logits + 1 - own - (logits * own).sum(-1, keepdim=True)
    first, second = logits.topk(2, -1).values.unbind(-1)
    smooth = tau * torch.logsumexp(margin / tau, -1)
    return torch.where(first - second >= tau * math.log(1000), margin.amax(-1), smooth)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each row: logits (..., n), targets (...) -> (...)."""
    return -logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


INSTANCE_LOSSES = {"svm": smooth_svm, "ce": cross_entropy}


def select_instances(
    attention: Tensor, mask: Tensor, labels: Tensor, n_classes: int, k_sample: int, subtyping: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The tiles that each class's head learns from: ids, targets, used, each (B, n_classes, 2 k).

    attention (B, R, K), R = 1 or n_classes; mask (B, K); labels (B,). The class of the label: k highest tiles with
    target 1, then k lowest with target 0, both from the extreme inwards. Other classes: with `subtyping` k highest
    tiles with target 0, else none. `used` is False where an entry does not count. The choice itself has no gradient.
    """
    attention, mask = attention.detach(), mask.unsqueeze(1)  # mask (B, 1, K)
    k = min(k_sample, attention.shape[-1])
    top = attention.masked_fill(~mask, -torch.inf).topk(k).indices  # (B, R, k)
    low = attention.masked_fill(~mask, torch.inf).topk(k, largest=False).indices
    ids = torch.cat([top, low], -1).expand(-1, n_classes, -1)  # (B, n_classes, 2k)
    is_top = torch.arange(2 * k, device=ids.device) < k  # (2k,)
    there = torch.arange(2 * k, device=ids.device) % k < mask.sum(-1, keepdim=True)  # rank < number of tiles
    own = F.one_hot(labels, n_classes).bool().unsqueeze(-1)  # (B, n_classes, 1)
    return ids, (own & is_top).long(), there & (own | is_top if subtyping else own)


def instance_loss(
    instance_logits: Tensor,
    attention: Tensor,
    mask: Tensor,
    labels: Tensor,
    k_sample: int = 8,
    loss: str = "svm",
    subtyping: bool = True,
) -> Tensor:
    """CLAM's clustering loss, mean over slides.

    instance_logits (B, K, n_classes, 2), the two logits that the head of each class gives each tile; attention
    (B, R, K) after the softmax; mask (B, K); labels (B,). A class's loss is the mean over its tiles
    (`select_instances`); a slide's is their sum, divided by the number of classes only with `subtyping`, as officially.
    """
    n_classes = instance_logits.shape[2]
    ids, targets, used = select_instances(attention, mask, labels, n_classes, k_sample, subtyping)
    ids = ids.unsqueeze(-1).expand(-1, -1, -1, 2)
    chosen = instance_logits.transpose(1, 2).gather(2, ids)  # (B, n_classes, 2k, 2)
    each = INSTANCE_LOSSES[loss](chosen, targets).masked_fill(~used, 0)
    total = (each.sum(-1) / used.sum(-1).clamp(min=1)).sum(-1)  # (B,)
    return (total / n_classes if subtyping else total).mean()
