"""Tiles that were chosen elsewhere: their corners are kept as they are given, the finer ones lie inside them, and what
cannot be used is said of the slide that it is of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest

from dmsmil.jobs.failures import read_failures
from dmsmil.jobs.files import InputError
from dmsmil.slides.given import Given, chosen_by, open_given, take_tiles, whose_tiles
from dmsmil.slides.reader import open_slide
from dmsmil.slides.stages import tile_cohort
from dmsmil.slides.store import Store
from dmsmil.slides.tiles import child_corner, select_tiles
from tests.conftest import assert_one_line
from tests.slides.naive_slides import density, read_tile
from tests.slides.pyramids import make_slide

HS2P = Path(__file__).parents[1] / "features/slide2vec/out_10x"  # what hs2p 6.1 wrote; a README beside it
PX, SIDE = 64, 128  # of a tile: px, and level-0 px on a 20x slide
SIZE = (1300, 900)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """A folder with the slides one and two, 20x, SIZE."""
    folder = tmp_path_factory.mktemp("slides")
    for seed, name in enumerate(("one", "two")):
        make_slide(folder / f"{name}.svs", *SIZE, seed=seed, coverage=0.6)
    return folder


def cohort_of(folder, names=("one", "two")):
    return pd.DataFrame(
        [
            {"slide_id": name, "patient_id": name, "label": "a", "path": str(folder / f"{name}.svs"), "mpp": 0.0}
            for name in names
        ]
    )


def corners_of(seed, count=20):
    """Corners of tiles that do not overlap, off any grid of ours and in no order."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation([(x, y) for x in range(8) for y in range(5)])[:count]
    return cells * 150 + rng.integers(0, 150 - SIDE, (count, 2))


def written(path, rows):
    """A table of {slide: corners}, its rows as they come."""
    frames = [pd.DataFrame({"slide_id": name, "x": at[:, 0], "y": at[:, 1]}) for name, at in rows.items()]
    pd.concat(frames).to_csv(path, index=False)
    return path


def tile(store, cohort, tiles, k=50, **more):
    return tile_cohort(store, cohort, k=k, tiles=str(tiles), workers=1, report=lambda line: None, **more)


def sorted_rows(corners):
    return corners[np.lexsort((corners[:, 0], corners[:, 1]))]


# ------------------------------------------------------------------------------------------------ what is taken


@pytest.mark.slow
@pytest.mark.parametrize("scales", [(10, 20), (5, 10, 20)])
def test_the_corners_are_those_given_and_each_finer_tile_lies_in_the_one_before(slides, tmp_path, scales):
    given = {name: corners_of(seed) * scales[-2] // 10 for seed, name in enumerate(("one", "two"))}
    if scales[0] == 5:
        given = {name: np.array([[3, 5], [280, 14], [700, 300]]) for name in given}
    store = Store(tmp_path, PX, scales)
    found = tile(store, cohort_of(slides), written(tmp_path / "mine.csv", given))
    assert found.tiles.tolist() == [len(given["one"])] * 2
    for name, corners in given.items():
        tiles = store.read_tiles(name)
        np.testing.assert_array_equal(tiles.coords[scales[0]], sorted_rows(corners))
        for coarse, fine in zip(scales, scales[1:]):
            offset = tiles.coords[fine] - tiles.coords[coarse]
            assert (offset >= 0).all() and (offset <= PX * 20 // coarse - PX * 20 // fine).all()
            drawn = [
                child_corner(0, name, tuple(at), fine, PX * 20 // coarse - PX * 20 // fine)
                for at in tiles.coords[coarse].tolist()
            ]
            np.testing.assert_array_equal(tiles.coords[fine], drawn)


def test_the_tiles_that_we_choose_given_back_are_the_same_in_every_number(slides):
    with open_slide(slides / "one.svs") as slide:
        own = select_tiles(slide, 12, PX, seed=3, pixels=True)
        back = take_tiles(slide, Given("table", own.coords[10]), 12, PX, 3, pixels=True)
        half = take_tiles(slide, Given("table", own.coords[10]), 6, PX, 3)
        assert not slide.warnings
    for scale in (10, 20):
        np.testing.assert_array_equal(back.coords[scale], own.coords[scale])
        np.testing.assert_array_equal(back.pixels[scale], own.pixels[scale])
    np.testing.assert_array_equal(back.density, own.density)
    np.testing.assert_array_equal(back.colour, own.colour)
    assert sorted(half.density) == sorted(own.density)[-6:], "of more than k, the densest"


def test_of_more_than_k_the_densest_are_taken_glass_is_a_tile_and_no_order_matters(slides, tmp_path):
    corners = corners_of(7, 40)
    with openslide.OpenSlide(slides / "one.svs") as slide:
        scores = {tuple(at): density(read_tile(slide, *at, 20, 10, PX)) for at in corners.tolist()}
    best = sorted(scores, key=lambda at: (-scores[at], at[1], at[0]))
    for k, expected in ((9, best[:9]), (40, best)):
        stores = []
        for order in (np.arange(40), np.random.default_rng(1).permutation(40)):
            stores.append(Store(tmp_path / f"{k}-{order[0]}", PX))
            table = written(tmp_path / "mine.csv", {"one": corners[order]})
            tile(stores[-1], cohort_of(slides, ["one"]), table, k=k, min_density=0.9)
        first, second = ([store.tiles_path(scale, "one").read_bytes() for scale in (10, 20)] for store in stores)
        assert first == second
        tiles = stores[0].read_tiles("one")
        np.testing.assert_array_equal(tiles.coords[10], sorted_rows(np.array(expected)))
        np.testing.assert_array_equal(tiles.density, [scores[tuple(at)] for at in tiles.coords[10].tolist()])
        assert tiles.grid == 40
    assert min(scores.values()) < 0.05, "less than any study calls a tile"


@pytest.mark.slow
def test_hs2ps_own_files_are_taken_in_either_folder(tmp_path):
    """12 tiles of 512 level-0 px on the slide of the README beside them; 6 jut out of it, white beyond its edges."""
    make_slide(tmp_path / "one.svs", 1700, 1300, seed=3, coverage=0.97)
    told = np.load(HS2P / "tiles/one.coordinates.npz")
    expected = sorted_rows(np.stack([told["x"], told["y"]], 1))
    for place in (HS2P, HS2P / "tiles"):
        store = Store(tmp_path / place.name, 256)
        found = tile(store, cohort_of(tmp_path, ["one"]), place)
        tiles = store.read_tiles("one")
        np.testing.assert_array_equal(tiles.coords[10], expected)
        assert found.warnings[0] == "slide one.svs: 6 of 12 tiles at 10x jut out of it; they are white there"
    with openslide.OpenSlide(tmp_path / "one.svs") as slide:
        scores = [density(read_tile(slide, *at, 20, 10, 256)) for at in expected.tolist()]
    np.testing.assert_array_equal(tiles.density, scores)


# ------------------------------------------------------------------------------------------------ whose they are


def test_a_changed_table_tiles_those_slides_again_and_no_other(slides, tmp_path):
    store, cohort = Store(tmp_path / "study", PX), cohort_of(slides)
    given = {"one": corners_of(1), "two": corners_of(2)}
    tile(store, cohort, written(tmp_path / "mine.csv", given))
    before = {name: store.tiles_path(10, name).stat().st_mtime_ns for name in given}
    shutil.move(tmp_path / "mine.csv", tmp_path / "renamed.csv")
    tile(store, cohort, tmp_path / "renamed.csv", min_density=0.5)
    assert {name: store.tiles_path(10, name).stat().st_mtime_ns for name in given} == before, "neither name nor density"
    given["two"] = given["two"] + [1, 0]
    tile(store, cohort, written(tmp_path / "mine.csv", given))
    changed = [name for name in given if store.tiles_path(10, name).stat().st_mtime_ns != before[name]]
    assert changed == ["two"]
    tile_cohort(store, cohort, k=50, workers=1, report=lambda line: None)
    assert (store.read_tiles("one").coords[10] % SIDE == 0).all(), "and without the key the study chooses itself"


def test_who_chose_is_said(slides, tmp_path):
    lines = []
    table = written(tmp_path / "dr`x`.csv", {"one": corners_of(1), "two": corners_of(2, 5)})
    tile_cohort(Store(tmp_path, PX), cohort_of(slides), k=50, tiles=str(table), workers=1, report=lines.append)
    assert lines[0] == "tiles chosen elsewhere, in a table (dr`x`.csv): 25 of 2 slides at 10x"
    assert [chosen_by(place) for place in ("", "a/b.CSV", "a/out_1.0um", "b.tsv")] == ["", "table", "hs2p", "table"]
    assert "in a table (dr\\`x\\`.csv)" in whose_tiles(str(table), 50) and "50 densest" in whose_tiles(str(table), 50)
    assert "chosen here: of each slide the densest, 7 at most" in whose_tiles("", 7)
    assert "came with the features" in whose_tiles("", 7, "uni")


# ------------------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda rows: rows[rows.slide_id != "two"], "mine.csv has no tiles of slide two: add them"),
        (lambda rows: pd.concat([rows, rows.tail(1)]), "mine.csv has the tile of slide two at .* more than once"),
        (
            lambda rows: rows.assign(x=rows.x.where(rows.slide_id == "one", "left")),
            "row 7 of mine.csv: x is 'left', and",
        ),
        (
            lambda rows: rows.assign(y=rows.y.where(rows.slide_id == "one", "1.5")),
            "y is '1.5', and must be a whole number",
        ),
        (lambda rows: rows.assign(y=rows.y.where(rows.slide_id == "one", "")), "y is '', and must be a whole number"),
        (lambda rows: rows.assign(y=rows.y.where(rows.slide_id == "one", "1.000")), "y is '1.000', and must be a"),
        (
            lambda rows: rows.assign(y=rows.y.where(rows.slide_id == "one", "1e300")),
            "y is '1e300', and must be a whole",
        ),
        (
            lambda rows: rows.assign(x=rows.x.where(rows.slide_id == "one", 1300)),
            r"two.svs: 5 of 5 tiles lie outside of its 1300 x 900 px, the first at \(1300, ",
        ),
        (lambda rows: rows.assign(x=rows.x.where(rows.slide_id == "one", -SIDE)), "two.svs: 5 of 5 tiles lie outside"),
    ],
)
def test_what_is_wrong_with_a_slides_tiles_is_its_row(slides, tmp_path, change, reason):
    whole = {"one": corners_of(1, 5), "two": corners_of(2, 5)}
    rows = pd.read_csv(written(tmp_path / "mine.csv", whole), dtype=str)
    change(rows).to_csv(tmp_path / "mine.csv", index=False)
    store = Store(tmp_path / "study", PX)
    assert tile(store, cohort_of(slides), tmp_path / "mine.csv").slide_id.tolist() == ["one"]
    failures = read_failures(store.home)
    assert failures.unit.tolist() == ["two"] and "\n" not in failures.reason[0]
    assert pd.Series(failures.reason).str.contains(reason).all(), failures.reason[0]
    written(tmp_path / "mine.csv", whole)
    assert len(tile(store, cohort_of(slides), tmp_path / "mine.csv")) == 2 and read_failures(store.home).empty


def test_tiles_that_overlap_are_not_taken(slides, tmp_path):
    grid = np.stack(np.meshgrid(np.arange(0, 1100, 64), np.arange(0, 700, 64)), -1).reshape(-1, 2)
    said = "198 of 198 tiles overlap another, for one of 64 px at 10x has 128 level-0 px"
    with pytest.raises(InputError, match=said) as caught:
        tile(Store(tmp_path, PX), cohort_of(slides, ["one"]), written(tmp_path / "mine.csv", {"one": grid}))
    assert_one_line(caught, "one.svs")
    rows = np.stack(np.meshgrid(np.arange(0, 1100, 128), np.arange(0, 700, 32)), -1).reshape(-1, 2)
    with pytest.raises(InputError, match="198 of 198 tiles overlap"):  # down a column alone
        tile(Store(tmp_path, PX), cohort_of(slides, ["one"]), written(tmp_path / "mine.csv", {"one": rows}))


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "mine.csv is empty"),
        ("slide_id,x,y\n", "mine.csv has no rows: one row a tile is needed"),
        ("slide_id,x\none,0\n", "mine.csv has no column 'y': its columns are slide_id, x"),
        ("slide_id,x,y,X\none,0,0,0\n", "mine.csv has two columns for x: remove one"),
        ("slide_id,x,yy\none,0,0\n", "mine.csv has no column 'y': rename its column 'yy'"),
        ("slide_id,x,y\none,0,0\n,4,4\n", "row 3 of mine.csv has no slide_id"),
        ("slide_id,x,y\none,0,0\none,4\n", "mine.csv: row 3 has 2 cells, the header 3"),
        (
            "slide_id,x,y\nother,0,0\n",
            "no tiles of any of the 2 slides, but of other: name theirs with the key 'tiles'",
        ),
    ],
)
def test_a_table_that_is_none_is_one_line(tmp_path, text, reason):
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(InputError, match=reason) as caught:
        open_given(tmp_path / "mine.csv", ["one", "two"], 10, PX)
    assert_one_line(caught, "mine.csv")


def test_a_table_is_read_as_spreadsheets_save_it_and_names_slides_as_others_do(tmp_path):
    (tmp_path / "mine.csv").write_text("Slide ID;X;Y;note\none.svs;0;5;a\ntwo;512.0;1024;b\n12.0;3;4;\n", "utf-8-sig")
    found = open_given(tmp_path / "mine.csv", ["one", "two", "12"], 10, PX)
    assert {name: given.corners.tolist() for name, given in found.items()} == {
        "one": [[0, 5]],
        "two": [[512, 1024]],
        "12": [[3, 4]],
    }
    (tmp_path / "mine.csv").write_text("slide_id,x,y\none.svs,0,0\none.tif,0,0\n")
    found = open_given(tmp_path / "mine.csv", ["one"], 10, PX)
    assert "tiles of one.svs and of one.tif, and either" in found["one"].problem
    assert not open_given(tmp_path / "mine.csv", ["one.svs"], 10, PX)["one.svs"].problem


@pytest.mark.parametrize(
    "place, reason",
    [
        ("gone.csv", "names gone.csv, which is no table"),
        ("gone", "names gone, which is no table"),
        (".", "has no tiles of hs2p .tiles/<slide>.coordinates.npz., but empty"),
    ],
)
def test_a_place_that_is_none_is_one_line(tmp_path, place, reason):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=reason) as caught:
        open_given(tmp_path / place, ["one"], 10, PX)
    assert_one_line(caught, "tiles")


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, px, reason",
    [
        (
            {"overlap": 0.25},
            256,
            "tiles of 256 px at 10x with 25% overlap, not of 256 px at 10x without: set tile_px and",
        ),
        ({}, 512, "tiles of 256 px at 10x with 0% overlap, not of 512 px at 10x"),
        ({"requested_spacing_um": 0.5}, 256, "tiles of 256 px at 20x with 0% overlap, not of 256 px at 10x"),
        ({"tile_size_lv0": 1024}, 256, "its tiles have 1024 level-0 px, and one of 256 px at 10x has 512 here"),
        ({"dimensions": [3400, 2600]}, 256, "one.svs has 1700 x 1300 px, and its tiles are of one of 3400 x 2600 px"),
        ({"coordinate_space": "um"}, 256, "is damaged or incomplete .*its corners are in um"),
        ({"tile_size_lv0": None}, 256, "is damaged or incomplete"),
        (None, 256, "has no one.coordinates.meta.json beside it"),
    ],
)
def test_what_does_not_fit_in_hs2ps_words_is_one_line(tmp_path, change, px, reason):
    make_slide(tmp_path / "one.svs", 1700, 1300, seed=3, coverage=0.97)
    shutil.copytree(HS2P, tmp_path / "made")
    path = tmp_path / "made/tiles/one.coordinates.meta.json"
    if change is None:
        path.unlink()
    else:
        about = json.loads(path.read_text())
        for part in ("tiling", "slide", "artifact"):
            about[part] |= {name: value for name, value in change.items() if name in about[part]}
        path.write_text(json.dumps(about))
    with pytest.raises(InputError, match=reason) as caught:
        tile(Store(tmp_path / "study", px), cohort_of(tmp_path, ["one"]), tmp_path / "made")
    assert_one_line(caught, "one.")


@pytest.mark.slow
def test_a_scanner_that_is_not_quite_20x_is_said_and_its_corners_are_kept(tmp_path):
    make_slide(tmp_path / "one.svs", 1700, 1300, seed=3, coverage=0.97, mpp=0.46)
    shutil.copytree(HS2P, tmp_path / "made")
    path = tmp_path / "made/tiles/one.coordinates.meta.json"
    about = json.loads(path.read_text())
    about["tiling"]["tile_size_lv0"] = 557
    path.write_text(json.dumps(about))
    corners = np.stack([axis.ravel() for axis in np.meshgrid([0, 557, 1114], [0, 557])], 1)
    np.savez(path.with_name("one.coordinates.npz"), x=corners[:, 0], y=corners[:, 1])
    store = Store(tmp_path / "study", 256)
    found = tile(store, cohort_of(tmp_path, ["one"]), tmp_path / "made")
    assert "its tiles have 557 level-0 px; 512 from their corners on are read" in found.warnings[0]
    np.testing.assert_array_equal(store.read_tiles("one").coords[10], sorted_rows(corners))


def test_hs2p_itself_is_taken_as_it_chose(tmp_path):
    hs2p = pytest.importorskip("hs2p", reason="needs hs2p, of the extra [interop]")
    paths = [
        make_slide(tmp_path / f"{name}.svs", 1700, 1300, seed=seed, coverage=0.6)
        for seed, name in enumerate(("one", "two"))
    ]
    made = hs2p.tile_slides(
        [hs2p.SlideSpec(sample_id=path.stem, image_path=path) for path in paths],
        tiling=hs2p.TilingConfig(
            requested_spacing_um=1.0, requested_tile_size_px=128, tolerance=0.1, overlap=0.0, backend="openslide"
        ),
        segmentation=hs2p.SegmentationConfig(method="hsv", downsample=16),
        output_dir=tmp_path / "made",
    )
    assert len(made) == 2
    store = Store(tmp_path / "study", 128)
    assert len(tile(store, cohort_of(tmp_path), tmp_path / "made", k=1000)) == 2
    for path in paths:
        chosen = np.load(tmp_path / f"made/tiles/{path.stem}.coordinates.npz")
        corners = np.stack([chosen["x"], chosen["y"]], 1)
        assert len(corners) > 5
        np.testing.assert_array_equal(store.read_tiles(path.stem).coords[10], sorted_rows(corners))
