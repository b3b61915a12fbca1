"""Folds by patient and by site: nobody is on two sides, every class is dealt as evenly as can be, nothing drifts."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dmsmil.cohorts import folds as module
from dmsmil.cohorts import sites as solver
from dmsmil.cohorts.folds import bag_folds, choose_folds, fold_count, make_folds, repeat_of, site_folds, slides_tested
from dmsmil.cohorts.leakage import leakage
from dmsmil.cohorts.sites import site_groups
from dmsmil.jobs.files import InputError
from tests.cohorts.test_table import cohort
from tests.conftest import assert_one_line
from tests.training.test_fit import make_bags

MANIFESTS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "manifests"


def sites(counts, unknown=()):
    """A cohort of one slide a patient from {site: (patients of class a, of class b)}; unknown: classes without site."""
    rows = [(site, name) for site, numbers in counts.items() for name, n in zip("ab", numbers) for _ in range(n)]
    rows += [("", name) for name in unknown]
    frame = pd.DataFrame(rows, columns=["site", "label"])
    ids = [f"{i:03d}" for i in range(len(frame))]
    return frame.assign(slide_id=[f"s{i}" for i in ids], patient_id=[f"p{i}" for i in ids], path="", mpp=0.0)


def drawn_sites(seed, number=14):
    """Sites of very different sizes and class shares, as hospitals are."""
    rng = np.random.default_rng(seed)
    return sites({f"S{i}": (int(rng.geometric(0.12)), int(rng.geometric(0.3)) - 1) for i in range(number)})


def dealt(table, fold):
    """Patients of each class that a fold tests."""
    return table[table[f"fold_{fold}"] == "test"].drop_duplicates("patient_id").label.value_counts().sort_index()


def spread(table):
    """What a deal by site minimises: most minus least patients of a class, by the class's mean, summed over classes."""
    counts = pd.DataFrame([dealt(table, fold) for fold in range(fold_count(table))]).fillna(0)
    return float(((counts.max() - counts.min()) / counts.mean()).sum())


# ------------------------------------------------------------------------------------------------ by patient


@pytest.mark.parametrize("folds", [2, 5])
def test_folds_part_patients_and_keep_the_classes(folds):
    frame = cohort(40, 10)
    table = make_folds(frame, folds, seed=3)
    assert fold_count(table) == folds
    assert (leakage(table).patients[["rest & test", "train & val"]] == 0).all(axis=None)
    slides = pd.concat([table[table[f"fold_{k}"] == "test"] for k in range(folds)])
    assert sorted(slides.slide_id) == sorted(frame.slide_id)  # each slide is tested exactly once
    for k in range(folds):
        assert np.ptp(dealt(table, k)) <= 1
        assert {"train", "val", "test"} == set(table[f"fold_{k}"])


def test_folds_depend_on_seed_but_not_on_row_order():
    frame = cohort(30)
    one = make_folds(frame, 3, 0)
    pd.testing.assert_frame_equal(one, make_folds(frame.sample(frac=1, random_state=1), 3, 0))
    assert not one.equals(make_folds(frame, 3, 1))


def test_too_small_a_class_is_refused_and_no_validation_part_is_taken_from_two_patients():
    with pytest.raises(InputError, match="class 'b' has 2 patients, fewer than folds = 5"):
        make_folds(cohort(5, 0), 5)
    for folds in (2, 3):
        with pytest.raises(InputError, match="class 'b' has 1 patient, who cannot .*: add patients"):
            make_folds(cohort(3, 0), folds)
    with pytest.raises(InputError, match="folds is 1"):
        make_folds(cohort(8), 1)
    assert "val" not in set(make_folds(cohort(6, 0), 3).fold_0)


def test_bags_have_the_folds_of_their_patients():
    bags = make_bags(12)
    frame = pd.DataFrame(
        {"slide_id": bags.slide_ids, "patient_id": bags.patient_ids, "label": [bags.classes[i] for i in bags.labels]}
    )
    pd.testing.assert_frame_equal(bag_folds(bags, 3), make_folds(frame, 3))


# ------------------------------------------------------------------------------------------------ by site


@pytest.mark.parametrize("seed", range(3))
def test_no_site_and_no_patient_is_in_two_parts_and_everybody_is_tested_once(seed):
    frame = drawn_sites(seed)
    table, gap = site_folds(frame, 3, seed)
    audit = leakage(table, frame)
    assert (
        audit.drop(columns=[(what, part) for what in ("patients", "sites") for part in ("train", "val", "test")]) == 0
    ).all(axis=None)
    assert ((table[["fold_0", "fold_1", "fold_2"]] == "test").sum(axis=1) == 1).all()
    assert 0 <= gap <= solver.GAP and set(table.fold_0) == {"train", "val", "test"}


@pytest.mark.parametrize("seed", range(4))
def test_the_balance_is_that_of_trying_every_deal(seed, monkeypatch):
    monkeypatch.setattr(solver, "GAP", 0.0)
    frame, best = drawn_sites(seed, 7), np.inf
    counts = pd.crosstab(frame.site, frame.label).to_numpy()
    for deal in product(range(3), repeat=6):
        of_fold = np.array([counts[np.array([0, *deal]) == fold].sum(0) for fold in range(3)])
        if of_fold.min() > 0:
            best = min(best, (np.ptp(of_fold, axis=0) / of_fold.mean(0)).sum())
    table, gap = site_folds(frame, 3, seed)
    assert spread(table) == pytest.approx(best) and gap == pytest.approx(0, abs=1e-9)


def test_a_perfect_deal_is_found_where_there_is_one():
    frame = sites({"A": (9, 0), "B": (0, 4), "C": (5, 2), "D": (4, 2), "E": (8, 3), "F": (1, 1)})
    table, gap = site_folds(frame, 3)
    assert gap == 0 and [dealt(table, fold).to_list() for fold in range(3)] == [[9, 4]] * 3


@pytest.mark.slow
def test_site_folds_repeat_follow_the_seed_and_not_the_row_order():
    frame = drawn_sites(5)
    one = site_folds(frame, 3, 1)[0]
    pd.testing.assert_frame_equal(one, site_folds(frame.sample(frac=1, random_state=2), 3, 1)[0])
    assert len({site_folds(frame, 3, seed)[0].to_csv() for seed in range(4)}) > 2


def test_sites_that_share_a_patient_stay_together():
    frame = sites({f"S{i}": (3, 3) for i in range(6)})
    guest = frame[frame.site == "S0"].iloc[[0]].assign(slide_id="guest", site="S1")
    frame = pd.concat([frame, guest], ignore_index=True)
    groups = site_groups(frame)
    assert groups.nunique() == 5 and groups[frame.patient_id[frame.site.isin(["S0", "S1"])]].nunique() == 1
    table, note = choose_folds(frame, "site", 2, val_share=0.0)
    assert leakage(table, frame).sites["rest & test"].sum() == 0
    assert "2 sites share patients with another" in note


def test_a_patient_without_a_site_is_a_site_of_their_own():
    frame = sites({"A": (6, 6), "B": (6, 6)}, unknown=["a", "b"] * 4)
    assert site_groups(frame).nunique() == 2 + 8
    table, note = choose_folds(frame, "site", 2)
    assert [dealt(table, fold).to_list() for fold in range(2)] == [[8, 8]] * 2
    strangers = table[table.slide_id.isin(frame.slide_id[frame.site == ""])]
    assert set(strangers.fold_0 == "test") == {True, False} and "Patients without a site (8) count as one each" in note


def test_many_strangers_are_dealt_at_once():
    frame = sites({f"S{i}": (20 + i, 7) for i in range(8)}, unknown=["a"] * 300 + ["b"] * 90)
    table, gap = site_folds(frame, 5)
    assert gap == 0 and max(np.ptp([dealt(table, fold)[name] for fold in range(5)]) for name in "ab") <= 1


def test_the_validation_part_is_whole_sites_where_they_fit_else_by_patient_and_that_is_said():
    frame = drawn_sites(2, 30)
    table, note = choose_folds(frame, "site", 3, val_share=0.2)
    assert leakage(table, frame).sites["train & val"].sum() == 0 and "validation" not in note
    for fold in range(3):
        rest = table[table[f"fold_{fold}"] != "test"]
        for _, part in rest.groupby("label"):
            assert (part[f"fold_{fold}"] == "val").sum() == pytest.approx(0.2 * len(part), rel=0.5, abs=1)
    frame = sites({"A": (10, 10), "B": (10, 10), "C": (10, 10)})  # one site is half of what is trained on
    table, note = choose_folds(frame, "site", 3, val_share=0.2)
    assert "Fold 0, 1, 2: no whole sites make a validation part" in note
    assert (table.fold_0 == "val").sum() == 8 and leakage(table, frame).sites["rest & test"].sum() == 0
    assert "val" not in set(site_folds(frame, 3, val_share=0.0)[0].fold_0)


@pytest.mark.parametrize(
    "frame, folds, said",
    [
        (
            sites({"A": (5, 5)}),
            2,
            "of class 'a': 1, fewer than folds = 2, so a fold would test none of it: use split: pat",
        ),
        (sites({"A": (5, 0), "B": (5, 3), "C": (5, 3)}), 3, "of class 'b': 2, fewer.*: set folds to 2 or less, or use"),
        (sites({}, unknown="aabb"), 2, "need a site: add the column 'site'"),
        (sites({"A": (5, 5), "B": (5, 5)}), 1, "folds is 1"),
    ],
)
def test_what_sites_cannot_do_is_said(frame, folds, said):
    with pytest.raises(InputError, match=said) as caught:
        site_folds(frame, folds)
    assert_one_line(caught, "")


def test_three_classes_in_pairs_of_sites_cannot_be_dealt_to_two():
    pairs = [("A", "x"), ("A", "y"), ("B", "y"), ("B", "z"), ("C", "z"), ("C", "x")]
    frame = pd.DataFrame(
        [dict(slide_id=f"s{i}", patient_id=f"p{i}", label=label, site=site) for i, (site, label) in enumerate(pairs)]
    )
    with pytest.raises(InputError, match="there are none where each fold tests every class"):
        site_folds(frame, 2)


def test_a_search_stopped_by_the_clock_says_so(monkeypatch):
    frame = drawn_sites(3)
    stop = site_folds(frame, 3)[0]
    monkeypatch.setattr(module, "site_folds", lambda *args: (stop, 0.31))
    note = choose_folds(frame, "site", 3)[1]
    assert "optimality gap of the balance 31.0%" in note and "stopped by the clock" in note
    with pytest.raises(InputError, match="none were found in 0 s; set folds below 3, or use split: patient"):
        site_folds(frame, 3, seconds=0.0)


def test_the_note_gives_the_counts_of_the_table():
    frame = drawn_sites(0)
    table, note = choose_folds(frame, "site", 3)
    low, high = (pick(dealt(table, fold)["a"] for fold in range(3)) for pick in (min, max))
    assert f"{low} to {high} a" in note or low == high and f"{low} a" in note
    assert f"{frame.site.nunique()} sites are dealt whole to 3 folds" in note


# ------------------------------------------------------------------------------------------------ repeats


def partitions(table, folds):
    """The sets of slides that are tested together, of each partition of a folds table."""
    tested = [frozenset(table.slide_id[table[f"fold_{fold}"] == "test"]) for fold in range(fold_count(table))]
    return [frozenset(tested[at : at + folds]) for at in range(0, len(tested), folds)]


@pytest.mark.slow
@pytest.mark.parametrize("split", ["patient", "site"])
def test_repeats_are_different_partitions_that_test_everybody_once_each(split):
    frame = drawn_sites(4, 30)
    table, note = choose_folds(frame, split, 3, 1, 0.2, 4)
    once, _ = choose_folds(frame, split, 3, 1, 0.2)
    assert fold_count(table) == 12 and "done 4 times, each time otherwise: 12 folds, of which the first 3" in note
    pd.testing.assert_frame_equal(table[list(once)], once)  # the first partition is the one without repeats
    assert len(set(partitions(table, 3))) == 4
    for at in range(0, 12, 3):
        tested = table[[f"fold_{fold}" for fold in range(at, at + 3)]] == "test"
        assert (tested.sum(axis=1) == 1).all()
    assert (leakage(table, frame).patients["rest & test"] == 0).all()
    assert repeat_of(slides_tested(table)) == {fold: fold // 3 for fold in range(12)}
    pd.testing.assert_frame_equal(table, choose_folds(frame.sample(frac=1, random_state=7), split, 3, 1, 0.2, 4)[0])


def test_sites_that_allow_one_deal_make_one_partition_and_that_is_said():
    frame = sites({"A": (9, 4), "B": (5, 2), "C": (4, 2)})  # in two folds of equal sizes: A against B and C
    table, note = choose_folds(frame, "site", 2, repeats=3)
    assert fold_count(table) == 2 and "repeats is 3, but 10 deals in succession brought no other" in note
    assert "of these sites: there is 1, and no partition counts twice" in note and "is done" not in note


def test_leave_one_out_has_one_partition_and_four_patients_have_two_of_two_folds():
    frame = cohort(6, 0)
    assert fold_count(make_folds(frame, 3, repeats=5)) == 5 * 3  # 6 pairs of pairs of pairs
    frame = sites({}, unknown="aabb")
    table, note = choose_folds(frame, "patient", 2, repeats=5)
    assert fold_count(table) == 4 and "there are 2, and no partition counts twice" in note
    assert len(set(partitions(table, 2))) == 2  # {a1 b1 | a2 b2}, {a1 b2 | a2 b1}


def test_no_repeat_is_one_clear_line():
    with pytest.raises(InputError, match="^repeats is 0: at least 1"):
        make_folds(cohort(), 2, repeats=0)


def test_folds_that_overlap_are_repeats_of_their_own_and_a_lost_fold_moves_none():
    tested = pd.DataFrame([(0, "a"), (0, "b"), (1, "b"), (1, "c"), (2, "a")], columns=["fold", "slide_id"])
    assert repeat_of(tested) == {0: 0, 1: 1, 2: 1}
    table = slides_tested(make_folds(cohort(20), 4, repeats=3))
    assert repeat_of(table[table.fold != 3]) == {fold: fold // 4 for fold in range(12) if fold != 3}


# ------------------------------------------------------------------------------------------------ the choice


def test_split_names_the_way(tmp_path):
    frame = cohort(20)
    table, note = choose_folds(frame, "patient", 4, 1, 0.3)
    pd.testing.assert_frame_equal(table, make_folds(frame, 4, 1, 0.3))
    assert "sites" not in note and "sites are not" in choose_folds(frame.assign(site="A"), folds=2)[1]
    table.to_csv(tmp_path / "own.csv", index=False)
    again, note = choose_folds(frame, tmp_path / "own.csv", 2)
    pd.testing.assert_frame_equal(again, table)
    assert "4 folds of own.csv" in note
    with pytest.raises(InputError, match="split is 'sites': choose patient or site") as caught:
        choose_folds(frame, tmp_path / "sites")
    assert_one_line(caught, "sites")


# ------------------------------------------------------------------------------------------------ TCGA


def tcga(name):
    """The cohort of a public list, its institutions as sites."""
    if not MANIFESTS.is_dir():
        pytest.skip("the public lists in ../shared/data/manifests are not there")
    codes = pd.read_csv(MANIFESTS / "tcga_tss_codes.csv", dtype=str, keep_default_na=False)
    found = pd.read_csv(MANIFESTS / name, dtype=str, keep_default_na=False)
    found = found[found.oncotree_code.isin(["IDC", "ILC", "LUAD", "LUSC"])]
    site = found.case_id.str[5:7].map(codes.set_index("TSS Code")["Source Site"])
    return pd.DataFrame(
        {
            "slide_id": found.slide_id,
            "patient_id": found.case_id,
            "label": found.oncotree_code,
            "site": site,
            "code": found.case_id.str[5:7],
        }
    ).reset_index(drop=True)


@pytest.mark.slow
def test_tcga_brca_can_be_dealt_evenly_by_site():
    frame = tcga("hipt_tcga_brca_subset.csv")
    table, gap = site_folds(frame.assign(site=frame.code), 5, val_share=0.0)
    counts = pd.DataFrame([dealt(table, fold) for fold in range(5)])
    assert gap == 0 and set(counts.IDC) == {138, 139} and set(counts.ILC) == {28, 29}


def test_tcga_codes_tell_the_class_of_lung_and_institutions_do_not():
    frame = tcga("hipt_tcga_lung_subset.csv")
    by_code, by_site = (frame.groupby(column).label.nunique() for column in ("code", "site"))
    assert (by_code == 1).all() and (by_site == 2).sum() > 20


@pytest.mark.parametrize("share", [-0.1, 1.0, 2, float("nan")])
def test_a_share_that_is_none_is_one_clear_line(share):
    with pytest.raises(InputError, match="^val_share is .*below 1$"):
        make_folds(cohort(), 2, val_share=share)


def test_the_largest_share_leaves_patients_of_each_class_to_train_on():
    frame = cohort()
    table = make_folds(frame, 2, val_share=0.99)
    assert all(table.label[table[f"fold_{fold}"] == "train"].nunique() == 2 for fold in range(2))


def test_a_validation_part_without_a_rare_class_is_none():
    labels = ["A"] * 117 + ["B"] * 5
    names = [f"p{i}" for i in range(122)]
    frame = pd.DataFrame({"slide_id": names, "patient_id": names, "label": labels, "site": ""})
    table = make_folds(frame, 5, val_share=0.1)
    for name in [c for c in table if c.startswith("fold_")]:
        chosen = table.label[table[name] == "val"]
        assert chosen.nunique() in (0, 2)


def test_the_validation_part_is_drawn_by_the_seed_too():
    """Of the same tested patients: another seed of the draw takes others of the rest."""
    labels = pd.Series(["a", "b"] * 20)
    rows = np.arange(40)
    drawn = {tuple(sorted(module._validation(labels, rows, 0.2, seed))) for seed in range(4)}
    assert len(drawn) == 4
    table = make_folds(cohort(40, 40), 4, 0, 0.2)
    parts = [set(table.patient_id[table[f"fold_{fold}"] == "val"]) for fold in range(4)]
    again = make_folds(cohort(40, 40), 4, 0, 0.2)
    assert table.equals(again) and len({frozenset(part) for part in parts}) == 4
