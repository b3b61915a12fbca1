"""The meter: turns, the peak of memory against torch's own profiler, FLOPs against a count by hand, measured once."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from dmsmil.cost import meter
from dmsmil.cost.meter import (
    TensorMemory,
    at_least_one,
    count_flops,
    device_name,
    interleave,
    measured_once,
    peak_memory,
    spread,
    turn_seconds,
)
from dmsmil.cost.tables import Trainee, cost_configs, random_bags
from dmsmil.jobs.files import InputError

CPU = torch.device("cpu")


def busy(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_calls_are_interleaved_and_timed_in_cpu_seconds():
    order = []
    calls = [lambda: (order.append("a"), busy(0.02)), lambda: (order.append("b"), time.sleep(0.02))]
    a, b = interleave(calls, 3)
    assert order == ["a", "b"] * 3 and len(a) == len(b) == 3
    assert min(a) >= 0.02 and max(b) < 0.02, "sleep is no work"


@pytest.mark.parametrize("seconds, calls", [(0.03, 1 + 3), (0.2, 1 + 1), (0.0, 1 + meter.TURN_CALLS)])
def test_a_turn_warms_up_and_then_lasts_about_as_long_for_all(seconds, calls, monkeypatch):
    clock, count = [0.0], [0]
    monkeypatch.setattr(meter.time, "process_time", lambda: clock[0])

    def call():
        count[0] += 1
        clock[0] += 10 * seconds if count[0] == 1 and seconds < 0.1 else seconds  # the first is slow: caches

    monkeypatch.setattr(meter, "TURN_SECONDS", 0.9 if seconds == 0.03 else 0.1)
    assert turn_seconds(call, CPU) == pytest.approx(seconds) and count[0] == calls


def test_a_spread_is_named_by_its_unit():
    assert spread([3.0, 1.0, 2.0], "epoch_", "_s") == {"epoch_median_s": 2, "epoch_min_s": 1, "epoch_max_s": 3}


def test_the_processor_is_named_in_one_tidy_line():
    name = device_name(CPU)
    assert name.endswith(", one thread") and "(R)" not in name and "\n" not in name and len(name) > len(", one thread")


def test_memory_follows_tensors_that_come_and_go():
    held = torch.ones(1000)
    with TensorMemory([held, held.view(10, 100)]) as memory:
        assert memory.now == 4000, "a view is the same memory"
        a = torch.ones(500)
        b = a.view(5, 100)
        assert memory.now == 6000
        del a
        assert memory.now == 6000, "the view holds it"
        del b
        assert memory.now == 4000 and memory.peak == 6000
        held.add_(1)
        assert memory.now == 4000, "in place needs nothing"


def test_memory_holds_what_backward_still_needs():
    weight = torch.ones(100, 100, requires_grad=True)
    with TensorMemory([weight]) as memory:
        loss = weight.exp().sin().exp().sum()  # what both exp gave is kept, though no name is
        assert memory.now == 3 * 40_000 + 4
        loss.backward()
        assert memory.now == 2 * 40_000 + 4, "the weight, its gradient and the loss"


def profiled_peak(call):
    """The running sum of torch.profiler's memory events."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dmsmil", "clam_sb", "hifuse"])
def test_memory_agrees_with_the_profiler_and_repeats(method):
    bags, found, other = random_bags(40, 64), [], []
    for _ in range(3):
        trainee = Trainee(cost_configs(bags, [method])[0], bags, CPU)
        if len(found) < 2:
            with TensorMemory(trainee.held()) as memory:
                start = memory.now
                trainee.step(), trainee.step()
            found.append(memory.peak - start)
        else:
            other.append(profiled_peak(lambda: (trainee.step(), trainee.step())))
    assert found[0] == found[1] == pytest.approx(other[0], rel=0.05)


def test_peak_memory_counts_numpy_too():
    memory, arrays = peak_memory(
        lambda: np.ones(1_000_000).sum() + torch.ones(1_000_000).sum(), [torch.ones(250_000)], CPU
    )
    assert arrays == pytest.approx(8, rel=0.02) and memory == pytest.approx(8 + 4 + 1, rel=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_peak_memory_on_cuda_is_of_the_call_alone():
    device = torch.device("cuda")
    others, held = torch.ones(10_000_000, device=device), torch.ones(1_000_000, device=device)
    memory, _ = peak_memory(lambda: held + 1, [held], device)
    assert memory == pytest.approx(8, rel=0.01) and len(others)


def test_flops_are_two_to_a_multiply_add():
    a, b, kernel = torch.ones(3, 4), torch.ones(4, 5), torch.ones(2, 1, 3, 3)
    assert count_flops(lambda: a @ b) == 2 * 3 * 4 * 5
    assert count_flops(lambda: torch.nn.functional.conv2d(torch.ones(1, 1, 6, 6), kernel)) == 2 * 9 * 2 * 16
    assert count_flops(lambda: (a.exp() + 1).softmax(-1)) == 0


def test_sizes_below_one_are_refused():
    with pytest.raises(InputError, match="cost_k is 0: it must be at least 1"):
        at_least_one(cost_dim=1, cost_k=0)


# ------------------------------------------------------------------------------------------------ measured once


@pytest.fixture
def measure():
    """A measurement that never gives the same twice, and counts how often it was made."""

    def made():
        made.count += 1
        return pd.DataFrame({"z": ["a", "b"], "seconds": [made.count + 0.1 / 3, 2.0], "k": [1, 2]})

    made.count = 0
    return made


def test_a_measurement_is_made_once_and_read_again_the_same(tmp_path, measure):
    tables = [measured_once(tmp_path, "x", {"k": (1, 2)}, "cpu", __file__, measure) for _ in range(3)]
    assert measure.count == 1
    for table in tables:
        pd.testing.assert_frame_equal(table, tables[0])
        assert list(table) == ["z", "seconds", "k"] and table.k.dtype.kind == "i"


@pytest.mark.parametrize("change", ["key", "device", "torch", "code"])
def test_whatever_decides_it_makes_it_anew(tmp_path, measure, monkeypatch, change):
    source = tmp_path / "source.py"
    source.write_text("one")
    measured_once(tmp_path, "x", {"k": 1}, "cpu", source, measure)
    if change == "device":
        monkeypatch.setattr(meter, "device_name", lambda device: "another")
    if change == "torch":
        monkeypatch.setattr(torch, "__version__", "0")
    if change == "code":
        source.write_text("two")
    for _ in range(2):
        measured_once(tmp_path, "x", {"k": 2 if change == "key" else 1}, "cpu", source, measure)
    assert measure.count == 2


@pytest.mark.parametrize("text", ["", '{"key": ', '{"key": {"k": 1}, "columns": ["z"], "data": [["a"]]}'])
def test_a_damaged_or_foreign_file_is_no_measurement(tmp_path, measure, text):
    first = measured_once(tmp_path, "x", {"k": 1}, "cpu", __file__, measure)
    (path,) = (tmp_path / "cost").glob("x-*.json")
    path.write_text(text)
    second = measured_once(tmp_path, "x", {"k": 1}, "cpu", __file__, measure)
    assert measure.count == 2 and first.seconds[0] != second.seconds[0] and json.loads(path.read_text())["data"]


@pytest.mark.slow
def test_a_measurement_that_is_killed_leaves_nothing(tmp_path, measure):
    code = (
        "import os, signal, sys; from dmsmil.cost.meter import measured_once; "
        "measured_once(sys.argv[1], 'x', {'k': 1}, 'cpu', sys.argv[2], lambda: os.kill(os.getpid(), 9))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), __file__], env={**os.environ})
    assert done.returncode == -9 and not list(tmp_path.rglob("*.json"))
    measured_once(tmp_path, "x", {"k": 1}, "cpu", __file__, measure)
    assert measure.count == 1
