"""The files of a run: written once, and known again when they are read.

config.json is written last. Its key `files` says of every file of the run what was written, so that bytes that a
disk, a transfer or a person changed are never taken for a result. What is here decides no result: it is not part of a
run's name.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pandas as pd
import torch

from dmsmil.jobs.files import InputError, atomic, fingerprint, read_json, write_json
from dmsmil.training.health import judged

RECORD = "config.json"
FILES = ("predictions.csv", "history.csv", "model.safetensors")


def write_record(record: dict, folder: Path) -> None:
    """Write config.json of a run whose other files are there: `record` with its marks as `health.judged`, and under
    `files` what each of them holds.

    Its own entry is the fingerprint of all else in it.
    """
    record = {**record, **judged(record, _terms(folder))}
    files = {name: _content(folder / name) for name in FILES}
    write_json({**record, "files": {**files, RECORD: _own(record)}}, folder / RECORD)


def read_record(folder: Path) -> dict | None:
    """config.json of a finished run; None where a file of the run is absent. Its marks are those of `health.judged`,
    also where it was written when they were of the last epoch alone.

    Raises InputError when config.json is not what was written, or history.csv cannot be read. `check_files` says so of
    the others.
    """
    if not all((folder / name).is_file() for name in (RECORD, *FILES)):
        return None
    try:
        record = read_json(folder / RECORD)
        rest = {key: value for key, value in record.items() if key != "files"}
        whole = record["files"][RECORD] == _own(rest)
    except (ValueError, KeyError, TypeError, AttributeError):  # no JSON, or JSON of another shape
        whole = False
    if not whole:
        raise InputError(f"{RECORD} is not what was written")
    if "judged" in record:
        return record
    try:
        return {**record, **judged(record, _terms(folder))}
    except (ValueError, TypeError) as error:  # no table, or one of words
        raise InputError("history.csv is not what was written") from error


def _terms(folder: Path) -> pd.DataFrame:
    """What marks are judged by."""
    return pd.read_csv(folder / "history.csv", usecols=lambda name: name in ("epoch", "L_ce", "spread"))


def check_files(folder: Path, record: dict) -> None:
    """InputError that names the first file of a run which is not what `record` says was written."""
    for name in FILES:
        if _content(folder / name) != record["files"][name]:
            raise InputError(f"{name} is not what was written")


def _own(record: dict) -> str:
    return fingerprint(record, 64)


def _content(path: Path) -> dict:
    """Size in bytes and SHA-256 of a file. 1 GB takes a second."""
    with open(path, "rb") as handle:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}


def write_checkpoint(state: dict, path: Path) -> None:
    """Keep the state of a run in training: the SHA-256 of what follows, then what torch.save writes.

    torch.load alone does not see a changed byte of a tensor.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic(path) as temporary:
        temporary.write_bytes(hashlib.sha256(buffer.getbuffer()).digest() + buffer.getvalue())


def read_checkpoint(path: Path) -> dict | None:
    """What `write_checkpoint` kept, on the CPU; None when it cannot be read or is not what was written."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            return None
        return torch.load(io.BytesIO(content[32:]), weights_only=True, map_location="cpu")
    except Exception:  # whatever is wrong with it, the run can begin anew
        return None
