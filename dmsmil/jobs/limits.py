"""What this process may take of the machine: its cores and its memory, also inside a container or a cluster's job."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")  # of Linux: where a container's or a job's limits stand
OWN = Path("/proc/self/cgroup")  # lines such as 0::/user.slice/job_1: the group of this process


def usable_cores() -> int:
    """The processor cores this process may use, rounded up where it has a share of one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups():
        quota, _, period = _read(group / "cpu.max").partition(" ")  # microseconds of a core in each period, or max
        if quota.isdigit() and period.isdigit():
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(cores, 1)


def free_memory() -> int:
    """Bytes that this process may still take: what is free, and no more than its container or job leaves."""
    free = psutil.virtual_memory().available
    for group in _groups():
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, now = _read(group / limit), _read(group / used)
            if most.isdigit() and now.isdigit():
                free = min(free, int(most) - int(now) + _cached(group, cache))
    return max(free, 0)


def _groups() -> Iterator[Path]:
    """The groups that this process is in, of both versions of control groups, from its own up to the root. Inside a
    container the root is its own."""
    for line in _read(OWN).splitlines():
        _, kinds, name = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        root = GROUPS / kinds
        group = root / name.strip("/")
        yield from (place for place in (group, *group.parents) if place == root or root in place.parents)


def _cached(group: Path, name: str) -> int:
    """Bytes of files that were read and are given back when they are needed."""
    words = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines() if " " in line)
    return int(words.get(name, 0))


def _read(path: Path) -> str:
    """A small file of the system; empty where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
