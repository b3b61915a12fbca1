"""TIFF slides without OpenSlide: a decoder at a fifth to an eighth of its cost, and why it does not read a file."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import tifffile

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is said once, in our line
PICTURES = {b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture"}  # by their first bytes


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
