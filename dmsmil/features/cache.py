"""The features of a cohort in one file to be memory-mapped: whole, and not used when a byte of it has changed.

It is a .npy file, float32, with the XXH3 hash of all its bytes behind them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from dmsmil.jobs.files import atomic

BLOCK, DIGEST = 2**18, 16  # bytes read at a time, and of the hash

_checked: dict[Path, tuple[int, int]] = {}  # files found whole in this process: when they were written, and their size


def write_mapped(path: Path, shape: tuple[int, ...], rows: Iterable[np.ndarray]) -> None:
    """Write an array of `shape` row by row, float32. Raises DiskFull: a map would crash the process on a full disk."""
    header, total = io.BytesIO(), xxhash.xxh3_128()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with atomic(path) as temporary, open(temporary, "wb") as file:
        file.write(header.getvalue())
        total.update(header.getvalue())
        for row in rows:
            row = np.ascontiguousarray(row, "<f4")
            file.write(row)
            total.update(row)
        file.write(total.digest())
    _checked[path] = _stamp(path)


def has_mapped(path: Path, report: Callable[[str], None]) -> bool:
    """Whether the file is there and what was written; one that is not is deleted, with a line.

    It is read through once a process, at the speed of the disk, or some 5 GB/s when it is in memory already.
    """
    if not path.exists():
        return False
    if _checked.get(path) != _stamp(path):
        if not _is_whole(path):
            report(f"{path.parent.name}/{path.name} is not what was written: it is made again")
            path.unlink()
            return False
        _checked[path] = _stamp(path)
    return True


def read_mapped(path: Path) -> Tensor:
    """The array memory-mapped, copy on write: nothing done to the tensor reaches the file."""
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _is_whole(path: Path) -> bool:
    total, left, block = xxhash.xxh3_128(), path.stat().st_size - DIGEST, memoryview(bytearray(BLOCK))
    try:
        with open(path, "rb", buffering=0) as file:
            while left > 0:
                size = file.readinto(block[: min(BLOCK, left)])
                total.update(block[:size])
                left -= size
            return file.read(DIGEST) == total.digest()
    except OSError:  # a disk that cannot read it
        return False


def _stamp(path: Path) -> tuple[int, int]:
    return path.stat().st_mtime_ns, path.stat().st_size
