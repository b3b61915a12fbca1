"""The command: what it loads, what it says to wrong input, its exit statuses, and readers that leave."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from dmsmil import __version__
from dmsmil.jobs.files import ROOT
from dmsmil.study.cli import main

HEAVY = ("numpy", "pandas", "torch", "papermill", "jsonschema", "jupyter_client", "matplotlib", "sklearn", "h5py")


def loaded(*args):
    """(exit status, the modules that a command loads of those that take long)."""
    code = (
        "import json, sys\nfrom dmsmil.study.cli import main\n"
        "try: status = main(json.loads(sys.argv[1]))\n"
        "except SystemExit as told: status = told.code\n"
        f"print('LOADED', status, *[name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([str(arg) for arg in args])], cwd=ROOT, capture_output=True, text=True
    )
    words = done.stdout.splitlines()[-1].split()
    assert words[0] == "LOADED", done.stdout + done.stderr
    return int(words[1]), set(words[2:])


@pytest.mark.slow
@pytest.mark.parametrize(
    "args, status",
    [
        (["--help"], 0),
        (["--version"], 0),
        (["run", "--help"], 0),
        (["rum", "params/smoke.yaml"], 2),
        ([], 2),
        (["run", "params/smoke.yaml", "-p", "epoch", "5"], 2),
        (["apply", "params/smoke.yaml", "/no/slides"], 2),
        (["apply", "notebooks", "/no/slides"], 2),
        (["check", "params/smoke.yaml", "-p", "epochs", "0"], 2),
    ],
)
def test_what_needs_no_work_loads_no_library_and_so_answers_at_once(args, status):
    assert loaded(*args) == (status, set())


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as told:
        main(["--version"])
    assert told.value.code == 0 and capsys.readouterr().out == f"dmsmil {__version__}\n"


@pytest.mark.slow
@pytest.mark.parametrize("args", [["methods"], ["check", "params/smoke.yaml"]])
def test_methods_and_check_load_no_papermill(args):
    status, found = loaded(*args)
    assert status == 0 and not found & {"papermill", "jsonschema", "jupyter_client", "matplotlib"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "args, closed, status",
    [
        ("--help", "stdout", 0),
        ("methods", "stdout", 0),
        ("methods --check meanpool", "stdout", 0),
        ("check params/smoke.yaml -p slide none", "stdout", 1),
        ("run params/smoke.yaml -p k 0", "stderr", 2),
        ("rum", "stderr", 2),
        ("book params/smoke.yaml -p study none", "stderr", 2),
    ],
)
def test_a_reader_who_leaves_is_no_error(args, closed, status):
    """A pipe whose other end is closed before the first word, as by `| head`: status as ever, and no traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {closed: writer}
    done = subprocess.run([sys.executable, "-m", "dmsmil.study.cli", *args.split()], cwd=ROOT, text=True, **streams)
    os.close(writer)
    assert (done.returncode, done.stdout or "", done.stderr or "") == (status, "", "")


@pytest.mark.slow
def test_methods_lists_every_method(capsys):
    from dmsmil.models import METHODS

    assert main(["methods"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[1:]] == list(METHODS)
    assert "636,386" in next(line for line in said if line.startswith("dmsmil"))


# ------------------------------------------------------------------------------------------------ exit statuses


def test_the_exit_statuses_that_the_guide_lists_are_those_of_the_command():
    for name in ("docs/guide.md", "docs/guide.zh-CN.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert re.findall(r"^\| `(\d+)` \|", text, re.M) == ["0", "1", "2", "130"], name


@pytest.mark.slow
@pytest.mark.parametrize(
    "args, status",
    [
        (["methods", "--check", "topk"], 0),
        (["check", "params/smoke.yaml"], 0),
        (["check", "params/smoke.yaml", "-p", "slide", "none"], 1),
        (["check", "params/smoke.yaml", "-p", "k", "0"], 2),
        (["book", "params/smoke.yaml", "-p", "study", "none"], 2),
        (["methods", "--check", "dmsmill"], 2),
        (["bench", "slide"], 2),
    ],
)
def test_exit_status(args, status, capsys):
    assert main(args) == status


def test_ctrl_c_is_130_and_says_that_what_is_done_is_kept(monkeypatch, capsys):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("dmsmil.study.cli.list_methods", stopped)
    assert main(["methods"]) == 130
    assert "start the same command again" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ wrong input


def files(tmp_path):
    """Params files that are wrong each in its way."""
    texts = {
        "latin.yaml": "positive: größer\n".encode("latin-1"),
        "wide.yaml": "k: 4\n".encode("utf-16"),
        "date.yaml": b"study: 2024-13-45\n",
        "binary.yaml": b"\x00\x01\x02",
        "deep.yaml": b"k: " + b"[" * 5000,
        "tab.yaml": b"k:\t4\n\tepochs: 5\n",
        "list.yaml": b"- k\n",
        "word.yaml": b"demo\n",
        "twice.yaml": b"k: 4\nk: 5",
        "python.yaml": b"k: !!python/object/apply:os.system ['true']\n",
        "spaced name.yaml": b"k: 4\n",
        "number.yaml": b"study: 2024\n",
        "odd.yaml": b"[1, 2]: 3\n",
        "none.yaml": b"k:\n",
        "colon.yaml": b"k 4\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    (tmp_path / "folder.yaml").mkdir()
    return [[str(tmp_path / name)] for name in (*texts, "folder.yaml", "x" * 300 + ".yaml")]


PAIRS = [
    ("k", "[1"),
    ("k", ""),
    ("k", "nan"),
    ("k", "[" * 3000),
    ("seed", "-1"),
    ("seeds", "[../x]"),
    ("study", ".."),
    ("study", "../x"),
    ("study", "/x"),
    ("study", "a b"),
    ("study", "x" * 300),
    ("outputs", ""),
    ("lr", "1e-3"),
    ("lr", ".nan"),
    ("options", "[]"),
    ("options", "{1: 2}"),
    ("scales", "10"),
    ("scales", "{}"),
    ("", "3"),
    ("Epochs", "3"),
    ("method", "dmsmill"),
    ("methods", "[7]"),
    ("methods", "[{dmsmil: {headz: 3}}]"),
    ("variants", "[map_tyle]"),
    ("scheduler", "tcp:/x"),
    ("device", "gpu"),
    ("scale", "7"),
    ("options", "{heads: many}"),
    ("outputs", "README.md"),
]


@pytest.mark.slow
def test_a_params_file_that_is_wrong_is_one_line_and_status_2(tmp_path, capsys):
    for args in files(tmp_path):
        assert main(["run", *args, "-p", "outputs", str(tmp_path / "out")]) == 2, args
        said = capsys.readouterr()
        assert said.err.count("\n") == 1 and said.err.startswith("dmsmil: ") and not said.out, said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("key, value", PAIRS, ids=lambda x: x[:20])
def test_a_value_that_is_wrong_is_one_line_and_status_2(tmp_path, capsys, monkeypatch, key, value):
    monkeypatch.setattr("dmsmil.study.run.execute", None)  # nothing is executed
    assert main(["run", "params/smoke.yaml", "-p", "outputs", str(tmp_path / "out"), "-p", key, value]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.err.startswith("dmsmil: ") and not said.out
    assert not list(tmp_path.iterdir()), "nothing is written"


@pytest.mark.parametrize(
    "key, value, read",
    [
        ("positive", "no", "no"),
        ("positive", "2024", "2024"),
        ("slide", "", ""),
        ("slide", "[1", "[1"),
        ("epochs", "7", 7),
        ("seeds", "[1, 2]", [1, 2]),
    ],
)
def test_a_text_may_look_like_anything(key, value, read):
    from dmsmil.study.params import read_params

    assert read_params("params/smoke.yaml", {key: value})[key] == read


def test_a_params_file_is_looked_for_here_and_in_the_project(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["check", "params/smoke.yaml", "-p", "k", "0"]) == 2
    assert "smoke.yaml: 'k' is 0" in capsys.readouterr().err
    assert main(["check", "params/smok.yaml"]) == 2
    said = capsys.readouterr().err
    assert f"no params file params/smok.yaml in {tmp_path} or {ROOT}: did you mean params/smoke.yaml?" in said
    (tmp_path / "params").mkdir()
    (tmp_path / "params/smoke.yaml").write_text("epochs: 0\n")
    assert main(["check", "params/smoke.yaml"]) == 2
    assert "'epochs' is 0" in capsys.readouterr().err, "the nearer one counts"


def test_only_names_notebooks_that_are_there(tmp_path, capsys):
    for only in ("3", "10_x", "", "train"):
        assert main(["run", "params/smoke.yaml", "-p", "outputs", str(tmp_path), "--only", "00", only]) == 2
        assert f"no notebook is called '{only}': there are 00_cohort" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGHUP])
def test_a_shutdown_or_a_closed_terminal_ends_as_ctrl_c_does(monkeypatch, capsys, kind):
    from dmsmil.study import cli

    def told_to_stop(asked):
        os.kill(os.getpid(), kind)
        time.sleep(5)

    monkeypatch.setattr(cli, "_answer", told_to_stop)
    assert cli.main(["methods"]) == 130
    assert "stopped; what is done is kept, start the same command again" in capsys.readouterr().err
    assert signal.getsignal(kind) is signal.SIG_DFL
    signal.signal(kind, signal.SIG_IGN)  # as under nohup
    try:
        monkeypatch.setattr(cli, "_answer", lambda asked: os.kill(os.getpid(), kind) or 0)
        assert cli.main(["methods"]) == 0 and signal.getsignal(kind) is signal.SIG_IGN
    finally:
        signal.signal(kind, signal.SIG_DFL)
