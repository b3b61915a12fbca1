"""What decides a run's result besides its fold and seed, and the name that follows from it.

Two configurations have one name when they must give one result. `code_version` sees what computes it: the method and
dmsmil/training/fit.py. This file only asks, so a statement changed here renames nothing.
"""

from __future__ import annotations

import ast
import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from numbers import Integral, Real
from pathlib import Path

import pandas as pd

from dmsmil.features.bags import Bags
from dmsmil.jobs.files import InputError, fingerprint
from dmsmil.models import create, method

NEW_IN_3_12 = ("type_params", [])  # a field of functions and classes, and its value where there are none
SELECT = ("last", "val_loss", "val_auc")


@dataclass(frozen=True)
class RunConfig:
    """All that decides a run's result besides its fold and seed.

    select: 'last' = the paper's way, no selection, all training patients, the last epoch counts; 'val_loss' or
    'val_auc' = the best epoch on the inner validation part, which is then not trained on.
    features, labels and folds are fingerprints: of what made the bags' features, of which slide and patient is in which
    class, and of the folds table. Labels are apart from features, whose files and caches an edited label leaves as they
    are; and they are those of the bags, which are what is trained on.
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
    labels: str = ""
    folds: str = ""

    def record(self) -> dict:
        """Everything as plain values: options with their defaults filled in, and the code that computes it."""
        row = method(self.method)
        return {
            **asdict(self),
            "scales": list(self.scales),
            "options": {**row.options(), **self.options},
            "code": code_version(row.where.split(":")[0]),
        }

    @property
    def name(self) -> str:
        """Folder of its runs: <method>-<config hash>."""
        return f"{self.method}-{fingerprint(self.record())}"

    @property
    def own_options(self) -> str:
        """The options that are not default, as names and lines have them: `, lam=2, ot=none`; mostly nothing."""
        return "".join(f", {key}={value}" for key, value in sorted(self.options.items()))


def scales_name(scales: Sequence[int]) -> str:
    """Scales as tables write them: 10x, or 10x+20x."""
    return "+".join(f"{scale}x" for scale in scales)


def configure(
    bags: Bags,
    folds: pd.DataFrame,
    method_name: str,
    scale: int = 0,
    options: dict | None = None,
    lam: float = 1.0,
    **settings,
) -> RunConfig:
    """A RunConfig for these bags and folds; scale picks one scale (needed by single-scale methods), 0 takes all.

    lam is handed to the methods whose loss has one. settings: epochs, lr, weight_decay, batch_size, select.
    Raises InputError on a setting that cannot be.
    """
    if len(set(bags.scales)) < len(bags.scales):
        raise InputError(f"scales is {list(bags.scales)}: name each scale once")
    if scale and scale not in bags.scales:
        raise InputError(f"scale is {scale}, but the study has {list(bags.scales)}")
    known = method(method_name).options()
    options = {**({"lam": lam} if "lam" in known else {}), **(options or {})}
    options = {name: _like(known.get(name), value) for name, value in options.items()}
    defaults = {entry.name: entry.default for entry in fields(RunConfig)}
    settings = {name: _like(defaults.get(name), value) for name, value in settings.items()}
    positive_number("lam", options.get("lam", lam))
    options = {name: value for name, value in options.items() if name not in known or value != known[name]}
    config = RunConfig(
        method_name,
        (scale,) if scale else tuple(bags.scales),
        options,
        **settings,
        features=bags.identity,
        labels=_labels(bags),
        folds=fingerprint(folds.to_csv(index=False)),
    )
    _check_settings(config)
    create(method_name, bags.x.shape[-1], len(bags.classes), config.scales, **config.options)  # speaks up early
    return config


def _like(default: object, value):
    """A whole number as a float where the default is one: 2 and 2.0 are one run."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return float(value) if whole and isinstance(default, float) else value


def configure_all(bags: Bags, folds: pd.DataFrame, methods: list, **settings) -> list[RunConfig]:
    """A RunConfig for each of `methods` at each scale it can run at: what a comparison trains.

    An entry is a name, or {name: {key: value, ...}} with options of the method and settings of its own (epochs, lr,
    weight_decay, batch_size, select, and scale to run at one scale only). Single-scale methods run at every scale,
    multi-scale ones at all together, pooling both ways, which of bags of one scale is one. settings: as for
    `configure`.
    Raises InputError for no method, for one that is named twice with the same settings, and as `configure`.
    """
    configs = []
    for entry in methods:
        name, own = _entry(entry)
        mine = {**settings, **{key: own.pop(key) for key in (*settings, "scale") if key in own}}
        takes, several = method(name).takes, len(bags.scales) > 1
        one_by_one, together = takes != "many", takes == "many" or (takes == "any" and several)
        scales = [*(bags.scales if one_by_one else ()), *([0] if together else ())]
        if "scale" in mine:
            scales = [mine.pop("scale")]
        configs += [configure(bags, folds, name, scale, own, **mine) for scale in scales]
    if not configs:
        raise InputError("methods is empty: name at least one, such as dmsmil")
    names = [config.name for config in configs]
    if twice := [config for config, name in zip(configs, names) if names.count(name) > 1]:
        raise InputError(f"methods names {twice[0].method} twice with the same settings: leave one out")
    return configs


def _entry(entry) -> tuple[str, dict]:
    """(name, what is its own) of an entry of `methods`; InputError for what is none."""
    if isinstance(entry, str):
        return entry, {}
    pair = list(entry.items()) if isinstance(entry, dict) else []
    if len(pair) != 1 or not isinstance(pair[0][1], dict | None):
        raise InputError(f"methods holds {entry!r}: an entry is a name, or {{name: {{option: value}}}}")
    return pair[0][0], dict(pair[0][1] or {})


def _labels(bags: Bags) -> str:
    """A fingerprint of which slide, of which patient, is in which class."""
    named = [bags.classes[label] for label in bags.labels.tolist()]
    return fingerprint([bags.classes, list(zip(bags.slide_ids, bags.patient_ids, named))])


def _check_settings(config: RunConfig) -> None:
    """InputError for a setting with which nothing can be trained."""
    for name in ("epochs", "batch_size"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise InputError(f"{name} is {value!r}: give a whole number, 1 or more")
    positive_number("lr", config.lr)
    if config.weight_decay != 0:
        positive_number("weight_decay", config.weight_decay)
    if config.select not in SELECT:
        raise InputError(f"select is '{config.select}': choose one of {', '.join(SELECT)}")


def positive_number(name: str, value) -> float:
    """`value` as a float. Raises InputError, which calls it `name`, when it is no finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:
        raise InputError(
            f"{name} is {value!r}: give a number above 0, such as 0.1 (YAML reads 1e-1 as text, write 1.0e-1)"
        )
    return float(value)


@cache
def code_version(model_module: str) -> str:
    """A fingerprint of the code that decides a run: the model, what it imports of dmsmil.models, and training/fit.py.

    Comments, docstrings and layout do not count, nor the Python that reads it; a changed statement does. What trains
    several runs in one pass (training/together.py, models/stacked.py) does not count either: it promises what each run
    would give alone, and tests hold it to that.
    """
    todo, seen = [f"dmsmil.models.{model_module}", "dmsmil.training.fit"], {}
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        tree = ast.parse(Path(import_module(name).__file__).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                todo += _of_models(node)
            _forget_docstring(node)
        seen[name] = written_out(tree)
    return hashlib.sha256("".join(seen[n] for n in sorted(seen)).encode()).hexdigest()[:10]


def written_out(node: object) -> str:
    """A syntax tree as text, the same in every Python: ast.dump of 3.11. That of 3.12 names type_params, which are
    empty where 3.11 can read the code, and ends some f-strings with nothing; that of 3.13 leaves out empty lists.
    With these every run would be renamed."""
    if isinstance(node, ast.JoinedStr):
        return f"JoinedStr(values={written_out([part for part in node.values if getattr(part, 'value', 1) != ''])})"
    if isinstance(node, ast.AST):
        said = [
            f"{name}={written_out(value)}"
            for name, value in ast.iter_fields(node)
            if (name, value) != NEW_IN_3_12 and (value is not None or not hasattr(type(node), name))
        ]
        return f"{type(node).__name__}({', '.join(said)})"
    if isinstance(node, list):
        return f"[{', '.join(map(written_out, node))}]"
    return repr(node)


def _of_models(node: ast.ImportFrom) -> list[str]:
    """The modules of dmsmil.models that a statement imports: what of one of them, or some of them by their names."""
    module = node.module or ""
    if module == "dmsmil.models":
        named = [f"dmsmil.models.{alias.name}" for alias in node.names]
        return [name for name in named if find_spec(name) is not None]
    return [module] if module.startswith("dmsmil.models.") else []


def _forget_docstring(node: ast.AST) -> None:
    """Empty the docstring of a module, class or function."""
    body = getattr(node, "body", None)
    if (
        isinstance(body, list)
        and body
        and isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
        and isinstance(body[0].value.value, str)
    ):
        body[0].value.value = ""
