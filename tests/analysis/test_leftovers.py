"""What other parameters left in a study's folder: it is in no table of the report, and it is said."""

import json

import pandas as pd
import pytest
import yaml

from dmsmil.analysis.claims import claims
from dmsmil.analysis.leftovers import changed, data_of, leftover_sentence, other_tables, records
from dmsmil.analysis.report import run_ledger, saved_meaning, saved_results, saved_tables
from dmsmil.cohorts.folds import make_folds
from dmsmil.cohorts.table import save_cohort
from dmsmil.jobs.files import InputError, write_text
from dmsmil.training.results import save_table
from dmsmil.training.runs import get_runs, run_folder
from tests.analysis.test_report import row
from tests.training.test_baselines import cohort_of
from tests.training.test_fit import folds_of, make_bags, quick

OWN = {
    "03_train": ("method", "scale", "seeds", "positive", "device"),
    "04_compare": ("methods", "seeds", "positive"),
    "06_lambda": ("lams", "seeds", "positive"),
}
PARAMS = dict(
    method="dmsmil",
    scale=0,
    scales=[10, 20],
    seeds=[0],
    positive="b",
    device="auto",
    methods=["dmsmil", "abmil"],
    lams=[0.1, 1.0],
)


def ran(home, notebook, **other):
    """The executed copy of a notebook, as papermill leaves it."""
    values = {key: {**PARAMS, **other}[key] for key in OWN[notebook]}
    write_text(json.dumps({"metadata": {"papermill": {"parameters": values}}}), home / f"notebooks/{notebook}.ipynb")


def results(home, name, *methods):
    save_table(
        pd.DataFrame([row(method, 0.8, 0.8, method=method.lower(), scales="10x+20x") for method in methods]), home, name
    )


@pytest.fixture
def home(tmp_path):
    """A study as its present parameters left it."""
    write_text(yaml.safe_dump(PARAMS), tmp_path / "params.yaml")
    for notebook in OWN:
        ran(tmp_path, notebook)
    results(tmp_path, "03_dmsmil_results", "DMSMIL")
    results(tmp_path, "04_compare", "DMSMIL", "ABMIL 10x")
    results(tmp_path, "06_lambda", "λ = 1")
    return tmp_path


def test_nothing_else_lies_there(home):
    assert other_tables(home) == {} and list(saved_results(home).name) == ["DMSMIL", "ABMIL 10x"]
    assert leftover_sentence(home) == "All that lies in this study's folder was made with its present parameters."


def test_a_method_that_is_no_longer_named_is_not_in_the_report(home):
    """03_train was run for DAMIL at 10x, then for DMSMIL again."""
    results(home, "03_damil_10x_results", "DAMIL 10x")
    results(home, "03_damil_10x_predictions", "x")
    assert list(saved_results(home).name) == ["DMSMIL", "ABMIL 10x"]
    assert leftover_sentence(home) == (
        "Not shown here, for it was made with other parameters: `03_damil_10x_predictions` (method or scale), "
        "`03_damil_10x_results` (method or scale)."
    )


def test_a_method_whose_name_begins_as_that_of_the_study_is_another(home):
    results(home, "03_dmsmil_select_results", "DMSMIL-Select")
    assert other_tables(home) == {"03_dmsmil_select_results": "method or scale"}
    assert list(saved_results(home).name) == ["DMSMIL", "ABMIL 10x"]


@pytest.mark.parametrize("other", [dict(seeds=[0, 1]), dict(positive="a"), dict(seeds=[1], positive="a")])
def test_a_table_of_other_seeds_or_another_positive_class_is_not_mixed_in(home, other):
    ran(home, "04_compare", **other)
    assert changed(home) == {"04_compare": list(other)}
    assert list(saved_results(home).name) == ["DMSMIL"] and "04_compare" not in saved_tables(home)
    assert f"`04_compare` ({', '.join(other)})" in leftover_sentence(home)
    ran(home, "03_train", **other)
    with pytest.raises(InputError, match="of its present parameters"):
        saved_results(home)


def test_what_decides_no_result_is_no_other_parameter(home):
    ran(home, "03_train", device="cuda")
    assert other_tables(home) == {}


def test_a_claim_is_judged_by_present_tables_alone(home):
    table = pd.DataFrame(
        [row(f"λ = {lam:g}", acc, acc) | {"lam": lam, "F1_mean": acc} for lam, acc in ((1, 0.9), (0.1, 0.5))]
    )
    save_table(table, home, "06_lambda")
    assert claims(home).set_index("claim").verdict["λ = 1 is best, in ACC, F1 and AUC"] == "not shown"
    ran(home, "06_lambda", lams=[0.1, 1.0, 10.0])
    assert claims(home).set_index("claim").verdict["λ = 1 is best, in ACC, F1 and AUC"] == "not run"


def test_a_table_of_other_labels_or_features_is_no_present_one(home):
    """`--only 00 01 02 03 04` after an edited label, or a run that stopped in 05."""
    write_text("slide_id,label\na,x\n", home / "folds.csv")
    write_text("features", home / "features/10x/features_net/a.h5")
    write_text(json.dumps({"data": {name: data_of(home) for name in ("00_cohort", *OWN)}}), home / "done.json")
    assert other_tables(home) == {}
    write_text("slide_id,label\na,y\n", home / "folds.csv")
    assert set(other_tables(home).values()) == {"slides, labels or features"} and len(other_tables(home)) == 3
    now = {"data": {"03_train": data_of(home), "04_compare": data_of(home), "06_lambda": "of before"}}
    write_text(json.dumps(now), home / "done.json")
    assert other_tables(home) == {"06_lambda": "slides, labels or features"}
    write_text("others", home / "features/10x/features_net/a.h5")
    assert set(other_tables(home)) == {"03_dmsmil_results", "04_compare", "06_lambda"}
    for damaged in ("[]", "{", "null"):  # says nothing, and ends no report
        write_text(damaged, home / "done.json")
        assert other_tables(home) == {}


@pytest.mark.slow
def test_the_ledger_counts_runs_of_present_folds_and_seeds(tmp_path):
    bags = make_bags()
    folds, cohort = folds_of(bags), cohort_of(bags)
    config = quick(bags, folds, "meanpool", epochs=1)
    get_runs(tmp_path, bags, folds, config, [0, 1], 1, report=lambda line: None)
    other = folds_of(bags, 3)
    get_runs(tmp_path, bags, other, quick(bags, other, "meanpool", epochs=1), [0], 1, report=lambda line: None)
    assert len(records(tmp_path)[0]) == 7, "without a params file nothing is known to be another's"
    save_cohort(tmp_path, cohort, folds, [])
    write_text(yaml.safe_dump({**PARAMS, "method": "meanpool"}), tmp_path / "params.yaml")
    assert run_ledger(tmp_path).runs.tolist() == [2]
    assert leftover_sentence(tmp_path).endswith("5 runs (folds, seeds or code).")
    record = run_folder(tmp_path, config, 0, 0) / "config.json"
    record.write_bytes(record.read_bytes()[:50])
    assert run_ledger(tmp_path).runs.tolist() == [1], "a damaged record is no finished run, and stops no report"


def test_a_study_without_runs_has_an_empty_ledger(tmp_path):
    assert run_ledger(tmp_path).empty


@pytest.mark.parametrize(
    "classes, positive, said",
    [
        (["a", "b"], "", "F1 and AUC are about the class b."),
        (["a", "b"], "a", "F1 and AUC are about the class a."),
        (
            ["a", "b", "c"],
            "b",
            "macro-F1 and one-vs-rest AUC are means over the 3 classes, each against the rest; "
            "DeLong's test and the decision curve set b against the rest.",
        ),
        (
            ["a", "b", "c"],
            "",
            "macro-F1 and one-vs-rest AUC are means over the 3 classes, each against the rest; DeLong's "
            "test and the decision curve need two classes, or one that the key positive sets against the "
            "rest.",
        ),
    ],
)
def test_what_the_numbers_are_about_is_said_for_two_classes_and_for_three(tmp_path, classes, positive, said):
    cohort = cohort_of(make_bags()).assign(label=[classes[i % len(classes)] for i in range(24)])
    save_cohort(tmp_path, cohort, make_folds(cohort, 2), [])
    write_text(yaml.safe_dump({"positive": positive}), tmp_path / "params.yaml")
    assert saved_meaning(tmp_path) == said
