"""What a study ran on."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata

import psutil

from dmsmil.jobs.parallel import pick_device


def versions() -> dict[str, str]:
    """The versions of all that the package requires, extras apart."""
    required = [line for line in metadata.requires("dmsmil") or [] if "extra ==" not in line]
    found = {}
    for name in (re.split(r"[^\w.-]", line)[0] for line in required):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def environment(device: str = "auto") -> dict:
    """What a study ran on: versions, processor, memory, the GPU of `device` (a key of the params), "none" where it is a
    CPU. No paths, no names of people."""
    import torch

    place = pick_device(device)

    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name(place) if place.type == "cuda" else "none",
        "packages": versions(),
    }
