"""The lung fields of LC25000, and which of them stem from one original.

LC25000 (Borkowski et al. 2019, arXiv:1912.12142) has 5,000 fields each of lung adenocarcinoma, squamous cell carcinoma
and benign lung, 768 x 768 px, made from 250 originals each by rotation, shear, zoom and flips, and does not say which
fields stem from one original. Split at random, copies of one picture would stand on both sides. So the fields are
compared with each other: two stem from one original (or from photographs that overlap) when an affine map carries the
local features of one onto the other.

Colour takes no part in the comparison: the same tissue was photographed with different white balances.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dmsmil.jobs.files import InputError

CLASSES = {"LUAD": "lung_aca", "LUSC": "lung_scc"}  # the label, and the folder that LC25000 keeps its fields in
NORMAL, NORMAL_FOLDER = "normal", "lung_n"
FIELD = 224  # px, side of a field in a slide, and while fields are compared

FEATURES = 100  # a field; with half of them or fewer it is too plain to be told from others, and is left out
ALIKE = 0.92  # cosine of two features; HINTS such features make two fields worth a closer look
HINTS = 5
CLOSE = 0.8  # cosine of two features that the closer look believes in
WITHIN = 4.0  # px to which an affine map must bring a feature to its fellow, and how many it must bring there;
INLIERS = 9  # measured on LUAD: of 365,000 pairs that share no tissue the best has 8
STRETCH = 3.0  # zoom of one field against another, at most; SHEAR the ratio of its largest to its smallest stretch
SHEAR = 2.0


def find_fields(images, normal: bool = False) -> tuple[Path, dict[str, list[str]]]:
    """The folder that holds lung_aca and lung_scc, `images` or one below it, and the fields of each label in it.

    normal: also the fields of lung_n beside them, as NORMAL. The fields are relative paths, sorted. Raises InputError
    when there is no such folder or nothing in it.
    """
    images = Path(images)
    homes = [found.parent for found in [images / "lung_aca", *sorted(images.rglob("lung_aca"))]]
    home = next((home for home in homes if all((home / name).is_dir() for name in CLASSES.values())), None)
    if home is None:
        raise InputError(
            f"{images.name or 'the folder'} holds no folders lung_aca and lung_scc: name the unpacked "
            "LC25000, or its lung_image_sets"
        )
    folders = {**CLASSES, NORMAL: NORMAL_FOLDER} if normal else CLASSES
    if normal and not (home / NORMAL_FOLDER).is_dir():
        raise InputError(
            f"beside lung_aca there is no folder {NORMAL_FOLDER}, the normal tissue: unpack it there, or "
            "say --normal-share 0"
        )
    fields = {
        label: sorted(
            f"{name}/{path.name}"
            for path in (home / name).iterdir()
            if path.suffix.lower() in (".jpeg", ".jpg", ".png")
        )
        for label, name in folders.items()
    }
    for label, name in folders.items():
        if not fields[label]:
            raise InputError(f"the folder {name} holds no image (.jpeg, .jpg, .png)")
    return home, fields


def read_field(path: Path) -> np.ndarray:
    """RGB uint8 (FIELD, FIELD, 3) of one field."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f"{path.parent.name}/{path.name} cannot be read as an image: remove it, or fetch it again")
    return cv2.cvtColor(cv2.resize(image, (FIELD, FIELD), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)


def group_by_original(home, fields: list[str]) -> list[list[str]]:
    """Fields of one class, grouped by the original they stem from; every pair is compared, in any orientation.

    SIFT features (Lowe 2004; their square roots, Arandjelovic and Zisserman 2012), of the field and of its mirror
    image, hint at a pair; an affine map that fits INLIERS of them (RANSAC) decides. Groups joined by one such pair
    are one group, so errors are rather on the side of merging. Fields too plain to be compared are left out.
    """
    places, features = zip(*(_describe(read_field(Path(home) / name)) for name in fields))
    kept = [i for i, found in enumerate(features) if len(found) > FEATURES / 2]
    names, places, features = ([part[i] for i in kept] for part in (fields, places, features))
    pairs = [
        (i, j)
        for i, j, mirrored in _hints(features)
        if _fit(places[i], _mirror(features[i]) if mirrored else features[i], places[j], features[j], mirrored)
    ]
    i, j = np.array(pairs, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs)), (i, j)), shape=(len(names), len(names)))
    groups: dict[int, list[str]] = {}
    for name, number in zip(names, connected_components(graph, directed=False)[1]):
        groups.setdefault(int(number), []).append(name)
    return list(groups.values())


def _describe(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places (n, 2) and unit-norm features (n, 128), float32, of the n <= FEATURES strongest SIFT key points."""
    finder = cv2.SIFT_create(nfeatures=FEATURES, contrastThreshold=0.01)
    points, found = finder.detectAndCompute(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), None)
    if found is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
    found = np.sqrt(found / np.maximum(found.sum(1, keepdims=True), 1e-9))
    return np.array([point.pt for point in points], np.float32)[:FEATURES], found[:FEATURES].astype(np.float32)


def _mirror(features: np.ndarray) -> np.ndarray:
    """SIFT features (n, 128) as the mirror image has them: a feature is 4 x 4 cells of 8 directions."""
    cells = features.reshape(-1, 4, 4, 8)
    return np.ascontiguousarray(cells[:, ::-1, :, -np.arange(8) % 8]).reshape(-1, 128)


def _hints(features: list[np.ndarray]) -> Iterator[tuple[int, int, bool]]:
    """Pairs i < j in which HINTS features of i, or of its mirror image, have one in j that is ALIKE."""
    padded = np.zeros((len(features), FEATURES, 128), np.float32)  # zeros are like nothing
    for row, found in zip(padded, features):
        row[: len(found)] = found
    for i in range(len(features) - 1):
        others = padded[i + 1 :].reshape(-1, 128)
        for mirrored in (False, True):
            ours = _mirror(padded[i]) if mirrored else padded[i]
            nearest = (ours @ others.T).reshape(FEATURES, -1, FEATURES).max(2)
            for j in np.flatnonzero((nearest > ALIKE).sum(0) >= HINTS):
                yield i, int(i + 1 + j), mirrored


def _fit(places, features, other_places, other_features, mirrored: bool) -> bool:
    """Whether an affine map, with a reflection exactly when `mirrored`, carries the first field onto the other."""
    matches = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(features, other_features)
    matches = [match for match in matches if 1 - match.distance**2 / 2 > CLOSE]  # of unit vectors
    if len(matches) < INLIERS:
        return False
    here = places[[match.queryIdx for match in matches]]
    there = other_places[[match.trainIdx for match in matches]]
    affine, fits = cv2.estimateAffine2D(here, there, ransacReprojThreshold=WITHIN, maxIters=500)
    if affine is None or fits.sum() < INLIERS:
        return False
    most, least = np.linalg.svd(affine[:, :2], compute_uv=False)
    return bool(
        (np.linalg.det(affine[:, :2]) < 0) == mirrored
        and 1 / STRETCH < least
        and most < STRETCH
        and most < SHEAR * least
    )
