"""Deformable attention: bilinear reading, the layout of the map, the weight map."""

import pytest
import torch

from dmsmil.jobs.files import InputError
from dmsmil.models.deformable import DeformableAttention, ScaleLinear
from dmsmil.models.maps import corners, lay_out
from tests.models.naive_dmsmil import read


def attention_of(seed=0, groups=1, dim=8, heads=2, points=3, offset="cells", attention="linear", softmax="points"):
    torch.manual_seed(seed)
    layer = DeformableAttention(groups, dim, heads, points, offset, attention, softmax).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
    return layer


def prefix(*counts, length=None):
    return (torch.arange(length or max(counts)) < torch.tensor(counts)[:, None])[None]  # (1, N, L)


def test_scale_linear_is_one_linear_layer_a_scale():
    layer = ScaleLinear(3, 5, 4)
    x = torch.randn(3, 7, 5)
    for s in range(3):
        torch.testing.assert_close(layer(x)[s], x[s] @ layer.weight[s] + layer.bias[s])
    shared = ScaleLinear(1, 5, 4)
    torch.testing.assert_close(shared(x), x @ shared.weight[0] + shared.bias[0])


def test_layout_fills_a_map_twice_as_wide_as_high():
    maps = lay_out(torch.ones(1, 1, 200, dtype=torch.bool))
    assert (maps.height.item(), maps.width.item(), maps.count.item()) == (10, 20, 200)
    for n in range(1, 300):
        maps = lay_out(prefix(n, length=300))
        assert maps.height * maps.width >= n > (maps.height - 1) * maps.width, n  # the last row is never empty


def test_layout_skips_holes_and_ignores_padding():
    mask = torch.tensor([[[True, False, True, True, False, True, True, False]]])
    maps = lay_out(mask)
    kept = mask[0, 0].nonzero()[:, 0]
    assert maps.cell[0, 0, kept].tolist() == [0, 1, 2, 3, 4]
    assert maps.tile[0, 0, :5].tolist() == kept.tolist()


@pytest.mark.parametrize("n", [1, 2, 5, 7, 11, 23, 29])
def test_corners_read_what_grid_sample_reads(n):
    torch.manual_seed(n)
    maps = lay_out(prefix(n, length=31))
    height, width = maps.height.item(), maps.width.item()
    where = (torch.rand(1, 400, 1, 2, dtype=torch.float64) * 1.6 - 0.3) * torch.tensor([width, height])
    where = torch.cat([where, where.round()], 1).requires_grad_()  # exactly on centres too
    x = torch.randn(31, 3, dtype=torch.float64)
    cells = torch.cat([x[:n], x.new_zeros(height * width - n, 3)]).T.reshape(1, 3, height, width)
    tissue = (torch.arange(height * width) < n).double().reshape(1, 1, height, width)
    expected = read(cells, tissue, where)[0, :, :, 0].T
    index, weight = corners(where[None, ..., 0, 0], where[None, ..., 0, 1], maps)
    assert index.min() >= 0 and index.max() < n and (weight >= 0).all()
    torch.testing.assert_close(weight.sum(-1), torch.ones_like(weight[..., 0]))
    found = (x[index] * weight[..., None]).sum(-2)[0, 0]
    torch.testing.assert_close(found, expected)
    probe = torch.randn(400, 3, dtype=torch.float64)  # gradients off the kinks
    (mine,) = torch.autograd.grad((found[:400] * probe).sum(), where, retain_graph=True)
    (theirs,) = torch.autograd.grad((expected[:400] * probe).sum(), where)
    torch.testing.assert_close(mine, theirs)


def test_a_zero_offset_reads_its_own_cell():
    maps = lay_out(prefix(11, 6, length=12))
    column, row = maps.cell % maps.width[..., None], maps.cell // maps.width[..., None]
    index, weight = corners(column.float(), row.float(), maps)
    for slide, n in enumerate((11, 6)):
        own = torch.zeros(12, 12).scatter_add(1, index[0, slide], weight[0, slide])
        assert torch.equal(own[:n, :n], torch.eye(n))


@pytest.mark.parametrize("offset", ["cells", "dat"])
def test_no_offset_and_uniform_attention_is_the_mean(offset):
    layer = DeformableAttention(1, 8, 2, 3, offset, "linear", "points").double()
    torch.nn.init.zeros_(layer.plan.weight), torch.nn.init.zeros_(layer.plan.bias)
    mask = prefix(12, 7)
    share = mask / mask.sum(-1, keepdim=True).double()
    w = layer.weights(torch.randn(1, 2, 12, 8, dtype=torch.float64), lay_out(mask), share)
    torch.testing.assert_close(w, share[:, :, None].expand_as(w), rtol=0, atol=1e-16)


@pytest.mark.parametrize("attention", ["linear", "dot"])
def test_mass(attention):
    mask = prefix(1, 2, 13, 20)
    share = mask / mask.sum(-1, keepdim=True).double()
    x = torch.randn(1, 4, 20, 8, dtype=torch.float64)
    points = attention_of(attention=attention).weights(x, lay_out(mask), share)
    torch.testing.assert_close(points.sum(-1), torch.ones(1, 4, 2, dtype=torch.float64))
    every = attention_of(attention=attention, softmax="all").weights(x, lay_out(mask), share)
    torch.testing.assert_close(every.sum((-1, -2)), torch.ones(1, 4, dtype=torch.float64))
    for w in (points, every):
        assert (w >= 0).all() and (w.transpose(2, 3)[~mask] == 0).all()


@pytest.mark.parametrize("offset,reach", [("cells", 4), ("dat", 1)])
def test_no_tile_gathers_more_than_the_queries_that_reach_it(offset, reach):
    layer = attention_of(offset=offset)
    with torch.no_grad():
        layer.plan.weight.mul_(10)  # offsets up to their limit
    mask = prefix(200)
    maps = lay_out(mask)
    w = layer.weights(torch.randn(1, 1, 200, 8, dtype=torch.float64), maps, mask / 200.0)[0, 0]
    column, row = (maps.cell % 20)[0, 0], (maps.cell // 20)[0, 0]
    apart = torch.maximum((column[:, None] - column).abs(), (row[:, None] - row).abs())
    bound = (apart <= reach).sum(0) / 200  # a point less than `reach` away touches cells at most `reach` away
    assert (w <= bound + 1e-12).all()
    assert w.max() > 1.5 / 200  # and it is not the plain mean


def test_offsets_start_on_rings():
    layer = DeformableAttention(2, 16, 8, 4, "cells", "linear", "points")
    torch.nn.init.zeros_(layer.plan.weight)
    mask = prefix(200)
    samples = layer.sample(torch.randn(2, 1, 200, 16), lay_out(mask.expand(2, 1, 200)))
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for m, (x, y) in enumerate(directions):
        for u in range(4):
            dx, dy = samples.x[:, 0, 45, m, u] - 5, samples.y[:, 0, 45, m, u] - 2  # tile 45 is in row 2, column 5
            torch.testing.assert_close(dx, torch.full((2,), x * (u + 1.0)), atol=1e-5, rtol=0)
            torch.testing.assert_close(dy, torch.full((2,), y * (u + 1.0)), atol=1e-5, rtol=0)
    assert torch.equal(samples.attention, torch.full_like(samples.attention, 0.25))


@pytest.mark.parametrize("softmax", ["points", "all"])
def test_pooled_form_is_the_mean_of_equation_8(softmax):
    """x^ = sum_m W_m sum_u A W'_m x(r + dr) a query, then the mean, against sum_m W_m W'_m sum_j w_mj x_j."""
    layer = attention_of(softmax=softmax)
    mask, x = prefix(11, 9), torch.randn(1, 2, 11, 8, dtype=torch.float64)
    maps, share = lay_out(mask), mask / mask.sum(-1, keepdim=True).double()
    s = layer.sample(x, maps)
    w = layer.weights(x, maps, share)
    pooled = layer.mix(w @ x, w.sum(-1))
    head = [slice(4 * m, 4 * m + 4) for m in range(2)]
    for slide, n in enumerate((11, 9)):
        outputs = []
        for q in range(n):
            out = layer.output.bias[0].clone()
            for m in range(2):
                for u in range(3):
                    sampled = s.weight[0, slide, q, m, u] @ x[0, slide, s.index[0, slide, q, m, u]]
                    value = sampled @ layer.value.weight[0][:, head[m]] + layer.value.bias[0][head[m]]
                    out = out + s.attention[0, slide, q, m, u] * value @ layer.output.weight[0][head[m]]
            outputs.append(out)
        torch.testing.assert_close(pooled[0, slide], torch.stack(outputs).mean(0))


def test_passed_is_what_mix_adds():
    layer = attention_of(groups=2)
    pooled = torch.randn(2, 3, 2, 8, dtype=torch.float64)
    torch.nn.init.zeros_(layer.output.bias)
    torch.testing.assert_close(layer.passed(pooled).sum(2), layer.mix(pooled, torch.zeros(2, 3, 2).double()))


@pytest.mark.parametrize("dim,heads,points", [(8, 3, 2), (8, 0, 2), (8, 2, 0)])
def test_sizes_that_do_not_fit(dim, heads, points):
    with pytest.raises(InputError, match="heads"):
        DeformableAttention(1, dim, heads, points, "cells", "linear", "points")
