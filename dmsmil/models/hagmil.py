"""HAG-MIL (Xiong 2023): one level on a single scale, and the hierarchy over linked scales."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmsmil.jobs.files import InputError
from dmsmil.models.abmil import Attention
from dmsmil.models.base import MIL, Output, full_mask, mean_cross_entropy
from dmsmil.models.clam import INSTANCE_LOSSES, instance_loss
from dmsmil.models.nystrom import NystromAttention, by_count

OMEGA = math.sqrt(9 / math.log(9) - 1)  # 1.7596: what admin-torch gives the residual of a network of this depth


class Block(nn.Module):
    """One integrated attention block: tokens (B, n, in_dim) -> tokens (B, n, width), slide vector (B, final),
    score logits (B, n), instance features (B, n, size[0]).

        u = GELU(LN(W x));   u = omega u + Nystrom(LN'(u));   e = dropout(GELU(W_e LN''(u)))
        A = softmax_i(gated score of e);   r = GELU(LN(W_r LN''(sum_i A_i u_i)))         the same LN'' twice
    """

    def __init__(self, in_dim: int, width: int, final: int, size: tuple[int, int], dropout: float):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(in_dim, width), nn.LayerNorm(width), nn.GELU())
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = NystromAttention(width, landmarks=width // 2, dropout=0.3)
        self.instance = nn.Sequential(nn.Linear(width, size[0]), nn.GELU(), nn.Dropout(dropout))
        self.score = Attention(size[0], size[1], 1, True, dropout)
        self.to_final = nn.Sequential(nn.Linear(width, final), nn.LayerNorm(final), nn.GELU())

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        u = self.project(tokens)
        u = OMEGA * u + self.attention(self.attention_norm(u))[0]
        instances = self.instance(self.norm(u))
        raw = self.score(instances)[..., 0]
        pooled = torch.einsum("bn,bnc->bc", raw.softmax(-1), u)
        return u, self.to_final(self.norm(pooled)), raw, instances


class HAGMIL(MIL):
    """HAG-MIL on one scale: one level of the model, without its hierarchy (see HAGMILHier). Xiong et al., "Diagnose
    Like a Pathologist: Transformer-Enabled Hierarchical Attention-Guided Multiple Instance Learning for Whole Slide
    Image Classification", IJCAI 2023.

        four blocks j (see Block), each on the tokens of the one before, give r_j;
        z = sum_j w_j r_j + b;   logits = W z

    Eight heads, width / 2 landmarks. The order of the tiles matters (raster order); slides of unequal n are computed
    apart. scores: A of the last block (sums to 1); extras: attention_raw before the softmax (B, 1, K), attention,
    bag_feature z, slide_vectors (B, 4, final), instance_logits (B, K, n_classes, 2), mask.
    Loss: bag_weight * CE + inst_weight * CLAM's instance loss on the last block, of the label's head alone unless
    `subtyping`. The repository's main script hands its configuration over as one positional argument, so that most of
    it is ignored: our defaults are those of its code. 31,250,479 parameters at 2048-d.

    Options: hidden_dims (of the blocks), size (score network), dropout, k_sample, subtyping, inst_loss ("svm", "ce"),
    bag_weight, inst_weight, label_smoothing (of the CE).
    """

    def __init__(
        self,
        in_dim: int,
        n_classes: int,
        scales: tuple[int, ...],
        *,
        hidden_dims: tuple[int, ...] = (1024, 1536, 512, 1024),
        size: tuple[int, int] = (512, 256),
        dropout: float = 0.25,
        k_sample: int = 8,
        subtyping: bool = False,
        inst_loss: str = "svm",
        bag_weight: float = 0.5,
        inst_weight: float = 0.5,
        label_smoothing: float = 0.0,
    ):
        super().__init__(in_dim, n_classes, scales)
        if inst_loss not in INSTANCE_LOSSES:
            raise InputError(f"HAG-MIL: unknown inst_loss '{inst_loss}': " + " or ".join(INSTANCE_LOSSES))
        self.k_sample, self.subtyping, self.inst_loss = k_sample, subtyping, inst_loss
        self.bag_weight, self.inst_weight, self.label_smoothing = bag_weight, inst_weight, label_smoothing
        widths = [in_dim, *hidden_dims]
        self.blocks = nn.ModuleList(
            Block(before, width, widths[-1], tuple(size), dropout) for before, width in zip(widths, widths[1:])
        )
        self.weights = nn.Linear(len(hidden_dims), 1)
        self.instance_classifiers = nn.Linear(size[0], 2 * n_classes)  # rows 2c, 2c + 1: the head of class c
        self.classifier = nn.Linear(widths[-1], n_classes)

    def forward(
        self,
        bags: Tensor,
        mask: Tensor | None = None,
        coords: Tensor | None = None,
        geometry: dict[str, Tensor] | None = None,
    ) -> Output:
        """(B, 1, K, C) -> Output."""
        mask = full_mask(bags, mask)
        b, k = len(bags), bags.shape[2]
        vectors = bags.new_zeros(b, len(self.blocks), self.classifier.in_features)
        raw = bags.new_zeros(b, k)
        instance_logits = bags.new_zeros(b, k, 2 * self.n_classes)
        for _, slides, tiles in by_count(mask[:, 0]):
            tokens, found = bags[:, 0][slides[:, None], tiles], []
            for block in self.blocks:
                tokens, vector, score, instances = block(tokens)
                found.append(vector)
            place = (slides[:, None], tiles)
            vectors = vectors.index_copy(0, slides, torch.stack(found, 1))
            raw = raw.index_put(place, score)
            instance_logits = instance_logits.index_put(place, self.instance_classifiers(instances))
        attention = raw.masked_fill(~mask[:, 0], -torch.inf).softmax(-1)
        feature = self.weights(vectors.mT)[..., 0]
        return Output(
            self.classifier(feature),
            attention.detach()[:, None],
            {
                "attention": attention[:, None],
                "attention_raw": raw[:, None],
                "bag_feature": feature,
                "slide_vectors": vectors,
                "instance_logits": instance_logits.unflatten(-1, (self.n_classes, 2)),
                "mask": mask[:, 0],
            },
        )

    def loss(self, output: Output, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """bag_weight * L_ce, smoothed by label_smoothing, + inst_weight * L_inst."""
        e = output.extras
        ce = F.cross_entropy(output.logits, labels, label_smoothing=self.label_smoothing)
        inst = instance_loss(
            e["instance_logits"], e["attention"], e["mask"], labels, self.k_sample, self.inst_loss, self.subtyping
        )
        plain = mean_cross_entropy(output.logits, labels)
        return self.bag_weight * ce + self.inst_weight * inst, {"L_ce": plain.detach(), "L_inst": inst.detach()}


class HAGMILHier(MIL):
    """HAG-MIL as published: a model a scale, coarse to fine, each choosing where the next one looks.

        level s reads its tiles; the share_of_tiles of them with the highest attention pass on the tiles linked to them
        at scale s + 1 (row j of one scale is the child of row j of the one before); logits are the finest level's

    The choice has no gradient, so each level learns from its own loss: the sum over levels of .5 CE + .5 instance loss,
    the CE smoothed by label_smoothing at every level but the finest. (The repository takes a step after each level;
    levels share nothing but the choice.) Here a tile has one linked child, not four, and the chosen ones keep raster
    order, where the repository lines them up by attention; a tile without a child cannot be chosen.
    scores: each level's attention over the tiles it read, 0 for tiles that were not passed on. extras: levels, the
    Output of each; chosen (B, S, K) bool, what each level read. 31,250,479 parameters a scale at 2048-d.

    Options: share_of_tiles (0 to 1; the repository's counterpart is a number, at most 7000 tiles), label_smoothing,
    and those of HAGMIL.
    """

    def __init__(
        self,
        in_dim: int,
        n_classes: int,
        scales: tuple[int, ...],
        *,
        share_of_tiles: float = 0.5,
        hidden_dims: tuple[int, ...] = (1024, 1536, 512, 1024),
        size: tuple[int, int] = (512, 256),
        dropout: float = 0.25,
        k_sample: int = 8,
        subtyping: bool = False,
        inst_loss: str = "svm",
        bag_weight: float = 0.5,
        inst_weight: float = 0.5,
        label_smoothing: float = 0.1,
    ):
        super().__init__(in_dim, n_classes, scales)
        if not 0 < share_of_tiles <= 1:
            raise InputError(f"share_of_tiles is {share_of_tiles}: it must be above 0 and at most 1")
        self.share_of_tiles = share_of_tiles
        self.picks = share_of_tiles ** (len(self.scales) - 1) < 0.1  # so few are passed on, wherever it looks
        self.levels = nn.ModuleList(
            HAGMIL(
                in_dim,
                n_classes,
                (scale,),
                hidden_dims=hidden_dims,
                size=size,
                dropout=dropout,
                k_sample=k_sample,
                subtyping=subtyping,
                inst_loss=inst_loss,
                bag_weight=bag_weight,
                inst_weight=inst_weight,
                label_smoothing=0.0 if scale == scales[-1] else label_smoothing,
            )
            for scale in scales
        )

    def forward(
        self,
        bags: Tensor,
        mask: Tensor | None = None,
        coords: Tensor | None = None,
        geometry: dict[str, Tensor] | None = None,
    ) -> Output:
        """(B, S, K, C), row j linked across scales -> Output."""
        mask = full_mask(bags, mask)
        read, outputs, chosen = mask[:, 0], [], []
        for s, level in enumerate(self.levels):
            chosen.append(read)
            outputs.append(level(bags[:, s : s + 1], read[:, None]))
            if s + 1 < len(self.levels):
                read = self.choose(outputs[-1].scores[:, 0], read, mask[:, s + 1])
        return Output(
            outputs[-1].logits,
            torch.cat([o.scores for o in outputs], 1),
            {"levels": outputs, "chosen": torch.stack(chosen, 1)},
        )

    def choose(self, attention: Tensor, read: Tensor, child: Tensor) -> Tensor:
        """The tiles passed on, (B, K) bool: the highest of those read that have a child; at least one, if any has."""
        number = (read.sum(1, keepdim=True) * self.share_of_tiles).ceil()
        able = read & child
        order = attention.masked_fill(~able, -1).argsort(dim=1, descending=True, stable=True)
        return (order.argsort(1) < number) & able

    def loss(self, output: Output, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum over levels, and so is L_inst; L_ce is that of the finest, which answers."""
        found = [level.loss(out, labels) for level, out in zip(self.levels, output.extras["levels"])]
        inst = sum(terms["L_inst"] for _, terms in found)
        return sum(value for value, _ in found), {"L_ce": found[-1][1]["L_ce"], "L_inst": inst}
