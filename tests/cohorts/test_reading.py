"""Tables as people save them: nothing shifts, what is certain is read, the rest is one line that says what to do."""

import codecs
import zipfile

import pandas as pd
import pytest

from dmsmil.cohorts.reading import MISSING, micrometres, need_columns, read_table
from dmsmil.jobs.files import InputError
from tests.conftest import assert_one_line

TEXT = "slide_id,patient_id,label,site\nS1,P1,导管癌,Zürich\nS2,P2,小叶癌,Wien\n"
WANTED = [["S1", "P1", "导管癌", "Zürich"], ["S2", "P2", "小叶癌", "Wien"]]


def read(path, content):
    path = path / "cohort.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path)


@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        TEXT.replace(",", ";"),
        TEXT.replace(",", "\t"),
        TEXT.replace(",", " , "),
        TEXT.replace("\n", "\r\n"),
        TEXT.replace("\n", ",\n"),
        TEXT.replace("\n", ",,,\n"),
        TEXT.replace("\nS", ",\nS", 1),  # the header alone
        TEXT.replace("Wien\n", "Wien,\n"),  # one row alone
        TEXT + ",,,\n\n,,,\n",
        "\n" + TEXT,
        "sep=;\n" + TEXT.replace(",", ";"),
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.replace(",", "\t").encode("utf-16-be"),
        TEXT.replace("slide_id", "Slide ID").replace("patient_id", "CASE-ID").replace("site", "SITE"),
    ],
    ids=range(16),
)
def test_what_a_spreadsheet_saves_is_read_as_meant(tmp_path, content):
    table = read(tmp_path, content)
    assert list(table.frame) == ["slide_id", "patient_id", "label", "site"] and not table.bad
    assert table.frame.to_numpy().tolist() == WANTED


def test_what_is_not_seen_and_lines_that_say_what_columns_are_change_nothing(tmp_path):
    text = TEXT.replace("S1", "S1\u200b").replace("P1", "\u2060P1").replace("Zürich", '"Zürich\n"')
    assert read(tmp_path, "#Slide\tPatient\n#STRING\n" + text).frame.to_numpy().tolist() == WANTED
    assert read(tmp_path, TEXT.replace("Wien", '"Wien\n III"')).frame.site.to_list() == ["Zürich", "Wien III"]


def test_another_separator_and_a_header_of_two_lines_are_one_line(tmp_path):
    table = read(tmp_path, TEXT.replace(",", "|"))
    with pytest.raises(InputError, match="its columns are separated by |: use commas") as caught:
        need_columns(table.frame, ("slide_id",), table.header, "cohort.csv")
    assert_one_line(caught, "cohort.csv")
    table = read(tmp_path, 'name,"what\nit is"\nS1,a\n')
    with pytest.raises(InputError, match="its columns are name, what it is") as caught:
        need_columns(table.frame, ("slide_id",), table.header, "cohort.csv")
    assert_one_line(caught, "cohort.csv")


def test_a_separator_inside_a_name_does_not_decide(tmp_path):
    table = read(tmp_path, 'slide_id;patient_id;label;"notes, long, and, longer"\nS1;P1;"a;b";x\n')
    assert table.frame.iloc[0].to_list() == ["S1", "P1", "a;b", "x"]


def test_rows_of_another_length_are_told_by_the_number_that_a_spreadsheet_shows(tmp_path):
    table = read(tmp_path, "slide_id,patient_id,label,site\n\nS1,P1,duct,al,A\nS2,P2,b,B\nS3,P3\nS4,P4,b,B,\n")
    assert list(table.bad) == [3, 5] and table.frame.slide_id.to_dict() == {4: "S2", 6: "S4"}
    assert "row 3 has 5 cells, the header 4" in table.bad[3] and "row 5 has 2 cells" in table.bad[5]


def test_an_index_beside_the_table_is_no_column_of_ours(tmp_path):
    """As pandas writes it: the first column has no name, and stays where CLAM's boolean splits have their ids."""
    frame = pd.DataFrame({"slide_id": ["a", "b"], "label": ["x", "y"]})
    table = read(tmp_path, frame.to_csv())
    assert list(table.frame) == ["", "slide_id", "label"] and table.frame.slide_id.to_list() == ["a", "b"]


@pytest.mark.parametrize(
    "content, said",
    [
        ("slide_id,patient_id,label\nS1,P1,Grün\n".encode("cp1252"), "byte 0xfc in line 2.*CSV UTF-8"),
        ("slide_id,patient_id,label\nS1,P1,导管癌\n".encode("gb18030"), "in line 2.*CSV UTF-8"),
        ("slide_id,label\nS1,a\n".encode("utf-16-le"), "zero bytes.*CSV UTF-8"),
        (b"\xd0\xcf\x11\xe0" + bytes(99), "is a workbook.*Excel: Save As"),
        (bytes(range(128, 256)) * 9, "is not a CSV table in UTF-8"),
        (
            "slide_id,case_id,patient_id,label\nS1,C1,P1,a\n",
            "two columns for patient_id .'case_id' and 'patient_id'.: rem",
        ),
        ("slide_id,patient_id,label,Label\nS1,C1,a,b\n", "two columns for label .'label' and 'Label'"),
        ('slide_id,patient_id,label\nS1,P1,"a\nS2,P2,b\n', "a quote that does not end"),
        ("\n\n", "is empty"),
        ("", "is empty"),
    ],
)
def test_what_is_not_certain_is_one_line(tmp_path, content, said):
    with pytest.raises(InputError, match=said) as caught:
        read(tmp_path, content)
    assert_one_line(caught, "cohort.csv")


def test_a_workbook_is_told_what_it_is_whatever_its_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "cohort.csv", "w") as book:
        book.writestr("xl/workbook.xml", "<workbook/>")
    with pytest.raises(InputError, match="is a workbook, not a CSV table: open it and save it as CSV in UTF-8"):
        read_table(tmp_path / "cohort.csv")


def test_columns_of_another_case_are_taken_and_said(tmp_path):
    table = read(tmp_path, "slide_id,case_id,label,MPP,Site,Note\nS1,P1,a,0.25,A,x\n")
    assert list(table.frame) == ["slide_id", "patient_id", "label", "mpp", "site", "Note"]
    assert table.notes == [f"cohort.csv: the column '{name}' is read as {name.lower()}" for name in ("MPP", "Site")]


@pytest.mark.parametrize(
    "text, value",
    [
        ("0.25", 0.25),
        ("0,25", 0.25),
        (".5", 0.5),
        ("0.5 um", 0.5),
        ("0,2527µm", 0.2527),
        ("0.25 μm/px", 0.25),
        ("0.5 um / pixel", 0.5),
        ("0.5 microns", 0.5),
        ("2.5e-1", 0.25),
        ("1", 1.0),
        ("0", 0.0),
    ],
)
def test_micrometres_as_people_write_them(text, value):
    assert micrometres(text) == value


@pytest.mark.parametrize("text", ["-0.5", "0.5 nm", "0.5 mm", "20x", "1,000.5", "0.25;0.25", "nan", "inf", "0 25", ""])
def test_what_is_no_number_of_micrometres(text):
    with pytest.raises(ValueError):
        micrometres(text)


def test_words_for_nothing_are_lower_case():
    assert all(word == word.lower().strip() for word in MISSING) and {"na", "n/a", "nan", "not available"} <= MISSING
