"""`dmsmil choose`: cohorts of its own, every candidate on each, one table; what is trained is read the next time."""

from types import SimpleNamespace

import pandas as pd
import pytest

from dmsmil.analysis import readings
from dmsmil.features.bags import toy_bags
from dmsmil.study import choice, cli
from dmsmil.study.params import read_params
from dmsmil.study.place import folder_of
from tests.training.test_fit import folds_of


@pytest.fixture
def made(monkeypatch):
    """Studies that are made at once: what was asked of `run`, and toy bags in place of slides."""
    asked, bags = [], toy_bags(slides=12, k=6)
    monkeypatch.setattr(choice, "run", lambda params, only: asked.append((params, only)) or 0)
    monkeypatch.setattr(
        choice,
        "open_study",
        lambda study, outputs, *_: SimpleNamespace(
            home=folder_of(study, outputs), folds=folds_of(bags, 3), bags=lambda k: bags
        ),
    )
    monkeypatch.setattr(readings, "EPOCHS", 1)
    return asked


@pytest.mark.slow
def test_choose(made, tmp_path, capsys):
    command = [
        "choose",
        "params/planted_05.yaml",
        "params/planted.yaml",
        "-p",
        "outputs",
        str(tmp_path),
        "-p",
        "workers",
        "1",
        "-p",
        "positive",
        "b",
    ]
    assert cli.main(command) == 0
    assert [only for _, only in made] == [["00", "01", "02"]] * 2
    usual = read_params("params/planted.yaml")
    for params, _ in made:
        assert params["study"].endswith("_choice") and (params["seed"], params["demo_patients"]) == (1, 120)
        assert params["seed"] != usual["seed"], "patients that no other study uses"
    said = capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "choice/tables/choice_runs.csv")
    assert len(rows) == 2 * (len(readings.CANDIDATES) + 1) and set(rows.runs) == {3}
    table = pd.read_csv(tmp_path / "choice/tables/choice.csv")
    assert f"Chosen: {table['name'][table.chosen].item()}, score" in said and "fold 2" in said
    assert cli.main(command) == 0
    assert "fold 2" not in capsys.readouterr().out, "nothing is trained twice"
    assert pd.read_csv(tmp_path / "choice/tables/choice.csv").equals(table)


def test_a_cohort_that_cannot_be_made_ends_it(made, monkeypatch, tmp_path):
    monkeypatch.setattr(choice, "run", lambda params, only: 2)
    assert cli.main(["choose", "params/planted.yaml", "-p", "outputs", str(tmp_path)]) == 2
    assert not (tmp_path / "choice").exists()
