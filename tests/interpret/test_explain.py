"""Inside one slide: scores, plan and sampling points of a tested slide, by a model that did not train on it."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from dmsmil.cohorts.folds import bag_folds
from dmsmil.features.bags import toy_bags
from dmsmil.interpret.explain import (
    Case,
    _plans,
    _sampling,
    attention_flow,
    cases,
    extremes,
    look_inside,
    normalise,
    own_scores,
)
from dmsmil.models import create, transport
from dmsmil.slides.reader import open_slide
from dmsmil.training.runs import get_runs
from tests.slides.pyramids import make_slide
from tests.training.test_fit import folds_of, make_bags, quick


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    bags = make_bags()
    folds = folds_of(bags)
    configs = [
        quick(bags, folds),
        quick(bags, folds, "abmil", scale=20),
        quick(bags, folds, options={"ot": "none"}),
        quick(bags, folds, options={"deformable": False}),
    ]
    return (
        bags,
        folds,
        get_runs(tmp_path_factory.mktemp("runs"), bags, folds, configs, workers=1, report=lambda line: None),
    )


def view(bags, row):
    return {"slide_id": bags.slide_ids[row], "side": {10: 512, 20: 256}}


@pytest.mark.slow
def test_the_plan_is_a_coupling_and_scores_lie_between_0_and_1(trained):
    bags, _, (runs, *_) = trained
    for row in (0, 1):  # with and without padding
        count = int(bags.mask[row, 0].sum())
        inside = look_inside(runs, bags, view(bags, row))
        (plan,) = inside.plans
        assert plan.shape == (count, count)
        np.testing.assert_allclose(plan.sum(0), 1 / count)
        np.testing.assert_allclose(plan.sum(1), 1 / count)
        for scale in (10, 20):
            assert inside.scores[scale].shape == (count,)
            assert inside.scores[scale].min() == 0 and inside.scores[scale].max() == 1, "normalised, as they are drawn"


def test_plans_lie_between_neighbouring_scales():
    bags = toy_bags(2, 8, 16, scales=(5, 10, 20))
    model = create("dmsmil", 16, 3, bags.scales).eval()
    output = model(bags.x, bags.mask, bags.coords)
    plans, x = _plans(model, output), model.transported(output)
    assert len(plans) == 2 and not np.array_equal(plans[0], plans[1])
    for s, plan in enumerate(plans):
        there = bags.mask[0, s]
        wanted = transport.plan(x[:, s], x[:, s + 1], bags.mask[:, s], bags.mask[:, s + 1])[0][there][:, there]
        np.testing.assert_array_equal(plan, wanted)


@torch.no_grad()
def test_what_chooses_its_tiles_has_a_plan_only_where_it_transports_and_then_that_of_its_loss():
    bags = toy_bags(2, 12, 16)
    model = create("dmsmil_select", 16, 2, bags.scales).eval()
    assert _plans(model, model(bags.x, bags.mask, bags.coords)) == []
    for kind in ("gates", "plain"):
        model = create("dmsmil_select", 16, 2, bags.scales, transport=kind, components=8, matched=6).eval()
        torch.nn.init.normal_(model.branches.gate.weigh.weight)
        x, mask, coords = bags.x[:1], bags.mask[:1], bags.coords[:1]
        output = model(x, mask, coords)
        (plan,), features = _plans(model, output), model.transported(output)[0].detach()
        assert plan.sum() == pytest.approx(1) and (plan.sum(1) > 0).sum() == 6, "of the places that weigh most"
        there = mask[0]
        apart = torch.cdist(features[0][there[0]].double(), features[1][there[1]].double()).numpy()
        lost = model.loss(output, bags.labels[:1])[1]["L_ot"].item()
        unit = transport.mean_distance(model.transported(output), mask).item()
        assert (plan * apart).sum() / unit == pytest.approx(lost, rel=1e-4)


@pytest.mark.slow
def test_sampling_points_surround_their_query_and_weigh_one_a_head(trained):
    bags, _, (runs, *_) = trained
    query, points, weights = look_inside(runs, bags, view(bags, 1)).sampling
    assert points.shape == (len(query), 16, 2) and weights.shape == (len(query), 16)
    np.testing.assert_allclose(weights.sum(1), 4, rtol=1e-5)  # four heads
    centres = bags.coords[1, 0].numpy() + 256
    assert all((centres == q).all(1).any() for q in query), "a query is the centre of a tile"


@torch.no_grad()
@pytest.mark.parametrize("grid", ["fill", "square"])
def test_queries_lie_on_tiles_whatever_is_padded_and_however_many_there_are(grid):
    """300 tiles of 20x alone, every third missing: a square map has 196 cells, and padding need not come last."""
    coords = torch.stack([torch.arange(300) % 20, torch.arange(300) // 20], -1)[None, None] * 256 + 1024
    mask = (torch.arange(300) % 3 > 0)[None, None]
    x = torch.randn(1, 1, 300, 16) * mask.unsqueeze(-1)
    model = create("damil", 16, 2, (20,), grid=grid).eval()
    query, points, weights = _sampling(model, x, mask, coords * mask.unsqueeze(-1), {"side": {10: 512, 20: 256}}, 6)
    assert query.shape == (6, 2) and points.shape[:2] == weights.shape
    if grid == "fill":
        centres = coords[0, 0][mask[0, 0]].numpy() + 128
        assert all((centres == q).all(1).any() for q in query), "a query is the centre of a 20x tile"


@pytest.mark.slow
def test_methods_without_transport_or_sampling_say_so(trained):
    bags, _, (_, abmil, no_ot, flat) = trained
    assert look_inside(abmil, bags, view(bags, 0)).plans == []
    assert look_inside(abmil, bags, view(bags, 0)).sampling is None
    assert list(look_inside(abmil, bags, view(bags, 0)).scores) == [20]
    assert look_inside(no_ot, bags, view(bags, 0)).plans == [] and look_inside(no_ot, bags, view(bags, 0)).sampling
    assert look_inside(flat, bags, view(bags, 0)).sampling is None


def test_the_model_is_the_one_that_tested_the_slide(trained):
    bags, folds, (runs, *_) = trained
    for row in (0, 5):
        tested = runs.predictions[runs.predictions.slide_id == bags.slide_ids[row]].iloc[0]
        assert folds.set_index("slide_id").loc[bags.slide_ids[row], f"fold_{tested.fold}"] == "test"


@pytest.mark.slow
def test_with_repeats_a_slide_is_explained_once_by_the_first_that_tested_it(tmp_path):
    bags = make_bags(20)
    folds = bag_folds(bags, 2)
    again = bag_folds(bags, 2, 10_000)  # another seed, another partition
    both = folds.assign(fold_2=again.fold_0, fold_3=again.fold_1)
    runs = get_runs(tmp_path, bags, both, quick(bags, both, epochs=1), (0, 1), workers=1, report=lambda line: None)[0]
    assert (runs.predictions.slide_id.value_counts() == 4).all()
    found = list(cases(runs, bags))
    assert sorted(case.slide_id for case in found) == sorted(bags.slide_ids) and {c.fold for c in found} == {0, 1}
    lost = runs.predictions[(runs.predictions.seed > 0) | (runs.predictions.fold != 1)]  # the run of fold 1 failed
    assert sorted(case.slide_id for case in cases(dataclasses.replace(runs, predictions=lost), bags)) == sorted(
        bags.slide_ids
    )
    known = both.set_index("slide_id")
    assert all(known.loc[case.slide_id, f"fold_{case.fold}"] == "test" for case in found)


# ------------------------------------------------------------------------------------------------ where attention flows


@pytest.mark.parametrize("row", [0, 1], ids=["padded", "full"])
def test_attention_flows_between_the_tiles_of_the_slide(trained, row):
    bags, _, (runs, *_) = trained
    case = next(cases(runs, bags, [bags.slide_ids[row]]))
    start, end, mass = attention_flow(case, 512)
    there = bags.mask[row, 0]
    np.testing.assert_array_equal(start, bags.coords[row, 0][there] + 256)
    assert end.shape == (int(there.sum()), 4, 2) and mass.sum() == pytest.approx(1)
    assert (end >= start.min(0) - 1e-3).all() and (end <= start.max(0) + 1e-3).all()
    np.testing.assert_allclose(mass, own_scores(case)[0, there], rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("method, options", [("dmsmil_select", {}), ("dmsmil", {"score": "norm"})])
def test_the_attention_that_a_tile_receives_is_counted_point_by_point(method, options):
    """Whatever the method's scores are: the gates of DMSMIL-Select say nothing of it."""
    bags = toy_bags(2, 12, 16)
    model = create(method, 16, 2, bags.scales, **options).eval()
    torch.nn.init.normal_(model.branches.attend.plan.weight, std=0.5)
    one = Case("s", "p", 0, 0, model, bags.x[:1], bags.mask[:1], bags.coords[:1])
    mass = attention_flow(one, 512)[2]
    x = model.branches.project_tiles(one.x, one.mask.transpose(0, 1))
    features, maps, _ = model.branches.lay_maps(x, model.geometry(one.mask, one.coords))
    samples, received = model.branches.attend.sample(features, maps), np.zeros(12)
    for query in np.flatnonzero(one.mask[0, 0]):
        for head, point, corner in np.ndindex(*samples.index.shape[3:]):
            at = 0, 0, query, head, point
            received[samples.index[(*at, corner)]] += float(samples.attention[at] * samples.weight[(*at, corner)])
    there = one.mask[0, 0].numpy()
    np.testing.assert_allclose(mass, received[there] / received[there].sum(), rtol=1e-5)
    assert np.ptp(mass) > 0.01 and mass.sum() == pytest.approx(1)


def test_an_arrow_ends_where_its_heads_points_are_on_average(trained):
    bags, _, (runs, *_) = trained
    start, end, _ = attention_flow(next(cases(runs, bags, [bags.slide_ids[1]])), 512)
    query, points, weights = look_inside(runs, bags, view(bags, 1)).sampling
    for at, of_query, weight in zip(query, points, weights):
        heads, weight = of_query.reshape(4, 4, 2), weight.reshape(4, 4)
        mean = [np.average(p, axis=0, weights=w) for p, w in zip(heads, weight)]
        np.testing.assert_allclose(end[(start == at).all(1).argmax()], mean, rtol=1e-4)


@pytest.mark.parametrize(
    "method, scales, options",
    [
        ("abmil", (20,), {}),
        ("meanpool", (10, 20), {}),
        ("dmsmil", (10, 20), {"deformable": False}),
        ("dmsmil", (10, 20), {"map": "tile"}),
        ("damil", (20,), {"grid": "square"}),
    ],
)
def test_no_flow_where_attention_does_not_go_from_tile_to_tile(method, scales, options):
    shape = (1, len(scales), 196)  # as many tiles as grid="square" has cells
    case = Case(
        "s",
        "p",
        0,
        0,
        create(method, 16, 2, scales, **options).eval(),
        torch.randn(*shape, 16),
        torch.ones(shape, dtype=torch.bool),
        torch.arange(392).reshape(1, 1, 196, 2).expand(*shape, 2),
    )
    assert attention_flow(case, 256) is None
    case.model(*case.bag)  # but it answers


# ------------------------------------------------------------------------------------------------ the tiles themselves


def test_extremes_are_the_tiles_of_the_slide_at_full_resolution(tmp_path):
    path = make_slide(tmp_path / "s.svs", 700, 600, coverage=1)
    xy = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(-1, 2) * 128
    value = np.random.default_rng(0).permutation(16) / 15
    scores = pd.concat(
        [
            pd.DataFrame({"scale": scale, "place": np.arange(16), "x": xy[:, 0], "y": xy[:, 1], "normalised": v})
            for scale, v in ((10, value), (20, 1 - value))
        ]
    )
    found = extremes({"path": path, "mpp": 0.0, "tile_px": 64}, scores, count=3)
    assert list(found) == [10, 20]
    by_value = np.argsort(value)
    for scale, ordered in ((10, by_value[::-1]), (20, by_value)):
        assert [t["place"] for t in found[scale]["highest"]] == list(ordered[:3])
        assert [t["place"] for t in found[scale]["lowest"]] == list(ordered[::-1][:3])
        with open_slide(path) as slide:
            for tile in (t for side in found[scale].values() for t in side):
                np.testing.assert_array_equal(tile["tile"], slide.read(*xy[tile["place"]].tolist(), scale, 64))


def test_extremes_of_a_constant_map_and_of_few_tiles(tmp_path):
    path = make_slide(tmp_path / "s.svs", 400, 300, coverage=1)
    scores = pd.DataFrame({"scale": 20, "place": [2, 0, 1], "x": [0, 64, 128], "y": 0, "normalised": 0.5})
    found = extremes({"path": path, "mpp": 0.0, "tile_px": 64}, scores, count=6)[20]
    assert [t["place"] for t in found["highest"]] == [0, 1, 2] == [t["place"] for t in found["lowest"]][::-1]


def test_a_map_that_is_constant_to_rounding_is_constant():
    alike = np.full(7, 1 / 7) + np.arange(7) * 1e-9
    assert (normalise(alike) == 0.5).all() and (normalise(-alike) == 0.5).all() and (normalise(0 * alike) == 0.5).all()
    np.testing.assert_allclose(normalise(np.array([-3.0, 1.0, -1.0])), [0, 1, 0.5])
