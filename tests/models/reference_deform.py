"""Deformable attention against golden files of Deformable DETR and of DAT."""

import torch

from dmsmil.models.deformable import DeformableAttention
from dmsmil.models.maps import corners, full_maps
from tests.golden import setting, tensor, worst


def framed(values, height, width, frame):
    """(N, H W, ...) -> the map in a frame of zero cells: our border then reads the zeros Deformable DETR reads."""
    shape = values.shape[2:]
    outer = values.new_zeros(len(values), height + 2 * frame, width + 2 * frame, *shape)
    outer[:, frame:-frame, frame:-frame] = values.view(len(values), height, width, *shape)
    return outer.flatten(1, 2)


def check_deform_detr(npz):
    """Our reading of a map against the official core, with gradients, and our weight map against its module, pooled."""
    return core_errors(npz) | module_errors(npz)


def core_errors(npz):
    """The core: value and locations in, sampled and weighted heads out."""
    height, width = setting(npz, "H"), setting(npz, "W")
    value = tensor(npz, "in/value").requires_grad_()  # (N, H W, M, d)
    location = tensor(npz, "in/sampling_locations").requires_grad_()  # (N, Q, M, 1, U, 2)
    maps = full_maps(height + 4, width + 4, (1, len(value)), None)
    x, y = location[..., 0, :, 0] * width - 0.5 + 2, location[..., 0, :, 1] * height - 0.5 + 2  # (N, Q, M, U)
    index, weight = (part[0] for part in corners(x[None], y[None], maps))
    outer = framed(value, height, width, 2)
    slides, heads = torch.arange(len(value)).view(-1, 1, 1, 1, 1), torch.arange(value.shape[2]).view(1, 1, -1, 1, 1)
    sampled = (outer[slides, index, heads] * weight[..., None]).sum(-2)  # (N, Q, M, U, d)
    core = (sampled * tensor(npz, "in/attention_weights")[..., 0, :, None]).sum(-2).flatten(2)
    loss = core.square().mean()
    loss.backward()
    return {
        "core": worst(core, npz["out/core"]),
        "loss/core_mean_square": worst(loss, npz["out/loss/core_mean_square"]),
        **{
            f"gradin/core_mean_square/{name}": worst(leaf.grad, npz[f"gradin/core_mean_square/{name}"])
            for name, leaf in (("value", value), ("sampling_locations", location))
        },
    }


def module_errors(npz):
    """The mean over queries of the official module's output is our mix of its weight map."""
    height, width, heads, points = (setting(npz, name) for name in ("H", "W", "heads", "points"))
    layer = DeformableAttention(1, setting(npz, "d_model"), heads, points, "cells", "linear", "points").double()
    with torch.no_grad():
        for ours, theirs in ((layer.value, "value_proj"), (layer.output, "output_proj")):
            ours.weight[0] = tensor(npz, f"state/{theirs}.weight").T
            ours.bias[0] = tensor(npz, f"state/{theirs}.bias")
    tokens = tensor(npz, "in/tokens")
    number, queries, _ = tokens.shape
    offset = tensor(npz, "out/module_offsets_in_cells").view(number, queries, heads, points, 2)
    attention = tensor(npz, "out/module_attention_logits").view(number, queries, heads, points).softmax(-1)
    centre = tensor(npz, "in/reference_points").view(number, queries, 1, 1, 2) * torch.tensor([width, height]) - 0.5
    where = centre + offset + 2
    maps = full_maps(height + 4, width + 4, (1, number), None)
    index, weight = (part[0] for part in corners(where[None, ..., 0], where[None, ..., 1], maps))
    mass = attention[..., None] * weight / queries
    w = torch.stack(
        [
            torch.zeros(number, (height + 4) * (width + 4), dtype=torch.float64).scatter_add(
                1, index[:, :, m].flatten(1), mass[:, :, m].flatten(1)
            )
            for m in range(heads)
        ],
        1,
    )
    w = w * framed(torch.ones(number, queries, dtype=torch.float64), height, width, 2)[:, None]
    pooled = layer.mix((w @ framed(tokens, height, width, 2))[None], w.sum(-1)[None])[0]
    return {"module, mean over queries": worst(pooled, npz["out/module"].mean(1))}


def check_dat(npz):
    """The offset factor s/H of `offset="dat"`, which is one cell; the rest of DAT is another operation than ours."""
    height, width, groups = setting(npz, "H"), setting(npz, "W"), setting(npz, "groups")
    layer = DeformableAttention(1, 2 * groups, groups, 1, "dat", "linear", "points").double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.query.weight[0] = torch.eye(2 * groups)
        layer.plan.weight[0, :, : 2 * groups] = torch.eye(2 * groups)
    raw = tensor(npz, "out/conv_offset_output").view(-1, groups, 2, height * width)  # channels (y, x)
    x = raw.flip(2).permute(0, 3, 1, 2).flatten(2)[None]  # (1, N, H W, groups * (x, y))
    samples = layer.sample(x, full_maps(height, width, (1, x.shape[1]), None))
    moved = tensor(npz, "out/sampling_positions_yx") - tensor(npz, "out/reference_yx")  # (N, groups, H, W, 2), [-1, 1]
    moved = moved * (torch.tensor([height, width]) - 1) / 2  # align_corners=True there: n - 1 cells
    cells = torch.arange(height * width)
    row, column = (cells // width)[:, None], (cells % width)[:, None]
    found = torch.stack([samples.y[0, ..., 0] - row, samples.x[0, ..., 0] - column], -1)
    return {"sampling_positions less reference": worst(found.transpose(1, 2).unflatten(2, (height, width)), moved)}


CHECKS = {"deform_detr": check_deform_detr, "dat": check_dat}
