"""Figures: saved with the data behind them, which are the numbers drawn; the same input gives the same bytes."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dmsmil import figures
from dmsmil.cohort import make_folds
from dmsmil.comparison import compare, friedman_nemenyi
from dmsmil.metrics import calibration
from tests.test_cohort import cohort
from tests.test_metrics import table


@pytest.fixture
def slide():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(3), np.arange(2)), -1).reshape(-1, 2) * 512
    return {"slide_id": "s", "label": "a", "thumbnail": rng.integers(0, 255, (40, 60, 3), dtype=np.uint8),
            "dimensions": (1536, 1024), "coords": {10: grid, 20: grid + 100}, "side": {10: 512, 20: 256},
            "density": np.linspace(0.1, 1, 6)}


def drawn(figure, out):
    """The picture is there and not blank; returns the data saved beside it."""
    assert isinstance(figure, Figure)
    pixels = np.asarray(Image.open(out.with_suffix(".png")).convert("L"))
    assert pixels.std() > 3 and min(pixels.shape) > 200
    path = out.with_suffix(".csv")
    return pd.read_csv(path) if path.exists() else np.load(out.with_suffix(".npz"))


def test_cohort_figure(tmp_path):
    frame = cohort(20, 5).assign(site="A")
    data = drawn(figures.cohort_overview(frame, make_folds(frame, 4), tmp_path / "f"), tmp_path / "f")
    assert data.slides.sum() == 25 and data.patients.sum() == 20


def test_slide_figures(slide, tmp_path):
    assert len(drawn(figures.slide_thumbnails([slide] * 5, tmp_path / "a"), tmp_path / "a")) == 5
    data = drawn(figures.chosen_tiles([slide], tmp_path / "b"), tmp_path / "b")
    np.testing.assert_allclose(data.density, slide["density"], atol=1e-5)
    tile = np.zeros((16, 16, 3), np.uint8)
    pair = {"title": "t", "tiles": {10: tile, 20: tile + 99}, "offset": (0.1, 0.2), "share": 0.5}
    assert drawn(figures.linked_pairs([pair, pair], tmp_path / "c"), tmp_path / "c").offset_y[0] == 0.2


def test_plan_points_and_scores(slide, tmp_path):
    plan = np.eye(6) / 6
    data = drawn(figures.transport_plan(slide, plan, tmp_path / "p"), tmp_path / "p")
    np.testing.assert_allclose(data["plan"], plan, atol=1e-7)
    query, points = np.array([[256.0, 256]]), np.full((1, 4, 2), 300.0)
    data = drawn(figures.sampling_points(slide, query, points, np.ones((1, 4)), tmp_path / "q"), tmp_path / "q")
    np.testing.assert_array_equal(data["points"], points)
    scores = {10: np.arange(6.0), 20: np.zeros(6)}  # a constant score must not divide by zero
    data = drawn(figures.tile_scores(slide, scores, tmp_path / "s"), tmp_path / "s")
    np.testing.assert_array_equal(data["scores_10"], scores[10])


def test_result_figures_hold_the_numbers(tmp_path):
    t = table()
    assert drawn(figures.roc(t, tmp_path / "r"), tmp_path / "r").fold.nunique() == 4  # three folds and the pooled one
    assert drawn(figures.confusion_matrix(t, tmp_path / "c"), tmp_path / "c").iloc[:, 1:].to_numpy().sum() == len(t)
    data = drawn(figures.calibration_curve(t, tmp_path / "k"), tmp_path / "k")
    np.testing.assert_allclose(data.observed, calibration(t)[0].observed, rtol=1e-5)
    history = pd.DataFrame([dict(fold=f, seed=0, epoch=e, L_ce=1 / (e + 1), L_ot=0.5, spread=1.0, loss=1.0)
                            for f in range(2) for e in range(5)])
    assert len(drawn(figures.learning_curves(history, tmp_path / "h", 0.69), tmp_path / "h")) == 10
    only = history[["fold", "seed", "epoch", "loss"]]
    assert drawn(figures.learning_curves(only, tmp_path / "o"), tmp_path / "o").shape == (10, 4)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for name in "ab":
        figures.roc(table(), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


# ------------------------------------------------------------------------------------------------ comparison


@pytest.mark.parametrize("cd, bars", [
    (0.5, ["", "", "", ""]),  # exactly cd apart is told apart
    (0.6, ["1", "1 2", "2", ""]),  # a-b and b-c, but not a-c
    (1.1, ["1", "1", "1 2", "2"]),  # b-c lies inside a-b-c and gets no bar of its own
    (9.0, ["1", "1", "1", "1"]),
])
def test_critical_difference_joins_what_is_nearer_than_cd(cd, bars, tmp_path):
    ranks = pd.Series({"d": 3.5, "a": 1.5, "c": 2.5, "b": 2.0})
    drawn(figures.critical_difference(ranks, cd, tmp_path / "c"), tmp_path / "c")
    data = pd.read_csv(tmp_path / "c.csv", dtype={"bars": str}, keep_default_na=False)
    assert list(data.name) == list("abcd") and list(data["rank"]) == [1.5, 2.0, 2.5, 3.5]
    assert list(data.bars) == bars


def test_critical_difference_takes_what_the_test_returns(tmp_path):
    got = friedman_nemenyi(pd.DataFrame(np.random.default_rng(0).normal(size=(11, 10))))
    data = drawn(figures.critical_difference(got.ranks, got.cd, tmp_path / "c"), tmp_path / "c")
    np.testing.assert_allclose(data["rank"], got.ranks, rtol=1e-5)


def test_paired_differences_hold_the_numbers_and_outlive_missing_tests(tmp_path):
    others = {"near": table(seed=0, signal=0.9), "far": table(seed=0, signal=-1.0), "same": table()}
    compared = compare(table(), others, "ILC")
    figure = figures.paired_differences(compared, tmp_path / "p")
    data = drawn(figure, tmp_path / "p")
    np.testing.assert_allclose(data.AUC_low, compared.AUC_low, rtol=1e-5)
    assert [a.get_title(loc="left").split(",")[0] for a in figure.axes] == ["AUC", "ACC", "AUC"]
    untested = compared.assign(**{c: np.nan for c in compared if c.endswith(("_p", "_p_holm", "_low", "_high"))})
    texts = [x.get_text() for a in figures.paired_differences(untested, tmp_path / "u").axes for x in a.texts]
    assert texts.count("not tested") == 9
