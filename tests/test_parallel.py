"""Units over processes: same results whatever the workers; one broken unit costs itself."""

import os
import signal
import time

import pytest

from dmsmil.files import DiskFull, InputError
from dmsmil.parallel import run_units, worker_count


def square(x):
    return x * x


def fragile(x):
    if x == 3:
        raise InputError("three is broken")
    return x


def deadly(x):
    if x == 3:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def full(x):
    if x == 1:
        raise DiskFull("no space left")
    return x


_held = None


def hold(value):
    global _held
    _held = value


def held():
    return _held


UNITS = {f"u{i}": (i,) for i in range(7)}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_unit_is_done_once(workers):
    done = list(run_units(square, UNITS, workers))
    assert sorted(name for name, _, _ in done) == sorted(UNITS)
    assert {name: result for name, result, _ in done} == {f"u{i}": i * i for i in range(7)}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_unit_that_raises_costs_only_itself(workers):
    done = {name: (result, error) for name, result, error in run_units(fragile, UNITS, workers)}
    assert str(done["u3"][1]) == "three is broken"
    assert [done[f"u{i}"][0] for i in (0, 1, 2, 4, 5, 6)] == [0, 1, 2, 4, 5, 6]


def test_a_killed_worker_costs_only_its_unit():
    done = {name: (result, error) for name, result, error in run_units(deadly, UNITS, 2)}
    assert "worker process died" in str(done["u3"][1])
    assert [done[f"u{i}"][0] for i in (0, 1, 2, 4, 5, 6)] == [0, 1, 2, 4, 5, 6]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_stops_all(workers):
    with pytest.raises(DiskFull):
        list(run_units(full, UNITS, workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_initializer_reaches_every_worker(workers):
    assert {result for _, result, _ in run_units(held, {"a": (), "b": ()}, workers, hold, ("x",))} == {"x"}


def test_worker_count_is_bounded():
    assert worker_count(5, 3) == 3 and worker_count(0, 100) >= 1 and worker_count(2, 0) == 1
