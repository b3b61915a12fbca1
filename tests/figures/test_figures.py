"""Figures: saved with the data behind them, which are the numbers drawn; the same input gives the same bytes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import roc_auc_score

from dmsmil import figures
from dmsmil.analysis.comparison import compare
from dmsmil.analysis.ranks import friedman_nemenyi
from dmsmil.cohorts.folds import make_folds
from dmsmil.figures.base import in_percent, to_own_child
from dmsmil.interpret.faithfulness import MEASURES
from dmsmil.interpret.morphology import associations
from dmsmil.training.metrics import calibration, summarise
from dmsmil.training.results import NO_MARKS
from tests.cohorts.test_table import cohort
from tests.training.test_metrics import table

pytestmark = pytest.mark.slow


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


def test_site_balance_counts_the_tested_patients(tmp_path):
    frame = cohort(40, 5).assign(site=[f"S{i % 60}" if i % 7 else "" for i in range(45)])
    table = make_folds(frame, 4)
    data = drawn(figures.site_balance(frame, table, tmp_path / "f"), tmp_path / "f")
    at = frame.assign(site=frame.site.replace("", "not given")).set_index("slide_id").site
    for row in data.itertuples():
        here = table[(table[f"fold_{row.fold}"] == "test") & (table.label == row.label)]
        assert row.patients == here.patient_id[here.slide_id.map(at) == row.site].nunique()
    assert set(data.site) == set(at) and set(data.fold) == set(range(4))
    many = pd.concat(
        [
            frame.assign(
                slide_id=f"{i}" + frame.slide_id, patient_id=f"{i}" + frame.patient_id, site=f"hospital {i}" * 3
            )
            for i in range(60)
        ]
    )
    drawn(figures.site_balance(many, make_folds(many, 2), tmp_path / "g"), tmp_path / "g")


def test_of_repeats_the_first_is_drawn_by_site_and_all_are_counted(tmp_path):
    frame = cohort(40, 5).assign(site=[f"S{i % 3}" for i in range(45)])
    table = make_folds(frame, 4, repeats=6)
    figure = figures.site_balance(frame, table, tmp_path / "f")
    data = drawn(figure, tmp_path / "f")
    assert set(data.fold) == set(range(24)) and len(figure.axes[0].get_yticks()) == 4
    assert figure.axes[0].get_title(loc="left") == "Patients tested, repeat 1 of 6"
    whole = figures.cohort_overview(frame, table, tmp_path / "g")
    assert drawn(whole, tmp_path / "g").patients.sum() == 6 * 40 and len(whole.axes[1].get_xticks()) == 12
    table["fold_1"] = table.fold_0  # tested twice in the first four: no partition
    assert len(figures.site_balance(frame, table, tmp_path / "h").axes[0].get_yticks()) == 24


def test_slide_figures(slide, tmp_path):
    assert len(drawn(figures.slide_thumbnails([slide] * 5, tmp_path / "a"), tmp_path / "a")) == 5
    data = drawn(figures.chosen_tiles([slide], tmp_path / "b"), tmp_path / "b")
    np.testing.assert_allclose(data.density, slide["density"], atol=1e-5)
    tile = np.zeros((16, 16, 3), np.uint8)
    pair = {"title": "t", "tiles": {10: tile, 20: tile + 99}, "inside": {20: (0.1, 0.2, 0.5)}}
    assert drawn(figures.linked_pairs([pair, pair], tmp_path / "c"), tmp_path / "c").offset_y[0] == 0.2


def test_plan_points_and_scores(slide, tmp_path):
    plan = np.eye(6) / 6
    data = drawn(figures.transport_plan(slide, [plan], tmp_path / "p"), tmp_path / "p")
    np.testing.assert_allclose(data["plan_10x_20x"], plan, atol=1e-7)
    query, points = np.array([[256.0, 256]]), np.full((1, 4, 2), 300.0)
    data = drawn(figures.sampling_points(slide, query, points, np.ones((1, 4)), tmp_path / "q"), tmp_path / "q")
    np.testing.assert_array_equal(data["points"], points)
    scores = {10: np.arange(6.0) / 5, 20: np.full(6, 0.5)}
    figure = figures.tile_scores(slide, scores, tmp_path / "s")
    np.testing.assert_array_equal(drawn(figure, tmp_path / "s")["scores_10"], scores[10])
    middle = figure.axes[2].collections[0].get_facecolor()  # a constant map lies in the middle of the colour bar
    np.testing.assert_allclose(middle, [[*plt.get_cmap("inferno")(0.5)[:3], 0.5]] * 6)


def test_a_tile_meets_its_own_child_wherever_others_have_none(slide, tmp_path):
    """The first tile has no finer one: row i of the plan and column i are no tile and its child."""
    alone = {**slide, "places": {10: np.arange(6), 20: np.arange(1, 6)}}
    alone["coords"] = {10: slide["coords"][10], 20: slide["coords"][20][1:]}
    plan = np.zeros((6, 5))
    plan[np.arange(1, 6), np.arange(5)] = 1 / 5
    figure = figures.transport_plan(alone, [plan], tmp_path / "p")
    assert figure.axes[0].get_title(loc="left") == (
        "OT plan: 100% of the mass goes from a tile to its own child (dark); chance 20%"
    )
    dark = [c for c in figure.axes[0].collections if isinstance(c, LineCollection) and c.get_linewidth()[0] == 1.8]
    assert len(dark[0].get_segments()) == 5


def test_chance_is_of_the_tiles_that_are_coupled():
    """DMSMIL-Select couples its heaviest places alone: two of six meet by chance in half of the draws."""
    places, plan = np.arange(6), np.zeros((6, 6))
    plan[np.ix_([1, 4], [1, 4])] = 1 / 4
    assert to_own_child(plan, places, places) == (pytest.approx(0.5), pytest.approx(0.5))
    plan = np.eye(6)[np.random.default_rng(0).permutation(6)] / 6
    assert to_own_child(plan, places, places) == (pytest.approx(np.trace(plan)), pytest.approx(1 / 6))
    assert in_percent([0.5, 0.501]) == "50%" and in_percent([0.5, 0.25]) == "50% and 25%"


def test_where_there_is_nothing_to_draw_no_picture_of_an_earlier_run_stays(slide, tmp_path):
    out = tmp_path / "03_dmsmil_plan"
    figures.transport_plan(slide, [np.eye(6) / 6], out)
    kept = tmp_path / "03_dmsmil_plan2.png"
    kept.touch()
    assert len(list(tmp_path.iterdir())) == 3
    assert figures.absent(out, "no OT here") == "no OT here" == figures.absent(out, "no OT here")
    assert list(tmp_path.iterdir()) == [kept]


def test_result_figures_hold_the_numbers(tmp_path):
    t = table()
    assert drawn(figures.roc(t, tmp_path / "r"), tmp_path / "r").fold.nunique() == 4  # three folds and the pooled one
    assert drawn(figures.confusion_matrix(t, tmp_path / "c"), tmp_path / "c").iloc[:, 1:].to_numpy().sum() == len(t)
    data = drawn(figures.calibration_curve(t, tmp_path / "k"), tmp_path / "k")
    np.testing.assert_allclose(data.observed, calibration(t)[0].observed, rtol=1e-5)
    history = pd.DataFrame(
        [
            dict(fold=f, seed=0, epoch=e, L_ce=1 / (e + 1), L_ot=0.5, spread=1.0, loss=1.0)
            for f in range(2)
            for e in range(5)
        ]
    )
    assert len(drawn(figures.learning_curves(history, tmp_path / "h", 0.69), tmp_path / "h")) == 10
    only = history[["fold", "seed", "epoch", "loss"]]
    assert drawn(figures.learning_curves(only, tmp_path / "o"), tmp_path / "o").shape == (10, 4)


def watched_history():
    """Two runs of 20 epochs that were looked at before the first step and after epochs 1, 10 and 20."""
    rows = []
    for fold in range(2):
        for epoch in range(21):
            row = {"fold": fold, "seed": 0, "epoch": epoch, "L_ce": 0.7 / (epoch + 1), "L_ot": 3.0, "spread": 1.0}
            if epoch in (0, 1, 10, 20):
                row |= {f"effective_{s}x": 0.9 - 0.1 * fold - epoch / 100 for s in (10, 20)}
                row |= {f"{name}_{s}x": 0.1 + fold / 10 for name in ("beyond_reach", "at_border") for s in (10, 20)}
                row |= {"gradient_ot": 8.0 / (epoch + 1), "gradient_ce": 2.0 + 4.0 * fold}
            rows.append(row)
    return pd.DataFrame(rows)


def titles(figure):
    return [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible()]


def test_attention_and_gradients_stand_beside_the_losses_where_they_were_looked_at(tmp_path):
    figure = figures.learning_curves(watched_history(), tmp_path / "w", 0.69)
    assert len(drawn(figure, tmp_path / "w")) == 42
    assert titles(figure)[3:] == ["effective tiles", "sampling points", "pull at the projection"]
    losses, effective, sampling, gradients = (figure.axes[i] for i in (0, 3, 4, 5))
    assert losses.lines[-2].get_xdata().tolist() == list(range(1, 21)), "a loss after each epoch, none before the first"
    mean = {line.get_label(): line for line in effective.lines if line.get_marker() == "o"}
    assert list(mean) == ["10x", "20x"]
    np.testing.assert_allclose(mean["10x"].get_data(), [[0, 1, 10, 20], [0.85, 0.84, 0.75, 0.65]])
    assert effective.lines[-1].get_ydata()[0] == 0.1, "below, a run is marked"
    assert [text.get_text() for text in sampling.get_legend().get_texts()] == [
        "10x, near the end of reach",
        "20x, near the end of reach",
        "10x, off the map",
        "20x, off the map",
    ]
    both = {line.get_label(): line.get_ydata() for line in gradients.lines if line.get_marker() == "o"}
    np.testing.assert_allclose(both["of L_ot"], [8, 4, 8 / 11, 8 / 21])
    np.testing.assert_allclose(both["of λ L_ce"], 4.0)
    assert gradients.get_yscale() == "log"
    assert gradients.get_legend().get_title().get_text() == "L_ot / λ L_ce before the first step: 2"


@pytest.mark.parametrize(
    "lacking, panels",
    [
        (["beyond_reach", "at_border"], ["effective tiles", "pull at the projection"]),
        (["gradient", "L_ot", "spread"], ["effective tiles", "sampling points"]),
        (["gradient", "L_ot", "spread", "beyond_reach", "at_border"], ["effective tiles"]),
    ],
)
def test_a_method_has_the_panels_of_what_it_has(lacking, panels, tmp_path):
    history = watched_history()
    history = history.drop(columns=[name for name in history if name.startswith(tuple(lacking))])
    assert [
        title
        for title in titles(figures.learning_curves(history, tmp_path / "p"))
        if "L_" not in title and title != "feature spread"
    ] == panels
    silent = watched_history().assign(gradient_ot=0.0)
    assert "pull at the projection" not in titles(figures.learning_curves(silent, tmp_path / "q")), "no L_ot that pulls"


def legend(figure):
    return [" ".join(text.get_text().split()) for text in figure.axes[0].get_legend().get_texts()]


def test_each_curve_has_the_name_and_the_auc_of_its_own_fold(tmp_path):
    """Fold 0 tests one class: it has no curve, and the others keep their numbers."""
    question, last = "ILC against IDC", "ILC"
    t = table(90)
    t = t[(t.fold != 0) | (t.label != last)]
    figure = figures.roc(t, tmp_path / "r")
    own = {
        fold: roc_auc_score(part.label == last, part[f"prob_{last}"]) for fold, part in t[t.fold > 0].groupby("fold")
    }
    pooled = roc_auc_score(t.label == last, t[f"prob_{last}"])
    assert legend(figure) == [
        f"fold 1, AUC {own[1]:.2f}",
        f"fold 2, AUC {own[2]:.2f}",
        "no curve, one class tested: fold 0",
        f"all folds pooled, AUC {pooled:.2f}",
    ]
    assert figure.axes[0].get_title(loc="left") == f"ROC: {question}"
    data = drawn(figure, tmp_path / "r")
    for line, (_, points) in zip(figure.axes[0].lines, data[data.fold > 0].groupby("fold")):
        np.testing.assert_allclose(line.get_ydata(), points.tpr, atol=1e-6)
    assert (
        figures.calibration_curve(t, tmp_path / "c")
        .axes[0]
        .get_title(loc="left")
        .startswith(f"Calibration: {question}\nECE ")
    )


def test_of_three_classes_each_has_its_curve_against_the_rest(tmp_path):
    t = table(90, classes=("a", "b", "c"))
    figure = figures.roc(t, tmp_path / "r", "b")
    pooled = [f"{c} against the rest, AUC {roc_auc_score(t.label == c, t[f'prob_{c}']):.2f}" for c in "abc"]
    folds = np.mean(
        [[roc_auc_score(part.label == c, part[f"prob_{c}"]) for c in "abc"] for _, part in t.groupby("fold")]
    )
    assert legend(figure) == [*pooled, f"one-vs-rest AUC, mean over folds: {folds:.2f}"]
    data = drawn(figure, tmp_path / "r")
    assert data.groupby("class").fold.unique().map(sorted).tolist() == [[-1, 0, 1, 2]] * 3
    said = figures.calibration_curve(t, tmp_path / "c")
    errors = [calibration(t, c)[1] for c in "abc"]
    assert legend(said) == [f"{c}, ECE {error:.3f}" for c, error in zip("abc", errors)]
    assert said.axes[0].get_title(loc="left") == (
        f"Calibration: each class against the rest\nmean ECE {np.mean(errors):.3f}"
    )
    assert list(drawn(said, tmp_path / "c")["class"].unique()) == ["a", "b", "c"]


def test_figures_of_three_classes_call_their_metrics_what_they_are(tmp_path):
    t = table(90, classes=("a", "b", "c"))
    others = {"other": table(90, signal=0.5, classes=("a", "b", "c"))}
    rows = pd.DataFrame(
        [
            {
                "name": "DMSMIL",
                "method": "dmsmil",
                "scales": "5x+10x+20x",
                **summarise(t, draws=20),
                "runs": 3,
                **NO_MARKS,
            }
        ]
    )
    names = ["ACC", "macro-F1", "one-vs-rest AUC"]
    assert titles(figures.result_intervals(rows, tmp_path / "a")) == names
    assert titles(figures.method_comparison({"all": rows}, tmp_path / "b")) == names
    for positive, third in (
        ("", "AUC, pooled (DeLong)\nneeds two classes"),
        ("b", "AUC of b against\nthe rest, pooled (DeLong)"),
    ):
        figure = figures.paired_differences(compare(t, others, positive), tmp_path / "c")
        assert titles(figure) == ["one-vs-rest AUC,\nmean over folds", "ACC, mean over folds", third]


def test_curves_of_several_seeds_and_of_folds_of_one_slide(tmp_path):
    t = pd.concat([table(seed=seed).assign(seed=seed) for seed in (0, 1)])
    assert legend(figures.roc(t, tmp_path / "s"))[:2] == [
        f"fold 0, seed {seed}, AUC {roc_auc_score(part.label == 'ILC', part.prob_ILC):.2f}"
        for seed, part in t[t.fold == 0].groupby("seed")
    ]
    alone = table(24).assign(fold=np.arange(24))  # leave one out: no fold has a curve
    said = legend(figures.roc(alone, tmp_path / "o"))
    assert said[0].startswith("no curve, one class tested: fold 0, fold 1,") and said[0].endswith("and 14 more")
    assert said[1] == f"all folds pooled, AUC {roc_auc_score(alone.label == 'ILC', alone.prob_ILC):.2f}"


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for name in "ab":
        figures.roc(table(), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


# ------------------------------------------------------------------------------------------------ comparison


@pytest.mark.parametrize(
    "cd, bars",
    [
        (0.5, ["", "", "", ""]),  # exactly cd apart is told apart
        (0.6, ["1", "1 2", "2", ""]),  # a-b and b-c, but not a-c
        (1.1, ["1", "1", "1 2", "2"]),  # b-c lies inside a-b-c and gets no bar of its own
        (9.0, ["1", "1", "1", "1"]),
    ],
)
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


# ------------------------------------------------------------------------------------------------ interpretation


def tile_table(value=None, slides=8, count=20):
    """A table of `tile_scores` and nuclei; value: the normalised score of every tile, or random ones."""
    rng = np.random.default_rng(0)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "slide_id": f"s{i}",
                    "patient_id": f"p{i}",
                    "label": "ab"[i % 2],
                    "scale": scale,
                    "place": np.arange(count),
                    "normalised": rng.uniform(size=count) if value is None else value,
                    "area_um2": rng.uniform(20, 90, count),
                    "density_mm2": rng.uniform(0, 6000, count),
                    "lymphocyte_share": rng.uniform(0, 1, count),
                }
            )
            for i in range(slides)
            for scale in (10, 20)
        ],
        ignore_index=True,
    )


def maps_table(truth=True, **changed):
    """A summary of `faithfulness.measure` of three methods."""
    columns = [*MEASURES, *(f"truth_{r}{s}x" for s in (10, 20) for r in ("", "random_") if truth)]
    values = np.random.default_rng(0).uniform(-0.2, 0.9, (3, len(columns)))
    table = pd.DataFrame({"name": ["DMSMIL", "ABMIL 10x", "mean"], "method": ["dmsmil", "abmil", "meanpool"]})
    for column, value in zip(columns, values.T):
        table[[column, f"{column}_low", f"{column}_high"]] = np.stack([value, value - 0.1, value + 0.1], 1)
    return table.assign(**changed)


def test_extreme_tiles_hold_which_they_are_and_may_be_few(tmp_path):
    tile = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    rows = {10: [(3, 1.0), (1, 0.8), (2, 0.7)], 20: [(5, 1.0)]}
    tiles = {
        scale: {
            which: [{"tile": tile, "place": place, "normalised": value} for place, value in row]
            for which in ("highest", "lowest")
        }
        for scale, row in rows.items()
    }
    figure = figures.extreme_tiles(tiles, tmp_path / "e")
    data = drawn(figure, tmp_path / "e")
    assert list(data.place) == [3, 1, 2] * 2 + [5] * 2 and list(data.scale) == [10] * 6 + [20] * 2
    assert [a.get_title(loc="left") for a in figure.axes if a.images] == [f"{v:.3f}" for v in data.normalised]
    shown = [a.images[0].get_array() for a in figure.axes if a.images]
    assert all(np.array_equal(image, tile) for image in shown)


def test_score_distributions_draw_the_slides_means(tmp_path):
    table = tile_table()
    figure = figures.score_distributions(table, tmp_path / "d")
    data = drawn(figure, tmp_path / "d")
    by_hand = table.groupby(["scale", "label", "slide_id"]).normalised.mean()
    np.testing.assert_allclose(data.normalised, by_hand, rtol=1e-5)
    for ax, scale in zip(figure.axes, (10, 20)):
        dots = np.concatenate([c.get_offsets() for c in ax.collections if len(c.get_offsets()) == 4])[:, 0]
        np.testing.assert_allclose(np.sort(dots), np.sort(data.normalised[data.scale == scale]), rtol=1e-5)


@pytest.mark.parametrize("value", [0.5, np.nan], ids=["constant", "nan"])
def test_distributions_of_a_map_that_says_nothing(value, tmp_path):
    data = drawn(figures.score_distributions(tile_table(value), tmp_path / "d"), tmp_path / "d")
    assert len(data) == 16 and (data.normalised.isna() if np.isnan(value) else data.normalised == 0.5).all()


@pytest.mark.parametrize("value", [0.5, np.nan], ids=["constant", "nan"])
def test_nuclei_against_a_map_that_says_nothing(value, tmp_path):
    table = tile_table(value)
    found = associations(table)
    data = drawn(figures.nuclei_against_score(table, found, tmp_path / "n"), tmp_path / "n")
    assert data.rho.isna().all() and len(data) == (9 if np.isnan(value) else 15)  # all tiles in the middle fifth


def test_attention_flow_draws_an_arrow_a_tile_and_head(slide, tmp_path):
    start = slide["coords"][10] + 256.0
    end = start[:, None] + np.array([[300.0, 0], [0, -200], [0, 0]])
    for name, mass in (("one", np.arange(6.0) / 15), ("flat", np.full(6, 1 / 6))):
        figure = figures.attention_flow(slide, start, end, mass, tmp_path / name)
        data = drawn(figure, tmp_path / name)
        for key, value in (("start", start), ("end", end), ("mass", mass)):
            np.testing.assert_array_equal(data[key], value)
        arrows, dots = ([c for c in figure.axes[0].collections if hasattr(c, "U") is has] for has in (True, False))
        np.testing.assert_allclose(np.stack([arrows[0].U, arrows[0].V], 1), end[:, 0] - start)
        np.testing.assert_allclose(dots[0].get_array(), 6 * mass)  # 1 is an equal share
        assert [a.get_title(loc="left") for a in figure.axes[:3]] == ["head 1", "head 2", "head 3"]


@pytest.mark.parametrize("methods", [1, 5])
def test_removal_curves_are_the_table(methods, tmp_path):
    share = np.linspace(0, 0.9, 10)
    table = pd.DataFrame(
        [
            {"name": f"M{m}", "order": order, "share": x, "removed": 0.9 - x / 2, "replaced": 0.8 - m * x / 9}
            for m in range(methods)
            for order in ("highest", "lowest", "random")
            for x in share
        ]
    )
    table.loc[table.name == "M0", "removed"] = 0.7  # a constant curve
    for way in ("removed", "replaced"):
        figure = figures.removal_curves(table, tmp_path / way, way)
        pd.testing.assert_frame_equal(drawn(figure, tmp_path / way), table, rtol=1e-5)
        shown = [a for a in figure.axes if a.get_visible()]
        assert [a.get_title(loc="left") for a in shown] == [f"M{m}" for m in range(methods)]
        for ax in shown:
            part = table[(table.name == ax.get_title(loc="left")) & (table.order == "highest")]
            np.testing.assert_allclose(ax.lines[0].get_ydata(), part[way])
    assert (
        drawn(figures.removal_curves(table.assign(replaced=np.nan), tmp_path / "nan"), tmp_path / "nan")
        .replaced.isna()
        .all()
    )


def test_map_quality_draws_the_summary_with_and_without_truth(tmp_path):
    for truth in (True, False):
        table = maps_table(truth)
        figure = figures.map_quality(table, tmp_path / "q")
        pd.testing.assert_frame_equal(drawn(figure, tmp_path / "q"), table, rtol=1e-5)
        assert len(figure.axes) == 2 + truth
        dots = {line.get_label(): line for line in figure.axes[1].lines}
        np.testing.assert_allclose(dots["occlusion"].get_xdata(), table.occlusion)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list(table.name)


def test_map_quality_leaves_out_what_a_constant_map_does_not_have(tmp_path):
    gone = {
        f"{c}{end}": [0.1, 0.1, np.nan]
        for c in ("occlusion", "gradient", "random_weights")
        for end in ("", "_low", "_high")
    }
    figure = figures.map_quality(maps_table(**gone), tmp_path / "q")
    assert drawn(figure, tmp_path / "q").occlusion.isna().tolist() == [False, False, True]
    dots = {line.get_label(): line for line in figure.axes[1].lines}
    assert len(dots["occlusion"].get_xdata()) == 2
    none = maps_table(**{column: np.nan for column in gone})
    assert len(drawn(figures.map_quality(none, tmp_path / "n"), tmp_path / "n")) == 3


def test_nuclei_against_score_draws_means_in_fifths_and_says_the_correlation(tmp_path):
    table = tile_table().query("scale == 20")
    table.loc[table.place < 3, "area_um2"] = np.nan  # tiles without nuclei
    found = associations(table)
    figure = figures.nuclei_against_score(table, found, tmp_path / "n")
    data = drawn(figure, tmp_path / "n")
    pd.testing.assert_frame_equal(data[data.fifth.isna()][list(found)], found, rtol=1e-5, check_dtype=False)
    bins = pd.cut(table.normalised, np.linspace(0, 1, 6), right=False).rename("bin")
    by_patient = table[table.label == "a"].groupby([bins, "patient_id"], observed=True).area_um2.mean()
    by_hand = by_patient.groupby("bin", observed=True).mean()
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), by_hand, rtol=1e-6)
    drawn_means = data[(data.what == "area_um2") & (data.label == "a") & data.fifth.notna()]["mean"]
    np.testing.assert_allclose(drawn_means, by_hand, rtol=1e-5)
    said = [x.get_text() for x in figure.axes[1].texts]
    assert said[-1].startswith(f"all: ρ = {found.rho[5]:+.2f} [") and len(said) == 3
