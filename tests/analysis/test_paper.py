"""The paper's numbers: those of its text and no other digit."""

import re
from pathlib import Path

import pytest

from dmsmil.analysis.paper import COHORTS, NOT_LEGIBLE, printed_ablation, printed_cost, printed_results
from dmsmil.jobs.files import InputError
from dmsmil.models import METHODS

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "paper"
KEYS = {"DSMIL": "dsmil", "MultiAttnMIL": "multiattn", "HiFuse": "hifuse", "AMGCFN": "amgcfn", "DMSMIL": "dmsmil"}


def text(name):
    if not (SHARED / name).is_file():
        pytest.skip(f"../shared/paper/{name} is not beside this checkout")
    return (SHARED / name).read_text(encoding="utf-8")


def rows(head):
    """The cells of the markdown table of PAPER.md whose head line begins so."""
    lines = text("PAPER.md").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(head))
    body = lines[start + 2 :]
    return [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in body[: next(i for i, line in enumerate(body) if not line.startswith("|"))]
    ]


@pytest.mark.parametrize("paper", COHORTS)
def test_results_are_those_of_the_facts_page(paper):
    printed, found = printed_results(paper), rows(f"| {COHORTS[paper]} | ACC")
    assert {KEYS[name] for name, *_ in found} == set(printed)
    for name, acc, *rest in found:
        mine = printed[KEYS[name]]
        if name == "DMSMIL":
            assert acc.startswith(mine["ACC"] + " (abstract") and rest == ["lost", "lost"]
            assert mine["F1"] == mine["AUC"] == NOT_LEGIBLE
        else:
            assert [mine["ACC"], mine["F1"], mine["AUC"]] == [acc, *rest]


def test_the_ablation_is_that_of_the_facts_page():
    found = rows("| fusion | OT | deformable")
    for column, paper in enumerate(COHORTS, 3):
        theirs = {tuple(mark == "✓" for mark in row[:3]): row[column] for row in found}
        assert printed_ablation(paper) == theirs and len(theirs) == 6


def test_the_cost_is_that_of_the_facts_page():
    for name, parameters, training, inference in rows("| | parameters | training"):
        mine = printed_cost()[KEYS[name]]
        assert (mine["training"], mine["inference"]) == (training, inference)
        assert mine["parameters"] == parameters if name != "DMSMIL" else NOT_LEGIBLE in mine["parameters"]


def test_every_number_but_two_stands_in_the_source_text_itself():
    """One deviation has lost its point there; the accuracies of DMSMIL stand as percentages in the abstract."""
    source = text("dmsmil-paper-zh.txt")
    for paper in COHORTS:
        printed = printed_results(paper)
        own = printed.pop("dmsmil")["ACC"]
        assert f"{100 * float(own):.2f}%" in source and printed_ablation(paper)[True, True, True] == own
        values = [v for row in printed.values() for v in row.values()] + list(printed_ablation(paper).values())[:-1]
        assert [v for v in values if v not in source] == (["0.8970±0.0179"] if paper == "nsclc" else [])
    assert "0.8970±00179" in source
    for key, row in printed_cost().items():
        numbers = [v.removesuffix(" s").replace(",", "") for v in row.values()]
        assert all(number in source for number in (numbers if key != "dmsmil" else numbers[1:]))


def test_no_digit_of_dmsmil_beyond_the_legible_ones():
    for paper in COHORTS:
        row = printed_results(paper)["dmsmil"]
        assert re.fullmatch(r"0\.\d{4}", row["ACC"]) and not re.search(r"\d", row["F1"] + row["AUC"])
        assert "±" not in printed_ablation(paper)[True, True, True]
    assert re.findall(r"\d+", printed_cost()["dmsmil"]["parameters"]) == ["6", "96"]


def test_methods_are_named_as_in_the_registry():
    assert set(printed_cost()) == set(printed_results("brca")) == set(printed_results("nsclc")) <= set(METHODS)


def test_no_paper_prints_nothing_and_an_unknown_one_is_named():
    assert printed_results("") == printed_ablation("") == {}
    for call in (printed_results, printed_ablation):
        with pytest.raises(InputError, match="paper is 'tcga': choose one of brca, nsclc"):
            call("tcga")


def test_what_is_returned_can_be_changed_without_harm():
    printed_results("brca")["dmsmil"]["F1"] = "0.9"
    printed_cost()["dmsmil"]["parameters"] = "1"
    assert printed_results("brca")["dmsmil"]["F1"] == NOT_LEGIBLE in printed_cost()["dmsmil"]["parameters"]
