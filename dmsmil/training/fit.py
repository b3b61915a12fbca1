"""Fit one (method, fold, seed): what decides its result, and the files it leaves.

A statement changed in this file changes the name of every run, for it may change every result (`config.code_version`).
So what names a run is in config.py, what knows its files again in record.py, and what asks for runs in runs.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from dmsmil.features.bags import Bags
from dmsmil.jobs.files import InputError, atomic, fingerprint, read_json, write_csv
from dmsmil.jobs.parallel import one_thread, pick_device
from dmsmil.models import MIL, count_parameters, create
from dmsmil.training import health
from dmsmil.training.config import RunConfig
from dmsmil.training.metrics import predictions_table, score
from dmsmil.training.progress import Progress
from dmsmil.training.record import read_checkpoint, write_checkpoint, write_record

CHECKPOINT_SECONDS = 60.0  # a lost machine costs at most this much of a run


@dataclass
class Training:
    """A run while it is trained.

    data: the bags of its scales; parts: rows of data by train, val and test; geometry: `MIL.geometry` of all bags;
    order: draws the order of slides. start: the loss terms before the first step, and what `health.examine` saw then;
    history: one row an epoch; best: value, epoch and weights of the best epoch, where one is selected; seconds: that
    earlier processes spent on it.
    """

    config: RunConfig
    fold: int
    seed: int
    folder: Path
    data: Bags
    parts: dict[str, np.ndarray]
    model: MIL
    optimiser: torch.optim.Optimizer
    order: torch.Generator
    geometry: dict[str, torch.Tensor]
    start: dict[str, float]
    history: list[dict] = field(default_factory=list)
    best: dict | None = None
    seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @property
    def checkpoint(self) -> Path:
        """Where its state is kept while it trains."""
        return self.folder / "checkpoint.pt"

    def spent(self) -> float:
        """Seconds spent on it by all processes so far."""
        return self.seconds + time.perf_counter() - self.started


def fit(
    bags: Bags,
    folds: pd.DataFrame,
    config: RunConfig,
    fold: int,
    seed: int,
    folder: Path,
    device: str = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train one run and write config.json, predictions.csv, history.csv and model.safetensors into `folder`.

    One thread on the CPU, so that the result does not depend on how many runs share the machine. A checkpoint is
    kept while training; a run that was interrupted goes on from it and ends with the same numbers. One that cannot be
    read is dropped, and `say` is told.
    """
    place = pick_device(device)
    with one_thread(), Progress(Path(folder), config.epochs) as progress:
        run = prepare(bags, folds, config, fold, seed, Path(folder), place)
        if run.checkpoint.exists() and not _resume(run):
            say("its checkpoint is of another way of training, or damaged: begun anew")
            run.checkpoint.unlink()
            run = prepare(bags, folds, config, fold, seed, Path(folder), place)  # _resume may have changed half of it
        saved = time.perf_counter()
        while len(run.history) < config.epochs:
            one_epoch(run)
            progress.say(1, len(run.history))
            if time.perf_counter() - saved > CHECKPOINT_SECONDS:
                _keep(run)
                saved = time.perf_counter()
        return finish(run)


def prepare(
    bags: Bags, folds: pd.DataFrame, config: RunConfig, fold: int, seed: int, folder: Path, device: torch.device
) -> Training:
    """A run before its first step. It sets the random state of torch, which its first epoch goes on from."""
    data = placed(bags.view(config.scales), device)
    parts = _parts(data, folds, config.select, fold)
    torch.manual_seed(int(fingerprint([seed, fold], 8), 16))
    model = create(config.method, data.x.shape[-1], len(data.classes), config.scales, **config.options).to(device)
    rows = parts["train"]
    model.learn_inputs((data.x[row].to(device) for row in rows), (data.mask[row].to(device) for row in rows))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    order = torch.Generator().manual_seed(int(fingerprint([seed, fold, "order"], 8), 16))
    geometry = _geometry(model, data)
    first = parts["train"][:16]
    start = predict(model, data, first, geometry, config.batch_size)[1]
    start |= health.examine(model, data, first[: health.SLIDES], geometry, pulls=True)
    return Training(config, fold, seed, folder, data, parts, model, optimiser, order, geometry, start)


def _parts(data: Bags, folds: pd.DataFrame, select: str, fold: int) -> dict[str, np.ndarray]:
    """Rows of `data` that are trained on (train), selected on (val) and tested (test) in a fold."""
    part = folds.set_index("slide_id")[f"fold_{fold}"].reindex(data.slide_ids).to_numpy()
    train, val, test = (np.flatnonzero(part == name) for name in ("train", "val", "test"))
    labels = data.labels.cpu().numpy()
    if select == "last":
        train, val = np.sort(np.concatenate([train, val])), val[:0]
    elif not len(val):
        raise InputError(f"fold {fold} has no validation part to select on: use select: last, or raise val_share")
    elif select == "val_auc" and len(np.unique(labels[val])) < 2:
        raise InputError(
            f"fold {fold} has one class in its validation part, where AUC is not defined: use select: "
            "val_loss, or raise val_share"
        )
    if not len(test) or len(np.unique(labels[train])) < 2:
        raise InputError(f"fold {fold} has too few slides with features (train {len(train)}, test {len(test)})")
    return {"train": train, "val": val, "test": test}


def one_epoch(run: Training) -> None:
    """One pass over the training slides."""
    close_epoch(
        run,
        _epoch(run.model, run.optimiser, run.data, run.geometry, run.parts["train"], run.config.batch_size, run.order),
    )


def close_epoch(run: Training, means: dict[str, float]) -> None:
    """The end of an epoch: its row of the history, and the best weights where an epoch is selected. means: of the loss
    and its terms over the slides; after some epochs (`health.watched`) also what `health.examine` sees on the first
    training slides. Raises InputError when the loss is no longer finite."""
    if not np.isfinite(means["loss"]):
        raise InputError("the loss is no longer finite: lower lr, or look at the features of this study")
    batch_size, number = run.config.batch_size, len(run.history) + 1
    row = {"epoch": number, **means}
    if len(run.parts["val"]):
        row |= _validate(run.model, run.data, run.geometry, run.parts["val"], batch_size)
        value = row["val_auc"] if run.config.select == "val_auc" else -row["val_loss"]
        value = value if np.isfinite(value) else -np.inf  # else no later epoch would be better
        if run.best is None or value > run.best["value"]:
            weights = {name: w.detach().cpu().clone() for name, w in run.model.state_dict().items()}
            run.best = {"value": value, "epoch": number, "model": weights}
    if health.watched(number, run.config.epochs):
        row |= health.examine(run.model, run.data, run.parts["train"][: health.SLIDES], run.geometry, pulls=True)
    run.history.append(row)


def finish(run: Training) -> Path:
    """Test the run, write its files, config.json last, and drop its checkpoint. Returns its folder."""
    config, data, parts, model = run.config, run.data, run.parts, run.model
    if run.best is not None:
        model.load_state_dict(run.best["model"])
    test, labels = parts["test"], data.labels.cpu().numpy()
    probabilities, test_terms = predict(model, data, test, run.geometry, config.batch_size)
    strange = ~np.isfinite(probabilities).all(1)
    if strange.any():
        first = data.slide_ids[test[strange][0]]
        raise InputError(f"the prediction of slide {first} is not finite: look at its features")
    table = predictions_table(
        np.asarray(data.slide_ids)[test],
        np.asarray(data.patient_ids)[test],
        np.asarray(data.classes)[labels[test]],
        probabilities,
        data.classes,
    )
    history = pd.DataFrame(run.history)
    write_csv(table, run.folder / "predictions.csv", digits=9)
    write_csv(history, run.folder / "history.csv", digits=9)
    with atomic(run.folder / "model.safetensors") as temporary:
        save_file({name: w.contiguous() for name, w in model.state_dict().items()}, temporary)
    prior = np.bincount(labels[parts["train"]]) / len(parts["train"])
    attention = health.examine(model, data, test, run.geometry)
    used = run.best["epoch"] if run.best else config.epochs
    last = history.iloc[used - 1]  # the epoch whose weights were tested
    write_record(
        {
            "config": config.record(),
            "fold": run.fold,
            "seed": run.seed,
            "collapsed": health.collapsed(run.start.get("spread"), last.get("spread"), last.get("L_ce"), prior),
            "learned_nothing": health.learned_nothing(last.get("L_ce"), prior),
            "gathered": health.gathered(model, attention),
            "attention": attention,
            "start": run.start,
            "spread_start": run.start.get("spread"),
            "test_terms": test_terms,
            "prior_entropy": health.entropy(prior),
            "epoch_used": used,
            "parameters": count_parameters(model),
            "slides": {name: len(rows) for name, rows in parts.items()},
            "seconds": round(run.spent(), 2),
            "device": next(model.parameters()).device.type,
            "torch": torch.__version__,
        },
        run.folder,
    )
    run.checkpoint.unlink(missing_ok=True)
    return run.folder


def _geometry(model: MIL, data: Bags) -> dict[str, torch.Tensor]:
    """What the model needs of tile positions, once for all slides."""
    device = next(model.parameters()).device
    parts = [
        model.geometry(data.mask[i : i + 16].to(device), data.coords[i : i + 16].to(device))
        for i in range(0, len(data), 16)
    ]
    return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}


def placed(data: Bags, device: torch.device) -> Bags:
    """All features on the GPU when they fit in half of what is free there; else they travel batch by batch."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return data.to(device) if data.x.numel() * 4 < free / 2 else data
    return data


def _batches(
    model: MIL, data: Bags, geometry: dict, rows: np.ndarray, batch_size: int, order: torch.Generator | None = None
):
    """Yield (output, labels, rows) a batch of slides, on the model's device; shuffled by `order` if given."""
    device = next(model.parameters()).device
    for x, mask, coords, labels, batch in data.batches(rows, batch_size, order, device):
        where = {name: value[batch.to(value.device)] for name, value in geometry.items()}
        yield model(x, mask, coords, geometry=where), labels, batch


def _epoch(model, optimiser, data, geometry, rows, batch_size, order) -> dict[str, float]:
    """One pass over the training slides; the mean of each loss term over slides."""
    model.train()
    sums: dict[str, torch.Tensor] = {}
    for output, labels, batch in _batches(model, data, geometry, rows, batch_size, order):
        loss, terms = model.loss(output, labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        for name, value in {"loss": loss.detach(), **terms}.items():
            sums[name] = sums.get(name, 0.0) + value * len(batch)  # stays on the device: one read an epoch
    return {name: float(value) / len(rows) for name, value in sums.items()}


@torch.inference_mode()
def predict(
    model: MIL, data: Bags, rows: np.ndarray, geometry: dict | None = None, batch_size: int = 1
) -> tuple[np.ndarray, dict[str, float]]:
    """Probabilities (len(rows), n_classes) of slides, and the mean of each loss term over them."""
    model.eval()
    geometry = _geometry(model, data) if geometry is None else geometry
    parts, sums = [], {}
    for output, labels, batch in _batches(model, data, geometry, rows, batch_size):
        parts.append(output.probabilities.cpu())
        loss, terms = model.loss(output, labels)
        for name, value in {"loss": loss, **terms}.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(batch)
    return torch.cat(parts).double().numpy(), {name: value / len(rows) for name, value in sums.items()}


def _validate(model, data, geometry, rows, batch_size) -> dict[str, float]:
    probabilities, terms = predict(model, data, rows, geometry, batch_size)
    names = np.asarray(data.classes)[data.labels[rows].cpu()]
    table = predictions_table(rows, rows, names, probabilities, data.classes)
    return {"val_loss": terms["loss"], "val_auc": score(table)["AUC"]}


def _keep(run: Training) -> None:
    """Write the checkpoint: all that a new process needs to end with the same numbers."""
    write_checkpoint(
        {
            "config": fingerprint(run.config.record()),
            "history": run.history,
            "best": run.best,
            "start": run.start,
            "seconds": run.spent(),
            "model": run.model.state_dict(),
            "optimiser": run.optimiser.state_dict(),
            "order": run.order.get_state(),
            "rng": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
        run.checkpoint,
    )


def _resume(run: Training) -> bool:
    """Put the checkpoint of an interrupted run back; False when it is damaged or of another configuration."""
    saved = read_checkpoint(run.checkpoint)
    if saved is None or saved["config"] != fingerprint(run.config.record()) or "optimiser" not in saved:
        return False
    run.model.load_state_dict(saved["model"])
    run.optimiser.load_state_dict(saved["optimiser"])
    run.history, run.best, run.start, run.seconds = (saved[key] for key in ("history", "best", "start", "seconds"))
    run.order.set_state(saved["order"])
    torch.set_rng_state(saved["rng"])
    if saved["cuda"] and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])
    return True


def load_model(folder: Path, in_dim: int, n_classes: int) -> MIL:
    """The trained model of a run, in evaluation mode on the CPU."""
    record = read_json(Path(folder) / "config.json")["config"]
    model = create(record["method"], in_dim, n_classes, tuple(record["scales"]), **record["options"])
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return model.eval()
