"""Split tables of the field: each way is read, what does not fit is counted or refused, ours come back unchanged."""

import json

import numpy as np
import pandas as pd
import pytest

from dmsmil.analysis.comparison import compare, delong, metric_table
from dmsmil.analysis.ranks import friedman_nemenyi
from dmsmil.cohorts.folds import make_folds
from dmsmil.cohorts.splits import export_clam, read_split_table, read_splits
from dmsmil.cohorts.table import load_cohort
from dmsmil.jobs.files import InputError
from dmsmil.training.baselines import colour_predictions, site_predictions
from dmsmil.training.metrics import bootstrap, confusion, roc_points, score_by_fold
from dmsmil.training.results import result_table
from dmsmil.training.runs import get_runs
from tests.cohorts.test_table import cohort
from tests.conftest import assert_one_line
from tests.training.test_baselines import cohort_of
from tests.training.test_fit import make_bags, quick


def named(frame):
    """A cohort with the names of TCGA's slides, dots and all."""
    return frame.assign(slide_id=[f"TCGA-A1-{i:04d}-01Z-00-DX1.ab{i}-C.D" for i in range(len(frame))])


def parts_of(table, fold):
    return {part: sorted(table.slide_id[table[f"fold_{fold}"] == part]) for part in ("train", "val", "test")}


@pytest.fixture
def made():
    """(cohort, its folds) with slides that two patients share a table with, and names as in TCGA."""
    frame = named(cohort(24, 6))
    return frame, make_folds(frame, 3)


def ours(frame, folds, path):
    folds.to_csv(path / "folds.csv", index=False)
    return path / "folds.csv"


def patho_bench(frame, folds, path):
    table = folds.rename(columns={"patient_id": "case_id", "label": "OncoTreeCode"})
    table.to_csv(path / "k=all.tsv", sep="\t", index=False)
    return path / "k=all.tsv"


def patho_bench_patients(frame, folds, path):
    table = folds.rename(columns={"patient_id": "case_id"}).drop(columns="slide_id").drop_duplicates("case_id")
    table.to_csv(path / "k=all.tsv", sep="\t", index=False)
    return path / "k=all.tsv"


def clam(frame, folds, path):
    for fold in range(3):
        parts = parts_of(folds, fold)
        longest = max(map(len, parts.values()))
        rows = [",train,val,test"] + [
            ",".join([str(i), *(parts[p][i] if i < len(parts[p]) else "" for p in parts)]) for i in range(longest)
        ]
        (path / f"splits_{fold}.csv").write_text("\n".join(rows))
        (path / f"splits_{fold}_descriptor.csv").write_text(",train,val,test\na,1,1,1")
    return path


def clam_bool(frame, folds, path):
    for fold in range(3):
        rows = [",train,val,test"] + [
            f"{s}," + ",".join(str(part == p) for p in ("train", "val", "test"))
            for s, part in zip(folds.slide_id, folds[f"fold_{fold}"])
        ]
        (path / f"splits_{fold}_bool.csv").write_text("\n".join(rows))
    return path


@pytest.mark.parametrize("write", [ours, patho_bench, patho_bench_patients, clam, clam_bool])
@pytest.mark.parametrize("suffix", ["", ".svs", ".h5"])
def test_every_way_gives_the_same_folds_with_and_without_suffixes(made, tmp_path, write, suffix):
    frame, folds = made
    path = write(frame, folds, tmp_path)
    table, note = read_split_table(path, frame.assign(slide_id=frame.slide_id + suffix))
    assert (table.slide_id == folds.slide_id + suffix).all()
    pd.testing.assert_frame_equal(table.assign(slide_id=folds.slide_id), folds, check_dtype=False)
    assert f"3 folds of {path.name}" in note and "once: 30, several times: 0, never: 0" in note
    assert "not in the cohort" not in note and "no fold at all" not in note


@pytest.mark.parametrize("flags", [("TRUE", "FALSE"), ("true", "false"), ("1", "0"), ("1.0", "0.0")])
@pytest.mark.parametrize("ids", ["{}", "{}.0"])
def test_flags_and_numbers_as_spreadsheets_write_them(tmp_path, flags, ids):
    frame = cohort(24, 0).assign(slide_id=[str(100 + i) for i in range(24)])
    folds = make_folds(frame, 3)
    clam_bool(frame, folds.assign(slide_id=folds.slide_id.map(ids.format)), tmp_path)
    for path in tmp_path.iterdir():
        path.write_text(path.read_text().replace("True", flags[0]).replace("False", flags[1]))
    table, note = read_split_table(tmp_path, frame)
    pd.testing.assert_frame_equal(table, folds, check_dtype=False)
    assert "once: 24, several times: 0, never: 0" in note and "not in the cohort" not in note


@pytest.mark.parametrize("theirs, ours_", [("{}.0", "{}"), ("{}", "{}.0")])
def test_numbers_that_pandas_made_floats_are_slides_and_patients(tmp_path, theirs, ours_):
    """CLAM's columns are of unequal length, so pandas writes their numbers as 103.0."""
    frame = cohort(24, 0).assign(slide_id=[str(100 + i) for i in range(24)], patient_id=[str(i) for i in range(24)])
    folds = make_folds(frame, 3)
    mine = folds.assign(slide_id=folds.slide_id.map(ours_.format), patient_id=folds.patient_id.map(ours_.format))
    clam(frame, folds.assign(slide_id=folds.slide_id.map(theirs.format)), tmp_path)
    pd.testing.assert_frame_equal(read_split_table(tmp_path, mine)[0], mine, check_dtype=False)
    by_patient = folds.drop(columns="slide_id").assign(patient_id=folds.patient_id.map(theirs.format))
    by_patient.to_csv(tmp_path / "k=all.tsv", sep="\t", index=False)
    pd.testing.assert_frame_equal(read_split_table(tmp_path / "k=all.tsv", mine)[0], mine, check_dtype=False)


@pytest.mark.parametrize("encoding, separator", [("utf-16", "\t"), ("utf-8-sig", ";"), ("utf-8", ",,")])
def test_a_split_that_a_spreadsheet_saved_is_read(made, tmp_path, encoding, separator):
    frame, folds = made
    text = folds.to_csv(index=False).replace("\n", ",\n" if separator == ",," else "\n").replace(",", separator[0])
    (tmp_path / "folds.csv").write_bytes(text.replace("slide_id", "Slide ID").encode(encoding))
    pd.testing.assert_frame_equal(read_split_table(tmp_path / "folds.csv", frame)[0], folds, check_dtype=False)


def test_a_row_of_another_length_is_refused_by_its_number(made, tmp_path):
    frame, folds = made
    path = ours(frame, folds, tmp_path)
    path.write_text(path.read_text() + "x,y,z\n")
    with pytest.raises(InputError, match="folds.csv: row 32 has 3 cells, the header 6") as caught:
        read_split_table(path, frame)
    assert_one_line(caught, "folds.csv")


def test_stamp_splits_have_patients_and_no_validation_part(made, tmp_path):
    frame, folds = made
    splits = [
        {
            f"{part}_patients": sorted(set(folds.patient_id[(folds[f"fold_{fold}"] == "test") == (part == "test")]))
            for part in ("train", "test")
        }
        for fold in range(3)
    ]
    (tmp_path / "splits.json").write_text(json.dumps({"splits": splits}))
    table, note = read_split_table(tmp_path / "splits.json", frame)
    pd.testing.assert_frame_equal(table, folds.replace("val", "train"), check_dtype=False)
    assert "Without a validation part: fold 0, 1, 2." in note


@pytest.mark.parametrize("stamp", [True, False])
def test_a_patient_with_the_name_of_a_slide_brings_all_of_their_slides(tmp_path, stamp):
    frame = pd.DataFrame({"patient_id": [f"P{i // 2}" for i in range(16)], "label": list("ab") * 8})
    frame["label"] = [label for label in "ab" * 4 for _ in range(2)]
    frame["slide_id"] = [patient if i % 2 else f"{patient}_2" for i, patient in enumerate(frame.patient_id)]
    halves = [f"P{i}" for i in range(4)], [f"P{i}" for i in range(4, 8)]
    path = tmp_path / ("splits.json" if stamp else "k=all.tsv")
    if stamp:
        splits = [{"train_patients": halves[fold], "test_patients": halves[1 - fold]} for fold in (0, 1)]
        path.write_text(json.dumps({"splits": splits}))
    else:
        parts = ["train"] * 4 + ["test"] * 4
        pd.DataFrame({"case_id": halves[0] + halves[1], "fold_0": parts, "fold_1": parts[::-1]}).to_csv(
            path, sep="\t", index=False
        )
    table, note = read_split_table(path, frame)
    assert "0 slides of the cohort are in no fold" not in note and (table[["fold_0", "fold_1"]] != "").all(axis=None)
    assert (table.groupby("patient_id").fold_0.nunique() == 1).all()


def test_clam_tables_come_back_and_say_what_they_hold(made, tmp_path):
    frame, folds = made
    folds.loc[3, "fold_1"] = ""  # takes no part in one fold
    folder = export_clam(frame, folds, tmp_path / "clam")
    back, note = read_split_table(folder, frame)
    pd.testing.assert_frame_equal(back, folds, check_dtype=False)
    assert "0 slides of the cohort are in no fold at all, 1 not in every one" in note
    for path in folder.glob("splits_?.csv"):
        path.unlink()
    pd.testing.assert_frame_equal(read_split_table(folder, frame)[0], folds, check_dtype=False)  # the bool tables
    for fold in range(3):
        said = pd.read_csv(folder / f"splits_{fold}_descriptor.csv", index_col=0)
        for part in ("train", "val", "test"):
            counts = folds.label[folds[f"fold_{fold}"] == part].value_counts()
            assert said[part].to_dict() == counts.reindex(["a", "b"], fill_value=0).to_dict()


def test_folds_of_an_earlier_partition_do_not_stay(made, tmp_path):
    frame, folds = made
    export_clam(frame, folds, tmp_path)
    export_clam(frame, folds.drop(columns="fold_2"), tmp_path)
    assert set(read_splits(tmp_path).fold) == {0, 1} and not list(tmp_path.glob("splits_2*"))


def test_the_exported_cohort_is_one_of_ours(made, tmp_path):
    frame, folds = made
    folder = export_clam(frame, folds, tmp_path)
    for slide in frame.slide_id:
        (folder / f"{slide}.svs").touch()
    back, failures = load_cohort(folder / "dataset.csv")
    keys = ["slide_id", "patient_id", "label"]
    assert list(pd.read_csv(folder / "dataset.csv").columns) == ["case_id", "slide_id", "label"] and not failures
    pd.testing.assert_frame_equal(back[keys], frame[keys].sort_values("slide_id", ignore_index=True), check_dtype=False)


def test_what_the_cohort_lacks_is_left_out_and_what_the_split_lacks_takes_no_part(made, tmp_path):
    frame, folds = made
    path = ours(frame, folds.iloc[2:], tmp_path)  # the split does not know two slides
    table, note = read_split_table(path, frame.iloc[:-3])  # the cohort does not know three
    lost = folds.slide_id[:2]
    assert (table[table.slide_id.isin(lost)][["fold_0", "fold_1", "fold_2"]] == "").all(axis=None)
    assert "3 names of the split are not in the cohort" in note
    assert "2 slides of the cohort are in no fold at all, 0 not in every one" in note
    assert len(table) == len(frame) - 3


def change(fold, slide, part):
    def changed(path):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table.loc[slide, f"fold_{fold}"] = part
        table.to_csv(path, index=False)

    return changed


def rewrite(what):
    def changed(path):
        table = what(pd.read_csv(path, dtype=str, keep_default_na=False))
        table.to_csv(path, index=False)

    return changed


@pytest.mark.parametrize(
    "spoil, said",
    [
        (change(1, 0, "validation"), "folds.csv says 'validation' in fold_1: a part is train, val, test, or nothing"),
        (
            rewrite(lambda t: pd.concat([t, t.iloc[[0]].assign(fold_0="val" if t.fold_0[0] != "val" else "test")])),
            "has slide TCGA.* in .* and .* of fold 0: keep one",
        ),
        (rewrite(lambda t: t.drop(columns=["fold_1", "fold_2"])), "has one fold"),
        (rewrite(lambda t: t.drop(columns="fold_1")), "has the folds 0, 2: they must be numbered from 0 without a gap"),
        (rewrite(lambda t: t.assign(fold_1="")), "has the folds 0, 2"),
        (
            rewrite(lambda t: t.assign(slide_id="x" + t.slide_id, patient_id="x")),
            "names no slide or patient of the cohort",
        ),
        (rewrite(lambda t: t.assign(fold_1="train")), "tests no slide of the cohort in fold 1"),
        (rewrite(lambda t: t.assign(fold_2=t.fold_2.where(t.label == "a", "test"))), "trains on no b slide in fold 2"),
        (
            rewrite(lambda t: t.rename(columns=lambda c: c.replace("fold_", "part"))),
            "has the columns slide_id, patient_id",
        ),
        (lambda path: path.write_bytes(bytes(range(128, 256)) * 9), "is not a CSV table in UTF-8"),
        (lambda path: path.unlink(), "the split folds.csv does not exist"),
    ],
)
def test_a_split_that_cannot_be_used_is_refused_in_one_line(made, tmp_path, spoil, said):
    frame, folds = made
    spoil(ours(frame, folds, tmp_path))
    with pytest.raises(InputError, match=said) as caught:
        read_split_table(tmp_path / "folds.csv", frame)
    assert_one_line(caught, "folds.csv")


@pytest.mark.parametrize(
    "name, text",
    [
        ("splits.json", "[1, 2]"),
        ("splits.json", "{"),
        ("readme.md", "# no split"),
        ("splits.json", '{"splits": [3]}'),
        ("splits.json", '{"splits": [{"train": ["P0"], "test": ["P1"]}]}'),
        ("splits.json", '{"splits": [{"train_patients": "P0", "test_patients": "P1"}]}'),
    ],
)
def test_strange_files_and_folders_are_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(InputError) as caught:
            read_splits(path)
        assert_one_line(caught, path.name)


def test_a_patient_in_two_parts_of_a_split_of_patients_is_a_slide_in_two(made, tmp_path):
    splits = [{"train_patients": ["p000", "p001", "p002"], "test_patients": ["p002", "p003"]}] * 2
    (tmp_path / "splits.json").write_text(json.dumps({"splits": splits}))
    with pytest.raises(InputError, match="in train and test of fold 0"):
        read_split_table(tmp_path / "splits.json", made[0])


# ------------------------------------------------------------------------------------------------ Monte Carlo


def monte_carlo(frame, path, folds=4):
    """A split that tests some slides several times and some never."""
    rng, patients = np.random.default_rng(0), frame.groupby("patient_id").label.first()
    table = frame[["slide_id"]].copy()
    for fold in range(folds):
        test = [p for label in ("a", "b") for p in rng.permutation(patients.index[patients == label][:9])[:3]]
        table[f"fold_{fold}"] = np.where(frame.patient_id.isin(test), "test", "train")
        table.loc[frame.patient_id == frame.patient_id.iloc[-1], f"fold_{fold}"] = ""  # takes part in no fold
    table.to_csv(path, index=False)
    return path


@pytest.mark.slow
def test_slides_tested_several_times_or_never_are_scored_compared_and_resampled(tmp_path):
    bags = make_bags(30, signal=1.0)
    frame = cohort_of(bags, ("A", "B"))
    frame["label"] = frame.label.map(dict(zip(bags.classes, "ab")))
    bags.classes[:] = ["a", "b"]
    folds, note = read_split_table(monte_carlo(frame, tmp_path / "mc.csv"), frame)
    tests = (folds[[f"fold_{i}" for i in range(4)]] == "test").sum(axis=1)
    assert (tests > 1).any() and (tests == 0).any()
    assert f"once: {(tests == 1).sum()}, several times: {(tests > 1).sum()}, never: {(tests == 0).sum()}" in note
    runs = get_runs(tmp_path, bags, folds, quick(bags, folds, "meanpool", epochs=1), workers=1, report=lambda _: None)
    mine, colour, site = runs[0].predictions, colour_predictions(bags, folds), site_predictions(folds, frame)
    assert len(mine) == len(colour) == tests.sum()
    assert score_by_fold(mine).slides.to_list() == [6] * 4 and confusion(mine).to_numpy().sum() == tests.sum()
    table = result_table(runs, bags, folds, frame).drop(columns="effective")  # of attention, which a rule has not
    assert table.notna().all(axis=None) and len(roc_points(mine))
    low, high = bootstrap(mine, draws=50)
    assert all(low[name] <= high[name] for name in low)
    trained = (folds[[f"fold_{i}" for i in range(4)]] == "train").sum()
    assert trained.max() < len(frame) - 6 and runs[0].test_share == pytest.approx((6 / (6 + trained)).mean())
    pair = delong(mine, colour)
    assert pair.slides == (tests > 0).sum()  # a slide's probabilities are averaged over the folds that test it
    found = compare(mine, {"colour": colour, "site": site}, test_share=runs[0].test_share)
    assert (found.folds == 4).all() and found.AUC_difference.notna().all()
    assert friedman_nemenyi(metric_table({"m": mine, "c": colour, "s": site}, "ACC")).blocks == 4
