"""New slides get what the same models say when the training code asks; who has seen a slide is not asked about it."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from dmsmil.apply.kit import check_same, made_by, study_kit
from dmsmil.apply.known import recognise
from dmsmil.apply.predict import apply_kit, said_sentences
from dmsmil.features.bags import load_bags
from dmsmil.jobs.failures import failure_row, read_failures, write_failures
from dmsmil.jobs.files import InputError
from dmsmil.slides.store import Store
from dmsmil.training.baselines import colour_predictions, majority_predictions
from dmsmil.training.fit import load_model, predict
from dmsmil.training.record import read_record, write_record
from dmsmil.training.runs import read_predictions
from tests.apply.conftest import ENCODER, NEW, SCALES, SETTINGS, TILE, K
from tests.conftest import assert_one_line

pytestmark = pytest.mark.xdist_group("apply")


def runs_of(made, method):
    return sorted(made.home.glob(f"runs/{method}-*/fold*-seed0"))


@pytest.mark.slow
def test_a_slide_held_out_gets_what_the_training_code_says_of_it(made, whole):
    """Its bag by the training code's own path, each model by `fit.predict`: their mean, to 1e-6."""
    applied, _ = whole
    table = pd.read_csv(made.place / "cohort/cohort.csv")
    held = table[table.slide_id.isin(NEW)]
    bags = load_bags(Store(made.home / "apply", TILE, SCALES, ENCODER), held, K, SCALES)
    each = [predict(load_model(folder, 1280, 2), bags, np.arange(3))[0] for folder in runs_of(made, "dmsmil")]
    assert len(each) == 2 and bags.slide_ids == NEW
    rows = applied.table.set_index("slide_id").loc[NEW]
    for number, name in enumerate(made.kit.classes):
        np.testing.assert_allclose(rows[f"prob_{name}"], np.mean(each, 0)[:, number], atol=1e-6)
    np.testing.assert_allclose(rows.spread, np.std([said[:, 1] for said in each], 0), atol=1e-6)
    np.testing.assert_allclose(rows.lowest, np.min([said[:, 1] for said in each], 0), atol=1e-6)
    assert (rows.models == 2).all() and (rows.known == "").all()


def test_a_slide_of_the_study_gets_its_out_of_fold_prediction(made, whole):
    """Only the model that has not seen it is asked, and that has tested it: what it said then, it says now."""
    rows = whole[0].table.set_index("slide_id").drop(index=NEW)
    tested = pd.concat([read_predictions(folder) for folder in runs_of(made, "dmsmil")]).set_index("slide_id")
    assert sorted(rows.index) == sorted(tested.index) and (rows.models == 1).all()
    for name in made.kit.classes:
        np.testing.assert_allclose(rows[f"prob_{name}"], tested.loc[rows.index, f"prob_{name}"], atol=1e-6)
    assert (rows.known == "slide, content").all() and (rows.spread == 0).all()


@pytest.mark.slow
def test_rivals_are_fitted_as_the_study_fits_them(made, whole):
    own = {
        "six colour numbers": colour_predictions(made.bags, made.folds),
        "always the majority": majority_predictions(made.folds),
        "Mean pooling": pd.concat([read_predictions(folder) for folder in runs_of(made, "meanpool")]),
    }
    assert list(made.kit.panels) == ["DMSMIL", "Mean pooling", "six colour numbers", "always the majority"]
    for name, predictions in own.items():
        said = whole[0].means[name].set_index("slide_id").loc[list(predictions.slide_id)]
        for label in made.kit.classes:
            np.testing.assert_allclose(said[f"prob_{label}"], predictions[f"prob_{label}"], atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_patient_and_a_copy_are_recognised_as_well(made, tmp_path):
    """A copy under another name by what its tiles show; another slide of a patient by the patient's id alone."""
    first = made.cohort.iloc[0]
    shutil.copy(first.path, tmp_path / "renamed.svs")
    shutil.copy(first.path, tmp_path / "renamed-again.svs")
    shutil.copy(made.slides / "demo-A007-1.svs", tmp_path / "second.svs")
    names = ["renamed", "second", "renamed-again"]
    pd.DataFrame({"slide_id": names, "patient_id": ["someone", first.patient_id.lower(), "another"]}).to_csv(
        tmp_path / "two.csv", index=False
    )
    table = made.apply(tmp_path / "two.csv", home=tmp_path)[0].table
    assert "What another of these slides shows, under another name: renamed-again" in said_sentences(table)
    table = table.set_index("slide_id")
    assert table.known.to_dict() == {"renamed": "content", "second": "patient", "renamed-again": "content"}
    assert table.copy_of.to_dict() == {"renamed": "", "second": "", "renamed-again": "renamed"}
    tests = [fold for fold in (0, 1) if made.folds.set_index("slide_id").loc[first.slide_id, f"fold_{fold}"] == "test"]
    assert (table.models == len(tests)).all() and len(tests) == 1
    model = load_model(runs_of(made, "dmsmil")[tests[0]], 1280, 2)
    bags = load_bags(
        Store(tmp_path / "apply", TILE, SCALES, ENCODER),
        pd.DataFrame({"slide_id": ["renamed"], "patient_id": ["x"], "label": ["x"]}),
        K,
        SCALES,
    )
    said = predict(model, bags, np.arange(1))[0][0]
    np.testing.assert_allclose(
        table.loc["renamed", [f"prob_{name}" for name in made.kit.classes]].astype(float), said, atol=1e-6
    )


def test_all_slides_of_a_patient_are_known_when_one_is(made, whole):
    """A training patient under a new pseudonym: one slide is a copy, and another one of theirs is new."""
    _, bags = whole
    copy, other = made.cohort.slide_id[0], NEW[0]
    slides = pd.DataFrame({"slide_id": bags.slide_ids, "patient_id": "", "label": ""})
    slides.loc[slides.slide_id.isin([copy, other]), "patient_id"] = "N1"
    marks = recognise(made.kit.trained, slides, bags.store)
    assert marks.known[other] == "patient" and marks.seen[other] == marks.seen[copy] != []
    assert marks.known[NEW[1]] == "" and marks.seen[NEW[1]] == []


def test_models_of_another_version_are_asked_while_they_say_what_they_said(made, tmp_path):
    """After every update of dmsmil a study had to be trained again before it could be applied."""
    home = shutil.copytree(made.home, tmp_path / "mine")
    folders = sorted(path for path in home.glob("runs/dmsmil-*") if path.is_dir())
    for folder in folders:
        for run in folder.iterdir():
            record = {name: value for name, value in read_record(run).items() if name != "files"}
            write_record({**record, "config": {**record["config"], "code": "of 2025"}}, run)
        folder.rename(folder.with_name("dmsmil-0123456789"))
    strange = shutil.copytree(home / "runs/dmsmil-0123456789", home / "runs/dmsmil-damaged")
    (strange / "fold0-seed0/config.json").write_text("{")  # of a reading, perhaps: nobody asks about it
    kit = study_kit(home, made.bags, made.folds, made.cohort, "dmsmil", **SETTINGS)
    assert list(kit.panels) == list(made.kit.panels)
    pd.testing.assert_frame_equal(kit.results, made.kit.results)
    run = home / "runs/dmsmil-0123456789/fold1-seed0"
    weights = load_file(run / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, run / "model.safetensors")
    with pytest.raises(InputError, match="fold 1, seed 0 of dmsmil in study 'mine': model.safetensors is not what"):
        study_kit(home, made.bags, made.folds, made.cohort, "dmsmil", **SETTINGS)
    record = {name: value for name, value in read_record(run).items() if name != "files"}
    write_record(record, run)
    with pytest.raises(InputError, match="trained by another version of dmsmil, and their models say someth") as caught:
        study_kit(home, made.bags, made.folds, made.cohort, "dmsmil", **SETTINGS)
    assert_one_line(caught, "dmsmil in study 'mine'")


def test_a_run_that_was_changed_is_named(made, tmp_path):
    home = shutil.copytree(made.home, tmp_path / "mine")
    table = sorted(home.glob("runs/dmsmil-*/fold1-seed0/predictions.csv"))[0]
    table.write_text(table.read_text() + " ")
    with pytest.raises(InputError, match="fold 1, seed 0 of dmsmil in study 'mine': predictions.csv is not what was"):
        study_kit(home, made.bags, made.folds, made.cohort, "dmsmil", **SETTINGS)


def test_where_every_model_has_seen_a_slide_nothing_is_predicted(made, whole):
    _, bags = whole
    trained = made.kit.trained.assign(fold_0=True, fold_1=True)
    slides = pd.DataFrame({"slide_id": bags.slide_ids, "patient_id": "", "label": ""})
    applied = apply_kit(replace(made.kit, trained=trained), bags, slides)
    table = applied.table.set_index("slide_id")
    own = table.drop(index=NEW)
    assert (own.models == 0).all() and (own.pred == "").all()
    assert own[[f"prob_{name}" for name in made.kit.classes]].isna().to_numpy().all()
    assert sorted(applied.means["DMSMIL"].slide_id) == NEW and set(applied.scores.slide_id) == set(NEW)
    assert "3 of 10 slides are predicted" in said_sentences(applied.table)
    none = said_sentences(applied.table[applied.table.models == 0])
    assert "None of 7 slides is predicted: every model has seen them" in none and "only models" not in none


def test_scores_are_the_mean_of_shares(made, whole):
    """Of a slide that both models may be asked about: each model's scores as shares of their sum, then the mean."""
    applied, bags = whole
    row = bags.slide_ids.index(NEW[2])
    shares = []
    for folder in runs_of(made, "dmsmil"):
        output = load_model(folder, 1280, 2)(
            bags.x[row : row + 1], bags.mask[row : row + 1], bags.coords[row : row + 1]
        )
        score = output.scores[0].detach().double().numpy()
        shares.append(score / score.sum(1, keepdims=True))
    found = applied.scores[applied.scores.slide_id == NEW[2]]
    for s, scale in enumerate(SCALES):
        mine = found[found.scale == scale].set_index("place")
        np.testing.assert_allclose(mine.score, np.mean(shares, 0)[s, mine.index], atol=1e-6)
        np.testing.assert_array_equal(mine[["x", "y"]], bags.coords[row, s].numpy()[mine.index])
        assert mine.normalised.min() == 0 and mine.normalised.max() == 1


@pytest.mark.slow
def test_the_order_and_company_of_slides_change_nothing(made, whole):
    alone = made.apply(made.slides / f"{NEW[1]}.svs")[0].table.iloc[0]
    among = whole[0].table.set_index("slide_id").loc[NEW[1]]
    for name in [f"prob_{label}" for label in made.kit.classes] + ["distance_features", "distance_colours"]:
        assert alone[name] == pytest.approx(among[name], abs=1e-7)


@pytest.mark.slow
def test_a_slide_that_fails_is_a_row_and_the_others_go_on(made, tmp_path):
    shutil.copy(made.slides / f"{NEW[2]}.svs", tmp_path / "good.svs")
    (tmp_path / "broken.svs").write_bytes(b"no slide")
    table = made.apply(tmp_path, home=tmp_path)[0].table
    failed = read_failures(tmp_path / "apply")
    assert list(table.slide_id) == ["good"] and list(failed.unit) == ["broken"] and list(failed.stage) == ["features"]


# ------------------------------------------------------------------------------------------------ the same, or refused


@pytest.mark.parametrize(
    "change, said",
    [
        ({"k": 7}, "k is 7, and the study was made with 6"),
        ({"tile_px": 512}, "tile_px is 512, and the study was made with 256"),
        ({"scales": [10]}, r"scales is \[10\], and the study was made with \[10, 20\]"),
        ({"black": "tissue"}, "black is 'tissue', and the study was made with 'padding'"),
        ({"seed": 1}, "seed is 1, and the study was made with 0"),
        ({"fallback_mpp": 0.25}, "mpp is 0.25, and the study was made with 0.0"),
        (
            {"encoder": {"name": "resnet101"}},
            "encoder is 'resnet101', and the study was made with 'efficientnet_lite0'",
        ),
        ({"encoder": {"name": ENCODER, "weights": "0" * 16}}, "the encoder's weights is '0000000000000000'"),
        ({"encoder": {"name": ENCODER, "px": 256}}, "the encoder's px is 256, and the study was made with 224"),
    ],
)
def test_what_differs_is_refused_by_its_name(made, change, said):
    have = made_by(made.home, made.cohort.slide_id)
    check_same(have[-1], have)
    with pytest.raises(InputError, match=said) as caught:
        check_same({**have[-1], **change}, have)
    assert_one_line(caught, "study")


def test_another_encoder_of_that_name_is_refused_before_anything_is_encoded(made, tmp_path, monkeypatch):
    from dmsmil.features import encoders

    real = encoders.create_encoder

    def other(*args, **kwargs):
        encoder = real(*args, **kwargs)
        encoder.identity = {**encoder.identity, "precision": "amp"}
        return encoder

    monkeypatch.setattr(encoders, "create_encoder", other)
    with pytest.raises(InputError, match="precision is 'amp', and the study was made with 'fp32' .*the key device"):
        made.apply(made.slides / f"{NEW[0]}.svs", home=tmp_path)
    assert not list(tmp_path.rglob("*.h5"))


def test_runs_that_were_not_trained_are_not_trained_now(made):
    with pytest.raises(InputError, match="'mine' has not all the runs of abmil .*: run its 03_train first"):
        study_kit(made.home, made.bags, made.folds, made.cohort, "abmil", 10, **SETTINGS)
    with pytest.raises(InputError, match="not all the runs of dmsmil"):
        study_kit(made.home, made.bags, made.folds, made.cohort, "dmsmil", **{**SETTINGS, "epochs": 3})
    assert not list(made.home.glob("runs/abmil*"))


@pytest.mark.slow
def test_what_failed_in_training_stays_said(made, tmp_path):
    """To read the runs is no training: the rows of failures.csv that a training left are not its to clear."""
    home = shutil.copytree(made.home, tmp_path / "mine")
    write_failures(home, "train", [failure_row("run", "train", InputError("diverged"))])
    study_kit(home, made.bags, made.folds, made.cohort, "dmsmil", **SETTINGS)
    assert list(read_failures(home).reason) == ["diverged"]


def test_the_studys_own_files_are_left_alone(made, whole):
    """What is of other slides lies apart: a slide of the same id cannot take the place of the study's."""
    assert not set(NEW) & {path.stem for path in made.home.glob("features/*/features_*/*.h5")}
    assert set(NEW) <= {path.stem for path in made.home.glob("apply/features/*/features_*/*.h5")}
    again = load_bags(Store(made.home, TILE, SCALES, ENCODER), made.cohort, K, SCALES)
    assert again.identity == made.bags.identity


def test_ids_are_kept_as_hashes(made):
    text = made.kit.trained.to_csv()
    assert not any(name in text for name in [*made.cohort.slide_id, *made.cohort.patient_id])
    marks = recognise(made.kit.trained, made.cohort, made.bags.store)
    assert (marks.known == "slide, patient, content").all()
