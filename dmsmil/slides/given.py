"""Tiles that were chosen elsewhere: those of a study's first scale. The finer ones inside them are drawn here, by the
rule of `select_tiles`, and of a slide that has more than `k` the densest are taken.

    TABLE.csv   slide_id, x, y: a row a tile, x and y of its top-left corner in level-0 px; other columns are not read
    FOLDER      hs2p's: tiles/<slide>.coordinates.npz and its .meta.json, or the folder in which these lie
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dmsmil.cohorts.ids import TABLE_SUFFIXES, bare_name
from dmsmil.cohorts.reading import need_columns, read_table
from dmsmil.jobs.files import InputError, fingerprint, one_line
from dmsmil.jobs.text import as_written
from dmsmil.slides.density import check_black
from dmsmil.slides.hs2p import ABOUT, COORDINATES, DAMAGED, check_tiling, read_hs2p
from dmsmil.slides.linking import overlapping
from dmsmil.slides.magnification import AGREE, tile_size_level0
from dmsmil.slides.reader import NEAR, Slide
from dmsmil.slides.tiles import Best, Tiles

COLUMNS = ("slide_id", "x", "y")
BY = {"table": "in a table", "hs2p": "by hs2p"}
LARGEST = 2**31  # px; no slide is as wide
NOTHING = np.empty((0, 2), np.int64)


class Given(NamedTuple):
    """The tiles of one slide as they were chosen elsewhere.

    by: whose they are, a key of BY. corners (N, 2) int64: top-left, level-0 px, in raster order. side: of a tile, and
    size (width, height): of the slide, both in level-0 px, 0 where nothing says it. problem: why they cannot be used,
    "" where they can.
    """

    by: str
    corners: np.ndarray
    side: float = 0.0
    size: tuple[int, int] = (0, 0)
    problem: str = ""

    @property
    def identity(self) -> str:
        """A fingerprint of where the tiles lie; the order of a table's rows does not change it."""
        return fingerprint([self.corners.tolist(), self.side, self.problem], 16)

    def check(self) -> None:
        """InputError where they cannot be used."""
        if self.problem:
            raise InputError(self.problem)


def chosen_by(place: str | Path) -> str:
    """Whose tiles the key `tiles` names: "table", "hs2p", or "" where it is empty and the study chooses its own."""
    if not str(place):
        return ""
    return "table" if Path(place).suffix.lower() in TABLE_SUFFIXES else "hs2p"


def whose_tiles(place: str, k: int, features: str = "") -> str:
    """Markdown: who chose a study's tiles, by its keys `tiles`, `k` and `features`."""
    if features:
        return "The tiles came with the features, which were not made here."
    if not place:
        return f"The tiles were chosen here: of each slide the densest, {k} at most."
    return (
        f"The tiles were chosen elsewhere, {BY[chosen_by(place)]} ({as_written(Path(place).name)}): of each slide "
        f"all of them, or the {k} densest. The finer tiles inside them were drawn here."
    )


def open_given(place: str | Path, slide_ids: Iterable[str], scale: int, tile_px: int) -> dict[str, Given]:
    """The tiles that a table or folder of hs2p has of each of these slides; scale, tile_px: of the study's tiles.

    What is wrong with those of one slide is their `problem`. Raises InputError for what is neither, for a table without
    its columns, with a row that is no row, or without rows, and where it has tiles of none of the slides.
    """
    place, slide_ids = Path(place), list(slide_ids)
    by = chosen_by(place)
    if not place.exists() or place.is_file() != (by == "table"):
        raise InputError(
            f"the key 'tiles' names {place.name}, which is no table ({', '.join(TABLE_SUFFIXES)}) and no folder "
            "of hs2p that exists: correct it"
        )
    rows, files = (_rows(place), {}) if by == "table" else ({}, _files(place))
    index: dict[str, list[str]] = {}
    for name in [*rows, *files]:
        index.setdefault(bare_name(name), []).append(name)
    found = {}
    for slide_id in slide_ids:
        names = index.get(bare_name(slide_id), [])
        names = [slide_id] if slide_id in names else names
        try:
            if not names:
                raise InputError(
                    f"{place.name} has no tiles of slide {slide_id}: add them, or take the slide out of "
                    "the cohort table"
                )
            if len(names) > 1:
                raise InputError(
                    f"{place.name} has tiles of {' and of '.join(names[:2])}, and either may be slide "
                    f"{slide_id}: name them as the slide is named"
                )
            found[slide_id] = (
                _of_table(rows[names[0]], place.name, slide_id) if rows else _of_hs2p(files[names[0]], scale, tile_px)
            )
        except InputError as error:
            found[slide_id] = Given(by, NOTHING, problem=str(error))
    if not any(bare_name(slide_id) in index for slide_id in slide_ids):
        others = [*rows, *files]
        asked = slide_ids[0] if len(slide_ids) == 1 else f"any of the {len(slide_ids)} slides"
        raise InputError(
            f"{place.name} has no tiles of {asked}, but of "
            f"{', '.join(others[:3])}{', ...' * (len(others) > 3)}: name theirs with the key 'tiles'"
        )
    return found


def tally(found: dict[str, Given]) -> str:
    """How many tiles can be used, of how many slides: what `open_given` found, in words."""
    whole = [given for given in found.values() if not given.problem]
    return f"{sum(len(given.corners) for given in whole)} of {len(whole)} slides"


def take_tiles(
    slide: Slide,
    given: Given,
    k: int = 200,
    tile_px: int = 512,
    seed: int = 0,
    scales: tuple[int, ...] = (10, 20),
    pixels: bool = False,
    black: str = "padding",
) -> Tiles:
    """The tiles that were chosen elsewhere, or the `k` densest of them, and inside each the finer ones that
    `select_tiles` would draw there. Other arguments, and what it returns: as there; nothing is too empty to be a tile.

    A tile's side is the study's. That of hs2p may differ by what makes two magnifications one (AGREE), for scanners are
    not quite 40x: the slide's warnings say so, and how many tiles jut out of the slide, white beyond it. Raises
    InputError: tiles that cannot be used, that overlap, or that are not of this slide; scanned below a scale; damaged.
    """
    given.check()
    check_black(black)
    if k < 1 or tile_px < 1:
        raise InputError(f"k = {k} and tile_px = {tile_px}: both must be at least 1")
    for scale in scales:
        slide.source(scale, tile_px)  # refuses a scale above the slide's own
    slide.warnings += _fit(slide, given, scales[0], tile_px)
    best = Best(slide, min(k, len(given.corners)), tile_px, seed, 0.0, scales, pixels, black)
    for x, y in given.corners.tolist():
        best.read(x, y)
    return best.tiles(grid=len(given.corners), read=len(given.corners))


def _fit(slide: Slide, given: Given, first: int, tile_px: int) -> list[str]:
    """What is to be known of tiles on a slide; InputError where they are not its own, or not the study's."""
    name, (width, height) = slide.path.name, slide.dimensions
    side = tile_size_level0(slide.magnification, first, tile_px)
    theirs, notes = given.side or side, []
    if max(given.size) and given.size != slide.dimensions:
        raise InputError(
            f"slide {name} has {width} x {height} px, and its tiles are of one of {given.size[0]} x "
            f"{given.size[1]} px: choose them again on this file"
        )
    if max(theirs / side, side / theirs) > AGREE:
        raise InputError(
            f"slide {name}: its tiles have {theirs:g} level-0 px, and one of {tile_px} px at {first}x has "
            f"{side} here: set tile_px and scales to what is there, or correct its mpp"
        )
    if max(theirs / side, side / theirs) > 1 + NEAR:
        notes.append(f"slide {name}: its tiles have {theirs:g} level-0 px; {side} from their corners on are read")
    count, over = len(given.corners), overlapping(given.corners, theirs)
    beyond = (given.corners >= slide.dimensions).any(1) | (given.corners <= -side).any(1)
    if beyond.any():
        x, y = given.corners[beyond][0].tolist()
        raise InputError(
            f"slide {name}: {beyond.sum()} of {count} tiles lie outside of its {width} x {height} "
            f"px, the first at ({x}, {y}): corners must be in level-0 px of this slide"
        )
    if 2 * over > count:  # a few do where two outlines meet
        raise InputError(
            f"slide {name}: {over} of {count} tiles overlap another, for one of {tile_px} px at {first}x has {side} "
            "level-0 px: such tiles are not taken; set tile_px and scales to what is there"
        )
    out = ((given.corners + side > slide.dimensions) | (given.corners < 0)).any(1)
    if out.any():
        notes.append(f"slide {name}: {out.sum()} of {count} tiles at {first}x jut out of it; they are white there")
    return notes


# ------------------------------------------------------------------------------------------------ a table


def _rows(table: Path) -> dict[str, pd.DataFrame]:
    """The rows of a table by their slide_id; columns x and y, as text."""
    found = read_table(table)
    frame = found.frame.rename(columns={name: name.lower() for name in found.frame if name.lower() in COLUMNS})
    need_columns(frame, COLUMNS, found.header, table.name)
    if twice := [name for name in ("x", "y") if list(frame.columns).count(name) > 1]:
        raise InputError(f"{table.name} has two columns for {twice[0]}: remove one")
    if found.bad:
        raise InputError(f"{table.name}: {next(iter(found.bad.values()))}")
    if frame.empty:
        raise InputError(f"{table.name} has no rows: one row a tile is needed")
    if (frame.slide_id == "").any():
        raise InputError(
            f"row {frame.index[frame.slide_id == ''][0]} of {table.name} has no slide_id: fill it in, or remove the row"
        )
    return {str(name): rows[["x", "y"]] for name, rows in frame.groupby("slide_id")}


def _of_table(rows: pd.DataFrame, table: str, slide_id: str) -> Given:
    """The tiles of a slide, of its rows in a table."""
    for name in ("x", "y"):
        whole = rows[name].str.fullmatch(r"-?\d+(\.0?)?")  # not 1.000, which is a thousand where people write it so
        numbers = pd.to_numeric(rows[name].where(whole), errors="coerce")
        odd = ~(numbers.abs() < LARGEST)  # NaN too
        if odd.any():
            raise InputError(
                f"row {rows.index[odd][0]} of {table}: {name} is '{rows[name][odd].iloc[0][:40]}', and "
                "must be a whole number of level-0 px"
            )
        rows = rows.assign(**{name: numbers})
    return Given("table", _sorted(rows.to_numpy().astype(np.int64), table, slide_id))


def _sorted(corners: np.ndarray, where: str, slide_id: str) -> np.ndarray:
    """The corners in raster order (y, then x); InputError for one that is there twice."""
    corners = corners[np.lexsort((corners[:, 0], corners[:, 1]))]
    twice = (corners[1:] == corners[:-1]).all(1)
    if twice.any():
        x, y = corners[1:][twice][0].tolist()
        raise InputError(f"{where} has the tile of slide {slide_id} at ({x}, {y}) more than once: keep one row of it")
    return corners


# ------------------------------------------------------------------------------------------------ hs2p


def _files(folder: Path) -> dict[str, Path]:
    """The files of coordinates by the name of the slide."""
    inner = folder / "tiles" if (folder / "tiles").is_dir() else folder
    found = {path.name.removesuffix(COORDINATES): path for path in sorted(inner.glob(f"[!.]*{COORDINATES}"))}
    if not found:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:4]) or "nothing"
        raise InputError(
            f"{folder.name} has no tiles of hs2p (tiles/<slide>{COORDINATES}), but {there}: check the key 'tiles'"
        )
    return found


def _of_hs2p(path: Path, scale: int, tile_px: int) -> Given:
    """The tiles of a slide, of its files."""
    name = path.name.removesuffix(COORDINATES)
    about = path.with_name(name + ABOUT)
    if not about.exists():
        raise InputError(f"{path.name} has no {about.name} beside it, which says how large its tiles are: copy it too")
    try:
        tiles = read_hs2p(path, about)
    except DAMAGED as error:
        raise InputError(
            f"{path.name}, or {about.name}, is damaged or incomplete ({one_line(error)[:80]}): copy them "
            "again, or make them again"
        ) from error
    check_tiling(tiles, scale, tile_px, path.name)
    if not len(tiles.coords):
        raise InputError(f"{path.name} has no tiles: look at the slide's tissue, or take it out of the cohort table")
    return Given("hs2p", _sorted(tiles.coords, path.name, name), tiles.side, tiles.size)
