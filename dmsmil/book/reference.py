"""Reference pages of the package: what every room offers, written from its docstrings as Markdown for the book.

Code is read, not imported. Docstrings are plain text: what Markdown would take for markup is escaped, and what is meant
stays (paragraphs, lists, indented formulas, columns); names in backticks become links to where they are defined.
Signatures are code, not objects of Sphinx's Python domain, which take it several times as long to draw.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dmsmil.jobs.files import InputError

ROOM = re.compile(r"`([\w/]+(?:\.py|/))`")  # how README names a file or a folder of the package
REST = "What else is there?"  # the question of rooms that README does not name
WIDTH = 84  # characters of a line of a signature
LONGEST = 60  # characters of a constant's value that are shown
Definition = ast.ClassDef | ast.FunctionDef


def groups(package: Path, readme: Path) -> dict[str, list[str]]:
    """The rooms by the questions of README's table "Where things are": question -> modules, such as `dmsmil.features.bags`.

    A folder stands for its files that no row names. A room that no row names comes last, under `REST`.
    """
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    table = text.partition("## Where things are\n")[2].partition("\n## ")[0]
    rows = {line.strip("| ").split(" | ")[0]: ROOM.findall(line.rpartition(" | ")[2]) for line in table.splitlines()}
    left = {path.relative_to(package).as_posix() for path in package.rglob("*.py")} - {"__init__.py"}
    found = {question: [name for name in names if name in left] for question, names in rows.items()}
    left -= {name for names in found.values() for name in names}
    for question, names in [*rows.items(), (REST, ["/"])]:
        for folder in [name.lstrip("/") for name in names if name.endswith("/")]:
            inside = sorted((name for name in left if name.startswith(folder)), key=module_name)
            found[question] = found.get(question, []) + inside
            left -= set(inside)
    return {question: [f"{package.name}.{module_name(name)}" for name in names]
            for question, names in found.items() if names}


def module_name(path: str) -> str:
    """A file as the module it is: `models/clam.py` is `models.clam`, `models/__init__.py` is `models`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def slug(question: str) -> str:
    """A question as the name of a page: `Which slides?` is `which-slides`."""
    return "-".join(re.findall(r"\w+", question.lower()))


def pages(package: Path, readme: Path) -> dict[str, str]:
    """The pages, name -> Markdown: one a question of `groups`, named by `slug`, and one a room, named as the room.

    Those of the questions are for a table of contents; each leads to its rooms. What has nothing to show has no page: a
    room without a docstring and without a public name, and a question without a room. Raises InputError for a file that
    is no Python.
    """
    shelves = {question: [room for name in names if (room := _read(package, name)).said or room.defined]
               for question, names in groups(package, readme).items()}
    rooms = [room for shelf in shelves.values() for room in shelf]
    index = {name: target for room in rooms for name, target in room.targets()}
    index |= {f"{room.name}.{short}": index[full] for room in rooms for short, full in room.imported.items()
              if full in index}
    found = {}
    for question, shelf in [(question, shelf) for question, shelf in shelves.items() if shelf]:
        said = [f"- [{room.name}]({room.name}.md)\n\n  {_escaped(_first(room.said))}\n" for room in shelf]
        found[slug(question)] = "\n".join([f"# {question}", "", "````{container} reading", *said, "````", ""])
        found |= {room.name: _page(room, question, index) for room in shelf}
    return found


# ------------------------------------------------------------------------------------------------ a room


@dataclass(frozen=True)
class _Room:
    """A module: its docstring, public classes and functions, constants as they are shown, and what of the package its
    imported names stand for."""

    name: str
    said: str
    defined: list[Definition]
    constants: dict[str, str]
    imported: dict[str, str]

    def targets(self) -> Iterator[tuple[str, str]]:
        """(full name, what a link to it names) of the room, its definitions, their methods, and its constants."""
        yield self.name, f"{self.name}.md"
        for node in self.defined:
            yield f"{self.name}.{node.name}", f"#{_label(node, self.name)}"
            for method in _methods(node):
                place = f"{self.name}.{node.name}"
                yield f"{place}.{method.name}", f"#{_label(method, place)}"
        for name in self.constants:
            yield f"{self.name}.{name}", f"#{self.name}.constants"


def _read(package: Path, name: str) -> _Room:
    path = package.joinpath(*name.split(".")[1:])
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    try:
        tree, lines = ast.parse(source), source.splitlines()
    except SyntaxError as error:
        raise InputError(f"{name} is no Python, line {error.lineno}: mend that file of the package") from error
    imported = {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in tree.body
                if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == package.name
                for alias in node.names}
    constants = {}
    for node in tree.body:
        beside = lines[node.end_lineno - 1].encode()[node.end_col_offset:].decode().strip()
        if isinstance(node, ast.Assign) and beside and not (shown := ast.unparse(node.targets[0])).startswith("_"):
            value = ast.unparse(node.value)
            constants[shown] = f"{shown} = {value if len(value) <= LONGEST else '...'}  {beside}"
    return _Room(name, ast.get_docstring(tree) or "", _public(tree.body), constants, imported)


def _public(body: list[ast.stmt]) -> list[Definition]:
    return [node for node in body if isinstance(node, Definition) and not node.name.startswith("_")]


def _methods(node: Definition) -> list[ast.FunctionDef]:
    return [part for part in _public(node.body) if isinstance(part, ast.FunctionDef)] \
        if isinstance(node, ast.ClassDef) else []


def _label(node: Definition, place: str) -> str:
    """Where a definition can be linked to. Labels know no upper case: `DeLong` must not be `delong`."""
    return "class." * isinstance(node, ast.ClassDef) + f"{place}.{node.name}"


# ------------------------------------------------------------------------------------------------ its page


def _page(room: _Room, question: str, index: dict[str, str]) -> str:
    text = _Text(room, index)
    parts = ["---\norphan: true\n---", f"# {room.name}", f"Reference / [{question}]({slug(question)}.md)",
             text.prose(room.said, room.name)]
    for node in room.defined:
        parts += _entry(node, room.name, text)
        for method in _methods(node):
            parts += _entry(method, f"{room.name}.{node.name}", text, inside=True)
    if room.constants:
        parts += [f"({room.name}.constants)=\n## Constants", _code("\n".join(room.constants.values()))]
    if not room.defined:  # a package that hands on what its files define
        parts.append("\n".join(f"- {text.code(name)}" for name, full in sorted(room.imported.items()) if full in index))
    return "\n\n".join([*filter(None, parts), ""])


def _entry(node: Definition, place: str, text: _Text, inside: bool = False) -> list[str]:
    """Heading, signature and docstring of a definition; inside: of a class."""
    marks = {ast.unparse(mark).partition("(")[0] for mark in node.decorator_list}
    if isinstance(node, ast.FunctionDef):
        arguments, head = _arguments(node, bound=inside and "staticmethod" not in marks), node.name
    else:
        arguments, head = _constructor(node, marks), f"class {node.name}"
    result = f" -> {ast.unparse(node.returns)}" if getattr(node, "returns", None) else ""
    bare = "property" in marks or isinstance(node, ast.ClassDef) and not arguments
    signature = (head if bare else f"{head}({', '.join(arguments)})") + result
    if len(signature) > WIDTH and arguments:
        signature = f"{head}(\n    " + ",\n    ".join(_filled(arguments)) + f"){result}"
    names = [re.match(r"\**(\w*)", argument)[1] for argument in arguments]
    shown = "\n".join([*(f"@{mark}" for mark in ("classmethod", "staticmethod", "property") if mark in marks),
                       signature])
    return [f"({_label(node, place)})=\n##{'#' * inside} {_escaped(node.name)}", _code(shown),
            text.prose(ast.get_docstring(node) or "", f"{place}.{node.name}", [name for name in names if name])]


def _code(text: str) -> str:
    return f"```{{code-block}} python\n:class: signature\n\n{text}\n```"


def _filled(arguments: list[str]) -> list[str]:
    """Arguments in lines of `WIDTH` characters, none of them broken."""
    spaced = textwrap.wrap(", ".join(a.replace(" ", "\xa0") for a in arguments), WIDTH - 4, break_long_words=False,
                           break_on_hyphens=False)
    return [line.replace("\xa0", " ").removesuffix(",") for line in spaced]


def _constructor(node: ast.ClassDef, marks: set[str]) -> list[str]:
    """What makes an object of a class: the fields of a dataclass or a NamedTuple, else what `__init__` takes."""
    if "dataclass" in marks or "NamedTuple" in map(ast.unparse, node.bases):
        return [_argument(ast.arg(part.target.id, part.annotation), part.value) for part in node.body
                if isinstance(part, ast.AnnAssign) and not part.target.id.startswith("_")]
    return next((_arguments(part, bound=True) for part in node.body
                 if isinstance(part, ast.FunctionDef) and part.name == "__init__"), [])


def _arguments(node: ast.FunctionDef, bound: bool) -> list[str]:
    """The arguments of a function; bound: without the first."""
    given = node.args
    first = [*given.posonlyargs, *given.args]
    shown = [_argument(a, default) for a, default in
             zip(first, [None] * (len(first) - len(given.defaults)) + given.defaults)]
    if given.posonlyargs:
        shown.insert(len(given.posonlyargs), "/")
    if given.vararg or given.kwonlyargs:
        shown.append("*" + (ast.unparse(given.vararg) if given.vararg else ""))
    shown += [_argument(a, default) for a, default in zip(given.kwonlyargs, given.kw_defaults)]
    return (shown + ([f"**{ast.unparse(given.kwarg)}"] if given.kwarg else []))[int(bound):]


def _argument(given: ast.arg, default: ast.expr | None) -> str:
    """An argument or a field, as `k: int = 3`."""
    equals = " = " if given.annotation else "="
    value = re.sub(r"^field\(default_factory=(\w+)\)$", r"\1()", ast.unparse(default)) if default else ""
    return ast.unparse(given) + (equals + value if value else "")


# ------------------------------------------------------------------------------------------------ its words


@dataclass(frozen=True)
class _Text:
    """Docstrings of a room as Markdown. index: what a link names, by the full name of what it leads to."""

    room: _Room
    index: dict[str, str]

    def code(self, name: str, place: str = "") -> str:
        """A name in backticks, a link where it is of the package; place: the definition that speaks of it."""
        first, _, rest = name.partition(".")
        brought = self.room.imported.get(first, "") + (f".{rest}" if rest else "")
        tried = (f"{place}.{name}", f"{place.rpartition('.')[0]}.{name}", f"{self.room.name}.{name}", brought,
                 f"{self.room.name.partition('.')[0]}.{name}", name)
        target = next((self.index[full] for full in tried if full in self.index), "")
        return f"[`{name}`]({target})" if target else f"`{name}`"

    def prose(self, said: str, place: str, parameters: list[str] = ()) -> str:
        """A docstring; the parameters that it explains are marked."""
        blocks = []
        for block in re.split(r"\n\s*\n", said):
            if block.startswith("- "):
                items = re.split(r"^- ", block, flags=re.M)[1:]
                blocks.append("\n".join("- " + self._words(item, place, parameters) for item in items))
            elif re.search(r"^ |\S {3,}\S", block, re.M):  # a formula, or columns: its layout is meant
                blocks.append(f"```text\n{textwrap.dedent(block)}\n```")
            else:
                blocks.append(self._words(block, place, parameters))
        return "\n\n".join(blocks)

    def _words(self, text: str, place: str, parameters: list[str]) -> str:
        if parameters:
            one = "|".join(parameters)
            explained = re.compile(rf"(^|(?<=[.;] ))((?:{one})(?:, (?:{one}))*)(?=:\s)", re.M)
            text = "".join(part if part.startswith("`") else explained.sub(r"\1`\2`", part) for part in _parts(text))
        return "".join(_escaped(part) if not part.startswith("`") else part if part[1:-1] in parameters
                       else self.code(part[1:-1], place) for part in _parts(text))


def _parts(text: str) -> list[str]:
    """A text cut into what stands in backticks and what does not."""
    return [part for part in re.split(r"(`[^`]+`)", text) if part]


def _first(said: str) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join(said.split("\n\n")[0].split())


def _escaped(text: str) -> str:
    """A text that means itself in Markdown: no character of it is markup, nor is the beginning of a line."""
    text = re.sub(r"([!#$%&()*+<=>\[\\\]^_{|}~])", r"\\\1", text)
    return re.sub(r"^(\s*)(-|\d+(?=[.)]\s))", lambda start: start[1] + ("\\-" if start[2] == "-" else start[2] + "\\"),
                  text, flags=re.M)
