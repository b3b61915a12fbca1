"""`dmsmil apply` and `dmsmil export`: a finished study, or a folder exported from one, and slides to predict.

What takes seconds to import is imported where it is needed: `dmsmil apply` itself only starts a notebook.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dmsmil.apply.folder import is_kit, read_model
from dmsmil.apply.words import known_by
from dmsmil.jobs.files import ROOT, InputError
from dmsmil.jobs.text import many
from dmsmil.study.params import complete, read_params
from dmsmil.study.place import folder_of, is_name, resolve, shown
from dmsmil.study.terminal import say

if TYPE_CHECKING:
    from dmsmil.apply.kit import Kit

NOTHING = "nothing to apply to: dmsmil apply params/mine.yaml SLIDES"
FREE = (
    "study",
    "outputs",
    "tiles",
    "features",
    "encoder_weights",
    "device",
    "workers",
    "scheduler",
    "qupath",
    "allow_failures",
)  # what a model leaves open


def open_kit(
    model: str,
    study: str,
    outputs: str,
    *,
    scales: list[int],
    tile_px: int,
    k: int,
    min_density: float,
    black: str,
    seed: int,
    mpp: float,
    encoder: str,
    encoder_px: int,
    method: str,
    scale: int,
    options: dict,
    lam: float,
    epochs: int,
    lr: float,
    weight_decay: float,
    batch_size: int,
    select: str,
    seeds: list[int],
    positive: str,
) -> Kit:
    """The kit of a study, or of the exported folder `model`, by the parameters of 10_apply.

    Raises InputError that names the parameter in which tiles, features or method would be others than the study's.
    """
    from dmsmil.apply.kit import check_same, made_by, study_kit
    from dmsmil.apply.travel import read_kit
    from dmsmil.study.opening import open_study

    wanted = {
        "scales": scales,
        "tile_px": tile_px,
        "k": k,
        "min_density": min_density,
        "black": black,
        "seed": seed,
        "fallback_mpp": mpp,
        "encoder": {"name": encoder, **({"px": encoder_px} if encoder_px else {})},
    }
    if model:
        kit = read_kit(resolve(model))
        check_same({"method": method, **wanted}, [{"method": kit.about["config"]["method"], **kit.about["made"]}])
        return kit
    opened = open_study(study, outputs, scales, tile_px, encoder, mpp)
    check_same(wanted, made_by(opened.home, opened.cohort.slide_id))
    return study_kit(
        opened.home,
        opened.bags(k),
        opened.folds,
        opened.cohort,
        method,
        scale,
        options,
        lam,
        seeds,
        positive,
        epochs=epochs,
        lr=lr,
        weight_decay=weight_decay,
        batch_size=batch_size,
        select=select,
    )


def apply(what: str, place: str, overrides: dict[str, str]) -> int:
    """Apply `what`, a params file or an exported folder, to the slides at `place`, and say what came out; returns the
    exit status of `run`."""
    folder = _typed(what)
    params = model_params(folder, overrides) if folder.is_dir() else read_params(what, overrides)
    slides = _typed(place)
    if not slides.exists():
        raise InputError(f"there is no {place} to apply to: name a slide, a folder of slides, or a table of them")
    from dmsmil.study.run import APPLY, run

    status = run({**params, "apply_to": _written(slides)}, [APPLY])
    if status != 2:
        for line in said_lines(folder_of(params["study"], params["outputs"])):
            say(line)
    return status


def said_lines(home: Path, most: int = 20) -> list[str]:
    """What 10_apply said of the first slides, a line a slide."""
    import pandas as pd

    table = pd.read_csv(home / "tables/10_apply.csv", dtype=str, keep_default_na=False)
    wide, lines = max(map(len, table.slide_id)), []
    for row in table.head(most).to_dict("records"):
        notes = [f"unlike the training slides in its {row['unlike']}"] if row["unlike"] else []
        notes += [f"the study knows it: {known_by(row['known'])}"] if row["known"] else []
        said = "nothing, for every model has seen it"
        if row["pred"]:
            several = f"spread {float(row['spread']):.3f} over {row['models']}"
            said = f"{row['pred']} {float(row['prob_' + row['pred']]):.3f}, "
            said += several if int(row["models"]) > 1 else "of one model"
        lines.append("; ".join([f"  {row['slide_id']:<{wide}}  {said}", *notes]))
    if "note" in table:
        lines.append(f"  {table.note.iloc[0]}")
    return lines + ([f"  and {len(table) - most} more, in tables/10_apply.csv"] if len(table) > most else [])


def export(params: dict, place: str) -> int:
    """Write the kit of a finished study into a new folder, named from where the person is."""
    from dmsmil.apply.travel import write_kit
    from dmsmil.study.unchanged import EDITED, Memory

    if Memory(folder_of(params["study"], params["outputs"]), params).table_changed():
        say(EDITED)
    kit = open_kit(**{name: params[name] for name in inspect.signature(open_kit).parameters})
    folder = write_kit(kit, Path.cwd() / os.path.expanduser(place))
    say(
        f"{shown(folder)}   {kit.about['name']}, {many(len(kit.panels[kit.about['name']]), 'model')} of the study "
        f"'{kit.about['study']}'"
    )
    on_gpu = kit.about["made"]["encoder"].get("precision") == "amp"
    where = "any machine with a GPU, for its features were made on one" if on_gpu else "any machine that has dmsmil"
    say(f"dmsmil apply {shown(folder)} SLIDES   asks them, on {where}")
    return 0


def model_params(folder: Path, overrides: dict[str, str]) -> dict:
    """The parameters with which 10_apply asks an exported model: its own, and of `overrides` what it leaves open."""
    if not is_kit(folder):
        raise InputError(
            f"{folder.name} is a folder and no exported model: name a params file, or what dmsmil export made"
        )
    if fixed := [name for name in overrides if name not in FREE]:
        raise InputError(
            f"'{fixed[0]}' cannot be set, for the model in {folder.name} says it: leave it out, or export anew"
        )
    about = read_model(folder)["about"]
    made, config = about["made"], about["config"]
    values = {name: made[name] for name in ("scales", "tile_px", "k", "min_density", "black", "seed") if name in made}
    values |= {name: config[name] for name in ("method", "epochs", "lr", "weight_decay", "batch_size", "select")}
    values |= {
        "model": _written(folder),
        "mpp": made.get("fallback_mpp", 0.0),
        "encoder": made["encoder"]["name"],
        "encoder_px": made["encoder"].get("px", 0),
        "positive": about["positive"],
        "scale": config["scales"][0] if len(config["scales"]) < len(made["scales"]) else 0,
        "study": folder.name if is_name(folder.name) else about["study"],
    }
    params = complete(values, overrides, folder.name)
    home = folder_of(params["study"], params["outputs"])
    if home.exists() and home.samefile(folder):
        raise InputError(
            f"the predictions would go into {folder.name}, the folder of the model: give them another "
            "name with -p study NAME"
        )
    if (home / "folds.csv").exists():
        raise InputError(
            f"{params['outputs']}/{params['study']} is a study of its own: give the predictions another "
            "name with -p study NAME"
        )
    return params


def _typed(path: str) -> Path:
    """What a person named: from where they are, or else from the project's folder."""
    here = Path.cwd() / os.path.expanduser(path)
    return here if here.exists() else resolve(path)


def _written(path: Path) -> str:
    """A path as a parameter: from the project's folder where it lies in it."""
    path = Path(os.path.abspath(path))
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
