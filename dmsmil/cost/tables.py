"""What the methods cost: parameters, FLOPs, time and memory (Table 3).

Times depend on the machine and the moment: all methods are measured in turn, in one go, on one device, which is named
beside the numbers, and a study measures once and keeps the measurement.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from dmsmil.analysis.paper import printed_cost
from dmsmil.cost.meter import (
    at_least_one,
    count_flops,
    device_name,
    interleave,
    measured_once,
    peak_memory,
    spread,
    turn_seconds,
)
from dmsmil.features.bags import Bags
from dmsmil.jobs.files import fingerprint
from dmsmil.jobs.parallel import one_thread, pick_device
from dmsmil.jobs.text import as_written
from dmsmil.models import count_parameters, create
from dmsmil.training.config import RunConfig, configure_all, scales_name
from dmsmil.training.results import beside, multi_scale, plain_row, run_name

PAPER_DIM = 2048  # ResNet-101's features: parameter counts can be compared with the paper's only at this width


def random_bags(k: int, dim: int, scales: tuple[int, ...] = (10, 20), slides: int = 1, seed: int = 0) -> Bags:
    """Slides of two classes with K tiles a scale, on a grid 20 wide, and normally distributed features.

    No slide need be read for a cost: only the transport's time depends on the features, and not by much.
    """
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(len(scales), slides, k, dim, generator=draw).transpose(0, 1)  # laid out as Bags.batches does
    grid = torch.stack([torch.arange(k) % 20, torch.arange(k) // 20], -1) * 1024
    names = [str(slide) for slide in range(slides)]
    return Bags(
        x,
        torch.ones(x.shape[:3], dtype=torch.bool),
        grid.expand(*x.shape[:3], 2).clone(),
        torch.arange(slides) % 2,
        ["0", "1"],
        names,
        names,
        tuple(scales),
    )


def cost_configs(bags: Bags, methods: list) -> list[RunConfig]:
    """What is measured of `methods` (entries as in `training.config.configure_all`).

    Of a method that runs at one scale the first, for every scale costs the same; and all scales together. Entries that
    differ only in how they are trained cost the same, and are measured once.
    """
    settings = dict(epochs=1, lr=1e-4, weight_decay=0.0, batch_size=1, select="last")
    chosen = {}
    for entry in methods:
        configs = configure_all(bags, pd.DataFrame(), [entry], **settings)
        for c in [c for c in configs if len(c.scales) == 1][:1] + [c for c in configs if len(c.scales) > 1]:
            chosen.setdefault(fingerprint([c.method, c.scales, c.options]), c)
    return list(chosen.values())


class Trainee:
    """A method in training on `bags`, all their slides one batch.

    step(): forward, loss, backward and Adam, as training/fit.py makes a step. infer(): forward of slides never seen
    before.
    """

    def __init__(self, config: RunConfig, bags: Bags, device: torch.device):
        torch.manual_seed(0)
        data = bags.view(config.scales).to(device)
        self.bags, self.labels = (data.x, data.mask, data.coords), data.labels
        self.model = create(config.method, data.x.shape[-1], len(data.classes), config.scales, **config.options).to(
            device
        )
        self.optimiser = torch.optim.Adam(
            self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.geometry = self.model.geometry(*self.bags[1:])  # training has it made once for all epochs

    def held(self) -> list[Tensor]:
        """The tensors that are there before the first step."""
        return [*self.bags, self.labels, *self.geometry.values(), *self.model.parameters(), *self.model.buffers()]

    def step(self) -> None:
        self.model.train()
        loss, _ = self.model.loss(self.model(*self.bags, geometry=self.geometry), self.labels)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()

    @torch.inference_mode()
    def infer(self) -> None:
        self.model.eval()
        self.model(*self.bags)


def method_costs(
    methods: list,
    k: int,
    dim: int,
    slides: int,
    rounds: int,
    scales: tuple[int, ...] = (10, 20),
    device: str = "auto",
    batch: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure `methods` at K = `k` tiles of `dim` features, in turn over `rounds`: one row a method and its scales.

    Columns: name, method (registry key), scales; parameters; flops of a forward pass of one slide; epoch_median_s,
    epoch_min_s, epoch_max_s, the time of a training step times `slides`; inference_median_ms and so on, of one slide;
    memory_mb, the peak of a training step with parameters, Adam's state and features; device; k, dim, slides; and
    arrays_mb (`meter.peak_memory`). batch: slides a step; time and FLOPs stay those of one slide.
    Raises InputError for sizes below one and for unknown methods.
    """
    at_least_one(cost_k=k, cost_dim=dim, cost_slides=slides, cost_rounds=rounds)
    place, bags, trainees, rows = pick_device(device), random_bags(k, dim, scales, batch, seed), [], []
    configs = cost_configs(bags, methods)
    with one_thread():
        Trainee(configs[0], bags, place).step()  # what a library makes once and keeps on the device is no method's cost
        for config in configs:
            trainee = Trainee(config, bags, place)
            trainee.infer()  # nor what a method makes once and keeps
            flops = count_flops(trainee.infer) / batch
            memory, arrays = peak_memory(lambda: (trainee.step(), trainee.step()), trainee.held(), place)
            trainees.append(trainee)
            name = run_name(config)
            rows.append(
                {
                    "name": name,
                    "method": config.method,
                    "scales": scales_name(config.scales),
                    "parameters": count_parameters(trainee.model),
                    "flops": round(flops),
                    "memory_mb": memory,
                    "arrays_mb": arrays,
                }
            )
        times = interleave(
            [call for t in trainees for call in (t.step, t.infer)], rounds, partial(turn_seconds, device=place)
        )
    for row, step, infer in zip(rows, times[::2], times[1::2]):
        row |= spread([s / batch * slides for s in step], "epoch_", "_s")
        row |= spread([1000 / batch * s for s in infer], "inference_", "_ms")
    columns = [
        "name",
        "method",
        "scales",
        "parameters",
        "flops",
        *spread([0], "epoch_", "_s"),
        *spread([0], "inference_", "_ms"),
        "memory_mb",
        "device",
        "k",
        "dim",
        "slides",
        "arrays_mb",
    ]
    return pd.DataFrame(rows).assign(device=device_name(place), k=k, dim=dim, slides=slides)[columns]


def study_costs(
    home: str | Path,
    methods: list,
    k: int,
    dim: int,
    slides: int,
    rounds: int,
    scales: tuple[int, ...] = (10, 20),
    device: str = "auto",
    seed: int = 0,
) -> pd.DataFrame:
    """`method_costs` of a study: read where the same was measured before, else measured and kept in cost/."""
    at_least_one(cost_k=k, cost_dim=dim, cost_slides=slides, cost_rounds=rounds)
    records = [c.record() for c in cost_configs(random_bags(1, dim, scales), methods)]
    key = {
        "methods": [[r["method"], r["scales"], r["options"], r["code"]] for r in records],
        "k": k,
        "dim": dim,
        "slides": slides,
        "rounds": rounds,
        "seed": seed,
    }
    return measured_once(
        home,
        "methods",
        key,
        device,
        __file__,
        lambda: method_costs(methods, k, dim, slides, rounds, scales, device, seed=seed),
    )


def pretty_costs(table: pd.DataFrame) -> pd.DataFrame:
    """Table 3 to read: median [least, most], and what the paper prints beside."""
    theirs = beside(table, printed_cost())
    shown = pd.DataFrame({"": table.name, "scales": table.scales, "parameters": [f"{n:,}" for n in table.parameters]})
    shown["parameters in the paper"] = [row.get("parameters", "—") for row in theirs]
    shown["MFLOP / slide"] = [f"{n / 1e6:,.1f}" for n in table.flops]
    for title, column, unit, of in (
        ("s / epoch", "epoch", "s", "training"),
        ("ms / slide", "inference", "ms", "inference"),
    ):
        parts = table[[f"{column}_{name}_{unit}" for name in ("median", "min", "max")]]
        shown[title] = [f"{m:.3g} [{low:.3g}, {high:.3g}]" for m, low, high in parts.itertuples(index=False)]
        shown[f"{of} in the paper"] = [row.get(of, "—") for row in theirs]
    shown["peak MB"] = [f"{n:.1f}" for n in table.memory_mb]
    return shown.set_index("")


def cost_sentences(table: pd.DataFrame) -> str:
    """Markdown: whether DMSMIL is the smallest and fastest of the multi-scale methods, as the paper says of its own."""
    rows = multi_scale(table)
    mine, others = plain_row(rows, "dmsmil"), rows[rows.method != "dmsmil"]
    if mine is None or others.empty:
        return "DMSMIL and another published multi-scale method are needed to compare costs."
    lines = []
    for claim, column, least, most, shown in (
        ("the fewest parameters", "parameters", "", "", "{:,}"),
        ("the shortest epoch", "epoch_median_s", "epoch_min_s", "epoch_max_s", "{:.3g} s"),
        ("the shortest inference", "inference_median_ms", "inference_min_ms", "inference_max_ms", "{:.3g} ms"),
    ):
        best, below = others.loc[others[column].idxmin()], int((others[column] < mine[column]).sum())
        line = (
            f"DMSMIL **{'does not have' if below else 'has'} {claim}** of the {len(others) + 1} multi-scale methods: "
            f"{shown.format(mine[column])} against {shown.format(best[column])} of {as_written(best['name'])}"
        )
        line += f"; {below} of {len(others)} others are below it" if below > 1 else ""
        if least and mine[least] <= best[most] and best[least] <= mine[most]:
            line += ", but the two were not always in this order"
        lines.append(line + f". In the paper it has {claim}.")
    return "\n".join(f"- {line}" for line in [*lines, *count_sentences(rows)])


def count_sentences(table: pd.DataFrame) -> list[str]:
    """Whether our parameter counts are those that the paper prints, in whose numbers · is a digit that is lost."""
    if (table.dim != PAPER_DIM).any():
        return [
            f"Parameter counts depend on the width of the features: at {table.dim.iloc[0]} they cannot be compared "
            f"with the paper's, at {PAPER_DIM}."
        ]
    printed, lines = printed_cost(), []
    for row in (plain_row(table, name) for name in table.method.unique() if name in printed):
        if row is None:
            continue
        said = printed[row.method]["parameters"]
        digits = said.split()[-1].replace(",", "")
        same = re.fullmatch(digits.replace("·", r"\d"), str(row.parameters))
        word = "not the same" if not same else "they may be the same" if "·" in digits else "the same"
        lines.append(f"{row['name']} has {row.parameters:,} parameters here; the paper's count is {said}: {word}.")
    return lines
