"""A zarr that LazySlide itself wrote: tiles where wsidata says they are, with its features, linked by place."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr as zarr_library

from dmsmil.features import lazyslide
from dmsmil.features.bags import load_bags
from dmsmil.features.formats import import_features, open_source
from dmsmil.jobs.failures import read_failures
from dmsmil.jobs.files import InputError
from dmsmil.slides.store import Store

HERE = Path(__file__).parent / "lazyslide"
TILES = pd.read_csv(HERE / "tiles.csv")
PARQUET = all(importlib.util.find_spec(name) for name in ("geopandas", "pyarrow"))
ALL = ["f0", "f1", "f2", "f3"]


def recorded(path):
    """The outlines of a tile key as wsidata read them, for where parquet cannot be read."""
    rows = TILES[TILES.key == path.parent.name]
    return rows.set_index("tile_id")[["minx", "miny", "maxx", "maxy"]]


@pytest.fixture(params=["parquet", "recorded"])
def zarr(tmp_path, request, monkeypatch):
    """A folder with the zarr of slide `one`; its outlines read from parquet, or as they were recorded."""
    if request.param == "recorded":
        monkeypatch.setattr(lazyslide, "outlines", recorded)
    elif not PARQUET:
        pytest.skip("needs geopandas and pyarrow, of the extra [interop]")
    shutil.unpack_archive(HERE / "one.zarr.zip", tmp_path / "zarrs")
    return tmp_path / "zarrs"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "study", 256, (10, 20), "toy")


def cohort(names=("one",)):
    return pd.DataFrame({"slide_id": names, "patient_id": names, "label": "a", "site": "", "path": "", "mpp": 0.0})


def take(store, source, table=None, k=50):
    return import_features(store, cohort() if table is None else table, source, k, workers=1, report=lambda line: None)


def test_tiles_features_size_and_side_are_the_files(zarr, store):
    summary = take(store, zarr)
    tiles, found = store.read_tiles("one"), store.read_features("one")
    assert tiles.dimensions == (1700, 1300) and summary.warnings[0] == ""
    assert summary.magnification[0] == tiles.magnification == pytest.approx(513 * 10 / 256), "513 px, not our 512"
    for scale in (10, 20):
        own = TILES[TILES.key == f"tiles{scale}"].set_index(["minx", "miny"])[ALL]
        expected = own.loc[[tuple(at) for at in tiles.coords[scale].tolist()]].to_numpy(np.float32)
        np.testing.assert_allclose(found[scale].features, expected, atol=1e-7)
    assert len(tiles.coords[10]) == 6, "all that there are"


def test_a_20x_tile_lies_with_its_centre_in_its_10x_tile(zarr, store):
    take(store, zarr)
    bags = load_bags(store, cohort(), 6)
    assert bags.mask[0].all()
    offset = bags.coords[0, 1] + 128 - bags.coords[0, 0]
    assert offset.min() >= 0 and offset.max() < 513
    assert len({tuple(at) for at in bags.coords[0, 1].tolist()}) == 6


def test_tilings_and_models_are_chosen_by_the_study(zarr, tmp_path):
    small = Store(tmp_path / "small", 128, (10,), "toy")
    with pytest.raises(InputError, match="one.zarr has no features of small by the study's encoder 'toy', but by none"):
        take(small, zarr)
    other = Store(tmp_path / "other", 256, (10,), "other")
    take(other, zarr)
    assert len(other.read_features("one")[10].features) == 6
    for px, scale, encoder, reason in [
        (256, 20, "other", "no features of tiles20 by the study's encoder 'other', but by toy: set encoder"),
        (256, 5, "toy", r"no tiles of 256 px at 5x, but .*tiles10 \(256 px at 10x\).*: set tile_px and scales"),
        (512, 10, "toy", "one.zarr has no tiles of 512 px at 10x, but"),
    ]:
        with pytest.raises(InputError, match=reason) as caught:
            take(Store(tmp_path / "x", px, (scale,), encoder), zarr)
        assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_two_tilings_of_one_size_are_named(zarr, store):
    group = zarr_library.open_group(zarr / "one.zarr", mode="r+")
    specs = group.attrs["tile_spec"]
    group.attrs["tile_spec"] = {**specs, "again": specs["tiles10"]}
    with pytest.raises(InputError, match="several tilings of 256 px at 10x, .*again.*: keep one"):
        take(store, zarr)


@pytest.mark.slow
def test_a_damaged_zarr_is_a_row_and_a_changed_byte_is_imported_again(zarr, store):
    shutil.copytree(zarr / "one.zarr", zarr / "two.zarr")
    table = cohort(["one", "two"])
    take(store, zarr, table)
    chunk = zarr / "two.zarr/tables/toy_tiles20/X/c/0/0"
    for damage in (lambda: chunk.write_bytes(chunk.read_bytes()[:50]), chunk.unlink):
        damage()
        assert take(store, zarr, table).slide_id.tolist() == ["one"]
        assert read_failures(store.home).reason[0].startswith("two.zarr is damaged or incomplete")
    shutil.rmtree(zarr / "two.zarr")
    shutil.copytree(zarr / "one.zarr", zarr / "two.zarr")
    assert len(take(store, zarr, table)) == 2 and not len(read_failures(store.home))


@pytest.mark.parametrize(
    "about, size, magnification",
    [
        ({"shape": (30, 40), "magnification": 20, "mpp": 0.25}, (40, 30), 20),
        ({"shape": None, "magnification": None, "mpp": "0.5"}, (0, 0), 20),
        ({"magnification": float("nan"), "mpp": 0.25}, (0, 0), 40),
        ({"mpp": None}, (0, 0), 0),
        ({}, (0, 0), 0),
    ],
)
def test_what_a_zarr_does_not_say_of_its_slide_is_nothing(about, size, magnification):
    assert lazyslide.told_of_slide(about) == (magnification, size)


def test_a_folder_of_zarrs_is_known_by_what_is_in_it(zarr, store):
    found = open_source(store, zarr, cohort(["one", "absent"]))
    assert (found.kind, found.dim) == ("LazySlide", 4)
    (zarr / "inner").mkdir()
    shutil.move(zarr / "one.zarr", zarr / "inner/one.zarr")
    assert open_source(store, zarr, cohort()).kind == "LazySlide"


@pytest.mark.skipif(PARQUET, reason="geopandas and pyarrow are here")
def test_without_parquet_one_line_says_what_to_install(tmp_path, store):
    shutil.unpack_archive(HERE / "one.zarr.zip", tmp_path / "zarrs")
    with pytest.raises(InputError, match=r"needs geopandas and pyarrow: install them with `pip install dmsmil\[inter"):
        take(store, tmp_path / "zarrs")
