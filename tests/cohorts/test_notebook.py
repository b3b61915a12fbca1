"""00_cohort with a person's own slides: a table as a spreadsheet saved it, and slides that do not say their size."""

import ast
import json

import matplotlib
import pandas as pd
import pytest

from dmsmil.cohorts.table import read_cohort
from dmsmil.jobs.failures import read_failures
from tests.conftest import ROOT
from tests.slides.pyramids import make_slide


def execute(**parameters):
    """Run the code cells of 00_cohort with these parameters; the value that each cell shows."""
    matplotlib.use("Agg")
    cells = json.loads((ROOT / "notebooks/00_cohort.ipynb").read_text(encoding="utf-8"))["cells"]
    names, shown = {}, []
    for cell in cells:
        if cell["cell_type"] != "code" or "injected-parameters" in cell["metadata"].get("tags", []):
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "00_cohort", "exec"), names)
        shown.append(eval(compile(ast.Expression(last.value), "00_cohort", "eval"), names) if last else None)
        if "parameters" in cell["metadata"].get("tags", []):
            names.update(parameters)
    return shown


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Four patients whose slides do not say their micrometres a pixel, in a table with semicolons and one bad id."""
    home = tmp_path_factory.mktemp("own")
    (home / "slides").mkdir()
    for number in range(4):
        make_slide(home / f"slides/S{number}.tif", 512, 512, seed=number, objective=None, mpp=None)
    rows = [f"S{number};P{number};{'ab'[number % 2]};" for number in range(4)] + ["../../x;P9;a;"]
    (home / "own.csv").write_text("Slide ID;Case ID;Label;\n" + "\n".join(rows), encoding="utf-8-sig")
    return {"study": "own", "outputs": str(home / "outputs"), "cohort": str(home / "own.csv"),
            "slides": str(home / "slides"), "workers": 1}, home


def test_slides_that_do_not_say_their_size_are_drawn_with_the_key_and_counted_without(own):
    parameters, home = own
    assert execute(**parameters)[-2] == "4 slide files here, and none that opens: dmsmil check says why not"
    shown = execute(**parameters, mpp=0.5)
    assert len(pd.read_csv(home / "outputs/own/figures/00_slides.csv")) == 4
    assert shown[-1] == {"slides": 4, "patients": 4, "left out": 1, "classes": ["a", "b"],
                         "patients shared with test": 0}


def test_what_was_found_is_told_with_its_file_and_a_bad_id_is_a_row(own):
    parameters, home = own
    execute(**parameters, mpp=0.5)
    cohort, _ = read_cohort(home / "outputs/own")
    assert cohort.path.to_list() == [str(home / f"slides/S{number}.tif") for number in range(4)]
    failures = read_failures(home / "outputs/own")
    assert failures.unit.to_list() == ["../../x"] and failures.reason.str.contains("a slide_id names files").all()
    assert sorted(path.name for path in home.iterdir()) == ["outputs", "own.csv", "slides"]
