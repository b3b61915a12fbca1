"""Three classes and three scales, from 00 to 10: what the study says is true of them, and named as what it is."""

import json
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import f1_score, roc_auc_score

from dmsmil.analysis.report import saved_results
from dmsmil.apply.card import card
from dmsmil.apply.folder import is_kit
from dmsmil.apply.travel import read_kit, write_kit
from dmsmil.book.build import _cover
from dmsmil.slides.magnification import tile_size_level0
from dmsmil.slides.store import Store
from dmsmil.study.applying import open_kit
from dmsmil.study.params import notebooks
from dmsmil.training.metrics import NEEDS_TWO

CLASSES, SCALES = ["island-like", "maze-like", "pocket-like"], (5, 10, 20)


def table(home, name):
    return pd.read_csv(home / f"tables/{name}.csv", keep_default_na=False, na_values=[""])


def shown(home, notebook, kinds=("text/markdown", "text/html")):
    """What a notebook shows, as text."""
    cells = nbformat.read(home / f"notebooks/{notebook}.ipynb", 4).cells
    outputs = [o for c in cells if c.cell_type == "code" for o in c.outputs]
    assert not any(o.output_type == "error" or o.get("name") == "stderr" for o in outputs), notebook
    return "\n".join(o["data"][kind] for o in outputs for kind in kinds if "data" in o and kind in o["data"])


def test_every_notebook_runs_and_every_figure_has_its_data(three):
    home, said = three
    assert sorted(p.stem for p in (home / "notebooks").glob("[0-9]*.ipynb")) == [p.stem for p in notebooks()]
    assert not (home / "failures.csv").exists() and not (home / "apply/failures.csv").exists()
    pictures = {p.stem for p in (home / "figures").glob("*.png")}
    assert pictures == {p.stem for p in (home / "figures").glob("*") if p.suffix in (".csv", ".npz")}
    assert {"10_slides", "10_external", "07_plan", "03_dmsmil_roc"} <= pictures
    assert f"{'':4}{'':<19}  {'ACC':>6} macro-F1 one-vs-rest AUC  95 % of one-vs-rest AUC" in said


def test_no_table_and_no_sentence_calls_a_mean_over_classes_f1_or_auc(three):
    home, _ = three
    bare = re.compile(r"(?<!one-vs-rest )(?<!pooled )\bAUC\b(?! against the truth)|(?<!macro-)\bF1\b")
    for notebook in notebooks():
        text = shown(home, notebook.stem)
        assert "NaN" not in text or notebook.stem in ("09_report", "10_apply"), notebook.stem  # its own time; no label
        found = [text[max(0, m.start() - 60) : m.end() + 20] for m in bare.finditer(text)]
        assert not [one for one in found if "λ = 1 is best, in ACC, F1 and AUC" not in one], notebook.stem
    for notebook in ("03_train", "04_compare", "05_ablation", "06_lambda", "09_report", "10_apply"):
        assert "macro-F1" in shown(home, notebook) and "one-vs-rest AUC" in shown(home, notebook), notebook
    assert "one-vs-rest AUC" in shown(home, "02_features")


def test_the_numbers_are_scikit_learns(three):
    home, _ = three
    said = table(home, "03_dmsmil_predictions")
    columns = [f"prob_{name}" for name in CLASSES]
    np.testing.assert_allclose(said[columns].sum(axis=1), 1, atol=1e-5)
    f1s, aucs = [], []
    for _, part in said.groupby(["fold", "seed"]):
        values = part[columns].to_numpy(float)
        f1s.append(f1_score(part.label, part.pred, average="macro"))
        aucs.append(roc_auc_score(part.label, values / values.sum(1, keepdims=True), multi_class="ovr"))
    first = table(home, "04_compare").iloc[0]
    assert (first["name"], first.scales, first.classes) == ("DMSMIL", "5x+10x+20x", 3)
    assert first.F1_mean == pytest.approx(np.mean(f1s), abs=1e-5)
    assert first.AUC_mean == pytest.approx(np.mean(aucs), abs=1e-5)


def test_every_tile_lies_in_that_of_the_scale_before_it(three):
    home, _ = three
    store = Store(home, 128, SCALES)
    side = {scale: tile_size_level0(20, scale, 128) for scale in SCALES}
    for slide_id in pd.read_csv(home / "cohort.csv").slide_id:
        tiles = store.read_tiles(slide_id)
        assert {len(tiles.coords[scale]) for scale in SCALES} == {6}
        for coarse, fine in zip(SCALES, SCALES[1:]):
            inside = tiles.coords[fine] - tiles.coords[coarse]
            assert inside.min() >= 0 and (inside + side[fine]).max() <= side[coarse]


def test_what_asks_about_two_classes_says_that_it_needs_them(three):
    home, _ = three
    tests = table(home, "04_tests")
    assert tests.DeLong_p.isna().all() and (tests.DeLong_note == f"it {NEEDS_TWO}").all()
    assert tests.AUC_p.notna().any(), "the other tests are made"
    claims = table(home, "09_claims")
    asked = claims[claims.claim == "Slides of one class score lower than those of the other"]
    assert asked[["verdict", "number"]].to_numpy().tolist() == [["not run", "it needs two classes"]]
    assert set(claims.verdict) - {"not run"}, "the others are judged"
    meaning = shown(home, "09_report")
    assert "macro-F1 and one-vs-rest AUC are means over the 3 classes, each against the rest" in meaning
    curves = pd.read_csv(home / "figures/10_external.csv")
    assert set(curves.curve) == {"calibration"} and set(curves["class"]) == set(CLASSES), "no decision curve"


def test_figures_have_a_curve_a_class_and_a_panel_a_scale(three):
    home, _ = three
    assert set(pd.read_csv(home / "figures/03_dmsmil_roc.csv")["class"]) == set(CLASSES)
    assert set(pd.read_csv(home / "figures/03_dmsmil_calibration.csv")["class"]) == set(CLASSES)
    matrix = pd.read_csv(home / "figures/03_dmsmil_confusion.csv", index_col="truth")
    assert list(matrix) == list(matrix.index) == CLASSES and matrix.to_numpy().sum() == 9
    scores, plan = (np.load(home / f"figures/03_dmsmil_{name}.npz") for name in ("scores", "plan"))
    assert set(scores.files) == {"scores_5", "scores_10", "scores_20"}
    assert {"plan_5x_10x", "plan_10x_20x"} <= set(plan.files)
    pairs = pd.read_csv(home / "figures/01_pairs.csv")
    assert set(pairs.scale) == {10, 20} and (pairs.share == 0.5).all()
    assert set(pd.read_csv(home / "figures/02_linked.csv").scales) == {"5x and 10x", "10x and 20x"}


def test_qupath_finds_each_tile_in_its_own(three):
    home, _ = three
    (path,) = [path for path in (home / "qupath").glob("*.geojson") if not path.stem.endswith("_flat")]
    for top in json.loads(path.read_text())["features"]:
        (middle,) = top["properties"]["childObjects"]
        (last,) = middle["properties"]["childObjects"]
        corners = [np.array(feature["geometry"]["coordinates"][0]) for feature in (top, middle, last)]
        assert [np.ptp(corner, 0).tolist() for corner in corners] == [[512, 512], [256, 256], [128, 128]]
        for outer, inner in zip(corners, corners[1:]):
            assert (outer.min(0) <= inner.min(0)).all() and (inner.max(0) <= outer.max(0)).all()


def test_the_cover_shows_three_planes_and_the_ties_between_neighbours(three):
    home, said = three[0], []
    words = _cover(home, saved_results(home), said.append)
    assert "at 5x, 10x and 20x" in words and "tied by optimal transport" in words
    assert "one-vs-rest AUC of DMSMIL" in words
    assert not said
    data = np.load(home / "figures/cover.npz")
    assert {"scores_5", "scores_10", "scores_20", "plan_5x_10x", "plan_10x_20x"} <= set(data.files)


def test_new_slides_are_predicted_by_the_class_that_is_said(three):
    home, _ = three
    rows = table(home, "10_apply")
    assert list(rows.slide_id) == ["three-A009", "three-A010", "three-A011"] and (rows.models == 2).all()
    probabilities = rows[[f"prob_{name}" for name in CLASSES]].to_numpy()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert list(rows.pred) == [CLASSES[place] for place in probabilities.argmax(1)]
    assert (rows.lowest <= probabilities.max(1) + 1e-6).all() and (probabilities.max(1) <= rows.highest + 1e-6).all()
    assert rows.others.between(0, 2).all()
    external = table(home, "10_external")
    assert (external.classes == 3).all() and set(external["where"]) == {"study", "one", "mean"}
    index = (home / "apply/index.html").read_text()
    assert "<th>P(predicted)</th>" in index and len(list((home / "apply/pages").glob("*.html"))) == 3
    page = (home / "apply/pages/three-A009.html").read_text()
    assert all(f"P({name})" in page for name in CLASSES) and f"of P({rows.pred[0]}) over the models" in page


def test_its_models_travel(three, tmp_path):
    home, _ = three
    params = yaml.safe_load((home / "params.yaml").read_text())
    names = (
        "model",
        "study",
        "outputs",
        "scales",
        "tile_px",
        "k",
        "min_density",
        "black",
        "seed",
        "mpp",
        "encoder",
        "encoder_px",
        "method",
        "scale",
        "options",
        "lam",
        "epochs",
        "lr",
        "weight_decay",
        "batch_size",
        "select",
        "seeds",
        "positive",
    )
    kit = open_kit(**{name: params[name] for name in names})
    assert kit.classes == CLASSES and kit.scales == SCALES and kit.about["positive"] == ""
    folder = write_kit(kit, tmp_path / "kit")
    again = read_kit(folder)
    assert is_kit(folder) and again.about == json.loads(json.dumps(kit.about))
    text = card(again)
    assert "| | ACC | macro-F1 | one-vs-rest AUC |" in text and "island-like, maze-like and pocket-like" in text
    assert "at 5x, 10x and 20x" in text
