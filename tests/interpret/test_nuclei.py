"""Nuclei: painted ones of known size, independent formulas, the demo's truth, and real instance masks."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.color import rgb2hed
from skimage.measure import regionprops
from skimage.morphology import convex_hull_image, reconstruction

from dmsmil.cohorts.made.demo import plan_cohort
from dmsmil.cohorts.made.histology import paint_slide
from dmsmil.interpret.nuclei import (
    haematoxylin,
    measure,
    panoptic,
    segment,
    stain_of,
    summarise,
    summits,
    tile_nuclei,
    validate,
)
from dmsmil.jobs.files import InputError
from dmsmil.slides.reader import open_slide
from tests.conftest import assert_one_line
from tests.slides.pyramids import write_pyramid

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "tcga_nuclei_40x"


def paint(discs, side_um: float, mpp: float, noise: float = 1.5, fine: int = 3):
    """A pink tile with haematoxylin discs (x, y, radius in um, ink in OD) of a side in um, painted finer by `fine`."""
    px, step = round(side_um / mpp), mpp / fine
    ink = np.zeros((px * fine, px * fine), np.float32)
    for cx, cy, radius, strength in discs:
        left, top = (max(int((c - radius) / step) - 1, 0) for c in (cx, cy))
        size = int(2 * radius / step) + 4
        around = ink[top : top + size, left : left + size]
        y, x = (np.mgrid[: around.shape[0], : around.shape[1]] + 0.5) * step
        disc = np.hypot(x + left * step - cx, y + top * step - cy) <= radius
        np.maximum(around, strength * disc, out=around, dtype=np.float32)
    density = ink[..., None] * np.float32([0.65, 0.70, 0.29]) + 0.25 * np.float32([0.07, 0.99, 0.11])
    rgb = cv2.resize(255 * 10**-density, (px, px), interpolation=cv2.INTER_AREA)
    rgb += np.random.default_rng(0).normal(0, noise, rgb.shape)
    return np.clip(rgb, 0, 255).astype(np.uint8)


def grid(radius: float, ink: float = 0.8, side_um: float = 128, step: float = 20):
    """Discs of one kind on a lattice, none cut by the tile's edge."""
    at = np.arange(step / 2, side_um, step)
    return [(x, y, radius, ink) for x in at for y in at if max(x, y) + radius < side_um - 2]


@pytest.fixture(scope="module")
def demo():
    """A painted field of the demo, 512 px at 20x, and the true nuclei (x, y, radius in px, kind) in it."""
    rgb, truth = paint_slide(plan_cohort(4).to_dict("records")[0], 0, 1024)
    inside = (np.abs(truth["x"] - 512) < 256) & (np.abs(truth["y"] - 512) < 256)
    return rgb[256:768, 256:768], {key: truth[key][inside] for key in ("x", "y", "radius", "kind")}


@pytest.mark.slow
def test_black_padding_is_neither_stain_nor_tissue(demo, tmp_path):
    """A tile that is half padding has the stain and the density of nuclei of its other half."""
    tissue = demo[0][:, :256]
    half = np.hstack([tissue, np.zeros_like(tissue)])
    np.testing.assert_allclose(stain_of([half], 0.5), stain_of([tissue], 0.5), rtol=0.02)
    with open_slide(write_pyramid(tmp_path / "half.svs", half, factors=(1,))) as slide:
        found = tile_nuclei(slide, [(0, 0)], 20, 512).iloc[0]
    with open_slide(write_pyramid(tmp_path / "tissue.svs", tissue, factors=(1,))) as slide:
        own = tile_nuclei(slide, [(0, 0), (0, 256)], 20, 256)
    assert found.nuclei == pytest.approx(own.nuclei.sum(), rel=0.1) and found.nuclei > 10
    assert found.density_mm2 == pytest.approx(own.density_mm2.mean(), rel=0.15)


# ---- the pieces, against independent formulas -----------------------------------------------------------------------


def test_haematoxylin_is_that_of_skimage_in_decadic_units(demo):
    np.testing.assert_allclose(haematoxylin(demo[0]), 6 * rgb2hed(demo[0])[..., 0], atol=1e-5)


def test_summits_are_those_of_the_reconstruction():
    noise = np.random.default_rng(0).normal(size=(120, 140)).astype(np.float32)
    for sigma, depth in ((2, 0.05), (6, 0.02)):
        plane = cv2.GaussianBlur(noise, (0, 0), sigma)
        reached = plane - reconstruction(plane - np.float32(depth), plane)
        np.testing.assert_array_equal(summits(plane, depth), reached >= np.float32(0.999 * depth))
        assert 3 < cv2.connectedComponents(summits(plane, depth).astype(np.uint8))[0] < 200


def test_measurements_agree_with_regionprops(demo):
    labels = segment(demo[0], 0.5)
    table, haema = measure(labels, demo[0], 0.5), haematoxylin(demo[0])
    regions = regionprops(labels, haema)
    assert len(table) == len(regions) > 50
    np.testing.assert_allclose(table.area_um2, [r.area * 0.25 for r in regions])
    np.testing.assert_allclose(table[["y", "x"]], [r.centroid for r in regions])
    np.testing.assert_allclose(table.eccentricity, [r.eccentricity for r in regions], atol=1e-6)
    np.testing.assert_allclose(table.intensity, [r.intensity_mean for r in regions], rtol=1e-4)
    hulls = [convex_hull_image(r.image, offset_coordinates=False).sum() for r in regions]
    np.testing.assert_allclose(table.solidity, [r.area / hull for r, hull in zip(regions, hulls)], rtol=0.02)
    assert table.solidity.max() <= 1
    boxes = np.array([r.bbox for r in regions])
    np.testing.assert_array_equal(table.cut, (boxes[:, :2] == 0).any(1) | (boxes[:, 2:] == 512).any(1))


def test_panoptic_by_hand():
    true, found = np.zeros((10, 20), int), np.zeros((10, 20), int)
    true[:4, :5], true[:4, 10:14], true[6:, 10:14] = 1, 2, 3  # 20, 16 and 16 pixels
    found[:4, :4], found[:4, 12:16], found[8:, :2] = 4, 1, 2  # shares 16 of 20; 8 of 24; nothing
    got = panoptic(true, found)
    assert got["sq"] == pytest.approx(0.8) and got["f1"] == pytest.approx(2 / 6)
    assert got["pq"] == pytest.approx(0.8 / 3) and got["dice"] == pytest.approx(2 * 24 / (52 + 36))


def test_panoptic_is_that_of_all_pairs_of_masks(demo):
    found = segment(demo[0][:256, :256], 0.5)
    true = np.roll(np.where(found % 5, found, 0), 3, 1)
    matched = []
    for a in np.unique(true)[1:]:
        for b in np.unique(found[true == a]):
            iou = ((true == a) & (found == b)).sum() / ((true == a) | (found == b)).sum()
            matched += [iou] if b and iou > 0.5 else []
    half = (len(np.unique(true)) + len(np.unique(found)) - 2) / 2
    got = panoptic(true, found)
    assert 0 < len(matched) < half
    assert got["pq"] == pytest.approx(sum(matched) / half) and got["f1"] == pytest.approx(len(matched) / half)
    assert got["dice"] == pytest.approx(2 * ((true > 0) & (found > 0)).sum() / ((true > 0).sum() + (found > 0).sum()))
    assert set(panoptic(true, true).values()) == {1.0} == set(panoptic(true * 0, found * 0).values())
    assert set(panoptic(true, found * 0).values()) == {0.0}


# ---- painted nuclei -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.46, 1.0])
@pytest.mark.parametrize("radius", [3.0, 5.0])
def test_discs_are_counted_and_measured_at_any_mpp(mpp, radius):
    discs = grid(radius)
    tile = paint(discs, 128, mpp)
    table = measure(segment(tile, mpp), tile, mpp)
    assert len(table) == len(discs) and not table.cut.any()
    assert table.area_um2.median() == pytest.approx(np.pi * radius**2, rel=0.06 if mpp < 1 else 0.12)
    centres = np.array([disc[:2] for disc in discs])
    apart = np.hypot(*(centres[:, None] - (table[["x", "y"]].to_numpy() + 0.5) * mpp).T)
    assert apart.min(0).max() < 0.3 * mpp + 0.1
    assert table.intensity.median() == pytest.approx(0.8, rel=0.15)


def test_half_the_pixels_at_twice_the_mpp_are_the_same_nuclei(demo):
    tile = demo[0]
    fine, coarse = (
        measure(segment(t, mpp), t, mpp)
        for t, mpp in ((tile, 0.5), (cv2.resize(tile, (256, 256), interpolation=cv2.INTER_AREA), 1.0))
    )
    assert len(coarse) == pytest.approx(len(fine), rel=0.1)
    assert coarse.area_um2.median() == pytest.approx(fine.area_um2.median(), rel=0.1)


def test_touching_discs_are_two():
    tile = paint([(40, 40, 5, 0.8), (48.5, 40, 5, 0.8), (90, 90, 5, 0.8)], 128, 0.5)
    assert segment(tile, 0.5).max() == 3


def test_glass_pink_and_noise_have_no_nuclei():
    white, pink = np.full((256, 256, 3), 243, np.uint8), paint([], 128, 0.5, noise=0)
    for tile in (white, pink, paint([], 128, 0.5, noise=4), np.zeros_like(white), np.full_like(white, 255)):
        labels = segment(tile, 0.5)
        assert labels.dtype == np.int32 and not labels.any()
        table = measure(labels, tile, 0.5)
        assert len(table) == 0
        summary = summarise(table, 0.01)
        assert summary["nuclei"] == summary["density_mm2"] == 0 and np.isnan(summary["area_um2"])


@pytest.mark.slow
def test_glass_beside_tissue_changes_nothing():
    tile = paint(grid(4), 128, 0.5)
    beside = np.concatenate([tile, np.full((256, 768, 3), 244, np.uint8)], 1)
    assert stain_of([beside], 0.5) == pytest.approx(stain_of([tile], 0.5), rel=0.01)
    np.testing.assert_array_equal(segment(beside, 0.5)[:, :240] > 0, segment(tile, 0.5)[:, :240] > 0)


def test_the_stain_of_the_slide_judges_a_tile_without_nuclei():
    """Faint clouds that are nuclei by the tile's own contrast are none beside the nuclei of the slide."""
    faint, clear = paint(grid(5, 0.2), 128, 0.5), paint(grid(5, 0.9), 128, 0.5)
    assert segment(faint, 0.5).max() > 10
    assert segment(faint, 0.5, stain_of([faint, clear], 0.5)).max() == 0
    assert segment(clear, 0.5, stain_of([faint, clear], 0.5)).max() == len(grid(5))


def test_turned_and_mirrored_tiles_have_the_same_nuclei(demo):
    labels = segment(demo[0], 0.5)
    for turn in (np.rot90, np.flipud, np.fliplr):
        turned = segment(np.ascontiguousarray(turn(demo[0])), 0.5)
        assert turned.max() == pytest.approx(labels.max(), rel=0.01)
        assert panoptic(turn(labels), turned)["pq"] > 0.97


def test_labels_are_consecutive_and_the_same_every_time(demo):
    labels = segment(demo[0], 0.5)
    np.testing.assert_array_equal(np.unique(labels), np.arange(labels.max() + 1))
    np.testing.assert_array_equal(labels, segment(demo[0].copy(), 0.5))


def test_small_round_dark_discs_are_lymphocyte_like():
    small, large = grid(3, 1.1)[:12], grid(5, 0.5)[12:]
    tile = paint(small + large, 128, 0.5)
    table = measure(segment(tile, 0.5), tile, 0.5)
    assert len(table) == len(small) + len(large)
    assert table.lymphocyte[table.area_um2 < 40].all() and not table.lymphocyte[table.area_um2 > 60].any()
    assert summarise(table, 0.01)["lymphocyte_share"] == pytest.approx(len(small) / len(table))
    pale = paint(grid(3, 0.5)[:12] + grid(5, 0.5)[12:], 128, 0.5)
    assert not measure(segment(pale, 0.5), pale, 0.5).lymphocyte.any(), "small and round, not dark"
    stretched = cv2.resize(tile, (512, 256), interpolation=cv2.INTER_LINEAR)
    assert not measure(segment(stretched, 0.5), stretched, 0.5).lymphocyte.any(), "small and dark, not round"


def test_a_cut_nucleus_counts_half_so_that_tiling_does_not_change_the_density(demo):
    stain = stain_of([demo[0]], 0.5)
    summaries = []
    for size in (512, 128):
        tiles = [demo[0][y : y + size, x : x + size] for y in range(0, 512, size) for x in range(0, 512, size)]
        summaries.append([summarise(measure(segment(t, 0.5, stain), t, 0.5, stain), (size * 5e-4) ** 2) for t in tiles])
    (whole,), parts = summaries
    assert np.mean([part["density_mm2"] for part in parts]) == pytest.approx(whole["density_mm2"], rel=0.05)
    assert sum(part["nuclei"] for part in parts) > 1.05 * whole["nuclei"]


# ---- the demo's truth, a slide, real fields -------------------------------------------------------------------------


@pytest.mark.parametrize("mpp", [0.5, 1.0])
def test_the_nuclei_of_a_demo_slide(demo, mpp):
    tile, truth = demo
    tile = cv2.resize(tile, None, fx=0.5 / mpp, fy=0.5 / mpp, interpolation=cv2.INTER_AREA)
    table = measure(segment(tile, mpp), tile, mpp)
    assert len(table) - table.cut.sum() / 2 == pytest.approx(len(truth["x"]), rel=0.2)
    assert table.area_um2[~table.cut].median() == pytest.approx(np.median(np.pi * truth["radius"] ** 2 / 4), rel=0.25)
    own = (table[["x", "y"]].to_numpy() + 0.5) * mpp / 0.5 + 256
    nearest = np.hypot(*(own[:, None] - np.stack([truth["x"], truth["y"]], 1)).T).T
    true_kind = truth["kind"][nearest.argmin(1)]
    assert (nearest.min(1) < 8).mean() > 0.85
    assert table.lymphocyte[true_kind != "lymphocyte"].mean() < 0.1


def test_one_row_a_tile_of_a_slide(demo, tmp_path):
    image = np.full((1024, 1024, 3), 243, np.uint8)
    image[:512, :512] = demo[0]
    path = write_pyramid(tmp_path / "s.svs", image, quality=95)
    coords = np.array([[512, 512], [0, 0], [256, 0], [0, 256], [256, 256]])
    with open_slide(path) as slide:
        fine, coarse = (tile_nuclei(slide, coords, magnification, 256) for magnification in (20, 10))
        tile = slide.read(256, 256, 20, 256)
    assert fine[["x", "y"]].to_numpy().tolist() == coords.tolist()
    assert fine.nuclei[0] == 0 and np.isnan(fine.density_mm2[0]), "glass has no tissue to count in"
    assert fine.nuclei[4] == pytest.approx(segment(tile, 0.5).max(), rel=0.1)
    # the 10x tile at the corner spans the four tiles of 20x
    assert coarse.density_mm2[1] == pytest.approx(fine.density_mm2[1:].mean(), rel=0.15)
    assert coarse.area_um2[1] == pytest.approx(fine.area_um2[1:].median(), rel=0.25)
    with open_slide(path) as slide:
        assert tile_nuclei(slide, np.empty((0, 2)), 20, 256).columns.tolist() == fine.columns.tolist()


def test_bad_input_is_said(tmp_path):
    tile = np.full((8, 8, 3), 200, np.uint8)
    for bad in (tile.astype(float), tile[..., 0]):
        with pytest.raises(InputError) as caught:
            segment(bad, 0.5)
        assert_one_line(caught, "tile")
    for mpp in (0, -1, float("nan")):
        with pytest.raises(InputError) as caught:
            segment(tile, mpp)
        assert_one_line(caught, "mpp")
    with pytest.raises(InputError) as caught:
        validate(tmp_path)
    assert_one_line(caught, "no fields")
    cv2.imwrite(str(tmp_path / "TCGA-XX-1.png"), tile)
    with pytest.raises(InputError) as caught:
        validate(tmp_path)
    assert_one_line(caught, "TCGA-XX-1_instances.png")
    with pytest.raises(InputError) as caught:
        validate(tmp_path, (30,))
    assert_one_line(caught, "30")


@pytest.mark.slow
def test_validation_of_painted_fields(tmp_path):
    """Discs that are all alike: the counts are right and the area is, at every magnification."""
    discs = grid(5)
    masks = np.zeros((512, 512), np.uint16)
    y, x = (np.mgrid[:512, :512] + 0.5) * 0.25
    for label, (cx, cy, radius, _) in enumerate(discs, 1):
        masks[np.hypot(x - cx, y - cy) <= radius] = label
    for site in ("18", "ZZ"):
        cv2.imwrite(str(tmp_path / f"TCGA-{site}-1.png"), paint(discs, 128, 0.25)[..., ::-1])
        cv2.imwrite(str(tmp_path / f"TCGA-{site}-1_instances.png"), masks)
    table = validate(tmp_path)
    assert table.magnification.tolist() == [40, 20, 10] * 2 and table.part.tolist() == ["tuned"] * 3 + ["held out"] * 3
    assert (table.true_count == len(discs)).all() and (table.count_error == 0).all()
    assert table.area_error.abs().max() < 12 and table.f1.min() == 1 and table.pq.min() > 0.85
    np.testing.assert_allclose(table.true_area_um2, np.median(np.bincount(masks.ravel())[1:]) / 16)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/tcga_nuclei_40x, real fields with instance masks")
def test_real_fields():
    """Floors well below what was measured on the fields that chose no constant."""
    table = validate(SHARED, (20, 10))
    held = table[table.part == "held out"].groupby("magnification")
    assert held.field.nunique().tolist() == [6, 6]
    means = held[["pq", "f1", "dice"]].mean()
    assert means.pq[20] > 0.28 and means.f1[20] > 0.42 and means.dice[20] > 0.6
    assert means.pq[20] > means.pq[10] > 0.25
    assert (held.count_error.apply(lambda error: error.abs().mean()) < 25).all()
    ranks = table[table.part == "held out"].groupby("magnification")[["true_count", "found_count"]].corr("spearman")
    assert (ranks.xs("true_count", level=1).found_count > 0.7).all(), "fields are ranked by their number of nuclei"
