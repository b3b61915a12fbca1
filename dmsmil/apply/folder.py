"""The folder of a model that travels, and what it says of itself; the models in it are `travel.py`'s to read."""

from __future__ import annotations

from pathlib import Path

from dmsmil.jobs.files import InputError, fingerprint, read_json

MODEL, FORMAT = "model.json", 1
OTHERS = "apply"  # of a study's folder: where all lies that is of slides which are not its own


def is_kit(folder: str | Path) -> bool:
    """Whether a folder is an exported model."""
    return (Path(folder) / MODEL).is_file()


def read_model(folder: str | Path) -> dict:
    """model.json of an exported model. Raises InputError where it is absent, or is not what was written."""
    folder = Path(folder)
    if not is_kit(folder):
        raise InputError(f"{folder.name} is no exported model, for it has no {MODEL}: dmsmil export makes one")
    try:
        whole = read_json(folder / MODEL)
        rest = {key: value for key, value in whole.items() if key != "fingerprint"}
        same = whole["fingerprint"] == fingerprint(rest, 64)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        same = False
    if not same:
        raise InputError(f"{MODEL} in {folder.name} is not what was written: do not trust it, copy the folder again")
    if whole["format"] != FORMAT:
        raise InputError(
            f"{folder.name} is of format {whole['format']}, and this version of dmsmil reads {FORMAT}: export it again"
        )
    return whole
