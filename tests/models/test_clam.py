"""CLAM: counts, contract, the instance loss against a plain one, its edge cases."""

import pytest
import torch
from torch.nn import functional as F

from dmsmil.jobs.files import InputError
from dmsmil.models import count_parameters, create
from dmsmil.models.clam import instance_loss, select_instances, smooth_svm
from dmsmil.models.contract import (
    bags_of,
    check_batch_and_padding,
    check_gradients,
    check_learns,
    check_permutation,
    close,
    model_of,
)


@pytest.mark.parametrize(
    "name,options,count",
    [("clam_sb", {}, 1_315_079), ("clam_mb", {}, 1_315_336), ("clam_sb", dict(gate=False), 1_183_751)],
)
def test_parameters(name, options, count):
    assert count_parameters(create(name, 2048, 2, (10,), **options)) == count


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clam_sb", "clam_mb"])
@pytest.mark.parametrize("options", [{}, dict(inst_loss="ce", subtyping=False, gate=False)])
def test_contract(name, options):
    model = model_of(name, **options)
    check_batch_and_padding(model)
    check_gradients(model)
    check_permutation(model)
    check_learns(model)


def plain_instance_loss(logits, attention, label, k, loss, subtyping):
    """One slide, one class after the other: logits (K, C, 2), attention (R, K)."""
    total, classes = 0.0, logits.shape[1]
    for c in range(classes):
        order = attention[c if len(attention) > 1 else 0].argsort(descending=True)
        k_here = min(k, len(order))
        high, low = order[:k_here], order.flip(0)[:k_here]
        rows, target = (torch.cat([high, low]), [1] * k_here + [0] * k_here) if c == label else (high, [0] * k_here)
        if c != label and not subtyping:
            continue
        x, y = logits[rows, c], torch.tensor(target)
        total = total + (F.cross_entropy(x, y) if loss == "ce" else smooth_svm(x, y).mean())
    return total / classes if subtyping else total


@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize("loss", ["ce", "svm"])
@pytest.mark.parametrize("subtyping", [True, False])
def test_instance_loss_is_the_plain_one(branches, loss, subtyping):
    generator, lengths = torch.Generator().manual_seed(4), torch.tensor([1, 3, 8, 13, 30])
    logits = 4 * torch.randn(5, 30, 3, 2, generator=generator)
    mask = torch.arange(30) < lengths.unsqueeze(1)
    attention = torch.rand(5, branches, 30, generator=generator) * mask.unsqueeze(1)
    labels = torch.tensor([0, 1, 2, 1, 0])
    plain = [
        plain_instance_loss(logits[b, :n], attention[b, :, :n], labels[b], 8, loss, subtyping)
        for b, n in enumerate(lengths)
    ]
    close(instance_loss(logits, attention, mask, labels, 8, loss, subtyping), torch.stack(plain).mean())


def test_few_tiles_clip_k():
    ids, targets, used = select_instances(
        torch.tensor([[[0.2, 0.5, 0.3, 0.0]]]), torch.tensor([[True] * 3 + [False]]), torch.tensor([1]), 2, 8, True
    )
    assert used.sum((0, 2)).tolist() == [3, 6]
    assert ids[0, 1][used[0, 1]].tolist() == [1, 2, 0, 0, 2, 1]  # each tile high and low, no padding
    assert targets[0, 1][used[0, 1]].tolist() == [1, 1, 1, 0, 0, 0] and targets[0, 0].sum() == 0


def test_smooth_svm():
    """Between the hard hinge and tau log(n) above it; the hard one where the two largest logits are far apart."""
    logits, targets = 6 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 2
    hard = (1 + logits.gather(1, 1 - targets[:, None]) - logits.gather(1, targets[:, None])).clamp(min=0)[:, 0]
    smooth = smooth_svm(logits, targets)
    far = (logits[:, 0] - logits[:, 1]).abs() >= torch.tensor(1000.0).log()
    assert 20 < far.sum() < 180
    close(smooth[far], hard[far])
    assert ((smooth - hard)[~far] > 0).all() and (smooth - hard <= 0.6932).all()


def test_bag_weight_one_is_cross_entropy():
    model, (bags, _, _) = model_of("clam_sb", bag_weight=1.0), bags_of((9,))
    out = model(bags)
    close(model.loss(out, torch.tensor([1]))[0], F.cross_entropy(out.logits, torch.tensor([1])))


def test_scores_of_mb_are_the_predicted_branch():
    model, (bags, _, _) = model_of("clam_mb"), bags_of((9,) * 8)
    with torch.no_grad():
        model.classifier.bias -= model(bags).logits.mean(0)  # both classes get predicted
    out = model(bags)
    rows = out.logits.argmax(-1)
    assert len(rows.unique()) == 2
    for b in range(8):
        close(out.scores[b, 0], out.extras["attention"][b, rows[b]])


def test_dropout_only_in_training():
    model, (bags, _, _) = model_of("clam_sb"), bags_of((9,))
    assert torch.equal(model(bags).logits, model(bags).logits)
    model.train()
    assert not torch.equal(model(bags).logits, model(bags).logits)


def test_bad_options():
    with pytest.raises(InputError, match="inst_loss"):
        create("clam_sb", 8, 2, (10,), inst_loss="hinge")
