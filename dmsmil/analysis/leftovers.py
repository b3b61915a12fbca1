"""What lies in a study's folder that its present parameters did not make: left out of the report, and said.

The parameters of a study are those of its params.yaml. What a notebook was run with stands in its executed copy, where
papermill writes it.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import yaml

from dmsmil.cohorts.table import read_cohort
from dmsmil.jobs.files import InputError, fingerprint, read_json
from dmsmil.jobs.text import many
from dmsmil.models import METHODS
from dmsmil.training.config import code_version
from dmsmil.training.record import read_record
from dmsmil.training.results import run_stem

STATE = "done.json"  # what `dmsmil run` keeps of each notebook (study/unchanged.py)
# parameters that decide no table
NO_RESULT = ("study", "outputs", "paper", "device", "workers", "scheduler", "allow_failures", "apply_to", "model")


def parameters(home: str | Path) -> dict:
    """The present parameters of a study; none where it was not run by `dmsmil run`."""
    path = Path(home) / "params.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}


def changed(home: str | Path) -> dict[str, list[str]]:
    """Notebook -> the keys of which it was run with other values than the present ones, where there are any."""
    now, found = parameters(home), {}
    for path in sorted((Path(home) / "notebooks").glob("[0-9][0-9]_*.ipynb")) if now else []:
        then = read_json(path)["metadata"].get("papermill", {}).get("parameters", {})
        keys = [key for key in then if key not in NO_RESULT and then[key] != now.get(key)]
        if keys and ".failed" not in path.name:
            found[path.stem] = keys
    return found


def data_of(home: str | Path) -> str:
    """A fingerprint of what a study trains on: its slides, labels and folds, and its files of features as they lie
    there (size and time of the last change: none is read)."""
    home = Path(home)
    table = home / "folds.csv"
    features = [(path, path.stat()) for path in sorted((home / "features").glob("*/features_*/*.h5"))]
    return fingerprint(
        [
            table.read_text(encoding="utf-8") if table.exists() else "",
            [[path.relative_to(home).as_posix(), told.st_size, told.st_mtime_ns] for path, told in features],
        ]
    )


def read_state(home: str | Path) -> dict:
    """What done.json says; of a file that says something else, nothing."""
    parts: dict = {"notebooks": {}, "files": {}, "book": "", "data": {}, "table": {}, "left": {}}
    try:
        found = read_json(Path(home) / STATE)
    except (OSError, ValueError):
        return parts
    same = isinstance(found, dict) and all(isinstance(found.get(key, part), type(part)) for key, part in parts.items())
    return {**parts, **found} if same else parts


def of_another_state(home: str | Path) -> dict[str, str]:
    """Notebook -> in what it was executed otherwise than the study stands now: parameters, by name, or slides, labels,
    folds or features, by what `dmsmil run` has kept of each notebook from 03 on."""
    made, now = read_state(home)["data"], data_of(home)
    data = {stem: "slides, labels or features" for stem, value in made.items() if stem >= "03" and value != now}
    return {**data, **{stem: ", ".join(keys) for stem, keys in changed(home).items()}}


def other_tables(home: str | Path) -> dict[str, str]:
    """Table -> what was another when it was made: parameters, or what was trained on; or that its notebook makes it no
    more. 03_train has tables of each method it was run for."""
    left = {name for names in read_state(home)["left"].values() for name in names}
    now, found = parameters(home), {}
    mine = trained_stem(now) if now else ""
    old = {stem[:2]: why for stem, why in of_another_state(home).items()}
    for path in sorted((Path(home) / "tables").glob("*.csv")):
        name = path.stem
        if name.startswith("03_") and now and name not in (f"{mine}_results", f"{mine}_predictions"):
            found[name] = "method or scale"
        elif name[:2] in old:
            found[name] = old[name[:2]]
        elif name in left:
            found[name] = "not asked for any more"
    return found


def trained_stem(now: dict) -> str:
    """How the tables and figures of 03_train are called with these parameters."""
    scale = now["scale"]
    return run_stem(now["method"], [scale] if scale else now["scales"])


def records(home: str | Path) -> tuple[list[dict], int]:
    """The records of a study's finished runs that are of its present folds, seeds and code, and how many are not."""
    now, found = parameters(home), []
    for path in sorted((Path(home) / "runs").glob("*/*/config.json")):
        try:
            record = read_record(path.parent)
        except InputError:  # damaged: it will be trained anew when it is asked for
            continue
        if record is not None:
            found.append(record)
    folds = _folds(home)
    mine = [
        record
        for record in found
        if record["seed"] in now.get("seeds", [record["seed"]])
        and folds in ("", record["config"]["folds"])
        and _same_code(record["config"])
    ]
    return mine, len(found) - len(mine)


def _folds(home: str | Path) -> str:
    """The fingerprint of the study's folds, as in `RunConfig`; empty where it has none."""
    if not (Path(home) / "folds.csv").exists():
        return ""
    folds: pd.DataFrame = read_cohort(home)[1]
    return fingerprint(folds.to_csv(index=False))


def _same_code(config: dict) -> bool:
    """Whether a recorded configuration was computed by the code as it is now."""
    row = METHODS.get(config["method"])
    return row is not None and config["code"] == code_version(row.where.split(":")[0])


def leftover_sentence(home: str | Path) -> str:
    """Markdown: what else lies in the study's folder, in one line."""
    tables, runs = other_tables(home), records(home)[1]
    said = [f"`{name}` ({why})" for name, why in tables.items()]
    said += [f"{many(runs, 'run')} (folds, seeds or code)"] if runs else []
    if not said:
        return "All that lies in this study's folder was made with its present parameters."
    return "Not shown here, for it was made with other parameters: " + ", ".join(said) + "."
