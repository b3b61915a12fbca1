"""TransMIL: count, contract, position encoding, repeated tokens, scores."""

import pytest
import torch

from dmsmil.models import count_parameters, create
from dmsmil.models.contract import bags_of, check_batch_and_padding, check_gradients, check_learns, close, model_of
from dmsmil.models.transmil import PPEG


def test_parameters():
    assert count_parameters(create("transmil", 2048, 2, (20,))) == 3_196_434


@pytest.mark.slow
def test_contract():
    model = model_of("transmil", width=16)
    check_batch_and_padding(model)
    check_gradients(model)
    check_learns(model)


def test_position_encoding_is_the_sum_of_three_convolutions():
    torch.manual_seed(0)
    layer, tokens = PPEG(6), torch.randn(2, 26, 6)
    field = tokens[:, 1:].mT.reshape(2, 6, 5, 5)
    field = field + layer.conv7(field) + layer.conv5(field) + layer.conv3(field)
    close(layer(tokens, 5), torch.cat([tokens[:, :1], field.flatten(2).mT], 1))


@pytest.mark.parametrize("n,side", [(1, 1), (2, 2), (4, 2), (5, 3), (9, 3), (10, 4), (200, 15)])
def test_the_map_is_square_and_the_first_tokens_come_again(n, side):
    model, (bags, _, _) = model_of("transmil", width=8), bags_of((n,))
    seen = []
    model.attention1.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    model(bags)
    tokens = seen[0][0, 1:]
    assert len(tokens) == side * side and torch.equal(tokens[n:], tokens[: side * side - n])


def test_the_order_of_tiles_matters():
    model, (bags, _, _) = model_of("transmil", width=16), bags_of((12,))
    assert (model(bags).logits - model(bags.flip(2)).logits).abs().max() > 1e-4


def test_scores_are_the_class_attention_without_its_negative_part():
    model, (bags, mask, _) = model_of("transmil", width=16), bags_of((30, 8))
    model.attention2.to_qkv.weight.data *= 8
    out = model(bags, mask)
    raw = out.extras["attention"]
    assert (raw < 0).any() and not out.scores.requires_grad
    assert torch.equal(out.scores[:, 0], raw.clamp(min=0))
