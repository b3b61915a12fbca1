"""Golden checks of the attention and grid methods: TransMIL, LA-MIL, GA-MIL, HAG-MIL, HiFuse, AMGCFN."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from dmsmil.models import create
from dmsmil.models.amgcfn import adjacency
from dmsmil.models.clam import select_instances
from dmsmil.models.lamil import neighbourhood
from tests.golden import gradient_errors, load_into, setting, tensor, worst

NYSTROM = {"to_qkv": "to_qkv", "to_out.0": "out", "res_conv": "value_conv"}


def under(theirs: str, ours: str, names: dict) -> dict:
    """`names` with both sides inside a module: {theirs.key: ours.value}; a value of None stays None."""
    return {f"{theirs}.{key}": value and f"{ours}.{value}" for key, value in names.items()}


TRANSMIL = {
    "_fc1.0": "project",
    "cls_token": "token",
    "layer1.norm": "norm1",
    "layer2.norm": "norm2",
    "norm": "norm",
    "pos_layer.proj": "position.conv7",
    "pos_layer.proj1": "position.conv5",
    "pos_layer.proj2": "position.conv3",
    "_fc2": "classifier",
    **under("layer1.attn", "attention1", NYSTROM),
    **under("layer2.attn", "attention2", NYSTROM),
}


def lamil_names(depth: int, width: int) -> dict:
    """LA-MIL and GA-MIL: theirs has q, k, v apart in one and joined in the other, ours joined in both."""
    names = {"fc1": "project", "mlp_head": "classifier"}
    for i in range(depth):
        names |= under(
            f"layers.{i}", f"layers.{i}", {"O": "out", "attn.to_qkv": "to_qkv", "attn.to_out.0": "out", "norm": None}
        )
        for j, name in enumerate("QKV"):
            names[f"layers.{i}.attention.{name}"] = (f"layers.{i}.to_qkv", slice(j * width, (j + 1) * width))
    return names


def hagmil_names(blocks: int, n_classes: int) -> dict:
    names = {"weights": "weights", "fc5": "classifier", "instance_loss_fn.labels": None}
    for c in range(n_classes):
        names[f"instance_classifiers.{c}"] = ("instance_classifiers", slice(2 * c, 2 * c + 2))
    for j in range(blocks):
        names |= under(
            f"layers.{j}",
            f"blocks.{j}",
            {
                "fc": "project",
                "norm": "norm",
                "layer.norm": "attention_norm",
                "layer.residual_attn.omega": None,
                "layer_map_to_final": "to_final",
                "attention_net.0": "instance.0",
                "attention_net.3.attention_a.0": "score.V",
                "attention_net.3.attention_b.0": "score.U",
                "attention_net.3.attention_c": "score.w",
                **under("layer.attn", "attention", NYSTROM),
            },
        )
    return names


def hifuse_names(depth: int) -> dict:
    names = {
        "stem_l": "stem_local",
        "stem_g.proj": "stem_global.0",
        "stem_g.norm": "stem_global.1",
        "norm": "norm",
        "down.0": "down_local",
        "glob.1.downsample.norm": "down_global.0",
        "head": "classifier",
        "glob.1.downsample.reduction": "down_global.1",
        "fu.1.Updim.conv": "fusion.1.before",
        "fu.1.Updim.bn": "fusion.1.before_norm",
    }
    for stage in range(2):
        for i in range(depth):
            names |= under(
                f"local.{stage}.{i}", f"local.{stage}.{i}", {"dwconv": "conv", "norm": "norm", "pwconv": "point"}
            )
            names |= under(
                f"glob.{stage}.blocks.{i}",
                f"glob.{stage}.{i}",
                {
                    "norm1": "norm",
                    "norm2": None,
                    "attn.relative_position_index": None,
                    "attn.qkv": "qkv",
                    "attn.relative_position_bias_table": "position",
                    "attn.proj": "out",
                    "fc1": "point",
                },
            )
        join, norm, unused = ("W3", "norm1", ("W", "norm2")) if stage else ("W", "norm2", ("Updim", "W3", "norm1"))
        names |= under(
            f"fu.{stage}",
            f"fusion.{stage}",
            {
                "se": "squeeze",
                "spatial.conv": "spatial",
                "spatial.bn": "spatial_norm",
                "W_l.conv": "local",
                "W_l.bn": "local_norm",
                "W_g.conv": "glob",
                "W_g.bn": "glob_norm",
                norm: "join_norm",
                f"{join}.conv": "join",
                f"{join}.bn": "joined_norm",
                "norm3": "norm",
                "residual.conv1.conv": "mix",
                "residual.bn1": "mix_norm",
                "residual.conv2.conv": "widen",
                "residual.conv3.conv": "narrow",
                "residual.conv3.bn": "narrow_norm",
                **dict.fromkeys(unused),
            },
        )
    return names


def amgcfn_names() -> dict:
    names = {
        "feat_in": "nodes",
        "BN_GCN": "node_norm",
        "GCN_Multihead.LayerNorm": "graph_norm",
        "cross.conv1_spatial": "cross.conv1",
        "cross.conv2_spatial": "cross.conv2",
        "GCN_fc_out": "classifier_graph",
        "CNN_fc_out": "classifier_image",
        "Cross_fc_out": "classifier",
        **{f"GCN_Multihead.{name}": name for name in ("query", "key", "value", "dense")},
        **{f"CNN_Multihead.attn_conv{j}": ("gate", j) for j in range(6)},
    }
    for i in range(3):
        names[f"BN_GCN{i + 1}"] = f"graph.{i}.norm"
        for j in range(2):
            names[f"GCNBlock{i + 1}.conv{j + 1}.weight"] = f"graph.{i}.weights.{j}"
            names[f"GCNBlock{i + 1}.conv{j + 1}.bias"] = f"graph.{i}.biases.{j}"
        for j, letter in enumerate("ABC"):
            names |= under(
                f"CNNlayer{letter}{i + 1}", f"image.{i}.{j}", {"BN": "norm", "conv_in": "point", "conv_out": "conv"}
            )
    for j in (1, 2):
        for theirs, ours in (("avg", "mean"), ("max", "most")):
            names |= {
                f"cross.{theirs}{j}": f"cross.{ours}.{j - 1}.0",
                f"cross.{theirs}{j}{j}": f"cross.{ours}.{j - 1}.2",
            }
    # p20 is the same layer as p10, stored twice
    return {"p10": "project", "p20": None} | {f"net.{key}": value for key, value in names.items()}


def model_for(npz: dict, name: str, names: dict, scales: tuple[int, ...] = (10,), **options) -> nn.Module:
    """Our model of that method with the file's weights, in float64 and eval mode."""
    return load_into(create(name, setting(npz, "in_dim"), setting(npz, "n_classes"), scales, **options), npz, names)


def watch(module: nn.Module) -> list:
    """A list that collects (inputs, output) of each call of `module`."""
    calls = []
    module.register_forward_hook(lambda _, inputs, output: calls.append((inputs, output)))
    return calls


def compare(npz: dict, found: dict) -> dict[str, float]:
    """Worst error of each found value against out/<name>."""
    return {name: worst(value, npz["out/" + name]) for name, value in found.items()}


def check_transmil(npz: dict) -> dict[str, float]:
    """TransMIL: tokens after each part, class attention, logits. (Not the outputs of the package that shifts rows.)"""
    model = model_for(npz, "transmil", TRANSMIL, width=setting(npz, "width"))
    position, second = watch(model.position), watch(model.attention2)
    x = tensor(npz, "in/x").requires_grad_()
    out = model(x[None, None])
    loss, _ = model.loss(out, tensor(npz, "in/label"))
    return compare(
        npz,
        {
            "logits": out.logits,
            "bag_feature": out.extras["bag_feature"],
            "cls_attention": out.extras["attention"],
            "cls_attention_per_head": second[0][1][1][..., 1 : len(x) + 1],
            "after_layer1": position[0][0][0],
            "after_ppeg": position[0][1],
            "loss/bag_ce": loss,
        },
    ) | gradient_errors(model, npz, "bag_ce", loss, TRANSMIL, {"x": x})


def check_lamil(npz: dict) -> dict[str, float]:
    """LA-MIL: neighbourhoods, tokens, attention received, logits."""
    depth, width = setting(npz, "depth"), setting(npz, "width")
    k = tuple(setting(npz, f"k{i + 1}") for i in range(depth))
    names, heads = lamil_names(depth, width), setting(npz, "heads")
    model = model_for(npz, "lamil", names, latent_dim=width, num_heads=heads, depth=depth, k=k)
    first, last = watch(model.layers[0]), watch(model.layers[-1])
    x, coords = tensor(npz, "in/x").requires_grad_(), tensor(npz, "in/coords")
    geometry = model.geometry(torch.ones(1, 1, len(x), dtype=torch.bool), coords[None, None])
    out = model(x[None, None], geometry=geometry)
    loss, _ = model.loss(out, tensor(npz, "in/label"))
    errors = {}
    for i in range(depth):  # a wrong edge is an error of 1
        source, target = tensor(npz, f"in/edges{i + 1}_src_dst")
        edges = torch.zeros(len(x), len(x), dtype=torch.bool)
        edges[target, source] = True
        errors[f"edges{i + 1}"] = worst(neighbourhood(geometry["neighbours"], k[i])[0], edges)
    name = "last_layer_unnormalised_score_per_edge_and_head"  # ours are normalised
    weights = torch.zeros(len(x), len(x), heads, dtype=torch.float64)
    weights[target, source] = tensor(npz, "out/" + name)
    weights = weights / weights.sum(1, keepdim=True)
    errors[name] = worst(last[0][1][1][0], weights.permute(2, 0, 1))
    errors["scores"] = worst(out.scores, weights.mean((0, 2)))
    return (
        errors
        | compare(
            npz,
            {
                "logits": out.logits,
                "bag_feature": out.extras["bag_feature"],
                "after_layer1": first[0][1][0],
                "loss/bag_ce": loss,
            },
        )
        | gradient_errors(model, npz, "bag_ce", loss, names, {"x": x})
    )


def check_gamil(npz: dict) -> dict[str, float]:
    """GA-MIL: attention, logits."""
    depth, width = setting(npz, "depth"), setting(npz, "width")
    names = lamil_names(depth, width)
    model = model_for(
        npz, "lamil", names, architecture="GA_MIL", latent_dim=width, num_heads=setting(npz, "heads"), depth=depth
    )
    last = watch(model.layers[-1])
    x = tensor(npz, "in/x").requires_grad_()
    out = model(x[None, None])
    loss, _ = model.loss(out, tensor(npz, "in/label"))
    return (
        compare(
            npz,
            {
                "logits": out.logits,
                "bag_feature": out.extras["bag_feature"],
                "last_layer_attention": last[0][1][1],
                "loss/bag_ce": loss,
            },
        )
        | {"scores": worst(out.scores, npz["out/last_layer_attention"].mean((0, 1)))}
        | gradient_errors(model, npz, "bag_ce", loss, names, {"x": x})
    )


def check_hagmil(npz: dict) -> dict[str, float]:
    """HAG-MIL, one level: every block, both instance losses, the three bag losses. Their residual factor is stored in
    single precision, which shows as errors near 1e-9."""
    widths, label = tuple(setting(npz, f"hidden{j}") for j in range(4)), tensor(npz, "in/label")
    n_classes = setting(npz, "n_classes")
    names = hagmil_names(len(widths), n_classes)
    model = model_for(
        npz,
        "hagmil",
        names,
        hidden_dims=widths,
        k_sample=setting(npz, "k_sample"),
        size=(setting(npz, "score_L"), setting(npz, "score_D")),
    )
    blocks = [watch(block) for block in model.blocks]
    x = tensor(npz, "in/x").requires_grad_()
    out = model(x[None, None])
    losses = {
        "total_half_half": model.loss(out, label)[0],
        "bag_ce": F.cross_entropy(out.logits, label),
        "bag_ce_smoothed_0_1": F.cross_entropy(out.logits, label, label_smoothing=0.1),
    }
    found = {
        "logits": out.logits,
        "bag_feature": out.extras["bag_feature"],
        "block0_tokens": blocks[0][0][1][0],
        "attention_raw_last_block": out.extras["attention_raw"],
        "block3_attention": out.scores,
    }
    _, targets, used = select_instances(
        out.extras["attention"], out.extras["mask"], label, n_classes, model.k_sample, False
    )
    found |= {f"loss/{name}": loss for name, loss in losses.items()} | {"inst_labels": targets[used]}
    found |= {f"inst_loss_svm_label{c}": model.loss(out, torch.tensor([c]))[1]["L_inst"] for c in range(n_classes)}
    for j, calls in enumerate(blocks):
        found |= {f"block{j}_slide_vector": calls[0][1][1], f"block{j}_attention": calls[0][1][2].softmax(-1)}
    errors = compare(npz, found)
    for name, loss in losses.items():
        errors |= gradient_errors(model, npz, name, loss, names, {"x": x})
    return errors


def check_hifuse(npz: dict) -> dict[str, float]:
    """HiFuse: both branches and the fusion of both stages, logits."""
    depth, shape = setting(npz, "depth"), torch.tensor([[setting(npz, "H"), setting(npz, "W")]])
    names = hifuse_names(depth)
    model = model_for(
        npz,
        "hifuse",
        names,
        (10, 20),
        embed_dim=setting(npz, "c"),
        depths=(depth, depth),
        window_size=setting(npz, "window"),
    )
    stages = [watch(fusion) for fusion in model.fusion]
    inputs = {name: tensor(npz, f"in/{name}").requires_grad_() for name in ("x_coarse", "x_fine")}
    out = model(torch.stack(list(inputs.values()), 1), geometry={"grid": shape})
    loss, _ = model.loss(out, tensor(npz, "in/label"))
    found = {"logits": out.logits, "bag_feature": out.extras["bag_feature"], "loss/bag_ce": loss}
    for j, calls in enumerate(stages):
        (local, glob, *_), (fused, *_) = calls[0]
        found |= {
            f"local{j}": local.permute(0, 3, 1, 2),
            f"global{j}": glob.flatten(1, 2),
            f"fuse{j}": fused.permute(0, 3, 1, 2),
        }
    return compare(npz, found) | gradient_errors(model, npz, "bag_ce", loss, names, inputs)


def check_amgcfn(npz: dict) -> dict[str, float]:
    """AMGCFN: adjacency, both branches, the fusion and its attention, three heads."""
    names, shape, label = amgcfn_names(), (setting(npz, "H"), setting(npz, "W")), tensor(npz, "in/label")
    model = model_for(npz, "amgcfn", names, (10, 20), g=setting(npz, "g"), ch=setting(npz, "ch"))
    block, summed = watch(model.graph[0]), watch(model.graph[0].norm)
    unit, cross = watch(model.image[0][0]), watch(model.cross)
    inputs = {name: tensor(npz, f"in/{name}").requires_grad_() for name in ("x_coarse", "x_fine")}
    out = model(torch.stack(list(inputs.values()))[None], geometry={"grid": torch.tensor([shape])})
    losses = {"sum_of_three_ce": model.loss(out, label)[0], "cross_ce": F.cross_entropy(out.logits, label)}
    ((image, graph), *_), ((image_out, _), (graph_out, _)) = cross[0]
    errors = compare(
        npz,
        {
            "logits_cross": out.logits,
            "logits_cnn": out.extras["logits_image"],
            "logits_gcn": out.extras["logits_graph"],
            "gcn_block1": summed[0][0][0] - block[0][0][0],
            "cnn_A1": unit[0][1].permute(0, 3, 1, 2),
            "gcn_attention_out": graph,
            "cnn_attention_out": image.mT.unflatten(2, shape),
            "cafm_cnn": image_out,
            "cafm_gcn": graph_out,
            **{f"loss/{name}": loss for name, loss in losses.items()},
        },
    )
    for s, (before, after) in enumerate(((graph, "cafm_gcn"), (image, "cafm_cnn"))):
        errors[f"scores/{after}"] = worst(before[0] * (1 + out.scores[0, s, :, None]), npz["out/" + after])
    cells = torch.ones(1, *shape, dtype=torch.bool)
    links = adjacency(inputs["x_coarse"].detach().unflatten(0, shape)[None], cells)[0]
    errors |= {f"adjacency_hop{k + 1}": worst(links[k], npz[f"in/adjacency_hop{k + 1}"]) for k in range(3)}
    for name, loss in losses.items():
        errors |= gradient_errors(model, npz, name, loss, names, inputs)
    return errors


CHECKS = {
    "transmil": check_transmil,
    "lamil": check_lamil,
    "gamil": check_gamil,
    "hagmil": check_hagmil,
    "hifuse": check_hifuse,
    "amgcfn": check_amgcfn,
}
