"""One run of a study at a time, and none held up by a process that is gone."""

import os
import socket
import subprocess
import sys

import pytest
from filelock import SoftFileLock

from dmsmil.jobs.files import InputError
from dmsmil.study.cli import main
from dmsmil.study.lock import alone

HOLD = (
    "import sys\nfrom pathlib import Path\nfrom dmsmil.study.lock import alone\n"
    "with alone(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the study in tmp_path/mine, until it is told or killed."""
    home = tmp_path / "mine"
    home.mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield home, process
    process.kill()
    process.wait()


@pytest.mark.slow
def test_a_second_run_is_told_who_is_at_it_since_when(holder, capsys, monkeypatch):
    home, process = holder
    monkeypatch.setattr("dmsmil.study.run.execute", None)  # nothing is executed
    before = sorted(home.iterdir())
    assert main(["run", "params/smoke.yaml", "-p", "outputs", str(home.parent), "-p", "study", "mine"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "study 'mine' is being run by process" in said
    assert f"process {process.pid} on {socket.gethostname()} since 20" in said
    assert sorted(home.iterdir()) == before


def test_when_it_ends_the_next_begins(holder):
    home, process = holder
    process.communicate()
    with alone(home):
        pass
    assert not list(home.iterdir())


def test_a_lock_whose_holder_was_killed_is_taken_over(holder):
    home, process = holder
    process.kill()
    process.wait()
    assert (home / "running.lock").exists()
    with alone(home):
        assert (home / "running.lock").read_text().split()[0] == str(os.getpid())


def test_a_number_that_was_given_to_another_process_is_not_the_holder(tmp_path):
    (tmp_path / "running.lock").write_text(f"{os.getppid()}\n{socket.gethostname()}\n1\n")  # started at another time
    with alone(tmp_path):
        pass


@pytest.mark.slow
def test_a_lock_of_another_machine_is_kept_and_the_way_out_is_said(tmp_path):
    (tmp_path / "running.lock").write_text("1\nelsewhere\n")
    with (
        pytest.raises(
            InputError, match="by process 1 on elsewhere since .* if nothing runs there any more, delete running.lock"
        ),
        alone(tmp_path),
    ):
        pass
    assert (tmp_path / "running.lock").exists()


@pytest.mark.slow
def test_an_empty_lock_is_kept_and_the_way_out_is_said(tmp_path):
    (tmp_path / "running.lock").write_text("")
    with pytest.raises(InputError, match="left no name.* delete running.lock"), alone(tmp_path):
        pass


@pytest.mark.slow
def test_checking_and_the_book_are_free_while_a_study_runs(holder, capsys):
    home, _ = holder
    where = ["params/smoke.yaml", "-p", "outputs", str(home.parent), "-p", "study", "mine"]
    assert main(["check", *where]) == 0
    assert main(["book", *where]) == 2
    assert "has no executed notebooks" in capsys.readouterr().err


def test_where_a_dead_lock_cannot_be_taken_over_it_is_said_that_its_process_is_gone(holder, monkeypatch):
    """As on most disks of the network, which do not exchange two names."""
    home, process = holder
    process.kill()
    process.wait()
    monkeypatch.setattr(SoftFileLock, "_try_break_stale_lock", lambda self: None)
    with (
        pytest.raises(InputError, match=f"process {process.pid} .* that process is gone: delete the file"),
        alone(home),
    ):
        pass
