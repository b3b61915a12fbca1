"""LA-MIL and GA-MIL (Reisenbuechler 2022): attention among near tiles, or among all of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmsmil.jobs.files import InputError
from dmsmil.models.base import MIL, Output, full_mask, masked_mean, masked_softmax


def nearest(mask: Tensor, coords: Tensor, k: int) -> Tensor:
    """The k nearest tiles of each tile by Euclidean distance, itself first; equal distances by position in the bag.

    mask (B, K), coords (B, K, 2) -> (B, K, min(k, K)) int32, -1 where the slide has fewer tiles (and for no tile).
    """
    width = min(k, mask.shape[1])
    lists = []
    for there, place in zip(mask, coords.double()):  # a slide at a time: K x K is kept for one slide only
        distance = (place[:, None] - place[None]).square().sum(-1).masked_fill(~there, torch.inf)
        distance.fill_diagonal_(-1)
        order = distance.argsort(dim=1, stable=True)[:, :width].int()
        keep = there[:, None] & there[order.long()]
        lists.append(order.masked_fill(~keep, -1))
    return torch.stack(lists)


def neighbourhood(lists: Tensor, k: int) -> Tensor:
    """The first k entries of neighbour lists as a mask: (B, K, >= k) -> (B, K, K) bool, row = the tile that looks."""
    n = lists.shape[1]
    index = lists[..., :k].long()
    allowed = torch.zeros((*lists.shape[:2], n + 1), dtype=torch.bool, device=lists.device)
    return allowed.scatter_(2, index.where(index >= 0, n), True)[..., :n]


class TileAttention(nn.Module):
    """h + W_o softmax_j(q_i . k_j / sqrt(d)) v_j over the allowed pairs: (B, K, C), (B, 1, K or 1, K) -> (B, K, C) and
    the weights (B, heads, K, K). Logits are clamped to [-clamp, clamp] when a clamp is given."""

    def __init__(self, width: int, heads: int, clamp: float | None, dropout: float):
        super().__init__()
        if width % heads:
            raise InputError(f"latent_dim {width} is not a multiple of {heads} heads: change one of them")
        self.heads, self.clamp = heads, clamp
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.to_qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        logits = q @ k.mT * q.shape[-1] ** -0.5
        if self.clamp is not None:
            logits = logits.clamp(-self.clamp, self.clamp)
        weights = masked_softmax(logits, allowed)
        return h + self.dropout(self.out((weights @ v).transpose(1, 2).flatten(2))), weights


class LAMIL(MIL):
    """LA-MIL, and GA-MIL by `architecture="GA_MIL"`. Reisenbuechler et al., "Local Attention Graph-based Transformer
    for Multi-target Genetic Alteration Prediction", MICCAI 2022.

        h = relu(W x);   layer l:  e_ij = exp(clamp(q_i . k_j / sqrt(d), -5, 5)) for the k_l tiles j nearest to i
        h_i = h_i + W_l (sum_j e_ij v_j / sum_j e_ij);      logits = W' mean_i h_i

    Nearest by Euclidean distance of the coordinates, the tile itself included; equal distances, frequent on a grid and
    left open by the publication, go to the tile first in the bag; k is clipped to the slide's tiles. The neighbour
    lists are the `geometry`. No normalisation, no feed-forward layer. GA-MIL attends to all tiles, without the clamp,
    with dropout .1 after the output projection.
    scores: the attention a tile receives in the last layer, averaged over heads and over the tiles that look: its
    weight in the mean-pooled update; they sum to 1. Loss: cross-entropy.
    Where the code departs: a graph library replaced by a masked dense attention with the same result; GA-MIL's
    LayerNorms, created and never used, are left out. 3,148,290 parameters at 2048-d (GA-MIL the same; its repository
    has 2,048 more that are never used). With more layers than graphs the repository drops layers: an error here.

    Options: architecture ("LA_MIL", "GA_MIL"), latent_dim, num_heads, depth, k (neighbours of each layer).
    """

    def __init__(
        self,
        in_dim: int,
        n_classes: int,
        scales: tuple[int, ...],
        *,
        architecture: str = "LA_MIL",
        latent_dim: int = 512,
        num_heads: int = 8,
        depth: int = 2,
        k: tuple[int, ...] = (16, 64),
    ):
        super().__init__(in_dim, n_classes, scales)
        if architecture not in ("LA_MIL", "GA_MIL"):
            raise InputError(f"unknown architecture '{architecture}': LA_MIL or GA_MIL")
        local = architecture == "LA_MIL"
        if local and len(k) != depth:
            raise InputError(f"LA-MIL needs one k a layer, got {list(k)} for depth {depth}: give {depth} of them")
        self.k = tuple(k) if local else ()
        self.project = nn.Linear(in_dim, latent_dim)
        self.layers = nn.ModuleList(
            TileAttention(latent_dim, num_heads, *((5.0, 0.0) if local else (None, 0.1))) for _ in range(depth)
        )
        self.classifier = nn.Linear(latent_dim, n_classes)

    def geometry(self, mask: Tensor, coords: Tensor) -> dict[str, Tensor]:
        """neighbours (B, K, min(max k, K)) int32: see `nearest`; nothing for GA-MIL."""
        return {"neighbours": nearest(mask[:, 0], coords[:, 0], max(self.k))} if self.k else {}

    def forward(
        self,
        bags: Tensor,
        mask: Tensor | None = None,
        coords: Tensor | None = None,
        geometry: dict[str, Tensor] | None = None,
    ) -> Output:
        """(B, 1, K, C) and coords (B, 1, K, 2) -> Output; extras: bag_feature (B, latent_dim)."""
        mask = full_mask(bags, mask)
        if self.k and not geometry:
            if coords is None:
                raise InputError("LA-MIL needs the positions of the tiles: pass coords (B, 1, K, 2)")
            geometry = self.geometry(mask, coords)
        mask = mask[:, 0]
        h = self.project(bags[:, 0]).relu()
        for index, layer in enumerate(self.layers):
            allowed = neighbourhood(geometry["neighbours"], self.k[index]) if self.k else mask[:, None]
            h, weights = layer(h, allowed[:, None])
        received = masked_mean(weights.detach().mean(1), mask) * mask
        feature = masked_mean(h, mask)
        return Output(self.classifier(feature), received[:, None], {"bag_feature": feature})
