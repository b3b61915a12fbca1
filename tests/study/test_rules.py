"""Types and rules beside the parameters: the same for every key, whoever runs a notebook."""

import json

import pytest

from dmsmil.jobs.files import ROOT, InputError
from dmsmil.study.params import check_values, known_parameters, notebook_parameters, notebooks, read_params
from dmsmil.study.rules import RULES, Parameter, keeps

KNOWN = known_parameters()
WRONG = [  # key, value, what is said
    ("study", "..", "a name of letters"),
    ("study", "a/b", "a name of letters"),
    ("study", "", "a name of letters"),
    ("outputs", " ", "not empty"),
    ("cohort", "", "not empty"),
    ("seed", -1, "from 0 to"),
    ("seeds", [0, 0], "each once"),
    ("seeds", [], "one or more"),
    ("seeds", [-1], "each at least 0"),
    ("seeds", ["../x"], "must be list of int"),
    ("seeds", [True], "list of int"),
    ("scales", ["10", 20], "must be list of int"),
    ("scales", [20, 10], "ascending"),
    ("scales", [10, 10], "ascending"),
    ("scales", [], "one or more"),
    ("methods", ["abmil", "abmil"], "each once"),
    ("methods", [], "one or more"),
    ("methods", [{"dmsmil": {3: 1}}], "called by its name"),
    ("options", {3: 1}, "called by its name"),
    ("lam", -1.0, "above 0"),
    ("lam", 0.0, "above 0"),
    ("lams", [1.0, 1.0], "each once"),
    ("lams", [0.1, -1], "each above 0"),
    ("lams", ["1e-1"], "write 1.0e-1"),
    ("collapse_lams", [0], "each above 0"),
    ("lr", 0.0, "above 0"),
    ("lr", float("nan"), "must be a number"),
    ("lr", float("inf"), "must be a number"),
    ("lr", "1e-3", "write 1.0e-3"),
    ("weight_decay", -0.1, "at least 0"),
    ("val_share", 2.0, "below 1"),
    ("val_share", 1.0, "below 1"),
    ("k", 0, "from 1 to"),
    ("tile_px", 0, "at least 16"),
    ("epochs", 0, "at least 1"),
    ("epochs", True, "must be int"),
    ("batch_size", 0, "at least 1"),
    ("folds", 1, "at least 2"),
    ("workers", -1, "at least 0"),
    ("min_density", 1.5, "from 0 to 1"),
    ("select", "val_los", "did you mean 'val_loss'"),
    ("paper", "luad", "one of empty, brca, nsclc"),
    ("mpp", -0.5, "from 0"),
    ("cost_tiles", [50], "two or more"),
    ("cost_tiles", [50, 50], "each once"),
    ("positive", 3, "put it in quotes"),
    ("audit_splits", "folder", r"write \[folder\]"),
    ("witness_rates", [2], "each from 0 to 1"),
    ("scales", [10.0, 20.0], r"write whole numbers, such as \[10, 20\]"),
    ("scales", ["10x", "20x"], r"write whole numbers, such as \[10, 20\]"),
    ("seeds", "0-4", r"write a list, such as \[a, b\]"),
    ("variants", None, r"write \[\], or leave the key out"),
    ("slides", None, 'write "", or leave the key out'),
    ("lr", "1.5e4", r"write 1.5e\+4"),
    ("lr", "0,0001", "write 0.0001"),
]


@pytest.mark.parametrize("key, value, message", WRONG, ids=lambda x: str(x)[:20])
def test_a_value_that_cannot_be_is_refused_by_the_command_and_in_the_notebook(tmp_path, key, value, message):
    (tmp_path / "mine.yaml").write_text(json.dumps({key: value}).replace("NaN", ".nan").replace("Infinity", ".inf"))
    if "called by its name" not in message:  # JSON has no keys but text
        with pytest.raises(InputError, match=message) as told:
            read_params(tmp_path / "mine.yaml")
        assert "\n" not in str(told.value) and f"'{key}'" in str(told.value)
    user = next(notebook for notebook in notebooks() if key in notebook_parameters(notebook))
    with pytest.raises(InputError, match=message):
        check_values(user.stem, {name: p.default for name, p in KNOWN.items()} | {key: value})


def test_every_number_and_list_has_a_rule_and_every_default_keeps_its_own():
    for name, parameter in KNOWN.items():
        assert not parameter.problem(parameter.default), name
        assert parameter.rules or parameter.type in (str, bool, dict), name
        if parameter.type is list:
            assert parameter.values or name == "methods", name


def test_a_rule_that_is_none_is_found():
    with pytest.raises(InputError, match="'at most 3' is no rule"):
        Parameter("k", int, 1, "tiles", ("at most 3",)).problem(2)
    assert keeps("each once", [1, 2]) and not keeps("each above 0", [1, 0]) and keeps("one of empty, a", "")
    assert len(RULES) == 11


def test_whole_numbers_become_float_where_float_is_meant(tmp_path):
    (tmp_path / "mine.yaml").write_text("lr: 1\nlams: [1, 10]\n")
    values = read_params(tmp_path / "mine.yaml")
    assert [type(x) for x in [values["lr"], *values["lams"]]] == [float, float, float]


def test_each_notebook_checks_its_values_before_it_works():
    """The first statement after the imports; so `papermill -p epochs 0` is answered as `dmsmil run` is."""
    for notebook in notebooks():
        code = [
            "".join(c["source"])
            for c in json.loads(notebook.read_text())["cells"]
            if c["cell_type"] == "code"
            and not {"parameters", "injected-parameters"} & set(c["metadata"].get("tags", []))
        ]
        imports, work = code[0].splitlines(), code[1].splitlines()
        assert all(line.startswith(("from ", "import ", " ", ")")) or not line for line in imports), notebook.stem
        assert work[0] == f'check_values("{notebook.stem}", globals())', notebook.stem


def test_what_a_notebook_holds_besides_its_parameters_is_its_own_affair():
    values = {name: p.default for name, p in notebook_parameters(ROOT / "notebooks/03_train.ipynb").items()}
    check_values("03_train", values | {"folds": "a table by now", "cohort": 3, "In": []})
    with pytest.raises(InputError, match="'epochs' is 0, and its rule is: at least 1; 'lr' is -1"):
        check_values("03_train", values | {"epochs": 0, "lr": -1})
