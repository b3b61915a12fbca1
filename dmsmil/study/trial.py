"""What the settings of a study would stop at, found before any notebook: each method takes a step on made-up slides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pandas as pd
import torch

from dmsmil.analysis.ablation import ablation_configs
from dmsmil.analysis.paper import COHORTS, printed_results
from dmsmil.analysis.sweep import check_lams, lam_configs
from dmsmil.analysis.variants import choose_variants, variant_configs
from dmsmil.cohorts.folds import bag_folds
from dmsmil.cost.growth import check_growth
from dmsmil.features.bags import Bags, toy_bags
from dmsmil.jobs.files import InputError, one_line
from dmsmil.jobs.parallel import is_remote, pick_device
from dmsmil.models import create, method
from dmsmil.training.config import RunConfig, configure, configure_all

Finding = tuple[bool, str]  # (all well, one line)
TILES, CHANNELS = 8, 64  # of a made-up slide; channels where the encoder's are not known


def attempt(what: str, call: Callable[[], str]) -> Finding:
    """The finding of a call that says what is there, or raises InputError."""
    return counted(what, lambda: (0, call()), 0)[1]


def counted(what: str, call: Callable[[], tuple[int, str]], otherwise: int) -> tuple[int, Finding]:
    """The number that a call finds, `otherwise` where it raises InputError, and the finding as of `attempt`."""
    try:
        number, line = call()
    except InputError as error:
        return otherwise, (False, f"{what:<9}{one_line(error)}")
    return number, (True, f"{what:<9}{line}")


def settings(params: dict, channels: int = CHANNELS, classes: tuple[str, ...] = ("a", "b")) -> Iterator[Finding]:
    """Yield (all well, line) for each group of settings that can be judged without a slide."""
    bags = made_up(params["scales"], channels, list(classes))
    folds = bag_folds(bags, 2)
    yield attempt("method", lambda: _method(params, bags, folds))
    yield attempt("methods", lambda: _methods(params, bags, folds))
    yield attempt("ablation", lambda: _ablation(params, bags, folds))
    yield attempt("cost", lambda: check_growth(params["cost_tiles"], params["cost_rounds"]))
    yield attempt("paper", lambda: _paper(params["paper"]))
    yield attempt("units", lambda: "in a Dask cluster" if is_remote(params["scheduler"]) else "on this machine")
    yield attempt("device", lambda: str(pick_device(params["device"])))


def made_up(scales: list[int], channels: int, classes: list[str], tiles: int = TILES) -> Bags:
    """Bags like the study's: its scales, channels and classes, and four slides of each class."""
    bags = toy_bags(4 * len(classes), tiles, channels, scales=tuple(scales))
    return replace(bags, classes=classes, labels=torch.arange(len(bags)) % len(classes))


def _training(params: dict) -> dict:
    return {name: params[name] for name in ("lam", "epochs", "lr", "weight_decay", "batch_size", "select")}


def _method(params: dict, bags: Bags, folds: pd.DataFrame) -> str:
    config = configure(bags, folds, params["method"], params["scale"], params["options"], **_training(params))
    _step(config, bags)
    scales = " + ".join(f"{scale}x" for scale in config.scales)
    return f"{method(config.method).title} at {scales}, {len(params['seeds'])} seed(s) a fold"


def _methods(params: dict, bags: Bags, folds: pd.DataFrame) -> str:
    configs = configure_all(bags, folds, params["methods"], **_training(params))
    for config in configs:
        _step(config, bags)
    if len(configs) < 2:
        raise InputError(
            f"methods names {configs[0].method} alone, and 04_compare compares: name another, such as meanpool"
        )
    return f"{len(params['methods'])} compared, {len(configs)} with their scales"


def _ablation(params: dict, bags: Bags, folds: pd.DataFrame) -> str:
    variants, lams = choose_variants(params["variants"], params["base"]), check_lams(params["lams"])
    if params["collapse_lams"]:
        check_lams(params["collapse_lams"])
    training = _training(params)
    ablation_configs(bags, folds, **training)
    variant_configs(bags, folds, variants, params["base"], **training)
    training.pop("lam")
    lam_configs(bags, folds, lams, **training)
    form = method(params["base"]).title
    return f"{len(variants)} other forms of {form}; λ in {', '.join(f'{lam:g}' for lam in lams)}"


def _paper(paper: str) -> str:
    printed_results(paper)
    return f"its printed values for {COHORTS[paper]} stand beside ours" if paper else "none of its cohorts"


def _step(config: RunConfig, bags: Bags) -> None:
    """Forward and loss of one batch of slides. InputError where the method cannot do with its options."""
    data = bags.view(config.scales)
    try:
        model = create(config.method, data.x.shape[-1], len(data.classes), config.scales, **config.options)
        loss, _ = model.loss(model(data.x, data.mask, data.coords), data.labels)
    except InputError:
        raise
    except Exception as error:  # whatever a network makes of a value that it was not made for
        raise InputError(
            f"{config.method} does not run with {config.options} ({one_line(error)}): correct its options"
        ) from error
    if not torch.isfinite(loss):
        raise InputError(f"{config.method} has no finite loss with {config.options}: correct its options")
