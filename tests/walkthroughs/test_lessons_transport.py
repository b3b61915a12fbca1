"""Walkthrough 4's figures: what they compute agrees with SciPy's assignment, POT, and the package's gradient."""

import numpy as np
import ot
import pandas as pd
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from dmsmil.models import transport
from drawings import transport as lesson


@pytest.fixture
def clouds():
    generator = torch.Generator().manual_seed(0)
    x10 = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    return x10, x10 + 0.9 * torch.randn(8, 2, generator=generator, dtype=torch.float64)


def cost(x10, x20):
    return np.linalg.norm(x10.numpy()[:, None] - x20.numpy(), axis=-1)


def test_points_and_costs_prints_the_distances(clouds):
    texts = [text.get_text() for text in lesson.points_and_costs(*clouds).axes[1].texts]
    assert texts == [f"{value:.1f}" for value in cost(*clouds).ravel()]


def test_pairings_are_drawn_with_their_mean_distance(clouds):
    rows, best = linear_sum_assignment(cost(*clouds))
    axes = lesson.pairings(*clouds, {"own child": np.arange(8), "optimal": best}).axes
    titles = [ax.get_title(loc="left") for ax in axes]
    assert titles == [
        f"own child: {np.diag(cost(*clouds)).mean():.3f}",
        f"optimal: {cost(*clouds)[rows, best].mean():.3f}",
    ]
    ends = np.stack(axes[1].collections[0].get_segments())
    np.testing.assert_allclose(ends, np.stack([clouds[0].numpy(), clouds[1].numpy()[best]], 1))


def test_all_pairings_counts_each_and_marks_the_named(clouds):
    values = np.random.default_rng(0).uniform(1, 2, 500)
    ax = lesson.all_pairings(values, {"greedy": 1.5, "optimal": 1.0}).axes[0]
    assert sum(patch.get_height() for patch in ax.patches) == 500
    assert [line.get_xdata()[0] for line in ax.lines] == [1.0, 1.5]


@pytest.mark.parametrize("eps", [0.2, 1.0])
def test_a_blur_is_pots(clouds, eps):
    a, c = np.full(8, 1 / 8), cost(*clouds)
    plan = ot.sinkhorn(a, a, c, eps * c.mean(), stopThr=1e-9, numItermax=10_000)
    axes = lesson.blur(*clouds, eps).axes
    np.testing.assert_allclose(axes[1].images[0].get_array(), 8 * plan, atol=1e-4)
    assert axes[1].get_xlabel() == f"mean distance {(plan * c).sum():.3f}"


def test_no_blur_is_the_assignment(clouds):
    image = lesson.blurs(*clouds, (0, 0.5)).axes
    best = linear_sum_assignment(cost(*clouds))[1]
    np.testing.assert_array_equal(image[2].images[0].get_array(), np.eye(8)[best])


def test_drift_follows_the_packages_gradient_and_ends_half_way(clouds):
    both = torch.stack(clouds)[None].requires_grad_()
    transport.distance(both, torch.ones(1, 2, 8, dtype=torch.bool)).backward()
    one = lesson.drift(*clouds, 0, 1)
    for scale in (0, 1):
        torch.testing.assert_close(one[scale], clouds[scale] - 0.4 * both.grad[0, scale])
    best = linear_sum_assignment(cost(*clouds))[1]
    ends = lesson.drift(*clouds, 0, 150)
    assert (ends[0] - (clouds[0] + clouds[1][best]) / 2).norm(dim=1).max() < 0.1  # it swings by a step at the end


@pytest.mark.slow
def test_blur_shrinks_the_bag(clouds):
    titles = [ax.get_title(loc="left") for ax in lesson.endings(*clouds, (0, 0.5, 1), steps=40).axes]
    left = [float(title.split()[-1].rstrip("%")) for title in titles]
    assert left[0] > 80 and left[0] > left[1] and left[0] > left[2]


def test_own_child_draws_a_line_a_width():
    table = pd.DataFrame(
        {"channels": [2, 2, 16, 16], "noise": [0.1, 1, 0.1, 1], "ratio": [1, 0.5, 1, 0.9], "own": [1, 0, 1, 0.8]}
    )
    axes = lesson.own_child(table).axes
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), [1, 0.5])
    np.testing.assert_array_equal(axes[1].lines[1].get_ydata(), [1, 0.8])
