"""The store: TRIDENT's layout, whole files or none, and never the features of something else."""

import json
import os
import pickle
from dataclasses import replace

import h5py
import numpy as np
import pytest

from dmsmil.jobs.files import DiskFull, InputError, temporary_path
from dmsmil.jobs.parallel import run_units
from dmsmil.slides.store import Store
from dmsmil.slides.tiles import Tiles

TILING = {"k": 5, "tile_px": 256, "seed": 0}
MADE_BY = {**TILING, "encoder": {"name": "hf-hub:org/net", "weights": "abc", "px": 224, "mean": (0.5, 0.5, 0.5)}}


def make_tiles(slide_id="s1", n=5, magnification=40.0, seed=0):
    rng = np.random.default_rng(seed)
    coords = np.stack([np.arange(n) % 3, np.arange(n) // 3], 1).astype(np.int64) * 1024
    return Tiles(
        slide_id,
        256,
        {10: coords, 20: coords + rng.integers(0, 512, (n, 2))},
        rng.random(n),
        rng.random((n, 6), dtype=np.float32),
        np.arange(n),
        (4000, 3000),
        magnification,
        grid=12,
        read=7,
    )


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
    assert [set(hashes) for hashes in made.hashes] == [
        {"config", "coords", "features"},
        {"config", "coords", "features", "parent"},
    ]


def test_layout_and_attributes_are_tridents(full):
    home = full.home / "features"
    patches = home / "20x_256px_0px_overlap/patches/s1_patches.h5"
    features = home / "20x_256px_0px_overlap/features_hf-hub-org-net/s1.h5"
    expected = {
        "patch_size": 256,
        "patch_size_level0": 512,
        "level0_magnification": 40,
        "target_magnification": 20,
        "overlap": 0,
        "name": "s1",
        "level0_width": 4000,
        "level0_height": 3000,
    }
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
    for path, has, read in [
        (full.tiles_path(scale, "s1"), lambda: full.has_tiles("s1", TILING), full.read_tiles),
        (full.features_path(scale, "s1"), lambda: full.has_features("s1", MADE_BY), full.read_features),
    ]:
        content = path.read_bytes()
        if damage == "absent":
            path.unlink()
        elif damage == "no coords":
            with h5py.File(path, "r+") as file:
                del file["coords"]
        else:
            path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "no h5": b"x" * 5000}[damage])
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
    with pytest.raises(InputError, match=f"s9 has 1 tile at {scale}x.*NaN"):
        full.write_features("s9", values, make_tiles("s9"), MADE_BY)
    assert not any(full.features_path(s, "s9").exists() for s in (10, 20))  # nothing half written
    with h5py.File(full.features_path(scale, "s1"), "r+") as file:  # as one of a program that keeps no hashes
        file["features"][3, 1] = bad
        del file.attrs["xxh3_128"]
    with pytest.raises(InputError, match=f"s1 has 1 tile at {scale}x.*NaN"):
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


def flip(path, at):
    """Change one bit of every byte at these places of a file."""
    content = bytearray(path.read_bytes())
    for place in at:
        content[place] ^= 1 << place % 8
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["tiles", "features"])
def test_a_changed_byte_anywhere_is_seen_or_changes_nothing(full, which):
    """Every 19th byte of a file in turn, headers, attributes and values: never another number without a word."""
    path = full.tiles_path(10, "s1") if which == "tiles" else full.features_path(10, "s1")
    has = (lambda: full.has_tiles("s1", TILING)) if which == "tiles" else (lambda: full.has_features("s1", MADE_BY))

    def read():
        if which == "tiles":
            tiles = full.read_tiles("s1")
            return [
                tiles.coords[10],
                tiles.density,
                tiles.colour,
                tiles.dimensions,
                tiles.magnification,
                tiles.grid,
                tiles.read,
            ]
        found = full.read_features("s1")[10]
        return [found.features, found.coords, full.features_made_by("s1").config, full.features_made_by("s1").hashes]

    content, right, seen = path.read_bytes(), read(), 0
    for place in range(0, len(content), 19):
        flip(path, [place])
        try:
            for value, expected in zip(read(), right, strict=True):
                np.testing.assert_equal(value, expected)
        except InputError as error:
            seen += 1
            assert "\n" not in str(error) and not has()
        path.write_bytes(content)
    assert has() and seen > 50


def test_64_changed_bytes_of_features_are_a_damaged_slide(full):
    path = full.features_path(20, "s1")
    start = path.read_bytes().index(make_features()[20].tobytes())
    flip(path, range(start + 8, start + 72))
    with pytest.raises(InputError, match=r"s1.h5 is damaged or incomplete \('features' is not what was written\)"):
        full.read_features("s1")
    assert not full.has_features("s1", MADE_BY) and full.has_tiles("s1", TILING)
    full.write_features("s1", make_features(), make_tiles(), MADE_BY)
    assert full.has_features("s1", MADE_BY)


def test_a_file_without_hashes_is_believed(full):
    """Made by an earlier version, or changed with a tool of TRIDENT's users."""
    for path in full.home.rglob("*.h5"):
        with h5py.File(path, "r+") as file:
            del file.attrs["xxh3_128"]
    assert full.has_features("s1", MADE_BY) and full.features_made_by("s1").hashes == [{}, {}]
    np.testing.assert_array_equal(full.read_features("s1")[20].features, make_features()[20])


def write_on_a_full_disk(store, slide_id, what):
    """In a worker: the disk has no room for the file of the second scale."""
    path = store.tiles_path(20, slide_id) if what == "tiles" else store.features_path(20, slide_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary_path(path).symlink_to("/dev/full")
    store.write_tiles(make_tiles(slide_id), TILING)
    store.write_features(slide_id, make_features(), make_tiles(slide_id), MADE_BY)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("what", ["tiles", "features"])
def test_a_full_disk_is_one_line_and_no_crash(store, what, workers):
    units = {name: (store, name, what) for name in ("s1", "s2", "s3")}
    with pytest.raises(DiskFull, match="no space left on the disk while writing s.*h5: free some space") as caught:
        list(run_units(write_on_a_full_disk, units, workers))
    assert "\n" not in str(caught.value)
    path = store.tiles_path(20, "s1") if what == "tiles" else store.features_path(20, "s1")
    assert not list(path.parent.glob("*.h5"))


def test_nothing_is_opened_on_the_disk_by_hdf5_for_writing(store, monkeypatch):
    """A disk without locks refuses that; the bytes come from memory."""
    opened, create = [], h5py.h5f.create

    def spy(*args, **kwargs):
        opened.append(kwargs["fapl"])
        return create(*args, **kwargs)

    monkeypatch.setattr(h5py.h5f, "create", spy)
    store.write_tiles(make_tiles(), TILING)
    assert [fapl.get_driver() for fapl in opened] == [h5py.h5fd.CORE] * 2
    assert not any(fapl.get_fapl_core()[1] for fapl in opened)  # no file behind the memory


ODD = [
    "../../x",
    "..",
    ".",
    "",
    "/etc/x",
    "a/b",
    "a\\b",
    "C:x",
    "x\0y",
    "x\ny",
    "~root",
    "-rf",
    ".hidden",
    "a" * 300,
    "é" * 120,
    "con",
    "NUL.txt",
    "*",
    "a?b",
    "<b>",
    '"',
    "x ",
    " x",
    "\u202ex",
    "\ud800",
    "..\\..\\x",
    "%2e%2e%2fx",
    "x;y",
    "$(x)",
    "幻灯片",
    "TCGA-A1-A0SB-01Z-00-DX1.B34C267B",
    "a b",
    "a..b",
    "S1.svs",
    "x'y",
    "e\u0301",
]


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_an_id_is_a_file_in_its_folder_or_refused(store, name):
    """Whatever the id: nothing outside the folder of its scale, no file of two slides, one line."""
    paths = []
    for scale in store.scales:
        for path, folder in ((store.tiles_path, "patches"), (store.features_path, "features_hf-hub-org-net")):
            try:
                paths.append(path(scale, name))
            except InputError as error:
                assert "\n" not in str(error)
            else:
                assert paths[-1].parent == store.home / f"features/{scale}x_256px_0px_overlap" / folder
                assert paths[-1].resolve().parent == paths[-1].parent.resolve() and name in paths[-1].name
    assert len(paths) in (0, 4) and not store.has_tiles(name, TILING) and not store.has_features(name, MADE_BY)
    if paths:
        store.write_tiles(make_tiles(name), TILING)
        assert store.has_tiles(name, TILING)
    else:
        with pytest.raises(InputError):
            store.write_tiles(make_tiles(name), TILING)
    written = [path for path in store.home.parent.rglob("*") if path.is_file()]
    assert sorted(written) == sorted(path for path in paths if path.parent.name == "patches")
