"""Slides: the magnification is found or refused, levels are OpenSlide's, thumbnails are whole."""

from __future__ import annotations

from pathlib import Path

import openslide
import pytest

from dmsmil.jobs.files import InputError
from dmsmil.slides.reader import base_magnification, open_slide
from tests.conftest import assert_one_line
from tests.slides.pyramids import make_slide

WSI = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "wsi"


@pytest.mark.parametrize("objective, file_mpp, table_mpp, magnification, mpp, warned", [
    (20, 0, 0, 20, 0.5, False), (40, 0.25, 0, 40, 0.25, False), (0, 0.499, 0, 20, 0.499, False),
    (0, 0.2325, 0, 40, 0.2325, False), (0, 0.3, 0, 10 / 0.3, 0.3, False), (0, 0, 0.25, 40, 0.25, False),
    (33, 0, 0, 33, 10 / 33, False), (40, 0.5, 0, 40, 0.5, True), (20, 0.5, 0.25, 40, 0.25, True),
    (20, 0.5, 0.49, 20, 0.49, False), (0, 352.8, 0.5, 20, 0.5, True), (400, 0.5, 0, 20, 0.5, True),
    (0, 0.25, 0.5, 20, 0.5, True)])
def test_magnification(objective, file_mpp, table_mpp, magnification, mpp, warned):
    found = base_magnification("a.svs", objective, file_mpp, table_mpp)
    assert found[:2] == (pytest.approx(magnification), pytest.approx(mpp))
    assert bool(found[2]) == warned


@pytest.mark.parametrize("known", [(0, 0, 0), (0, 352.8, 0), (500, 0, 0), (20, 0.5, 352.8)])
def test_no_magnification_is_refused(known):
    with pytest.raises(InputError, match="`mpp` column") as caught:
        base_magnification("a.svs", *known)
    assert_one_line(caught, "a.svs")


def test_magnification_comes_from_file_or_table(tmp_path):
    bare = make_slide(tmp_path / "bare.svs", 300, 300, objective=None, mpp=None)
    with pytest.raises(InputError, match="states no magnification"):
        open_slide(bare)
    with open_slide(bare, mpp=0.25) as slide:
        assert (slide.magnification, slide.mpp, slide.slide_id) == (40, 0.25, "bare")
    with open_slide(make_slide(tmp_path / "odd.svs", 300, 300, objective=20, mpp=0.25)) as slide:
        assert slide.magnification == 20 and "contradicts" in slide.warnings[0]


def test_the_study_may_call_a_slide_otherwise_than_its_file(tmp_path):
    with open_slide(make_slide(tmp_path / "a.svs", 300, 300), slide_id="patient 1, block B") as slide:
        assert slide.slide_id == "patient 1, block B"


def test_thumbnail_and_closing(tmp_path):
    slide = open_slide(make_slide(tmp_path / "a.svs", seed=1))
    assert slide.thumbnail(100).shape == (83, 100, 3)
    assert slide.dimensions == (1536, 1280)
    slide.close()
    with pytest.raises(Exception):
        slide.thumbnail(100)


@pytest.mark.skipif(not WSI.is_dir(), reason="needs ../shared/data/wsi")
def test_real_level_downsample_is_openslides(tmp_path):
    with open_slide(WSI / "openslide_boxes.tiff", 0.5) as slide, \
            openslide.OpenSlide(WSI / "openslide_boxes.tiff") as reference:
        for magnification in (20, 10, 5, 2.5):
            level = reference.get_best_level_for_downsample(20 / magnification)
            assert slide.source(magnification, 8)[0].number == level
        assert "absurd" in slide.warnings[0]
