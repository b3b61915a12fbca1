"""Slide files by name, suffix and barcode: one, or both are named; what is missing gets a hint that costs little."""

import difflib
import unicodedata
from pathlib import Path

import pandas as pd
import pytest

from dmsmil.cohorts.finding import SlideFiles, given_path
from dmsmil.cohorts.table import load_cohort

BARCODE = "TCGA-A1-0001-01Z-00-DX1"


@pytest.fixture
def cohort(tmp_path):
    """Load a cohort of these ids, beside two slides that are there; gives (path by id, reason by id)."""

    def load(*ids, **columns):
        for name in ("ok-1", "ok-2"):
            (tmp_path / f"{name}.svs").touch()
        ids = [*ids, "ok-1", "ok-2"]
        frame = pd.DataFrame(
            {"slide_id": ids, "patient_id": [f"p{i}" for i in range(len(ids))], "label": ["a"] * (len(ids) - 1) + ["b"]}
        )
        extra = {name: [*values, "", ""] for name, values in columns.items()}
        frame.assign(**extra).to_csv(tmp_path / "cohort.csv", index=False)
        found, failures = load_cohort(tmp_path / "cohort.csv")
        return dict(zip(found.slide_id, found.path)), {row["unit"]: row["reason"] for row in failures}

    def touch(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()

    load.touch, load.home = touch, tmp_path
    return load


@pytest.mark.parametrize("files", [("S3.svs", "S3.tiff"), ("batch1/S3.svs", "batch2/S3.svs"), ("a/S3.svs", "S3.NDPI")])
def test_two_files_of_one_name_are_refused_and_both_named(cohort, files):
    cohort.touch(*files)
    paths, reasons = cohort("S3")
    assert "S3" not in paths and all(name in reasons["S3"] for name in files)
    assert cohort("S3", path=[files[1]])[0]["S3"] == str(cohort.home / files[1]), "a path says which"


def test_pictures_of_scores_are_no_slides(cohort):
    """A study below the table's folder draws them, under the names of its slides."""
    cohort.touch(
        "S3.svs", "outputs/mine/qupath/S3.ome.tif", "outputs/mine/folds.csv", "outputs/new/qupath/ok-1.ome.tif"
    )
    cohort.touch("outputs/new/tables/10_apply.csv", "qupath/S4.ome.tif")
    paths, reasons = cohort("S3", "S4")
    assert not reasons and paths["S3"] == str(cohort.home / "S3.svs") and "ok-1" in paths
    assert paths["S4"] == str(cohort.home / "qupath/S4.ome.tif"), "a folder of that name may be anybody's"


def test_linked_folders_are_looked_in_once_and_what_macos_leaves_is_no_slide(cohort, tmp_path_factory):
    disk = tmp_path_factory.mktemp("disk")
    (disk / "S3.svs").touch()
    (cohort.home / "batch1").symlink_to(disk)
    (disk / "back").symlink_to(cohort.home)
    cohort.touch("._S3.svs", ".hidden/S3.svs")
    assert cohort("S3")[0]["S3"] == str(cohort.home / "batch1/S3.svs")


def test_a_path_that_cannot_be_asked_is_one_row(cohort):
    paths, reasons = cohort("S3", path=[f"{'x' * 300}.svs"])
    assert set(paths) == {"ok-1", "ok-2"} and "cannot be reached (File name too long): check the col" in reasons["S3"]


def test_an_id_with_its_suffix_says_which(cohort):
    cohort.touch("S3.svs", "S3.tiff")
    assert cohort("S3.tiff")[0]["S3.tiff"] == str(cohort.home / "S3.tiff")


@pytest.mark.parametrize(
    "slide_id, file",
    [
        ("102.0", "102.svs"),
        ("102", "102.svs"),
        ("S1.h5", "S1.svs"),
        ("S1.svs", "S1.svs"),
        ("S1", "deep/er/S1.TIF"),
        ("v1.0", "v1.0.svs"),
        (BARCODE, f"{BARCODE}.F6E9A5DF-D8FB.svs"),
        (f"{BARCODE}.F6E9A5DF-D8FB", f"{BARCODE}.F6E9A5DF-D8FB.svs"),
    ],
)
def test_ids_as_spreadsheets_tools_and_tcga_write_them_find_their_file(cohort, slide_id, file):
    cohort.touch(file)
    paths, reasons = cohort(slide_id)
    assert paths[slide_id] == str(cohort.home / file) and not reasons


def test_a_barcode_of_two_files_is_refused_and_its_patient_is_only_a_hint(cohort):
    files = [f"{BARCODE}.AAAA.svs", f"{BARCODE}.BBBB.svs"]
    cohort.touch(*files)
    _, reasons = cohort(BARCODE, BARCODE[:12])
    assert all(name in reasons[BARCODE] for name in files)
    assert f"did you mean {files[0]}?" in reasons[BARCODE[:12]]


def test_two_ways_to_write_a_path_are_one_file(cohort):
    cohort.touch("sub/x.svs")
    _, reasons = cohort("a", "b", path=["sub/x.svs", "sub/../sub/x.svs"])
    assert set(reasons) == {"a", "b"} and "slides a and b have one file, x.svs" in reasons["a"]


def test_two_ids_of_one_file_are_refused(cohort):
    cohort.touch(f"{BARCODE}.AAAA.svs", "x.svs")
    paths, reasons = cohort(BARCODE, f"{BARCODE}.AAAA", "x", "y", path=["", "", "", "x.svs"])
    assert set(reasons) == {BARCODE, f"{BARCODE}.AAAA", "x", "y"} and "have one file, x.svs" in reasons["y"]


@pytest.mark.parametrize(
    "slide_id, hint",
    [
        ("SlideA7", "SlideA_7.svs"),
        ("XlideA_7", "SlideA_7.svs"),
        ("SlideA_8", "SlideA_7.svs"),
        ("12", "0012.svs"),
        ("slidea_7", "SlideA_7.svs"),
        ("zzz", ""),
    ],
)
def test_what_a_missing_file_may_be_is_hinted(cohort, slide_id, hint):
    cohort.touch("SlideA_7.svs", "0012.svs", "Other.svs")
    reason = cohort(slide_id)[1][slide_id]
    assert reason.startswith(f"no slide file named {slide_id}.*") and (f"did you mean {hint}?" in reason) == bool(hint)


def test_a_picture_or_a_part_of_a_slide_is_said_not_to_be_read(cohort):
    cohort.touch("S1.png", "S2.svs.part", "S3.csv")
    reasons = cohort("S1", "S2", "S3")[1]
    assert "S1.png is no slide that is read (.svs, .tif" in reasons["S1"] and "S2.svs.part is no slide" in reasons["S2"]
    assert "is no slide" not in reasons["S3"]


def test_a_file_that_another_row_has_is_no_hint(cohort):
    cohort.touch("S10.svs")
    assert "did you mean" not in cohort("S10", "S1O")[1]["S1O"]


def test_the_search_for_near_names_looks_at_a_few_of_thousands(tmp_path, monkeypatch):
    seen = []
    real = difflib.get_close_matches
    monkeypatch.setattr(
        difflib, "get_close_matches", lambda word, names, *more: seen.append(len(names)) or real(word, names, *more)
    )
    for number in range(500):
        (tmp_path / f"case-{number:05d}-HE.svs").touch()
    near = SlideFiles(tmp_path).near([f"case-{number:05d}_HE" for number in range(500)], set())
    assert near == {f"case-{number:05d}_HE": f"case-{number:05d}-HE.svs" for number in range(500)}
    assert max(seen) <= 16


def test_home_and_both_folders_are_looked_in(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for name in ("me/a.svs", "table/b.svs", "slides/c.svs", "table/both.svs", "slides/both.svs"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folders = [tmp_path / "table", tmp_path / "slides"]
    wanted = {
        "~/a.svs": "me/a.svs",
        "b.svs": "table/b.svs",
        "c.svs": "slides/c.svs",
        "both.svs": "table/both.svs",
        "gone.svs": "table/gone.svs",
        str(tmp_path / "me/a.svs"): "me/a.svs",
    }
    assert {given: given_path(given, folders) for given in wanted} == {k: tmp_path / v for k, v in wanted.items()}
    assert given_path("x" * 5000, folders) == folders[0] / ("x" * 5000)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_an_accent_is_found_however_a_disk_codes_it(cohort, form):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    cohort.touch(unicodedata.normalize(form, "Müller.svs"))
    name = unicodedata.normalize(other, "Müller")
    assert Path(cohort(name)[0][name]).exists()
