"""Files that are whole or absent, errors a reader can act on, and the table of failures."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).resolve().parents[2]  # the checkout: notebooks/, params/, outputs/


class InputError(ValueError):
    """Bad input. The message is one line: what is wrong, and what to do about it."""


class DiskFull(InputError):
    """The disk is full: unlike one broken slide, this stops the study (what is written so far is kept)."""


@contextmanager
def atomic(path):
    """Yield a temporary path beside `path`; it becomes `path` only when the block ends well.

    A reader therefore never sees half a file, and a killed process leaves `path` as it was.
    Raises DiskFull when the disk has no room left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except Exception as error:
        if _is_full(error):
            raise DiskFull(f"no space left on the disk while writing {path.name}: "
                           "free some space and start the same command again, it continues") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _is_full(error: Exception) -> bool:
    """Whether an error means a full disk: h5py and safetensors say so only in their text."""
    told = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return told or any(sign in str(error) for sign in ("errno = 28", "os error 28", "No space left on device"))


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


def fingerprint(value, length: int = 10) -> str:
    """A short hexadecimal name for any JSON-like value: equal values, equal names, on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_md5(path) -> str:
    """The MD5 of a file in hexadecimal: against accidents, for public lists give no stronger one."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def one_line(error: BaseException) -> str:
    """An exception as one line of text."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
