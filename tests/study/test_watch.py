"""What a person hears while a study trains: every line, how far it is, and what is left by the runs' own speed."""

import threading
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from dmsmil.study import watch as room
from dmsmil.study.forecast import Work
from dmsmil.study.times import TRAINING
from dmsmil.study.watch import Remaining, Watch, result_lines
from dmsmil.training.progress import Progress, Unit, listening, read_asked, read_progress, say_asked


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [1000.0]
    monkeypatch.setattr(room.time, "perf_counter", lambda: now[0])
    return now


WORKS = [
    Work("03_train", {"dmsmil": (4, 10.0)}),
    Work("04_compare", {"damil": (10, 20.0)}),
    Work("06_lambda", {"dmsmil": (2, 10.0)}),
]


def counted(left, method, runs):
    for _ in range(runs):
        left.count(method)


def test_what_is_left_follows_the_speed_of_what_was_trained(clock):
    left = Remaining(WORKS, workers=2)
    left.enter("03_train")
    assert left.seconds() is None, "nothing was trained, nothing is known"
    clock[0] += 20
    counted(left, "dmsmil", 2)  # 10 s were expected and took 20: twice as slow
    assert left.seconds() == pytest.approx(2 * (10 + 100 + 10))
    clock[0] += 20
    counted(left, "dmsmil", 2)
    left.leave()
    left.enter("04_compare")
    assert left.seconds() == pytest.approx(2 * (100 + 10))
    clock[0] += 100
    left.see((Counter(damil=10), Counter(damil=5)), [])
    counted(left, "damil", 5)  # half of its runs had been trained before
    assert left.seconds() == pytest.approx(140 / 70 * 10)


def test_a_method_counts_what_it_costs(clock):
    left = Remaining([Work("04_compare", {"meanpool": (30, 1.0), "clam_sb": (20, 100.0)})], workers=2)
    left.enter("04_compare")
    left.see((Counter(meanpool=30, clam_sb=20), Counter(meanpool=30, clam_sb=20)), [])
    clock[0] += 15
    counted(left, "meanpool", 30)  # the cheap ones first, as forecast
    assert left.seconds() == pytest.approx(1000)
    clock[0] += 500
    counted(left, "clam_sb", 10)
    assert left.seconds() == pytest.approx(500)


def test_a_notebook_may_ask_for_runs_more_than_once(clock):
    """As 05 does: rows, null control, readings."""
    left = Remaining([Work("05_ablation", {"dmsmil": (30, 10.0)})], workers=1)
    left.enter("05_ablation")
    left.see((Counter(dmsmil=20), Counter(dmsmil=20)), [])
    clock[0] += 200
    counted(left, "dmsmil", 20)
    assert left.seconds() == pytest.approx(100)
    left.see((Counter(dmsmil=30), Counter(dmsmil=25)), [])  # half of the second question was trained before
    clock[0] += 10
    counted(left, "dmsmil", 1)
    assert left.seconds() == pytest.approx(40)


def test_what_an_earlier_process_trained_says_nothing_of_the_speed(clock):
    left = Remaining([Work("04_compare", {"clam_sb": (2, 100.0)})], workers=1)
    left.enter("04_compare")
    folder = Path("runs/clam_sb-0a/fold0-seed0")
    asked = Counter(clam_sb=2), Counter(clam_sb=2)
    left.see(asked, [Unit(folder, 1, 91, 100, 90)])
    clock[0] += 1
    assert left.seconds() == pytest.approx(9 + 100)
    left.see(asked, [Unit(folder, 1, 95, 100, 90)])
    clock[0] += 4
    assert left.seconds() == pytest.approx(5 + 100)
    left.see(asked, [])
    left.count("clam_sb")
    clock[0] += 5
    assert left.seconds() == pytest.approx(100)


def test_the_seconds_in_which_processes_start_are_not_training(clock):
    left = Remaining(WORKS, workers=2)
    left.enter("03_train")
    clock[0] += 12
    left.begin()
    clock[0] += 10
    counted(left, "dmsmil", 2)
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
    left.see((Counter(), Counter()), [Unit(Path("runs/dmsmil-1/fold0-seed0"), 4, 60, 120, 0)])
    assert left.seconds() == pytest.approx(0.5 * (20 + 200 + 20))


def test_every_line_is_handed_on_and_after_a_while_what_is_left(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_works", lambda home, params: WORKS)
    said = []
    watch = Watch(tmp_path, {"workers": 1, "device": "cpu"}, said.append, TRAINING)
    with watch.over("03_train") as hear:
        hear("    Train")
        hear("    [1/4] dmsmil 10x+20x  fold 0")
        clock[0] += 40
        hear("    [2/4] dmsmil 10x+20x  fold 1")
        hear("    [3/4] dmsmil-0a/fold2-seed0 failed: no room")
    assert said[0] == "    Train" and [line[:9] for line in (*said[1:3], said[4])] == [
        f"    [{number}/4]" for number in (1, 2, 3)
    ]
    assert said[3] == "    about 8 min of training left"  # 40 s for 20 expected; 240 are left
    assert len(said) == 5


def test_notebooks_that_will_not_be_executed_are_not_counted(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_works", lambda home, params: WORKS)
    watch = Watch(tmp_path, {"workers": 1, "device": "cpu"}, lambda line: None, ["03_train", "06_lambda"])
    watch.remaining.enter("03_train")
    clock[0] += 20
    counted(watch.remaining, "dmsmil", 2)  # as forecast
    assert watch.remaining.seconds() == pytest.approx(20 + 20)


def test_a_long_silence_is_broken_by_what_trains_now(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_works", lambda home, params: WORKS)
    said = []
    watch = Watch(tmp_path, {"workers": 1, "device": "cpu"}, said.append, TRAINING)
    watch.remaining.enter("03_train")
    progress = Progress(tmp_path / "runs/dmsmil-1/fold0-seed0", 120)
    progress.say(4, 1)
    progress.said = 0.0
    progress.say(4, 60)
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
    assert read_progress(tmp_path) == [Unit(one.path.parent, 10, 48, 120, 47), Unit(other.path.parent, 1, 3, 120, 2)]
    assert read_progress(tmp_path)[0].method == "dmsmil"
    one.__exit__()
    other.path.write_text("half a li")
    assert read_progress(tmp_path) == []


def test_what_was_asked_for_is_said_only_where_somebody_listens(tmp_path):
    say_asked(tmp_path, ["damil"], ["damil"])
    assert read_asked(tmp_path) == (Counter(), Counter()) and not any(tmp_path.iterdir())
    with listening(tmp_path):
        say_asked(tmp_path, ["damil", "damil", "clam_sb"], ["damil"])
        say_asked(tmp_path, ["damil"], [])
        assert read_asked(tmp_path) == (Counter(damil=3, clam_sb=1), Counter(damil=1))
    assert not any((tmp_path / "runs").iterdir())


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
    alone = table.assign(collapsed=0, AUC_mean=float("nan"), AUC_pooled=[0.87, 0.5])
    alone.to_csv(tmp_path / "tables/03_dmsmil_results.csv", index=False)
    pooled = result_lines(tmp_path, "03_train")
    assert "pooled AUC" in pooled[0] and "0.870" in pooled[1] and "nan" not in "".join(pooled)
    assert result_lines(tmp_path, "04_compare") == [] == result_lines(tmp_path, "07_interpret")
