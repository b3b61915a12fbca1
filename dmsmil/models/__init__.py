"""The methods: one file each, one line each in `METHODS`, one way to make them: `create`."""

from __future__ import annotations

import difflib
import inspect
import math
from dataclasses import dataclass
from importlib import import_module
from numbers import Integral, Real

from dmsmil.jobs.files import InputError, one_line
from dmsmil.models.base import MIL, Output, count_parameters

__all__ = ["METHODS", "MIL", "Method", "Output", "count_parameters", "create", "method"]


@dataclass(frozen=True)
class Method:
    """A row of the registry: where the class is, how many scales it takes, who published it."""

    name: str
    title: str
    where: str  # "module:Class" inside dmsmil.models
    takes: str  # "one": a scale a run; "many": all scales of the study at once; "any": either
    reference: str
    published: bool = True  # False for a method of your own: it is compared, and decides no claim of the paper

    def load(self) -> type[MIL]:
        """The class, imported when first asked for."""
        module, name = self.where.split(":")
        return getattr(import_module(f"dmsmil.models.{module}"), name)

    def stacks(self) -> bool:
        """Whether runs of it train in one pass: its class says so, and computes there what its `forward` computes. Who
        overrides the `forward` of a method that has a `forward_stacked` of its own trains one by one."""
        line = self.load().__mro__
        forward, stacked = (
            next((place for place, base in enumerate(line) if name in vars(base)), len(line))
            for name in ("forward", "forward_stacked")
        )
        return self.load().stacks and (stacked == len(line) or stacked <= forward)

    def options(self) -> dict:
        """Its options and their defaults, read off the constructor."""
        parameters = inspect.signature(self.load().__init__).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


METHODS = {
    m.name: m
    for m in [
        Method("dmsmil", "DMSMIL", "dmsmil:DMSMIL", "many", "the paper"),
        Method("damil", "DAMIL", "dmsmil:DAMIL", "one", "the paper (its single-scale form)"),
        Method("abmil", "ABMIL", "abmil:ABMIL", "one", "Ilse, Tomczak and Welling, ICML 2018"),
        Method("clam_sb", "CLAM-SB", "clam:CLAM_SB", "one", "Lu et al., Nature Biomedical Engineering 2021"),
        Method("clam_mb", "CLAM-MB", "clam:CLAM_MB", "one", "Lu et al., Nature Biomedical Engineering 2021"),
        Method("dtfd", "DTFD-MIL", "dtfd:DTFD", "one", "Zhang et al., CVPR 2022"),
        Method("dsmil", "DSMIL", "dsmil:DSMIL", "many", "Li, Li and Eliceiri, CVPR 2021"),
        Method("multiattn", "MultiAttnMIL", "multiattn:MultiAttnMIL", "many", "Wibawa et al. 2022"),
        Method("transmil", "TransMIL", "transmil:TransMIL", "one", "Shao et al., NeurIPS 2021"),
        Method("lamil", "LA-MIL", "lamil:LAMIL", "one", "Reisenbuechler et al., MICCAI 2022"),
        Method("hagmil", "HAG-MIL", "hagmil:HAGMIL", "one", "Xiong et al., IJCAI 2023"),
        Method("hagmil_hier", "HAG-MIL (hierarchy)", "hagmil:HAGMILHier", "many", "Xiong et al., IJCAI 2023"),
        Method(
            "hifuse", "HiFuse", "hifuse:HiFuse", "many", "Huo et al., Biomedical Signal Processing and Control 2024"
        ),
        Method("amgcfn", "AMGCFN", "amgcfn:AMGCFN", "many", "Zhou et al., IEEE TGRS 2023"),
        Method("dmsmil_select", "DMSMIL-Select", "select:DMSMILSelect", "many", "this study: DMSMIL with gates", False),
        Method("meanpool", "Mean pooling", "pooling:MeanPool", "any", "baseline"),
        Method("maxpool", "Max pooling", "pooling:MaxPool", "any", "baseline"),
        Method("topk", "Top-k pooling", "topk:TopK", "any", "baseline, and the example to copy"),
    ]
}


def method(name: str) -> Method:
    """The registry row of `name`; InputError naming the nearest known method otherwise."""
    if name not in METHODS:
        near = difflib.get_close_matches(str(name), METHODS, 1)
        hint = f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(METHODS)
        raise InputError(f"unknown method '{name}': {hint}")
    return METHODS[name]


def create(name: str, in_dim: int = 2048, n_classes: int = 2, scales: tuple[int, ...] = (10, 20), **options) -> MIL:
    """A new model: create("dmsmil", in_dim=2048, n_classes=2, scales=(10, 20), heads=4).

    Raises InputError for an unknown method or option, for a value that an option cannot have, and when a single-scale
    method is given several scales.
    """
    row = method(name)
    scales = tuple(scales)
    if row.takes == "one" and len(scales) != 1:
        raise InputError(f"{row.title} takes one scale a run, got {list(scales)}: set scale to one of them")
    known = row.options()
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else "known: " + (", ".join(known) or "none")
            raise InputError(f"unknown option '{key}' of {row.title}: {hint}")
        if wrong := _unlike(options[key], known[key]):
            raise InputError(f"{key} is {options[key]!r}, an option of {row.title}: give {wrong}")
    try:
        return row.load()(in_dim, n_classes, scales, **options)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:  # they do not go together
        if isinstance(error, InputError):
            raise
        told = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise InputError(f"{row.title} cannot be made with {told} ({one_line(error)}): correct its options") from error


def _unlike(value, default) -> str:
    """What an option should be, where `value` is of another kind than its default; "" where it is of the same. A count
    whose default is 1 or more is at least 1, any other number at least 0 where its default is."""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false, without quotes"
    if isinstance(default, str):
        return "" if isinstance(value, str) else "a word"
    if isinstance(default, tuple) and default:
        if not isinstance(value, list | tuple) or not value:
            return f"a list, such as {list(default)}"
        return next(filter(None, (_unlike(one, default[0]) for one in value)), "")
    if not isinstance(default, int | float):
        return ""
    if isinstance(value, bool) or not isinstance(value, Real):
        return f"a number, such as {default} (YAML reads 1e-1 as text, write 1.0e-1)"
    if isinstance(default, int):
        fits = isinstance(value, Integral) and int(value) >= min(default, 1)
        return "" if fits else f"a whole number, {min(default, 1)} or more"
    return "" if math.isfinite(value) and float(value) >= min(default, 0) else "a number that is finite and not below 0"
