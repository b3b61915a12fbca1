"""A cohort of real tissue: slides tiled from the lung fields of LC25000, no original in two slides.

    python -m dmsmil.cohorts.made.mosaics IMAGES OUT [--slides-per-class 80] [--side 9] [--seed 0]
                                          [--normal-share 0.9] [--normalise reinhard+macenko]

A slide is a disc of fields of one class, the tumour, among fields of normal lung: the class is told by the tumour
alone, the share of normal tissue is the same in all slides, and which field is what is recorded. Each original
(`originals.py`) is given to one slide, whole: no picture, of tumour or of normal lung, is trained on and tested.

The classes were photographed in different colours. So every field is normalised to one reference first (`stains.py`),
a montage of equally many fields of both classes. What six colour numbers (mean and deviation of R, G, B of a 10x tile)
still tell, as AUC of a linear rule, on 2,598 fields of 224 px and the slides made of them by default, before JPEG
(which moves the .584 to .613); the last column is what colour alone could give a method that finds the tumour:

                              a field    a slide    its tumour
    none                       .952       .652        .976
    macenko                    .945       .717        .977
    reinhard                   .897       .629        .961
    macenko, then reinhard     .886       .762        .927
    reinhard+macenko           .758       .584        .830
    the six numbers matched    .928       .657        .974

None of these takes all of it. The last row gives every field, at 20x, the reference's six numbers exactly, but for
what a byte cuts off where the glass is too light; how much that is tells how skewed the field is (means .86), and at
10x the deviations tell its grain (.92): what is left is contrast and texture. On slides the rule fails because they are
many, of few originals, and mostly normal lung: 24 slides a class with a normal share of .4 it tells with .94 and more,
in any stain.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd

from dmsmil.cohorts.made import originals as sameness
from dmsmil.cohorts.made import stains
from dmsmil.cohorts.made.originals import (
    CLASSES,
    FIELD,
    NORMAL,
    NORMAL_FOLDER,
    find_fields,
    group_by_original,
    read_field,
)
from dmsmil.cohorts.made.pyramid import write_svs
from dmsmil.jobs.files import InputError, atomic, fingerprint, read_json, write_csv, write_json
from dmsmil.jobs.parallel import progress, run_units

TUMOUR = "tumour"  # the kind of a field of one of the classes; the others are NORMAL
MARGIN = 2  # fields of glass around the tissue
GLASS = 244
SPARE = 1.5  # fields compared and shared out for each one that a slide shows
MOST_NORMAL = 1500  # fields of normal lung that are compared at most: the time grows with their square


def plan_mosaics(
    originals: dict[str, list[list[str]]], slides_per_class: int, side: int, seed: int = 0, normal_share: float = 0.0
) -> list[dict]:
    """The slides before any is painted: slide_id, patient_id, label, path, fields.

    originals: for each label, and for NORMAL where normal_share is above 0, its originals, each a list of fields.
    fields: one [row, column, field, original, quarter turns, kind] a cell of a disc `side` fields wide; kind is TUMOUR
    or NORMAL, original a number among those of its label or of NORMAL. Of a slide's cells the share normal_share,
    rounded, is NORMAL; the tumour lies together, in the cells nearest to a random one.

    Each original goes to one slide, the largest first and to the slide that has the fewest fields; a slide shows all
    its originals equally often, and repeats fields, in other quarter turns or not, when it has too few. Originals of
    normal lung are dealt to the slides of both classes in the same way: there is one for each slide, though few, and a
    normal tissue of its own is what a patient has. Raises InputError when there are fewer originals than slides.
    """
    cells = _cells(side)
    normal_cells = round(normal_share * len(cells))
    labels = sorted(set(originals) - {NORMAL})
    rows, normal_rng = [], np.random.default_rng([seed, len(labels)])
    if normal_cells:
        normal_shares = _deal(originals[NORMAL], slides_per_class * len(labels), NORMAL_FOLDER, normal_rng)
    for number, label in enumerate(labels):
        rng = np.random.default_rng([seed, number])
        for slide, share in enumerate(_deal(originals[label], slides_per_class, label, rng)):
            where = _nearest_first(cells, normal_rng) if normal_cells else cells
            tumour, normal = where[: len(cells) - normal_cells], where[len(cells) - normal_cells :]
            fields = _lay(originals[label], share, tumour, TUMOUR, rng)
            if normal:
                # label by label in turn, so that neither class has the slides that were dealt first
                own = normal_shares[slide * len(labels) + number]
                fields += _lay(originals[NORMAL], own, normal, NORMAL, normal_rng)
            slide_id = f"{label}-{slide:02d}"
            rows.append(
                dict(
                    slide_id=slide_id,
                    patient_id=f"{label}-P{slide:02d}",
                    label=label,
                    path=f"slides/{slide_id}.svs",
                    fields=fields,
                )
            )
    return rows


def _deal(groups: list[list[str]], slides: int, name: str, rng: np.random.Generator) -> list[list[int]]:
    """Which originals each slide gets."""
    if len(groups) < slides:
        raise InputError(
            f"{name} has {len(groups)} originals, fewer than its {slides} slides: "
            "--slides-per-class must be lower, or more images are needed"
        )
    shares = [[] for _ in range(slides)]
    for original in sorted(rng.permutation(len(groups)), key=lambda original: -len(groups[original])):
        fewest = min(shares, key=lambda share: sum(len(groups[own]) for own in share))
        fewest.append(int(original))
    return shares


def _lay(
    groups: list[list[str]], share: list[int], cells: list[tuple[int, int]], kind: str, rng: np.random.Generator
) -> list[list]:
    """A field for each of `cells`, from the originals `share`, as `plan_mosaics` describes them."""
    shuffled = [[(name, original) for name in rng.permutation(groups[original])] for original in share]
    queue = [field for turn in zip_longest(*shuffled) for field in turn if field is not None]
    shown = rng.permutation(np.arange(len(cells)) % len(queue))
    return [[*cell, str(queue[i][0]), queue[i][1], int(rng.integers(4)), kind] for cell, i in zip(cells, shown)]


def _nearest_first(cells: list[tuple[int, int]], rng: np.random.Generator) -> list[tuple[int, int]]:
    """The cells by their distance from a random one of them."""
    away = np.hypot(*(np.array(cells) - cells[rng.integers(len(cells))]).T)
    return [cells[i] for i in np.argsort(away, kind="stable")]


def _cells(side: int) -> list[tuple[int, int]]:
    """Rows and columns of a disc `side` cells wide, in a square with MARGIN cells of glass around it."""
    centre = MARGIN + (side - 1) / 2
    at = np.arange(side + 2 * MARGIN) - centre
    return [(int(r), int(c)) for r, c in np.argwhere(np.add.outer(at**2, at**2) <= (side / 2) ** 2)]


def _record(folder, row: dict) -> Path:
    return Path(folder) / "fields" / f"{row['slide_id']}.json"


def read_truth(folder, slide_id: str) -> dict[str, np.ndarray]:
    """Where the class is in one slide, in the form of `painted.read_truth`: `signal` (the fields of tumour) and
    `tissue`, bool, one entry a field of the slide and its margin; `downsample`, the side of a field in level-0 px.

    Raises InputError for a slide without record.
    """
    path = _record(folder, dict(slide_id=slide_id))
    if not path.is_file():
        raise InputError(f"no record of slide {slide_id} in {Path(folder).name}/fields: only mosaics have one")
    fields = read_json(path)["fields"]
    # the disc touches both sides of its square, so its last row is as far from the edge as its first
    sides = max(r for r, *_ in fields) + 1 + MARGIN
    signal, tissue = np.zeros((2, sides, sides), bool)
    for r, c, *_, kind in fields:
        tissue[r, c], signal[r, c] = True, kind == TUMOUR
    return dict(signal=signal, tissue=tissue, downsample=np.int64(FIELD))


def _make_slide(home, folder, row: dict, side: int, steps: list, settings: str) -> None:
    """Paint and write one slide, then the record of what it shows, which vouches for it."""
    sides = (side + 2 * MARGIN) * FIELD
    rgb = np.full((sides, sides, 3), GLASS, np.uint8)
    seen = {
        name: stains.restain(read_field(Path(home) / name), steps, name)
        for name in sorted({name for _, _, name, *_ in row["fields"]})
    }
    for r, c, name, _, turns, _ in row["fields"]:
        rgb[r * FIELD : (r + 1) * FIELD, c * FIELD : (c + 1) * FIELD] = np.rot90(seen[name], turns)
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


def make_mosaics(
    images,
    folder,
    slides_per_class: int = 80,
    side: int = 9,
    seed: int = 0,
    workers: int = 0,
    normal_share: float = 0.9,
    normalise: str = "reinhard+macenko",
) -> pd.DataFrame:
    """Make the cohort in `folder`; what is there already and was made with the same settings is kept.

    images: LC25000 as published, its lung_image_sets, or any folder with lung_aca and lung_scc, and lung_n where
    normal_share is above 0 (fields of other sizes are brought to FIELD px). normalise: one of `stains.WAYS`. Of many
    fields, as many are taken at random as the slides can use, of lung_n MOST_NORMAL at most. Writes originals.json (for
    each label its originals, each a list of fields), slides/<slide_id>.svs (Aperio-like pyramids, said to be 20x and
    0.5 um a pixel, which LC25000 does not tell), fields/<slide_id>.json (which field is where, and its kind) and, last,
    cohort.csv. The result does not depend on `workers`.

    Returns the table of cohort.csv: slide_id, patient_id (of the mosaic: LC25000 knows no patients), label, path
    (relative to `folder`). Raises InputError for bad input.
    """
    if slides_per_class < 1 or side < 1:
        raise InputError(f"slides-per-class is {slides_per_class} and side is {side}: both must be at least 1")
    cells = len(_cells(side))
    normal_cells = round(normal_share * cells) if 0 <= normal_share < 1 else cells
    if normal_cells == cells:
        raise InputError(
            f"normal-share is {normal_share:g} of {cells} fields: it must be at least 0, and leave one of "
            "them for the tumour"
        )
    home, fields = find_fields(images, normal=normal_cells > 0)
    reference = stains.reference_fields({label: fields[label] for label in CLASSES})
    steps = stains.fit_stains(normalise, [read_field(home / name) for name in reference])
    limits = {label: round(SPARE * slides_per_class * (cells - normal_cells)) for label in CLASSES}
    limits[NORMAL] = min(round(SPARE * slides_per_class * len(CLASSES) * normal_cells), MOST_NORMAL)
    taken = {
        label: sorted(np.random.default_rng([seed, number]).permutation(fields[label])[: limits[label]].tolist())
        for number, label in enumerate(sorted(fields))
    }
    code = [inspect.getsource(part) for part in (sys.modules[__name__], sameness, stains, write_svs)]
    sizes = {name: (home / name).stat().st_size for names in (*taken.values(), reference) for name in names}
    settings = fingerprint([sizes, code], 32)
    originals = _known_originals(Path(folder) / "originals.json", settings)
    if originals is None:
        originals = dict(
            _done(group_by_original, {label: (home, names) for label, names in taken.items()}, workers, "classes")
        )
    rows = plan_mosaics(originals, slides_per_class, side, seed, normal_share)
    write_json(dict(settings=settings, originals=originals), Path(folder) / "originals.json")
    units = {
        row["slide_id"]: (home, folder, row, side, steps, fingerprint([settings, side, normalise, row["fields"]], 32))
        for row in rows
    }
    todo = {name: unit for name, unit in units.items() if not _is_made(folder, unit[2], unit[-1])}
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
    parser.add_argument("images", type=Path, help="the unpacked LC25000, or a folder with lung_aca, lung_scc, lung_n")
    parser.add_argument("out", type=Path, help="the folder to make the cohort in")
    parser.add_argument("--slides-per-class", type=int, default=80)
    parser.add_argument("--side", type=int, default=9, help="width of the tissue of a slide, in fields")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--normal-share", type=float, default=0.9, help="of a slide's fields, that show normal lung")
    parser.add_argument(
        "--normalise",
        choices=stains.WAYS,
        default="reinhard+macenko",
        help="how all fields get the stain of one reference",
    )
    parser.add_argument("--workers", type=int, default=0, help="processes, 0 for as many as cores")
    args = parser.parse_args(argv)
    try:
        print("the first time, every field is compared with every other one: a few minutes", flush=True)
        table = make_mosaics(
            args.images,
            args.out,
            args.slides_per_class,
            args.side,
            args.seed,
            args.workers,
            args.normal_share,
            args.normalise,
        )
    except InputError as error:
        print(f"dmsmil.cohorts.made.mosaics: {error}", file=sys.stderr)
        return 2
    originals = read_json(args.out / "originals.json")["originals"]
    counts = ", ".join(
        f"{sum(map(len, groups))} fields of {len(groups)} originals of {label}"
        for label, groups in sorted(originals.items())
    )
    print(f"{len(table)} slides from {counts}: the cohort is {args.out.name}/cohort.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
