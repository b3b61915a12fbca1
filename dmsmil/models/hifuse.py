"""HiFuse (Huo 2024) on the tiles of a slide: a convolution branch, a window attention branch, and their fusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmsmil.jobs.files import InputError
from dmsmil.models.base import MIL, Output, full_mask
from dmsmil.models.grid import CellConv, CellNorm, grid_shape, grids, hide


class LocalBlock(nn.Module):
    """l + GELU(W LN(depth-wise conv3x3(l)))."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = CellConv(width, width, 3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.point = nn.Linear(width, width)

    def forward(self, x: Tensor, cells: Tensor | None) -> Tensor:
        return hide(x + F.gelu(self.point(self.norm(self.conv(x)))), cells)


class GlobalBlock(nn.Module):
    """t + GELU(W attention(LN(t))), the attention within windows of side x side cells, with a learned term for each
    relative position; every second block moves the windows by side // 2 and keeps apart what was not adjacent."""

    def __init__(self, width: int, heads: int, side: int, shift: int):
        super().__init__()
        self.heads, self.side, self.shift = heads, side, shift
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out, self.point = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(width, width)
        self.position = nn.Parameter(torch.empty((2 * side - 1) ** 2, heads))
        nn.init.trunc_normal_(self.position, std=0.02)
        cell = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).view(-1, 2)
        apart = cell[:, None] - cell[None] + side - 1
        self.register_buffer("index", apart[..., 0] * (2 * side - 1) + apart[..., 1], persistent=False)

    def windows(self, x: Tensor) -> Tensor:
        """(b, H, W, C) -> (b, windows, side * side, C)."""
        return x.unflatten(1, (-1, self.side)).unflatten(3, (-1, self.side)).transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def separate(self, height: int, width: int, device: torch.device) -> Tensor:
        """(windows, 1, side^2, side^2): -100 between cells that only the shift brought together, else 0."""
        row, column = (torch.zeros(n, dtype=torch.long, device=device) for n in (height, width))
        for region in (row, column):
            region[-self.side :] += 1
            region[-self.shift :] += 1
        region = self.windows((3 * row[:, None] + column)[None, :, :, None])[0, :, :, 0]
        return -100.0 * (region[:, None, :, None] != region[:, None, None, :])

    def forward(self, x: Tensor, cells: Tensor | None) -> Tensor:
        height, width, side = x.shape[1], x.shape[2], self.side
        u = F.pad(hide(self.norm(x), cells), (0, 0, 0, -width % side, 0, -height % side))
        padded = u.shape[1:3]
        if self.shift:
            u = u.roll((-self.shift, -self.shift), (1, 2))
        q, k, v = self.qkv(self.windows(u)).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        logits = q @ k.mT * q.shape[-1] ** -0.5 + self.position[self.index].permute(2, 0, 1)
        if self.shift:
            logits = logits + self.separate(*padded, u.device)
        u = self.out((logits.softmax(-1) @ v).transpose(2, 3).flatten(3))  # b, windows, side^2, C
        u = u.unflatten(1, (-1, padded[1] // side)).unflatten(3, (side, side)).transpose(2, 3)
        u = u.flatten(3, 4).flatten(1, 2)
        if self.shift:
            u = u.roll((self.shift, self.shift), (1, 2))
        return hide(x + F.gelu(self.point(u[:, :height, :width])), cells)


class Fusion(nn.Module):
    """The hierarchical feature fusion block of a stage; f is the fusion of the stage before (None in the first).

    X = GELU(BN(W [LN: sc, BN(W_l l), BN(W_g g)]))         sc = avgpool2(relu(BN(W_f f))), absent in the first
    l' = sigma(BN(conv7x7 [max_c l, mean_c l])) l
    g' = sigma(se(max over cells of g) + se(mean over cells of g)) g
    v = LN [g', l', X];  p = BN(GELU(depth-wise conv3x3 v) + v);  f = sc + BN(W_3 GELU(W_2 p))
    """

    def __init__(self, width: int, first: bool):
        super().__init__()
        self.local, self.local_norm = nn.Linear(width, width), CellNorm(width)
        self.glob, self.glob_norm = nn.Linear(width, width), CellNorm(width)
        self.before = None if first else nn.Linear(width // 2, width)
        self.before_norm = None if first else CellNorm(width)
        joined = (2 if first else 3) * width
        self.join_norm, self.join = nn.LayerNorm(joined, 1e-6), nn.Linear(joined, width)
        self.joined_norm = CellNorm(width)
        self.spatial, self.spatial_norm = CellConv(2, 1, 7, bias=False), CellNorm(1)
        narrow = max(1, width // 16)
        self.squeeze = nn.Sequential(
            nn.Linear(width, narrow, bias=False), nn.ReLU(), nn.Linear(narrow, width, bias=False)
        )
        self.norm = nn.LayerNorm(3 * width, 1e-6)
        self.mix, self.mix_norm = CellConv(3 * width, 3 * width, 3, groups=3 * width, bias=False), CellNorm(3 * width)
        self.widen = nn.Linear(3 * width, 12 * width, bias=False)
        self.narrow, self.narrow_norm = nn.Linear(12 * width, width, bias=False), CellNorm(width)

    def forward(
        self, local: Tensor, glob: Tensor, f: Tensor | None, cells: Tensor | None, cells_before: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps (b, H, W, C) -> f and the gated l', g' of the same shape; cells_before: those of f's map."""
        parts = [self.local_norm(self.local(local), cells), self.glob_norm(self.glob(glob), cells)]
        carried = None
        if self.before is not None:
            carried = self.before_norm(self.before(f), cells_before).relu()
            carried = carried.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).mean((2, 4))
            parts = [carried, *parts]
        both = F.gelu(self.joined_norm(self.join(self.join_norm(torch.cat(parts, -1))), cells))
        seen = torch.stack([local.amax(-1), local.mean(-1)], -1)
        local = local * self.spatial_norm(self.spatial(seen), cells).sigmoid()
        flat = glob.flatten(1, 2)
        if cells is None:
            most, mean = flat.amax(1), flat.mean(1)
        else:
            there = cells.flatten(1)[..., None]
            most, mean = flat.masked_fill(~there, -torch.inf).amax(1), flat.sum(1) / there.sum(1)
        glob = glob * (self.squeeze(most) + self.squeeze(mean)).sigmoid()[:, None, None]
        v = hide(self.norm(torch.cat([glob, local, both], -1)), cells)
        p = self.mix_norm(F.gelu(self.mix(v)) + v, cells)
        f = self.narrow_norm(self.narrow(F.gelu(self.widen(p))), cells)
        return f if carried is None else carried + f, local, glob


class HiFuse(MIL):
    """HiFuse. Huo et al., "HiFuse: Hierarchical multi-scale feature fusion network for medical image classification",
    Biomedical Signal Processing and Control 87, 2024.

    An image network, run here on a slide by an adapter of ours: n linked pairs of tiles are the cells of a grid, in
    raster order (10 x 20 for n = 200, see `grid_shape`; rounded up to even sides). The fine tiles enter the local
    branch (convolutions), the coarse ones the global branch (shifted windows); two stages, H x W then H/2 x W/2, twice
    as wide; a fusion block at each (see LocalBlock, GlobalBlock, Fusion).

        logits = W LN(mean over cells of f_2)

    An empty cell is treated as what the publication pads with: zero wherever a convolution, a pooling or a window reads
    it, left out of means over the map, of maxima and of batch statistics. Slides with the same grid are computed
    together. The order of the tiles matters; which cells are used depends on their number alone.
    scores: HiFuse has none for a tile. Ours, without gradient: the length of its cell's vector in the first stage, the
    fine tile after the spatial gate (l'), the coarse tile after the channel gate (g'), each scale summing to 1.
    Loss: cross-entropy. The published convolution helper ignores its `group` argument, so that the fusion block's
    depth-wise convolution is a full one; here it is depth-wise, as the paper says. Published initialisation of the two
    branches: trunc_normal, .02 for linear layers and .2 for convolutions. 3,582,550 parameters at 2048-d; with what the
    repository creates and never uses, left out here, 3,692,182 (paper Table 3: 3,596,964, reproduced by neither).

    Options: embed_dim (width of the first stage), depths and num_heads (of the two stages), window_size.
    """

    def __init__(
        self,
        in_dim: int,
        n_classes: int,
        scales: tuple[int, ...],
        *,
        embed_dim: int = 96,
        depths: tuple[int, int] = (2, 2),
        num_heads: tuple[int, int] = (2, 4),
        window_size: int = 5,
    ):
        super().__init__(in_dim, n_classes, scales)
        if len(self.scales) != 2:
            raise InputError(f"HiFuse takes two linked scales, got {list(self.scales)}: give a coarse and a fine one")
        if len(depths) != 2 or len(num_heads) != 2 or any(embed_dim * 2**i % h for i, h in enumerate(num_heads)):
            raise InputError(
                "HiFuse has two stages: give two depths and two num_heads that divide embed_dim and "
                f"2 embed_dim, not {list(depths)} and {list(num_heads)} for {embed_dim}"
            )
        widths = (embed_dim, 2 * embed_dim)
        self.stem_local = nn.Sequential(nn.Linear(in_dim, embed_dim), nn.LayerNorm(embed_dim, 1e-6))
        self.stem_global = nn.Sequential(nn.Linear(in_dim, embed_dim), nn.LayerNorm(embed_dim))
        self.down_local = nn.ModuleList([nn.LayerNorm(embed_dim, 1e-6), nn.Conv2d(embed_dim, widths[1], 2, stride=2)])
        self.down_global = nn.Sequential(nn.LayerNorm(4 * embed_dim), nn.Linear(4 * embed_dim, widths[1], bias=False))
        self.local = nn.ModuleList(nn.ModuleList(LocalBlock(w) for _ in range(d)) for w, d in zip(widths, depths))
        self.glob = nn.ModuleList(
            nn.ModuleList(GlobalBlock(w, h, window_size, i % 2 * (window_size // 2)) for i in range(d))
            for w, d, h in zip(widths, depths, num_heads)
        )
        self.fusion = nn.ModuleList(Fusion(w, first=i == 0) for i, w in enumerate(widths))
        self.norm = nn.LayerNorm(widths[1], 1e-6)
        self.classifier = nn.Linear(widths[1], n_classes)
        self.initialise()

    def initialise(self) -> None:
        """The published start of the branches: what is a convolution there has std .2, what is linear .02."""
        convolutions = [
            self.stem_local[0],
            self.stem_global[0],
            self.down_local[1],
            *(m for m in self.local.modules() if isinstance(m, CellConv)),
        ]
        linear = [
            self.classifier,
            self.down_global[1],
            *(m for m in [*self.local.modules(), *self.glob.modules()] if isinstance(m, nn.Linear)),
        ]
        for std, layers in ((0.2, convolutions), (0.02, linear)):
            for layer in layers:
                nn.init.trunc_normal_(layer.weight, std=std)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def geometry(self, mask: Tensor, coords: Tensor) -> dict[str, Tensor]:
        """grid (B, 2): the height and width of each slide's grid, before it is made even."""
        return {"grid": grid_shape(mask.any(1).sum(1))}

    def forward(
        self,
        bags: Tensor,
        mask: Tensor | None = None,
        coords: Tensor | None = None,
        geometry: dict[str, Tensor] | None = None,
    ) -> Output:
        """(B, 2, K, C), coarse then fine, row j linked -> Output; extras: bag_feature (B, 2 embed_dim)."""
        mask = full_mask(bags, mask)
        geometry = geometry or self.geometry(mask, coords)
        local = self.stem_local(bags[:, 1]) * mask[:, 1, :, None]
        glob = self.stem_global(bags[:, 0]) * mask[:, 0, :, None]
        feature = local.new_zeros(len(bags), self.classifier.in_features)
        scores = local.new_zeros(mask.shape)
        for grid in grids(mask.any(1), geometry["grid"], even=True):
            cells = None if grid.full else grid.cells
            pooled, gated = self.maps(grid.take(local), grid.take(glob), cells)
            feature = feature.index_copy(0, grid.slides, pooled)
            for s, x in enumerate(gated):
                grid.put(scores[:, s], x.detach().norm(dim=-1))
        scores = scores * mask
        scores = scores / scores.sum(2, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
        feature = self.norm(feature)
        return Output(self.classifier(feature), scores, {"bag_feature": feature})

    def maps(self, local: Tensor, glob: Tensor, cells: Tensor | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Two maps (b, H, W, C) -> mean of the last fusion (b, 2 C), and the first stage's g', l'."""
        f, before, gated = None, None, ()
        for stage, fusion in enumerate(self.fusion):
            if stage:
                norm, conv = self.down_local
                local = conv(hide(norm(local), cells).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
                glob = self.down_global(quarters(glob))
                before, cells = cells, None if cells is None else quarters(cells[..., None]).any(-1)
                local, glob = hide(local, cells), hide(glob, cells)
            for block in self.local[stage]:
                local = block(local, cells)
            for block in self.glob[stage]:
                glob = block(glob, cells)
            f, gated_local, gated_global = fusion(local, glob, f, cells, before)
            gated = gated or (gated_global, gated_local)
        count = f.shape[1] * f.shape[2] if cells is None else cells.sum((1, 2))[:, None]
        return f.sum((1, 2)) / count, gated


def quarters(x: Tensor) -> Tensor:
    """(b, H, W, C) -> (b, H/2, W/2, 4 C): each block of 2 x 2 cells on the channels, column by column."""
    x = x.unflatten(1, (-1, 2)).unflatten(3, (-1, 2))  # b, H/2, 2, W/2, 2, C
    return x.permute(0, 1, 3, 4, 2, 5).flatten(3)
