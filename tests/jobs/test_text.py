"""What a user wrote reads as it was written, whatever renders the Markdown."""

import re
from html import unescape

import pytest
from markdown_it import MarkdownIt

from dmsmil.jobs.text import as_written, many

ODD = [
    "<img src=x onerror=alert(1)>",
    "a|b",
    "$x$ *b* _c_",
    "50 %",
    "癌",
    "a & b &amp; &#60;",
    "`code` ``more``",
    "**bold** __bold__ ***",
    "~~gone~~ ~x~",
    "[a](b) [c][d] [e]: f ![g](h)",
    "# head",
    "> said",
    "- item",
    "+ item",
    "1. first",
    "2) second",
    "% comment",
    "<!-- x --> <?php ?> </b>",
    "<http://x.y>",
    "{role}`x`",
    "---",
    "***",
    "___",
    "back\\slash \\* \\",
    "_x __y z_",
    "a * b",
    "5*",
    "~~~",
    "```",
    "<script>alert(1)</script>",
]


def read(html):
    return " ".join(unescape(re.sub(r"</?(?:ul|li|p|table|thead|tbody|tr|t[hd])>", " ", html)).split())


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("around", ["{}", "- {} is best", "- the best is {}, of 3", "- **{}**: so"])
def test_odd_names_read_as_they_were_written(name, around):
    """CommonMark, tables and struck words, HTML allowed, as Jupyter and the book have it."""
    html = (
        MarkdownIt("commonmark", {"html": True})
        .enable(["table", "strikethrough"])
        .render(around.format(as_written(name)))
    )
    plain = around.removeprefix("- ").replace("**", "")
    assert read(re.sub("</?strong>", "", html)) == " ".join(plain.format(name).split())


@pytest.mark.parametrize("name", ODD)
def test_a_cell_of_a_table_stays_a_cell(name):
    html = MarkdownIt("commonmark").enable("table").render(f"| a | b |\n|---|---|\n| {as_written(name)} | c |\n")
    assert [unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", html)] == [name, "c"]


@pytest.mark.parametrize(
    "name",
    [
        "DMSMIL",
        "HAG-MIL 20x, hidden_dims=[128, 192], size=[64, 32], 8 epochs",
        "p < 0.001",
        "lobular-like",
        "R & D",
        "0.869 ± 0.129 [0.67, 0.97]",
        "a > b",
        "DMSMIL is better by 0.1 AUC [0.05, 0.15], corrected p = 0.02.",
    ],
)
def test_usual_names_stay_as_they_are(name):
    assert as_written(name) == name


def test_a_name_is_one_line():
    assert as_written("a\n\n# b") == "a \\# b" and as_written(3) == "3"


def test_one_thing_is_no_plural():
    assert [many(count, "slide") for count in (0, 1, 2, 1000)] == ["0 slides", "1 slide", "2 slides", "1,000 slides"]
