"""Run a study: its notebooks in order, then its book."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import yaml

from dmsmil.apply.folder import OTHERS
from dmsmil.jobs.failures import read_failures
from dmsmil.jobs.files import InputError, one_line, sweep, write_json, write_text
from dmsmil.jobs.text import many
from dmsmil.study.environment import environment
from dmsmil.study.execute import execute
from dmsmil.study.lock import alone
from dmsmil.study.params import notebooks
from dmsmil.study.place import shown, study_folder
from dmsmil.study.terminal import Bar
from dmsmil.study.times import TRAINING, begin_time, end_time
from dmsmil.study.unchanged import COHORT, EDITED, Memory

REPORT, APPLY = "09_report", "10_apply"


def run(params: dict, only: list[str] | None = None, say: Callable[[str], None] | None = None) -> int:
    """Execute the notebooks of a study in order, into outputs/<study>/notebooks/. Returns the exit status.

    10_apply is one of them where `apply_to` names slides, or `only` names it; by itself it changes nothing that is the
    study's.

    What is done already is read, not done again; start the same study again to continue after any interruption. A
    notebook of which nothing has changed is not executed (`unchanged`), unless `only` names it.
    After the report and what may follow it, the book is built. Status 0: all well; 1: units failed (see failures.csv)
    and allow_failures is off; 2: a notebook stopped, or the book could not be built (all results are there). Raises
    InputError before any notebook, for what `only` names and is none, for settings that no method can do with, and when
    another process runs the study.
    """
    started, say = time.perf_counter(), say or Bar()
    chosen = choose(only)
    if not only and not params["apply_to"]:
        chosen = [notebook for notebook in chosen if notebook.stem != APPLY]
    applies = chosen[-1].stem == APPLY and bool(params["apply_to"])
    studies = chosen[0].stem != APPLY
    if studies:
        _try(params)
    home = study_folder(params["study"], params["outputs"])
    with alone(home):
        sweep(home)
        if studies:
            write_text(yaml.safe_dump(params, sort_keys=True, allow_unicode=True), home / "params.yaml")
            write_json(environment(params["device"]), home / "environment.json")
        memory = Memory(home, params)
        if chosen[0].stem != COHORT and memory.table_changed():
            say(EDITED)
        stopped = _notebooks(chosen, bool(only), home, params, memory, say)
        whole, problem = REPORT in [notebook.stem for notebook in chosen], ""
        if stopped and not (whole and stopped == APPLY):  # what was asked of new slides costs the study no book
            return 2
        if whole and not memory.knows_book():
            problem = _build_book(home, say)
            if not problem:
                memory.end_book()
        places = ([home] if studies else []) + ([home / OTHERS] if applies else [])
        failed = {place: read_failures(place) for place in places}
    what = f"study '{params['study']}'" if whole else f"{', '.join(n.stem for n in chosen)} of '{params['study']}'"
    say(f"{what} done in {time.perf_counter() - started:.0f} s. Where to look:")
    say(
        f"  {shown(home)}/notebooks/{REPORT if whole else chosen[-1].stem}.ipynb   "
        + ("the result on one page" if whole else "what came last")
        + ", and the other notebooks beside it"
    )
    say(f"  {shown(home)}/tables/ and figures/   every number and figure so far, with the data behind each")
    if applies and not stopped:
        say(f"  {shown(home / OTHERS)}/index.html   a page for each slide that was asked about")
    if problem:
        say(f"the book could not be built: {problem}")
        say("all results are kept; `dmsmil book` with the same params file tries again")
    elif whole:
        say(f"  {shown(home)}/book/index.html            all notebooks as pages to read in a browser")
    for place, failures in failed.items():
        if len(failures):
            say(f"{many(len(failures), 'unit')} failed: see {shown(place)}/failures.csv")
        for row in failures.head(5).itertuples():
            say(f"  {row.unit} ({row.stage}): {row.reason}")
    if problem or stopped:
        return 2
    return 1 if any(map(len, failed.values())) and not params["allow_failures"] else 0


def _try(params: dict) -> None:
    """InputError for settings that no method can do with."""
    from dmsmil.study.trial import settings  # seconds, which 10_apply need not spend

    for good, line in settings(params):
        if not good:
            raise InputError(" ".join(line.split()))


def choose(only: list[str] | None) -> list[Path]:
    """The notebooks asked for, in reading order, by number or beginning of the name; all when none is."""
    there = notebooks()
    names = ", ".join(notebook.stem for notebook in there)
    for asked in only or []:
        if not asked or not any(notebook.stem.startswith(asked) for notebook in there):
            raise InputError(f"no notebook is called '{asked}': there are {names}")
    return [notebook for notebook in there if not only or notebook.stem.startswith(tuple(only))]


def _notebooks(
    chosen: list[Path], asked: bool, home: Path, params: dict, memory: Memory, say: Callable[[str], None]
) -> str:
    """Execute notebooks one after the other, and say so; returns the name of the one that stopped, "" where none did.
    asked: whether the person named them; of others those are passed over that would give what they gave."""
    watch = None
    for number, notebook in enumerate(chosen, 1):
        if not asked and memory.knows(notebook):
            say(f"{notebook.stem}  ({number} of {len(chosen)})  unchanged since it was executed")
            continue
        say(f"{notebook.stem}  ({number} of {len(chosen)})")
        first, clock = begin_time(home, notebook.stem), time.perf_counter()
        memory.begin(notebook)
        trains = notebook.stem in TRAINING
        if trains:
            from dmsmil.study.watch import Watch, result_lines

            watch = watch or Watch(home, params, say, [notebook.stem for notebook in chosen])
        with watch.over(notebook.stem) if trains else nullcontext(say) as tell:
            problem = execute(notebook, home / "notebooks", params, tell)
        if problem:
            say(f"{notebook.stem} stopped: {problem}")
            say(f"the notebook as far as it came: {shown(home)}/notebooks/{notebook.stem}.failed.ipynb")
            return notebook.stem
        memory.end(notebook)
        seconds = time.perf_counter() - clock
        end_time(home, notebook.stem, seconds, first)
        say(f"{notebook.stem}  done in {seconds:.0f} s")
        for line in result_lines(home, notebook.stem) if trains else ():
            say(line)
    return ""


def _build_book(home: Path, say: Callable[[str], None]) -> str:
    """Build the book of a study; returns what went wrong in one line, or nothing."""
    from dmsmil.book.build import build  # seconds, which a few notebooks need not spend

    try:
        build(home, say)
    except Exception as error:  # whatever it is, a study of hours is not lost over its book
        return one_line(error)
    return ""
