"""Names that become files: any name a table or a server may send is a plain one, or no file is ever made of it."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dmsmil.cohorts.fetching import slide_path
from dmsmil.cohorts.gdc import COHORTS, sort_out
from dmsmil.cohorts.ids import BARCODE, LONGEST_ID, alike, bare_name, plain_name
from dmsmil.cohorts.table import load_cohort
from dmsmil.jobs.files import InputError
from dmsmil.slides.store import Store
from tests.cohorts.gdc_server import slide_record

ODD = [
    "..",
    ".",
    "../x",
    "../../../../x",
    "/etc/passwd",
    "/",
    "a/b",
    "a/../b",
    "a\\b",
    "..\\x",
    "C:x",
    "\\\\host\\x",
    ".hidden",
    "-rf",
    "--help",
    "~",
    "~root",
    "a\x00b",
    "a\nb",
    "a\rb",
    "a\x1b[31m",
    "a\u202egvs",
    "a\u200bb",
    "a.",
    "a b.",
    "con",
    "NUL",
    "nul.svs",
    "Com1",
    "lpt9.x",
    "x" * 201,
    "é" * 150,
    "a*",
    "a?",
    "a<b>",
    "a|b",
    'a"b"',
    " ",
    "",
]
PARTS = ["..", "/", "\\", ".", "-", "~", "\x00", "\n", "\u202e", ":", " ", "con", "a", "S1", "é", "导", "x" * 90]


def drawn(count=300):
    """Names put together from the parts that break things."""
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(PARTS, rng.integers(1, 6))) for _ in range(count)]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_refused_in_one_line(name):
    with pytest.raises(InputError, match="plain file name") as caught:
        plain_name(name, LONGEST_ID)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "name", ["S1", "102", "S-1_a.b", "TCGA-A1-0001-01Z-00-DX1.AB-CD", "切片 7", "a b (1)", "console", "x" * 200]
)
def test_ordinary_names_are_taken(name):
    assert plain_name(name, LONGEST_ID) == name


def test_whatever_the_names_nothing_lies_outside_the_study(tmp_path):
    """Each id of a table is used and lies inside, or is a row of failures: features, tiles, downloads and the GDC's."""
    home, store = tmp_path / "outputs/study", Store(tmp_path / "outputs/study", 512, (10, 20), "resnet50")
    names = [*ODD, *drawn()]
    ids = [name for name in names if not set(name) & {"\x00", "\r"}] + ["S2"]  # with these it is another table, or none
    table = pd.DataFrame({"slide_id": ids, "patient_id": [f"p{i}" for i in range(len(ids))], "label": "a"})
    table.loc[::2, "label"] = "b"
    table.to_csv(tmp_path / "cohort.csv", index=False)
    cohort, failures = load_cohort(tmp_path / "cohort.csv", slides_needed=False)
    assert len(cohort) + len(failures) == len(table) and "S2" in set(cohort.slide_id)
    assert all(row["reason"].isprintable() and row["unit"].isprintable() for row in failures)
    for slide_id in cohort.slide_id:
        for path in (store.tiles_path(10, slide_id), store.features_path(20, slide_id)):
            assert Path(os.path.normpath(path)).is_relative_to(home) and path.parent.parent.parent == home / "features"
            assert len(f".{path.name}.1234567.tmp".encode()) <= 255
    for name in names:
        row = SimpleNamespace(slide_id=name, file_name=name, path="")
        try:
            path = slide_path(row, home / "slides")
        except InputError:
            continue
        assert path.parent == home / "slides" and os.path.normpath(path) == str(path)
    manifest, left_out = sort_out([slide_record(f"{name}.svs", b"x") for name in names], COHORTS["tcga-brca"])
    assert manifest.empty and len(left_out) == len(names)


@pytest.mark.parametrize(
    "written, bare",
    [
        ("S1", "S1"),
        ("S1.svs", "S1"),
        ("S1.SVS", "S1"),
        ("S1.h5", "S1"),
        ("S1.svs.h5", "S1"),
        ("S1.pt", "S1"),
        ("102.0", "102"),
        ("102", "102"),
        ("0102.00", "0102"),
        ("1.5", "1.5"),
        ("v1.0", "v1.0"),
        ("a.b", "a.b"),
        ("TCGA-1.AB-C.D", "TCGA-1.AB-C.D"),
        (".svs", ""),
    ],
)
def test_a_bare_name_has_no_suffix_of_a_file_and_no_float(written, bare):
    assert bare_name(written) == bare and bare_name(bare) == bare


def test_names_are_alike_but_for_case_spaces_and_the_coding_of_accents():
    assert alike("IDC") == alike(" i d c ") == alike("ｉｄｃ") and alike("e\u0301") == alike("é") != alike("e")
    assert alike("Straße") == alike("STRASSE")


def test_a_barcode_is_of_a_slide():
    assert BARCODE.fullmatch("TCGA-A1-0001-01Z-00-DX1") and BARCODE.fullmatch("TCGA-A1-0001-01A-01-TSA")
    assert not BARCODE.fullmatch("TCGA-A1-0001") and not BARCODE.fullmatch("TCGA-A1-0001-01Z-00-DX1.AB")
