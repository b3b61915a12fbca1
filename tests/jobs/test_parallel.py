"""Units over processes: same results whatever the workers; one broken unit costs itself."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import psutil
import pytest
import torch

from dmsmil.cohorts.made.demo import make_demo
from dmsmil.jobs.files import DiskFull, InputError
from dmsmil.jobs.parallel import one_thread, run_units, worker_count
from tests.conftest import assert_one_line

pytestmark = pytest.mark.slow

dask = pytest.mark.xdist_group("dask")  # clusters on few cores: one after the other


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


def test_workers_of_a_killed_study_leave_with_it():
    code = (
        "import time\nfrom dmsmil.jobs.parallel import run_units\n"
        "print('go', flush=True)\nlist(run_units(time.sleep, {'a': (60,), 'b': (60,)}, 2))"
    )
    study = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    study.stdout.readline()
    limit = time.monotonic() + 30
    while len(workers := psutil.Process(study.pid).children(recursive=True)) < 4 and time.monotonic() < limit:
        time.sleep(0.2)  # a server, its tracker, two workers
    assert len(workers) == 4
    time.sleep(2)
    study.kill()
    study.wait()
    gone, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def test_worker_count_is_bounded():
    assert worker_count(5, 3) == 3 and worker_count(0, 100) >= 1 and worker_count(2, 0) == 1


# ------------------------------------------------------------------------------------------------ Dask


def held_and_pid(x):
    time.sleep(0.3)
    return held(), os.getpid()


def suicide_once(folder, x):
    """The first of all to come here is killed, whatever it does; then all goes well, in other processes."""
    time.sleep(0.2)
    try:
        (folder / "killed").touch(exist_ok=False)
    except FileExistsError:
        return held(), os.getpid()
    os.kill(os.getpid(), signal.SIGKILL)


def free_port():
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        return line.getsockname()[1]


@pytest.fixture
def dask_cli(tmp_path):
    """start(*words) runs `dask <words>` as a process of its own; all of them are gone in the end."""
    started = []
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}

    def start(*words):
        with open(tmp_path / f"dask-{len(started)}.log", "w") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "dask", *map(str, words)],
                    cwd=tmp_path,
                    env=env,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
        return started[-1]

    yield start
    for process in reversed(started):  # workers first: they say goodbye to their scheduler
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


@pytest.fixture
def scheduler(dask_cli):
    """(address of a running scheduler without workers, its process)"""
    port = free_port()
    process = dask_cli("scheduler", "--host", "127.0.0.1", "--port", port, "--dashboard-address", "127.0.0.1:0")
    for _ in range(300):
        with socket.socket() as line:
            if line.connect_ex(("127.0.0.1", port)) == 0:
                return f"tcp://127.0.0.1:{port}", process
        assert process.poll() is None
        time.sleep(0.1)
    raise AssertionError("no scheduler")


def worker_of(dask_cli, address, *words):
    return dask_cli("worker", address, "--no-dashboard", "--memory-limit", "0", *(words or ("--nthreads", "1")))


@dask
def test_local_cluster_does_all_and_a_broken_unit_costs_itself():
    done = {name: (result, error) for name, result, error in run_units(fragile, UNITS, 2, scheduler="local")}
    assert sorted(done) == sorted(UNITS) and str(done["u3"][1]) == "three is broken"
    assert [done[f"u{i}"] for i in (0, 1, 2, 4, 5, 6)] == [(i, None) for i in (0, 1, 2, 4, 5, 6)]


@dask
def test_local_cluster_a_killed_worker_costs_only_its_unit():
    done = {name: (result, error) for name, result, error in run_units(deadly, UNITS, 2, scheduler="local")}
    assert "worker process died" in str(done["u3"][1])
    assert [done[f"u{i}"] for i in (0, 1, 2, 4, 5, 6)] == [(i, None) for i in (0, 1, 2, 4, 5, 6)]


@dask
def test_local_cluster_initializer_reaches_every_worker_and_those_that_replace_them(tmp_path):
    units = {f"u{i}": (tmp_path, i) for i in range(6)}
    done = list(run_units(suicide_once, units, 2, hold, ("x",), "local"))
    assert (tmp_path / "killed").exists() and len(done) == 6
    assert [error for _, _, error in done] == [None] * 6 and {result[0] for _, result, _ in done} == {"x"}
    assert os.getpid() not in {result[1] for _, result, _ in done}


@dask
def test_local_cluster_a_full_disk_stops_all():
    with pytest.raises(DiskFull):
        list(run_units(full, UNITS, 2, scheduler="local"))


@dask
def test_a_running_cluster_outlives_its_workers(scheduler, dask_cli):
    """One of two workers is killed in the middle: all units done, each with this call's initializer."""
    address, _ = scheduler
    workers = [worker_of(dask_cli, address, "--nthreads", "1", "--no-nanny") for _ in range(2)]
    done = {}
    for name, result, error in run_units(held_and_pid, {f"u{i}": (i,) for i in range(20)}, 0, hold, ("one",), address):
        done[name] = result, error
        pids = {pid for (_, pid), _ in done.values()}
        if workers[0].poll() is None and len(pids) == 2:  # both are at work
            workers[0].kill()
            workers[0].wait(20)
    assert len(done) == 20 and {(result[0], error) for result, error in done.values()} == {("one", None)}
    assert workers[0].poll() is not None and {pid for (_, pid), _ in done.values()} == {w.pid for w in workers}
    # another call on the same workers brings its own initializer; broken units and full disks are as anywhere
    assert {r[0] for _, r, _ in run_units(held_and_pid, {"a": (1,), "b": (2,)}, 0, hold, ("two",), address)} == {"two"}
    assert {str(error) for _, _, error in run_units(fragile, UNITS, scheduler=address)} == {"None", "three is broken"}
    with pytest.raises(DiskFull):
        list(run_units(full, UNITS, scheduler=address))


@dask
def test_units_wait_for_workers_and_a_lost_scheduler_is_said(scheduler, dask_cli, monkeypatch):
    from dmsmil.jobs import cluster

    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 3.0)
    address, process = scheduler
    threading.Timer(1, worker_of, (dask_cli, address, "--nthreads", "1", "--no-nanny")).start()
    with pytest.raises(InputError) as caught:
        for _ in run_units(held_and_pid, {f"u{i}": (i,) for i in range(200)}, 0, hold, ("x",), address):
            process.kill()
    assert_one_line(caught, "connection to the Dask scheduler was lost")


@dask
def test_workers_with_threads_are_refused(scheduler, dask_cli):
    address, _ = scheduler
    worker_of(dask_cli, address, "--nthreads", "2")
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=30)
    with pytest.raises(InputError) as caught:
        list(run_units(square, UNITS, scheduler=address))
    assert_one_line(caught, "--nthreads 1")


@dask
def test_a_cluster_of_another_environment_is_one_line(scheduler, monkeypatch):
    """As of a scheduler that has no dmsmil: what it is asked to run it cannot import."""
    from dmsmil.jobs import cluster

    address, _ = scheduler
    module = types.ModuleType("only_here")
    exec("def _knows_us(): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    monkeypatch.setattr(cluster, "_knows_us", module._knows_us)
    with pytest.raises(InputError) as caught:
        list(run_units(square, UNITS, scheduler=address))
    assert_one_line(caught, "same environment")


@dask
@pytest.mark.parametrize("kind", ["closed", "silent", "another"])
def test_an_address_where_no_scheduler_answers_is_one_line(kind, monkeypatch):
    from dmsmil.jobs import cluster

    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1.0)
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        if kind != "closed":
            line.listen()
        if kind == "another":
            threading.Thread(target=lambda: line.accept()[0].sendall(b"SSH-2.0-some\r\n"), daemon=True).start()
        address = f"tcp://127.0.0.1:{line.getsockname()[1]}"
        with pytest.raises(InputError) as caught:
            list(run_units(square, UNITS, scheduler=address))
    assert_one_line(caught, address)


def test_what_is_no_scheduler_is_one_line(tmp_path):
    for wrong in ("slurm", "tcp://host", "Local"):
        with pytest.raises(InputError) as caught:
            list(run_units(square, UNITS, scheduler=wrong))
        assert_one_line(caught, f"'{wrong}'")
    with pytest.raises(InputError) as caught:  # a relative folder is another one elsewhere
        make_demo("here", patients=4, side=1024, scheduler="tcp://127.0.0.1:8786")
    assert_one_line(caught, "absolute path")


def test_dask_is_imported_only_when_asked_for():
    code = (
        "import sys; import dmsmil.training.fit, dmsmil.features.stages; "
        "from dmsmil.jobs.parallel import run_units; list(run_units(str, {'a': (1,)})); "
        "sys.exit('distributed' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_one_thread_is_given_back():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), one_thread():
        assert torch.get_num_threads() == 1
        1 / 0
    assert torch.get_num_threads() == before
