"""Where things are in a painted slide: its regions, and the nests, glands, files and fat that grow in them."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

MAP = 16  # level-0 px in one cell of the maps of regions
CORD = 1.2  # cords in a nest: wider apart than the cells within one
NUCLEAR_SHARE, CYTOPLASM_SHARE, WHITE_SHARE = 0.13, 0.31, 0.016  # of the signal region, in either arrangement
STREAM_PX, STREAM_SHARE = 420, 0.55  # from one stream of files to the next, and how much of the region streams fill
NESTED_STEP = 0.5  # share of the signal region that is nested: half at arrangement 0, and what +1 adds


def regions(rng, side, arrangement, rate=0.0, fat=(0.10, 0.25)):
    """Maps (side // MAP, side // MAP): tissue, signal, nested (part of signal), fat, neutral, the rest.

    rate: the share of the tissue that is signal; 0: a little more than half of it, in each slide another. fat: least
    and greatest share of it in what is not signal.
    """
    cells = side // MAP

    def bumps(number):  # of one size in px, whatever the slide's
        return field_of(rng, cells, max(2, number * side / 4608))

    gy, gx = np.mgrid[:cells, :cells] * (2 / cells) - 1
    squeeze, turn = rng.uniform(0.8, 1.0), rng.uniform(0, np.pi)
    u, v = gx * math.cos(turn) + gy * math.sin(turn), gy * math.cos(turn) - gx * math.sin(turn)
    shape = (
        1.2
        - 1.9 * np.hypot(u, v / squeeze) ** 2
        + 0.22 * field_of(rng, cells, 4)
        + 0.09 * field_of(rng, cells, 14)
        + 0.035 * field_of(rng, cells, 60)
    )
    rim = np.maximum(np.abs(gx), np.abs(gy))
    shape = np.where(rim > 0.96, -2.0, shape - 8 * np.maximum(rim - 0.84, 0))
    tissue = _top(shape, np.ones((cells, cells), bool), rng.uniform(0.48, 0.56))
    solid = 0.5 + 11 * (shape - np.quantile(shape, 1 - tissue.mean()))
    inner = cv2.erode(tissue.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    signal = _top(bumps(4), inner, min(rate * tissue.sum() / inner.sum(), 1.0) if rate else rng.uniform(0.55, 0.65))
    nested_share = 0.5 + NESTED_STEP * arrangement + rng.normal(0, 0.05)
    nested = _top(bumps(6), signal, np.clip(nested_share, 0.02, 0.98))
    # fibres run in direction `angle`; streams are bands along them, as wide as a nest, in which the files lie
    heading = rng.uniform(0, np.pi)
    angle = heading + 0.4 * bumps(5)
    athwart = (gy * math.cos(heading) - gx * math.sin(heading)) * side / 2 + 70 * bumps(5)
    streams = _top(np.cos(2 * np.pi * athwart / STREAM_PX), signal, STREAM_SHARE)
    fat = _top(bumps(6), inner & ~signal, rng.uniform(*fat))
    return dict(
        tissue=tissue,
        solid=solid,
        signal=signal,
        nested=nested,
        fat=fat,
        neutral=inner & ~signal & ~fat,
        angle=angle,
        streams=streams,
        cellular=bumps(8),
        inflamed=bumps(9) + 0.6 * bumps(30),
    )


def nests_and_files(rng, maps, epithelium, white, radius, dense):
    """Grow the tumour of the demo, nests and glands here and single files there; return the places of its nuclei."""
    tumour = [
        _nests(rng, maps["nested"], maps, epithelium, white, radius, dense),
        _files(rng, maps["signal"] & ~maps["nested"], maps, epithelium, white, radius, dense),
    ]
    # a nest that reaches over the border of the signal region takes the region with it
    reached = cv2.resize(epithelium, maps["tissue"].shape, interpolation=cv2.INTER_AREA) > 64
    maps["signal"] |= reached & maps["tissue"]
    for name in ("fat", "neutral"):
        maps[name] &= ~maps["signal"]
    return np.concatenate(tumour)


def populate(chance: Callable, maps, epithelium, white) -> dict[str, np.ndarray]:
    """Draw what the other cells form into the masks of epithelium and white space; return the places (N, 2) of each
    kind. chance: gives the random numbers of a part, by its name."""
    side, rng = epithelium.shape[0], chance("benign")
    benign = [np.empty((0, 2))]
    lobules = lattice(rng, side, 300)
    lobules = lobules[values_at(maps["neutral"], lobules, MAP) & (rng.uniform(size=len(lobules)) < 0.35)]
    acini = np.repeat(lobules, rng.integers(1, 5, len(lobules)), 0)
    acini = acini + rng.normal(0, 75, acini.shape)
    for centre in acini[values_at(maps["neutral"], acini, MAP)]:
        benign.append(_gland(rng, epithelium, white, centre, rng.uniform(26, 46), 17, rng.uniform(0.35, 0.5)))
    rng = chance("fat")
    fat = lattice(rng, side, 104, 0.05)
    for centre in fat[values_at(maps["fat"], fat, MAP)]:
        outline, phi, _ = _outline(rng, centre, 50, 0.025)
        hexagon = 1 / np.cos((phi + np.pi / 6) % (np.pi / 3) - np.pi / 6)  # fat cells press each other flat
        _fill(white, centre + (outline - centre) * np.minimum(hexagon, 1.1)[:, None])
    rng = chance("others")
    stroma = lattice(rng, side, rng.uniform(48, 58), 0.3)
    stroma = stroma[rng.uniform(size=len(stroma)) < 0.65 + 0.2 * values_at(maps["cellular"], stroma, MAP)]
    lymph = rng.uniform(0, side, (int(side**2 / 40**2), 2))
    share = np.clip(0.45 * values_at(maps["inflamed"], lymph, MAP) - 0.35, 0.03, 0.8)
    lymph = lymph[rng.uniform(size=len(lymph)) < share]
    return dict(benign=np.concatenate(benign), stroma=stroma, lymphocyte=lymph)


# ---- places and outlines --------------------------------------------------------------------------------------------


def field_of(rng, n, cells):
    """Smooth random field (n, n) of mean 0 and deviation 1 with about `cells` bumps a side."""
    coarse = rng.standard_normal((int(cells) + 3, int(cells) + 3), np.float32)
    field = cv2.resize(coarse, (n + 2 * n // int(cells + 1),) * 2, interpolation=cv2.INTER_CUBIC)[:n, :n]
    return (field - field.mean()) / field.std()


def _top(field, within, share):
    """The `share` of the cells of `within` where `field` is highest, as a mask."""
    if not within.any() or share <= 0:
        return np.zeros_like(within)
    return within & (field >= np.quantile(field[within], 1 - share))


def lattice(rng, side, spacing, jitter=0.2):
    """Points (N, 2) of a jittered hexagonal lattice over the whole slide."""
    rows = np.arange(0, side, spacing * 0.866)
    cols = np.arange(0, side, spacing)
    x = cols[None] + (np.arange(len(rows))[:, None] % 2) * spacing / 2
    points = np.stack([x.ravel(), np.repeat(rows, len(cols))], 1)
    return points + rng.normal(0, jitter * spacing, points.shape)


def values_at(image, points, cell=1):
    """Values of a map at points (N, 2) = x, y in level-0 px."""
    x, y = (np.clip((points / cell).astype(int), 0, np.array(image.shape[::-1]) - 1)).T
    return image[y, x]


def _outline(rng, centre, radius, wobble=0.10, points=40):
    """A closed, irregular outline (points, 2), and the angle and distance of its points from the centre."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    waves = [rng.normal(0, wobble / k**0.5) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 5)]
    reach = radius * (1 + sum(waves))
    return centre + reach[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), angle, reach


def _fill(mask, outline):
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 255)


def _gland(rng, epithelium, white, centre, radius, spacing, lumen):
    """Draw a gland; return the places (N, 2) of its nuclei, in rings around the lumen."""
    outline, angle, reach = _outline(rng, centre, radius)
    _fill(epithelium, outline)
    inner = lumen * reach
    _fill(white, centre + inner[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1))
    rings = max(1, round((1 - lumen) * radius / spacing))
    places = []
    for ring in range(rings):
        share = lumen + (1 - lumen) * (ring + 0.5) / rings
        count = max(5, int(2 * np.pi * radius * share / spacing))
        phi = (np.arange(count) + rng.uniform()) * 2 * np.pi / count
        phi += rng.normal(0, 0.12 * spacing / (share * radius), count)
        r = share * np.interp(phi, angle, reach, period=2 * np.pi) + rng.normal(0, 0.08 * spacing, count)
        places.append(centre + r[:, None] * np.stack([np.cos(phi), np.sin(phi)], 1))
    return np.concatenate(places)


def _cords(rng, epithelium, centre, radius, spacing, angle):
    """Draw a nest of cords side by side along `angle`; return the places (N, 2) of its nuclei."""
    nest = np.round(_outline(rng, centre, radius)[0]).astype(np.int32)
    _fill(epithelium, nest)
    along, across = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    width, step = spacing * CORD, spacing * 0.866 / CORD
    rows = np.arange(-1.4 * radius, 1.4 * radius, width)
    places = []
    for row in rows:
        cleft = centre + (row + width / 2) * across + 1.5 * radius * along * np.array([[-1], [1]])
        cv2.polylines(epithelium, [np.round(cleft).astype(np.int32)], False, 0, 8)
        u = np.arange(-1.4 * radius, 1.4 * radius, step) + rng.uniform(0, step)
        u, v = u + rng.normal(0, 0.12 * step, len(u)), row + rng.normal(0, 0.08 * width, len(u))
        places.append(centre + u[:, None] * along + v[:, None] * across)
    places = np.concatenate(places)
    return places[[cv2.pointPolygonTest(nest, place, False) > 0 for place in places.tolist()]]


def _nests(rng, region, maps, epithelium, white, radius, dense):
    """Nests and glands in `region`; return the places (N, 2) of their nuclei."""
    area = region.sum() * MAP**2
    step = rng.uniform(400, 520)
    # a little more of both than the shares ask for: a lumen takes its part, and places in excess are thinned out
    reach = 1.06 * step * math.sqrt(0.866 * CYTOPLASM_SHARE / np.pi)
    spacing = 0.88 * radius * math.sqrt(np.pi * CYTOPLASM_SHARE / (0.866 * NUCLEAR_SHARE * dense))
    centres = lattice(rng, epithelium.shape[0], step, 0.12)
    centres = centres[values_at(region, centres, MAP)]
    places = [np.empty((0, 2))]
    for centre in centres:
        own = reach * rng.uniform(0.75, 1.25)
        if rng.uniform() < 0.25:
            places.append(_gland(rng, epithelium, white, centre, own, spacing, rng.uniform(0.28, 0.44)))
        else:
            places.append(_cords(rng, epithelium, centre, own, spacing, values_at(maps["angle"], centre[None], MAP)[0]))
    return rng.permutation(np.concatenate(places))[: _cell_count(area, radius, dense)]


def _cell_count(area, radius, dense):
    """How many tumour cells an area (px) holds: as many as give the nuclear area both arrangements share."""
    return int(NUCLEAR_SHARE * dense * area / (np.pi * radius**2))


def _files(rng, region, maps, epithelium, white, radius, dense):
    """Single files of cells along the fibres in `region`, with fat cells between; return the places of their nuclei."""
    area = region.sum() * MAP**2
    wanted = _cell_count(area, radius, dense)
    step = 2.3 * radius
    thickness = round(CYTOPLASM_SHARE * area / max(wanted * step, 1))
    side = epithelium.shape[0]
    taken = np.zeros((side // 4, side // 4), np.uint8)
    seeds = lattice(rng, side, 3 * radius, 0.3)
    seeds = rng.permutation(seeds[values_at(region & maps["streams"], seeds, MAP)])
    length = 15
    path = np.empty((length, len(seeds), 2))
    for k in range(length):
        path[k] = seeds
        theta = values_at(maps["angle"], seeds, MAP) + rng.normal(0, 0.12, len(seeds))
        seeds = seeds + step * np.stack([np.cos(theta), np.sin(theta)], 1)
    free = values_at(region & maps["streams"], path.reshape(-1, 2), MAP).reshape(length, -1)
    places, total = [np.empty((0, 2))], 0
    for file, inside in zip(path.transpose(1, 0, 2), free.T):
        stop = rng.integers(6, length + 1)
        open_ = inside[:stop] & (values_at(taken, file[:stop], 4) == 0)
        count = stop if open_.all() else int(np.argmin(open_))
        if count < 3:
            continue
        line = [np.round(file[:count]).astype(np.int32)]
        cv2.polylines(taken, [line[0] // 4], False, 255, round(4.6 * radius / 4))
        cv2.polylines(epithelium, line, False, 255, thickness)
        places.append(file[:count] + rng.normal(0, 0.2 * radius, (count, 2)))
        total += count
        if total >= wanted:
            break
    fat = lattice(rng, side, 150, 0.25)
    fat = rng.permutation(fat[values_at(region, fat, MAP)])[: int(WHITE_SHARE * area / (np.pi * 26**2))]
    for centre in fat:
        _fill(white, _outline(rng, centre, rng.uniform(20, 32), 0.04)[0])
    return np.concatenate(places)
