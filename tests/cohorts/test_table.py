"""The cohort table: what is wrong is said, what is right can be written and read."""

import numpy as np
import pandas as pd
import pytest

from dmsmil.cohorts.checks import spelling_questions
from dmsmil.cohorts.folds import make_folds
from dmsmil.cohorts.table import describe, load_cohort, read_cohort, save_cohort, with_files
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
    rows = [
        dict(slide_id=f"s{p}-{i}", patient_id=f"p{p:03d}", label=classes[p % len(classes)], site="", path="", mpp=0.0)
        for p in range(patients)
        for i in range(1 + (p < second_slides))
    ]
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
    table = write(
        files=False, slide_id=["x", "y"], patient_id=["p", "q"], label=["a", "b"], path=["deep/one.tif", "two.tif"]
    )
    frame, failures = load_cohort(table, tmp_path / "deep")
    assert not failures and len(frame) == 2


@pytest.mark.parametrize(
    "change, reason",
    [
        (dict(label=["x", "", "y", "x"]), "no label"),
        (dict(patient_id=["p1", "", "p3", "p4"]), "no patient_id"),
        (dict(slide_id=["a", "dup", "dup", "d"]), "stands in 2 rows"),
        (dict(patient_id=["p1", "p2", "p2", "p4"], label=["x", "x", "y", "y"]), "is in two classes"),
    ],
)
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
    table = write(
        files=False,
        slide_id=["a", "b", "c", "d"],
        patient_id=list("pqrs"),
        label=["x", "y", "x", "y"],
        path=["gone.svs", "folder.svs", "c.svs", "d.svs"],
    )
    reasons = {row["unit"]: row["reason"] for row in load_cohort(table)[1]}
    assert "gone.svs does not exist" in reasons["a"] and "folder.svs is a folder" in reasons["b"]


def test_slides_are_not_needed_where_features_are_there(write, tmp_path):
    (tmp_path / "c.svs").touch()
    (tmp_path / "folder.svs").mkdir()
    table = write(
        files=False,
        slide_id=["a", "b", "c", "d"],
        patient_id=["p", "q", "r", ""],
        label=["x", "y", "x", "y"],
        path=["gone.svs", "folder.svs", "", ""],
    )
    frame, failures = load_cohort(table, slides_needed=False)
    assert list(frame.slide_id) == ["a", "b", "c"] and [row["unit"] for row in failures] == ["d"]
    assert list(frame.path) == ["", "", str(tmp_path / "c.svs")]


def test_a_slide_that_was_encoded_needs_its_file_no_more(write, tmp_path):
    """Files that were moved to an archive afterwards ended the study: no usable slide."""
    (tmp_path / "c.svs").touch()
    rows = dict(slide_id=["a", "b", "c"], patient_id=["p", "q", "r"], label=["x", "x", "y"])
    table = write(files=False, path=["gone.svs", "gone too.svs", "c.svs"], **rows)
    lines = []
    frame, failures = load_cohort(table, encoded={"a", "c"}, report=lines.append)
    said = "the file that its column 'path' names of 1 slide is not there (a): the features made before serve"
    assert [line.split(": ", 1)[1] for line in lines] == [said]
    assert list(frame.slide_id) == ["a", "c"] and [row["unit"] for row in failures] == ["b"]
    assert list(with_files(frame).slide_id) == ["c"]
    found = write(files=False, **rows)
    assert list(load_cohort(found, tmp_path / "no folder", encoded={"a", "b", "c"})[0].slide_id) == ["a", "b", "c"]
    with pytest.raises(InputError, match="the slides folder no folder does not exist"):
        load_cohort(found, tmp_path / "no folder")


@pytest.mark.parametrize(
    "columns, message",
    [
        (dict(slide=["a"], patient_id=["p"], lable=["x"]), "no column 'label': rename its column 'lable'"),
        (
            {"Case": ["p"], "Slide": ["a"], "Diagnosis": ["x"]},
            "no column 'patient_id' and no 'label': its columns are Case, Slide, Diagnosis",
        ),
        (dict(slide_id=["a", "b"], patient_id=["p", "q"], label=["x", "x"]), "only the class 'x'"),
        (dict(slide_id=[], patient_id=[], label=[]), "no rows"),
    ],
)
def test_a_useless_table_is_refused(write, columns, message):
    with pytest.raises(InputError, match=message):
        load_cohort(write(**columns))


def test_names_that_differ_in_what_nobody_sees_are_asked_about_where_a_cohort_is_read(write):
    lines = []
    patients = ["P00", "p00", "1", "01"]
    table = write(slide_id=["a", "b", "c", "d"], patient_id=patients, label=["True", "TRUE", "x", "x"])
    load_cohort(table, report=lines.append)
    asked = " ".join(line for line in lines if "differ in case, spaces, dashes or zeros alone" in line)
    for pair in ("'TRUE' (1 slide) and 'True'", "'P00' (1 slide) and 'p00'", "'01' (1 slide) and '1'"):
        assert pair in asked


def test_missing_table_folder_and_binary_rubbish(tmp_path, write):
    with pytest.raises(InputError, match="nothing.csv does not exist"):
        load_cohort(tmp_path / "nothing.csv")
    (tmp_path / "rubbish.csv").write_bytes(bytes(range(128, 256)) * 50)
    with pytest.raises(InputError, match="not a CSV"):
        load_cohort(tmp_path / "rubbish.csv")
    table = write(slide_id=["a", "b"], patient_id=["p", "q"], label=["x", "y"])
    with pytest.raises(InputError, match="slides folder .* does not exist"):
        load_cohort(table, tmp_path / "nowhere")
    with pytest.raises(InputError, match="the slides folder .*.csv is a file: name the folder that holds it"):
        load_cohort(table, table)
    with pytest.raises(InputError, match="the cohort table .* is a folder: name the table in it"):
        load_cohort(tmp_path)


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


# ------------------------------------------------------------------------------------------------ a person's table


def rows(tmp_path, text, **options):
    """Load this text as a cohort of which features are there; gives (cohort, reason by unit, lines that were said)."""
    said = []
    (tmp_path / "own.csv").write_text(text, encoding="utf-8")
    frame, failures = load_cohort(tmp_path / "own.csv", slides_needed=False, report=said.append, **options)
    return frame, {row["unit"]: row["reason"] for row in failures}, said


TWO = "S8,P8,IDC\nS9,P9,ILC\n"


def test_a_comma_at_the_end_of_each_line_shifts_nothing(tmp_path):
    frame, reasons, said = rows(tmp_path, "slide_id,patient_id,label,site\nS1,P1,IDC,A,\nS2,P2,ILC,B,\n")
    assert frame.label.to_list() == ["IDC", "ILC"] and frame.site.to_list() == ["A", "B"] and not reasons and not said


def test_a_row_of_another_length_is_left_out_by_its_number(tmp_path):
    frame, reasons, _ = rows(tmp_path, "slide_id,patient_id,label\n" + TWO + "S1,P1,IDC,NST\nS2,P2\n")
    assert frame.slide_id.to_list() == ["S8", "S9"]
    assert list(reasons) == ["row 4", "row 5"] and "row 4 has 4 cells, the header 3" in reasons["row 4"]
    with pytest.raises(InputError, match="no usable slide .1 slide left out, the first: row 2 has 2 cells"):
        rows(tmp_path, "slide_id,patient_id,label\nS2,P2\n")


@pytest.mark.parametrize("word", ["NA", "NaN", "N/A", "n/a", "Not available", "none", "[Not Available]", "Unknown", ""])
@pytest.mark.parametrize("column", ["slide_id", "patient_id", "label"])
def test_words_for_nothing_are_nothing(tmp_path, word, column):
    row = {"slide_id": "S1", "patient_id": "P1", "label": "IDC", column: word}
    frame, reasons, _ = rows(tmp_path, "slide_id,patient_id,label\n" + TWO + ",".join(row.values()) + "\n")
    assert frame.label.to_list() == ["IDC", "ILC"] and len(reasons) == 1
    assert f"no {column}" in next(iter(reasons.values())) and word in next(iter(reasons.values()))


def test_what_may_be_missing_may_be_missing(tmp_path):
    frame, reasons, _ = rows(tmp_path, "slide_id,patient_id,label,Site,MPP\nS1,P1,a,NA,n/a\nS2,P2,b,,\n")
    assert not reasons and frame.site.to_list() == ["", ""] and frame.mpp.to_list() == [0.0, 0.0]


def test_micrometres_are_converted_and_that_is_said_or_the_row_is_left_out(tmp_path):
    text = 'slide_id,patient_id,label,MPP\nS1,P1,a,"0,25"\nS2,P2,b,0.5 um\nS3,P3,a,-0.5\nS4,P4,a,20x\nS5,P5,a,0.25\n'
    frame, reasons, said = rows(tmp_path, text)
    assert frame.mpp.to_list() == [0.25, 0.5, 0.25] and list(reasons) == ["S3", "S4"]
    assert "its mpp '-0.5' is no number of micrometres a pixel" in reasons["S3"]
    assert said == [
        "own.csv: the column 'MPP' is read as mpp",
        "own.csv: mpp of 2 slides is read as micrometres a pixel, '0,25' as 0.25",
    ]


def test_what_is_not_what_a_server_has_is_left_out_for_that_reason(tmp_path):
    for name in ("S1", "S2", "S3"):
        (tmp_path / f"{name}.svs").touch()
    missed = [{"unit": "S3", "stage": "download", "reason": "is there but has 0 bytes where 9 are due"}]
    text = "slide_id,patient_id,label\nS1,P1,a\nS2,P2,b\nS3,P3,b\n"
    found, failures, _ = rows(tmp_path, text, missed=missed)
    assert list(found.slide_id) == ["S1", "S2"]
    assert failures == {"S3": missed[0]["reason"]}


@pytest.mark.parametrize("size", ["1.23E+06", "inf", "12 MB"])
def test_a_size_that_a_spreadsheet_rounded_is_its_rows_fault(tmp_path, size):
    columns = "slide_id,patient_id,label,path,file_id,md5,size\n"
    text = columns + f"S1,P1,a,S1.svs,1,2,{size}\nS2,P2,b,S2.svs,1,2,1234567.0\nS3,P3,a,S3.svs,1,2,3\n"
    (tmp_path / "mine.csv").write_text(text)
    cohort, failures = load_cohort(tmp_path / "mine.csv", fetched_later=True)
    assert list(cohort["size"]) == [1234567, 3] and cohort["size"].dtype == int
    assert [row["reason"] for row in failures] == [
        f"its size '{size}' is no whole number of bytes (a spreadsheet rounds long ones): write it out"
    ]


def test_the_size_of_a_file_is_not_taken_for_its_site(tmp_path):
    said = rows(tmp_path, "slide_id,patient_id,label,file_id,md5,size\nS1,P1,a,1,2,3\nS2,P2,b,1,2,3\n")[2]
    assert not any("size" in line for line in said)


def test_a_column_that_nearly_has_a_name_is_spoken_of(tmp_path):
    said = rows(tmp_path, "slide_id,patient_id,label,Sites\nS1,P1,a,A\nS2,P2,b,B\n")[2]
    assert said == ["own.csv: the column 'Sites' is not read; if it is the site, rename it to site"]


@pytest.mark.parametrize(
    "one, other", [("S1", "s1"), ("S1", "S1.svs"), ("S1", "S1.h5"), ("102", "102.0"), ("e\u0301", "é")]
)
def test_ids_that_would_share_their_files_are_refused(tmp_path, one, other):
    frame, reasons, _ = rows(tmp_path, f"slide_id,patient_id,label\n{TWO}{one},P1,IDC\n{other},P2,IDC\n")
    assert len(frame) == 2 and set(reasons) == {one, other}
    assert all("differ in case or suffix alone" in reason for reason in reasons.values())


@pytest.mark.parametrize("slide_id", ["../../x", "/tmp/x", "a/b", "..", "NUL", "-rf", "x" * 300])
def test_an_id_that_no_file_can_have_is_one_row(tmp_path, slide_id):
    frame, reasons, _ = rows(tmp_path, f"slide_id,patient_id,label\n{TWO}{slide_id},P1,IDC\n")
    assert len(frame) == 2 and len(reasons) == 1
    assert "a slide_id names files" in next(iter(reasons.values())) and "\n" not in next(iter(reasons.values()))


def test_a_home_folder_in_a_path_is_the_persons(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "me").mkdir()
    (tmp_path / "me/x.svs").touch()
    frame, _, _ = rows(tmp_path, "slide_id,patient_id,label,path\nS1,P1,a,~/x.svs\nS2,P2,b,\n")
    assert frame.path.to_list() == [str(tmp_path / "me/x.svs"), ""]


def test_signs_that_look_alike_rounded_ids_and_barcodes_are_asked_about():
    frame = cohort(8, 0).assign(
        label=["IDC", "IDC\u200b", "ILC", "ILC", "\ufeffIDC", "ILC", "ILC", "ILC"],
        patient_id=["P-1", "P\u20111", "P\u20131", "P\u22121", "007", "7", "1.23E+11", "x"],
    )
    asked = spelling_questions(frame)
    assert len(asked) == 4 and "'IDC\\u200b' (1 slide)" in asked[0]
    assert asked[1].count("(1 slide)") == 2 and "'007'" in asked[1] and asked[2].count("(1 slide)") == 4
    assert asked[3].startswith("the patient_id '1.23E+11' is a number as a spreadsheet rounds it, in 1 row: format")
    tcga = cohort(4, 0).assign(slide_id=[f"TCGA-A2-{i // 2:04d}-01Z-00-DX{i % 2}" for i in range(4)])
    (asked,) = spelling_questions(tcga.assign(patient_id=["a", "a", "b", "c"]))
    assert asked.startswith("2 slides are of patient TCGA-A2-0001 by their barcodes, and of 2 patients by patient_id")
    assert not spelling_questions(tcga.assign(patient_id=["a", "a", "b", "b"]))


@pytest.mark.parametrize(
    "column, meant",
    [("MPP (um/px)", "mpp"), ("spacing_at_level_0", "mpp"), ("Institution", "site"), ("center", "site")],
)
def test_a_column_by_another_word_is_said_not_to_be_read(tmp_path, column, meant):
    _, _, lines = rows(tmp_path, f"slide_id,patient_id,label,{column}\nS1,P1,a,0.25\nS2,P2,b,0.25\n")
    assert f"the column '{column}' is not read; if it is the {meant}, rename it to {meant}" in " ".join(lines)


def test_a_sign_for_nothing_is_no_patient_and_may_be_a_class(tmp_path):
    frame, failures, _ = rows(
        tmp_path, "slide_id,patient_id,label,site\nS1,P1,+,-\nS2,P2,-,A\nS3,-,+,B\nS4,P4,#REF!,B\nS5,.,-,\n"
    )
    assert frame.slide_id.to_list() == ["S1", "S2"] and frame.label.to_list() == ["+", "-"]
    assert frame.site.to_list() == ["", "A"] and len(failures) == 3


def test_names_that_differ_in_case_or_spaces_alone_are_asked_about():
    frame = cohort(8, 0).assign(
        label=["IDC", "idc", "ILC", "ILC", "I DC", "ILC", "other", "ILC"],
        patient_id=["p1", "P1", *"abcdef"],
        site=["A", "A ", *"BCDEFG"],
    )
    asked = spelling_questions(frame)
    assert [question.split("'")[0] for question in asked] == ["the classes ", "the patients ", "the sites "]
    assert (
        "'I DC' (1 slide) and 'IDC' (1 slide) and 'idc' (1 slide) differ in case, spaces, dashes or zeros alone"
        in asked[0]
    )
    assert not spelling_questions(cohort(8))
    numbers = cohort(8, 0).assign(label=[*"0011", "1.0", *"001"], patient_id=["12", "12.0", *"abcdef"])
    asked = [question.split(" (")[0] for question in spelling_questions(numbers)]
    assert asked == ["the classes '1'", "the patients '12'"]


# ------------------------------------------------------------------------------------------------ two tables, one study


@pytest.mark.parametrize(
    "name, column, said",
    [
        ("cohort.csv", "label", "the label of s0-0 is 'z' in one and 'a' in the other"),
        ("folds.csv", "label", "the label of s0-0 is 'a' in one and 'z' in the other"),
        ("cohort.csv", "patient_id", "the patient_id of s0-0 is 'z' in one and 'p000' in the other"),
        ("folds.csv", "patient_id", "the patient_id of s0-0 is 'p000' in one and 'z' in the other"),
    ],
)
def test_tables_of_a_study_that_disagree_are_refused(tmp_path, name, column, said):
    frame = cohort(8)
    save_cohort(tmp_path, frame, make_folds(frame, 2), [])
    table = pd.read_csv(tmp_path / name, dtype=str, keep_default_na=False)
    table.loc[table.slide_id == "s0-0", column] = "z"
    table.to_csv(tmp_path / name, index=False)
    with pytest.raises(InputError, match=said) as caught:
        read_cohort(tmp_path)
    assert "run 00_cohort again" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.iloc[1:],
        lambda t: pd.concat([t, t.iloc[:1]]),
        lambda t: t.drop(columns="label"),
        lambda t: t.assign(slide_id=t.slide_id.str.replace("s0-0", "x")),
    ],
)
@pytest.mark.parametrize("name", ["cohort.csv", "folds.csv"])
def test_tables_of_a_study_with_other_slides_are_refused(tmp_path, name, spoil):
    frame = cohort(8)
    save_cohort(tmp_path, frame, make_folds(frame, 2), [])
    spoil(pd.read_csv(tmp_path / name)).to_csv(tmp_path / name, index=False)
    with pytest.raises(InputError, match="cohort.csv (and|or) folds.csv of the study .*run 00_cohort again"):
        read_cohort(tmp_path)


def test_an_id_in_a_studys_own_tables_that_leads_elsewhere_is_refused(tmp_path):
    frame = cohort(8)
    frame.loc[0, "slide_id"] = "../../x"
    save_cohort(tmp_path, frame, make_folds(frame, 2), [])
    with pytest.raises(InputError, match="not a plain file name"):
        read_cohort(tmp_path)
