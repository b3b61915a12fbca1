"""HDF5 files that are whole or absent, and that show when a byte of them has changed.

Each says what made it (attribute `config`, JSON) and what was written (attribute `xxh3_128`, JSON: the hash of each
data set and of config). Files of other programs say neither, and are believed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from dmsmil.jobs.files import atomic, content_hash

VERSION = ("v108", "v108")  # of HDF5: since then it keeps checksums of its own of shapes, types and attributes
GROWTH = 2**21  # bytes by which a file in memory grows; what is not used is not written


class New:
    """An HDF5 file in memory, and the hashes of what was put in it."""

    def __init__(self, file: h5py.File):
        self.file, self.hashes = file, {}

    def put(self, name: str, values: np.ndarray, **options) -> h5py.Dataset:
        """Add a data set, with options of h5py's create_dataset; values are contiguous."""
        self.hashes[name] = content_hash(values)
        return self.file.create_dataset(name, data=values, **options)


@contextmanager
def writing(path: Path, config: dict | None = None) -> Iterator[New]:
    """A new HDF5 file to fill; when the block ends well, it is at `path`. Raises DiskFull.

    It is built in memory and its bytes are then written: HDF5 itself crashes the process on a full disk, and creates
    no file on a disk without locks.
    """
    with h5py.File.in_memory(libver=VERSION, block_size=GROWTH) as file:
        new = New(file)
        yield new
        new.hashes["config"] = content_hash(plain(config).encode())
        file.attrs["config"], file.attrs["xxh3_128"] = plain(config), plain(new.hashes)
        file.flush()
        image = file.id.get_file_image()
    with atomic(path) as temporary:
        temporary.write_bytes(image)


class Written:
    """An open HDF5 file; hashes: what it says was written, by data set."""

    def __init__(self, file: h5py.File):
        self.file = file
        self.hashes: dict[str, str] = json.loads(file.attrs["xxh3_128"]) if "xxh3_128" in file.attrs else {}

    def config(self) -> dict | None:
        """What made the file, None if it does not say; OSError when that is not what was written."""
        if "config" not in self.file.attrs:
            return None
        text = self.file.attrs["config"]
        self._check("config", text.encode())
        return json.loads(text)

    def data(self, name: str) -> np.ndarray:
        """A data set; OSError when it is not what was written."""
        values = self.file[name][:]
        self._check(name, values)
        return values

    def _check(self, name: str, value) -> None:
        if self.hashes and self.hashes.get(name) != content_hash(value):
            raise OSError(f"'{name}' is not what was written")


@contextmanager
def reading(path: Path) -> Iterator[Written]:
    """An open file. Whatever is wrong with its bytes is an OSError, KeyError or ValueError."""
    with h5py.File(path, "r", locking=False) as file:  # files never change: locks only fail, on NFS
        try:
            yield Written(file)
        except RuntimeError as error:  # as HDF5 says that a checksum of its own does not fit
            raise OSError(str(error)) from error


def plain(value) -> str:
    """The JSON of a value: equal values, equal text."""
    return json.dumps(value, sort_keys=True)


def difference(have, want, name: str = "") -> str:
    """The first place where two JSON-like values differ, in words; "" when they do not."""
    if isinstance(have, dict) and isinstance(want, dict):
        for key in sorted(have.keys() | want.keys()):
            if text := difference(have.get(key), want.get(key), f"{name}.{key}".lstrip(".")):
                return text
        return ""
    return "" if plain(have) == plain(want) else f"{name} is {have!r}, not {want!r}"
