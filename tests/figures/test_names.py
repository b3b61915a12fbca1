"""Names of the user's read in every figure as they were written: no formulas, no empty boxes, none left out."""

import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from dmsmil import figures
from dmsmil.analysis.comparison import compare
from dmsmil.cohorts.folds import make_folds
from dmsmil.figures import base
from dmsmil.interpret.morphology import associations
from tests.cohorts.test_table import cohort
from tests.figures.test_figures import maps_table, tile_table
from tests.training.test_metrics import table

ODD = [r"$\frac{$|*<i>50 %^_\x", "_腺癌 $a$"]  # as a formula the first cannot be read at all


def predictions():
    return table(classes=ODD)


def odd_cohort():
    frame = cohort(20, 5)
    frame = frame.assign(label=frame.label.map(dict(zip(sorted(frame.label.unique()), ODD))))
    return frame.assign(site=[ODD[i % 2] for i in range(len(frame))])


def odd_tiles():
    frame = tile_table()
    return frame.assign(label=frame.label.map(dict(zip("ab", ODD))))


def results():
    frame = pd.DataFrame({"name": ODD, "method": ["dmsmil", "abmil"], "scales": ["10x", "10x"], "collapsed": [0, 0]})
    return frame.assign(
        **{
            f"{metric}_{part}": value
            for metric in ("ACC", "F1", "AUC")
            for part, value in (("mean", 0.8), ("std", 0.1), ("low", 0.7), ("high", 0.9))
        }
    )


def curves():
    return pd.DataFrame(
        [
            {"name": name, "order": order, "share": x, "removed": 0.9 - x, "replaced": 0.9 - x}
            for name in ODD
            for order in ("highest", "lowest", "random")
            for x in (0.0, 0.5)
        ]
    )


def counts():
    return pd.DataFrame({"slide_id": list("abcd"), "label": ODD * 2, "tiles": [3, 5, 8, 8], "density": 0.5})


def said():
    """What 10_apply says of two slides, one of which is unlike."""
    return pd.DataFrame(
        {
            "slide_id": [ODD[0], "b"],
            "label": [ODD[1], ""],
            "models": 2,
            "pred": ["b", ODD[0]],
            f"prob_{ODD[0]}": [0.2, 0.7],
            "prob_b": [0.8, 0.3],
            "lowest": 0.1,
            "highest": 0.9,
            "known": ["", "slide"],
            "unlike": ["colours", ""],
        }
    )


CASES = {
    "cohort_overview": lambda slide: (odd_cohort(), make_folds(odd_cohort(), 3)),
    "site_balance": lambda slide: (odd_cohort(), make_folds(odd_cohort(), 3)),
    "slide_thumbnails": lambda slide: ([slide | {"slide_id": ODD[0], "label": ODD[1]}],),
    "chosen_tiles": lambda slide: ([slide | {"slide_id": name} for name in ODD],),
    "tile_counts": lambda slide: (counts(), 8),
    "feature_map": lambda slide: (np.random.default_rng(0).normal(size=(4, 2)), counts().assign(site=ODD * 2)),
    "result_intervals": lambda slide: (results(),),
    "roc": lambda slide: (predictions(),),
    "confusion_matrix": lambda slide: (predictions(),),
    "calibration_curve": lambda slide: (predictions(),),
    "tile_scores": lambda slide: (slide | {"slide_id": " and ".join(ODD)}, {10: np.arange(6.0) / 5}),
    "method_comparison": lambda slide: ({"10x": results()},),
    "paired_differences": lambda slide: (compare(predictions(), {n: predictions() for n in ODD}, ODD[1]),),
    "critical_difference": lambda slide: (pd.Series(dict(zip([*ODD, "c"], [1.0, 2.0, 3.0]))), 1.5),
    "score_distributions": lambda slide: (odd_tiles(),),
    "nuclei_against_score": lambda slide: (odd_tiles(), associations(odd_tiles())),
    "removal_curves": lambda slide: (curves(),),
    "map_quality": lambda slide: (maps_table(name=[*ODD, "c"]),),
    "cover": lambda slide: (results(), None),
    "said_of_slides": lambda slide: (said(), ODD[0]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_name_is_shown_as_it_was_written(name, slide, tmp_path):
    arguments = CASES[name](slide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # glyphs that are missing, labels that a legend leaves out
        figure = getattr(figures, name)(*arguments, tmp_path / "f")
    shown = [text for text in figure.findobj(Text) if text.get_text()]
    assert not any(text.get_parse_math() for text in shown if "$" in text.get_text())
    words = "\n".join(text.get_text() for text in shown)
    assert all(odd in words for odd in ODD), words


@pytest.mark.slow
def test_what_no_font_can_draw_is_said_in_one_line(tmp_path):
    slides = [{"slide_id": "한국 1", "label": "腺癌", "thumbnail": np.zeros((4, 4, 3), np.uint8), "dimensions": (4, 4)}]
    with pytest.warns(UserWarning) as said:
        figures.slide_thumbnails(slides * 9, tmp_path / "f")
    ours = [str(w.message) for w in said if "Glyph" not in str(w.message)]
    assert ours == ["no font has 국 한: boxes stand for it in the figures. Write the name in other letters."]


def test_chinese_is_drawn_and_not_as_boxes(tmp_path):
    """Two names of as many characters give different pictures; boxes would be alike."""
    for name, label in (("a", "腺癌"), ("b", "鳞癌"), ("c", "腺癌")):
        base.plt.figure().text(0.1, 0.5, label, fontsize=40, fontweight="bold")
        base.finish(base.plt.gcf(), tmp_path / name, pd.DataFrame())
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == c != b


@pytest.mark.parametrize("value, said", [(1e-6, "10⁻⁶"), (1e5, "10⁵"), (1e4, "10000"), (0.02, "0.02"), (3e6, "3e+06")])
def test_numbers_of_a_log_axis_need_no_formula(value, said):
    assert base._plain_number(value, 0) == said


def test_long_names_are_cut_where_they_end():
    assert base.short("a name", 6) == "a name"
    assert base.short("one_long_word_of_a_method", 10) == "one_long_…" and base.short("ab, cd, ef", 5) == "ab…"
