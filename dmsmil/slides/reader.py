"""Open a slide pyramid and read its pixels.

OpenSlide is the reference for every pixel (wsi.py); of an OME-TIFF that it does not show whole, tifffile (ome.py).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from dmsmil.jobs.files import InputError
from dmsmil.slides.magnification import AGREE, SANE_MPP, base_magnification, tile_size_level0
from dmsmil.slides.ome import OmeFile, open_ome
from dmsmil.slides.wsi import Level, WsiFile

NEAR = 0.02  # sizes within this share of one another are the same but for rounding


class Slide:
    """An open slide (a context manager); `open_slide` makes it.

    slide_id: as given, else the file's name without its suffix. dimensions: (width, height) of level 0. magnification
    and mpp: of level 0. bounds: (x, y, width, height) of what was scanned, in level-0 pixels: QuPath shows only that.
    levels: finest first. warnings: list of texts about what is doubtful. Reading raises InputError when the file is
    damaged.
    """

    def __init__(self, path, mpp: float = 0.0, slide_id: str = "", fallback_mpp: float = 0.0):
        self.path = Path(path)
        self.slide_id = slide_id or self.path.stem.removesuffix(".ome")
        try:
            with open(self.path, "rb") as handle:
                handle.read(1)
        except OSError as error:
            raise InputError(
                f"slide {self.path.name} cannot be opened ({error.strerror or type(error).__name__}): "
                "check its path and permissions in the cohort table"
            ) from error
        self._file, ome = _open(self.path)
        try:
            self.dimensions, self.bounds, self.levels = self._file.dimensions, self._file.bounds, self._file.levels
            file_mpp, notes = _file_mpp(self._file, ome)
            if not mpp:
                notes += _check_square(ome if ome is not None and file_mpp == ome.mpp else self._file)
            objective = self._file.objective or (ome.objective if ome else 0.0)
            try:
                self.magnification, self.mpp, warnings = base_magnification(
                    self.path.name, objective, file_mpp, mpp, fallback_mpp
                )
            except InputError as error:
                why = "; ".join(note.split(": ", 1)[1] for note in notes)
                raise InputError(f"{error} ({why})" if why else str(error)) from error
            self.warnings = notes + warnings
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        self._file.close()

    def read(self, x: int, y: int, magnification: float, tile_px: int) -> np.ndarray:
        """The tile at level-0 corner (x, y): uint8 RGB (tile_px, tile_px, 3), white where the slide has no pixels.

        Read from the coarsest level at least as fine as `magnification` and area-averaged from there.
        """
        level, size = self.source(magnification, tile_px)
        return shrink(self.region(level, x, y, size), tile_px)

    def thumbnail(self, max_px: int) -> np.ndarray:
        """The whole slide, its longer side at most `max_px` pixels: uint8 RGB (height, width, 3)."""
        return self._file.thumbnail(max_px)

    def source(self, magnification: float, tile_px: int) -> tuple[Level, int]:
        """The level to read a tile from, and the tile's side in the pixels of that level."""
        target = self.magnification / magnification
        if target < 1 - 1e-6:
            raise InputError(
                f"slide {self.path.name} was scanned at {self.magnification:g}x and has no "
                f"{magnification:g}x tiles: take it out of the cohort table or lower the scales"
            )
        level = max(
            (level for level in self.levels if level.downsample <= target * (1 + 1e-6) or level.number == 0),
            key=lambda level: level.number,
        )
        return level, round(tile_size_level0(self.magnification, magnification, tile_px) / level.downsample)

    def region(self, level: Level, x: int, y: int, size: int) -> np.ndarray:
        """uint8 (size, size, 3): pixels of `level` from level-0 corner (x, y) on."""
        return self._file.pixels(level, x, y, (size, size))

    def whole(self, level: Level) -> np.ndarray:
        """All pixels of a level: uint8 (height, width, 3)."""
        return self._file.pixels(level, 0, 0, (level.width, level.height))


def open_slide(path, mpp: float = 0.0, slide_id: str = "", fallback_mpp: float = 0.0) -> Slide:
    """Open a slide. mpp: micrometres a pixel of level 0 that the cohort table gives this slide (0: trust the file);
    fallback_mpp: those that the study gives to slides which do not say.

    Raises InputError: missing, unreadable, unsupported or damaged file, no usable magnification.
    """
    return Slide(path, mpp, slide_id, fallback_mpp)


def shrink(region: np.ndarray, tile_px: int) -> np.ndarray:
    """The fixed filter, area averaging: the choice of filter alone moves a tile's density by up to 0.006."""
    if region.shape[0] == tile_px:
        return region
    return cv2.resize(region, (tile_px, tile_px), interpolation=cv2.INTER_AREA)


def _open(path: Path) -> tuple[WsiFile | OmeFile, OmeFile | None]:
    """(what reads the pixels of a slide, what is said of it as an OME-TIFF if it is one)."""
    ome = open_ome(path)
    if ome is None:
        return WsiFile(path), None
    if ome.needed:
        return ome, ome
    try:
        file = WsiFile(path)
    except InputError:  # compressed as OpenSlide cannot
        if not ome.complete:
            ome.close()
            raise
        return ome, ome
    ome.close()
    return file, ome


def reads_more(path: Path) -> bool:
    """Whether more is read of a file than OpenSlide shows: the levels of an OME-TIFF, or its colours."""
    try:
        ome = open_ome(path)
    except (OSError, InputError):  # said where it is opened
        return False
    if ome is not None:
        ome.close()
    return ome is not None and ome.needed


def _check_square(file: WsiFile | OmeFile) -> list[str]:
    """A note where pixels are not quite square by the file; InputError where they are not by far."""
    across, down = file.mpp, file.mpp_y
    if not all(SANE_MPP[0] <= size <= SANE_MPP[1] for size in (across, down)) or abs(across / down - 1) <= NEAR:
        return []
    name, pixels = file.path.name, f"pixels of {across:g} x {down:g} micrometres by its file"
    if max(across / down, down / across) > AGREE:
        raise InputError(
            f"slide {name} has {pixels}, and only square ones are read: give it the right `mpp` in the cohort table if "
            "the file is wrong, else make its pixels square"
        )
    return [f"slide {name}: {pixels}; they are read as square ones of {across:g}"]


def _file_mpp(file: WsiFile | OmeFile, ome: OmeFile | None) -> tuple[float, list[str]]:
    """Micrometres a pixel by the file (0: it does not say), and notes: by its properties, unless they are absurd and
    its OME-XML says it."""
    if ome is None:
        return file.mpp, []
    notes = list(ome.notes)
    if file.mpp and ome.mpp and SANE_MPP[0] <= file.mpp <= SANE_MPP[1]:
        if abs(file.mpp / ome.mpp - 1) > NEAR:
            notes.append(
                f"slide {file.path.name}: mpp {ome.mpp:g} in its OME-XML, {file.mpp:g} in its TIFF tags; the "
                "tags are used"
            )
        return file.mpp, notes
    return ome.mpp or file.mpp, notes
