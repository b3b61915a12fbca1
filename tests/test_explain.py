"""Inside one slide: scores, plan and sampling points of a tested slide, by a model that did not train on it."""

import numpy as np
import pytest

from dmsmil.explain import look_inside
from dmsmil.runs import get_runs
from tests.test_training import folds_of, make_bags, quick


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    bags = make_bags()
    folds = folds_of(bags)
    configs = [quick(bags, folds), quick(bags, folds, "abmil", scale=20), quick(bags, folds, options={"ot": "none"}),
               quick(bags, folds, options={"deformable": False})]
    return bags, folds, get_runs(tmp_path_factory.mktemp("runs"), bags, folds, configs, workers=1,
                                 report=lambda line: None)


def view(bags, row):
    return {"slide_id": bags.slide_ids[row], "side": {10: 512, 20: 256}}


def test_the_plan_is_a_coupling_and_scores_sum_to_one(trained):
    bags, _, (runs, *_) = trained
    for row in (0, 1):  # with and without padding
        count = int(bags.mask[row, 0].sum())
        inside = look_inside(runs, bags, view(bags, row))
        assert inside.plan.shape == (count, count)
        np.testing.assert_allclose(inside.plan.sum(0), 1 / count)
        np.testing.assert_allclose(inside.plan.sum(1), 1 / count)
        for scale in (10, 20):
            assert inside.scores[scale].shape == (count,) and inside.scores[scale].sum() == pytest.approx(1, abs=1e-5)


def test_sampling_points_surround_their_query_and_weigh_one_a_head(trained):
    bags, _, (runs, *_) = trained
    query, points, weights = look_inside(runs, bags, view(bags, 1)).sampling
    assert points.shape == (len(query), 16, 2) and weights.shape == (len(query), 16)
    np.testing.assert_allclose(weights.sum(1), 4, rtol=1e-5)  # four heads
    centres = bags.coords[1, 0].numpy() + 256
    assert all((centres == q).all(1).any() for q in query), "a query is the centre of a tile"


def test_methods_without_transport_or_sampling_say_so(trained):
    bags, _, (_, abmil, no_ot, flat) = trained
    assert look_inside(abmil, bags, view(bags, 0)).plan is None
    assert look_inside(abmil, bags, view(bags, 0)).sampling is None
    assert list(look_inside(abmil, bags, view(bags, 0)).scores) == [20]
    assert look_inside(no_ot, bags, view(bags, 0)).plan is None and look_inside(no_ot, bags, view(bags, 0)).sampling
    assert look_inside(flat, bags, view(bags, 0)).sampling is None


def test_the_model_is_the_one_that_tested_the_slide(trained):
    bags, folds, (runs, *_) = trained
    for row in (0, 5):
        tested = runs.predictions[runs.predictions.slide_id == bags.slide_ids[row]].iloc[0]
        assert folds.set_index("slide_id").loc[bags.slide_ids[row], f"fold_{tested.fold}"] == "test"
