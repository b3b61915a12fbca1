"""Units of work (a slide, a run) over the processes and devices there are; one broken unit never stops the others."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from pathlib import Path

import cv2
import psutil
from tqdm import tqdm

from dmsmil.jobs.files import Halt, InputError
from dmsmil.jobs.limits import usable_cores


def worker_count(workers: int, units: int) -> int:
    """How many processes to use: `workers`, or all usable cores when it is 0; never more than units."""
    return max(1, min(workers or usable_cores(), units))


def is_remote(scheduler: str) -> bool:
    """True for the address of a running Dask cluster; InputError for what is no `scheduler`."""
    if scheduler not in ("", "local") and not re.fullmatch(r"tcp://\S+:\d+", scheduler):
        raise InputError(f"scheduler is '{scheduler}': leave it empty, or use local or tcp://host:port")
    return scheduler.startswith("tcp://")


def check_shared(folder, scheduler: str) -> None:
    """InputError when workers elsewhere would take `folder` for another one."""
    if is_remote(scheduler) and not Path(folder).is_absolute():
        raise InputError(
            f"the folder '{folder}' must be given as an absolute path, on a disk that the workers of {scheduler} share"
        )


def run_units(
    function: Callable,
    units: dict[str, tuple],
    workers: int = 0,
    initializer: Callable | None = None,
    initargs: tuple = (),
    scheduler: str = "",
) -> Iterator[tuple[str, object, BaseException | None]]:
    """Yield (name, result, error) for each unit `function(*units[name])`, in the order they finish.

    `function` must be importable (workers are separate processes); it returns small things: paths, never pixels.
    scheduler: "" = here, "local" = a Dask cluster of this machine's processes, "tcp://host:port" = a running Dask
    cluster, which has the workers it has. Without a scheduler and with one worker everything happens here.
    A worker that is killed (out of memory, a crash in a decoder) costs only its own unit: the others in flight are
    done again. A full disk stops all (DiskFull is raised); any other error is yielded beside the unit's name.
    Raises InputError when the scheduler cannot be used.
    """
    count = worker_count(workers, len(units))
    is_remote(scheduler)
    if not scheduler and count == 1:
        if initializer:
            initializer(*initargs)
        for name, args in units.items():
            yield name, *_attempt(lambda: function(*args))
        return
    if not units:
        return
    with _rounds(scheduler, count, initializer, initargs) as do:
        left = list(units)
        while left:
            suspects, left = yield from do(function, {name: units[name] for name in left})
            for name in suspects:  # a worker died while these were in flight: find out which of them kills it
                if (yield from do(function, {name: units[name]}))[0]:
                    yield (
                        name,
                        None,
                        InputError(
                            "the worker process died (killed by the system, or out of memory): "
                            "try again with workers: 1"
                        ),
                    )


def _rounds(scheduler: str, workers: int, initializer: Callable | None, initargs: tuple):
    """A context with `do(function, units)`, as `run_units`; it returns (left undone by a death, not begun by then)."""
    if scheduler:
        from dmsmil.jobs.cluster import dask_rounds  # it imports Dask, which only those who ask for it need

        return dask_rounds(scheduler, workers, _start, (initializer, initargs))
    return nullcontext(lambda function, units: _pool(function, units, min(workers, len(units)), initializer, initargs))


def _pool(function, units, workers, initializer, initargs) -> Iterator:
    """One process pool over `units`; returns the names in flight when a worker died, and those not begun by then."""
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload([function.__module__])  # imported once, not once a worker
    todo = list(units)
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_here, initargs=(os.getpid(), initializer, initargs)
    ) as pool:
        flying: dict = {}
        try:
            while todo or flying:
                while todo and len(flying) < workers:  # few in flight: a death makes few suspects
                    name = todo[0]
                    flying[pool.submit(function, *units[name])] = name
                    todo.pop(0)
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    name = flying[future]
                    result, error = _attempt(future.result)
                    if isinstance(error, BrokenProcessPool):
                        raise error
                    del flying[future]
                    yield name, result, error
        except BrokenProcessPool:
            return list(flying.values()), todo
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [], []


def _start(initializer: Callable | None, initargs: tuple) -> None:
    """One process a core: OpenCV must not start threads of its own in each."""
    cv2.setNumThreads(1)
    if initializer:
        initializer(*initargs)


def _start_here(owner: int, initializer: Callable | None, initargs: tuple) -> None:
    """`_start`, for a worker of the pool of process `owner` on this machine."""
    threading.Thread(target=_leave_with, args=(psutil.Process(owner),), daemon=True).start()
    _start(initializer, initargs)


def _leave_with(owner: psutil.Process) -> None:
    """End this worker when the process it works for is gone: a study killed hard leaves nobody behind."""
    while owner.is_running():
        time.sleep(1)
    os._exit(1)


def _attempt(call: Callable) -> tuple[object, BaseException | None]:
    try:
        return call(), None
    except Halt:
        raise
    except Exception as error:
        return None, error


def progress(items, total: int, label: str):
    """A progress bar over `items` in a terminal; silent in a notebook, whose stored output has one line a unit."""
    return tqdm(items, total=total, desc=label, unit="", disable=not sys.stderr.isatty(), leave=False)


def pick_device(device: str = "auto"):
    """auto (CUDA when there is one), cpu, cuda or cuda:N -> torch.device; InputError when it is not there. A GPU that
    is named becomes the current one: not every library asks where its tensors lie."""
    import torch  # seconds, which only those who compute need to spend

    try:
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    except RuntimeError:
        place = None
    if place is None or place.type not in ("cpu", "cuda"):
        raise InputError(f"unknown device '{device}': use auto, cpu, cuda or cuda:0")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device '{device}' was asked for, but {torch.cuda.device_count()} CUDA devices are here: use auto or cpu"
        )
    if place.type == "cuda" and place.index is not None:
        torch.cuda.set_device(place)
    return place


@contextmanager
def one_thread() -> Iterator[None]:
    """One CPU thread for PyTorch: a run must not depend on how many share the machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
