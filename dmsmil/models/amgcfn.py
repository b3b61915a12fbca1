"""AMGCFN (Zhou 2023) on the tiles of a slide: multi-hop graph convolutions, multi-scale convolutions, cross fusion."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmsmil.jobs.files import InputError
from dmsmil.models.base import MIL, Output, full_mask, masked_softmax
from dmsmil.models.grid import CellConv, CellNorm, grid_shape, grids, hide

STEPS = [step for step in product((-1, 0, 1), repeat=2) if step != (0, 0)]  # (dy, dx) to the eight neighbours
HOPS = 3


def walks(length: int) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """The walks on a grid that never meet a cell twice: their number (in base 8, a digit a step), where each ends as an
    index into the list of ends, and that list (dy, dx)."""
    numbers, where, ends = [], [], []
    for number, walk in enumerate(product(STEPS, repeat=length)):
        path = [(0, 0)]
        for dy, dx in walk:
            path.append((path[-1][0] + dy, path[-1][1] + dx))
        if len(set(path)) == length + 1:
            if path[-1] not in ends:
                ends.append(path[-1])
            numbers.append(number)
            where.append(ends.index(path[-1]))
    return numbers, where, ends


@lru_cache(maxsize=64)
def structure(height: int, width: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What the three hops have in common on all slides with this grid: per hop the numbers of its walks (P,), where
    each ends (P,), and the cell at each end as seen from each cell, (N, E), N = H * W where that is off the grid."""
    row, column = torch.arange(height)[:, None, None], torch.arange(width)[:, None]
    found = []
    for hop in range(HOPS):
        numbers, where, ends = walks(hop + 1)
        dy, dx = torch.tensor(ends).T
        inside = (row + dy >= 0) & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
        target = ((row + dy) * width + column + dx).where(inside, height * width).flatten(0, 1)
        found.append((torch.tensor(numbers), torch.tensor(where), target))
    return found


def edge_weights(x: Tensor, cells: Tensor) -> Tensor:
    """exp(-|x_i - x_j|^2 / s2) to each of the 8 neighbours: (b, H, W, C), (b, H, W) -> (b, 8, H, W), -inf for no edge.

    s2: the (lower) median of |x_i - x_j|^2 over the edges of the slide.
    """
    height, width = x.shape[1:3]
    squared = x.new_full((len(x), len(STEPS), height, width), torch.nan)
    for number, (dy, dx) in enumerate(STEPS[:4]):  # the other four are these, seen from the other end
        rows, there_rows = slice(max(0, -dy), height - max(0, dy)), slice(max(0, dy), height - max(0, -dy))
        columns, there_columns = slice(max(0, -dx), width - max(0, dx)), slice(max(0, dx), width - max(0, -dx))
        distance = (x[:, rows, columns] - x[:, there_rows, there_columns]).square().sum(-1)
        edge = cells[:, rows, columns] & cells[:, there_rows, there_columns]
        distance = distance.masked_fill(~edge, torch.nan)
        squared[:, number, rows, columns] = distance
        squared[:, len(STEPS) - 1 - number, there_rows, there_columns] = distance
    middle = squared.flatten(1).nanmedian(1).values[:, None, None, None]
    weights = torch.exp(-squared / middle.clamp(min=torch.finfo(x.dtype).tiny))
    return weights.nan_to_num(nan=-torch.inf)


def adjacency(x: Tensor, cells: Tensor) -> Tensor:
    """A_k for k = 1, 2, 3 hops: (b, H, W, C), (b, H, W) -> (b, 3, N, N), N = H * W cells.

    Entry i, j: the largest mean edge weight of all paths of exactly k edges from i to j that meet no cell twice, 0 if
    there is none; plus the identity.
    """
    b, height, width = cells.shape
    n = height * width
    weights = edge_weights(x, cells)
    total, result = weights, torch.zeros(b, HOPS, n, n + 1, dtype=x.dtype, device=x.device)
    for hop, parts in enumerate(structure(height, width)):
        numbers, where, target = (part.to(x.device) for part in parts)
        if hop:  # one edge, then what the cell at its end knows of paths one edge shorter
            around = F.pad(total, (1, 1, 1, 1), value=-torch.inf)
            total = torch.cat(
                [
                    weights[:, d, None] + around[:, :, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
                    for d, (dy, dx) in enumerate(STEPS)
                ],
                1,
            )
        found = total[:, numbers].flatten(2)  # b, walks, N
        best = found.new_zeros(b, target.shape[1], n).scatter_reduce_(
            1, where[None, :, None].expand_as(found), found, "amax"
        )  # b, ends, N; 0: no path
        result[:, hop].scatter_(2, target.expand(b, -1, -1), best.mT / (hop + 1))
    return result[..., :n] + torch.eye(n, dtype=x.dtype, device=x.device)


class GraphBlock(nn.Module):
    """F + u, batch-normalised, where u = F and twice u = dropout(leaky(A (u W) + b)): (b, N, g), (b, N, N)."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        bound = width**-0.5
        self.weights, self.biases = (
            nn.ParameterList(torch.empty(shape).uniform_(-bound, bound) for _ in range(2))
            for shape in ((width, width), (width,))
        )
        self.norm = CellNorm(width)
        self.dropout = dropout

    def forward(self, x: Tensor, links: Tensor, cells: Tensor | None) -> Tensor:
        u = x
        for weight, bias in zip(self.weights, self.biases):
            u = F.dropout(F.leaky_relu(links @ (u @ weight) + bias), self.dropout, self.training)
        return self.norm(u + x, cells)


class ConvUnit(nn.Module):
    """Batch norm, 1 x 1, leaky, mean of 3 x 3 (always over 9), depth-wise k x k, leaky: (b, H, W, C or g)."""

    def __init__(self, in_dim: int, width: int, kernel: int):
        super().__init__()
        self.norm, self.point = CellNorm(in_dim), nn.Linear(in_dim, width)
        self.conv = CellConv(width, width, kernel, groups=width)

    def forward(self, x: Tensor, cells: Tensor | None) -> Tensor:
        x = hide(F.leaky_relu(self.point(self.norm(x, cells))), cells)
        x = F.avg_pool2d(x.permute(0, 3, 1, 2), 3, stride=1, padding=1).permute(0, 2, 3, 1)
        return hide(F.leaky_relu(self.conv(hide(x, cells))), cells)


class CrossFusion(nn.Module):
    """CAFM: two sets of maps f1, f2 (b, N, C) re-weight each other's cells.

    d = W2 relu(W1 mean_i f) + W4 relu(W3 max_i f) of each;   X = d1 d2^T
    b1 = softmax(X) f1, b2 = softmax(X^T) f2;   a = softmax over cells of conv(relu(conv [mean_c b, max_c b]))
    f <- f (1 + a)
    """

    def __init__(self, width: int, bottleneck: int):
        super().__init__()
        self.mean, self.most = (
            nn.ModuleList(
                nn.Sequential(nn.Linear(width, bottleneck), nn.ReLU(), nn.Linear(bottleneck, width)) for _ in range(2)
            )
            for _ in range(2)
        )
        self.conv1, self.conv2 = CellConv(2, 1, 3), CellConv(1, 1, 3)

    def forward(
        self, features: tuple[Tensor, Tensor], shape: tuple[int, int], cells: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """-> for each of the two the re-weighted (b, N, C) and a (b, N); cells (b, N)."""
        there = cells[..., None]
        d = [
            mean((f * there).sum(1) / there.sum(1)) + most(f.masked_fill(~there, -torch.inf).amax(1))
            for f, mean, most in zip(features, self.mean, self.most)
        ]
        found = []
        for f, mine, other in ((features[0], d[0], d[1]), (features[1], d[1], d[0])):
            mixed = f @ (mine[:, :, None] * other[:, None]).softmax(-1).mT
            seen = torch.stack([mixed.mean(-1), mixed.amax(-1)], -1) * there
            hidden = self.conv1(seen.unflatten(1, shape)).relu() * there.unflatten(1, shape)
            attention = masked_softmax(self.conv2(hidden).flatten(1), cells)
            found.append((f * (1 + attention[..., None]), attention))
        return found


class AMGCFN(MIL):
    """AMGCFN. Zhou et al., "Attention Multihop Graph and Multiscale Convolutional Fusion Network for Hyperspectral
    Image Classification", IEEE TGRS 61, 2023.

    An image network, run here on a slide by an adapter of ours: n linked pairs of tiles are the cells of a grid, in
    raster order (10 x 20 for n = 200, see `grid_shape`). The coarse tiles are the nodes of a graph, one each, linked to
    the eight next cells; the fine tiles are the image. One projection in_dim -> ch serves both.

        graph: F_0 = BN(W x);  F_k = GraphBlock(F_{k-1}, A_k), k = 1, 2, 3 (see `adjacency`, on the raw features);
               G = LN(self-attention([F_1, F_2, F_3]) + [F_1, F_2, F_3])
        image: c_1 = sum of ConvUnits 7, 5, 3 of the map;  c_2 likewise of c_1;  C = [ConvUnits 7, 5, 3 of c_2];
               each of 6 channel groups times sigma(conv5x5 of its mean)
        fusion: CrossFusion(C, G);  three heads, each the mean over tiles: of C, of G, and of [G, C] (the prediction)

    Where the walks lead is the same on every slide and worked out once; their weights depend on the features. An empty
    cell is treated as what the publication pads with: no edges, zero wherever a convolution or a pooling reads it, left
    out of means, maxima, softmaxes and batch statistics. The order of the tiles matters.
    scores: the cells' attention a of the fusion, of G for the coarse and of C for the fine tiles; it sums to 1.
    Loss: the sum of the three cross-entropies. extras: logits_image, logits_graph, bag_feature [G, C] means (B, 6 g).
    Where the repository departs: the attention dropouts it declares it never applies (none here); its edge weights use
    a fixed sigma on standardised spectra, here the slide's median distance; its heads classify each pixel, here the
    mean of their logits over tiles classifies the slide. 1,057,151 parameters at 2048-d (paper Table 3: 1,065,247,
    reproduced by no configuration).

    Options: g (width of both branches), ch (of the projection), heads, dropout (of the graph).
    """

    def __init__(
        self,
        in_dim: int,
        n_classes: int,
        scales: tuple[int, ...],
        *,
        g: int = 64,
        ch: int = 320,
        heads: int = 6,
        dropout: float = 0.3,
    ):
        super().__init__(in_dim, n_classes, scales)
        if len(self.scales) != 2:
            raise InputError(f"AMGCFN takes two linked scales, got {list(self.scales)}: give a coarse and a fine one")
        width = HOPS * g
        if width % heads:
            raise InputError(f"AMGCFN: 3 g = {width} is not a multiple of {heads} heads: change one of them")
        self.heads = heads
        self.project = nn.Linear(in_dim, ch)
        self.nodes, self.node_norm = nn.Linear(ch, g), CellNorm(g)
        self.graph = nn.ModuleList(GraphBlock(g, dropout) for _ in range(HOPS))
        self.query, self.key, self.value, self.dense = (nn.Linear(width, width) for _ in range(4))
        self.graph_norm = nn.LayerNorm(width, eps=1e-12)
        self.image = nn.ModuleList(nn.ModuleList(ConvUnit(before, g, k) for k in (7, 5, 3)) for before in (ch, g, g))
        self.gate = CellConv(heads, heads, 5, groups=heads)
        self.cross = CrossFusion(width, 64)
        self.classifier_image, self.classifier_graph = nn.Linear(width, n_classes), nn.Linear(width, n_classes)
        self.classifier = nn.Linear(2 * width, n_classes)

    def geometry(self, mask: Tensor, coords: Tensor) -> dict[str, Tensor]:
        """grid (B, 2): the height and width of each slide's grid."""
        return {"grid": grid_shape(mask.any(1).sum(1))}

    def forward(
        self,
        bags: Tensor,
        mask: Tensor | None = None,
        coords: Tensor | None = None,
        geometry: dict[str, Tensor] | None = None,
    ) -> Output:
        """(B, 2, K, C), coarse then fine, row j linked -> Output."""
        mask = full_mask(bags, mask)
        geometry = geometry or self.geometry(mask, coords)
        here = mask[..., None]
        coarse, fine = (self.project(bags) * here).unbind(1)
        pooled = coarse.new_zeros(len(bags), self.classifier.in_features)
        scores = coarse.new_zeros(mask.shape)
        for grid in grids(mask.any(1), geometry["grid"]):
            cells, shape = grid.cells.flatten(1), grid.cells.shape[1:]
            with torch.no_grad():
                links = adjacency(grid.take(bags[:, 0] * here[:, 0]), grid.cells)
            nodes = self.graph_branch(grid.take(coarse).flatten(1, 2), links, cells, grid.full)
            image = self.image_branch(grid.take(fine), None if grid.full else grid.cells)
            (image, a_image), (nodes, a_nodes) = self.cross((image, nodes), shape, cells)
            there = cells[..., None]
            means = torch.cat([(nodes * there).sum(1), (image * there).sum(1)], 1) / there.sum(1)
            pooled = pooled.index_copy(0, grid.slides, means)
            for s, attention in enumerate((a_nodes, a_image)):
                grid.put(scores[:, s], attention.detach().unflatten(1, shape))
        graph, image = pooled.chunk(2, 1)
        return Output(
            self.classifier(pooled),
            scores * mask,
            {
                "bag_feature": pooled,
                "logits_graph": self.classifier_graph(graph),
                "logits_image": self.classifier_image(image),
            },
        )

    def graph_branch(self, x: Tensor, links: Tensor, cells: Tensor, full: bool) -> Tensor:
        """(b, N, ch), (b, 3, N, N), (b, N) -> G (b, N, 3 g)."""
        some = None if full else cells
        x, found = self.node_norm(self.nodes(x), some), []
        for hop, block in enumerate(self.graph):
            x = block(x, links[:, hop], some)
            found.append(x)
        x = torch.cat(found, -1)
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        weights = masked_softmax(q @ k.mT * q.shape[-1] ** -0.5, cells[:, None, None])
        return self.graph_norm(self.dense((weights @ v).transpose(1, 2).flatten(2)) + x)

    def image_branch(self, x: Tensor, cells: Tensor | None) -> Tensor:
        """(b, H, W, ch), (b, H, W) -> C (b, N, 3 g)."""
        for units in self.image[:2]:
            x = sum(unit(x, cells) for unit in units)
        x = torch.cat([unit(x, cells) for unit in self.image[2]], -1).unflatten(3, (self.heads, -1))
        return (x * self.gate(x.mean(-1)).sigmoid()[..., None]).flatten(3).flatten(1, 2)

    def loss(self, output: Output, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_ce + L_graph + L_image, the cross-entropies of the three heads."""
        terms = {
            "L_ce": F.cross_entropy(output.logits, labels),
            "L_graph": F.cross_entropy(output.extras["logits_graph"], labels),
            "L_image": F.cross_entropy(output.extras["logits_image"], labels),
        }
        return sum(terms.values()), {name: term.detach() for name, term in terms.items()}
