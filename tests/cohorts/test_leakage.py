"""The audit counts what parts share: against sets counted by hand, and as published lists are known to leak."""

from pathlib import Path

import pandas as pd
import pytest

from dmsmil.cohorts.folds import make_folds
from dmsmil.cohorts.leakage import audit_sentences, audit_splits, audit_summary, duplicates, leakage
from tests.cohorts.test_table import cohort

MANIFESTS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "manifests"
PUBLIC = {"brca": [12, 8, 10, 8, 8, 4, 15, 9, 13, 4], "lung": [7, 12, 8, 10, 4, 6, 7, 8, 9, 12]}  # LANDSCAPE.md, 3


def public(name):
    if not MANIFESTS.is_dir():
        pytest.skip("the public splits in ../shared/data/manifests are not there")
    return MANIFESTS / f"hipt_splits_tcga_{name}"


def leaky():
    """Two folds of six slides: patient q is trained on and tested in fold 0, in train and val in fold 1."""
    folds = pd.DataFrame(
        {
            "slide_id": list("abcdef"),
            "patient_id": list("pqqrst"),
            "label": list("xxxyyy"),
            "fold_0": ["train", "train", "test", "val", "test", ""],
            "fold_1": ["test", "train", "val", "test", "train", "train"],
        }
    )
    frame = folds[["slide_id", "patient_id", "label"]].assign(site=["A", "A", "A", "B", "B", ""], path="", mpp=0.0)
    return folds, frame


def clam_folder(path, *folds):
    """A folder of CLAM's splits: each fold a dict part -> names."""
    path.mkdir()
    for i, parts in enumerate(folds):
        pd.DataFrame({part: pd.Series(names, dtype=str) for part, names in parts.items()}).to_csv(
            path / f"splits_{i}.csv"
        )
    return path


def test_the_audit_counts_patients_and_sites_by_hand():
    folds, frame = leaky()
    audit = leakage(folds, frame)
    keys = ["train", "val", "test", "train & val", "train & test", "rest & test"]
    assert audit.patients[keys].to_numpy().tolist() == [[2, 1, 2, 0, 1, 1], [3, 1, 2, 1, 0, 0]]
    assert audit.sites[keys].to_numpy().tolist() == [[1, 1, 2, 0, 1, 2], [2, 1, 2, 1, 2, 2]]  # f has no site
    assert "sites" not in leakage(folds) and "sites" not in leakage(folds, frame.assign(site=""))
    pd.testing.assert_frame_equal(leakage(folds)["patients"], audit["patients"])


def test_the_audit_sees_a_leak_and_sound_folds_have_none():
    table = make_folds(cohort(20, 20), 2)
    assert leakage(table).patients["rest & test"].sum() == 0
    first = table.index[table.fold_0 == "test"][0]
    table.loc[first, "fold_0"] = "train"
    assert leakage(table).patients["rest & test"].to_list() == [1, 0]


def test_sentences_follow_from_the_numbers():
    folds, frame = leaky()
    said = audit_sentences(leakage(folds, frame))
    assert "**Patients leak**: 0 to 1 of the 2 patients" in said and "in fold 0." in said
    assert "0 to 1 patients a fold are in both training and validation" in said
    assert "Of the 2 sites a fold tests, 2 are in its training" in said and said.endswith(
        "Copies were not looked for: no two slides have a file here, or an md5 in the table."
    )
    sound = make_folds(cohort(20, 5), 2)
    assert audit_sentences(leakage(sound)).startswith("- No patient that a fold tests is in its training or validation")
    apart = cohort(20, 5).assign(site="A")
    apart.loc[apart.slide_id.isin(sound.slide_id[sound.fold_0 == "test"]), "site"] = "B"
    assert "- No site that a fold tests is in" in audit_sentences(leakage(sound, apart))


def test_slides_of_one_patient_by_their_barcodes_leak_whatever_the_table_calls_them():
    names = [f"TCGA-A2-{number:04d}-01Z-00-DX{slide}" for number in range(8) for slide in (1, 2)]
    frame = pd.DataFrame({"slide_id": names, "patient_id": names, "label": ["x", "x", "y", "y"] * 4}).assign(site="")
    folds = frame.assign(fold_0=["train", "test"] * 8, fold_1=["train"] * 8 + ["test"] * 8).drop(columns="site")
    audit = leakage(folds, frame)
    assert audit.patients["train & test"].to_list() == [8, 0] and audit.patients["test"].to_list() == [8, 4]
    assert "**Patients leak**" in audit_sentences(audit)
    named = folds.assign(patient_id=[f"p{i // 2}" for i in range(16)])
    pd.testing.assert_frame_equal(leakage(named, frame), audit)
    joined = named.assign(patient_id=["q", "p0", *named.patient_id[2:15], "q"])  # q: of the first patient, and the last
    assert leakage(joined, frame).patients["test"].to_list() == [7, 4]


def test_a_patient_in_two_spellings_leaks():
    folds, _ = leaky()
    table = folds.assign(patient_id=[f"p{row // 2}" if row % 2 else f"P{row // 2} " for row in range(len(folds))])
    for fold in [name for name in table if name.startswith("fold_")]:
        table[fold] = ["train" if row % 2 else "test" for row in range(len(table))]
    assert (leakage(table)["patients", "rest & test"] == len(table) // 2).all()


def test_many_folds_are_summed_up(tmp_path):
    table = make_folds(cohort(20, 20), 4, repeats=3)
    row = audit_summary(leakage(table)).loc["this study"]
    assert (row["folds"], row["of them in train"], row["patients tested"]) == (12, "0", "5")
    for fold in range(11):
        table.loc[table.index[table[f"fold_{fold}"] == "test"][0], f"fold_{fold}"] = "train"
    assert "**Patients leak**: 0 to 1 of the" in audit_sentences(leakage(table))
    assert "in 11 of 12 folds." in audit_sentences(leakage(table))


# ------------------------------------------------------------------------------------------------ copies


def slides(path, contents, **columns):
    """A cohort of slide files with these contents."""
    for name, content in contents.items():
        if content is not None:
            (path / f"{name}.svs").write_bytes(content)
    frame = pd.DataFrame({"slide_id": list(contents), "patient_id": [f"p{n}" for n in contents], "label": "x"})
    return frame.assign(
        site="", path=[str(path / f"{n}.svs") if contents[n] is not None else "" for n in contents], mpp=0.0, **columns
    )


def test_copies_are_found_by_content_and_only_files_of_equal_size_are_read(tmp_path, monkeypatch):
    import dmsmil.cohorts.leakage as module

    read, md5 = [], module.file_md5
    monkeypatch.setattr(module, "file_md5", lambda path: read.append(path.stem) or md5(path))
    frame = slides(
        tmp_path,
        {"d": b"same", "a": b"same", "b": b"diff", "c": b"longer", "e": b"other!", "f": None, "g": b"alone in size"},
    )
    found = duplicates(frame)
    assert found[["slide_id", "copy_of", "patient_id"]].to_numpy().tolist() == [["a", "a", "pa"], ["d", "a", "pd"]]
    assert sorted(read) == ["a", "b", "c", "d", "e"]
    assert duplicates(frame.iloc[2:]).empty


def test_a_known_md5_is_believed_and_stands_beside_those_of_files(tmp_path):
    frame = slides(
        tmp_path,
        {"a": None, "b": None, "c": b"abc", "d": b"abd"},
        md5=["900150983cd24fb0d6963f7d28e17f72", "x", "", ""],
    )  # of a: md5 of b"abc" (RFC 1321)
    assert duplicates(frame).slide_id.to_list() == ["a", "c"]
    assert duplicates(frame.iloc[[0, 2]]) is None, "an md5 and a file alone are not compared"
    assert duplicates(frame.assign(md5=["x", "x", "y", "z"])).copy_of.to_list() == ["a", "a"]


@pytest.mark.filterwarnings("error")
def test_no_copies_no_sites_and_no_slides_give_no_warning():
    folds, frame = leaky()
    assert duplicates(frame) is None and "copies" not in leakage(folds, frame, None), "there is nothing to compare"
    none_alike = duplicates(frame.assign(md5=list("uvwxyz")))
    assert none_alike.empty and leakage(folds, frame, none_alike).copies.to_numpy().sum() == 0
    assert leakage(folds, frame.iloc[:0]).patients["test"].to_list() == [2, 2]


def test_copies_across_parts_are_counted():
    folds, frame = leaky()
    copies = pd.DataFrame({"slide_id": list("aecd"), "copy_of": list("aacc")})  # a and e: train and test in fold 0
    audit = leakage(folds, frame, copies)
    assert audit.copies["rest & test"].to_list() == [2, 2] and audit.copies["train & test"].to_list() == [1, 1]
    assert "**Copies leak**: 2 slides a fold" in audit_sentences(audit)
    none = leakage(folds, frame, copies.iloc[:0])
    assert none.copies.to_numpy().sum() == 0 and "No slide that a fold tests has a copy" in audit_sentences(none)


# ------------------------------------------------------------------------------------------------ public lists


def test_barcodes_tell_patient_and_site(tmp_path):
    names = [
        f"TCGA-{site}-{patient}-01Z-00-DX{n}.AB-C"
        for site, patient, n in (
            ("A1", "0001", 1),
            ("A1", "0002", 1),
            ("B2", "0003", 1),
            ("B2", "0003", 2),
            ("C3", "0004", 1),
        )
    ]
    folder = clam_folder(tmp_path / "splits", {"train": names[:3], "val": [], "test": names[3:]})
    audit = audit_splits(folder)
    assert audit.loc[0, ("patients", "train & test")] == 1 == audit.loc[0, ("sites", "train & test")]
    assert audit.loc[0, ("sites", "test")] == 2 and audit.loc[0, ("patients", "train")] == 3


def test_names_that_tell_nothing_are_patients_and_a_table_may_name_them(tmp_path):
    folder = clam_folder(tmp_path / "splits", {"train": ["x1", "x2"], "val": ["x3"], "test": ["x4"]})
    audit = audit_splits(folder)
    assert audit.patients.iloc[0].to_list() == [2, 1, 1, 0, 0, 0] and "sites" not in audit
    table = pd.DataFrame({"case_id": list("ppq"), "slide_id": ["x1", "x2", "x3"], "fold_0": ["train", "test", "train"]})
    table.to_csv(tmp_path / "k=all.tsv", sep="\t", index=False)
    assert audit_splits(tmp_path / "k=all.tsv").patients["train & test"].to_list() == [1]


def test_ours_and_others_stand_in_one_table(tmp_path):
    folds, frame = leaky()
    folder = clam_folder(tmp_path / "theirs", {"train": ["x"], "val": [], "test": ["x", "y"]})
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    twins = [clam_folder(tmp_path / name, {"train": [], "val": [], "test": ["x"]}) for name in ("a/tcga", "b/tcga")]
    same = audit_summary(leakage(folds, frame), twins)
    assert list(same.index) == ["this study", "a/tcga", "b/tcga"], "neither stands in the place of the other"
    table = audit_summary(leakage(folds, frame), [folder])
    assert list(table.index) == ["this study", "theirs"] and table.folds.to_list() == [2, 1]
    assert table["of them in train"].to_list() == ["1, 0", "1"] and table.share.to_list() == ["25.0%", "50.0%"]
    assert table["sites tested"].to_list() == ["2", "—"] and table["sites in train too"].to_list() == ["1 to 2", "—"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLIC)
def test_public_splits_share_the_patients_that_were_reported(name):
    audit = audit_splits(public(name))
    assert audit.patients["train & test"].to_list() == PUBLIC[name]
    assert (audit.patients["rest & test"] >= audit.patients["train & test"]).all()
    assert (audit.sites["train & test"] > 18).all()
    said = audit_sentences(audit)
    assert "**Patients leak**" in said and "in every fold" in said and "sites a fold tests" in said
