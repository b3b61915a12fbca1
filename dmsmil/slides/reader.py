"""Open a slide pyramid and read its pixels.

OpenSlide is the reference for every pixel. Where a level of a TIFF slide can be decoded tile by tile with tifffile and
imagecodecs, that is done instead, after a check at opening that both give the same bits: it costs a fifth to an eighth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import openslide
from PIL import Image

from dmsmil.jobs.files import InputError
from dmsmil.slides.magnification import base_magnification, tile_size_level0
from dmsmil.slides.tiff import TiffLevels, why_not


@dataclass(frozen=True)
class Level:
    """One level of a pyramid: its size in its own pixels, OpenSlide's downsample, the size of level 0."""

    number: int
    width: int
    height: int
    downsample: float
    dimensions: tuple[int, int]

    @property
    def step(self) -> int:
        """Level-0 pixels a pixel of this level spans, as a whole number."""
        return round(self.downsample)

    @property
    def exact(self) -> bool:
        """Whether `step` divides level 0 without a remainder on both axes."""
        return (self.width * self.step, self.height * self.step) == self.dimensions

    def aligned(self, x: int, y: int) -> bool:
        """Whether level-0 point (x, y) is exactly the corner of a pixel of this level."""
        return x == y == 0 or self.exact and x % self.step == 0 and y % self.step == 0


class Slide:
    """An open slide (a context manager); `open_slide` makes it.

    slide_id: as given, else the file's name without its suffix. dimensions: (width, height) of level 0. magnification
    and mpp: of level 0. bounds: (x, y, width, height) of what was scanned, in level-0 pixels: QuPath shows only that.
    levels: finest first. warnings: list of texts about what is doubtful. Reading raises InputError when the file is
    damaged.
    """

    def __init__(self, path, mpp: float = 0.0, slide_id: str = "", fallback_mpp: float = 0.0):
        self.path = Path(path)
        self.slide_id = slide_id or self.path.stem
        try:
            with open(self.path, "rb") as handle:
                handle.read(1)
        except OSError as error:
            raise InputError(f"slide {self.path.name} cannot be opened ({error.strerror or type(error).__name__}): "
                             "check its path and permissions in the cohort table") from error
        try:
            self._openslide = openslide.OpenSlide(self.path)
        except openslide.OpenSlideError as error:
            raise self._unsupported(error) or self._damaged(error) from error
        try:
            properties = self._openslide.properties
            self.dimensions = self._openslide.dimensions
            self.bounds = _bounds(properties, self.dimensions)
            objective = _number(properties, openslide.PROPERTY_NAME_OBJECTIVE_POWER, "aperio.AppMag")
            file_mpp = _number(properties, openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y, "aperio.MPP")
            self.magnification, self.mpp, self.warnings = base_magnification(
                self.path.name, objective, file_mpp, mpp, fallback_mpp)
            sizes, downsamples = self._openslide.level_dimensions, self._openslide.level_downsamples
            self.levels = [Level(number, *size, downsample, self.dimensions)
                           for number, (size, downsample) in enumerate(zip(sizes, downsamples))]
            self._tiff = self._open_tiff()
        except BaseException:
            self._openslide.close()
            raise

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        self._openslide.close()
        if self._tiff is not None:
            self._tiff.file.close()

    def read(self, x: int, y: int, magnification: float, tile_px: int) -> np.ndarray:
        """The tile at level-0 corner (x, y): uint8 RGB (tile_px, tile_px, 3), white where the slide has no pixels.

        Read from the coarsest level at least as fine as `magnification` and area-averaged from there.
        """
        level, size = self.source(magnification, tile_px)
        return shrink(self.region(level, x, y, size), tile_px)

    def thumbnail(self, max_px: int) -> np.ndarray:
        """The whole slide, its longer side at most `max_px` pixels: uint8 RGB (height, width, 3)."""
        try:
            return np.asarray(self._openslide.get_thumbnail((max_px, max_px)).convert("RGB"))
        except openslide.OpenSlideError as error:
            raise self._damaged(error) from error

    def source(self, magnification: float, tile_px: int) -> tuple[Level, int]:
        """The level to read a tile from, and the tile's side in the pixels of that level."""
        target = self.magnification / magnification
        if target < 1 - 1e-6:
            raise InputError(f"slide {self.path.name} was scanned at {self.magnification:g}x and has no "
                             f"{magnification:g}x tiles: take it out of the cohort table or lower the scales")
        level = max((level for level in self.levels if level.downsample <= target * (1 + 1e-6) or level.number == 0),
                    key=lambda level: level.number)
        return level, round(tile_size_level0(self.magnification, magnification, tile_px) / level.downsample)

    def region(self, level: Level, x: int, y: int, size: int) -> np.ndarray:
        """uint8 (size, size, 3): pixels of `level` from level-0 corner (x, y) on."""
        return self._pixels(level, x, y, (size, size))

    def whole(self, level: Level) -> np.ndarray:
        """All pixels of a level: uint8 (height, width, 3)."""
        return self._pixels(level, 0, 0, (level.width, level.height))

    def _pixels(self, level: Level, x: int, y: int, size: tuple[int, int]) -> np.ndarray:
        """uint8 (height, width, 3) of `level` from level-0 corner (x, y) on, by the fast reader where it can."""
        if self._tiff is not None and level.number in self._tiff.pages and level.aligned(x, y):
            try:
                return self._tiff.region(level.number, x // level.step, y // level.step, *size)
            except Exception:  # OpenSlide knows how to fill an absent tile, or says what is wrong with this one
                pass
        return self._reference(level, x, y, size)

    def _reference(self, level: Level, x: int, y: int, size: tuple[int, int]) -> np.ndarray:
        """OpenSlide's pixels of a region, on white."""
        try:
            region = self._openslide.read_region((x, y), level.number, size)
        except openslide.OpenSlideError as error:
            raise self._damaged(error) from error
        if region.getextrema()[3][0] == 255:
            return np.asarray(region.convert("RGB"))
        canvas = Image.new("RGB", size, "white")
        canvas.paste(region, mask=region.getchannel("A"))
        return np.asarray(canvas)

    def _open_tiff(self) -> TiffLevels | None:
        """The fast reader, if it gives OpenSlide's bits where the picture has most detail, on every exact level."""
        if self._openslide.properties.get(openslide.PROPERTY_NAME_VENDOR) not in ("aperio", "generic-tiff"):
            return None
        tiff = None
        try:
            tiff = TiffLevels(self.path, self._openslide.level_dimensions)
            if 0 in tiff.pages and all(self._same(tiff, level) for level in self.levels
                                       if level.exact and level.number in tiff.pages):
                return tiff
        except InputError:
            raise
        except Exception:  # whatever tifffile stumbles on, OpenSlide reads it or says what is wrong
            pass
        if tiff is not None:
            tiff.file.close()
        return None

    def _same(self, tiff: TiffLevels, level: Level) -> bool:
        x, y = tiff.detailed(level.number)
        size = min(256, level.width - x), min(256, level.height - y)
        reference = self._reference(level, x * level.step, y * level.step, size)
        return np.array_equal(tiff.region(level.number, x, y, *size), reference)

    def _unsupported(self, error: Exception) -> InputError | None:
        """What to do with a file that is whole, but not of a kind that OpenSlide reads."""
        what = why_not(self.path) if "nsupported" in str(error) else ""
        if not what:
            return None
        return InputError(f"slide {self.path.name} is {what}, which OpenSlide does not read: convert it with libvips, "
                          "`vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg --Q 90`")

    def _damaged(self, error: Exception) -> InputError:
        reason = " ".join(str(error).replace(str(self.path), self.path.name).split())
        return InputError(f"slide {self.path.name} cannot be read ({reason}): "
                          "copy the file again or take it out of the cohort table")


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


def _number(properties, *names: str) -> float:
    """The first of these properties that is a finite positive number, else 0."""
    for name in names:
        try:
            value = float(properties[name])
        except (KeyError, ValueError):
            continue
        if np.isfinite(value) and value > 0:
            return value
    return 0.0


def _bounds(properties, dimensions: tuple[int, int]) -> tuple[int, int, int, int]:
    """What was scanned (x, y, width, height), which is less than the whole where the scanner says so."""
    names = (openslide.PROPERTY_NAME_BOUNDS_X, openslide.PROPERTY_NAME_BOUNDS_Y,
             openslide.PROPERTY_NAME_BOUNDS_WIDTH, openslide.PROPERTY_NAME_BOUNDS_HEIGHT)
    x, y, width, height = (int(_number(properties, name)) for name in names)
    return x, y, width or dimensions[0] - x, height or dimensions[1] - y
