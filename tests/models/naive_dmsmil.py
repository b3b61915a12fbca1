"""DMSMIL written straight from the equations, one slide and one scale at a time.

The oracle for values and gradients (every sampled feature is computed with `grid_sample`, transport is `ot.emd2`), and
the opponent of `dmsmil bench`: the same model as a careful reader of the paper would first write it.
"""

import math
import statistics
import time

import ot
import torch
from torch import nn
from torch.nn import functional as F

from dmsmil.models import create, method


class NaiveBranch(nn.Module):
    """One scale: projection, deformable attention (3)-(8), mean (9)."""

    def __init__(self, in_dim, d, heads, points, options):
        super().__init__()
        self.heads, self.points, self.options = heads, points, options
        self.cells = 16 if options["map"] == "tile" else 1
        self.project = nn.Linear(in_dim // self.cells, d)
        self.norm = nn.LayerNorm(d) if "layernorm" in options["activation"] else nn.Identity()
        if options["deformable"]:
            self.query, self.value, self.output = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
            dot = options["attention"] == "dot"
            self.plan = nn.Linear(d, (2 if dot else 3) * heads * points)
            if dot:
                self.key = nn.Linear(d, d, bias=False)

    def forward(self, tiles):
        """(n, in_dim) -> projection (n, D), its mean (d,), pooled (d,)."""
        x = self.norm(self.project(tiles.reshape(len(tiles) * self.cells, -1)))
        if "relu" in self.options["activation"]:
            x = F.relu(x)
        if self.options["activation"] == "gelu":
            x = F.gelu(x)
        mean = x.mean(0)
        if not self.options["deformable"]:
            return x.reshape(len(tiles), -1), mean, mean
        if self.cells > 1:
            maps = x.reshape(len(tiles), 4, 4, -1).permute(0, 3, 1, 2)
            outputs = self.attend(maps, torch.ones_like(maps[:, :1]))
            return x.reshape(len(tiles), -1), mean, outputs.mean((0, 1))
        n = len(x)
        height = max(1, round(math.sqrt(n / 2)))
        width = math.ceil(n / height)
        padded = torch.cat([x, x.new_zeros(height * width - n, x.shape[1])])
        feature_map = padded.T.reshape(1, -1, height, width)
        tissue = (torch.arange(height * width) < n).to(x.dtype).reshape(1, 1, height, width)
        if self.options["grid"] == "square":
            centre = (torch.arange(14, dtype=x.dtype) + 0.5) / 14
            points = torch.stack(torch.meshgrid(centre * width - 0.5, centre * height - 0.5, indexing="xy"), -1)
            feature_map = read(feature_map, tissue, points.reshape(1, 1, -1, 2)).reshape(1, -1, 14, 14)
            tissue = torch.ones_like(feature_map[:, :1])
        return x, mean, self.attend(feature_map, tissue)[0].mean(0)

    def attend(self, maps, tissue):
        """Eq. (3)-(8): maps (N, d, H, W), tissue (N, 1, H, W) -> the output of every cell that is not empty."""
        m, u = self.heads, self.points
        number, d, height, width = maps.shape
        x = maps.flatten(2).transpose(1, 2)[:, : int(tissue[0].sum())]  # (N, Q, d)
        z = self.query(x)
        planned = self.plan(F.layer_norm(z, (d,)) if self.options["query"] == "norm" else z)
        offset = planned[..., : 2 * m * u].reshape(number, -1, m, u, 2)
        offset = torch.tanh(self.options["offset_lr"] * offset) * (u + 1 if self.options["offset"] == "cells" else 1)
        row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        reference = torch.stack([column, row], -1).reshape(-1, 2)[: x.shape[1], None, None]
        where = (reference + offset).flatten(2, 3)  # (N, Q, M U, 2)
        sampled = read(maps, tissue, where).permute(0, 2, 3, 1).unflatten(2, (m, u))  # eq. (5): (N, Q, M, U, d)

        def heads(layer):  # eq. (6)-(7), head m by its own rows of the matrix: (N, Q, M, U, d / M)
            projected = torch.einsum("nqmud,med->nqmue", sampled, layer.weight.view(m, d // m, d))
            return projected if layer.bias is None else projected + layer.bias.view(m, 1, d // m)

        if self.options["attention"] == "dot":
            logits = (z.view(number, -1, m, 1, d // m) * heads(self.key)).sum(-1) / math.sqrt(d // m)  # (N, Q, M, U)
        else:
            logits = planned[..., 2 * m * u :].reshape(number, -1, m, u)
        if self.options["softmax"] == "all":
            attention = logits.flatten(2).softmax(-1).view_as(logits)
        else:
            attention = logits.softmax(-1)
        summed = (attention.unsqueeze(-1) * heads(self.value)).sum(3)  # (N, Q, M, d / M)
        return self.output(summed.flatten(2))  # eq. (8)


def read(maps, tissue, where):
    """Bilinear values of maps (N, c, H, W) at where (N, Q, U, 2), in cells; clamped to the border, empty cells out."""
    height, width = maps.shape[2:]
    size = torch.tensor([width, height], dtype=maps.dtype)

    def sample(source, points):
        return F.grid_sample(source, (2 * points + 1) / size - 1, padding_mode="border", align_corners=False)

    if tissue.all():
        return sample(maps, where)
    covered = sample(tissue, where)
    # a point wholly among the empty cells of the last row reads the row above
    above = torch.stack([where[..., 0], where[..., 1].clamp(max=height - 2)], -1)
    return torch.where(covered > 0, sample(maps * tissue, where) / covered.clamp(min=1e-30), sample(maps, above))


class NaiveDMSMIL(nn.Module):
    """The whole model, eq. (1)-(14). Make one with the parameters of a DMSMIL: `NaiveDMSMIL.like(model, **options)`."""

    DEFAULTS = method("dmsmil").options()

    def __init__(self, in_dim=2048, n_classes=2, scales=(10, 20), **options):
        super().__init__()
        self.options = o = self.DEFAULTS | options
        branch = [NaiveBranch(in_dim, o["projection_dim"], o["heads"], o["points"], o) for _ in scales]
        self.branches = nn.ModuleList(branch[:1] * len(scales) if o["shared"] else branch)
        self.omega = nn.Parameter(torch.randn(o["projection_dim"]) / math.sqrt(o["projection_dim"]))
        self.gate = nn.Linear(o["projection_dim"], o["projection_dim"]) if o["gate"] == "projected" else None
        self.classify = nn.Linear(o["projection_dim"], n_classes if o["head"] == "ce" else 1)

    @classmethod
    def like(cls, model, **options):
        """The naive twin of `model` (made with the same options), with equal parameters."""
        naive = cls(model.in_dim, model.n_classes, model.scales, **options).to(next(model.parameters()).dtype)
        with torch.no_grad():
            for mine, theirs in naive.twins(model):
                mine.copy_(theirs)
        return naive

    def twins(self, model, of=lambda parameter: parameter):
        """Pairs of a parameter here and the same thing of `model` (or, with `of`, its gradient), equally shaped."""
        for s, branch in enumerate(self.branches if not self.options["shared"] else self.branches[:1]):
            layers = {"project": model.branches.project}
            if self.options["deformable"]:
                attend = model.branches.attend
                layers |= dict(query=attend.query, plan=attend.plan, value=attend.value, output=attend.output)
                if attend.dot:
                    layers["key"] = attend.key
            for name, layer in layers.items():
                yield getattr(branch, name).weight, of(layer.weight)[s].T
                if layer.bias is not None:
                    yield getattr(branch, name).bias, of(layer.bias)[s]
            if "layernorm" in self.options["activation"]:
                yield branch.norm.weight, of(model.branches.norm_weight)[s, 0]
                yield branch.norm.bias, of(model.branches.norm_bias)[s, 0]
        if self.options["fusion"] == "attention":
            yield self.omega, of(model.omega)
        if self.gate is not None:
            yield self.gate.weight, of(model.project_gate.weight)
            yield self.gate.bias, of(model.project_gate.bias)
        yield self.classify.weight, of(model.classify.weight)
        yield self.classify.bias, of(model.classify.bias)

    def forward(self, bags, mask=None):
        """bags (B, S, K, C), mask (B, S, K) -> logits (B, n_classes) and, slide by slide, the tiles of each scale."""
        logits, transported = [], []
        for i, slide in enumerate(bags):
            tiles = [slide[s] if mask is None else slide[s][mask[i, s]] for s in range(len(slide))]
            projected, means, pooled = zip(*[branch(t) for branch, t in zip(self.branches, tiles)])
            pooled = torch.stack(pooled)  # (S, d)
            gate = torch.stack(means) if self.options["gate"] == "projection" else pooled
            gate = self.gate(gate) if self.gate is not None else gate
            weight = torch.softmax(torch.tanh(gate) @ self.omega, 0)
            if self.options["fusion"] == "mean":
                weight = torch.full_like(weight, 1 / len(weight))
            z = self.classify(weight @ pooled)
            logits.append(torch.stack([torch.zeros_like(z[0]), z[0]]) if len(z) == 1 else z)
            transported.append(tiles if self.options["ot_on"] == "raw" else projected)
        return torch.stack(logits), transported

    def loss(self, logits, transported, labels):
        """L_ot + lam L_ce; L_ot by `ot.emd2`, slide by slide."""
        distances = [
            torch.stack([self.distance(a, b) for a, b in zip(scales, scales[1:])]).mean()
            for scales in transported
            if self.options["ot"] != "none"
        ]
        ce = F.cross_entropy(logits, labels)
        return (torch.stack(distances).mean() if distances else 0) + self.options["lam"] * ce

    def distance(self, x, y):
        """Eq. (1) of one slide: x (n1, D), y (n2, D)."""
        if self.options["ot_on"] == "unit":
            x, y = x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True)
        if self.options["ot_on"] == "relative":
            apart = torch.stack([(a - b).square().sum() for a in x for b in y]).mean().sqrt()
            x, y = x / apart, y / apart
        if self.options["ot"] == "paired":
            return (x - y).norm(dim=1).mean()
        cost = torch.cdist(x, y)
        if self.options["ot"] == "squared":
            cost = cost**2
        a, b = ot.unif(len(x), type_as=x), ot.unif(len(y), type_as=y)
        if self.options["ot"] == "entropic":
            plan = ot.sinkhorn(
                a, b, cost.detach(), 0.05 * cost.mean().item(), method="sinkhorn_log", numItermax=2000, stopThr=1e-6
            )
            return (plan * cost).sum()
        return ot.emd2(a, b, cost)


def step_naive(model, optimizer, bags, labels):
    """One training step of a NaiveDMSMIL; returns the loss."""
    optimizer.zero_grad()
    loss = model.loss(*model(bags), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


def step(model, optimizer, bags, labels, geometry=None):
    """One training step of the package's model; returns the loss."""
    optimizer.zero_grad()
    loss, _ = model.loss(model(bags, geometry=geometry), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


def compare(batch=1, rounds=20, tiles=200, in_dim=2048, seed=0, **options):
    """CPU seconds a slide of a training step, medians of interleaved rounds: {"naive", "dmsmil", "ratio"}.

    The naive model trains with Adam as it comes, the package's with fused Adam and the geometry kept. Bags are random
    mixtures of eight tissue prototypes. Set one thread first: `torch.set_num_threads(1)`.
    """
    torch.manual_seed(seed)
    model = create("dmsmil", in_dim, 2, **options)
    naive = NaiveDMSMIL.like(model, **options)
    runs = {
        "naive": (step_naive, naive, torch.optim.Adam(naive.parameters(), lr=1e-4), {}),
        "dmsmil": (
            step,
            model,
            torch.optim.Adam(model.parameters(), lr=1e-4, fused=True),
            {"geometry": model.geometry(torch.ones(batch, 2, tiles, dtype=torch.bool))},
        ),
    }
    seconds = {name: [] for name in runs}
    prototypes = torch.rand(8, in_dim)
    for _ in range(rounds):
        bags = prototypes[torch.randint(8, (batch, 2, tiles))] + 0.4 * torch.randn(batch, 2, tiles, in_dim)
        bags, labels = bags.relu(), torch.randint(2, (batch,))
        for name, (one_step, network, optimizer, more) in runs.items():
            start = time.process_time()
            one_step(network, optimizer, bags, labels, **more)
            seconds[name].append((time.process_time() - start) / batch)
    found = {name: statistics.median(values) for name, values in seconds.items()}
    return found | {"ratio": statistics.median(a / b for a, b in zip(seconds["naive"], seconds["dmsmil"]))}
