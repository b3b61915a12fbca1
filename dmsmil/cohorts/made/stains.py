"""One stain for all fields: normalisers of torchstain, fitted to a mixture of both classes.

Macenko et al. (ISBI 2009) find the two stains of a picture as directions of optical density and replace them by the
reference's; what is not stained stays light. Reinhard et al. (IEEE CGA 2001) move mean and deviation of L*, a*, b* to
the reference's. One after the other, the first takes the camera's white balance away, the second gives the stains and
the glass back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from dmsmil.jobs.files import InputError

WAYS = ("none", "macenko", "reinhard", "reinhard+macenko")
REFERENCE = 32  # fields of each class in the reference


def reference_fields(fields: dict[str, list[str]]) -> list[str]:
    """The fields that make the reference: equally many of each class, at most REFERENCE, evenly spaced in its list.

    The mixture is fixed: it depends neither on a seed nor on the slides, and it is no class's own.
    """
    count = min(REFERENCE, *map(len, fields.values()))
    return [names[i] for names in fields.values() for i in np.linspace(0, len(names) - 1, count).astype(int)]


def fit_stains(way: str, reference: list[np.ndarray]) -> list[Callable]:
    """What `restain` does to a field one after the other, each fitted to a montage of `reference`, RGB uint8 fields.

    way: one of WAYS. Raises InputError for another.
    """
    if way not in WAYS:
        raise InputError(f"normalise is '{way}': it is one of {', '.join(WAYS)}")
    if way == "none":
        return []
    from torchstain.base.normalizers import MacenkoNormalizer, ReinhardNormalizer  # only this cohort needs it

    makers = {"macenko": MacenkoNormalizer, "reinhard": ReinhardNormalizer}
    montage, steps = np.concatenate(reference), []
    for name in way.split("+"):
        normaliser = makers[name](backend="numpy")
        normaliser.fit(montage)
        steps.append(normaliser)
    return steps


def restain(rgb: np.ndarray, steps: list, name: str) -> np.ndarray:
    """RGB uint8 (height, width, 3) of the field `name`, normalised by the `steps` of `fit_stains`.

    Raises InputError for a field without stain or contrast, which cannot be normalised.
    """
    for step in steps:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)  # a mean of nothing, a division by a deviation of 0
                found = step.normalize(rgb)
        except (RuntimeWarning, np.linalg.LinAlgError, ValueError, IndexError) as error:
            raise InputError(
                f"{name} has too little stain to be normalised: remove it, or say --normalise none"
            ) from error
        rgb = found[0] if isinstance(found, tuple) else found  # Macenko also gives each stain alone
    return rgb
