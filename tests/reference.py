"""Every method against golden files of its official code: `python -m tests.reference FOLDER`, a line a file.

CHECKS maps the beginning of a file's name to the function that checks such a file; the longest that fits is taken, so
"clam_sb_seed3.npz" goes to "clam_sb". A check takes the file's arrays and returns the worst absolute error of each
output, by name. The exit status is 1 when an error exceeds TOLERANCE or no file was checked.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from dmsmil.models import create
from dmsmil.models.clam import instance_loss, select_instances
from tests.golden import gradient_errors, load, load_into, part, setting, tensor, worst
from tests.models.reference_deform import CHECKS as DEFORM_CHECKS
from tests.models.reference_grid import CHECKS as GRID_CHECKS

TOLERANCE = 1e-5  # absolute; input gradients are stored in float32

ABMIL_NAMES = {
    "feature_extractor_part2.0": "project",
    "classifier.0": "classifier",
    "attention.0": "attention.V",
    "attention.2": "attention.w",
    "attention_V.0": "attention.V",
    "attention_U.0": "attention.U",
    "attention_w": "attention.w",
}
CLAM_NAMES = {
    "attention_net.0": "project",
    "classifiers": "classifier",
    "attention_net.3.attention_a.0": "attention.V",
    "attention_net.3.attention_b.0": "attention.U",
    "attention_net.3.attention_c": "attention.w",
    **{f"instance_classifiers.{c}": ("instance_classifiers", slice(2 * c, 2 * c + 2)) for c in range(10)},
    **{f"classifiers.{c}": ("classifier", c) for c in range(10)},  # CLAM-MB: one row a class
}
DSMIL_NAMES = {
    "i_classifier.fc.0": "instance",
    "b_classifier.q.0": "q.0",
    "b_classifier.q.2": "q.2",
    "b_classifier.v.1": "v.1",
    "b_classifier.fcc": "bag",
}
MULTIATTN_NAMES = {"fc4.0": "classifier"} | {
    f"{official}{k + 1}.{layer}": f"{ours}.{k}.{place}"
    for k in range(3)
    for official, layer, ours, place in [
        ("fc", 0, "embed", "0"),
        ("attention", 0, "attention", "V"),
        ("attention", 2, "attention", "w"),
    ]
}
DTFD_NAMES = {
    "dimReduction.fc1": "project",
    "classifier.fc": "classifier",
    "attCls.classifier.fc": "classifier2",
    **{
        f"{official}.{layer}": f"{ours}.{place}"
        for official, ours in [("attention", "attention"), ("attCls.attention", "attention2")]
        for layer, place in [("attention_V.0", "V"), ("attention_U.0", "U"), ("attention_weights", "w")]
    },
}


def model_for(npz: dict, name: str, names: dict, scales: tuple = (10,), **options):
    """Our model of that method with the file's weights, in float64 and eval mode."""
    classes = max(2, setting(npz, "n_classes"))  # 1: one sigmoid unit for two classes
    return load_into(create(name, setting(npz, "in_dim"), classes, scales, **options), npz, names)


def bag_of(npz: dict):
    """in/x as a bag (1, 1, K, C) of leaf x (K, C), and x."""
    x = tensor(npz, "in/x").requires_grad_()
    return x[None, None], x


def compare(npz: dict, found: dict) -> dict[str, float]:
    """Worst error of each found value against out/<name>."""
    return {name: worst(value, tensor(npz, "out/" + name)) for name, value in found.items()}


def check_abmil(npz: dict) -> dict[str, float]:
    """ABMIL plain, gated, and with the official sigmoid head."""
    sigmoid, gated = setting(npz, "n_classes") == 1, "state/attention_U.0.weight" in npz
    model = model_for(
        npz,
        "abmil",
        ABMIL_NAMES,
        gated=gated,
        one_logit=sigmoid,
        M=len(npz["state/feature_extractor_part2.0.weight"]),
        L=len(npz["state/attention_V.0.weight" if gated else "state/attention.0.weight"]),
    )
    bag, x = bag_of(npz)
    out = model(bag)
    loss, _ = model.loss(out, tensor(npz, "in/label").view(1))
    name = "bag_nll" if sigmoid else "bag_ce"
    answer = {"probability": out.probabilities[:, 1:]} if sigmoid else {"logits": out.logits}
    return compare(
        npz,
        {
            "attention": out.scores,
            "bag_feature": out.extras["bag_feature"],
            "instance_feature_first4": model.project(x[:4]).relu(),
            f"loss/{name}": loss,
            **answer,
        },
    ) | gradient_errors(model, npz, name, loss, ABMIL_NAMES, {"x": x})


def check_clam(npz: dict) -> dict[str, float]:
    """CLAM, single- or multi-branch by its weights: outputs, all instance losses, chosen tiles, totals."""
    multi = "state/classifiers.0.weight" in npz
    k = setting(npz, "k_sample")
    model = model_for(
        npz, "clam_mb" if multi else "clam_sb", CLAM_NAMES, k_sample=k, bag_weight=setting(npz, "bag_weight")
    )
    bag, x = bag_of(npz)
    label = tensor(npz, "in/label")
    out = model(bag)
    e = out.extras
    found = {
        "logits": out.logits,
        "bag_feature": e["bag_feature"],
        "attention": e["attention"],
        "attention_raw": e["attention_raw"],
        "loss/bag_ce": F.cross_entropy(out.logits, label),
    }
    for name in part(npz, "out"):
        if name.startswith("inst_loss_"):  # inst_loss_svm_nosubtyping_label1
            _, _, kind, subtyping, of = name.split("_")
            of = torch.tensor([int(of.removeprefix("label"))])
            found[name] = instance_loss(
                e["instance_logits"], e["attention"], e["mask"], of, k, kind, subtyping == "subtyping"
            )
    ids, targets, used = select_instances(e["attention"], e["mask"], label, model.n_classes, k, True)
    logits = e["instance_logits"][0].transpose(0, 1).gather(1, ids[0].unsqueeze(-1).expand(-1, -1, 2))
    branches = e["attention"].shape[1]
    found |= {
        "top_ids": ids[0, :branches, :k],
        "bottom_ids": ids[0, :branches, k:],
        "inst_labels": targets[used],
        "inst_preds": logits.argmax(-1)[used[0]],
    }
    errors = {}
    for name in ("ce", "svm"):
        model.inst_loss = name
        found[f"loss/total_{name}"], _ = model.loss(out, label)
        errors |= gradient_errors(model, npz, f"total_{name}", found[f"loss/total_{name}"], CLAM_NAMES, {"x": x})
    errors |= gradient_errors(model, npz, "bag_ce", found["loss/bag_ce"], CLAM_NAMES, {"x": x})
    return compare(npz, found) | errors


def check_dsmil(npz: dict) -> dict[str, float]:
    """DSMIL on two scales: both streams, attention, both losses."""
    model = model_for(
        npz,
        "dsmil",
        DSMIL_NAMES,
        (10, 20),
        passing_v=bool(setting(npz, "passing_v")),
        one_logit=setting(npz, "n_classes") == 1,
    )
    fine, coarse = (tensor(npz, f"in/x_{name}").requires_grad_() for name in ("fine", "coarse"))
    target = tensor(npz, "in/label_vector")
    label = target.view(-1).long() if model.one_logit else target.argmax(-1)
    out = model(torch.stack([coarse, fine])[None])
    e = out.extras
    total, _ = model.loss(out, label)
    losses = {
        "bag_bce": F.binary_cross_entropy_with_logits(e["bag_logits"], target),
        "max_bce": F.binary_cross_entropy_with_logits(e["max_logits"], target),
        "total": total,
    }
    found = {name: e[name] for name in ("instance_logits", "max_logits", "bag_logits", "attention", "bag_feature")}
    found |= {"critical_ids": e["critical"]} | {f"loss/{name}": value for name, value in losses.items()}
    errors = compare(npz, found)
    for name, value in losses.items():
        errors |= gradient_errors(model, npz, name, value, DSMIL_NAMES, {"x_fine": fine, "x_coarse": coarse})
    return errors


def check_multiattn(npz: dict) -> dict[str, float]:
    """MultiAttnMIL: the three attentions, the pooled vector, the logits."""
    model = model_for(npz, "multiattn", MULTIATTN_NAMES, D=len(npz["state/fc1.0.weight"]))
    bag, x = bag_of(npz)
    out = model(bag)
    loss, _ = model.loss(out, tensor(npz, "in/label"))
    found = {f"attention{k + 1}": out.extras["attention"][:, k] for k in range(3)}
    found |= {"logits": out.logits, "bag_feature": out.extras["bag_feature"], "loss/bag_ce": loss}
    return compare(npz, found) | gradient_errors(model, npz, "bag_ce", loss, MULTIATTN_NAMES, {"x": x})


def check_dtfd(npz: dict) -> dict[str, float]:
    """DTFD-MIL with the recorded grouping: tier 1 once, tier 2 in every recorded distillation mode."""
    groups, label, errors = setting(npz, "numGroup"), tensor(npz, "in/label"), {}
    ranks = tensor(npz, "in/order").argsort()[None]
    modes = sorted(key.removeprefix("out/logits_") for key in npz if key.startswith("out/logits_"))
    for mode in modes:
        distill, _, total = mode.partition("_total")
        model = model_for(
            npz,
            "dtfd",
            DTFD_NAMES,
            distill=distill,
            numGroup=groups,
            mDim=setting(npz, "mDim"),
            D=setting(npz, "D"),
            total_instance=int(total or setting(npz, "total_instance")),
        )
        model.ranks = lambda mask, coords: ranks
        bag, x = bag_of(npz)
        out = model(bag)
        e = out.extras
        loss, terms = model.loss(out, label)
        tier2 = F.cross_entropy(out.logits, label)
        tier1 = loss - tier2
        there = e["pseudo_there"]
        found = {
            f"logits_{mode}": out.logits,
            f"tier2_input_{mode}": e["pseudo"][there],
            "sub_logits": e["sub_logits"],
            f"tier2_attention_{mode}": e["pseudo_attention"][there],
            "attention_raw": e["attention_raw"],
            "attention_in_group": e["attention"],
            "cam_probability": e["tile_probability"],
            "group_of_instance": e["group"],
            f"loss/tier2_ce_{mode}": terms["L_ce"],
            "loss/tier1_ce": terms["L_tier1"],
        }
        if distill != "AFS":
            found[f"selected_ids_{mode}"] = e["selected"][there]
        errors |= compare(npz, found)
        errors |= gradient_errors(model, npz, "tier1_ce", tier1, DTFD_NAMES, {"x": x})
        errors |= gradient_errors(model, npz, f"tier2_ce_{mode}", tier2, DTFD_NAMES, {"x": x})
    return errors


CHECKS = {
    "abmil": check_abmil,
    "clam": check_clam,
    "dsmil": check_dsmil,
    "multiattn": check_multiattn,
    "dtfd": check_dtfd,
    **GRID_CHECKS,
    **DEFORM_CHECKS,
}


def check_for(path):
    """The check whose key begins the file's name, the longest of them; None when there is none."""
    fitting = [key for key in CHECKS if Path(path).stem.startswith(key)]
    return CHECKS[max(fitting, key=len)] if fitting else None


def main(folder) -> int:
    """Check every .npz of `folder` and print a line a file; the exit status."""
    checked, largest = 0, 0.0
    for path in sorted(Path(folder).glob("*.npz")):
        check = check_for(path)
        if check is None:
            print(f"{path.stem:20s} no check is registered for it")
            continue
        try:
            errors = check(load(path))
        except (KeyError, ValueError, RuntimeError) as error:  # one bad file does not hide the others
            print(f"{path.stem:20s} FAILED {type(error).__name__}: {error}")
            checked, largest = checked + 1, float("inf")
            continue
        checked, largest = checked + 1, max(largest, *errors.values())
        print(
            f"{path.stem:20s} worst {max(errors.values()):.1e}   "
            + "  ".join(f"{name} {error:.1e}" for name, error in errors.items())
        )
    verdict = "within" if largest <= TOLERANCE else "OUTSIDE"
    print(f"{checked} files checked, worst error {largest:.1e}, {verdict} {TOLERANCE:.0e}")
    return int(checked == 0 or largest > TOLERANCE)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m tests.reference FOLDER")
    raise SystemExit(main(sys.argv[1]))
