"""Pictures that look like H&E, every nucleus known: two planes, haematoxylin and eosin, RGB by Beer-Lambert's law."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd

from dmsmil.cohorts.made.brushes import DIRECTIONS, RADII, VARIANTS, chromatin_to_stamp, nuclei_to_stamp, textures
from dmsmil.cohorts.made.islands import islands_or_pockets
from dmsmil.cohorts.made.tissue import MAP, field_of, nests_and_files, populate, regions, values_at

KINDS = ("tumour", "benign", "stroma", "lymphocyte")
MARGIN = 32  # no nucleus is as close to the edge of the slide as this, so that each is painted whole
RADIUS, RADIUS_STEP = 9.2, 1.2  # mean radius in px of a tumour nucleus of size 0, and what size +1 adds
# optical density of one unit of haematoxylin and of eosin in R, G, B, and the strength of each, by site
STAINS = {
    "A": ((0.62, 0.70, 0.33), (0.12, 0.78, 0.44), 1.00, 1.00),
    "B": ((0.59, 0.71, 0.37), (0.09, 0.75, 0.49), 0.88, 1.12),
    "C": ((0.65, 0.69, 0.29), (0.16, 0.79, 0.41), 1.12, 0.88),
}


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


@dataclass(frozen=True)
class Recipe:
    """What a cohort's slides have in common; the defaults are the demo's.

    islands: the tumour grows as `islands_or_pockets`, its nuclei are `chromatin_to_stamp`, and each part of a slide has
    its own random numbers, so that two rates differ in little more than they must. radius_step: px that size +1 adds to
    the mean radius of a tumour nucleus; open_step: half of the nuclei have open chromatin at size 0, and size +1 adds
    this share. Of patients, without regard to their class: radius_spread, dense_spread, ink_spread, deviations of the
    logarithms of the mean radius, of the number of cells and of the ink of the nuclei. stain_spread: share of the
    differences in stain that is left, between sites, patients and slides; fat: least and greatest share of it outside
    the signal.
    """

    islands: bool = False
    radius_step: float = RADIUS_STEP
    open_step: float = 0.5
    radius_spread: float = 0.0
    dense_spread: float = 0.2
    ink_spread: float = 0.0
    stain_spread: float = 1.0
    fat: tuple[float, float] = (0.10, 0.25)


def _chances(recipe, seed, row) -> Callable[[str], np.random.Generator]:
    """The random numbers of each part of a slide by its name: one stream for all of them, or one for each."""
    key = [seed, 3, row["patient"], row["number"]]
    whole = np.random.default_rng(key)
    return (lambda part: np.random.default_rng([*key, *part.encode()])) if recipe.islands else lambda part: whole


def paint_slide(row, seed: int, side: int, recipe: Recipe = Recipe()) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Paint the slide of one row of `plan_cohort` or `plan_planted`: uint8 RGB (side, side, 3) and its truth.

    Truth: `signal` and `tissue` (side // downsample, side // downsample) bool, `downsample`, one entry a nucleus in
    `x`, `y` (level-0 px, centre), `radius` (px, of the disc of equal area) and `kind` (one of KINDS), and the patient's
    `arrangement` and `size`.
    """
    of_patient = np.random.default_rng([seed, 2, row["patient"]])
    chance = _chances(recipe, seed, row)
    maps = regions(chance("regions"), side, row["arrangement"], row.get("rate", 0.0), recipe.fat)
    # the number of cells must not tell their size
    dense = math.exp(np.clip(of_patient.normal(0, recipe.dense_spread), -0.35, 0.35))
    radius, ink = RADIUS + recipe.radius_step * row["size"], 1.0
    epithelium, white = np.zeros((side, side), np.uint8), np.zeros((side, side), np.uint8)
    if recipe.islands:
        radius *= math.exp(of_patient.normal(0, recipe.radius_spread))
        ink = math.exp(of_patient.normal(0, recipe.ink_spread))
        tumour = islands_or_pockets(chance("tumour"), of_patient, maps, row["arrangement"], epithelium, radius, dense)
    else:
        tumour = nests_and_files(chance("tumour"), maps, epithelium, white, radius, dense)
    groups = dict(tumour=tumour, **populate(chance, maps, epithelium, white))
    epithelium, white = (cv2.GaussianBlur(mask, (5, 5), 1.2) for mask in (epithelium, white))
    gone = _times(cv2.bitwise_not(white), _wide(maps["solid"], side))
    haema, eosin = _ground(chance("ground"), maps, epithelium, gone)

    nuclei = []
    for kind, places in groups.items():
        places = places[((places > MARGIN) & (places < side - MARGIN)).all(1)]
        places = places[values_at(maps["tissue"], places, MAP) & (values_at(gone, places) > 200)]
        if kind == "stroma":
            places = places[values_at(epithelium, places) < 60]
        if kind == "tumour":
            share = 0.5 + recipe.open_step * row["size"]
            radii = _stamp_tumour(chance(kind), haema, places, radius, share, ink, recipe.islands)
        else:
            radii = _stamp(chance(kind), haema, kind, places, maps["angle"])
        nuclei.append(pd.DataFrame(dict(x=places[:, 0], y=places[:, 1], radius=radii, kind=kind)))
    nuclei = pd.concat(nuclei)
    eosin = cv2.subtract(eosin, haema // 4)
    fold = _folds(chance("folds"), side)
    haema, eosin = (cv2.add(plane, _times(plane, fold, 0.8 / 255)) for plane in (haema, eosin))

    truth = {name: nuclei[name].to_numpy(np.float32) for name in ("x", "y", "radius")}
    truth.update(
        kind=nuclei.kind.to_numpy(f"<U{max(map(len, KINDS))}"),
        signal=maps["signal"],
        tissue=maps["tissue"],
        downsample=np.int64(MAP),
        arrangement=np.float64(row["arrangement"]),
        size=np.float64(row["size"]),
    )
    return _stain(of_patient, chance("stain"), haema, eosin, row["site"], recipe.stain_spread), truth


def _ground(rng, maps, epithelium, gone):
    """Planes of haematoxylin and eosin (side, side) uint8 before the nuclei: fibres, cytoplasm, and what is `gone`."""
    side = epithelium.shape[0]
    fibres = np.zeros((side, side), np.uint8)
    for k, texture in enumerate(textures()["fibres"]):
        apart = np.abs((maps["angle"] * DIRECTIONS / np.pi - k + DIRECTIONS / 2) % DIRECTIONS - DIRECTIONS / 2)
        fibres = cv2.add(fibres, _times(_tiled(texture, rng, side), _wide(np.clip(1.5 - 2 * apart, 0, 1), side)))
    grain = _tiled(textures()["grain"], rng, side)
    levels = np.arange(256)
    # the lowest fibres are clefts: next to no eosin
    stroma = cv2.LUT(fibres, np.interp(levels, [0, 66, 92, 128, 255], [4, 30, 84, 104, 170]).astype(np.uint8))
    cytoplasm = cv2.LUT(grain, np.interp(levels, [0, 128, 255], [40, 84, 130]).astype(np.uint8))
    slow = _wide(0.62 + 0.08 * field_of(rng, maps["angle"].shape[0], 12), side)
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


def _stamp_tumour(rng, haema, places, radius, share, ink, grains):
    """Stamp a tumour's nuclei, `share` of them with open chromatin; return their radii (N,) in px.

    ink: what their haematoxylin is multiplied by; grains: they are `chromatin_to_stamp`.
    """
    n, sprites = len(places), chromatin_to_stamp() if grains else nuclei_to_stamp()
    wanted = np.clip(radius * np.exp(rng.normal(0, 0.12, n)), RADII[0], RADII[-1])
    index = np.round((wanted - RADII[0]) / (RADII[1] - RADII[0])).astype(int)
    families = np.where(rng.uniform(size=n) < share, *(("granular", "smooth") if grains else ("vesicular", "even")))
    chosen = [sprites[f][i][v] for f, i, v in zip(families, index, rng.integers(0, VARIANTS, n))]
    _press([cv2.convertScaleAbs(sprite, alpha=ink) for sprite in chosen] if ink != 1 else chosen, haema, places)
    return RADII[index]


def _stamp(rng, haema, kind, places, angle):
    """Stamp the nuclei of another kind into the plane of haematoxylin; return their radii (N,) in px."""
    n, sprites = len(places), nuclei_to_stamp()
    if kind == "stroma":
        way = np.round((values_at(angle, places, MAP) + rng.normal(0, 0.25, n)) * 16 / np.pi).astype(int) % 16
        chosen = [sprites[kind][w][v] for w, v in zip(way, rng.integers(0, 4, n))]
        radii = np.full(n, 6.7)
    else:
        chosen = [sprites[kind][v] for v in rng.integers(0, 24, n)]
        radii = np.full(n, 7.6 if kind == "benign" else 5.8)
    _press(chosen, haema, places)
    return radii


def _press(sprites, haema, places):
    """Put sprites into the plane of haematoxylin, each with its middle at its place; the darker of both stays."""
    for sprite, (x, y) in zip(sprites, places.astype(int).tolist()):
        half = sprite.shape[0] // 2
        view = haema[y - half : y + half + 1, x - half : x + half + 1]
        np.maximum(view, sprite, out=view)


def _stain(of_patient, rng, haema, eosin, site, spread):
    """RGB from the two planes, by Beer-Lambert's law, with the stains of the site, the patient and the slide, of whose
    differences from the usual ones the share `spread` is left."""
    usual = [np.mean(values, 0) for values in zip(*STAINS.values())]
    h_od, e_od, h_gain, e_gain = (
        spread * np.array(own) + (1 - spread) * all_sites for own, all_sites in zip(STAINS[site], usual)
    )
    h_od, e_od = (od * of_patient.normal(1, 0.03 * spread, 3) for od in (h_od, e_od))
    h_gain, e_gain = (
        gain * math.exp(of_patient.normal(0, 0.06 * spread) + rng.normal(0, 0.03 * spread)) for gain in (h_gain, e_gain)
    )
    haema, eosin = (cv2.GaussianBlur(plane, (3, 3), 0.7) for plane in (haema, eosin))
    glass = np.array([245, 246, 247])
    level = np.arange(256) / 255
    rgb = np.empty((*haema.shape, 3), np.uint8)
    for c in range(3):
        h = np.round(255 * np.exp(-2.3 * h_gain * h_od[c] * level)).astype(np.uint8)
        e = np.round(glass[c] * np.exp(-1.55 * e_gain * e_od[c] * level)).astype(np.uint8)
        channel = _times(cv2.LUT(haema, h), cv2.LUT(eosin, e))
        rgb[..., c] = _times(channel, _tiled(textures()["noise"], rng, haema.shape[0]))
    return rgb
