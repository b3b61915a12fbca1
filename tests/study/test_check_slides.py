"""What `dmsmil check` says of slides: which disagree with themselves, which have not the tiles asked for, and why."""

import pytest
import tifffile
import yaml

from dmsmil.study.cli import main
from tests.slides.pyramids import describe, make_slide, texture


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
