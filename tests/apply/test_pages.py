"""A page for each slide: whole by itself, with its numbers, its warnings, what it is not for, and files for QuPath."""

import json
import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
import tifffile

from dmsmil.apply import pages
from dmsmil.apply.incoming import read_slides
from dmsmil.apply.pages import make_pages, warnings_of
from dmsmil.apply.predict import said_sentences
from dmsmil.apply.words import NOT_FOR
from dmsmil.jobs.failures import read_failures
from dmsmil.jobs.files import write_text
from dmsmil.slides.store import Store
from dmsmil.study.applying import said_lines
from dmsmil.training.results import save_table
from tests.apply.conftest import ENCODER, NEW, SCALES, TILE, quiet

pytestmark = pytest.mark.xdist_group("apply")


@pytest.fixture(scope="module")
def page(made):
    """(folder of the pages, Applied) of two slides, one of which the study knows."""
    table = pd.read_csv(made.place / "cohort/cohort.csv")
    slides = table[table.slide_id.isin([NEW[0], "demo-A000-1"])]
    slides.assign(path=[str(made.place / "cohort" / path) for path in slides.path]).to_csv(made.place / "two.csv")
    applied, bags = made.apply(made.place / "two.csv")
    slides = slides.assign(path=[str(made.place / "cohort" / path) for path in slides.path], mpp=0.0)
    index = make_pages(made.kit, applied, slides, bags.store, workers=1, report=quiet)
    return index.parent, applied


def words(path):
    return " ".join(
        unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", Path(path).read_text(encoding="utf-8"), flags=re.S)).split()
    )


@pytest.mark.slow
def test_every_page_says_its_numbers_and_what_it_is_not_for(page):
    home, applied = page
    for said in applied.table.to_dict("records"):
        text = words(home / f"pages/{said['slide_id']}.html")
        assert NOT_FOR in text and f"P(lobular-like) {said['prob_lobular-like']:.3f}" in text
        spread = f"from {said['lowest']:.3f} to {said['highest']:.3f}"
        assert (spread if said["models"] > 1 else "spread not known of one model") in text
        assert all(warning in text for warning in warnings_of(said))
    index = words(home / "index.html")
    assert NOT_FOR in index and NEW[0] in index and "demo-A000-1" in index
    for said in applied.table.to_dict("records"):
        spread = f" {said['spread']:.3f}" if said["models"] > 1 else ""
        assert f"{said['prob_lobular-like']:.3f}{spread} {said['models']}" in index, "of one model no spread is known"


@pytest.mark.slow
def test_a_page_is_whole_by_itself(page):
    """Pictures are inside; what it names lies beside it; nothing is fetched."""
    home, _ = page
    for path in [home / "index.html", *home.glob("pages/*.html")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?:|<script", text)
        assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', text))
        for target in re.findall(r'href="([^"]*)"', text):
            assert (path.parent / target).resolve().is_file(), target
        if path.name != "index.html":
            assert len(re.findall("<img", text)) == 2


@pytest.mark.slow
def test_qupath_gets_the_tiles_and_the_heatmap(page):
    home, applied = page
    found = json.loads((home / f"qupath/{NEW[0]}.geojson").read_text())
    scores = applied.scores[applied.scores.slide_id == NEW[0]]
    assert len(found["features"]) == (scores.scale == 10).sum()
    image = tifffile.imread(home / f"qupath/{NEW[0]}.ome.tif")
    assert image.shape[0] == 2 and np.nanmax(image) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("kind, name", [("nested", f"{NEW[0]}.geojson"), ("flat", f"{NEW[0]}_flat.geojson")])
def test_the_page_names_the_file_that_was_asked_for(made, page, tmp_path, kind, name):
    home, applied = page
    store = Store(shutil.copytree(home, tmp_path / "apply"), TILE, SCALES, ENCODER)
    slides, _ = read_slides(made.slides / f"{NEW[0]}.svs", made.kit.classes, report=quiet)
    one = replace(applied, table=applied.table[applied.table.slide_id == NEW[0]])
    make_pages(made.kit, one, slides, store, workers=1, report=quiet, qupath=kind)
    assert [path.name for path in store.home.glob(f"qupath/{NEW[0]}*.geojson")] == [name]
    assert f'href="../qupath/{name}"' in (store.home / f"pages/{NEW[0]}.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_known_slide_says_so(page):
    home, _ = page
    assert "The study knows this slide (its name, its patient, what its tiles show): only models" in words(
        home / "pages/demo-A000-1.html"
    )
    assert "The study knows" not in words(home / f"pages/{NEW[0]}.html")


def test_names_are_shown_as_they_were_written(made):
    about = {**made.kit.about, "study": "<b>&", "classes": ["<i>", "b"], "positive": "b", "note": "<u>"}
    said = {
        "slide_id": "s",
        "models": 2,
        "pred": "<i>",
        "prob_<i>": 0.5,
        "prob_b": 0.5,
        "spread": 0.1,
        "lowest": 0.1,
        "highest": 0.9,
        "label": "<u>",
        "patient_id": "p&q",
        "tiles": 3,
        "known": "",
        "unlike": "",
        "distance_features": 0.5,
    }
    text = pages._said(said, about)
    assert "<i>" not in text and "<u>" not in text and text.count("<b>") == 1 and "p&amp;q" in text


@pytest.mark.slow
def test_an_id_with_dots_and_signs_has_its_page_pictures_and_files(made, tmp_path):
    """TCGA's have dots, which begin no suffix; a # in a link would begin a place in a page."""
    name = "TCGA-1.ab#2"
    shutil.copy(made.slides / f"{NEW[0]}.svs", tmp_path / f"{name}.svs")
    slides = pd.DataFrame(
        {"slide_id": [name], "patient_id": "p", "label": "", "site": "", "path": str(tmp_path / f"{name}.svs")}
    )
    slides.to_csv(tmp_path / "one.csv", index=False)
    applied, bags = made.apply(tmp_path / "one.csv")
    index = make_pages(made.kit, applied, slides.assign(mpp=0.0), bags.store, workers=1, report=quiet)
    assert read_failures(index.parent).empty
    for file in ("pages/{}.html", "figures/{}_scores.png", "figures/{}_extremes.png", "qupath/{}.geojson"):
        assert (index.parent / file.format(name)).is_file(), file
    assert f'href="pages/{quote(name)}.html"' in index.read_text()
    assert f'href="../qupath/{quote(name)}.geojson"' in (index.parent / f"pages/{name}.html").read_text()


@pytest.mark.slow
def test_a_page_that_fails_is_a_row(made, page, monkeypatch):
    home, applied = page
    slides = pd.DataFrame(
        {
            "slide_id": applied.table.slide_id,
            "patient_id": "",
            "label": "",
            "site": "",
            "path": ["/nowhere/a.svs", str(made.slides / f"{NEW[0]}.svs")],
            "mpp": 0.0,
        }
    )
    store = made.apply(made.place / "two.csv")[1].store
    earlier = [store.home / "pages/demo-A000-1.html", store.home / "qupath/demo-A000-1.geojson"]
    earlier += [store.home / "figures/demo-A000-1_scores.png", store.home / "figures/demo-A000-1_scores.npz"]
    for path in earlier:
        write_text("of an earlier call", path)
    index = make_pages(made.kit, applied, slides, store, workers=1, report=quiet)
    assert not any(path.exists() for path in earlier)
    failed = read_failures(store.home)
    assert list(failed.unit) == ["demo-A000-1"] and list(failed.stage) == ["page"] and index.is_file()
    text = index.read_text()
    assert "pages/demo-A000-1.html" not in text and f"pages/{NEW[0]}.html" in text


@pytest.mark.slow
@pytest.mark.parametrize("note", ["3 of 3 runs learned nothing", ""])
def test_models_that_learned_nothing_are_said_before_any_answer(made, tmp_path, note):
    """In the table, in the sentences, on the page of all slides and on each, and where the command says its answers."""
    kit = replace(made.kit, about={**made.kit.about, "note": note})
    applied = made.apply(made.slides / f"{NEW[0]}.svs", kit)[0]
    told = [f"In the study, {note}."] if note else []
    assert list(applied.table.get("note", [])) == told
    sentences = said_sentences(applied.table)
    assert ("In the study" in sentences) == bool(note) and (not note or sentences.startswith(f"- **{told[0]}**"))
    said = applied.table.to_dict("records")[0]
    for text in (pages._index(kit, applied.table, set()), pages._said(said, kit.about)):
        assert ("In the study" in text) == bool(note)
        assert not note or text.index(told[0]) < text.index("<table>")
    save_table(applied.table, tmp_path, "10_apply")
    assert [line.strip() for line in said_lines(tmp_path)[1:]] == told
