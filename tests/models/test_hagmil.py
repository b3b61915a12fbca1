"""HAG-MIL on one scale and over linked scales: count, contract, its loss, what passes to the next level."""

import pytest
import torch
from torch.nn import functional as F

from dmsmil.jobs.files import InputError
from dmsmil.models import count_parameters, create
from dmsmil.models.clam import instance_loss
from dmsmil.models.contract import bags_of, check_batch_and_padding, check_gradients, check_learns, close, model_of

SMALL = dict(hidden_dims=(16, 24, 8, 16), size=(12, 6), k_sample=3)


def test_parameters():
    with torch.device("meta"):
        assert count_parameters(create("hagmil", 2048, 2, (10,))) == 31_250_479
        assert count_parameters(create("hagmil_hier", 2048, 2, (5, 10, 20))) == 93_751_437


@pytest.mark.slow
@pytest.mark.parametrize("name,scales", [("hagmil", 1), ("hagmil_hier", 2)])
def test_contract(name, scales):
    model = model_of(name, scales, **SMALL)
    check_batch_and_padding(model, scales=scales)
    check_gradients(model, scales=scales)
    check_learns(model_of(name, scales, dropout=0.0, **SMALL), scales)


def test_loss_is_half_bag_half_instance():
    model, (bags, mask, _) = model_of("hagmil", label_smoothing=0.1, **SMALL), bags_of((9, 20))
    out, labels = model(bags, mask), torch.tensor([0, 1])
    e = out.extras
    inst = instance_loss(e["instance_logits"], e["attention"], e["mask"], labels, 3, "svm", False)
    total, terms = model.loss(out, labels)
    close(total, 0.5 * F.cross_entropy(out.logits, labels, label_smoothing=0.1) + 0.5 * inst)
    close(terms["L_inst"], inst)


def test_the_order_of_tiles_matters():
    model, (bags, _, _) = model_of("hagmil", **SMALL), bags_of((12,))
    assert (model(bags).logits - model(bags.flip(2)).logits).abs().max() > 1e-4


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_children_of_the_highest_tiles_pass(share):
    model, (bags, mask, _) = model_of("hagmil_hier", 2, share_of_tiles=share, **SMALL), bags_of((7, 20), 2)
    out = model(bags, mask)
    chosen = out.extras["chosen"]
    assert torch.equal(chosen[:, 0], mask[:, 0])
    for b, n in enumerate((7, 20)):
        number = -int(-n * share // 1)
        assert set(chosen[b, 1].nonzero()[:, 0].tolist()) == set(out.scores[b, 0].topk(number).indices.tolist())
    assert torch.equal(out.scores[:, 1] > 0, chosen[:, 1])
    fine = model.levels[1](bags[:, 1:], chosen[:, 1:])
    assert torch.equal(out.logits, fine.logits)  # the finest level decides


def test_a_tile_without_a_child_is_not_chosen():
    model, (bags, mask, _) = model_of("hagmil_hier", 2, share_of_tiles=0.25, **SMALL), bags_of((20,), 2)
    best = model(bags, mask).scores[0, 0].topk(6).indices
    mask = mask.clone()
    mask[0, 1, best[:2]] = False
    assert set(model(bags, mask).extras["chosen"][0, 1].nonzero()[:, 0].tolist()) == set(best[2:].tolist()) | set(
        model(bags, mask).scores[0, 0].topk(7).indices[6:].tolist()
    )
    mask[0, 1] = False
    with pytest.raises(InputError, match="no tile"):
        model(bags, mask)


def test_each_level_learns_from_its_own_loss():
    model, (bags, mask, _) = model_of("hagmil_hier", 2, **SMALL), bags_of((9, 20), 2)
    assert [level.label_smoothing for level in model.levels] == [0.1, 0.0]
    out, labels = model(bags, mask), torch.tensor([0, 1])
    each = [level.loss(found, labels)[0] for level, found in zip(model.levels, out.extras["levels"])]
    close(model.loss(out, labels)[0], sum(each))
    grads = torch.autograd.grad(each[1], list(model.levels[0].parameters()), allow_unused=True, retain_graph=True)
    assert all(grad is None for grad in grads)


def test_bad_options():
    with pytest.raises(InputError, match="inst_loss"):
        create("hagmil", 8, 2, (10,), inst_loss="hinge")
    with pytest.raises(InputError, match="share_of_tiles"):
        create("hagmil_hier", 8, 2, share_of_tiles=0)
