"""The store: TRIDENT's layout, whole files or none, and never the features of something else."""

import json
import os
import pickle
from dataclasses import replace

import h5py
import numpy as np
import pytest

from dmsmil.jobs.files import InputError
from dmsmil.slides.store import Store
from dmsmil.slides.tiles import Tiles

TILING = {"k": 5, "tile_px": 256, "seed": 0}
MADE_BY = {**TILING, "encoder": {"name": "hf-hub:org/net", "weights": "abc", "px": 224, "mean": (0.5, 0.5, 0.5)}}


def make_tiles(slide_id="s1", n=5, magnification=40.0, seed=0):
    rng = np.random.default_rng(seed)
    coords = np.stack([np.arange(n) % 3, np.arange(n) // 3], 1).astype(np.int64) * 1024
    return Tiles(slide_id, 256, {10: coords, 20: coords + rng.integers(0, 512, (n, 2))}, rng.random(n),
                 rng.random((n, 6), dtype=np.float32), np.arange(n), (4000, 3000), magnification, grid=12, read=7)


def make_features(n=5, dim=4, seed=0):
    rng = np.random.default_rng(seed)
    return {10: rng.random((n, dim), dtype=np.float32), 20: rng.random((n, dim), dtype=np.float32)}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "study", 256, (10, 20), "hf-hub:org/net")


@pytest.fixture
def full(store):
    store.write_tiles(make_tiles(), TILING)
    store.write_features("s1", make_features(), make_tiles(), MADE_BY)
    return store


def test_what_is_written_is_read(full):
    tiles, again = make_tiles(), full.read_tiles("s1")
    for name in ("slide_id", "tile_px", "dimensions", "magnification", "grid", "read"):
        assert getattr(again, name) == getattr(tiles, name)
    for name in ("density", "colour", "parent"):
        np.testing.assert_array_equal(getattr(again, name), getattr(tiles, name))
        assert getattr(again, name).dtype == getattr(tiles, name).dtype
    found = full.read_features("s1")
    for scale, values in make_features().items():
        np.testing.assert_array_equal(again.coords[scale], tiles.coords[scale])
        np.testing.assert_array_equal(found[scale].features, values)
        np.testing.assert_array_equal(found[scale].coords, tiles.coords[scale])
        np.testing.assert_array_equal(found[scale].parent, np.arange(5))
    made = full.features_made_by("s1")
    assert (made.config, made.dim) == (json.loads(json.dumps(MADE_BY)), 4)
    assert [set(content) for content in made.content] == [{"config", "coords", "features"},
                                                          {"config", "coords", "features", "parent"}]


def test_layout_and_attributes_are_tridents(full):
    home = full.home / "features"
    patches = home / "20x_256px_0px_overlap/patches/s1_patches.h5"
    features = home / "20x_256px_0px_overlap/features_hf-hub-org-net/s1.h5"
    expected = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20,
                "overlap": 0, "name": "s1", "level0_width": 4000, "level0_height": 3000}
    for path in (patches, features):
        with h5py.File(path) as file:
            attributes = dict(file["coords"].attrs)
            assert attributes.pop("savetodir") == path.parent.relative_to(full.home).as_posix()
            assert attributes == expected
            assert file["coords"].dtype == np.int64 and file["coords"].shape == (5, 2)
            assert file["parent"].dtype == np.int64 and "density" not in file
    with h5py.File(features) as file:
        data = file["features"]
        assert (data.shape, data.maxshape, data.dtype, data.compression) == ((5, 4), (None, 4), np.float32, None)
        assert set(data.attrs) == {"name", "savetodir", "encoder"} and data.attrs["encoder"] == "hf-hub:org/net"
    with h5py.File(home / "10x_256px_0px_overlap/patches/s1_patches.h5") as file:
        assert file["coords"].attrs["patch_size_level0"] == 1024
        assert file["density"].shape == (5,) and file["colour"].shape == (5, 6) and "parent" not in file


def test_no_file_knows_this_machine(full):
    for path in full.home.rglob("*.h5"):
        assert os.fsencode(full.home) not in path.read_bytes()


def test_equal_input_gives_equal_bytes(full, tmp_path):
    other = Store(tmp_path / "elsewhere", 256, (10, 20), "hf-hub:org/net")
    other.write_tiles(make_tiles(), TILING)
    other.write_features("s1", make_features(), make_tiles(), MADE_BY)
    names = sorted(p.relative_to(full.home) for p in full.home.rglob("*.h5"))
    assert len(names) == 4
    for name in names:
        assert (full.home / name).read_bytes() == (other.home / name).read_bytes()


def test_has_means_made_by_exactly_this(full):
    assert full.has_tiles("s1", TILING) and full.has_features("s1", MADE_BY)
    assert full.has_tiles("s1", dict(reversed(TILING.items())))  # the order of keys says nothing
    assert not full.has_tiles("s1", {**TILING, "seed": 1}) and not full.has_tiles("s1", {"k": 5})
    assert not full.has_tiles("s2", TILING)
    other = {**MADE_BY, "encoder": {**MADE_BY["encoder"], "weights": "abd"}}
    assert not full.has_features("s1", other)
    assert not Store(full.home, 512, (10, 20), full.encoder).has_features("s1", MADE_BY)


@pytest.mark.parametrize("scale", [10, 20])
@pytest.mark.parametrize("damage", ["absent", "truncated", "empty", "no h5", "no coords"])
def test_damaged_files_are_absent_for_writing_and_refused_for_reading(full, scale, damage):
    for path, has, read in [(full.tiles_path(scale, "s1"), lambda: full.has_tiles("s1", TILING), full.read_tiles),
                            (full.features_path(scale, "s1"), lambda: full.has_features("s1", MADE_BY),
                             full.read_features)]:
        content = path.read_bytes()
        if damage == "absent":
            path.unlink()
        elif damage == "no coords":
            with h5py.File(path, "r+") as file:
                del file["coords"]
        else:
            path.write_bytes({"truncated": content[:len(content) // 2], "empty": b"", "no h5": b"x" * 5000}[damage])
        assert not has()
        with pytest.raises(InputError, match="s1") as error:
            read("s1")
        assert "\n" not in str(error.value)
    full.write_tiles(make_tiles(), TILING)
    full.write_features("s1", make_features(), make_tiles(), MADE_BY)
    assert full.has_tiles("s1", TILING) and full.has_features("s1", MADE_BY)


@pytest.mark.parametrize("scale", [10, 20])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite(full, scale, bad):
    values = make_features()
    values[scale][3, 1] = bad
    with pytest.raises(InputError, match=f"s9 has 1 tiles at {scale}x.*NaN"):
        full.write_features("s9", values, make_tiles("s9"), MADE_BY)
    assert not any(full.features_path(s, "s9").exists() for s in (10, 20))  # nothing half written
    with h5py.File(full.features_path(scale, "s1"), "r+") as file:  # as one of a program that keeps no hashes
        file["features"][3, 1] = bad
        del file.attrs["content"]
    with pytest.raises(InputError, match=f"s1 has 1 tiles at {scale}x.*NaN"):
        full.read_features("s1")


def test_features_of_another_number_of_tiles(full):
    with pytest.raises(InputError, match="s1.*for 5 tiles"):
        full.write_features("s1", make_features(n=4), make_tiles(), MADE_BY)


def test_reading_refuses_another_configuration_and_says_where(full):
    other = {"encoder": {**MADE_BY["encoder"], "weights": "def"}}
    with pytest.raises(InputError, match="encoder.weights is 'abc', not 'def'"):
        full.read_features("s1", other)
    full.read_features("s1", {"encoder": MADE_BY["encoder"]})
    with pytest.raises(InputError, match="seed is 0, not 4"):
        full.read_tiles("s1", {"seed": 4})


def test_features_of_another_encoder_in_the_folder(full):
    """A folder renamed by hand: the files still say who made them."""
    other = Store(full.home, 256, (10, 20), "resnet101")
    for scale in (10, 20):
        full.features_path(scale, "s1").parent.rename(other.features_path(scale, "s1").parent)
    with pytest.raises(InputError, match="encoder.name is 'hf-hub:org/net', not 'resnet101'"):
        other.read_features("s1")


def test_scales_made_otherwise_than_one_another(full):
    """What a process leaves that is killed between two scales while it makes them again."""
    again = {**MADE_BY, "encoder": {**MADE_BY["encoder"], "weights": "new"}}
    Store(full.home, 256, (10,), full.encoder).write_features("s1", make_features(), make_tiles(), again)
    assert not full.has_features("s1", again) and not full.has_features("s1", MADE_BY)
    with pytest.raises(InputError, match="one scale than at another"):
        full.features_made_by("s1")


def test_a_file_that_does_not_say_what_made_it_is_not_read(full):
    for scale in (10, 20):
        with h5py.File(full.features_path(scale, "s1"), "r+") as file:
            del file.attrs["config"]
    assert not full.has_features("s1", MADE_BY) and full.has_tiles("s1", TILING)
    for read in (full.read_features, full.features_made_by):
        with pytest.raises(InputError, match="s1.h5 does not say what made it: name its folder with the key 'feat"):
            read("s1")


def test_the_fine_scale_alone_has_no_density(full):
    tiles = Store(full.home, 256, (20,), full.encoder).read_tiles("s1")
    assert np.isnan(tiles.density).all() and np.isnan(tiles.colour).all() and tiles.colour.shape == (5, 6)
    np.testing.assert_array_equal(tiles.coords[20], make_tiles().coords[20])


def test_an_empty_slide_and_an_odd_magnification(store):
    tiles = replace(make_tiles("none", 0), magnification=33.3)
    store.write_tiles(tiles, TILING)
    store.write_features("none", make_features(0), tiles, MADE_BY)
    assert store.has_features("none", MADE_BY) and store.read_features("none")[20].features.shape == (0, 4)
    assert store.read_tiles("none").magnification == pytest.approx(33.3)


def test_a_killed_writer_leaves_the_old_file(full, monkeypatch):
    before = full.features_path(10, "s1").read_bytes()
    monkeypatch.setattr("dmsmil.slides.store._coords", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        full.write_features("s1", make_features(seed=9), make_tiles(), MADE_BY)
    assert full.features_path(10, "s1").read_bytes() == before
    assert not list(full.home.rglob("*.tmp"))


def test_a_store_travels_to_workers(full):
    assert pickle.loads(pickle.dumps(full)).has_features("s1", MADE_BY)
