"""A page for each slide, for any browser and without a network, and files of its scores for QuPath."""

from __future__ import annotations

import base64
import html
import io
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from PIL import Image

from dmsmil import figures
from dmsmil.apply.kit import Kit
from dmsmil.apply.predict import Applied, in_the_study
from dmsmil.apply.words import NOT_FOR, known_by
from dmsmil.features.views import slide_views
from dmsmil.interpret.explain import extremes
from dmsmil.interpret.export import qupath_features, write_heatmap, write_qupath
from dmsmil.jobs.failures import failure_row, write_failures
from dmsmil.jobs.files import one_line, write_text
from dmsmil.jobs.parallel import progress, run_units
from dmsmil.jobs.text import many
from dmsmil.slides.store import Store
from dmsmil.training.metrics import told_class

STYLE = (
    "body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem } "
    "table { border-collapse: collapse } "
    "td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top } "
    "img { max-width: 100% } .not { border-left: 4px solid #d55e00; padding-left: .8rem } .odd { color: #a04000 }"
)


def make_pages(
    kit: Kit,
    applied: Applied,
    slides: pd.DataFrame,
    store: Store,
    workers: int = 0,
    scheduler: str = "",
    report: Callable[[str], None] = print,
    qupath: str = "both",
) -> Path:
    """Write pages/<slide>.html, qupath/<slide>.geojson and .ome.tif for each slide, and index.html of all, below the
    store; returns the index. qupath: which GeoJSON, as `write_qupath` takes it. A slide whose page fails is a row of
    failures.csv."""
    home, rows = store.home, slides.set_index("slide_id", drop=False)
    scores = dict(tuple(applied.scores.groupby("slide_id")))
    units = {
        name: (store, rows.loc[[name]], said, scores.get(name), kit.about, qupath)
        for said in applied.table.to_dict("records")
        for name in [said["slide_id"]]
    }
    for folder in ("pages", "qupath", "figures"):  # of slides that were asked about before, or by other models
        for left in (home / folder).glob("*.*"):
            left.unlink()
    failures, done = [], run_units(_page, units, workers, scheduler=scheduler)
    for number, (name, seconds, error) in enumerate(progress(done, len(units), "pages"), 1):
        if error is not None:
            failures.append(failure_row(name, "page", error))
        said = f"page  {seconds:.1f} s" if error is None else f"page failed: {one_line(error)}"
        report(f"[{number}/{len(units)}] {name}  {said}")
    write_failures(home, "page", failures)
    return write_text(_index(kit, applied.table, {row["unit"] for row in failures}), home / "index.html")


def _page(store: Store, row: pd.DataFrame, said: dict, scores: pd.DataFrame | None, about: dict, qupath: str) -> float:
    """Make the page and the files of one slide (in a worker); returns the seconds it took."""
    started, home, name = time.perf_counter(), store.home, said["slide_id"]
    view = slide_views(row, store, slide_ids=[name], mpp=about["made"].get("fallback_mpp", 0.0))[0]
    parts = [_said(said, about)]
    if scores is not None:
        scales = sorted(scores.scale.unique())
        view["coords"] = {scale: scores.loc[scores.scale == scale, ["x", "y"]].to_numpy() for scale in scales}
        drawn = {scale: scores.normalised[scores.scale == scale].to_numpy() for scale in scales}
        figures.tile_scores(view, drawn, home / f"figures/{name}_scores")
        parts.append(_picture("Scores of its tiles", home / f"figures/{name}_scores.png"))
        if view["path"]:
            figures.extreme_tiles(extremes(view, scores), home / f"figures/{name}_extremes")
            parts.append(_picture("Its highest and lowest tiles", home / f"figures/{name}_extremes.png"))
        tiles = write_qupath(
            qupath_features(scores, view["side"]), home / f"qupath/{name}.geojson", qupath, view["bounds"][:2]
        )
        write_heatmap(scores, view["side"], view["bounds"], view["mpp"], home / f"qupath/{name}.ome.tif")
        parts.append(
            f"<p>{'For other programs' if qupath == 'flat' else 'For QuPath'}: "
            f'<a href="../qupath/{quote(tiles[0].name)}">tiles with scores</a>, '
            f'<a href="../qupath/{quote(name)}.ome.tif">heatmap</a>. A score says what the models attended to, not '
            "why.</p>"
        )
    parts.append('<p><a href="../index.html">All slides</a></p>')
    write_text(_html(name, parts), home / f"pages/{name}.html")
    return time.perf_counter() - started


def warnings_of(said: dict) -> Iterator[str]:
    """What a reader of one row of `Applied.table` must know, a sentence each."""
    if said["unlike"]:
        yield (
            f"Unlike the training slides, in its {said['unlike'].replace(', ', ' and ')}: what is said of it rests "
            "on nothing."
        )
    if said["known"] and said["models"]:
        yield f"The study knows this slide ({known_by(said['known'])}): only models that have not seen it were asked."
    if said["known"] and "content" not in said["known"]:
        yield "Its tiles are none of the study's: if it is another slide or patient of that name, give it its own."
    if not said["models"]:
        yield "Every model of the study has seen this slide or its patient: nothing is predicted."


def _said(said: dict, about: dict) -> str:
    """The prediction of a slide as HTML."""
    lines = [("said by", f"{many(said['models'], 'model')} of {about['name']}, study {about['study']}")]
    if said["models"]:
        lines += [("predicted", said["pred"])]
        lines += [(f"P({name})", f"{said[f'prob_{name}']:.3f}") for name in about["classes"]]
        name = told_class(said["pred"], about["classes"], about["positive"])
        spread = (
            f"of P({name}) over the models: from {said['lowest']:.3f} to {said['highest']:.3f}, "
            f"standard deviation {said['spread']:.3f}"
        )
        lines += [("spread", spread if said["models"] > 1 else "not known of one model")]
    lines += [("label", said["label"])] if said["label"] else []
    lines += [("patient", said["patient_id"])] if said["patient_id"] else []
    lines += [("tiles", str(said["tiles"]))]
    lines += [
        (f"distance of {name[9:]}", f"{value:.2f} (1: the border of what is like the study's slides)")
        for name, value in said.items()
        if name.startswith("distance_")
    ]
    rows = "".join(f"<tr><th>{html.escape(what)}</th><td>{html.escape(value)}</td></tr>" for what, value in lines)
    return f"{_odd([*in_the_study(about), *warnings_of(said)])}<table>{rows}</table>"


def _odd(lines: Iterable[str]) -> str:
    """What must be read before any number."""
    return "".join(f'<p class="odd"><b>{html.escape(line)}</b></p>' for line in lines)


def _picture(title: str, path: Path) -> str:
    """A figure inside the page, so that the page can travel alone; in 256 colours."""
    small = io.BytesIO()
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG")
    data = base64.b64encode(small.getvalue()).decode()
    return f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{data}">'


def _index(kit: Kit, table: pd.DataFrame, failed: set[str]) -> str:
    """All slides on one page."""
    told = told_class("predicted", kit.classes, kit.about["positive"])
    head = "".join(
        f"<th>{html.escape(name)}</th>"
        for name in ("slide", "label", "predicted", f"P({told})", "spread", "models", "note")
    )
    rows = []
    for said in table.to_dict("records"):
        name = html.escape(said["slide_id"])
        link = name if said["slide_id"] in failed else f'<a href="pages/{quote(said["slide_id"])}.html">{name}</a>'
        asked = told_class(said["pred"], kit.classes, kit.about["positive"])
        numbers = [
            f"{said[f'prob_{asked}']:.3f}" if said["models"] else "",
            f"{said['spread']:.3f}" if said["models"] > 1 else "",  # of one model nothing is known
        ]
        cells = [said["label"], said["pred"], *numbers, str(said["models"]), " ".join(warnings_of(said))]
        rows.append(f"<tr><td>{link}</td>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    odd = int((table.unlike != "").sum())
    unlike = [f"{odd} of {len(table)} slides are unlike the training slides."] if odd else []
    warned = _odd([*in_the_study(kit.about), *unlike])
    who = html.escape(f"{kit.about['name']} of the study {kit.about['study']}")
    what = f"<p>{many(len(table), 'slide')}, seen by {who}.</p>"
    return _html("Predictions", [what, warned, f"<table><tr>{head}</tr>{''.join(rows)}</table>"])


def _html(title: str, parts: list[str]) -> str:
    name = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f'<style>{STYLE}</style></head><body><h1>{name}</h1><p class="not">{NOT_FOR}</p>{"".join(parts)}'
        "</body></html>\n"
    )
