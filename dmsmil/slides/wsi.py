"""The file of a slide as OpenSlide reads it, which is the reference for every pixel.

Where a level of a TIFF slide can be decoded tile by tile with tifffile and imagecodecs, that is done instead, after a
check at opening that both give the same bits: it costs a fifth to an eighth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from dmsmil.jobs.files import InputError
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


class WsiFile:
    """An open file that OpenSlide reads.

    levels: finest first. bounds: (x, y, width, height) of what was scanned, in level-0 px. objective, mpp (along x
    where it differs) and mpp_y: of level 0, 0 where the file does not say. Raises InputError for a file that is
    missing, damaged or of another kind.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.openslide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise self._unsupported(error) or damaged(path, error) from error
        try:
            properties = self.openslide.properties
            self.dimensions = self.openslide.dimensions
            self.bounds = _bounds(properties, self.dimensions)
            self.objective = _number(properties, openslide.PROPERTY_NAME_OBJECTIVE_POWER, "aperio.AppMag")
            self.mpp = _number(properties, openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y, "aperio.MPP")
            self.mpp_y = _number(properties, openslide.PROPERTY_NAME_MPP_Y)
            sizes, downsamples = self.openslide.level_dimensions, self.openslide.level_downsamples
            self.levels = [
                Level(number, *size, downsample, self.dimensions)
                for number, (size, downsample) in enumerate(zip(sizes, downsamples))
            ]
            self.fast = self._open_fast()
        except BaseException:
            self.openslide.close()
            raise

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        self.openslide.close()
        if self.fast is not None:
            self.fast.file.close()

    def thumbnail(self, max_px: int) -> np.ndarray:
        """The whole slide, its longer side at most `max_px` pixels: uint8 RGB (height, width, 3)."""
        try:
            return np.asarray(self.openslide.get_thumbnail((max_px, max_px)).convert("RGB"))
        except openslide.OpenSlideError as error:
            raise damaged(self.path, error) from error

    def pixels(self, level: Level, x: int, y: int, size: tuple[int, int]) -> np.ndarray:
        """uint8 (height, width, 3) of `level` from level-0 corner (x, y) on, white where there are none."""
        if self.fast is not None and level.number in self.fast.pages and level.aligned(x, y):
            try:
                return self.fast.region(level.number, x // level.step, y // level.step, *size)
            except Exception:  # OpenSlide knows how to fill an absent tile, or says what is wrong with this one
                pass
        return self._reference(level, x, y, size)

    def _reference(self, level: Level, x: int, y: int, size: tuple[int, int]) -> np.ndarray:
        """OpenSlide's pixels of a region, on white."""
        try:
            region = self.openslide.read_region((x, y), level.number, size)
        except openslide.OpenSlideError as error:
            raise damaged(self.path, error) from error
        if region.getextrema()[3][0] == 255:
            return np.asarray(region.convert("RGB"))
        canvas = Image.new("RGB", size, "white")
        canvas.paste(region, mask=region.getchannel("A"))
        return np.asarray(canvas)

    def _open_fast(self) -> TiffLevels | None:
        """The fast reader, if it gives OpenSlide's bits where the picture has most detail, on every exact level."""
        if self.openslide.properties.get(openslide.PROPERTY_NAME_VENDOR) not in ("aperio", "generic-tiff"):
            return None
        tiff = None
        try:
            tiff = TiffLevels.shown(self.path, self.openslide.level_dimensions)
            if 0 in tiff.pages and all(
                self._same(tiff, level) for level in self.levels if level.exact and level.number in tiff.pages
            ):
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
        return InputError(
            f"slide {self.path.name} is {what}, which OpenSlide does not read: convert it with libvips, "
            "`vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg --Q 90`"
        )


def damaged(path: Path, error: Exception) -> InputError:
    """What to do with a file of which a part cannot be read."""
    reason = " ".join(str(error).replace(str(path), path.name).split())
    return InputError(
        f"slide {path.name} cannot be read ({reason}): copy the file again or take it out of the cohort table"
    )


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
    names = (
        openslide.PROPERTY_NAME_BOUNDS_X,
        openslide.PROPERTY_NAME_BOUNDS_Y,
        openslide.PROPERTY_NAME_BOUNDS_WIDTH,
        openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
    )
    x, y, width, height = (int(_number(properties, name)) for name in names)
    return x, y, width or dimensions[0] - x, height or dimensions[1] - y
