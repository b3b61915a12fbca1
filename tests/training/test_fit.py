"""Training: what names a run, that it repeats, continues, never looks at the test part, and owns up to a collapse."""

import ast
import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from dmsmil.cohorts.folds import make_folds
from dmsmil.features.bags import toy_bags
from dmsmil.jobs.files import InputError
from dmsmil.training import config as naming
from dmsmil.training.config import RunConfig, code_version, configure, configure_all, written_out
from dmsmil.training.fit import fit, load_model, predict
from dmsmil.training.health import collapsed, learned_nothing
from dmsmil.training.metrics import score
from dmsmil.training.runs import get_runs, read_predictions


def make_bags(slides=24, k=10, signal=4.0, **more):
    """The toy bags of most tests: small, with a class that a few epochs find."""
    return toy_bags(slides, k, signal=signal, **more)


def folds_of(bags, folds=2):
    frame = pd.DataFrame(
        {"slide_id": bags.slide_ids, "patient_id": bags.patient_ids, "label": [bags.classes[i] for i in bags.labels]}
    )
    return make_folds(frame, folds)


def quick(bags, folds, method="dmsmil", **settings):
    return configure(bags, folds, method, **{"epochs": 3, "lr": 1e-3, **settings})


@pytest.mark.slow
def test_learns_what_was_planted(study, tmp_path):
    bags, folds = study
    runs = get_runs(tmp_path, bags, folds, quick(bags, folds, epochs=15), workers=1, report=lambda line: None)[0]
    assert score(runs.predictions)["AUC"] > 0.9 and not runs.collapsed
    assert sorted(runs.predictions.slide_id) == bags.slide_ids
    assert list(runs.history.columns[:2]) == ["epoch", "loss"] and {"L_ot", "L_ce", "spread"} <= set(runs.history)


@pytest.mark.slow
def test_a_run_repeats_to_the_byte_and_differs_by_seed(study, tmp_path):
    bags, folds = study
    config = quick(bags, folds)
    files = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fit(bags, folds, config, 0, seed, tmp_path / name)
        files[name] = (tmp_path / name / "predictions.csv").read_bytes()
    assert files["a"] == files["b"] != files["c"]


@pytest.mark.parametrize(
    "change",
    [
        dict(epochs=4),
        dict(lr=1e-4),
        dict(lam=0.1),
        dict(batch_size=2),
        dict(select="val_auc"),
        dict(options={"heads": 2}),
        dict(weight_decay=0.1),
    ],
)
def test_everything_that_decides_a_result_is_in_its_name(study, change):
    bags, folds = study
    assert quick(bags, folds, **change).name != quick(bags, folds).name


def test_two_and_two_point_nothing_are_one_run(study):
    for whole, real in (({"lam": 2}, {"lam": 2.0}), ({"weight_decay": 0}, {}), ({"lr": 1}, {"lr": 1.0})):
        assert configure(*study, "dmsmil", **whole).name == configure(*study, "dmsmil", **real).name
    with pytest.raises(InputError, match="same settings"):
        configure_all(*study, ["dmsmil", {"dmsmil": {"weight_decay": 0}}], epochs=3, weight_decay=0.0)
    assert configure(*study, "dmsmil", 0, {"heads": 2}).options["heads"] == 2
    assert isinstance(configure(*study, "dmsmil", 0, {"heads": 2}).options["heads"], int)


def test_features_folds_and_code_are_in_the_name(study, monkeypatch):
    bags, folds = study
    other = make_bags(signal=1.0)
    names = {quick(bags, folds).name, quick(other, folds).name, quick(bags, folds_of(bags, 3)).name}
    monkeypatch.setattr(naming, "code_version", lambda module: "another")
    assert len(names | {quick(bags, folds).name}) == 4


def test_labels_and_patients_are_in_the_name_and_not_in_the_features(study):
    """An edited label makes other runs of the same features; so does a slide that turns out to be another patient's."""
    bags, folds = study
    label = replace(bags, labels=1 - bags.labels)
    patient = replace(bags, patient_ids=[bags.patient_ids[1], *bags.patient_ids[1:]])
    word = replace(bags, classes=["a", "c"])
    assert len({quick(b, folds).name for b in (bags, label, patient, word)}) == 4
    assert len({quick(b, folds).features for b in (bags, label, patient, word)}) == 1


def test_a_default_spelled_out_is_the_same_run(study):
    bags, folds = study
    assert quick(bags, folds, options={"heads": 4}).name == quick(bags, folds, lam=1.0).name == quick(bags, folds).name


def test_code_version_follows_statements_not_comments(tmp_path, monkeypatch):
    import dmsmil.models.pooling as module

    def version(text):
        (tmp_path / "pooling.py").write_text(text)
        monkeypatch.setattr(module, "__file__", str(tmp_path / "pooling.py"))
        code_version.cache_clear()
        return code_version("pooling")

    first = version('"""Doc."""\nx = 1  # one\n')
    assert first == version('"""Other words."""\n\n\nx = 1\n') != version("x = 2\n")
    code_version.cache_clear()


@pytest.mark.parametrize("model, part", [("dmsmil", "transport"), ("select", "transport"), ("dmsmil", "base")])
def test_a_run_is_named_by_every_module_that_its_model_imports_however_it_does(model, part, tmp_path, monkeypatch):
    module = importlib.import_module(f"dmsmil.models.{part}")
    before = code_version(model)
    (tmp_path / "changed.py").write_text(Path(module.__file__).read_text() + "\nCHANGED = True\n")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "changed.py"))
    code_version.cache_clear()
    assert code_version(model) != before
    code_version.cache_clear()


def test_another_python_renames_no_run():
    """The expected text is ast.dump of Python 3.11, by which the runs of the records are named."""
    text = "class A:\n    pass\n\n@b\ndef f(x=None, *, y=u'1'):\n    return f'{x!r:>{y}} z'\n"
    assert written_out(ast.parse(text)) == (
        "Module(body=[ClassDef(name='A', bases=[], keywords=[], body=[Pass()], decorator_list=[]), "
        "FunctionDef(name='f', args=arguments(posonlyargs=[], args=[arg(arg='x')], kwonlyargs=[arg(arg='y')], "
        "kw_defaults=[Constant(value='1', kind='u')], defaults=[Constant(value=None)]), body=[Return(value="
        "JoinedStr(values=[FormattedValue(value=Name(id='x', ctx=Load()), conversion=114, format_spec=JoinedStr("
        "values=[Constant(value='>'), FormattedValue(value=Name(id='y', ctx=Load()), conversion=-1)])), "
        "Constant(value=' z')]))], decorator_list=[Name(id='b', ctx=Load())])], type_ignores=[])"
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dmsmil", "dmsmil_select"])  # the second takes its whitening from the slides
def test_the_test_part_is_never_trained_on(study, tmp_path, method):
    """Garbage in the test slides changes nothing of the model."""
    bags, folds = study
    spoiled = make_bags()
    spoiled.identity = bags.identity
    spoiled.x[torch.tensor((folds.fold_0 == "test").tolist())] = 1e3
    config = quick(bags, folds, method)
    one, two = fit(bags, folds, config, 0, 0, tmp_path / "1"), fit(spoiled, folds, config, 0, 0, tmp_path / "2")
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert (one / "predictions.csv").read_bytes() != (two / "predictions.csv").read_bytes()


@pytest.mark.slow
def test_selection_uses_the_inner_part_and_trains_without_it(study, tmp_path):
    bags, folds = study
    for select in ("val_loss", "val_auc"):
        folder = fit(bags, folds, quick(bags, folds, select=select, epochs=6), 0, 0, tmp_path / select)
        record, history = json.loads((folder / "config.json").read_text()), pd.read_csv(folder / "history.csv")
        values = history.val_auc if select == "val_auc" else -history.val_loss
        assert record["epoch_used"] == int(history.epoch[values.idxmax()])
        assert record["slides"]["val"] == (folds.fold_0 == "val").sum() > 0
        assert record["slides"]["train"] == (folds.fold_0 == "train").sum(), "not the inner part too"
    plain = json.loads((fit(bags, folds, quick(bags, folds), 0, 0, tmp_path / "last") / "config.json").read_text())
    assert plain["slides"]["val"] == 0 and plain["slides"]["train"] == (folds.fold_0 != "test").sum()


@pytest.mark.slow
def test_the_weights_of_the_best_epoch_are_tested(study, tmp_path, monkeypatch):
    """Where the first of six epochs is best a run says what a run of one epoch says."""
    bags, folds = study
    losses = iter(range(6))
    monkeypatch.setattr(
        "dmsmil.training.fit._validate", lambda *_: {"val_loss": float(next(losses)), "val_auc": float("nan")}
    )
    long = fit(bags, folds, quick(bags, folds, select="val_loss", epochs=6), 0, 0, tmp_path / "six")
    losses = iter(range(6))
    short = fit(bags, folds, quick(bags, folds, select="val_loss", epochs=1), 0, 0, tmp_path / "one")
    assert (long / "model.safetensors").read_bytes() == (short / "model.safetensors").read_bytes()
    assert read_predictions(long).equals(read_predictions(short))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dmsmil", "abmil"])
def test_batch_size_and_weight_decay_do_what_they_say(study, tmp_path, method):
    bags, folds = study
    scale = 20 if method == "abmil" else 0

    def weights(**settings):
        config = quick(bags, folds, method, scale=scale, epochs=1, lr=1e-2, **settings)
        return load_file(fit(bags, folds, config, 0, 0, tmp_path / config.name) / "model.safetensors")

    one, all_at_once, decayed = weights(), weights(batch_size=100), weights(weight_decay=10.0)
    plain = load_model(tmp_path / quick(bags, folds, method, scale=scale, epochs=1, lr=1e-2).name, 16, 2)
    matrices = [name for name, value in plain.named_parameters() if value.ndim > 1 and value.norm() > 0.1]
    assert any(not torch.equal(one[name], all_at_once[name]) for name in matrices)
    assert sum(float(decayed[n].norm()) for n in matrices) < 0.95 * sum(float(one[n].norm()) for n in matrices)


@pytest.mark.slow
def test_the_saved_model_gives_the_saved_predictions(study, tmp_path):
    bags, folds = study
    folder = fit(bags, folds, quick(bags, folds), 0, 0, tmp_path / "run")
    table = read_predictions(folder)
    probabilities, _ = predict(load_model(folder, 16, 2), bags, bags.rows(table.slide_id).numpy())
    np.testing.assert_allclose(table[["prob_a", "prob_b"]], probabilities, atol=1e-6)
    assert set(table.label) == {"a", "b"}, "class names, not numbers"


@pytest.mark.slow
@pytest.mark.parametrize("method, settings", [("dmsmil", {}), ("clam_sb", {"scale": 10})])
def test_a_killed_run_goes_on_from_its_checkpoint_and_ends_alike(study, tmp_path, method, settings):
    """SIGKILL in the middle; the dropout of CLAM makes the random state matter."""
    bags, folds = study
    torch.save(bags, tmp_path / "bags.pt")
    folds.to_csv(tmp_path / "folds.csv", index=False)
    code = textwrap.dedent("""
        import sys, os, signal, torch, pandas as pd
        from dmsmil.training import fit as training
        from dmsmil.training.config import configure
        root, target, method, scale, kill = sys.argv[1:]
        bags, folds = torch.load(f"{root}/bags.pt", weights_only=False), pd.read_csv(f"{root}/folds.csv")
        config = configure(bags, folds, method, int(scale), epochs=6, lr=1e-3)
        training.CHECKPOINT_SECONDS = 0.0
        epoch, count = training._epoch, [0]
        def counted(*args):
            count[0] += 1
            if count[0] == int(kill): os.kill(os.getpid(), signal.SIGKILL)
            return epoch(*args)
        training._epoch = counted
        training.fit(bags, folds, config, 0, 0, f"{root}/{target}")
        print(count[0])
    """)

    def go(target, kill):
        return subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), target, method, str(settings.get("scale", 0)), str(kill)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    assert go("whole", 99).stdout.strip() == "6"
    assert go("killed", 4).returncode == -signal.SIGKILL
    assert not (tmp_path / "killed/config.json").exists() and (tmp_path / "killed/checkpoint.pt").exists()
    assert go("killed", 99).stdout.strip() == "3", "three epochs were left"
    for name in ("predictions.csv", "history.csv", "model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "killed/checkpoint.pt").exists()


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(method="dmsmill"), "did you mean 'dmsmil'"),
        (dict(scale=40), "scale is 40"),
        (dict(options={"head": "x"}), "head"),
        (dict(options={"hads": 2}), "did you mean 'heads'"),
        (dict(select="best"), "choose one of last"),
        (dict(method="damil"), "takes one scale"),
        (dict(epochs=0), "epochs is 0"),
        (dict(epochs=2.5), "epochs is 2.5"),
        (dict(epochs=True), "epochs is True"),
        (dict(batch_size=0), "batch_size is 0"),
        (dict(lr=0), "lr is 0"),
        (dict(lr=float("nan")), "lr is nan"),
        (dict(lr="1e-3"), "lr is '1e-3'.*YAML"),
        (dict(weight_decay=-1.0), "weight_decay is -1"),
        (dict(lam=0.0), "lam is 0"),
        (dict(lam=-1), "lam is -1"),
        (dict(lam=float("inf")), "lam is inf"),
        (dict(options={"lam": -1.0}), "lam is -1"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(study, settings, message):
    bags, folds = study
    settings = dict(settings)
    with pytest.raises(InputError, match=message):
        quick(bags, folds, settings.pop("method", "dmsmil"), **settings)


def test_scales_are_named_once(study):
    bags, folds = study
    with pytest.raises(InputError, match="scales is .10, 10.: name each scale once"):
        quick(replace(bags, scales=(10, 10)), folds)


@pytest.mark.parametrize(
    "methods, message",
    [
        ([], "methods is empty"),
        (["abmil", "dmsmil", "abmil"], "names abmil twice"),
        (["abmil", {"abmil": {"scale": 20}}], "names abmil twice"),
        (["dmsmil", {"dmsmil": {"heads": 4}}], "dmsmil twice"),
        ([{"dmsmil": {}, "abmil": {}}], "an entry is a name"),
        ([{"dmsmil": 3}], "an entry is a name"),
        ([["dmsmil"]], "an entry is a name"),
        ([None], "an entry is a name"),
        ([{}], "an entry is a name"),
        ([{"dmsmil": {"lr": 0}}], "lr is 0"),
    ],
)
def test_a_wrong_list_of_methods_is_one_clear_line(study, methods, message):
    with pytest.raises(InputError, match=message):
        configure_all(*study, methods, epochs=3, lr=1e-3)


def test_a_method_may_be_named_again_with_another_setting(study):
    configs = configure_all(*study, ["dmsmil", {"dmsmil": {"heads": 2}}, {"dmsmil": {"epochs": 4}}], epochs=3, lr=1e-3)
    assert len({config.name for config in configs}) == 3


@pytest.mark.slow
def test_selection_by_auc_needs_both_classes_in_the_inner_part(study, tmp_path):
    """AUC of one class is not defined: no epoch would be better than the first."""
    bags, folds = study
    named = dict(zip(bags.slide_ids, bags.labels.tolist()))
    one = folds.assign(
        fold_0=[part if part != "val" or named[name] else "train" for name, part in zip(folds.slide_id, folds.fold_0)]
    )
    with pytest.raises(InputError, match="fold 0 has one class in its validation part.*select: val_loss"):
        fit(bags, one, quick(bags, one, select="val_auc"), 0, 0, tmp_path)
    fit(bags, one, quick(bags, one, select="val_loss"), 0, 0, tmp_path)


def test_collapse_is_called_by_its_name():
    prior = np.array([0.5, 0.5])
    assert collapsed(1.0, 0.001, np.log(2), prior)
    assert not collapsed(1.0, 0.001, 0.1, prior), "small features that classify are no collapse"
    assert not collapsed(1.0, 0.5, np.log(2), prior), "a model that has not learned has not collapsed"
    assert not collapsed(None, None, np.log(2), prior), "a method without a spread"
    assert learned_nothing(np.log(2), prior), "whatever the spread"
    assert not learned_nothing(0.1, prior) and not learned_nothing(None, prior)


@pytest.mark.slow
def test_transport_alone_collapses_a_relu_and_is_marked(tmp_path):
    """PAPER, ambiguity 12: with a ReLU after the projection L_ot drives every unit to zero."""
    bags = make_bags(16, signal=0.0)
    folds, lines = folds_of(bags), []
    config = quick(bags, folds, options={"activation": "relu", "ot_on": "projection"}, lam=0.001, epochs=60, lr=1e-2)
    runs = get_runs(tmp_path, bags, folds, config, workers=1, report=lines.append)[0]
    assert runs.collapsed >= 1 and any("COLLAPSED" in line for line in lines)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_and_cpu_agree(study, tmp_path):
    bags, folds = study
    tables = [read_predictions(fit(bags, folds, quick(bags, folds), 0, 0, tmp_path / d, d)) for d in ("cpu", "cuda")]
    np.testing.assert_allclose(tables[0].prob_a, tables[1].prob_a, atol=1e-3)


def test_a_comparison_runs_each_method_at_each_scale_it_can(study):
    bags, folds = study
    entries = ["abmil", "dmsmil", "meanpool", {"clam_sb": {"k_sample": 2, "epochs": 7, "scale": 20}}]
    configs = configure_all(bags, folds, entries, epochs=3, lr=1e-3)
    assert [(c.method, c.scales) for c in configs] == [
        ("abmil", (10,)),
        ("abmil", (20,)),
        ("dmsmil", (10, 20)),
        ("meanpool", (10,)),
        ("meanpool", (20,)),
        ("meanpool", (10, 20)),
        ("clam_sb", (20,)),
    ]
    assert configs[-1].epochs == 7 and configs[-1].options == {"k_sample": 2} and configs[0].epochs == 3
    assert configs[2].name == quick(bags, folds).name, "the run of 03_train, not another"
    with pytest.raises(InputError, match="did you mean 'k_sample'"):
        configure_all(bags, folds, [{"clam_sb": {"ksample": 2}}], epochs=3)


def test_of_one_scale_pooling_is_one_run_and_what_is_one_run_is_not_named_twice(study):
    bags, folds = study
    configs = configure_all(bags.view((20,)), folds, ["abmil", "meanpool", "topk"], epochs=3, lr=1e-3)
    assert [(c.method, c.scales) for c in configs] == [(name, (20,)) for name in ("abmil", "meanpool", "topk")]


def test_runconfig_is_plain_data():
    json.dumps(RunConfig("dmsmil", (10, 20)).record())
