"""Walkthrough 9: its figures draw the weights and plans that they say, and its sentences hold for its numbers."""

import re

import nbformat
import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from dmsmil.jobs.files import ROOT
from dmsmil.models import create
from drawings import choosing


def titles(figure):
    return [ax.get_title(loc="left") for ax in figure.axes]


@pytest.fixture
def weighed():
    """A slide of 2 x 3 tiles at two scales: weights and which tiles are planted."""
    weight = np.random.default_rng(0).random((2, 6))
    return weight / weight.sum(1, keepdims=True), np.array([True, False, False, True, False, False])


def test_a_map_says_its_range_and_what_the_planted_tiles_have(weighed):
    weight, truth = weighed
    figure = choosing.weights({"mean": np.full((2, 6), 1 / 6), "gate": weight}, truth, (2, 3))
    assert titles(figure)[0] == "mean\n1.0 to 1.0 × 1/n\nplanted: 33%"
    for scale, title in zip(weight, (titles(figure)[1], titles(figure)[3])):
        assert title.endswith(f"{6 * min(scale):.1f} to {6 * max(scale):.1f} × 1/n\nplanted: {scale[0] + scale[3]:.0%}")
    for ax, values in zip(figure.axes, (np.ones(6), 6 * weight[0], np.ones(6), 6 * weight[1])):
        np.testing.assert_allclose(ax.images[0].get_array(), values.reshape(2, 3))
        assert ax.images[0].get_clim()[0] == 0


def test_the_halves_are_drawn_where_they_are():
    seen, truth = np.random.default_rng(1).normal(size=(3, 2, 6)), np.eye(6, dtype=bool)[:3]
    images = [ax.images[0].get_array() for ax in choosing.halves(seen, truth, list("abc"), (2, 3)).axes if ax.images]
    for image, values in zip(images, np.concatenate([seen[:, 0], seen[:, 1]])):
        np.testing.assert_allclose(image, values.reshape(2, 3))


def test_the_bound_is_the_models():
    """The last weight of each line is what the model's gate gives a tile whose logit is 8 above the others'."""
    for line, bound in zip(choosing.bounded([0.0, 1.0, 2.0], tiles=10).axes[0].lines, (0.0, 1.0, 2.0)):
        model = create(
            "dmsmil_select",
            4,
            projection_dim=4,
            hidden=2,
            components=4,
            deformable=False,
            smooth=False,
            joint=False,
            bound=bound,
        )
        wanted = torch.full((2, 1, 10), -4.0)
        wanted[:, :, 0] = 4.0
        model.branches.gate = torch.nn.Identity()
        logits = model.branches.gate_logits(wanted, torch.ones(2, 1, 10, dtype=torch.bool), {})
        assert line.get_ydata()[-1] == pytest.approx(10 * float(logits[0, 0].softmax(0)[0]), rel=1e-5)
        assert line.get_ydata()[0] == pytest.approx(1), "with equal logits it is the mean"


def test_the_plan_is_the_cheapest_with_these_weights():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 3).double(), torch.rand(2, 4).double()
    weight = weight / weight.sum(1, keepdim=True)
    plan, cost = choosing.matched(x, weight), torch.cdist(*x).numpy()
    sums = np.concatenate([np.kron(np.eye(4), np.ones(4)), np.kron(np.ones(4), np.eye(4))])
    best = linprog(cost.ravel(), A_eq=sums, b_eq=weight.flatten().numpy()).fun
    np.testing.assert_allclose([plan.sum(1), plan.sum(0)], weight.numpy(), atol=1e-9)
    assert (plan * cost).sum() == pytest.approx(best)
    figure = choosing.plans({"one": plan}, planted=2)
    assert titles(figure) == [f"one\nto the own child: {np.trace(plan):.0%}"]
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), plan)


def test_the_components_are_drawn_as_they_are():
    lines = choosing.components(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 0.9])).axes[0].lines
    np.testing.assert_allclose([line.get_ydata() for line in lines], [[3, 1], [1, 0.9]])


def test_its_sentences_hold_for_the_numbers_it_shows():
    """Of the stored tables; that a fresh run gives the same is nbval's to say."""
    html = "".join(
        "".join(output.get("data", {}).get("text/html", ""))
        for cell in nbformat.read(ROOT / "notebooks/walkthroughs/9_choosing.ipynb", 4).cells
        for output in cell.get("outputs", ())
    )
    table = {
        name: [float(value) for value in re.findall(r"<td>(.*?)</td>", row)]
        for name, row in re.findall(r"<tr>\s*<th>(.+?)</th>(.*?)</tr>", html, re.S)
    }
    learned, auc, spread, spot, maps = ({name: row[column] for name, row in table.items()} for column in range(5))
    assert len(table) == 9 and spot["mean pooling"] == 0.11
    assert spread["mean pooling"] == 1 and maps["mean pooling"] == 0.5
    for scale in ("ABMIL 10x", "ABMIL 20x"):
        assert learned[scale] > 0.99 and auc[scale] < 0.75 and spread[scale] < 1 / 3, "by heart, on few tiles"
    assert spread["DMSMIL"] > 0.9 and spot["DMSMIL"] < 0.14, "nearly a mean"
    assert spot["Select"] > 1.5 * spot["mean pooling"] and spread["Select"] > 0.7 and maps["Select"] > 0.85
    assert auc["Select"] > max(auc[name] for name in ("mean pooling", "ABMIL 10x", "ABMIL 20x", "DMSMIL"))
    assert auc["white mean"] > auc["mean pooling"]
    assert min(auc["free gates"], auc["bounded gate"]) > auc["white mean"] + 0.1
    assert spot["free gates"] == max(spot.values()), "free gates give most, and rank worse"
    assert maps["free gates"] < maps["bounded gate"] < maps["of 3 x 3 places"]
    assert maps["Select"] < maps["of 3 x 3 places"]
    assert auc["Select"] == pytest.approx(auc["of 3 x 3 places"], abs=0.03), "the whole is as often right as its gate"
