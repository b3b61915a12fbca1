"""Every method against the golden files of its official code, and the machinery that compares them."""

import numpy as np
import pytest
import torch

from dmsmil.models import create
from tests.golden import FOLDER, load, load_into, worst
from tests.reference import ABMIL_NAMES, TOLERANCE, check_for, main

FILES = sorted(FOLDER.glob("*.npz"))
COMPLETE = ("abmil", "clam", "dsmil", "multiattn", "dtfd")
PLAIN = ("feature_extractor_part2.0", "attention.0", "attention.2", "classifier.0")
absent = pytest.mark.skipif(not FILES, reason="no golden files: ../shared/reference is not beside this checkout")


@absent
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path):
    check = check_for(path)
    if check is None:
        pytest.skip(f"no check is registered for {path.stem}")
    npz = load(path)
    errors = check(npz)
    assert not {name: error for name, error in errors.items() if not error <= TOLERANCE}
    if path.stem.startswith(COMPLETE):
        assert {key[4:] for key in npz if key.startswith("out/")} <= set(errors)
        assert {"/".join(key.split("/")[:2]) for key in npz if key.startswith("gradnorm/")} <= set(errors)
        assert {key for key in npz if key.startswith("gradin/")} <= set(errors)


@absent
def test_a_wrong_value_is_seen(tmp_path, capsys):
    npz = load(FOLDER / "abmil.npz")
    np.savez(tmp_path / "abmil_seed1.npz", **npz)
    assert main(tmp_path) == 0
    for key in ("out/logits", "state/attention.0.weight", "gradnorm/bag_ce/attention.2.weight"):
        changed = dict(npz)
        changed[key] = npz[key] + 1e-3
        np.savez(tmp_path / "abmil_seed1.npz", **changed)
        assert main(tmp_path) == 1, key
    del changed["state/attention.0.weight"]
    np.savez(tmp_path / "abmil_seed0.npz", **changed)
    assert main(tmp_path) == 1
    out = capsys.readouterr().out
    assert "abmil_seed0          FAILED KeyError" in out and "abmil_seed1" in out.split("FAILED")[1]


def test_nothing_checked_is_a_failure(tmp_path):
    assert main(tmp_path) == 1


def test_worst():
    assert worst([[1.0, 2.0]], [1.0, 2.5]) == 0.5
    assert worst([float("nan")], [0.0]) == float("inf")
    with pytest.raises(ValueError):
        worst([1.0, 2.0], [1.0])


@pytest.mark.parametrize("left_over", ["official", "ours", "nameless"])
def test_load_into_leaves_nothing_over(left_over):
    model = create("abmil", 4, 2, (10,), M=3, L=2, gated=False)
    npz = {
        f"state/{official}.{kind}": value.detach().numpy() + 1
        for official, ours in ABMIL_NAMES.items()
        if official in PLAIN
        for kind, value in model.get_submodule(ours).named_parameters()
    }
    before = model.project.weight.detach().clone()
    load_into(model, npz, ABMIL_NAMES)
    torch.testing.assert_close(model.project.weight.float(), before + 1)
    names = ABMIL_NAMES
    if left_over == "official":
        npz["state/batch_norm.weight"] = np.ones(3, "float32")
    elif left_over == "ours":
        del npz["state/classifier.0.bias"]
    else:
        names = {key: value for key, value in ABMIL_NAMES.items() if value != "project"}  # says nothing of one
    with pytest.raises(KeyError):
        load_into(model, npz, names)
