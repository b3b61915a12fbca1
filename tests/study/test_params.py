"""Parameters: what a params file may say, and what is said back when it is wrong; the rules are in test_rules.py."""

import json

import pytest

from dmsmil.jobs.files import ROOT, InputError
from dmsmil.study.params import known_parameters, notebook_parameters, notebooks, read_params


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
        for name, p in mine.items():
            kind = p.type.__name__ + (f"[{p.values.__name__}]" if p.values else "")
            assert theirs[name]["inferred_type_name"] == kind, name


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


@pytest.mark.parametrize(
    "typed, value",
    [
        ("slides #2/cohort.csv", "slides #2/cohort.csv"),
        ("'slides #2'", "slides #2"),
        ("no", "no"),
        ("2024", "2024"),
        ("it's", "it's"),
        ("a: b", "a: b"),
        (" mine ", "mine"),
    ],
)
def test_a_text_that_is_typed_is_that_text(params, typed, value):
    assert params("", cohort=typed)["cohort"] == value


@pytest.mark.parametrize(
    "text, message",
    [
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
        ("k: 0200", "0200 is another number to YAML: write it without leading zeros"),
        ("seeds: [01, 02, 010]", "01 is another number to YAML"),
        ("epochs: 1:30", "1:30 is another number to YAML"),
        ("lam: 1:30.5", "1:30.5 is another number to YAML"),
        ('slides: "C:\\slides\\a"', "is not YAML.*write Windows paths without quotes"),
        ('slides: "C:\\temp\\new"', "'slides' is .* with a tab or line break .write Windows paths without quotes"),
        ("options: &a {x: *a}", "is not YAML: Circular"),
    ],
)
def test_a_wrong_params_file_is_one_clear_line(params, text, message):
    with pytest.raises(InputError, match=message) as error:
        params(text)
    assert "\n" not in str(error.value)


def test_numbers_that_are_what_they_look_like_are_read(params):
    values = params("k: 20\nseeds: [0, 10]\nlam: 0.5\nlr: 1.0e-3\nwitness_rates: [0.05, 1.0]\nmpp: 0\n", seed="0")
    assert (values["k"], values["seeds"], values["lam"], values["lr"]) == (20, [0, 10], 0.5, 0.001)
    assert values["witness_rates"] == [0.05, 1.0] and values["mpp"] == 0.0 and values["seed"] == 0
    with pytest.raises(InputError, match="010 is another number"):
        params("", k="010")


def test_an_integer_serves_as_float(params):
    assert params("lr: 1")["lr"] == 1.0 and isinstance(params("lr: 1")["lr"], float)


def test_a_missing_params_file_names_the_nearest():
    with pytest.raises(InputError, match="no params file params/demmo.yaml in .*: did you mean params/demo.yaml"):
        read_params("params/demmo.yaml")


def test_a_params_file_of_the_project_is_found_from_any_folder_and_ones_own_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_params("params/smoke.yaml")["study"] == "smoke"
    with pytest.raises(InputError) as caught:
        read_params("smoke.yaml")
    assert str(caught.value) == (
        f"there is no params file smoke.yaml in {tmp_path} or {ROOT}: did you mean params/smoke.yaml?"
    ), "which is found, typed as it stands there"
    (tmp_path / "params").mkdir()
    (tmp_path / "params/smoke.yaml").write_text("k: 7\nstudy: own\n")
    assert read_params("params/smoke.yaml")["study"] == "own"


def test_parameters_cells_hold_literals_only():
    for notebook in notebooks():
        cells = json.loads(notebook.read_text())["cells"]
        assert sum("parameters" in c["metadata"].get("tags", []) for c in cells) == 1
