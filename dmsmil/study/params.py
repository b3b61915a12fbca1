"""The parameters of a study: one YAML file, held against what the notebooks declare."""

from __future__ import annotations

import ast
import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from dmsmil.jobs.files import ROOT, InputError

TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a notebook: its type, its default, and the comment beside it."""

    name: str
    type: type
    default: object
    help: str


def notebooks() -> list[Path]:
    """The study's notebooks, in reading order."""
    found = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise InputError("there is no notebooks/ folder beside the package: install it from a checkout with "
                         "pip install -e .")
    return found


def notebook_parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a notebook, read off its cell tagged `parameters`: `name: type = literal  # comment`."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", []))
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign):
            comment = lines[node.end_lineno - 1].partition("#")[2].strip()
            found[node.target.id] = Parameter(node.target.id, TYPES[node.annotation.id], ast.literal_eval(node.value),
                                              comment)
    return found


def known_parameters() -> dict[str, Parameter]:
    """All parameters of all notebooks. A key means the same wherever it stands (tested)."""
    return {name: p for notebook in notebooks() for name, p in notebook_parameters(notebook).items()}


class _Unique(yaml.SafeLoader):
    """YAML that refuses a key given twice, where plain YAML silently takes the last."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"the key '{name}' is given twice: keep one")
        return super().construct_mapping(node, deep)


def read_params(path: str | Path, overrides: dict[str, str] | None = None) -> dict:
    """A study's parameters: the YAML file, then `overrides`, checked against what the notebooks know.

    Raises InputError naming every unknown key with the nearest known one, and every value of the wrong type.
    """
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.stem, [p.stem for p in (ROOT / "params").glob("*.yaml")], 1)
        hint = f"did you mean params/{near[0]}.yaml?" if near else "see params/ for examples"
        raise InputError(f"the params file {path.name} does not exist: {hint}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Unique) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path.name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path.name} must hold one 'key: value' a line")
    values |= {key: yaml.safe_load(text) for key, text in (overrides or {}).items()}
    values.setdefault("study", path.stem)
    known, wrong = known_parameters(), []
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            wrong.append(f"unknown key '{key}'" + (f" (did you mean '{near[0]}'?)" if near else ""))
        elif problem := _type_problem(known[key], value):
            wrong.append(problem)
        elif known[key].type is float:
            values[key] = float(value)
    if wrong:
        raise InputError(f"{path.name}: " + "; ".join(wrong))
    return {**{name: p.default for name, p in known.items()}, **values}


def _type_problem(parameter: Parameter, value) -> str:
    """What is wrong with a value's type, or nothing."""
    wanted = (int, float) if parameter.type is float else parameter.type
    if isinstance(value, wanted) and not (isinstance(value, bool) and parameter.type is not bool):
        return ""
    hint = ""
    if parameter.type is float and isinstance(value, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value):
        mantissa, exponent = value.split("e")
        hint = f" (YAML reads {value} as text: write {mantissa}.0e{exponent})"
    return f"'{parameter.name}' must be {parameter.type.__name__}, got {value!r}{hint}"
