"""What can be wrong with the features of one slide that were made elsewhere, and what is to be known of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dmsmil.features.foreign import BrokenSlide, opened
from dmsmil.features.sources import SlideFiles
from dmsmil.jobs.files import InputError
from dmsmil.jobs.text import many
from dmsmil.slides.linking import Part, overlapping
from dmsmil.slides.magnification import AGREE
from dmsmil.slides.store import Store, encoder_folder
from dmsmil.slides.tiles import Tiles

NEAR = 0.02  # sizes within this share of one another are the same but for rounding


def unclear(slide_id: str, files: SlideFiles) -> str:
    """Why it is not clear which files of features are a slide's, "" where it is."""
    for scale, roles in files.items():
        if "features" not in roles:
            return (
                f"slide {slide_id} has no file of features at {scale}x: make it, or take the slide out of the cohort "
                "table"
            )
        for role, paths in roles.items():
            if len(paths) > 1:
                names = " and ".join("/".join(path.parts[-2:]) for path in paths[:2])
                return (
                    f"slide {slide_id} has {len(paths)} files of {role} at {scale}x, {names}: leave the one that is "
                    "its own, or give the slide file's whole name as slide_id"
                )
    return ""


def unopened(files: SlideFiles) -> str:
    """Why a file of a slide's features cannot be opened, "" where all can: of HDF5 files alone, whose end is missing
    where they were cut short."""
    for roles in files.values():
        for path in [path for paths in roles.values() for path in paths if path.suffix == ".h5"]:
            try:
                with opened(path):
                    pass
            except InputError as error:
                return str(error)
    return ""


def magnification_of(store: Store, slide_id: str, parts: dict[int, Part], scanned: float) -> tuple[float, float]:
    """Magnification of level 0 as the size of a slide's tiles implies it, and as its files or its scan (`_scan`) state
    it, 0 where they do not; InputError when these differ."""
    first = store.scales[0]
    own = parts[first]
    implied, stated = own.side * first / store.tile_px, own.magnification or scanned
    if own.magnification and scanned and max(scanned / stated, stated / scanned) > AGREE:
        raise InputError(
            f"slide {slide_id} is of {stated:g}x by its features and of {scanned:g}x by the `mpp` of the cohort table: "
            "correct the table, or make its features again"
        )
    if stated and max(implied / stated, stated / implied) > AGREE:
        raise InputError(
            f"slide {slide_id} has tiles of {own.side:g} level-0 px, {store.tile_px} px at "
            f"{first * stated / implied:.3g}x, not at {first}x: set tile_px and scales to what is there"
        )
    if implied * AGREE < max(store.scales):
        raise InputError(
            f"slide {slide_id} has tiles of {own.side:g} level-0 px at {first}x, as of a scan of {implied:.3g}x, and "
            f"features at {max(store.scales)}x, which such a scan does not show: its coords are no level-0 px"
        )
    return implied, stated


def lone(tiles: Tiles, rows: dict[int, np.ndarray]) -> Iterator[str]:
    """That most tiles of the first scale have none inside them at another, where that is so."""
    first, *others = rows
    count = len(tiles.coords[first])
    for scale in others:
        if 2 * len(rows[scale]) < count:
            yield (
                f"{count - len(rows[scale])} of {count} tiles at {first}x have none at {scale}x inside them: are the "
                f"features at {scale}x whole?"
            )


def places_of(tiles: Tiles, parts: dict[int, Part]) -> Iterator[str]:
    """What is to be known of where the tiles of a slide lie: that its size is not known, or that some jut out of it.
    BrokenSlide where a tile lies outside of it."""
    first, coords = next(iter(tiles.coords.items()))  # a finer tile may, inside one that juts out
    size = np.array([side or np.inf for side in tiles.dimensions])
    if (outside := ((coords >= size) | (coords <= -parts[first].side)).any(1)).any():
        x, y = coords[outside][0].tolist()
        raise BrokenSlide(
            f"{outside.sum()} of {len(coords)} tiles at {first}x lie outside of the slide, the first at ({x}, {y}): "
            "its coords are no level-0 px, or are of another slide"
        )
    if min(tiles.dimensions) <= 0:
        yield "the size of its slide is not known, for neither its files nor a slide file say it"
        return
    for scale, coords in tiles.coords.items():
        beyond = np.maximum(coords + parts[scale].side - np.array(tiles.dimensions), -coords).max(1)
        out = beyond > NEAR * parts[scale].side  # less is rounding
        if out.any():
            yield (
                f"{out.sum()} of {len(coords)} tiles at {scale}x jut out of the slide of {tiles.dimensions[0]} x "
                f"{tiles.dimensions[1]} px, by {beyond.max():.0f} px at most"
            )


def width(store: Store, slide_id: str, parts: dict[int, Part]) -> int:
    """How many numbers a tile has, when what was read of a slide is whole and its scales fit; else InputError."""
    first, base = store.scales[0], 0.0
    for scale, part in parts.items():
        what, shape, n = f"slide {slide_id} at {scale}x", part.features.shape, len(part.coords)
        if part.encoder and encoder_folder(part.encoder) != encoder_folder(store.encoder):
            raise InputError(
                f"{what} has features by '{part.encoder}', not by the study's encoder '{store.encoder}': "
                "set encoder to what is there"
            )
        if not n:
            raise BrokenSlide(f"{what} has no tiles: look at its tissue, or take it out of the cohort table")
        if (
            len(shape) != 2
            or shape[0] != n
            or any(known is not None and len(known) != n for known in (part.parent, part.density, part.colour))
        ):
            raise BrokenSlide(f"{what} has features of shape {shape} for {n} tiles: make them again")
        if not shape[1]:
            raise BrokenSlide(f"{what} has features of no number a tile: make them again")
        if bad := int((~np.isfinite(part.features)).any(1).sum()):
            raise BrokenSlide(f"{what} has {many(bad, 'tile')} whose features are NaN or infinite: make them again")
        if empty := int((part.features == 0).all(1).sum()):
            raise BrokenSlide(
                f"{what} has {many(empty, 'tile')} whose features are all zero, as of a file that was not written to "
                "its end, or was filled up: make them again, without such rows"
            )
        if n > 1 and (part.features == part.features[0]).all():
            raise BrokenSlide(f"{what} has the same features in all of its {n} tiles: make them again")
        if not part.side:
            raise InputError(
                f"{what}: nothing says how large its tiles are; for CLAM put its folder patches beside the features"
            )
        over = 0 if part.parent is not None else overlapping(part.coords, part.side)
        if 2 * over > n:  # a few do where two outlines meet
            raise InputError(
                f"{what} has tiles of {part.side:g} level-0 px, of which {over} of {n} overlap another: overlapping "
                "tiles have no one parent and are not taken"
            )
        base = base or part.side * scale
        if abs(part.side * scale / base - 1) > NEAR:
            raise InputError(
                f"{what} has tiles of {part.side:g} level-0 px, which do not fit those of "
                f"{base / first:g} px at {first}x: a tile must have {store.tile_px} px at either scale"
            )
        if part.features.shape[1] != parts[first].features.shape[1]:
            raise InputError(
                f"{what} has {part.features.shape[1]} numbers a tile, and at {first}x "
                f"{parts[first].features.shape[1]}: one encoder must make both"
            )
    return parts[first].features.shape[1]
