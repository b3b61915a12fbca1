"""DICOM slides: which files are one slide (a series), and what the label of its glass says.

OpenSlide opens a series by any of its files, but tells of which series a file is only after it has read all files
beside it. So the four data elements that tell are read here: DICOM PS3.5 chapter 7 says how elements are written, PS3.3
A.32.8 which ones a slide has.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dmsmil.jobs.files import InputError

IMAGE_TYPE, MODALITY, SERIES, CONTAINER = 0x00080008, 0x00080060, 0x0020000E, 0x00400512
SYNTAX = 0x00020010  # how what follows the file's first group is written
UNREAD = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")  # implicit, big-endian, deflated
LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}  # lengths of 4 bytes
UNDEFINED = 0xFFFFFFFF  # the length of what ends with a delimiter
ITEM_END, SEQUENCE_END = 0xFFFEE00D, 0xFFFEE0DD


class Series(NamedTuple):
    """A DICOM slide: its series' UID, the identifier of its glass ("" where there is none), its files, and the largest
    file of its picture, by which it is opened."""

    uid: str
    container: str
    files: list[Path]
    path: Path


def find_series(paths: Iterable[Path]) -> list[Series]:
    """The slides among some files; files of other kinds, and series without a picture of a slide, are passed over."""
    files, pictures, containers = defaultdict(list), defaultdict(list), {}
    for path in sorted(paths):
        told = header(path)
        if told.get(MODALITY) == "SM" and SERIES in told:
            uid = told[SERIES]
            files[uid].append(path)
            if "VOLUME" in told.get(IMAGE_TYPE, ""):
                pictures[uid].append(path)
                containers[uid] = told.get(CONTAINER, "")
    return [
        Series(uid, containers[uid], files[uid], max(found, key=lambda path: path.stat().st_size))
        for uid, found in pictures.items()
    ]


def slide_in(folder: Path) -> Path | None:
    """The file to open the one DICOM slide in a folder by, None where there is none; InputError that names several."""
    try:
        found = find_series(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise InputError(f"the folder {folder.name} cannot be read ({error.strerror}): mend that") from error
    if len(found) > 1:
        told = " and ".join(f"{one.container or one.uid} ({one.path.name})" for one in found[:2])
        raise InputError(
            f"the folder {folder.name} holds {len(found)} DICOM slides, {told}"
            f"{', ...' if len(found) > 2 else ''}: name a file of the one that is meant"
        )
    return found[0].path if found else None


def header(path: Path) -> dict[int, str]:
    """Image type, modality, series and container of a DICOM file, by tag; {} for a file of another kind."""
    try:
        with open(path, "rb") as file:
            file.seek(128)
            if file.read(4) != b"DICM":
                return {}
            return dict(_texts(file))
    except (OSError, struct.error, RecursionError):
        return {}


def _texts(file: BinaryIO) -> Iterator[tuple[int, str]]:
    for tag, length in _elements(file):
        if tag > CONTAINER:
            return
        if tag in (SYNTAX, IMAGE_TYPE, MODALITY, SERIES, CONTAINER):
            text = file.read(length).decode("utf-8", "replace").strip(" \0")
            if tag == SYNTAX and text in UNREAD:
                return
            yield tag, text
        else:
            file.seek(length, 1)


def _elements(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """(tag, length) of each data element; the file stands at its value. What has no length is passed over."""
    while len(begin := file.read(8)) == 8:
        group, element, kind, length = struct.unpack("<HH2sH", begin)
        tag = group << 16 | element
        if tag == ITEM_END:
            return
        if kind in LONG:
            (length,) = struct.unpack("<I", file.read(4))
        if length == UNDEFINED:
            _pass_items(file)
        else:
            yield tag, length


def _pass_items(file: BinaryIO) -> None:
    """To the end of a sequence that has no length."""
    while True:
        group, element, length = struct.unpack("<HHI", file.read(8))
        if group << 16 | element == SEQUENCE_END:
            return
        if length != UNDEFINED:
            file.seek(length, 1)
            continue
        for _, inner in _elements(file):
            file.seek(inner, 1)
