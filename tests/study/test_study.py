"""Parameters: what a params file may say, and what is said back when it is wrong."""

import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml

from dmsmil.book import build as book
from dmsmil.jobs.files import ROOT, InputError, write_text
from dmsmil.study import cli as study
from dmsmil.study.cli import main
from dmsmil.study.params import known_parameters, notebook_parameters, notebooks, read_params
from dmsmil.study.place import study_folder
from dmsmil.study.run import run


@pytest.fixture
def params(tmp_path):
    """Write a params file and read it back through the checks."""
    def reader(text, **overrides):
        (tmp_path / "mine.yaml").write_text(text)
        return read_params(tmp_path / "mine.yaml", overrides)
    return reader


def test_a_key_means_the_same_in_every_notebook():
    seen = {}
    for notebook in notebooks():
        for name, parameter in notebook_parameters(notebook).items():
            assert seen.setdefault(name, parameter) == parameter, (notebook.name, name)
            assert parameter.help, f"{notebook.name}: {name} has no comment"
            assert isinstance(parameter.default, parameter.type), (notebook.name, name)


def test_papermill_sees_the_same_parameters():
    from papermill import inspect_notebook

    for notebook in notebooks():
        mine = notebook_parameters(notebook)
        theirs = inspect_notebook(notebook)
        assert list(mine) == list(theirs)
        assert all(theirs[name]["inferred_type_name"] == p.type.__name__ for name, p in mine.items())


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_params_file_is_read(path):
    values = read_params(path)
    assert path.stem.startswith(values["study"]) and set(values) == set(known_parameters())


def test_defaults_fill_in_and_the_study_is_called_as_its_file(params):
    values = params("k: 7\n")
    assert values["k"] == 7 and values["study"] == "mine" and values["epochs"] == known_parameters()["epochs"].default


def test_overrides_are_read_as_yaml(params):
    values = params("", epochs="3", options="{heads: 2}", lam="0.1", positive="ILC")
    assert values["epochs"] == 3 and values["options"] == {"heads": 2} and values["lam"] == 0.1


@pytest.mark.parametrize("text, message", [
    ("epoch: 5", r"unknown key 'epoch' \(did you mean 'epochs'\?\)"),
    ("lambda: 5\nencodr: x", "unknown key 'lambda'.*; unknown key 'encodr' .did you mean 'encoder'"),
    ("lr: 1e-3", "'lr' must be float, got '1e-3' .YAML reads 1e-3 as text: write 1.0e-3"),
    ("epochs: many", "'epochs' must be int, got 'many'"),
    ("epochs: 5.5", "'epochs' must be int"),
    ("epochs: true", "'epochs' must be int, got True"),
    ("scales: 10", "'scales' must be list"),
    ("k: 5\nk: 6", "'k' is given twice"),
    ("- a\n- b", "must hold one 'key: value' a line"),
    ("a: [1", "is not YAML"),
])
def test_a_wrong_params_file_is_one_clear_line(params, text, message):
    with pytest.raises(InputError, match=message) as error:
        params(text)
    assert "\n" not in str(error.value)


def test_an_integer_serves_as_float(params):
    assert params("lr: 1")["lr"] == 1.0 and isinstance(params("lr: 1")["lr"], float)


def test_a_missing_params_file_names_the_nearest():
    with pytest.raises(InputError, match="demmo.yaml does not exist: did you mean params/demo.yaml"):
        read_params("params/demmo.yaml")


def test_a_study_name_is_no_path(tmp_path):
    with pytest.raises(InputError, match="a name of letters"):
        study_folder("../etc", str(tmp_path))


def test_the_command_says_one_line_and_returns_2(capsys, tmp_path):
    (tmp_path / "x.yaml").write_text("epoch: 5\n")
    assert main(["run", str(tmp_path / "x.yaml")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "did you mean 'epochs'" in said


def test_methods_lists_every_method(capsys):
    from dmsmil.models import METHODS

    assert main(["methods"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[1:]] == list(METHODS)
    assert "636,386" in next(line for line in said if line.startswith("dmsmil"))


def test_check_finds_what_is_wrong_in_seconds(tmp_path, capsys):
    from tests.slides.pyramids import texture, write_pyramid

    write_pyramid(tmp_path / "a.svs", texture(1024, 1024))
    write_pyramid(tmp_path / "b.svs", texture(1024, 1024), objective=None, mpp=None)
    (tmp_path / "c.svs").write_bytes(b"not a slide")
    (tmp_path / "cohort.csv").write_text("slide_id,patient_id,label\na,p1,x\nb,p2,y\nc,p3,y\nd,p4,x\n")
    text = {"study": "mine", "cohort": str(tmp_path / "cohort.csv"), "outputs": str(tmp_path), "folds": 3,
            "encoder_weights": str(tmp_path / "gone.pth"), "method": "dmsmill", "k": 4, "tile_px": 128}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(text))
    assert main(["check", str(tmp_path / "mine.yaml")]) == 1
    said = capsys.readouterr().out
    for expected in ("d: no slide file", "b: ", "c: ", "fewer than folds = 3", "gone.pth", "did you mean 'dmsmil'",
                     "1 of 3 open", "disk", "memory"):
        assert expected in said, expected
    assert not (tmp_path / "mine").exists(), "check writes nothing"


def test_check_of_the_demo_is_clean(capsys):
    assert main(["check", "params/demo.yaml"]) == 0
    assert "PROBLEM" not in capsys.readouterr().out


def test_the_package_runs_as_a_module():
    said = subprocess.run([sys.executable, "-m", "dmsmil.study.cli", "--help"], capture_output=True, text=True)
    assert said.returncode == 0 and "check" in said.stdout


def test_parameters_cells_hold_literals_only():
    for notebook in notebooks():
        cells = json.loads(notebook.read_text())["cells"]
        assert sum("parameters" in c["metadata"].get("tags", []) for c in cells) == 1


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Runs a study whose notebooks are executed in no time: quick(only, failures) -> (status, lines said, home)."""
    def execute(notebook, home, params, say):
        (home / "notebooks").mkdir(exist_ok=True)
        shutil.copy(notebook, home / "notebooks")
        return ""

    def runner(only=None, failures=0):
        home, said = tmp_path / "mine", []
        if failures:
            write_text("unit,stage,reason,traceback\n" + failures * "s1,tiles,broken,t\n", home / "failures.csv")
        params = {name: p.default for name, p in known_parameters().items()} | {"study": "mine",
                                                                                "outputs": str(tmp_path)}
        return run(params, only, said.append), said, home

    monkeypatch.setattr(study, "_execute", execute)
    monkeypatch.setattr(book, "build", lambda home, say: home / "book/index.html")
    return runner


def test_how_long_each_notebook_took_is_kept_and_the_latest_counts(quick):
    _, _, home = quick(["00", "03"])
    table = pd.read_csv(home / "times.csv")
    assert list(table) == ["notebook", "seconds"] and list(table.notebook) == ["00_cohort", "03_train"]
    write_text("notebook,seconds\n00_cohort,77.7\n03_train,99.9\n", home / "times.csv")
    quick(["00", "01"])
    times = dict(pd.read_csv(home / "times.csv").itertuples(index=False))
    assert list(times) == ["00_cohort", "01_tiles", "03_train"]
    assert times["03_train"] == 99.9 and times["00_cohort"] < 77
    assert all(re.fullmatch(r"\w+,\d+\.\d", line) for line in (home / "times.csv").read_text().splitlines()[1:])


def test_the_book_is_built_after_the_report_and_only_then(quick, monkeypatch):
    built = []
    monkeypatch.setattr(book, "build", lambda home, say: built.append(sorted(p.stem for p in home.rglob("*.ipynb"))))
    status, said, _ = quick(["00", "03"])
    assert status == 0 and not built and not any("book/" in line for line in said)
    status, said, _ = quick(["00", "09"])
    assert status == 0 and built == [["00_cohort", "03_train", "09_report"]]
    assert any("mine/book/index.html" in line for line in said)


@pytest.mark.parametrize("error, message", [(InputError("a page would lose a table"), "a page would lose a table"),
                                            (RuntimeError("no\nroom"), "RuntimeError: no room")])
def test_a_book_that_fails_is_said_and_the_results_stay(quick, monkeypatch, error, message):
    def build(home, say):
        raise error

    monkeypatch.setattr(book, "build", build)
    status, said, home = quick(["09"], failures=2)
    assert status == 2 and f"the book could not be built: {message}" in said
    assert any("2 units failed" in line for line in said), "the other news are not lost"
    assert not any("index.html" in line for line in said) and (home / "notebooks/09_report.ipynb").exists()
    monkeypatch.setattr(book, "build", lambda home, say: None)
    assert quick(["09"], failures=2)[0] == 1


def test_a_book_of_nothing_is_one_line_and_makes_no_folder(capsys, tmp_path):
    assert main(["book", "params/demo.yaml", "-p", "outputs", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "study 'demo' has no executed notebooks" in said and not list(tmp_path.iterdir())
    assert main(["book", "params/demo.yaml", "-p", "study", "../etc"]) == 2
    assert "a name of letters" in capsys.readouterr().err


def test_the_book_can_be_built_again_by_itself(quick, capsys, tmp_path):
    quick(["09"])
    assert main(["book", "params/demo.yaml", "-p", "study", "mine", "-p", "outputs", str(tmp_path)]) == 0
    assert "mine/book/index.html" in capsys.readouterr().out
