"""Fit one (method, fold, seed): what decides its result, and the files it leaves.

A statement changed in this file changes the name of every run, for it may change every result (`code_version`); what
only asks for runs is therefore in runs.py.
"""

from __future__ import annotations

import ast
import hashlib
import time
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from dmsmil.features.bags import Bags
from dmsmil.jobs.files import InputError, atomic, fingerprint, read_json, write_csv, write_json
from dmsmil.jobs.parallel import pick_device
from dmsmil.models import MIL, count_parameters, create, method
from dmsmil.training.metrics import predictions_table, score

SELECT = ("last", "val_loss", "val_auc")
CHECKPOINT_SECONDS = 60.0  # a lost machine costs at most this much of a run


@dataclass(frozen=True)
class RunConfig:
    """All that decides a run's result besides its fold and seed.

    select: 'last' = the paper's way, no selection, all training patients, the last epoch counts; 'val_loss' or
    'val_auc' = the best epoch on the inner validation part, which is then not trained on.
    features and folds are fingerprints of the bags and of the folds table.
    """

    method: str
    scales: tuple[int, ...]
    options: dict = field(default_factory=dict)
    epochs: int = 120
    lr: float = 1e-4
    weight_decay: float = 0.0
    batch_size: int = 1
    select: str = "last"
    features: str = ""
    folds: str = ""

    def record(self) -> dict:
        """Everything as plain values: options with their defaults filled in, and the code that computes it."""
        row = method(self.method)
        return {**asdict(self), "scales": list(self.scales), "options": {**row.options(), **self.options},
                "code": code_version(row.where.split(":")[0])}

    @property
    def name(self) -> str:
        """Folder of its runs: <method>-<config hash>."""
        return f"{self.method}-{fingerprint(self.record())}"


def configure(bags: Bags, folds: pd.DataFrame, method_name: str, scale: int = 0, options: dict | None = None,
              lam: float = 1.0, **settings) -> RunConfig:
    """A RunConfig for these bags and folds; scale picks one scale (needed by single-scale methods), 0 takes all.

    lam is handed to the methods whose loss has one. settings: epochs, lr, weight_decay, batch_size, select.
    Raises InputError on a setting that cannot be.
    """
    if scale and scale not in bags.scales:
        raise InputError(f"scale is {scale}, but the study has {list(bags.scales)}")
    known = method(method_name).options()
    options = {**({"lam": lam} if "lam" in known else {}), **(options or {})}
    options = {name: value for name, value in options.items() if name not in known or value != known[name]}
    config = RunConfig(method_name, (scale,) if scale else tuple(bags.scales), options, **settings,
                       features=bags.identity, folds=fingerprint(folds.to_csv(index=False)))
    if config.select not in SELECT:
        raise InputError(f"select is '{config.select}': choose one of {', '.join(SELECT)}")
    create(method_name, bags.x.shape[-1], len(bags.classes), config.scales, **config.options)  # speaks up early
    return config


def configure_all(bags: Bags, folds: pd.DataFrame, methods: list, **settings) -> list[RunConfig]:
    """A RunConfig for each of `methods` at each scale it can run at: what a comparison trains.

    An entry is a name, or {name: {key: value, ...}} with options of the method and settings of its own (epochs, lr,
    weight_decay, batch_size, select, and scale to run at one scale only). Single-scale methods run at every scale,
    multi-scale ones at all together, pooling both ways. settings: as for `configure`.
    """
    configs = []
    for entry in methods:
        name, own = next(iter(entry.items())) if isinstance(entry, dict) else (entry, {})
        own = dict(own or {})
        mine = {**settings, **{key: own.pop(key) for key in (*settings, "scale") if key in own}}
        takes = method(name).takes
        scales = [mine.pop("scale")] if "scale" in mine else \
            [*(bags.scales if takes != "many" else ()), *([0] if takes != "one" else ())]
        configs += [configure(bags, folds, name, scale, own, **mine) for scale in scales]
    return configs


@cache
def code_version(model_module: str) -> str:
    """A fingerprint of the code that decides a run: the model, what it imports of dmsmil.models, and this file.

    Comments, docstrings and layout do not count; a changed statement does.
    """
    todo, seen = [f"dmsmil.models.{model_module}", "dmsmil.training.fit"], {}
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        tree = ast.parse(Path(import_module(name).__file__).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr) \
                    and isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
                body[0].value.value = ""
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dmsmil.models."):
                todo.append(node.module)
        seen[name] = ast.dump(tree)
    return hashlib.sha256("".join(seen[n] for n in sorted(seen)).encode()).hexdigest()[:10]


# ------------------------------------------------------------------------------------------------ one run


def fit(bags: Bags, folds: pd.DataFrame, config: RunConfig, fold: int, seed: int, folder: Path,
        device: str = "auto") -> Path:
    """Train one run and write config.json, predictions.csv, history.csv and model.safetensors into `folder`.

    One thread on the CPU, so that the result does not depend on how many runs share the machine. A checkpoint is
    kept while training; a run that was interrupted goes on from it and ends with the same numbers.
    """
    place = pick_device(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _fit(bags, folds, config, fold, seed, Path(folder), place)
    finally:
        torch.set_num_threads(threads)


def _fit(bags: Bags, folds: pd.DataFrame, config: RunConfig, fold: int, seed: int, folder: Path,
         device: torch.device) -> Path:
    started = time.perf_counter()
    data = _placed(bags.view(config.scales), device)
    part = folds.set_index("slide_id")[f"fold_{fold}"].reindex(data.slide_ids).to_numpy()
    train, val, test = (np.flatnonzero(part == name) for name in ("train", "val", "test"))
    if config.select == "last":
        train, val = np.sort(np.concatenate([train, val])), val[:0]
    elif not len(val):
        raise InputError(f"fold {fold} has no validation part to select on: use select: last, or raise val_share")
    if not len(test) or len(np.unique(data.labels[train].cpu())) < 2:
        raise InputError(f"fold {fold} has too few slides with features (train {len(train)}, test {len(test)})")

    torch.manual_seed(int(fingerprint([seed, fold], 8), 16))
    model = create(config.method, data.x.shape[-1], len(data.classes), config.scales, **config.options).to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    order = torch.Generator().manual_seed(int(fingerprint([seed, fold, "order"], 8), 16))
    geometry = _geometry(model, data)
    state = {"epoch": 0, "history": [], "best": None, "seconds": 0.0,
             "spread": _spread(model, data, geometry, train, config.batch_size)}
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        state = _resume(checkpoint, config, model, optimiser, order) or state
    saved = time.perf_counter()

    while state["epoch"] < config.epochs:
        row = _epoch(model, optimiser, data, geometry, train, config.batch_size, order)
        state["epoch"] += 1
        row = {"epoch": state["epoch"], **row}
        if len(val):
            row |= _validate(model, data, geometry, val, config.batch_size)
            better = row["val_auc"] if config.select == "val_auc" else -row["val_loss"]
            if state["best"] is None or better > state["best"]["value"]:
                state["best"] = {"value": better, "epoch": state["epoch"],
                                 "model": {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}}
        state["history"].append(row)
        if time.perf_counter() - saved > CHECKPOINT_SECONDS:
            _checkpoint(checkpoint, config, model, optimiser, order,
                        {**state, "seconds": state["seconds"] + time.perf_counter() - started})
            saved = time.perf_counter()

    if state["best"] is not None:
        model.load_state_dict(state["best"]["model"])
    history = pd.DataFrame(state["history"])
    probabilities, test_terms = predict(model, data, test, geometry, config.batch_size)
    table = predictions_table(np.asarray(data.slide_ids)[test], np.asarray(data.patient_ids)[test],
                              np.asarray(data.classes)[data.labels[test].cpu()], probabilities, data.classes)
    write_csv(table, folder / "predictions.csv", digits=9)
    write_csv(history, folder / "history.csv", digits=9)
    with atomic(folder / "model.safetensors") as temporary:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, temporary)
    prior = np.bincount(data.labels[train].cpu()) / len(train)
    last = history.iloc[-1]
    write_json({
        "config": config.record(), "fold": fold, "seed": seed, "finished": True,
        "collapsed": collapsed(state["spread"], last.get("spread"), last.get("L_ce"), prior),
        "spread_start": state["spread"], "test_terms": test_terms, "prior_entropy": _entropy(prior),
        "epoch_used": state["best"]["epoch"] if state["best"] else config.epochs,
        "parameters": count_parameters(model), "slides": {"train": len(train), "val": len(val), "test": len(test)},
        "seconds": round(state["seconds"] + time.perf_counter() - started, 2), "device": device.type,
        "torch": torch.__version__}, folder / "config.json")  # last: its presence says that the run is whole
    checkpoint.unlink(missing_ok=True)
    return folder


def _geometry(model: MIL, data: Bags) -> dict[str, torch.Tensor]:
    """What the model needs of tile positions, once for all slides."""
    device = next(model.parameters()).device
    parts = [model.geometry(data.mask[i:i + 16].to(device), data.coords[i:i + 16].to(device))
             for i in range(0, len(data), 16)]
    return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}


def _placed(data: Bags, device: torch.device) -> Bags:
    """All features on the GPU when they fit in half of what is free there; else they travel batch by batch."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return data.to(device) if data.x.numel() * 4 < free / 2 else data
    return data


def _batches(model: MIL, data: Bags, geometry: dict, rows: np.ndarray, batch_size: int,
             order: torch.Generator | None = None):
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
    row = {name: float(value) / len(rows) for name, value in sums.items()}
    if not np.isfinite(row["loss"]):
        raise InputError("the loss is no longer finite: lower lr, or look at the features of this study")
    return row


@torch.inference_mode()
def predict(model: MIL, data: Bags, rows: np.ndarray, geometry: dict | None = None,
            batch_size: int = 1) -> tuple[np.ndarray, dict[str, float]]:
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


def _spread(model, data, geometry, rows, batch_size) -> float | None:
    """Feature spread before the first step, for the methods that report one."""
    return predict(model, data, rows[:16], geometry, batch_size)[1].get("spread")


def collapsed(spread_start: float | None, spread: float | None, ce: float | None, prior: np.ndarray) -> bool:
    """True when the representation is gone: the feature spread fell below 1 % of its start while L_ce is still at
    least 90 % of the prior's entropy, that is, the classifier knows no more than the class shares."""
    if not spread_start or spread is None or ce is None or not np.isfinite(spread):
        return False
    return bool(spread < 0.01 * spread_start and ce > 0.9 * _entropy(prior))


def _entropy(prior: np.ndarray) -> float:
    return float(-(prior[prior > 0] * np.log(prior[prior > 0])).sum())


def _checkpoint(path: Path, config: RunConfig, model, optimiser, order, state) -> None:
    with atomic(path) as temporary:
        torch.save({"config": fingerprint(config.record()), "state": state, "model": model.state_dict(),
                    "optimiser": optimiser.state_dict(), "order": order.get_state(), "rng": torch.get_rng_state(),
                    "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}, temporary)


def _resume(path: Path, config: RunConfig, model, optimiser, order) -> dict | None:
    """The state of an interrupted run, put back; None when the file is of another configuration."""
    saved = torch.load(path, weights_only=True, map_location="cpu")
    if saved["config"] != fingerprint(config.record()):
        return None
    model.load_state_dict(saved["model"])
    optimiser.load_state_dict(saved["optimiser"])
    order.set_state(saved["order"])
    torch.set_rng_state(saved["rng"])
    if saved["cuda"] and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])
    return saved["state"]


def load_model(folder: Path, in_dim: int, n_classes: int) -> MIL:
    """The trained model of a run, in evaluation mode on the CPU."""
    record = read_json(Path(folder) / "config.json")["config"]
    model = create(record["method"], in_dim, n_classes, tuple(record["scales"]), **record["options"])
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return model.eval()
