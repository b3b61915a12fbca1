"""A stage over the slides of a cohort: each a unit, what is there is not done again, a broken slide stops no other."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from dmsmil.jobs.failures import failure_row, read_failures, write_failures
from dmsmil.jobs.files import InputError, one_line, sweep
from dmsmil.jobs.parallel import check_shared, progress, run_units
from dmsmil.slides.store import Store


def over_slides(
    store: Store,
    cohort: pd.DataFrame,
    units: dict[str, tuple],
    function: Callable,
    stage: str,
    has: Callable[[str, dict], bool],
    workers: int = 0,
    report: Callable[[str], None] = print,
    scheduler: str = "",
    initializer: Callable | None = None,
    initargs: tuple = (),
) -> pd.DataFrame:
    """Do `function(*units[slide_id])` for each slide that is not done, in processes (see `run_units`).

    The last argument of a unit is the configuration of what it makes; `has(slide_id, config)` says whether that is
    there. The function returns tiles, warnings and seconds. A slide that fails is a row of failures.csv and a line, and
    what was made of it before is not used any more (`Store.failed`).
    Returns one row a slide that has tiles: slide_id, label, tiles, density (mean), magnification, warnings, seconds.
    Raises InputError when no slide could be done.
    """
    check_shared(store.home, scheduler)
    sweep(store.home / "features")
    todo = {name: args for name, args in units.items() if not has(name, args[-1])}
    failures, done = [], {}
    for number, (name, result, error) in enumerate(
        progress(run_units(function, todo, workers, initializer, initargs, scheduler), len(todo), stage), 1
    ):
        if error is not None:
            failures.append(failure_row(name, stage, error))
            report(f"[{number}/{len(todo)}] {name} failed: {one_line(error)}")
        else:
            done[name] = result
            report(
                f"[{number}/{len(todo)}] {name}  {result['tiles']} tiles  {result['seconds']:.1f} s"
                + (f"  note: {result['warnings']}" if result["warnings"] else "")
            )
    failed = {row["unit"] for row in failures}
    write_failures(store.home, stage, failures)
    if stage == "features":
        old = read_failures(store.home)
        without = old[(old.stage == "tiles") & ~old.unit.isin(units.keys() - failed)]
        write_failures(store.home, "tiles", without.to_dict("records"))
    if len(units) > len(todo):
        report(f"{len(units) - len(todo)} of {len(units)} slides were done before")
    rows = [_summary(store, row, done.get(row.slide_id)) for row in cohort.itertuples() if row.slide_id not in failed]
    if not rows:
        raise InputError(f"no slide could be done ({len(failures)} failed, the first: {failures[0]['reason']})")
    return pd.DataFrame(rows)


def _summary(store: Store, row, result: dict | None) -> dict:
    tiles = store.read_tiles(row.slide_id)
    return {
        "slide_id": row.slide_id,
        "label": row.label,
        "tiles": len(tiles.density),
        "density": float(tiles.density.mean()),
        "magnification": tiles.magnification,
        "warnings": store.told(row.slide_id) or (result or {}).get("warnings", ""),
        "seconds": (result or {}).get("seconds", 0.0),
    }
