"""How long a study takes: its tiles times the time of the encoder, its runs times that of a step; both are measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch

from dmsmil.analysis.ablation import ablation_configs, null_configs
from dmsmil.analysis.sweep import collapse_configs, lam_configs
from dmsmil.analysis.variants import choose_variants, variant_configs
from dmsmil.cohorts.folds import bag_folds
from dmsmil.cost.meter import call_seconds, cpu_seconds
from dmsmil.cost.tables import Trainee
from dmsmil.features.bags import Bags
from dmsmil.jobs.parallel import one_thread, pick_device, worker_count
from dmsmil.jobs.text import many
from dmsmil.models import create, transport
from dmsmil.models.stacked import Stack
from dmsmil.study.place import resolve
from dmsmil.study.trial import made_up
from dmsmil.training.config import RunConfig, configure, configure_all
from dmsmil.training.runs import ON_CPU, ON_GPU
from dmsmil.training.together import stacks

MANY = 500  # tiles from which on the exact transport is most of a step


@dataclass(frozen=True)
class Work:
    """The trainings that a notebook asks for first. of: of each method how many runs, and seconds of one on one
    worker, mean over its options and scales."""

    notebook: str
    of: dict[str, tuple[int, float]]

    @property
    def runs(self) -> int:
        """How many they are."""
        return sum(runs for runs, _ in self.of.values())

    @property
    def seconds(self) -> float:
        """Of them all, on one worker."""
        return sum(runs * each for runs, each in self.of.values())


def trainings(params: dict, bags: Bags, folds: pd.DataFrame, count: int = 0) -> dict[str, list[tuple[RunConfig, int]]]:
    """What each notebook trains that none before it has: (configuration, how many runs of it). bags and folds: like the
    study's in scales, channels and classes; count: of the study's folds, all repeats together, 0 for as many as params
    ask for."""
    common = {name: params[name] for name in ("epochs", "lr", "weight_decay", "batch_size", "select")}
    lam = params["lam"]
    each, once = (count or params["folds"] * params["repeats"]) * len(params["seeds"]), 1
    forms = choose_variants(params["variants"], params["base"])
    readings, _ = variant_configs(bags, folds, forms, params["base"], lam=lam, **common)
    asked = {
        "03_train": [
            (configure(bags, folds, params["method"], params["scale"], params["options"], lam=lam, **common), each)
        ],
        "04_compare": [(c, each) for c in configure_all(bags, folds, params["methods"], lam=lam, **common)],
        "05_ablation": [
            (c, each)
            for c in [
                *ablation_configs(bags, folds, lam=lam, **common),
                *null_configs(bags, folds, lam=lam, **common),
                *readings.values(),
            ]
        ]
        + [(c, once) for c in collapse_configs(bags, folds, params["collapse_lams"], **common).values()],
        "06_lambda": [(c, each) for c in lam_configs(bags, folds, params["lams"], **common).values()],
    }
    known: dict[str, int] = {}
    found: dict[str, list[tuple[RunConfig, int]]] = {}
    for notebook, configs in asked.items():
        for config, runs in configs:
            new = runs - known.get(config.name, 0)
            if new > 0:
                found.setdefault(notebook, []).append((config, new))
                known[config.name] = runs
    return found


def forecast(params: dict, slides: int, channels: int, classes: list[str], count: int = 0) -> list[Work]:
    """The trainings of a study of so many slides, by notebook; count: of its folds, as `trainings` takes it. It times a
    step of each kind of run, at the study's sizes, on its device; the runs of `witness_rates` are not in it. Raises
    InputError for settings that cannot be."""
    bags = made_up(params["scales"], channels, classes, params["k"])
    folds = bag_folds(bags, 2)
    trained = slides * (1 - 1 / params["folds"])
    measured: dict[tuple, float] = {}
    works = []
    for notebook, configs in trainings(params, bags, folds, count).items():
        of: dict[str, tuple[int, float]] = {}
        for config, runs in configs:
            together = _together(config, runs, params)
            deformable = config.record()["options"].get("deformable")
            key = config.method, config.scales, deformable, config.batch_size, together
            if key not in measured:  # other options change a step little
                measured[key] = step_seconds(config, bags, together, params["device"])
            before, each = of.get(config.method, (0, 0.0))
            seconds = before * each + runs * config.epochs * math.ceil(trained / config.batch_size) * measured[key]
            of[config.method] = before + runs, seconds / (before + runs)
        works.append(Work(notebook, of))
    return works


def _together(config: RunConfig, runs: int, params: dict) -> int:
    """How many runs of a configuration will train in one pass."""
    if not stacks(config, pick_device(params["device"]).type == "cpu"):
        return 1
    limit = ON_GPU if pick_device(params["device"]).type == "cuda" else ON_CPU
    workers = 1 if limit == ON_GPU else worker_count(params["workers"], runs)
    return min(limit, math.ceil(runs / workers))


def step_seconds(config: RunConfig, bags: Bags, together: int = 1, device: str = "auto") -> float:
    """Seconds of a training step for each of `together` runs: on one thread of a CPU, or on the GPU. The second step
    counts: the first prepares."""
    place = pick_device(device)
    data = bags.view(config.scales).to(place)
    with one_thread():
        in_one_pass = stacks(config, place.type == "cpu")
        step = stacked_step(config, data, together) if in_one_pass else single_step(config, data)
        step()
        seconds = call_seconds(step, place) / together
    del step, data
    if place.type == "cuda":
        torch.cuda.empty_cache()  # what trains is another process, and needs the room
    return seconds


def stacked_step(config: RunConfig, data: Bags, together: int) -> Callable[[], None]:
    """A training step of `together` runs in one pass, a slide of `data` for each: as `together.py` makes it."""
    models = [
        create(config.method, data.x.shape[-1], len(data.classes), config.scales, **config.options)
        for _ in range(together)
    ]
    stack, geometry = Stack([model.to(data.x.device) for model in models]), models[0].geometry(data.mask, data.coords)
    optimiser = torch.optim.Adam(stack.parameters(), lr=config.lr, fused=True)
    rows = torch.arange(together) % len(data)

    def step():
        where = {name: value[rows] for name, value in geometry.items()}
        slides = [data.x[row : row + 1] for row in rows.tolist()]
        losses, _ = stack.loss(stack.forward(slides, data.mask[rows], data.coords[rows], where), data.labels[rows])
        optimiser.zero_grad(set_to_none=True)
        losses.sum().backward()
        optimiser.step()

    return step


def single_step(config: RunConfig, data: Bags) -> Callable[[], None]:
    """A training step of one run on the first slides of `data`: as `fit.py` makes it."""
    rows = [place % len(data) for place in range(config.batch_size)]
    return Trainee(config, data.subset([data.slide_ids[row] for row in rows]), data.x.device).step


def in_words(works: list[Work], params: dict) -> str:
    """How many trainings a study needs, and about how long they take here."""
    runs, workers = sum(work.runs for work in works), workers_of(params, works)
    alone = sum(work.seconds for work in works)
    where = "one GPU" if pick_device(params["device"]).type == "cuda" else many(workers, "core")
    few = " (without those of witness_rates)" if params["witness_rates"] else ""
    return (
        f"{many(runs, 'training')}{few}, about {minutes(alone / workers)} on {where} if none is done already; "
        "figures come on top"
    )


def encoding_in_words(params: dict, slides: int) -> str:
    """How many tiles a study encodes at most, and about how long its encoder takes for them here."""
    from dmsmil.features.encoders import tile_seconds  # it imports timm, seconds that others need not spend

    weights = str(resolve(params["encoder_weights"])) if params["encoder_weights"] else ""
    tiles = slides * params["k"] * len(params["scales"])
    seconds = tile_seconds(params["encoder"], weights, params["encoder_px"], params["tile_px"], params["device"])
    return (
        f"at most {tiles:,} tiles, about {minutes(tiles * seconds)} on this machine if none is done already; reading "
        "the slides comes on top"
    )


def workers_of(params: dict, works: list[Work]) -> int:
    """How many trainings run side by side."""
    if pick_device(params["device"]).type == "cuda":
        return params["workers"] or 1
    return worker_count(params["workers"], max((work.runs for work in works), default=1))


def minutes(seconds: float) -> str:
    """A duration as a person says it."""
    if seconds < 90:
        return f"{max(10 * round(seconds / 10), 10)} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} hours" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def step_in_words(params: dict, channels: int, classes: list[str]) -> str:
    """What a step of the study's method costs at its K, and where the exact transport is most of it, the way out."""
    bags = made_up(params["scales"], channels, classes, params["k"])
    config = configure(
        bags, bag_folds(bags, 2), params["method"], params["scale"], params["options"], lam=params["lam"]
    )
    seconds = step_seconds(config, bags, 1, params["device"])
    said = f"a step of {config.method} at K = {params['k']} takes {1000 * seconds:.3g} ms"
    if params["k"] < MANY or config.record()["options"].get("ot") != "exact":
        return said
    x = torch.randn(1, 2, params["k"], config.record()["options"]["projection_dim"])
    exact = cpu_seconds(lambda: transport.distance(x, torch.ones(x.shape[:3], dtype=torch.bool)))
    return said + (
        f", {1000 * exact:.3g} ms of it the exact transport, which grows as K^2.2: "
        "with {ot: blocks} among its options it grows with K"
    )
