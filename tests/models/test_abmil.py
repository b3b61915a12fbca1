"""ABMIL: the equations, the count, the promises of the contract."""

import pytest
import torch
from torch.nn import functional as F

from dmsmil.jobs.files import InputError
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

FORMS = [dict(gated=True), dict(gated=False), dict(one_logit=True)]


@pytest.mark.parametrize(
    "options,count",
    [(dict(gated=True), 1_153_887), (dict(gated=False), 1_089_759), (dict(gated=False, one_logit=True), 1_089_258)],
)
def test_parameters(options, count):
    assert count_parameters(create("abmil", 2048, 2, (10,), **options)) == count


@pytest.mark.parametrize("options", FORMS)
def test_contract(options):
    model = model_of("abmil", **options)
    check_batch_and_padding(model)
    check_gradients(model)
    check_permutation(model)
    check_learns(model)


def test_equations():
    """A slide written out tile by tile."""
    model, (bags, _, _) = model_of("abmil", M=5, L=3), bags_of((4,))
    h = [torch.relu(model.project(x)) for x in bags[0, 0]]
    a = model.attention
    s = [a.w(torch.tanh(a.V(t)) * torch.sigmoid(a.U(t))).exp() for t in h]
    z = sum(si * hi for si, hi in zip(s, h)) / sum(s)
    out = model(bags)
    close(out.logits[0], model.classifier(z))
    close(out.scores[0, 0], torch.cat(s) / sum(s))


def test_one_logit_is_a_sigmoid_with_a_clamped_loss():
    model, (bags, _, _) = model_of("abmil", one_logit=True), bags_of((6, 6))
    out = model(bags)
    unit = model.classifier(out.extras["bag_feature"])
    close(out.probabilities[:, 1:], unit.sigmoid())
    labels = torch.tensor([0, 1])
    close(model.loss(out, labels)[0], F.cross_entropy(out.logits, labels))
    with torch.no_grad():
        model.classifier.bias.fill_(100.0)
    loss, _ = model.loss(model(bags), torch.tensor([0, 0]))
    close(loss, -torch.log(torch.tensor(1e-5)), 1e-2)  # 1 - (1 - 1e-5) in float32


def test_one_logit_needs_two_classes():
    with pytest.raises(InputError, match="two classes"):
        create("abmil", 8, 3, (10,), one_logit=True)
