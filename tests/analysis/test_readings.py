"""The rule of docs/readings.md, on made-up scores: nearest among those that tie, and ill health is out."""

import pandas as pd
import pytest

from dmsmil.analysis import readings
from dmsmil.analysis.comparison import EQUIVALENT_WITHIN
from dmsmil.analysis.readings import CANDIDATES, CONTROL, choose
from dmsmil.features.bags import toy_bags
from dmsmil.jobs.files import ROOT, InputError
from dmsmil.models import method
from tests.training.test_fit import folds_of


def rows(scores, marked=(), cohorts=("a", "b")):
    """Rows of all candidates: their scores by name (default .7); marked: (name, cohort) with one run that learned
    nothing."""
    return pd.DataFrame(
        [
            {
                "cohort": cohort,
                "name": name,
                "AUC": scores.get(name, 0.7) + shift,
                "runs": 3,
                "collapsed": 0,
                "learned_nothing": int((name, cohort) in marked),
                "gathered": 0,
                "effective": 0.5,
            }
            for cohort, shift in zip(cohorts, (0.05, -0.05))
            for name in (*CANDIDATES, CONTROL)
        ]
    )


def test_the_nearest_of_those_that_tie():
    assert choose(rows({}))[0] == "cited", "all tie: the nearest to the text"
    assert choose(rows({"cells": 0.719}))[0] == "cited", "better by less than the margin"
    assert choose(rows({"cells": 0.721}))[0] == "cells"
    assert choose(rows({"cells": 0.75, "cited_relative": 0.74}))[0] == "cited_relative"
    name, table = choose(rows({"cells": 0.75}))
    row = table.set_index("name").loc["cells"]
    assert name == "cells" and row.score == pytest.approx(0.75) and (row.AUC_a, row.AUC_b) == (0.8, 0.7)
    assert table["name"].tolist() == [*CANDIDATES, CONTROL] and table.chosen.sum() == 1


def test_the_control_cannot_be_chosen():
    assert choose(rows({CONTROL: 0.99}))[0] == "cited"


def test_ill_health_is_out_unless_the_control_is_ill_too():
    assert choose(rows({"cited": 0.9}, marked=[("cited", "a")]))[0] == "cited_unit"
    assert choose(rows({"cited": 0.9}, marked=[("cited", "a"), (CONTROL, "b")]))[0] == "cited_unit"
    assert choose(rows({"cited": 0.9}, marked=[("cited", "a"), (CONTROL, "a")]))[0] == "cited"
    everyone = [(name, "a") for name in CANDIDATES]
    assert choose(rows({"cells": 0.9}, marked=everyone))[0] == "cells", "if that leaves none, all stay in"


def test_a_candidate_that_was_not_trained_everywhere():
    table = rows({})
    with pytest.raises(InputError, match="'cells' was not trained on every cohort"):
        choose(table[~((table["name"] == "cells") & (table.cohort == "b"))])


def test_candidates_are_as_the_page_says():
    page = (ROOT / "docs/readings.md").read_text(encoding="utf-8")
    names = [line.split("`")[1] for line in page.split("## The rule")[0].splitlines() if line.startswith("| `")]
    assert names == list(CANDIDATES), "in this order, for the order decides ties"
    assert f"less than {EQUIVALENT_WITHIN:.2f}".replace("0.", ".") in page
    assert f"{readings.EPOCHS} epochs" in page


def test_candidates_do_not_depend_on_the_default():
    options = method("dmsmil").options()
    bags = toy_bags(slides=12, k=9)
    configs = readings.candidate_configs(bags, folds_of(bags))
    assert len({config.name for config in configs.values()}) == len(CANDIDATES) + 1
    for name, mine in CANDIDATES.items():
        assert {**options, **configs[name].options}.items() >= mine.items()
    assert configs[CONTROL].record()["options"]["ot"] == "none"


def test_the_sentence_follows_from_the_table():
    name, table = choose(rows({"cells": 0.9}, marked=[("cited", "a")]))
    said = readings.choice_sentence(name, table)
    assert said.startswith("Chosen: cells, score 0.900; the best other is cited, 0.700; without L_ot 0.700.")
    assert said.endswith("Out by their health: cited.")
