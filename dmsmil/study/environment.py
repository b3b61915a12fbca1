"""What a study ran on."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import psutil

from dmsmil.jobs.parallel import pick_device

PACKAGES = (
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
    "torch",
    "torchvision",
    "timm",
    "openvino",
    "POT",
    "h5py",
    "openslide-python",
    "openslide-bin",
    "tifffile",
    "imagecodecs",
    "papermill",
    "matplotlib",
    "seaborn",
)


def versions() -> dict[str, str]:
    """The versions of what the package stands on."""
    found = {}
    for name in PACKAGES:
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
