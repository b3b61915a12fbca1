"""The reference: every public name has its place, a docstring means what it meant, and names lead to what they name."""

import ast
import inspect
import re
from importlib import import_module
from textwrap import dedent

import pytest
from bs4 import BeautifulSoup
from docutils.core import publish_doctree

from dmsmil.book import build
from dmsmil.book.reference import pages, restructured, wings
from dmsmil.jobs.files import InputError
from tests.book.test_build import make_study
from tests.conftest import ROOT, assert_one_line

pytestmark = pytest.mark.slow

PACKAGE = ROOT / "dmsmil"
FILES = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent != PACKAGE
}


def bare(said):
    """A text without whitespace, backticks, and marks of lists: what must stay of a docstring."""
    return re.sub(r"[`\s•]|^- ", "", said, flags=re.M)


def public(path):
    return [
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_"
    ]


# ------------------------------------------------------------------------------------------------ the package


@pytest.fixture(scope="module")
def book(smoke):
    """The pages of the package in the book of the smoke study, parsed, by name."""
    return {
        path.stem: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for path in (smoke[0] / "book/reference").glob("*.html")
    }


def test_every_public_name_has_its_place_and_its_words(book):
    assert set(book) == set(FILES)
    for name, path in FILES.items():
        page = bare(book[name].find("article").get_text())
        assert bare(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))) in page, name
        for node in public(path):
            assert book[name].find(id=f"{name}.{node.name}"), (name, node.name)
            assert bare(ast.get_docstring(node) or "") in page, (name, node.name)
            for method in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(method, ast.FunctionDef) and method.name[0] != "_":
                    assert book[name].find(id=f"{name}.{node.name}.{method.name}"), (name, node.name, method.name)


def test_every_link_leads_somewhere(book):
    links = [
        (name, *link["href"].partition(".html#")[::2])
        for name, page in book.items()
        for link in page.select("article a.reference.internal")
        if ".html#" in link["href"]
    ]
    assert len(links) > 80, "names in backticks are links"
    assert [(name, there, place) for name, there, place in links if not book[there].find(id=place)] == []


@pytest.mark.parametrize(
    "name",
    [
        "dmsmil.features.bags",
        "dmsmil.training.fit",
        "dmsmil.models.dmsmil",
        "dmsmil.models.topk",
        "dmsmil.slides.store",
    ],
)
def test_signatures_are_python_s_own_and_name_no_place(book, name):
    module, shown = import_module(name), 0
    for node in public(FILES[name]):
        entry = book[name].find(id=f"{name}.{node.name}")
        if parameters := entry.select(".sig-param"):
            own = inspect.signature(getattr(module, node.name)).parameters
            words = [part.get_text().rstrip(",") for part in parameters if part.get_text().rstrip(",") not in "*/"]
            assert [re.match(r"\**(\w+)", word)[1] for word in words] == list(own), node.name
            assert [("=" in word) for word in words] == [p.default is not p.empty for p in own.values()], node.name
            shown += 1
    assert shown and "PosixPath" not in book[name].get_text() and "<factory>" not in book[name].get_text()


def test_every_wing_says_its_question_and_leads_to_its_files():
    shelves, written = wings(PACKAGE), pages(PACKAGE)
    assert list(shelves)[0] == "dmsmil.cohorts" and shelves["dmsmil.cohorts"].startswith("Which slides")
    assert set(written) == set(FILES) and {name for name in FILES if name.count(".") == 1} == set(shelves)
    linked = [target for wing in shelves for target in re.findall(r"\]\(([\w.]+)\.md\)", written[wing])]
    assert sorted(linked) == sorted(set(FILES) - set(shelves)), "each file once"


# ------------------------------------------------------------------------------------------------ any package


@pytest.mark.parametrize(
    "said",
    [
        "Plain.",
        "A <b>tag</b> & a `<tag>`, 2 < 3 > 1.",
        "*Stars* a * b, __init__, L_ot _x_ and snake_case, name_.",
        "[link](x), [x]_, ![image](y), {role}`x`, :role:`x`, {key: value}",
        "# no heading\n> no quote\n+ none\n1. no more",
        "a | b\n--- | ---\nc |d| e",
        "50 %\n% no comment\n.. none\n:field: x\n===\n---",
        "A\\* backslash \\ and $x_1$ ~~x~",
        "First.\n\n- one `x`\n- two\n  goes on\n- three - four",
        "Formula:\n\n    t = sqrt(x)  * y\n      <= 2\n\nend::",
        "name   what\nlonger   it * is",
        "`x` is `y z`s, not`x`",
        "",
        "a line - with\n- a dash at its start\n-1 is none",
    ],
)
def test_a_docstring_is_never_taken_for_markup(said):
    lines = said.splitlines()
    restructured(None, "function", "f", lambda x, y, z: 0, None, lines)
    tree = publish_doctree("\n".join(lines), settings_overrides={"report_level": 1, "halt_level": 1})
    assert bare(tree.astext()) == bare(said)


def test_what_is_laid_out_keeps_its_lines():
    lines = "Said\nso.\n\n    a = b\n      + c".splitlines()
    restructured(None, "function", "f", None, None, lines)
    tree = publish_doctree("\n".join(lines))
    assert [part.astext() for part in tree.children] == ["Said\nso.", "a = b\n  + c"]
    assert tree.children[1].tagname == "literal_block"


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """The pages of a package that is made of files, by name, as they are in a book."""

    def make(name, **files):
        for file, text in {"__init__": "", "wing/__init__": "'''W.'''", **files}.items():
            path = tmp_path / name / f"{file}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text))
        monkeypatch.syspath_prepend(tmp_path)
        index = build.build(make_study(tmp_path / "mine"), lambda line: None, tmp_path / "none", name)
        return {
            path.stem: BeautifulSoup(path.read_text(), "html.parser").find("article")
            for path in (index.parent / "reference").glob("*.html")
        }

    return make


def test_names_become_links_but_parameters_do_not(shown):
    book = shown(
        "linked",
        **{
            "wing/store": """
            '''S.'''
            LIMIT = 3  # at most
            class Store:
                '''It.'''
                def read(self, name):
                    '''See `write`, `name`.'''
                def write(self): '''W.'''
            """,
            "wing/bags": """
            '''From `store.Store`.'''
            from linked.wing.store import Store
            def load(store, k):
                '''A `Store`, `Store.read`, `pandas`, `--k`.

                k: how many, `k`. store: where. Else: `load`.
                '''
            """,
        },
    )
    links = {
        name: [(link.get_text(), link["href"]) for link in page.select("a.internal:has(code)")]
        for name, page in book.items()
    }
    there = "linked.wing.store.html#linked.wing.store.Store"
    assert links["linked.wing.bags"] == [
        ("store.Store", there),
        ("Store", there),
        ("Store.read", f"{there}.read"),
        ("load", "#linked.wing.bags.load"),
    ]
    assert [code.get_text() for code in book["linked.wing.bags"].select("code")][3:6] == ["pandas", "--k", "k"]
    assert links["linked.wing.store"] == [("write", "#linked.wing.store.Store.write")]
    assert "LIMIT = 3  # at most" in book["linked.wing.store"].get_text()


def test_a_signature_is_what_one_types(shown):
    long = ", ".join(f"argument_{i}: dict[str, int] = None" for i in range(8))
    page = shown(
        "typed",
        **{
            "wing/a": f"""
        from dataclasses import dataclass, field
        from pathlib import Path
        from typing import NamedTuple
        HERE = Path.cwd()
        def f(a, /, b: int = 3, *, c='x', **d) -> list[str]: ...
        def g({long}) -> int: ...
        def h(root: Path = HERE): ...
        @dataclass(frozen=True)
        class A:
            n: int
            d: dict = field(default_factory=dict)
        class B(NamedTuple):
            n: int
        class C:
            def __init__(self, n: int = 2): ...
            @property
            def p(self) -> int: ...
            @classmethod
            def of(cls, x): ...
        """
        },
    )["typed.wing.a"]
    said = {
        entry["id"].removeprefix("typed.wing.a."): " ".join(entry.get_text().strip(" ¶\n").split())
        for entry in page.select("dt.sig")
    }
    wrapped = said.pop("g")
    assert said == {
        "f": "f(a, /, b: int = 3, *, c='x', **d) → list[str]",
        "h": "h(root: Path = HERE)",
        "A": "class A(n: int, d: dict = ...)",
        "B": "class B(n)",
        "C": "class C(n: int = 2)",
        "C.p": "property p: int",
        "C.of": "classmethod of(x)",
    }
    assert all(f"argument_{i}: dict[str, int] = None," in wrapped for i in range(8))
    assert len(page.find(id="typed.wing.a.g").select("dd")) == 8, "an argument a line"


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "pack/wing").mkdir(parents=True)
    (tmp_path / "pack/wing/__init__.py").write_text("")
    (tmp_path / "pack/wing/mine.py").write_text("import os\ndef f(:\n")
    with pytest.raises(InputError) as caught:
        pages(tmp_path / "pack")
    assert_one_line(caught, "mine.py is no Python, line 2")


def test_a_file_that_cannot_be_imported_stops_no_book(shown):
    book = shown("broken", **{"wing/bad": "'''B.'''\nimport a_package_that_is_absent\n", "wing/good": "'''G.'''\n"})
    assert "G." in book["broken.wing.good"].get_text() and set(book) == {
        "broken.wing",
        "broken.wing.bad",
        "broken.wing.good",
    }
