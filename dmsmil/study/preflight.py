"""What would go wrong with a study, said in seconds before hours are spent."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from dmsmil.cohorts.checks import spelling_questions
from dmsmil.cohorts.folds import WAYS, choose_folds
from dmsmil.cohorts.gdc import COHORTS as TCGA
from dmsmil.cohorts.gdc import connect, query_cohort
from dmsmil.cohorts.made.demo import plan_cohort
from dmsmil.cohorts.made.planted import plan_planted
from dmsmil.cohorts.made.pyramid import MAGNIFICATION
from dmsmil.cohorts.made.three import plan_three
from dmsmil.cohorts.manifest import locate, read_manifest
from dmsmil.cohorts.server import amount
from dmsmil.cohorts.splits import read_splits
from dmsmil.cohorts.table import load_cohort, with_files
from dmsmil.features.bags import fits_in_memory
from dmsmil.features.encoders import check_encoder
from dmsmil.features.faults import unclear, unopened
from dmsmil.features.formats import open_source
from dmsmil.features.rehearsal import DRAWN, two_classes
from dmsmil.features.sources import Source
from dmsmil.features.stages import fetching
from dmsmil.jobs.files import InputError, one_line
from dmsmil.jobs.limits import free_memory
from dmsmil.jobs.text import many
from dmsmil.slides.given import BY, chosen_by, open_given, tally
from dmsmil.slides.magnification import tile_size_level0
from dmsmil.slides.reader import open_slide
from dmsmil.slides.store import Store
from dmsmil.slides.tiles import tile_grid
from dmsmil.study.forecast import encoding_in_words, forecast, in_words, step_in_words
from dmsmil.study.opening import PAINTED, tile_source, with_features
from dmsmil.study.place import check_writable, folder_of, resolve, shown
from dmsmil.study.trial import CHANNELS, Finding, attempt, counted, settings
from dmsmil.training.metrics import scored

THUMBNAILS = 8  # slides that 00_cohort draws, and keeps
FEW = 20  # patients of a class: with fewer, an interval of AUC is wider than most differences that are sought


def findings(params: dict) -> Iterator[Finding]:
    """Yield (all well, line) for each thing looked at: the folder, the cohort and its slides, the features, the
    settings, the disk and the memory."""
    home = folder_of(params["study"], params["outputs"])
    yield attempt("outputs", lambda: _outputs(home))
    cohort, to_fetch = None, 0.0
    painted = params["cohort"] in PAINTED
    for good, line, cohort in _painted(params) if painted else _cohort(params):
        yield good, line
    if cohort is None:
        return
    if not painted:
        here = with_files(cohort)
        if len(here):
            yield from _slides(here, params)
        away = cohort.loc[cohort.index.difference(here.index)] if not params["features"] else cohort[:0]
        encoded = away.slide_id.isin(with_features(home, _store(params)))
        if encoded.any():
            yield True, f"slides   {many(encoded.sum(), 'slide')} without a file, of which features are here"
        away = away[~encoded]
        to_fetch = _size_to_fetch(away, params)
        if len(away):
            yield (
                True,
                (
                    f"fetch    {many(len(away), 'slide')}, {amount(away['size'].sum())}; "
                    + ("they stay" if params["keep_slides"] else "each is deleted when it is encoded")
                ),
            )
    count, found = counted("folds", lambda: _folds(cohort, params), 0)
    yield found
    for split in params["audit_splits"]:
        yield attempt(
            "audit", lambda: f"{many(read_splits(resolve(split)).fold.nunique(), 'fold')} of {Path(split).name}"
        )
    classes = sorted(cohort.label.unique())
    yield attempt("class", lambda: scored(classes, params["positive"]))
    if params["tiles"]:
        yield from _given(params, cohort)
    made = "features" if params["features"] else "encoder"
    elsewhere: list[Source] = []
    channels, found = counted(made, lambda: _features(params, cohort, elsewhere), CHANNELS)
    yield found
    for source in elsewhere:
        yield from _without_features(source, params, cohort)
    trials = list(settings(params, channels, tuple(classes)))
    yield from trials
    if all(good for good, _ in [found, *trials]):
        if not params["features"]:
            yield attempt("encode", lambda: encoding_in_words(params, len(cohort)))
        yield attempt("step", lambda: step_in_words(params, channels, classes))
        yield attempt("time", lambda: in_words(forecast(params, len(cohort), channels, classes, count), params))
    yield from _room(params, len(cohort), channels, to_fetch, home)


def _outputs(home: Path) -> str:
    check_writable(home)
    return f"{shown(home)}: everything goes there"


# ------------------------------------------------------------------------------------------- cohort and slides


def _painted(params: dict) -> Iterator[tuple[bool, str, pd.DataFrame]]:
    """A painted cohort as it will be made: its slides, all alike, must have the tiles that are asked for."""
    name, patients, scales = params["cohort"], params["demo_patients"], params["scales"]
    if name == "demo":
        cohort, words = plan_cohort(patients, params["seed"]), f"the embedded demo, {patients} patients"
    elif name == "three":
        cohort, words = plan_three(patients, params["seed"]), f"three classes, {patients} patients"
    else:
        cohort = plan_planted(patients, params["witness_rate"], params["seed"])
        words = f"{name}, {patients} patients, signal in {params['witness_rate']:.0%} of the tissue"
    yield True, f"cohort   {words} (made when the study runs)", cohort
    side = tile_size_level0(MAGNIFICATION, scales[0], params["tile_px"])
    if scales[-1] > MAGNIFICATION:
        yield (
            False,
            (
                f"slides   the cohort {name} is made at {MAGNIFICATION}x and has no {scales[-1]}x tiles: lower "
                "the scales"
            ),
            cohort,
        )
    if side > params["demo_side"]:
        yield (
            False,
            (
                f"slides   a slide of {params['demo_side']} px is smaller than one {scales[0]}x tile of {side} "
                "px: raise demo_side or lower tile_px"
            ),
            cohort,
        )


def _cohort(params: dict) -> Iterator[tuple[bool, str, pd.DataFrame | None]]:
    notes: list[str] = []
    try:
        if params["cohort"] in TCGA:
            cohort, failures = _tcga(params), []
        else:
            folder = resolve(params["slides"]) if params["slides"] else ""
            encoded = with_features(folder_of(params["study"], params["outputs"]), _store(params))
            cohort, failures = load_cohort(
                resolve(params["cohort"]), folder, not params["features"], True, notes.append, encoded=encoded
            )
    except InputError as error:
        yield False, f"cohort   {one_line(error)}", None
        return
    questions = spelling_questions(cohort)
    for note in notes:
        if not note.endswith(tuple(questions)):  # which are problems here
            yield True, f"cohort   note: {note}", cohort
    for row in failures:
        yield False, f"slide    {row['unit']}: {row['reason']}", cohort
    for question in questions:
        yield False, f"cohort   {question}", cohort
    counts = cohort.groupby("label").agg(patients=("patient_id", "nunique"), slides=("slide_id", "size"))
    words = "; ".join(
        f"{label} {many(row.patients, 'patient')}, {many(row.slides, 'slide')}" for label, row in counts.iterrows()
    )
    yield True, f"cohort   {words}", cohort


def _tcga(params: dict) -> pd.DataFrame:
    """The cohort as the study froze it, or as the GDC would give it now."""
    home = folder_of(params["study"], params["outputs"])
    if (home / "manifest.csv").exists():
        manifest = read_manifest(home, params["cohort"])[0]
    else:
        remote = connect(params["gdc_server"], params["gdc_token"], attempts=2, pause=1.0)
        manifest = query_cohort(params["cohort"], remote, lambda line: None)[0]
    cohort = locate(manifest, resolve(params["slides"]) if params["slides"] else home / "slides")
    return cohort.assign(mpp=0.0, size=cohort["size"].astype(int))


def _size_to_fetch(away: pd.DataFrame, params: dict) -> float:
    """Bytes that slides will take on the disk: all of them, or the largest that are there at once, and those drawn."""
    if away.empty:
        return 0.0
    at_once = len(away) if params["keep_slides"] else fetching(params["workers"]) + THUMBNAILS
    return float(away["size"].nlargest(at_once).sum())


def _slides(cohort: pd.DataFrame, params: dict) -> Iterator[Finding]:
    """Open every slide: its format, its magnification, its warnings, and whether it has the tiles asked for."""

    def look(row) -> list[Finding]:
        try:
            with open_slide(row.path, row.mpp, row.slide_id, params["mpp"]) as slide:
                tile_grid(slide, tuple(params["scales"]), params["tile_px"])
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
    scales = " and ".join(f"{scale}x" for scale in params["scales"])
    yield True, f"slides   {len(rows) - bad} of {many(len(rows), 'file')} open, and have {scales} tiles"


def _given(params: dict, cohort: pd.DataFrame) -> Iterator[Finding]:
    """The tiles that were chosen elsewhere, and what is wrong with those of a slide, as far as a look at them says."""
    try:
        place = tile_source(params["tiles"], params["features"])
        found = open_given(place, cohort.slide_id, params["scales"][0], params["tile_px"])
    except InputError as error:
        yield False, f"tiles    {one_line(error)}"
        return
    for slide_id, given in found.items():
        if given.problem:
            yield False, f"slide    {slide_id}: {given.problem}"
    yield True, f"tiles    chosen elsewhere, {BY[chosen_by(place)]}: {tally(found)}"


def _folds(cohort: pd.DataFrame, params: dict) -> tuple[int, str]:
    """(how many folds, what to know of them); InputError when one cannot be trained, selected or tested on as the
    params ask."""
    split = params["split"] if params["split"] in WAYS else str(resolve(params["split"]))
    table, note = choose_folds(cohort, split, params["folds"], params["seed"], params["val_share"], params["repeats"])
    folds = [name for name in table if name.startswith("fold_")]
    if params["select"] != "last":
        for name in folds:
            _selectable(table, name, params["select"])
    if params["slide"] and not (table.loc[table.slide_id == params["slide"], folds] == "test").any(axis=None):
        near = difflib.get_close_matches(params["slide"], table.slide_id, 1, cutoff=0)[0]
        raise InputError(f"slide is '{params['slide']}', which no fold tests: name one that is, such as {near}")
    few = [label for label, patients in cohort.groupby("label").patient_id.nunique().items() if patients < FEW]
    note += f" Fewer than {FEW} patients in {', '.join(few)}: no number will mean much." if few else ""
    return len(folds), note


def _selectable(table: pd.DataFrame, fold: str, select: str) -> None:
    """InputError unless a run of a fold can be selected on its validation part, and trained on what is left."""
    classes = {part: table.label[table[fold] == part].nunique() for part in ("train", "val")}
    problem = ""
    if not classes["val"]:
        problem = "has no validation part"
    elif select == "val_auc" and classes["val"] < 2:
        problem = "has one class in its validation part, where AUC is not defined"
    elif classes["train"] < 2:
        problem = "trains on one class beside its validation part"
    if problem:
        raise InputError(f"{fold} {problem}, and select is {select}: use select: last, or another split or val_share")


# ------------------------------------------------------------------------------------------ features and room


def _features(params: dict, cohort: pd.DataFrame, elsewhere: list[Source]) -> tuple[int, str]:
    """(channels, what they are) of a study's features; `elsewhere` gets the source of those that are not made here."""
    if not params["features"]:
        weights = str(resolve(params["encoder_weights"])) if params["encoder_weights"] else ""
        channels = check_encoder(params["encoder"], weights, params["encoder_px"])
        return channels, f"{params['encoder']}: its weights are within reach, {channels} numbers a tile"
    if params["features"] == DRAWN:
        two_classes(cohort)
        return 2048, "drawn at random: a rehearsal, whose results say nothing about tissue"
    if params["cohort"] in PAINTED:
        raise InputError("a painted cohort makes its own features: leave the key 'features' empty")
    found = open_source(_store(params), resolve(params["features"]), cohort, params["mpp"])
    elsewhere.append(found)
    return found.dim, f"{found.kind} features, {found.dim} numbers a tile, not made here"


def _without_features(source: Source, params: dict, cohort: pd.DataFrame) -> Iterator[Finding]:
    """The slides whose features, made elsewhere, are not there at every scale, or are there more than once."""
    whole = 0
    for slide_id in cohort.slide_id:
        files = source.of(slide_id)
        problem = unclear(slide_id, files) or unopened(files)
        whole += not problem
        if problem:
            yield False, f"slide    {problem}"
    scales = " and ".join(f"{scale}x" for scale in params["scales"])
    yield True, f"features {whole} of {many(len(cohort), 'slide')} have them at {scales}"


def _store(params: dict) -> Store:
    """Where the tiles and features of the study are or will be."""
    home = folder_of(params["study"], params["outputs"])
    return Store(home, params["tile_px"], tuple(params["scales"]), params["encoder"])


def _room(params: dict, slides: int, channels: int, to_fetch: float, home: Path) -> Iterator[Finding]:
    """Disk for the slides, their features and the one file that workers share of these, memory for the bags."""
    features = slides * params["k"] * len(params["scales"]) * channels * 4
    painted = slides * params["demo_side"] ** 2 * 0.25 if params["cohort"] in PAINTED else 0
    there = next(place for place in (home, *home.parents) if place.exists())
    needed, free = features * 2.2 + painted + to_fetch + 2e8, shutil.disk_usage(there).free
    yield free > needed, f"disk     about {amount(needed)} needed, {amount(free)} free"
    yield (
        True,
        (
            f"memory   {amount(features)} of features, {amount(free_memory())} free: "
            + ("held in memory" if fits_in_memory(features) else "memory-mapped from the disk, slower")
        ),
    )
