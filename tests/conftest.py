"""Shared fixtures: one smoke study, run as a newcomer would run it, for all tests that look at its results."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # test processes share two cores

ROOT = Path(__file__).resolve().parents[1]


def dmsmil(*args, **kwargs):
    """The `dmsmil` command, typed from the project's folder."""
    return subprocess.run(
        [sys.executable, "-m", "dmsmil.study.cli", *map(str, args)], cwd=ROOT, text=True, capture_output=True, **kwargs
    )


def once(name, make, tmp_path_factory, request):
    """(folder of the finished study `name`, what was said): made by make(its outputs), once for all workers."""
    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if hasattr(request.config, "workerinput") else shared) / f"{name}-study"
    from filelock import FileLock

    with FileLock(f"{shared}.lock"):
        said = shared / "said.txt"
        if not said.exists():
            shutil.rmtree(shared, ignore_errors=True)
            text = make(shared)
            said.write_text(text)
    return shared / name, said.read_text()


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """What looks at one study is slow, and goes to one worker: the others do not wait for it to be made. Tests that
    take minutes with it are small groups of their own, which come later, when it is there."""
    for item in items:
        for name in {"smoke", "three"} & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)
            if item.get_closest_marker("xdist_group") is None:
                item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture(scope="session")
def smoke(tmp_path_factory, request):
    """The smoke study, as typed."""

    def make(outputs):
        done = dmsmil("run", "params/smoke.yaml", "-p", "outputs", outputs)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return once("smoke", make, tmp_path_factory, request)


@pytest.fixture(scope="session")
def three(tmp_path_factory, request):
    """The study of three classes and scales with three slides that it has not seen: all notebooks, but no book, which
    costs as much as they do and is that of any study."""

    def make(outputs):
        from dmsmil.cohorts.made import three as cohort
        from dmsmil.cohorts.made.painted import make_slides
        from dmsmil.study.params import read_params
        from dmsmil.study.run import run

        new = outputs / "new"
        make_slides(new, cohort.plan_three(12).iloc[9:], 0, 2048, cohort.RECIPE, workers=1)
        params = read_params(
            "params/three.yaml", {"outputs": str(outputs), "apply_to": str(new / "cohort.csv"), "workers": "1"}
        )  # a process more would import all of it again
        lines = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("dmsmil.study.run._build_book", lambda home, say: "")
            assert run(params, say=lines.append) == 0, lines
        return "\n".join(lines)

    return once("three", make, tmp_path_factory, request)


@pytest.fixture
def study():
    """(bags, folds) of a toy cohort that a few epochs can learn."""
    from tests.training.test_fit import folds_of, make_bags

    bags = make_bags()
    return bags, folds_of(bags)


@pytest.fixture
def slide():
    """A slide to draw, as `features.slide_views` gives it: six tiles in two rows."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(3), np.arange(2)), -1).reshape(-1, 2) * 512
    return {
        "slide_id": "s",
        "label": "a",
        "thumbnail": rng.integers(0, 255, (40, 60, 3), dtype=np.uint8),
        "dimensions": (1536, 1024),
        "coords": {10: grid, 20: grid + 100},
        "places": {10: np.arange(6), 20: np.arange(6)},
        "side": {10: 512, 20: 256},
        "density": np.linspace(0.1, 1, 6),
    }


def assert_one_line(caught, name):
    """An InputError as promised: one line that names the thing and no place on this machine."""
    text = str(caught.value)
    assert "\n" not in text and name in text and len(text) < 300
    assert str(Path(__file__).parent) not in text and "/tmp" not in text
