"""00_cohort with a person's own slides: a table as a spreadsheet saved it, and slides that do not say their size."""

import ast
import json

import matplotlib
import pandas as pd
import pytest

from dmsmil.cohorts.table import read_cohort
from dmsmil.jobs.failures import read_failures
from tests.cohorts.gdc_server import GdcServer
from tests.conftest import ROOT
from tests.slides.pyramids import make_slide

pytestmark = pytest.mark.slow


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
    return {
        "study": "own",
        "outputs": str(home / "outputs"),
        "cohort": str(home / "own.csv"),
        "slides": str(home / "slides"),
        "workers": 1,
    }, home


def test_slides_that_do_not_say_their_size_are_drawn_with_the_key_and_counted_without(own):
    parameters, home = own
    assert execute(**parameters)[-2] == "4 slide files here, and none that opens: dmsmil check says why not"
    shown = execute(**parameters, mpp=0.5)
    assert len(pd.read_csv(home / "outputs/own/figures/00_slides.csv")) == 4
    assert shown[-1] == {
        "slides": 4,
        "patients": 4,
        "left out": 1,
        "classes": ["a", "b"],
        "patients shared with test": 0,
    }


def test_what_was_found_is_told_with_its_file_and_a_bad_id_is_a_row(own):
    parameters, home = own
    execute(**parameters, mpp=0.5)
    cohort, _ = read_cohort(home / "outputs/own")
    assert cohort.path.to_list() == [str(home / f"slides/S{number}.tif") for number in range(4)]
    failures = read_failures(home / "outputs/own")
    assert failures.unit.to_list() == ["../../x"] and failures.reason.str.contains("a slide_id names files").all()
    assert sorted(path.name for path in home.iterdir()) == ["outputs", "own.csv", "slides"]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A GDC with four small slides of four patients, IDC and ILC."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    with GdcServer() as gdc:
        for number in range(4):
            path = make_slide(tmp_path / f"{number}.svs", 512, 512, seed=number)
            gdc.add(
                f"TCGA-A2-{number:04d}-01Z-00-DX1.F{number}.svs",
                path.read_bytes(),
                site="Here",
                diagnoses=[["8500/3", "8520/3"][number % 2]],
            )
        yield gdc


def test_slides_that_a_server_has_are_fetched_into_their_folder_and_nowhere_else(server, tmp_path):
    """The table has semicolons and a file's name that leads elsewhere; its slides folder is not there yet."""
    rows = [
        f"S{i};P{i};{'ab'[i % 2]};{r['file_id']};{r['file_name']};{r['md5sum']};{r['file_size']}"
        for i, r in enumerate(server.records)
    ]
    rows += [rows[0].replace("S0;P0", "S9;P9").replace("TCGA", "../../TCGA")]
    (tmp_path / "own.csv").write_text("slide_id;patient_id;label;file_id;file_name;md5;size\n" + "\n".join(rows))
    shown = execute(
        study="own",
        outputs=str(tmp_path / "outputs"),
        cohort=str(tmp_path / "own.csv"),
        workers=1,
        slides=str(tmp_path / "new/slides"),
        gdc_server=server.url,
    )
    assert shown[-1]["slides"] == 4 and shown[-1]["left out"] == 1
    assert sorted(path.name for path in (tmp_path / "new/slides").iterdir()) == sorted(
        record["file_name"] for record in server.records
    )
    failures = read_failures(tmp_path / "outputs/own")
    assert failures.unit.to_list() == ["S9"] and failures.reason.str.contains("is not a plain file name").all()


def test_a_cohort_by_its_name_is_counted_fetched_and_drawn(server, tmp_path):
    shown = execute(study="brca", outputs=str(tmp_path), cohort="tcga-brca", gdc_server=server.url, workers=1)
    counts = next(value for value in shown if isinstance(value, pd.DataFrame))
    assert counts.slides.to_dict() == {"IDC": 2, "ILC": 2, "all": 4} and shown[-1]["slides"] == 4
    assert len(list((tmp_path / "brca/slides").glob("*.svs"))) == 4
    assert len(pd.read_csv(tmp_path / "brca/figures/00_slides.csv")) == 4
