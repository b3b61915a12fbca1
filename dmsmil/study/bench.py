"""`dmsmil bench`: the fast paths against the plain ones, interleaved in one run, as ratios with their spread.

The plain ones are the oracles of the tests (tests/*/naive_*.py): what a careful reader would write first. Every
comparison also checks that both sides give the same result.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from dmsmil.cohorts.folds import bag_folds
from dmsmil.cost.meter import interleave
from dmsmil.cost.tables import method_costs
from dmsmil.jobs.files import InputError
from dmsmil.models import METHODS, create
from dmsmil.slides.reader import open_slide
from dmsmil.slides.tiles import select_tiles
from dmsmil.study.forecast import single_step, stacked_step
from dmsmil.study.terminal import say
from dmsmil.study.trial import made_up
from dmsmil.training.config import configure

PARTS = ("slides", "encoder", "step", "stacked", "methods")


def row(name: str, plain: list[float], fast: list[float], unit: str = "s", times: float = 1.0) -> str:
    """One line: medians of both, and the ratio pair by pair as median [least, most]."""
    ratios = [a / b for a, b in zip(plain, fast)]
    return (
        f"{name:<44}{times * statistics.median(plain):>10.2f}{times * statistics.median(fast):>10.2f} {unit:<8}"
        f"{statistics.median(ratios):>7.2f}x  [{min(ratios):.2f}, {max(ratios):.2f}]"
    )


def slides(quick: bool):
    """Tile selection and reading against the plain OpenSlide loop: identical tiles, CPU time of one process."""
    from tests.slides.naive_slides import bench_slide, naive_select

    sides, tile_px, k = ({"20x": 6000, "40x": 12001}, 256, 60) if quick else ({"20x": 20000, "40x": 42001}, 512, 200)
    for kind, side in sides.items():
        with tempfile.TemporaryDirectory() as folder:
            path = bench_slide(Path(folder) / f"{kind}.svs", kind, side)
            found = {}

            def fast():
                with open_slide(path) as slide:
                    found["fast"] = select_tiles(slide, k, tile_px, pixels=True)

            def plain():
                found["plain"] = naive_select(path, k, tile_px, 0, 0.05, {"20x": 20, "40x": 40}[kind])

            times = interleave([plain, fast], 1 if not quick else 2)
            for scale in (10, 20):
                assert np.array_equal(found["fast"].coords[scale], found["plain"]["coords"][scale])
                assert np.array_equal(found["fast"].pixels[scale], found["plain"]["pixels"][scale])
            yield row(f"tiles of a {side} px slide at {kind}, {len(found['fast'].density)} pairs", *times)


def encoder(quick: bool):
    """The CPU backend against eager fp32 PyTorch, one thread."""
    from dmsmil.features.encoders import create_encoder
    from tests.features.naive_encoder import encode_naive, naive_encoder

    names = [("efficientnet_lite0", 256, 16)] + ([] if quick else [("random:resnet101", 224, 8)])
    for name, px, count in names:
        tiles = np.random.default_rng(0).integers(0, 255, (count, px, px, 3), dtype=np.uint8)
        ours, plain = create_encoder(name, device="cpu", threads=1), naive_encoder(name)
        a, b = ours.encode(tiles), encode_naive(plain, tiles)
        cosine = float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())
        times = interleave([lambda: encode_naive(plain, tiles), lambda: ours.encode(tiles)], 5)
        yield row(f"{name}, {ours.backend}, cosine {cosine:.7f}", *times, "ms/tile", 1000 / count)


def step(quick: bool):
    """One training step of DMSMIL (forward, loss, backward, Adam) against grid_sample + ot.emd2, one thread."""
    from tests.models.naive_dmsmil import NaiveDMSMIL, step_naive
    from tests.models.naive_dmsmil import step as step_fast

    torch.manual_seed(0)
    features = torch.randn(2, 16, 200, 2048).transpose(0, 1)  # laid out as bags.batches does
    labels = torch.arange(16) % 2
    alone: list = []
    for batch in (1, 16):
        model = create("dmsmil")
        naive = NaiveDMSMIL.like(model)
        bags, said = features[:batch], labels[:batch]
        plain_adam = torch.optim.Adam(naive.parameters(), lr=1e-4)
        fast_adam = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
        first = step_naive(naive, plain_adam, bags, said), step_fast(model, fast_adam, bags, said)
        assert abs(first[0] - first[1]) < 1e-4 * abs(first[0]), first
        plain, fast = interleave(
            [lambda: step_naive(naive, plain_adam, bags, said), lambda: step_fast(model, fast_adam, bags, said)],
            15 if batch == 1 else 7,
        )
        yield row(f"DMSMIL step, batch {batch}", plain, fast, "ms/slide", 1000 / batch)
        alone = alone or plain
        if batch > 1:
            yield row(
                f"DMSMIL step, batch {batch}, plain one by one",
                [batch * p for p in alone[:7]],
                fast,
                "ms/slide",
                1000 / batch,
            )


def stacked(quick: bool):
    """A training step for each run of a stack against the step of a run alone, one slide a run and step, one thread.
    That both give the same is tested (tests/models/test_stacked.py, tests/training/test_together.py)."""
    for k, width, rounds in ((12, 64, 3),) if quick else ((48, 1280, 21), (200, 2048, 11)):
        for name, scales in (("dmsmil", (10, 20)), ("damil", (10,)), ("abmil", (10,)), ("meanpool", (10, 20))):
            bags = made_up(scales, width, ["a", "b"], k)
            config = configure(bags, bag_folds(bags, 2), name)
            for runs in (2, 5, 10, 15) if name == "dmsmil" and not quick else (10,):
                alone, fast = interleave([single_step(config, bags), stacked_step(config, bags, runs)], rounds)
                yield row(f"{name}, K = {k}, {width}-d, {runs} runs", alone, [t / runs for t in fast], "ms/run", 1000)


def methods(quick: bool):
    """Every method as `dmsmil.cost.tables` measures it, with 1 and 16 slides a step, and its ratio to DMSMIL."""
    k, width, rounds = (50, 256, 2) if quick else (200, 2048, 3)
    for batch in (1, 16):
        table = method_costs(list(METHODS), k, width, slides=1, rounds=rounds, device="cpu", batch=batch)
        yield (
            f"{f'K = {k}, {width}-d, batch {batch}: ms/slide (ratio to DMSMIL)':<62}"
            f"{'inference':>18}{'training step':>18}"
        )
        both = [table.inference_median_ms, 1000 * table.epoch_median_s]
        ours = [times[table.method == "dmsmil"].iloc[0] for times in both]
        for i, name in enumerate(table.name):
            yield f"{name:<62}" + "".join(f"{f'{t[i]:.2f} ({t[i] / o:.2f})':>18}" for t, o in zip(both, ours))


def main(parts: list[str], quick: bool) -> int:
    """Run the named parts (all when none is named) and print one line a comparison."""
    for part in parts:
        if part not in PARTS:
            raise InputError(f"bench knows no '{part}': choose from {', '.join(PARTS)}")
    root = Path(__file__).resolve().parents[2]
    if not (root / "tests").is_dir():
        raise InputError("bench compares with the plain versions in tests/: run it from a checkout")
    sys.path.insert(0, str(root))
    torch.set_num_threads(1)
    say(f"{'CPU time of one process, medians':<44}{'plain':>10}{'fast':>10} {'':<8}{'ratio':>8}  [least, most]")
    for part in parts or PARTS:
        for line in globals()[part](quick):
            say(line)
    return 0
