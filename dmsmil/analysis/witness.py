"""Where few tiles carry the signal: the witness rate against accuracy, on the demo cohort, whose truth is known.

The witness rate is the share of a bag's tiles that lie in the signal region of their slide. The same slides are cut
down to bags of equally many tiles at each rate, and every method is trained on each. Two bounds say what to expect of
DMSMIL. By eq. (3) a query moves its share of the mean (9) no further than c cells (`reach_bound`); by eq. (3)-(4)
offset and attention come from the query alone, so that a tile without signal cannot look for one that has it
(`blind_bound`). ABMIL's softmax can give any one tile all the weight.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dmsmil.analysis.comparison import ALPHA, compare, sentence
from dmsmil.cohorts.folds import fold_count
from dmsmil.features.bags import Bags
from dmsmil.features.truth import known_shares
from dmsmil.jobs.failures import read_failures, write_failures
from dmsmil.jobs.files import InputError, fingerprint
from dmsmil.jobs.text import as_written
from dmsmil.models.deformable import reach
from dmsmil.models.grid import grid_shape
from dmsmil.training.config import configure_all, scales_name
from dmsmil.training.fit import load_model
from dmsmil.training.metrics import called, summarise
from dmsmil.training.results import COLLAPSED, marked_sentences, marks, run_name
from dmsmil.training.runs import Runs, get_runs

SIGNAL, OTHER = 0.75, 0.15  # a tile's share in the signal region: at least, at most; what lies between is left out
STAGE = "witness rate"  # and the rate: how its rows of failures.csv are called
KEPT = 0.9  # of the slides must have enough tiles of both kinds
METHODS = [
    "dmsmil",
    {"dmsmil": {"deformable": False}},
    "abmil",
    {"meanpool": {"scale": 0}},
    {"maxpool": {"scale": 0}},
    "dmsmil_select",
]


def reach_bound(tiles: int, cells: float) -> float:
    """The largest weight one of `tiles` tiles can have in DMSMIL's pooled vector: the share of queries it is near to.

    Near is within `cells` = c cells in row and column (`deformable.reach`): |dr| < c by eq. (3), and a point gives
    weight to cells less than one cell away. (2c + 1)^2 / K in the middle of a large map; 1 where the whole map is
    within reach.
    """
    height, width = grid_shape(torch.tensor(tiles)).tolist()
    row, column = np.divmod(np.arange(tiles), width)
    near = (abs(row[:, None] - row) <= cells) & (abs(column[:, None] - column) <= cells)
    return float(near.mean(1).max())


def blind_bound(signal: int, tiles: int) -> float:
    """The largest weight DMSMIL can give to all `signal` tiles together, on average over their places in the map.

    A signal tile's query can keep its whole share, 1 / K, on signal tiles. Any other query does not know where they
    are, so its share falls on them as often as they are among the K - 1 other tiles. With w of K:

        w / K + (K - w) / K  w / (K - 1)  <=  2 w / K      at most twice what a mean gives them

    Tiles that lie together, as in tissue, can exceed it: beside a signal tile is another. Keys (attention="dot")
    let a query see what it samples, and the bound falls.
    """
    return signal / tiles + (tiles - signal) / tiles * signal / max(tiles - 1, 1)


def kinds(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares (N, S, K) -> signal, other (N, K) bool: tiles that are so at every scale."""
    return shares.min(1) >= SIGNAL, shares.max(1) <= OTHER


def signal_count(rate: float, tiles: int) -> int:
    """How many of `tiles` tiles carry the signal at a rate: the nearest number, and one at least unless rate is 0."""
    return max(round(rate * tiles), int(rate > 0))


def enough(shares: np.ndarray, rates: list[float], tiles: int) -> np.ndarray:
    """(N,) whether a slide has the tiles of both kinds that bags of `tiles` tiles need, at every one of the rates."""
    signal, other = (kind.sum(1) for kind in kinds(shares))
    counts = [signal_count(rate, tiles) for rate in rates]
    return (signal >= max(counts)) & (other >= tiles - min(counts))


def most_tiles(shares: np.ndarray, rates: list[float]) -> int:
    """The most tiles a bag can have so that `KEPT` of the slides have `enough`. InputError when it is none."""
    for tiles in range(shares.shape[2], 1, -1):
        if enough(shares, rates, tiles).mean() >= KEPT:
            return tiles
    raise InputError(
        "the slides have too few tiles in and outside of their signal region for these witness_rates: "
        "raise k or demo_side, or leave witness_rates empty"
    )


@dataclass(frozen=True)
class Diluted:
    """Bags of which `rate` of the tiles, exactly, carry the signal; shares (N, S, tiles) of their tiles."""

    rate: float
    bags: Bags
    shares: np.ndarray


def diluted(bags: Bags, shares: np.ndarray, rates: list[float], tiles: int, seed: int = 0) -> list[Diluted]:
    """The same slides at each rate, every bag with exactly `tiles` tiles; ascending, rates that round alike once.

    A slide's tiles of either kind are put in one random order, which depends on seed and slide, and the first of each
    are taken: between two rates only the tiles differ that must. They stay in raster order, all scales together. A
    slide that has not `enough` tiles is left out of every rate, and named in `missing`. Worker processes get a copy.
    """
    kept, kind = np.flatnonzero(enough(shares, rates, tiles)), kinds(shares)
    names = [bags.slide_ids[slide] for slide in kept]
    few = dict.fromkeys(sorted(set(bags.slide_ids) - set(names)), f"too few tiles of one kind for bags of {tiles}")
    found = []
    for count in sorted({signal_count(rate, tiles) for rate in rates}):
        rows = [
            _draw([part[slide] for part in kind], (count, tiles - count), [seed, bags.slide_ids[slide]])
            for slide in kept
        ]
        at = torch.from_numpy(np.array(rows, np.int64).reshape(len(kept), tiles))
        x, mask, coords = (
            part[torch.from_numpy(kept)[:, None], :, at].transpose(1, 2).contiguous()
            for part in (bags.x, bags.mask, bags.coords)
        )
        made = replace(
            bags,
            x=x,
            mask=mask,
            coords=coords,
            labels=bags.labels[kept],
            slide_ids=names,
            patient_ids=[bags.patient_ids[slide] for slide in kept],
            colour=None,
            density=None,
            missing=few,
            store=None,
            file=None,
            identity=fingerprint([bags.identity, "diluted", names, at.tolist()]),
        )
        found.append(Diluted(count / tiles, made, np.take_along_axis(shares[kept], at.numpy()[:, None], 2)))
    return found


def _draw(kind: list[np.ndarray], counts: tuple[int, int], key: list) -> np.ndarray:
    """Rows of a slide, ascending: so many of each kind, the first in an order that the key decides."""
    rng = np.random.default_rng(int(fingerprint(key, 16), 16))
    orders = [rng.permutation(np.flatnonzero(part)) for part in kind]
    return np.sort(np.concatenate([order[:count] for order, count in zip(orders, counts)]))


def check_folds(bags: Bags, folds: pd.DataFrame) -> None:
    """InputError when a fold would train on, or test, no slide of a class."""
    table = folds[folds.slide_id.isin(bags.slide_ids)]
    for fold in range(fold_count(folds)):
        test = table[f"fold_{fold}"] == "test"
        for name in bags.classes:
            for part, verb in ((table[test], "tests"), (table[~test], "trains on")):
                if not (part.label == name).any():
                    raise InputError(
                        f"fold {fold} {verb} no {name} slide among the {len(bags)} that have enough tiles "
                        "of both kinds: set folds lower, raise demo_side, or leave witness_rates empty"
                    )


@dataclass(frozen=True)
class Witness:
    """The runs of each rate, ascending, and the bags they saw; nothing but a reason where there is nothing to run."""

    runs: list[list[Runs]]
    bags: list[Diluted]
    reason: str = ""


def witness_runs(
    home: str | Path,
    bags: Bags,
    folds: pd.DataFrame,
    rates: list[float],
    seeds=(0,),
    workers: int = 0,
    device: str = "auto",
    scheduler: str = "",
    **settings,
) -> Witness:
    """Train `METHODS` at each witness rate, on bags as large as the slides allow (`most_tiles`).

    settings: those of `configure`, as lam and epochs. Needs the truth of every slide: nothing is run, and `reason` says
    so, on a cohort not painted here and where `rates` is empty. Raises InputError for a rate that is none, slides that
    are too small, or folds that lose a class.
    """
    if wrong := [rate for rate in rates if not (isinstance(rate, int | float) and 0 <= rate <= 1)]:
        raise InputError(f"witness_rates holds {wrong[0]!r}: a share of tiles from 0 to 1 is needed, such as 0.1")
    for stage in {name for name in read_failures(home).stage if name.startswith(STAGE)}:
        write_failures(home, stage, [])  # of rates that are no longer asked for
    if not rates:
        return Witness([], [], "Not run here: `witness_rates` is empty.")
    shares = known_shares(bags, Path(home) / "cohort")
    if shares is None:
        return Witness([], [], "Not run here: which tiles carry the signal is known of painted cohorts alone.")
    several = diluted(bags, shares, rates, most_tiles(shares, rates))
    check_folds(several[0].bags, folds)
    runs = [
        get_runs(
            home,
            one.bags,
            folds,
            configure_all(one.bags, folds, METHODS, **settings),
            seeds,
            workers,
            device,
            stage=f"{STAGE} {one.rate:.3f}",
            scheduler=scheduler,
        )
        for one in several
    ]
    return Witness(runs, several)


@torch.inference_mode()
def tile_weights(runs: Runs, one: Diluted) -> tuple[float, float]:
    """How tested slides are weighted, each scale's scores summing to 1: the largest tile's, and all signal tiles'.

    Means over scales, slides and runs; each slide by the model that did not train on it.
    """
    data, signal, largest, on_signal = one.bags.view(runs.config.scales), kinds(one.shares)[0], [], []
    for (fold, seed), folder in sorted(runs.folders.items()):
        mine = runs.predictions[(runs.predictions.fold == fold) & (runs.predictions.seed == seed)]
        rows, model = data.rows(mine.slide_id), load_model(folder, data.x.shape[-1], len(data.classes))
        scores = model(data.x[rows], data.mask[rows], data.coords[rows]).scores
        scores = (scores / scores.sum(-1, keepdim=True).clamp(min=1e-12)).numpy()
        largest.append(scores.max(-1).ravel())
        on_signal.append((scores * signal[rows.numpy()][:, None]).sum(-1).ravel())
    return float(np.concatenate(largest).mean()), float(np.concatenate(on_signal).mean())


def witness_table(witness: Witness, positive: str = "") -> pd.DataFrame:
    """One row a rate and method, empty where nothing was run.

    Columns: rate, name, method, scales, the metrics, runs and collapsed of a result table, slides, tiles, witnesses
    (signal tiles a bag), signal_area (share of the first scale's area in the signal region, other tiles too), and
    `tile_weights`: largest_weight, and witness_weight, for a mean the rate.
    """
    rows = []
    for one, several in zip(witness.bags, witness.runs):
        tiles = one.shares.shape[2]
        for runs in several:
            largest, on_signal = tile_weights(runs, one)
            rows.append(
                {
                    "rate": one.rate,
                    "name": run_name(runs.config),
                    "method": runs.config.method,
                    "scales": scales_name(runs.config.scales),
                    **summarise(runs.predictions, positive),
                    **marks(runs),
                    "slides": len(one.bags),
                    "tiles": tiles,
                    "witnesses": round(one.rate * tiles),
                    "signal_area": float(one.shares[:, 0].mean()),
                    "largest_weight": largest,
                    "witness_weight": on_signal,
                }
            )
    return pd.DataFrame(rows)


def witness_sentences(witness: Witness, table: pd.DataFrame, positive: str = "") -> str:
    """Markdown: what was compared, whether DMSMIL falls below ABMIL or its own mean, and what weight tiles get."""
    if witness.reason:
        return witness.reason
    lines = [
        f"{table.slides[0]} slides, {table.tiles[0]} tiles each at every rate; too few tiles of one kind, and so "
        f"left out: {len(witness.bags[0].bags.missing)}. At every scale a signal tile lies in the signal region "
        f"with {SIGNAL:.0%} of its area or more, another with {OTHER:.0%} or less.",
        as_written(_above_chance(table)),
    ]
    if table.rate.any():
        lines += _against_others(witness, table[table.rate > 0], positive)
        options = witness.runs[0][0].config.record()["options"]
        cells = reach(options["offset"], options["points"])
        lines += map(as_written, _weights(table[table.rate > 0], cells))
    if fallen := [f"{row['name']} at {row.rate:.0%}" for _, row in table[table[COLLAPSED] > 0].iterrows()]:
        lines.append(f"Collapsed, and so no result: {as_written(', '.join(fallen))}.")
    named = [f"{name} at {rate:.0%}" for name, rate in zip(table.name, table.rate)]
    lines += marked_sentences(table.assign(name=named))
    return "\n".join(f"- {line}" for line in lines)


def _above_chance(table: pd.DataFrame) -> str:
    """Which methods see a signal at each rate; without a signal tile none should."""
    said, control = [], ""
    for rate, rows in table.groupby("rate"):
        seen = rows.name[rows.AUC_low > 0.5]
        who = "none" if seen.empty else "all" if len(seen) == len(rows) else ", ".join(seen)
        said.append(f"{who} with {rows.witnesses.iloc[0]} of {rows.tiles.iloc[0]}")
        if rate == 0 and len(seen):
            control = f" Without any none should be: {rows.signal_area.iloc[0]:.1%} of their area is signal, or chance."
    return f"{called('AUC', table)} above 0.5, by the 95 % interval: {'; '.join(said)} signal tiles.{control}"


def _against_others(witness: Witness, table: pd.DataFrame, positive: str) -> list[str]:
    """Markdown: DMSMIL against ABMIL and its plain mean, at each rate; tested at the lowest where a signal is seen."""
    seen = table.rate[table.AUC_low > 0.5]
    rate = min(seen if len(seen) else table.rate)
    runs = next(runs for one, runs in zip(witness.bags, witness.runs) if one.rate == rate)
    mine = run_name(runs[0].config)
    rivals = {run_name(r.config): r.predictions for r in runs[1:] if r.config.method in ("abmil", "dmsmil")}
    auc = table.pivot(index="rate", columns="name", values="AUC_mean").sort_index(ascending=False)
    rates = ", ".join(f"{rate:.0%}" for rate in auc.index)
    lines = [
        f"{called('AUC', table)} of {mine} minus {name} where {rates} of the tiles carry the signal: "
        + ", ".join(f"{gap:+.3f}" for gap in auc[mine] - auc[name])
        + "."
        for name in rivals
    ]
    tests = compare(runs[0].predictions, rivals, positive, runs[0].test_share)
    place = f"At {rate:.0%}, the lowest rate" + (" where a method is above chance" * bool(len(seen)))
    lines += [f"{place}: {sentence(row, mine)} {sentence(row, mine, 'DeLong')}" for _, row in tests.iterrows()]
    again, now = (
        ", ".join(tests.name[(tests[f"{test}_difference"] < 0) & (tests[f"{test}_p_holm"] < ALPHA)])
        for test in ("AUC", "DeLong")
    )
    verdict = (
        f"{mine} falls below {again}"
        if again
        else f"these models of {mine} fall below {now}, but that others would, trained anew, is not shown"
        if now
        else f"{mine} is not shown to fall below {' or '.join(rivals)}"
    )
    return [*map(as_written, lines), f"**Where {rate:.0%} of the tiles carry the signal, {as_written(verdict)}.**"]


def _weights(table: pd.DataFrame, cells: float) -> list[str]:
    """The weight that tiles receive at the lowest rate, beside the bounds; cells: c of DMSMIL."""
    rows = table[table.rate == table.rate.min()]
    rate, tiles, signal = rows[["rate", "tiles", "witnesses"]].iloc[0]
    gains = ", ".join(f"{name} {weight / rate:.2f}" for name, weight in zip(rows.name, rows.witness_weight))
    peaks = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(rows.name, rows.largest_weight))
    return [
        f"Weight of the signal tiles at the lowest rate, a mean's being 1: {gains}. In random places DMSMIL can "
        f"give them {blind_bound(signal, tiles) / rate:.2f} at most, ABMIL {1 / rate:.0f}.",
        f"Largest weight of one tile there: {peaks}; a mean's is {1 / tiles:.2f}. Offsets below {cells:g} "
        f"cell{'s' * (cells > 1)}, eq. (3), allow DMSMIL {reach_bound(int(tiles), cells):.2f} on a map of "
        f"{tiles:.0f} tiles, and {reach_bound(200, cells):.2f} on one of the paper's 200.",
    ]
