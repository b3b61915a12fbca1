"""Files are whole or absent; failures are rows that go when the cause goes."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from dmsmil.jobs.failures import failure_row, read_failures, write_failures
from dmsmil.jobs.files import (
    FORGOTTEN,
    DiskFull,
    InputError,
    atomic,
    content_hash,
    fingerprint,
    one_line,
    sampled_hash,
    sweep,
    temporary_path,
    write_csv,
    write_json,
    write_text,
)


@pytest.mark.skipif(os.name != "posix", reason="no umask here")
@pytest.mark.parametrize("umask, wanted", [(0o022, 0o644), (0o027, 0o640)])
def test_who_may_read_a_file_is_what_the_umask_says(tmp_path, umask, wanted):
    before = os.umask(umask)
    try:
        with atomic(tmp_path / "w.safetensors") as temporary:
            save_file({"w": torch.zeros(2)}, temporary)
        write_text("words", tmp_path / "words.txt")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in sorted(tmp_path.iterdir())] == [wanted, wanted]


def test_atomic_keeps_the_old_file_when_writing_fails(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic(target) as temporary:
        temporary.write_text("half of the ne")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_killed_writer_leaves_no_file_of_that_name(tmp_path):
    code = (
        "import os, signal; from dmsmil.jobs.files import atomic\n"
        f"with atomic({str(tmp_path / 'x.csv')!r}) as t:\n"
        "    t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_numpy_on_a_full_disk_is_the_same_line(tmp_path):
    """numpy says only how much it wrote."""
    with pytest.raises(DiskFull, match="no space left.*x.npy"), atomic(tmp_path / "x.npy") as temporary:
        temporary.unlink()
        temporary.symlink_to("/dev/full")
        with open(temporary, "wb") as file:
            np.save(file, np.zeros(100_000))


WRITER = """
import os, signal, sys
from dmsmil.jobs.files import atomic
with atomic(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_what_a_kill_left_is_swept_and_a_living_writers_file_is_not(tmp_path):
    folder = tmp_path / "features/20x"
    folder.mkdir(parents=True)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder / name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for name in ("dead.h5", "living.h5")
    ]
    assert [writer.stdout.readline() for writer in writers] == [b"writing\n"] * 2
    writers[0].kill()
    writers[0].wait()
    assert len(list(folder.iterdir())) == 2
    gone = sweep(tmp_path)
    assert [path.name.split(".h5")[0] for path in gone] == [".dead"]
    assert [path.name.split(".h5")[0] for path in folder.iterdir()] == [".living"]
    assert writers[1].communicate()[0] == b"" and [path.name for path in folder.iterdir()] == ["living.h5"]
    assert (folder / "living.h5").read_text() == "half" and sweep(tmp_path) == []


def test_what_was_being_written_when_the_power_went_is_swept_at_once(tmp_path):
    whose = temporary_path(tmp_path / "x.npy").name.split(".")[-3]
    earlier = "".join("0" if digit != "0" else "1" for digit in whose[6:9])
    before = tmp_path / f".x.npy.{whose[:6]}{earlier}{whose[9:]}.{os.getpid()}.tmp"
    beside = tmp_path / f".x.npy.{whose[:9]}{earlier}.{os.getpid()}.tmp"  # in another container, which may still run
    for path in (before, beside):
        path.touch()
    assert sweep(tmp_path) == [before] and beside.exists()


def test_a_sampled_hash_sees_what_lies_anywhere_and_no_time(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, 12_000_000, dtype=np.uint8)
    (tmp_path / "a").write_bytes(content.tobytes())
    first = sampled_hash(tmp_path / "a")
    os.utime(tmp_path / "a", (0, 0))
    assert sampled_hash(tmp_path / "a") == first
    for start in (0, 5_000_000, 11_900_000):
        other = content.copy()
        other[start : start + 100_000 + (start == 5_000_000) * 900_000] ^= 1
        (tmp_path / "b").write_bytes(other.tobytes())
        assert sampled_hash(tmp_path / "b") != first, start
    (tmp_path / "c").write_bytes(b"")
    assert sampled_hash(tmp_path / "c") != first


def test_another_machines_temporary_goes_only_when_nobody_wrote_to_it_for_a_week(tmp_path):
    running = temporary_path(tmp_path / "03.ipynb")
    there = [tmp_path / f".x{i}.h5.0123abcd.{2**22 + i}.tmp" for i in range(2)]
    others = [tmp_path / name for name in (".x.h5.tmp", "x.0123abcd.1.tmp", ".a.b.tmp", ".x.0123abcd.1.tmp.part")]
    for path in [running, *there, *others]:
        path.touch()
    for path in [there[0], running, *others]:
        os.utime(path, (time.time() - FORGOTTEN - 60,) * 2)
    assert sweep(tmp_path) == [there[0]]  # not what this process writes, however long, nor what has another name
    assert sorted(tmp_path.iterdir()) == sorted([running, there[1], *others])
    assert sweep(tmp_path / "nowhere") == []


def test_a_content_hash_is_the_published_one_and_sees_type_shape_and_every_bit():
    assert content_hash(b"") == "99aa06d3014798d86001c324468d497f"  # XXH3-128 of nothing, as its authors give it
    values = np.arange(12, dtype=np.float32)
    seen = [content_hash(v) for v in (values, values.reshape(3, 4), values.astype(np.float64), values.view(np.int32))]
    seen.append(content_hash(np.where(values == 5, np.nextafter(values, 9, dtype=np.float32), values)))
    assert len(set(seen)) == 5 and content_hash(values.copy()) == seen[0]
    assert content_hash(b"ab", b"c") == content_hash(b"abc")


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


def test_a_folder_that_may_not_be_written_is_one_line(tmp_path, monkeypatch):
    def refused(self):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", refused)
    with pytest.raises(InputError, match="nothing can be written in the folder .* .Permission denied.: give yourself"):
        write_text("x", tmp_path / "a.csv")


def test_a_study_without_failures_is_not_written_to(tmp_path):
    write_failures(tmp_path, "train", [])
    assert not list(tmp_path.iterdir())
    write_failures(tmp_path, "features", [failure_row("s", "features", InputError("x"))])
    before = (tmp_path / "failures.csv").stat().st_mtime_ns
    assert len(write_failures(tmp_path, "train", [])) == 1
    assert (tmp_path / "failures.csv").stat().st_mtime_ns == before
