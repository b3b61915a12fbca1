"""Bags: every number where it belongs, in memory or mapped from a file."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from dmsmil.features import bags as bags_module
from dmsmil.features import cache
from dmsmil.features.bags import fits_in_memory, load_bags
from dmsmil.jobs.failures import failure_row, read_failures, write_failures
from dmsmil.jobs.files import DiskFull, InputError, temporary_path
from dmsmil.slides.store import Store
from dmsmil.slides.tiles import Tiles
from dmsmil.study.opening import Study

K, DIM = 6, 5
COUNTS = {"a": 6, "b": 1, "c": 4, "d": 9, "e": 6}  # tiles a slide; d has more than K
ENCODER = {"name": "net", "weights": "abc"}


def write_slide(store, slide_id, n, weights="abc", parent=None, dim=DIM, **settings):
    """Tiles on a raster of 4 columns; the feature of a tile tells slide, scale and position."""
    rng = np.random.default_rng(ord(slide_id[0]))
    coords = np.stack([np.arange(n) % 4, np.arange(n) // 4], 1).astype(np.int64) * 100
    parent = np.arange(n) if parent is None else parent
    tiles = Tiles(
        slide_id,
        64,
        {10: coords, 20: coords[parent] + rng.integers(0, 50, (len(parent), 2))},
        rng.random(n),
        rng.random((n, 6), dtype=np.float32),
        parent,
        (1000, 1000),
        20.0,
        n,
        n,
    )
    features = {scale: rng.random((len(at), dim), dtype=np.float32) + 1 for scale, at in tiles.coords.items()}
    for scale, at in tiles.coords.items():
        features[scale][:, 0] = scale + at[:, 0] + 1000 * at[:, 1]
    made = {"k": K, **settings}
    store.write_tiles(tiles, made)
    store.write_features(slide_id, features, tiles, {**made, "encoder": {**ENCODER, "weights": weights}})
    return tiles, features


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "study", 64, (10, 20), "net")


@pytest.fixture
def written(store):
    return {name: write_slide(store, name, n) for name, n in COUNTS.items()}


@pytest.fixture
def cohort():
    return pd.DataFrame({"slide_id": list("dbaec"), "patient_id": list("44123"), "label": ["y", "y", "x", "x", "z"]})


@pytest.mark.parametrize("in_memory", [True, False])
def test_every_number_is_where_it_belongs(store, written, cohort, in_memory):
    bags = load_bags(store, cohort, K, in_memory=in_memory)
    assert bags.slide_ids == sorted(COUNTS) and bags.patient_ids == ["1", "4", "3", "4", "2"] and not bags.missing
    assert bags.classes == ["x", "y", "z"] and bags.labels.tolist() == [0, 1, 2, 1, 0] and len(bags) == 5
    assert bags.x.shape == (5, 2, K, DIM) and bags.x.dtype == torch.float32 and bags.x.is_contiguous()
    assert (bags.mask.dtype, bags.coords.dtype, bags.labels.dtype) == (torch.bool, torch.int64, torch.int64)
    assert (bags.file is None) == in_memory
    for row, name in enumerate(bags.slide_ids):
        tiles, features = written[name]
        keep = np.sort(np.argsort(-tiles.density, kind="stable")[:K])  # the densest, in raster order
        n = len(keep)
        assert bags.mask[row].tolist() == [[True] * n + [False] * (K - n)] * 2
        for s, scale in enumerate((10, 20)):
            np.testing.assert_array_equal(bags.x[row, s, :n], features[scale][keep])
            np.testing.assert_array_equal(bags.coords[row, s, :n], tiles.coords[scale][keep])
        assert not bags.x[row, :, n:].any() and not bags.coords[row, :, n:].any()
        np.testing.assert_allclose(bags.colour[row], tiles.colour[keep].mean(0), rtol=1e-6)
        np.testing.assert_array_equal(bags.density[row, :n], tiles.density[keep].astype(np.float32))


def test_memory_mapped_equals_in_memory(store, written, cohort):
    inside, outside = (load_bags(store, cohort, K, in_memory=flag) for flag in (True, False))
    for name in ("x", "mask", "coords", "labels", "colour", "density"):
        assert torch.equal(getattr(inside, name), getattr(outside, name)), name
    assert inside.identity == outside.identity and outside.file.parent == store.home / "features"


def test_the_mapped_file_is_reused_and_never_written_through(store, written, cohort):
    first = load_bags(store, cohort, K, in_memory=False)
    stamp = first.file.stat().st_mtime_ns
    first.x[0, 0, 0, 0] = -1  # stays in this process
    again = load_bags(store, cohort, K, in_memory=False)
    assert again.file == first.file and again.file.stat().st_mtime_ns == stamp and again.x[0, 0, 0, 0] != -1
    other = load_bags(store, cohort, K + 1, in_memory=False).file
    assert other != first.file and list((store.home / "features").glob("bags-*.npy")) == [other], "one copy, the latest"
    assert first.x[0, 0, 0, 0] == -1, "who has the other one open keeps it"
    fine = load_bags(store, cohort, K + 1, in_memory=True).view((20,)).share()
    assert other.exists() and fine.file.exists() and fine.file != other, "one scale takes no other's place"


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", ["a byte of the features", "a byte of the header", "a byte of the hash", "truncated", "empty", "longer"]
)
@pytest.mark.parametrize("how", ["load", "share"])
def test_a_mapped_file_that_is_not_what_was_written_is_made_again_with_a_line(store, written, cohort, damage, how):
    right = load_bags(store, cohort, K, in_memory=True)
    path = right.share().file
    content = bytearray(path.read_bytes())
    if damage.startswith("a byte"):
        content[{"features": len(content) // 2, "header": 60, "hash": -3}[damage.split()[-1]]] ^= 4
    else:
        content = {"truncated": content[:-100], "empty": b"", "longer": content + b"x"}[damage]
    path.write_bytes(content)
    said = []
    again = (
        load_bags(store, cohort, K, in_memory=False, report=said.append)
        if how == "load"
        else right.share(report=said.append)
    )
    assert said == [f"features/{path.name} is not what was written: it is made again"]
    assert again.file == path and torch.equal(again.x, right.x) and again.identity == right.identity
    assert np.array_equal(np.load(path), right.x.numpy())  # a plain .npy file for anybody else


def test_a_whole_mapped_file_is_read_through_once_a_process(store, written, cohort, monkeypatch):
    path = load_bags(store, cohort, K, in_memory=False).file
    looked = []
    monkeypatch.setattr(cache, "_is_whole", lambda path: looked.append(path) or True)
    load_bags(store, cohort, K, in_memory=False)
    assert looked == []  # this process wrote it
    os.utime(path, (0, 0))
    load_bags(store, cohort, K, in_memory=False)
    load_bags(store, cohort, K).share()
    assert looked == [path]


def test_one_scale_shared_is_not_taken_for_all(store, written, cohort):
    bags = load_bags(store, cohort, K)
    shared, fine = bags.share(), bags.view((20,)).share()
    assert fine.file != shared.file and torch.equal(fine.x, bags.x[:, 1:]) and torch.equal(shared.x, bags.x)
    assert torch.equal(pickle.loads(pickle.dumps(fine)).x, bags.x[:, 1:])
    assert load_bags(store, cohort, K, (20,), in_memory=False).file not in (fine.file, shared.file)  # other tiles


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_under_the_mapped_file_is_one_line_and_no_crash(store, written, cohort, monkeypatch):
    bags = load_bags(store, cohort, K)
    path = bags.share().file
    path.unlink()
    for write in (bags.share, lambda: load_bags(store, cohort, K, in_memory=False)):
        temporary_path(path).symlink_to("/dev/full")
        with pytest.raises(DiskFull, match="no space left on the disk while writing bags-"):
            write()
        assert not list((store.home / "features").glob("*bags-*"))


@pytest.mark.slow
def test_changed_bytes_of_a_slides_features_leave_it_out_and_new_features_are_another_identity(store, written, cohort):
    before = load_bags(store, cohort, K)
    path = store.features_path(20, "c")
    content = path.read_bytes()
    start = content.index(written["c"][1][20].tobytes())
    path.write_bytes(content[:start] + bytes(64) + content[start + 64 :])
    bags = load_bags(store, cohort, K)
    assert bags.slide_ids == list("abde") and "'features' is not what was written" in bags.missing["c"]
    tiles, features = written["c"]
    made = {"k": K, "encoder": ENCODER}
    store.write_features("c", features, tiles, made)
    assert load_bags(store, cohort, K).identity == before.identity
    features[20][0, 1] += 1e-3
    store.write_features("c", features, tiles, made)  # made by the same, and not the same
    assert load_bags(store, cohort, K).identity != before.identity


def test_a_class_that_would_be_lost_stops_the_study(store, written, cohort, capsys):
    for name in "ac":
        store.features_path(20, name).unlink()
    with pytest.raises(InputError, match="no slide of the class 'z' has features .slide c has no features"):
        Study(store.home, cohort, cohort, store).bags(K)
    assert sorted(read_failures(store.home).unit) == ["a", "c"]


def test_a_study_says_which_slide_it_lost_and_forgets_it_when_it_is_there_again(store, written, cohort, capsys):
    study = Study(store.home, cohort, cohort, store)
    assert len(study.bags(K)) == 5 and capsys.readouterr().out == ""
    path = store.features_path(20, "d")
    whole = path.read_bytes()
    path.write_bytes(whole[:-300])
    assert len(study.bags(K)) == 4
    said = capsys.readouterr().out
    assert said.startswith("d is left out: ") and "Run 02_features, which makes it anew" in said
    assert list(read_failures(store.home).stage) == ["bags"] and list(read_failures(store.home).unit) == ["d"]
    path.write_bytes(whole)
    assert len(study.bags(K)) == 5 and read_failures(store.home).empty


def test_changed_bytes_of_a_slides_tiles_leave_it_out(store, written, cohort):
    path = store.tiles_path(10, "c")
    content = path.read_bytes()
    start = content.index(written["c"][0].density.tobytes())
    path.write_bytes(content[:start] + bytes(8) + content[start + 8 :])
    bags = load_bags(store, cohort, K)
    assert bags.slide_ids == list("abde") and "'density' is not what was written" in bags.missing["c"]


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("stage", ["tiles", "features"])
def test_a_slide_that_failed_this_time_does_not_enter_with_its_old_features(store, written, cohort, stage, in_memory):
    assert load_bags(store, cohort, K, in_memory=in_memory).slide_ids == list("abcde")
    rows = [failure_row("c", stage, InputError("the slide is cut")), failure_row("z", stage, InputError("not of here"))]
    write_failures(store.home, stage, rows)
    write_failures(store.home, "train", [failure_row("a", "train", InputError("a run"))])  # not of its features
    bags = load_bags(store, cohort, K, in_memory=in_memory)
    assert bags.slide_ids == list("abde")
    assert bags.missing == {"c": f"its {stage} could not be made: the slide is cut"}
    write_failures(store.home, stage, [])
    assert load_bags(store, cohort, K, in_memory=in_memory).slide_ids == list("abcde")


def test_auto_maps_what_does_not_fit(store, written, cohort, monkeypatch):
    assert load_bags(store, cohort, K).file is None
    monkeypatch.setattr(bags_module, "free_memory", lambda: 1000)
    assert load_bags(store, cohort, K).file is not None
    assert fits_in_memory(499) and not fits_in_memory(500)


def test_rows_are_linked_by_parent(store, cohort):
    """20x rows in any order, one parent without a child, one with two: row j of both scales still belongs together."""
    order = np.array([3, 0, 5, 1, 1, 4])  # tile 2 has no child; tile 1 has rows 3 and 4
    tiles, features = write_slide(store, "a", 6, parent=order)
    bags = load_bags(store, cohort[cohort.slide_id == "a"], K)
    assert bags.mask[0].tolist() == [[True] * 6, [True, True, False, True, True, True]]
    for j, row in [(0, 1), (1, 3), (3, 0), (4, 5), (5, 2)]:
        np.testing.assert_array_equal(bags.x[0, 1, j], features[20][row])
        np.testing.assert_array_equal(bags.coords[0, 1, j], tiles.coords[20][row])
    assert not bags.x[0, 1, 2].any()


def test_rows_come_in_raster_order_whatever_the_file(store, cohort):
    tiles, features = write_slide(store, "a", 6)
    shuffle = np.array([4, 2, 0, 5, 1, 3])
    back = np.argsort(shuffle)
    mixed = Tiles(
        tiles.slide_id,
        64,
        {10: tiles.coords[10][shuffle], 20: tiles.coords[20]},
        tiles.density[shuffle],
        tiles.colour[shuffle],
        back,
        (1000, 1000),
        20.0,
        6,
        6,
    )
    plain = load_bags(store, cohort[cohort.slide_id == "a"], K)
    store.write_tiles(mixed, {"k": K})
    store.write_features("a", {10: features[10][shuffle], 20: features[20]}, mixed, {"k": K, "encoder": ENCODER})
    again = load_bags(store, cohort[cohort.slide_id == "a"], K)
    assert torch.equal(plain.x, again.x) and torch.equal(plain.coords, again.coords)
    assert torch.equal(plain.density, again.density)


def test_the_order_of_the_cohort_changes_nothing(store, written, cohort):
    one, other = load_bags(store, cohort, K), load_bags(store, cohort.iloc[::-1].reset_index(drop=True), K)
    assert one.identity == other.identity and one.slide_ids == other.slide_ids and torch.equal(one.x, other.x)


@pytest.mark.slow
def test_identity_is_of_the_content_not_of_the_place(store, written, cohort, tmp_path):
    elsewhere = Store(tmp_path / "another/place", 64, (10, 20), "net")
    for name, n in COUNTS.items():
        write_slide(elsewhere, name, n)
    here, there = load_bags(store, cohort, K).identity, load_bags(elsewhere, cohort, K).identity
    assert here == there
    for name, n in COUNTS.items():
        write_slide(elsewhere, name, n, weights="new")
    others = [
        load_bags(elsewhere, cohort, K).identity,
        load_bags(store, cohort, K - 1).identity,
        load_bags(store, cohort, K, (10,)).identity,
        load_bags(store, cohort.iloc[1:], K).identity,
    ]
    assert len({here, *others}) == 5


@pytest.mark.parametrize("in_memory", [True, False])
def test_slides_without_whole_features_are_left_out_and_named(store, written, cohort, in_memory):
    store.features_path(20, "a").unlink()
    path = store.features_path(10, "b")
    path.write_bytes(path.read_bytes()[:200])
    with h5py.File(store.features_path(20, "e"), "r+") as file:
        file["features"][0, 0] = np.nan
        del file.attrs["xxh3_128"]
    bags = load_bags(store, cohort, K, in_memory=in_memory)
    assert bags.slide_ids == ["c", "d"] and set(bags.missing) == {"a", "b", "e"}
    assert "NaN" in bags.missing["e"] and "no features" in bags.missing["a"] and "damaged" in bags.missing["b"]
    assert bags.classes == ["y", "z"] and torch.equal(bags.x, load_bags(store, cohort.iloc[[0, 4]], K).x)
    with pytest.raises(InputError, match="a has no features here.*no features"):
        bags.rows(["c", "a"])


def test_no_slide_left(store, cohort):
    with pytest.raises(InputError, match="no slide of the cohort has features by 'net'.*slide a"):
        load_bags(store, cohort, K)


@pytest.mark.parametrize("change", [{"weights": "new"}, {"dim": DIM + 1}])
def test_features_of_two_encoders_never_meet(store, written, cohort, change):
    write_slide(store, "c", 4, **change)
    with pytest.raises(InputError, match=r"not all made alike: 1 slide \(c"):
        load_bags(store, cohort, K)


def test_tiles_by_other_settings_never_meet(store, written, cohort):
    """As after a run with another k that was stopped half-way."""
    write_slide(store, "c", 4, seed=7)
    with pytest.raises(InputError, match=r"not all made alike: 1 slide \(c\) with other seed than the rest"):
        load_bags(store, cohort, K)


def test_where_density_is_not_known_tiles_are_evenly_spaced(store, written, cohort):
    bags = load_bags(store, cohort, K, (20,))  # the fine scale alone holds none
    row = bags.slide_ids.index("d")
    np.testing.assert_array_equal(bags.x[row, 0], written["d"][1][20][_evenly(written["d"][0].coords[20])])
    assert torch.isnan(bags.density[row]).all() and torch.isnan(bags.colour).all() and bags.mask[row].all()


def test_tiles_that_were_chosen_anew_are_not_taken_for_those_of_the_features(store, written, cohort):
    tiles = written["a"][0]
    moved = {scale: coords + 64 for scale, coords in tiles.coords.items()}
    store.write_tiles(replace(tiles, coords=moved), {"k": K})
    bags = load_bags(store, cohort, K)
    assert "a" not in bags.slide_ids and "tiles that are not the 6 it has now" in bags.missing["a"]


def test_three_scales_of_which_two_are_asked_for(store, cohort):
    """Where tiles lack a child, rows of the finer scales are fewer: their `parent` still says who belongs to whom."""
    wide = Store(store.home, 64, (5, 10, 20), "net")
    tiles, _ = write_slide(store, "a", 6)
    parent = np.array([1, 2, 4])
    coords = {5: tiles.coords[10], 10: tiles.coords[10][parent] + 7, 20: tiles.coords[10][parent] + 9}
    features = {
        scale: np.full((len(at), DIM), scale, np.float32) + np.arange(len(at))[:, None] for scale, at in coords.items()
    }
    tiles = replace(tiles, coords=coords, parent=parent)
    wide.write_tiles(tiles, {"k": K})
    wide.write_features("a", features, tiles, {"k": K, "encoder": ENCODER})
    cohort = cohort[cohort.slide_id == "a"]
    assert load_bags(wide, cohort, K, (5, 10, 20)).mask[0].sum(-1).tolist() == [6, 3, 3]
    two = load_bags(wide, cohort, K, (10, 20))
    assert two.mask[0].tolist() == [[True] * 3 + [False] * 3] * 2
    assert two.x[0, :, :3, 0].tolist() == [[10, 11, 12], [20, 21, 22]]
    with pytest.raises(InputError, match="at 5x are not linked to the first scale"):
        load_bags(wide, cohort, K, (20, 5))


def _evenly(coords):
    raster = sorted(range(len(coords)), key=lambda i: (coords[i, 1], coords[i, 0]))
    return [raster[round(i * (len(raster) - 1) / (K - 1))] for i in range(K)]


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_batches(store, written, cohort, batch_size):
    bags = load_bags(store, cohort, K)
    wanted = bags.rows(["e", "b", "a", "d"])
    seen = []
    for x, mask, coords, labels, rows in bags.batches(wanted, batch_size):
        seen += rows.tolist()
        for part, whole in ((x, bags.x), (mask, bags.mask), (coords, bags.coords), (labels, bags.labels)):
            assert torch.equal(part, whole[rows])
        view = x.untyped_storage().data_ptr() == bags.x.untyped_storage().data_ptr()
        assert view == (len(rows) == 1)  # one slide is never copied
    assert seen == wanted.tolist()

    def shuffled(seed):
        generator = torch.Generator().manual_seed(seed)
        return [rows.tolist() for *_, rows in bags.batches(range(5), batch_size, generator)]

    assert shuffled(1) == shuffled(1) != shuffled(2)
    assert sorted(sum(shuffled(1), [])) == list(range(5))


def test_subset_and_view(store, written, cohort):
    bags = load_bags(store, cohort, K)
    part = bags.subset(["d", "a"])
    assert part.slide_ids == ["d", "a"] and part.patient_ids == ["4", "1"] and part.classes == bags.classes
    for name in ("x", "mask", "coords", "labels", "colour", "density"):
        assert torch.equal(getattr(part, name), getattr(bags, name)[[3, 0]])
    assert part.identity not in ("", bags.identity) and part.identity == bags.subset(["d", "a"]).identity
    fine = bags.view((20,))
    assert torch.equal(fine.x, bags.x[:, 1:]) and fine.scales == (20,) and bags.view((10, 20)) is bags
    assert fine.x.untyped_storage().data_ptr() == bags.x.untyped_storage().data_ptr()
    assert torch.equal(bags.view((20, 10)).x, bags.x.flip(1))
    with pytest.raises(InputError, match="scale 40"):
        bags.view((40,))


@pytest.mark.slow
def test_workers_read_the_one_file(store, written, cohort, tmp_path):
    bags = load_bags(store, cohort, K)
    shared = bags.share()
    sent = pickle.dumps(shared)
    assert torch.equal(shared.x, bags.x) and shared.share() is shared
    assert len(sent) < len(pickle.dumps(bags))  # the name of a file, not its content
    (tmp_path / "sent").write_bytes(sent)
    code = (
        "import pickle, sys; bags = pickle.load(open(sys.argv[1], 'rb')); "
        "print(float(bags.x.double().sum()), bags.slide_ids == sorted(bags.slide_ids), bags.file.is_file())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "sent"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split() == [str(float(bags.x.double().sum())), "True", "True"]
    assert torch.equal(pickle.loads(pickle.dumps(shared.view((20,)))).x, bags.x[:, 1:])
    assert load_bags(store, cohort, K, in_memory=False).file == shared.file


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_gets_the_same_numbers(store, written, cohort):
    bags = load_bags(store, cohort, K)
    assert torch.equal(bags.to("cuda").x.cpu(), bags.x)
    for x, *_, rows in bags.batches(range(5), 2, device="cuda"):
        assert x.is_cuda and torch.equal(x.cpu(), bags.x[rows])
