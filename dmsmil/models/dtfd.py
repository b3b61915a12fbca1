"""DTFD-MIL: double-tier feature distillation over pseudo-bags, all three distillation modes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmsmil.jobs.files import InputError
from dmsmil.models.abmil import Attention
from dmsmil.models.base import MIL, Output, full_mask, masked_softmax

DISTILLATIONS = ("MaxMinS", "MaxS", "AFS")


class DTFD(MIL):
    """Pseudo-bags of one scale, and a second attention over what they distil (Zhang et al., CVPR 2022,
    arXiv:2203.12081).

        h_i = relu(W x_i)                                                no bias, in_dim -> mDim
        the tiles are dealt to numGroup pseudo-bags; in each, a = softmax over its tiles of s_i (gated, mDim -> D -> 1)
        tier 1:  z_g = sum_i a_i h_i;   sub logits = classifier(z_g)
        derived score of a tile:  r_i = softmax over classes of (a_i h_i . w_c), the classifier's weights without bias
        pseudo-features of a pseudo-bag, tiles sorted by r_i of the last class, per = total_instance // numGroup:
            AFS: z_g;     MaxS: h of the first `per`;     MaxMinS: h of the first `per` and of the last `per`
        tier 2:  b = softmax over pseudo-features of s'_j;   y = classifier'(sum_j b_j f_j)

    bags (B, 1, K, in_dim) -> logits y (B, n_classes). scores: the weight with which a tile's h enters the slide's
    vector: b_g a_i (AFS) or b of the features it was selected for; they sum to 1. extras: `sub_logits` (B, G,
    n_classes) and `there` (B, G), the pseudo-bags that have a tile; `group` (B, K); `attention` a (B, K) and
    `attention_raw` s (B, K); `tile_probability` r (B, K, n_classes); `selected` (B, J) tile of each pseudo-feature
    (empty for AFS), `pseudo` f (B, J, mDim), `pseudo_there` (B, J) and `pseudo_attention` b (B, J).

    Loss: L_tier1 + L_ce, L_tier1 the mean over pseudo-bags of CE(sub logits, slide label), L_ce = CE(y, label).
    Officially two optimisers: tier 1 learns from L_tier1 alone and tier 2 from L_ce alone. Here, in training, the
    pseudo-features are detached, so that one optimiser over the sum makes the same steps (Adam acts on each parameter
    alone). In evaluation nothing is detached: the logits have gradients with respect to the tiles.

    Grouping: in training a fresh shuffle every step, from torch's generator. In evaluation officially also a fresh
    shuffle, so that the same slide gets a new answer each time; here a fixed one: tiles are ordered by a hash of their
    coordinates (without coords, of their rank in the bag) and of `shuffle_seed`. The first K mod numGroup pseudo-bags
    have one tile more; with fewer tiles than pseudo-bags each tile is one, and there are no empty ones.

    Options, by their official names: `distill` ("AFS", "MaxS", "MaxMinS"; the paper reports all), `numGroup`,
    `total_instance`, `mDim`, `D`. No dropout (the official rates are 0) and no residual blocks (officially 0).

    Against the official code (hrzhang1123/DTFD-MIL): its AFS step stops on current PyTorch (in-place modification;
    detaching is equivalent); it reports, as test loss, the probability instead of its logarithm. A pseudo-bag of fewer
    than `per` tiles gives those it has, so that MaxMinS may select a tile twice, as there.
    """

    def __init__(
        self,
        in_dim: int,
        n_classes: int,
        scales: tuple[int, ...],
        *,
        distill: str = "AFS",
        numGroup: int = 4,
        total_instance: int = 4,
        mDim: int = 512,
        D: int = 128,
        shuffle_seed: int = 0,
    ):
        super().__init__(in_dim, n_classes, scales)
        if distill not in DISTILLATIONS:
            raise InputError(f"DTFD-MIL: distill is one of {list(DISTILLATIONS)}, got '{distill}'")
        if not 1 <= numGroup <= total_instance:
            raise InputError(
                f"DTFD-MIL: total_instance ({total_instance}) must be at least numGroup ({numGroup}), "
                "and numGroup at least 1"
            )
        self.distill, self.shuffle_seed = distill, shuffle_seed
        self.picks = distill != "AFS"  # a few tiles of each pseudo-bag are all that has a score
        self.groups, self.per = numGroup, total_instance // numGroup
        self.project = nn.Linear(in_dim, mDim, bias=False)
        self.attention = Attention(mDim, D)
        self.classifier = nn.Linear(mDim, n_classes)
        self.attention2 = Attention(mDim, D)
        self.classifier2 = nn.Linear(mDim, n_classes)

    def ranks(self, mask: Tensor, coords: Tensor | None) -> Tensor:
        """(B, K) place of each tile in the shuffled bag, masked tiles last: random in training, else fixed."""
        if self.training:
            key = torch.randint(1 << 31, mask.shape, device=mask.device)
        elif coords is None:
            key = scramble(mask.cumsum(-1), self.shuffle_seed)
        else:
            key = scramble(coords[..., 0], scramble(coords[..., 1], self.shuffle_seed))
        key = key.masked_fill(~mask, 1 << 31)  # keys are below 2^31
        return key.argsort(dim=-1, stable=True).argsort(dim=-1)

    def forward(self, bags, mask=None, coords=None, geometry=None) -> Output:
        mask = full_mask(bags, mask)[:, 0]  # (B, K)
        group = deal(self.ranks(mask, None if coords is None else coords[:, 0]), mask, self.groups)
        member = F.one_hot(group, self.groups).bool().transpose(1, 2) & mask.unsqueeze(1)  # (B, G, K)
        there = member.any(-1)  # (B, G)

        h = self.project(bags[:, 0]).relu()  # (B, K, mDim)
        raw = self.attention(h).squeeze(-1)  # (B, K)
        inside = masked_softmax(raw.unsqueeze(1), member)  # (B, G, K)
        attention = inside.sum(1)  # (B, K)
        z = inside @ h  # (B, G, mDim)
        probability = (attention.unsqueeze(-1) * F.linear(h, self.classifier.weight)).softmax(-1)

        if self.distill == "AFS":
            selected, pseudo, pseudo_there = group.new_zeros(len(h), 0), z, there
        else:
            selected, pseudo_there = self.select(probability[..., -1].detach(), member)
            pseudo = h.gather(1, selected.unsqueeze(-1).expand(-1, -1, h.shape[-1]))  # (B, J, mDim)
        if self.training:
            pseudo = pseudo.detach()
        weight = masked_softmax(self.attention2(pseudo).squeeze(-1), pseudo_there)  # (B, J)
        logits = self.classifier2((weight.unsqueeze(1) @ pseudo).squeeze(1))

        if self.distill == "AFS":
            scores = attention * weight.gather(1, group) * mask
        else:
            scores = torch.zeros_like(raw).scatter_add(1, selected, weight)
        return Output(
            logits,
            scores.unsqueeze(1),
            dict(
                sub_logits=self.classifier(z),
                there=there,
                group=group,
                attention=attention,
                attention_raw=raw,
                tile_probability=probability,
                selected=selected,
                pseudo=pseudo,
                pseudo_there=pseudo_there,
                pseudo_attention=weight,
            ),
        )

    def select(self, score: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles of the highest (MaxMinS: then of the lowest) score of each pseudo-bag, in descending order.

        score (B, K), member (B, G, K) -> ids (B, J) and whether each is there (B, J), pseudo-bag after pseudo-bag.
        """
        per, size = min(self.per, score.shape[-1]), member.sum(-1, keepdim=True)  # (B, G, 1)
        score, rank = score.unsqueeze(1), torch.arange(per, device=score.device)
        ids = score.masked_fill(~member, -torch.inf).topk(per).indices  # (B, G, per)
        there = rank < size
        if self.distill == "MaxMinS":
            low = score.masked_fill(~member, torch.inf).topk(per, largest=False).indices
            ids, there = torch.cat([ids, low.flip(-1)], -1), torch.cat([there, (rank < size).flip(-1)], -1)
        return ids.flatten(1), there.flatten(1)

    def loss(self, output: Output, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_tier1 + L_ce."""
        sub, there = output.extras["sub_logits"], output.extras["there"]
        each = F.cross_entropy(sub.flatten(0, 1), labels.repeat_interleave(sub.shape[1]), reduction="none")
        tier1 = ((each.view_as(there) * there).sum(-1) / there.sum(-1).clamp(min=1)).mean()
        tier2 = F.cross_entropy(output.logits, labels)
        return tier1 + tier2, {"L_ce": tier2.detach(), "L_tier1": tier1.detach()}


def deal(ranks: Tensor, mask: Tensor, groups: int) -> Tensor:
    """(B, K) pseudo-bag of each tile: consecutive ranks, the first n mod groups of them one tile larger.

    ranks (B, K) from 0, masked tiles last (they get some pseudo-bag too, and count nowhere); mask (B, K).
    """
    n = mask.sum(-1, keepdim=True)
    small, larger = n // groups, n % groups
    border = larger * (small + 1)  # first rank of the smaller ones
    group = torch.where(ranks < border, ranks // (small + 1), larger + (ranks - border) // small.clamp(min=1))
    return group.clamp(max=groups - 1)


def scramble(value: Tensor, seed: Tensor | int) -> Tensor:
    """Integers to scattered integers in [0, 2^31), the same on every machine."""
    key = (value.long() * 0x9E3779B1 + seed * 0x85EBCA6B + 0x27D4EB2F) & 0x7FFFFFFF
    for _ in range(3):
        key = ((key ^ (key >> 15)) * 0x2C1B3C6D) & 0x7FFFFFFF
    return key
