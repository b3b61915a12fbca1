"""The notebooks: clean as files, executed through papermill on real pyramids, resumed after a kill to equal tables."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import pandas as pd
import pytest

from dmsmil.jobs.files import ROOT, read_json
from dmsmil.study.params import notebook_parameters, notebooks
from dmsmil.study.run import APPLY
from tests.conftest import dmsmil

ALL = notebooks()


VALUES = {"parameters", "injected-parameters"}  # tags of the cells that hold nothing but values


def code_cells(notebook):
    cells = nbformat.read(notebook, 4).cells
    return [c for c in cells if c.cell_type == "code" and c.source.strip()]


@pytest.mark.parametrize("notebook", ALL, ids=lambda p: p.stem)
def test_a_notebook_is_prose_that_calls_the_package(notebook):
    cells, code = nbformat.read(notebook, 4).cells, code_cells(notebook)
    lines = [
        [line for line in c.source.splitlines() if line.strip()]
        for c in code
        if not VALUES & set(c.metadata.get("tags", []))
    ]
    assert len(cells) <= 30
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith(f"# {notebook.stem[:2]}")
    assert not any(re.match(r"\s*(def|class)\s", line) for cell in lines for line in cell)
    assert sorted(map(len, lines))[len(lines) // 2] <= 5 and max(map(len, lines)) <= 20
    assert sum(c.cell_type == "markdown" for c in cells) >= len(code) / 2
    assert "record" in code[-1].metadata.get("tags", [])


@pytest.mark.parametrize("notebook", ALL, ids=lambda p: p.stem)
def test_a_notebook_names_no_path_and_uses_every_parameter(notebook):
    cells = nbformat.read(notebook, 4).cells
    assert not re.search(r"/(home|root|work|tmp|Users)/", "\n".join(c.source for c in cells))  # outputs: test_published
    body = "\n".join(c.source for c in code_cells(notebook) if not VALUES & set(c.metadata.get("tags", [])))
    unused = [name for name in notebook_parameters(notebook) if not re.search(rf"\b{name}\b", body)]
    assert not unused


def test_the_smoke_study_runs_and_leaves_what_the_design_says(smoke):
    home, said = smoke
    for name in ("cohort.csv", "folds.csv", "params.yaml", "environment.json"):
        assert (home / name).is_file(), name
    assert not (home / "failures.csv").exists()
    assert sorted(p.stem for p in (home / "notebooks").glob("[0-9]*.ipynb")) == [p.stem for p in ALL if p.stem != APPLY]
    figures = {p.stem for p in (home / "figures").glob("*.png")}
    data = {p.stem for p in (home / "figures").glob("*") if p.suffix in (".csv", ".npz")}
    assert figures == data and len(figures) >= 14, "the data behind every figure"
    assert "Where to look" in said and "09_report.ipynb" in said


def test_stored_outputs_are_in_order_and_clean(smoke):
    home, _ = smoke
    for path in (home / "notebooks").glob("[0-9]*.ipynb"):
        code = code_cells(path)
        assert [c.execution_count for c in code] == list(range(1, len(code) + 1)), path.name
        text = json.dumps([c.outputs for c in code])
        assert "Warning" not in text and not any(o.output_type == "error" for c in code for o in c.outputs), path.name
        assert "stderr" not in text, path.name
        assert path.stat().st_size < 1_000_000 * 3, path.name


def test_records_follow_from_the_tables(smoke):
    home, _ = smoke
    cells = code_cells(home / "notebooks" / "03_train.ipynb")
    record = eval(cells[-1].outputs[0]["data"]["text/plain"])  # a dict literal, printed by the notebook
    table = pd.read_csv(home / "tables/03_dmsmil_results.csv")
    assert record["AUC"] == pytest.approx(round(table.AUC_mean[0], 2)) and record["runs"] == 2
    assert list(table.name) == ["DMSMIL", "six colour numbers", "the site alone", "always the majority"]


def results(home):
    """Every file of a study whose bytes must not depend on when or how often it was run."""
    names = [*home.glob("tables/*.csv"), *home.glob("runs/*/*/predictions.csv"), *home.glob("*.csv")]
    return {
        str(p.relative_to(home)): p.read_bytes().replace(str(home).encode(), b"")
        for p in names
        if p.name != "times.csv"
    }


@pytest.fixture
def copy(smoke, tmp_path):
    """A copy of the finished smoke study, to be changed."""
    return shutil.copytree(smoke[0], tmp_path / "smoke")


def killed(outputs, mark, *more):
    """The smoke study into `outputs`, until SIGKILL of its whole process group when a file like `mark` is there."""
    command = [sys.executable, "-m", "dmsmil.study.cli", "run", "params/smoke.yaml", "-p", "outputs", str(outputs)]
    process = subprocess.Popen(
        [*command, *more], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    limit = time.monotonic() + 240
    while not list((outputs / "smoke").glob(mark)) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    assert process.poll() is None, f"the study ended before {mark} was seen"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1.5)  # kernel and workers notice that their parent is gone


@pytest.mark.xdist_group("killed in slides")
def test_killed_while_slides_and_features_are_made_it_continues_to_the_same_bytes(smoke, tmp_path):
    home, again, first = smoke[0], tmp_path / "smoke", ("--only", "00", "01", "02")
    for mark in ("cohort/slides/*.svs", "features/*/patches/*.h5", "features/*/features_*/*.h5"):
        killed(tmp_path, mark, *first)
    done = dmsmil("run", "params/smoke.yaml", "-p", "outputs", tmp_path, *first)
    assert done.returncode == 0, done.stdout + done.stderr
    made = [p.relative_to(home) for name in ("*.svs", "*.h5") for p in home.rglob(name)]
    assert len(made) >= 10 + 4 * 10, "slides, and tiles and features of both scales"
    assert [name for name in made if (again / name).read_bytes() != (home / name).read_bytes()] == []
    assert results(again).items() <= results(home).items()


@pytest.mark.xdist_group("killed in training")
def test_killed_in_training_it_continues_to_the_same_bytes_and_makes_nothing_twice(copy):
    """Two runs are lost, and the study is killed when the first of them is back: a second run of all the rest."""
    home = copy
    first = min(home.glob("runs/*/*/config.json"), key=lambda path: path.stat().st_mtime_ns).parents[1]
    before, lost = results(home), sorted(first.iterdir())
    for folder in lost:
        shutil.rmtree(folder)
    times = {p: p.stat().st_mtime_ns for p in [*home.glob("runs/*/*/*"), *home.rglob("*.h5")]}
    killed(home.parent, f"runs/{first.name}/*/config.json")
    done = dmsmil("run", "params/smoke.yaml", "-p", "outputs", home.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    after = results(home)
    for files in (before, after):
        files.pop("cohort.csv")  # the copy's named the slides of the original until now
    assert after == before
    assert {p: p.stat().st_mtime_ns for p in times} == times, "nothing was made again"


def test_plain_papermill_works_with_a_params_file(copy, tmp_path):
    """As anyone would type it: another number of epochs, another method at one scale."""
    home = copy
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            "notebooks/03_train.ipynb",
            str(tmp_path / "out.ipynb"),
            "-f",
            "params/smoke.yaml",
            "-p",
            "outputs",
            str(home.parent),
            "-p",
            "epochs",
            "2",
            "-p",
            "method",
            "abmil",
            "-p",
            "scale",
            "10",
            "-k",
            "python3",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(home / "tables/03_abmil_10x_results.csv")
    assert table.name[0] == "ABMIL 10x"
    records = [read_json(p)["config"] for p in home.glob("runs/abmil-*/*/config.json")]
    assert sum(r["epochs"] == 2 and r["scales"] == [10] for r in records) == 2  # two folds


def test_a_mistyped_key_stops_before_any_kernel(tmp_path):
    started = time.monotonic()
    done = dmsmil("run", "params/smoke.yaml", "-p", "epoch", "5", "-p", "outputs", tmp_path)
    assert done.returncode == 2 and "did you mean 'epochs'" in done.stderr and not list(tmp_path.iterdir())
    assert time.monotonic() - started < 60
