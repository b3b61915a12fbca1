"""Walkthrough 3's figures: what they compute agrees with grid_sample, SciPy and plain geometry."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.patches import Rectangle
from scipy.ndimage import map_coordinates
from torch.nn import functional as F

from dmsmil.models.deformable import DeformableAttention
from dmsmil.models.grid import grid_shape
from dmsmil.models.maps import lay_out
from drawings import deformable as lesson

RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(6, 12))


def read(points):
    """What bilinear sampling with a border reads at (x, y) cells, by SciPy."""
    return map_coordinates(VALUES, np.atleast_2d(points)[:, ::-1].T, order=1, mode="nearest")


def places(ax):
    """The centres of all that was scattered on an axis."""
    return np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections if len(c.get_offsets())])


def test_every_sampling_point_is_drawn_where_the_package_puts_it_and_hollow_outside():
    torch.manual_seed(0)
    layer = DeformableAttention(1, 8, 4, 2, "cells", "linear", "points")
    with torch.no_grad():
        samples = layer.sample(torch.randn(1, 1, 72, 8), lay_out(torch.ones(1, 1, 72, dtype=torch.bool)))
    ax = lesson.looking(VALUES, samples, 3, 0).axes[0]
    points = np.stack([samples.x[0, 0, 0], samples.y[0, 0, 0]], -1).reshape(-1, 2)
    drawn = places(ax)
    assert all(np.abs(drawn - point).sum(1).min() < 1e-5 for point in points)
    hollow = [
        tuple(c.get_offsets()[0])
        for c in ax.collections
        if len(c.get_offsets()) == 1 and c.get_facecolor().size and np.allclose(c.get_facecolor()[0], 1)
    ]
    assert len(hollow) == (points < -0.5).any(1).sum() > 0


@pytest.mark.parametrize("point", [(6.41, 1.37), (0.2, 0.9), (3.0, 4.0)])
def test_the_rectangle_across_from_a_corner_is_its_weight(point):
    ax = lesson.bilinear(VALUES, point).axes[0]
    left, top = np.floor(point).astype(int)
    areas = [patch.get_width() * patch.get_height() for patch in ax.patches if isinstance(patch, Rectangle)]
    corners = VALUES[top : top + 2, left : left + 2].ravel()
    grid = (2 * torch.tensor(point).double() + 1) / torch.tensor([12.0, 6.0]) - 1
    sampled = F.grid_sample(
        torch.from_numpy(VALUES)[None, None], grid[None, None, None], padding_mode="border", align_corners=False
    ).item()
    assert np.isclose(np.dot(areas, corners), sampled) and np.isclose(sum(areas), 1)
    assert f"reads {sampled:.2f}" in [text.get_text() for text in ax.texts]


def test_points_climb_what_they_read_within_reach_and_never_return_from_outside():
    start = np.array([[4.4, 1.3], [6.1, 2.6], [4.5, -1.4], [2.2, 0.3]])
    trail = lesson.climb(VALUES, start, (4.0, 1.0), 3, 120)
    assert trail.shape == (121, 4, 2)
    np.testing.assert_allclose(trail[0], start)
    seen = np.stack([read(points) for points in trail])
    assert (seen[-1] >= seen[0] - 1e-9).all() and (seen[-1] > seen[0] + 0.05).any()
    assert (np.abs(trail - [4.0, 1.0]) < 3).all()
    np.testing.assert_allclose(trail[:, 2, 1], -1.4)  # outside there is no slope towards the map


def test_the_first_step_follows_the_slope_through_the_tanh():
    start, reference, reach, h = np.array([[4.4, 1.3]]), np.array([4.0, 1.0]), 3, 1e-6
    free = np.arctanh((start - reference) / reach)[0]
    slope = [
        (read(reference + reach * np.tanh(free + h * axis)) - read(reference + reach * np.tanh(free - h * axis)))
        / (2 * h)
        for axis in np.eye(2)
    ]
    step = lesson.climb(VALUES, start, reference, reach, 1)[1, 0]
    np.testing.assert_allclose(
        step, reference + reach * np.tanh(free + lesson.RATE * np.array(slope).ravel()), rtol=1e-6
    )


@pytest.mark.parametrize("size", [18, 50, 200])
def test_an_untrained_map_has_mean_one_and_the_points_outside_that_its_rings_have(size):
    weights, outside = lesson.untrained(size)
    height, width = grid_shape(torch.tensor(size)).tolist()
    assert weights.shape == (height, width) and np.isfinite(weights).sum() == size
    assert np.isclose(np.nanmean(weights), 1, atol=1e-5)
    row, column = np.divmod(np.arange(size), width)
    ways = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])  # four heads, one to four cells away
    points = np.stack([column, row], -1)[:, None, None] + ways[:, None] * np.arange(1, 5)[:, None]
    share = ((points < 0) | (points > [width - 1, height - 1])).any(-1).mean()
    on_the_line = ((points == 0) | (points == [width - 1, height - 1])).any(-1).mean()
    assert share <= outside <= share + on_the_line + 0.02  # a new ring is not quite round
    assert np.nanmax(weights) == np.nanmax(weights[[0, -1]])  # the border collects


def test_cost_curves_say_how_many_times_fewer():
    table = pd.DataFrame(
        {
            "tiles": [50, 200],
            "full pairs": [2500, 40000],
            "deformable reads": [3200, 12800],
            "full layer": [4e6, 2e7],
            "deformable layer": [2e6, 1e7],
        }
    )
    axes = lesson.cost_curves(table).axes
    assert [text.get_text() for text in axes[0].texts] == ["0.8×", "3.1×"]
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), table["full pairs"])
