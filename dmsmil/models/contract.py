"""What base.py promises of every method, as checks for any method, those of the registry and one's own.

`check_contract("your_method")` runs them all and says which promises are kept.
"""

from __future__ import annotations

import pandas as pd
import torch
from torch.nn import functional as F

from dmsmil.models import create, method

DIM = 12


def bags_of(lengths, scales: int = 1, dim: int = DIM, seed: int = 0):
    """Random bags, mask, coords: one slide a length, each padded with rubbish to the longest."""
    generator = torch.Generator().manual_seed(seed)
    K = max(lengths)
    bags = torch.randn(len(lengths), scales, K, dim, generator=generator)
    mask = (torch.arange(K) < torch.tensor(lengths).unsqueeze(1)).unsqueeze(1).expand(-1, scales, -1)
    coords = torch.stack([torch.arange(K) % 6, torch.arange(K) // 6], -1) * 1024
    return bags, mask, coords.expand(len(lengths), scales, -1, -1)


def model_of(name: str, scales: int = 1, dim: int = DIM, **options):
    """A small model in evaluation mode, the same weights every time."""
    torch.manual_seed(1)
    return create(name, dim, 2, (10, 20)[:scales], **options).eval()


def demand(condition, otherwise: str) -> None:
    """Raise AssertionError(otherwise) unless the condition holds."""
    if not bool(condition):
        raise AssertionError(otherwise)


def close(a, b, tolerance: float = 1e-5) -> None:
    """The two tensors agree."""
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def check_batch_and_padding(model, lengths=(1, 2, 3, 9, 20, 31), scales: int = 1) -> None:
    """A padded batch gives each slide what it gives alone and unpadded: logits, scores, and the mean of the losses."""
    bags, mask, coords = bags_of(lengths, scales, model.in_dim)
    labels = torch.arange(len(lengths)) % 2
    out = model(bags, mask, coords)
    demand(out.logits.shape == (len(lengths), 2), f"logits are {tuple(out.logits.shape)}, not (B, n_classes)")
    demand(out.scores.shape == mask.shape, f"scores are {tuple(out.scores.shape)}, not (B, S, K)")
    demand((out.scores >= 0).all() and (out.scores[~mask] == 0).all(), "scores are negative, or not 0 on padding")
    losses = []
    for b, n in enumerate(lengths):
        one = model(bags[b : b + 1, :, :n], None, coords[b : b + 1, :, :n])
        close(out.logits[b : b + 1], one.logits)
        close(out.scores[b : b + 1, :, :n], one.scores)
        losses.append(model.loss(one, labels[b : b + 1])[0])
    close(model.loss(out, labels)[0], torch.stack(losses).mean())


def check_gradients(model, sizes=(1, 2, 31), scales: int = 1) -> None:
    """In training, alone and in a padded batch: a finite loss, finite gradients, and none of them missing."""
    model.train()
    for lengths in [(n,) for n in sizes] + [sizes]:
        bags, mask, coords = bags_of(lengths, scales, model.in_dim)
        model.zero_grad()
        loss, terms = model.loss(model(bags, mask, coords), torch.arange(len(lengths)) % 2)
        loss.backward()
        demand(
            loss.isfinite() and all(term.isfinite() and not term.requires_grad for term in terms.values()),
            f"the loss of bags of {lengths} tiles is not finite, or its terms are not detached",
        )
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        for name, parameter in trained.items():
            demand(
                parameter.grad is not None and parameter.grad.isfinite().all(),
                f"the gradient of {name} is missing or not finite on bags of {lengths} tiles",
            )
    model.eval()


def check_terms(model, scales: int = 1) -> None:
    """The term L_ce is the plain cross-entropy of the logits, whatever is minimised."""
    bags, mask, coords = bags_of((9, 20), scales, model.in_dim)
    labels = torch.arange(2)
    out = model(bags, mask, coords)
    terms = model.loss(out, labels)[1]
    demand("L_ce" in terms, "its loss has no term L_ce, by which a run that has learned nothing is known")
    close(terms["L_ce"], F.cross_entropy(out.logits, labels))


def check_permutation(model, scales: int = 1, K: int = 20) -> None:
    """The order of the tiles does not matter; scores follow their tiles."""
    bags, _, coords = bags_of((K,), scales, model.in_dim)
    order = torch.randperm(K, generator=torch.Generator().manual_seed(3))
    out, other = model(bags, None, coords), model(bags[:, :, order], None, coords[:, :, order])
    close(out.logits, other.logits)
    close(out.scores[:, :, order], other.scores)


def check_contract(name: str, **options) -> pd.DataFrame:
    """Every promise of the contract for a method of the registry: columns promise, kept, and what broke it."""
    scales = 1 if method(name).takes == "one" else 2
    dim = 64  # a multiple of what any method asks for
    checks = {
        "a padded batch gives what its slides give alone": check_batch_and_padding,
        "gradients are finite on bags of 1, 2 and 31 tiles": check_gradients,
        "its term L_ce is the cross-entropy of its logits": check_terms,
        "it learns what is planted": check_learns,
    }
    rows = []
    for promise, check in checks.items():
        try:
            check(model_of(name, scales, dim, **options), scales=scales)
            rows.append({"promise": promise, "kept": True, "why not": ""})
        except Exception as error:
            rows.append({"promise": promise, "kept": False, "why not": " ".join(str(error).split())[:120]})
    return pd.DataFrame(rows).set_index("promise")


def check_learns(model, scales: int = 1) -> None:
    """After at most a hundred steps on six slides, three of them with marked tiles, each is told right, at a lower
    loss."""
    bags, mask, coords = bags_of((20,) * 6, scales, model.in_dim, seed=7)
    labels = torch.arange(6) % 2
    bags[labels == 1, :, :10, :3] += 3
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    first, _ = model.loss(model(bags, mask, coords), labels)
    for _ in range(5):
        model.train()
        for _ in range(20):
            optimiser.zero_grad()
            model.loss(model(bags, mask, coords), labels)[0].backward()
            optimiser.step()
        model.eval()
        out = model(bags, mask, coords)
        last, right = model.loss(out, labels)[0], int((out.logits.argmax(1) == labels).sum())
        if right == len(labels) and last < first:
            return
    raise AssertionError(
        f"a hundred steps tell {right} of 6 slides right, and take the loss from {first:.3f} to {last:.3f}"
    )
