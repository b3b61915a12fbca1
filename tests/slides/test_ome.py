"""OME-TIFF slides: the size of a pixel from the XML, levels from SubIFDs, colours from wherever they lie."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import tifffile

from dmsmil.jobs.files import InputError
from dmsmil.slides.density import screening_level
from dmsmil.slides.reader import open_slide, reads_more
from dmsmil.slides.stages import tile_config
from dmsmil.slides.store import Store
from dmsmil.slides.tiles import read_tiles, select_tiles
from tests.conftest import assert_one_line
from tests.slides.pyramids import make_slide, shrink, texture, write_ome

IMAGE = texture(1280, 1536, 1, coverage=0.6)
FLAT = dict(factors=(1,), compression="zlib")  # one level: OpenSlide reads all there is
COLOURS = {"Color": [-16776961, 16711935, 65535]}  # red, green, blue, as OME writes them


@pytest.mark.parametrize(
    "size, unit, mpp",
    [
        (0.5, "µm", 0.5),
        (0.5, "\u03bcm", 0.5),
        (500, "nm", 0.5),
        (0.00025, "mm", 0.25),
        (2500, "Å", 0.25),
        (0.25, None, 0.25),
        (2.5e-5, "cm", 0.25),
        (2.5e-7, "m", 0.25),
    ],
)
@pytest.mark.parametrize("bigtiff", [True, False])
@pytest.mark.parametrize("factors", [(1,), (1, 4)])
def test_the_size_of_a_pixel_is_read_in_any_unit(tmp_path, size, unit, mpp, bigtiff, factors):
    said = {"PhysicalSizeX": size, "PhysicalSizeY": size}
    if unit:
        said |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    path = write_ome(tmp_path / "S1.ome.tif", IMAGE[:512, :512], factors, "zlib", bigtiff=bigtiff, **said)
    with open_slide(path) as slide:
        assert (slide.mpp, slide.magnification) == (pytest.approx(mpp), 10 / mpp)
        assert slide.slide_id == "S1" and not slide.warnings


@pytest.mark.slow
def test_the_tables_word_and_the_studys_keep_their_rank(tmp_path):
    path = write_ome(tmp_path / "a.ome.tif", IMAGE, PhysicalSizeX=0.5, **FLAT)
    with open_slide(path, mpp=0.25) as slide:
        assert slide.mpp == 0.25 and "0.25 in the cohort table, 0.5 in the file" in slide.warnings[0]
    with open_slide(path, fallback_mpp=0.25) as slide:
        assert slide.mpp == 0.5
    silent = write_ome(tmp_path / "b.ome.tif", IMAGE, **FLAT)
    with pytest.raises(InputError, match="states no magnification"):
        open_slide(silent)
    with open_slide(silent, fallback_mpp=0.25) as slide:
        assert slide.mpp == 0.25


@pytest.mark.parametrize(
    "said, reason",
    [
        ({"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "pixel"}, "its pixel size is in 'pixel', which is no length"),
        ({"PhysicalSizeX": 250.0}, "its mpp 250 is absurd"),
    ],
)
def test_a_size_that_is_none_is_said(tmp_path, said, reason):
    path = write_ome(tmp_path / "a.ome.tif", IMAGE, **FLAT, **said)
    with open_slide(path, mpp=0.5) as slide:
        assert reason in slide.warnings[0]


def test_why_a_size_was_not_taken_is_said_where_there_is_no_other(tmp_path):
    path = write_ome(tmp_path / "a.ome.tif", IMAGE, **FLAT, PhysicalSizeX=0.5, PhysicalSizeXUnit="micron")
    with pytest.raises(InputError, match="states no magnification.*in 'micron', which is no length, and was ignored"):
        open_slide(path)


def test_pixels_that_are_not_square_are_refused_or_said(tmp_path):
    path = write_ome(tmp_path / "a.ome.tif", IMAGE, **FLAT, PhysicalSizeX=0.5, PhysicalSizeY=0.25)
    with pytest.raises(InputError, match="a.ome.tif has pixels of 0.5 x 0.25 micrometres by its file, and only square"):
        open_slide(path)
    with open_slide(path, mpp=0.5) as slide:
        assert slide.mpp == 0.5, "the person knows better"
    path = write_ome(tmp_path / "b.ome.tif", IMAGE, **FLAT, PhysicalSizeX=0.5, PhysicalSizeY=0.52)
    with open_slide(path) as slide:
        assert slide.warnings == [
            "slide b.ome.tif: pixels of 0.5 x 0.52 micrometres by its file; they are read as square ones of 0.5"
        ]


@pytest.mark.slow
def test_tiff_tags_count_as_before_unless_they_are_absurd(tmp_path):
    for dots, mpp in ((20000, 0.5), (28.35, 0.25)):  # a centimetre: half micrometres, and 72 an inch
        path = write_ome(tmp_path / "a.ome.tif", IMAGE, PhysicalSizeX=0.25, dots=dots, **FLAT)
        with open_slide(path) as slide:
            assert slide.mpp == pytest.approx(mpp)
            assert len(slide.warnings) == (mpp == 0.5)


def test_the_objective_is_that_of_the_picture(tmp_path):
    path = write_ome(tmp_path / "a.ome.tif", IMAGE, **FLAT)
    text = tifffile.tiffcomment(path)
    said = (
        '<Instrument ID="Instrument:0"><Objective ID="Objective:0" NominalMagnification="5"/>'
        '<Objective ID="Objective:1" NominalMagnification="40"/></Instrument><Image '
    )
    text = text.replace("<Image ", said, 1).replace("<Pixels ", '<ObjectiveSettings ID="Objective:1"/><Pixels ', 1)
    tifffile.tiffcomment(path, text)
    with open_slide(path) as slide:
        assert (slide.magnification, slide.mpp) == (40, 0.25)


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["jpeg", "lzw", "zlib"])
def test_levels_in_subifds_give_openslides_pixels_of_the_same_levels_as_pages(tmp_path, compression):
    said = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    ours = write_ome(tmp_path / "a.ome.tif", IMAGE, compression=compression, **said)
    theirs = write_ome(tmp_path / "b.ome.tif", IMAGE, compression=compression, subifds=False, **said)
    assert reads_more(ours) and not reads_more(theirs)
    with open_slide(ours, slide_id="s") as one, open_slide(theirs, slide_id="s") as two:
        assert one.levels == two.levels and len(one.levels) == 4 and one.dimensions == two.dimensions
        assert screening_level(one, 10, 128) is not None
        a, b = (select_tiles(slide, 9, 128, pixels=True) for slide in (one, two))
        assert a.read == b.read < a.grid
        for scale in (10, 20):
            np.testing.assert_array_equal(a.coords[scale], b.coords[scale])
            np.testing.assert_array_equal(a.pixels[scale], b.pixels[scale])
        np.testing.assert_array_equal(a.density, b.density)
        for level in one.levels:
            np.testing.assert_array_equal(one.whole(level), two.whole(level))
            beyond = one.dimensions[0] - 40 * level.step, one.dimensions[1] - 40 * level.step
            np.testing.assert_array_equal(one.region(level, *beyond, 100), two.region(level, *beyond, 100))
        between = [
            np.abs(one.region(level, 101, 203, 90).astype(int) - two.region(level, 101, 203, 90)).mean()
            for level in one.levels
        ]
        assert max(between) < 1.5, "where a corner lies between pixels both interpolate"
        difference = one.thumbnail(200).astype(int) - two.thumbnail(200)
        assert difference.shape == (167, 200, 3) and np.abs(difference).mean() < 1.5


def test_a_pyramid_of_40x_is_read_from_its_own_levels(tmp_path):
    path = write_ome(tmp_path / "a.ome.tif", IMAGE, PhysicalSizeX=0.25, compression="zlib")
    with open_slide(path) as slide:
        assert [slide.source(scale, 64)[0].number for scale in (40, 20, 10, 5)] == [0, 1, 2, 3]
        np.testing.assert_array_equal(slide.read(256, 512, 10, 64), shrink(IMAGE, 4)[128:192, 64:128])
        tiles = select_tiles(slide, 5, 64, pixels=True)
        for row, pixels in enumerate(read_tiles(slide, tiles)):
            np.testing.assert_array_equal(pixels[10], tiles.pixels[10][row])
            np.testing.assert_array_equal(pixels[20], tiles.pixels[20][row])


@pytest.mark.parametrize("layout, factors", [("planar", (1, 2)), ("pages", (1, 2)), ("pages", (1,))])
def test_colours_are_found_wherever_they_lie(tmp_path, layout, factors):
    path = write_ome(tmp_path / "a.ome.tif", IMAGE, factors, "zlib", layout, PhysicalSizeX=0.5, Channel=COLOURS)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.whole(slide.levels[0]), IMAGE)
        np.testing.assert_array_equal(slide.whole(slide.levels[-1]), shrink(IMAGE, factors[-1]))
        assert len(slide.levels) == len(factors) and not slide.warnings


def test_three_channels_that_say_nothing_are_colours_and_said_to_be_taken_so(tmp_path):
    path = write_ome(tmp_path / "a.ome.tif", IMAGE, layout="pages", PhysicalSizeX=0.5, **FLAT)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.whole(slide.levels[0]), IMAGE)
        assert slide.warnings == [
            "slide a.ome.tif: its three channels are read as red, green and blue, for it names none"
        ]


def test_channels_that_are_no_colours_are_refused(tmp_path):
    path = write_ome(
        tmp_path / "a.ome.tif",
        IMAGE,
        layout="pages",
        PhysicalSizeX=0.5,
        Channel={"Name": ["DAPI", "CD3", "CD8"]},
        **FLAT,
    )
    with pytest.raises(InputError, match=r"3 pages of one channel \(DAPI, CD3, CD8\), which are not red") as caught:
        open_slide(path)
    assert_one_line(caught, "a.ome.tif")
    assert not reads_more(path)


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["zstd", "jpeg2000"])
def test_what_openslide_cannot_decode_is_decoded(tmp_path, compression):
    path = write_ome(tmp_path / "a.ome.tif", IMAGE, (1,), compression, PhysicalSizeX=0.5)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.whole(slide.levels[0]), IMAGE)
        assert slide.region(slide.levels[0], 1500, 1200, 100)[80:, :].min() == 255


def test_the_slide_is_the_largest_picture(tmp_path):
    path = tmp_path / "a.ome.tif"
    options = dict(tile=(256, 256), photometric="rgb", compression="zlib")
    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(np.full((256, 256, 3), 77, np.uint8), metadata={"axes": "YXS", "PhysicalSizeX": 8.0}, **options)
        tif.write(IMAGE, metadata={"axes": "YXS", "PhysicalSizeX": 0.5}, **options)
    with open_slide(path) as slide:
        assert slide.dimensions == (1536, 1280) and slide.mpp == 0.5
        np.testing.assert_array_equal(slide.whole(slide.levels[0]), IMAGE)


def test_a_file_cut_short_is_one_line(tmp_path):
    whole = write_ome(tmp_path / "whole.ome.tif", IMAGE, PhysicalSizeX=0.5)
    for share in (0.02, 0.3):
        path = tmp_path / "cut.ome.tif"
        path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
        with pytest.raises(InputError, match="copy the file again") as caught:
            open_slide(path)
        assert_one_line(caught, "cut.ome.tif")


@pytest.mark.parametrize("level", [0, 2])
def test_a_damaged_file_tile_is_one_line_and_an_absent_one_is_white(tmp_path, level):
    path = write_ome(tmp_path / "a.ome.tif", IMAGE, PhysicalSizeX=0.5)
    with tifffile.TiffFile(path) as file:
        page = file.series[0].levels[level].pages[0]
        offset, count, at = page.dataoffsets[0], page.databytecounts[0], page.tags["TileByteCounts"].valueoffset
        width = page.tags["TileByteCounts"].dtype.value
    data = bytearray(path.read_bytes())
    absent = bytearray(data)
    data[offset : offset + count] = bytes(count)
    path.write_bytes(data)
    with open_slide(path) as slide, pytest.raises(InputError, match="copy the file again") as caught:
        slide.whole(slide.levels[level])
    assert_one_line(caught, "a.ome.tif")
    absent[at : at + {4: 4, 16: 8}.get(width, 2)] = bytes({4: 4, 16: 8}.get(width, 2))
    path.write_bytes(absent)
    with open_slide(path) as slide:
        pixels = slide.whole(slide.levels[level])
        assert pixels[:256, :256].min() == 255 and pixels[256:, 256:].min(initial=0) < 200


@pytest.mark.slow
def test_only_slides_that_are_read_otherwise_than_before_have_another_configuration(tmp_path):
    made = {
        "plain": make_slide(tmp_path / "a.svs", 300, 300),
        "one level": write_ome(tmp_path / "b.ome.tif", IMAGE, PhysicalSizeX=0.5, **FLAT),
        "SubIFDs": write_ome(tmp_path / "c.ome.tif", IMAGE, PhysicalSizeX=0.5),
        "pages": write_ome(tmp_path / "d.ome.tif", IMAGE, layout="pages", Channel=COLOURS, **FLAT),
    }
    store = Store(tmp_path, 128)
    rows = {name: SimpleNamespace(path=str(path), mpp=0.5) for name, path in made.items()}
    found = {name: tile_config(store, row, 5, 0.05, 0, 0.0) for name, row in rows.items()}
    assert {name: config.pop("reader", "") for name, config in found.items()} == {
        "plain": "",
        "one level": "",
        "SubIFDs": "tifffile",
        "pages": "tifffile",
    }
    assert (
        set(found["plain"])
        == set(found["SubIFDs"])
        == {"k", "tile_px", "scales", "min_density", "seed", "mpp", "fallback_mpp", "black", "bytes"}
    )


def test_flat_glass_in_its_own_code_table_is_sound(tmp_path):
    """An optimised JPEG of one colour is a run of zero bits, as an erased disk is; nobody else can be asked here."""
    image = np.full((512, 512, 3), 243, np.uint8)
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        image,
        ome=True,
        tile=(256, 256),
        photometric="rgb",
        compression="jpeg",
        compressionargs={"optimize": True},
        metadata={"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"},
    )
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        page = file.pages[0]
        file.filehandle.seek(page.dataoffsets[0])
        assert b"\0" * 64 in file.filehandle.read(page.databytecounts[0])
    with open_slide(tmp_path / "a.ome.tif") as slide:
        assert (slide.region(slide.levels[0], 0, 0, 256) == 243).all()
