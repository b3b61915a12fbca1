"""A map is judged by what it does: planted maps come out as what they are."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from dmsmil.features.bags import toy_bags
from dmsmil.interpret import faithfulness as room
from dmsmil.interpret.explain import (
    EXPLANATIONS,
    Case,
    at_places,
    cases,
    gradient_times_input,
    own,
    own_scores,
    probabilities,
    tile_scores,
)
from dmsmil.interpret.faithfulness import (
    STEPS,
    _kept,
    agreement,
    area,
    judge,
    map_sentences,
    measure,
    random_twin,
    removal,
    truth_auc,
)
from dmsmil.jobs.files import InputError
from dmsmil.models.base import MIL, Output, full_mask, masked_mean
from dmsmil.training.runs import get_runs
from tests.training.test_fit import folds_of, quick


class Linear(MIL):
    """z = mean over all tiles of w^T x, less 4.5: what a tile adds is known. Scores: say(w^T x)."""

    def __init__(self, channels=4, scales=(10, 20), say=torch.abs):
        super().__init__(channels, 2, scales)
        self.w, self.say = torch.arange(1.0, channels + 1), say

    def forward(self, bags, mask=None, coords=None, geometry=None):
        mask = full_mask(bags, mask)
        part = (bags * self.w).sum(-1) * mask
        z = part.sum((1, 2)) / mask.sum((1, 2)) - 4.5
        return Output(torch.stack([-z, z], 1), self.say(part) * mask, {})


def case(model, places=10, padding=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    k, s = places + padding, len(model.scales)
    mask = torch.zeros(1, s, k, dtype=torch.bool)
    mask[:, :, :places] = True
    x = torch.rand(1, s, k, 4, generator=generator) * mask.unsqueeze(-1)  # positive: every tile speaks for class 1
    return Case("s", "p", 1, 0, model, x, mask, torch.zeros(1, s, k, 2, dtype=torch.int64))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    bags = toy_bags(24, 16, share=0.3, signal=3.0)
    folds = folds_of(bags)
    configs = [
        quick(bags, folds, "abmil", scale=10, epochs=30, lr=3e-3),
        quick(bags, folds, epochs=3),
        quick(bags, folds, "meanpool", epochs=3),
    ]
    return (
        bags,
        folds,
        get_runs(tmp_path_factory.mktemp("runs"), bags, folds, configs, workers=1, report=lambda line: None),
    )


def test_nothing_gone_is_the_prediction_and_padding_is_no_place():
    c = case(Linear())
    whole = c.model(*c.bag).probabilities[0].max().item()
    keep = np.ones((1, 10), bool)
    for way in (False, True):
        assert probabilities(c, keep, way)[0] == pytest.approx(whole, abs=1e-6)
    assert list(c.places) == list(range(10))


def test_removed_and_replaced_are_what_they_say():
    c, keep = case(Linear()), np.arange(10)[None] < 6
    left = c.mask.clone()
    left[..., 6:] = False
    assert probabilities(c, keep)[0] == pytest.approx(c.model(c.x, left, c.coords).probabilities[0, 1].item(), abs=1e-6)
    x = c.x.clone()
    x[:, :, 6:10] = masked_mean(c.x, c.mask).unsqueeze(2)
    said = probabilities(c, keep, replace=True)[0]
    assert said == pytest.approx(c.model(x, c.mask, c.coords).probabilities[0, 1].item(), abs=1e-6)


def test_the_true_map_is_faithful_its_reverse_misleads_and_noise_does_neither():
    c = case(Linear(), places=40)
    true, noise = own(c), np.random.default_rng(1).uniform(size=40)
    gain = {
        name: area(removal(c, score), "replaced")
        for name, score in (("true", true), ("reverse", -true), ("noise", noise))
    }
    assert gain["true"] > 0.02 and gain["reverse"] == pytest.approx(-gain["true"], abs=1e-6)
    assert abs(gain["noise"]) < gain["true"] / 2


def test_deletion_is_the_mirror_of_insertion():
    """Taking out the lowest first leaves at every share what putting in the highest first has put in."""
    c = case(Linear(), places=20)
    score = own(c)
    table = removal(c, score).set_index(["order", "share"])
    best = np.argsort(-score, kind="stable")
    for share in STEPS:
        keep = np.zeros((1, 20), bool)
        keep[0, best[: 20 - round(share * 20)]] = True
        assert table.removed["lowest", share] == pytest.approx(probabilities(c, keep)[0], abs=1e-6)


def test_a_constant_map_gains_nothing_and_agrees_with_nothing():
    c = case(Linear(say=lambda part: torch.ones_like(part)), places=40)
    gain = np.mean([area(removal(c, own(c), seed), "removed") for seed in range(8)])
    assert abs(gain) < area(removal(c, own(case(Linear(), places=40))), "removed") / 3
    assert np.isnan(agreement(own(c), EXPLANATIONS["occlusion"](c)))


def test_a_map_that_is_constant_to_rounding_ranks_nothing():
    noise = 1 + 6e-8 * torch.rand(2, 12, generator=torch.Generator().manual_seed(1))
    c = case(Linear(say=lambda part: noise))
    assert np.ptp(own(c)) == 0 and np.isnan(agreement(noise[0].numpy(), np.arange(12.0)))
    half = np.arange(24).reshape(2, 12) % 2
    assert truth_auc(c, half, noise.numpy()) == [0.5, 0.5]


def test_a_place_with_a_tile_at_every_scale_is_left_where_there_is_one():
    """Of methods that read the finer scale inside the coarser a slide without any tile there is refused."""
    c = case(Linear(), places=20)
    mask = c.mask.clone()
    mask[0, 1, 3:20] = False  # three places have both tiles
    c = replace(c, mask=mask)
    for gone in range(20):
        assert set(np.flatnonzero(_kept(np.arange(20), gone, c))) == {2, *range(gone, 20)}
        assert set(np.flatnonzero(_kept(np.arange(20)[::-1], gone, c))) == set(range(20 - gone))
    assert removal(c, own(c)).removed.notna().all()


def test_ties_fall_otherwise_in_each_slide_and_alike_in_each_call():
    """One order for all slides would make a place that matters a finding about every constant map."""
    c = case(Linear())
    flat = np.ones(10)
    other = replace(c, slide_id="t")
    assert removal(c, flat).equals(removal(c, flat)) and not removal(c, flat).equals(removal(other, flat))
    assert removal(c, own(c)).query("order != 'random'").equals(removal(other, own(c)).query("order != 'random'"))


def test_for_a_linear_model_the_explanations_are_known():
    """Gradient x input is each tile's term exactly; occlusion orders places by their distance to the mean tile."""
    c = case(Linear())
    part = (c.x * c.model.w).sum(-1)[0, :, :10]
    np.testing.assert_allclose(EXPLANATIONS["gradient"](c), part.sum(0) / 20, rtol=1e-5)  # 20 tiles
    away = (part - part.mean(1, keepdim=True)).sum(0).abs()
    assert agreement(EXPLANATIONS["occlusion"](c), away.numpy()) > 0.95


def test_scores_of_places_weigh_scales_alike():
    c = case(Linear())
    score = own_scores(c)
    score[1] *= 1000
    np.testing.assert_allclose(at_places(score, c), own(c), rtol=1e-6)


def test_truth_auc_agrees_with_pairs_and_is_nan_without_both_kinds():
    c = case(Linear())
    rng = np.random.default_rng(0)
    score, truth = rng.uniform(size=(2, 12)), np.round(rng.uniform(size=(2, 12)))
    truth[1] = 1
    found = truth_auc(c, truth, score)
    yes, no = score[0, :10][truth[0, :10] == 1], score[0, :10][truth[0, :10] == 0]
    assert found[0] == pytest.approx((yes[:, None] > no).mean()) and np.isnan(found[1])


@pytest.mark.slow
def test_fresh_weights_differ_and_leave_the_random_state_alone(trained):
    bags, _, (runs, *_) = trained
    c = next(cases(runs, bags))
    state = torch.random.get_rng_state()
    twin = random_twin(c, runs)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not np.allclose(own(c), own(twin)) and np.array_equal(own(twin), own(random_twin(c, runs)))


def test_a_fresh_twin_without_a_preference_leaves_the_others_their_say(trained, monkeypatch):
    bags, _, (runs, *_) = trained
    asked, mean = [], room._mean
    monkeypatch.setattr(room, "_mean", lambda values: asked.append(values) or mean(values))
    slides, _ = room.slide_measures(runs, bags, None, 1, 0)
    assert mean([np.nan, 0.2, 0.4]) == pytest.approx(0.3) and np.isnan(mean([np.nan, np.nan]))
    assert slides.random_weights[0] == pytest.approx(mean(asked[0])) and len(asked[0]) == room.TWINS


def test_measuring_leaves_the_threads_of_this_process_and_no_gradients(trained):
    bags, _, (runs, *_) = trained
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measure([runs], bags, None, slides=1, workers=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    case = next(cases(runs, bags))
    gradient_times_input(case)
    assert all(parameter.grad is None for parameter in case.model.parameters())


@pytest.mark.slow
def test_the_summary_is_the_mean_over_patients_of_what_the_maps_say(trained):
    bags, _, runs = trained
    truth = (bags.x[..., 0] > 1).double().numpy()
    summary, slides, curves = measure(runs, bags, truth, workers=1)
    abmil, table = summary.iloc[0], tile_scores(runs[0], bags)
    by_hand = []
    for slide_id, part in table.groupby("slide_id"):
        signal = truth[bags.slide_ids.index(slide_id), 0, part.place] > 0.5
        if 0 < signal.sum() < len(signal):
            by_hand.append(roc_auc_score(signal, part.score))
    assert abmil.truth_10x == pytest.approx(np.mean(by_hand)) and abmil.truth_10x_low < abmil.truth_10x
    assert abmil.replaced_low > 0 and abmil["map"].startswith("faithful")
    assert summary["map"].iloc[2] == "constant" and "explains nothing" in map_sentences(summary)
    assert len(slides) == 72 and np.isnan(abmil.truth_20x) and 0 < summary.truth_20x[1] < 1
    assert curves.groupby(["name", "order"]).size().eq(len(STEPS)).all()


@pytest.mark.slow
def test_fewer_slides_are_spread_over_the_cohort(trained):
    bags, _, runs = trained
    _, slides, _ = measure(runs[:1], bags, slides=5, workers=1)
    assert len(slides) == 5 and {slides.slide_id.min(), slides.slide_id.max()} == {"slide000", "slide023"}


def test_the_score_table_holds_every_tile_of_every_tested_slide(trained):
    bags, folds, (_, runs, _) = trained
    table = tile_scores(runs, bags)
    assert len(table) == int(bags.mask.sum()) and table.normalised.between(0, 1).all()
    one = table[(table.slide_id == bags.slide_ids[1]) & (table.scale == 20)]
    np.testing.assert_array_equal(one[["x", "y"]], bags.coords[1, 1][bags.mask[1, 1]])
    assert one.score.sum() == pytest.approx(1, abs=1e-5) and {one.normalised.min(), one.normalised.max()} == {0, 1}
    side = folds.set_index("slide_id")
    assert all(side.loc[s, f"fold_{f}"] == "test" for s, f in table.groupby("slide_id").fold.first().items())


@pytest.mark.slow
def test_a_slide_that_was_not_tested_is_named_with_a_near_one(trained):
    bags, _, (runs, *_) = trained
    with pytest.raises(InputError, match="slide 01.* was not tested.*did you mean"):
        list(cases(runs, bags, ["01"]))


@pytest.mark.parametrize(
    "change, word",
    [
        ({}, "faithful"),
        ({"replaced_low": -0.1}, "not shown to be faithful"),
        ({"random_weights_high": 0.9}, "faithful but not learned"),
        ({"random_weights": 0.9, "random_weights_high": np.nan}, "faithful but not learned"),  # one patient
        ({"random_weights": np.nan, "random_weights_high": np.nan}, "faithful"),  # fresh weights prefer no tile
        ({"replaced_low": -0.3, "replaced_high": -0.1}, "misleading"),
        ({"occlusion": np.nan, "random_weights": np.nan}, "constant"),
    ],
)
def test_the_word_follows_the_numbers(change, word):
    row = {
        "replaced_low": 0.1,
        "replaced_high": 0.3,
        "random_weights": 0.1,
        "random_weights_high": 0.2,
        "occlusion": 0.5,
    }
    assert judge(row | change) == word


def test_sentences_turn_with_the_sign():
    row = {
        "name": "X",
        "map": "misleading",
        "occlusion": 0.1,
        "gradient": 0.2,
        "random_weights": 0.3,
        "replaced": -0.2,
        "replaced_low": -0.3,
        "replaced_high": -0.1,
        "removed": 0.1,
        "removed_low": 0.0,
        "removed_high": 0.2,
    }
    said = map_sentences(pd.DataFrame([row]))
    assert "0.20 [0.10, 0.30] higher with tiles replaced, 0.10 [0.00, 0.20] lower with tiles removed" in said
    assert "with fresh weights 0.30" in said
    said = map_sentences(pd.DataFrame([row | {"random_weights": np.nan}]))
    assert "input 0.20, fresh weights prefer no tile." in said


@pytest.mark.slow
def test_a_fresh_twin_is_given_the_same_features(trained, tmp_path):
    """Mean and deviation of the features are data, not weights: without them a twin sees other features."""
    bags, folds, _ = trained
    config = quick(bags, folds, epochs=1, options={"standardise": True})
    (runs,) = get_runs(tmp_path, bags, folds, [config], workers=1, report=lambda line: None)
    c = next(cases(runs, bags))
    mine, fresh = (one.model.branches for one in (c, random_twin(c, runs)))
    assert torch.equal(fresh.centre, mine.centre) and torch.equal(fresh.deviation, mine.deviation)
    assert mine.centre.abs().sum() > 0 and not torch.equal(fresh.project.weight, mine.project.weight)
