"""The checklist: each verdict turns with the numbers in the study's tables, and says when there are none."""

import math

import numpy as np
import pandas as pd
import pytest

from dmsmil import figures
from dmsmil.analysis.claims import (
    EQUIVALENT,
    HELD,
    NOT_HELD,
    NOT_RUN,
    NOT_SHOWN,
    VERDICTS,
    claims,
    decide,
    tally,
    worth,
)
from dmsmil.analysis.report import saved_results
from dmsmil.training.metrics import METRICS
from dmsmil.training.results import beside, part, save_table
from tests.analysis.test_report import row
from tests.figures.test_figures import drawn

PARTS = ("fusion", "ot", "deformable")


def paired(differences, reference, p=0.01, **more):
    """A tests table: name -> difference of ACC."""
    return pd.DataFrame(
        [
            dict(
                reference=reference,
                name=name,
                ACC_difference=d,
                ACC_low=d - 0.02,
                ACC_high=d + 0.02,
                ACC_p_holm=p,
                ACC_note="",
                **more,
            )
            for name, d in differences.items()
        ]
    )


def found(home, words):
    """(verdict, number) of the one claim whose text has these words."""
    rows = claims(home)
    rows = rows[rows.claim.str.contains(words)]
    assert len(rows) == 1
    return rows.verdict.iloc[0], rows.number.iloc[0]


def compared(home, dmsmil=0.9, damil=0.85, p=0.01, collapsed=0):
    """A finished 04_compare: DSMIL 0.8 and ABMIL 10x 0.8 beside DMSMIL and DAMIL, mean pooling 0.88."""
    rows = [
        row("DMSMIL", dmsmil, 0.9, method="dmsmil", scales="10x+20x", collapsed=collapsed),
        row("DSMIL", 0.8, 0.8, method="dsmil", scales="10x+20x"),
        row("DAMIL 10x", damil, 0.8, method="damil", scales="10x"),
        row("ABMIL 10x", 0.8, 0.8, method="abmil", scales="10x"),
        row("Mean pooling", 0.88, 0.9, method="meanpool", scales="10x+20x"),
        row("six colour numbers", 0.6, 0.7),
        row("always the majority", 0.6, 0.5),
    ]
    save_table(pd.DataFrame(rows), home, "04_compare")
    gaps = {name: dmsmil - acc for name, acc in (("DSMIL", 0.8), ("DAMIL 10x", damil), ("Mean pooling", 0.88))}
    save_table(paired(gaps, "DMSMIL", p), home, "04_tests")
    save_table(paired({"ABMIL 10x": damil - 0.8}, "DAMIL 10x", p, scales="10x"), home, "04_tests_scales")


def test_the_definition():
    assert (decide(0.1, 0.01), decide(0.1, 0.2), decide(0.1)) == (HELD, NOT_SHOWN, NOT_SHOWN)
    assert {decide(d, p) for d in (0.0, -0.1, math.nan) for p in (0.01, 0.5, math.nan)} == {NOT_HELD}
    assert {decide(d, p, 0.04) for d in (0.01, 0.0, -0.01) for p in (0.2, math.nan)} == {EQUIVALENT}
    assert (decide(0.01, 0.04, 0.04), decide(-0.01, 0.04, 0.04)) == (HELD, NOT_HELD), "what is shown decides first"
    assert (decide(0.01, 0.2, 0.06), decide(-0.01, 0.2, 0.06)) == (NOT_SHOWN, NOT_HELD)


def test_a_study_without_tables_has_shown_nothing(tmp_path):
    rows = claims(tmp_path)
    assert set(rows.verdict) == {NOT_RUN} and len(rows) == 14
    assert set(rows["tested in"]) == {"04_compare", "05_ablation", "06_lambda", "07_interpret", "08_cost"}
    assert all(row.number.startswith(row["tested in"]) for _, row in rows.iterrows())
    assert tally(rows) == {HELD: 0, EQUIVALENT: 0, NOT_SHOWN: 0, NOT_HELD: 0, NOT_RUN: 14}
    assert tally(rows, without="08_cost")[NOT_RUN] == 10


# ------------------------------------------------------------------------------------------------ 04


@pytest.mark.parametrize(
    "acc, p, several, everywhere",
    [
        (0.90, 0.01, HELD, HELD),
        (0.90, 0.30, NOT_SHOWN, NOT_SHOWN),
        (0.85, 0.01, HELD, NOT_HELD),
        (0.80, 0.01, NOT_HELD, NOT_HELD),
        (0.70, 0.01, NOT_HELD, NOT_HELD),
    ],
)
def test_highest_is_asked_of_the_best_other_and_pooling_counts_among_all(tmp_path, acc, p, several, everywhere):
    compared(tmp_path, acc, p=p)
    assert found(tmp_path, "of the multi-scale methods .by")[0] == several
    verdict, number = found(tmp_path, "of all methods")
    assert verdict == everywhere and "Mean pooling" in number and f"{acc:.3f} against 0.880" in number


def test_the_method_is_its_row_without_options_whatever_stands_first(tmp_path):
    rows = [
        row("DMSMIL, ot=none", 0.7, 0.9, method="dmsmil", scales="10x+20x"),
        row("DMSMIL", 0.9, 0.9, method="dmsmil", scales="10x+20x"),
        row("DSMIL", 0.8, 0.8, method="dsmil", scales="10x+20x"),
    ]
    save_table(pd.DataFrame(rows), tmp_path, "04_compare")
    save_table(paired({"DSMIL": -0.1, "DMSMIL": -0.2}, "DMSMIL, ot=none"), tmp_path, "04_tests")
    verdict, number = found(tmp_path, "highest ACC of the multi-scale")
    assert verdict == NOT_SHOWN and number.startswith("ACC 0.900 against 0.800 of DSMIL")
    assert [list(x) for x in map(dict.values, beside(pd.DataFrame(rows), {"dmsmil": {"ACC": "0.8539"}}))] == [
        [],
        ["0.8539"],
        [],
    ]


def test_a_difference_that_was_tested_the_other_way_round_is_tested(tmp_path):
    rows = [
        row("ABMIL 10x", 0.8, 0.8, method="abmil", scales="10x"),
        row("DMSMIL", 0.9, 0.9, method="dmsmil", scales="10x+20x"),
    ]
    save_table(pd.DataFrame(rows), tmp_path, "04_compare")
    save_table(paired({"DMSMIL": -0.1}, "ABMIL 10x"), tmp_path, "04_tests")
    verdict, number = found(tmp_path, "highest ACC of all")
    assert verdict == HELD and "DMSMIL is better than ABMIL 10x by 0.100 ACC [0.080, 0.120]" in number


def test_equivalent_to_the_best_other_is_neither_held_nor_not_held(tmp_path):
    for acc in (0.885, 0.875):
        compared(tmp_path, acc, p=0.4)
        gaps = {"Mean pooling": acc - 0.88, "DSMIL": acc - 0.8}
        save_table(paired(gaps, "DMSMIL", 0.4, ACC_p_equivalent_holm=0.03), tmp_path, "04_tests")
        verdict, number = found(tmp_path, "of all methods")
        assert verdict == EQUIVALENT
        assert "DMSMIL and Mean pooling are equivalent: they differ by less than 0.02 ACC" in number
        save_table(paired(gaps, "DMSMIL", 0.4, ACC_p_equivalent_holm=0.06), tmp_path, "04_tests")
        assert found(tmp_path, "of all methods")[0] == (NOT_SHOWN if acc > 0.88 else NOT_HELD)


def test_a_part_is_equivalent_to_its_lack_only_where_every_pair_is_near(tmp_path):
    near = {**PAPERS, (True, False, False): 0.814, (True, True, True): 0.85}
    ablated(tmp_path, near)
    tests = paired({f"{(True, False, True)} 10x+20x": 0.005}, "DMSMIL", 0.4, ACC_p_equivalent_holm=0.03)
    save_table(tests, tmp_path, "05_tests")
    assert found(tmp_path, "Inter-scale OT")[0] == EQUIVALENT
    ablated(tmp_path, near | {(True, False, False): 0.70})
    save_table(tests, tmp_path, "05_tests")
    assert found(tmp_path, "Inter-scale OT")[0] == NOT_SHOWN, "the untested pair is far apart"


def test_lam_one_is_equivalent_where_acc_and_auc_both_are(tmp_path):
    swept(tmp_path, 0.805)
    for by_auc, verdict in ((0.03, EQUIVALENT), (0.2, NOT_SHOWN)):
        tests = paired(
            {"λ = 0.1": 0.005},
            "λ = 1",
            0.4,
            ACC_p_equivalent_holm=0.03,
            AUC_p_holm=0.4,
            AUC_low=-0.01,
            AUC_high=0.01,
            AUC_difference=0.0,
            AUC_note="",
            AUC_p_equivalent_holm=by_auc,
        )
        save_table(tests.drop(columns="reference"), tmp_path, "06_tests")
        assert found(tmp_path, "λ = 1 is best")[0] == verdict


def test_damil_is_judged_at_each_scale(tmp_path):
    compared(tmp_path)
    assert found(tmp_path, "at 10x")[0] == HELD
    assert found(tmp_path, "at 20x") == (NOT_RUN, "04_compare: DAMIL was not run")
    compared(tmp_path, damil=0.7)
    assert found(tmp_path, "at 10x")[0] == NOT_HELD


def test_a_collapse_holds_nothing(tmp_path):
    compared(tmp_path, 0.99, collapsed=2)
    assert found(tmp_path, "of all methods") == (NOT_HELD, "DMSMIL collapsed in 2 of 5 runs")


def test_who_learned_nothing_holds_nothing_and_is_no_yardstick(tmp_path):
    compared(tmp_path)
    table = pd.read_csv(tmp_path / "tables/04_compare.csv").fillna({"method": "", "scales": ""})
    mine = table.assign(learned_nothing=table.runs.where(table.name == "DMSMIL", 0))
    save_table(mine, tmp_path, "04_compare")
    verdict, number = found(tmp_path, "highest ACC of the multi-scale")
    runs = mine.runs[0]
    assert (verdict, number) == (NOT_HELD, f"DMSMIL learned nothing in {runs} of {runs} runs")
    theirs = table.assign(learned_nothing=table.runs.where(table.name == "Mean pooling", 0))
    save_table(theirs, tmp_path, "04_compare")
    assert (
        "of DSMIL" in found(tmp_path, "highest ACC of all")[1] or "of DAMIL" in found(tmp_path, "highest ACC of all")[1]
    )


def test_the_difference_is_that_of_the_folds_that_both_have(tmp_path):
    """A run that failed moves a mean, and not the paired difference."""
    compared(tmp_path)
    tests = pd.read_csv(tmp_path / "tables/04_tests.csv")
    tests["ACC_difference"] = tests.ACC_difference.where(tests.name != "DSMIL", -0.02)
    save_table(tests, tmp_path, "04_tests")
    verdict, number = found(tmp_path, "highest ACC of the multi-scale")
    assert verdict == NOT_SHOWN and "DMSMIL is worse than DSMIL" in number


def test_without_its_test_no_difference_is_held(tmp_path):
    compared(tmp_path)
    (tmp_path / "tables/04_tests.csv").unlink()
    verdict, number = found(tmp_path, "of all methods")
    assert verdict == NOT_SHOWN and number.endswith("Not tested.")
    save_table(paired({"Mean pooling": 0.02}, "ABMIL 10x"), tmp_path, "04_tests")
    assert found(tmp_path, "of all methods")[0] == NOT_SHOWN, "a test of another method is not DMSMIL's"


# ------------------------------------------------------------------------------------------------ 05


def ablated(home, accs, collapsed=(), tests=None):
    """A finished 05_ablation: accs maps (fusion, ot, deformable) to an ACC; without fusion at both scales."""
    rows = []
    for key, acc in accs.items():
        for scales in ("10x+20x",) if key[0] else ("10x", "20x"):
            name = "DMSMIL" if all(key) else f"{key} {scales}"
            rows.append(
                row(
                    name,
                    acc,
                    0.8,
                    method="dmsmil" if key[0] else "damil",
                    scales=scales,
                    collapsed=int(key in collapsed),
                )
                | dict(zip(PARTS, key))
            )
    rows.append(row("always the majority", 0.5, 0.5) | dict.fromkeys(PARTS))
    save_table(pd.DataFrame(rows), home, "05_ablation")
    if tests:
        save_table(paired({f"{key} 10x+20x": d for key, d in tests.items()}, "DMSMIL"), home, "05_tests")


PAPERS = {
    (False, False, False): 0.80,
    (False, False, True): 0.805,
    (True, False, False): 0.806,
    (True, True, False): 0.815,
    (True, False, True): 0.845,
    (True, True, True): 0.854,
}


@pytest.mark.slow
def test_the_papers_own_table_goes_its_way_and_is_held_only_where_paired(tmp_path):
    ablated(tmp_path, PAPERS)
    words = ("Multi-scale fusion", "Inter-scale OT", "Deformable attention adds", "full model")
    assert [found(tmp_path, w)[0] for w in words] == [NOT_SHOWN] * 4
    ablated(tmp_path, PAPERS, tests={(True, False, True): 0.009, (True, True, False): 0.039})
    assert [found(tmp_path, w)[0] for w in words] == [NOT_SHOWN, HELD, HELD, HELD]
    assert "rises in 4 of 4 pairs: +0.006, +0.006, +0.040, +0.040" in found(tmp_path, words[0])[1]
    assert "rises in 2 of 2 pairs: +0.009, +0.009" in found(tmp_path, words[1])[1]
    assert "rises in 4 of 4 pairs" in found(tmp_path, words[2])[1]


def test_one_pair_that_falls_is_enough(tmp_path):
    ablated(tmp_path, PAPERS | {(True, True, False): 0.80}, tests={(True, False, True): 0.009})
    verdict, number = found(tmp_path, "Inter-scale OT")
    assert verdict == NOT_HELD and "rises in 1 of 2 pairs" in number
    ablated(tmp_path, PAPERS | {(True, True, True): 0.844})
    assert found(tmp_path, "full model")[0] == NOT_HELD


def test_collapsed_rows_are_no_yardstick_and_no_result(tmp_path):
    ablated(tmp_path, PAPERS | {(True, False, True): 0.99}, collapsed={(True, False, True)})
    assert found(tmp_path, "full model")[0] == NOT_SHOWN, "the collapsed row does not count as better"
    assert "rises in 1 of 1 pairs" in found(tmp_path, "Inter-scale OT")[1]
    assert found(tmp_path, "Multi-scale fusion")[0] == NOT_HELD
    ablated(tmp_path, PAPERS, collapsed={(True, True, True)})
    assert found(tmp_path, "full model") == (NOT_HELD, "DMSMIL collapsed in 1 of 5 runs")


def test_control_and_readings_are_named_beside_what_they_bear_on(tmp_path):
    ablated(tmp_path, PAPERS)
    for gap, said in ((0.0, "changes nothing, as it must"), (0.1, "changes predictions, as it must not")):
        save_table(pd.DataFrame([{"fold": 0, "seed": 0, "largest_difference": gap}]), tmp_path, "05_null")
        assert said in found(tmp_path, "Inter-scale OT")[1]
    readings = pd.DataFrame({"name": ["a", "b"], "ACC_difference": [-0.1, -0.1], "ACC_p_holm": [0.01, 0.2]})
    save_table(readings, tmp_path, "05_variants")
    assert "Of 2 other readings of the text, shown to have a higher ACC: a." in found(tmp_path, "full model")[1]
    save_table(readings.assign(name=["no_gate", "fill"]), tmp_path, "05_variants")  # of base: dmsmil_select
    assert "readings of the text" not in found(tmp_path, "full model")[1]


# ------------------------------------------------------------------------------------------------ 06, 07, 08


def swept(home, at_one, others=0.8, collapsed=0, p=None):
    rows = [
        {
            "lam": lam,
            **{f"{m}_mean": at_one if lam == 1 else others for m in METRICS},
            "runs": 5,
            "collapsed": collapsed if lam == 1 else int(lam == 0.01),
        }
        for lam in (0.01, 0.1, 1.0, 10.0, math.inf)
    ]
    rows[0]["ACC_mean"] = 0.99  # collapsed, and so no result
    save_table(pd.DataFrame(rows), home, "06_lambda")
    if p is not None:
        save_table(paired({"λ = 0.1": at_one - others}, "λ = 1", p).drop(columns="reference"), home, "06_tests")


def test_lam_one_must_be_above_every_other_that_did_not_collapse(tmp_path):
    swept(tmp_path, 0.9)
    verdict, number = found(tmp_path, "λ = 1 is best")
    assert verdict == NOT_SHOWN and "ACC 0.900 against 0.800 at λ = 0.1" in number and "Not tested" in number
    swept(tmp_path, 0.9, p=0.01)
    assert found(tmp_path, "λ = 1 is best")[0] == HELD
    for at_one, collapsed in ((0.8, 0), (0.7, 0), (0.9, 3)):
        swept(tmp_path, at_one, collapsed=collapsed)
        assert found(tmp_path, "λ = 1 is best")[0] == NOT_HELD


def test_costs_are_ordered_among_published_methods_of_several_scales(tmp_path):
    rows = [
        ("DMSMIL", "dmsmil", "10x+20x", 600, 2.0, 9.0),
        ("DSMIL", "dsmil", "10x+20x", 500, 3.0, 9.0),
        ("HiFuse", "hifuse", "10x+20x", 900, 4.0, 9.5),
        ("Mean pooling", "meanpool", "10x+20x", 1, 0.1, 0.1),
        ("ABMIL 10x", "abmil", "10x", 2, 0.2, 0.2),
    ]
    columns = ["name", "method", "scales", "parameters", "epoch_median_s", "inference_median_ms"]
    save_table(pd.DataFrame(rows, columns=columns), tmp_path, "08_cost")
    assert found(tmp_path, "fewest parameters") == (
        NOT_HELD,
        "600 parameters against 500 parameters of DSMIL, the least of the others; place 2 of 3",
    )
    assert found(tmp_path, "trains fastest")[0] == HELD and "2 s an epoch against 3 s" in found(tmp_path, "trains")[1]
    assert found(tmp_path, "answers fastest")[0] == NOT_HELD, "a tie"


@pytest.mark.parametrize(
    "deformable, full, verdict",
    [(1.0, 2.0, HELD), (0.8, 1.8, HELD), (1.0, 1.5, NOT_SHOWN), (1.5, 2.0, NOT_SHOWN), (1.4, 1.5, NOT_HELD)],
)
def test_growth_is_read_off_the_slopes(tmp_path, deformable, full, verdict):
    rows = [
        dict(part=name, k=k, median_ms=1.0, slope_time=slope, slope_memory=slope)
        for name, slope in (("deformable", deformable), ("full", full), ("ot", 2.4))
        for k in (50, 5000)
    ]
    save_table(pd.DataFrame(rows), tmp_path, "08_growth")
    got, number = found(tmp_path, "grows linearly")
    assert got == verdict and f"{deformable:.2f} (deformable), {full:.2f} (full), 2.40 (ot)" in number


def test_what_07_found_is_handed_on(tmp_path):
    rows = [{"claim": "LUSC tiles score higher", "where": "Fig. 7", "verdict": HELD, "number": 0.7}]
    save_table(pd.DataFrame(rows), tmp_path, "07_claims")
    last = claims(tmp_path).iloc[-1]
    assert list(last) == ["LUSC tiles score higher", "Fig. 7", "07_interpret", HELD, "0.7"]


# ------------------------------------------------------------------------------------------------ worth, figures


def test_worth_is_tested_where_it_was_and_never_hides_a_collapse(tmp_path):
    compared(tmp_path)
    assert "is above *six colour numbers*" in worth(tmp_path, saved_results(tmp_path))
    rows = paired({"always the majority": 0.3}, "DMSMIL")
    save_table(rows, tmp_path, "04_tests_cheap")
    methods = paired({"DSMIL": 0.1, "Mean pooling": 0.2}, "DMSMIL").rename(columns=lambda c: c.replace("ACC", "AUC"))
    save_table(methods, tmp_path, "04_tests")
    said = worth(tmp_path, saved_results(tmp_path)).splitlines()
    assert len(said) == 2 and said[0].startswith("- DMSMIL is better than Mean pooling by 0.200 AUC")
    assert said[1].startswith("- DMSMIL is better than always the majority by 0.300 ACC")
    compared(tmp_path, collapsed=1)
    assert worth(tmp_path, saved_results(tmp_path)).startswith("- **DMSMIL collapsed in 1 of 5 runs**")


@pytest.mark.slow
def test_the_board_shows_every_claim(tmp_path):
    compared(tmp_path, 0.85)
    rows = claims(tmp_path)
    figure = figures.claims_board(rows, tmp_path / "f")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert [text for text in texts if text in VERDICTS] == list(rows.verdict)
    assert [texts.count(mark) for mark in "✓✗"] == [(rows.verdict == word).sum() for word in (HELD, NOT_HELD)]
    assert list(drawn(figure, tmp_path / "f").number) == list(rows.number)


def test_a_board_of_all_verdicts_has_a_mark_a_colour_and_a_count_for_each(tmp_path):
    rows = pd.DataFrame(
        {
            "claim": list(VERDICTS),
            "in the paper": "Table 1",
            "tested in": "04_compare",
            "verdict": VERDICTS,
            "number": "so",
        }
    )
    figure = figures.claims_board(rows, tmp_path / "f")
    texts = figure.axes[0].texts
    marks = [text for text in texts if text.get_text() in "✓≈~✗–"]
    assert "".join(text.get_text() for text in marks) == "✓≈~✗–"
    assert len({text.get_color() for text in marks}) == len(VERDICTS)
    assert tally(rows) == dict.fromkeys(VERDICTS, 1)
    drawn(figure, tmp_path / "f")


@pytest.mark.slow
def test_the_comparison_figure_ranks_methods_and_draws_what_they_must_beat(tmp_path):
    compared(tmp_path, 0.75)
    table = saved_results(tmp_path)
    parts = {"10x": part(table, 10), "10x + 20x": part(table)}
    figure = figures.method_comparison(parts, tmp_path / "f")
    data = drawn(figure, tmp_path / "f")
    assert list(data.part.unique()) == list(parts) and len(data) == 9
    names = [[tick.get_text() for tick in ax.get_yticklabels()] for ax in np.array(figure.axes).reshape(2, 3)[:, 0]]
    assert names == [["ABMIL", "DAMIL"], ["DMSMIL", "DSMIL"]], "from the lowest ACC up"
    lines = [round(line.get_xdata()[0], 3) for line in figure.axes[3].lines if line.get_linestyle() != "None"]
    assert sorted(lines) == [0.6, 0.6, 0.88], "colour, majority, mean pooling"


@pytest.mark.slow
def test_rows_of_one_method_are_told_apart_in_the_figure(tmp_path):
    rows = [
        row(name, 0.7, 0.7, method="dmsmil", scales="10x+20x", collapsed=c)
        for name, c in (("DMSMIL", 0), ("DMSMIL, lam=0.1", 0), ("DMSMIL, lam=10.0", 1))
    ]
    rows.append(row("HiFuse, 8 epochs", 0.6, 0.6, method="hifuse", scales="10x+20x"))
    figure = figures.method_comparison({"all": pd.DataFrame(rows)}, tmp_path / "f")
    assert list(drawn(figure, tmp_path / "f").label) == ["DMSMIL", "DMSMIL, lam=0.1", "DMSMIL, lam=10.0", "HiFuse*"]
    note = figure.legends[0].get_title().get_text()
    assert "* options or settings of its own" in note and "hollow: a run of it collapsed" in note
