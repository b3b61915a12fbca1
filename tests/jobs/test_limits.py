"""Cores and memory as a container or a cluster's job leaves them, not as the whole machine has them."""

import psutil
import pytest

from dmsmil.jobs import limits

GIB = 2**30


@pytest.fixture
def group(tmp_path, monkeypatch):
    """The control group of this process: group(name, file=text, ...) writes files of it."""

    def write(line, name, **files):
        (tmp_path / "own").write_text(line + "\n")
        (tmp_path / "groups" / name).mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (tmp_path / "groups" / name / file.replace("__", ".")).write_text(f"{text}\n")

    monkeypatch.setattr(limits, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(limits, "OWN", tmp_path / "own")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 400 * GIB}))
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda pid: range(64), raising=False)
    return write


def test_without_limits_the_machine_counts(group):
    group("0::/user", "user", memory__max="max", memory__current=5, cpu__max="max 100000")
    assert limits.free_memory() == 400 * GIB and limits.usable_cores() == 64


def test_a_job_has_what_its_group_leaves_and_what_was_read_is_given_back(group):
    stat = f"anon 1\ninactive_file {2 * GIB}"
    group("0::/slurm/job_1", "slurm/job_1", memory__max=16 * GIB, memory__current=6 * GIB, memory__stat=stat)
    assert limits.free_memory() == 12 * GIB


def test_the_limit_of_a_group_above_counts_too(group):
    group("0::/slurm/job_1/step", "slurm/job_1", memory__max=8 * GIB, memory__current=9 * GIB, cpu__max="150000 100000")
    assert limits.free_memory() == 0 and limits.usable_cores() == 2, "a core and a half is two processes"


def test_a_container_sees_its_own_limits_at_the_root(group):
    group("0::/", ".", memory__max=4 * GIB, memory__current=GIB, cpu__max="50000 100000")
    assert limits.free_memory() == 3 * GIB and limits.usable_cores() == 1


def test_the_old_version_of_groups_is_read(group):
    line = "5:cpu:/job\n4:memory:/job"
    group(line, "memory/job", memory__limit_in_bytes=2 * GIB, memory__usage_in_bytes=GIB)
    assert limits.free_memory() == GIB


def test_where_there_are_no_groups_nothing_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "OWN", tmp_path / "nothing")
    assert limits.free_memory() > 0 and limits.usable_cores() >= 1
