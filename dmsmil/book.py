"""The book of a study: its executed notebooks, exactly as they are, as pages for any browser, without a network.

Nothing is executed and nothing is looked up: what a notebook shows is what the book shows. Sphinx and myst-nb make the
pages; here they get what a notebook does not say by itself: alternative texts, a front page, an order of reading.
"""

from __future__ import annotations

import ast
import base64
import inspect
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import yaml
from bs4 import BeautifulSoup
from PIL import Image

from dmsmil import figures
from dmsmil.cohort import fold_count, read_cohort
from dmsmil.features import slide_views
from dmsmil.files import InputError, read_failures, write_text
from dmsmil.report import ranking, saved_results, verdict
from dmsmil.store import Store

STYLE = Path(__file__).with_suffix(".css")
HARMLESS = ("misc.highlighting_failure", "myst-nb.lexer", "myst.header", "myst.xref_missing", "toc.not_included")
FOLDED = {"parameters": "Parameters: their meaning and defaults", "injected-parameters": "The values in this study"}
WORDS = re.compile(r"(?!nan|inf)[^\W\d_]{3}", re.I)  # what a cell that is no number holds
WIDE = 520  # px: what is wider cannot be read when squeezed into a phone

def build(home: str | Path, say: Callable[[str], None] = print) -> Path:
    """Make <home>/book/ from <home>/notebooks/ and return its index.html.

    home: the folder of a study; a book that it has stays until the new one is whole. The cover goes to
    figures/cover.png. `say` gets a line for each of Sphinx's warnings. Raises InputError when no notebook was executed,
    and when a page would lose something that its notebook shows.
    """
    home = Path(home)
    pages = [path for path in sorted((home / "notebooks").glob("[0-9]*.ipynb")) if "." not in path.stem]
    if not pages:
        raise InputError(f"study '{home.name}' has no executed notebooks to make a book of: dmsmil run makes them")
    with _workshop(home) as place:
        for page in pages:
            write_text(json.dumps(_prepared(_read(page))), place / "source" / "notebooks" / page.name)
        write_text(_index(home, pages, say), place / "source" / "index.md")
        if (home / "figures/cover.png").exists():
            shutil.copy(home / "figures/cover.png", place / "source")
        _render(place, home.name, say)
        if (home / "book").exists():
            os.replace(home / "book", place / "old")
        os.replace(place / "html", home / "book")
    return home / "book" / "index.html"


@contextmanager
def _workshop(home: Path) -> Iterator[Path]:
    """A hidden folder of this process beside the book, gone afterwards; what a killed process left is gone too."""
    for left in home.glob(".book.*"):
        if not psutil.pid_exists(int(left.suffix[1:])):
            shutil.rmtree(left)
    place = home / f".book.{os.getpid()}"
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place)


# ------------------------------------------------------------------------------------------------ notebooks


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _text(cell: dict) -> str:
    return "".join(cell["source"])


def _prepared(notebook: dict) -> dict:
    """The notebook with notes for myst-nb in its cells' metadata: what pictures show, what is folded, what is wide.
    Cells and outputs stay as they are, but for the classes of columns."""
    heading = ""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            heading = ([heading] + re.findall(r"^#+ +(.+)$", _text(cell), re.M))[-1]
        elif cell["cell_type"] == "code":
            tags, notes = cell["metadata"].setdefault("tags", []), cell["metadata"].setdefault("mystnb", {})
            if label := _folded(cell):
                tags.append("hide-input")
                notes |= {"code_prompt_show": label, "code_prompt_hide": label}
            pictures = [output["data"]["image/png"] for output in cell["outputs"]
                        if "image/png" in output.get("data", {})]
            if pictures:
                wide = max(Image.open(io.BytesIO(base64.b64decode("".join(p)))).width for p in pictures)
                notes["image"] = {"alt": alt_text(_text(cell), heading), "width": f"{wide}px"}
                tags += ["wide"] * (wide > WIDE)
            for output in cell["outputs"]:
                if "text/html" in output.get("data", {}):
                    output["data"]["text/html"] = _aligned("".join(output["data"]["text/html"]))
    return notebook


def _folded(cell: dict) -> str:
    """The label that a cell of parameters or of imports is folded behind, else nothing: readers came for the story."""
    named = [label for tag, label in FOLDED.items() if tag in cell["metadata"]["tags"]]
    try:
        body = ast.parse(_text(cell)).body
    except SyntaxError:  # a magic, say
        body = []
    only_imports = body and all(isinstance(line, (ast.Import, ast.ImportFrom)) for line in body)
    return named[0] if named else "Imports" if only_imports else ""


def _aligned(html: str) -> str:
    """pandas' tables with the class `words` on the columns that hold words: these read from the left."""
    soup = BeautifulSoup(html, "html.parser")
    for table in soup.select("table.dataframe"):
        columns = list(zip(*(row.find_all("td") for row in table.select("tbody tr"))))
        names = [] if table.select("th[colspan]") else table.select("thead tr:first-child th")[-len(columns):]
        for number, cells in enumerate(columns):
            if any(WORDS.search(cell.get_text(strip=True)) for cell in cells):
                for cell in [*names[number:number + 1], *cells]:
                    cell["class"] = "words"
    return str(soup)


def alt_text(source: str, heading: str) -> str:
    """What a picture shows, for who cannot see it: the heading above its cell, and the first sentence of the
    documentation of the function of `dmsmil.figures` that drew it."""
    heading = re.sub(r"[*`]|(?<!\w)_|_(?!\w)", "", heading).strip()
    heading = heading if heading.endswith(("?", "!", ".")) else heading + "."
    for name in re.findall(r"figures\.(\w+)\(", source):
        if hasattr(figures, name):
            return f"{heading} {_first_sentence(inspect.getdoc(getattr(figures, name))).replace('`', '')}"
    return heading


def _first_sentence(said: str) -> str:
    """The first sentence of a text, on one line; `Fig. 3` ends none."""
    paragraph = " ".join(said.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.?!]) (?=\W*[A-Z])", paragraph)[0]


# ------------------------------------------------------------------------------------------------ front page


def _index(home: Path, pages: list[Path], say: Callable[[str], None]) -> str:
    """The front page as MyST markdown; draws its cover."""
    try:
        results = saved_results(home)
    except InputError:
        results = None
    lines = [f"# The study *{home.name}*", ""]
    if alt := _cover(home, results, say):
        lines += ["```{image} cover.png", f":alt: {alt}", ":class: cover", ":width: 1400px", "```", ""]
    lines += [summary(home, results), "", "## The pages, in reading order", "", "````{container} reading"]
    for page in pages:
        title, claim = _opening(_read(page))
        lines += [f"- [{title}](notebooks/{page.name})", "", f"  {claim}", ""]
    lines += ["````", "", "```{toctree}", ":hidden:", ":caption: The study", ""]
    return "\n".join([*lines, *(f"notebooks/{page.stem}" for page in pages), "```", ""])


def _opening(notebook: dict) -> tuple[str, str]:
    """The title of a notebook and the first sentence below it."""
    title, _, rest = _text(notebook["cells"][0]).partition("\n")
    return title.lstrip("# "), _first_sentence(rest)


def summary(home: str | Path, results: pd.DataFrame | None) -> str:
    """One paragraph of markdown: on what, what came out, what failed; every word of it follows from the files."""
    cohort, folds = read_cohort(home)
    counts = " and ".join(f"{count} {label}" for label, count in cohort.label.value_counts().sort_index().items())
    said = [f"{len(cohort)} slides of {cohort.patient_id.nunique()} patients ({counts}), tested in {fold_count(folds)} "
            "folds that share no patient."]
    if results is None:
        said.append("No method has a result yet.")
    else:
        said += [line.removeprefix("- ") for part in (ranking, verdict) for line in part(results).splitlines()]
    if failures := len(read_failures(home)):
        said.append(f"{failures} units failed.")
    return " ".join(said)


def _cover(home: Path, results: pd.DataFrame | None, say: Callable[[str], None]) -> str:
    """Draw figures/cover.png from what the study has; returns its alternative text, nothing where there is no cover."""
    try:
        slide = _seen_slide(home)
    except InputError as error:
        say(f"the cover shows no slide: {error}")
        slide = None
    if slide is None and results is None:
        return ""
    figures.cover(results, slide, home / "figures/cover")
    said = []
    if slide is not None:
        scales = " and ".join(f"{scale}x" for scale in slide["scores"])
        ties = "" if slide["plan"] is None else ", tied by optimal transport"
        said.append(f"Slide {slide['slide_id']} at {scales}, tiles bright where their score is high{ties}.")
    if results is not None:
        first = results.iloc[0]
        said.append(f"AUC of {first['name']}: {first.AUC_mean:.2f}, 95 % interval {first.AUC_low:.2f} to "
                    f"{first.AUC_high:.2f}, among {len(results)} rows.")
    return " ".join(said)


def _seen_slide(home: Path) -> dict:
    """The slide whose inside 03_train shows, as `figures.cover` takes it, from the data behind that notebook's figures.

    Raises InputError when there are none, or when they are of another choice of tiles than the study's files.
    """
    if not (home / "params.yaml").exists():
        raise InputError("it has no params.yaml, which dmsmil run writes")
    params = yaml.safe_load((home / "params.yaml").read_text(encoding="utf-8"))
    stem = f"03_{params['method']}" + (f"_{params['scale']}x" if params["scale"] else "")
    table, scores = home / f"tables/{stem}_predictions.csv", home / f"figures/{stem}_scores.npz"
    if not (table.exists() and scores.exists()):
        raise InputError(f"03_train has not looked inside {params['method']} yet")
    store = Store(home, params["tile_px"], tuple(params["scales"]), params["encoder"])
    names = pd.read_csv(table, dtype={"slide_id": str}).slide_id
    views = slide_views(read_cohort(home)[0], store, slide_ids=[names[0]], px=900, mpp=params["mpp"])
    with np.load(scores) as saved:
        found = {scale: saved[f"scores_{scale}"] for scale in store.scales if f"scores_{scale}" in saved}
    if any(len(value) != len(views[0]["coords"][scale]) for scale, value in found.items()):
        raise InputError(f"slide {names[0]} has been tiled anew since 03_train")
    plan = home / f"figures/{stem}_plan.npz"
    return views[0] | {"scores": found, "plan": np.load(plan)["plan"] if plan.exists() else None}


# ------------------------------------------------------------------------------------------------ Sphinx


def _render(place: Path, study: str, say: Callable[[str], None]) -> None:
    """Turn <place>/source into <place>/html; InputError when something of it would be lost."""
    from sphinx.application import Sphinx  # these cost a second that no other command need spend
    from sphinx.errors import SphinxError
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    config = {
        "project": f"DMSMIL · {study}", "html_title": f"DMSMIL · {study}", "extensions": ["myst_nb"],
        "html_theme": "furo", "html_static_path": [str(STYLE)], "html_css_files": [STYLE.name],
        "html_theme_options": {"navigation_with_keys": True},
        "html_copy_source": False, "html_show_sourcelink": False, "html_show_copyright": False, "html_use_index": False,
        "html_show_search_summary": False,  # it would fetch pages, which a browser forbids to files
        "html_scaled_image_link": True, "smartquotes": False,
        "nb_execution_mode": "off", "nb_merge_streams": True, "nb_render_markdown_format": "myst",
        "nb_ipywidgets_js": {},
        "nb_mime_priority_overrides": [("html", "application/vnd.jupyter.widget-view+json", None)]}
    warnings = io.StringIO()
    try:
        with patch_docutils(), docutils_namespace():
            Sphinx(place / "source", None, place / "html", place / "doctrees", "html", config, status=None,
                   warning=warnings).build(force_all=True)
    except SphinxError as error:
        raise InputError(f"the book cannot be made: {' '.join(str(error).split())}") from error
    lost = []
    text = re.sub(r"\x1b\[[0-9;]*m", "", warnings.getvalue()).replace(f"{place / 'source'}{os.sep}", "")
    for where, what, kind in re.findall(r"^(.*?)(?:WARNING|ERROR|CRITICAL): (.*?)(?: \[([\w.-]+)\])?$", text, re.M):
        say(f"book: {where}{what}")
        if kind not in HARMLESS:
            lost.append(f"{where}{what}")
    if lost:
        raise InputError(f"a page of the book would not show what its notebook shows: {lost[0]}")
