"""One `dmsmil run` of a study at a time: a second one is told who is at it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import psutil
from filelock import SoftFileLock, Timeout

from dmsmil.jobs.files import InputError

SECONDS = 1.0  # to take over what a process has left that is gone


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Hold the study in `home` while the block runs. Raises InputError when another process holds it.

    The lock is the file `running.lock`, with the process and the machine that made it: it works on every file system,
    also on one that several machines share. Left by a process that is gone (killed, and its number perhaps given to
    another) it is taken over, on the same machine, where the disk can exchange two names (most of the network cannot);
    of another machine nobody here can know.
    """
    lock = SoftFileLock(home / "running.lock", timeout=SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"study '{home.name}' is being run {_holder(Path(lock.lock_file))}") from error
    except OSError as error:
        raise InputError(
            f"the folder of study '{home.name}' cannot be written ({error.strerror}): give yourself the "
            "right and the room to, or name another with the key outputs"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    """Who holds the lock, since when, and what to do."""
    try:
        pid, host = path.read_text().split("\n")[:2]
        since = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    except (OSError, ValueError):
        return f"by a process that left no name: wait for it, or, if nothing runs, delete {path.name} in its folder"
    who = f"by process {pid} on {host} since {since}"
    here = host == socket.gethostname()
    if here and pid.isdigit() and not psutil.pid_exists(int(pid)):  # on a disk where no lock can be taken over
        return f"{who}, says {path.name} in its folder, but that process is gone: delete the file, and start again"
    if here:
        return f"{who}: wait for it, or stop it and start the same command again"
    return f"{who}: wait for it, or, if nothing runs there any more, delete {path.name} in its folder"
