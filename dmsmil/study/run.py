"""Run a study: its notebooks in order, each through papermill, then its book."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import papermill
import yaml
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from dmsmil.jobs.failures import read_failures
from dmsmil.jobs.files import ROOT, InputError, one_line, write_csv, write_json, write_text
from dmsmil.study.environment import environment
from dmsmil.study.params import notebook_parameters, notebooks
from dmsmil.study.place import folder_of, study_folder

REPORT = "09_report"


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
    from dmsmil.book.build import build

    try:
        build(home, say)
    except Exception as error:  # whatever it is, a study of hours is not lost over its book
        return one_line(error)
    return ""


def make_book(params: dict, say: Callable[[str], None] = print) -> int:
    """Build the book of a study that has run. Returns 0; raises InputError when there is nothing to build it from."""
    from dmsmil.book.build import build

    index = build(folder_of(params["study"], params["outputs"]), say)
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
