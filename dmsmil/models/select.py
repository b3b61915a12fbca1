"""DMSMIL-Select: two linked scales with deformable attention, and transport where asked, that can choose their tiles.

What differs from `dmsmil.DMSMIL`, and why (notation as there; M heads, n tiles of a slide at a scale):

    x_j = projection of half-whitened components       the unit of the encoder does not matter, and what varies most
                                                       does not drown the rest
    y_j = x_j + sum_m W_m sum_u A_mju W'_m x(r_j + dr_mju)
                                                       eq. (8) of each tile, kept; with the keys of eq. (6) a point is
                                                       preferred for what lies there; offsets within one cell, learned
                                                       slowly; tiles where they lie in the slide
    l_j = sum_s mean_{i near j} w_s^T ( tanh(V_s y_si) * sigma(U_s y_si) )
    a_j = softmax_j b tanh(l_j / b)                    a gate (ABMIL's) in place of the plain mean of eq. (9); linked
                                                       tiles have one gate, that of their neighbourhood of 3 x 3
                                                       places, and no tile weighs more than e^2b times another
    x^  = sum_j a_j y_j                                then fusion and classifier, eq. (10)-(12)
    L   = L_ce + mu (L_ot + L_link)

W_m and w are 0 at the start: the model begins as mean pooling of the projected tiles, and can only learn to choose.

L_ot is W1 between the scales with the gates as the weights of the tiles: what 10x looks at has to be what 20x looks at.
It is divided by the bag's own mean distance, so that it is a number without a unit and does not reward shrinking.
L_link is the cross-entropy of finding, among all tiles of the other scale, the one that a tile is linked with (a 10x
tile and its own 20x child), by its square, divided by log n: 1 where nothing is told apart.

L_ot and L_link are off unless asked for: by the rule of docs/select.md they did not earn a weight. None of this is the
paper's, and no claim of the paper is judged by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor, nn

from dmsmil.jobs.files import InputError
from dmsmil.models.base import Output, masked_softmax, mean_cross_entropy
from dmsmil.models.branches import Branches
from dmsmil.models.deformable import DeformableAttention, ScaleLinear, affine, affine_each
from dmsmil.models.dmsmil import DMSMIL
from dmsmil.models.maps import Maps
from dmsmil.models.matching import heaviest, link_loss, squared_distances, weighted_distance
from dmsmil.models.transport import mean_distance

FLOOR = 1e-3  # of the variance of a component, in the mean variance of those that are kept


class TileAttention(DeformableAttention):
    """Deformable attention whose output is kept for each tile, before any pooling."""

    def __init__(self, *options):
        super().__init__(*options)
        nn.init.zeros_(self.output.weight)

    def each(self, x: Tensor, maps: Maps) -> Tensor:
        """Eq. (8) of every tile: x (S, N, L, C) -> (S, N, L, C).

        Bilinear sampling is linear: what tile j reads in head m is row j of a matrix (L, L) times the values, which is
        far less than all sampled features.
        """
        samples = self.sample(x, maps)
        mass = (samples.attention.unsqueeze(-1) * samples.weight).transpose(2, 3).flatten(-2)  # (S, N, M, L, 4U)
        index = samples.index.transpose(2, 3).flatten(-2)
        reads = mass.new_zeros(*mass.shape[:-1], x.shape[2]).scatter_add(-1, index, mass)  # (S, N, M, L, L)
        values = self.value(x).unflatten(-1, (self.heads, -1)).transpose(2, 3)  # (S, N, M, L, d)
        return self.output((reads @ values).transpose(2, 3).flatten(-2))


class Gate(nn.Module):
    """Logit of each tile, w^T ( tanh(V y) * sigma(U y) ): (S, N, L, C) -> (S, N, L); 0 at the start."""

    def __init__(self, groups: int, dim: int, hidden: int):
        super().__init__()
        self.both = ScaleLinear(groups, dim, 2 * hidden)
        self.weigh = ScaleLinear(groups, hidden, 1, bias=False)
        nn.init.zeros_(self.weigh.weight)

    def forward(self, y: Tensor) -> Tensor:
        what, whether = self.both(y).chunk(2, -1)
        return self.weigh(what.tanh() * whether.sigmoid()).squeeze(-1)


class SelectingBranches(Branches):
    """`Branches` in which every tile keeps its own output, and a gate weighs the tiles.

    components: the projection reads so many whitened components in place of the features, see `DMSMILSelect`; 0: the
    features. forward gives projection, pooled and scores as there; scores are the gates a_j,
    with their graph as "gates". joint: linked tiles have one gate, made of what each scale sees there; smooth and
    bound: see `DMSMILSelect`.
    """

    Attention = TileAttention

    def __init__(
        self,
        in_dim: int,
        n_scales: int,
        *,
        hidden: int,
        gates: bool,
        joint: bool,
        smooth: bool,
        bound: float,
        power: float,
        components: int,
        **options,
    ):
        components, self.power = min(components, in_dim), power
        super().__init__(components or in_dim, n_scales, **options)
        self.whiten = components > 0
        if self.whiten:  # not trained: parameters, so that a stack of runs has those of each
            self.whitening = nn.Parameter(torch.eye(in_dim, components).repeat(n_scales, 1, 1), requires_grad=False)
            self.shift = nn.Parameter(torch.zeros(n_scales, components), requires_grad=False)
        self.gate = Gate(n_scales, options["projection_dim"], hidden) if gates else None
        self.joint, self.smooth, self.bound, self.n_scales = joint, smooth and gates, bound, n_scales

    @torch.no_grad()
    def learn_inputs(self, bags: Iterable[Tensor], masks: Iterable[Tensor]) -> None:
        """With `components`, the principal components of the tiles that are trained on, for each scale: see `Branches`
        for the arguments. A component of which the tiles have next to nothing is left small, not blown up."""
        if not self.whiten:
            return super().learn_inputs(bags, masks)
        count, total, products = 0, 0, 0
        for bag, mask in zip(bags, masks):
            x = bag.double() * mask.unsqueeze(-1)
            count, total, products = count + mask.sum(-1), total + x.sum(1), products + x.transpose(1, 2) @ x
        mean = total / count.unsqueeze(-1)
        covariance = products / count[:, None, None] - mean.unsqueeze(2) * mean.unsqueeze(1)
        variance, axes = torch.linalg.eigh(covariance)  # ascending
        kept = self.shift.shape[-1]
        variance, axes = variance[:, -kept:].flip(-1).clamp(min=0), axes[..., -kept:].flip(-1)
        variance = variance + FLOOR * variance.mean(-1, keepdim=True)
        unit = variance.pow(1 - self.power).mean(-1, keepdim=True).sqrt()  # of what comes out
        whitening = axes / (variance.pow(self.power / 2) * unit).unsqueeze(1)
        self.whitening.copy_(whitening)
        self.shift.copy_(-(mean.unsqueeze(1) @ whitening).squeeze(1))

    def project_tiles(self, bags: Tensor | list[Tensor], mask: Tensor) -> Tensor:
        """See `Branches`."""
        if not self.whiten:
            return super().project_tiles(bags, mask)
        s, b, k = mask.shape
        many = isinstance(bags, list)
        tiles = [run.transpose(0, 1).reshape(run.shape[1], b * k, -1) for run in (bags if many else [bags])]
        white = affine_each(tiles, self.whitening, self.shift) if many else affine(tiles[0], self.whitening, self.shift)
        return super().project_tiles(white.unflatten(1, (b, k)).transpose(0, 1), mask)

    def forward(self, bags: Tensor | list[Tensor], mask: Tensor, geometry: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = mask.transpose(0, 1)
        x = self.project_tiles(bags, mask)  # (S, B, K, 1, d)
        y = x.squeeze(3)
        if self.attend is not None:
            features, maps, _ = self.lay_maps(x, geometry)
            y = y + self.attend.each(features, maps)
        gates = masked_softmax(self.gate_logits(y, mask, geometry), mask)
        pooled = (gates.unsqueeze(2) @ y).squeeze(2)
        found = dict(
            projection=x.flatten(3),
            pooled=pooled,
            gates=gates,
            weights=gates.detach().unsqueeze(2),
            scores=gates.detach(),
        )
        return {name: value.transpose(0, 1) for name, value in found.items()}

    def gate_logits(self, y: Tensor, mask: Tensor, geometry: dict[str, Tensor]) -> Tensor:
        """Logits of the gates: y (S, B, K, d), mask (S, B, K) -> (S, B, K)."""
        if self.gate is None:
            return torch.zeros_like(y[..., 0])
        logits = self.gate(y).masked_fill(~mask, 0)
        if self.smooth:
            near = geometry["near"].transpose(0, 1)  # (S, B, K, 8)
            there = near != torch.arange(near.shape[2], device=near.device).unsqueeze(-1)
            around = logits.gather(-1, near.flatten(-2)).unflatten(-1, near.shape[2:]) * there
            logits = (logits + around.sum(-1)) / (1 + there.sum(-1))
        if self.joint:
            seen = logits.unflatten(0, (-1, self.n_scales))  # (R, scales, B, K)
            logits = seen.sum(1, keepdim=True).expand_as(seen).flatten(0, 1)
        return self.bound * (logits / self.bound).tanh() if self.bound else logits

    def lay_maps(self, x: Tensor, geometry: dict[str, Tensor]) -> tuple[Tensor, Maps, Tensor | None]:
        """See `Branches`."""
        return super().lay_maps(x, {name: value for name, value in geometry.items() if name != "near"})

    def geometry(self, mask: Tensor, coords: Tensor | None = None) -> dict[str, Tensor]:
        """See `Branches`; with `smooth` also "near" of `neighbours`."""
        found = super().geometry(mask, coords)
        if not self.smooth:
            return found
        if coords is None:
            raise InputError("smooth gates need the positions of the tiles: hand over coords (B, S, K, 2)")
        return {**found, "near": neighbours(mask, coords)}


def neighbours(mask: Tensor, coords: Tensor) -> Tensor:
    """Rows of the tiles of its scale that lie around each tile: mask (B, S, K), coords (B, S, K, 2) -> (B, S, K, 8), a
    tile's own row in place of those that are not there.

    A tile lies where the tile of the first scale lies that it is linked with. Around it is what lies nearer than 1.5
    times the median distance, max(|x|, |y|), from a tile to its nearest: eight tiles on a full grid.
    """
    place = torch.where(mask[:, :1, :, None], coords[:, :1], coords).cpu().numpy().astype(float)
    b, s, k = mask.shape
    near = np.broadcast_to(np.arange(k)[:, None], (b, s, k, 8)).copy()
    for at in np.ndindex(b, s):
        tiles = np.flatnonzero(mask[at].cpu().numpy())
        if len(tiles) < 2:
            continue
        apart, found = KDTree(place[at][tiles]).query(place[at][tiles], k=9, p=np.inf)  # inf beyond the last tile
        pitch = np.median(apart[:, 1]) or 1.0
        for i, around in enumerate(found):
            others = [j for j in around[apart[i] < 1.5 * pitch] if j != i][:8]
            near[(*at, tiles[i], slice(len(others)))] = tiles[others]
    return torch.from_numpy(near).to(mask.device)


class DMSMILSelect(DMSMIL):
    """See above. Options, of which those that `DMSMIL` has mean what they mean there:

    inputs          what the projection reads: "whitened": the leading principal components of a scale's tiles, divided
                    by their deviation to the power `power` (1: each of unit variance; 0: only turned), and then by one
                    number, so that their mean variance is 1; "standardised": each feature by its mean and deviation;
                    "given": features as they are
    components      how many, of whitened inputs
    hidden          width of the gate's V and U
    gates           False: the plain mean of eq. (9) over y_j
    joint           linked tiles have one gate: the logit of a place is the sum of what its tiles say at each scale
    smooth          the logit of a tile is the mean over it and the up to eight tiles around it in the slide
    bound           logits of the gates lie within -bound and bound, so that no tile weighs more than e^(2 bound) times
                    another: 7.4 times at 1; 0: without bound
    transport       "gates": L_ot between tiles weighted by their gates; "plain": by 1/n; "none": no L_ot
    link            True: with L_link
    matched         of how many places, those that weigh most, L_ot and L_link are: an exact solver's time is cubic
    mu              weight of L_ot + L_link beside L_ce

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
        gates: bool = True,
        joint: bool = True,
        smooth: bool = True,
        bound: float = 1.0,
        hidden: int = 64,
        transport: str = "none",
        link: bool = False,
        mu: float = 0.1,
        matched: int = 64,
        grid: str = "position",
        attention: str = "dot",
        offset_lr: float = 0.1,
        inputs: str = "whitened",
        power: float = 0.5,
        components: int = 256,
    ):
        options = dict(
            projection_dim=projection_dim,
            heads=heads,
            points=points,
            deformable=deformable,
            grid=grid,
            attention=attention,
            offset="dat",
            offset_lr=offset_lr,
            query="norm",
            standardise=inputs == "standardised",
        )
        super().__init__(in_dim, n_classes, scales, **options)
        for name, value, known in (
            ("transport", transport, ("gates", "plain", "none")),
            ("inputs", inputs, ("whitened", "standardised", "given")),
        ):
            if value not in known:
                raise InputError(f"unknown {name} '{value}': choose one of {', '.join(known)}")
        if bound < 0 or components < 1 or matched < 1:
            raise InputError(
                f"bound is {bound}, components {components}, matched {matched}: give a bound of 0 or "
                "more, and 1 or more of the others"
            )
        if grid == "square":
            raise InputError("grid 'square' has no place for the output of each tile: choose fill or position")
        gating = dict(
            hidden=hidden,
            gates=gates,
            joint=joint,
            smooth=smooth,
            bound=bound,
            power=power,
            components=components if inputs == "whitened" else 0,
        )
        self.branches = SelectingBranches(
            in_dim,
            len(self.scales),
            map="slide",
            softmax="points",
            activation="none",
            score="mass",
            shared=False,
            **gating,
            **options,
        )
        self.transport, self.link, self.mu, self.matched = transport, link, mu, matched

    def loss(self, output: Output, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_ce + mu (L_ot + L_link), and L_ce, L_ot, L_link and spread, detached; with leading axes see `MIL.loss`."""
        between, link, ce = self.parts(output, labels)
        named = {"L_ce": ce.detach(), "L_ot": between.detach(), "L_link": link.detach(), "spread": self.spread(output)}
        return ce + self.mu * (between + link), named

    def terms(self, output: Output, labels: Tensor) -> tuple[Tensor, Tensor]:
        """mu (L_ot + L_link) and L_ce, which `pulls` weighs against each other."""
        between, link, ce = self.parts(output, labels)
        return self.mu * (between + link), ce

    def parts(self, output: Output, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """L_ot and L_link, 0 where they are switched off, and L_ce: (...) each, means over slides."""
        ce = mean_cross_entropy(output.logits, labels)
        if self.transport == "none" and not self.link:
            return torch.zeros_like(ce), torch.zeros_like(ce), ce
        mask, gates = output.extras["mask"].flatten(0, -3), output.extras["gates"].flatten(0, -3)  # (N, S, K)
        x = output.extras["projection"].flatten(0, -4)  # (N, S, K, d)
        x = x / mean_distance(x, mask)[:, None, None, None]
        x, gates, mask = self.looked_at(x, gates, mask)
        if self.transport == "plain":
            gates = mask / mask.sum(-1, keepdim=True).clamp(min=1).to(gates.dtype)
        found = []
        for s, t in pairwise(range(x.shape[1])):
            squares = squared_distances(x[:, s], x[:, t])
            between = link = torch.zeros_like(squares[:, 0, 0])
            if self.transport != "none":
                between = weighted_distance(x[:, s], x[:, t], squares, gates[:, s], gates[:, t])
            if self.link:
                link = link_loss(squares, mask[:, s] & mask[:, t])
            found.append(torch.stack([between, link]))
        between, link = torch.stack(found).mean(0).unflatten(-1, output.extras["mask"].shape[:-2]).mean(-1)
        return between, link, ce

    def looked_at(self, x: Tensor, gates: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The `matched` places that weigh most (of equal ones those far apart): x (N, S, K, d), gates (N, S, K), to sum
        to 1 again, mask (N, S, K)."""
        if self.matched >= x.shape[2]:
            return x, gates, mask
        place = heaviest(gates, self.matched).unsqueeze(1).expand(-1, x.shape[1], -1)
        x = x.gather(2, place.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1]))
        gates = gates.gather(2, place)
        return x, gates / gates.sum(-1, keepdim=True).clamp(min=1e-12), mask.gather(2, place)
