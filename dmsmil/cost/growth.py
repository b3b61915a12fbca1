"""How the parts of DMSMIL grow with the number of tiles: the paper's complexity claim, tested.

The paper puts deformable attention at O(M U C L^2), linear in the number of cells of a map, and full self-attention at
O(H^2 W^2 C), quadratic in it. A cell is a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dmsmil.analysis.paper import NEAR, growth_as_claimed
from dmsmil.cost.meter import at_least_one, device_name, interleave, measured_once, peak_memory, spread, turn_seconds
from dmsmil.jobs.files import InputError
from dmsmil.jobs.parallel import one_thread, pick_device
from dmsmil.models import method, transport
from dmsmil.models.deformable import DeformableAttention
from dmsmil.models.maps import lay_out
from dmsmil.training.config import code_version

PARTS = {
    "deformable": "deformable attention",
    "full": "full self-attention",
    "ot": "exact transport",
    "blocks": "transport in blocks",
}
MOST = {"ot": 5000}  # tiles at which a part is still measured: beyond, the exact solver takes many seconds and GB
PAPER_TILES = 200


def part_calls(k: int, device: torch.device, seed: int = 0) -> dict[str, tuple[Callable, list[Tensor]]]:
    """One forward and backward pass of each of `PARTS` on K projected tiles, and the tensors it starts with.

    deformable: eq. (3)-(9) of one scale with DMSMIL's defaults. full: multi-head self-attention of the same width and
    heads by torch's own kernel, then the mean over tiles. ot: the distance of eq. (1) between the bags of two scales;
    blocks: the same in blocks of tiles (ot="blocks" of DMSMIL).
    """
    torch.manual_seed(seed)
    usual = method("dmsmil").options()
    dim, heads = usual["projection_dim"], usual["heads"]
    bags, mask = torch.randn(1, 2, k, dim).to(device), torch.ones(1, 2, k, dtype=torch.bool, device=device)
    bags, tiles = bags.requires_grad_(), bags[:, :1].clone().requires_grad_()
    chosen = {name: usual[name] for name in ("points", "offset", "attention", "softmax", "offset_lr", "query")}
    deformable = DeformableAttention(1, dim, heads, **chosen).to(device)
    full = nn.MultiheadAttention(dim, heads, batch_first=True).to(device)
    maps, share = lay_out(mask[:, :1]), torch.full((1, 1, k), 1 / k, device=device)

    def attend_deformably():
        weights = deformable.weights(tiles, maps, share)
        pooled = deformable.mix(weights @ tiles, weights.sum(-1))
        torch.autograd.grad(pooled.sum(), [tiles, *deformable.parameters()])

    def attend_fully():
        pooled = full(tiles[0], tiles[0], tiles[0], need_weights=False)[0].mean(1)
        torch.autograd.grad(pooled.sum(), [tiles, *full.parameters()])

    def carry(kind):
        torch.autograd.grad(transport.distance(bags, mask, kind), bags)

    laid = [value for value in vars(maps).values() if value is not None]  # places are of grid="position" alone
    return {
        "deformable": (attend_deformably, [tiles, share, *laid, *deformable.parameters()]),
        "full": (attend_fully, [tiles, *full.parameters()]),
        "ot": (partial(carry, "exact"), [bags, mask]),
        "blocks": (partial(carry, "blocks"), [bags, mask]),
    }


@torch.no_grad()
def block_excess(k: int, seed: int = 0) -> float:
    """By how much the distance in blocks exceeds the exact one, as a share of it: two bags of K tiles of the width that
    DMSMIL projects to, normally distributed. Tiles of real slides are more alike, and the excess is smaller."""
    draw = torch.Generator().manual_seed(seed)
    bags = torch.randn(1, 2, k, method("dmsmil").options()["projection_dim"], generator=draw)
    mask = torch.ones(1, 2, k, dtype=torch.bool)
    return float(transport.distance(bags, mask, "blocks") / transport.distance(bags, mask) - 1)


def growth(tiles: list[int], rounds: int, device: str = "auto", seed: int = 0) -> pd.DataFrame:
    """Measure `part_calls` at every K of `tiles`, all in turn over `rounds`: one row a part and K.

    Columns: part, k, median_ms, min_ms, max_ms, memory_mb; slope_time, slope_memory: the power of K that time and
    memory of the part follow over the larger half of its K (`slope`); device; arrays_mb (`meter.peak_memory`); excess
    (`block_excess` of the blocks, 0 for other parts, NaN where the exact value is not computed). No part is measured
    beyond its `MOST` tiles. Raises InputError for fewer than two different numbers of tiles.
    """
    check_growth(tiles, rounds)
    place, calls, rows = pick_device(device), [], []
    with one_thread():
        for k in sorted(set(tiles)):
            for part, (call, held) in part_calls(k, place, seed).items():
                if k > MOST.get(part, k):
                    continue
                call()  # as in `method_costs`
                memory, arrays = peak_memory(call, held, place)
                calls.append(call)
                excess = 0.0 if part != "blocks" else block_excess(k, seed) if k <= MOST["ot"] else np.nan
                rows.append({"part": part, "k": k, "memory_mb": memory, "arrays_mb": arrays, "excess": excess})
        times = interleave(calls, rounds, partial(turn_seconds, device=place))
    table = pd.DataFrame([row | spread([1000 * s for s in mine], "", "_ms") for row, mine in zip(rows, times)])
    table = pd.concat([table[table.part == part] for part in PARTS], ignore_index=True)
    for column, of in (("slope_time", "median_ms"), ("slope_memory", "memory_mb")):
        slopes = {part: slope(mine.k, mine[of]) for part, mine in table.groupby("part")}
        table[column] = table.part.map(slopes)
    return table.assign(device=device_name(place))[
        [
            "part",
            "k",
            "median_ms",
            "min_ms",
            "max_ms",
            "memory_mb",
            "slope_time",
            "slope_memory",
            "device",
            "arrays_mb",
            "excess",
        ]
    ]


def check_growth(tiles: list[int], rounds: int) -> str:
    """What will be measured, in words. InputError for numbers of tiles from which no power of K can be read."""
    most = min(MOST.values())
    if min(tiles, default=0) < 1 or len({k for k in tiles if k <= most}) < 2:
        raise InputError(
            f"cost_tiles is {tiles}: growth needs two or more different numbers of tiles up to {most}, such as "
            "[50, 200, 800]"
        )
    at_least_one(cost_rounds=rounds)
    return f"growth from {min(tiles):,} to {max(tiles):,} tiles"


def larger_half(k) -> np.ndarray:
    """The larger half of the numbers of tiles, two at least: where a power of K is read off."""
    values = np.unique(k)
    return values[-max(2, ceil(len(values) / 2)) :]


def slope(k, values) -> float:
    """p of values ~ K^p by least squares on logarithms, over the larger half of K."""
    k, values = np.asarray(k, float), np.asarray(values, float)
    used = np.isin(k, larger_half(k))
    return float(np.polyfit(np.log(k[used]), np.log(values[used]), 1)[0])


def study_growth(home: str | Path, tiles: list[int], rounds: int, device: str = "auto", seed: int = 0) -> pd.DataFrame:
    """`growth` of a study: read where the same was measured before, else measured and kept in cost/."""
    check_growth(tiles, rounds)
    key = {"tiles": sorted(set(tiles)), "rounds": rounds, "seed": seed, "code": code_version("dmsmil")}
    return measured_once(home, "growth", key, device, __file__, lambda: growth(tiles, rounds, device, seed))


def growth_sentences(table: pd.DataFrame) -> str:
    """Markdown: linear against quadratic, where the curves cross, and where the transport is most of the cost."""
    time, powers = table.pivot(index="k", columns="part", values="median_ms"), table.groupby("part").first()
    used = {part: larger_half(rows.k) for part, rows in table.groupby("part")}
    lines = [
        f"Over the larger half of K {what} grows as "
        + ", ".join(
            f"K^{powers[column][part]:.2f} ({PARTS[part]}, K = {used[part][0]} to {used[part][-1]})" for part in PARTS
        )
        + "."
        for what, column in (("time", "slope_time"), ("peak memory", "slope_memory"))
    ]
    words = {
        "holds": "**holds**: deformable attention is linear, full self-attention quadratic",
        "direction": "**holds in direction only**: deformable attention grows more slowly, but not as 1 against 2",
        "not": "**does not hold**: full self-attention does not grow faster",
    }
    for what, column in (("time", "slope_time"), ("memory", "slope_memory")):
        ours, full = powers[column]["deformable"], powers[column]["full"]
        word = words[growth_as_claimed(ours, full)]
        if full < 1 - NEAR:
            word += "; with so few tiles fixed costs still show"
        elif column == "slope_memory" and full <= 1 + NEAR:
            word += "; torch's kernel computes full self-attention without ever keeping its K x K map"
        lines.append(f"The paper's claim, linear against quadratic in the number of tiles, in {what} {word}.")
    last = time.index[-1]
    lines.append(
        f"Deformable attention is faster than full self-attention {_where(time.deformable < time.full)}: "
        + ", ".join(
            f"{time.deformable[k]:.3g} ms against {time.full[k]:.3g} ms at K = {k}"
            for k in time.index
            if k in (PAPER_TILES, last)
        )
        + "."
    )
    return "\n".join(f"- {line}" for line in [*lines, *_transport_sentences(table, time)])


def _transport_sentences(table: pd.DataFrame, time: pd.DataFrame) -> list[str]:
    """What the transport costs beside the attention of both scales, and what blocks of tiles cost and change."""
    exact = time.ot.dropna()
    both, last = 2 * time.deformable[exact.index], exact.index[-1]
    lines = [
        f"The exact transport takes longer than the deformable attention of both scales {_where(exact > both)}: "
        f"{exact[last] / both[last]:.3g} times as long at K = {last}. "
        + (
            "So on many tiles the transport is what training costs; inference needs none."
            if exact[last] > both[last]
            else "So it does not dominate training here."
        )
    ]
    blocks = table[(table.part == "blocks") & table.excess.notna()]
    most, end = blocks.iloc[-1], time.index[-1]
    lines.append(
        f"In blocks of {transport.BLOCK} tiles (`ot: blocks`) it takes {time.blocks[end]:.3g} ms at K = {end}."
        f" Its value is above the exact one: by {100 * most.excess:.1f} % at K = {most.k}, on random tiles, "
        "none of which is like another."
    )
    return lines


def _where(holds: pd.Series) -> str:
    """At which of the measured K, in ascending order, something holds."""
    held = list(holds.index[holds])
    if not held:
        return "at no measured K"
    if len(held) == len(holds):
        return "at every measured K"
    return (
        f"from K = {held[0]} on" if held == list(holds.index[-len(held) :]) else f"at K = {', '.join(map(str, held))}"
    )
