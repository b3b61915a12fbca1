"""A model that travels: it says the same without the study, executes nothing, is refused when a byte has changed."""

import json
import shutil
import struct
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from dmsmil.apply import travel
from dmsmil.apply.card import card
from dmsmil.apply.folder import MODEL, is_kit, read_model
from dmsmil.apply.travel import CARD, FILES, WEIGHTS, read_kit, write_kit
from dmsmil.apply.words import NOT_FOR
from dmsmil.jobs.files import ROOT, InputError, fingerprint, read_json, write_json
from tests.apply.conftest import NEW
from tests.conftest import assert_one_line

pytestmark = pytest.mark.xdist_group("apply")


@pytest.fixture
def folder(made, tmp_path):
    """An exported model."""
    return write_kit(made.kit, tmp_path / "model")


@pytest.mark.slow
def test_without_the_study_it_says_the_same(made, whole, folder, tmp_path):
    """Read back where there is no study: predictions, scores, what it knows and what is unlike, of slides made anew."""
    kit = read_kit(folder)
    home = tmp_path / "elsewhere"
    applied, _ = made.apply(made.slides, kit=kit, home=home)
    pd.testing.assert_frame_equal(applied.table, whole[0].table, rtol=0, atol=1e-6)
    pd.testing.assert_frame_equal(applied.scores, whole[0].scores, rtol=0, atol=1e-6)
    assert not (home / "runs").exists() and not (home / "folds.csv").exists()
    pd.testing.assert_frame_equal(kit.results, made.kit.results, rtol=1e-6)
    pd.testing.assert_frame_equal(kit.trained, made.kit.trained)
    assert kit.about == json.loads(json.dumps(made.kit.about)) == read_model(folder)["about"]


def test_the_folder_is_what_the_design_says(folder, made):
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "model.json",
        "weights.safetensors",
        "reference.safetensors",
        "trained_on.csv",
        "results.csv",
        "out_of_fold.csv",
        "MODEL_CARD.md",
    }
    about = read_model(folder)["about"]
    assert about["classes"] == ["ductal-like", "lobular-like"] and about["made"]["k"] == 6
    assert about["made"]["encoder"]["weights"] and about["config"]["method"] == "dmsmil"
    text = "".join((folder / name).read_text() for name in names if not name.endswith(".safetensors"))
    assert not any(name in text for name in [*made.cohort.slide_id, *made.cohort.patient_id])
    assert str(made.place) not in text


def test_no_file_of_it_is_a_pickle(folder):
    """Nothing in it is executed: no byte of a pickle, and torch.load and pickle are asked for nothing."""
    for path in folder.iterdir():
        content = path.read_bytes()
        assert not content.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")), path.name


def test_reading_executes_nothing(folder, monkeypatch):
    import pickle

    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was read")

    for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    assert read_kit(folder).classes == ["ductal-like", "lobular-like"]


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "reference.safetensors", "trained_on.csv", "results.csv", "out_of_fold.csv"]
)
def test_a_changed_byte_is_refused(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} in model is not what was written: do not trust it") as caught:
        read_kit(folder)
    assert_one_line(caught, name)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["about"].update(classes=["lobular-like", "ductal-like"]),
        lambda found: found["about"]["made"].update(k=48),
        lambda found: found.clear(),
    ],
)
def test_changed_words_are_refused(folder, change):
    found = read_json(folder / MODEL)
    change(found)
    write_json(found, folder / MODEL)
    with pytest.raises(InputError, match="model.json in model is not what was written"):
        read_kit(folder)


def resealed(folder, change):
    """The folder with other weights, and with every hash of it made right again."""
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)
    whole = read_json(folder / MODEL)
    import hashlib

    whole["files"][WEIGHTS] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    whole.pop("fingerprint")
    write_json({**whole, "fingerprint": fingerprint(whole, 64)}, folder / MODEL)


def test_other_weights_are_refused_even_with_right_hashes(folder):
    """Every model is asked about a made-up slide, and must say what it said."""

    def other(weights):
        name = next(name for name in weights if name.startswith("DMSMIL/fold1-seed0/") and weights[name].ndim == 2)
        weights[name] = weights[name] + 0.5 * torch.randn(
            weights[name].shape, generator=torch.Generator().manual_seed(0)
        )

    resealed(folder, lambda weights: None)
    read_kit(folder)
    resealed(folder, other)
    with pytest.raises(InputError, match="DMSMIL does not say here what it said where it was exported"):
        read_kit(folder)


def test_code_that_computes_it_otherwise_is_refused(folder, monkeypatch):
    from dmsmil.models.pooling import MeanPool

    real = MeanPool.forward

    def otherwise(self, *args, **kwargs):
        output = real(self, *args, **kwargs)
        output.logits = output.logits + torch.tensor([0.5, 0.0])
        return output

    monkeypatch.setattr(MeanPool, "forward", otherwise)
    with pytest.raises(InputError, match="Mean pooling does not say here what it said"):
        read_kit(folder)


def test_a_weight_too_few_is_refused(folder):
    resealed(folder, lambda weights: weights.pop(next(iter(weights))))
    with pytest.raises(InputError, match="model is not an exported model that this version reads"):
        read_kit(folder)


def test_a_lost_file_is_named(folder):
    (folder / "results.csv").unlink()
    with pytest.raises(InputError, match="model lacks results.csv: copy the whole folder again"):
        read_kit(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(InputError, match="no exported model, for it has no model.json"):
        read_kit(folder)


def test_a_safetensors_file_of_a_wrong_shape_is_one_line(folder):
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**40) + b"{}")
    whole = read_json(folder / MODEL)
    import hashlib

    whole["files"][WEIGHTS] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    whole.pop("fingerprint")
    write_json({**whole, "fingerprint": fingerprint(whole, 64)}, folder / MODEL)
    with pytest.raises(InputError, match="is not an exported model that this version reads") as caught:
        read_kit(folder)
    assert_one_line(caught, "model")


def test_it_takes_no_folder_that_is_something_else(made, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    with pytest.raises(InputError, match="mine is there and is no exported model: name a new folder"):
        write_kit(made.kit, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert not is_kit(tmp_path / "mine")


def test_an_export_that_was_cut_short_is_begun_again(made, folder, tmp_path):
    (folder / "model.json").unlink()
    (folder / "results.csv").unlink()
    assert read_kit(write_kit(made.kit, folder)).about == made.kit.about
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="the folder out cannot be made .*: name another place") as caught:
        write_kit(made.kit, tmp_path / "file/out")
    assert_one_line(caught, "out")


def test_an_export_that_is_cut_short_leaves_the_former_one(made, folder, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(travel, "write_json", killed)  # the last that is written
    with pytest.raises(KeyboardInterrupt):
        write_kit(replace(made.kit, about={**made.kit.about, "study": "another"}), folder)
    monkeypatch.undo()
    assert read_kit(folder).about == made.kit.about
    assert sorted(path.name for path in write_kit(made.kit, folder).iterdir()) == sorted((*FILES, CARD, MODEL))


def test_the_card_of_a_study_that_left_one_out_has_no_nan(made):
    results = made.kit.results.assign(AUC_mean=float("nan"), AUC_pooled=0.75, AUC_low=0.5, AUC_high=0.9)
    assert "| pooled 0.750 [0.50, 0.90] |" in card(replace(made.kit, results=results))
    assert "nan" not in card(replace(made.kit, results=results.assign(F1_mean=float("nan"), F1_pooled=float("nan"))))


def test_it_is_written_again_over_itself(made, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_kit(made.kit, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_card_says_what_it_is_not_for_and_so_does_the_studys(folder, made):
    text = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert NOT_FOR in text and "at most 6 tiles of 256 px at 10x and 20x" in text
    assert "7 slides of 6 patients" in text and "| Mean pooling |" in text
    assert NOT_FOR in " ".join((ROOT / "docs/model_card.md").read_text(encoding="utf-8").split())
    assert NOT_FOR in " ".join(
        "".join(json.loads((ROOT / "notebooks/10_apply.ipynb").read_text(encoding="utf-8"))["cells"][0]["source"])
        .replace("**", "")
        .split()
    )


@pytest.mark.slow
def test_a_slide_held_out_is_predicted_by_the_copy(folder, made, whole, tmp_path):
    applied, _ = made.apply(made.slides / f"{NEW[0]}.svs", kit=read_kit(folder), home=tmp_path / "x")
    row = whole[0].table.set_index("slide_id").loc[NEW[0]]
    np.testing.assert_allclose(applied.table["prob_lobular-like"][0], row["prob_lobular-like"], atol=1e-6)
