"""A kit as a folder that travels: numbers as safetensors and CSV, words as JSON. Reading it executes nothing.

    model.json              what the kit is, the rules' numbers, and what each of the other files holds
    weights.safetensors     <panel>/fold<k>-seed<s>/<name of a weight>
    reference.safetensors   mean features and colours of the study's slides, and their distances from each other
    trained_on.csv          hashes of the slides that it was trained on
    results.csv, out_of_fold.csv   what it reached in the study
    MODEL_CARD.md           what it is, and what it must not be used for

Whoever reads it asks every model about a made-up slide first, and compares with what it said when it was written: code
that has changed since, or a changed number, is never taken for the model.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from dmsmil.apply.card import card
from dmsmil.apply.finished import NEAR
from dmsmil.apply.folder import FORMAT, MODEL, read_model
from dmsmil.apply.kit import Kit
from dmsmil.apply.members import Colour, Member, Network, Shares
from dmsmil.features.bags import Bags, toy_bags
from dmsmil.jobs.files import InputError, atomic, fingerprint, sweep, write_csv, write_json, write_text
from dmsmil.models import create

WEIGHTS, REFERENCE = "weights.safetensors", "reference.safetensors"
TABLES = {"trained": "trained_on.csv", "results": "results.csv", "tested": "out_of_fold.csv"}
FILES, CARD = (WEIGHTS, REFERENCE, *TABLES.values()), "MODEL_CARD.md"
NEW = ".new"  # the folder in which a kit is written
RULES = {"Colour": Colour, "Shares": Shares}


def write_kit(kit: Kit, folder: str | Path) -> Path:
    """Write a kit into a new folder, or over one, whole or begun. Raises InputError where something else is there."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder.name} cannot be made ({error.strerror}): name another place") from error
    sweep(folder)
    if not (folder / MODEL).is_file() and {path.name for path in folder.iterdir()} - {*FILES, CARD, NEW}:
        raise InputError(f"{folder.name} is there and is no exported model: name a new folder")
    new = folder / NEW  # a kit that is there stays until the new one is whole
    shutil.rmtree(new, ignore_errors=True)
    weights, rules, said = {}, {}, {}
    for panel, members in kit.panels.items():
        for member in members:
            name = _name(panel, member)
            said[name] = member.ask(_made_up(kit.about))[0].tolist()
            if isinstance(member, Network):
                weights |= {f"{name}/{key}": value.contiguous() for key, value in member.model.state_dict().items()}
            else:
                rules.setdefault(panel, []).append(_plain(member))
    with atomic(new / WEIGHTS) as temporary:
        save_file(weights, temporary)
    with atomic(new / REFERENCE) as temporary:
        save_arrays(
            {
                f"{kind}/{what}": np.ascontiguousarray(value)
                for kind in ("vectors", "own")
                for what, value in getattr(kit, kind).items()
            },
            temporary,
        )
    for what, name in TABLES.items():
        write_csv(getattr(kit, what), new / name, digits=9)
    write_text(card(kit), new / CARD)
    panels = {panel: [[member.fold, member.seed] for member in members] for panel, members in kit.panels.items()}
    whole = {
        "format": FORMAT,
        "about": kit.about,
        "panels": panels,
        "rules": rules,
        "said": said,
        "files": {name: _digest(new / name) for name in FILES},
    }
    write_json({**whole, "fingerprint": fingerprint(whole, 64)}, new / MODEL)
    (folder / MODEL).unlink(missing_ok=True)  # a folder without it is none
    for name in (*FILES, CARD, MODEL):
        os.replace(new / name, folder / name)
    new.rmdir()
    return folder


def read_kit(folder: str | Path) -> Kit:
    """The kit of a folder that `write_kit` wrote. Raises InputError where a file of it is absent or is not what was
    written, and where its models do not say here what they said there."""
    folder = Path(folder)
    whole = read_model(folder)
    for name, digest in whole["files"].items():
        if not (folder / name).is_file():
            raise InputError(f"{folder.name} lacks {name}: copy the whole folder again")
        if _digest(folder / name) != digest:
            raise InputError(f"{name} in {folder.name} is not what was written: do not trust it, copy the folder again")
    try:
        weights, arrays = load_file(folder / WEIGHTS), load_arrays(folder / REFERENCE)
        text = {name: str for name in ("slide", "patient", "content", "label", "pred", "name")}
        tables = {
            what: pd.read_csv(
                folder / name, dtype=text, keep_default_na=False, na_values={} if what == "trained" else [""]
            )
            for what, name in TABLES.items()
        }
        panels = {
            panel: [_member(whole, panel, fold, seed, weights) for fold, seed in pairs]
            for panel, pairs in whole["panels"].items()
        }
        by_kind = {kind: _below(arrays, kind) for kind in ("vectors", "own")}
    except (SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{folder.name} is not an exported model that this version reads "
            f"({' '.join(str(error).split())[:80]}): export it again"
        ) from error
    kit = Kit(
        whole["about"],
        panels,
        tables["trained"],
        by_kind["vectors"],
        by_kind["own"],
        tables["results"],
        tables["tested"],
    )
    _try(kit, whole["said"])
    return kit


def _member(whole: dict, panel: str, fold: int, seed: int, weights: dict[str, torch.Tensor]) -> Member:
    """A member of a panel, from its numbers."""
    if panel in whole["rules"]:
        found = next(rule for rule in whole["rules"][panel] if (rule["fold"], rule["seed"]) == (fold, seed))
        numbers = {
            name: np.asarray(value) if isinstance(value, list) else value
            for name, value in found.items()
            if name != "kind"
        }
        return RULES[found["kind"]](**numbers)
    about = whole["about"]
    config = about["config"] if panel == about["name"] else about["rival"]
    model = create(config["method"], about["dim"], len(about["classes"]), tuple(config["scales"]), **config["options"])
    model.load_state_dict(_below(weights, f"{panel}/fold{fold}-seed{seed}"))
    return Network(fold, seed, model.eval())


def _below(values: dict, start: str) -> dict:
    """The values whose names begin with `start/`, by what follows."""
    return {name.removeprefix(f"{start}/"): value for name, value in values.items() if name.startswith(f"{start}/")}


def _plain(rule: Colour | Shares) -> dict:
    return {"kind": type(rule).__name__, **{name: np.asarray(value).tolist() for name, value in vars(rule).items()}}


def _name(panel: str, member: Member) -> str:
    return f"{panel}/fold{member.fold}-seed{member.seed}"


def _made_up(about: dict) -> Bags:
    """Two slides of numbers, for every model to be asked about."""
    return toy_bags(2, 8, about["dim"], seed=1, scales=tuple(about["made"]["scales"]))


def _try(kit: Kit, said: dict[str, list]) -> None:
    """InputError when a member does not say of the made-up slides what it said when it was written."""
    bags = _made_up(kit.about)
    for panel, members in kit.panels.items():
        for member in members:
            now, then = member.ask(bags)[0], np.asarray(said[_name(panel, member)])
            if now.shape != then.shape or np.abs(now - then).max() > NEAR:
                raise InputError(
                    f"{panel} does not say here what it said where it was exported: this version of "
                    "dmsmil computes it otherwise; use the version of the export, or export again"
                )


def _digest(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
