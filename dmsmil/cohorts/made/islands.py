"""Epithelium in islands, or stroma in pockets of it: two arrangements of which 64 um tell little and 128 um much.

Both are one field of round hills, one epithelium where the hills are and one where they are not. So both have the same
share of epithelium, the same length of its border and the same cells in it; they differ in which side of the border is
the round one. How far apart the hills are, how much of the ground is epithelium and how dense the cells lie is each
patient's own, and the border wanders: a small window on one side of it sees what it may see in the other arrangement.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from scipy.spatial import cKDTree

from dmsmil.cohorts.made.tissue import CYTOPLASM_SHARE, MAP, NUCLEAR_SHARE, field_of, lattice, values_at

CELL = 8  # level-0 px in one cell of the field
APART = 480  # px from one hill to the next
SHARE = 0.5  # of the region that is epithelium
WANDER, WANDER_PX = 0.2, 60  # how much the border wanders, beside hills of deviation 1, and on which scale
APART_SPREAD, SHARE_SPREAD = 0.15, 0.15  # between patients: of the logarithm of the distance, of the share


def islands_or_pockets(rng, of_patient, maps, arrangement, epithelium, radius, dense):
    """Draw the tumour into the mask of epithelium, in the signal region; return the places (N, 2) of its nuclei.

    arrangement: +1 islands in stroma, -1 pockets of stroma; what lies between, the less of either. of_patient: the
    patient's own random numbers.
    """
    side, region = epithelium.shape[0], maps["signal"]
    apart = APART * math.exp(of_patient.normal(0, APART_SPREAD))
    share = np.clip(SHARE + of_patient.normal(0, SHARE_SPREAD), 0.3, 0.7)
    n = side // CELL
    wander = field_of(rng, n, side / WANDER_PX)
    hills = lattice(rng, side, apart, 0.12)
    inside = cv2.resize(region.astype(np.uint8), (n, n), interpolation=cv2.INTER_NEAREST) > 0
    near = cv2.dilate(inside.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0  # so that no border is one of the field
    y, x = np.nonzero(near)
    depth = cKDTree(hills).query(np.stack([x, y], 1) * CELL + CELL / 2)[0]
    height = arrangement * (np.median(depth) - depth) / depth.std() + WANDER * wander[near]
    field = np.full((n, n), -1, np.float32)
    field[near] = height - np.quantile(height, 1 - share)
    drawn = cv2.resize(field, (side, side), interpolation=cv2.INTER_LINEAR) > 0
    drawn &= cv2.resize(region.astype(np.uint8) * 255, (side, side), interpolation=cv2.INTER_LINEAR) > 127
    epithelium[drawn] = 255
    spacing = radius * math.sqrt(np.pi * CYTOPLASM_SHARE / (0.866 * NUCLEAR_SHARE * dense))
    places = lattice(rng, side, spacing, 0.14)
    deep = cv2.erode(epithelium, np.ones((9, 9), np.uint8))
    return places[(values_at(deep, places) > 0) & values_at(region, places, MAP)]
