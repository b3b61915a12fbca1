"""The planted cohort: a class that is a conjunction, in as much of the tissue as was asked for, and nowhere else."""

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2_contingency

from dmsmil.cohorts.folds import make_folds
from dmsmil.cohorts.made import brushes
from dmsmil.cohorts.made.histology import KINDS, paint_slide
from dmsmil.cohorts.made.painted import SITES, read_truth
from dmsmil.cohorts.made.planted import LABELS, RECIPE, make_planted, plan_planted
from dmsmil.jobs.files import InputError
from dmsmil.training.baselines import site_predictions
from dmsmil.training.metrics import summarise
from tests.cohorts.made.test_demo import contents

SMALL = dict(patients=8, rate=0.3, seed=3, side=1536)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A small cohort, made in this process: folder and table."""
    folder = tmp_path_factory.mktemp("planted")
    return folder, make_planted(folder, workers=1, **SMALL)


def painted(patient=0, rate=0.3, seed=3, side=1536):
    """One slide and its truth."""
    return paint_slide(plan_planted(8, rate, seed).to_dict("records")[patient], seed, side, RECIPE)


@pytest.mark.slow
def test_two_processes_make_the_same_bytes_as_one(planted, tmp_path):
    folder, table = planted
    again = make_planted(tmp_path, workers=2, **SMALL)
    pd.testing.assert_frame_equal(table, again)
    assert contents(folder) == contents(tmp_path)


@pytest.mark.slow
def test_a_slide_does_not_depend_on_the_size_of_the_cohort(planted, tmp_path):
    fewer = make_planted(tmp_path, workers=1, **{**SMALL, "patients": 4})
    for path in fewer.path:
        assert (tmp_path / path).read_bytes() == (planted[0] / path).read_bytes()


@pytest.mark.slow
def test_what_is_missing_or_of_another_rate_is_made_again_and_the_rest_is_kept(planted, tmp_path):
    table = make_planted(tmp_path, workers=1, **SMALL)
    slides = [tmp_path / path for path in table.path]
    slides[0].unlink()
    (tmp_path / "truth" / f"{table.slide_id[1]}.npz").unlink()
    kept = [path.stat().st_mtime_ns for path in slides[2:]]
    make_planted(tmp_path, workers=1, **SMALL)
    assert contents(tmp_path) == contents(planted[0])
    assert kept == [path.stat().st_mtime_ns for path in slides[2:]]
    make_planted(tmp_path, workers=1, **{**SMALL, "rate": 0.1})
    assert all(path.read_bytes() != (planted[0] / name).read_bytes() for path, name in zip(slides, table.path))


@pytest.mark.slow
def test_the_table_has_one_slide_a_patient_and_names_files_that_exist(planted):
    folder, table = planted
    assert list(table) == ["slide_id", "patient_id", "site", "label", "path"]
    assert table.patient_id.is_unique and all((folder / path).exists() for path in table.path)
    assert set(table.label) == set(LABELS) and set(table.site) <= set(SITES)


def test_the_site_is_drawn_without_regard_to_the_class_and_to_what_is_lacking():
    plan = plan_planted(1200)
    assert plan.site.value_counts(normalize=True).between(0.28, 0.38).all() and plan.site.nunique() == len(SITES)
    for part in (plan.label, plan.arrangement > 0, plan["size"] > 0):
        assert chi2_contingency(pd.crosstab(plan.site, part)).pvalue > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", [101, 102])
def test_the_site_alone_tells_nothing(seed):
    plan = plan_planted(160, seed=seed)
    found = summarise(site_predictions(make_folds(plan, 5, seed, repeats=2), plan), LABELS[0])
    assert found["AUC_low"] < 0.5 < found["AUC_high"]


def test_the_class_is_the_conjunction_and_each_part_alone_gives_an_auc_of_three_quarters():
    plan = plan_planted(48)
    nested, large = plan.arrangement > 0, plan["size"] > 0
    assert ((plan.label == LABELS[0]) == (nested & large)).all()
    other = plan[plan.label == LABELS[1]]
    assert ((other.arrangement > 0) != (other["size"] > 0)).all(), "each lacks exactly one"
    assert (other["size"] > 0).sum() == 12 == (other.arrangement > 0).sum()
    for part in (nested, large):
        ours = part[plan.label == LABELS[0]].to_numpy()[:, None].astype(int)
        theirs = part[plan.label == LABELS[1]].to_numpy()[None].astype(int)
        assert ((ours > theirs) + 0.5 * (ours == theirs)).mean() == 0.75


def test_the_rate_decides_nothing_else_in_the_plan():
    few, many = plan_planted(8, 0.05, 3), plan_planted(8, 0.4, 3)
    pd.testing.assert_frame_equal(few.drop(columns="rate"), many.drop(columns="rate"))
    assert not np.isclose(few.arrangement.abs(), plan_planted(8, 0.05, 4).arrangement.abs()).any()


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.05, 0.15, 0.4])
def test_so_much_of_the_tissue_is_signal_as_was_asked_for(rate):
    for patient in range(4):
        truth = painted(patient, rate)[1]
        assert not (truth["signal"] & ~truth["tissue"]).any()
        assert truth["signal"].sum() / truth["tissue"].sum() == pytest.approx(rate, abs=0.01)


@pytest.mark.slow
def test_the_tumour_lies_in_the_signal_and_benign_cells_beside_it():
    seen = set()
    for patient in range(4):
        truth = painted(patient)[1]
        at = (truth["y"] / 16).astype(int), (truth["x"] / 16).astype(int)
        tumour = truth["kind"] == "tumour"
        seen.update(truth["kind"])
        assert truth["signal"][at][tumour].all()
        assert truth["signal"][at][truth["kind"] == "benign"].sum() <= 0.3 * (truth["kind"] == "benign").sum()
    assert seen == set(KINDS)


@pytest.mark.slow
def test_two_rates_have_the_same_tissue_and_stain_and_the_smaller_signal_lies_in_the_larger():
    (few, less), (many, more) = painted(rate=0.1), painted(rate=0.4)
    assert (less["tissue"] == more["tissue"]).all() and not (less["signal"] & ~more["signal"]).any()
    away = cv2.resize(more["signal"].astype(np.uint8), (1536, 1536)) == 0
    assert (few[away] == many[away]).all(1).mean() > 0.4, "fibres, glass and most of the rest are the same"
    np.testing.assert_allclose(few[away].mean(0), many[away].mean(0), atol=3)


def test_epithelium_and_cells_are_as_many_in_either_arrangement():
    """What differs is on which side of its border the epithelium is round."""
    row = plan_planted(8, 0.4, 3).to_dict("records")[0]
    truths = [paint_slide({**row, "arrangement": end}, 3, 2048, RECIPE)[1] for end in (-1.0, 1.0)]
    counts = [(truth["kind"] == "tumour").sum() for truth in truths]
    assert max(counts) < 1.1 * min(counts)
    assert (truths[0]["signal"] == truths[1]["signal"]).all()


def test_open_and_smooth_nuclei_differ_at_20x_and_hardly_at_10x():
    """Both have one mean; how much they vary differs in full and is the same when two pixels become one."""
    varied = {}
    for family, by_radius in brushes.chromatin_to_stamp().items():
        full, half = [], []
        for sprite in by_radius[8] + by_radius[10] + by_radius[12]:
            middle = sprite.shape[0] // 2
            core = cv2.GaussianBlur(sprite, (3, 3), 0.7)[middle - 4 : middle + 4, middle - 4 : middle + 4].astype(float)
            full.append(core.std() / core.mean())
            half.append(core.reshape(4, 2, 4, 2).mean((1, 3)).std() / core.mean())
        varied[family] = np.mean(full), np.mean(half)
    assert varied["granular"][0] > 1.25 * varied["smooth"][0]
    assert varied["granular"][1] == pytest.approx(varied["smooth"][1], rel=0.2)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(patients=3), "at least 4 patients"),
        (dict(side=512), "multiple of 64"),
        (dict(side=1100), "multiple of 64"),
        (dict(rate=0.0), "witness_rate is 0.0"),
        (dict(rate=0.8), "witness_rate is 0.8"),
        (dict(rate=float("nan")), "witness_rate is nan"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(tmp_path, wrong, said):
    with pytest.raises(InputError, match=said) as error:
        make_planted(tmp_path, **{**SMALL, **wrong})
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_truth_is_kept_beside_the_slide(planted):
    folder, table = planted
    plan = plan_planted(8, 0.3, 3)
    for row in plan.itertuples():
        truth = read_truth(folder, row.slide_id)
        assert float(truth["arrangement"]) == row.arrangement and float(truth["size"]) == row.size
