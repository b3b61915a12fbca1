"""Files are whole or absent; failures are rows that go when the cause goes."""

import errno
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest

from dmsmil.jobs.failures import failure_row, read_failures, write_failures
from dmsmil.jobs.files import DiskFull, InputError, atomic, fingerprint, one_line, write_csv, write_json


def test_atomic_keeps_the_old_file_when_writing_fails(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic(target) as temporary:
        temporary.write_text("half of the ne")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_killed_writer_leaves_no_file_of_that_name(tmp_path):
    code = ("import os, signal; from dmsmil.jobs.files import atomic\n"
            f"with atomic({str(tmp_path / 'x.csv')!r}) as t:\n"
            "    t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_is_one_clear_line(tmp_path):
    with pytest.raises(DiskFull, match="no space left.*x.json.*continues"), atomic(tmp_path / "x.json"):
        with open("/dev/full", "w") as full:
            full.write("a" * 100_000)
    with pytest.raises(DiskFull), atomic(tmp_path / "y.h5"):
        raise OSError("Can't write (file write failed: time = x, errno = 28, error message = 'No space left')")
    with pytest.raises(DiskFull), atomic(tmp_path / "m.safetensors"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(OSError) as other, atomic(tmp_path / "z"):
        raise OSError(errno.EACCES, "no")
    assert not isinstance(other.value, DiskFull)
    assert not list(tmp_path.iterdir())


def test_csv_and_json_have_the_same_bytes_twice(tmp_path):
    frame = pd.DataFrame({"a": [1 / 3, 2.0], "b": ["x", "y"]})
    one, two = write_csv(frame, tmp_path / "1.csv", 6), write_csv(frame, tmp_path / "2.csv", 6)
    assert one.read_bytes() == two.read_bytes() == b"a,b\n0.333333,x\n2,y\n"
    one, two = write_json({"b": 1, "a": 2}, tmp_path / "1"), write_json({"a": 2, "b": 1}, tmp_path / "2")
    assert one.read_bytes() == two.read_bytes()


def test_fingerprint_follows_content_not_order():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert len({fingerprint(v) for v in ({"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, [1], "1")}) == 6


def test_failures_of_a_stage_are_replaced_and_the_file_goes_with_the_last(tmp_path):
    try:
        raise InputError("broken\n  slide")
    except InputError as error:
        row = failure_row("s1", "tiles", error)
    assert row["reason"] == "broken slide" and "InputError" in row["traceback"]
    write_failures(tmp_path, "tiles", [row, {**row, "unit": "s2"}])
    write_failures(tmp_path, "train", [{**row, "unit": "r1", "stage": "train"}])
    write_failures(tmp_path, "tiles", [{**row, "unit": "s2"}])
    assert sorted(read_failures(tmp_path).unit) == ["r1", "s2"]
    write_failures(tmp_path, "tiles", [])
    write_failures(tmp_path, "train", [])
    assert not (tmp_path / "failures.csv").exists() and read_failures(tmp_path).empty


def test_foreign_errors_are_named():
    assert one_line(KeyError("x")) == "KeyError: 'x'"
    assert one_line(MemoryError()) == "MemoryError"
