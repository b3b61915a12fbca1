"""What may be predicted: a slide, a folder, a table with or without labels; and what is said of what may not."""

import pytest

from dmsmil.apply.incoming import read_slides
from dmsmil.jobs.files import InputError
from tests.conftest import assert_one_line

CLASSES = ["IDC", "ILC"]


@pytest.fixture
def folder(tmp_path):
    """A folder of files that are called slides."""
    for name in ("a.svs", "below/b.tiff", "TCGA-A7-A0CD-01Z-00-DX1.abc.svs", "notes.txt"):
        path = tmp_path / "slides" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "slides"


def table(folder, text):
    (folder.parent / "mine.csv").write_text(text)
    return folder.parent / "mine.csv"


def read(place, **options):
    return read_slides(place, CLASSES, report=lambda line: None, **options)


def test_a_folder_is_all_its_slides_by_their_names(folder):
    slides, failures = read(folder)
    assert list(slides.slide_id) == ["TCGA-A7-A0CD-01Z-00-DX1.abc", "a", "b"] and not failures
    assert list(slides.patient_id) == ["TCGA-A7-A0CD", "", ""] and (slides.label == "").all()
    assert list(slides.columns) == ["slide_id", "patient_id", "label", "site", "path", "mpp"]


def test_one_slide_is_itself(folder):
    slides, _ = read(folder / "a.svs")
    assert list(slides.slide_id) == ["a"] and slides.path[0] == str(folder / "a.svs")


def test_the_patient_of_a_barcode_is_known_in_a_table_too(folder):
    name = "TCGA-A7-A0CD-01Z-00-DX1.abc"
    for patient in ("", name, name[:23]):  # CLAM's habit, where nothing is known of patients: case_id = slide_id
        slides, _ = read(table(folder, f"slide_id,case_id\n{name},{patient}\na,\nb,mine\n"))
        told = slides.set_index("slide_id").patient_id.to_dict()
        assert told == {name: "TCGA-A7-A0CD", "a": "", "b": "mine"}, patient


@pytest.mark.parametrize("name", ["photo.png", "scan.qptiff"])
def test_a_file_that_is_neither_is_said_to_be(folder, name):
    (folder / name).touch()
    with pytest.raises(InputError, match=f"{name} is no slide that is read .*.svs.* and no table .*.csv") as caught:
        read(folder / name)
    assert_one_line(caught, name)


def test_two_files_of_one_name_are_rows_and_the_others_go_on(folder):
    (folder / "below/A.svs").write_text("")
    slides, failures = read(folder)
    assert "a" not in set(slides.slide_id) and len(slides) == 2
    assert {row["unit"] for row in failures} == {"a", "A"} and "2 slide files are called" in failures[0]["reason"]


@pytest.mark.parametrize(
    "text, patients, labels",
    [
        ("slide_id\na\nb\n", ["", ""], ["", ""]),
        ("slide_id,label\na,\nb,ILC\n", ["", ""], ["", "ILC"]),
        ("slide_id;patient_id\na;p\nb;q\n", ["p", "q"], ["", ""]),
        ("slide_id,patient_id,label\na,p,IDC\nb,p,IDC\n", ["p", "p"], ["IDC", "IDC"]),
    ],
)
def test_a_table_needs_no_more_than_the_slides(folder, text, patients, labels):
    slides, failures = read(table(folder, text))
    assert list(slides.slide_id) == ["a", "b"] and not failures
    assert list(slides.patient_id) == patients and list(slides.label) == labels


def test_a_row_without_a_file_is_a_failure(folder):
    slides, failures = read(table(folder, "slide_id\na\nlost\n"))
    assert list(slides.slide_id) == ["a"] and failures[0]["unit"] == "lost"


@pytest.mark.parametrize(
    "text, said",
    [
        ("slide_id,label\na,ductal\n", "mine.csv has the label 'ductal', and the study's classes are IDC, ILC"),
        ("name\na\n", "no column 'slide_id'"),
        ("slide_id\nlost\n", "no usable slide .*nothing can be said of it"),
        ("slide_id\n", "no rows"),
    ],
)
def test_a_table_that_will_not_do_is_one_line(folder, text, said):
    with pytest.raises(InputError, match=said) as caught:
        read(table(folder, text))
    assert_one_line(caught, "mine.csv")


def test_nothing_there_is_one_line(tmp_path):
    with pytest.raises(InputError, match="there is no nowhere to apply to: name a slide, a folder of slides"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="the folder empty has no slide file"):
        read(tmp_path / "empty")


def test_features_need_no_slide_files(folder):
    slides, failures = read(table(folder, "slide_id,patient_id,label\nfar,p,IDC\n"), slides_needed=False)
    assert list(slides.slide_id) == ["far"] and slides.path[0] == "" and not failures


def test_a_study_still_needs_its_labels(folder):
    from dmsmil.cohorts.table import load_cohort

    with pytest.raises(InputError, match="no column 'patient_id'"):
        load_cohort(table(folder, "slide_id\na\n"), folder)
    with pytest.raises(InputError, match="only the class 'IDC'.*at least two classes"):
        load_cohort(table(folder, "slide_id,patient_id,label\na,p,IDC\n"), folder)
