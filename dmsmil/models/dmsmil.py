"""DMSMIL, the paper's method, and DAMIL, its single-scale form."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from dmsmil.jobs.files import InputError
from dmsmil.models import transport
from dmsmil.models.base import MIL, Output, full_mask, masked_mean, mean_cross_entropy
from dmsmil.models.branches import Branches, check_choices


def class_layer(width: int, n_classes: int, head: str) -> nn.Linear:
    """The classifier of eq. (12): one logit a class (head="ce"), or one logit in all (head="sigmoid", two classes)."""
    check_choices(head=head)
    if head == "sigmoid" and n_classes != 2:
        raise InputError(f"head 'sigmoid' has one logit and so two classes, got {n_classes}: use head 'ce'")
    return nn.Linear(width, 1 if head == "sigmoid" else n_classes)


class BranchedMIL(MIL):
    """What DMSMIL and DAMIL share: `branches`, one a scale, and `classify`, eq. (12)."""

    branches: Branches
    classify: nn.Linear
    stacks = True

    def geometry(self, mask: Tensor, coords: Tensor | None = None) -> dict[str, Tensor]:
        """The layout of the slide maps: of the tile positions only their order matters, unless grid="position"."""
        return self.branches.geometry(mask, coords)

    def learn_inputs(self, bags: Iterable[Tensor], masks: Iterable[Tensor]) -> None:
        """See `Branches.learn_inputs`."""
        self.branches.learn_inputs(bags, masks)

    def conclude(self, found: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What `branches` found -> logits (B, n_classes), eq. (10)-(12), and more extras by name."""
        raise NotImplementedError

    def forward(
        self,
        bags: Tensor,
        mask: Tensor | None = None,
        coords: Tensor | None = None,
        geometry: dict[str, Tensor] | None = None,
    ) -> Output:
        """(B, S, K, C) -> Output; extras as `Branches` and `conclude` give them, and what `loss` needs."""
        mask = full_mask(bags, mask)
        found = self.branches(bags, mask, geometry or self.geometry(mask, coords))
        logits, more = self.conclude(found, mask)
        return Output(logits, found.pop("scores"), found | more | dict(mask=mask, given=bags))

    def grouped(self) -> str:
        """Every layer of the branches has an axis of groups, one a scale."""
        return "branches"

    def forward_stacked(
        self, slides: list[Tensor], mask: Tensor, geometry: dict[str, Tensor], values: dict[str, Tensor]
    ) -> Output:
        """The forward pass of R runs, see `stacked.Stack.forward`; values: the weights of all of them by name."""
        inner = {name.removeprefix("branches."): v for name, v in values.items() if name.startswith("branches.")}
        outer = {f"model.{name}": v for name, v in values.items() if not name.startswith("branches.")}
        where = {name: v.flatten(0, 1).unsqueeze(0) for name, v in geometry.items()}
        found = functional_call(self.branches, inner, (slides, mask.flatten(0, 1).unsqueeze(0), where))
        found = {name: v.unflatten(1, mask.shape[:2]).transpose(0, 1) for name, v in found.items()}
        mask, conclusion = mask.unsqueeze(1), _Conclusion(self)

        def alone(values, found, mask):
            return functional_call(conclusion, values, (found, mask))

        logits, more = torch.vmap(alone)(outer, found, mask)
        return Output(logits, found.pop("scores"), found | more | dict(mask=mask, given=slides))

    @torch.no_grad()
    def sampling(self, bags: Tensor, mask: Tensor | None = None, coords: Tensor | None = None) -> dict[str, Tensor]:
        """Where attention looks, for figures. L = K cells a map (196 with grid="square").

        reference (B, S, L, 2) and deformed (B, S, L, M, U, 2): r_q and r_q + dr_mqu in cells (x, y), before the border
        clamps them; attention (B, S, L, M, U): A_mqu. With coords also reference_px and deformed_px: the same points
        in level-0 pixels, interpolated between tile corners as the features are, with grid="position" counted in tiles
        from the corner of the first. With map="tile" the maps are
        (B, S, K, 16, ...) and have no pixels. Rows of padding mean nothing.
        """
        mask = full_mask(bags, mask)
        return self.branches.sampling(bags, mask, coords, self.geometry(mask, coords))

    @torch.no_grad()
    def looks(self, bags: Tensor, mask: Tensor | None = None, coords: Tensor | None = None) -> dict[str, Tensor]:
        """Shares of sampling points near the end of their reach and off the map, (B, S) each: see `Branches.looks`;
        nothing with deformable=False."""
        mask = full_mask(bags, mask)
        return {} if self.branches.attend is None else self.branches.looks(bags, mask, coords)

    def logits(self, features: Tensor) -> Tensor:
        """(B, d) -> (B, n_classes). One logit z becomes (0, z): its softmax is sigmoid(z), its CE the binary CE."""
        logits = self.classify(features)
        return torch.cat([torch.zeros_like(logits), logits], -1) if logits.shape[-1] == 1 else logits


class DAMIL(BranchedMIL):
    """The single-scale form, DAMIL_10x or DAMIL_20x: deformable attention, eq. (3)-(9), then the classifier (12).

    No transport; the one fusion weight of eq. (11) is 1, so it has no omega. Loss: L_ce. Options as in `DMSMIL`.
    318,258 parameters at 2048 features and two classes. Raises InputError for several scales or an unknown choice.
    """

    def __init__(
        self,
        in_dim: int,
        n_classes: int,
        scales: tuple[int, ...],
        *,
        projection_dim: int = 128,
        heads: int = 4,
        points: int = 4,
        deformable: bool = True,
        map: str = "slide",
        grid: str = "fill",
        attention: str = "linear",
        softmax: str = "points",
        offset: str = "dat",
        offset_lr: float = 0.1,
        query: str = "norm",
        head: str = "ce",
        activation: str = "none",
        standardise: bool = False,
        score: str = "mass",
    ):
        super().__init__(in_dim, n_classes, scales)
        if len(self.scales) != 1:
            raise InputError(f"DAMIL takes one scale, got {list(self.scales)}: use DMSMIL for several")
        self.branches = Branches(
            in_dim,
            1,
            projection_dim=projection_dim,
            heads=heads,
            points=points,
            deformable=deformable,
            map=map,
            grid=grid,
            attention=attention,
            softmax=softmax,
            offset=offset,
            offset_lr=offset_lr,
            query=query,
            activation=activation,
            standardise=standardise,
            score=score,
            shared=False,
        )
        self.classify = class_layer(projection_dim, n_classes, head)

    def conclude(self, found: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, n_classes) of x^, eq. (12); no more extras."""
        return self.logits(found["pooled"][:, 0]), {}


class DMSMIL(BranchedMIL):
    """Deformable attention inside each scale, transport between the scales, attention fusion of the scales.

        x_j = projection of tile j            w, x^ = deformable attention and mean, eq. (3)-(9)
        a^s = softmax_s( omega^T tanh(x^s) )  eq. (11);   g = sum_s a^s x^s  eq. (10);   logits = Lin(g)  eq. (12)
        L_train = L_ot + lam L_ce             eq. (14): lam multiplies L_ce, as printed

    636,386 parameters at 2048 features, two scales, two classes. Where the paper is open, the first choice is the
    default and the others are its variants:

    projection_dim, heads, points   d, M, U
    deformable   False: x^ is the mean of x_j (ablation of eq. 3-8)
    fusion       "attention" eq. (11); "mean": a^s = 1/S
    ot           "exact" W1, eq. (1)-(2); "none" (ablation); "entropic", "paired", "squared", and "blocks" for bags of
                 many hundred tiles: see `transport.distance`
    ot_on        eq. (1) on "projection" x_j; "raw": the given features, which leaves L_ot without a gradient (null
                 control); "unit": x_j / |x_j|; "relative": x_j by the bag's own mean distance between the scales, so
                 that L_ot has no unit, lies in [0, 1] but with ot="paired", and does not reward shrinking
    map          x~ of eq. (5) is the map of a "slide", one cell a tile; "tile": each feature is its own 4 x 4 map
                 (projected cell by cell), so that no attention crosses tiles
    grid         the n tiles "fill" their cells (the last row may stay open); "square": bilinear resampling to 14 x 14;
                 "position": a tile lies where it lies in the slide, empty places hold nothing (`maps.lay_in_place`)
    attention    "linear" logits from the query, eq. (4); "dot": keys and values, eq. (6)
    softmax      eq. (4) over the "points" of a head; "all": over heads and points
    offset       c of eq. (3) is one cell, s/H with s = 2 ("dat"); "cells": U + 1 cells, starting on rings
    offset_lr    the offsets' layer learns at this share of the rate; 0.1 is Deformable DETR's
    query        offsets and logits of eq. (3) and (4) come from z_q normalised ("norm", as DAT's), or "plain"
    gate         eq. (11) on "pooled" x^; "projection": on the mean of x_j; "projected": omega^T tanh(V x^ + b)
    head         eq. (13) "ce" of a logit a class; "sigmoid": one logit
    shared       one set of weights for all scales instead of one each
    activation   after the projection: "none", "relu", "gelu", "layernorm", "layernorm_relu"
    standardise  the projection reads features of mean 0 and deviation 1 over the tiles of the training slides
    score        of a tile: "mass" sum_m w_mj, which sums to 1 a scale; "norm": sum_m |W_m W'_m w_mj x_j|
    lam          lambda of eq. (14)

    Raises InputError for fewer than two scales or an unknown choice.
    """

    def __init__(
        self,
        in_dim: int,
        n_classes: int,
        scales: tuple[int, ...],
        *,
        projection_dim: int = 128,
        heads: int = 4,
        points: int = 4,
        deformable: bool = True,
        fusion: str = "attention",
        ot: str = "exact",
        ot_on: str = "projection",
        map: str = "slide",
        grid: str = "fill",
        attention: str = "linear",
        softmax: str = "points",
        offset: str = "dat",
        offset_lr: float = 0.1,
        query: str = "norm",
        gate: str = "pooled",
        head: str = "ce",
        shared: bool = False,
        activation: str = "none",
        standardise: bool = False,
        score: str = "mass",
        lam: float = 1.0,
    ):
        super().__init__(in_dim, n_classes, scales)
        if len(self.scales) < 2:
            raise InputError(f"DMSMIL takes two scales or more, got {list(self.scales)}: use DAMIL for one")
        check_choices(fusion=fusion, ot=ot, ot_on=ot_on, gate=gate)
        self.fusion, self.ot, self.ot_on, self.gate, self.lam = fusion, ot, ot_on, gate, lam
        self.branches = Branches(
            in_dim,
            len(self.scales),
            projection_dim=projection_dim,
            heads=heads,
            points=points,
            deformable=deformable,
            map=map,
            grid=grid,
            attention=attention,
            softmax=softmax,
            offset=offset,
            offset_lr=offset_lr,
            query=query,
            activation=activation,
            standardise=standardise,
            score=score,
            shared=shared,
        )
        if fusion == "attention":
            bound = 1 / math.sqrt(projection_dim)
            self.omega = nn.Parameter(torch.empty(projection_dim).uniform_(-bound, bound))
            self.project_gate = nn.Linear(projection_dim, projection_dim) if gate == "projected" else None
        self.classify = class_layer(projection_dim, n_classes, head)

    def conclude(self, found: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, n_classes) of g, eq. (10)-(12), and "fusion" a^s (B, S)."""
        fusion = self._fusion(found, mask)  # (B, S)
        logits = self.logits((fusion.unsqueeze(1) @ found["pooled"]).squeeze(1))
        return logits, {"fusion": fusion}

    def _fusion(self, found: dict[str, Tensor], mask: Tensor) -> Tensor:
        x = found["pooled"]
        if self.fusion == "mean":
            return x.new_full(x.shape[:2], 1 / len(self.scales))
        if self.gate == "projection":
            x = masked_mean(found["projection"].unflatten(-1, (-1, x.shape[-1])).mean(-2), mask)
        if self.project_gate is not None:
            x = self.project_gate(x)
        return (x.tanh() @ self.omega).softmax(-1)

    def loss(self, output: Output, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_ot + lam L_ce, and L_ce, L_ot (0 with ot="none") and spread, detached; with leading axes see `MIL.loss`.

        spread: root mean squared distance of the projected tiles of the batch to their mean, averaged over scales;
        L_ot alone would shrink it to 0, so it is logged beside it.
        """
        between, ce = self.terms(output, labels)
        named = {"L_ce": ce.detach(), "L_ot": between.detach(), "spread": self.spread(output)}
        return between + self.lam * ce, named

    @torch.no_grad()
    def spread(self, output: Output) -> Tensor:
        """See `loss`: (...)."""
        mask, projection = output.extras["mask"], output.extras["projection"]
        x = projection.transpose(-4, -3).flatten(-3, -2)  # (..., S, B K, D)
        there = mask.transpose(-3, -2).flatten(-2)  # (..., S, B K)
        squares = (x - masked_mean(x, there).unsqueeze(-2)).square().sum(-1, keepdim=True)
        return masked_mean(squares, there).squeeze(-1).sqrt().mean(-1)

    def terms(self, output: Output, labels: Tensor) -> tuple[Tensor, Tensor]:
        """L_ot (0 with ot="none") and L_ce."""
        ce = mean_cross_entropy(output.logits, labels)
        if self.ot == "none":
            return torch.zeros_like(ce), ce
        return transport.distance(self.transported(output), output.extras["mask"], self.ot), ce

    def pulls(self, output: Output, labels: Tensor) -> dict[str, float]:
        """Who decides what the projection becomes: gradient_ot and gradient_ce, the norms of the gradients of L_ot and
        of lam L_ce on its weights. `output` must still have its graph."""
        between, ce = self.terms(output, labels)
        weight, found = self.branches.project.weight, {}
        for name, term in (("gradient_ot", between), ("gradient_ce", self.lam * ce)):
            slope = torch.autograd.grad(term, weight, retain_graph=True)[0] if term.requires_grad else None
            found[name] = 0.0 if slope is None else float(slope.norm())
        return found

    def transported(self, output: Output) -> Tensor:
        """What eq. (1) moves: (..., B, S, K, D)."""
        if self.ot_on == "raw":
            given = output.extras["given"]
            return torch.stack(given) if isinstance(given, list) else given
        projection = output.extras["projection"]
        if self.ot_on == "unit":
            return F.normalize(projection, dim=-1)
        if self.ot_on == "relative":
            return projection / transport.mean_distance(projection, output.extras["mask"])[..., None, None, None]
        return projection


class _Conclusion(nn.Module):
    """`conclude` of a model as the forward pass of a module, which is what `functional_call` calls."""

    def __init__(self, model: BranchedMIL):
        super().__init__()
        self.model = model

    def forward(self, found: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.model.conclude(found, mask)
