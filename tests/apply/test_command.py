"""`dmsmil apply` and `dmsmil export` as a person would type them; the notebook where there is nothing to predict."""

import json
import re
import shutil

import nbformat
import pandas as pd
import pytest

from dmsmil.jobs.files import ROOT, read_json
from dmsmil.study.cli import main
from dmsmil.study.params import known_parameters
from dmsmil.study.unchanged import Memory
from tests.conftest import dmsmil

pytestmark = pytest.mark.xdist_group("apply to smoke")


@pytest.fixture(scope="module")
def copy(smoke, tmp_path_factory):
    """A copy of the finished smoke study, and three of its slides under a name and a patient that it does not know."""
    place = tmp_path_factory.mktemp("applied")
    shutil.copytree(smoke[0], place / "smoke")
    table = pd.read_csv(place / "smoke/cohort.csv")
    (place / "new").mkdir()
    for number, row in enumerate(table.head(2).itertuples()):
        shutil.copy(row.path, place / f"new/other-{number}.svs")
    return place


@pytest.fixture(scope="module")
def applied(copy):
    """What the command said of the new slides, and its table."""
    before = (copy / "smoke/params.yaml").read_bytes()
    done = dmsmil("apply", "params/smoke.yaml", copy / "new", "-p", "outputs", copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (copy / "smoke/params.yaml").read_bytes() == before
    return done, pd.read_csv(
        copy / "smoke/tables/10_apply.csv", dtype={"known": str, "unlike": str}, keep_default_na=False
    )


@pytest.mark.slow
def test_apply_predicts_and_says_it(copy, applied):
    done, table = applied
    assert list(table.slide_id) == ["other-0", "other-1"] and set(table.known) == {"content"}
    for row in table.itertuples():
        line = rf"^  {row.slide_id}  {row.pred} 0\.\d+, of one model; the study knows it: what its tiles show$"
        assert re.search(line, done.stdout, re.M), done.stdout
        for name in (f"pages/{row.slide_id}.html", f"qupath/{row.slide_id}.geojson", f"qupath/{row.slide_id}.ome.tif"):
            assert (copy / "smoke/apply" / name).is_file()
    assert not (copy / "smoke/apply/failures.csv").exists()
    record = nbformat.read(copy / "smoke/notebooks/10_apply.ipynb", 4).cells[-1]
    assert "'slides': 2, 'known': 2" in " ".join(record.outputs[0]["data"]["text/plain"].split())
    figures = {path.stem for path in (copy / "smoke/figures").glob("10_*.png")}
    assert figures == {"10_slides", "10_likeness"}


@pytest.mark.slow
def test_what_differs_is_one_line_that_names_it(copy):
    for key, value, said in (
        ("k", "13", "k is 13, and the study was made with 12"),
        ("tile_px", "512", "tile_px is 512, and the study was made with 256"),
        ("encoder", "resnet18", "encoder is 'resnet18', and the study was made with"),
    ):
        done = dmsmil("apply", "params/smoke.yaml", copy / "new/other-0.svs", "-p", "outputs", copy, "-p", key, value)
        assert done.returncode == 2 and said in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_an_exported_model_is_asked_without_the_study(copy, applied, capsys):
    args = ["-p", "outputs", str(copy)]
    model = copy / "models/mine"
    assert main(["export", "params/smoke.yaml", str(model), "--method", "dmsmil", *args]) == 0
    before = sorted(model.rglob("*"))
    assert "DMSMIL, 2 models of the study 'smoke'" in capsys.readouterr().out
    (copy / "smoke").rename(copy / "gone")
    try:
        done = dmsmil("apply", model, copy / "new", *args)
    finally:
        (copy / "gone").rename(copy / "smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(copy / "mine/tables/10_apply.csv", dtype={"known": str, "unlike": str}, keep_default_na=False)
    pd.testing.assert_frame_equal(table, applied[1], atol=1e-6, rtol=0)
    assert read_json(model / "model.json")["about"]["study"] == "smoke"
    assert main(["apply", str(model), str(copy / "new"), "-p", "outputs", str(model.parent)]) == 2
    assert "would go into mine, the folder of the model: give them another name" in capsys.readouterr().err
    assert sorted(model.rglob("*")) == before, "a model's folder is left as it was written"


def test_what_a_model_says_itself_cannot_be_set(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    assert main(["apply", str(tmp_path / "model"), str(tmp_path)]) == 2
    assert "model is a folder and no exported model: name a params file" in capsys.readouterr().err
    (tmp_path / "model/model.json").write_text("{}")
    assert main(["apply", str(tmp_path / "model"), str(tmp_path), "-p", "k", "9"]) == 2
    assert "'k' cannot be set, for the model in model says it" in capsys.readouterr().err
    assert main(["apply", str(tmp_path / "model"), str(tmp_path)]) == 2
    assert "model.json in model is not what was written" in capsys.readouterr().err


def test_nothing_there_to_apply_to_stops_before_any_kernel(tmp_path, capsys):
    assert main(["apply", "params/smoke.yaml", str(tmp_path / "none"), "-p", "outputs", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "none to apply to: name a slide" in said and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_study_that_has_not_run_is_one_line(copy, tmp_path):
    done = dmsmil("apply", "params/smoke.yaml", copy / "new", "-p", "outputs", tmp_path)
    assert done.returncode == 2 and "the study has no cohort.csv: run 00_cohort first" in done.stdout


@pytest.mark.slow
def test_with_nothing_to_predict_the_notebook_says_so_and_ends(tmp_path):
    done = dmsmil("run", "params/smoke.yaml", "-p", "outputs", tmp_path, "--only", "10")
    assert done.returncode == 0, done.stdout + done.stderr
    cells = [
        cell for cell in nbformat.read(tmp_path / "smoke/notebooks/10_apply.ipynb", 4).cells if cell.cell_type == "code"
    ]
    shown = [json.dumps(cell.outputs) for cell in cells]
    assert sum("nothing to apply to: dmsmil apply" in text for text in shown) >= 6
    assert "{'slides': 0}" in shown[-1] and not any("error" in text for text in shown)


def test_the_table_that_the_committed_notebook_predicts_is_of_the_demos_painter():
    """params/demo_new.csv: ten patients that the demo has not, and two slides that it has, where `make notebooks` puts
    them."""
    from dmsmil.cohorts.made.demo import plan_cohort

    table = pd.read_csv(ROOT / "params/demo_new.csv").set_index("slide_id")
    painted = plan_cohort(50).set_index("slide_id").loc[table.index]
    assert (table[["patient_id", "label"]] == painted[["patient_id", "label"]]).all().all()
    assert list(table.path) == [f"../outputs/demo_more/cohort/{path}" for path in painted.path]
    known = set(plan_cohort(40).patient_id)
    assert table.patient_id[~table.patient_id.isin(known)].nunique() == 10 and table.patient_id.isin(known).sum() == 2
    made = (ROOT / "Makefile").read_text()
    assert "-p study demo_more -p demo_patients 50 --only 00" in made
    assert "dmsmil apply params/demo.yaml params/demo_new.csv" in made


def test_new_slides_make_the_notebook_run_again(tmp_path):
    """10 reads what `apply_to` and `model` name: a file that changes there is another question."""
    params = {name: p.default for name, p in known_parameters().items()} | {"apply_to": str(tmp_path)}
    (tmp_path / "a.svs").write_text("one")
    notebook = ROOT / "notebooks/10_apply.ipynb"
    before = Memory(tmp_path / "home", params)._reads(notebook)
    (tmp_path / "a.svs").write_text("another")
    assert Memory(tmp_path / "home", params)._reads(notebook) != before
