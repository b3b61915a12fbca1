"""Where the things of a study lie: the project's folder, the study's own."""

from __future__ import annotations

import re
from pathlib import Path

from dmsmil.jobs.files import ROOT, InputError


def resolve(path: str | Path) -> Path:
    """A path of a params file: absolute as it is, relative to the project's folder otherwise."""
    return Path(path) if Path(path).is_absolute() else ROOT / path


def study_folder(study: str, outputs: str = "outputs") -> Path:
    """The folder of a study: <outputs>/<study>, made if need be."""
    folder = folder_of(study, outputs)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def folder_of(study: str, outputs: str) -> Path:
    """Where the folder of a study is, or would be; InputError for what cannot be a name."""
    if not re.fullmatch(r"[\w.-]+", study):
        raise InputError(f"study is '{study}': a name of letters, digits, '-', '_' and '.' is needed")
    return resolve(outputs) / study
