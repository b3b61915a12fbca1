"""The parameters of a study: one YAML file, held against what the notebooks declare."""

from __future__ import annotations

import ast
import difflib
import json
import re
from pathlib import Path

import yaml

from dmsmil.jobs.files import ROOT, InputError
from dmsmil.study.rules import Parameter

TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}


def notebooks() -> list[Path]:
    """The study's notebooks, in reading order."""
    found = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise InputError(
            "there is no notebooks/ folder beside the package: install it from a checkout with pip install -e ."
        )
    return found


def notebook_parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a notebook, read off its cell tagged `parameters`, one a line:
    `name: type = default  # what it is; a rule; another rule`, as `rules.py` knows them."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", []))
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign):
            kind, _, values = ast.unparse(node.annotation).rstrip("]").partition("[")  # list[int]
            words, *rules = lines[node.end_lineno - 1].partition("#")[2].strip().split("; ")
            found[node.target.id] = Parameter(
                node.target.id, TYPES[kind], ast.literal_eval(node.value), words, tuple(rules), TYPES.get(values)
            )
    return found


def known_parameters() -> dict[str, Parameter]:
    """All parameters of all notebooks. A key means the same wherever it stands (tested)."""
    return {name: p for notebook in notebooks() for name, p in notebook_parameters(notebook).items()}


def check_values(notebook: str, values: dict) -> None:
    """Hold the values that a notebook has now against the types and rules beside its parameters, as `dmsmil run` does:
    its first line, for those who run it by papermill or by hand. values: its globals(). InputError names each problem.
    """
    known = notebook_parameters(ROOT / "notebooks" / f"{notebook}.ipynb")
    problems = [parameter.problem(values[name]) for name, parameter in known.items() if name in values]
    if wrong := [problem for problem in problems if problem]:
        raise InputError("; ".join(wrong))


def read_params(path: str | Path, overrides: dict[str, str] | None = None) -> dict:
    """A study's parameters: the YAML file, then `overrides`, held against what the notebooks declare.

    path: as typed, looked for from where the person is, then in the project's folder. Raises InputError naming every
    unknown key with the nearest known one, and every value of the wrong type or against a rule.
    """
    path = _find(Path(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path.name} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not saved as UTF-8: save it again with that encoding") from error
    values = _yaml(text, path.name) or {}
    if not isinstance(values, dict):
        raise InputError(f"{path.name} must hold one 'key: value' a line")
    return complete({"study": path.stem, **values}, overrides or {}, path.name)


def complete(values: dict, overrides: dict[str, str], where: str) -> dict:
    """All parameters: the defaults, `values`, and `overrides` as they were typed; `where` names the values in errors.
    Raises InputError as `read_params`."""
    known, wrong = known_parameters(), []
    values = values | {key: _typed(known.get(key), key, text) for key, text in overrides.items()}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            wrong.append(f"unknown key '{key}'" + (f" (did you mean '{near[0]}'?)" if near else ""))
        elif problem := known[key].problem(value):
            wrong.append(problem)
        else:
            values[key] = known[key].plain(value)
    if wrong:
        raise InputError(f"{where}: " + "; ".join(wrong))
    return {**{name: p.default for name, p in known.items()}, **values}


def _find(path: Path) -> Path:
    """The params file that was meant; InputError naming the folders that were looked in, and the nearest file."""
    places = list(dict.fromkeys([Path.cwd() / path, ROOT / path]))
    for place in places:
        try:
            if place.is_file():
                return place
        except OSError:  # a name that no file can have
            pass
    near = difflib.get_close_matches(path.stem, [p.stem for p in (ROOT / "params").glob("*.yaml")], 1)
    hint = f"did you mean params/{near[0]}.yaml?" if near else f"see {ROOT / 'params'} for examples"
    looked = (
        "" if path.is_absolute() else " in " + " or ".join(str(folder) for folder in dict.fromkeys([Path.cwd(), ROOT]))
    )
    raise InputError(f"there is no params file {path}{looked}: {hint}")


class _Unique(yaml.SafeLoader):
    """YAML that refuses a key given twice, where plain YAML silently takes the last."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"the key '{name}' is given twice: keep one")
        return super().construct_mapping(node, deep)

    def number(self, node):
        """A number that people read as YAML does: 0200 is 128 to YAML, and 1:30 is 90."""
        if ":" in node.value or re.fullmatch(r"[-+]?0[\d_]+", node.value):
            raise InputError(f"{node.value} is another number to YAML: write it without leading zeros and colons")
        whole = node.tag.endswith("int")
        return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)


for _tag in ("int", "float"):
    _Unique.add_constructor(f"tag:yaml.org,2002:{_tag}", _Unique.number)


def _yaml(text: str, where: str) -> object:
    """What a text says in YAML; `where` names it in errors."""
    try:
        found = yaml.load(text, _Unique)
        json.dumps(found, default=str, skipkeys=True)  # ValueError where a value holds itself
        return found
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or number that cannot be
        path = " (write Windows paths without quotes, or in single ones)" if "unknown escape" in str(error) else ""
        raise InputError(f"{where} is not YAML: {' '.join(str(error).split())}{path}") from error


def _typed(parameter: Parameter | None, key: str, text: str) -> object:
    """The value of `-p key text`: YAML, but a text as it stands where the parameter is one: `no` is a name too, and
    YAML would cut a folder's name at ` #`. Only what is in quotation marks, as in a params file, is without them."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in ("'", '"')
    if parameter is not None and parameter.type is str and not quoted:
        return text.strip()
    return _yaml(text, f"-p {key}")
