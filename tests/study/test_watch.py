"""What a person hears while a study trains: every line, how far it is, and what is left by the runs' own speed."""

import threading

import pandas as pd
import pytest

from dmsmil.study import watch as room
from dmsmil.study.forecast import Work
from dmsmil.study.times import TRAINING
from dmsmil.study.watch import Remaining, Watch, result_lines
from dmsmil.training.progress import Progress, read_progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [1000.0]
    monkeypatch.setattr(room.time, "perf_counter", lambda: now[0])
    return now


WORKS = [Work("03_train", 4, 40.0), Work("04_compare", 10, 200.0), Work("06_lambda", 2, 20.0)]


def test_what_is_left_follows_the_speed_of_what_was_trained(clock):
    left = Remaining(WORKS, workers=2)
    left.enter("03_train")
    assert left.seconds() is None, "nothing was trained, nothing is known"
    clock[0] += 20
    left.count(2, 4)  # 10 s were expected and took 20: twice as slow
    assert left.seconds() == pytest.approx(2 * (10 + 100 + 10))
    clock[0] += 20
    left.count(4, 4)
    left.leave()
    left.enter("04_compare")
    assert left.seconds() == pytest.approx(2 * (100 + 10))
    clock[0] += 100
    left.count(5, 5)  # half of its runs had been trained before
    assert left.seconds() == pytest.approx(140 / 70 * 10)


def test_the_seconds_in_which_processes_start_are_not_training(clock):
    left = Remaining(WORKS, workers=2)
    left.enter("03_train")
    clock[0] += 12
    left.begin()
    clock[0] += 10
    left.count(2, 4)
    assert left.seconds() == pytest.approx(10 + 100 + 10)


def test_the_watch_sees_the_first_training_begin(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_works", lambda home, params: WORKS)
    monkeypatch.setattr(room, "LOOK", 0.01)
    begun = threading.Event()
    watch = Watch(tmp_path, {"workers": 1, "device": "cpu"}, lambda line: None, TRAINING)
    monkeypatch.setattr(watch.remaining, "begin", begun.set)
    with watch.over("03_train"):
        assert not begun.wait(0.1)
        Progress(tmp_path / "runs/dmsmil-1/fold0-seed0", 120).say(4, 0)
        assert begun.wait(10)


def test_runs_under_way_count_as_parts(clock):
    left = Remaining(WORKS, workers=1)
    left.enter("03_train")
    clock[0] += 10
    left.under_way = 2.0  # four runs at half of their epochs
    assert left.seconds() == pytest.approx(0.5 * (20 + 200 + 20))


def test_every_line_is_handed_on_and_after_a_while_what_is_left(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_works", lambda home, params: WORKS)
    said = []
    watch = Watch(tmp_path, {"workers": 1, "device": "cpu"}, said.append, TRAINING)
    with watch.over("03_train") as hear:
        hear("    Train")
        hear("    [1/4] dmsmil")
        clock[0] += 40
        hear("    [2/4] dmsmil")
        hear("    [3/4] dmsmil")
    assert said[:3] == ["    Train", "    [1/4] dmsmil", "    [2/4] dmsmil"] and said[4] == "    [3/4] dmsmil"
    assert said[3] == "    about 8 min of training left"  # 40 s for 20 expected; 240 are left
    assert len(said) == 5


def test_notebooks_that_will_not_be_executed_are_not_counted(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_works", lambda home, params: WORKS)
    watch = Watch(tmp_path, {"workers": 1, "device": "cpu"}, lambda line: None, ["03_train", "06_lambda"])
    watch.remaining.enter("03_train")
    clock[0] += 20
    watch.remaining.count(2, 4)  # as forecast
    assert watch.remaining.seconds() == pytest.approx(20 + 20)


def test_a_long_silence_is_broken_by_what_trains_now(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_works", lambda home, params: WORKS)
    said = []
    watch = Watch(tmp_path, {"workers": 1, "device": "cpu"}, said.append, TRAINING)
    watch.remaining.enter("03_train")
    Progress(tmp_path / "runs/dmsmil-1/fold0-seed0", 120).say(4, 60)
    clock[0] += 100
    watch._tell()
    assert said == ["    4 together at epoch 60 of 120; about 20 min of training left"]


def test_a_study_whose_features_are_not_there_is_watched_without_a_forecast(tmp_path):
    said = []
    watch = Watch(tmp_path, {"workers": 1, "device": "cpu"}, said.append, TRAINING)
    with watch.over("03_train") as hear:
        hear("    [1/4] dmsmil")
    assert said == ["    [1/4] dmsmil"]


def test_progress_is_one_line_a_unit_gone_at_its_end(tmp_path):
    one, other = (Progress(tmp_path / f"runs/dmsmil-1/fold{fold}-seed0", 120) for fold in (0, 1))
    one.say(10, 48)
    one.say(10, 49)  # too soon: not written
    other.say(1, 3)
    assert read_progress(tmp_path) == [(10, 48, 120), (1, 3, 120)]
    one.__exit__()
    other.path.write_text("half a li")
    assert read_progress(tmp_path) == []


def test_the_result_is_a_table_in_the_terminal(tmp_path):
    (tmp_path / "tables").mkdir()
    table = pd.DataFrame(
        {
            "name": ["DMSMIL", "always the majority"],
            "ACC_mean": [0.8, 0.5],
            "F1_mean": [0.75, 0.0],
            "AUC_mean": [0.9, 0.5],
            "AUC_low": [0.7, 0.5],
            "AUC_high": [1.0, 0.5],
            "collapsed": [1, 0],
        }
    )
    table.to_csv(tmp_path / "tables/03_dmsmil_results.csv", index=False)
    lines = result_lines(tmp_path, "03_train")
    assert lines[1].split() == ["DMSMIL", "0.800", "0.750", "0.900", "[0.70,", "1.00]", "collapsed"]
    table.assign(collapsed=0, learned_nothing=[2, 0], gathered=[1, 0]).to_csv(
        tmp_path / "tables/03_dmsmil_results.csv", index=False
    )
    assert result_lines(tmp_path, "03_train")[1].endswith("1.00]  learned nothing, gathered")
    assert lines[2].startswith("    always the majority   0.500") and len({line.index("[") for line in lines[1:]}) == 1
    assert result_lines(tmp_path, "04_compare") == [] == result_lines(tmp_path, "07_interpret")
