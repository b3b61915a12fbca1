"""Top-k pooling, and the contract's own table of promises."""

import torch
from torch.nn import functional as F

from dmsmil.models import METHODS, count_parameters, create
from dmsmil.models.contract import (
    bags_of,
    check_batch_and_padding,
    check_contract,
    check_gradients,
    check_permutation,
    model_of,
)


def test_contract():
    model = model_of("topk", 2, k=5)
    check_batch_and_padding(model, scales=2)
    check_gradients(model, scales=2)
    check_permutation(model, 2)
    assert count_parameters(create("topk", 2048, 2)) == 2 * 2048 + 2


def test_it_is_the_mean_of_the_k_tiles_with_the_largest_margin():
    model = model_of("topk", 1, k=3)
    bags, _, _ = bags_of((20,))
    logits = F.linear(bags[0, 0], model.classifier.weight, model.classifier.bias)
    best = (logits.max(1).values - logits.mean(1)).argsort(descending=True)[:3]
    out = model(bags)
    torch.testing.assert_close(out.logits[0], logits[best].mean(0))
    assert set(out.scores[0, 0].nonzero()[:, 0].tolist()) == set(best.tolist())


def test_k_larger_than_the_bag_is_the_mean():
    bags, mask, _ = bags_of((4, 9))
    few, many = model_of("topk", 1, k=9), model_of("topk", 1, k=100)
    torch.testing.assert_close(few(bags, mask).logits, many(bags, mask).logits)


def test_the_table_of_promises_is_true_of_a_good_method_and_false_of_a_bad_one(monkeypatch):
    kind = METHODS["topk"].load()
    honest = kind.forward

    def careless(self, bags, mask=None, coords=None, geometry=None):
        return honest(self, bags, None, coords)  # forgets the mask

    monkeypatch.setattr(kind, "forward", careless)
    table = check_contract("topk")
    assert not table.kept.iloc[0] and table["why not"].iloc[0]

    def blind(self, bags, mask=None, coords=None, geometry=None):
        return honest(self, 0 * bags, mask, coords)

    monkeypatch.setattr(kind, "forward", blind)
    table = check_contract("topk")
    assert not table.kept.iloc[-1] and "3 of 6 slides right" in table["why not"].iloc[-1]
