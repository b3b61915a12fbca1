"""Nuclei in H&E tiles: stain deconvolution, a local threshold, a watershed; measured, and validated on instance masks.

No training and no weights: haematoxylin by the stain vectors of Ruifrok and Johnston (Anal. Quant. Cytol. Histol. 23,
2001), seeds by h-maxima of the distance to the nucleus's edge. Every length is in micrometres, so tiles of any scanner
and magnification go through the same code; `validate` says how well each does.

What it is good for: how many nuclei a tile has, and how large they are beside other tiles of the same slide. What it is
not: comparing nuclear area between slides. Vesicular nuclei, pale with a dark rim, fall to pieces, so that the largest
nuclei of a carcinoma may be measured as small ones; on the held-out fields the median area hardly ranks them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from skimage.color import hed_from_rgb
from skimage.filters import threshold_otsu
from skimage.metrics import contingency_table
from skimage.segmentation import watershed

from dmsmil.jobs.files import InputError
from dmsmil.slides.density import WHITE, padding, padding_pixels, tissue_pixels
from dmsmil.slides.magnification import tile_size_level0
from dmsmil.slides.reader import Slide

# Chosen on the fields of TUNED_ON at 20x and 10x, each on a plateau.
NOISE_UM = 0.3  # standard deviation of the blur of haematoxylin
AROUND_UM = 6.0  # standard deviation of the surroundings a pixel is compared with
LOCAL = 0.5  # weight of the surroundings against the threshold of the whole stain
STRICT = 0.14  # share of the stain's contrast that a nuclear pixel stands above that
HOLE_UM2 = 40.0  # pale chromatin inside a nucleus, filled
SMOOTH_UM = 0.5  # standard deviation of the blur of the landscape that is flooded
DARK_UM = 1.0  # a pixel darker by the stain's contrast counts as this much further from the edge
DEPTH_UM = 0.4  # two summits less deep apart are one nucleus
SMALLEST_UM2 = 10.0  # anything smaller is debris or a sliver of a nucleus

LEAST_CONTRAST = 0.1  # optical density between nuclei and the rest; half of what the palest real field has
LYMPHOCYTE_UM2 = (12.0, 50.0)
LYMPHOCYTE_ECCENTRICITY, LYMPHOCYTE_SOLIDITY, LYMPHOCYTE_DARK = 0.75, 0.9, 0.65

MASK_MPP = 0.25  # of the validation fields, scanned at 40x
TUNED_ON = ("18", "38", "A7", "AR")  # tissue source sites whose fields chose the constants above
COLUMNS = ["area_um2", "x", "y", "eccentricity", "solidity", "intensity", "cut", "lymphocyte"]


class Stain(NamedTuple):
    """Otsu's threshold of haematoxylin in tissue, and the contrast between the means of the two sides (OD)."""

    threshold: float
    contrast: float


def haematoxylin(tile: np.ndarray) -> np.ndarray:
    """Optical density (decadic, never negative) of haematoxylin in an RGB tile: float32 (H, W)."""
    if tile.dtype != np.uint8 or tile.ndim != 3 or tile.shape[2] != 3:
        raise InputError(f"a tile must be uint8 (H, W, 3), got {tile.dtype} {tile.shape}: read it with Slide.read")
    density = -np.log10(np.maximum(np.arange(256), 1) / 255)
    planes = (cv2.LUT(tile[..., c], (density * hed_from_rgb[c, 0]).astype(np.float32)) for c in range(3))
    return np.maximum(sum(planes), 0)


def stain_of(tiles, mpp: float) -> Stain:
    """The stain of RGB tiles of one slide, from their tissue pixels; contrast 0 where there is no tissue."""
    planes = [_blur(haematoxylin(tile), NOISE_UM / mpp)[(tile < WHITE).any(2) & (padding(tile) == 0)] for tile in tiles]
    values = np.concatenate(planes) if planes else np.empty(0, np.float32)
    if not values.size or values.min() == values.max():
        return Stain(float("inf"), 0.0)
    threshold = float(threshold_otsu(values))
    dark = values > threshold
    return Stain(threshold, float(values[dark].mean() - values[~dark].mean()))


def segment(tile: np.ndarray, mpp: float, stain: Stain | None = None) -> np.ndarray:
    """The nuclei of an RGB tile (H, W, 3) of `mpp` micrometres a pixel: int32 (H, W), 0 outside, 1..n one a nucleus.

    `stain` is that of the slide where it is known, so that a tile without nuclei is judged by tiles that have some;
    otherwise the tile's own. Raises InputError for a tile that is not uint8 RGB or an mpp that is not positive.
    """
    if not mpp > 0:
        raise InputError(f"mpp is {mpp}: it must be the tile's micrometres a pixel, above 0")
    stain = stain or stain_of([tile], mpp)
    if stain.contrast < LEAST_CONTRAST:
        return np.zeros(tile.shape[:2], np.int32)
    haema = _blur(haematoxylin(tile), NOISE_UM / mpp)
    around = _blur(haema, AROUND_UM / mpp)
    nuclear = haema > (1 - LOCAL) * stain.threshold + LOCAL * around + STRICT * stain.contrast
    nuclear = _fill(nuclear.astype(np.uint8), HOLE_UM2 / mpp**2)
    depth = mpp * cv2.distanceTransform(nuclear, cv2.DIST_L2, cv2.DIST_MASK_5)
    depth += DARK_UM / stain.contrast * haema * nuclear
    depth = _blur(depth, SMOOTH_UM / mpp)
    seeds = (summits(depth, DEPTH_UM) & (nuclear > 0)).astype(np.uint8)
    labels = watershed(-depth, cv2.connectedComponents(seeds)[1], mask=nuclear > 0)
    kept = np.bincount(labels.ravel()) * mpp**2 >= SMALLEST_UM2
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[labels]


def _blur(plane: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur by `sigma` pixels; less than a quarter of a pixel is none."""
    return plane if sigma < 0.25 else cv2.GaussianBlur(plane, (0, 0), sigma)


def _fill(mask: np.ndarray, largest: float) -> np.ndarray:
    """`mask` (uint8, 0 or 1) with its holes of less than `largest` pixels filled."""
    _, holes, stats, _ = cv2.connectedComponentsWithStats(1 - mask, connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < largest
    small[0] = True  # the mask itself
    return small[holes].astype(np.uint8)


def summits(landscape: np.ndarray, depth: float) -> np.ndarray:
    """The maxima of `landscape` (float32) one must descend by `depth` or more to leave for a higher one: bool.

    Morphological reconstruction of `landscape - depth` by geodesic dilation (Vincent, IEEE Trans. Image Process. 1993),
    step by step: exactly skimage's result, several times faster, since a nucleus is few pixels across.
    """
    flooded, cross = landscape - np.float32(depth), np.ones((3, 3), np.uint8)
    while True:
        before = flooded
        for _ in range(8):
            flooded = cv2.min(cv2.dilate(flooded, cross), landscape)
        if np.array_equal(before, flooded):
            return landscape - flooded >= np.float32(0.999 * depth)


def measure(labels: np.ndarray, tile: np.ndarray, mpp: float, stain: Stain | None = None) -> pd.DataFrame:
    """One row a nucleus of `labels` (H, W), in the order of its labels.

    Columns: area_um2; x, y (px, centroid, 0 = centre of the tile's first pixel); eccentricity (0 round, of the ellipse
    with the same second moments); solidity (share of the pixels in its convex hull that are its own); intensity (mean
    OD of haematoxylin); cut (touches the tile's edge, so its area is not known); lymphocyte.

    Lymphocyte-like is a rule, not a diagnosis: small, from 12 to 50 um2 (the nucleus of a small lymphocyte is about
    7 um across, 38 um2, and smaller in paraffin, which shrinks, and where a section cuts it beside its middle), round
    (eccentricity below 0.75, solidity from 0.9 on) and dark (mean OD above the stain's threshold by 0.65 of its
    contrast, where the mean nuclear pixel stands at about 0.5). It takes pyknotic, apoptotic and plasma cells and round
    cuts of fibroblasts too, misses pale lymphocytes, and is blind where nearly every nucleus of the slide is one. How
    dark was chosen by eye on the fields of TUNED_ON and on the demo: no real truth for lymphocytes was at hand.
    """
    if not labels.max():
        return pd.DataFrame({name: np.empty(0, bool if name in ("cut", "lymphocyte") else float) for name in COLUMNS})
    stain = stain or stain_of([tile], mpp)
    top, left = np.nonzero(labels)
    index, haema = labels[top, left] - 1, haematoxylin(tile)
    area = np.bincount(index).astype(float)
    x, y = np.bincount(index, left) / area, np.bincount(index, top) / area
    dx, dy = left - x[index], top - y[index]
    xx, yy, xy = (np.bincount(index, a * b) / area for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    spread, total = np.hypot(xx - yy, 2 * xy), xx + yy
    table = pd.DataFrame(
        dict(
            area_um2=area * mpp**2,
            x=x,
            y=y,
            eccentricity=np.sqrt(2 * spread / np.maximum(total + spread, 1e-9)),
            solidity=area / _hulls(index, left, top),
            intensity=np.bincount(index, haema[top, left]) / area,
            cut=False,
        )
    )
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    table.loc[edge[edge > 0] - 1, "cut"] = True
    low, high = LYMPHOCYTE_UM2
    table["lymphocyte"] = (
        table.area_um2.between(low, high)
        & (table.eccentricity < LYMPHOCYTE_ECCENTRICITY)
        & (table.solidity >= LYMPHOCYTE_SOLIDITY)
        & (table.intensity > stain.threshold + LYMPHOCYTE_DARK * stain.contrast)
    )
    return table[COLUMNS]


def _hulls(index: np.ndarray, left: np.ndarray, top: np.ndarray) -> np.ndarray:
    """How many pixels lie in the convex hull of every nucleus; pixels (P,) by nucleus 0..n-1, column and row.

    By Pick's theorem: a polygon between pixel centres of area A with B of them on its outline holds A + B / 2 + 1.
    """
    points = np.stack([left, top], 1).astype(np.int32)[np.argsort(index, kind="stable")]
    sizes = []
    for own in np.split(points, np.cumsum(np.bincount(index))[:-1]):
        hull = cv2.convexHull(own)[:, 0]
        outline = np.gcd(*np.abs(np.diff(hull, axis=0, append=hull[:1])).T).sum()
        sizes.append(cv2.contourArea(hull) + outline / 2 + 1)
    return np.array(sizes)


def summarise(table: pd.DataFrame, tissue_area_mm2: float) -> dict[str, float]:
    """The nuclei of a tile (a table of `measure`) in four numbers, NaN where there is nothing to count.

    nuclei: how many were found. area_um2: median area of those not cut by the tile's edge. density_mm2: nuclei a mm² of
    tissue; a cut one counts half, for the tile beside shows it too. lymphocyte_share: of those not cut.
    """
    whole = table[~table.cut]
    count = len(whole) + 0.5 * (len(table) - len(whole))
    return dict(
        nuclei=len(table),
        area_um2=float(whole.area_um2.median()),
        density_mm2=count / tissue_area_mm2 if tissue_area_mm2 > 0 else float("nan"),
        lymphocyte_share=float(whole.lymphocyte.mean()),
    )


def tile_nuclei(slide: Slide, coords: np.ndarray, magnification: float, tile_px: int, sample: int = 16) -> pd.DataFrame:
    """`summarise` for the tiles of `slide` at `coords` (N, 2), level-0 corners: one row a tile, in the same order.

    The stain is that of the slide, from up to `sample` of these tiles, evenly spread over the list. Columns x, y
    (level-0 px), nuclei, area_um2, density_mm2, lymphocyte_share. Raises InputError: slide scanned below
    `magnification`, damaged file.
    """
    coords = np.asarray(coords, np.int64).reshape(-1, 2)
    mpp = slide.mpp * tile_size_level0(slide.magnification, magnification, tile_px) / tile_px
    chosen = np.unique(np.linspace(0, len(coords) - 1, min(sample, len(coords))).round().astype(int))
    stain = stain_of((slide.read(*coords[i].tolist(), magnification, tile_px) for i in chosen), mpp)
    rows = []
    for x, y in coords.tolist():
        tile = slide.read(x, y, magnification, tile_px)
        table = measure(segment(tile, mpp, stain), tile, mpp, stain)
        tissue = tissue_pixels(tile) - padding_pixels(tile)
        rows.append(dict(x=x, y=y) | summarise(table, tissue * mpp**2 / 1e6))
    return pd.DataFrame(rows, columns=["x", "y", "nuclei", "area_um2", "density_mm2", "lymphocyte_share"])


# ---- against the truth ----------------------------------------------------------------------------------------------


def panoptic(true: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """How well instances `found` (H, W) match `true` ones (H, W; 0 is background in both).

    A pair matches if it shares more than half of its union, which no two pairs of one nucleus can. pq = sq f1: sq is
    the mean IoU of matches, f1 = 2 TP / (true + found) (Kirillov et al., CVPR 2019, eq. 2). dice: of the foregrounds.
    All are 1 where both are empty.
    """
    table = contingency_table(true, found).tocoo()
    in_true, in_found = (np.bincount(labels.ravel()) for labels in (true, found))
    both = (table.row > 0) & (table.col > 0)
    shared, row, column = table.data[both], table.row[both], table.col[both]
    iou = shared / (in_true[row] + in_found[column] - shared)
    matched, count = iou[iou > 0.5], np.count_nonzero(in_true[1:]) + np.count_nonzero(in_found[1:])
    if not count:
        return dict(pq=1.0, sq=1.0, f1=1.0, dice=1.0)
    sq, f1 = float(matched.mean()) if len(matched) else 0.0, 2 * len(matched) / count
    return dict(pq=sq * f1, sq=sq, f1=f1, dice=float(2 * shared.sum() / (in_true[1:].sum() + in_found[1:].sum())))


def validate(folder, magnifications: tuple[int, ...] = (40, 20, 10)) -> pd.DataFrame:
    """Segment the fields of `folder` (NAME.png at 40x, NAME_instances.png with a number a nucleus) at `magnifications`.

    A field is area-averaged to the magnification as `Slide.read` does; what is found there is compared with the masks
    at 40x. One row a field and magnification: field, part (`tuned` if its site chose the constants, else `held out`),
    magnification, true_count, found_count, count_error (percent), true_area_um2, found_area_um2 (medians), area_error
    (percent), and the numbers of `panoptic`. Raises InputError: no field, a field without masks, a magnification that
    40 is no multiple of.
    """
    fields = sorted(path for path in Path(folder).glob("*.png") if not path.stem.endswith("_instances"))
    if not fields:
        raise InputError(f"no fields in {Path(folder).name}: expected NAME.png beside NAME_instances.png")
    if any(40 % magnification for magnification in magnifications):
        raise InputError(f"magnifications {magnifications}: each must divide the fields' 40")
    rows = []
    for path in fields:
        image, masks = _image(path), _image(path.with_name(f"{path.stem}_instances.png"))
        for magnification in magnifications:
            rows.append(_judge(path.stem, image, masks, magnification))
    return pd.DataFrame(rows)


def _image(path: Path) -> np.ndarray:
    """A PNG as RGB uint8 (H, W, 3), or as int32 (H, W) if it has one channel."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise InputError(f"{path.name} is missing or no image: each NAME.png needs its NAME_instances.png")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if image.ndim == 3 else image.astype(np.int32)


def _judge(name: str, image: np.ndarray, masks: np.ndarray, magnification: int) -> dict:
    """One row of `validate`."""
    step = 40 // magnification
    height, width = (side - side % step for side in masks.shape)
    small = cv2.resize(image[:height, :width], (width // step, height // step), interpolation=cv2.INTER_AREA)
    found = segment(small, MASK_MPP * step).repeat(step, 0).repeat(step, 1)
    true = masks[:height, :width]
    sizes = [np.bincount(labels.ravel())[1:] * MASK_MPP**2 for labels in (true, found)]
    (true_count, true_area), (count, area) = ((np.count_nonzero(s), float(np.median(s[s > 0]))) for s in sizes)
    return dict(
        field=name,
        part="tuned" if name.split("-")[1] in TUNED_ON else "held out",
        magnification=magnification,
        true_count=true_count,
        found_count=count,
        count_error=100 * (count / true_count - 1),
        true_area_um2=true_area,
        found_area_um2=area,
        area_error=100 * (area / true_area - 1),
        **panoptic(true, found),
    )
