"""The reference: every public name has its place, a docstring means what it meant, and every link leads somewhere."""

import ast
import inspect
import re
from html import unescape
from importlib import import_module
from textwrap import dedent

import pytest
from markdown_it import MarkdownIt

from dmsmil.book.reference import REST, _read, _Text, groups, pages, slug
from dmsmil.jobs.files import InputError
from tests.conftest import ROOT, assert_one_line

PACKAGE, README = ROOT / "dmsmil", ROOT / "README.md"
TABLE = "# It\n\n## Where things are\n\n| question | notebook | package |\n|---|---|---|\n{}\n## After\n\n| `a.py` |\n"


@pytest.fixture(scope="module")
def book():
    """The pages of the package itself."""
    return pages(PACKAGE, README)


@pytest.fixture
def write(tmp_path):
    """Write the files of a package and its README; returns (package, readme)."""
    def make(readme="", **files):
        for name, text in {"__init__": "", **files}.items():
            path = tmp_path / "pack" / (name.replace("__in__", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text))
        (tmp_path / "README.md").write_text(TABLE.format(readme))
        return tmp_path / "pack", tmp_path / "README.md"

    return make


def read(markdown):
    """What a reader sees of Markdown, whitespace as one space."""
    html = re.sub(r"</?code>", "`", MarkdownIt("commonmark").render(markdown))
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def words(said):
    """A docstring as it should be read: no marks of lists, no indent, whitespace as one space."""
    unmarked = [re.sub(r"^- ", "", block, flags=re.M) if block.startswith("- ") else block
                for block in said.split("\n\n")]
    return " ".join(" ".join(unmarked).split())


def same(markdown, said):
    return read(markdown).replace("`", "").replace(" ", "") == words(said).replace("`", "").replace(" ", "")


# ------------------------------------------------------------------------------------------------ the package


def test_every_public_name_has_its_place(book):
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
                heading = f"\n## {node.name}\n".replace("_", "\\_")
                assert (heading in book[name]) == (node.name[0] != "_"), (name, node.name)


def test_every_docstring_means_what_it_meant(book):
    for name in [name for name in book if name.startswith("dmsmil.")]:
        room = _read(PACKAGE, name)
        for said in [room.said, *(ast.get_docstring(node) or "" for node in room.defined)]:
            assert same(_Text(room, {}).prose(said, name), said), (name, said)


def test_every_link_leads_somewhere(book):
    labels = [label for text in book.values() for label in re.findall(r"^\((.+)\)=$", text, re.M)]
    assert len({label.lower() for label in labels}) == len(labels) > 300
    links = [target for text in book.values() for target in re.findall(r"(?<!\\)\]\(([^)]+)\)", text)]
    assert {link for link in links if link.removeprefix("#") not in labels
            and link.removesuffix(".md") not in book} == set()
    assert sum(link.startswith("#") for link in links) > 100


def test_every_room_stands_once_below_a_question_of_the_readme():
    shelves = groups(PACKAGE, README)
    rooms = [room for names in shelves.values() for room in names]
    assert len(set(rooms)) == len(rooms) == len(list(PACKAGE.rglob("*.py"))) - 1
    assert list(shelves)[0] == "Which slides, whose, which fold?" and "dmsmil.features.bags" in shelves[
        "What does the network see?"]


@pytest.mark.parametrize("name", ["bags", "training", "files", "slides", "models.dmsmil", "models.topk", "store"])
def test_signatures_are_python_s_own(book, name):
    module = import_module(f"dmsmil.{name}")
    page = book[f"dmsmil.{name}"].partition("\n## Constants")[0]
    blocks = re.findall(r"\n## (\S+)\n\n```{code-block} python\n:class: signature\n\n(.*?)\n```", page, re.S)
    assert blocks
    for heading, shown in blocks:
        if "(" not in shown:
            continue
        own = inspect.signature(getattr(module, heading.replace("\\", "")))
        given = ast.parse(f"def {shown.removeprefix('class ')}: ...").body[0].args
        every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        assert [a.arg for a in every] == [p.name for p in own.parameters.values()
                                          if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        assert len(given.defaults) + sum(map(bool, given.kw_defaults)) == sum(
            p.default is not p.empty for p in own.parameters.values())


# ------------------------------------------------------------------------------------------------ any package


@pytest.mark.parametrize("said", [
    "Plain.", "A <b>tag</b> & a `<tag>`, 2 < 3 > 1.", "*Stars* a * b, __init__, L_ot _x_ and snake_case.",
    "[link](x), [x], ![image](y), {role}`x`, {key: value}", "# no heading\n> no quote\n+ none\n1. no number\n2) nor",
    "a | b\n--- | ---\nc | d", "50 %\n% no comment\n(label)=\n+++\n---\n===", "A\\* backslash \\ and $x_1$ ~~gone~~",
    "First.\n\n- one `x`\n- two\n  goes on\n- three - four", "Formula:\n\n    t = sqrt(x)  * y\n      <= 2\n\nend",
    "name   what\nlonger   it * is", "`a` is `b`", "", "a line - with\n- a dash at its start\n-1 is no list"])
def test_a_docstring_is_never_taken_for_markup(said, write):
    package, readme = write(a="'''A.'''")
    text = _Text(_read(package, "pack.a"), {})
    assert same(text.prose(said, "pack.a"), said)


def test_names_become_links_but_parameters_do_not(write):
    package, readme = write(
        store="'''S.'''\nclass Store:\n    '''It.'''\n    def read(self, name):\n        '''See `write`, `name`.'''\n"
              "    def write(self): '''W.'''\nLIMIT = 3  # at most\n",
        bags="'''From `store.Store`.'''\nfrom pack.store import Store, LIMIT\n"
             "def load(store, k):\n    '''A `Store`, `Store.read`, at most `LIMIT`, `pandas`.\n\n"
             "    k: how many, `k`. store: where. Else: `load`.\n    '''\n")
    book = pages(package, readme)
    assert "From [`store.Store`](#class.pack.store.Store)" in book["pack.bags"]
    assert ("A [`Store`](#class.pack.store.Store), [`Store.read`](#pack.store.Store.read), at most "
            "[`LIMIT`](#pack.store.constants), `pandas`") in book["pack.bags"]
    assert "`k`: how many, `k`. `store`: where. Else: [`load`](#pack.bags.load)" in book["pack.bags"]
    assert "See [`write`](#pack.store.Store.write), `name`" in book["pack.store"]
    assert "LIMIT = 3  # at most" in book["pack.store"]


@pytest.mark.parametrize("code, shown", [
    ("def f(a, /, b: int = 3, *, c='x', **d) -> list[str]: ...", "f(a, /, b: int = 3, *, c='x', **d) -> list[str]"),
    ("def f(*args: int, last=None): ...", "f(*args: int, last=None)"),
    ("class A:\n    x = 3", "class A"),
    ("class A:\n    def __init__(self, n: int = 2): ...", "class A(n: int = 2)"),
    ("@dataclass(frozen=True)\nclass A:\n    n: int\n    d: dict = field(default_factory=dict)\n    _p: int = 0",
     "class A(n: int, d: dict = dict())"),
    ("class A(NamedTuple):\n    n: int = 1", "class A(n: int = 1)"),
    ("class A:\n    @property\n    def p(self) -> int: ...", "@property\np -> int"),
    ("class A:\n    @staticmethod\n    def s(x): ...", "@staticmethod\ns(x)"),
    ("class A:\n    @classmethod\n    def of(cls, x): ...", "@classmethod\nof(x)")])
def test_a_signature_is_what_one_types(code, shown, write):
    page = pages(*write(a=code))["pack.a"]
    assert f"\n\n{shown}\n```" in page


def test_a_long_signature_is_wrapped_between_arguments(write):
    names = [f"argument_{i}: dict[str, int] = None" for i in range(8)]
    page = pages(*write(a=f"def f({', '.join(names)}) -> int: ..."))["pack.a"]
    shown = re.search(r"f\(\n.*?\) -> int", page, re.S)[0]
    lines = shown.splitlines()
    assert len(lines) > 3 and max(map(len, lines)) <= 100 and all(name in shown for name in names)
    assert all(line.startswith("    argument_") for line in lines[1:])


def test_what_the_readme_does_not_name_comes_last(write):
    package, readme = write("| One? | x | `b.py` (it) |\n| Two? | | `models/`, `gone.py` |\n",
                            a="'''A.'''", b="'''B.'''", models__in____init__="'''M.'''", models__in__x="'''X.'''",
                            empty="import os")
    assert groups(package, readme) == {"One?": ["pack.b"], "Two?": ["pack.models", "pack.models.x"],
                                       REST: ["pack.a", "pack.empty"]}
    found = pages(package, readme)
    assert set(found) == {"one", "two", slug(REST), "pack.a", "pack.b", "pack.models", "pack.models.x"}
    assert groups(package, readme.with_name("gone.md")) == {
        REST: ["pack.a", "pack.b", "pack.empty", "pack.models", "pack.models.x"]}
    assert pages(package.with_name("gone"), readme) == {}
    for name in ("a", "b", "models/__init__", "models/x"):
        (package / f"{name}.py").write_text("")
    assert pages(package, readme) == {}, "nothing to show"


def test_a_broken_file_is_named(write):
    with pytest.raises(InputError) as caught:
        pages(*write(a="'''A.'''", mine="import os\ndef f(:\n"))
    assert_one_line(caught, "pack.mine is no Python, line 2")


def test_a_package_shows_what_it_hands_on(write):
    package, readme = write(figures__in____init__="'''F.'''\nfrom pack.figures.results import roc\n",
                            figures__in__results="def roc(): '''R.'''", a="'''`figures.roc`.'''")
    found = pages(package, readme)
    assert "- [`roc`](#pack.figures.results.roc)" in found["pack.figures"]
    assert "[`figures.roc`](#pack.figures.results.roc)" in found["pack.a"]
