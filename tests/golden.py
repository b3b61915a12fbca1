"""Reading golden files: weights, inputs and outputs recorded from the official code of a method, one .npz each.

Keys: cfg/<name> settings, state/<official name> parameters and buffers, in/<name> inputs, out/<name> outputs (float64),
gradnorm/<loss>/<parameter> and gradin/<loss>/<input> gradients. Everything here is run in float64.

A name map says where each official module goes in ours: {"official.module": "our.module"}. Keys and values are whole
dotted prefixes; the longest matching key wins, what follows it is kept (".weight"). The value may be a pair
("our.module", i): the official tensor is entry i of the first axis of ours; or None: the official code has it and
never uses it. Nothing may be left over on either side.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parents[1] / ".." / "shared" / "reference"


def load(path) -> dict[str, np.ndarray]:
    """All arrays of a golden file, by key."""
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def part(npz: dict, folder: str) -> dict[str, np.ndarray]:
    """The entries under `folder/`, by the rest of their key: part(npz, "out")["logits"]."""
    return {key[len(folder) + 1 :]: value for key, value in npz.items() if key.startswith(folder + "/")}


def state(npz: dict) -> dict[str, np.ndarray]:
    """The official parameters and buffers, by official name."""
    return part(npz, "state")


def setting(npz: dict, name: str):
    """cfg/<name> as a plain Python number or text."""
    return npz["cfg/" + name].item()


def tensor(npz: dict, key: str) -> Tensor:
    """One array as a torch tensor; floats as float64."""
    value = torch.from_numpy(npz[key])
    return value.double() if value.is_floating_point() else value


def place(name: str, name_map: dict) -> tuple[str, int | None] | None:
    """Where the official tensor `name` goes: (our name, entry of the first axis or None), or None when unused."""
    prefixes = [key for key in name_map if name == key or name.startswith(key + ".")]
    if not prefixes:
        raise KeyError(f"the name map says nothing of the official '{name}'")
    prefix = max(prefixes, key=len)
    target = name_map[prefix]
    if target is None:
        return None
    ours, index = target if isinstance(target, tuple) else (target, None)
    return ours + name[len(prefix) :], index


def same_shape(value: Tensor, like: Tensor, name: str) -> Tensor:
    """`value` in the shape of `like`; only axes of length 1 may differ."""
    if [n for n in value.shape if n != 1] != [n for n in like.shape if n != 1]:
        raise ValueError(f"'{name}' is {tuple(value.shape)} officially and {tuple(like.shape)} here")
    return value.reshape(like.shape)


def load_into(model: nn.Module, npz: dict, name_map: dict) -> nn.Module:
    """Fill `model` with the official weights; returns it in float64 and eval mode. KeyError on anything left over."""
    model.double().eval()
    ours = model.state_dict(keep_vars=True)
    empty = {name: torch.ones_like(value, dtype=torch.bool) for name, value in ours.items()}
    with torch.no_grad():
        for official, value in state(npz).items():
            where = place(official, name_map)
            if where is None:
                continue
            name, index = where
            target, entry = (ours[name], empty[name]) if index is None else (ours[name][index], empty[name][index])
            target.copy_(same_shape(torch.from_numpy(value), target, official))
            entry.fill_(False)
    missing = [name for name, entry in empty.items() if entry.any()]
    if missing:
        raise KeyError(f"no official weights for {missing}")
    return model


def worst(a, b) -> float:
    """Largest absolute difference of two arrays of the same shape (axes of length 1 apart); NaN counts as infinite."""
    a, b = (torch.as_tensor(v.detach() if isinstance(v, Tensor) else v).double() for v in (a, b))
    difference = (same_shape(a, b, "value") - b).abs()
    return float(difference.nan_to_num(nan=float("inf")).max()) if difference.numel() else 0.0


def gradient_errors(
    model: nn.Module, npz: dict, name: str, loss: Tensor, name_map: dict, inputs: dict[str, Tensor] | None = None
) -> dict[str, float]:
    """Back-propagate `loss`, the official loss `name`: worst error of the parameters' gradient norms and of the
    gradients of `inputs` (official input name -> leaf tensor of that shape). A parameter with no entry in the file has
    no gradient officially, so ours must have none or zero."""
    parameters = dict(model.named_parameters())
    leaves = list(parameters.values()) + list((inputs or {}).values())
    found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    grads = {
        key: torch.zeros_like(leaf) if g is None else g
        for key, leaf, g in zip([*parameters, *(f"in/{key}" for key in inputs or {})], leaves, found)
    }
    norms = part(npz, f"gradnorm/{name}")
    errors = [0.0]
    for official in state(npz):
        where = place(official, name_map)
        if where is not None and where[0] in parameters:
            grad = grads[where[0]] if where[1] is None else grads[where[0]][where[1]]
            errors.append(abs(float(grad.norm()) - float(norms.get(official, 0.0))))
    result = {f"gradnorm/{name}": max(errors)} if norms else {}
    for key in inputs or {}:
        if f"gradin/{name}/{key}" in npz:
            result[f"gradin/{name}/{key}"] = worst(grads[f"in/{key}"], tensor(npz, f"gradin/{name}/{key}"))
    return result
