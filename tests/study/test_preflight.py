"""What `dmsmil check` finds before a study runs."""

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml

from dmsmil.features.bags import fits_in_memory
from dmsmil.jobs.files import ROOT, InputError, write_text
from dmsmil.slides.store import Store
from dmsmil.study.cli import main
from dmsmil.study.params import read_params
from dmsmil.study.preflight import findings
from tests.conftest import assert_one_line

pytestmark = pytest.mark.slow


@pytest.fixture
def said(tmp_path):
    """The findings about params/smoke.yaml with some values changed: {what: (all well, line)}."""

    def look(**changes):
        params = {**read_params(ROOT / "params/smoke.yaml"), "outputs": str(tmp_path), **changes}
        return {line.split()[0]: (good, line) for good, line in findings(params)}

    return look


def test_nothing_stands_in_the_way_of_the_smoke_study(said):
    found = said()
    assert all(good for good, _ in found.values())
    assert {"cohort", "encoder", "encode", "method", "ablation", "paper", "device", "disk", "memory"} <= set(found)


def test_how_long_encoding_takes_is_said_before_hours_are_spent(said, monkeypatch):
    """Tiles times the seconds of one, measured with random weights: a check fetches none."""
    from dmsmil.features import encoders, weights

    with monkeypatch.context() as patch:
        patch.setattr(weights, "_packaged_state", lambda *args: pytest.fail("weights were read"))
        assert 0 < encoders.tile_seconds("efficientnet_lite0", "", 64, 64, "cpu") < 10
    monkeypatch.setattr(encoders, "tile_seconds", lambda *args: 60.0)
    assert said()["encode"] == (
        True,
        "encode   at most 240 tiles, about 4.0 hours on this machine if none is done already; "
        "reading the slides comes on top",
    )
    assert "encode" not in said(features="drawn") and "encode" not in said(encoder="nonesuch")


@pytest.mark.parametrize(
    "changes, what, message",
    [
        ({"variants": ["map_tyle"]}, "ablation", "did you mean 'map_tile'"),
        ({"lams": [0.1, "1e-1"]}, "ablation", "write 1.0e-1"),
        ({"collapse_lams": [0]}, "ablation", "a number above 0"),
        ({"paper": "luad"}, "paper", "brca, nsclc"),
        ({"methods": [{"dmsmil": {"headz": 3}}]}, "methods", "unknown option 'headz' of DMSMIL: did you mean 'head"),
        ({"methods": ["abmil", {"abmil": None}]}, "methods", "twice with the same settings"),
        ({"methods": ["dmsmil"]}, "methods", "names dmsmil alone, and 04_compare compares"),
        ({"methods": [{"topk": {"k": "many"}}]}, "methods", "k is 'many', an option of Top-k pooling: give a number"),
        ({"options": {"heads": 3}}, "method", "heads must divide"),
        ({"options": {"heads": "many"}}, "method", "heads is 'many', an option of DMSMIL: give a number"),
        ({"method": "abmil"}, "method", "takes one scale a run"),
        ({"scale": 5}, "method", "the study has [10, 20]"),
        ({"scales": [10, 40]}, "slides", "made at 20x and has no 40x tiles"),
        (
            {"cohort": "planted", "positive": "conjoined", "scales": [10, 40]},
            "slides",
            "the cohort planted is made at 20x",
        ),
        ({"cohort": "planted", "positive": "conjoined", "features": "mine"}, "features", "makes its own features"),
        ({"demo_side": 512, "tile_px": 512}, "slides", "smaller than one 10x tile of 1024 px"),
        ({"select": "val_auc", "val_share": 0.0}, "folds", "has no validation part"),
        ({"slide": "demo-X"}, "folds", "which no fold tests"),
        ({"cohort": "three", "positive": "", "features": "drawn"}, "features", "needs a cohort of two classes"),
        ({"positive": "IDC"}, "class", "which is no class"),
        ({"audit_splits": ["nowhere"]}, "audit", "the split nowhere does not exist"),
        ({"folds": 7}, "folds", "fewer than folds = 7"),
        ({"encoder": "random:maxvit_tiny_tf_224", "encoder_px": 100}, "encoder", "does not take squares of 100 px"),
        ({"scheduler": "tcp"}, "units", "leave it empty"),
        ({"device": "gpu"}, "device", "unknown device"),
    ],
)
def test_what_a_later_notebook_would_stop_at_is_said_now(said, changes, what, message):
    found = said(**changes)
    assert [name for name, (good, _) in found.items() if not good] == [what]
    assert message in found[what][1]


def test_a_planted_cohort_is_told_before_it_is_made(said):
    found = said(cohort="planted", positive="conjoined", witness_rate=0.4, demo_patients=12)
    assert all(good for good, _ in found.values())
    said_of_it = "planted, 12 patients, signal in 40% of the tissue (made when the study runs)"
    assert found["cohort"][1].split(maxsplit=1)[1] == said_of_it


@pytest.mark.parametrize("paper, words", [("brca", "TCGA-BRCA"), ("nsclc", "TCGA-NSCLC"), ("", "none")])
def test_the_cohort_of_the_paper_is_named(said, paper, words):
    good, line = said(paper=paper)["paper"]
    assert good and words in line


@pytest.mark.parametrize("free", [1e5, 1e12])
def test_memory_is_judged_as_the_bags_will_judge_it(said, monkeypatch, free):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": free}))
    size = np.prod([10, 12, 2, 1280]) * 4  # slides, tiles, scales, channels of the smoke study
    assert ("held in memory" in said()["memory"][1]) == fits_in_memory(size) == (free > 1e6)


# ------------------------------------------------------------------------------------------------ own slides


@pytest.fixture
def own(tmp_path):
    """Two classes of two slides, scanned at 20x: own(**params) -> what `dmsmil check` finds that is wrong."""
    from tests.slides.pyramids import texture, write_pyramid

    for name in "abcd":
        write_pyramid(tmp_path / f"{name}.svs", texture(1024, 1024))
    pd.DataFrame({"slide_id": list("abcd"), "patient_id": list("abcd"), "label": list("xyxy")}).to_csv(
        tmp_path / "cohort.csv", index=False
    )
    values = dict(study="mine", cohort=str(tmp_path / "cohort.csv"), outputs=str(tmp_path), folds=2, tile_px=128, k=4)

    def look(**changes):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values | changes))
        params = read_params(tmp_path / "mine.yaml")
        return [line for good, line in findings(params) if not good]

    return look


def test_own_slides_that_are_well(own):
    assert own() == []


def test_a_slide_without_the_tiles_that_are_asked_for_is_named(own, tmp_path):
    from tests.slides.pyramids import texture, write_pyramid

    wrong = own(scales=[10, 40])
    assert [line.split()[:2] for line in wrong] == [["slide", f"{name}:"] for name in "abcd"]
    assert all("was scanned at 20x and has no 40x tiles" in line for line in wrong)
    write_pyramid(tmp_path / "b.svs", texture(1024, 1024), objective=10, mpp=1.0)
    assert [line.split(": ")[0] for line in own()] == ["slide    b"] and "scanned at 10x" in own()[0]
    assert "smaller than one 10x tile of 2048 px" in own(tile_px=1024)[0]


def test_tiles_that_were_chosen_elsewhere_are_looked_at(own, tmp_path):
    table = pd.DataFrame({"slide_id": list("abcd"), "x": 0, "y": 256})
    table.to_csv(tmp_path / "tiles.csv", index=False)
    assert own(tiles=str(tmp_path / "tiles.csv")) == []
    table[table.slide_id != "c"].to_csv(tmp_path / "tiles.csv", index=False)
    assert own(tiles=str(tmp_path / "tiles.csv")) == [
        "slide    c: tiles.csv has no tiles of slide c: add them, or take the slide out of the cohort table"
    ]
    assert own(tiles=str(tmp_path / "gone.csv"))[0].startswith("tiles    the key 'tiles' names gone.csv, which is no ")
    both = own(tiles=str(tmp_path / "tiles.csv"), features=str(tmp_path / "gone"))
    assert "tiles    the keys 'tiles' and 'features' are both given" in both[0]


def test_features_of_tiles_of_another_size_are_found_before_they_are_imported(own, tmp_path):
    from tests.features.test_formats import clam, grids

    for name in "abcd":  # 256 px at 10x of a slide of 40x, of which the slide files here know that it is one of 20x
        clam(tmp_path / "feats_{scale}x", name, grids("one"))
    made = dict(features=str(tmp_path / "feats_{scale}x"), encoder="theirs", k=4)
    wrong = own(**made, tile_px=256)
    assert wrong == [
        "features slide a has tiles of 1024 level-0 px, 256 px at 5x, not at 10x: set tile_px and scales to what is "
        "there"
    ]
    assert own(**made, tile_px=512) == []


def test_features_that_were_cut_short_are_found_before_they_are_imported(own, tmp_path):
    from tests.features.test_formats import clam, grids

    for name in "abcd":
        clam(tmp_path / "feats_{scale}x", name, grids("one"))
    whole = (tmp_path / "feats_20x/h5_files/c.h5").read_bytes()
    (tmp_path / "feats_20x/h5_files/c.h5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "feats_20x/h5_files/d.h5").write_bytes(b"")
    wrong = own(features=str(tmp_path / "feats_{scale}x"), encoder="theirs", k=4, tile_px=512)
    said = [f"slide    h5_files/{name}.h5 is damaged or incomplete" for name in "cd"]
    assert len(wrong) == 2 and all(line.startswith(words) for line, words in zip(wrong, said))


@pytest.mark.parametrize(
    "parts, select, problem",
    [
        (["train", "train", "val", "test"], "val_auc", "fold_0 has one class in its validation part, where AUC"),
        (["train", "val", "train", "test"], "val_loss", "fold_0 trains on one class beside its validation part"),
        (["train", "train", "train", "test"], "val_loss", "fold_0 has no validation part"),
        (["train", "train", "val", "test"], "val_loss", ""),
        (["train", "val", "train", "test"], "last", ""),
    ],
)
def test_a_split_that_cannot_be_selected_on_is_found(own, tmp_path, parts, select, problem):
    """The classes of a to d are x, y, x, y."""
    table = pd.DataFrame({"slide_id": list("abcd"), "fold_0": parts, "fold_1": parts})
    table.to_csv(tmp_path / "split.csv", index=False)
    wrong = own(split=str(tmp_path / "split.csv"), select=select)
    assert len(wrong) == bool(problem) and all(line.startswith(f"folds    {problem}") for line in wrong)


def test_the_slide_that_is_to_be_drawn_must_be_one(own):
    assert own(slide="c") == []
    wrong = own(slide="e")
    assert len(wrong) == 1 and "slide is 'e', which no fold tests: name one that is, such as" in wrong[0]


def test_check_finds_what_is_wrong_in_seconds(tmp_path, capsys):
    from tests.slides.pyramids import texture, write_pyramid

    write_pyramid(tmp_path / "a.svs", texture(1024, 1024))
    write_pyramid(tmp_path / "b.svs", texture(1024, 1024), objective=None, mpp=None)
    (tmp_path / "c.svs").write_bytes(b"not a slide")
    (tmp_path / "cohort.csv").write_text("slide_id,patient_id,label\na,p1,x\nb,p2,y\nc,p3,y\nd,p4,x\n")
    text = {
        "study": "mine",
        "cohort": str(tmp_path / "cohort.csv"),
        "outputs": str(tmp_path),
        "folds": 3,
        "encoder_weights": str(tmp_path / "gone.pth"),
        "method": "dmsmill",
        "k": 4,
        "tile_px": 128,
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(text))
    assert main(["check", str(tmp_path / "mine.yaml")]) == 1
    said = capsys.readouterr().out
    for expected in (
        "d: no slide file",
        "b: ",
        "c: ",
        "has 1 patient, who cannot be learned from",
        "gone.pth",
        "did you mean 'dmsmil'",
        "1 of 3 files open, and have 10x and 20x tiles",
        "disk",
        "memory",
    ):
        assert expected in said, expected
    assert not (tmp_path / "mine").exists(), "check writes nothing"


def test_check_of_the_demo_is_clean(capsys):
    assert main(["check", "params/demo.yaml"]) == 0
    assert "PROBLEM" not in capsys.readouterr().out


@pytest.mark.parametrize("key", ["tiles", "encoder_weights", "cohort", "outputs", "split"])
def test_a_place_that_cannot_be_asked_is_one_line(said, key):
    """Path.exists raises there, before Python 3.14."""
    with pytest.raises(InputError, match="cannot be reached|File name too long") as caught:
        found = said(**{key: "x" * 300})
        raise InputError("; ".join(line for good, line in found.values() if not good))
    assert_one_line(caught, "x" * 80)


def test_slides_that_were_encoded_and_moved_away_are_no_fault(said, tmp_path):
    table = tmp_path / "mine.csv"
    rows = [f"s{i},p{i},{'ab'[i % 2]}" for i in range(4)]
    table.write_text("\n".join(["slide_id,patient_id,label", *rows]))
    params = dict(cohort=str(table), slides=str(tmp_path), study="mine")
    assert "no usable slide" in said(**params)["cohort"][1]
    smoke = read_params(ROOT / "params/smoke.yaml")
    store = Store(tmp_path / "mine", smoke["tile_px"], tuple(smoke["scales"]), smoke["encoder"])
    for name in ("s0", "s1", "s2", "s3"):
        write_text("", store.features_path(10, name))
    assert "no usable slide" in said(**params)["cohort"][1], "one scale is not enough"
    for name in ("s0", "s1", "s2", "s3"):
        write_text("", store.features_path(20, name))
    good, line = said(**params)["slides"]
    assert good and line == "slides   4 slides without a file, of which features are here"
    assert "no usable slide" in said(**params, encoder="resnet50")["cohort"][1], "they are by another encoder"
