"""The committed notebooks: what they show is what a fresh run shows, in order, small, without warnings or places."""

import json
import re

import nbformat
import pandas as pd
import pytest

from dmsmil.book.publish import LIMIT, compare, record
from dmsmil.book.readme import RESULTS
from dmsmil.jobs.files import ROOT
from dmsmil.study.params import notebooks
from tests.conftest import dmsmil

ALL = notebooks()
TABLES = ROOT / RESULTS / "demo/tables"


def said(stem):
    return record(ROOT / f"notebooks/{stem}.ipynb")


def under(found, above):
    """The values of a record below a key."""
    return {key.removeprefix(f"{above} · "): value for key, value in found.items() if key.startswith(f"{above} · ")}


@pytest.mark.parametrize("notebook", ALL, ids=lambda path: path.stem)
def test_it_is_executed_in_order_small_and_clean(notebook):
    cells = [cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert notebook.stat().st_size < LIMIT
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert not re.search(r"Warning|/(?:home|root|work|tmp|Users)/", json.dumps(outputs))
    kinds = {kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")}
    assert kinds <= {"image/png"}


@pytest.mark.slow
def test_the_first_records_are_those_of_a_fresh_run(tmp_path):
    """The demo cohort, its tiles and its features made anew; what is trained on them is compared below, in its tables,
    for training takes longer than a test may."""
    done = dmsmil("run", "params/demo.yaml", "-p", "outputs", tmp_path, "--only", "00", "01", "02")
    assert done.returncode == 0, done.stdout + done.stderr
    fresh = tmp_path / "demo/notebooks"
    for path in fresh.glob("*.ipynb"):
        (tmp_path / path.name).write_text((ROOT / "notebooks" / path.name).read_text())
    differences = compare(tmp_path, fresh)
    assert differences.empty, f"\n{differences}\nrenew them: make notebooks"


def test_the_records_of_trained_models_are_those_of_the_studys_tables():
    table = pd.read_csv(TABLES / "04_compare.csv").set_index("name")
    found = said("03_train")
    for metric in ("ACC", "F1", "AUC"):
        assert found[metric] == pytest.approx(round(table.loc["DMSMIL", f"{metric}_mean"], 2))
    for name, auc in under(found, "AUC of cheap rules").items():
        assert auc == pytest.approx(round(table.loc[name, "AUC_mean"], 2))
    found = said("04_compare")
    assert sorted(found["rows"]) == sorted(table.index)
    assert found["best AUC"] == pytest.approx(round(table.AUC_mean.max(), 2))
    for stem, metric in (("05_ablation", "ACC"), ("06_lambda", "AUC")):
        table = pd.read_csv(TABLES / f"{stem}.csv").set_index("name")
        told = under(said(stem), metric)
        assert told and all(
            value == pytest.approx(table.loc[name, f"{metric}_mean"], abs=0.0051) for name, value in told.items()
        )
    cost = pd.read_csv(TABLES / "08_cost.csv").set_index("name").parameters
    assert under(said("08_cost"), "parameters") == cost[list(under(said("08_cost"), "parameters"))].to_dict()


def test_the_record_of_the_claims_is_that_of_their_table():
    claims = pd.read_csv(TABLES / "09_claims.csv")
    untimed = claims[claims["tested in"] != "08_cost"].verdict.value_counts().to_dict()
    assert {word: count for word, count in under(said("09_report"), "claims").items() if count} == untimed
