"""TIFF slides without OpenSlide: a decoder at a fifth to an eighth of its cost, and why it does not read a file."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import tifffile

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is said once, in our line
ERASED = re.compile(rb"\x00{64}|\xff{64}")
PICTURES = {b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture"}  # by their first bytes


class TiffLevels:
    """The levels of a TIFF slide decoded by tifffile's own decoder, one file tile at a time.

    pages: the pages of each level that can be read: one of uint8 RGB, or three of one uint8 channel, which are red,
    green and blue; all of them tiled. doubted: a JPEG that may be damaged is not decoded, for OpenSlide can be asked. A
    file tile that is absent (of no bytes) is white if `absent_white`, else `region` raises, as it does for one that
    cannot be decoded.
    """

    def __init__(
        self, file: tifffile.TiffFile, pages: dict[int, list], absent_white: bool = False, doubted: bool = False
    ):
        self.file, self.pages, self.absent_white, self.doubted = file, pages, absent_white, doubted

    @classmethod
    def shown(cls, path, level_dimensions) -> TiffLevels:
        """Of the levels of OpenSlide those that it shows unchanged: one interleaved RGB page of the same size."""
        file = tifffile.TiffFile(path)
        pages = [page for page in file.pages if is_rgb(page) and page.planarconfig == 1]
        found = [[page for page in pages if (page.imagewidth, page.imagelength) == size] for size in level_dimensions]
        return cls(file, {level: same for level, same in enumerate(found) if len(same) == 1}, doubted=True)

    def region(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """uint8 (height, width, 3) of a level; `x`, `y` in the pixels of that level, all of it inside the level."""
        key = self.pages[level][0]
        side_x, side_y, columns = key.tilewidth, key.tilelength, -(-key.imagewidth // key.tilewidth)
        if x < 0 or y < 0 or x + width > key.imagewidth or y + height > key.imagelength:
            raise ValueError("region outside the level")
        out = np.empty((height, width, 3), np.uint8)
        for page, first, samples in _planes(self.pages[level]):
            for row in range(y // side_y, -(-(y + height) // side_y)):
                for column in range(x // side_x, -(-(x + width) // side_x)):
                    tile = self._tile(page, first + row * columns + column)
                    left, top = column * side_x, row * side_y
                    x0, x1 = max(x, left), min(x + width, left + side_x)
                    y0, y1 = max(y, top), min(y + height, top + side_y)
                    part = 255 if tile is None else tile[y0 - top : y1 - top, x0 - left : x1 - left]
                    out[y0 - y : y1 - y, x0 - x : x1 - x, samples] = part
        return out

    def _tile(self, page, index: int) -> np.ndarray | None:
        """uint8 (height, width, samples) of a file tile, None for one that is absent and white."""
        size, handle = page.databytecounts[index], page.parent.filehandle
        if not size and self.absent_white:
            return None
        handle.seek(page.dataoffsets[index])
        data = handle.read(size)
        if not data or len(data) != size:
            raise ValueError("a tile of the file is absent or cut short")
        if self.doubted and page.compression == tifffile.COMPRESSION.JPEG and _is_suspect(data):
            raise ValueError("a tile of the file may be damaged")
        return page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.keyframe.jpegheader)[0][0]

    def detailed(self, level: int) -> tuple[int, int]:
        """Top-left corner, in level pixels, of the file tile with the most bytes: the one with the most detail."""
        page = self.pages[level][0]
        row, column = divmod(int(np.argmax(page.databytecounts)), -(-page.imagewidth // page.tilewidth))
        return column * page.tilewidth, row * page.tilelength


def _is_suspect(data: bytes) -> bool:
    """Whether a JPEG lacks its end, or holds a run of equal bytes as an erased disk does: tifffile's decoder would fill
    the rest with something, and say nothing. Sound flat tiles may look so too; OpenSlide then reads them."""
    return not data.rstrip(b"\0").endswith(b"\xff\xd9") or ERASED.search(data) is not None


def is_rgb(page) -> bool:
    """Whether a page is tiled and has red, green and blue of a byte each."""
    return page.is_tiled and page.dtype == np.uint8 and page.samplesperpixel == 3


def _planes(pages: list) -> list[tuple]:
    """(page, number of its first file tile, channels of the picture that these hold) for each part of a level."""
    if len(pages) == 3:
        return [(page, 0, slice(channel, channel + 1)) for channel, page in enumerate(pages)]
    page = pages[0]
    if page.planarconfig == 1:
        return [(page, 0, slice(3))]
    count = len(page.dataoffsets) // 3
    return [(page, channel * count, slice(channel, channel + 1)) for channel in range(3)]


def why_not(path: Path) -> str:
    """What a file is that OpenSlide does not read though it is whole, or "" when it is something else, or damaged."""
    with open(path, "rb") as handle:
        begin = handle.read(8)
    for signature, what in PICTURES.items():
        if begin.startswith(signature):
            return what
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts)]
            if not ends or max(ends) > path.stat().st_size:
                return ""
            return f"a TIFF compressed as {page.compression.name}" if page.is_tiled else "a TIFF in strips"
    except Exception:  # no TIFF, or one that even its own library cannot follow
        return ""
