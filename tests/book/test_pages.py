"""Pages say what their notebooks do not: what pictures show, which columns are words, where links lead."""

import inspect
import re
from html import unescape

import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from dmsmil import figures
from dmsmil.book.pages import _aligned, _drawn, _linked, alt_text, first_sentence, opening

KNOWN = {
    "notebooks/03_train.ipynb",
    "notebooks/walkthroughs/1_first.ipynb",
    "reference/dmsmil.models.md",
    "reference/dmsmil.features.bags.md",
}


def text(html):
    """What a reader sees of a page, whitespace as one space."""
    return " ".join(unescape(re.sub(r"<[^>]+>", "", html)).split())


@pytest.fixture
def root(tmp_path):
    """A checkout with files of the package, and one that is no page."""
    for name in ("dmsmil/features/bags.py", "dmsmil/models/__init__.py", "dmsmil/unknown.py", "params/mine.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    "here, there",
    [
        ("[a](../../dmsmil/features/bags.py)", "[a](../../reference/dmsmil.features.bags.md)"),
        ("[a](../../dmsmil/models/__init__.py#L3)", "[a](../../reference/dmsmil.models.md)"),
        ("see [`mine.yaml`](../../params/mine.yaml), now", "see `mine.yaml`, now"),
        ("[a](../../dmsmil/unknown.py)", "a"),
        ("[a](../03_train.ipynb)", "[a](../03_train.ipynb)"),
        ("[a](https://example.org/dmsmil/features/bags.py)", "[a](https://example.org/dmsmil/features/bags.py)"),
        ("[a](gone.md)", "[a](gone.md)"),
        (
            "as `03_train` and `dmsmil.features.bags` say",
            "as [`03_train`](../03_train.ipynb) and "
            "[`dmsmil.features.bags`](../../reference/dmsmil.features.bags.md) say",
        ),
        ("`1_first`, `other`, [`03_train`](../03_train.ipynb)", "`1_first`, `other`, [`03_train`](../03_train.ipynb)"),
    ],
)
def test_links_lead_to_pages_or_are_words(root, here, there):
    assert _linked(here, "notebooks/walkthroughs/1_first.ipynb", KNOWN, root) == there


def test_a_link_is_relative_to_its_page(root):
    assert (
        _linked("`dmsmil.features.bags`", "notebooks/03_train.ipynb", KNOWN, root)
        == "[`dmsmil.features.bags`](../reference/dmsmil.features.bags.md)"
    )


@pytest.mark.parametrize(
    "how, call",
    [
        ("from dmsmil import figures", "figures.roc(x)"),
        ("from drawings import bags", "x = 3\nbags.roc(runs)"),
        ("import os\nfrom drawings import base, bags as draw", "slider(draw.roc, k=[1, 2])"),
        ("%matplotlib inline", "figures.roc(x)"),
    ],
)
def test_a_picture_is_described_by_who_drew_it(how, call, tmp_path):
    """The drawings of a walkthrough are read where they lie, and not run."""
    said = inspect.getdoc(figures.roc)
    for name, text in (("bags", f"import nothing\n\n\ndef roc(x):\n    {said!r}\n"), ("base", "")):
        (tmp_path / "drawings").mkdir(exist_ok=True)
        (tmp_path / f"drawings/{name}.py").write_text(text, encoding="utf-8")
    drawn = _drawn(new_notebook(cells=[new_markdown_cell("# T"), new_code_cell(how), new_code_cell(call)]), tmp_path)
    assert alt_text(call, "How it errs", drawn) == f"How it errs. {first_sentence(said)}"


def test_what_nobody_documented_has_its_heading():
    assert alt_text("plt.plot(x)", "Why?", {"figures.roc": "Said."}) == "Why?"
    assert alt_text("figures.bare(x)", "Why?", {"figures.bare": None}) == "Why?"


def test_marks_of_markdown_are_not_read_aloud():
    assert alt_text("", "How *L_ot* `falls` with _λ_?", {}) == "How L_ot falls with λ?"


def test_a_page_opens_with_its_claim():
    notebook = new_notebook(cells=[new_markdown_cell("# 3 · It\n\nAs Fig. 3 shows, it\nholds. More.\n\nAnd more.")])
    assert opening(notebook) == ("3 · It", "As Fig. 3 shows, it holds.")


def test_columns_of_words_read_from_the_left():
    frame = pd.DataFrame(
        {
            "number": [1.5, -2],
            "words": ["", "good so far"],
            "code": ["04_compare", "3"],
            "scale": ["10x", "10x+20x"],
            "gap": [np.nan, np.inf],
            "dash": ["—", "0.8 ± 0.1 [0.7, 0.9]"],
        }
    )
    html = frame.to_html()
    marked = _aligned(html)
    assert text(marked) == text(html)
    assert re.findall(r'<th class="words">(\w+)', marked) == ["words", "code"] and marked.count('class="words"') == 6
    nested = pd.concat({"a": frame, "b": frame}, axis=1).to_html()
    assert text(_aligned(nested)) == text(nested) and _aligned(nested).count('td class="words"') == 8
