"""λ: its ends are runs of other notebooks, its terms those that a run ends at, and a collapse is told by both signs."""

import math

import numpy as np
import pandas as pd
import pytest

from dmsmil import figures
from dmsmil.analysis.ablation import ablation_configs
from dmsmil.analysis.report import saved_tables
from dmsmil.analysis.sweep import (
    ALONE,
    PLACEMENTS,
    check_lams,
    collapse_configs,
    collapse_sentences,
    collapse_table,
    final_terms,
    lam_configs,
    lam_name,
    lam_sentences,
    lam_table,
    lam_tests,
    pretty_lams,
)
from dmsmil.jobs.files import InputError
from dmsmil.training.config import configure
from dmsmil.training.health import collapsed
from dmsmil.training.metrics import summarise
from dmsmil.training.results import save_table
from dmsmil.training.runs import get_runs
from tests.analysis.test_ablation import made
from tests.figures.test_figures import drawn
from tests.training.test_fit import folds_of, make_bags

SETTINGS = dict(epochs=3, lr=1e-3)


@pytest.mark.parametrize("lams", [[0], [-1.0], ["1e-1"], [True], [math.inf], [math.nan], [None], []])
def test_a_lambda_that_cannot_be_is_named(lams):
    with pytest.raises(InputError, match="λ"):
        check_lams(lams)


def test_the_sweep_shares_its_ends_with_the_other_notebooks(study):
    bags, folds = study
    configs = lam_configs(bags, folds, [10, 0.1, 10.0], **SETTINGS)
    assert list(configs) == [0.1, 1.0, 10.0, ALONE], "ascending, each once, the paper's λ always there"
    rows = ablation_configs(bags, folds, **SETTINGS)
    assert configs[1.0].name == rows[-1].name == configure(bags, folds, "dmsmil", **SETTINGS).name
    assert configs[ALONE].name == rows[-2].name, "cross-entropy alone is the row without OT"
    placed = collapse_configs(bags, folds, [1, 0.1], **SETTINGS)
    assert len(placed) == 2 * len(PLACEMENTS) == len({config.name for config in placed.values()})
    assert placed["linear projection", 0.1].name == configs[0.1].name


@pytest.mark.slow
def test_the_table_has_the_terms_that_a_run_ends_at(study, tmp_path):
    bags, folds = study
    configs = lam_configs(bags, folds, [0.1], **SETTINGS)
    runs = dict(
        zip(configs, get_runs(tmp_path, bags, folds, list(configs.values()), workers=1, report=lambda line: None))
    )
    table = save_table(lam_table(runs), tmp_path, "06_lambda").set_index("lam")
    for lam, r in runs.items():
        end = r.history[r.history.epoch == 3].set_index("fold").spread  # of three epochs the last
        assert table.at[lam, "spread"] == pytest.approx(end.mean())
        assert table.at[lam, "spread_relative"] == pytest.approx(np.mean(end.array / r.records.spread_start))
        assert table.at[lam, "AUC_low"] == summarise(r.predictions)["AUC_low"] and table.at[lam, "runs"] == 2
    assert table.L_ot.notna().tolist() == [True, True, False], "without OT there is no L_ot, not an L_ot of 0"
    assert saved_tables(tmp_path)["06_lambda"].lam.tolist() == [0.1, 1.0, math.inf]
    assert pretty_lams(table.reset_index()).L_ot.iloc[-1] == "not computed"


@pytest.mark.slow
def test_the_words_about_lambda_follow_from_the_numbers():
    runs = {0.1: made(3, signal=9.0), 1.0: made(signal=0.2), 10.0: made(signal=0.8), ALONE: made(noise=4, signal=0.4)}
    table, tests = lam_table(runs), lam_tests(runs)
    assert list(tests["name"]) == ["λ = 10", "L_ce alone"], "a collapsed λ is not compared"
    said = lam_sentences(table, tests)
    assert "λ = 0.1 collapsed in 3 of 3 runs: no result." in said and "at λ = 0.1" not in said, "nor is it the best"
    best = table[table.collapsed == 0].set_index("name").AUC_mean
    assert best.idxmax() == "λ = 10" and f"AUC {best.max():.3f} at λ = 10" in said
    assert "The paper finds λ = 1 best. Here it is so in none of them." in said
    assert "None of the 2 others is shown to differ" in lam_sentences(table, tests.assign(AUC_p_holm=1, ACC_p_holm=1))
    sure = lam_sentences(table, tests.assign(AUC_p_holm=[0.01, 1.0], ACC_p_holm=1))
    assert "λ = 1 is worse than λ = 10 by" in sure and "None of" not in sure
    same = tests.assign(AUC_p_holm=1, ACC_p_holm=1, AUC_p_equivalent_holm=[0.2, 0.01], ACC_p_equivalent_holm=0.2)
    assert "Equivalent to λ = 1, less than 0.02 from it: L_ce alone by AUC." in lam_sentences(table, same)
    assert "L_ot goes from 0.5 to 0.5: the scales come no nearer, or hardly" in said, "both halve where the spread does"
    nearer = table.assign(L_ot=[0.1, 0.1, 0.2, math.nan])
    assert "L_ot goes from 0.4 to 0.2: the scales come nearer" in lam_sentences(nearer, tests)
    again = lam_sentences(lam_table({1.0: runs[10.0], ALONE: runs[1.0]}), tests)
    assert "Here it is so in each of them." in again
    tied = table[table.lam > 0.1].assign(AUC_mean=[0.9, 0.9 - 1e-15, 0.8])
    assert "Here it is so in none of them; in AUC it shares the first place." in lam_sentences(tied, tests)
    vain = table.assign(AUC_mean=[1, 0.9, 0.99, 0.8], learned_nothing=[0, 0, 3, 0])
    assert "at λ = 10" not in lam_sentences(vain, tests).split("Highest here")[1].split("\n")[0], "no run learned"


def test_nothing_is_compared_with_a_collapsed_lambda_1():
    runs = {1.0: made(1), ALONE: made(noise=4)}
    tests = lam_tests(runs)
    assert tests.empty and "Nothing can be compared with λ = 1." in lam_sentences(lam_table(runs), tests)


@pytest.mark.slow
def test_a_collapse_is_seen_where_it_is(tmp_path):
    """Toy bags without a class: L_ot wins over a small λ behind a ReLU, and cannot where the length is fixed."""
    bags = make_bags(16, signal=0.0)
    folds = folds_of(bags)
    configs = {
        key: config
        for key, config in collapse_configs(bags, folds, [0.001], epochs=60, lr=1e-2).items()
        if key[0] in ("ReLU", "unit norm")
    }
    runs = dict(
        zip(
            configs,
            get_runs(
                tmp_path, bags, folds, list(configs.values()), workers=1, report=lambda line: None, only_folds=(0,)
            ),
        )
    )
    table = collapse_table(runs).set_index("placement")
    assert table.collapsed.to_dict() == {"ReLU": True, "unit norm": False}
    for (name, _), r in runs.items():
        terms, record = final_terms(r).iloc[0], r.records.iloc[0]
        prior = np.array([0.5, 0.5])
        assert table.at[name, "collapsed"] == collapsed(record.spread_start, terms.spread, terms.L_ce, prior)
        assert table.at[name, "spread_relative"] == pytest.approx(terms.spread / record.spread_start)
    said = collapse_sentences(table.reset_index())
    assert "**ReLU**: collapsed at λ = 0.001, that is, at every λ tried." in said
    assert "**unit norm**: no collapse." in said


def placed(*rows):
    """A collapse table; rows: placement, λ, spread_relative, ce_relative, effective. L_ot's gradient is 3 wherever it
    acts, that of L_ce 0.5; marks by the rules."""
    table = pd.DataFrame(rows, columns=["placement", "lam", "spread_relative", "ce_relative", "effective"])
    nothing = table.ce_relative > 0.9
    return table.assign(
        gradient_ot=3.0 * (table.placement != "frozen features"),
        gradient_ce=0.5 * table.lam,
        learned_nothing=nothing,
        collapsed=nothing & (table.spread_relative < 0.01),
        gathered=table.effective < 0.1,
    )


def test_small_features_that_still_classify_are_told_from_a_collapse():
    table = placed(
        ("a", 0.1, 0.001, 1.0, 0.5),
        ("a", 1, 0.002, 0.1, 0.75),
        ("b", 0.1, 0.004, 0.2, 0.05),
        ("b", 1, 1.1, 0.1, 0.5),
        ("c", 0.1, 0.011, 1.0, 1),
        ("c", 1, 0.5, 0.1, 1),
        ("frozen features", 1, 1, 0.1, 1),
    )
    first, second, third, fourth, last = collapse_sentences(table).splitlines()
    assert first == (
        "- **a**: collapsed at λ = 0.1, not at 1. Attention is spread over 50% of the tiles at λ = 0.1, 75% at 1."
    )
    assert third.startswith("- **c**: no collapse.") and "At λ = 0.1 nothing was learned all the same" in third
    assert "spread down to 0.011 times its start" in third and "nothing was learned" not in first + second + fourth
    assert "at λ = 0.1 the spread falls to 0.004 times its start, yet the classifier still reads" in second
    assert second.endswith("It has gathered at λ = 0.1.") and "gathered" not in first + third + fourth
    assert "pull equally hard at the projection: a λ = 6; b λ = 6; c λ = 6; frozen features never" in last
    spared = table.assign(learned_nothing=False, collapsed=False)
    assert "nothing was learned" not in collapse_sentences(spared), "the record decides, not the mean of L_ce"


@pytest.mark.slow
def test_the_collapse_table_has_the_first_step_and_the_marks(study, tmp_path):
    """The gradient of λ L_ce before the first step grows with λ, that of L_ot does not; on the frozen features L_ot has
    none."""
    bags, folds = study
    configs = {
        key: config
        for key, config in collapse_configs(bags, folds, [0.1, 10], epochs=1, lr=1e-3).items()
        if key[0] in ("linear projection", "frozen features")
    }
    runs = dict(
        zip(
            configs,
            get_runs(
                tmp_path, bags, folds, list(configs.values()), workers=1, report=lambda line: None, only_folds=(0,)
            ),
        )
    )
    table = collapse_table(runs).set_index(["placement", "lam"])
    start = runs["linear projection", 10].records.start.iloc[0]
    ten = table.loc[("linear projection", 10)]
    assert (ten.gradient_ot, ten.gradient_ce) == (start["gradient_ot"], start["gradient_ce"])
    assert ten.gradient_ce == pytest.approx(100 * table.gradient_ce["linear projection", 0.1], rel=1e-5)
    assert table.gradient_ot["frozen features", 10] == 0
    assert ten.gradient_ot == table.gradient_ot["linear projection", 0.1] > 0
    attention = runs["linear projection", 10].records.attention.iloc[0]
    assert ten.effective == min(attention[f"effective_{scale}x"] for scale in (10, 20))
    for (placement, lam), r in runs.items():
        assert table.learned_nothing[placement, lam] == r.records.learned_nothing.iloc[0]


@pytest.mark.slow
def test_figures_hold_the_numbers_and_outlive_a_dead_representation(tmp_path):
    table = placed(
        *[
            (name, lam, spread, ce, 0.5)
            for name in PLACEMENTS
            for lam, spread, ce in ((0.01, 0.0, 1.0), (1.0, 0.5, 1.0), (10.0, 0.9, 0.1))
        ]
    )
    figure = figures.collapse_curves(table, tmp_path / "c")
    assert (drawn(figure, tmp_path / "c").spread_relative == table.spread_relative).all()
    assert min(min(line.get_ydata(), default=1) for line in figure.axes[1].lines) > 0, "a log axis"
    pull, spread, ce, effective = figure.axes
    ours, other = pull.lines[0].get_ydata(), pull.lines[1].get_ydata()
    np.testing.assert_allclose(ours / other, [600, 6, 0.6])
    np.testing.assert_allclose(other, table.gradient_ce[:3])
    assert np.isnan(pull.lines[-3].get_ydata()).all(), "frozen features do not pull"
    assert [line.get_ydata()[0] for line in (ax.lines[-1] for ax in figure.axes[1:])] == [0.01, 0.9, 0.1]
    hollow = effective.lines[1]
    assert hollow.get_markerfacecolor() == "white"
    assert hollow.get_xdata().tolist() == [0.01, 1.0], "at λ = 1 the run learned nothing, with half its spread"
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == [*PLACEMENTS, "collapsed or\nlearned nothing"]
    runs = {0.1: made(1, spread=1e-4), 1.0: made(), ALONE: made(noise=4)}
    lams = lam_table(runs)
    figure = figures.lam_curves(lams, tmp_path / "l")
    data = drawn(figure, tmp_path / "l")
    np.testing.assert_allclose(data.AUC_mean, lams.AUC_mean, rtol=1e-5)
    assert [tick.get_text() for tick in figure.axes[3].get_xticklabels()] == ["0.1", "1", "L_ce\nalone"]
    assert figure.axes[5].get_yscale() == "log" and figure.axes[4].get_yscale() == "linear"
    places = figure.axes[0].get_xticks()
    assert places[-1] > places[-2] and np.isfinite(places).all() and lam_name(ALONE) == "L_ce alone"
