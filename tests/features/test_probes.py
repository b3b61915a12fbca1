"""What the means of one scale say of the class, and those of all: on bags whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dmsmil.cohorts.folds import bag_folds
from dmsmil.features.bags import toy_bags
from dmsmil.features.probes import probe_table, project, scale_probes, slide_means


def conjunction(slides=200, k=16, channels=12, share=1.0, seed=0):
    """Bags of which class b has a part at 10x and a part at 20x, and class a exactly one of them; and the tiles that
    carry the parts (N, S, K), `share` of each slide's."""
    bags = toy_bags(slides, k, channels, signal=0.0, seed=seed)
    x, weights = bags.x.clone(), np.zeros(bags.mask.shape)
    for row, label in enumerate(bags.labels.tolist()):
        tiles = slice(0, max(1, round(share * int(bags.mask[row, 0].sum()))))
        for s in (0, 1):
            weights[row, s, tiles] = 1
            if label or (row // 2) % 2 == s:
                x[row, s, tiles, 3 + s] += 2.0
    return replace(bags, x=x), weights


def aucs(table):
    return table.set_index("scales").AUC


def test_means_are_those_of_the_tiles_that_there_are_and_of_those_that_count():
    bags = toy_bags(6, 8, 4)
    plain = slide_means(bags)
    for row in range(6):
        for s in (0, 1):
            there = bags.mask[row, s]
            np.testing.assert_allclose(plain[row, s], bags.x[row, s][there].mean(0), rtol=1e-5, atol=1e-6)
    weights = np.full(bags.mask.shape, np.nan)
    weights[:, :, :2] = [1.0, 3.0]
    weights[:, :, 2] = 0.0
    expected = 0.25 * bags.x[:, :, 0] + 0.75 * bags.x[:, :, 1]
    np.testing.assert_allclose(slide_means(bags, weights), expected, rtol=1e-5, atol=1e-6)
    assert np.isnan(slide_means(bags, np.zeros(bags.mask.shape))).all()


def test_of_a_conjunction_one_scale_tells_three_quarters_at_most_and_both_tell_all():
    bags, _ = conjunction()
    found = aucs(scale_probes(bags, bag_folds(bags)))
    assert list(found.index) == ["10x", "20x", "10x + 20x"]
    assert 0.6 < found["10x"] < 0.8 and 0.6 < found["20x"] < 0.8
    assert found["10x + 20x"] > 0.95


def test_what_one_scale_alone_carries_the_other_does_not_tell():
    bags = toy_bags(120, 16, 8, signal=0.0)
    bags.x[bags.labels == 1, 1, :, 2] += 1.0
    found = aucs(scale_probes(bags, bag_folds(bags)))
    assert 0.35 < found["10x"] < 0.65 and found["20x"] > 0.95 and found["10x + 20x"] > 0.95


@pytest.mark.slow
def test_where_few_tiles_carry_it_the_weights_bring_it_back():
    bags, weights = conjunction(share=0.05, k=40)
    folds = bag_folds(bags)
    table = probe_table(bags, folds, weights)
    assert table.tiles.tolist() == ["all"] * 3 + ["signal"] * 3
    assert probe_table(bags, folds).equals(table[table.tiles == "all"])
    plain, oracle = (aucs(part) for _, part in table.groupby("tiles"))
    assert oracle["10x + 20x"] > plain["10x + 20x"] + 0.1


@pytest.mark.slow
def test_padding_and_order_of_tiles_change_nothing():
    bags, _ = conjunction(60)
    folds = bag_folds(bags)
    padded = replace(
        bags,
        x=torch.nn.functional.pad(bags.x, (0, 0, 0, 3), value=7.0),
        mask=torch.nn.functional.pad(bags.mask, (0, 3)),
        coords=torch.nn.functional.pad(bags.coords, (0, 0, 0, 3)),
    )
    turned = replace(bags, x=bags.x.flip(2), mask=bags.mask.flip(2), coords=bags.coords.flip(2))
    for other in (padded, turned):
        np.testing.assert_allclose(scale_probes(other, folds).AUC, scale_probes(bags, folds).AUC, atol=1e-3)
        np.testing.assert_allclose(project(other), project(bags), atol=1e-3)


def test_nothing_is_learned_from_a_tested_slide():
    """Labels dealt at random: a probe that saw the tested slides would know them by heart."""
    bags = toy_bags(80, 8, 64, signal=0.0)
    labels = torch.from_numpy(np.random.default_rng(5).permutation(bags.labels.numpy()))
    bags = replace(bags, labels=labels)
    assert (scale_probes(bags, bag_folds(bags)).AUC < 0.68).all()


def test_slides_without_a_tile_that_counts_are_left_out_and_counted():
    bags, weights = conjunction(60)
    weights[:7] = 0
    assert (scale_probes(bags, bag_folds(bags), weights).slides == 53).all()


def test_three_classes_and_one_scale():
    bags = toy_bags(90, 8, 6, signal=0.0, scales=(20,))
    labels = torch.arange(90) % 3
    bags = replace(bags, labels=labels, classes=["a", "b", "c"])
    for label in range(3):
        bags.x[labels == label, 0, :, label] += 1.5
    table = scale_probes(bags, bag_folds(bags, 3))
    assert table.scales[0] == "20x" and table.AUC[0] > 0.95 and table.folds[0] == 3


def test_folds_that_test_one_class_alone_have_no_auc():
    """As leave-one-out has: a cell that says nan, not the end of the notebook."""
    bags = toy_bags(12, 4, 3)
    folds = bag_folds(bags, 3)
    assert (scale_probes(bags, folds).folds == 3).all()
    folds.loc[folds.label == "b", "fold_0"] = "train"
    assert (scale_probes(bags, folds).folds == 2).all()
    for fold in (1, 2):
        folds.loc[folds.label == "b", f"fold_{fold}"] = "train"
    table = scale_probes(bags, folds)
    assert table.AUC.isna().all() and (table.folds == 0).all()
