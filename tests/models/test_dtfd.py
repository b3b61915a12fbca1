"""DTFD-MIL: counts, contract, grouping, selection and the separation of the two tiers."""

import numpy as np
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
from dmsmil.models.dtfd import deal

MODES = [dict(distill="AFS"), dict(distill="MaxS"), dict(distill="MaxMinS"), dict(distill="MaxMinS", total_instance=12)]


@pytest.mark.parametrize("distill", ["AFS", "MaxS", "MaxMinS"])
def test_parameters(distill):
    assert count_parameters(create("dtfd", 2048, 2, (10,), distill=distill)) == 1_313_542


@pytest.mark.slow
@pytest.mark.parametrize("options", MODES)
def test_contract(options):
    model = model_of("dtfd", **options)
    check_batch_and_padding(model)
    check_gradients(model)
    check_permutation(model)  # coordinates decide the groups
    check_learns(model)
    bags, mask, coords = bags_of((1, 2, 5, 31))
    close(model(bags, mask, coords).scores.sum((1, 2)), torch.ones(4))


@pytest.mark.parametrize("groups", [1, 3, 4, 7])
def test_groups_are_array_split(groups):
    """Sizes and members as numpy's array_split of the shuffled bag; no tile lost, no empty group while tiles last."""
    lengths = torch.tensor([1, 2, 3, 4, 9, 20])
    mask = torch.arange(20) < lengths.unsqueeze(1)
    group = deal(torch.arange(20).expand(6, -1), mask, groups)
    for row, n in zip(group, lengths.tolist()):
        parts = np.array_split(np.arange(n), groups)
        assert row[:n].tolist() == [g for g, part in enumerate(parts) for _ in part]
        assert len(row[:n].unique()) == min(n, groups)


def test_grouping_is_fixed_in_evaluation_and_fresh_in_training():
    model, (bags, mask, coords) = model_of("dtfd"), bags_of((31,))
    before = torch.get_rng_state()
    group = model(bags, mask, coords).extras["group"]
    assert torch.equal(group, model(bags, mask, coords).extras["group"]) and torch.equal(before, torch.get_rng_state())
    assert not torch.equal(group, model_of("dtfd", shuffle_seed=1)(bags, mask, coords).extras["group"])
    model.train()
    drawn = [model(bags, mask, coords).extras["group"] for _ in range(2)]
    assert not torch.equal(*drawn)
    assert all(g.bincount(minlength=4).tolist() == [8, 8, 8, 7] for g in [group[0], drawn[0][0], drawn[1][0]])


def test_grouping_mixes_the_slide():
    """Neighbours fall in different groups about as often as chance has it."""
    coords = torch.stack(torch.meshgrid(torch.arange(20), torch.arange(20), indexing="xy"), -1).view(1, 400, 2) * 1024
    model, mask = model_of("dtfd"), torch.ones(1, 400, dtype=torch.bool)
    for given in (coords, None):
        group = deal(model.ranks(mask, given), mask, 4).view(20, 20)
        for same in ((group[1:] == group[:-1]), (group[:, 1:] == group[:, :-1])):
            assert 0.17 < same.float().mean() < 0.33


@pytest.mark.parametrize("distill", ["MaxS", "MaxMinS"])
def test_selection_is_a_sort(distill):
    """Each pseudo-bag's tiles sorted by their derived score; short ones give what they have, twice in MaxMinS."""
    model, (bags, _, coords) = model_of("dtfd", distill=distill, total_instance=8), bags_of((7,))
    e = model(bags, None, coords).extras
    expected = []
    for g in range(4):
        members = sorted(
            (e["group"][0] == g).nonzero().flatten().tolist(), key=lambda i: -e["tile_probability"][0, i, -1].item()
        )
        expected += members[:2] + (members[-2:] if distill == "MaxMinS" else [])
    assert e["selected"][0][e["pseudo_there"][0]].tolist() == expected


def test_afs_scores_rebuild_the_slide_vector():
    model, (bags, _, coords) = model_of("dtfd"), bags_of((13,))
    out = model(bags, None, coords)
    close(out.logits, model.classifier2(out.scores[:, 0] @ model.project(bags[0, 0]).relu()))


@pytest.mark.parametrize("options", MODES)
def test_tiers_learn_apart(options):
    """In training each tier has the gradient of its own loss alone, so one optimiser does what two do officially."""
    model, (bags, mask, coords) = model_of("dtfd", **options).train(), bags_of((5, 31))
    labels = torch.tensor([0, 1])
    out = model(bags, mask, coords)
    total, _ = model.loss(out, labels)
    tier2 = F.cross_entropy(out.logits, labels)
    first = [p for n, p in model.named_parameters() if "2" not in n]
    second = [p for n, p in model.named_parameters() if "2" in n]
    assert all(g is None for g in torch.autograd.grad(tier2, first, retain_graph=True, allow_unused=True))
    for own, whole in zip(
        torch.autograd.grad(tier2, second, retain_graph=True), torch.autograd.grad(total, second, retain_graph=True)
    ):
        close(own, whole)
    model.eval()
    bags.requires_grad_()
    model(bags, mask, coords).logits.sum().backward()
    assert bags.grad[mask].abs().sum() > 0


@pytest.mark.parametrize("options", [dict(distill="max"), dict(total_instance=3), dict(numGroup=0)])
def test_bad_options(options):
    with pytest.raises(InputError, match="DTFD-MIL"):
        create("dtfd", 8, 2, (10,), **options)
