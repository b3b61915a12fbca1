"""What collapsed, learned nothing or gathered its attention is seen in every figure and said below every table."""

import dataclasses

import pytest

from dmsmil import figures
from dmsmil.analysis.report import ranking
from dmsmil.analysis.sweep import ALONE, lam_sentences, lam_table, lam_tests
from dmsmil.analysis.variants import variant_sentences, variant_table
from tests.analysis.test_ablation import made
from tests.figures.test_figures import drawn
from tests.figures.test_names import results

NAMES = ["ABMIL 10x", "CLAM-SB 10x"]


def rows(**marks):
    """Two rows of a result table, the marks those of the second."""
    frame = results().assign(name=NAMES, method=["abmil", "clam_sb"], runs=5, effective=0.06)
    return frame.assign(**{mark: [0, count] for mark, count in marks.items()})


def marked_runs(**marks):
    """Three runs of which the first ones have the marks, as many as said."""
    runs = made(noise=4)
    return dataclasses.replace(
        runs, records=runs.records.assign(**{mark: [run < count for run in range(3)] for mark, count in marks.items()})
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "marks, hollow, label",
    [
        ({}, False, "CLAM-SB"),
        ({"collapsed": 1}, True, "CLAM-SB"),
        ({"learned_nothing": 2}, True, "CLAM-SB"),
        ({"gathered": 3}, False, "CLAM-SB†"),
    ],
)
def test_the_comparison_draws_them_apart(marks, hollow, label, tmp_path):
    figure = figures.method_comparison({"10x": rows(**marks)}, tmp_path / "m")
    assert list(drawn(figure, tmp_path / "m").label) == ["ABMIL", label]
    points = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    faces = {line.get_ydata()[0]: line.get_markerfacecolor() for line in points}
    assert [faces[y] == "white" for y in (0, 1)] == [False, hollow]
    said = figure.legends[0].get_title().get_text()
    assert ("hollow: a run of it collapsed or learned nothing" in said) == hollow
    assert ("† attention gathered on few tiles" in said) == (label == "CLAM-SB†")


def test_the_cover_puts_them_last_and_says_why(tmp_path):
    for marks, said in (
        ({"collapsed": 1, "learned_nothing": 1}, "collapsed: no result"),
        ({"learned_nothing": 5}, "learned nothing"),
    ):
        better = rows(**marks).assign(AUC_mean=[0.7, 0.99])
        figure = figures.cover(better, None, tmp_path / "c")
        assert list(drawn(figure, tmp_path / "c")["name"]) == NAMES
        assert [text.get_text() for text in figure.axes[0].texts].count(said) == 1


def test_the_cover_draws_what_some_runs_have_learned_and_says_how_many_have_not(tmp_path):
    for low, high in ((0.7, 0.75), (0.9, 1.0)):  # room for the words on either side of the interval
        better = rows(learned_nothing=1).assign(AUC_mean=[0.6, 0.72], AUC_low=low, AUC_high=high)
        figure = figures.cover(better, None, tmp_path / "c")
        assert list(drawn(figure, tmp_path / "c")["name"]) == NAMES[::-1], "by its AUC, which is a result"
        assert [text.get_text() for text in figure.axes[0].texts].count("1 of 5 runs learned nothing") == 1


@pytest.mark.slow
def test_lam_curves_are_hollow_where_nothing_was_learned(tmp_path):
    runs = {0.1: marked_runs(learned_nothing=2), 1.0: made(), ALONE: marked_runs(gathered=1)}
    table = lam_table(runs)
    figure = figures.lam_curves(table, tmp_path / "l")
    faces = figure.axes[0].collections[-1].get_facecolor()
    assert [face.min() == 1 for face in faces] == [True, False, False]
    assert figure.get_supxlabel() == "hollow: a run of it collapsed or learned nothing"
    assert not figures.lam_curves(table[1:], tmp_path / "n").get_supxlabel()
    said = lam_sentences(table, lam_tests(runs))
    assert "- Learned nothing: λ = 0.1 (2 of 3 runs)." in said
    assert "- Attention gathered on few tiles: L_ce alone (1 of 3 runs; all on 50% of the tiles)." in said


@pytest.mark.slow
def test_a_reading_says_its_marks_beside_its_name(tmp_path):
    table = variant_table(
        {"default": made(), "shared": marked_runs(learned_nothing=1, gathered=3), "activation_relu": made(3)}
    )
    figure = figures.variant_differences(table, tmp_path / "v")
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names[0].endswith(", learned nothing in 1 of 3 runs, gathered") and "," not in names[1]
    said = variant_sentences(table, {})
    assert "- Learned nothing: shared (1 of 3 runs)." in said
    assert "- Attention gathered on few tiles: shared (3 of 3 runs, 50% of the tiles)." in said


def test_the_ranking_names_them():
    said = ranking(rows(learned_nothing=2, gathered=1))
    assert (
        "- Learned nothing: CLAM-SB 10x (2 of 5 runs).\n"
        "- Attention gathered on few tiles: CLAM-SB 10x (1 of 5 runs; all on 6% of the tiles)."
    ) in said
    fallen = ranking(rows(collapsed=1, learned_nothing=2, gathered=1))
    assert "Collapsed, and so no result: CLAM-SB 10x." in fallen, "and no more is said of it"
    assert "Learned" not in fallen and "gathered" not in fallen
