"""Where the slide files lie: by path, by name below a folder, by a TCGA barcode, by a DICOM slide's label; and what a
missing one may be."""

from __future__ import annotations

import difflib
import os
from bisect import bisect
from collections import Counter, defaultdict
from functools import cached_property
from pathlib import Path

import pandas as pd

from dmsmil.cohorts.checks import Reasons
from dmsmil.cohorts.dicom import CONTAINER, Series, find_series, header, slide_in
from dmsmil.cohorts.fetching import slide_path
from dmsmil.cohorts.ids import BARCODE, SLIDE_SUFFIXES, alike, bare_name
from dmsmil.jobs.files import InputError, is_file, walk

DICOM = ".dcm"
NOT_READ = (".png", ".jpg", ".jpeg", ".bmp", ".jp2", ".vsi", ".isyntax", ".qptiff", ".part", ".zip", ".gz")
MAPS = "qupath"  # the folder of a study with what QuPath opens
NEIGHBOURS = 4  # names compared with a missing one, on each side of its place among them


class SlideFiles:
    """The slide files below a folder, looked for when the first one is asked for."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @property
    def paths(self) -> list[Path]:
        """All of them, by path; of a DICOM slide the one file that it is opened by."""
        others = {path for one in self._series for path in one.files if path != one.path}
        return [path for path in self._all if path not in others]

    @cached_property
    def _walked(self) -> list[Path]:
        """Every file below the folder, slide or not."""
        return list(walk(self.folder))

    @cached_property
    def _all(self) -> list[Path]:
        try:
            found = (path for path in self._walked if path.suffix.lower() in SLIDE_SUFFIXES)
            return sorted(path for path in found if not _is_map(path))
        except OSError as error:
            raise InputError(f"the slides folder {self.folder.name} cannot be read ({error.strerror})") from error

    @cached_property
    def _series(self) -> list[Series]:
        return find_series(path for path in self._all if path.suffix.lower() == DICOM)

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        """Files by their bare name, and by the barcode that a TCGA name begins with."""
        found = defaultdict(list)
        for path in self._all:
            found[bare_name(path.name)].append(path)
            barcode = path.name.split(".")[0]
            if barcode != bare_name(path.name) and BARCODE.fullmatch(barcode):
                found[barcode].append(path)
        return found

    @cached_property
    def _by_label(self) -> dict[str, list[Path]]:
        """DICOM slides by the identifier of their glass, by the UID of their series, and by their folder where they are
        the only one in it: their files' names are mostly UIDs."""
        found, alone = defaultdict(list), Counter(one.path.parent for one in self._series)
        for one in self._series:
            folder = one.path.parent.name if alone[one.path.parent] == 1 and one.path.parent != self.folder else ""
            for name in {bare_name(one.container), one.uid, bare_name(folder)} - {""}:
                found[name].append(one.path)
        return found

    def of(self, slide_id: str) -> list[Path]:
        """The files that can be this slide: the one of its very name, else those of its name or barcode, else the DICOM
        slides that are labelled so; a label has no more of a TCGA name than its barcode."""
        bare, barcode = bare_name(slide_id), slide_id.split(".")[0]
        named = self._by_name.get(bare, [])
        labelled = self._by_label.get(bare) or (self._by_label.get(barcode, []) if BARCODE.fullmatch(barcode) else [])
        return [path for path in named if path.name == slide_id] or named or labelled

    def told(self, paths: list[Path]) -> str:
        """Some files for a reader, from the folder on."""
        return " and ".join(path.relative_to(self.folder).as_posix() for path in paths)

    def others(self) -> dict[str, str]:
        """The names of pictures and parts of slides, which are not read, by what stands before their suffix."""
        return {path.name.split(".")[0]: path.name for path in self._walked if path.suffix.lower() in NOT_READ}

    def near(self, slide_ids: list[str], taken: set[str]) -> dict[str, str]:
        """For each slide without a file the name of a file, not of a slide in `taken`, that may be meant, if any.

        A name is compared only with its neighbours in the alphabet, read forwards and backwards: a slip of the pen
        leaves one end of a name as it is, and a folder of thousands is searched at once.
        """
        free = [path.name for path in self.paths if bare_name(path.name) not in taken]
        forwards, backwards = sorted(free), sorted(name[::-1] for name in map(bare_name, free))
        names = {bare_name(name)[::-1]: name for name in free}
        plain = {_seen(bare_name(name)): name for name in free}
        found = {}
        for slide_id in slide_ids:
            bare = bare_name(slide_id)
            beside = _beside(forwards, bare) + [names[name] for name in _beside(backwards, bare[::-1])]
            longer = [name for name in beside if name.startswith(bare)]
            stems = {bare_name(name): name for name in beside}
            same = [plain[_seen(bare)]] if _seen(bare) in plain else []
            near = same or longer or [stems[stem] for stem in difflib.get_close_matches(bare, stems, 1)]
            if near:
                found[slide_id] = near[0]
        return found


def _is_map(path: Path) -> bool:
    """Whether it is a picture of scores that a study has drawn, which has its slide's name: in <study>/qupath."""
    home = path.parent.parent
    return path.parent.name == MAPS and any((home / made).exists() for made in ("folds.csv", "tables"))


def called(path: Path) -> str:
    """What a slide is called of which nothing is known but its file: by the label of a DICOM slide, else by the file's
    name."""
    label = header(path).get(CONTAINER, "") if path.suffix.lower() == DICOM else ""
    return bare_name(label) or bare_name(path.name)


def given_path(path: str, folders: list[Path]) -> Path:
    """The file that a table names: `~` is the home folder, a relative path is below the first folder that has it."""
    path = os.path.expanduser(path)
    return next((folder / path for folder in folders if os.path.exists(folder / path)), folders[0] / path)


def find_slides(frame: pd.DataFrame, home: Path, files: SlideFiles) -> tuple[list[str], list[tuple[int, str]]]:
    """(path of every row, rows of which it is not certain): the file that the table in the folder `home` names, else
    the one found by its id, else where a fetched one will be; "" where there is none."""
    paths, problems = [], []
    for row in frame.itertuples():
        found, problem = [], ""
        if row.path:
            given = given_path(row.path, [home, files.folder])
            try:
                found = [(slide_in(given) if os.path.isdir(given) else None) or given]
            except InputError as error:
                problem = str(error)
        elif row.slide_id:
            found = files.of(row.slide_id)
        path = str(found[0]) if len(found) == 1 else ""
        if problem:
            problems.append((row.Index, problem))
        elif len(found) > 1:
            problems.append(
                (
                    row.Index,
                    f"slide {row.slide_id} can be {files.told(found[:3])}: keep one, or name it in a column 'path'",
                )
            )
        elif getattr(row, "file_id", ""):
            try:
                path = str(slide_path(row._replace(path=path), files.folder))
            except InputError as error:
                problems.append((row.Index, str(error)))
        paths.append(path)
    return paths, problems + _shared(frame.assign(path=paths))


def _shared(frame: pd.DataFrame) -> list[tuple[int, str]]:
    """The rows whose file is another row's too."""
    problems = []
    here = frame[frame.path != ""]
    for path, rows in here.groupby(here.path.map(os.path.realpath)):  # however each is written
        if len(rows) > 1:
            several = " and ".join(rows.slide_id[:3])
            problems += [
                (
                    row,
                    f"slides {several} have one file, {Path(path).name}: keep one row, or name the file of "
                    "each in a column 'path'",
                )
                for row in rows.index
            ]
    return problems


def without_file(
    expected: pd.DataFrame, files: SlideFiles, taken: set[str], advice: str = "check the key 'slides'"
) -> Reasons:
    """The rows of `expected` without a slide file, what may be meant (no file of a slide in `taken`) and what to do."""
    lost = expected[(expected.path == "") & (expected.slide_id != "")]
    near = files.near(lost.slide_id.to_list(), {bare_name(name) for name in taken}) if len(lost) else {}
    others = files.others() if len(lost) else {}
    for row, slide_id in lost.slide_id.items():
        hint = f"did you mean {near[slide_id]}? Else " if slide_id in near else ""
        if not hint and slide_id in others:
            hint = f"{others[slide_id]} is no slide that is read ({', '.join(SLIDE_SUFFIXES[:4])}, ...). "
        yield row, f"no slide file named {slide_id}.*: {hint}{advice}, or add a column 'path'"
    for row, path in expected.path[expected.path != ""].items():
        if not is_file(path):
            yield row, f"the slide file {Path(path).name[:80]} {_why_not(path)}: check the column 'path'"


def _why_not(path: str) -> str:
    """Why there is no file at a path."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except OSError as error:
        return f"cannot be reached ({error.strerror})"
    return "is a folder without a DICOM slide"


def _seen(name: str) -> str:
    """A name without case, and without the zeros before a number that a spreadsheet takes away."""
    return alike(name).lstrip("0")


def _beside(names: list[str], name: str) -> list[str]:
    at = bisect(names, name)
    return names[max(at - NEIGHBOURS, 0) : at + NEIGHBOURS]
