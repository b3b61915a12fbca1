"""What the paper says of its score maps (Fig. 6 and 7), as numbers: the score against nuclei, and between classes.

All intervals draw patients: the tiles of a patient are one piece of evidence, however many they are.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import getsource
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from dmsmil.cohorts.table import with_files
from dmsmil.interpret import nuclei as segmentation
from dmsmil.interpret.faithfulness import against_truth
from dmsmil.jobs.failures import failure_row, write_failures
from dmsmil.jobs.files import InputError, fingerprint, write_csv
from dmsmil.jobs.parallel import check_shared, progress, run_units
from dmsmil.slides import density
from dmsmil.slides.reader import open_slide
from dmsmil.slides.store import Store
from dmsmil.training.metrics import mean_interval

WHAT = {"area_um2": "nuclear area", "density_mm2": "nuclear density", "lymphocyte_share": "lymphocyte-like share"}
COLUMNS = ["slide_id", "scale", "x", "y", "nuclei", *WHAT]
LEAST = 8  # tiles with a value that a slide must have for a rank correlation


def cohort_nuclei(
    store: Store,
    cohort: pd.DataFrame,
    mpp: float = 0.0,
    workers: int = 0,
    scheduler: str = "",
    report: Callable[[str], None] = print,
    scale: int = 0,
) -> pd.DataFrame:
    """Nuclei in every tile of a scale of the slides of a cohort, kept in the study's folder nuclei/.

    Columns: slide_id, scale, x, y (level-0 px), nuclei, area_um2, density_mm2, lymphocyte_share (`nuclei.tile_nuclei`).
    mpp: of slides that do not say, in the file or in their row; scale: the one that is scored (0: the finest). A slide
    is segmented once; a slide that cannot be is a row of failures.csv; one whose file is not on the disk is passed
    over. Raises InputError when no slide could be segmented.
    """
    check_shared(store.home, scheduler)
    scale = scale or store.scales[-1]
    units = {
        row.slide_id: (store, row.slide_id, row.path, (float(row.mpp), float(mpp)), scale)
        for row in with_files(cohort).itertuples()
    }
    rows = []
    missing = {name: args for name, args in units.items() if _read(store, name, *args[3:]) is None}
    done = run_units(_segment_slide, missing, workers, scheduler=scheduler)
    for number, (name, _, error) in enumerate(progress(done, len(missing), "slides"), 1):
        if error is not None:
            rows.append(failure_row(name, "nuclei", error))
        report(f"[{number}/{len(missing)}] {name}  " + ("nuclei segmented" if error is None else rows[-1]["reason"]))
    write_failures(store.home, "nuclei", rows)
    parts = [table for name, args in units.items() if (table := _read(store, name, *args[3:])) is not None]
    if units and not parts:
        raise InputError("nuclei could be segmented in no slide: see failures.csv")
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)


def _path(store: Store, slide_id: str, scale: int) -> Path:
    return store.home / "nuclei" / f"{scale}x_{store.tile_px}px" / f"{slide_id}.csv"


def _made_by(coords: np.ndarray, tile_px: int, mpps: tuple[float, float]) -> str:
    """What decides a slide's table: where its tiles lie, how large they are (mpp of its row and of the study), and the
    code of the segmentation and of what tissue is."""
    return fingerprint([coords.tolist(), tile_px, mpps, getsource(segmentation), getsource(density)])


def _read(store: Store, slide_id: str, mpps: tuple[float, float], scale: int) -> pd.DataFrame | None:
    """The table of a slide, if it is there, whole, and of these tiles."""
    try:
        coords = store.read_tiles(slide_id).coords[scale]
        table = pd.read_csv(_path(store, slide_id, scale), dtype={"slide_id": str, "made_by": str})
        whole = len(table) == len(coords) and (table.made_by == _made_by(coords, store.tile_px, mpps)).all()
    except (OSError, ValueError, AttributeError):  # absent; no tiles, or no CSV; a CSV of something else
        return None
    return table.drop(columns="made_by") if whole else None


def _segment_slide(store: Store, slide_id: str, path: str, mpps: tuple[float, float], scale: int) -> None:
    coords = store.read_tiles(slide_id).coords[scale]
    mpp, fallback_mpp = mpps
    with open_slide(path, mpp, slide_id, fallback_mpp) as slide:
        table = segmentation.tile_nuclei(slide, coords, scale, store.tile_px)
    table.insert(0, "slide_id", slide_id)
    table.insert(1, "scale", scale)
    write_csv(table.assign(made_by=_made_by(coords, store.tile_px, mpps)), _path(store, slide_id, scale), digits=6)


def scored_nuclei(scores: pd.DataFrame, nuclei: pd.DataFrame) -> pd.DataFrame:
    """The tiles of `explain.tile_scores` that have a row in `cohort_nuclei`, with its columns.

    By where they lie: a bag may hold fewer tiles than the store, and their rows then differ.
    """
    return scores.merge(nuclei, on=["slide_id", "scale", "x", "y"], how="inner", validate="one_to_one")


def associations(table: pd.DataFrame) -> pd.DataFrame:
    """Does the score follow the nuclei? Spearman's rank correlation inside each slide, its mean over patients.

    table: `scored_nuclei`. One row a measurement and class, and one for 'all': what, label, rho, low, high (95 %,
    patients drawn again; NaN for one patient), slides. Inside a slide, so that neither stain nor class can make the
    correlation; slides with fewer than LEAST tiles that have the measurement, or a constant map, have none.
    """
    rows = []
    for what in WHAT:
        by_slide = []
        for (slide_id, patient, label), part in table.groupby(["slide_id", "patient_id", "label"]):
            known = part[part[what].notna()]
            if len(known) >= LEAST and known[what].nunique() > 1 and known.normalised.nunique() > 1:
                by_slide.append((patient, label, spearmanr(known[what], known.normalised).statistic))
        found = pd.DataFrame(by_slide, columns=["patient", "label", "rho"])
        for label in [*sorted(table.label.unique()), "all"]:
            part = found if label == "all" else found[found.label == label]
            rho, low, high = mean_interval(part.rho, part.patient)
            if part.patient.nunique() < 2:
                low = high = np.nan
            rows.append({"what": what, "label": label, "rho": rho, "low": low, "high": high, "slides": len(part)})
    return pd.DataFrame(rows)


def class_scores(scores: pd.DataFrame, positive: str) -> pd.DataFrame:
    """Do the tiles of one class score higher? The mean normalised score of a slide, `positive` less the other class.

    One row a scale: scale, positive, others (means over patients), difference, low, high (95 %, patients drawn again
    within their class; NaN where a class has one patient). Of more than two classes no row: the paper compares two.
    """
    if scores.label.nunique() > 2:
        return pd.DataFrame(columns=["scale", "positive", "others", "difference", "low", "high"])
    by_slide = scores.groupby(["scale", "patient_id", "label", "slide_id"], as_index=False).normalised.mean()
    means = by_slide.groupby(["scale", "patient_id", "label"], as_index=False).normalised.mean()
    rows = []
    for scale, part in means.groupby("scale"):
        sides = [part.normalised[part.label == positive].to_numpy(), part.normalised[part.label != positive].to_numpy()]
        rng = np.random.default_rng(0)
        drawn = [rng.choice(side, (2000, len(side))).mean(1) for side in sides]
        low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975]) if min(map(len, sides)) > 1 else (np.nan, np.nan)
        rows.append(
            {
                "scale": scale,
                "positive": sides[0].mean(),
                "others": sides[1].mean(),
                "difference": sides[0].mean() - sides[1].mean(),
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(rows)


def claims_table(
    found: pd.DataFrame, between: pd.DataFrame, name: str, positive: str, quality: pd.Series | None, higher: bool
) -> pd.DataFrame:
    """The paper's claims about its maps: claim, where, verdict ('held', 'not shown', 'not held', 'not run'), number.

    found: `associations`; between: `class_scores`; name: the method; quality: its row of `faithfulness.measure`;
    higher: whether the paper has the positive class score higher. 'held' needs an interval that excludes 0 on the
    claimed side, 'not held' one that excludes it on the other. A claim that no slide can decide has no row; one about
    two classes is 'not run' where there are more.
    """
    rows = []
    if between.empty:
        rows.append(
            (
                "Slides of one class score lower than those of the other",
                "Fig. 6 and 7",
                "not run",
                "it needs two classes",
            )
        )
    for row in between.to_dict("records"):
        sign = 1 if higher else -1
        rows.append(
            (
                f"{positive} slides score {'higher' if higher else 'lower'} at {row['scale']}x",
                "Fig. 6 and 7",
                _verdict(*_turned(sign, row["low"], row["high"])),
                f"mean normalised score {row['positive']:.3f} against {row['others']:.3f}: "
                f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
            )
        )
    for what, sign, claim in (
        ("area_um2", 1, "High-scoring tiles have larger nuclei"),
        ("lymphocyte_share", -1, "Low-scoring tiles hold the lymphocytes"),
    ):
        row = found[(found.what == what) & (found.label == "all")].iloc[0]
        if not row.slides:
            continue
        rows.append(
            (
                claim,
                "Fig. 6 and 7",
                _verdict(*_turned(sign, row.low, row.high)),
                f"rank correlation of score and {WHAT[what]} inside a slide {row.rho:+.2f} "
                f"[{row.low:+.2f}, {row.high:+.2f}]",
            )
        )
    if quality is not None:
        word = {"faithful": "held", "misleading": "not held"}.get(quality["map"], "not shown")
        truth = ", ".join(f"{auc:.2f} at {scale}" for scale, auc in against_truth(quality.to_dict()).items())
        rows.append(
            (
                f"The score of {name} shows what decides",
                "Fig. 6 and 7",
                word,
                f"map {quality['map']}; area between the removal curves {quality['replaced']:+.3f} "
                f"[{quality['replaced_low']:+.3f}, {quality['replaced_high']:+.3f}]"
                + (f"; AUC against the truth {truth}" if truth else ""),
            )
        )
    return pd.DataFrame(rows, columns=["claim", "where", "verdict", "number"])


def _turned(sign: int, low: float, high: float) -> tuple[float, float]:
    """An interval of a value, of the value times `sign`."""
    return (low, high) if sign > 0 else (-high, -low)


def _verdict(low: float, high: float) -> str:
    """The word for a value that the claim says is above 0, by its interval; NaN (nothing to test) shows nothing."""
    return "held" if low > 0 else "not held" if high < 0 else "not shown"
