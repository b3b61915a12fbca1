"""DICOM slides: a folder of one series is a slide, by its path, its name, or what the label of its glass says."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dmsmil.apply.incoming import read_slides
from dmsmil.cohorts.dicom import CONTAINER, IMAGE_TYPE, MODALITY, SERIES, find_series, header, slide_in
from dmsmil.cohorts.finding import SlideFiles, called
from dmsmil.cohorts.table import load_cohort
from dmsmil.jobs.files import ROOT, InputError
from dmsmil.slides.reader import open_slide
from dmsmil.slides.tiles import select_tiles
from tests.conftest import assert_one_line

DICOM = ROOT / "tests" / "slides" / "dicom"
UID = "1.2.826.0.1.3680043.8.498"
LARGEST = {"S1": f"{UID}.10007.dcm", "S2": f"{UID}.20007.dcm"}
ITEM_END, SEQUENCE_END = (struct.pack("<HHI", 0xFFFE, part, 0) for part in (0xE00D, 0xE0DD))
BARCODE = "TCGA-A1-0001-01Z-00-DX1"


def element(tag: int, kind: str, value: bytes, length: int | None = None) -> bytes:
    """A data element in explicit VR, little-endian."""
    long = kind in ("SQ", "UN", "OB")
    size = struct.pack("<I" if long else "<H", len(value) if length is None else length)
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + kind.encode() + (b"\0\0" if long else b"") + size + value


def item(value: bytes, end: bool) -> bytes:
    """An item of a sequence, with its length or with a delimiter behind it."""
    length = 0xFFFFFFFF if end else len(value)
    return struct.pack("<HHI", 0xFFFE, 0xE000, length) + value + (ITEM_END if end else b"")


def text(value: str) -> bytes:
    return value.encode() + b"\0" * (len(value) % 2)


def write_header(
    path: Path,
    series: str,
    container: str,
    kind: str = "VOLUME",
    modality: str = "SM",
    size: int = 0,
    syntax: str = "1.2.840.10008.1.2.4.50",
    before: bytes = b"",
) -> Path:
    """A DICOM file of no more than what says whose it is, and `size` bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        bytes(128)
        + b"DICM"
        + element(0x00020010, "UI", text(syntax))
        + element(IMAGE_TYPE, "CS", text(f"ORIGINAL\\PRIMARY\\{kind}\\NONE"))
        + element(MODALITY, "CS", text(modality))
        + before
        + element(SERIES, "UI", text(series))
        + element(CONTAINER, "LO", text(container))
        + bytes(size)
    )
    return path


@pytest.fixture
def cohort(tmp_path):
    """Load a table of these ids and paths, beside a slide that is there; gives (path by id, reason by id)."""

    def load(ids, paths=None, slides=""):
        (tmp_path / "ok.svs").touch()
        frame = pd.DataFrame(
            {
                "slide_id": [*ids, "ok"],
                "patient_id": [*ids, "ok"],
                "label": ["a"] * len(ids) + ["b"],
                "path": [*(paths or [""] * len(ids)), "ok.svs"],
            }
        )
        frame.to_csv(tmp_path / "cohort.csv", index=False)
        try:
            found, failures = load_cohort(tmp_path / "cohort.csv", slides)
        except InputError as error:
            return {}, {ids[0]: str(error)}
        return dict(zip(found.slide_id, found.path)), {row["unit"]: row["reason"] for row in failures}

    return load


def test_headers_say_series_label_and_kind():
    told = {path.name: header(path) for path in DICOM.rglob("*.dcm")}
    assert len(told) == 6 and not header(DICOM / "README.md")
    for name, one in told.items():
        case = "S" + name.split(".")[-2][0]
        assert one[SERIES] == f"{UID}.{case[1]}0002" and one[CONTAINER] == f"CASE-{case}" and one[MODALITY] == "SM"
        assert ("LABEL" if name.endswith("9.dcm") else "VOLUME") in one[IMAGE_TYPE]


@pytest.mark.parametrize("end", [True, False])
def test_sequences_before_the_series_are_passed_over_with_what_they_say(tmp_path, end):
    """A sequence that refers to another series holds the same tags."""
    other = element(SERIES, "UI", text("1.9.9")) + element(0x00081155, "UI", text("1.8"))
    inner = element(0x00081199, "SQ", item(other, end) + (SEQUENCE_END if end else b""), 0xFFFFFFFF if end else None)
    outer = element(
        0x00081115,
        "SQ",
        item(other + inner, end) + item(b"", end) + (SEQUENCE_END if end else b""),
        0xFFFFFFFF if end else None,
    )
    path = write_header(tmp_path / "a.dcm", "1.2.3", "glass", before=outer)
    assert header(path)[SERIES] == "1.2.3" and header(path)[CONTAINER] == "glass"


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"])
def test_what_is_written_otherwise_says_nothing(tmp_path, syntax):
    assert SERIES not in header(write_header(tmp_path / "a.dcm", "1.2.3", "glass", syntax=syntax))
    cut = write_header(tmp_path / "b.dcm", "1.2.3", "glass")
    cut.write_bytes(cut.read_bytes()[:170])
    assert SERIES not in header(cut) and header(tmp_path / "gone.dcm") == {}


def test_a_folder_of_one_series_is_a_slide_with_its_tiles(cohort, tmp_path):
    shutil.copytree(DICOM / "S1", tmp_path / "scans/S1")
    paths, reasons = cohort(["case 1"], ["scans/S1"])
    assert not reasons and paths["case 1"] == str(tmp_path / "scans/S1" / LARGEST["S1"])
    with open_slide(paths["case 1"]) as slide:
        assert slide.dimensions == (320, 256) and slide.mpp == 0.5 and len(slide.levels) == 2
        tiles = select_tiles(slide, 4, 64)
        assert len(tiles.density) == 4
        inside = tiles.coords[20] - tiles.coords[10]
        assert inside.min() >= 0 and inside.max() <= 64
    for path in (tmp_path / "scans/S1").iterdir():  # a table may still name any file of it
        assert cohort(["case 1"], [str(path)])[0]["case 1"] == str(path)
        with open_slide(path) as other, open_slide(paths["case 1"]) as slide:
            np.testing.assert_array_equal(other.whole(other.levels[0]), slide.whole(slide.levels[0]))


def test_several_series_in_a_folder_are_named(cohort, tmp_path):
    for name in LARGEST:
        shutil.copytree(DICOM / name, tmp_path / "mixed", dirs_exist_ok=True)
    with pytest.raises(
        InputError, match="the folder mixed holds 2 DICOM slides, CASE-S1 .* and CASE-S2 .*: name a file"
    ) as caught:
        slide_in(tmp_path / "mixed")
    assert_one_line(caught, "mixed")
    reason = cohort(["one"], ["mixed"])[1]["one"]
    assert "mixed holds 2 DICOM slides" in reason and LARGEST["S1"] in reason and LARGEST["S2"] in reason


def test_a_folder_without_a_slide_is_said(cohort, tmp_path):
    write_header(tmp_path / "report/a.dcm", "1.2.3", "", modality="SR")
    assert "report is a folder without a DICOM slide: check the column 'path'" in cohort(["one"], ["report"])[1]["one"]


@pytest.mark.parametrize("slide_id", ["S1", "CASE-S1", f"{UID}.10002", f"{UID}.10007", f"{UID}.10007.dcm"])
def test_a_slide_is_found_by_its_folder_its_label_its_series_or_a_file(cohort, tmp_path, slide_id):
    shutil.copytree(DICOM, tmp_path / "scans")
    paths, reasons = cohort([slide_id], slides=tmp_path / "scans")
    assert not reasons and paths[slide_id] == str(tmp_path / "scans/S1" / LARGEST["S1"])


def test_in_a_folder_of_many_slides_the_label_tells_and_the_folder_does_not(cohort, tmp_path):
    for name in LARGEST:
        shutil.copytree(DICOM / name, tmp_path / "scans/batch", dirs_exist_ok=True)
    paths, reasons = cohort(["CASE-S1", "CASE-S2", "batch"], slides=tmp_path / "scans")
    assert {Path(paths[f"CASE-{name}"]).name for name in LARGEST} == set(LARGEST.values()) and "batch" in reasons
    assert [path.name for path in SlideFiles(tmp_path / "scans").paths] == sorted(LARGEST.values())


def test_slides_of_which_only_files_are_known_are_called_by_their_labels():
    slides, failures = read_slides(DICOM, ["a", "b"], report=lambda line: None)
    assert slides.slide_id.tolist() == ["CASE-S1", "CASE-S2"] and not failures
    assert [Path(path).name for path in slides.path] == sorted(LARGEST.values())
    one, _ = read_slides(DICOM / "S1" / f"{UID}.10009.dcm", ["a", "b"], report=lambda line: None)
    assert one.slide_id.tolist() == ["CASE-S1"] and called(Path("x/S1.ome.tif")) == "S1"


def test_tcga_as_the_commons_lays_it_out(cohort, tmp_path):
    """collection/patient/study/series/file: all but the glass is named by UIDs, and the glass by its barcode."""
    for number, barcode in enumerate((BARCODE, BARCODE.replace("0001", "0002"))):
        folder = tmp_path / f"idc/tcga_brca/{barcode[:12]}/1.3.{number}/SM_1.4.{number}"
        for level in range(3):
            write_header(
                folder / f"1.5.{number}.{level}.dcm",
                f"1.4.{number}",
                barcode,
                size=1000 - level,
                kind="VOLUME" if level else "LABEL",
            )
    for slide_id in (BARCODE, f"{BARCODE}.F6E9A5DF-D8FB"):
        paths, reasons = cohort([slide_id], slides=tmp_path / "idc")
        assert Path(paths[slide_id]).name == "1.5.0.1.dcm" and not reasons


def test_a_label_of_two_slides_is_refused_and_both_named(cohort, tmp_path):
    for name in ("a", "b"):
        write_header(tmp_path / f"{name}/{name}1.dcm", f"1.2.{name}", "glass 1")
    reason = cohort(["glass 1"])[1]["glass 1"]
    assert "a/a1.dcm" in reason and "b/b1.dcm" in reason
    assert [one.uid for one in find_series(tmp_path.rglob("*.dcm"))] == ["1.2.a", "1.2.b"]


@pytest.mark.parametrize("slide_id", ["S1", "S1.ome", "S1.ome.tif", "S1.tif"])
@pytest.mark.parametrize("file", ["S1.ome.tif", "S1.ome.tiff", "S1.OME.TIF"])
def test_an_ome_tiff_is_found_by_its_name(cohort, tmp_path, slide_id, file):
    (tmp_path / file).touch()
    assert cohort([slide_id])[0][slide_id] == str(tmp_path / file)
