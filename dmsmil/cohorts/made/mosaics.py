"""A cohort of real tissue: slides tiled from the lung fields of LC25000, no original in two slides.

    python -m dmsmil.cohorts.made.mosaics IMAGES OUT [--slides-per-class 12] [--side 10] [--seed 0]

LC25000 (Borkowski et al. 2019, arXiv:1912.12142) has 5,000 fields of lung adenocarcinoma and 5,000 of squamous cell
carcinoma, 768 x 768 px, made from 250 originals each by rotation, shear, zoom and flips, and does not say which fields
stem from one original. Split at random, copies of one picture would stand on both sides. So the fields are compared
with each other first: two stem from one original (or from photographs that overlap) when an affine map carries the
local features of one onto the other. Then each original is given to one slide, whole.

Colour takes no part in the comparison: the same tissue was photographed with different white balances.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dmsmil.cohorts.made.pyramid import write_svs
from dmsmil.jobs.files import InputError, atomic, fingerprint, read_json, write_csv, write_json
from dmsmil.jobs.parallel import progress, run_units

CLASSES = {"LUAD": "lung_aca", "LUSC": "lung_scc"}  # the label, and the folder that LC25000 keeps its fields in
FIELD = 224  # px, side of a field in a slide, and while fields are compared
MARGIN = 2   # fields of glass around the tissue
GLASS = 244
SPARE = 1.5  # fields compared and shared out for each one that a slide shows

FEATURES = 100  # a field; with half of them or fewer it is too plain to be told from others, and is left out
ALIKE = 0.92    # cosine of two features; HINTS such features make two fields worth a closer look
HINTS = 5
CLOSE = 0.8     # cosine of two features that the closer look believes in
WITHIN = 4.0    # px to which an affine map must bring a feature to its fellow, and how many it must bring there;
INLIERS = 9     # measured on LUAD: of 365,000 pairs that share no tissue the best has 8
STRETCH = 3.0   # zoom of one field against another, at most; SHEAR the ratio of its largest to its smallest stretch
SHEAR = 2.0


def find_fields(images) -> tuple[Path, dict[str, list[str]]]:
    """The folder that holds lung_aca and lung_scc, `images` or one below it, and the fields of each label in it.

    The fields are relative paths, sorted. Raises InputError when there is no such folder or nothing in it.
    """
    images = Path(images)
    homes = [found.parent for found in [images / "lung_aca", *sorted(images.rglob("lung_aca"))]]
    home = next((home for home in homes if all((home / name).is_dir() for name in CLASSES.values())), None)
    if home is None:
        raise InputError(f"{images.name or 'the folder'} holds no folders lung_aca and lung_scc: name the unpacked "
                         "LC25000, or its lung_image_sets")
    fields = {label: sorted(f"{name}/{path.name}" for path in (home / name).iterdir()
                            if path.suffix.lower() in (".jpeg", ".jpg", ".png")) for label, name in CLASSES.items()}
    for label, name in CLASSES.items():
        if not fields[label]:
            raise InputError(f"the folder {name} holds no image (.jpeg, .jpg, .png)")
    return home, fields


def _read(path: Path) -> np.ndarray:
    """RGB uint8 (FIELD, FIELD, 3) of one field."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f"{path.parent.name}/{path.name} cannot be read as an image: remove it, or fetch it again")
    return cv2.cvtColor(cv2.resize(image, (FIELD, FIELD), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)


# ------------------------------------------------------------------------------------------------ originals


def group_by_original(home, fields: list[str]) -> list[list[str]]:
    """Fields of one class, grouped by the original they stem from; every pair is compared, in any orientation.

    SIFT features (Lowe 2004; their square roots, Arandjelovic and Zisserman 2012), of the field and of its mirror
    image, hint at a pair; an affine map that fits INLIERS of them (RANSAC) decides. Groups joined by one such pair
    are one group, so errors are rather on the side of merging. Fields too plain to be compared are left out.
    """
    places, features = zip(*(_describe(_read(Path(home) / name)) for name in fields))
    kept = [i for i, found in enumerate(features) if len(found) > FEATURES / 2]
    names, places, features = ([part[i] for i in kept] for part in (fields, places, features))
    pairs = [(i, j) for i, j, mirrored in _hints(features)
             if _fit(places[i], _mirror(features[i]) if mirrored else features[i], places[j], features[j], mirrored)]
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
        row[:len(found)] = found
    for i in range(len(features) - 1):
        others = padded[i + 1:].reshape(-1, 128)
        for mirrored in (False, True):
            ours = _mirror(padded[i]) if mirrored else padded[i]
            nearest = (ours @ others.T).reshape(FEATURES, -1, FEATURES).max(2)
            for j in np.flatnonzero((nearest > ALIKE).sum(0) >= HINTS):
                yield i, int(i + 1 + j), mirrored


def _fit(places, features, other_places, other_features, mirrored: bool) -> bool:
    """Whether an affine map, with a reflection exactly when `mirrored`, carries the first field onto the other."""
    matches = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(features, other_features)
    matches = [match for match in matches if 1 - match.distance ** 2 / 2 > CLOSE]  # of unit vectors
    if len(matches) < INLIERS:
        return False
    here = places[[match.queryIdx for match in matches]]
    there = other_places[[match.trainIdx for match in matches]]
    affine, fits = cv2.estimateAffine2D(here, there, ransacReprojThreshold=WITHIN, maxIters=500)
    if affine is None or fits.sum() < INLIERS:
        return False
    most, least = np.linalg.svd(affine[:, :2], compute_uv=False)
    return bool((np.linalg.det(affine[:, :2]) < 0) == mirrored and 1 / STRETCH < least and most < STRETCH
                and most < SHEAR * least)


# ------------------------------------------------------------------------------------------------ slides


def plan_mosaics(originals: dict[str, list[list[str]]], slides_per_class: int = 12, side: int = 10,
                 seed: int = 0) -> list[dict]:
    """The slides before any is painted: slide_id, patient_id, label, path, fields.

    originals: for each label its originals, each a list of fields. fields: one [row, column, field, original, quarter
    turns] a cell of a disc `side` fields wide. Each original goes to one slide, the largest first and to the slide that
    has the fewest fields; a slide shows all its originals equally often, and repeats fields when it has too few.
    Raises InputError when a label has fewer originals than slides.
    """
    rows, cells = [], _cells(side)
    for number, (label, groups) in enumerate(sorted(originals.items())):
        if len(groups) < slides_per_class:
            raise InputError(f"{label} has {len(groups)} originals, fewer than its {slides_per_class} slides: "
                             "--slides-per-class must be lower, or more images are needed")
        rng = np.random.default_rng([seed, number])
        shares = [[] for _ in range(slides_per_class)]
        for original in sorted(rng.permutation(len(groups)), key=lambda original: -len(groups[original])):
            fewest = min(shares, key=lambda share: sum(len(groups[own]) for own in share))
            fewest.append(int(original))
        for slide, share in enumerate(shares):
            shuffled = [[(name, original) for name in rng.permutation(groups[original])] for original in share]
            queue = [field for turn in zip_longest(*shuffled) for field in turn if field is not None]
            shown = rng.permutation(np.arange(len(cells)) % len(queue))
            fields = [[*cell, str(queue[i][0]), queue[i][1], int(rng.integers(4))] for cell, i in zip(cells, shown)]
            slide_id = f"{label}-{slide:02d}"
            rows.append(dict(slide_id=slide_id, patient_id=f"{label}-P{slide:02d}", label=label,
                             path=f"slides/{slide_id}.svs", fields=fields))
    return rows


def _cells(side: int) -> list[tuple[int, int]]:
    """Rows and columns of a disc `side` cells wide, in a square with MARGIN cells of glass around it."""
    centre = MARGIN + (side - 1) / 2
    at = np.arange(side + 2 * MARGIN) - centre
    return [(int(r), int(c)) for r, c in np.argwhere(np.add.outer(at ** 2, at ** 2) <= (side / 2) ** 2)]


def _record(folder, row: dict) -> Path:
    return Path(folder) / "fields" / f"{row['slide_id']}.json"


def _make_slide(home, folder, row: dict, side: int, settings: str) -> None:
    """Paint and write one slide, then the record of what it shows, which vouches for it."""
    sides = (side + 2 * MARGIN) * FIELD
    rgb = np.full((sides, sides, 3), GLASS, np.uint8)
    for r, c, name, _, turns in row["fields"]:
        rgb[r * FIELD:(r + 1) * FIELD, c * FIELD:(c + 1) * FIELD] = np.rot90(_read(Path(home) / name), turns)
    slide = Path(folder) / row["path"]
    with atomic(slide) as temporary:
        write_svs(rgb, temporary)
    write_json(dict(settings=settings, slide_bytes=slide.stat().st_size, fields=row["fields"]), _record(folder, row))


def _is_made(folder, row: dict, settings: str) -> bool:
    """Whether the slide is whole and made with these settings."""
    try:
        known = read_json(_record(folder, row))
        return known["settings"] == settings and known["slide_bytes"] == (Path(folder) / row["path"]).stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _known_originals(path: Path, settings: str) -> dict[str, list[list[str]]] | None:
    """What an earlier run with these settings found, if there is one."""
    try:
        known = read_json(path)
        return known["originals"] if known["settings"] == settings else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def make_mosaics(images, folder, slides_per_class: int = 12, side: int = 10, seed: int = 0,
                 workers: int = 0) -> pd.DataFrame:
    """Make the cohort in `folder`; what is there already and was made with the same settings is kept.

    images: LC25000 as published, its lung_image_sets, or any folder with lung_aca and lung_scc (fields of other sizes
    are brought to FIELD px). Of many fields, as many are taken at random as the slides can use. Writes originals.json
    (for each label its originals, each a list of fields), slides/<slide_id>.svs (Aperio-like pyramids, said to be 20x
    and 0.5 um a pixel, which LC25000 does not tell), fields/<slide_id>.json (which field is where) and, last,
    cohort.csv. The result does not depend on `workers`.

    Returns the table of cohort.csv: slide_id, patient_id (of the mosaic: LC25000 knows no patients), label, path
    (relative to `folder`). Raises InputError for bad input; nothing is written then.
    """
    if slides_per_class < 1 or side < 1:
        raise InputError(f"slides-per-class is {slides_per_class} and side is {side}: both must be at least 1")
    home, fields = find_fields(images)
    limit = round(SPARE * slides_per_class * len(_cells(side)))
    taken = {label: sorted(np.random.default_rng([seed, number]).permutation(fields[label])[:limit].tolist())
             for number, label in enumerate(sorted(fields))}
    code = [inspect.getsource(sys.modules[__name__]), inspect.getsource(write_svs)]
    sizes = {name: (home / name).stat().st_size for names in taken.values() for name in names}
    settings = fingerprint([sizes, code], 32)
    originals = _known_originals(Path(folder) / "originals.json", settings)
    if originals is None:
        originals = dict(_done(group_by_original, {label: (home, names) for label, names in taken.items()}, workers,
                               "classes"))
    rows = plan_mosaics(originals, slides_per_class, side, seed)
    write_json(dict(settings=settings, originals=originals), Path(folder) / "originals.json")
    units = {row["slide_id"]: (home, folder, row, side, fingerprint([settings, side, row["fields"]], 32))
             for row in rows}
    todo = {name: unit for name, unit in units.items() if not _is_made(folder, unit[2], unit[4])}
    list(_done(_make_slide, todo, workers, "slides"))
    table = pd.DataFrame(rows)[["slide_id", "patient_id", "label", "path"]]
    write_csv(table, Path(folder) / "cohort.csv")
    return table


def _done(function, units: dict[str, tuple], workers: int, what: str) -> Iterator[tuple[str, object]]:
    """(name, result) of every unit, with a progress bar; the first error is raised."""
    for name, result, error in progress(run_units(function, units, workers), len(units), what):
        if error is not None:
            raise error
        yield name, result


def main(argv: list[str] | None = None) -> int:
    """The command `python -m dmsmil.cohorts.made.mosaics`."""
    parser = argparse.ArgumentParser("dmsmil.cohorts.made.mosaics", description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="the unpacked LC25000, or a folder with lung_aca and lung_scc")
    parser.add_argument("out", type=Path, help="the folder to make the cohort in")
    parser.add_argument("--slides-per-class", type=int, default=12)
    parser.add_argument("--side", type=int, default=10, help="width of the tissue of a slide, in fields")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes, 0 for as many as cores")
    args = parser.parse_args(argv)
    try:
        print("the first time, every field is compared with every other one: a few minutes", flush=True)
        table = make_mosaics(args.images, args.out, args.slides_per_class, args.side, args.seed, args.workers)
    except InputError as error:
        print(f"dmsmil.cohorts.made.mosaics: {error}", file=sys.stderr)
        return 2
    originals = read_json(args.out / "originals.json")["originals"]
    counts = ", ".join(f"{sum(map(len, groups))} fields of {len(groups)} originals of {label}"
                       for label, groups in sorted(originals.items()))
    print(f"{len(table)} slides from {counts}: the cohort is {args.out.name}/cohort.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
