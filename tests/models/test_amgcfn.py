"""AMGCFN on a grid of tiles: count, contract, multi-hop adjacency against brute force, its three heads."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dmsmil.jobs.files import InputError
from dmsmil.models import count_parameters, create
from dmsmil.models.amgcfn import ConvUnit, CrossFusion, adjacency
from dmsmil.models.contract import bags_of, check_batch_and_padding, check_gradients, check_learns, close, model_of

SMALL = dict(g=4, ch=8)


@pytest.mark.parametrize("g,ch,count", [(64, 320, 1_057_151), (80, 256, 1_066_367)])
def test_parameters(g, ch, count):
    assert count_parameters(create("amgcfn", 2048, 2, (10, 20), g=g, ch=ch)) == count


@pytest.mark.slow
def test_contract():
    model = model_of("amgcfn", 2, **SMALL)
    check_batch_and_padding(model, scales=2)
    check_gradients(model, scales=2)
    check_learns(model, scales=2)


def paths(start, links, length):
    """All simple paths of exactly `length` edges from `start`, as tuples of cells."""
    found = [(start,)]
    for _ in range(length):
        found = [path + (j,) for path in found for j in links[path[-1]] if j not in path]
    return found


@pytest.mark.parametrize("height,width,holes", [(1, 1, 0), (1, 4, 0), (2, 3, 1), (4, 5, 0), (4, 5, 3)])
def test_adjacency_is_the_best_simple_path(height, width, holes):
    generator = torch.Generator().manual_seed(height)
    x = torch.randn(2, height, width, 6, dtype=torch.float64, generator=generator)
    cells = torch.ones(2, height, width, dtype=torch.bool)
    cells.view(2, -1)[1, torch.randperm(height * width, generator=generator)[:holes]] = False
    found = adjacency(x, cells)
    n = height * width
    for b in range(2):
        there = [i for i in range(n) if cells[b].view(-1)[i]]
        links = {
            i: [j for j in there if j != i and max(abs(i // width - j // width), abs(i % width - j % width)) == 1]
            for i in there
        }
        squared = {
            (i, j): float((x[b].view(n, -1)[i] - x[b].view(n, -1)[j]).square().sum()) for i in there for j in links[i]
        }
        middle = sorted(squared.values())[(len(squared) - 1) // 2] if squared else 1.0
        weight = {edge: float(torch.exp(torch.tensor(-d / middle, dtype=torch.float64))) for edge, d in squared.items()}
        for k in (1, 2, 3):
            expected = torch.eye(n, dtype=torch.float64)
            for i in there:
                for path in paths(i, links, k):
                    mean = sum(weight[edge] for edge in zip(path, path[1:])) / k
                    expected[i, path[-1]] = max(expected[i, path[-1]], mean)
            close(found[b, k - 1], expected, 1e-12)


def test_equal_features_have_edges_of_weight_one():
    links = adjacency(torch.ones(1, 2, 2, 3), torch.ones(1, 2, 2, dtype=torch.bool))
    assert torch.equal(links[0, 0], torch.ones(4, 4))


def test_conv_unit_is_the_published_sequence():
    torch.manual_seed(0)
    unit, x = ConvUnit(5, 4, 3), torch.randn(2, 4, 6, 5)
    y = F.batch_norm(x.permute(0, 3, 1, 2), None, None, unit.norm.weight, unit.norm.bias, training=True)
    y = F.leaky_relu(F.conv2d(y, unit.point.weight[:, :, None, None], unit.point.bias))
    y = nn.AvgPool2d(3, stride=1, padding=1)(y)  # counts the zeros outside
    y = F.leaky_relu(F.conv2d(y, unit.conv.weight, unit.conv.bias, padding=1, groups=4))
    close(unit(x, None).permute(0, 3, 1, 2), y)


def test_cross_fusion_lets_each_branch_see_the_other():
    torch.manual_seed(0)
    fusion, cells = CrossFusion(6, 5), torch.ones(1, 8, dtype=torch.bool)
    pair = [torch.randn(1, 8, 6, requires_grad=True) for _ in range(2)]
    (first, attention), (second, _) = fusion(tuple(pair), (2, 4), cells)
    close(attention.sum(1), torch.ones(1))
    close(first, pair[0] * (1 + attention[..., None]))
    assert torch.autograd.grad(first.sum(), pair[1], retain_graph=True)[0].abs().max() > 0
    assert torch.autograd.grad(second.sum(), pair[0])[0].abs().max() > 0


def test_loss_is_the_sum_of_three_heads_and_the_joint_one_decides():
    model, (bags, mask, _) = model_of("amgcfn", 2, **SMALL), bags_of((9, 20), 2)
    out, labels = model(bags, mask), torch.tensor([0, 1])
    total, terms = model.loss(out, labels)
    heads = [out.logits, out.extras["logits_graph"], out.extras["logits_image"]]
    close(total, sum(F.cross_entropy(head, labels) for head in heads))
    graph, image = out.extras["bag_feature"].chunk(2, 1)
    close(heads[1], model.classifier_graph(graph))
    close(out.logits, model.classifier(torch.cat([graph, image], 1)))
    assert set(terms) == {"L_ce", "L_graph", "L_image"}


def test_coarse_tiles_feed_the_graph_and_fine_tiles_the_image():
    model, (bags, mask, _) = model_of("amgcfn", 2, **SMALL), bags_of((20,), 2)
    seen = []
    model.cross.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    other = bags.clone()
    other[:, 1] += 1
    model(bags, mask), model(other, mask)
    assert torch.equal(seen[0][1], seen[1][1]) and not torch.allclose(seen[0][0], seen[1][0])


def test_bad_options():
    with pytest.raises(InputError, match="two linked scales"):
        create("amgcfn", 8, 2, (10,))
    with pytest.raises(InputError, match="heads"):
        create("amgcfn", 8, 2, g=7, heads=6)
