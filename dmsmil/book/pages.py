"""A notebook as a page: what it does not say by itself, as notes for myst-nb.

Alternative texts of its pictures, cells that are folded, pictures too wide for a phone, columns of words, and where
links lead inside the book.
"""

from __future__ import annotations

import ast
import base64
import inspect
import io
import posixpath
import re
from pathlib import Path

from bs4 import BeautifulSoup
from PIL import Image

from dmsmil import figures
from dmsmil.book.reference import module_name

FOLDED = {"parameters": "Parameters: their meaning and defaults", "injected-parameters": "The values in this study"}
WORDS = re.compile(r"(?!nan|inf)[^\W\d_]{3}", re.I)  # what a cell that is no number holds
WIDE = 520  # px: what is wider cannot be read when squeezed into a phone


def prepared(notebook: dict, name: str, known: set[str], root: Path) -> dict:
    """The notebook with notes for myst-nb in its cells' metadata: what pictures show, what is folded, what is wide.
    Cells and outputs stay as they are, but for the classes of columns and links to what is no page.

    name: the place of the notebook in the book, as in the checkout `root`; known: the places of all pages.
    """
    heading, said = "", _drawn(notebook, (root / name).parent)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            heading = (_headings(cell) or [heading])[-1]
            cell["source"] = _linked(_text(cell), name, known, root)
        elif cell["cell_type"] == "code":
            _note(cell, heading, said)
    return notebook


def _headings(cell: dict) -> list[str]:
    """The headings of a cell of prose; a comment in a block of code is none."""
    prose = re.sub(r"^```.*?^```", "", _text(cell), flags=re.M | re.S)
    return re.findall(r"^#+ +(.+)$", prose, re.M)


def _note(cell: dict, heading: str, said: dict[str, str]) -> None:
    """Write the notes of a code cell into it; heading: the one above it; said: as `alt_text` takes it."""
    tags, notes = cell["metadata"].setdefault("tags", []), cell["metadata"].setdefault("mystnb", {})
    if label := _folded(cell):
        tags.append("hide-input")
        notes |= {"code_prompt_show": label, "code_prompt_hide": label}
    shown = [output["data"] for output in cell["outputs"] if "data" in output]
    if widths := [_width(data["image/png"]) for data in shown if "image/png" in data]:
        notes["image"] = {"alt": alt_text(_text(cell), heading, said), "width": f"{max(widths)}px"}
        tags += ["wide"] * (max(widths) > WIDE)
    for data in shown:
        if "text/html" in data:
            data["text/html"] = _aligned("".join(data["text/html"]))


def _width(picture: str | list[str]) -> int:
    """Pixels; picture: a PNG as notebooks store it."""
    return Image.open(io.BytesIO(base64.b64decode("".join(picture)))).width


def _folded(cell: dict) -> str:
    """The label that a cell of parameters or of imports is folded behind, else nothing: readers came for the story."""
    named = [label for tag, label in FOLDED.items() if tag in cell["metadata"]["tags"]]
    body = _statements(cell)
    only_imports = body and all(isinstance(line, (ast.Import, ast.ImportFrom)) for line in body)
    return named[0] if named else "Imports" if only_imports else ""


def _statements(cell: dict) -> list[ast.stmt]:
    """The statements of a code cell; none where it is not plain Python, with a magic, say."""
    try:
        return ast.parse(_text(cell)).body
    except SyntaxError:
        return []


def _aligned(html: str) -> str:
    """pandas' tables with the class `words` on the columns that hold words: these read from the left."""
    soup = BeautifulSoup(html, "html.parser")
    for table in soup.select("table.dataframe"):
        columns = list(zip(*(row.find_all("td") for row in table.select("tbody tr"))))
        names = [] if table.select("th[colspan]") else table.select("thead tr:first-child th")[-len(columns) :]
        for number, cells in enumerate(columns):
            if any(WORDS.search(cell.get_text(strip=True)) for cell in cells):
                for cell in [*names[number : number + 1], *cells]:
                    cell["class"] = "words"
    return str(soup)


def _linked(text: str, name: str, known: set[str], root: Path) -> str:
    """Markdown of the page `name` with its links to files of the checkout leading to the page about each, or but words.

    A file of the package has its page in the reference. What names a page in backticks, as `05_ablation`, leads there
    too. What is no file of the checkout stays as it is.
    """
    here = posixpath.dirname(name)
    stems = {posixpath.splitext(posixpath.basename(page))[0]: page for page in known}

    def link(found: re.Match) -> str:
        words, target = found.groups()
        path = posixpath.normpath(posixpath.join(here, target.partition("#")[0]))
        if path in known or not (root / path).exists():
            return found[0]
        page = f"reference/{module_name(path)}.md"
        return f"[{words}]({posixpath.relpath(page, here)})" if page in known else words

    def mention(found: re.Match) -> str:
        page = stems.get(found[1], name)
        return found[0] if page == name else f"[{found[0]}]({posixpath.relpath(page, here)})"

    text = re.sub(r"(?<!!)\[([^\]]*)\]\(([^\s):]+)\)", link, text)
    return re.sub(r"(?<![`\[])`([\w.]+)`(?![`\]])", mention, text)


def _drawn(notebook: dict, folder: Path) -> dict[str, str]:
    """What the functions that draw say of themselves, by the names that the notebook calls them: `draw.pairings`.

    folder: where the notebook lies; the functions of a walkthrough are in `drawings/` beside it, and are read, not run.
    """
    said = {f"figures.{name}": inspect.getdoc(getattr(figures, name)) for name in figures.__all__}
    for cell in notebook["cells"]:
        for line in _statements(cell) if cell["cell_type"] == "code" else []:
            if isinstance(line, ast.ImportFrom) and line.module == "drawings":
                for file in line.names:
                    for part in ast.parse((folder / f"drawings/{file.name}.py").read_text(encoding="utf-8")).body:
                        if isinstance(part, ast.FunctionDef):
                            said[f"{file.asname or file.name}.{part.name}"] = ast.get_docstring(part)
    return said


def alt_text(source: str, heading: str, said: dict[str, str]) -> str:
    """What a picture shows, for who cannot see it: the heading above its cell, and the first sentence of the
    documentation of the function that drew it.

    said: the documentation of functions that draw, by their names in `source`.
    """
    heading = re.sub(r"[*`]|(?<!\w)_|_(?!\w)", "", heading).strip()
    heading = heading if heading.endswith(("?", "!", ".")) else heading + "."
    for name in re.findall(r"\b\w+\.\w+", source):
        if said.get(name):
            return f"{heading} {first_sentence(said[name]).replace('`', '')}"
    return heading


def first_sentence(said: str) -> str:
    """The first sentence of a text, on one line; `Fig. 3` ends none."""
    paragraph = " ".join(said.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.?!]) (?=\W*[A-Z])", paragraph)[0]


def opening(notebook: dict) -> tuple[str, str]:
    """The title of a notebook and the first sentence below it."""
    title, _, rest = _text(notebook["cells"][0]).partition("\n")
    return title.lstrip("# "), first_sentence(rest)


def _text(cell: dict) -> str:
    return "".join(cell["source"])
