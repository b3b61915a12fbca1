"""Walkthrough 7: what its figures tell is what an independent formula gives, and its sentences hold for its numbers."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

from dmsmil.interpret.faithfulness import STEPS, area
from drawings import maps
from tests.walkthroughs.test_lessons_bags import done


def titles(figure):
    return [ax.get_title(loc="left") for ax in figure.axes]


@pytest.mark.parametrize("seed", range(4))
def test_an_outline_has_the_length_of_its_border(seed):
    truth = np.random.default_rng(seed).random((5, 7)) < 0.4
    padded = np.pad(truth, 1).astype(int)
    edges = maps._edges(truth)
    assert len(edges) == sum(np.abs(np.diff(padded, axis=axis)).sum() for axis in (0, 1))
    assert np.allclose(np.abs(edges[:, 0] - edges[:, 1]).sum(1), 1)
    for (x0, y0), (x1, y1) in edges:  # on one side of it a True cell, on the other a False one
        across = np.array([y1 - y0, x0 - x1]) / 2
        sides = [np.round(np.array([x0 + x1, y0 + y1]) / 2 + sign * across + 1).astype(int) for sign in (1, -1)]
        assert sum(padded[y, x] for x, y in sides) == 1


def test_the_auc_above_a_map_counts_pairs():
    rng = np.random.default_rng(0)
    values, truth = rng.integers(0, 4, (3, 4, 5)).astype(float), rng.random((3, 4, 5)) < 0.3
    figure = maps.beside({"one": values, "two": -values}, list("abc"), truth)
    for n, (title, turned) in enumerate(zip(titles(figure)[:3], titles(figure)[3:])):
        inside, outside = values[n][truth[n]][:, None], values[n][~truth[n]]
        share = ((inside > outside) + 0.5 * (inside == outside)).mean()
        assert title == f"{'abc'[n]}: AUC {share:.2f}" and turned == f"{'abc'[n]}: AUC {1 - share:.2f}"


def test_the_area_of_removal_is_the_packages():
    rng = np.random.default_rng(1)
    curves = pd.DataFrame(
        [
            {"name": name, "order": order, "share": share, "removed": rng.random(), "replaced": rng.random()}
            for name in ("ABMIL 10x, M=64", "DMSMIL")
            for order in maps.ORDERS
            for share in STEPS
        ]
    )
    told = titles(maps.removal(curves))
    expected = [
        f"{name.split(',')[0]}: area {area(curves[curves.name == name], way):+.2f}"
        for way in ("replaced", "removed")
        for name in curves.name.unique()
    ]
    assert told == expected


def test_fresh_maps_carry_their_rank_correlation():
    rng = np.random.default_rng(2)
    mine, others = rng.random((3, 4)), [rng.random((3, 4)) for _ in range(2)]
    told = titles(maps.fresh({"m": mine}, {"m": [*others, np.exp(mine)]}))
    ranks = [rankdata(values) for values in (mine, *others, mine)]
    assert told[1:] == [f"fresh weights: {np.corrcoef(ranks[0], other)[0, 1]:+.2f}" for other in ranks[1:]]


@pytest.mark.slow
def test_stretching_hides_how_large_the_noise_is():
    drawn = {noise: maps.stretched(noise) for noise in (1e-6, 1e-3, 0.3)}
    raw, shown = ({noise: figure.axes[n].images[0].get_array() for noise, figure in drawn.items()} for n in (0, 1))
    for noise, values in raw.items():
        np.testing.assert_allclose(shown[noise], shown[0.3], atol=1e-7)
        np.testing.assert_allclose((values - 1) / noise, (raw[0.3] - 1) / 0.3, atol=1e-7)
        assert drawn[noise].axes[0].images[0].get_clim() == (0, 2)
    assert len(set(titles(figure)[0] for figure in drawn.values())) == 3


def test_averages_are_means_over_slides():
    rng = np.random.default_rng(3)
    truth, several = rng.random((5, 3, 4)) < 0.3, {"a": rng.random((5, 3, 4)), "b": rng.random((2, 3, 4))}
    images = [ax.images[0].get_array() for ax in maps.averages(several, truth).axes if ax.images]
    for image, values in zip(images, (truth, *several.values()), strict=True):
        np.testing.assert_allclose(image, sum(values.astype(float)) / len(values))


@pytest.mark.slow
def test_the_scorecard_shows_the_values_and_their_intervals():
    rng = np.random.default_rng(4)
    columns = ["truth_10x", "truth_random_10x", "replaced", "removed", "random_weights"]
    summary = pd.DataFrame({"name": ["one", "two, k=3"]})
    for column in columns:
        summary[f"{column}_low"], summary[column], summary[f"{column}_high"] = np.sort(rng.random((3, 2)), axis=0)
    drawn = [bars for ax in maps.scorecard(summary).axes for bars in ax.containers]
    for column, bars in zip(columns, drawn, strict=True):
        np.testing.assert_allclose(bars.lines[0].get_xdata(), summary[column])
        ends = np.array([segment[:, 0] for segment in bars.lines[2][0].get_segments()])
        np.testing.assert_allclose(ends, summary[[f"{column}_low", f"{column}_high"]])


@pytest.mark.slow
def test_the_notebooks_sentences_hold_and_its_answers_run():
    memory, (norm, empty) = done("7_attention_maps.ipynb")
    auc, hit, grid, known = memory["auc"], memory["hit"], memory["grid"], memory["known"]
    frame = np.pad(np.zeros((4, 10), bool), 1, constant_values=True)
    assert (memory["truth"].sum(1) > 0).tolist() == [False, True] * 30 and 9 < memory["truth"][1::2].sum(1).mean() < 11
    # two methods that are right; the truth, by AUC and by the brightest tile, which is a corner
    for predictions in (memory["abmil"].predictions, memory["dmsmil"].predictions):
        assert (predictions.label == predictions.pred).mean() > 0.9
    assert auc["ABMIL"] > 0.85 and auc["DMSMIL"] > 0.7 and hit["ABMIL"] > 0.9 and hit["DMSMIL"] < 0.3
    brightest = [np.unravel_index(values.argmax(), values.shape) for values in grid["DMSMIL"]]
    assert np.mean([row in (0, 5) and column in (0, 11) for row, column in brightest]) > 0.7
    # removal
    abmil, dmsmil = (row for _, row in memory["summary"].iterrows())
    assert abmil.replaced > 0.25 and 0 < dmsmil.replaced < 0.1 < dmsmil.removed
    # the frame, in fresh weights and in the average, and its AUC
    for values in (memory["untrained"].mean(0), grid["DMSMIL"].mean(0)):
        assert values[frame].mean() > 1.3 * values[~frame].mean()
    assert known.mean(0)[frame].mean() < known.mean(0)[~frame].mean() and auc["fresh weights"] < 0.45
    # better questions to the same model
    assert auc["DMSMIL"] < auc["DMSMIL / fresh weights"] < auc["DMSMIL, occlusion"]
    assert auc["ABMIL, occlusion"] < auc["ABMIL"] and hit["DMSMIL / fresh weights"] > 0.9
    assert (abmil["map"], dmsmil["map"]) == ("faithful", "faithful but not learned")
    # the answers
    assert float(norm.split()[1]) > 0.8
    without, with_spot = (float(value) for value in np.array(empty.split())[[2, -1]])
    assert 72 / 10 < without < with_spot
