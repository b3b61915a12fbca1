"""Tiles of a cohort: each slide at its own magnification, black as the study says, made again when that changes."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest

from dmsmil.jobs.failures import read_failures
from dmsmil.jobs.files import InputError
from dmsmil.slides import stages
from dmsmil.slides.stages import seen, tile_cohort, tile_config
from dmsmil.slides.store import Store
from tests.slides.pyramids import make_slide, texture, write_pyramid


def cohort_of(paths, mpp=0.0):
    return pd.DataFrame(
        [
            {"slide_id": path.stem, "patient_id": path.stem, "label": "a", "path": str(path), "mpp": mpp}
            for path in paths
        ]
    )


def silent(_):
    pass


@pytest.mark.slow
def test_the_studys_mpp_is_for_the_slides_that_do_not_say_and_for_no_other(tmp_path):
    sizes = dict(width=1024, height=1024, coverage=1)
    known = [
        make_slide(tmp_path / "forty.svs", **sizes, objective=40, mpp=0.25),
        make_slide(tmp_path / "twenty.svs", **sizes, objective=20, mpp=0.5),
        make_slide(tmp_path / "named.svs", **sizes, objective=40, mpp=None),
        make_slide(tmp_path / "changer.svs", **sizes, objective=20, mpp=0.234),
    ]
    bare = make_slide(tmp_path / "bare.svs", **sizes, objective=None, mpp=None)
    told = make_slide(tmp_path / "told.svs", **sizes, objective=40, mpp=0.25)
    cohort = pd.concat([cohort_of([*known, bare]), cohort_of([told], mpp=0.5)], ignore_index=True)
    store = Store(tmp_path / "study", 64)
    found = tile_cohort(store, cohort, k=4, mpp=0.5, workers=1, report=silent).set_index("slide_id")
    expected = {"forty": 40, "twenty": 20, "named": 40, "changer": 40, "bare": 20, "told": 20}
    assert found.magnification.to_dict() == expected
    for name, magnification in expected.items():
        step = np.diff(np.unique(store.read_tiles(name).coords[10][:, 0]))
        assert (step % (64 * magnification // 10) == 0).all()
    assert "contradicts mpp 0.234" in found.warnings["changer"] and not found.warnings["forty"]
    assert "0.5 in the cohort table, 0.25 in the file" in found.warnings["told"]
    again = tile_cohort(store, cohort[cohort.slide_id != "bare"], k=4, mpp=0.25, workers=1, report=silent)
    assert again.set_index("slide_id").magnification.to_dict() == {k: v for k, v in expected.items() if k != "bare"}


@pytest.mark.slow
def test_a_slide_that_lacks_a_scale_is_one_row_and_the_others_go_on(tmp_path):
    sizes = dict(width=1024, height=1024, coverage=1)
    whole = make_slide(tmp_path / "whole.svs", **sizes, objective=20, mpp=0.5)
    coarse = make_slide(tmp_path / "coarse.svs", **sizes, objective=10, mpp=1.0)
    store, lines = Store(tmp_path / "study", 64, (5, 10, 20)), []
    found = tile_cohort(store, cohort_of([whole, coarse]), k=4, workers=1, report=lines.append)
    assert list(found.slide_id) == ["whole"] and found.tiles[0] == 4
    (row,) = read_failures(store.home).itertuples()
    assert (row.unit, row.stage) == ("coarse", "tiles") and any(row.reason in line for line in lines)
    assert row.reason == (
        "slide coarse.svs was scanned at 10x and has no 20x tiles: take it out of the cohort table or lower the scales"
    )


def test_tiles_of_three_scales_that_were_linked_otherwise_are_made_again(tmp_path):
    row = cohort_of([make_slide(tmp_path / "a.svs", width=1024, height=1024, coverage=1)]).iloc[0]
    three, two = (tile_config(Store(tmp_path, 64, scales), row, 4, 0.05, 0, 0.0) for scales in ((5, 10, 20), (10, 20)))
    assert three["links"] == "nested" and "links" not in two


@pytest.mark.slow
def test_black_is_padding_unless_the_study_says_tissue_and_tiles_follow(tmp_path):
    image = texture(1024, 1024, seed=3)
    image[:, 512:] = 0
    cohort, store = cohort_of([write_pyramid(tmp_path / "half.svs", image)]), Store(tmp_path / "study", 64)
    lines = []
    found = tile_cohort(store, cohort, k=8, workers=1, report=lines.append)
    assert "32 or more of 64 10x tiles are mostly black padding" in found.warnings[0] and "32 or more" in lines[0]
    assert store.read_tiles("half").coords[10][:, 0].max() < 512
    found = tile_cohort(store, cohort, k=8, workers=1, report=silent, black="tissue")
    assert store.read_tiles("half").coords[10][:, 0].min() >= 512 and found.density[0] == 1
    assert found.warnings[0] == ""
    with pytest.raises(InputError, match="black is 'glass'"):
        tile_cohort(store, cohort, k=8, workers=1, report=silent, black="glass")


def test_another_slide_of_the_same_name_and_size_is_tiled_anew_and_a_copy_is_not(tmp_path, monkeypatch):
    """Exports of a region of one size have as many bytes, whatever they show."""
    made = [make_slide(tmp_path / f"{seed}.svs", width=1024, height=1024, coverage=1, seed=seed) for seed in (1, 2)]
    size = max(path.stat().st_size for path in made)
    contents = [path.read_bytes().ljust(size, b"\0") for path in made]
    path, store, lines = tmp_path / "a.svs", Store(tmp_path / "study", 64), []

    def tiled(content):
        path.write_bytes(content)
        os.utime(path, ns=(0, len(lines) + 10**18))  # another time, whatever the clock of the disk
        tile_cohort(store, cohort_of([path]), k=4, workers=1, report=lines.append)
        return store.read_tiles("a").colour

    first, copied = tiled(contents[0]), tiled(contents[0])
    with monkeypatch.context() as patch:  # what was not touched since is not read
        patch.setattr(stages, "sampled_hash", lambda path: pytest.fail("the file was read"))
        tile_cohort(store, cohort_of([path]), k=4, workers=1, report=silent)
    other = tiled(contents[1])
    np.testing.assert_array_equal(first, copied)
    assert lines.count("1 of 1 slides were done before") == 1 and not np.allclose(first, other)
    assert lines.count("a: its file is another one than before, and what was made of it is made anew") == 1


def test_a_slide_that_cannot_be_read_now_stops_no_other_and_keeps_its_tiles(tmp_path, monkeypatch):
    path = make_slide(tmp_path / "a.svs", width=1024, height=1024, coverage=1)
    store = Store(tmp_path / "study", 64)
    tile_cohort(store, cohort_of([path]), k=4, workers=1, report=silent)

    def away(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(stages, "sampled_hash", away)
    tile_cohort(store, cohort_of([path]), k=4, workers=1, report=silent)
    assert store.seen("a") and read_failures(store.home).empty


def test_the_pixel_files_of_a_mirax_slide_count(tmp_path):
    index = tmp_path / "a.mrxs"
    index.write_bytes(b"index")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/Data0000.dat").write_bytes(b"pixels")
    before = seen(index)
    assert seen(index) == before
    (tmp_path / "a/Data0000.dat").write_bytes(b"more pixels")
    assert seen(index) != before
