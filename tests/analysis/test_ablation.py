"""The ablation: every row and every reading is there, they are compared as said, and the null control is exact."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from dmsmil import figures
from dmsmil.analysis.ablation import (
    ablation_configs,
    ablation_sentences,
    ablation_table,
    is_exact,
    null_configs,
    null_sentence,
    null_table,
    part_gains,
    parts_of,
    pretty_ablation,
)
from dmsmil.analysis.paper import printed_ablation
from dmsmil.analysis.report import paired_tests, saved_tables
from dmsmil.analysis.variants import (
    OPEN,
    PARTS,
    VARIANTS,
    choose_variants,
    pretty_variants,
    variant_configs,
    variant_sentences,
    variant_table,
)
from dmsmil.cohorts.folds import make_folds
from dmsmil.features.bags import toy_bags
from dmsmil.jobs.files import InputError
from dmsmil.models import method
from dmsmil.models.branches import CHOICES
from dmsmil.training.config import configure
from dmsmil.training.metrics import predictions_table, score_by_fold
from dmsmil.training.results import save_table
from dmsmil.training.runs import Runs, get_runs
from tests.figures.test_figures import drawn
from tests.training.test_baselines import cohort_of
from tests.training.test_fit import folds_of, make_bags, quick

SETTINGS = dict(epochs=1, lr=1e-3)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The six rows, trained for one epoch, and what they were trained on."""
    bags = make_bags()
    folds, home = folds_of(bags), tmp_path_factory.mktemp("ablation")
    runs = get_runs(home, bags, folds, ablation_configs(bags, folds, **SETTINGS), workers=1, report=lambda line: None)
    return home, bags, folds, runs, ablation_table(runs, bags, folds, cohort_of(bags))


def made(collapsed=0, signal=1.0, noise=0, spread=1.0):
    """Runs of three folds and two epochs on the same 60 made-up slides, `collapsed` of them collapsed."""
    labels = np.arange(60) // 2 % 2
    value = signal * (2 * labels - 1) + np.random.default_rng(noise).normal(size=60)
    table = predictions_table(
        [f"s{i}" for i in range(60)],
        [f"p{i // 2}" for i in range(60)],
        np.array(["a", "b"])[labels],
        np.stack([expit(-value), expit(value)], 1),
        ["a", "b"],
    )
    keys = {"fold": range(3), "seed": 0}
    history = pd.concat(
        [pd.DataFrame({**keys, "epoch": e, "L_ot": 0.5 / e, "L_ce": 0.7 / e, "spread": spread / e}) for e in (1, 2)]
    )
    records = pd.DataFrame(
        {
            **keys,
            "collapsed": [i < collapsed for i in range(3)],
            "spread_start": 2.0,
            "learned_nothing": False,
            "gathered": False,
            "attention": [{"effective_10x": 0.5}] * 3,
            "prior_entropy": math.log(2),
            "epoch_used": 2,
            "parameters": 7,
            "slides": [{"train": 40, "val": 0, "test": 20}] * 3,
        }
    )
    return Runs(
        None, table.assign(fold=np.arange(60) % 3, seed=0), history, records, {(fold, 0): None for fold in range(3)}
    )


# ------------------------------------------------------------------------------------------------ Tables 4 and 5


@pytest.mark.slow
def test_the_rows_are_those_of_the_paper_and_end_with_the_run_of_the_other_notebooks(rows):
    _, bags, folds, runs, _ = rows
    parts = [parts_of(r.config) for r in runs]
    assert set(parts) == set(printed_ablation("brca")), "each printed row has one of ours, and the reverse"
    assert parts == sorted(parts, key=list(printed_ablation("brca")).index), "in the paper's order"
    assert runs[-1].config.name == configure(bags, folds, "dmsmil", **SETTINGS).name
    assert [r.config.scales for r in runs[:4]] == [(10,), (20,)] * 2, "without fusion: every scale, by itself"


@pytest.mark.slow
def test_the_table_says_which_parts_and_stands_beside_the_baselines(rows, tmp_path):
    _, _, _, runs, table = rows
    assert list(table.columns[:4]) == ["name", "fusion", "ot", "deformable"] and "scales" in table
    assert list(table.name[len(runs) :]) == ["six colour numbers", "always the majority"]
    save_table(table, tmp_path, "05_ablation")
    read = saved_tables(tmp_path)["05_ablation"]
    for part in ("fusion", "ot", "deformable"):
        assert read[part].tolist() == [False if v is False else True if v else "" for v in table[part]]


@pytest.mark.slow
def test_the_papers_values_stand_only_where_it_prints_them(rows):
    table = rows[-1]
    assert not any("paper" in column for column in pretty_ablation(table))
    shown = pretty_ablation(table, "nsclc")["ACC in the paper, TCGA-NSCLC"].tolist()
    assert shown == ["0.8481±0.0208"] * 2 + ["0.8760±0.0346"] * 2 + [
        "0.8857±0.0210",
        "0.8897±0.0194",
        "0.9020±0.0185",
        "0.9200",
        "",
        "",
    ]
    assert pretty_ablation(table)[["fusion", "ot", "deformable"]].iloc[[0, 5, -1]].to_numpy().tolist() == [
        ["–", "–", "–"],
        ["✓", "✓", "–"],
        ["", "", ""],
    ]
    with pytest.raises(InputError, match="paper is 'luad'"):
        pretty_ablation(table, "luad")


@pytest.mark.slow
def test_what_a_part_adds_comes_from_rows_that_differ_in_it_alone(rows):
    """ACC made up as .5 + .1 for fusion + .2 for OT - .05 for deformable attention: each pair must say just that."""
    _, _, _, runs, table = rows
    worth = {"fusion": 0.1, "ot": 0.2, "deformable": -0.05}
    made_up = table.assign(
        ACC_mean=0.5 + sum(table[part].eq(True) * value for part, value in worth.items()), learned_nothing=0
    )
    gains = part_gains(made_up)
    assert gains.groupby("part").size().to_dict() == {"fusion": 4, "ot": 2, "deformable": 4}
    np.testing.assert_allclose(gains.ACC_gain, gains.part.map(worth))
    tests = paired_tests([runs[-1], *runs[:-1]])
    said = ablation_sentences(made_up, tests)
    assert "**Fusion of the scales** raises ACC in 4 of 4 pairs" in said
    assert "**Deformable attention** raises ACC in 0 of 4 pairs" in said and "-0.050, -0.050" in said
    assert said.count("DMSMIL, ot=none") == said.count("DMSMIL, deformable=False") == 1, "tested against these two"
    fallen = made_up.assign(collapsed=[0] * 7 + [5] + [0] * 2)
    assert len(part_gains(fallen)) == 10 - 2 and "DMSMIL collapsed in 5 of 2 runs" in ablation_sentences(fallen, tests)


# ------------------------------------------------------------------------------------------------ readings


SWITCHES = {("shared", True), ("offset_lr", 1.0), ("standardise", True)}  # readings that are no choice among words


def test_every_choice_of_the_model_is_a_reading():
    """What the model can do differently is in the registry; no OT is a row of the ablation, the score a drawing, and
    transport in blocks the same transport for bags of thousands."""
    defaults = method("dmsmil").options()
    choices = {(key, value) for key, values in CHOICES.items() for value in values if value != defaults[key]}
    choices = choices - {("ot", "none"), ("ot", "blocks"), ("score", "norm")} | SWITCHES
    assert choices == {pair for v in VARIANTS.values() for pair in v.options.items()}
    assert {v.point for v in VARIANTS.values()} == set(OPEN)


def test_no_two_readings_are_the_same_run(study):
    bags, folds = study
    configs, left_out = variant_configs(bags, folds, VARIANTS, **SETTINGS)
    assert list(configs) == ["default", *VARIANTS] and not left_out
    assert len({config.name for config in configs.values()}) == len(configs)
    assert configs["default"].name == configure(bags, folds, "dmsmil", **SETTINGS).name


def test_a_reading_is_chosen_by_name():
    assert list(choose_variants(["shared", "map_tile"])) == ["map_tile", "shared"], "in the registry's order"
    assert choose_variants(["all"]) == VARIANTS
    for names, said in ((["map_tiles"], "did you mean 'map_tile'"), ([7], "known: all, map_tile")):
        with pytest.raises(InputError, match=said):
            choose_variants(names)


def test_the_parts_of_the_method_that_chooses_are_taken_away_one_by_one(study):
    bags, folds = study
    configs, left_out = variant_configs(
        bags, folds, choose_variants(["all"], "dmsmil_select"), "dmsmil_select", **SETTINGS
    )
    assert list(configs) == ["default", *PARTS] and not left_out
    assert {config.method for config in configs.values()} == {"dmsmil_select"}
    assert len({config.name for config in configs.values()}) == len(configs), "each is another run"
    with pytest.raises(InputError, match="unknown variant 'map_tile' of dmsmil_select"):
        choose_variants(["map_tile"], "dmsmil_select")


@pytest.mark.slow
def test_what_cannot_run_here_is_left_out_with_its_reason():
    bags = toy_bags(24, 10, channels=18)
    frame = pd.DataFrame(
        {"slide_id": bags.slide_ids, "patient_id": bags.patient_ids, "label": [bags.classes[i] for i in bags.labels]}
    )
    configs, left_out = variant_configs(bags, make_folds(frame, 2, val_share=0.0), VARIANTS, **SETTINGS)
    assert set(left_out) == {"map_tile", "select_val_loss"} and not set(left_out) & set(configs)
    assert "18 features" in left_out["map_tile"] and "raise val_share" in left_out["select_val_loss"]
    said = variant_sentences(variant_table({"default": made(), "shared": made(noise=1)}), left_out)
    assert "- `map_tile` cannot run here: map 'tile' reshapes" in said


@pytest.mark.slow
def test_differences_are_default_minus_reading_by_fold():
    runs = {"default": made(signal=2.0), "map_tile": made(signal=0.1), "shared": made(signal=2.0)}
    table = variant_table(runs).set_index("name")
    for metric in ("AUC", "ACC"):
        scores = {name: score_by_fold(r.predictions)[metric] for name, r in runs.items()}
        gap = (scores["default"] - scores["map_tile"]).mean()
        assert table.at["map_tile", f"{metric}_difference"] == pytest.approx(gap) and gap > 0
        assert table.at["map_tile", f"{metric}_low"] < gap < table.at["map_tile", f"{metric}_high"]
        assert table.at["map_tile", f"{metric}_mean"] == pytest.approx(scores["map_tile"].mean())
        assert table.at["map_tile", f"{metric}_std"] == pytest.approx(np.std(scores["map_tile"], ddof=1))
    assert table.at["shared", "AUC_difference"] == 0 and table.at["shared", "AUC_p_holm"] == 1


def test_a_collapsed_reading_is_no_result_and_so_is_everything_beside_a_collapsed_default():
    runs = {"default": made(), "activation_relu": made(2), "shared": made(noise=2)}
    table = variant_table(runs)
    assert table.AUC_difference.isna().tolist() == [True, False] and table.AUC_note[0] == "collapsed"
    said = variant_sentences(table, {})
    assert "`activation_relu` collapsed in 2 of 3 runs: no result." in said and "activation_relu`:" not in said
    assert pretty_variants(table).note.tolist() == ["2 of 3 runs collapsed", ""]
    everything = variant_table({**runs, "default": made(1)})
    assert everything.AUC_difference.isna().all() and "No reading can be compared" in variant_sentences(everything, {})


@pytest.mark.slow
def test_no_reading_at_all_is_an_empty_table_and_a_sentence(tmp_path):
    table = variant_table({"default": made()})
    assert (
        table.empty
        and pretty_variants(table).empty
        and list(table) == list(variant_table({"default": made(), "shared": made()}))
    )
    figures.variant_differences(table, tmp_path / "v")
    for none in (table, table.assign(classes=3)):  # of two classes, and of three
        assert pretty_variants(none).empty
        said = variant_sentences(none, {"map_tile": "why"}).splitlines()
        assert said == ["- No reading but the default could run here.", "- `map_tile` cannot run here: why"]
    assert choose_variants([]) == {} and variant_sentences(table, {}) == "No other reading was asked for (`variants`)."


def test_the_sentence_about_readings_turns_with_p():
    table = variant_table({"default": made(), "shared": made(noise=1), "map_tile": made(noise=2)})
    assert "None of the 2 readings compared is shown to differ" in variant_sentences(table.assign(AUC_p_holm=0.5), {})
    sure = table.assign(AUC_difference=[0.2, -0.2], AUC_p_holm=[0.01, 0.02], ACC_p_holm=0.5)
    said = variant_sentences(sure, {})
    assert "The default is better than shared by 0.200 AUC" in said and "None of the" not in said
    assert "The default is worse than map_tile by 0.200 AUC" in said
    same = table.assign(AUC_p_holm=0.5, ACC_p_holm=0.5, AUC_p_equivalent_holm=[0.01, 0.2], ACC_p_equivalent_holm=0.01)
    assert pretty_variants(same).note.tolist() == ["equivalent in AUC and ACC", "equivalent in ACC"]
    said = variant_sentences(same, {})
    assert "Equivalent to the default, less than 0.02 from it: shared by AUC; shared, map_tile by ACC." in said
    assert "Equivalent" not in variant_sentences(same.assign(AUC_p_equivalent_holm=0.2, ACC_p_equivalent_holm=0.2), {})


@pytest.mark.slow
def test_the_figure_of_readings_holds_the_numbers_and_marks_what_is_no_result(tmp_path):
    runs = {
        "default": made(),
        **{name: made(3 * (name == "activation_relu"), noise=i + 1) for i, name in enumerate(VARIANTS)},
    }
    table = variant_table(runs)
    figure = figures.variant_differences(table, tmp_path / "v")
    np.testing.assert_allclose(drawn(figure, tmp_path / "v").AUC_difference, table.AUC_difference, rtol=1e-5)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts.count("collapsed in 3 of 3 runs: no result") == 1
    assert [text for text in texts if " · " in text] == [f"{number} · {OPEN[number]}" for number in sorted(OPEN)]
    points = sum(line.get_marker() == "o" for line in figure.axes[0].lines)
    assert points == len(VARIANTS) - 1, "a collapsed reading has no point"


# ------------------------------------------------------------------------------------------------ the null control


@pytest.mark.slow
def test_transport_on_frozen_features_is_no_transport_to_the_last_digit(study, tmp_path):
    bags, folds = study
    configs = [*null_configs(bags, folds, epochs=3, lr=1e-3), quick(bags, folds)]
    raw, none, real = get_runs(tmp_path, bags, folds, configs, [0, 1], 1, report=lambda line: None)
    null = null_table(raw, none)
    assert len(null) == 4 and (null.largest_difference == 0).all() and is_exact(null)
    assert (raw.history.L_ot > 0).all(), "it was computed; it has no gradient"
    assert "**exactly** the predictions of no OT, in all 4 runs" in null_sentence(null)
    assert not is_exact(null_table(real, none)), "OT that does act is seen"


def test_a_null_control_that_fails_is_said_and_does_not_crash():
    one, other = made(), made()
    other.predictions.loc[0, ["prob_a", "prob_b"]] += [1e-9, -1e-9]
    null = null_table(one, other)
    assert (null.largest_difference > 0).sum() == 1 and not is_exact(null)
    assert "**The null control fails**: in 1 of 3 runs" in null_sentence(null) and "1e-09" in null_sentence(null)
    lost = Runs(None, one.predictions.drop(index=0), pd.DataFrame(), one.records, one.folders)
    assert np.isinf(null_table(lost, one).largest_difference).sum() == 1, "another slide is a difference"
    nothing = null_table(one, Runs(None, one.predictions, pd.DataFrame(), one.records, {}))
    assert nothing.empty and not is_exact(nothing) and "was not made" in null_sentence(nothing)
