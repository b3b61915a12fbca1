"""Pictures that look like H&E, every nucleus known: two planes, haematoxylin and eosin, RGB by Beer-Lambert's law."""

from __future__ import annotations

import math
from functools import cache

import cv2
import numpy as np
import pandas as pd

KINDS = ("tumour", "benign", "stroma", "lymphocyte")
DIRECTIONS = 4  # of fibres
CORD = 1.2  # cords in a nest: wider apart than the cells within one
MAP = 16  # level-0 px in one cell of the maps of regions
NUCLEAR_SHARE, CYTOPLASM_SHARE, WHITE_SHARE = 0.13, 0.31, 0.016  # of the signal region, in either arrangement
RADIUS, RADIUS_STEP = 9.2, 1.2  # mean radius in px of a tumour nucleus of size 0, and what size +1 adds
OPEN_STEP = 0.5  # share of nuclei with open chromatin: half at size 0, and what size +1 adds
STREAM_PX, STREAM_SHARE = 420, 0.55  # from one stream of files to the next, and how much of the region streams fill
NESTED_STEP = 0.5  # share of the signal region that is nested: half at arrangement 0, and what +1 adds
# optical density of one unit of haematoxylin and of eosin in R, G, B, and the strength of each, by site
STAINS = {"A": ((0.62, 0.70, 0.33), (0.12, 0.78, 0.44), 1.00, 1.00),
          "B": ((0.59, 0.71, 0.37), (0.09, 0.75, 0.49), 0.88, 1.12),
          "C": ((0.65, 0.69, 0.29), (0.16, 0.79, 0.41), 1.12, 0.88)}


# ---- textures and nuclei, made once a process -----------------------------------------------------------------------

def _smooth(rng, n, along, across, angle=0.0):
    """Noise (n, n) that tiles, smoothed by `along` px in direction `angle`, by `across` px athwart it; deviation 1."""
    fx, fy = np.meshgrid(np.fft.rfftfreq(n), np.fft.fftfreq(n))
    u, v = fx * math.cos(angle) + fy * math.sin(angle), fy * math.cos(angle) - fx * math.sin(angle)
    keep = np.exp(-2 * np.pi ** 2 * ((along * u) ** 2 + (across * v) ** 2))
    keep[0, 0] = 0
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((n, n))) * keep, (n, n))
    return (noise / noise.std()).astype(np.float32)


@cache
def _textures() -> dict[str, np.ndarray]:
    """Tileable uint8 textures of 1024 px: `fibres` (DIRECTIONS of them), `grain` and the camera's `noise`."""
    n, rng = 1024, np.random.default_rng(1)

    def to_uint8(values, mean, scale):
        return np.clip(mean + scale * values / values.std(), 0, 255).astype(np.uint8)

    y, x = np.mgrid[:n, :n].astype(np.float32)
    fibres = []
    for k in range(DIRECTIONS):
        angle = k * np.pi / DIRECTIONS
        bundle = (_smooth(rng, n, 30, 1.5, angle) + 0.9 * _smooth(rng, n, 60, 5, angle) + 0.35 * _smooth(rng, n, 1, 1))
        sway = 11 * _smooth(rng, n, 45, 45) + 7 * _smooth(rng, n, 22, 22)
        bundle = cv2.remap(bundle, x - sway * np.float32(math.sin(angle)), y + sway * np.float32(math.cos(angle)),
                           cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        fibres.append(to_uint8(bundle, 128, 38))
    return dict(fibres=fibres, grain=to_uint8(_smooth(rng, n, 1.3, 1.3) + 0.7 * _smooth(rng, n, 5, 5), 128, 32),
                noise=to_uint8(rng.standard_normal((n, n)), 250, 1.6))


def _nucleus(rng, length, width, angle, ink, vesicular, clumps):
    """One nucleus as a uint8 square of haematoxylin; mean ink inside the outline is `ink` whatever the chromatin."""
    half = int(math.ceil(1.2 * length)) + 2
    y, x = np.mgrid[-half:half + 1, -half:half + 1].astype(np.float32)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    theta = np.arctan2(v / width, u / length)
    rim = 1 + sum(rng.normal(0, 0.05 / k) * np.cos(k * theta + rng.uniform(0, 6.3)) for k in (2, 3, 4))
    rho = np.hypot(u / length, v / width) / rim
    inside = np.clip((1 - rho) * math.sqrt(length * width) / 1.6 + 0.5, 0, 1)
    chromatin = cv2.GaussianBlur(rng.standard_normal(x.shape, np.float32), (0, 0), 1.3)
    tone = 1 + clumps * chromatin / chromatin.std() + vesicular * (0.5 * np.clip(rho, 0, 1) ** 3 - 0.2)
    if vesicular > 0.3:
        at = rng.normal(0, 0.22, 2) * (length, width)
        tone = tone + 1.6 * vesicular * np.exp(-((u - at[0]) ** 2 + (v - at[1]) ** 2) / (2 * (0.13 * width) ** 2))
    tone = np.clip(tone, 0.25, 2)
    tone *= inside.sum() / (tone * inside).sum()
    return np.clip(ink * tone * inside, 0, 255).astype(np.uint8)


RADII = np.arange(5.0, 15.5, 0.5)
VARIANTS = 12
MARGIN = 32  # no nucleus is as close to the edge of the slide as this, so that each is painted whole


@cache
def _sprites() -> dict[str, list]:
    """The nuclei to stamp: a list of sprites for each kind of nucleus, those of a tumour by radius, then variant."""
    rng = np.random.default_rng(2)

    def oval(radius, ratio, ink, vesicular, clumps):
        q = math.sqrt(rng.uniform(1, ratio))
        ink *= rng.uniform(0.88, 1.12)
        return _nucleus(rng, radius * q, radius / q, rng.uniform(0, np.pi), ink, vesicular, clumps)

    return dict(
        vesicular=[[oval(r, 1.5, 150, 0.75, 0.34) for _ in range(VARIANTS)] for r in RADII],
        even=[[oval(r, 1.5, 150, 0.10, 0.08) for _ in range(VARIANTS)] for r in RADII],
        benign=[oval(7.6, 1.7, 150, 0.15, 0.15) for _ in range(24)],
        lymphocyte=[oval(rng.uniform(5.2, 6.4), 1.15, 205, 0, 0.18) for _ in range(24)],
        # 16 directions, 4 variants of each
        stroma=[[_nucleus(rng, rng.uniform(11, 17), rng.uniform(2.6, 3.8), np.pi * k / 16, 150, 0, 0.15)
                 for _ in range(4)] for k in range(16)],
    )


# ---- where things are -----------------------------------------------------------------------------------------------

def _field(rng, n, cells):
    """Smooth random field (n, n) of mean 0 and deviation 1 with about `cells` bumps a side."""
    coarse = rng.standard_normal((int(cells) + 3, int(cells) + 3), np.float32)
    field = cv2.resize(coarse, (n + 2 * n // int(cells + 1), ) * 2, interpolation=cv2.INTER_CUBIC)[:n, :n]
    return (field - field.mean()) / field.std()


def _top(field, within, share):
    """The `share` of the cells of `within` where `field` is highest, as a mask."""
    if not within.any() or share <= 0:
        return np.zeros_like(within)
    return within & (field >= np.quantile(field[within], 1 - share))


def _lattice(rng, side, spacing, jitter=0.2):
    """Points (N, 2) of a jittered hexagonal lattice over the whole slide."""
    rows = np.arange(0, side, spacing * 0.866)
    cols = np.arange(0, side, spacing)
    x = cols[None] + (np.arange(len(rows))[:, None] % 2) * spacing / 2
    points = np.stack([x.ravel(), np.repeat(rows, len(cols))], 1)
    return points + rng.normal(0, jitter * spacing, points.shape)


def _at(image, points, cell=1):
    """Values of a map at points (N, 2) = x, y in level-0 px."""
    x, y = (np.clip((points / cell).astype(int), 0, np.array(image.shape[::-1]) - 1)).T
    return image[y, x]


def _outline(rng, centre, radius, wobble=0.10, points=40):
    """A closed, irregular outline (points, 2), and the angle and distance of its points from the centre."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    waves = [rng.normal(0, wobble / k ** 0.5) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 5)]
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
    area = region.sum() * MAP ** 2
    step = rng.uniform(400, 520)
    # a little more of both than the shares ask for: a lumen takes its part, and places in excess are thinned out
    reach = 1.06 * step * math.sqrt(0.866 * CYTOPLASM_SHARE / np.pi)
    spacing = 0.88 * radius * math.sqrt(np.pi * CYTOPLASM_SHARE / (0.866 * NUCLEAR_SHARE * dense))
    centres = _lattice(rng, epithelium.shape[0], step, 0.12)
    centres = centres[_at(region, centres, MAP)]
    places = [np.empty((0, 2))]
    for centre in centres:
        own = reach * rng.uniform(0.75, 1.25)
        if rng.uniform() < 0.25:
            places.append(_gland(rng, epithelium, white, centre, own, spacing, rng.uniform(0.28, 0.44)))
        else:
            places.append(_cords(rng, epithelium, centre, own, spacing, _at(maps["angle"], centre[None], MAP)[0]))
    return rng.permutation(np.concatenate(places))[:_cell_count(area, radius, dense)]


def _cell_count(area, radius, dense):
    """How many tumour cells an area (px) holds: as many as give the nuclear area both arrangements share."""
    return int(NUCLEAR_SHARE * dense * area / (np.pi * radius ** 2))


def _files(rng, region, maps, epithelium, white, radius, dense):
    """Single files of cells along the fibres in `region`, with fat cells between; return the places of their nuclei."""
    area = region.sum() * MAP ** 2
    wanted = _cell_count(area, radius, dense)
    step = 2.3 * radius
    thickness = round(CYTOPLASM_SHARE * area / max(wanted * step, 1))
    side = epithelium.shape[0]
    taken = np.zeros((side // 4, side // 4), np.uint8)
    seeds = _lattice(rng, side, 3 * radius, 0.3)
    seeds = rng.permutation(seeds[_at(region & maps["streams"], seeds, MAP)])
    length = 15
    path = np.empty((length, len(seeds), 2))
    for k in range(length):
        path[k] = seeds
        theta = _at(maps["angle"], seeds, MAP) + rng.normal(0, 0.12, len(seeds))
        seeds = seeds + step * np.stack([np.cos(theta), np.sin(theta)], 1)
    free = _at(region & maps["streams"], path.reshape(-1, 2), MAP).reshape(length, -1)
    places, total = [np.empty((0, 2))], 0
    for file, inside in zip(path.transpose(1, 0, 2), free.T):
        stop = rng.integers(6, length + 1)
        open_ = inside[:stop] & (_at(taken, file[:stop], 4) == 0)
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
    fat = _lattice(rng, side, 150, 0.25)
    fat = rng.permutation(fat[_at(region, fat, MAP)])[:int(WHITE_SHARE * area / (np.pi * 26 ** 2))]
    for centre in fat:
        _fill(white, _outline(rng, centre, rng.uniform(20, 32), 0.04)[0])
    return np.concatenate(places)


# ---- one slide ------------------------------------------------------------------------------------------------------

def _tiled(texture, rng, side):
    """A texture that tiles, from a random start, over the whole slide."""
    n = texture.shape[0]
    shifted = np.roll(texture, tuple(rng.integers(0, n, 2)), (0, 1))
    return np.tile(shifted, (-(-side // n),) * 2)[:side, :side]


def _wide(values, side):
    """A map of the slide (cells, cells) in [0, 1] as a level-0 uint8 plane."""
    return cv2.resize(np.clip(255 * values, 0, 255).astype(np.uint8), (side, side), interpolation=cv2.INTER_LINEAR)


def _times(a, b, scale=1 / 255):
    return cv2.multiply(a, b, scale=scale)


def _mix(below, above, mask):
    """`above` where mask is 255, `below` where it is 0."""
    return cv2.add(_times(below, cv2.bitwise_not(mask)), _times(above, mask))


def paint_slide(row, seed: int, side: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Paint the slide of one row of `plan_cohort`: uint8 RGB (side, side, 3) and its truth.

    Truth: `signal` and `tissue` (side // downsample, side // downsample) bool, `downsample`, one entry a nucleus in
    `x`, `y` (level-0 px, centre), `radius` (px, of the disc of equal area) and `kind` (one of KINDS), and the patient's
    `arrangement` and `size`.
    """
    of_patient = np.random.default_rng([seed, 2, row["patient"]])
    rng = np.random.default_rng([seed, 3, row["patient"], row["number"]])
    maps = _regions(rng, side, row["arrangement"])
    radius = RADIUS + RADIUS_STEP * row["size"]
    dense = math.exp(np.clip(of_patient.normal(0, 0.2), -0.35, 0.35))  # the number of cells must not tell their size
    epithelium, white = np.zeros((side, side), np.uint8), np.zeros((side, side), np.uint8)
    groups = _populate(rng, maps, epithelium, white, radius, dense)
    epithelium, white = (cv2.GaussianBlur(mask, (5, 5), 1.2) for mask in (epithelium, white))
    gone = _times(cv2.bitwise_not(white), _wide(maps["solid"], side))
    haema, eosin = _ground(rng, maps, epithelium, gone)

    nuclei = []
    for kind, places in groups.items():
        places = places[((places > MARGIN) & (places < side - MARGIN)).all(1)]
        places = places[_at(maps["tissue"], places, MAP) & (_at(gone, places) > 200)]
        if kind == "stroma":
            places = places[_at(epithelium, places) < 60]
        radii = _stamp(rng, haema, kind, places, radius, row["size"], maps["angle"])
        nuclei.append(pd.DataFrame(dict(x=places[:, 0], y=places[:, 1], radius=radii, kind=kind)))
    nuclei = pd.concat(nuclei)
    eosin = cv2.subtract(eosin, haema // 4)
    fold = _folds(rng, side)
    haema, eosin = (cv2.add(plane, _times(plane, fold, 0.8 / 255)) for plane in (haema, eosin))

    truth = {name: nuclei[name].to_numpy(np.float32) for name in ("x", "y", "radius")}
    truth.update(kind=nuclei.kind.to_numpy(f"<U{max(map(len, KINDS))}"), signal=maps["signal"], tissue=maps["tissue"],
                 downsample=np.int64(MAP), arrangement=np.float64(row["arrangement"]), size=np.float64(row["size"]))
    return _stain(of_patient, rng, haema, eosin, row["site"]), truth


def _regions(rng, side, arrangement):
    """Maps (side // MAP, side // MAP): tissue, signal, nested (part of signal), fat, neutral, the rest."""
    cells = side // MAP

    def bumps(number):  # of one size in px, whatever the slide's
        return _field(rng, cells, max(2, number * side / 4608))

    gy, gx = np.mgrid[:cells, :cells] * (2 / cells) - 1
    squeeze, turn = rng.uniform(0.8, 1.0), rng.uniform(0, np.pi)
    u, v = gx * math.cos(turn) + gy * math.sin(turn), gy * math.cos(turn) - gx * math.sin(turn)
    shape = (1.2 - 1.9 * np.hypot(u, v / squeeze) ** 2
             + 0.22 * _field(rng, cells, 4) + 0.09 * _field(rng, cells, 14) + 0.035 * _field(rng, cells, 60))
    rim = np.maximum(np.abs(gx), np.abs(gy))
    shape = np.where(rim > 0.96, -2.0, shape - 8 * np.maximum(rim - 0.84, 0))
    tissue = _top(shape, np.ones((cells, cells), bool), rng.uniform(0.48, 0.56))
    solid = 0.5 + 11 * (shape - np.quantile(shape, 1 - tissue.mean()))
    inner = cv2.erode(tissue.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    signal = _top(bumps(4), inner, rng.uniform(0.55, 0.65))
    nested_share = 0.5 + NESTED_STEP * arrangement + rng.normal(0, 0.05)
    nested = _top(bumps(6), signal, np.clip(nested_share, 0.02, 0.98))
    # fibres run in direction `angle`; streams are bands along them, as wide as a nest, in which the files lie
    heading = rng.uniform(0, np.pi)
    angle = heading + 0.4 * bumps(5)
    athwart = (gy * math.cos(heading) - gx * math.sin(heading)) * side / 2 + 70 * bumps(5)
    streams = _top(np.cos(2 * np.pi * athwart / STREAM_PX), signal, STREAM_SHARE)
    fat = _top(bumps(6), inner & ~signal, rng.uniform(0.10, 0.25))
    return dict(tissue=tissue, solid=solid, signal=signal, nested=nested, fat=fat, neutral=inner & ~signal & ~fat,
                angle=angle, streams=streams, cellular=bumps(8), inflamed=bumps(9) + 0.6 * bumps(30))


def _populate(rng, maps, epithelium, white, radius, dense):
    """Draw what the cells form into the masks of epithelium and white space; return the places (N, 2) of each kind."""
    side = epithelium.shape[0]
    tumour = [_nests(rng, maps["nested"], maps, epithelium, white, radius, dense),
              _files(rng, maps["signal"] & ~maps["nested"], maps, epithelium, white, radius, dense)]
    # a nest that reaches over the border of the signal region takes the region with it
    reached = cv2.resize(epithelium, maps["tissue"].shape, interpolation=cv2.INTER_AREA) > 64
    maps["signal"] |= reached & maps["tissue"]
    for name in ("fat", "neutral"):
        maps[name] &= ~maps["signal"]
    benign = [np.empty((0, 2))]
    lobules = _lattice(rng, side, 300)
    lobules = lobules[_at(maps["neutral"], lobules, MAP) & (rng.uniform(size=len(lobules)) < 0.35)]
    acini = np.repeat(lobules, rng.integers(1, 5, len(lobules)), 0)
    acini = acini + rng.normal(0, 75, acini.shape)
    for centre in acini[_at(maps["neutral"], acini, MAP)]:
        benign.append(_gland(rng, epithelium, white, centre, rng.uniform(26, 46), 17, rng.uniform(0.35, 0.5)))
    fat = _lattice(rng, side, 104, 0.05)
    for centre in fat[_at(maps["fat"], fat, MAP)]:
        outline, phi, _ = _outline(rng, centre, 50, 0.025)
        hexagon = 1 / np.cos((phi + np.pi / 6) % (np.pi / 3) - np.pi / 6)  # fat cells press each other flat
        _fill(white, centre + (outline - centre) * np.minimum(hexagon, 1.1)[:, None])
    stroma = _lattice(rng, side, rng.uniform(48, 58), 0.3)
    stroma = stroma[rng.uniform(size=len(stroma)) < 0.65 + 0.2 * _at(maps["cellular"], stroma, MAP)]
    lymph = rng.uniform(0, side, (int(side ** 2 / 40 ** 2), 2))
    lymph = lymph[rng.uniform(size=len(lymph)) < np.clip(0.45 * _at(maps["inflamed"], lymph, MAP) - 0.35, 0.03, 0.8)]
    return dict(tumour=np.concatenate(tumour), benign=np.concatenate(benign), stroma=stroma, lymphocyte=lymph)


def _ground(rng, maps, epithelium, gone):
    """Planes of haematoxylin and eosin (side, side) uint8 before the nuclei: fibres, cytoplasm, and what is `gone`."""
    side, textures = epithelium.shape[0], _textures()
    fibres = np.zeros((side, side), np.uint8)
    for k, texture in enumerate(textures["fibres"]):
        apart = np.abs((maps["angle"] * DIRECTIONS / np.pi - k + DIRECTIONS / 2) % DIRECTIONS - DIRECTIONS / 2)
        fibres = cv2.add(fibres, _times(_tiled(texture, rng, side), _wide(np.clip(1.5 - 2 * apart, 0, 1), side)))
    grain = _tiled(textures["grain"], rng, side)
    levels = np.arange(256)
    # the lowest fibres are clefts: next to no eosin
    stroma = cv2.LUT(fibres, np.interp(levels, [0, 66, 92, 128, 255], [4, 30, 84, 104, 170]).astype(np.uint8))
    cytoplasm = cv2.LUT(grain, np.interp(levels, [0, 128, 255], [40, 84, 130]).astype(np.uint8))
    slow = _wide(0.62 + 0.08 * _field(rng, maps["angle"].shape[0], 12), side)
    eosin = _times(_times(_mix(stroma, cytoplasm, epithelium), slow, 1.6 / 255), gone)
    haema = _times(_mix(np.uint8(8) + fibres // 16, np.uint8(20) + grain // 6, epithelium), gone)
    return haema, eosin


def _folds(rng, side):
    """Up to two folds of the tissue, as a soft mask (side, side)."""
    fold = np.zeros((side // 4, side // 4), np.uint8)
    for _ in range(rng.integers(0, 3)):
        bend = rng.uniform(0, np.pi) + np.cumsum(rng.normal(0, 0.12, 14))
        steps = np.stack([np.cos(bend), np.sin(bend)], 1) * 70 * side / 4608
        line = rng.uniform(0.25, 0.75, 2) * side + np.cumsum(steps, 0)
        cv2.polylines(fold, [np.round(line / 4).astype(np.int32)], False, 255, int(rng.integers(6, 14)))
    return cv2.resize(cv2.GaussianBlur(fold, (0, 0), 1.5), (side, side))


def _stamp(rng, haema, kind, places, radius, size, angle):
    """Stamp the nuclei of one kind into the plane of haematoxylin; return their radii (N,) in px."""
    n, sprites = len(places), _sprites()
    if kind == "tumour":
        wanted = np.clip(radius * np.exp(rng.normal(0, 0.12, n)), RADII[0], RADII[-1])
        index = np.round((wanted - RADII[0]) / (RADII[1] - RADII[0])).astype(int)
        families = np.where(rng.uniform(size=n) < 0.5 + OPEN_STEP * size, "vesicular", "even")
        chosen = [sprites[f][i][v] for f, i, v in zip(families, index, rng.integers(0, VARIANTS, n))]
        radii = RADII[index]
    elif kind == "stroma":
        way = np.round((_at(angle, places, MAP) + rng.normal(0, 0.25, n)) * 16 / np.pi).astype(int) % 16
        chosen = [sprites[kind][w][v] for w, v in zip(way, rng.integers(0, 4, n))]
        radii = np.full(n, 6.7)
    else:
        chosen = [sprites[kind][v] for v in rng.integers(0, 24, n)]
        radii = np.full(n, 7.6 if kind == "benign" else 5.8)
    for sprite, (x, y) in zip(chosen, places.astype(int).tolist()):
        half = sprite.shape[0] // 2
        view = haema[y - half:y + half + 1, x - half:x + half + 1]
        np.maximum(view, sprite, out=view)
    return radii


def _stain(of_patient, rng, haema, eosin, site):
    """RGB from the two planes, by Beer-Lambert's law, with the stains of the site, the patient and the slide."""
    h_od, e_od, h_gain, e_gain = STAINS[site]
    h_od, e_od = (np.array(od) * of_patient.normal(1, 0.03, 3) for od in (h_od, e_od))
    h_gain *= math.exp(of_patient.normal(0, 0.06) + rng.normal(0, 0.03))
    e_gain *= math.exp(of_patient.normal(0, 0.06) + rng.normal(0, 0.03))
    haema, eosin = (cv2.GaussianBlur(plane, (3, 3), 0.7) for plane in (haema, eosin))
    glass = np.array([245, 246, 247])
    level = np.arange(256) / 255
    rgb = np.empty((*haema.shape, 3), np.uint8)
    for c in range(3):
        h = np.round(255 * np.exp(-2.3 * h_gain * h_od[c] * level)).astype(np.uint8)
        e = np.round(glass[c] * np.exp(-1.55 * e_gain * e_od[c] * level)).astype(np.uint8)
        channel = _times(cv2.LUT(haema, h), cv2.LUT(eosin, e))
        rgb[..., c] = _times(channel, _tiled(_textures()["noise"], rng, haema.shape[0]))
    return rgb
