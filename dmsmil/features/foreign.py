"""The feature files of other programs, one scale of one slide at a time, in one shape: TRIDENT's, CLAM's and STAMP's.

TRIDENT  features_<encoder>/<slide>.h5: features, coords with their attributes
CLAM     h5_files/<slide>.h5: features, coords; or pt_files/<slide>.pt: a tensor. patches/<slide>.h5: coords with
         patch_size (px of patch_level) and downsample (of that level)
STAMP    <slide>.h5: feats (float16), coords in micrometres, tile_size_um and tile_size_px
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dmsmil.jobs.files import InputError, walk
from dmsmil.slides.hdf5 import Written, reading
from dmsmil.slides.linking import Part
from dmsmil.slides.magnification import AGREE

Files = dict[str, Path]  # "features", and where there is one "tiles", a file that has only coords


class BrokenSlide(InputError):
    """The files of one slide are damaged, empty or not its own, whatever those of the others are."""


def is_clam(folder: Path) -> bool:
    """Whether a folder of one scale has CLAM's layout."""
    return (folder / "h5_files").is_dir() or (folder / "pt_files").is_dir()


def kind_of(folder: Path) -> str:
    """Whose features a folder of one scale holds: TRIDENT, CLAM or STAMP; InputError when nobody's."""
    if is_clam(folder):
        return "CLAM"
    for path in sorted(path for path in walk(folder) if path.suffix == ".h5"):
        try:
            with opened(path) as written:
                if "feats" in written.file:
                    return "STAMP"
                if {"features", "coords"} <= set(written.file):
                    return "TRIDENT"
        except InputError:  # a damaged file says nothing of the others
            continue
    raise InputError(
        f"{folder.name} has no features of TRIDENT, CLAM, STAMP, LazySlide or slide2vec, but "
        f"{told(folder)}: check the key 'features'"
    )


def told(folder: Path) -> str:
    """What is in a folder, in a few words."""
    names = sorted(f.name for f in folder.iterdir() if not f.name.startswith("."))
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") or "nothing"


def read_trident(files: Files, scale: int, tile_px: int, mpp: float) -> Part:
    """TRIDENT's file of a slide; what its attributes lack is looked up in its patches/<slide>_patches.h5."""
    path, density, colour = files["features"], None, None
    with opened(path) as written:
        features, coords = _arrays(written, path, "features")
        file = written.file
        about, encoder = dict(file["coords"].attrs), _word(file["features"].attrs, "encoder")
        parent = written.data("parent").astype(np.int64) if "parent" in file else None
    if "tiles" in files:
        with opened(files["tiles"]) as written:
            about = {**written.file["coords"].attrs, **about}
            density, colour = (written.data(name) if name in written.file else None for name in ("density", "colour"))
    px, target, overlap = (_number(about, name) for name in ("patch_size", "target_magnification", "overlap"))
    if (px and px != tile_px) or (target and target != scale) or overlap:
        raise InputError(
            f"{path.name} has tiles of {px:g} px at {target:g}x with {overlap:g} px overlap, not of "
            f"{tile_px} px at {scale}x without: set tile_px and scales to what is there"
        )
    base = _number(about, "level0_magnification")
    side = _number(about, "patch_size_level0") or (base * px // target if target else 0)
    return Part(
        features,
        coords,
        side,
        parent,
        base,
        (_number(about, "level0_width"), _number(about, "level0_height")),
        encoder,
        density,
        colour,
    )


def read_clam(files: Files, scale: int, tile_px: int, mpp: float) -> Part:
    """CLAM's file of a slide, h5 or pt. A tile's side is patch_size times the downsample of its level."""
    path, coords, side, size = files["features"], None, 0.0, (0.0, 0.0)
    if path.suffix == ".pt":
        features = tensor(path)
    else:
        with opened(path) as written:
            features, coords = _arrays(written, path, "features")
    if "tiles" in files:
        with opened(files["tiles"]) as written:
            about, here = dict(written.file["coords"].attrs), _corners(written, files["tiles"])
        coords, step = here if coords is None else coords, _number(about, "downsample") or 1.0
        known = "downsample" in about or not _number(about, "patch_level")  # else its sizes are of an unknown level
        side = float(round(_number(about, "patch_size") * step)) if known else 0.0  # downsamples are a little off
        size = tuple(step * np.asarray(about.get("level_dim", (0, 0)), float)) if known else (0.0, 0.0)
    if coords is None:
        raise InputError(
            f"{path.name} does not say where its tiles are: put CLAM's folder patches, or h5_files, beside pt_files"
        )
    return Part(features, coords, side, size=size)


def read_stamp(files: Files, scale: int, tile_px: int, mpp: float) -> Part:
    """STAMP's file of a slide, its micrometres divided by `mpp`, those of a level-0 pixel."""
    path = files["features"]
    with opened(path) as written:
        (features, coords), about = _arrays(written, path, "feats", np.float64), dict(written.file.attrs)
    um, px = _number(about, "tile_size_um"), _number(about, "tile_size_px") or tile_px
    if _word(about, "unit") != "um" or not um:
        raise InputError(
            f"{path.name} does not say that its coordinates are micrometres (unit, tile_size_um): it is "
            "of a STAMP before 2.1; make it again"
        )
    ratio = 10 * px / um / scale
    if px != tile_px or max(ratio, 1 / ratio) > AGREE:
        raise InputError(
            f"{path.name} has tiles of {px:g} px and {um:g} µm ({ratio * scale:.3g}x), not of "
            f"{tile_px} px at {scale}x: set tile_px and scales to what is there"
        )
    return Part(features, np.rint(coords / mpp).astype(np.int64), round(um / mpp), encoder=_word(about, "extractor"))


READERS: dict[str, Callable[[Files, int, int, float], Part]] = {
    "TRIDENT": read_trident,
    "CLAM": read_clam,
    "STAMP": read_stamp,
}


@contextmanager
def opened(path: Path) -> Iterator[Written]:
    """The open file; whatever h5py finds wrong with it is an InputError."""
    try:
        with reading(path) as written:
            yield written
    except InputError:
        raise
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BrokenSlide(
            f"{path.parent.name}/{path.name} is damaged or incomplete "
            f"({' '.join(str(error).split())[:80]}): copy it again, or make it again"
        ) from error


def _arrays(written: Written, path: Path, name: str, kind: type = np.int64) -> tuple[np.ndarray, np.ndarray]:
    """Features as float32, and coords."""
    if missing := [key for key in (name, "coords") if key not in written.file]:
        raise InputError(
            f"{path.parent.name}/{path.name} has no '{missing[0]}' but "
            f"{', '.join(sorted(written.file)) or 'nothing'}: is it of another program than the others?"
        )
    features = written.data(name)
    if features.dtype.kind not in "fiu":
        raise BrokenSlide(
            f"{path.parent.name}/{path.name} has features of type {features.dtype}, no numbers: make it again"
        )
    return features.astype(np.float32), _corners(written, path, kind)


def _corners(written: Written, path: Path, kind: type = np.int64) -> np.ndarray:
    """coords (N, 2) of a file; BrokenSlide where they have another shape, or are no places."""
    coords, name = written.data("coords"), f"{path.parent.name}/{path.name}"
    if coords.ndim == 3 and len(coords) == 1:
        coords = coords[0]
    if coords.size and (coords.ndim != 2 or coords.shape[1] != 2):
        raise BrokenSlide(f"{name} has coords of shape {coords.shape}, not (tiles, 2): make it again")
    if not np.isfinite(coords).all():
        raise BrokenSlide(f"{name} has coords that are NaN or infinite: make it again")
    return coords.astype(kind).reshape(-1, 2)


def _word(attributes: Mapping, name: str) -> str:
    """An attribute as text, which some write as bytes; "" without it."""
    value = attributes.get(name, "")
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _number(attributes: dict, name: str) -> float:
    """An attribute as a number (the first, where there is one an axis); 0 without it, or where it is NaN or infinite.
    InputError for no number."""
    if name not in attributes:
        return 0.0
    try:
        number = float(np.ravel(attributes[name])[0])
        return number if np.isfinite(number) else 0.0
    except (TypeError, ValueError, IndexError) as error:
        told = str(attributes[name])[:40]
        raise InputError(f"its attribute {name} is '{told}', which is no number: make the file again") from error


def tensor(path: Path) -> np.ndarray:
    """The tensor in a .pt file, as float32; a file with anything else is refused, and no code in it is run."""
    import torch  # seconds, which only those who have such files need to spend

    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, for a damaged file or one that would run code
        raise BrokenSlide(
            f"{path.parent.name}/{path.name} is damaged, or more than a tensor "
            f"({' '.join(str(error).split())[:80]}): copy it again, or make it again"
        ) from error
    if not isinstance(value, torch.Tensor):
        keys = f" with {', '.join(map(str, list(value)[:4]))}" if isinstance(value, dict) else ""
        raise InputError(
            f"{path.parent.name}/{path.name} holds a {type(value).__name__}{keys}, not one plain "
            "tensor: save its features alone, or give h5_files"
        )
    if value.layout != torch.strided or value.is_quantized or value.is_complex():
        raise InputError(
            f"{path.parent.name}/{path.name} holds a sparse, quantised or complex tensor: save its features as a plain "
            "one"
        )
    return value.detach().float().numpy()
