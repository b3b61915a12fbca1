"""Linking by place: as a brute-force search has it, whatever the order of rows, and one child a tile by chance."""

import numpy as np
import pytest

from dmsmil.jobs.files import InputError
from dmsmil.slides.linking import Part, containing, draw_children, grid_step, link, overlapping
from dmsmil.slides.tiles import child_corner


def brute(corners, side, inner, inner_side):
    """The containing tile by looking at every pair: nearest centre first, then first row."""
    found = []
    for x, y in inner + inner_side / 2:
        inside = [
            (max(abs(x - a - side / 2), abs(y - b - side / 2)), row)
            for row, (a, b) in enumerate(corners)
            if a <= x < a + side and b <= y < b + side
        ]
        found.append(min(inside)[1] if inside else -1)
    return found


def grid(columns, rows, side, at=(0, 0)):
    return np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2) * side + np.array(at)


@pytest.mark.parametrize("seed", range(12))
def test_containment_is_what_looking_at_every_pair_finds(seed):
    rng = np.random.default_rng(seed)
    side, inner_side = int(rng.integers(20, 90)), int(rng.integers(9, 60))
    corners = grid(7, 6, side, rng.integers(0, 500, 2))
    if seed % 3 == 1:  # two outlines whose grids overlap a little at the seam
        corners = np.concatenate([corners, grid(3, 4, side, corners[-1] - rng.integers(1, side, 2))])
    if seed % 3 == 2:  # micrometres rounded to pixels
        corners = corners + rng.integers(-1, 2, corners.shape)
    corners = corners[rng.permutation(len(corners))[: rng.integers(1, len(corners))]]
    inner = np.concatenate(
        [
            rng.integers(corners.min(0) - side, corners.max(0) + 2 * side, (300, 2)),
            grid(14, 12, side // 2, corners.min(0)),
            corners + side // 2 - inner_side // 2,
        ]
    )
    found = containing(corners, side, inner, inner_side)
    assert found.tolist() == brute(corners, side, inner, inner_side) and len(set(found.tolist())) > 1


def test_an_edge_belongs_to_the_tile_on_its_right_and_below():
    corners = grid(2, 2, 10)
    centres = np.array([[0, 0], [10, 0], [9, 10], [10, 10], [20, 5], [5, 20], [-1, 0]])
    assert containing(corners, 10, centres - 2, 4).tolist() == [0, 1, 2, 3, -1, -1, -1]
    assert containing(corners[:0], 10, centres, 4).tolist() == [-1] * 7
    assert containing(corners, 10, corners[:0], 4).shape == (0,)


def test_one_child_a_tile_whatever_the_order_of_rows():
    rng = np.random.default_rng(0)
    corners, inner = grid(20, 20, 512), grid(40, 40, 256)[rng.random(1600) < 0.5]
    parent = containing(corners, 512, inner, 256)
    child = draw_children(parent, corners, inner, 3, "s", 20)
    there = child >= 0
    assert (parent[child[there]] == np.flatnonzero(there)).all()
    assert set(np.flatnonzero(there)) == set(parent.tolist()) and not there.all()
    shuffle = rng.permutation(len(inner))
    again = draw_children(parent[shuffle], corners, inner[shuffle], 3, "s", 20)
    np.testing.assert_array_equal(shuffle[again[there]], child[there])
    for other in (draw_children(parent, corners, inner, 4, "s", 20), draw_children(parent, corners, inner, 3, "t", 20)):
        assert 0.2 < (other[there] == child[there]).mean() < 0.9


def test_children_are_drawn_evenly_and_by_the_rule_that_draws_the_papers_tiles():
    corners, inner = grid(40, 40, 512), grid(80, 80, 256)
    child = draw_children(containing(corners, 512, inner, 256), corners, inner, 0, "s", 20)
    quarter = (inner[child] - corners) // 256 @ [1, 2]  # 0 to 3 in raster order
    counts = np.bincount(quarter, minlength=4)
    assert counts.sum() == 1600 and counts.min() > 330  # 400 each, three deviations are 52
    assert [child_corner(0, "s", corner, 20, 3)[0] - corner[0] for corner in corners.tolist()] == quarter.tolist()


def parts(n10=30, holes=(), **more):
    """A slide of a row of 10x tiles with four 20x tiles in each, but for those in `holes`; features tell the row."""
    coarse, fine = grid(n10, 1, 1024), grid(2 * n10, 2, 512)
    fine = fine[~np.isin(fine[:, 0] // 1024, holes)]
    return {
        10: Part(np.arange(n10, dtype=np.float32)[:, None], coarse, 1024.0, **more),
        20: Part(np.arange(len(fine), dtype=np.float32)[:, None], fine, 512.0),
    }


@pytest.mark.parametrize("k, alone", [(50, 6), (27, 3), (24, 0), (10, 0)])
def test_linked_tiles_are_kept_first_and_the_others_stand_alone(k, alone):
    holes = [0, 5, 6, 7, 20, 29]
    tiles, rows = link("s", parts(holes=holes), 256, k, 0, 40.0)
    kept = rows[10].tolist()
    assert len(kept) == min(k, 30) and kept == sorted(kept) and sum(row in holes for row in kept) == alone
    assert len(rows[20]) == len(tiles.parent) == len(kept) - alone
    assert not set(np.array(kept)[tiles.parent]) & set(holes)
    inside = tiles.coords[20] - tiles.coords[10][tiles.parent]
    assert set(inside.ravel().tolist()) <= {0, 512}
    assert np.isnan(tiles.density).all() and np.isnan(tiles.colour).all()
    assert tiles.density.shape == (len(kept),) and tiles.colour.shape == (len(kept), 6)
    assert (tiles.grid, tiles.dimensions, tiles.magnification) == (30, (0, 0), 40.0), "nothing says how large it is"
    assert tiles.extent == (1024 * max(kept) + 1024, 1024)


def test_too_many_tiles_are_thinned_evenly_or_by_density():
    _, rows = link("s", parts(), 256, 4, 0, 40.0)
    assert rows[10].tolist() == [0, 10, 19, 29]
    density = np.zeros(30)
    density[[3, 28, 11, 4]] = [0.5, 0.9, 0.4, 0.8]
    _, rows = link("s", parts(density=density, colour=np.ones((30, 6))), 256, 3, 0, 40.0)
    assert rows[10].tolist() == [3, 4, 28]


def test_three_scales_keep_one_family_a_tile():
    found = parts(holes=[1])
    fine = grid(120, 4, 256)
    found[40] = Part(np.zeros((len(fine), 1), np.float32), fine, 256.0)
    tiles, rows = link("s", found, 256, 30, 0, 40.0)
    assert len(rows[20]) == len(rows[40]) == 29 and 1 not in tiles.parent
    assert (tiles.coords[40] // 512 == tiles.coords[20] // 512).all(), "in its 20x tile, not only in its 10x tile"
    found[40] = found[40]._replace(coords=fine[np.random.default_rng(0).permutation(len(fine))])
    np.testing.assert_array_equal(link("s", found, 256, 30, 0, 40.0)[0].coords[40], tiles.coords[40])


def test_parents_of_the_file_stand_above_places():
    found = parts()
    found[20] = found[20]._replace(parent=np.full(len(found[20].coords), 7))
    tiles, rows = link("s", found, 256, 50, 0, 40.0)
    assert tiles.parent.tolist() == [7] and len(rows[10]) == 30
    for bad in (30, -2):
        found[20].parent[0] = bad
        with pytest.raises(InputError, match="slide s has parents at 20x that are no rows of its 30 tiles"):
            link("s", found, 256, 50, 0, 40.0)
    found[20].parent[:] = 7
    found[10] = found[10]._replace(parent=np.arange(30)[::-1])  # both are numbered by a 5x scale that is not asked for
    assert link("s", found, 256, 50, 0, 40.0)[0].parent.tolist() == [22]
    found[10] = found[10]._replace(parent=None)
    found[20].parent[:] = -1
    with pytest.raises(InputError, match="slide s has no tile at 10x that holds one of every other scale"):
        link("s", found, 256, 50, 0, 40.0)


def test_tiles_that_overlap_are_counted_whatever_grid_they_lie_on():
    rng = np.random.default_rng(0)
    tissue = grid(30, 30, 384)
    assert overlapping(tissue, 384) == 0 and overlapping(tissue, 390) == 0, "rounding is no overlap"
    assert overlapping(tissue, 512) == 900
    seam = np.concatenate([tissue, tissue[:5] + [100, 30 * 384 - 100]])  # another outline begins 100 px above
    assert 5 <= overlapping(seam, 384) <= 15
    corners = rng.integers(0, 3000, (60, 2))
    apart = np.abs(corners[:, None] - corners).max(-1) + 10**6 * np.eye(60, dtype=int)
    assert overlapping(corners, 300) == (apart.min(1) < 0.98 * 300).sum()
    assert overlapping(tissue[:1], 384) == overlapping(tissue[:0], 384) == overlapping(tissue, 0) == 0


def test_the_step_of_a_grid():
    rng = np.random.default_rng(0)
    tissue = grid(30, 30, 384)[rng.random(900) < 0.7]
    assert grid_step(tissue) == 384 and grid_step(tissue[rng.permutation(len(tissue))]) == 384
    assert grid_step(rng.integers(0, 10**6, (200, 2))) == 0 and grid_step(tissue[:1]) == 0
