"""Nystrom attention against the published computation, padding and all, one bag at a time."""

import pytest
import torch

from dmsmil.jobs.files import InputError
from dmsmil.models.contract import close
from dmsmil.models.nystrom import NystromAttention, by_count


def plain(layer: NystromAttention, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One bag (n, width), with its zero rows in front: -> output (n, width) and F1 F2^+ F3 (heads, n, n)."""
    n, m, heads = len(u), layer.landmarks, layer.heads
    padding = -n % m
    u = torch.cat([u.new_zeros(padding, u.shape[1]), u])
    q, k, v = (part.view(len(u), heads, -1).transpose(0, 1) for part in (u @ layer.to_qkv.weight.T).chunk(3, 1))
    q = q / q.shape[-1] ** 0.5
    q_mean, k_mean = (x.view(heads, m, len(u) // m, -1).mean(2) for x in (q, k))
    first, second, third = (
        (a @ b.transpose(1, 2)).softmax(-1) for a, b in ((q, k_mean), (q_mean, k_mean), (q_mean, k))
    )
    eye, inverse = torch.eye(m, dtype=u.dtype), second.transpose(1, 2) / (second.sum(1).max() * second.sum(2).max())
    for _ in range(layer.iterations):
        a = second @ inverse
        inverse = inverse @ (13 * eye - a @ (15 * eye - a @ (7 * eye - a))) / 4
    weights = first @ inverse @ third
    mixed = (weights @ v + layer.value_conv(v[None])[0]).transpose(0, 1).flatten(1)
    return layer.out(mixed)[-n:], weights[:, -n:, -n:]


@pytest.mark.parametrize("n", [1, 2, 5, 7, 8, 9, 15, 16, 17, 27, 40])
def test_equals_the_padded_computation(n):
    torch.manual_seed(n)
    layer = NystromAttention(16, heads=2, landmarks=8, kernel=5).double().eval()
    layer.to_qkv.weight.data *= 4  # far from uniform attention
    u = torch.randn(3, n, 16, dtype=torch.float64)
    found, weights = layer(u, row=n // 2)
    for b in range(3):  # each bag by itself
        expected, expected_weights = plain(layer, u[b])
        close(found[b], expected, 1e-9)
        close(weights[b], expected_weights[:, n // 2], 1e-9)
    assert layer(u)[1] is None


def test_many_landmarks_are_exact_attention():
    """With as many landmarks as tokens and enough iterations, F1 F2^+ F3 is the plain softmax attention."""
    torch.manual_seed(0)
    layer = NystromAttention(8, heads=1, landmarks=6, iterations=30).double().eval()
    u = torch.randn(1, 6, 8, dtype=torch.float64)
    q, k, _ = layer.to_qkv(u).chunk(3, -1)
    close(layer(u, row=2)[1][:, 0], (q @ k.mT / 8**0.5).softmax(-1)[:, 2], 1e-7)


def test_by_count():
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1]], dtype=torch.bool)
    (n2, slides2, tiles2), (n4, slides4, tiles4) = by_count(mask)
    assert (n2, slides2.tolist(), tiles2.tolist()) == (2, [0, 1], [[0, 1], [1, 3]])
    assert (n4, slides4.tolist(), tiles4.tolist()) == (4, [2], [[0, 1, 2, 3]])
    with pytest.raises(InputError, match="slide 1 .* has no tile"):
        by_count(torch.tensor([[True], [False]]))


def test_heads_must_divide():
    with pytest.raises(InputError, match="multiple"):
        NystromAttention(20, heads=8)
