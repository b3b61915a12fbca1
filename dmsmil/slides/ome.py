"""OME-TIFF slides: what their XML says of a pixel's size, and those that OpenSlide shows less of than there is.

Its generic TIFF reader passes over the XML, over levels in SubIFDs, and over all but the first page of a level.
Schema: https://docs.openmicroscopy.org/ome-model/latest/ome-tiff/specification.html
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import tifffile
from PIL import Image

from dmsmil.jobs.files import InputError
from dmsmil.slides.tiff import TiffLevels, is_rgb
from dmsmil.slides.wsi import Level, damaged

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the first bytes of a TIFF, and of a BigTIFF
MICROMETRES = {
    "m": 1e6,
    "cm": 1e4,
    "mm": 1e3,
    "\u03bcm": 1.0,
    "um": 1.0,
    "nm": 1e-3,
    "pm": 1e-6,
    "\u00c5": 1e-4,
    "in": 25400.0,
}  # in a unit, by its name in Unicode's plain form; \u03bc is the letter mu
COLOURS = {(255, 0, 0): "red", (0, 255, 0): "green", (0, 0, 255): "blue"}
RGB = ["red", "green", "blue"]


class OmeFile:
    """An open OME-TIFF: its largest picture, read by tifffile.

    mpp, objective, bounds, levels: as of `WsiFile`. complete: whether all its levels can be read here; needed: whether
    OpenSlide would show less of it, or something else. notes: what is doubtful.
    Raises InputError for channels that are no colours.
    """

    def __init__(self, path: Path, file: tifffile.TiffFile):
        self.path, self.file, self.notes = path, file, []
        series = max((one for one in file.series if one.kind == "ome"), key=lambda one: _size(one)[0] * _size(one)[1])
        self.dimensions = _size(series)
        self.bounds = (0, 0, *self.dimensions)
        root = ElementTree.fromstring(file.ome_metadata)
        image = _image(root, self.dimensions)
        along = [self._mpp(image, axis) for axis in "XY"]
        self.mpp, self.mpp_y = along[0] or along[1], along[1]
        self.objective = _objective(root, image)
        first = series.levels[0].pages
        self._check_channels(image, list(first))
        self._tiff = TiffLevels(file, _pages(series), absent_white=True)
        sizes = [(pages[0].imagewidth, pages[0].imagelength) for pages in self._tiff.pages.values()]
        self.levels = [
            Level(number, *size, (self.dimensions[0] / size[0] + self.dimensions[1] / size[1]) / 2, self.dimensions)
            for number, size in enumerate(sizes)
        ]
        self.complete = len(sizes) == len(series.levels)
        self.needed = self.complete and (len(sizes) > 1 or len(first) == 3 or first[0].offset != file.pages[0].offset)

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        self.file.close()

    def thumbnail(self, max_px: int) -> np.ndarray:
        """The whole slide, its longer side at most `max_px` pixels: uint8 RGB (height, width, 3)."""
        fine = [level for level in self.levels if max(level.width, level.height) >= max_px]
        level = fine[-1] if fine else self.levels[0]
        picture = Image.fromarray(self.pixels(level, 0, 0, (level.width, level.height)))
        picture.thumbnail((max_px, max_px), Image.Resampling.LANCZOS)
        return np.asarray(picture)

    def pixels(self, level: Level, x: int, y: int, size: tuple[int, int]) -> np.ndarray:
        """uint8 (height, width, 3) of `level` from level-0 corner (x, y) on, white where there are none.

        Where (x, y) lies between pixels of the level they are interpolated, as OpenSlide does.
        """
        left, top = x / level.downsample, y / level.downsample
        if level.aligned(x, y):
            left, top = x // level.step, y // level.step
        column, row = int(np.floor(left)), int(np.floor(top))
        if (column, row) == (left, top):
            return self._window(level, column, row, *size)
        width, height = size
        centre = left - column + (width - 1) / 2, top - row + (height - 1) / 2
        return cv2.getRectSubPix(self._window(level, column, row, width + 1, height + 1), size, centre)

    def _window(self, level: Level, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels of a level from its own pixel (x, y) on, white outside of it."""
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, level.width), min(y + height, level.height)
        out = np.full((height, width, 3), 255, np.uint8)
        if x0 < x1 and y0 < y1:
            try:
                out[y0 - y : y1 - y, x0 - x : x1 - x] = self._tiff.region(level.number, x0, y0, x1 - x0, y1 - y0)
            except Exception as error:  # of many kinds: each codec has its own
                raise damaged(self.path, error) from error
        return out

    def _mpp(self, image: ElementTree.Element | None, axis: str) -> float:
        """Micrometres a pixel along an axis, by the XML; 0 where it does not say. A size without a unit is in
        micrometres."""
        pixels = None if image is None else image.find("{*}Pixels")
        if pixels is None:
            return 0.0
        unit = pixels.get(f"PhysicalSize{axis}Unit", "\u03bcm")
        factor = MICROMETRES.get(unicodedata.normalize("NFKC", unit))
        try:
            size = float(pixels.get(f"PhysicalSize{axis}", ""))
        except ValueError:
            return 0.0
        if factor is None:
            note = f"slide {self.path.name}: its pixel size is in '{unit[:20]}', which is no length, and was ignored"
            self.notes += [note] if note not in self.notes else []
        return size * factor if factor is not None and np.isfinite(size) and size > 0 else 0.0

    def _check_channels(self, image: ElementTree.Element | None, pages: list) -> None:
        """InputError when the channels of a picture, a page each, are not red, green and blue."""
        if len(pages) > 1 and pages[0].samplesperpixel > 1:
            self.notes.append(f"slide {self.path.name}: the first of its {len(pages)} planes is read")
        if len(pages) == 1 or pages[0].samplesperpixel > 1:
            return
        channels = [] if image is None else image.findall("{*}Pixels/{*}Channel")
        names, colours = [channel.get("Name", "") for channel in channels], [_colour(c) for c in channels]
        if colours == RGB or [name.lower() for name in names] in (RGB, ["r", "g", "b"]):
            return
        if len(pages) == 3 and not any(names) and not any(colours):
            self.notes.append(
                f"slide {self.path.name}: its three channels are read as red, green and blue, for it names none"
            )
            return
        told = f" ({', '.join(filter(None, names))[:60]})" if any(names) else ""
        raise InputError(
            f"slide {self.path.name} has {len(pages)} pages of one channel{told}, which are not red, "
            "green and blue: save it as one RGB picture, or take it out of the cohort table"
        )


def open_ome(path: Path) -> OmeFile | None:
    """The file if it is an OME-TIFF, None if it is anything else; InputError for channels that are no colours."""
    with open(path, "rb") as handle:
        if handle.read(4) not in MAGIC:
            return None
    file = None
    try:
        file = tifffile.TiffFile(path)
        if file.is_ome:
            return OmeFile(path, file)
    except InputError:
        file.close()
        raise
    except Exception:  # whatever tifffile stumbles on, OpenSlide reads it or says what is wrong
        pass
    if file is not None:
        file.close()
    return None


def _size(series) -> tuple[int, int]:
    page = series.levels[0].pages[0]
    return page.imagewidth, page.imagelength


def _pages(series) -> dict[int, list]:
    """The pages of the levels that are RGB, from the finest on: one each, or one for each colour."""
    found = {}
    for number, level in enumerate(series.levels):
        pages, kinds = list(level.pages), [page.keyframe for page in level.pages]
        one = len(pages) == 1 and is_rgb(kinds[0]) and kinds[0].photometric.name in ("RGB", "YCBCR")
        three = len(pages) == 3 and all(
            kind.is_tiled and kind.dtype == np.uint8 and kind.samplesperpixel == 1 for kind in kinds
        )
        if not (one or three):
            break
        found[number] = pages
    return found


def _image(root: ElementTree.Element, dimensions: tuple[int, int]) -> ElementTree.Element | None:
    """The XML of the picture of this size."""
    wanted = [str(side) for side in dimensions]
    for image in root.findall("{*}Image"):
        pixels = image.find("{*}Pixels")
        if pixels is not None and [pixels.get("SizeX"), pixels.get("SizeY")] == wanted:
            return image
    return None


def _objective(root: ElementTree.Element, image: ElementTree.Element | None) -> float:
    """The nominal magnification of the objective that a picture names; 0 where it names none."""
    settings = None if image is None else image.find("{*}ObjectiveSettings")
    for objective in root.findall("{*}Instrument/{*}Objective"):
        if settings is not None and objective.get("ID") == settings.get("ID"):
            try:
                return max(float(objective.get("NominalMagnification", 0)), 0.0)
            except ValueError:
                return 0.0
    return 0.0


def _colour(channel: ElementTree.Element) -> str:
    """The colour of a channel where it is one of RGB. It is written as a signed number of 32 bits: R, G, B, alpha."""
    try:
        number = int(channel.get("Color", "-1")) & 0xFFFFFFFF
    except ValueError:
        return ""
    return COLOURS.get((number >> 24, number >> 16 & 255, number >> 8 & 255), "")
