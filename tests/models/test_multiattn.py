"""MultiAttnMIL: the paper's parameter count, contract, union of scales."""

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


@pytest.mark.parametrize("D,count", [(128, 345_477), (256, 854_789)])  # 854,789: Table 3 of the DMSMIL paper
def test_parameters(D, count):
    assert count_parameters(create("multiattn", 2048, 2, (10, 20), D=D)) == count


@pytest.mark.slow
@pytest.mark.parametrize("scales", [1, 2])
def test_contract(scales):
    model = model_of("multiattn", scales)
    check_batch_and_padding(model, scales=scales)
    check_gradients(model, scales=scales)
    check_permutation(model, scales)
    check_learns(model, scales)


def test_scales_are_one_bag():
    """Two scales are one bag of all their tiles; a scale may have fewer tiles than the other."""
    model, (bags, mask, _) = model_of("multiattn", 2), bags_of((6,), 2)
    mask = mask.clone()
    mask[0, 1, 4:] = False
    out = model(bags, mask)
    joined = model_of("multiattn", 1)(torch.cat([bags[:, :1], bags[:, 1:, :4]], 2))
    close(out.logits, joined.logits)
    close(out.scores[mask], joined.scores.flatten())
    close(out.scores.sum(), torch.tensor(1.0))


def test_dropout_is_off_in_evaluation():
    model, (bags, _, _) = model_of("multiattn", 2), bags_of((9,), 2)
    assert torch.equal(model(bags).logits, model(bags).logits)
    model.train()
    assert not torch.equal(model(bags).logits, model(bags).logits)
