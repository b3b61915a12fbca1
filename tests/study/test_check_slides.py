"""What `dmsmil check` says of slides: which disagree with themselves, which have not the tiles asked for, and why."""

import shutil

import pytest
import tifffile
import yaml

from dmsmil.slides.store import Store
from dmsmil.study.cli import main
from dmsmil.study.opening import with_features
from tests.features.test_formats import PX, grids, trident
from tests.slides.pyramids import describe, make_slide, texture


def test_check_names_the_slides_whose_features_are_not_there(tmp_path, capsys):
    for name in ("one", "two", "three", "four"):
        trident(tmp_path / "job", name, grids(name))
    (tmp_path / f"job/20x_{PX}px_0px_overlap/features_uni_v1/two.h5").unlink()
    rows = [f"{name},{name},{'xy'[number % 2]}" for number, name in enumerate(["one", "two", "three", "four", "five"])]
    (tmp_path / "cohort.csv").write_text("\n".join(["slide_id,patient_id,label", *rows]))
    params = {
        "study": "mine",
        "cohort": str(tmp_path / "cohort.csv"),
        "features": str(tmp_path / "job"),
        "encoder": "uni_v1",
        "outputs": str(tmp_path),
        "folds": 2,
        "k": 4,
        "tile_px": PX,
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(params))
    assert main(["check", str(tmp_path / "mine.yaml")]) == 1
    said = capsys.readouterr().out
    assert "slide two has no file of features at 20x" in said and "slide five has no file of features at 10x" in said
    assert "features 3 of 5 slides have them at 10x and 20x" in said
    shutil.copytree(tmp_path / "job", tmp_path / "mine/features")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(params | {"features": str(tmp_path / "mine/features")}))
    assert main(["check", str(tmp_path / "mine.yaml")]) == 1
    assert "the key 'features' names this study's own folder" in capsys.readouterr().out


def test_features_by_another_encoder_are_none_of_a_studys(tmp_path):
    trident(tmp_path / "features", "one", grids("one"))
    trident(tmp_path / "features", "two", {10: grids("two")[10]})
    assert with_features(tmp_path) == {"one", "two"}
    assert with_features(tmp_path, Store(tmp_path, PX, (10, 20), "uni_v1")) == {"one"}
    assert with_features(tmp_path, Store(tmp_path, PX, (10, 20), "resnet50")) == set()


@pytest.mark.slow
def test_check_says_which_slides_disagree_and_which_have_not_the_tiles_asked_for(tmp_path, capsys):
    sizes = dict(width=600, height=600)
    make_slide(tmp_path / "well.svs", **sizes, objective=40, mpp=0.25)
    make_slide(tmp_path / "changer.svs", **sizes, objective=20, mpp=0.234)
    make_slide(tmp_path / "bare.svs", **sizes, objective=None, mpp=None)
    make_slide(tmp_path / "coarse.svs", **sizes, objective=10, mpp=1.0)
    make_slide(tmp_path / "small.svs", 200, 200)
    make_slide(tmp_path / "told.svs", **sizes, objective=40, mpp=0.25)
    tifffile.imwrite(
        tmp_path / "strips.svs",
        texture(600, 600),
        photometric="rgb",
        metadata=None,
        description=describe(600, 600, 20, 0.5),
    )
    names = ["well", "changer", "bare", "coarse", "small", "told", "strips"]
    rows = [
        f"{name},p{number},{'xy'[number % 2]},{'0.5' if name == 'told' else ''}" for number, name in enumerate(names)
    ]
    (tmp_path / "cohort.csv").write_text("\n".join(["slide_id,patient_id,label,mpp", *rows]))
    params = {
        "study": "mine",
        "cohort": str(tmp_path / "cohort.csv"),
        "slides": str(tmp_path),
        "outputs": str(tmp_path),
        "folds": 2,
        "k": 4,
        "tile_px": 128,
        "mpp": 0.5,
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(params))
    assert main(["check", str(tmp_path / "mine.yaml")]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "slide" in line]

    def said(name):
        return " ".join(line for line in lines if f"slide    {name}: " in line)

    assert said("well") == said("bare") == ""
    assert "note: slide changer.svs: its objective power 20 contradicts mpp 0.234" in said("changer")
    assert "it is read as 40x" in said("changer")
    assert "note: slide told.svs: mpp 0.5 in the cohort table, 0.25 in the file; the table's is used" in said("told")
    assert "scanned at 10x and has no 20x tiles" in said("coarse") and "note" not in said("coarse")
    assert "smaller than one 10x tile" in said("small") and "note" not in said("small")
    assert "is a TIFF in strips" in said("strips") and "vips tiffsave" in said("strips")
    assert any("4 of 7 files open" in line for line in lines)
