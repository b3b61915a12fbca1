"""Units of work over Dask: a cluster of this machine's processes, or one that runs already (SLURM, Kubernetes, ...)."""

from __future__ import annotations

import logging
import pickle
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from urllib.parse import urlsplit
from uuid import uuid4

import dask
from distributed import Client, KilledWorker, LocalCluster, WorkerPlugin, as_completed, get_worker

from dmsmil.jobs.files import Halt, InputError, one_line

CONNECT_SECONDS = 10.0


@contextmanager
def dask_rounds(scheduler: str, workers: int, initializer: Callable, initargs: tuple) -> Iterator[Callable]:
    """Yield `do(function, units)`, a generator of (name, result, error) as units end; it returns the names of the units
    whose workers died (more often than the scheduler's `allowed-failures`), and of those not begun: none. It raises
    DiskFull when a unit does.

    scheduler: "local" (with `workers` processes of one thread, closed at the end) or the address of a running cluster.
    `initializer(*initargs)` runs in every worker before its first unit, also in one that joins later; initargs travel
    once a worker. Raises InputError when the scheduler cannot be reached or its workers cannot be used.
    """
    with _client(scheduler, workers) as client:
        kit = _Kit(uuid4().hex, pickle.dumps((initializer, initargs)))
        try:
            client.run_on_scheduler(_knows_us)  # it unpacks the units that it hands on
            client.register_plugin(kit, name=kit.token)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"the Dask cluster at {scheduler} cannot be used ({one_line(error)}): its scheduler and "
                "its workers need the same environment as this process"
            ) from error
        try:
            yield partial(_round, client, kit.token)
        finally:
            with suppress(Exception):  # gone with its cluster, which has been said
                client.unregister_worker_plugin(kit.token)


@contextmanager
def _client(scheduler: str, workers: int) -> Iterator[Client]:
    if scheduler == "local":
        # one task a worker at a time and no second try by Dask: who dies is then known; the caller tries once more.
        # No memory limit: memory-mapped features count as memory there, and a worker would be stopped for them.
        with dask.config.set(
            {"distributed.scheduler.allowed-failures": 0, "distributed.scheduler.worker-saturation": 1.0}
        ):
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=0,
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            )
        with cluster, Client(cluster, set_as_default=False) as client:
            yield client
        return
    try:
        where = urlsplit(scheduler)
        # Dask tries a closed port until its time is up, and waits for ever for a service that is not Dask's
        with socket.create_connection((where.hostname, where.port), CONNECT_SECONDS) as line:
            if not 0 < int.from_bytes(line.recv(8), "little") < 2**20:  # it speaks first: the length of its greeting
                raise ConnectionError("not Dask")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # versions that differ: told by the error, if there is one
            client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except Exception as error:
        raise InputError(
            f"no Dask scheduler answers at {scheduler}: is it running, and is the port open from here? "
            f"({type(error).__name__})"
        ) from error
    with client:
        yield client


def _round(client: Client, token: str, function: Callable, units: dict[str, tuple]) -> Iterator:
    """All units once; returns (what a worker's death left undone, nothing: Dask begins them all)."""
    # pickled here: Dask would look for its own keys inside the arguments
    futures = client.map(
        _run,
        [pickle.dumps((token, function, args)) for args in units.values()],
        key=function.__name__.strip("_"),
        pure=False,
    )
    names, killed = dict(zip([future.key for future in futures], units)), []
    try:
        for future in as_completed(futures, loop=client.loop):
            if future.cancelled():
                raise InputError(
                    "the connection to the Dask scheduler was lost: start the same command again, it continues"
                )
            error = future.exception()
            if isinstance(error, KilledWorker):
                killed.append(names[future.key])
            elif isinstance(error, Halt):
                raise error
            elif error is not None:
                yield names[future.key], None, error.with_traceback(future.traceback())
            else:
                yield names[future.key], future.result(), None
    finally:
        with suppress(Exception):
            client.cancel(futures, force=True)  # nothing to cancel when all are done
    return killed, []


def _knows_us() -> None:
    """Fails where dmsmil is not installed."""


class _Kit(WorkerPlugin):
    """What each worker holds while units run: the initializer and its arguments, unpacked by the first unit."""

    def __init__(self, token: str, payload: bytes):
        self.token, self.payload = token, payload

    def setup(self, worker):
        if worker.state.nthreads != 1:
            raise InputError(
                f"the Dask workers have {worker.state.nthreads} threads each, and a unit needs a process "
                "for itself: start them with --nthreads 1 (and --nworkers N)"
            )


_ready = ""
_alone = threading.Lock()  # a worker that joins later with several threads is slow, never wrong


def _run(payload: bytes):
    """One unit (in a worker)."""
    global _ready
    with _alone:
        token, function, args = pickle.loads(payload)
        if _ready != token:
            initializer, initargs = pickle.loads(get_worker().plugins[token].payload)
            initializer(*initargs)
            _ready = token
        return function(*args)
