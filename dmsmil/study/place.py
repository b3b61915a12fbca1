"""Where the things of a study lie: the project's folder, the study's own."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dmsmil.jobs.files import ROOT, InputError


def resolve(path: str | Path) -> Path:
    """A path of a params file: `~` is the person's home, absolute as it is, relative to the project's folder. Whether
    anything is there is not asked; InputError where that cannot be asked."""
    place = ROOT / os.path.expanduser(path)
    try:
        os.stat(place)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise InputError(
            f"{str(path)[:80]} cannot be reached ({error.strerror}): correct the path in the params file, or see to it"
        ) from error
    return place


def is_name(name: str) -> bool:
    """Whether a study can be called so: its name is that of a folder, and no more."""
    return bool(re.fullmatch(r"[\w.-]+", name)) and bool(name.strip(".")) and len(name.encode()) <= 100


def folder_of(study: str, outputs: str) -> Path:
    """Where the folder of a study is, or would be; InputError for what cannot be a name."""
    if not is_name(study):
        raise InputError(f"study is '{study}': a name of letters, digits, '-', '_' and '.' is needed")
    return resolve(outputs) / study


def study_folder(study: str, outputs: str = "outputs") -> Path:
    """The folder of a study: <outputs>/<study>, made if need be. InputError where nothing can be written."""
    folder = folder_of(study, outputs)
    check_writable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error.strerror) from error
    return folder


def check_writable(folder: Path) -> None:
    """InputError when `folder` is a file, or cannot be written, or could not be made where it is to be."""
    there = next(place for place in (folder, *folder.parents) if place.exists() or place.is_symlink())
    if not there.is_dir():
        raise InputError(f"{there.name} is no folder, so no study can go there: change outputs or study")
    if not os.access(there, os.W_OK | os.X_OK):
        raise _unwritable(there, "no right to")


def _unwritable(folder: Path, why: str) -> InputError:
    return InputError(
        f"the folder {folder.name or folder} cannot be written ({why}): mend that, or name another with the key outputs"
    )


def shown(path: Path) -> str:
    """A path as a person would type it."""
    return os.path.relpath(path)
