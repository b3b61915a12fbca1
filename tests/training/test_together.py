"""Runs that train in one pass end as they would alone, whatever their company, and go on after an interruption."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from dmsmil.jobs.failures import read_failures
from dmsmil.jobs.files import read_json
from dmsmil.models import METHODS, Method
from dmsmil.models.dmsmil import DMSMIL
from dmsmil.models.stacked import Stack
from dmsmil.training import fit as fit_room
from dmsmil.training import runs as runs_room
from dmsmil.training import together
from dmsmil.training.config import configure
from dmsmil.training.fit import fit
from dmsmil.training.runs import get_runs, in_units, read_predictions, run_folder
from dmsmil.training.together import fit_together, shape_of, stacks
from tests.training.test_fit import folds_of, make_bags, quick

FILES = ("predictions.csv", "history.csv", "model.safetensors")


@pytest.fixture
def uneven():
    """Bags, and folds whose training parts differ in size: their epochs end at different steps."""
    bags = make_bags(22)
    return bags, folds_of(bags, 4)


def units_of(home, bags, folds, name="dmsmil", lams=(0.1, 1.0), **settings):
    lams = lams if name == "dmsmil" else (1.0,)
    configs = [quick(bags, folds, name, lam=lam, **settings) for lam in lams]
    return [
        (config, fold, seed, run_folder(home, config, fold, seed))
        for config in configs
        for fold in range(3)
        for seed in (0, 1)
    ]


def contents(unit):
    return [(unit[3] / name).read_bytes() for name in FILES]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, settings",
    [
        ("dmsmil", {}),
        ("damil", {"scale": 10}),
        ("meanpool", {}),
        ("maxpool", {}),
        ("topk", {}),
        ("abmil", {"scale": 20}),
        ("dmsmil", {"select": "val_auc"}),
        ("meanpool", {"select": "val_loss"}),
    ],
)
def test_a_run_ends_as_it_would_alone(uneven, tmp_path, name, settings):
    bags, folds = uneven
    units = units_of(tmp_path / "together", bags, folds, name, **settings)
    assert sorted(place for place, error, _ in fit_together(bags, folds, units, "cpu") if error is None) == list(
        range(len(units))
    )
    for config, fold, seed, folder in units:
        alone = fit(bags, folds, config, fold, seed, tmp_path / "alone" / folder.parent.name / folder.name, "cpu")
        ours, theirs = read_predictions(folder), read_predictions(alone)
        numbers = ours.select_dtypes("number")
        np.testing.assert_allclose(numbers, theirs[numbers.columns], rtol=0, atol=1e-5)
        pd.testing.assert_frame_equal(
            pd.read_csv(folder / "history.csv"), pd.read_csv(alone / "history.csv"), rtol=1e-3, atol=1e-5
        )
        ours, theirs = (read_json(where / "config.json") for where in (folder, alone))
        assert {key: ours[key] for key in ("config", "fold", "seed", "slides", "parameters", "epoch_used")} == {
            key: theirs[key] for key in ("config", "fold", "seed", "slides", "parameters", "epoch_used")
        }


@pytest.mark.slow
def test_a_long_tame_training_agrees_to_five_digits(tmp_path):
    """The demo's 120 epochs, without transport and deformable attention: nothing amplifies the order of additions."""
    bags = make_bags(16)
    folds = folds_of(bags)
    config = configure(bags, folds, "dmsmil", 0, {"deformable": False, "ot": "none"}, epochs=120, lr=1e-4)
    units = [(config, fold, 0, run_folder(tmp_path, config, fold, 0)) for fold in (0, 1)]
    assert all(error is None for _, error, _ in fit_together(bags, folds, units, "cpu"))
    for config, fold, seed, folder in units:
        alone = fit(bags, folds, config, fold, seed, tmp_path / f"alone{fold}", "cpu")
        ours, theirs = (read_predictions(where).select_dtypes("number") for where in (folder, alone))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dmsmil", "abmil"])
def test_company_does_not_change_a_byte(uneven, tmp_path, name):
    bags, folds = uneven
    scale = {} if name == "dmsmil" else {"scale": 10}
    whole = units_of(tmp_path / "whole", bags, folds, name, **scale)
    list(fit_together(bags, folds, whole, "cpu"))
    apart = units_of(tmp_path / "apart", bags, folds, name, **scale)
    for part in (apart[:1], apart[1:3], apart[3:]):
        list(fit_together(bags, folds, part, "cpu"))
    for one, other in zip(whole, apart):
        assert contents(one) == contents(other)


@pytest.mark.slow
def test_interrupted_in_an_epoch_they_go_on_in_other_company_to_the_same_bytes(uneven, tmp_path, monkeypatch):
    bags, folds = uneven
    whole = units_of(tmp_path / "whole", bags, folds)
    list(fit_together(bags, folds, whole, "cpu"))
    units, real, steps = units_of(tmp_path / "stopped", bags, folds), Stack.forward, []

    def interrupted(*args):
        steps.append(None)
        if len(steps) == 24:  # in the second epoch, at another place of it for each fold
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(fit_room, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(Stack, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(fit_together(bags, folds, units, "cpu"))
    assert all((folder / "checkpoint.pt").exists() for *_, folder in units)
    monkeypatch.setattr(Stack, "forward", real)
    begun = []
    monkeypatch.setattr(
        together.Member,
        "shuffle",
        lambda member, real=together.Member.shuffle: begun.append(member.steps) or real(member),
    )
    for part in (units[:5], units[5:]):
        assert all(error is None for _, error, _ in fit_together(bags, folds, part, "cpu"))
    assert min(begun) > 20, "they went on, and did not begin anew"
    for one, other in zip(whole, units):
        assert contents(one) == contents(other)
        assert not (other[3] / "checkpoint.pt").exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_dropped_and_its_run_begins_anew(uneven, tmp_path, monkeypatch):
    bags, folds = uneven
    whole = units_of(tmp_path / "whole", bags, folds)[:3]
    list(fit_together(bags, folds, whole, "cpu"))
    units, real = units_of(tmp_path / "stopped", bags, folds)[:3], Stack.forward

    def interrupted(*args):
        if all((folder / "checkpoint.pt").exists() for *_, folder in units):
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(fit_room, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(Stack, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(fit_together(bags, folds, units, "cpu"))
    monkeypatch.setattr(Stack, "forward", real)
    checkpoint = units[1][3] / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    notes = {place: note for place, _, note in fit_together(bags, folds, units, "cpu")}
    assert notes == {0: "", 1: "its checkpoint is of another way of training, or damaged: begun anew", 2: ""}
    for one, other in zip(whole, units):
        assert contents(one) == contents(other)


def test_a_run_that_is_no_longer_finite_fails_alone(uneven, tmp_path):
    bags, folds = uneven
    folds = folds.assign(fold_0=folds.fold_0.where(folds.slide_id != bags.slide_ids[5], ""))  # no part of fold 0
    bags.x[5] = math.inf
    config, lines = quick(bags, folds, "meanpool"), []
    runs = get_runs(tmp_path, bags, folds, config, workers=1, report=lines.append)[0]
    assert set(runs.predictions.fold) == {0} and len(lines) == 4
    failed = read_failures(tmp_path)
    assert len(failed) == 3 and failed.reason.str.contains("finite").all()


@pytest.mark.slow
def test_one_row_of_a_lost_worker_is_tried_alone(uneven, tmp_path, monkeypatch):
    """A worker that dies takes a unit with it: its runs are trained one by one."""
    bags, folds = uneven
    real, tried = runs_room.run_units, []

    def dies(function, units, *rest):
        tried.append([len(runs) for runs, _ in units.values()])
        if len(tried) == 1:
            yield from ((name, None, RuntimeError("the worker process died")) for name in units)
        else:
            yield from real(function, units, *rest)

    monkeypatch.setattr(runs_room, "run_units", dies)
    lines = []
    runs = get_runs(tmp_path, bags, folds, quick(bags, folds), workers=1, report=lines.append)[0]
    assert tried == [[4], [1, 1, 1, 1]] and len(runs.records) == 4 and read_failures(tmp_path).empty
    assert all(
        line.endswith("alone, for it failed with others: RuntimeError: the worker process died") for line in lines
    )


def test_what_may_be_in_one_pass(study):
    bags, folds = study
    usual = quick(bags, folds)
    assert stacks(usual) and shape_of(usual) == shape_of(quick(bags, folds, lam=0.01))
    for other in (
        quick(bags, folds, epochs=4),
        quick(bags, folds, lr=1e-4),
        quick(bags, folds, options={"heads": 2}),
        quick(bags, folds, options={"ot": "none"}),
        quick(bags, folds, select="val_loss"),
    ):
        assert shape_of(usual) != shape_of(other)
    assert not stacks(quick(bags, folds, batch_size=2)) and not stacks(quick(bags, folds, "clam_sb", scale=10))


class OwnForward(DMSMIL):
    """A fusion without weights, where it must not be: in one pass nobody would call it."""

    def forward(self, bags, mask=None, coords=None, geometry=None):
        out = super().forward(bags, mask, coords, geometry)
        return replace(out, logits=out.logits.flip(-1))


class OwnConclusion(DMSMIL):
    """A fusion without weights, where it belongs."""

    def conclude(self, found, mask):
        return self.logits(found["pooled"].amax(1)), {}


@pytest.mark.parametrize("form, together", [(OwnForward, False), (OwnConclusion, True)])
def test_a_method_with_a_forward_of_its_own_trains_as_it_predicts(study, tmp_path, monkeypatch, form, together):
    """Inherited, `stacks` and `forward_stacked` are of another forward."""

    class Own(Method):
        def load(self):
            return form

    monkeypatch.setitem(METHODS, "own", Own("own", "Own", "dmsmil:DMSMIL", "many", "a test"))
    bags, folds = study
    config = quick(bags, folds, "own")
    assert stacks(config) == together and Own("own", "", "dmsmil:DMSMIL", "many", "").stacks() == together
    said = [
        get_runs(tmp_path / name, bags, folds, config, [0], workers=1, report=str, only_folds=only)[0].predictions
        for name, only in (("many", None), ("one", (0,)))
    ]
    alone = fit(bags, folds, config, 0, 0, tmp_path / "alone")
    np.testing.assert_allclose(said[0].query("fold == 0").prob_a, read_predictions(alone).prob_a, atol=1e-4)
    np.testing.assert_allclose(said[1].prob_a, read_predictions(alone).prob_a, atol=1e-4)


@pytest.mark.parametrize(
    "count, workers, limit, sizes",
    [
        (5, 1, 10, [5]),
        (5, 2, 10, [3, 2]),
        (10, 1, 10, [10]),
        (11, 1, 10, [6, 5]),
        (25, 2, 10, [9, 9, 7]),
        (1, 4, 10, [1]),
        (3, 8, 10, [1, 1, 1]),
    ],
)
def test_units_are_full_and_leave_no_worker_idle(study, count, workers, limit, sizes):
    bags, folds = study
    config = quick(bags, folds)
    missing = {f"run{seed}": (config, 0, seed, None, "cpu") for seed in range(count)}
    units = in_units(missing, workers, limit)
    assert sorted(map(len, units), reverse=True) == sizes
    assert sorted(name for names in units for name in names) == sorted(missing)


def test_a_slow_shape_is_shared_among_the_workers(study):
    """Ten runs of each of two shapes: no worker is left with ten slow ones while the other has nothing to do."""
    bags, folds = study
    fast, slow = quick(bags, folds, "meanpool"), quick(bags, folds)
    missing = {
        f"{config.method}{seed}": (config, 0, seed, None, "cpu") for config in (fast, slow) for seed in range(10)
    }
    units = in_units(missing, 2, 10)
    assert sorted((len(names), names[0].rstrip("0123456789")) for names in units) == [
        (5, "dmsmil"),
        (5, "dmsmil"),
        (5, "meanpool"),
        (5, "meanpool"),
    ]


def test_what_cannot_stack_is_a_unit_of_its_own(study):
    bags, folds = study
    alone = quick(bags, folds, "clam_sb", scale=10)
    missing = {f"a{seed}": (alone, 0, seed, None, "cpu") for seed in range(3)}
    missing |= {f"b{seed}": (quick(bags, folds), 0, seed, None, "cpu") for seed in range(3)}
    assert in_units(missing, 1, 10) == [["b0", "b1", "b2"], ["a0"], ["a1"], ["a2"]]


def test_what_gains_nothing_on_a_cpu_is_stacked_on_a_gpu_alone(study):
    bags, folds = study
    abmil = quick(bags, folds, "abmil", scale=10)
    missing = {f"a{seed}": (abmil, 0, seed, None, "cpu") for seed in range(3)}
    assert in_units(missing, 1, runs_room.ON_CPU) == [["a0"], ["a1"], ["a2"]]
    assert in_units(missing, 1, runs_room.ON_GPU) == [["a0", "a1", "a2"]]


@pytest.mark.slow
def test_a_run_that_had_ended_before_its_worker_died_is_not_trained_again(uneven, tmp_path, monkeypatch):
    bags, folds = uneven
    config, real, tried = quick(bags, folds), runs_room.run_units, []

    def dies(function, units, *rest):
        tried.append(sum((list(runs) for runs, _ in units.values()), []))
        if len(tried) == 1:
            fit(bags, folds, config, 0, 0, run_folder(tmp_path, config, 0, 0))
            yield from ((name, None, RuntimeError("the worker process died")) for name in units)
        else:
            yield from real(function, units, *rest)

    monkeypatch.setattr(runs_room, "run_units", dies)
    lines = []
    runs = get_runs(tmp_path, bags, folds, config, workers=1, report=lines.append)[0]
    assert len(tried[0]) == 4 and len(tried[1]) == 3 and not any("fold0-" in name for name in tried[1])
    assert len(runs.records) == len(lines) == 4
