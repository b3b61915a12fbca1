"""The cohort table: what is wrong is said, what is right can be written and read."""

import numpy as np
import pandas as pd
import pytest

from dmsmil.cohorts.folds import make_folds
from dmsmil.cohorts.table import describe, load_cohort, read_cohort, save_cohort
from dmsmil.jobs.failures import read_failures
from dmsmil.jobs.files import InputError


@pytest.fixture
def write(tmp_path):
    """Write a cohort CSV (and empty slide files for it) from a column -> values dict; returns its path."""
    def writer(name="cohort.csv", files=True, **columns):
        frame = pd.DataFrame(columns)
        frame.to_csv(tmp_path / name, index=False)
        if files:
            for slide_id in frame.get("slide_id", []):
                (tmp_path / f"{slide_id}.svs").touch()
        return tmp_path / name
    return writer


def cohort(patients=20, second_slides=5, classes=("a", "b")):
    """patients alternating between classes, the first `second_slides` of them with two slides."""
    rows = [dict(slide_id=f"s{p}-{i}", patient_id=f"p{p:03d}", label=classes[p % len(classes)], site="", path="",
                 mpp=0.0) for p in range(patients) for i in range(1 + (p < second_slides))]
    return pd.DataFrame(rows)


def test_reads_a_table_and_finds_the_files(write):
    frame, failures = load_cohort(write(slide_id=["b", "a"], case_id=["p2", "p1"], label=["x", "y"]))
    assert list(frame.slide_id) == ["a", "b"] and list(frame.patient_id) == ["p1", "p2"] and not failures
    assert all(frame.path.str.endswith(".svs")) and (frame.mpp == 0).all()


def test_a_slide_id_may_carry_its_suffix_and_dots(write, tmp_path):
    (tmp_path / "TCGA-1.abc.svs").touch()
    (tmp_path / "x.svs").touch()
    table = write(files=False, slide_id=["TCGA-1.abc", "x.svs"], patient_id=["p", "q"], label=["a", "b"])
    assert not load_cohort(table)[1]


def test_path_column_and_slides_folder(write, tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("one", "two"):
        (tmp_path / f"deep/{name}.tif").touch()
    table = write(files=False, slide_id=["x", "y"], patient_id=["p", "q"], label=["a", "b"],
                  path=["deep/one.tif", "two.tif"])
    frame, failures = load_cohort(table, tmp_path / "deep")
    assert not failures and len(frame) == 2


@pytest.mark.parametrize("change, reason", [
    (dict(label=["x", "", "y", "x"]), "no label"),
    (dict(patient_id=["p1", "", "p3", "p4"]), "no patient_id"),
    (dict(slide_id=["a", "dup", "dup", "d"]), "stands in 2 rows"),
    (dict(patient_id=["p1", "p2", "p2", "p4"], label=["x", "x", "y", "y"]), "is in two classes"),
])
def test_a_bad_row_is_left_out_with_its_reason(write, change, reason):
    columns = dict(slide_id=list("abcd"), patient_id=["p1", "p2", "p3", "p4"], label=["x", "x", "y", "y"]) | change
    frame, failures = load_cohort(write(**columns))
    assert failures and all(reason in row["reason"] for row in failures)
    assert len(frame) + len(failures) == 4
    assert "\n" not in failures[0]["reason"]


def test_missing_file_and_folder_in_its_place(write, tmp_path):
    (tmp_path / "folder.svs").mkdir()
    for name in "cd":
        (tmp_path / f"{name}.svs").touch()
    table = write(files=False, slide_id=["a", "b", "c", "d"], patient_id=list("pqrs"), label=["x", "y", "x", "y"],
                  path=["gone.svs", "folder.svs", "c.svs", "d.svs"])
    reasons = {row["unit"]: row["reason"] for row in load_cohort(table)[1]}
    assert "gone.svs does not exist" in reasons["a"] and "folder.svs is a folder" in reasons["b"]


def test_slides_are_not_needed_where_features_are_there(write, tmp_path):
    (tmp_path / "c.svs").touch()
    (tmp_path / "folder.svs").mkdir()
    table = write(files=False, slide_id=["a", "b", "c", "d"], patient_id=["p", "q", "r", ""],
                  label=["x", "y", "x", "y"], path=["gone.svs", "folder.svs", "", ""])
    frame, failures = load_cohort(table, slides_needed=False)
    assert list(frame.slide_id) == ["a", "b", "c"] and [row["unit"] for row in failures] == ["d"]
    assert list(frame.path) == ["", "", str(tmp_path / "c.svs")]


@pytest.mark.parametrize("columns, message", [
    (dict(slide=["a"], patient_id=["p"], lable=["x"]), "no column 'label': rename its column 'lable'"),
    (dict(slide_id=["a", "b"], patient_id=["p", "q"], label=["x", "x"]), "only the class 'x'"),
    (dict(slide_id=[], patient_id=[], label=[]), "no rows"),
])
def test_a_useless_table_is_refused(write, columns, message):
    with pytest.raises(InputError, match=message):
        load_cohort(write(**columns))


def test_missing_table_folder_and_binary_rubbish(tmp_path, write):
    with pytest.raises(InputError, match="nothing.csv does not exist"):
        load_cohort(tmp_path / "nothing.csv")
    (tmp_path / "rubbish.csv").write_bytes(bytes(range(128, 256)) * 50)
    with pytest.raises(InputError, match="not a CSV"):
        load_cohort(tmp_path / "rubbish.csv")
    table = write(slide_id=["a", "b"], patient_id=["p", "q"], label=["x", "y"])
    with pytest.raises(InputError, match="slides folder .* does not exist"):
        load_cohort(table, tmp_path / "nowhere")


def test_save_and_read_back(tmp_path):
    frame = cohort(8)
    frame.loc[0, "label"] = "NA"  # a class may be called NA
    frame["label"] = np.where(frame.label == "NA", "a", frame.label)
    folds = make_folds(frame, 2)
    save_cohort(tmp_path, frame, folds, [dict(unit="x", stage="cohort", reason="r", traceback="t")])
    back, back_folds = read_cohort(tmp_path)
    pd.testing.assert_frame_equal(back, frame)
    pd.testing.assert_frame_equal(back_folds, folds)
    assert list(read_failures(tmp_path).unit) == ["x"]
    with pytest.raises(InputError, match="run 00_cohort first"):
        read_cohort(tmp_path / "elsewhere")


def test_describe_counts_patients_and_slides():
    table = describe(cohort(20, 5))
    assert table.patients.sum() == 20 and table.slides.sum() == 25
