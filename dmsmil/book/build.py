"""The book: a study's executed notebooks, exactly as they are, the walkthroughs, and the reference, for any browser.

Nothing is executed and nothing is looked up: what a notebook shows is what the book shows. Sphinx and myst-nb make the
pages; here they get what a notebook does not say by itself: alternative texts, a front page, an order of reading.
"""

from __future__ import annotations

import gc
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import yaml

from dmsmil import figures
from dmsmil.analysis.leftovers import of_another_state, trained_stem
from dmsmil.analysis.report import ranking, saved_results
from dmsmil.book import reference
from dmsmil.book.pages import opening, prepared
from dmsmil.cohorts.folds import fold_count, repeat_of, slides_tested
from dmsmil.cohorts.leakage import leakage
from dmsmil.cohorts.table import read_cohort
from dmsmil.features.bags import load_bags
from dmsmil.features.views import slide_views
from dmsmil.jobs.failures import read_failures
from dmsmil.jobs.files import ROOT, InputError, read_json
from dmsmil.jobs.text import as_written, listed, many
from dmsmil.slides.store import Store
from dmsmil.training.results import number, verdict

STYLE = Path(__file__).with_suffix(".css")
LESSONS = "notebooks/walkthroughs"
HARMLESS = ("misc.highlighting_failure", "myst-nb.lexer", "myst.header", "myst.xref_missing", "toc.not_included")


def build(home: str | Path, say: Callable[[str], None] = print, root: Path = ROOT, package: str = "dmsmil") -> Path:
    """Make <home>/book/ from <home>/notebooks/ and return its index.html.

    home: the folder of a study; a book that it has stays until the new one is whole. root: the checkout whose
    walkthroughs are in it too, if there is one; package: what the reference is about, a name to import, "" for none.
    The cover goes to figures/cover.png. `say` gets a line for each of Sphinx's warnings. Raises InputError when no
    notebook was executed, and when a page would lose something that its notebook shows.
    """
    home = Path(home)
    pages = [path for path in sorted((home / "notebooks").glob("[0-9]*.ipynb")) if "." not in path.stem]
    if not pages:
        raise InputError(f"study '{home.name}' has no executed notebooks to make a book of: dmsmil run makes them")
    notebooks = {f"notebooks/{page.name}": read_json(page) for page in pages}
    lessons = {f"{LESSONS}/{page.name}": read_json(page) for page in sorted((root / LESSONS).glob("*.ipynb"))}
    manual, wings = {}, {}
    if package:
        folder = Path(find_spec(package).origin).parent
        manual = {f"reference/{name}.md": text for name, text in reference.pages(folder).items()}
        wings = {f"reference/{name}.md": (name, question) for name, question in reference.wings(folder).items()}
    files = {"index.md": _index(home, notebooks, lessons, wings, say)}
    for name, notebook in (notebooks | lessons).items():
        files[name] = json.dumps(prepared(notebook, name, {*notebooks, *lessons, *manual}, root))
    with _workshop(home) as place:
        for name, text in (files | manual).items():
            (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "source" / name).write_text(text, encoding="utf-8")
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
        if int(left.suffix[1:]) == os.getpid() or not psutil.pid_exists(int(left.suffix[1:])):  # 1 in every container
            shutil.rmtree(left)
    place = home / f".book.{os.getpid()}"
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place)


# ------------------------------------------------------------------------------------------------ front page


def _index(
    home: Path,
    notebooks: dict[str, dict],
    lessons: dict[str, dict],
    wings: dict[str, tuple[str, str]],
    say: Callable[[str], None],
) -> str:
    """The front page as MyST markdown; draws its cover. wings: {page: (name, question)}."""
    try:
        results = saved_results(home)
    except InputError:
        results = None
    lines = [f"# The study *{as_written(home.name)}*", ""]
    if alt := _cover(home, results, say):
        quoted = json.dumps(alt, ensure_ascii=False)
        lines += ["```{image} cover.png", f":alt: {quoted}", ":class: cover", ":width: 1400px", "```", ""]
    lines += [summary(home, results), ""]
    if lessons:
        first = next(iter(lessons))
        lines += [
            f"**New to this?** Begin with the [walkthroughs](#walkthroughs): [{opening(lessons[first])[0]}]"
            f"({first}) is the first.",
            "",
        ]
    lines += _part(
        "The study, in reading order", "The study", {name: opening(notebook) for name, notebook in notebooks.items()}
    )
    lines += ["(walkthroughs)=", ""] if lessons else []
    lines += _part(
        "Walkthroughs: one idea each", "Walkthroughs", {name: opening(notebook) for name, notebook in lessons.items()}
    )
    lines += _part("Reference: what the package offers", "Reference", wings)
    return "\n".join(lines)


def _part(heading: str, caption: str, pages: dict[str, tuple[str, str]]) -> list[str]:
    """A part of the front page, and of the navigation beside every page: {page: (title, what it says)}."""
    if not pages:
        return []
    lines = [f"## {heading}", "", "````{container} reading"]
    for name, (title, said) in pages.items():
        lines += [f"- [{title}]({name})", "", f"  {said}", ""]
    return [*lines, "````", "", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""]


def summary(home: str | Path, results: pd.DataFrame | None) -> str:
    """One paragraph of markdown: on what, what came out, what failed; every word of it follows from the files."""
    cohort, folds = read_cohort(home)
    classes = cohort.label.value_counts().sort_index()
    counts = " and ".join(f"{count} {as_written(label)}" for label, count in classes.items())
    leaks = leakage(folds)["patients", "rest & test"].any()
    repeats = len(set(repeat_of(slides_tested(folds)).values()))
    said = [
        f"{many(len(cohort), 'slide')} of {many(cohort.patient_id.nunique(), 'patient')} ({counts}), "
        f"tested in {fold_count(folds)} "
        + (
            "folds, some of which **test patients that they train on**."
            if leaks
            else "folds that share no patient."
            if repeats == 1
            else "folds, none of which tests a patient that it trains on."
        )
    ]
    if results is None:
        said.append("No method has a result yet.")
    else:
        said += [line.removeprefix("- ") for part in (ranking, verdict) for line in part(results).splitlines()]
    if other := [f"`{stem}` ({as_written(why)})" for stem, why in sorted(of_another_state(home).items())]:
        said.append(f"Executed before something changed, and so not of one state with the others: {listed(other)}.")
    if failures := len(read_failures(home)):
        said.append(f"{many(failures, 'unit')} failed.")
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
        scales = listed([f"{scale}x" for scale in slide["scores"]])
        ties = ", tied by optimal transport" if slide["plans"] else ""
        said.append(f"Slide {slide['slide_id']} at {scales}, tiles bright where their score is high{ties}.")
    if results is not None:
        first = results.iloc[0]
        name, value = number(first, "AUC")
        said.append(
            f"{name} of {first['name']}: {value:.2f}, 95 % interval "
            f"{first.AUC_low:.2f} to {first.AUC_high:.2f}, among {len(results)} rows."
        )
    return " ".join(said)


def _seen_slide(home: Path) -> dict:
    """The slide whose inside 03_train shows, as `figures.cover` takes it, from the data behind that notebook's figures.

    Raises InputError when there are none, or when they are of another choice of tiles than the study's files.
    """
    if not (home / "params.yaml").exists():
        raise InputError("it has no params.yaml, which dmsmil run writes")
    params = yaml.safe_load((home / "params.yaml").read_text(encoding="utf-8"))
    stem = trained_stem(params)
    table, scores = home / f"tables/{stem}_predictions.csv", home / f"figures/{stem}_scores.npz"
    if not (table.exists() and scores.exists()):
        raise InputError(f"03_train has not looked inside {params['method']} yet")
    store = Store(home, params["tile_px"], tuple(params["scales"]), params["encoder"])
    name, cohort = pd.read_csv(table, dtype={"slide_id": str}).slide_id[0], read_cohort(home)[0]
    bags = load_bags(store, cohort[cohort.slide_id == name], params["k"], store.scales)
    view = slide_views(cohort, slide_ids=[name], px=900, bags=bags, mpp=params["mpp"])[0]
    with np.load(scores) as saved:
        found = {scale: saved[f"scores_{scale}"] for scale in store.scales if f"scores_{scale}" in saved}
    if any(len(value) != len(view["coords"][scale]) for scale, value in found.items()):
        raise InputError(f"slide {name} has been tiled anew since 03_train")
    path = home / f"figures/{stem}_plan.npz"
    with np.load(path) if path.exists() else nullcontext({}) as saved:
        plans = [saved[name] for pair in pairwise(found) if (name := "plan_{}x_{}x".format(*pair)) in saved]
    return view | {"scores": found, "plans": plans}


# ------------------------------------------------------------------------------------------------ Sphinx


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for garbage meanwhile: it walks all trees of all pages again and again, a quarter of the book's time,
    and the third of a gigabyte that it would free is free when the book is made."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _render(place: Path, study: str, say: Callable[[str], None]) -> None:
    """Turn <place>/source into <place>/html; InputError when something of it would be lost."""
    from sphinx.application import Sphinx  # these cost a second that no other command need spend
    from sphinx.errors import SphinxError
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    config = {
        "project": f"DMSMIL · {study}",
        "html_title": f"DMSMIL · {study}",
        "extensions": ["myst_nb", "sphinx.ext.autodoc", reference.__name__],
        **reference.SETTINGS,
        "html_theme": "furo",
        "html_static_path": [str(STYLE)],
        "html_css_files": [STYLE.name],
        "html_theme_options": {"navigation_with_keys": True},
        "html_copy_source": False,
        "html_show_sourcelink": False,
        "html_show_copyright": False,
        "html_use_index": False,
        "html_show_search_summary": False,  # it would fetch pages, which a browser forbids to files
        "html_scaled_image_link": True,
        "smartquotes": False,
        "nb_execution_mode": "off",
        "nb_merge_streams": True,
        "nb_render_markdown_format": "myst",
        "nb_ipywidgets_js": {},
        "nb_mime_priority_overrides": [("html", "application/vnd.jupyter.widget-view+json", None)],
    }
    warnings = io.StringIO()
    try:
        with patch_docutils(), docutils_namespace(), _uncollected():
            Sphinx(
                place / "source",
                None,
                place / "html",
                place / "doctrees",
                "html",
                config,
                status=None,
                warning=warnings,
            ).build(force_all=True)
    except SphinxError as error:
        raise InputError(f"the book cannot be made: {' '.join(str(error).split())}") from error
    lost = []
    text = re.sub(r"\x1b\[[0-9;]*m", "", warnings.getvalue()).replace(f"{place / 'source'}{os.sep}", "")
    for where, what, kind in re.findall(r"^(.*?)(?:WARNING|ERROR|CRITICAL): (.*?)(?: \[([\w.-]+)\])?$", text, re.M):
        say(f"book: {where}{what}")
        if kind not in HARMLESS and not what.startswith("autodoc: failed to import"):  # a page without its names
            lost.append(f"{where}{what}")
    if lost:
        raise InputError(f"a page of the book would not show what its notebook shows: {lost[0]}")
