"""Train several runs of one method in one pass (`models.stacked`), each as it would be trained alone.

All runs of a stack take one slide a step. Their epochs end at different steps, for their folds differ in size, so a run
goes on with its next epoch while others are still in theirs, and leaves the stack after its last one. What a run leaves
behind is what `fit.fit` leaves; its name does not say how it was trained.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from dmsmil.features.bags import Bags
from dmsmil.jobs.files import DiskFull, InputError, fingerprint
from dmsmil.jobs.parallel import one_thread, pick_device
from dmsmil.models import method
from dmsmil.models.stacked import Stack
from dmsmil.training import fit, health
from dmsmil.training.config import RunConfig
from dmsmil.training.progress import Progress
from dmsmil.training.record import read_checkpoint, write_checkpoint

Unit = tuple[RunConfig, int, int, Path]  # configuration, fold, seed, folder


def stacks(config: RunConfig, cpu: bool = False) -> bool:
    """Whether runs of this configuration train in one pass: the method can, on a CPU gains by it, and a step sees one
    slide."""
    row = method(config.method)
    return row.stacks() and config.batch_size == 1 and (row.load().gains_on_cpu or not cpu)


def shape_of(config: RunConfig) -> str:
    """Runs with the same word can be in one stack: only λ, which is in the loss alone, may differ."""
    record = config.record()
    options = {name: value for name, value in record["options"].items() if name != "lam"}
    return fingerprint({**record, "options": options})


@dataclass
class Member:
    """A run of a stack. place: among the units asked for; note: what happened to it; rows: its slides in the order of
    this epoch, of which `at` are done; sums: of each loss term over these; moments: what Adam keeps of each weight,
    after `steps` steps."""

    place: int
    run: fit.Training
    rows: Tensor
    note: str = ""
    at: int = 0
    steps: int = 0
    sums: dict[str, float] | None = None
    moments: dict[str, dict[str, Tensor]] | None = None

    def shuffle(self) -> None:
        """Draw the order of the next epoch, as `Bags.batches` draws it."""
        train = torch.as_tensor(self.run.parts["train"], dtype=torch.int64)
        self.rows, self.at = train[torch.randperm(len(train), generator=self.run.order)], 0


def fit_together(
    bags: Bags, folds: pd.DataFrame, units: list[Unit], device: str = "auto"
) -> Iterator[tuple[int, Exception | None, str]]:
    """Train the runs `units`, which have one `shape_of`; yield (place in units, error or None, note) as each ends.

    A run that fails ends alone, the others go on. One thread on the CPU. Checkpoints are kept while training: what was
    interrupted goes on, in whatever stack. Raises DiskFull.
    """
    place = pick_device(device)
    with one_thread():
        data, members = fit.placed(bags.view(units[0][0].scales), place), []
        for number, unit in enumerate(units):
            try:
                members.append(_begin(number, data, folds, unit, place))
            except InputError as error:
                yield number, error, ""
        for member in members[1:]:
            member.run.geometry = members[0].run.geometry  # the same of each: kept once
        members.sort(key=lambda member: member.steps)
        for _, group in groupby(members, key=lambda member: member.steps):  # a step of Adam depends on its number
            yield from _Training(list(group), place).train()


def _begin(place: int, data: Bags, folds: pd.DataFrame, unit: Unit, device: torch.device) -> Member:
    """A run before its first step, or where its checkpoint left it."""
    config, fold, seed, folder = unit
    run = fit.prepare(data, folds, config, fold, seed, Path(folder), device)
    member = Member(place, run, torch.empty(0, dtype=torch.int64))
    if run.checkpoint.exists():
        saved = read_checkpoint(run.checkpoint)
        if saved is not None and saved["config"] == fingerprint(config.record()) and "moments" in saved:
            _resume(member, saved)
            return member
        member.note = "its checkpoint is of another way of training, or damaged: begun anew"
        run.checkpoint.unlink()
    member.shuffle()
    return member


class _Training:
    """A stack in training: its members in the order of the stack's runs."""

    def __init__(self, members: list[Member], device: torch.device):
        first = members[0].run
        self.members, self.device = members, device
        self.data, self.geometry = first.data, first.geometry
        self.stack = Stack([member.run.model for member in members])
        self.optimiser = torch.optim.Adam(
            self.stack.parameters(), lr=first.config.lr, weight_decay=first.config.weight_decay, fused=True
        )
        self.sums: dict[str, Tensor] = {}
        if members[0].steps:
            self._take_over()
        self.clock = time.perf_counter()

    def train(self) -> Iterator[tuple[int, Exception | None, str]]:
        """Step until every run has ended; yield as `fit_together`."""
        self.stack.model.train()
        first = self.members[0].run
        with Progress(first.folder, first.config.epochs) as progress:
            yield from self._steps(progress, time.perf_counter())

    def _steps(self, progress: Progress, saved: float) -> Iterator[tuple[int, Exception | None, str]]:
        while self.members:
            self._step()
            ended = [member for member in self.members if member.at == len(member.rows)]
            gone = []
            for member in ended:
                error = self._close_epoch(member)
                if error is not None or len(member.run.history) == member.run.config.epochs:
                    gone.append(member)
                    yield member.place, error, member.note
                else:
                    member.shuffle()
            if gone:
                self._leave(gone)
            if ended and self.members:
                progress.say(len(self.members), min(len(member.run.history) for member in self.members))
            if self.members and time.perf_counter() - saved > fit.CHECKPOINT_SECONDS:
                self._keep()
                saved = time.perf_counter()

    def _step(self) -> None:
        """One slide of each run: forward, loss, backward, Adam."""
        rows = torch.stack([member.rows[member.at] for member in self.members])
        slides = [self._there(self.data.x[row : row + 1]) for row in rows.tolist()]
        mask, coords, labels = (
            self._there(part[rows.to(part.device)]) for part in (self.data.mask, self.data.coords, self.data.labels)
        )
        where = {name: value[rows.to(value.device)] for name, value in self.geometry.items()}
        losses, terms = self.stack.loss(self.stack.forward(slides, mask, coords, where), labels)
        self.optimiser.zero_grad(set_to_none=True)
        losses.sum().backward()
        self.optimiser.step()
        for name, value in {"loss": losses.detach(), **terms}.items():  # stays on the device: one read an epoch
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        for member in self.members:
            member.at += 1
            member.steps += 1

    def _there(self, part: Tensor) -> Tensor:
        """A tensor on the device of the stack, through pinned memory where it travels."""
        if part.device.type == self.device.type:
            return part
        return part.pin_memory().to(self.device, non_blocking=True)

    def _close_epoch(self, member: Member) -> Exception | None:
        """The end of an epoch of one run, and of the run after its last; what went wrong, if anything."""
        number = self.members.index(member)
        row = {name: float(value[number]) / len(member.rows) for name, value in self.sums.items()}
        self.sums = {
            name: value.index_fill(0, torch.tensor(number, device=value.device), 0) for name, value in self.sums.items()
        }
        run = member.run
        epoch = len(run.history) + 1
        last = epoch == run.config.epochs
        try:
            if last or len(run.parts["val"]) or health.watched(epoch, run.config.epochs):
                run.model.load_state_dict(self.stack.weights(number))
            fit.close_epoch(run, row)
            if last:
                self._share_time()
                fit.finish(run)
        except DiskFull:
            raise
        except Exception as error:  # this run's alone: the others go on
            return error
        return None

    def _share_time(self) -> None:
        """Give each run its share of the seconds since the last call."""
        now = time.perf_counter()
        for member in self.members:
            member.run.seconds += (now - self.clock) / len(self.members)
            member.run.started = now
        self.clock = now

    def _leave(self, gone: list[Member]) -> None:
        """Go on without these."""
        self._share_time()
        kept = [number for number, member in enumerate(self.members) if member not in gone]
        self.members = [self.members[number] for number in kept]
        if kept:
            self.stack.keep(kept, self.optimiser)
            self.sums = {name: value[kept] for name, value in self.sums.items()}

    def _keep(self) -> None:
        """Write a checkpoint of every run."""
        self._share_time()
        for number, member in enumerate(self.members):
            run = member.run
            moments = {
                name: {
                    key: self.stack.of_runs(self.optimiser.state[value][key], name)[number].cpu().clone()
                    for key in ("exp_avg", "exp_avg_sq")
                }
                for name, value in self.stack.trained().items()
            }
            write_checkpoint(
                {
                    "config": fingerprint(run.config.record()),
                    "history": run.history,
                    "best": run.best,
                    "start": run.start,
                    "seconds": run.seconds,
                    "order": run.order.get_state(),
                    "rows": member.rows,
                    "at": member.at,
                    "steps": member.steps,
                    "moments": moments,
                    "model": {name: value.cpu() for name, value in self.stack.weights(number).items()},
                    "sums": {name: float(value[number]) for name, value in self.sums.items()},
                },
                run.checkpoint,
            )

    def _take_over(self) -> None:
        """Put into the optimiser and the sums what the checkpoints of the members say."""
        for name, value in self.stack.trained().items():
            parts = [member.moments[name] for member in self.members]
            self.optimiser.state[value] = {
                "step": torch.tensor(float(self.members[0].steps), device=self.device),
                **{
                    key: self.stack.joined(name, [part[key].to(self.device) for part in parts])
                    for key in ("exp_avg", "exp_avg_sq")
                },
            }
        self.sums = {
            name: torch.tensor([member.sums[name] for member in self.members], device=self.device)
            for name in self.members[0].sums
        }


def _resume(member: Member, saved: dict) -> None:
    """Put the checkpoint of a run back."""
    run = member.run
    run.model.load_state_dict(saved["model"])
    run.history, run.best, run.start, run.seconds = (saved[key] for key in ("history", "best", "start", "seconds"))
    run.order.set_state(saved["order"])
    member.rows, member.at, member.steps = saved["rows"], saved["at"], saved["steps"]
    member.moments, member.sums = saved["moments"], saved["sums"]
