"""Files that are whole or absent, what kills leave behind, and errors a reader can act on."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import time
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import xxhash

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

BLOCK, SAMPLES = 1 << 20, 32  # of `sampled_hash`
FORGOTTEN = 7 * 86400  # seconds after which a temporary file of a machine that cannot be asked has no writer any more
TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8,12})\.(\d+)\.tmp")  # as `temporary_path` names them
ROOT = Path(__file__).resolve().parents[2]  # the checkout: notebooks/, params/, outputs/


class InputError(ValueError):
    """Bad input. The message is one line: what is wrong, and what to do about it."""


class Halt(InputError):
    """Unlike one broken slide this stops the study; what is written so far is kept."""


class DiskFull(Halt):
    """The disk is full."""


@contextmanager
def atomic(path):
    """Yield a temporary path beside `path`; it becomes `path` only when the block ends well.

    A reader therefore never sees half a file, and a killed process leaves `path` as it was. Who may read it is what the
    umask says, whatever writes it (safetensors would let nobody but the owner).
    Raises DiskFull when the disk has no room left, InputError where nothing may be written.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        _begin(temporary)
        mode = temporary.stat().st_mode
        yield temporary
        if temporary.stat().st_mode != mode:
            temporary.chmod(mode)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except Exception as error:
        if _is_full(error):
            raise DiskFull(
                f"no space left on the disk while writing {path.name}: "
                "free some space and start the same command again, it continues"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _begin(temporary: Path) -> None:
    """An empty file where something is to be written."""
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise InputError(
            f"nothing can be written in the folder {temporary.parent.name} ({error.strerror}): give yourself that right"
        ) from error


def _is_full(error: Exception) -> bool:
    """Whether an error means a full disk: h5py, safetensors and numpy say so only in their text."""
    told = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    signs = r"errno = 28|os error 28|No space left on device|\d requested and \d+ written"
    return told or re.search(signs, str(error)) is not None


def temporary_path(path) -> Path:
    """Where this process writes what becomes `path`: a hidden name beside it that says whose it is (see `sweep`)."""
    path = Path(path)
    return path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.tmp")


@cache
def _machine() -> str:
    """Within what a process number means one process: this machine (6 digits), since its start (3), and this container
    on it (3)."""
    start, container = "", ""
    with suppress(OSError):  # not on Linux
        start, container = Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")
    return fingerprint(socket.gethostname(), 6) + fingerprint(start, 3) + fingerprint(container, 3)


def _is_gone(machine: str, process: int, age: float) -> bool:
    """Whether the process that left a temporary file is gone: it is not there, or of before this machine's start, or,
    where that cannot be asked, has written nothing for FORGOTTEN seconds."""
    mine = _machine()
    if machine == mine:
        return not psutil.pid_exists(process)
    return machine[:6] == mine[:6] and machine[6:9] != mine[6:9] or age > FORGOTTEN


def sweep(folder) -> list[Path]:
    """Delete the temporary files anywhere in `folder` that a killed process left there; returns them.

    A file of a process that runs is never touched; one of before this machine's start has none. Whether one runs on
    another machine cannot be asked: there, a file goes when nobody has written to it for FORGOTTEN seconds.
    """
    gone = []
    for path in sorted(Path(folder).rglob(".*.tmp")):
        if (whose := TEMPORARY.fullmatch(path.name)) is None:
            continue
        with suppress(FileNotFoundError):  # it became what it was written for
            age = time.time() - path.stat().st_mtime
            if _is_gone(whose[1], int(whose[2]), age):
                path.unlink()
                gone.append(path)
    return gone


def write_text(text: str, path) -> Path:
    """Write `text` to `path`, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(value, path) -> Path:
    """Write `value` as indented JSON with sorted keys, atomically."""
    return write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n", path)


def read_json(path):
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_csv(frame: pd.DataFrame, path, digits: int | None = None) -> Path:
    """Write `frame` as CSV without its index, atomically; floats with `digits` significant digits if given."""
    float_format = None if digits is None else f"%.{digits}g"
    return write_text(frame.to_csv(index=False, float_format=float_format, lineterminator="\n"), path)


def walk(folder: str | Path) -> Iterator[Path]:
    """Every file below a folder, in linked folders too, each folder once; hidden ones, as macOS leaves, are passed, and
    folders that may not be read."""
    seen = set()
    for here, inner, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(here)
        if place in seen:  # a link to a folder above it, or to one that was here before
            inner.clear()
            continue
        seen.add(place)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield from (Path(here, name) for name in sorted(names) if not name.startswith("."))


def is_file(path: str | Path) -> bool:
    """Whether a file is there. False too where that cannot be asked (a folder without permission, a name too long, a
    disk of the network that is away), where Path.is_file raises before Python 3.14."""
    return os.path.isfile(path)


def fingerprint(value, length: int = 10) -> str:
    """A short hexadecimal name for any JSON-like value: equal values, equal names, on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def content_hash(*parts) -> str:
    """XXH3 (128 bits, hexadecimal) of bytes and arrays, one after the other: against accidents, at the speed of memory.
    An array counts with its type and shape; it is contiguous."""
    total = xxhash.xxh3_128()
    for part in parts:
        if hasattr(part, "dtype"):
            total.update(f"{part.dtype.str}{part.shape}".encode())
        total.update(part.data if hasattr(part, "dtype") else part)
    return total.hexdigest()


def sampled_hash(path: str | Path) -> str:
    """A hash of a file's size, of its first and last MiB and of SAMPLES blocks between them: milliseconds, where the
    whole of a slide takes seconds. Files that differ in pixels differ here, but for a change of a few bytes."""
    size, digest = os.path.getsize(path), hashlib.sha256()
    digest.update(str(size).encode())
    with open(path, "rb") as handle:
        for at in sorted({0, *(size * part // SAMPLES for part in range(SAMPLES)), max(0, size - BLOCK)}):
            handle.seek(at)
            digest.update(handle.read(BLOCK if at in (0, size - BLOCK) else BLOCK // 16))
    return digest.hexdigest()[:16]


def file_md5(path) -> str:
    """The MD5 of a file in hexadecimal: against accidents, for public lists give no stronger one."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def one_line(error: BaseException) -> str:
    """An exception as one line of text."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
