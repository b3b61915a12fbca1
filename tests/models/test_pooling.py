"""Mean and max pooling: values, scores, contract at one scale and at both."""

import pytest
import torch

from dmsmil.models import count_parameters, create
from dmsmil.models.contract import (
    bags_of,
    check_batch_and_padding,
    check_gradients,
    check_learns,
    check_permutation,
    close,
    model_of,
)


@pytest.mark.parametrize("name", ["meanpool", "maxpool"])
@pytest.mark.parametrize("scales,count", [((10,), 4_098), ((20,), 4_098), ((10, 20), 8_194)])
def test_parameters(name, scales, count):
    assert count_parameters(create(name, 2048, 2, scales)) == count


@pytest.mark.parametrize("name", ["meanpool", "maxpool"])
@pytest.mark.parametrize("scales", [1, 2])
def test_contract(name, scales):
    model = model_of(name, scales)
    check_batch_and_padding(model, scales=scales)
    check_gradients(model, scales=scales)
    check_permutation(model, scales)
    check_learns(model, scales)
    bags, mask, coords = bags_of((3, 8), scales)
    close(model(bags, mask, coords).scores.sum(-1), torch.ones(2, scales))


@pytest.mark.parametrize("name,pool", [("meanpool", torch.mean), ("maxpool", torch.amax)])
def test_value(name, pool):
    model, (bags, _, _) = model_of(name, 2), bags_of((7,), 2)
    feature = torch.cat([pool(bags[:, 0], 1), pool(bags[:, 1], 1)], -1)
    close(model(bags).logits, model.classifier(feature))


def test_max_scores_are_shares_of_channels():
    bags = torch.tensor([[[[3.0, 0, 0, 1], [1, 2, 2, 0], [0, 1, 1, 0]]]])
    assert model_of("maxpool", dim=4)(bags).scores.tolist() == [[[0.5, 0.5, 0.0]]]


@pytest.mark.parametrize("name", ["meanpool", "maxpool"])
def test_a_scale_without_tiles_gives_zero(name):
    model, (bags, mask, _) = model_of(name, 2), bags_of((4,), 2)
    mask = mask.clone()
    mask[:, 1] = False
    out = model(bags, mask)
    assert (out.extras["bag_feature"][:, 12:] == 0).all() and (out.scores[:, 1] == 0).all()
