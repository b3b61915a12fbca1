"""Where the features that other programs made lie: the folder of each scale, the files of each slide."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from dmsmil.cohorts.ids import bare_name
from dmsmil.features.foreign import is_clam, told
from dmsmil.features.lazyslide import is_lazyslide, zarrs
from dmsmil.jobs.files import InputError, fingerprint, walk
from dmsmil.slides.store import Store, encoder_folder

# TRIDENT's: magnification, side and overlap of its tiles
FOLDER = re.compile(r"(\d+(?:\.\d+)?)x_(\d+)px_(\d+)px_overlap")
Index = dict[str, dict[str, list[Path]]]  # bare name of a slide -> name of a file without what follows it -> files
SlideFiles = dict[int, dict[str, list[Path]]]  # scale -> "features", and where there is one "tiles" -> files of a slide


@dataclass(frozen=True)
class Source:
    """Features made elsewhere: whose (TRIDENT, CLAM, STAMP, LazySlide or slide2vec), numbers a tile, files by scale and
    role."""

    kind: str
    dim: int
    files: dict[int, dict[str, Index]]

    def of(self, slide_id: str) -> SlideFiles:
        """{scale: {role: files}} of a slide, whether or not its id or its files carry the suffix of the slide file;
        more than one file where it is not clear which is the slide's."""
        return {
            scale: {role: found for role, index in roles.items() if (found := _named(index, slide_id))}
            for scale, roles in self.files.items()
        }


def find_folders(store: Store, source: Path) -> dict[int, Path]:
    """The folder of each scale's features."""
    jobs = _jobs(source)
    if "{scale}" in str(source) or (len(store.scales) == 1 and source.is_dir() and not jobs):
        folders = {scale: Path(str(source).replace("{scale}", f"{scale:g}")) for scale in store.scales}
        for scale, folder in folders.items():
            if not folder.is_dir():
                raise InputError(
                    f"there is no folder {folder.name} for the features at {scale}x: check the key 'features'"
                )
        return folders
    if not source.is_dir():
        what = (
            "is a file: name the folder that holds it"
            if source.is_file()
            else "does not exist: check the key 'features'"
        )
        raise InputError(f"the folder {source.name} {what}")
    if source.resolve() == (store.home / "features").resolve():
        raise InputError("the key 'features' names this study's own folder: leave it empty")
    if is_lazyslide(source):
        return dict.fromkeys(store.scales, source)
    if not jobs:
        for inner in (source, source.parent):
            if FOLDER.fullmatch(inner.name):
                raise InputError(
                    f"{source.name} is {'' if inner == source else 'inside of '}one scale of a TRIDENT "
                    f"folder: name its parent, {inner.parent.name}"
                )
        if is_clam(source):
            raise InputError(
                f"{source.name} is a folder of CLAM, and holds one magnification: make one for each of "
                f"{', '.join(f'{scale:g}x' for scale in store.scales)}, and name them all at once with {{scale}} for "
                "the number, such as clam_{scale}x"
            )
        raise InputError(
            f"{source.name} is no TRIDENT folder, for it has {told(source)}: name the one that holds "
            "10x_512px_0px_overlap or the like, or for CLAM and STAMP a path with {scale} in it"
        )
    folders = {}
    for scale in store.scales:
        job = jobs.get((float(scale), store.tile_px, 0))
        if job is None:
            raise InputError(
                f"{source.name} has no tiles of {store.tile_px} px at {scale}x without overlap, but "
                f"{', '.join(sorted(other.name for other in jobs.values()))}: set tile_px and scales to "
                "what is there (overlapping tiles have no one parent and are not taken)"
            )
        folders[scale] = job / encoder_folder(store.encoder)
        if not folders[scale].is_dir():
            there = ", ".join(sorted(other.name[9:] for other in job.glob("features_*"))) or "none"
            raise InputError(
                f"{job.name} has no features by the study's encoder '{store.encoder}', but by {there}: "
                "set encoder to what is there"
            )
    return folders


def _jobs(source: Path) -> dict[tuple[float, int, int], Path]:
    """The folders of a TRIDENT job by magnification, side and overlap of their tiles."""
    found = [(FOLDER.fullmatch(folder.name), folder) for folder in source.iterdir()] if source.is_dir() else []
    return {(float(name[1]), int(name[2]), int(name[3])): folder for name, folder in found if name}


def find_files(kind: str, folder: Path) -> dict[str, Index]:
    """The files in the folder of a scale, by role; CLAM's h5 where it also has a pt."""
    if kind == "CLAM":
        return {
            "features": _below(folder / "pt_files", ".pt") | _below(folder / "h5_files", ".h5"),
            "tiles": _below(folder / "patches", ".h5") or _below(folder.parent / "patches", ".h5"),
        }
    if kind == "slide2vec":
        made, chosen = folder / "tile_embeddings", folder / "tiles"
        return {
            "features": _below(made, ".pt") | _below(made, ".npz"),
            "tiles": _below(chosen, ".coordinates.npz"),
            "tiling": _below(chosen, ".coordinates.meta.json"),
        }
    if kind == "LazySlide":
        return {"features": _index(zarrs(folder), ".zarr")}
    tiles = {"tiles": _below(folder.parent / "patches", "_patches.h5")} if kind == "TRIDENT" else {}
    return {"features": _below(folder, ".h5"), **tiles}


def _below(folder: Path, suffix: str) -> Index:
    return _index(sorted(path for path in walk(folder) if path.name.endswith(suffix)), suffix)


def _index(paths: list[Path], suffix: str) -> Index:
    found: Index = {}
    for path in paths:
        name = path.name[: -len(suffix)]
        found.setdefault(bare_name(name), {}).setdefault(name, []).append(path)
    return found


def _named(index: Index, slide_id: str) -> list[Path]:
    """The files that can be of a slide: of S3 all S3, S3.svs and S3.tiff; of S3.svs those of its very name, or else
    the same."""
    names = index.get(bare_name(slide_id), {})
    own = names.get(slide_id, []) if slide_id != bare_name(slide_id) else []
    return own or [path for paths in names.values() for path in paths]


def content(files: SlideFiles) -> dict:
    """Size and hash of each file of a slide, or of a zarr's folder: what it is imported from, wherever that lies."""
    found, known = {}, {}
    for scale, roles in files.items():
        for role, paths in roles.items():
            for path in paths:
                if path not in known:
                    known[path] = _content(path)
                found.setdefault(f"{role} at {scale}x", []).append(known[path])
    return found


def _content(path: Path) -> dict:
    """Of a file or folder; of one that cannot be read, such as a link to nowhere, why: whoever imports it fails."""
    try:
        return _content_of_folder(path) if path.is_dir() else _content_of_file(path)
    except OSError as error:
        return {"unreadable": error.strerror}


def _content_of_file(path: Path) -> dict:
    with open(path, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()[:16]
    return {"bytes": path.stat().st_size, "sha256": digest}


def _content_of_folder(folder: Path) -> dict:
    """Of all files in it, by their paths from there."""
    inside = {
        path.relative_to(folder).as_posix(): _content_of_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return {"bytes": sum(one["bytes"] for one in inside.values()), "sha256": fingerprint(inside, 16)}
