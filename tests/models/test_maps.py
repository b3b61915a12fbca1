"""Tiles in place: each in the cell where it lies in its slide, and nothing where there is none."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dmsmil.jobs.files import InputError
from dmsmil.models import create
from dmsmil.models.contract import bags_of, check_batch_and_padding, check_gradients, close, model_of
from dmsmil.models.maps import corners, lay_in_place

HOLEY = torch.tensor([[0, 0], [1, 0], [4, 0], [1, 1], [2, 1], [0, 3], [4, 3]])  # (column, row)


def placed(cells, scales=1, pitch=512, origin=(1024, 2048)):
    """mask (1, S, K), coords (1, S, K, 2) of tiles in these cells."""
    coords = (cells * pitch + torch.tensor(origin)).expand(1, scales, -1, -1)
    return torch.ones(1, scales, len(cells), dtype=torch.bool), coords


def test_tiles_on_a_grid_lie_where_they_lie():
    maps = lay_in_place(*placed(HOLEY))
    assert (maps.height.item(), maps.width.item(), maps.pitch.item()) == (4, 5, 512)
    assert maps.cell[0, 0].tolist() == (HOLEY[:, 1] * 5 + HOLEY[:, 0]).tolist()
    assert maps.held[0, 0].tolist() == sorted(maps.cell[0, 0].tolist())
    for other in (dict(pitch=300), dict(origin=(0, 0))):
        assert lay_in_place(*placed(HOLEY, **other)).cell.equal(maps.cell), "neither pitch nor origin matters"


def test_a_child_lies_where_its_parent_lies():
    mask, coords = placed(HOLEY, scales=2)
    coords = coords.clone()
    coords[:, 1] += torch.randint(0, 256, coords[:, 1].shape, generator=torch.Generator().manual_seed(0))
    maps = lay_in_place(mask, coords)
    assert maps.cell[0, 0].equal(maps.cell[0, 1])


def test_two_tiles_in_one_cell_become_neighbours():
    cells = torch.tensor([[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]])
    mask, coords = placed(cells)
    coords = torch.cat([coords, coords[:, :, 4:5] + 40], 2)  # nearly on top of the fifth
    maps = lay_in_place(torch.ones(1, 1, 7, dtype=torch.bool), coords)
    column, row = maps.cell[0, 0] % maps.width.item(), maps.cell[0, 0] // maps.width.item()
    assert len(set(maps.cell[0, 0].tolist())) == 7
    assert max(abs(column[6] - column[4]), abs(row[6] - row[4])) == 1


def test_padding_and_one_tile():
    mask, coords = placed(HOLEY)
    padded = torch.cat([coords, torch.full((1, 1, 3, 2), 9)], 2)
    maps = lay_in_place(torch.arange(10).expand(1, 1, 10) < 7, padded)
    assert maps.cell[0, 0, :7].equal(lay_in_place(mask, coords).cell[0, 0]) and maps.count.item() == 7
    assert lay_in_place(mask[:, :, :1], coords[:, :, :1]).cell.tolist() == [[[0]]]
    assert lay_in_place(~mask, coords).count.item() == 1, "a slide without tiles has a layout, which nobody reads"


def test_points_are_read_as_grid_sample_pads_with_zeros():
    draw = torch.Generator().manual_seed(0)
    maps = lay_in_place(*placed(HOLEY))
    features = torch.randn(7, 3, generator=draw, dtype=torch.float64)
    dense = torch.zeros(20, 3, dtype=torch.float64)
    dense[maps.cell[0, 0]] = features
    x, y = (torch.rand(1, 1, 500, generator=draw, dtype=torch.float64) * size - 2 for size in (9, 8))
    index, weight = corners(x, y, maps)
    mine = (features[index[0, 0]] * weight[0, 0].unsqueeze(-1)).sum(1)
    where = torch.stack([(x + 0.5) * 2 / 5 - 1, (y + 0.5) * 2 / 4 - 1], -1)
    theirs = F.grid_sample(dense.T.reshape(1, 3, 4, 5), where, padding_mode="zeros", align_corners=False)
    torch.testing.assert_close(mine, theirs[0, :, 0].T)
    assert (weight.sum(-1) < 0.5).any() and (weight.sum(-1) <= 1 + 1e-12).all()


@pytest.mark.parametrize("name,scales", [("dmsmil", 2), ("damil", 1)])
def test_the_contract_in_place(name, scales):
    model = model_of(name, scales, grid="position")
    check_batch_and_padding(model, scales=scales)
    check_gradients(model, scales=scales)


def test_a_gap_in_the_tissue_matters_and_a_move_of_the_slide_does_not():
    model = model_of("dmsmil", 2, grid="position")
    with torch.no_grad():
        model.branches.attend.plan.weight.add_(torch.randn(model.branches.attend.plan.weight.shape))
    bags, mask, coords = bags_of((20,), 2)
    here = model(bags, mask, coords).logits
    close(model(bags, mask, coords + 7000).logits, here)
    apart = coords.clone()
    apart[..., 0] += 5 * 1024 * (apart[..., 0] >= 3 * 1024)
    assert (model(bags, mask, apart).logits - here).abs().max() > 1e-5
    filled = model_of("dmsmil", 2)
    close(filled(bags, mask, apart).logits, filled(bags, mask, coords).logits)


def test_scores_are_shares_of_what_is_held():
    bags, mask, coords = bags_of((20, 9), 2)
    output = model_of("dmsmil", 2, grid="position")(bags, mask, coords)
    close(output.scores.sum(-1), torch.ones(2, 2))
    assert (output.extras["weights"].sum(-1) < 0.99).any(), "at the start rings look past the edge of the tissue"


def test_pixels_of_points_in_the_void():
    model = model_of("dmsmil", 2, grid="position")
    bags, mask, coords = bags_of((20,), 2)
    found = model.sampling(bags, mask, coords)
    step = (found["deformed"] - found["reference"][:, :, :, None, None]) * 1024
    close(found["deformed_px"], coords[:, :, :, None, None] + step)


def test_it_needs_positions():
    with pytest.raises(InputError, match="hand over coords"):
        model_of("dmsmil", 2, grid="position")(torch.randn(1, 2, 5, 12))
    with pytest.raises(InputError, match="leave grid at 'fill'"):
        create("dmsmil", 32, 2, map="tile", grid="position")


def test_irregular_tiles_stay_near_where_they_are():
    """Children at random places in their parents, and no parent at hand: order along x and y is kept but for a cell."""
    draw = np.random.default_rng(0)
    cells = np.argwhere(np.ones((8, 8)))
    place = torch.from_numpy(cells * 512 + draw.integers(0, 256, cells.shape))
    maps = lay_in_place(torch.ones(1, 1, 64, dtype=torch.bool), place.expand(1, 1, -1, -1))
    width = maps.width.item()
    found = torch.stack([maps.cell[0, 0] % width, maps.cell[0, 0] // width], -1).double()
    for axis in (0, 1):
        assert np.corrcoef(found[:, axis], place[:, axis])[0, 1] > 0.97
