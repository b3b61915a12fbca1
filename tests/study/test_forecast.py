"""How long a study trains: each run is counted once, where it is asked for first, and steps are timed."""

from dataclasses import replace

import pytest

from dmsmil.cohorts.folds import bag_folds
from dmsmil.jobs.files import ROOT
from dmsmil.study import forecast as room
from dmsmil.study.forecast import Work, forecast, in_words, minutes, step_in_words, step_seconds, trainings
from dmsmil.study.params import read_params
from dmsmil.study.trial import made_up
from dmsmil.training.config import configure

CLASSES = ["a", "b"]


@pytest.fixture
def params():
    return read_params(ROOT / "params/smoke.yaml")


def made(params):
    bags = made_up(params["scales"], 32, CLASSES, 6)
    return bags, bag_folds(bags, 2)


def test_each_run_is_counted_once_where_it_is_asked_for_first(params):
    found = trainings(params | {"collapse_lams": [], "variants": ["activation_relu"]}, *made(params))
    runs = {notebook: sum(count for _, count in configs) for notebook, configs in found.items()}
    # 03: DMSMIL. 04: DAMIL and ABMIL at two scales, mean pooling at two and at both. 05: five more rows (the last is
    # DMSMIL, two are DAMIL), of which L_ce alone is read in 06; the null control; one reading. 06: two more λ.
    assert runs == {"03_train": 2, "04_compare": 2 * 7, "05_ablation": 2 * (5 + 1 + 1), "06_lambda": 2 * 2}
    names = [config.name for configs in found.values() for config, _ in configs]
    assert len(set(names)) == len(names)


def test_a_collapse_grid_adds_one_run_of_each(params):
    without = trainings(params | {"collapse_lams": []}, *made(params))["05_ablation"]
    grid = trainings(params | {"collapse_lams": [0.01, 50.0]}, *made(params))["05_ablation"]
    assert sorted(count for _, count in grid[len(without) :]) == [1] * (len(grid) - len(without)) and len(grid) > 6


@pytest.mark.slow
def test_seconds_are_runs_times_epochs_times_slides_times_the_step(params, monkeypatch):
    monkeypatch.setattr(room, "step_seconds", lambda config, bags, together, device: 0.5)
    works = forecast(params, 20, 32, CLASSES)
    first = next(work for work in works if work.notebook == "03_train")
    assert first.runs == 2 and first.seconds == 2 * 5 * 10 * 0.5  # runs, epochs, half of the slides, a step
    twice = forecast(params | {"seeds": [0, 1]}, 20, 32, CLASSES)
    assert twice[0].seconds == 2 * first.seconds
    repeated = forecast(params | {"repeats": 3}, 20, 32, CLASSES)
    assert repeated[0].runs == 3 * 2 and repeated[0].seconds == 3 * first.seconds
    several = params | {"methods": [{"dmsmil": {"batch_size": 4}}], "variants": ["batch_size_16"]}
    steps = [work.seconds / (0.5 * 5 * work.runs) for work in forecast(several, 20, 32, CLASSES)]
    assert steps[1] == 3, "ten slides in batches of four are three steps"
    assert forecast(params, 20, 32, CLASSES, 7)[0].runs == 7, "a split table has brought seven folds"


def test_a_stack_is_timed_as_a_stack(params, monkeypatch):
    asked = []
    monkeypatch.setattr(
        room, "step_seconds", lambda config, bags, together, device: asked.append((config.method, together)) or 0.1
    )
    forecast(params | {"folds": 4, "seeds": [0, 1, 2], "workers": 2, "methods": ["dmsmil", "clam_sb"]}, 20, 32, CLASSES)
    assert ("dmsmil", 6) in asked and ("clam_sb", 1) in asked and ("clam_sb", 6) not in asked


@pytest.mark.parametrize("method, scale, together", [("dmsmil", 0, 3), ("dmsmil", 0, 1), ("clam_sb", 10, 1)])
def test_a_step_can_be_timed(params, method, scale, together):
    bags, folds = made(params)
    assert 0 < step_seconds(configure(bags, folds, method, scale), bags, together, "cpu") < 60


def test_a_step_of_sixteen_slides_can_be_timed(params):
    bags, folds = made(params)
    assert step_seconds(replace(configure(bags, folds, "dmsmil"), batch_size=16), bags, 1, "cpu") > 0


def test_the_words(params, monkeypatch):
    works = [Work("03_train", {"dmsmil": (5, 12.0)}), Work("04_compare", {"damil": (10, 9.0), "dtfd": (20, 22.5)})]
    said = in_words(works, params | {"workers": 2})
    assert said.startswith("35 trainings, about 5 min on 2 cores if none is done already")
    assert "witness_rates" in in_words(works, params | {"witness_rates": [0.5]})
    assert [minutes(s) for s in (3, 70, 600, 7200, 400_000)] == ["10 s", "70 s", "10 min", "2.0 hours", "5 days"]
    few = step_in_words(params, 32, CLASSES)
    assert few.startswith("a step of dmsmil at K = 12 takes ") and "transport" not in few
    monkeypatch.setattr(room, "MANY", 10)
    assert "the exact transport, which grows as K^2.2" in step_in_words(params, 32, CLASSES)
    blocks = step_in_words(params | {"options": {"ot": "blocks"}}, 32, CLASSES)
    assert "transport" not in blocks
