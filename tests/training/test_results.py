"""What is said of how runs went follows from their records and histories."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from dmsmil.training.config import RunConfig
from dmsmil.training.results import health_sentences, pretty, run_names, unlearned, verdict, whole_history
from dmsmil.training.runs import Runs
from tests.analysis.test_report import table


def runs_of(lam=1.0, **marked):
    """Two runs of two epochs at 10x and 20x whose numbers are easily divided; marked: of the records, by name."""
    terms = {"L_ot": [3.0, 1.0], "L_ce": [0.5, 0.25], "gradient_ot": [math.nan, 0.3], "gradient_ce": [math.nan, 0.6]}
    history = pd.concat(
        [pd.DataFrame({"epoch": [1, 2], **terms, "val_auc": 0.5, "fold": fold, "seed": 0}) for fold in (0, 1)],
        ignore_index=True,
    )
    start = {"loss": 8.7, "L_ot": 8.0, "L_ce": 0.5, "gradient_ot": 4.0, "gradient_ce": 0.1}
    records = pd.DataFrame(
        {
            "fold": [0, 1],
            "seed": 0,
            "start": [start, start | {"L_ot": 4.0, "gradient_ot": 2.0}],
            "attention": [
                {"effective_10x": 0.75, "effective_20x": 0.25},
                {"effective_10x": 0.25, "effective_20x": 0.05},
            ],
            "collapsed": False,
            "learned_nothing": False,
            "gathered": False,
            **marked,
        }
    )
    config = SimpleNamespace(method="dmsmil", scales=(10, 20), options={"lam": lam})
    return Runs(config, pd.DataFrame(), history, records, {})


def bags_of(*tiles):
    """Bags of two slides with so many tiles at every scale."""
    mask = torch.arange(max(tiles))[None, None] < torch.tensor(tiles)[:, None, None]
    bags = SimpleNamespace(mask=mask.expand(-1, 2, -1))
    bags.view = lambda scales: bags
    return bags


def test_the_whole_history_begins_before_the_first_step():
    whole = whole_history(runs_of())
    assert whole.epoch.tolist() == [0, 0, 1, 2, 1, 2] and whole.fold.tolist() == [0, 1, 0, 0, 1, 1]
    assert whole.gradient_ot.tolist()[:2] == [4.0, 2.0] and whole.L_ot.tolist() == [8.0, 4.0, 3.0, 1.0, 3.0, 1.0]
    assert whole.val_auc.isna().tolist() == [True] * 2 + [False] * 4
    assert "loss" not in whole, "nothing that history.csv does not have"


def test_the_sentence_on_health_divides_means_over_runs():
    said = health_sentences(runs_of(), bags_of(32, 16))
    assert said == (
        "Before the first step L_ot is 12 times λ L_ce and pulls 30 times as hard at the projection; at the end it is "
        "4 times λ L_ce and pulls 0.5 times as hard. On the tested slides the scores are spread over so many of the "
        "tiles: 50% at 10x (about 12 of 24), 15% at 20x (about 4 of 24). No run is marked: none collapsed, learned "
        "nothing, or gathered its attention on few tiles."
    )
    runs = runs_of()
    watched = runs.history.assign(gradient_ot=runs.history.gradient_ot.fillna(0.8)).fillna({"gradient_ce": 0.4})
    said = health_sentences(Runs(runs.config, runs.predictions, watched, runs.records, {}), bags_of(32, 16))
    assert "pulls 0.5 times as hard. In between, by epoch: 1: 6 times and 2 times. On the tested" in said
    heavy = health_sentences(runs_of(lam=0.1), bags_of(32, 16))
    assert "L_ot is 120 times λ L_ce and pulls 30 times" in heavy, "λ is in the gradient of the second term already"


def test_marks_are_named_and_a_method_without_the_terms_has_none():
    said = health_sentences(runs_of(learned_nothing=[True, False], gathered=[False, True]), bags_of(8, 8))
    assert said.endswith("attention gathered in 1 of 2 runs (all runs: on 15% of the tiles).")
    runs = runs_of()
    no_gradient = [one | {"gradient_ot": 0.0} for one in runs.records.start]
    for history, start in (
        (runs.history.drop(columns=["gradient_ot", "gradient_ce"]), runs.records.start),
        (runs.history.assign(gradient_ot=0.0), no_gradient),
    ):
        alone = Runs(runs.config, runs.predictions, history, runs.records.assign(start=start), {})
        assert health_sentences(alone, bags_of(8, 8)).startswith("On the tested slides")


@pytest.mark.parametrize(
    "marked, begins, note",
    [
        ({"learned_nothing": 2}, "- **DMSMIL learned nothing in 2 of 5 runs**", "2 of 5 runs learned nothing"),
        (
            {"gathered": 4, "effective": 0.06},
            "- **Its attention has gathered in 4 of 5 runs**: at the scale where it is "
            "least it is spread over 6% of a slide's tiles",
            "attention gathered in 4 of 5 runs (all runs: on 6% of the tiles)",
        ),
        (
            {"gathered": 5, "effective": 0.06},
            "- **Its attention has gathered in 5 of 5 runs**",
            "attention gathered in 5 of 5 runs, on 6% of the tiles",
        ),
        ({"collapsed": 2, "learned_nothing": 2}, "- **DMSMIL collapsed in 2 of 5 runs**", "2 of 5 runs collapsed"),
        ({"learned_nothing": 0, "gathered": 0}, "- DMSMIL is above", ""),
    ],
)
def test_a_mark_is_said_first_and_stands_in_the_table(marked, begins, note):
    rows = table().assign(**marked)
    assert verdict(rows).startswith(begins) and verdict(rows).count("**") == (2 if note else 0)
    assert pretty(rows).note.iloc[0] == note
    assert unlearned(rows).tolist() == [bool(marked.get("collapsed") or marked.get("learned_nothing"))] * 3
    assert unlearned(table(collapsed=1)).tolist() == [True, False, False], "a table from before the mark"


def test_a_setting_of_its_own_is_said_of_the_row_that_has_it_wherever_it_stands():
    def one(name, **settings):
        return Runs(RunConfig(name, (10, 20), **settings), *[pd.DataFrame()] * 3, {})

    rows = [one("dmsmil", epochs=10), one("dsmil", epochs=30), one("meanpool", epochs=30, lr=0.1)]
    named = ["DMSMIL, 10 epochs", "DSMIL", "Mean pooling, lr=0.1"]
    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        assert run_names([rows[i] for i in order]) == [named[i] for i in order]
    assert run_names(rows[:1]) == ["DMSMIL"], "alone it is like itself"
