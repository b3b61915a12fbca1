"""Walkthrough 2: what its figures compute agrees with drawing bags, and its exercises' answers print what they say."""

from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.special import ndtr
from sklearn.metrics import roc_auc_score

from dmsmil.features.bags import toy_bags
from dmsmil.models import create
from drawings import instances
from tests.walkthroughs.answers import check_answers

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks/walkthroughs/2_multiple_instance_learning.ipynb"


@pytest.fixture
def bags():
    return toy_bags(12, k=8, channels=2, share=0.25, signal=3.0, scales=(10,))


@pytest.fixture
def models():
    torch.manual_seed(0)
    return {
        name: create(method, 2, scales=(10,)).eval()
        for name, method in {"mean": "meanpool", "max": "maxpool", "attention": "abmil"}.items()
    }


@pytest.mark.parametrize("tiles, signal, k", [(1, 3.0, 32), (8, 2.0, 32), (32, 0.5, 32), (4, 1.0, 4)])
def test_aucs_are_those_of_bags_drawn_at_random(tiles, signal, k):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4000, k))
    b[:, :tiles] += signal
    truth = np.repeat([0, 1], 4000)
    for densities, number in ((instances.mean_densities, np.mean), (instances.max_densities, np.max)):
        drawn = roc_auc_score(truth, np.concatenate([number(a, 1), number(b, 1)]))
        assert instances.auc_of(densities(tiles, signal, k)) == pytest.approx(drawn, abs=0.02)


def test_densities_are_densities_and_the_mean_has_its_closed_form():
    step = instances.FINE[1] - instances.FINE[0]
    for densities in (instances.mean_densities(5, 2.0, 20), instances.max_densities(5, 2.0, 20)):
        assert all(d.sum() * step == pytest.approx(1, abs=1e-6) and d.min() >= 0 for d in densities.values())
    closed = ndtr(5 * 2.0 / 20 * np.sqrt(20 / 2))  # Φ of the gap in units of √(2 / k)
    assert instances.auc_of(instances.mean_densities(5, 2.0, 20)) == pytest.approx(closed, abs=1e-4)
    assert instances.auc_of(instances.max_densities(5, 0.0, 20)) == pytest.approx(0.5, abs=1e-6)


def test_padding_keeps_the_tiles_and_marks_its_rows(bags):
    x, mask = instances.padded(bags, 5, 3.0)
    assert x.shape == (12, 1, 13, 2) and mask.sum() == bags.mask.sum()
    assert torch.equal(x[mask], bags.x[bags.mask]) and (x[~mask] == 3).all()


@pytest.mark.slow
def test_figures_show_the_models_numbers(bags, models):
    planted = (bags.x[..., 0] > 2)[:, 0] & bags.mask[:, 0]
    figure = instances.weights(models, bags, planted, 1)
    there = int(bags.mask[1].sum())
    said = figure.axes[0].texts[0].get_text()
    assert f"{int(planted[1].sum()) / there:.0%}" in said  # a mean gives each tile the same
    flat, loose = (line.get_ydata() for line in instances.padding(models, bags).axes[0].lines[:: len(bags)][:2])
    np.testing.assert_allclose(flat, flat[0], atol=1e-6)
    assert np.ptp(loose) > 1e-3


@pytest.mark.slow
def test_every_figure_is_drawn_and_closed(bags):
    before = plt.get_fignums()
    planted = (bags.x[..., 0] > 2)[:, 0]
    for figure in (
        instances.tiles_in_plane(bags, planted),
        instances.excess(bags, planted),
        instances.evidence(1, 3.0),
        instances.cases([(1, 3.0), (2, 1.0)]),
        instances.winners({"here": (2, 1.0)}, k=6),
    ):
        assert isinstance(figure, Figure)
    assert plt.get_fignums() == before


@pytest.mark.slow
def test_the_answers_print_what_they_say():
    """Cells up to the last that an answer needs, then the answers."""
    cells, names = nbformat.read(NOTEBOOK, 4).cells, {}
    needed = next(i for i, cell in enumerate(cells) if cell.source.startswith("## Where the mean fails"))
    for cell in cells[:needed]:
        if cell.cell_type == "code" and "instances." not in cell.source.replace("drawings import instances", ""):
            exec(cell.source, names)
    check_answers(cells[-1].source, names)
