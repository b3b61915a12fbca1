"""Run a study: the notebooks, in order, on one YAML file of parameters. Also the command line.

    dmsmil check params/mine.yaml     what is wrong, in seconds, before hours are spent
    dmsmil run params/mine.yaml       the whole study, into outputs/<study>/; start it again to continue
    dmsmil book params/mine.yaml      its book once more, from the notebooks as they were executed
    dmsmil methods                    the methods there are
    dmsmil bench                      how fast the fast paths are, against the plain ones
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import logging
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pandas as pd
import papermill
import psutil
import yaml
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from dmsmil.cohorts.download import Remote, downloadable, fetch_all
from dmsmil.cohorts.gdc import COHORTS, keep_source, tcga_table
from dmsmil.cohorts.made.demo import make_demo
from dmsmil.features.rehearsal import DRAWN
from dmsmil.jobs.failures import read_failures
from dmsmil.jobs.files import InputError, one_line, write_csv, write_json, write_text

ROOT = Path(__file__).resolve().parents[2]  # the project's folder: notebooks/, params/, outputs/
TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}
REPORT = "09_report"
PACKAGES = ("numpy", "scipy", "pandas", "scikit-learn", "torch", "torchvision", "timm", "openvino", "POT", "h5py",
            "openslide-python", "openslide-bin", "tifffile", "imagecodecs", "papermill", "matplotlib", "seaborn")


def resolve(path: str | Path) -> Path:
    """A path of a params file: absolute as it is, relative to the project's folder otherwise."""
    return Path(path) if Path(path).is_absolute() else ROOT / path


def study_folder(study: str, outputs: str = "outputs") -> Path:
    """The folder of a study: <outputs>/<study>, made if need be."""
    folder = _place(study, outputs)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _place(study: str, outputs: str) -> Path:
    """Where the folder of a study is, or would be."""
    if not re.fullmatch(r"[\w.-]+", study):
        raise InputError(f"study is '{study}': a name of letters, digits, '-', '_' and '.' is needed")
    return resolve(outputs) / study


def cohort_table(cohort: str, home: Path, patients: int, side: int, seed: int, workers: int = 0,
                 scheduler: str = "", folder: Path | str = "", remote: Remote | None = None) -> Path:
    """The CSV of a study's cohort: the one named; the embedded demo cohort, made if need be; or a TCGA cohort by its
    name, asked of the GDC (`remote`) the first time. folder: of the slides, as `slides_folder` says."""
    if cohort == "demo":
        make_demo(home / "cohort", patients, seed, side, workers, scheduler)
        return home / "cohort" / "cohort.csv"
    if remote is not None:
        keep_source(home, remote)
    return tcga_table(cohort, home, folder, remote) if cohort in COHORTS else resolve(cohort)


def slides_folder(slides: str, cohort: str, home: Path) -> Path | str:
    """Where a study's slides are or will be: the folder named, or <home>/slides of a TCGA cohort, made if need be; ""
    where the table of the cohort says it itself."""
    if cohort not in COHORTS:
        return resolve(slides) if slides else ""
    folder = resolve(slides) if slides else home / "slides"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch_slides(table: Path, folder: Path | str, remote: Remote) -> list[dict]:
    """Bring every slide that the table says a server has; returns a failure row for each that could not be had."""
    if not table.is_file():
        return []  # load_cohort says so
    frame = pd.read_csv(table, dtype=str, keep_default_na=False)
    return fetch_all(remote, frame, folder or table.parent) if downloadable(frame) else []


def feature_source(features: str) -> str:
    """The key `features` as `take_features` takes it: a folder, or a word."""
    return features if features in ("", DRAWN) else str(resolve(features))


# ------------------------------------------------------------------------------------------------ parameters


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


# ------------------------------------------------------------------------------------------------ run


def run(params: dict, only: list[str] | None = None, say: Callable[[str], None] | None = None) -> int:
    """Execute the notebooks of a study in order, into outputs/<study>/notebooks/. Returns the exit status.

    What is done already is read, not done again; start the same study again to continue after any interruption.
    After the last notebook, the report, the book is built. Status 0: all well; 1: units failed (see failures.csv) and
    allow_failures is off; 2: a notebook stopped, or the book could not be built (all results are there).
    """
    started, say = time.perf_counter(), say or Bar()
    home = study_folder(params["study"], params["outputs"])
    write_text(yaml.safe_dump(params, sort_keys=True, allow_unicode=True), home / "params.yaml")
    write_json(environment(), home / "environment.json")
    chosen = [n for n in notebooks() if not only or any(n.stem.startswith(o) for o in only)]
    if not chosen:
        raise InputError(f"no notebook is called {', '.join(only)}: there are {', '.join(n.stem for n in notebooks())}")
    for number, notebook in enumerate(chosen, 1):
        say(f"{notebook.stem}  ({number} of {len(chosen)})")
        clock = time.perf_counter()
        if problem := _execute(notebook, home, params, say):
            say(f"{notebook.stem} stopped: {problem}")
            say(f"the notebook as far as it came: {_shown(home)}/notebooks/{notebook.stem}.failed.ipynb")
            return 2
        seconds = time.perf_counter() - clock
        _keep_time(home, notebook.stem, seconds)
        say(f"{notebook.stem}  done in {seconds:.0f} s")
    problem = ""
    if book := chosen[-1].stem == REPORT:
        problem = _build_book(home, say)
    failures = read_failures(home)
    what = f"study '{params['study']}'" if book else f"{', '.join(n.stem for n in chosen)} of '{params['study']}'"
    say(f"{what} done in {time.perf_counter() - started:.0f} s. Where to look:")
    say(f"  {_shown(home)}/notebooks/{chosen[-1].name}   "
        + ("the result on one page" if book else "what came last") + ", and the other notebooks beside it")
    say(f"  {_shown(home)}/tables/ and figures/   every number and figure so far, with the data behind each")
    if book and not problem:
        say(f"  {_shown(home)}/book/index.html            all notebooks as pages to read in a browser")
    elif problem:
        say(f"the book could not be built: {problem}")
        say("all results are kept; `dmsmil book` with the same params file tries again")
    if len(failures):
        say(f"{len(failures)} units failed: see {_shown(home)}/failures.csv")
        for row in failures.head(5).itertuples():
            say(f"  {row.unit} ({row.stage}): {row.reason}")
    status = 1 if len(failures) and not params["allow_failures"] else 0
    return 2 if problem else status


def _keep_time(home: Path, notebook: str, seconds: float) -> None:
    """Write how long a notebook took into times.csv (notebook, seconds); of one that ran before, the latest."""
    path = home / "times.csv"
    times = dict(pd.read_csv(path).itertuples(index=False)) if path.exists() else {}
    times[notebook] = round(seconds, 1)
    write_csv(pd.DataFrame(sorted(times.items()), columns=["notebook", "seconds"]), path)


def _build_book(home: Path, say: Callable[[str], None]) -> str:
    """Build the book of a study; returns what went wrong in one line, or nothing."""
    from dmsmil.book import build

    try:
        build(home, say)
    except Exception as error:  # whatever it is, a study of hours is not lost over its book
        return one_line(error)
    return ""


def make_book(params: dict, say: Callable[[str], None] = print) -> int:
    """Build the book of a study that has run. Returns 0; raises InputError when there is nothing to build it from."""
    from dmsmil.book import build

    index = build(_place(params["study"], params["outputs"]), say)
    say(f"{_shown(index)}   to read in any browser")
    return 0


def _shown(path: Path) -> str:
    """A path as a person would type it."""
    return os.path.relpath(path)


class Bar:
    """Says lines above a progress bar in a terminal, which follows their `[done/all]`; plain lines elsewhere."""

    def __init__(self):
        self.bar = tqdm(total=1, bar_format="{desc} {bar} {n_fmt}/{total_fmt} [{elapsed}<{remaining}]", leave=False,
                        disable=not sys.stderr.isatty())

    def __call__(self, line: str) -> None:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        if count := re.match(r"\s+\[(\d+)/(\d+)\]", line):
            done, total = map(int, count.groups())
            if done == 1 or total != self.bar.total:
                self.bar.reset(total)
            self.bar.update(done - self.bar.n)
        elif name := re.match(r"(\d\d_\w+)  \(", line):
            self.bar.set_description_str(name.group(1))


class _Lines:
    """A text stream that hands on what the cells print, line by line."""

    def __init__(self, say):
        self.say, self.rest = say, ""

    def write(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.say("    " + line)

    def flush(self) -> None:
        """Nothing waits but an unfinished line."""


def _execute(notebook: Path, home: Path, params: dict, say: Callable[[str], None]) -> str:
    """Execute one notebook through papermill; the executed file appears only when it is whole.

    Returns what went wrong in one line, or nothing.
    """
    folder = home / "notebooks"
    folder.mkdir(exist_ok=True)
    working, failed = folder / f".{notebook.stem}.running.ipynb", folder / f"{notebook.stem}.failed.ipynb"
    own = {name: params[name] for name in notebook_parameters(notebook)}
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        papermill.execute_notebook(notebook, working, own, cwd=ROOT, progress_bar=False, kernel_name="python3",
                                   stdout_file=_Lines(say), extra_arguments=["--log-level=CRITICAL"])
    except PapermillExecutionError as error:
        os.replace(working, failed)
        text = " ".join(str(error.evalue).split())
        return text if error.ename in ("InputError", "DiskFull") else f"{error.ename}: {text}"
    os.replace(working, folder / notebook.name)
    failed.unlink(missing_ok=True)
    return ""


def environment() -> dict:
    """What a study ran on: versions, processor, memory, GPU. No paths, no names of people."""
    import torch

    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(), "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none", "packages": found}


# ------------------------------------------------------------------------------------------------ check


def check(params: dict, say: Callable[[str], None] = print) -> int:
    """Say what would go wrong with a study, in seconds. Returns the number of problems."""

    from dmsmil.study import preflight

    problems = 0
    for good, line in preflight.findings(params, resolve):
        problems += not good
        say(("ok       " if good else "PROBLEM  ") + line)
    say("nothing stands in the way: dmsmil run" if not problems else f"{problems} problems: mend them first")
    return problems


# ------------------------------------------------------------------------------------------------ command line


def main(argv: list[str] | None = None) -> int:
    """The `dmsmil` command."""
    parser = argparse.ArgumentParser("dmsmil", description="DMSMIL as a reproducible study: see README.md")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="{run,check,book,methods,bench}")
    for verb, text in (("run", "run a study; start it again to continue"), ("check", "say what would go wrong"),
                       ("book", "build the book of a study that has run")):
        sub = verbs.add_parser(verb, help=text)
        sub.add_argument("params", help="a YAML file of parameters, such as params/demo.yaml")
        sub.add_argument("-p", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"),
                         help="set one parameter, as papermill does; results go to the folder of -p outputs FOLDER")
        if verb == "run":
            sub.add_argument("--only", nargs="+", metavar="NN", help="only these notebooks, by number or name")
    sub = verbs.add_parser("methods", help="list the methods")
    sub.add_argument("--check", metavar="NAME", help="does this method keep the promises of the model contract?")
    sub = verbs.add_parser("bench", help="time the fast paths against the plain ones, interleaved")
    sub.add_argument("parts", nargs="*", help="slides, encoder, step, methods (default: all)")
    sub.add_argument("--quick", action="store_true", help="small sizes, a minute in all")
    args = parser.parse_args(argv)
    try:
        if args.verb in ("run", "check", "book"):
            params = read_params(args.params, dict(args.p))
            if args.verb == "run":
                return run(params, args.only)
            return min(check(params), 1) if args.verb == "check" else make_book(params)
        if args.verb == "methods":
            return check_method(args.check) if args.check else list_methods()

        from dmsmil.study import bench

        return bench.main(args.parts, args.quick)
    except InputError as error:
        print(f"dmsmil: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dmsmil: stopped; what is done is kept, start the same command again to continue", file=sys.stderr)
        return 130


def check_method(name: str) -> int:
    """Print which promises of the model contract a method keeps; 0 when it keeps them all."""
    from dmsmil.models.contract import check_contract

    table = check_contract(name)
    for promise, row in table.iterrows():
        print(("kept     " if row.kept else "BROKEN   ") + promise + (f": {row['why not']}" if not row.kept else ""))
    return int(not table.kept.all())


def list_methods() -> int:
    """Print name, scales, parameters at 2048-d with two classes, and reference of every method."""
    from dmsmil.models import METHODS, count_parameters, create

    print(f"{'name':<14}{'scales':<10}{'parameters':>12}  reference")
    for row in METHODS.values():
        scales = (10,) if row.takes == "one" else (10, 20)
        words = {"one": "one", "many": "all", "any": "one or all"}[row.takes]
        count = count_parameters(create(row.name, 2048, 2, scales))
        print(f"{row.name:<14}{words:<10}{count:>12,}  {row.title}: {row.reference}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
