"""The witness rate: shares by the pixel, bags that hold what they promise, bounds on DMSMIL, words that follow."""

import shutil
from dataclasses import replace
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch

from dmsmil import figures
from dmsmil.analysis import witness
from dmsmil.analysis.witness import (
    OTHER,
    SIGNAL,
    blind_bound,
    check_folds,
    diluted,
    enough,
    kinds,
    most_tiles,
    reach_bound,
    signal_count,
    tile_weights,
    witness_runs,
    witness_sentences,
    witness_table,
)
from dmsmil.cohorts.folds import bag_folds
from dmsmil.features.bags import toy_bags
from dmsmil.features.truth import witness_share
from dmsmil.jobs.failures import failure_row, read_failures, write_failures
from dmsmil.jobs.files import InputError
from dmsmil.models import create
from dmsmil.models.deformable import DeformableAttention, reach
from dmsmil.models.maps import lay_out
from dmsmil.slides.store import Store
from dmsmil.training.config import RunConfig
from dmsmil.training.runs import Runs
from tests.analysis.test_comparison import predictions
from tests.conftest import assert_one_line
from tests.figures.test_figures import drawn

# ------------------------------------------------------------------------------------------------ bounds


def loud(method, seed, scale=3.0, **options):
    """A DMSMIL with large random weights: offsets and attention far from where training starts."""
    torch.manual_seed(seed)
    model = create(method, 8, 2, (10, 20) if method == "dmsmil" else (10,), projection_dim=8, **options).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=scale)
    return model


@pytest.mark.parametrize("tiles, points", [(200, 1), (193, 2), (60, 1), (200, 4), (7, 1)])
@torch.no_grad()
def test_no_tile_gathers_more_than_the_queries_near_it(tiles, points):
    bound = reach_bound(tiles, points + 1)
    assert (bound < 1) == (tiles > 7)
    for seed in range(3):
        scores = loud("dmsmil", seed, points=points, offset="cells")(torch.randn(4, 2, tiles, 8).double()).scores
        torch.testing.assert_close(scores.sum(-1), torch.ones(4, 2).double())
        assert scores.max() <= bound + 1e-9


def steps(tiles, points):
    """An attention layer whose offset is c tanh(content), attention uniform; the map of its tiles, and equal shares."""
    layer = DeformableAttention(1, 2, 1, points, "cells", "linear", "points").double()
    for parameter in layer.parameters():
        parameter.zero_()
    layer.query.weight[0] = torch.eye(2)
    layer.plan.weight[0, :, : 2 * points] = torch.eye(2).repeat(1, points)
    maps = lay_out(torch.ones(1, 1, tiles, dtype=torch.bool))
    place = torch.stack([maps.cell % maps.width, maps.cell // maps.width], -1)[0, 0].double()
    return layer, place, maps, torch.full((1, 1, tiles), 1 / tiles).double()


@pytest.mark.parametrize("tiles, points", [(200, 1), (193, 2), (200, 4)])
@torch.no_grad()
def test_the_bound_on_reach_is_reached(tiles, points):
    """Queries that all know the way to one tile: each steps towards it, as far as eq. (3) lets it."""
    layer, place, maps, share = steps(tiles, points)
    found = []
    for target in range(tiles):
        step = ((place[target] - place) / layer.reach).clamp(-1 + 1e-12, 1 - 1e-12).atanh()
        found.append(layer.weights(step[None, None], maps, share)[0, 0, 0, target].item())
    assert max(found) == pytest.approx(reach_bound(tiles, points + 1), rel=1e-6)


def test_in_the_middle_of_a_large_map_the_bound_is_the_papers():
    for points in (1, 2, 3):
        assert reach_bound(800, points + 1) == pytest.approx((2 * (points + 1) + 1) ** 2 / 800)
    assert reach_bound(800, reach("dat", 4)) == 9 / 800 and reach("cells", 4) == 5


@pytest.mark.parametrize("scale", [0.2, 1.0])
@torch.no_grad()
def test_tiles_in_random_places_get_at_most_twice_their_share(scale):
    """All orders of five tiles, of which some carry the signal: the mean over orders is the expectation."""
    orders = torch.tensor(list(permutations(range(5))))
    for seed in range(8):
        model, tiles = loud("damil", seed, scale), torch.randn(5, 8).double()
        scores = model(tiles[orders][:, None]).scores[:, 0]
        for signal in range(1, 6):
            weight = (scores * (orders < signal)).sum(1).mean().item()
            assert weight <= blind_bound(signal, 5) + 1e-12 <= 2 * signal / 5 + 2e-12


@torch.no_grad()
def test_the_bound_on_random_places_is_reached_but_for_the_border():
    """The signal tile's query stays, all others look one cell to the right; the signal in each of the 200 places."""
    layer, place, maps, share = steps(200, points=1)
    content = torch.full((200, 200, 2), 0.0).double()
    content[..., 0] = torch.tensor(1 / layer.reach).atanh()
    content[torch.arange(200), torch.arange(200)] = 0
    weights = [layer.weights(one[None, None], maps, share)[0, 0, 0, i] for i, one in enumerate(content)]
    weight, bound = torch.stack(weights).mean().item(), blind_bound(1, 200)
    assert 0.95 * bound < weight < bound, "a query in the last column finds itself, not the signal"
    assert blind_bound(1, 12) == pytest.approx(2 / 12) and blind_bound(12, 12) == 1


# ------------------------------------------------------------------------------------------------ shares


def test_the_share_of_a_tile_is_that_of_its_pixels():
    rng = np.random.default_rng(0)
    signal = rng.random((12, 10)) < 0.5
    truth = {"signal": signal, "downsample": np.int64(16)}
    pixels = np.kron(signal, np.ones((16, 16)))
    coords, side = np.stack([rng.integers(0, 160 - 37, 50), rng.integers(0, 192 - 37, 50)], 1), 37
    expected = [pixels[y : y + side, x : x + side].mean() for x, y in coords]
    np.testing.assert_allclose(witness_share(truth, coords, side), expected, atol=1e-12)
    beyond = witness_share({"signal": np.ones((4, 4), bool), "downsample": 16}, np.array([[32, 0], [64, 64]]), 64)
    np.testing.assert_allclose(beyond, [0.5, 0], atol=1e-12)


def test_a_tile_is_of_a_kind_only_if_it_is_so_at_every_scale():
    shares = np.array([[[1, SIGNAL, OTHER, 0, 0.5, 1, np.nan], [SIGNAL, 0.5, 0, 0.5, 0.5, np.nan, np.nan]]])
    signal, other = kinds(shares)
    assert np.flatnonzero(signal[0]).tolist() == [0] and np.flatnonzero(other[0]).tolist() == [2]


# ------------------------------------------------------------------------------------------------ diluted bags


@pytest.fixture
def toy():
    """Toy bags of 32 tiles (24 in every third slide), and shares that make about 4 in 10 of either kind."""
    bags = toy_bags(20, seed=3)
    drawn_once = np.random.default_rng(0).random((20, 1, 32))
    shares = np.repeat(np.select([drawn_once < 0.4, drawn_once < 0.8], [0.9, 0.1], 0.5), 2, 1)
    shares[~bags.mask.numpy()] = np.nan
    return bags, shares


RATES = [0.5, 0.05, 0.25, 0.1]


def test_most_tiles_is_the_most_that_keep_nine_slides_in_ten(toy):
    _, shares = toy
    tiles = most_tiles(shares, RATES)
    assert enough(shares, RATES, tiles).mean() >= 0.9 > enough(shares, RATES, tiles + 1).mean()
    with pytest.raises(InputError) as caught:
        most_tiles(np.full((4, 2, 8), 0.5), RATES)
    assert_one_line(caught, "demo_side")


def test_every_bag_holds_what_its_rate_promises(toy):
    bags, shares = toy
    tiles = 12
    several = diluted(bags, shares, RATES, tiles)
    assert [one.rate for one in several] == [1 / 12, 3 / 12, 6 / 12], "ascending; 0.05 and 0.1 are one tile each"
    kept = enough(shares, RATES, tiles)
    assert 0 < kept.sum() < 20
    for one in several:
        assert one.bags.slide_ids == [name for name, there in zip(bags.slide_ids, kept) if there]
        assert set(one.bags.missing) == set(bags.slide_ids) - set(one.bags.slide_ids)
        assert one.bags.x.shape == (kept.sum(), 2, tiles, 16) and one.bags.mask.all()
        assert one.bags.labels.tolist() == bags.labels[torch.from_numpy(kept)].tolist()
        signal, other = kinds(one.shares)
        assert (signal.sum(1) == round(one.rate * tiles)).all() and (signal | other).all()


def test_tiles_keep_their_order_and_their_scales_together(toy):
    bags, shares = toy
    for one in diluted(bags, shares, RATES, 12):
        for row, slide in enumerate(bags.rows(one.bags.slide_ids).tolist()):
            at = [bags.x[slide, 0].tolist().index(tile) for tile in one.bags.x[row, 0].tolist()]
            assert at == sorted(at) and len(set(at)) == 12
            for name in ("x", "coords"):
                assert torch.equal(getattr(one.bags, name)[row], getattr(bags, name)[slide][:, at])
            np.testing.assert_array_equal(one.shares[row], shares[slide][:, at])


def test_between_two_rates_only_the_tiles_differ_that_must(toy):
    bags, shares = toy
    low, middle, high = diluted(bags, shares, RATES, 12)
    for fewer, more, changed in ((low, middle, 2), (middle, high, 3)):
        for a, b in zip(fewer.bags.x[:, 0], more.bags.x[:, 0]):
            assert len({tuple(t) for t in a.tolist()} & {tuple(t) for t in b.tolist()}) == 12 - changed


def test_a_draw_depends_on_the_seed_and_the_slide_alone(toy):
    bags, shares = toy
    one, again, other = (diluted(bags, shares, RATES, 12, seed)[1].bags for seed in (0, 0, 1))
    assert torch.equal(one.x, again.x) and not torch.equal(one.x, other.x)
    few = diluted(bags.subset(one.slide_ids[2:5]), shares[bags.rows(one.slide_ids[2:5]).numpy()], RATES, 12)[1].bags
    assert torch.equal(few.x, one.x[2:5])
    names = [d.bags.identity for seed in (0, 1) for d in diluted(bags, shares, RATES, 12, seed)]
    assert len({bags.identity, *names}) == 7 and one.identity == again.identity


def test_signal_count():
    assert [signal_count(rate, 12) for rate in (0, 0.01, 0.1, 0.25, 0.5, 1)] == [0, 1, 1, 3, 6, 12]


def test_folds_that_lose_a_class_are_refused(toy):
    bags, _ = toy
    folds = bag_folds(bags, 5)
    check_folds(bags, folds)
    lost = folds.slide_id[(folds.fold_2 == "test") & (folds.label == "b")]
    with pytest.raises(InputError) as caught:
        check_folds(bags.subset([name for name in bags.slide_ids if name not in set(lost)]), folds)
    assert_one_line(caught, "fold 2 tests no b slide")


# ------------------------------------------------------------------------------------------------ the experiment


@pytest.fixture
def demo(tmp_path):
    """(home, bags, folds) of a study that looks like the demo's: a truth file a slide, the class in signal tiles."""
    bags = replace(toy_bags(16, k=24, signal=0.0, seed=1), store=Store(tmp_path, 256, (10, 20), "toy"))
    rng = np.random.default_rng(0)
    (tmp_path / "cohort/truth").mkdir(parents=True)
    for row, slide_id in enumerate(bags.slide_ids):
        here = np.zeros((3, 8), bool)  # tiles of the toy lie on a grid eight wide, 1024 px apart
        here.flat[rng.permutation(18)[:9]] = True
        np.savez(
            tmp_path / f"cohort/truth/{slide_id}.npz", signal=np.kron(here, np.ones((64, 64), bool)), downsample=16
        )
        bags.x[row, :, :, 0] += torch.from_numpy(here.ravel() & bags.mask[row, 0].numpy()) * (6.0 * bags.labels[row])
    return tmp_path, bags, bag_folds(bags, 2)


def go(demo, rates, **settings):
    home, bags, folds = demo
    return witness_runs(home, bags, folds, rates, workers=1, device="cpu", **{"epochs": 2, "lr": 1e-3, **settings})


@pytest.mark.slow
def test_the_experiment_from_truth_to_figure(demo, capsys, tmp_path):
    found = go(demo, [0, 0.3])
    table = witness_table(found)
    assert not found.reason and table.rate.nunique() == 2 and len(table) == 14
    assert (table.witnesses == (table.rate * table.tiles).round()).all() and table.slides.nunique() == 1
    np.testing.assert_allclose(table.signal_area, table.rate, atol=1e-12)  # these tiles lie wholly in or out
    mean = table[table.method == "meanpool"]
    np.testing.assert_allclose(mean.witness_weight, mean.rate, atol=1e-6)
    np.testing.assert_allclose(mean.largest_weight, 1 / mean.tiles, atol=1e-6)
    assert set(table.name[-7:]) >= {"DMSMIL", "DMSMIL-Select", "ABMIL 10x", "ABMIL 20x"}
    flat = table[table.name.str.contains("deformable")]
    np.testing.assert_allclose(flat.witness_weight, flat.rate, atol=1e-6)
    assert (table.largest_weight <= 1 + 1e-6).all() and (table.witness_weight[table.rate == 0] == 0).all()

    said = witness_sentences(found, table)
    for part in (
        "left out",
        "with 0 of",
        "DMSMIL minus ABMIL 10x",
        "DMSMIL minus DMSMIL, deformable=False",
        "the lowest rate",
        "Largest weight",
    ):
        assert part in said, part
    data = drawn(figures.witness_rates(table, tmp_path / "f"), tmp_path / "f")
    assert list(data.name) == list(table.name)
    np.testing.assert_allclose(data.AUC_mean, table.AUC_mean, rtol=1e-5)

    capsys.readouterr()
    pd.testing.assert_frame_equal(witness_table(go(demo, [0.3, 0])), table)
    assert capsys.readouterr().out == "", "a second time nothing is trained"


@pytest.mark.slow
def test_the_signal_tiles_are_those_whose_weight_is_counted(demo, monkeypatch):
    """ABMIL, on a signal no mean could miss, gives it more than a mean: and a larger weight than any one tile's."""
    monkeypatch.setattr(witness, "METHODS", [{"abmil": {"scale": 10}}])
    found = go(demo, [0.1], epochs=40)
    largest, on_signal = tile_weights(found.runs[0][0], found.bags[0])
    assert on_signal > 1.5 * found.bags[0].rate and largest > 1.5 / found.bags[0].bags.x.shape[2]


@pytest.mark.parametrize("rates, truth, reason", [([], True, "witness_rates"), ([0.1], False, "painted cohorts")])
def test_without_truth_or_rates_one_sentence_says_so(demo, rates, truth, reason):
    home, bags, _ = demo
    if not truth:
        shutil.rmtree(home / "cohort/truth")
    found = go(demo, rates)
    table = witness_table(found)
    assert table.empty and reason in witness_sentences(found, table) and not (home / "runs").exists()


def test_a_truth_that_is_lost_is_said_and_not_that_the_cohort_was_painted_by_nobody(demo):
    home, bags, _ = demo
    (home / f"cohort/truth/{bags.slide_ids[3]}.npz").unlink()
    with pytest.raises(InputError, match=bags.slide_ids[3]):
        go(demo, [0.1])


@pytest.mark.parametrize("rates", [[0.1, 1.5], ["0.1"], [-0.1]])
def test_a_rate_that_is_none_is_refused(demo, rates):
    with pytest.raises(InputError) as caught:
        go(demo, rates)
    assert_one_line(caught, "witness_rates")


# ------------------------------------------------------------------------------------------------ sentences


@pytest.fixture
def made(monkeypatch):
    """A Witness of one rate whose DMSMIL, ABMIL 10x and ABMIL 20x are readers of given strengths, and its table."""
    monkeypatch.setattr(witness, "tile_weights", lambda runs, one: (0.2, 0.15))

    def make(signals):
        rng, truth, runs = np.random.default_rng(0), np.arange(100) % 2 == 1, []
        for signal, (name, scales) in zip(signals, (("dmsmil", (10, 20)), ("abmil", (10,)), ("abmil", (20,)))):
            table = predictions(truth, signal * truth + rng.normal(size=100))
            records = pd.DataFrame(
                {
                    "collapsed": False,
                    "learned_nothing": False,
                    "gathered": False,
                    "attention": [{"effective_10x": 0.5}] * 5,
                    "slides": [{"train": 80, "val": 0, "test": 20}] * 5,
                }
            )
            runs.append(Runs(RunConfig(name, scales), table, table, records, {}))
        one = diluted(toy_bags(100), np.tile([0.9, 0.1], (100, 2, 16)), [0.1], 10)[0]
        found = witness.Witness([runs], [one])
        return found, witness_table(found)

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    "signals, verdict",
    [
        ((0, 4, 4), "**Where 10% of the tiles carry the signal, DMSMIL falls below ABMIL 10x, ABMIL 20x.**"),
        ((0, 0, 4), "DMSMIL falls below ABMIL 20x.**"),
        ((4, 0, 0), "is not shown to fall below ABMIL"),
        ((1, 1, 1), "is not shown to fall below ABMIL"),
    ],
)
def test_the_verdict_follows_from_the_numbers(made, signals, verdict):
    found, table = made(signals)
    said = witness_sentences(found, table)
    assert verdict in said and "DMSMIL 1.50" in said, said


@pytest.mark.slow
def test_a_difference_of_these_models_alone_is_called_so(made, monkeypatch):
    found, table = made((0, 0, 4))
    compare = witness.compare
    monkeypatch.setattr(witness, "compare", lambda *args: compare(*args).assign(AUC_p_holm=0.2))
    assert "these models of DMSMIL fall below ABMIL 20x, but that others" in witness_sentences(found, table)


@pytest.mark.slow
def test_the_rates_are_compared_at_the_lowest_where_a_signal_is_seen(made):
    low, table = made((0, 4, 4))
    high = replace(low.bags[0], rate=0.5)
    found = witness.Witness([*low.runs, *low.runs], [*low.bags, high])
    for seen, said in (
        (0.4, "At 50%, the lowest rate where a method is above chance:"),
        (0.6, "At 10%, the lowest rate where a method is above chance:"),
    ):
        both = pd.concat([table.assign(AUC_low=seen), table.assign(rate=0.5, witnesses=5, AUC_low=0.6)])
        assert said in witness_sentences(found, both.reset_index(drop=True))
    assert "At 10%, the lowest rate: " in witness_sentences(low, table.assign(AUC_low=0.4))


@pytest.mark.slow
def test_it_is_said_who_sees_a_signal_and_where_there_is_none(made):
    found, table = made((4, 0, 0))
    nobody = table.assign(AUC_low=0.4)
    assert "none with 1 of 10 signal tiles." in witness_sentences(found, nobody)
    assert "all with 1 of 10" in witness_sentences(found, table.assign(AUC_low=0.6))
    control = table.assign(rate=0.0, witnesses=0, AUC_low=[0.6, 0.4, 0.4])
    assert "DMSMIL with 0 of 10 signal tiles. Without any none should be" in witness_sentences(found, control)


def test_failures_of_rates_that_are_no_longer_asked_for_are_dropped(toy, tmp_path):
    for stage in ("witness rate 0.100", "compare"):
        write_failures(tmp_path, stage, [failure_row("x", stage, InputError("broken"))])
    witness_runs(tmp_path, toy[0], bag_folds(toy[0], 2), [])
    assert list(read_failures(tmp_path).stage) == ["compare"]
