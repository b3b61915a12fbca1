"""What would go wrong with a study, said in seconds before hours are spent."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import psutil

from dmsmil.analysis.ablation import choose_variants
from dmsmil.analysis.paper import COHORTS, printed_results
from dmsmil.analysis.sweep import check_lams
from dmsmil.cohorts.checks import spelling_questions
from dmsmil.cohorts.folds import WAYS, choose_folds
from dmsmil.cohorts.gdc import COHORTS as TCGA
from dmsmil.cohorts.gdc import connect, query_cohort
from dmsmil.cohorts.manifest import locate, read_manifest
from dmsmil.cohorts.server import amount
from dmsmil.cohorts.splits import read_splits
from dmsmil.cohorts.table import load_cohort, with_files
from dmsmil.features.bags import fits_in_memory
from dmsmil.features.encoders import check_encoder
from dmsmil.features.formats import open_source
from dmsmil.features.rehearsal import DRAWN
from dmsmil.jobs.files import InputError, one_line
from dmsmil.jobs.parallel import is_remote, pick_device
from dmsmil.models import create, method
from dmsmil.slides.reader import open_slide
from dmsmil.slides.store import Store
from dmsmil.training.metrics import positive_class

Finding = tuple[bool, str]  # (all well, one line)
FEW = 20  # patients of a class: with fewer, an interval of AUC is wider than most differences that are sought


def findings(params: dict, resolve: Callable[[str], Path]) -> Iterator[Finding]:
    """Yield (all well, line) for each thing looked at, from the cohort and its slides to the disk and the memory."""
    if params["cohort"] == "demo":
        classes, slides, cohort = None, round(params["demo_patients"] * 1.3), None
        to_fetch = 0.0
        yield True, f"cohort   the embedded demo, {params['demo_patients']} patients (made when the study runs)"
        if params["split"] not in WAYS:
            yield _attempt("split", lambda: f"{read_splits(resolve(params['split'])).fold.nunique()} folds of "
                                            f"{Path(params['split']).name}")
    else:
        cohort = None
        for good, line, cohort in _cohort(params, resolve):
            yield good, line
        if cohort is None:
            return
        classes, slides = sorted(cohort.label.unique()), len(cohort)
        here = with_files(cohort)
        if len(here):
            yield from _slides(here, params["mpp"])
        away = cohort.loc[cohort.index.difference(here.index)] if not params["features"] else cohort[:0]
        to_fetch = _size_to_fetch(away, params["keep_slides"])
        if len(away):
            yield True, (f"fetch    {len(away)} slides, {amount(away['size'].sum())}; "
                         + ("they stay" if params["keep_slides"] else "each is deleted when it is encoded"))
        yield _attempt("folds", lambda: _folds(cohort, params, resolve))
    dim = 2048
    try:
        if params["features"]:
            dim, line = _features(params, cohort, resolve)
            yield True, f"features {line}"
        weights = str(resolve(params["encoder_weights"])) if params["encoder_weights"] else ""
        if not params["features"]:
            dim = check_encoder(params["encoder"], weights, params["encoder_px"])
            yield True, f"encoder  {params['encoder']}: its weights are within reach, {dim} numbers a tile"
    except InputError as error:
        yield False, f"{'features' if params['features'] else 'encoder '} {one_line(error)}"
    yield _attempt("method", lambda: _method(params, dim, classes))
    yield _attempt("ablation", lambda: _ablation(params))
    yield _attempt("paper", lambda: _paper(params["paper"]))
    yield _attempt("units", lambda: "in a Dask cluster" if is_remote(params["scheduler"]) else "on this machine")
    yield _attempt("device", lambda: str(pick_device(params["device"])))
    yield from _room(params, slides, dim, to_fetch, resolve)


def _attempt(what: str, call: Callable[[], str]) -> Finding:
    try:
        return True, f"{what:<9}{call()}"
    except InputError as error:
        return False, f"{what:<9}{one_line(error)}"


def _cohort(params: dict, resolve) -> Iterator[tuple[bool, str, pd.DataFrame | None]]:
    notes: list[str] = []
    try:
        if params["cohort"] in TCGA:
            cohort, failures = _tcga(params, resolve), []
        else:
            folder = resolve(params["slides"]) if params["slides"] else ""
            cohort, failures = load_cohort(resolve(params["cohort"]), folder, not params["features"], True,
                                           notes.append)
    except InputError as error:
        yield False, f"cohort   {one_line(error)}", None
        return
    for note in notes:
        yield True, f"cohort   note: {note}", cohort
    for row in failures:
        yield False, f"slide    {row['unit']}: {row['reason']}", cohort
    for question in spelling_questions(cohort):
        yield False, f"cohort   {question}", cohort
    counts = cohort.groupby("label").agg(patients=("patient_id", "nunique"), slides=("slide_id", "size"))
    words = "; ".join(f"{label} {row.patients} patients, {row.slides} slides" for label, row in counts.iterrows())
    yield True, f"cohort   {words}", cohort


def _tcga(params: dict, resolve) -> pd.DataFrame:
    """The cohort as the study froze it, or as the GDC would give it now."""
    home = resolve(params["outputs"]) / params["study"]
    if (home / "manifest.csv").exists():
        manifest = read_manifest(home, params["cohort"])[0]
    else:
        remote = connect(params["gdc_server"], params["gdc_token"], attempts=2, pause=1.0)
        manifest = query_cohort(params["cohort"], remote, lambda line: None)[0]
    cohort = locate(manifest, resolve(params["slides"]) if params["slides"] else home / "slides")
    return cohort.assign(mpp=0.0, size=cohort["size"].astype(int))


def _size_to_fetch(away: pd.DataFrame, keep: bool) -> float:
    """Bytes that slides will take on the disk: all of them, or the largest eight at once (and those drawn)."""
    return 0.0 if away.empty else float(away["size"].sum() if keep else away["size"].nlargest(16).sum())


def _features(params: dict, cohort: pd.DataFrame | None, resolve) -> tuple[int, str]:
    """(channels, what they are) of features that are not made here."""
    if params["features"] == DRAWN:
        return 2048, "drawn at random: a rehearsal, whose results say nothing about tissue"
    if cohort is None:
        raise InputError("the embedded cohort makes its own features: leave the key 'features' empty")
    store = Store(resolve(params["outputs"]), params["tile_px"], tuple(params["scales"]), params["encoder"])
    found = open_source(store, resolve(params["features"]), cohort.slide_id)
    return found.dim, f"{found.kind} features, {found.dim} numbers a tile, not made here"


def _slides(cohort: pd.DataFrame, mpp: float) -> Iterator[Finding]:
    """Open every slide: its format, its magnification, its warnings."""
    def look(row) -> list[str]:
        try:
            with open_slide(row.path, row.mpp or mpp) as slide:
                return [(True, text) for text in slide.warnings]
        except InputError as error:
            return [(False, one_line(error))]

    rows = list(cohort.itertuples())
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(look, rows))
    for row, lines in zip(rows, said):
        for good, line in lines:
            yield good, f"slide    {row.slide_id}: {'note: ' if good else ''}{line}"
    bad = sum(not good for lines in said for good, _ in lines)
    yield True, f"slides   {len(rows) - bad} of {len(rows)} open, with a magnification"


def _folds(cohort: pd.DataFrame, params: dict, resolve) -> str:
    split = params["split"] if params["split"] in WAYS else str(resolve(params["split"]))
    note, least = choose_folds(cohort, split, params["folds"], params["seed"], params["val_share"])[1], FEW
    few = [label for label, patients in cohort.groupby("label").patient_id.nunique().items() if patients < least]
    return note + (f" Fewer than {least} patients in {', '.join(few)}: no number will mean much." if few else "")


def _method(params: dict, dim: int, classes: list[str] | None) -> str:
    row, scales = method(params["method"]), tuple(params["scales"])
    chosen = (params["scale"],) if params["scale"] else scales
    if params["scale"] and params["scale"] not in scales:
        raise InputError(f"scale is {params['scale']}, but scales is {list(scales)}")
    create(params["method"], dim, len(classes or [0, 1]), chosen, **params["options"])
    for entry in params["methods"]:
        method(next(iter(entry)) if isinstance(entry, dict) else entry)
    if classes:
        positive_class(classes, params["positive"])
    return (f"{row.title} at {' + '.join(f'{s}x' for s in chosen)}, {len(params['seeds'])} seed(s) a fold; "
            f"{len(params['methods'])} methods compared")


def _ablation(params: dict) -> str:
    variants, lams = choose_variants(params["variants"]), check_lams(params["lams"])
    check_lams(params["collapse_lams"])
    return f"{len(variants)} readings of what the paper leaves open; λ in {', '.join(f'{lam:g}' for lam in lams)}"


def _paper(paper: str) -> str:
    printed_results(paper)
    return f"its printed values for {COHORTS[paper]} stand beside ours" if paper else "none of its cohorts"


def _room(params: dict, slides: int, dim: int, to_fetch: float, resolve) -> Iterator[Finding]:
    """Disk for the slides and their features, memory for the bags."""
    features = slides * params["k"] * len(params["scales"]) * dim * 4
    demo = slides * params["demo_side"] ** 2 * 0.25 if params["cohort"] == "demo" else 0
    folder = resolve(params["outputs"])
    while not folder.exists():
        folder = folder.parent
    needed, free = features * 1.2 + demo + to_fetch + 2e8, shutil.disk_usage(folder).free
    yield free > needed, f"disk     about {amount(needed)} needed, {amount(free)} free"
    yield True, (f"memory   {amount(features)} of features, {amount(psutil.virtual_memory().available)} free: "
                 + ("held in memory" if fits_in_memory(features) else "memory-mapped from the disk, slower"))
