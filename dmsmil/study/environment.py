"""What a study ran on."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import psutil

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


def environment() -> dict:
    """What a study ran on: versions, processor, memory, GPU. No paths, no names of people."""
    import torch

    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "packages": versions(),
    }
