"""Walkthrough 5's figures: the gate is the package's, shares and spreads are what they are said to be."""

import numpy as np
import pandas as pd
import torch

from dmsmil.models import create
from drawings import fusion as lesson


def test_the_gate_is_the_packages():
    torch.manual_seed(0)
    model = create("dmsmil", 2, projection_dim=2, deformable=False).double()
    output = model(torch.randn(5, 2, 3, 2, dtype=torch.float64))
    for pooled, weights in zip(output.extras["pooled"].detach().numpy(), output.extras["fusion"].detach().numpy()):
        gate, g = lesson.fused(*pooled, model.omega.detach().numpy())
        np.testing.assert_allclose(gate, weights)
        np.testing.assert_allclose(g, weights @ pooled)


def test_the_plane_shows_the_gate_for_every_omega():
    x10, x20 = torch.tensor([2.0, 0.6]), torch.tensor([-0.6, 1.4])
    axes = lesson.gates(x10, x20, [torch.zeros(2), torch.tensor([1.0, 0.3])]).axes
    assert [text.get_text() for text in axes[0].texts if "\n" in text.get_text()] == ["10x\n0.50", "20x\n0.50"]
    up = lesson.gate(x10, x20, 90, 50.0).axes[0]  # a long omega that points at 20x leaves 10x nothing
    assert {"10x\n0.00", "20x\n1.00"} <= {text.get_text() for text in up.texts}
    np.testing.assert_allclose(up.collections[-1].get_offsets()[0], x20, atol=1e-6)


def test_lam_terms_draws_the_terms_and_wilsons_interval():
    table = pd.DataFrame(
        {"L_ot": [0.01, 1.0], "L_ce": [0.69, 0.1], "spread": [0.01, 2.0], "accuracy": [0.5, 0.9]},
        index=["λ = 0", "λ = 1"],
    )
    axes = lesson.lam_terms(table, 200, pd.Series({"L_ot": 2.0, "spread": 1.6})).axes
    np.testing.assert_allclose(axes[2].lines[0].get_ydata(), [1.0, 0.5])
    np.testing.assert_allclose(axes[2].lines[1].get_ydata(), 2.0 / 1.6)
    low, high = axes[3].collections[0].get_segments()[1][:, 1]
    z, p, n = 1.959964, 0.9, 200
    middle, half = (
        (p + z**2 / (2 * n)) / (1 + z**2 / n),
        z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n),
    )
    np.testing.assert_allclose([low, high], [middle - half, middle + half], atol=1e-5)


def test_gradient_shares_cross_one_half_where_both_pull_alike():
    norms = pd.DataFrame({"L_ot": [0.9, 0.4], "L_ce": [0.15, 0.4]}, index=["before", "after"])
    ax = lesson.gradient_shares(norms).axes[0]
    for line, (_, row) in zip(ax.lines, norms.iterrows()):
        lam, share = line.get_data()
        np.testing.assert_allclose(np.interp(np.log(row.L_ot / row.L_ce), np.log(lam), share), 0.5, atol=1e-3)
        assert (np.diff(share) > 0).all()
    assert [text.get_text() for text in ax.texts] == ["λ = 6.0", "λ = 1.0"]


def test_few_tiles_draws_both_pulls_and_the_mean_of_each_epoch():
    losses = pd.DataFrame(
        {"run": ["a"] * 4 + ["b"] * 4, "epoch": [1, 1, 2, 2] * 2, "L_ce": [0.7, 0.5, 0.2, 0.0, 0.7, 0.7, 0.6, 0.8]}
    )
    pulls = pd.DataFrame({"L_ot": [0.9, 0.0], "L_ce": [0.04, 0.05]}, index=["a", "b"])
    left, right = lesson.few_tiles(losses, pulls).axes
    ot, ce = (dots.get_offsets().tolist() for dots in left.collections)
    assert ot == [[0.9, 1.0]] and ce == [[0.04, 1.0], [0.05, 0.0]], "no dot where L_ot has no gradient"
    np.testing.assert_allclose([line.get_ydata() for line in right.lines[:2]], [[0.6, 0.1], [0.7, 0.7]])
    assert right.lines[2].get_ydata()[0] == np.log(2)


def test_collapse_is_relative_to_each_runs_start():
    history = pd.DataFrame(
        {
            "run": ["a", "a", "b", "b"],
            "step": [0, 1, 0, 1],
            "spread": [2.0, 1.0, 4.0, 0.0],
            "L_ce": [0.7, 0.6, 0.7, 0.7],
        }
    )
    lines = lesson.collapse(history).axes[0].lines
    np.testing.assert_allclose([line.get_ydata() for line in lines], [[1, 0.5], [1, 1e-4]])


def test_shrinking_keeps_the_limits_of_the_first_step():
    tiles = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    axes = lesson.shrinking({0: tiles, 50: 0.01 * tiles}).axes
    assert axes[0].get_xlim() == axes[1].get_xlim()
    drawn = axes[1].collections[1].get_offsets()
    np.testing.assert_allclose(drawn, 0.01 * tiles[:, 1, :, :2].reshape(-1, 2), rtol=1e-5)
