"""Tiles: the selection is exactly the naive one, and a bad slide gives one line."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dmsmil.jobs.files import InputError
from dmsmil.slides import density as density_room
from dmsmil.slides import tiff
from dmsmil.slides.magnification import tile_size_level0
from dmsmil.slides.reader import open_slide
from dmsmil.slides.tiles import child_corner, read_tiles, select_tiles, tile_grid
from tests.conftest import assert_one_line
from tests.slides.naive_slides import naive_scores, naive_select
from tests.slides.pyramids import make_slide, texture, write_pyramid

WSI = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "wsi"
real = pytest.mark.skipif(not WSI.is_dir(), reason="needs ../shared/data/wsi")
pytestmark = pytest.mark.xdist_group("slides")  # the slides are made once
PX = 64
ODD = dict(width=2403, height=1999, objective=40, mpp=0.25)  # downsamples 4.006 and 16.07
KINDS = {
    "20x": dict(seed=1),
    "40x odd": dict(seed=2, **ODD),
    "40x exact": dict(seed=3, width=2048, height=1792, objective=40, mpp=0.25),
    "40x three close levels": dict(seed=4, width=1600, height=1344, objective=40, mpp=0.25, factors=(1, 2, 8)),
    "33x": dict(seed=5, objective=33, mpp=None),
    "mpp only": dict(seed=6, objective=None, mpp=0.46),
    "dense": dict(seed=7, coverage=1.0),
    "loose": dict(seed=8, coverage=0.7, loose=1.0),
    "nearly blank": dict(seed=9, coverage=0.03),
    "one level": dict(seed=10, width=900, height=800, factors=(1,)),
    "bright glass": dict(seed=11, glass=255),
    "dim glass": dict(seed=12, glass=212),
    "tissue below all white": dict(seed=13, glass=190),
}


def frame(image, value=0, width=150):
    """Black on all four sides, as where a scanner's camera did not go."""
    image[:width] = image[-width:] = image[:, :width] = image[:, -width:] = value


def half(image, value=0):
    image[:, image.shape[1] // 2 :] = value


def ink(image):
    """Two blots: black ink, whose texture rises above black, and one so dark that half of it does not."""
    rng = np.random.default_rng(0)
    for top, mean in ((200, 20), (800, 8)):
        blot = rng.normal(mean, 8, (300, 400, 1)) + rng.normal(0, 2, (300, 400, 3))
        image[top : top + 300, 300:700] = np.clip(blot, 0, 255)


PAINTED = {  # kind: (the slide, what is painted over it)
    "half black": (dict(seed=14), half),
    "nearly black": (dict(seed=15), lambda image: half(image, (3, 2, 4))),
    "black frame": (dict(seed=16), frame),
    "black frame 40x odd": (dict(seed=17, **ODD), frame),
    "black frame 40x exact": (dict(seed=18, width=2048, height=1792, objective=40, mpp=0.25, coverage=0.8), frame),
    "black frame dense": (dict(seed=19, coverage=1.0), lambda image: frame(image, 1, 193)),
    "black one level": (dict(seed=20, width=900, height=800, factors=(1,)), frame),
    "ink": (dict(seed=21), ink),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """make(kind) -> (path, base magnification, all naive scores); each slide is made once."""
    folder, known = tmp_path_factory.mktemp("slides"), {}

    def make(kind):
        if kind not in known:
            path = folder / f"{kind.replace(' ', '_')}.svs"
            if kind in KINDS:
                make_slide(path, **KINDS[kind])
            else:
                paint(path, *PAINTED[kind])
            with open_slide(path) as slide:
                known[kind] = path, slide.magnification, naive_scores(path, PX, slide.magnification)
        return known[kind]

    return make


def paint(path, options, brush):
    """A made slide with something painted over it."""
    options = dict(width=1536, height=1280, objective=20, mpp=0.5, factors=(1, 4, 16), coverage=0.4) | options
    image = texture(options["height"], options["width"], options["seed"], options["coverage"])
    brush(image)
    return write_pyramid(path, image, options["objective"], options["mpp"], options["factors"])


def assert_same(tiles, expected):
    np.testing.assert_array_equal(tiles.density, expected["density"])
    for scale in (10, 20):
        np.testing.assert_array_equal(tiles.coords[scale], expected["coords"][scale])
        np.testing.assert_array_equal(tiles.pixels[scale], expected["pixels"][scale])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k, seed, min_density", [(5, 0, 0.05), (1000, 1, 0.05), (12, 7, 0.5)])
def test_selection_is_the_naive_one(made, kind, k, seed, min_density):
    path, base, scores = made(kind)
    if max(scores)[0] < min_density:
        with open_slide(path) as slide, pytest.raises(InputError, match="no tissue"):
            select_tiles(slide, k, PX, seed, min_density)
        return
    expected = naive_select(path, k, PX, seed, min_density, base, black="tissue")  # the paper's letter
    with open_slide(path) as slide:
        assert_same(select_tiles(slide, k, PX, seed, min_density, pixels=True), expected)
        dark_glass = kind == "tissue below all white" and k < 1000
        assert ["dense through" in line for line in slide.warnings] == [True] * dark_glass


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAINTED)
@pytest.mark.parametrize(
    "k, seed, min_density, black", [(5, 0, 0.05, "padding"), (1000, 1, 0.05, "padding"), (12, 7, 0.5, "tissue")]
)
def test_selection_beside_black_is_the_naive_one(made, kind, k, seed, min_density, black):
    path, base, _ = made(kind)
    expected = naive_select(path, k, PX, seed, min_density, base, black)
    with open_slide(path) as slide:
        assert_same(select_tiles(slide, k, PX, seed, min_density, pixels=True, black=black), expected)
        if black == "tissue" or kind == "ink":
            assert not slide.warnings


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["half black", "nearly black", "black frame", "black frame 40x odd", "black one level"]
)
def test_black_padding_is_left_out_counted_and_said(made, kind):
    path, base, scores = made(kind)
    letter = [score[0] for score in naive_scores(path, PX, base, "tissue")]
    padded = sum(all_of_it - score[0] > 0.5 for all_of_it, score in zip(letter, scores))
    for k in (4, 1000):
        with open_slide(path) as slide:
            tiles = select_tiles(slide, k, PX, pixels=True)
            (counted,) = re.fullmatch(
                rf"slide {path.name}: (\d+) or more of {len(scores)} 10x tiles are mostly black "
                r"padding, which is not counted as tissue \(`black: tissue` counts it\)",
                *slide.warnings,
            ).groups()
            assert int(counted) == padded or k == 4 and "odd" in kind and padded / 2 < int(counted) < padded
    assert padded > 5 and (kind != "half black" or tiles.read < 0.5 * tiles.grid)  # padding is seen, not read
    black = (tiles.pixels[10] <= 10).all(-1).mean((1, 2))
    assert (black + tiles.density < 1.01).all() and black.max() < 0.95, "black is not counted as tissue"
    with open_slide(path) as slide:
        assert sorted(select_tiles(slide, 3, PX, black="tissue").density) == sorted(letter)[-3:]


@pytest.mark.slow
def test_ink_and_dense_nuclei_are_no_padding(made):
    """Real dark tissue has texture: what is painted dark stays as dense as the paper's words make it."""
    path, base, scores = made("ink")
    letter = naive_scores(path, PX, base, "tissue")
    assert [score for score in scores if score[0] > 0.95] == [score for score in letter if score[0] > 0.95]
    blots = {y // 128 * 12 + x // 128 for y in (256, 896) for x in (384, 512)}  # tiles inside the blots, by number
    assert all(scores[number][0] == 1 for number in blots)
    nuclei = np.clip(np.random.default_rng(1).normal((40, 20, 70), 12, (PX, PX, 3)), 0, 255).astype(np.uint8)
    assert density_room.padding_pixels(nuclei) == 0
    specks = np.full((PX, PX, 3), 240, np.uint8)
    specks[::9, ::9] = specks[1::9, ::9] = 0  # pigment
    assert density_room.padding_pixels(specks) == 0


def test_the_edge_of_padding_is_where_it_is():
    tile = np.full((PX, PX, 3), 120, np.uint8)
    tile[:20] = 0
    tile[40:, 60:] = (10, 0, 5)  # in the corner: the square may reach out of the tile
    assert density_room.padding_pixels(tile) == 20 * PX + 24 * 4
    assert density_room.tissue_pixels(tile) == PX**2
    tile[40:, 60:] = (11, 0, 0)
    assert density_room.padding_pixels(tile) == 20 * PX


def test_a_slide_that_is_black_has_no_tissue(tmp_path):
    path = write_pyramid(tmp_path / "black.svs", np.zeros((600, 700, 3), np.uint8))
    with open_slide(path) as slide, pytest.raises(InputError, match="no tissue.*20 or more of 20 are mostly") as caught:
        select_tiles(slide, 5, PX)
    assert_one_line(caught, "black.svs")
    with open_slide(path) as slide, pytest.raises(InputError, match="black is 'yes': it is 'padding'.*or 'tissue'"):
        select_tiles(slide, 5, PX, black="yes")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["20x", "40x odd", "40x exact", "loose"])
def test_openslide_alone_gives_the_same(made, kind, monkeypatch):
    path, base, _ = made(kind)
    with open_slide(path) as slide:
        assert slide._file.fast is not None
    monkeypatch.setattr(tiff.TiffLevels, "region", lambda *_: (_ for _ in ()).throw(RuntimeError("cannot decode")))
    with open_slide(path) as slide:
        assert slide._file.fast is None
        assert_same(select_tiles(slide, 9, PX, 3, pixels=True), naive_select(path, 9, PX, 3, 0.05, base))


@pytest.mark.slow
def test_a_reader_that_disagrees_is_not_used(made, monkeypatch):
    honest = tiff.TiffLevels.region
    monkeypatch.setattr(tiff.TiffLevels, "region", lambda *arguments: honest(*arguments) ^ 1)
    with open_slide(made("20x")[0]) as slide:
        assert slide._file.fast is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, *PAINTED])
def test_bounds_hold_for_every_tile(made, kind):
    path, base, scores = made(kind)
    with open_slide(path) as slide:
        level = density_room.screening_level(slide, 10, PX)
        if kind in ("one level", "33x", "black one level"):
            assert level is None
            return
        side = tile_size_level0(base, 10, PX)
        columns, rows = (n // side for n in slide.dimensions)
        bounds, taken = density_room.screen(slide, level, 10, PX, columns, rows)
        letter = density_room.screen(slide, level, 10, PX, columns, rows, "tissue")
    exact = np.array([score[0] for score in scores]).reshape(rows, columns) * PX**2
    assert (bounds >= exact).all()
    assert bounds.max() <= PX**2
    np.testing.assert_allclose(bounds + taken, letter[0])
    assert not letter[1].any() and taken.any() == ("black" in kind)


def test_glass_is_never_read(made):
    path, _, scores = made("20x")
    with open_slide(path) as slide:
        tiles = select_tiles(slide, 1000, PX)
    assert len(tiles.density) <= tiles.read < 0.7 * tiles.grid == 0.7 * len(scores)


def test_tiles_that_cannot_matter_are_not_read(made):
    with open_slide(made("40x odd")[0]) as slide:
        tiles = select_tiles(slide, 5, PX)
    assert tiles.read < 0.5 * tiles.grid


@pytest.mark.slow
def test_a_low_resolution_level_that_lies_is_found_out(tmp_path):
    image = texture(1280, 1536, seed=21)
    path = write_pyramid(tmp_path / "lies.svs", image)
    with open_slide(path) as slide:
        whole = slide.whole
        slide.whole = lambda level: np.roll(whole(level), 150, axis=1)
        tiles = select_tiles(slide, 20, PX, pixels=True)
        assert tiles.read == tiles.grid
        assert any("every tile was read" in warning for warning in slide.warnings)
    assert_same(tiles, naive_select(path, 20, PX, 0, 0.05, 20))


def test_ties_are_broken_by_position(tmp_path):
    image = np.full((1024, 1024, 3), 245, np.uint8)
    image[256:] = 120
    path = write_pyramid(tmp_path / "ties.svs", image)
    with open_slide(path) as slide:
        tiles = select_tiles(slide, 10, PX)
    assert tiles.coords[10].tolist() == [[x, 256] for x in range(0, 1024, 128)] + [[0, 384], [128, 384]]
    assert (tiles.density == 1).all()
    assert tiles.read == 10


@pytest.mark.slow
def test_read_tiles_gives_the_pixels_of_the_selection(made):
    for kind in ("20x", "40x exact", "40x odd"):
        with open_slide(made(kind)[0]) as slide:
            tiles = select_tiles(slide, 7, PX, pixels=True)
            pairs = list(read_tiles(slide, tiles))
            for scale in (10, 20):
                np.testing.assert_array_equal([pair[scale] for pair in pairs], tiles.pixels[scale])
                x, y = tiles.coords[scale][3].tolist()
                np.testing.assert_array_equal(slide.read(x, y, scale, PX), tiles.pixels[scale][3])
            colour = tiles.pixels[10].reshape(7, -1, 3) / 255
            np.testing.assert_allclose(tiles.colour, np.hstack([colour.mean(1), colour.std(1)]), atol=1e-6)
            assert select_tiles(slide, 7, PX).pixels is None


def test_a_tile_does_not_depend_on_the_others(made):
    with open_slide(made("20x")[0]) as slide:
        many, few = select_tiles(slide, 40, PX), select_tiles(slide, 6, PX)
        again = select_tiles(slide, 6, PX, seed=1)
    linked = dict(zip(map(tuple, many.coords[10].tolist()), many.coords[20].tolist()))
    assert [linked[tuple(corner)] for corner in few.coords[10].tolist()] == few.coords[20].tolist()
    np.testing.assert_array_equal(few.coords[10], again.coords[10])
    assert (few.coords[20] != again.coords[20]).any()


def test_random_tiles_are_inside_and_uniform(made):
    with open_slide(made("40x odd")[0]) as slide:
        tiles = select_tiles(slide, 1000, PX)
    offset = tiles.coords[20] - tiles.coords[10]
    assert offset.min() >= 0 and offset.max() <= tile_size_level0(40, 10, PX) - tile_size_level0(40, 20, PX)
    corners = np.array([child_corner(0, "slide", (x, 0), 20, 32) for x in range(4000)]) - [[x, 0] for x in range(4000)]
    for axis in (0, 1):
        counts = np.bincount(corners[:, axis], minlength=33)
        assert len(counts) == 33 and stats.chisquare(counts).pvalue > 1e-3
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["20x", "40x odd", "33x", "mpp only"])
@pytest.mark.parametrize("scales", [(5, 10, 20), (2, 5, 10, 20), (10, 20)])
def test_every_tile_lies_in_that_of_the_scale_before_it(made, kind, scales):
    """K is counted at the coarsest scale; three scales draw the first two as two do."""
    path = made(kind)[0]
    with open_slide(path) as slide:
        tiles = select_tiles(slide, 7, 32, 3, scales=scales, pixels=True)
        side = {scale: tile_size_level0(slide.magnification, scale, 32) for scale in scales}
        two = select_tiles(slide, 7, 32, 3, scales=scales[:2])
        for scale in scales:
            assert len(tiles.coords[scale]) == len(tiles.pixels[scale]) == len(tiles.density) <= 7
        for coarse, fine in zip(scales, scales[1:]):
            inside = tiles.coords[fine] - tiles.coords[coarse]
            assert inside.min() >= 0 and (inside + side[fine]).max() <= side[coarse]
        for row, images in enumerate(read_tiles(slide, tiles)):
            for scale in scales:
                np.testing.assert_array_equal(images[scale], tiles.pixels[scale][row])
    assert all((tiles.coords[scale] == two.coords[scale]).all() for scale in scales[:2])


def test_one_scale_alone(made):
    with open_slide(made("20x")[0]) as slide:
        both, alone = select_tiles(slide, 5, PX), select_tiles(slide, 5, PX, scales=(10,))
    assert list(alone.coords) == [10]
    np.testing.assert_array_equal(alone.coords[10], both.coords[10])


@pytest.mark.slow
def test_bad_slides_give_one_line(tmp_path):
    whole = make_slide(tmp_path / "whole.svs", seed=2)
    small = make_slide(tmp_path / "small.svs", 16, 16, factors=(1,))
    coarse = make_slide(tmp_path / "coarse.svs", 600, 600, objective=10, mpp=1.0)
    blank = make_slide(tmp_path / "blank.svs", 600, 600, coverage=0)
    (tmp_path / "folder.svs").mkdir()
    (tmp_path / "empty.svs").touch()
    cases = {
        whole.name + "/inside.svs": "cannot be opened",
        "missing.svs": "No such file",
        "folder.svs": "directory",
        "empty.svs": "cannot be read",
        small.name: "smaller than one",
        coarse.name: "no 20x tiles",
        blank.name: "no tissue",
    }
    for name, reason in cases.items():
        with pytest.raises(InputError, match=reason) as caught, open_slide(tmp_path / name) as slide:
            select_tiles(slide, 5, PX)
        assert_one_line(caught, Path(name).name)
    for path in (coarse, small):  # said before anything is read
        with open_slide(path) as slide, pytest.raises(InputError, match=cases[path.name]):
            tile_grid(slide, (10, 20), PX)
    with open_slide(coarse) as slide:
        assert tile_grid(slide, (5, 10), PX) == (4, 4)
    with open_slide(whole) as slide, pytest.raises(InputError, match="at least 1"):
        select_tiles(slide, 0, PX)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_directory(tmp_path):
    path = make_slide(tmp_path / "locked" / "a.svs", 300, 300)
    path.parent.chmod(0)
    try:
        with pytest.raises(InputError, match="Permission denied") as caught:
            open_slide(path)
    finally:
        path.parent.chmod(0o700)
    assert_one_line(caught, "a.svs")


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("factors", [(1,), (1, 4, 16)])
def test_truncated_slides_give_one_line(tmp_path, share, factors):
    whole = make_slide(tmp_path / "whole.svs", coverage=1, factors=factors)
    path = tmp_path / "cut.svs"
    path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
    with pytest.raises(InputError, match="cannot be read") as caught, open_slide(path) as slide:
        select_tiles(slide, 1000, PX)
    assert_one_line(caught, "cut.svs")


@pytest.mark.slow
def test_a_damaged_tile_gives_one_line(tmp_path):
    path = make_slide(tmp_path / "damaged.svs", coverage=1, seed=3)
    with open_slide(path) as slide:
        page = slide._file.fast.pages[0][0]
        offset, count = page.dataoffsets[14], page.databytecounts[14]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = bytes(count)
    path.write_bytes(data)
    with open_slide(path) as slide, pytest.raises(InputError, match="copy the file again") as caught:
        select_tiles(slide, 1000, PX)
    assert_one_line(caught, "damaged.svs")


@pytest.mark.parametrize("damage", ["half erased", "a run", "no end"])
def test_a_jpeg_that_tifffile_would_fill_up_is_given_to_openslide(tmp_path, damage):
    path = make_slide(tmp_path / "a.svs", coverage=1, seed=3)
    with open_slide(path) as slide:
        page = slide._file.fast.pages[0][0]
        offset, count = page.dataoffsets[5], page.databytecounts[5]
    data = bytearray(path.read_bytes())
    if damage == "half erased":
        data[offset + count // 2 : offset + count] = bytes(count - count // 2)
    elif damage == "a run":
        data[offset + count // 2 : offset + count // 2 + 64] = b"\xff" * 64
    else:
        data[offset + count - 2 : offset + count] = b"\x11\x11"
    path.write_bytes(data)
    with open_slide(path) as slide, pytest.raises(ValueError, match="may be damaged"):
        slide._file.fast._tile(slide._file.fast.pages[0][0], 5)


def test_glass_as_dark_as_tissue_is_said(tmp_path):
    """By the paper's rule it is tissue; then the densest tiles are those at the top."""
    path = make_slide(tmp_path / "dark.svs", 1024, 1024, coverage=0.3, glass=150)
    with open_slide(path) as slide:
        tiles = select_tiles(slide, 6, PX)
        assert (tiles.density == 1).all() and any("dense through and through" in line for line in slide.warnings)
    with open_slide(make_slide(tmp_path / "light.svs", 1024, 1024, coverage=0.3)) as slide:
        select_tiles(slide, 6, PX)
        assert not any("dense through" in line for line in slide.warnings)


@real
@pytest.mark.parametrize(
    "name, mpp, reason",
    [
        ("broken.svs", 0.0, "cannot be read"),
        ("openslide_unreadable.svs", 0.0, "cannot be read"),
        ("openslide_small.svs", 0.0, "smaller than one"),
        ("openslide_boxes.tiff", 0.0, "352.778 is absurd"),
        ("TCGA-CR-7395-01A-01-TS1.svs", 0.0, "states no magnification"),
    ],
)
def test_real_bad_files_give_one_line(name, mpp, reason):
    with pytest.raises(InputError, match=reason) as caught, open_slide(WSI / name, mpp) as slide:
        select_tiles(slide)
    assert_one_line(caught, name)


@pytest.mark.slow
@real
@pytest.mark.parametrize(
    "name, mpp, px, k",
    [
        ("CMU-1-Small-Region.svs", 0.0, 256, 4),
        ("TCGA-CR-7395-01A-01-TS1.svs", 0.5, 512, 1000),
        ("TCGA-CR-7395-01A-01-TS1.svs", 0.5, 128, 4),
        ("TCGA-CR-7395-01A-01-TS1.svs", 0.25, 256, 6),
    ],
)
def test_real_slides_give_the_naive_selection(name, mpp, px, k):
    with open_slide(WSI / name, mpp) as slide:
        assert slide._file.fast is not None
        tiles = select_tiles(slide, k, px, 5, pixels=True)
        assert not slide.warnings
    assert_same(tiles, naive_select(WSI / name, k, px, 5, 0.05, slide.magnification))


@pytest.mark.slow
@real
def test_bounds_hold_for_every_tile_of_a_real_slide():
    path = WSI / "TCGA-CR-7395-01A-01-TS1.svs"
    with open_slide(path, 0.5) as slide:
        columns, rows = (n // 256 for n in slide.dimensions)
        bounds, _ = density_room.screen(slide, density_room.screening_level(slide, 10, 128), 10, 128, columns, rows)
        exact = select_tiles(slide, columns * rows, 128, min_density=0)
    at = exact.coords[10] // 256
    assert len(at) == columns * rows
    assert (bounds[at[:, 1], at[:, 0]] >= exact.density * 128**2).all()
