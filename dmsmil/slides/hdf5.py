"""HDF5 files that are whole or absent, and that show when a byte of them has changed.

Each says what made it (`config`, JSON) and what was written (`content`, JSON: the hash of each data set and of config).
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


@contextmanager
def writing(path: Path, config: dict | None = None) -> Iterator[h5py.File]:
    """A new HDF5 file to fill; when the block ends well, it is at `path`. Raises DiskFull.

    It is built in memory and its bytes are then written: HDF5 itself crashes the process on a full disk, and creates
    no file on a disk without locks.
    """
    with h5py.File.in_memory(libver=VERSION) as file:
        yield file
        content = {name: content_hash(data[:]) for name, data in file.items()}
        if config is not None:
            file.attrs["config"] = plain(config)
            content["config"] = content_hash(plain(config).encode())
        file.attrs["content"] = plain(content)
        file.flush()
        image = file.id.get_file_image()
    with atomic(path) as temporary:
        temporary.write_bytes(image)


def read_data(file: h5py.File, name: str) -> np.ndarray:
    """A data set; OSError when it is not what was written. A file that does not say what that was is believed."""
    values, said = file[name][:], content_of(file)
    if said and said[name] != content_hash(values):
        raise OSError(f"'{name}' is not what was written")
    return values


def content_of(file: h5py.File) -> dict[str, str]:
    """The hashes of what was written, by data set; none in a file of another program."""
    return json.loads(file.attrs["content"]) if "content" in file.attrs else {}


def config_of(file: h5py.File) -> dict | None:
    """What made the file, None if it does not say; OSError when that is not what was written."""
    if "config" not in file.attrs:
        return None
    text, said = file.attrs["config"], content_of(file)
    if said and said["config"] != content_hash(text.encode()):
        raise OSError("'config' is not what was written")
    return json.loads(text)


def plain(value) -> str:
    """The JSON of a value: equal values, equal text."""
    return json.dumps(value, sort_keys=True)
