"""Slides: the magnification is found or refused, levels are OpenSlide's, thumbnails are whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from dmsmil.jobs.files import InputError
from dmsmil.slides.magnification import base_magnification
from dmsmil.slides.reader import open_slide
from tests.conftest import assert_one_line
from tests.slides.pyramids import describe, make_slide, texture, write_scn

WSI = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "wsi"


@pytest.mark.parametrize(
    "objective, file_mpp, table_mpp, magnification, mpp, warned",
    [
        (20, 0, 0, 20, 0.5, False),
        (40, 0.25, 0, 40, 0.25, False),
        (0, 0.499, 0, 20, 0.499, False),
        (0, 0.2325, 0, 40, 0.2325, False),
        (0, 0.3, 0, 10 / 0.3, 0.3, False),
        (0, 0, 0.25, 40, 0.25, False),
        (33, 0, 0, 33, 10 / 33, False),
        (40, 0.5, 0, 20, 0.5, True),
        (20, 0.5, 0.25, 40, 0.25, True),
        (20, 0.234, 0, 40, 0.234, True),
        (10, 0.3, 0, 10 / 0.3, 0.3, True),
        (40, 0.262, 0, 40, 0.262, False),
        (20, 0.5, 0.49, 20, 0.49, False),
        (0, 352.8, 0.5, 20, 0.5, True),
        (400, 0.5, 0, 20, 0.5, True),
        (0, 0.25, 0.5, 20, 0.5, True),
    ],
)
def test_magnification(objective, file_mpp, table_mpp, magnification, mpp, warned):
    found = base_magnification("a.svs", objective, file_mpp, table_mpp)
    assert found[:2] == (pytest.approx(magnification), pytest.approx(mpp))
    assert bool(found[2]) == warned


@pytest.mark.parametrize(
    "objective, file_mpp, table_mpp, magnification, mpp",
    [
        (0, 0, 0, 20, 0.5),
        (0, 352.8, 0, 20, 0.5),
        (500, 0, 0, 20, 0.5),  # nothing is known but this
        (40, 0, 0, 40, 0.25),
        (0, 0.25, 0, 40, 0.25),
        (20, 0.25, 0, 40, 0.25),
        (0, 0, 0.25, 40, 0.25),
        (40, 0, 1, 10, 1),
    ],
)
def test_the_studys_mpp_is_only_for_slides_that_do_not_say(objective, file_mpp, table_mpp, magnification, mpp):
    assert base_magnification("a.svs", objective, file_mpp, table_mpp, fallback_mpp=0.5)[:2] == (magnification, mpp)


@pytest.mark.parametrize("known", [(0, 0, 0), (0, 352.8, 0), (500, 0, 0), (20, 0.5, 352.8)])
def test_no_magnification_is_refused(known):
    with pytest.raises(InputError, match="`mpp` column") as caught:
        base_magnification("a.svs", *known)
    assert_one_line(caught, "a.svs")
    with pytest.raises(InputError, match="`mpp` key of the study") as caught:
        base_magnification("a.svs", 20, 0.5, 0, 352.8)
    assert_one_line(caught, "a.svs")


def test_magnification_comes_from_file_or_table(tmp_path):
    bare = make_slide(tmp_path / "bare.svs", 300, 300, objective=None, mpp=None)
    with pytest.raises(InputError, match="states no magnification"):
        open_slide(bare)
    with open_slide(bare, mpp=0.25) as slide:
        assert (slide.magnification, slide.mpp, slide.slide_id) == (40, 0.25, "bare")
    with open_slide(make_slide(tmp_path / "odd.svs", 300, 300, objective=20, mpp=0.25)) as slide:
        assert (slide.magnification, slide.mpp) == (40, 0.25)
        assert "objective power 20 contradicts mpp 0.25" in slide.warnings[0] and "as 40x" in slide.warnings[0]
    with open_slide(bare, fallback_mpp=0.25) as slide:
        assert (slide.magnification, slide.mpp) == (40, 0.25)
    with open_slide(tmp_path / "odd.svs", fallback_mpp=0.5) as slide:
        assert slide.magnification == 40


def test_reading_a_slide_with_the_mpp_it_was_read_with_changes_nothing(tmp_path):
    for number, (objective, mpp) in enumerate([(20, 0.234), (33, None), (None, 0.3), (40, 0.25), (None, 0.52)]):
        path = make_slide(tmp_path / f"{number}.svs", 300, 300, objective=objective, mpp=mpp)
        with open_slide(path) as slide, open_slide(path, slide.mpp) as again:
            assert (slide.magnification, slide.mpp) == (again.magnification, again.mpp)


@pytest.mark.slow
def test_what_openslide_does_not_read_is_to_be_converted_and_what_is_damaged_copied(tmp_path):
    image = texture(300, 400)
    tifffile.imwrite(
        tmp_path / "strips.svs", image, photometric="rgb", description=describe(400, 300, 20, 0.5), metadata=None
    )
    tifffile.imwrite(tmp_path / "webp.tif", image, photometric="rgb", tile=(256, 256), compression="webp")
    Image.fromarray(image).save(tmp_path / "photo.jpg")
    Image.fromarray(image).save(tmp_path / "photo.png")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "strips.svs").read_bytes()[:5000])
    (tmp_path / "text.svs").write_text("II*, but no TIFF")
    reasons = {
        "strips.svs": "is a TIFF in strips",
        "webp.tif": "is a TIFF compressed as WEBP",
        "photo.jpg": "is a JPEG picture",
        "photo.png": "is a PNG picture",
    }
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=f"{reason}.*convert it with libvips, `vips tiffsave IN OUT") as caught:
            open_slide(tmp_path / name)
        assert_one_line(caught, name)
    for name in ("cut.tif", "text.svs"):
        with pytest.raises(InputError, match="copy the file again") as caught:
            open_slide(tmp_path / name)
        assert_one_line(caught, name)


def test_bounds_are_what_was_scanned(tmp_path):
    image = texture(512, 768, coverage=1)
    with open_slide(make_slide(tmp_path / "a.svs", 300, 200)) as slide:
        assert slide.bounds == (0, 0, 300, 200)
    with open_slide(write_scn(tmp_path / "a.scn", image, (640, 384))) as slide:
        assert slide.dimensions == (3 * 768, 3 * 512) and slide.bounds == (640, 384, 768, 512)
        assert (slide.magnification, slide.mpp) == (20, 0.5)
        scanned = slide.read(640, 384, 20, 256).astype(int)
        assert np.abs(scanned - image[:256, :256]).mean() < 8
        assert slide.read(0, 0, 20, 256).min() == 255


def test_the_study_may_call_a_slide_otherwise_than_its_file(tmp_path):
    with open_slide(make_slide(tmp_path / "a.svs", 300, 300), slide_id="patient 1, block B") as slide:
        assert slide.slide_id == "patient 1, block B"


@pytest.mark.slow
def test_thumbnail_and_closing(tmp_path):
    slide = open_slide(make_slide(tmp_path / "a.svs", seed=1))
    assert slide.thumbnail(100).shape == (83, 100, 3)
    assert slide.dimensions == (1536, 1280)
    slide.close()
    with pytest.raises(Exception):
        slide.thumbnail(100)


@pytest.mark.skipif(not WSI.is_dir(), reason="needs ../shared/data/wsi")
def test_real_level_downsample_is_openslides(tmp_path):
    with (
        open_slide(WSI / "openslide_boxes.tiff", 0.5) as slide,
        openslide.OpenSlide(WSI / "openslide_boxes.tiff") as reference,
    ):
        for magnification in (20, 10, 5, 2.5):
            level = reference.get_best_level_for_downsample(20 / magnification)
            assert slide.source(magnification, 8)[0].number == level
        assert "absurd" in slide.warnings[0]


def test_pixels_that_are_no_squares_are_measured_along_x(tmp_path):
    image = texture(512, 512, seed=1)
    tifffile.imwrite(
        tmp_path / "a.tif",
        image,
        tile=(256, 256),
        photometric="rgb",
        resolution=(1e4 / 0.25, 1e4 / 0.265),
        resolutionunit="CENTIMETER",
    )
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide._file.mpp == pytest.approx(0.25, rel=1e-4) and slide._file.mpp_y == pytest.approx(0.265, rel=1e-4)
