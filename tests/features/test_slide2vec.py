"""What hs2p and slide2vec themselves wrote: every number lands where it belongs, and what cannot be used is said."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dmsmil.features.bags import load_bags
from dmsmil.features.formats import import_features, open_source
from dmsmil.jobs.failures import read_failures
from dmsmil.jobs.files import InputError
from dmsmil.slides.store import Store

HERE = Path(__file__).parent / "slide2vec"
COHORT = pd.DataFrame(
    {"slide_id": ["one", "two"], "patient_id": ["one", "two"], "label": ["a", "b"], "site": "", "path": "", "mpp": 0.0}
)


@pytest.fixture
def source(tmp_path):
    shutil.copytree(HERE, tmp_path / "made")
    return tmp_path / "made/out_{scale}x"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "study", 256, (10, 20), "toy")


def take(store, source, k=50, table=COHORT):
    return import_features(store, table, source, k, workers=1, report=lambda line: None)


def test_every_number_is_where_it_belongs(store, source):
    found = open_source(store, source, COHORT)
    assert (found.kind, found.dim) == ("slide2vec", 4)
    summary = take(store, source)
    assert summary.tiles.tolist() == [12, 12] and (summary.magnification == 20).all()
    bags = load_bags(store, COHORT, 12)
    assert (bags.x[0, 0] == bags.x[1, 0]).all() and (bags.coords[0, 0] == bags.coords[1, 0]).all(), "npz is as pt"
    for s, scale in enumerate((10, 20)):
        x, at = bags.x[0, s][bags.mask[0, s]].numpy(), bags.coords[0, s][bags.mask[0, s]].numpy()
        np.testing.assert_array_equal(x[:, 0], scale)
        np.testing.assert_array_equal(x[:, 1:3] * 128, at)
        assert len(at) == 12 and (at % (5120 // scale) == 0).all()
    offset = (bags.coords[0, 1] - bags.coords[0, 0])[bags.mask[0, 1]]
    assert set(offset.ravel().tolist()) == {0, 256}, "a quarter of its 10x tile"


def test_the_slides_size_is_told_and_tiles_that_jut_out_are_counted(store, source):
    summary = take(store, source)
    assert store.read_tiles("one").dimensions == (1700, 1300)
    outside = [
        int((np.load(HERE / "out_10x/tiles/one.coordinates.npz")[axis] + 512 > side).sum())
        for axis, side in (("x", 1700), ("y", 1300))
    ]
    assert outside == [3, 4]
    assert summary.warnings[0].startswith("6 of 12 tiles at 10x jut out of the slide of 1700 x 1300 px, by 348 px")


@pytest.mark.parametrize(
    "px, scales, encoder, reason",
    [
        (256, (10, 20), "uni", "has features by 'toy', not by the study's encoder 'uni': set encoder"),
        (
            512,
            (10,),
            "toy",
            "one.npz has tiles of 256 px at 10x with 0% overlap, not of 512 px at 10x without: set tile",
        ),
    ],
)
def test_another_study_is_told_what_is_there(px, scales, encoder, reason, source, tmp_path):
    with pytest.raises(InputError, match=reason) as caught:
        take(Store(tmp_path / "other", px, scales, encoder), source)
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_overlapping_tiles_are_refused(store, source):
    for path in source.parent.rglob("*.coordinates.meta.json"):
        about = json.loads(path.read_text())
        about["tiling"]["overlap"] = 0.25
        path.write_text(json.dumps(about))
    with pytest.raises(InputError, match="with 25% overlap"):
        take(store, source)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("tiles/two.coordinates.npz", "no hs2p file of its tiles"),
        ("tiles/two.coordinates.meta.json", "no hs2p file of its tiling"),
        ("tile_embeddings/two.pt", "slide two has no file of features at 20x"),
    ],
)
def test_a_slide_that_lacks_a_file_is_a_row(name, reason, store, source):
    (source.parent / "out_20x" / name).unlink()
    assert take(store, source).slide_id.tolist() == ["one"]
    assert reason in read_failures(store.home).reason[0]


@pytest.mark.parametrize(
    "name", ["tiles/two.coordinates.npz", "tiles/two.coordinates.meta.json", "tile_embeddings/two.pt"]
)
def test_a_damaged_file_is_a_row_and_a_mended_one_is_imported(name, store, source):
    path = source.parent / "out_20x" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert take(store, source).slide_id.tolist() == ["one"]
    assert "damaged" in read_failures(store.home).reason[0] and "\n" not in read_failures(store.home).reason[0]
    path.write_bytes(whole)
    assert len(take(store, source)) == 2 and not len(read_failures(store.home))
