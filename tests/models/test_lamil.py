"""LA-MIL and GA-MIL: counts, contract, neighbourhoods with ties, what a tile can see."""

import pytest
import torch

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
from dmsmil.models.lamil import nearest, neighbourhood

SMALL = dict(latent_dim=16, num_heads=4, k=(3, 6))


@pytest.mark.parametrize("architecture", ["LA_MIL", "GA_MIL"])
def test_parameters(architecture):
    """GA-MIL: the repository's count less its two unused LayerNorms."""
    count = 3_148_290 if architecture == "LA_MIL" else 3_150_338 - 2 * 2 * 512
    assert count_parameters(create("lamil", 2048, 2, (10,), architecture=architecture)) == count


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["LA_MIL", "GA_MIL"])
def test_contract(architecture):
    model = model_of("lamil", architecture=architecture, **SMALL)
    check_batch_and_padding(model)
    check_gradients(model)
    check_learns(model)
    if architecture == "GA_MIL":
        check_permutation(model)


def test_permutation_where_no_distances_are_equal():
    model, (bags, _, _) = model_of("lamil", **SMALL), bags_of((20,))
    coords = torch.randint(0, 10**6, (1, 1, 20, 2), generator=torch.Generator().manual_seed(0))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    out, other = model(bags, None, coords), model(bags[:, :, order], None, coords[:, :, order])
    close(out.logits, other.logits)
    close(out.scores[:, :, order], other.scores)


@pytest.mark.parametrize("k", [1, 4, 9, 40])
def test_nearest_is_brute_force_with_ties_by_position(k):
    """On an integer grid most distances are equal; a hole in the mask is no neighbour."""
    mask = torch.ones(2, 24, dtype=torch.bool)
    mask[1, 5], mask[1, 20:] = False, False
    coords = torch.stack([torch.arange(24) % 6, torch.arange(24) // 6], -1).expand(2, -1, -1) * 1024
    lists = nearest(mask, coords, k)
    allowed = neighbourhood(lists, k)
    assert lists.shape == (2, 24, min(k, 24)) and lists.dtype == torch.int32
    for b in range(2):
        there = mask[b].nonzero()[:, 0].tolist()
        for i in range(24):
            key = {j: (j != i, sum((coords[b, i, a] - coords[b, j, a]).item() ** 2 for a in (0, 1)), j) for j in there}
            expected = sorted(there, key=key.get)[:k] if i in there else []
            assert [j for j in lists[b, i].tolist() if j >= 0] == expected
            assert allowed[b, i].nonzero()[:, 0].tolist() == sorted(expected)


def test_all_neighbours_and_no_clamp_is_global_attention():
    local, everywhere = (
        model_of("lamil", architecture=name, latent_dim=16, num_heads=4, k=(99, 99)) for name in ("LA_MIL", "GA_MIL")
    )
    everywhere.load_state_dict(local.state_dict())
    bags, mask, coords = bags_of((12, 20))
    close(local(bags, mask, coords).logits, everywhere(bags, mask).logits)  # small weights: nothing is clamped
    for model in (local, everywhere):
        model.layers[0].to_qkv.weight.data *= 20
    assert (local(bags, mask, coords).logits - everywhere(bags, mask).logits).abs().max() > 1e-4


def test_a_tile_sees_its_neighbours_only():
    """One layer: the attention that tile i receives changes with the features of tiles near it, not of others."""
    model = model_of("lamil", latent_dim=16, num_heads=4, depth=1, k=(4,))
    bags, _, coords = bags_of((30,))
    seen = []
    model.layers[0].register_forward_hook(lambda _, inputs, output: seen.append(output[0]))
    x = bags.requires_grad_()
    model(x, None, coords)
    allowed = neighbourhood(model.geometry(torch.ones(1, 1, 30, dtype=torch.bool), coords)["neighbours"], 4)[0]
    for i in (0, 13, 29):
        grad = torch.autograd.grad(seen[0][0, i].square().sum(), x, retain_graph=True)[0][0, 0].norm(dim=1)
        assert torch.equal(grad > 0, allowed[i])


def test_geometry_of_the_study_serves_a_batch():
    model, (bags, mask, coords) = model_of("lamil", **SMALL), bags_of((4, 9, 20))
    geometry = {name: value[[2, 0]] for name, value in model.geometry(mask, coords).items()}
    assert geometry["neighbours"].shape == (2, 20, 6)
    close(model(bags[[2, 0]], mask[[2, 0]], geometry=geometry).logits, model(bags, mask, coords).logits[[2, 0]])


def test_scores_sum_to_one():
    bags, mask, coords = bags_of((4, 20))
    close(model_of("lamil", **SMALL)(bags, mask, coords).scores.sum((1, 2)), torch.ones(2))


def test_bad_options():
    with pytest.raises(InputError, match="one k a layer"):
        create("lamil", 8, 2, (10,), depth=3)
    with pytest.raises(InputError, match="architecture"):
        create("lamil", 8, 2, (10,), architecture="T_MIL")
    with pytest.raises(InputError, match="positions"):
        model_of("lamil", **SMALL)(bags_of((3,))[0])
