"""Open a slide pyramid, find its magnification, read its pixels.

OpenSlide is the reference for every pixel. Where a level of a TIFF slide can be decoded tile by tile with tifffile and
imagecodecs, that is done instead, after a check at opening that both give the same bits: it costs a fifth to an eighth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import openslide
import tifffile
from PIL import Image

from dmsmil.jobs.files import InputError

SNAPS = (5, 10, 20, 40, 60, 80)  # the magnifications scanners have
AGREE = 1.15                     # two magnifications within this ratio are the same one
SANE_MPP = (0.05, 4.0)           # micrometres a pixel


class TiffLevels:
    """The levels of a TIFF slide decoded by tifffile's own decoder, one file tile at a time.

    Only what OpenSlide would show unchanged: an `aperio` or `generic-tiff` pyramid whose level is one tiled RGB page of
    the same size. `region` raises for a tile that is absent or cannot be decoded; the caller then asks OpenSlide.
    """

    def __init__(self, path, level_dimensions):
        self.file = tifffile.TiffFile(path)
        pages = [page for page in self.file.pages if page.is_tiled and page.dtype == np.uint8
                 and page.samplesperpixel == 3 and page.planarconfig == 1]
        found = [[page for page in pages if (page.imagewidth, page.imagelength) == size] for size in level_dimensions]
        self.pages = {level: same[0] for level, same in enumerate(found) if len(same) == 1}

    def region(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """uint8 (height, width, 3) of a level; `x`, `y` in the pixels of that level, all of it inside the level."""
        page = self.pages[level]
        side_x, side_y, columns = page.tilewidth, page.tilelength, -(-page.imagewidth // page.tilewidth)
        if x < 0 or y < 0 or x + width > page.imagewidth or y + height > page.imagelength:
            raise ValueError("region outside the level")
        out = np.empty((height, width, 3), np.uint8)
        for row in range(y // side_y, -(-(y + height) // side_y)):
            for column in range(x // side_x, -(-(x + width) // side_x)):
                index = row * columns + column
                self.file.filehandle.seek(page.dataoffsets[index])
                data = self.file.filehandle.read(page.databytecounts[index])
                if not data or len(data) != page.databytecounts[index]:
                    raise ValueError("a tile of the file is absent or cut short")
                tile = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)[0][0]
                left, top = column * side_x, row * side_y
                x0, x1 = max(x, left), min(x + width, left + side_x)
                y0, y1 = max(y, top), min(y + height, top + side_y)
                out[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def detailed(self, level: int) -> tuple[int, int]:
        """Top-left corner, in level pixels, of the file tile with the most bytes: the one with the most detail."""
        page = self.pages[level]
        row, column = divmod(int(np.argmax(page.databytecounts)), -(-page.imagewidth // page.tilewidth))
        return column * page.tilewidth, row * page.tilelength


def base_magnification(name: str, objective: float, file_mpp: float, table_mpp: float = 0.0):
    """Magnification and micrometres a pixel of level 0, and warnings, from what is known (0 where nothing is).

    The objective power counts, unless the study's own `table_mpp` contradicts it; without one, the mpp (10 / mpp,
    snapped to 5, 10, 20, 40, 60 or 80 within 15 %). The table's mpp stands above the file's. An absurd value in the
    file counts as absent. Returns (magnification, mpp, warnings); raises InputError when nothing usable is left.
    """
    warnings = []
    if table_mpp and not SANE_MPP[0] <= table_mpp <= SANE_MPP[1]:
        raise InputError(f"slide {name}: mpp {table_mpp:g} in the study's table is not between {SANE_MPP[0]:g} and "
                         f"{SANE_MPP[1]:g} micrometres a pixel: correct the `mpp` column or key")
    if file_mpp and not SANE_MPP[0] <= file_mpp <= SANE_MPP[1]:
        warnings.append(f"slide {name}: its mpp {file_mpp:g} is absurd and was ignored")
        file_mpp = 0.0
    if objective and not 1 <= objective <= 100:
        warnings.append(f"slide {name}: its objective power {objective:g} is absurd and was ignored")
        objective = 0.0
    mpp = table_mpp or file_mpp
    if not objective and not mpp:
        reason = f" ({warnings[-1].split(': ', 1)[1]})" if warnings else ""
        raise InputError(f"slide {name} states no magnification{reason}: add its micrometres a pixel as an `mpp` "
                         "column of the cohort table or an `mpp` key of the study")
    if table_mpp and file_mpp and not _agree(table_mpp, file_mpp):
        warnings.append(f"slide {name}: mpp {table_mpp:g} in the study's table, {file_mpp:g} in the file; "
                        "the table's is used")
    if not mpp:
        return objective, 10 / objective, warnings
    nearest = min(SNAPS, key=lambda snap: max(snap * mpp / 10, 10 / (snap * mpp)))
    magnification = float(nearest) if _agree(nearest, 10 / mpp) else 10 / mpp
    if objective and _agree(objective, 10 / mpp):
        magnification = objective
    elif objective:
        magnification = magnification if table_mpp else objective
        warnings.append(f"slide {name}: objective power {objective:g} contradicts mpp {mpp:g}; "
                        f"{magnification:g}x is used")
    return magnification, mpp, warnings


def _agree(a: float, b: float) -> bool:
    return max(a / b, b / a) <= AGREE


def tile_size_level0(slide_magnification: float, magnification: float, tile_px: int) -> int:
    """Side in level-0 pixels of a tile of `tile_px` pixels at `magnification`."""
    return round(tile_px * slide_magnification / magnification)


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
        return self.exact and x % self.step == 0 and y % self.step == 0


class Slide:
    """An open slide (a context manager); `open_slide` makes it.

    slide_id: as given, else the file's name without its suffix. dimensions: (width, height) of level 0. magnification
    and mpp: of level 0. levels: finest first. warnings: list of texts about doubtful metadata. Reading raises
    InputError when the file is damaged.
    """

    def __init__(self, path, mpp: float = 0.0, slide_id: str = ""):
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
            raise self._damaged(error) from error
        try:
            properties = self._openslide.properties
            self.dimensions = self._openslide.dimensions
            objective = _number(properties, openslide.PROPERTY_NAME_OBJECTIVE_POWER, "aperio.AppMag")
            file_mpp = _number(properties, openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y, "aperio.MPP")
            self.magnification, self.mpp, self.warnings = base_magnification(self.path.name, objective, file_mpp, mpp)
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
        if self._tiff is not None and level.number in self._tiff.pages and level.aligned(x, y):
            try:
                return self._tiff.region(level.number, x // level.step, y // level.step, size, size)
            except Exception:  # OpenSlide knows how to fill an absent tile, or says what is wrong with this one
                pass
        return self._reference(level, x, y, (size, size))

    def whole(self, level: Level) -> np.ndarray:
        """All pixels of a level: uint8 (height, width, 3)."""
        if self._tiff is not None and level.number in self._tiff.pages:
            try:
                return self._tiff.region(level.number, 0, 0, level.width, level.height)
            except Exception:  # as above
                pass
        return self._reference(level, 0, 0, (level.width, level.height))

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

    def _damaged(self, error: Exception) -> InputError:
        reason = " ".join(str(error).replace(str(self.path), self.path.name).split())
        return InputError(f"slide {self.path.name} cannot be read ({reason}): "
                          "copy the file again or take it out of the cohort table")


def open_slide(path, mpp: float = 0.0, slide_id: str = "") -> Slide:
    """Open a slide; `mpp` is the study's own micrometres a pixel of level 0 (0: trust the file).

    Raises InputError: missing, unreadable, unsupported or damaged file, no usable magnification.
    """
    return Slide(path, mpp, slide_id)


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
