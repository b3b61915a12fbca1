"""All slides of a table from a server: a few at a time, with a line each, and a row for each that cannot be had."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue

import pandas as pd

from dmsmil.cohorts.download import Remote, checked_entry, size_of
from dmsmil.cohorts.ids import plain_name
from dmsmil.cohorts.server import LONGEST_WAIT, Traffic, amount, duration
from dmsmil.jobs.failures import failure_row
from dmsmil.jobs.files import Halt, InputError, one_line
from dmsmil.jobs.parallel import progress
from dmsmil.jobs.text import many

WORKERS = 4  # files at a time: polite to a server that all share
MOST_WORKERS = 8
QUIET = 30.0  # s without a line before one says how far it is; doubled each time, up to LONGEST_WAIT


def downloadable(frame: pd.DataFrame) -> bool:
    """Whether a table says what to download: columns file_id, md5 and size, and a file_id in some row."""
    return {"file_id", "md5", "size"} <= set(frame) and bool((frame.file_id.fillna("") != "").any())


def slide_path(row, folder: str | Path) -> Path:
    """Where the slide of a table's row is or will be: its `path` if something is there, else `folder`/its name.

    row: has slide_id, and maybe file_name and path. The name is file_name, else that of path, else `<slide_id>.svs`.
    Raises InputError when that is not a plain file name.
    """
    given, slide_id = getattr(row, "path", ""), str(row.slide_id)
    if given and os.path.lexists(given):
        return Path(given)
    name = getattr(row, "file_name", "") or Path(given).name
    return Path(folder) / plain_name(name or (slide_id if slide_id.endswith(".svs") else f"{slide_id}.svs"))


def fetch_all(
    remote: Remote,
    entries: pd.DataFrame,
    folder: str | Path,
    workers: int = WORKERS,
    report: Callable[[str], None] = print,
) -> list[dict]:
    """Bring every slide of a table to `slide_path(row, folder)`, `workers` (at most 8) at a time.

    entries: columns slide_id, file_id, md5, size, and maybe file_name and path; rows without file_id are passed over.
    report: gets a line a file, with the rate of all of them together and the time left, and one now and then between.
    Returns a failure row (stage download) for each slide that could not be had; it stops no other. Raises InputError
    when the table cannot be used or the disk has no room for all of it, DiskFull when it is full later. After an
    interruption, Ctrl-C too, the same call continues.
    """
    if not downloadable(entries):
        raise InputError(
            "the cohort table has no columns file_id, md5 and size that say what to download: add them, "
            "or bring the slides"
        )
    entries = entries.astype(object).where(entries.notna(), "")
    units, need, failures, here = {}, {}, [], 0
    for row in entries[entries.file_id != ""].itertuples():
        try:
            path = slide_path(row, folder)
            file_id, size, md5 = checked_entry(path.name, row.file_id, row.size, row.md5)
        except InputError as error:
            failures.append(failure_row(row.slide_id, "download", error))
            report(f"{row.slide_id} failed: {one_line(error)}")
            continue
        if remote.remembers(path, size, md5):
            here += 1
            continue
        units[row.slide_id] = (file_id, path, size, md5)
        need[row.slide_id] = 0 if path.exists() else max(size - size_of(path.with_name(path.name + ".part")), 0)
    _check_room(need, Path(folder))
    if here:
        report(f"{many(here, 'slide')} there already")
    with closing(_fetched(remote, units, need, workers, report)) as results:
        for number, (unit, error, pace) in enumerate(progress(results, len(units), "download"), 1):
            if error is None:
                report(f"[{number}/{len(units)}] {unit}  {amount(units[unit][2])}  {pace}")
            else:
                failures.append(failure_row(unit, "download", error))
                report(f"[{number}/{len(units)}] {unit} failed: {one_line(error)}")
    return failures


def _fetched(remote: Remote, units: dict, need: dict, workers: int, report) -> Iterator[tuple]:
    """(slide, error or None, its pace in words) in the order they finish; on the way, notes and how far it is."""
    traffic, notes, due, quiet = Traffic(), SimpleQueue(), sum(need.values()), QUIET
    started = spoke = time.monotonic()
    with ThreadPoolExecutor(max(1, min(workers, MOST_WORKERS)), "download") as pool:
        flying = {pool.submit(remote.fetch, *args, notes.put, traffic): unit for unit, args in units.items()}
        try:
            while flying:
                done = wait(flying, timeout=0.2, return_when=FIRST_COMPLETED).done
                while not notes.empty():
                    report("  " + notes.get())
                for future in done:
                    unit, error = flying.pop(future), future.exception()
                    if isinstance(error, Halt):
                        raise error
                    due -= need[unit] if error else 0
                    pace = _pace(due, traffic.bytes, time.monotonic() - started)
                    yield unit, error, pace if need[unit] else "was there, checked"
                now = time.monotonic()
                if done:
                    spoke = now
                elif now - spoke >= quiet:
                    report(f"  {amount(traffic.bytes)} of {amount(due)}  {_pace(due, traffic.bytes, now - started)}")
                    spoke, quiet = now, min(2 * quiet, LONGEST_WAIT)
        except BaseException:  # Ctrl-C, a full disk: what has come is kept
            traffic.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _pace(due: int, done: int, seconds: float) -> str:
    """The rate so far, and the time that the rest will take at it."""
    rate = done / max(seconds, 1e-3)
    return f"{amount(rate)}/s" + (f"  {duration((due - done) / rate)} left" if rate and due > done else "")


def _check_room(need: dict[str, int], folder: Path) -> None:
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free, due = shutil.disk_usage(there).free, sum(need.values())
    if due > free:
        raise InputError(
            f"{many(len(need), 'slide')} still to fetch, {amount(due)} in all, and the disk of the slides folder has "
            f"{amount(free)} free: make room, or set keep_slides: false"
        )
