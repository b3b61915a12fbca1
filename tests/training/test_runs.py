"""The run store: nothing is trained twice, half a run is no run, a broken one is a row, and workers change nothing."""

from dataclasses import replace

import pandas as pd
import pytest

from dmsmil.jobs.failures import failure_row, read_failures, write_failures
from dmsmil.jobs.files import InputError
from dmsmil.slides.store import Store
from dmsmil.training import fit as fit_room
from dmsmil.training.fit import fit
from dmsmil.training.progress import listening, read_asked
from dmsmil.training.record import write_checkpoint
from dmsmil.training.runs import finished, get_runs, run_folder
from tests.training.test_fit import folds_of, quick

pytestmark = pytest.mark.slow


def test_workers_do_not_change_a_result(study, tmp_path):
    bags, folds = study
    config = quick(bags, folds)
    for workers in (1, 2):
        get_runs(tmp_path / str(workers), bags, folds, config, workers=workers, report=lambda line: None)
    for fold in range(2):
        one, two = (run_folder(tmp_path / w, config, fold, 0) / "predictions.csv" for w in "12")
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.xdist_group("dask")
def test_dask_does_not_change_a_result(study, tmp_path):
    bags, folds = study
    config = quick(bags, folds)
    get_runs(tmp_path / "here", bags, folds, config, workers=1, report=lambda line: None)
    shared = replace(bags, store=Store(tmp_path / "there"))
    get_runs(tmp_path / "there", shared, folds, config, workers=2, report=lambda line: None, scheduler="local")
    assert list((tmp_path / "there" / "features").glob("bags-*.npy")), "workers map the features from a file"
    for fold in range(2):
        one, two = (run_folder(tmp_path / w, config, fold, 0) / "predictions.csv" for w in ("here", "there"))
        assert one.read_bytes() == two.read_bytes()


def test_the_store_is_the_memo(study, tmp_path):
    bags, folds = study
    config, lines = quick(bags, folds), []
    get_runs(tmp_path, bags, folds, config, workers=1, report=lines.append)
    assert len(lines) == 2
    get_runs(tmp_path, bags, folds, config, workers=1, report=lines.append)
    assert len(lines) == 2, "nothing is trained twice"
    (run_folder(tmp_path, config, 1, 0) / "predictions.csv").unlink()
    get_runs(tmp_path, bags, folds, config, workers=1, report=lines.append)
    assert len(lines) == 3 and lines[2].startswith("[1/1] ") and "fold 1" in lines[2], "only what is missing"


def test_a_watcher_hears_what_is_asked_for_and_what_of_it_is_trained(study, tmp_path):
    bags, folds = study
    config = quick(bags, folds)
    with listening(tmp_path):
        get_runs(tmp_path, bags, folds, config, workers=1, report=lambda line: None, only_folds=(0,))
        assert read_asked(tmp_path) == ({config.method: 1}, {config.method: 1})
        get_runs(tmp_path, bags, folds, config, workers=1, report=lambda line: None)
        assert read_asked(tmp_path) == ({config.method: 3}, {config.method: 2})


def test_a_half_written_run_is_not_taken_for_a_whole_one(study, tmp_path):
    bags, folds = study
    config = quick(bags, folds)
    folder = fit(bags, folds, config, 0, 0, run_folder(tmp_path, config, 0, 0))
    assert finished(folder, config)["slides"]["test"] == 12 and not finished(folder, quick(bags, folds, epochs=9))
    (folder / "history.csv").unlink()
    assert finished(folder, config) is None


def change_label(content):
    """Another class for the first slide, in as many bytes."""
    return content.replace(b",a,", b",b,", 1)


def flip_bit(content):
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


@pytest.mark.parametrize(
    "name, damage",
    [
        ("predictions.csv", lambda content: bytes(len(content))),
        ("predictions.csv", change_label),
        ("history.csv", lambda content: content[:-9]),
        ("model.safetensors", flip_bit),
        ("config.json", lambda content: content[:40]),
        ("config.json", lambda content: b"[]"),
        ("config.json", lambda content: content.replace(b'"epoch_used": 2', b'"epoch_used": 1')),
    ],
)
def test_a_run_whose_files_were_changed_is_trained_anew_and_said(study, tmp_path, name, damage):
    """NUL bytes, an edited label, a lost line, a flipped bit: none of it may reach a table."""
    bags, folds = study
    config, lines = quick(bags, folds, "meanpool", epochs=2), []
    right = get_runs(tmp_path, bags, folds, config, workers=1, report=lines.append)[0]
    file = run_folder(tmp_path, config, 1, 0) / name
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert file.read_bytes() != content
    lines.clear()
    again = get_runs(tmp_path, bags, folds, config, workers=1, report=lines.append)[0]
    assert lines[0] == f"{config.name}/fold1-seed0: {name} is not what was written, so the run is trained anew"
    assert len(lines) == 2 and lines[1].startswith("[1/1] ")
    assert name == "config.json" or file.read_bytes() == content
    pd.testing.assert_frame_equal(again.predictions, right.predictions)
    get_runs(tmp_path, bags, folds, config, workers=1, report=lines.append)
    assert len(lines) == 2, "mended, nothing more is said"


@pytest.mark.parametrize(
    "damage", [flip_bit, lambda content: content[:100], lambda content: b"", lambda content: bytes(len(content))]
)
def test_a_damaged_checkpoint_is_dropped_and_the_run_ends_as_it_would(study, tmp_path, monkeypatch, damage):
    bags, folds = study
    config, lines, real = quick(bags, folds, "clam_sb", scale=10), [], fit_room._epoch  # a method that does not stack
    whole = fit(bags, folds, config, 0, 0, tmp_path / "whole")

    def interrupted(*args):
        if (folder / "checkpoint.pt").exists():
            raise KeyboardInterrupt
        return real(*args)

    folder = run_folder(tmp_path, config, 0, 0)
    monkeypatch.setattr(fit_room, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(fit_room, "_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(bags, folds, config, 0, 0, folder)
    (folder / "checkpoint.pt").write_bytes(damage((folder / "checkpoint.pt").read_bytes()))
    monkeypatch.setattr(fit_room, "_epoch", real)
    get_runs(tmp_path, bags, folds, config, workers=1, report=lines.append, only_folds=(0,))
    assert len(lines) == 1 and lines[0].endswith("its checkpoint is of another way of training, or damaged: begun anew")
    assert (folder / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not (folder / "checkpoint.pt").exists()


def test_a_checkpoint_of_another_configuration_is_not_gone_on_from(study, tmp_path):
    bags, folds = study
    config, said = quick(bags, folds), []
    write_checkpoint({"config": "another"}, tmp_path / "run/checkpoint.pt")
    fit(bags, folds, config, 0, 0, tmp_path / "run", say=said.append)
    assert said == ["its checkpoint is of another way of training, or damaged: begun anew"]


def test_a_run_that_fails_is_a_row_and_the_others_go_on(study, tmp_path, monkeypatch):
    bags, folds = study
    real, lines = fit_room.prepare, []

    def fragile(bags, folds, config, fold, *rest):
        if fold == 1:
            raise InputError("this fold is broken")
        return real(bags, folds, config, fold, *rest)

    monkeypatch.setattr(fit_room, "prepare", fragile)
    runs = get_runs(tmp_path, bags, folds, quick(bags, folds), workers=1, report=lines.append)[0]
    assert set(runs.predictions.fold) == {0} and list(read_failures(tmp_path).reason) == ["this fold is broken"]
    monkeypatch.setattr(fit_room, "prepare", real)
    get_runs(tmp_path, bags, folds, quick(bags, folds), workers=1, report=lines.append)
    assert read_failures(tmp_path).empty, "mended, it is no longer listed"


def test_infinite_features_stop_with_a_reason(study, tmp_path):
    bags, folds = study
    bags.x[0] = float("inf")
    with pytest.raises(InputError, match="no longer finite|see failures.csv"):
        get_runs(tmp_path, bags, folds, quick(bags, folds), workers=1, report=lambda line: None)


def test_only_some_folds_are_trained_and_come_back_in_order(study, tmp_path):
    bags, folds = study[0], folds_of(study[0], 3)
    config, lines = quick(bags, folds, epochs=1), []

    def ask(**which):
        return get_runs(tmp_path, bags, folds, config, [0, 1], 1, report=lines.append, **which)[0]

    assert list(ask(only_folds=(2,)).folders) == [(2, 0), (2, 1)] and len(lines) == 2
    backwards = ask(only_folds=(2, 0, 2))
    assert list(backwards.folders) == [(0, 0), (0, 1), (2, 0), (2, 1)] and len(lines) == 4, "fold 2 was there"
    assert set(ask(only_folds=(0,)).predictions.fold) == {0} and len(lines) == 4, "what else is there stays out"
    assert set(ask().predictions.fold) == {0, 1, 2} and len(lines) == 6, "without a word: all folds"


@pytest.mark.parametrize("seeds", [[0, 0], [], [0, -1], ["0"], [0.5], [True], [None]])
def test_seeds_are_whole_numbers_each_named_once(study, tmp_path, seeds):
    bags, folds = study
    with pytest.raises(InputError, match="^seeds (is|holds) "):
        get_runs(tmp_path, bags, folds, quick(bags, folds), seeds)
    assert not list(tmp_path.iterdir())


def test_a_stage_that_runs_again_drops_the_failures_of_its_earlier_settings(study, tmp_path):
    """Seed 1 failed, and is no longer asked for: nothing is missing, and nothing has failed."""
    bags, folds = study
    get_runs(tmp_path, bags, folds, quick(bags, folds), workers=1, report=lambda line: None)
    for stage in ("train", "compare"):
        write_failures(tmp_path, stage, [failure_row("dmsmil-0/fold0-seed1", stage, InputError("broken"))])
    get_runs(tmp_path, bags, folds, quick(bags, folds), workers=1, report=lambda line: None)
    assert list(read_failures(tmp_path).stage) == ["compare"], "another stage has not run"


@pytest.mark.parametrize("strange", [(3,), (-1,), (0, 7), ()])
def test_a_fold_that_is_not_there_is_named(study, tmp_path, strange):
    bags, folds = study
    with pytest.raises(InputError, match="only_folds is .*folds 0 to 1"):
        get_runs(tmp_path, bags, folds, quick(bags, folds), only_folds=strange)
    assert not list(tmp_path.iterdir())
