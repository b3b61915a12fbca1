"""The run store: nothing is trained twice, half a run is no run, a broken one is a row, and workers change nothing."""

from dataclasses import replace

import pytest

from dmsmil.jobs.failures import read_failures
from dmsmil.jobs.files import InputError
from dmsmil.slides.store import Store
from dmsmil.training.fit import fit
from dmsmil.training import runs as runs_room
from dmsmil.training.runs import get_runs, is_finished, run_folder
from tests.training.test_fit import folds_of, quick


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


def test_a_half_written_run_is_not_taken_for_a_whole_one(study, tmp_path):
    bags, folds = study
    config = quick(bags, folds)
    folder = fit(bags, folds, config, 0, 0, run_folder(tmp_path, config, 0, 0))
    assert is_finished(folder, config) and not is_finished(folder, quick(bags, folds, epochs=9))
    (folder / "config.json").write_text('{"finished": tr')
    assert not is_finished(folder, config)


def test_a_run_that_fails_is_a_row_and_the_others_go_on(study, tmp_path, monkeypatch):
    bags, folds = study
    real, lines = runs_room.fit, []

    def fragile(bags, folds, config, fold, *rest):
        if fold == 1:
            raise InputError("this fold is broken")
        return real(bags, folds, config, fold, *rest)

    monkeypatch.setattr(runs_room, "fit", fragile)
    runs = get_runs(tmp_path, bags, folds, quick(bags, folds), workers=1, report=lines.append)[0]
    assert set(runs.predictions.fold) == {0} and list(read_failures(tmp_path).reason) == ["this fold is broken"]
    monkeypatch.setattr(runs_room, "fit", real)
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


@pytest.mark.parametrize("strange", [(3,), (-1,), (0, 7), ()])
def test_a_fold_that_is_not_there_is_named(study, tmp_path, strange):
    bags, folds = study
    with pytest.raises(InputError, match="only_folds is .*folds 0 to 1"):
        get_runs(tmp_path, bags, folds, quick(bags, folds), only_folds=strange)
    assert not list(tmp_path.iterdir())
