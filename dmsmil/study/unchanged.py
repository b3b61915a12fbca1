"""Which notebooks need not be executed again: nothing that they read, and nothing that they made, has changed.

After each notebook the study's folder keeps, in done.json, what decided its result (its source, its parameters, the
code of the package and of what it stands on, the person's files that the parameters name) and what then lay in the
folder. A notebook is executed when any of this is different, when one before it was executed, or when something failed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from dmsmil.analysis.leftovers import STATE, data_of, read_state
from dmsmil.jobs.failures import read_failures
from dmsmil.jobs.files import ROOT, fingerprint, is_file, read_json, walk, write_json
from dmsmil.study.environment import versions
from dmsmil.study.params import notebook_parameters, notebooks
from dmsmil.study.place import resolve

NOT_RESULTS = (
    "notebooks",
    "book",
    "apply",
    STATE,
    "times.csv",
    "params.yaml",
    "environment.json",
    "failures.csv",
    "running.lock",
)
SLIDES, COHORT = "slides", "00_cohort"
EDITED = "note: the cohort table has changed since 00_cohort read it; what follows still goes by it as it was"
PLACES = (
    "cohort",
    SLIDES,
    "split",
    "tiles",
    "features",
    "encoder_weights",
    "audit_splits",
    "apply_to",
    "model",
)  # parameters that name files

Stat = tuple[int, int]  # bytes, nanoseconds of the last change


class Memory:
    """What a study's folder remembers of its notebooks; `executed` becomes True with the first that was executed."""

    def __init__(self, home: Path, params: dict):
        self.home, self.params, self.executed = home, params, False
        self.read: dict[Path, str] = {}  # by the notebook that is being executed, as it began
        self.found: dict[str, Stat] = {}  # the tables of that notebook, as they lay there
        self.state = read_state(home)
        self.intact = self._intact()

    def knows(self, notebook: Path) -> bool:
        """Whether the notebook would give what it gave."""
        there = _executed(self.home / "notebooks" / notebook.name)
        known = self.state["notebooks"].get(notebook.stem)
        return self.intact and not self.executed and there and known == self._key(self._reads(notebook))

    def knows_book(self) -> bool:
        """Whether the book is that of these notebooks."""
        there = (self.home / "book" / "index.html").is_file()
        return self.intact and not self.executed and there and self.state["book"] == _pages()

    def begin(self, notebook: Path) -> None:
        """The notebook is executed: what it and those after it gave counts no more."""
        self.executed = True
        self.read = {notebook: self._reads(notebook)}  # what is edited while it runs is not what it has read
        self.found = self._tables(notebook)
        if not self.intact:  # `end` takes the files as they are then for those that were left
            self.state["notebooks"] = {}
        later = [other.stem for other in notebooks() if other.stem >= notebook.stem]
        self.state["notebooks"] = {name: key for name, key in self.state["notebooks"].items() if name not in later}
        self.state["book"] = ""
        self._write()

    def end(self, notebook: Path) -> None:
        """The notebook was executed to its end."""
        self.state["notebooks"][notebook.stem] = self._key(self.read.get(notebook) or self._reads(notebook))
        self.state["data"][notebook.stem] = data_of(self.home)
        now = self._tables(notebook)
        self.state["left"][notebook.stem] = [name for name, stat in self.found.items() if now.get(name) == stat]
        if notebook.stem == COHORT:
            self.state["table"] = self._table()
        self.state["files"] = {name: list(stat) for name, stat in files(self.home, NOT_RESULTS).items()}
        self._write()

    def _tables(self, notebook: Path) -> dict[str, Stat]:
        """The tables that a notebook has made, at any time."""
        return {path.stem: _stat(path) for path in sorted(self.home.glob(f"tables/{notebook.stem[:2]}_*.csv"))}

    def table_changed(self) -> bool:
        """Whether the cohort table is another than the one that 00_cohort has read."""
        return self.state["table"] not in ({}, self._table())

    def _table(self) -> dict[str, dict[str, list[int]]]:
        """The cohort table that the parameters name, as JSON has it; nothing of a painted cohort."""
        return {
            place: {name: list(stat) for name, stat in there.items()}
            for place, there in self._outside(["cohort"]).items()
        }

    def end_book(self) -> None:
        """The book was built."""
        self.state["book"] = _pages()
        self._write()

    def _write(self) -> None:
        write_json(self.state, self.home / STATE)

    def _intact(self) -> bool:
        """Nothing failed, and every file that the study's notebooks left is as they left it."""
        now = files(self.home, NOT_RESULTS)
        same = all(now.get(name) == tuple(stat) for name, stat in self.state["files"].items())
        return same and read_failures(self.home).empty

    def _key(self, reads: str) -> str:
        return fingerprint([reads, self._slides()])

    def _reads(self, notebook: Path) -> str:
        """What a notebook reads that no notebook makes."""
        own = {name: self.params[name] for name in notebook_parameters(notebook)}
        named = [key for key in PLACES if key != SLIDES]
        return fingerprint([notebook.read_text(encoding="utf-8"), own, code(), versions(), self._outside(named)])

    def _outside(self, keys: list[str]) -> dict[str, dict[str, Stat]]:
        """The person's files that these parameters name."""
        named = [one for key in keys for value in _listed(self.params.get(key)) for one in self._each_scale(value)]
        return {value: files(resolve(value)) for value in named if resolve(value).exists()}

    def _slides(self) -> dict[str, dict[str, Stat]]:
        """The slides, which a notebook may fetch: the folder that the parameters name, and those that the cohort
        names."""
        found = self._outside([SLIDES])
        table = self.home / "cohort.csv"
        if table.is_file():
            paths = pd.read_csv(table, dtype=str, keep_default_na=False).get("path", pd.Series(dtype=str))
            found["path"] = {path: _stat(Path(path)) for path in paths if is_file(path)}
        return found

    def _each_scale(self, value: str) -> list[str]:
        """A path as `features` may have it, with {scale} in it, at each scale."""
        return list(dict.fromkeys(value.replace("{scale}", f"{scale:g}") for scale in self.params["scales"]))


def _listed(value) -> list[str]:
    return value if isinstance(value, list) else [value] if value else []


def files(place: Path, without: tuple[str, ...] = ()) -> dict[str, Stat]:
    """What lies at a place, by its path from there: the file itself, or all files below a folder (`walk`); hidden ones
    and those in `without`, names at the top, are left out."""
    if place.is_file():
        return {place.name: _stat(place)}
    found = {}
    for path in sorted(walk(place)):
        parts = path.relative_to(place).parts
        passed = parts[0] in without or any(part.startswith((".", "cover.")) for part in parts)  # the book's cover
        if not passed and path.is_file():
            found["/".join(parts)] = _stat(path)
    return found


def _stat(path: Path) -> Stat:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def code() -> str:
    """A fingerprint of the package's source, and of the style of its figures."""
    digest, package = hashlib.sha256(), ROOT / "dmsmil"
    for path in sorted([*package.rglob("*.py"), *package.rglob("*.mplstyle")]):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _executed(copy: Path) -> bool:
    """Whether the executed copy of a notebook still shows what its cells gave, and was not emptied by whoever read
    it."""
    try:
        cells = read_json(copy)["cells"]
        return all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _pages() -> str:
    """A fingerprint of what is in the book besides the notebooks of the study."""
    lessons = sorted((ROOT / "notebooks" / "walkthroughs").rglob("*.*"))
    parts = [
        ROOT / "README.md",
        ROOT / "dmsmil/book/build.css",
        *(path for path in lessons if path.is_file() and "__pycache__" not in path.parts),
    ]
    return fingerprint([code(), [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in parts]])
