"""Features that TRIDENT, CLAM, STAMP, LazySlide or slide2vec made become a study's own; and a study's become CLAM's.

TRIDENT's layout is also the store's, so its users' tools read a study's features/ folder as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from dmsmil.features.faults import lone, magnification_of, places_of, unclear, width
from dmsmil.features.foreign import READERS, BrokenSlide, kind_of
from dmsmil.features.lazyslide import is_lazyslide, read_lazyslide
from dmsmil.features.slide2vec import is_slide2vec, read_slide2vec
from dmsmil.features.sources import SlideFiles, Source, content, find_files, find_folders
from dmsmil.jobs.files import InputError, atomic, fingerprint, is_file
from dmsmil.slides.hdf5 import writing
from dmsmil.slides.linking import Part, grid_step, link
from dmsmil.slides.magnification import base_magnification, tile_size_level0
from dmsmil.slides.over import over_slides
from dmsmil.slides.reader import open_slide
from dmsmil.slides.store import Store
from dmsmil.slides.tiles import how_linked

OWN_WORD = ("TRIDENT", "LazySlide", "slide2vec")  # their files say the magnification of the slide
AGREED = 5  # slides that must say so before a whole folder is refused
NOMINAL_MPP = 10 / 20  # micrometres a level-0 pixel of a slide of which nothing is known: a 20x scan


def import_features(
    store: Store,
    cohort: pd.DataFrame,
    source: str | Path,
    k: int = 200,
    seed: int = 0,
    mpp: float = 0.0,
    workers: int = 0,
    report: Callable[[str], None] = print,
    scheduler: str = "",
    agree: Callable[[dict], None] = lambda identity: None,
) -> pd.DataFrame:
    """Read the features of every slide of a cohort at every scale from `source` and keep them in the store.

    source: a TRIDENT job folder; a folder of LazySlide's zarrs; or a path with {scale} in it where each scale has a
    folder (`clam/feats_{scale}x`: 10 and 20 are put in). mpp: micrometres a level-0 pixel of slides that do not say, in
    their row or file.
    Of each slide at most `k` tiles of the first scale are kept and, for each, one linked tile of every other scale: all
    that a bag takes, and a small part of what such folders hold. Tiles that have their linked tiles go first; of too
    many, `choose_rows` takes k. Links are the files' own `parent`, or else found by place (`linking.link`). A slide is
    imported once: again only when a byte of its files, or a setting, has changed. agree: gets what made the features
    (name, dim, made by) before any is imported, and raises where it will not do.

    Returns one row a slide, as `over_slides`; density is NaN, for only folders of this package tell it. Raises
    InputError: none of these formats; tiles, encoder or widths that are not the study's; no slide could be read.
    """
    if k < 1:
        raise InputError(f"k is {k}: a bag needs at least one tile")
    found = open_source(store, source, cohort, mpp)
    made_by = {"name": store.encoder, "dim": found.dim, "made by": found.kind}
    agree(made_by)
    report(f"{found.kind} features in {Path(source).name}: {found.dim} numbers a tile")
    files = {name: found.of(name) for name in cohort.slide_id}
    with ThreadPoolExecutor(8) as pool:  # hashing does not hold Python's lock
        said = dict(zip(files, pool.map(content, files.values())))
    for one, other in _copies(said):
        report(f"slides {one} and {other} have the same features: take one out of the cohort table, it is a copy")
    units = {}
    for row in cohort.itertuples():
        config = {
            "k": k,
            "tile_px": store.tile_px,
            "scales": list(store.scales),
            "seed": seed,
            "mpp": float(row.mpp),
            "fallback_mpp": float(mpp),
            "files": said[row.slide_id],
            "encoder": made_by,
            **how_linked(store.scales),
        }
        here = is_file(row.path)
        if found.kind == "STAMP" or found.kind == "CLAM" and here:  # the slide file tells what theirs do not
            config["bytes"] = Path(row.path).stat().st_size if here else 0
        units[row.slide_id] = store, row.slide_id, row.path, found.kind, files[row.slide_id], config
    return over_slides(store, cohort, units, _import_slide, "features", store.has_features, workers, report, scheduler)


def _copies(said: dict[str, dict]) -> Iterator[tuple[str, str]]:
    """Two slides whose files of features are the same, of what `content` says of each."""
    first: dict[str, str] = {}
    for slide_id, files in said.items():
        features = {role: found for role, found in files.items() if role.startswith("features")}
        if features:
            known = first.setdefault(fingerprint(features), slide_id)
            if known != slide_id:
                yield known, slide_id


def open_source(store: Store, source: str | Path, cohort: pd.DataFrame, mpp: float = 0.0) -> Source:
    """What `source` (see `import_features`, mpp too) holds for the slides of a cohort, after reading one of them;
    InputError when that is nothing that this study can use."""
    folders = find_folders(store, Path(source))
    kinds = {scale: _kind(folder) for scale, folder in folders.items()}
    kind, *others = set(kinds.values())
    if others:
        raise InputError(
            f"the features are {' and '.join(f'{of} at {s}x' for s, of in kinds.items())}: one study takes one kind"
        )
    found = Source(kind, 0, {scale: find_files(kind, folder) for scale, folder in folders.items()})
    files = {name: found.of(name) for name in cohort.slide_id}
    whole = [row for row in cohort.itertuples() if all("features" in roles for roles in files[row.slide_id].values())]
    if not whole:
        here = [f"{next(iter(roles['features']), 'nothing')}, ... at {scale}x" for scale, roles in found.files.items()]
        raise InputError(
            f"no slide of the cohort has {kind} features at every scale in {Path(source).name}, which has "
            f"{' and '.join(here)}: its files must be named as the slides are"
        )
    broken, refused = [], []
    for row in whole:
        try:
            stated, own_mpp = _scan(kind, row.slide_id, row.path, row.mpp, mpp)
            parts = _read(store, row.slide_id, kind, files[row.slide_id], own_mpp or NOMINAL_MPP)
            dim = width(store, row.slide_id, parts)
            magnification_of(store, row.slide_id, parts, stated)
            return Source(kind, dim, found.files)
        except BrokenSlide as error:  # which says nothing of the others
            broken.append(error)
        except InputError as error:
            refused.append(error)
            if len(refused) == AGREED:
                break
    raise [*refused, *broken][0]


def _kind(folder: Path) -> str:
    """Whose features a folder of a scale holds; InputError when nobody's."""
    if is_lazyslide(folder):
        return "LazySlide"
    return "slide2vec" if is_slide2vec(folder) else kind_of(folder)


def export_clam_features(store: Store, cohort: pd.DataFrame, folder: str | Path, scale: int) -> list[str]:
    """Write the features of one scale of a cohort for CLAM into h5_files/, pt_files/ and patches/ of `folder`.

    Returns the slides written, those that have features: CLAM's own table must name these and no others. Raises
    InputError when there is none. Its patch_level is 0, its patch_size the side of a tile in level-0 pixels.
    """
    import torch  # seconds, which only this needs to spend

    store, folder = Store(store.home, store.tile_px, (scale,), store.encoder), Path(folder)
    failed = store.failed()
    written = [name for name in cohort.slide_id if name not in failed and store.features_path(scale, name).exists()]
    if not written:
        raise InputError(f"no slide of the cohort has features by '{store.encoder}' at {scale}x: make them first")
    for name in written:
        found, tiles = store.read_features(name)[scale], store.read_tiles(name)
        about = {
            "patch_size": tile_size_level0(tiles.magnification, scale, store.tile_px),
            "patch_level": 0,
            "downsample": (1.0, 1.0),
            "name": name,
            "save_path": "patches",
        }
        if min(tiles.dimensions) > 0:
            about |= {"downsampled_level_dim": tiles.dimensions, "level_dim": tiles.dimensions}
        with writing(folder / f"h5_files/{name}.h5") as new:
            new.put("features", found.features)
            new.put("coords", found.coords.astype(np.int32))
        with atomic(folder / f"pt_files/{name}.pt") as temporary:
            torch.save(torch.from_numpy(found.features), temporary)
        with writing(folder / f"patches/{name}.h5") as new:
            new.put("coords", found.coords).attrs.update(about)
    return written


# ------------------------------------------------------------------------------------------------ one slide


def _import_slide(store: Store, slide_id: str, path: str, kind: str, files: SlideFiles, config: dict) -> dict:
    """Read, link and keep the features of one slide (in a worker)."""
    started, notes = time.perf_counter(), []
    scanned, mpp = _scan(kind, slide_id, path, config["mpp"], config["fallback_mpp"])
    if kind == "STAMP" and not mpp:
        notes.append(f"its micrometres a pixel are not known: places are in pixels of {NOMINAL_MPP:g} µm")
    parts = _read(store, slide_id, kind, files, mpp or NOMINAL_MPP)
    dim = width(store, slide_id, parts)
    if dim != config["encoder"]["dim"]:
        raise InputError(
            f"slide {slide_id} has {dim} numbers a tile, others {config['encoder']['dim']}: its features "
            "are by another encoder; make them again"
        )
    first = store.scales[0]
    own, (implied, stated) = parts[first], magnification_of(store, slide_id, parts, scanned)
    if kind == "CLAM" and not stated:
        notes.append(f"its magnification is not known: tiles of {own.side:g} level-0 px make it {implied:.3g}x")
    rounded = 0 if kind == "LazySlide" else 1  # whose 513 px for 512.6 are what it drew
    if not stated or abs(own.side - tile_size_level0(stated, first, store.tile_px)) > rounded:
        stated = implied  # a scan is not quite 40x, or its tiles not quite 10x: what is drawn must have their size
    if min(own.size) <= 0:
        parts[first] = own._replace(size=_size(path))
    tiles, rows = link(slide_id, parts, store.tile_px, config["k"], config["seed"], stated)
    notes += [*places_of(tiles, parts), *lone(tiles, rows)]
    tiling = {name: value for name, value in config.items() if name != "encoder"}
    store.write_tiles(tiles, tiling, warnings="; ".join(notes))
    store.write_features(slide_id, {scale: parts[scale].features[rows[scale]] for scale in parts}, tiles, config)
    return {"tiles": len(tiles.density), "warnings": "; ".join(notes), "seconds": time.perf_counter() - started}


def _read(store: Store, slide_id: str, kind: str, files: SlideFiles, mpp: float) -> dict[int, Part]:
    readers = {**READERS, "LazySlide": partial(read_lazyslide, encoder=store.encoder), "slide2vec": read_slide2vec}
    parts = {}
    if problem := unclear(slide_id, files):
        raise BrokenSlide(problem)
    for scale, roles in files.items():
        part = readers[kind]({role: paths[0] for role, paths in roles.items()}, scale, store.tile_px, mpp)
        parts[scale] = part if part.side else part._replace(side=float(grid_step(part.coords)))
    return parts


def _scan(kind: str, slide_id: str, path: str, mpp: float, fallback_mpp: float) -> tuple[float, float]:
    """Magnification and micrometres a pixel of level 0: as the cohort table says, else the slide file, else the study,
    else (0, 0). Files of some kinds say it themselves: of these the table's magnification alone, to be compared."""
    if kind in OWN_WORD:
        return (base_magnification(slide_id, 0, 0, mpp)[0] if mpp else 0.0), 0.0
    try:
        if path and not mpp:
            with open_slide(path) as slide:
                return slide.magnification, slide.mpp
    except InputError:  # no file, or one that does not say
        pass
    return base_magnification(slide_id, 0, 0, mpp, fallback_mpp)[:2] if mpp or fallback_mpp else (0.0, 0.0)


def _size(path: str) -> tuple[int, int]:
    """(width, height) of level 0 by the slide file; (0, 0) where there is none, or one that cannot be opened."""
    if not is_file(path):
        return 0, 0
    try:
        with open_slide(path, fallback_mpp=NOMINAL_MPP) as slide:  # which its size does not depend on
            return slide.dimensions
    except InputError:
        return 0, 0
