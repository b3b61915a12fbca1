"""Tiles as cells of a grid: its size, raster order, empty cells, normalisation over tiles."""

import pytest
import torch
from torch import nn

from dmsmil.jobs.files import InputError
from dmsmil.models.contract import close
from dmsmil.models.grid import CellConv, CellNorm, grid_shape, grids


def test_grid_shape():
    n = torch.arange(1, 3000)
    height, width = grid_shape(n).unbind(-1)
    assert (height * width >= n).all() and (height * (width - 1) < n).all()  # just large enough
    assert [tuple(s) for s in grid_shape(torch.tensor([1, 2, 3, 50, 199, 200])).tolist()] == [
        (1, 1),
        (1, 2),
        (1, 3),
        (5, 10),
        (10, 20),
        (10, 20),
    ]
    assert ((width[500:] / height[500:] - 2).abs() < 0.15).all()


@pytest.mark.parametrize("even", [False, True])
def test_cells_are_the_tiles_in_raster_order(even):
    counts = [1, 5, 12, 13, 12]
    mask = torch.zeros(5, 20, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for b, n in enumerate(counts):
        mask[b, torch.randperm(20, generator=generator)[:n]] = True
    shape, values, seen = grid_shape(torch.tensor(counts)), torch.rand(5, 20, 3, generator=generator), []
    back = torch.zeros(5, 20)
    for grid in grids(mask, shape, even):
        cells = grid.take(values)
        for slide, cell, there in zip(grid.slides.tolist(), cells, grid.cells):
            height, width = shape[slide].tolist()
            assert cell.shape[:2] == ((height + height % 2, width + width % 2) if even else (height, width))
            expected = torch.zeros(height * width, 3)
            expected[: counts[slide]] = values[slide, mask[slide]]
            assert torch.equal(cell[:height, :width], expected.view(height, width, 3))
            assert not cell[height:].any() and not cell[:, width:].any() and there.sum() == counts[slide]
            assert torch.equal(there, cell[..., 0] != 0)
            seen.append(slide)
        assert grid.full == bool(grid.cells.all())
        grid.put(back, cells[..., 0])
    assert sorted(seen) == list(range(5)) and torch.equal(back, values[..., 0] * mask)


def test_a_slide_without_tiles_is_an_error():
    with pytest.raises(InputError, match="slide 0 .* has no tile"):
        grids(torch.zeros(1, 4, dtype=torch.bool), torch.tensor([[1, 1]]))


@pytest.mark.parametrize("train", [True, False])
def test_cell_norm_is_batch_norm_of_the_tiles(train):
    torch.manual_seed(0)
    ours, plain = CellNorm(4).train(train), nn.BatchNorm1d(4).train(train)
    x, cells = 3 * torch.randn(2, 3, 5, 4) + 1, torch.rand(2, 3, 5) > 0.4
    expected = torch.zeros_like(x)
    expected[cells] = plain(x[cells])
    close(ours(x, cells), expected)
    close(ours.running_var, plain.running_var)
    close(ours(x), plain(x.flatten(0, 2)).view(x.shape))


def test_cell_norm_of_one_tile_uses_the_stored_statistics():
    norm, x = CellNorm(4), torch.randn(1, 2, 2, 4)
    cells = torch.tensor([[[True, False], [False, False]]])
    close(norm(x, cells)[0, 0, 0], norm.eval()(x)[0, 0, 0])
    assert norm.num_batches_tracked == 0


def test_cell_conv():
    conv, x = CellConv(4, 4, 5, groups=4), torch.randn(2, 3, 6, 4)
    close(
        conv(x).permute(0, 3, 1, 2),
        nn.functional.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=2, groups=4),
    )
