"""The book shows what the notebooks show, needs no network, and is there whole or not at all."""

import base64
import hashlib
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import zlib
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from dmsmil import figures
from dmsmil.analysis.leftovers import data_of
from dmsmil.book import build as book
from dmsmil.book.pages import alt_text
from dmsmil.cohorts.folds import make_folds
from dmsmil.cohorts.table import read_cohort, save_cohort
from dmsmil.features.bags import load_bags
from dmsmil.jobs.files import InputError, write_csv, write_json
from dmsmil.jobs.text import as_written
from dmsmil.slides.reader import open_slide
from dmsmil.slides.store import Store
from dmsmil.slides.tiles import select_tiles
from dmsmil.training.baselines import CHEAP
from tests.book.browser import CHROMIUM, browse, needed
from tests.cohorts.test_table import cohort
from tests.conftest import assert_one_line
from tests.slides.pyramids import make_slide


def picture(width, height, seed=0):
    """A PNG as notebooks store it."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 10, width // 10, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def shown(kind, data, **more):
    return new_output("execute_result", {kind: data, "text/plain": "<something>"}, execution_count=1, **more)


def write_notebook(path, title, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    intro = new_markdown_cell(f"# {title}\n\nThe **claim** of a page (Fig. 3), said\nat once. *And* more.\n\nMore.")
    parameters = new_code_cell("k: int = 3  # K: tiles a slide and scale, at most", metadata={"tags": ["parameters"]})
    injected = new_code_cell("# Parameters\nk = 12\n", metadata={"tags": ["injected-parameters"]})
    notebook = new_notebook(cells=[intro, parameters, injected, new_code_cell("import os\nfrom re import sub"), *cells])
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    nbformat.write(notebook, path)
    return path


def results(*names):
    """A result table: AUC falls from row to row."""
    rows = [
        {
            "name": name,
            "method": "x",
            "scales": "10x+20x",
            "runs": 2,
            "collapsed": 0,
            "parameters": 7,
            **{
                f"{m}_{part}": value
                for m in ("ACC", "F1", "AUC")
                for part, value in zip(("mean", "std", "low", "high"), (0.9 - 0.01 * i, 0.1, 0.6, 0.95))
            },
        }
        for i, name in enumerate(names)
    ]
    return pd.DataFrame(rows)


def make_study(home):
    """A study as it lies when it is finished, without its slides: three notebooks and a result."""
    frame = cohort(8, 10).assign(site="A")
    save_cohort(home, frame, make_folds(frame, 2), [])
    write_csv(results("DMSMIL", "ABMIL 10x", *CHEAP), home / "tables/03_dmsmil_results.csv")
    table = pd.DataFrame({"AUC": ["0.833 ± 0.236 [0.25, 1.00]"], "note": ["a <b> & more"]}, index=["DMSMIL"])
    write_notebook(
        home / "notebooks/00_cohort.ipynb",
        "00 · The cohort",
        new_code_cell(
            "print(1)", outputs=[new_output("stream", text="first line\n"), new_output("stream", text="second line\n")]
        ),
    )
    write_notebook(
        home / "notebooks/03_train.ipynb",
        "03 · Train",
        new_markdown_cell("## How it *errs*"),
        new_code_cell("figures.roc(runs)", outputs=[shown("image/png", picture(400, 300))]),
        new_code_cell("show(x)", outputs=[shown("image/png", picture(720, 300, 1))]),
        new_code_cell("table", outputs=[shown("text/html", table.to_html())]),
        new_code_cell(
            "Markdown(x)", outputs=[shown("text/markdown", "- it is **so**\n\n| a | b |\n|---|---|\n| p | q |")]
        ),
    )
    write_notebook(
        home / "notebooks/09_report.ipynb",
        "09 · The report",
        new_markdown_cell("Transport: [03](03_train.ipynb)."),
        new_code_cell("record", outputs=[shown("text/plain", "{'tiles': 3}")]),
    )
    (home / "notebooks/04_compare.failed.ipynb").write_text("{}")
    return home


def make_checkout(root):
    """A project of two walkthroughs, a page that is none of the book's, and the package `shelf` of one wing."""
    answer = (
        "<details><summary>Answer</summary>\n\nIt is **hidden** until asked for.\n\n"
        "```python\n# no heading\n```\n</details>"
    )
    links = "[it](../../shelf/wing/first.py), [a file](../../README.md), [03](../03_train.ipynb), `03_train`, `first`"
    lessons = root / "notebooks/walkthroughs"
    write_notebook(
        lessons / "2_later.ipynb",
        "2 · Later",
        new_markdown_cell(f"Links: {links}."),
        new_markdown_cell(f"## An exercise\n\nWhy?\n\n{answer}"),
        new_markdown_cell("after"),
        new_code_cell("from drawings import curves as draw"),
        new_code_cell("slider(draw.roc, k=[1])", outputs=[shown("image/png", picture(300, 200, 2))]),
    )
    write_notebook(lessons / "1_first.ipynb", "1 · First")
    (lessons / "drawings").mkdir()
    (lessons / "drawings/curves.py").write_text('def roc(k):\n    """How k bends it. And more."""\n')
    (root / "shelf/wing").mkdir(parents=True)
    (root / "shelf/__init__.py").write_text("")
    (root / "shelf/wing/__init__.py").write_text('"""Which is first?"""\n')
    (root / "shelf/wing/first.py").write_text(
        '"""What is *first* <here>."""\n\n\ndef begin(k: int = 3) -> str:\n    """Begins."""\n'
    )
    (root / "shelf/wing/other.py").write_text('"""The `first.begin` of others."""\n')
    (root / "README.md").write_text("# It\n")
    return root


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(the folder of a small study, the pages of its book by name, what was said)."""
    place, said = tmp_path_factory.mktemp("book"), []
    home = make_study(place / "mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        index = book.build(home, said.append, make_checkout(place), "shelf")
    assert index == home / "book/index.html"
    return home, {p.stem: p.read_text(encoding="utf-8") for p in index.parent.rglob("*.html")}, said


@pytest.fixture
def build(tmp_path):
    """`book.build` of the study alone."""
    return partial(book.build, root=tmp_path / "no checkout", package="")


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def text(html):
    """What a reader sees of a page, whitespace as one space."""
    return " ".join(unescape(re.sub(r"<[^>]+>", "", html)).split())


# ------------------------------------------------------------------------------------------------ what it shows


@pytest.mark.slow
def test_every_output_of_every_notebook_is_on_its_page(study):
    home, pages, _ = study
    images = {hashlib.sha256(p.read_bytes()).hexdigest() for p in (home / "book/_images").iterdir()}
    for path in home.glob("notebooks/[0-9][0-9]_*[!d].ipynb"):
        page = text(pages[path.stem])
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "code":
                assert " ".join(cell.source.split()) in page
            for output in cell.get("outputs", []):
                data = output.get("data", {"stream": output.get("text")})
                if "image/png" in data:
                    assert hashlib.sha256(base64.b64decode(data["image/png"])).hexdigest() in images
                    assert "<something>" not in page
                elif "stream" in data:
                    assert data["stream"].strip() in page
                elif "text/plain" in data and len(data) == 1:
                    assert data["text/plain"] in page
    assert "a <b> & more" in text(pages["03_train"]) and "0.833 ± 0.236 [0.25, 1.00]" in pages["03_train"]
    assert "<strong>so</strong>" in pages["03_train"] and re.search(r"<td><p>q</p></td>", pages["03_train"])
    assert "04_compare" not in "".join(pages.values()), "what failed is no page"


def test_the_front_page_of_a_study_with_repeats_does_not_say_that_folds_share_no_patient(tmp_path):
    frame = cohort(12, 4)
    save_cohort(tmp_path, frame, make_folds(frame, 2, repeats=3), [])
    assert "tested in 6 folds, none of which tests a patient that it trains on." in book.summary(tmp_path, None)
    save_cohort(tmp_path, frame, make_folds(frame, 2), [])
    assert "tested in 2 folds that share no patient." in book.summary(tmp_path, None)


def test_the_front_page_says_which_pages_are_of_another_state(tmp_path):
    make_study(tmp_path)
    assert "one state" not in book.summary(tmp_path, None)
    write_json({"data": {"04_compare": "of other labels", "06_lambda": data_of(tmp_path)}}, tmp_path / "done.json")
    assert "not of one state with the others: `04_compare` (slides, labels or features)." in book.summary(
        tmp_path, None
    )


@pytest.mark.slow
def test_the_front_page_says_what_came_out_and_where_to_read_on(study):
    home, pages, said = study
    front = text(re.search(r"<article.*?</article>", pages["index"], re.S)[0])
    assert "16 slides of 8 patients (8 a and 8 b), tested in 2 folds that share no patient." in front
    assert "DMSMIL is above six colour numbers: AUC 0.900 against 0.880" in front
    order = [front.index(title) for title in ("00 · The cohort", "03 · Train", "09 · The report")]
    assert order == sorted(order) and "The claim of a page (Fig. 3), said at once." in front and "And more" not in front
    assert (home / "book/_images/cover.png").read_bytes() == (home / "figures/cover.png").read_bytes()
    assert any("the cover shows no slide" in line for line in said) and all("\n" not in line for line in said)


@pytest.mark.slow
def test_every_picture_has_words(study):
    _, pages, _ = study
    words = [unescape(alt) for page in pages.values() for alt in re.findall(r'<img[^>]*alt="([^"]*)"', page)]
    assert len(words) == 4 and len(re.findall("<img", "".join(pages.values()))) == 4
    assert "How it errs. ROC curve of each fold (thin), and of the pooled out-of-fold predictions (thick)." in words
    assert "An exercise. How k bends it." in words, "a drawing that lies beside the walkthrough"
    assert "How it errs." in words, "a picture that no function of ours drew has its heading"
    assert any(re.match(r"AUC of DMSMIL: 0.90, 95 % interval 0.60 to 0.95, among 5 rows", alt) for alt in words)


def test_every_figure_function_says_what_it_draws():
    for name in figures.__all__:
        said = {f"figures.{name}": inspect.getdoc(getattr(figures, name))}
        alt = alt_text(f"figures.{name}(x, home)", "A heading", said)
        assert alt.startswith("A heading. ") and len(alt) > 25 and alt.endswith("."), (name, alt)
        assert not re.search(r"\w+\.\w+|:.*:", alt.removeprefix("A heading. ")), f"{name} speaks of code: {alt}"


@pytest.mark.slow
def test_parameters_and_imports_are_folded_nothing_else(study):
    _, pages, _ = study
    folded = re.findall(r"<details.*?</details>", pages["03_train"], re.S)
    assert len(folded) == 3 and "K: tiles a slide" in text(folded[0]) and "k = 12" in text(folded[1])
    assert "from re import sub" in text(folded[2]) and "Imports" in text(folded[2])


def test_walkthroughs_and_reference_are_in_the_same_book(study):
    _, pages, _ = study
    front = re.search(r"<article.*?</article>", pages["index"], re.S)[0]
    assert "New to this? Begin with the walkthroughs: 1 · First is the first." in text(front)
    order = [text(front).rindex(title) for title in ("09 · The report", "1 · First", "2 · Later", "shelf.wing")]
    assert text(front).index("New to this?") < order[0] and order == sorted(order)
    captions = [text(part) for part in re.findall(r'<p class="caption".*?</p>', pages["03_train"], re.S)]
    assert captions == ["The study", "Walkthroughs", "Reference"]
    assert 'href="reference/shelf.wing.html"' in front and "Which is first?" in text(front)
    assert 'href="shelf.wing.first.html"' in pages["shelf.wing"]
    assert 'href="shelf.wing.html"' in pages["shelf.wing.other"]
    room = text(re.search(r"<article.*?</article>", pages["shelf.wing.first"], re.S)[0])
    assert "What is *first* <here>." in room and "begin(k: int = 3) → str" in room and "Begins." in room
    assert 'href="shelf.wing.first.html#shelf.wing.first.begin"' in pages["shelf.wing.other"]


def test_links_to_the_checkout_lead_to_pages(study):
    _, pages, said = study
    links = re.search(r"<p>Links: .*?</p>", pages["2_later"])[0]
    found = [(target, text(words)) for target, words in re.findall(r'<a [^>]*href="([^"]+)"[^>]*>(.*?)</a>', links)]
    assert found == [
        ("../../reference/shelf.wing.first.html", "it"),
        ("../03_train.html", "03"),
        ("../03_train.html", "03_train"),
    ]
    assert "a file, " in text(links) and not [line for line in said if "2_later" in line]


def test_answers_are_folded_and_end_where_they_end(study):
    _, pages, _ = study
    answer = next(part for part in re.findall(r"<details>.*?</details>", pages["2_later"], re.S) if "Answer" in part)
    assert "<strong>hidden</strong>" in answer and "# no heading" in text(answer) and "after" not in answer


# ------------------------------------------------------------------------------------------------ odd names


ODD = ["<img src=x onerror=alert(1)>", "a|b", "$x$ *b* _c_", "50 %", "癌", "[l](javascript:alert(2)) `d` &amp;"]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """The book of a study of odd classes and an odd method, which a table, a sentence and a printed line name too."""
    home = tmp_path_factory.mktemp("odd") / "_it_"
    frame = cohort(12, 12).assign(site="A")
    frame["label"] = [ODD[int(patient[1:]) % 6] for patient in frame.patient_id]
    save_cohort(home, frame, make_folds(frame, 2), [])
    write_csv(results(f"Mine {ODD[0]} {ODD[2]}", f"Yours {ODD[5]}", *CHEAP), home / "tables/03_dmsmil_results.csv")
    table = pd.DataFrame({"class": ODD}, index=pd.Index(ODD, name=ODD[0]))
    write_notebook(
        home / "notebooks/03_train.ipynb",
        "03 · Train",
        new_code_cell("table", outputs=[shown("text/html", table.to_html())]),
        new_code_cell(
            "said",
            outputs=[
                shown("text/markdown", "\n".join(f"- **{as_written(name)}** is {as_written(name)}." for name in ODD))
            ],
        ),
        new_code_cell("print(names)", outputs=[new_output("stream", text="\n".join(ODD))]),
    )
    said = []
    return book.build(home, said.append, home.parent / "none", ""), said


@pytest.mark.slow
def test_odd_names_read_as_they_were_written(odd):
    index, said = odd
    front = BeautifulSoup(index.read_text(encoding="utf-8"), "html.parser")
    words = " ".join(front.find("article").get_text().split())
    counts = {name: count for name, count in read_cohort(index.parents[1])[0].label.value_counts().items()}
    assert front.find("h1").get_text().startswith("The study _it_") and front.title.get_text() == "DMSMIL · _it_"
    assert all(f"{counts[name]} {name}" in words for name in ODD)
    assert f"Highest AUC: Mine {ODD[0]} {ODD[2]}, 0.900" in words and f"Yours {ODD[5]}" not in words
    assert f"AUC of Mine {ODD[0]} {ODD[2]}: 0.90" in front.find("img")["alt"]

    page = BeautifulSoup((index.parent / "notebooks/03_train.html").read_text(encoding="utf-8"), "html.parser")
    assert [cell.get_text() for cell in page.select("table.dataframe tbody td")] == ODD
    assert [line.get_text() for line in page.select(".cell_output li")] == [f"{n} is {n}." for n in ODD]
    assert "\n".join(ODD) in page.select_one(".output.stream").get_text()
    for soup in (front, page):
        assert soup.select("[onerror], [href^=javascript], article .math, article .cell_output em") == []
    assert [line for line in said if "cover" not in line] == []


@pytest.mark.slow
@needed
def test_no_name_is_a_script(odd, tmp_path):
    for name in ("index.html", "notebooks/03_train.html"):
        with browse((odd[0].parent / name).as_uri(), tmp_path / name.replace("/", "-")) as page:
            page.until("document.readyState == 'complete'")
            assert page.js("document.querySelectorAll('[onerror], [href^=javascript]').length") == 0
            assert page.js("document.body.innerText").count(ODD[0]) > 0 and page.errors == []


# ------------------------------------------------------------------------------------------------ what it needs


def test_no_page_asks_for_anything_elsewhere(study):
    home, pages, _ = study
    for name, page in pages.items():
        for tag in re.findall(r"<(?:script|img|link|source|iframe|video)\b[^>]*>", page):
            assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag), (name, tag)
        assert "mathjax" not in page.lower() and "require.js" not in page
    for path in [*home.glob("book/_static/**/*.css"), *home.glob("book/**/*.html")]:
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", path.read_text(encoding="utf-8")), path.name


def test_every_file_a_page_names_is_there(study):
    home, pages, _ = study
    for path in home.glob("book/**/*.html"):
        for target in re.findall(r'(?:src|href)="([^"#?]+)', path.read_text(encoding="utf-8")):
            if not re.match(r"\w+:", target):
                assert (path.parent / target).exists(), (path.name, target)


@pytest.mark.slow
def test_the_same_study_gives_the_same_bytes_at_any_place(study, tmp_path):
    home, _, _ = study
    twin = shutil.copytree(home, tmp_path / "mine", ignore=shutil.ignore_patterns("book"))
    book.build(twin, lambda line: None, make_checkout(tmp_path), "shelf")
    first, second = files(home / "book"), files(twin / "book")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    for name, content in second.items():
        content = zlib.decompress(content.split(b"zlib.\n", 1)[1]) if name == "objects.inv" else content
        assert str(tmp_path).encode() not in content, f"{name} names a place of this machine"


@pytest.mark.slow
def test_an_older_book_stays_until_the_new_one_is_whole(study, build, tmp_path):
    home = shutil.copytree(study[0], tmp_path / "mine")
    before = files(home / "book")
    for left in (999999999, os.getpid()):  # killed processes; in a container each has the number of the last one
        (home / f".book.{left}").mkdir()
    strange = shown("application/x-unknown", "?")
    del strange["data"]["text/plain"]
    write_notebook(home / "notebooks/05_more.ipynb", "05 · More", new_code_cell("x", outputs=[strange]))
    with pytest.raises(InputError) as caught:
        build(home, lambda line: None)
    assert_one_line(caught, "05_more")
    assert files(home / "book") == before and not list(home.glob(".book*"))

    said = []
    write_notebook(home / "notebooks/05_more.ipynb", "05 · More", new_markdown_cell("[gone](gone.ipynb)"))
    build(home, said.append)
    assert (home / "book/notebooks/05_more.html").exists() and not list(home.glob(".book*"))
    assert [line for line in said if "gone" in line] and "05_more" in next(line for line in said if "gone" in line)
    assert not any("\n" in line or str(tmp_path) in line for line in said)


def test_nothing_to_build_from_is_one_line(build, tmp_path):
    for folder in (tmp_path / "absent", make_study(tmp_path / "empty")):
        shutil.rmtree(folder / "notebooks", ignore_errors=True)
        with pytest.raises(InputError) as caught:
            build(folder)
        assert_one_line(caught, folder.name)
        assert not (folder / "book").exists() and not list(folder.glob(".book*"))


@pytest.mark.slow
def test_without_a_result_there_is_a_book_without_a_cover(build, tmp_path):
    home = make_study(tmp_path / "young")
    shutil.rmtree(home / "tables")
    page = build(home, lambda line: None).read_text(encoding="utf-8")
    assert "No method has a result yet." in page and "<img" not in page
    assert "Walkthroughs" not in page and "Reference" not in page, "there are none"


# ------------------------------------------------------------------------------------------------ the cover


@pytest.fixture
def slide(slide):
    return slide | {"scores": {10: np.arange(6.0) / 5, 20: np.full(6, 0.5)}, "plans": [np.eye(6) / 6]}


def drawn(figure, out):
    """The figure's texts; its picture is there and no blank."""
    assert np.asarray(Image.open(out.with_suffix(".png")).convert("L")).std() > 5
    return [t.get_text() for ax in figure.axes for t in ax.texts]


@pytest.mark.slow
def test_the_cover_draws_whatever_there_is(slide, tmp_path):
    out, table = tmp_path / "cover", results("DMSMIL", *CHEAP)
    one = {**slide, "scores": {20: slide["scores"][20]}, "plans": []}
    for part, rows, wanted in (
        (slide, table, {"10x", "20x", "DMSMIL"}),
        (None, table, {"DMSMIL"}),
        (slide, None, {"10x", "20x"}),
        (one, table, {"20x", "DMSMIL"}),
    ):
        texts = drawn(figures.cover(rows, part, out), out)
        assert wanted <= set(texts) and ("10x" in texts) == ("10x" in wanted)
        assert any("100% of the mass; chance 17%" in t for t in texts) == (part is slide)
    data = np.load(out.with_suffix(".npz"))
    np.testing.assert_array_equal(data["scores_20"], slide["scores"][20])
    np.testing.assert_allclose(data["AUC_mean"], table.AUC_mean)


@pytest.mark.slow
def test_the_cover_shows_the_tiles_that_were_in_the_bag(tmp_path):
    home = make_study(tmp_path / "mine")
    frame, folds = read_cohort(home)
    name, store = frame.slide_id[0], Store(home, 64, (10, 20), "net")
    frame["path"] = str(make_slide(tmp_path / "a.svs", 900, 800, coverage=1))
    save_cohort(home, frame, folds, [])
    with open_slide(frame.path[0], 0.0, name) as opened:
        tiles = select_tiles(opened, 9, 64)
    store.write_tiles(tiles, {})
    store.write_features(name, {scale: np.ones((9, 3), np.float32) for scale in (10, 20)}, tiles, {"encoder": "net"})
    write_json(
        {"method": "dmsmil", "scale": 0, "tile_px": 64, "scales": [10, 20], "encoder": "net", "k": 4, "mpp": 0.0},
        home / "params.yaml",
    )
    write_csv(pd.DataFrame({"slide_id": [name]}), home / "tables/03_dmsmil_predictions.csv")
    (home / "figures").mkdir()
    np.savez(home / "figures/03_dmsmil_scores.npz", scores_10=np.arange(4.0), scores_20=np.arange(4.0))
    bags = load_bags(store, frame[:1], 4)
    for scale, coords in book._seen_slide(home)["coords"].items():
        np.testing.assert_array_equal(coords, bags.coords[0, bags.scales.index(scale)])
    np.savez(home / "figures/03_dmsmil_scores.npz", scores_10=np.arange(9.0), scores_20=np.arange(9.0))
    with pytest.raises(InputError) as caught:
        book._seen_slide(home)
    assert_one_line(caught, name)


def test_rows_of_the_cover_stand_by_auc_and_collapse_is_no_result(tmp_path):
    table = results("DMSMIL", "fallen", *CHEAP)
    table["AUC_mean"], table["collapsed"] = [0.6, 0.99, 0.7, 0.5, 0.5], [0, 2, 0, 0, 0]
    texts = drawn(figures.cover(table, None, tmp_path / "cover"), tmp_path / "cover")
    assert list(np.load(tmp_path / "cover.npz")["name"]) == [CHEAP[0], "DMSMIL", *CHEAP[1:], "fallen"]
    assert "collapsed: no result" in texts


def test_of_many_rows_the_cover_keeps_its_own_and_the_cheap_ones(tmp_path):
    table = results(*(f"m{i}" for i in range(40)), *CHEAP)
    table.loc[0, "AUC_mean"] = 0.01
    figure = figures.cover(table, None, tmp_path / "cover")
    names = list(np.load(tmp_path / "cover.npz")["name"])
    assert names == [f"m{i}" for i in range(1, 12)] + [*CHEAP, "m0"] and len(names) == 15
    assert "15 of 43 rows" in figure.axes[0].get_title(loc="left")


# ------------------------------------------------------------------------------------------------ in a browser


AUDIT = """<!DOCTYPE html><meta charset="utf-8"><body><pre id="out"></pre><script>
const pages = PAGES, found = {};
const frames = pages.map(page => {
  const frame = document.createElement("iframe");
  frame.style = "width:390px;height:800px;border:0"; frame.src = page; document.body.append(frame); return frame;
});
window.onload = () => setTimeout(() => {
  frames.forEach((frame, i) => {
    const page = frame.contentDocument, style = frame.contentWindow.getComputedStyle(page.body);
    found[pages[i]] = {
      images: page.images.length, missing: [...page.images].filter(x => !x.naturalWidth).map(x => x.src),
      width: page.documentElement.scrollWidth, ink: style.color, paper: style.backgroundColor,
      hits: [...page.querySelectorAll("#search-results li a")].map(x => x.textContent)};
  });
  document.getElementById("out").textContent = JSON.stringify(found);
}, 1500);
</script>"""


def audit(folder, tmp_path, *flags):
    """Open all pages of a book, and a search, at a phone's width: ({page: what was found}, lines of the console)."""
    pages = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*.html"))] + ["search.html?q=transport"]
    (folder / "audit.html").write_text(AUDIT.replace("PAGES", json.dumps(pages)))
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--allow-file-access-from-files",
            "--enable-logging=stderr",
            "--virtual-time-budget=20000",
            f"--user-data-dir={tmp_path / 'profile'}",
            *flags,
            "--dump-dom",
            (folder / "audit.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    (folder / "audit.html").unlink()
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.S)
    assert found and found[1], done.stderr[-2000:]
    return json.loads(unescape(found[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def contrast(one, other):
    """WCAG's contrast of two CSS colours."""
    light = []
    for colour in (one, other):
        values = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


def assert_sound(found, console):
    assert console == []
    for name, page in found.items():
        assert page["missing"] == [], name
        assert page["width"] <= 390, f"{name} scrolls sideways on a phone"
        assert contrast(page["ink"], page["paper"]) > 7, name


@pytest.mark.slow
@needed
def test_in_a_browser_all_is_there_light_and_dark(study, tmp_path):
    folder = shutil.copytree(study[0] / "book", tmp_path / "book")
    found, console = audit(folder, tmp_path)
    assert_sound(found, console)
    assert found["notebooks/03_train.html"]["images"] == 2 and found["index.html"]["images"] == 1
    assert found["notebooks/walkthroughs/2_later.html"]["images"] == 1 and "reference/shelf.wing.first.html" in found
    assert found["search.html?q=transport"]["hits"] == ["09 · The report"], "the search needs no server"
    dark, console = audit(folder, tmp_path, "--force-dark-mode", "--blink-settings=preferredColorScheme=0")
    assert_sound(dark, console)
    assert contrast(dark["index.html"]["paper"], "rgb(0,0,0)") < 1.5
    assert contrast(found["index.html"]["paper"], "rgb(0,0,0)") > 15


@pytest.mark.slow
@needed
def test_the_browser_sees_what_is_broken(study, tmp_path):
    folder = shutil.copytree(study[0] / "book", tmp_path / "book")
    (folder / "_images/cover.png").unlink()
    page = folder / "notebooks/09_report.html"
    page.write_text(page.read_text().replace("</body>", "<script>nonsense()</script></body>"))
    found, console = audit(folder, tmp_path)
    assert found["index.html"]["missing"] and any("nonsense" in line for line in console)


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that writes no log."""

    def log_message(self, *_):
        pass


@pytest.mark.slow
@needed
def test_answers_open_and_the_search_finds_code_over_http_too(study, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=study[0] / "book"))
    Thread(target=server.serve_forever, daemon=True).start()
    where = f"http://127.0.0.1:{server.server_port}"
    with browse(f"{where}/notebooks/walkthroughs/2_later.html", tmp_path) as page:
        page.until("document.readyState == 'complete' && document.querySelector('section > details') != null")
        seen = "document.querySelector('section > details').innerText.includes('hidden')"
        assert page.js(seen) is False
        page.js("document.querySelector('section > details > summary').click()")
        page.until(seen)
        page.call("Page.navigate", url=f"{where}/search.html?q=begin")
        page.until("document.querySelectorAll('#search-results li').length")
        assert "shelf.wing.first.begin" in page.js("document.querySelector('#search-results').innerText")
        assert page.errors == []
    server.shutdown()


def test_the_smoke_study_has_a_book_with_its_slide_on_the_cover(smoke, tmp_path):
    home, said = smoke
    assert "book/index.html" in said and "the cover shows no slide" not in said and "book: " not in said
    pages = {p.stem for p in (home / "book/notebooks").rglob("*.html")}
    assert pages == {
        p.stem
        for folder in (home / "notebooks", book.ROOT / book.LESSONS)
        for p in folder.glob("*.ipynb")
        if "." not in p.stem
    }
    rooms = {p.stem for p in (home / "book/reference").glob("dmsmil.*.html")}
    assert {"dmsmil.features.bags", "dmsmil.models.topk", "dmsmil.figures.train"} <= rooms
    cover = np.load(home / "figures/cover.npz")
    assert {"scores_10", "scores_20", "plan_10x_20x", "name"} <= set(cover.files)
    if CHROMIUM:
        assert_sound(*audit(shutil.copytree(home / "book", tmp_path / "book"), tmp_path))
