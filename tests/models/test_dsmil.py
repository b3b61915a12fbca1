"""DSMIL: counts, contract, the equations tile by tile."""

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

FORMS = [{}, dict(passing_v=True, dropout_node=0.2), dict(one_logit=True)]


@pytest.mark.parametrize(
    "scales,options,count",
    [
        ((10, 20), {}, 565_508),
        ((10, 20), dict(one_logit=True), 549_122),
        ((10, 20), dict(passing_v=True), 17_346_820),
        ((10,), {}, 291_076),
    ],
)
def test_parameters(scales, options, count):
    with torch.device("meta"):  # a 4096 x 4096 start takes seconds
        assert count_parameters(create("dsmil", 2048, 2, scales, **options)) == count


@pytest.mark.slow
@pytest.mark.parametrize("scales", [1, 2])
@pytest.mark.parametrize("options", FORMS)
def test_contract(options, scales):
    model = model_of("dsmil", scales, **options)
    check_batch_and_padding(model, scales=scales)
    check_gradients(model, scales=scales)
    check_permutation(model, scales)
    check_learns(model, scales)


def test_equations():
    """A slide written out with loops; the finest scale comes first."""
    model, (bags, _, _) = model_of("dsmil", 2), bags_of((5,), 2)
    x = [torch.cat([bags[0, 1, j], bags[0, 0, j]]) for j in range(5)]
    y = model.bag.bias.clone()
    for c in range(2):
        critical = max(range(5), key=lambda j: model.instance(x[j])[c].item())
        weight = torch.stack([(model.q(x[j]) @ model.q(x[critical]) / 128**0.5).exp() for j in range(5)])
        weight = weight / weight.sum()
        y = y + model.bag.weight[:, c] @ sum(w * xj for w, xj in zip(weight, x))
        close(model(bags).extras["attention"][0, :, c], weight)
    close(model(bags).logits[0], y)


def test_a_row_without_one_scale_does_not_count():
    model, (bags, _, _) = model_of("dsmil", 2), bags_of((6,), 2)
    mask = torch.ones(1, 2, 6, dtype=torch.bool)
    mask[0, 0, 4] = mask[0, 1, 5] = False
    out, short = model(bags, mask), model(bags[:, :, :4])
    close(out.logits, short.logits)
    assert (out.scores[0, :, 4:] == 0).all()


def test_starts_orthogonal():
    weight = model_of("dsmil", 2, dim=100).q[0].weight  # 128 x 200
    close(weight @ weight.T, torch.eye(128), 1e-4)


def test_one_logit_probability_is_the_sigmoid():
    model, (bags, _, _) = model_of("dsmil", 2, one_logit=True), bags_of((6,), 2)
    out = model(bags)
    close(out.probabilities[:, 1:], out.extras["bag_logits"].sigmoid())
