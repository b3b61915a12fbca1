"""The committed notebooks: those of a finished study, small, clean, and the same bytes whenever they are published.

    python -m dmsmil.book.publish outputs/demo

What depends on the clock or on what was done before is left out: papermill's notes, lines of progress. What the study
measured stays, also how long it took. The cell with the study's values stays: outputs follow from what is above them.
"""

from __future__ import annotations

import argparse
import ast
import base64
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pandas as pd
from nbformat import NotebookNode
from PIL import Image

from dmsmil.jobs.files import ROOT, InputError, write_text

LIMIT = 1_000_000  # bytes of a committed notebook
NARROWEST = 480  # px: a figure that was made smaller can no longer be read
SHOWN = ("image/png", "text/html", "text/markdown", "text/plain")  # what a page without a kernel can show
LIVE = re.compile(r"<(?:script|iframe|object|embed|link)\b|\bsrc=.https?:", re.I)  # HTML that a static page cannot
PROGRESS = re.compile(r"^(?:\[\d+/\d+\] .*|\d+ of \d+ slides were done before)(?:\n|$)", re.M)
PLACE = re.compile(r"(?<![\w.])/(?:home|root|work|tmp|Users|mnt|opt|usr|var)/")  # of a machine
INJECTED = "injected-parameters"  # papermill's tag


def publish(home: str | Path, notebooks: str | Path = ROOT / "notebooks", say: Callable[[str], None] = print) -> None:
    """Write the executed notebooks of the study `home` into the folder `notebooks`, over those they were made from.

    Either all are written or none. `say` gets a line for each. Raises InputError when the study is not finished, when a
    notebook was executed from other cells than the one in `notebooks`, when it warns or names a place of this machine,
    and when it cannot be made smaller than `LIMIT`.
    """
    home, found = Path(home), {}
    sources = sorted(Path(notebooks).glob("[0-9][0-9]_*.ipynb"))
    if not sources:
        raise InputError(f"there are no notebooks in {Path(notebooks).name}/: publish from a checkout")
    for source in sources:
        executed = home / "notebooks" / source.name
        if not executed.exists() or executed.with_suffix(".failed.ipynb").exists():
            raise InputError(f"study '{home.name}' is not finished, {source.stem} is missing: run it to its end")
        found[source] = published(nbformat.read(executed, 4), nbformat.read(source, 4), source.stem)
    for source, text in found.items():
        write_text(text, source)
        say(f"{source.name}  {len(text.encode()) / 1000:,.0f} kB")


def published(executed: NotebookNode, source: NotebookNode, name: str) -> str:
    """The text of a notebook file: the cells of `source`, the values they ran with, and their outputs.

    name: what messages call it. Raises InputError as `publish`.
    """
    own = [cell for cell in source.cells if not _injected(cell)]
    if [(cell.cell_type, cell.source) for cell in executed.cells if not _injected(cell)] != [
        (cell.cell_type, cell.source) for cell in own
    ]:
        raise InputError(f"{name} was executed from other cells than the notebook has now: run the study again")
    counts = [cell.execution_count for cell in executed.cells if cell.cell_type == "code" and cell.source.strip()]
    if counts != list(range(1, len(counts) + 1)):
        raise InputError(f"{name} was not executed in order, from its first cell to its last: run the study again")
    cells, kept = [], iter(own)
    for cell in executed.cells:
        tags = cell.metadata.get("tags", [])
        new = NotebookNode(
            id=INJECTED if _injected(cell) else next(kept).id,
            cell_type=cell.cell_type,
            source=cell.source,
            metadata=NotebookNode(tags=tags) if tags else NotebookNode(),
        )
        if cell.cell_type == "code":
            new.update(execution_count=cell.execution_count, outputs=_outputs(cell, name))
        cells.append(new)
    notebook = NotebookNode(
        nbformat=4,
        nbformat_minor=5,
        cells=cells,
        metadata=NotebookNode(kernelspec=source.metadata.kernelspec, language_info=NotebookNode(name="python")),
    )
    _fit(notebook, name)
    return _text(notebook)


def _injected(cell: NotebookNode) -> bool:
    return INJECTED in cell.metadata.get("tags", [])


def _text(notebook: NotebookNode) -> str:
    return nbformat.writes(notebook, 4).rstrip("\n") + "\n"


# ------------------------------------------------------------------------------------------------ outputs


def _outputs(cell: NotebookNode, name: str) -> list[NotebookNode]:
    """The outputs of a cell that a page can show; what it printed is one text."""
    found, printed = [], ""
    for output in cell.outputs:
        if output.output_type == "error":
            raise InputError(f"{name} stopped with {output.ename}: run the study again")
        if output.output_type == "stream":
            if output.name == "stderr":
                said = " ".join(re.sub(r"\S*/\S+:\d+: ", "", output.text).split())
                raise InputError(f"{name} warns, mend the cause and run the study again: {said[:120]}")
            printed += output.text
            continue
        data = {kind: output.data[kind] for kind in SHOWN if kind in output.data}
        if LIVE.search(data.get("text/html", "")):
            del data["text/html"]
        if set(data) - {"text/plain"} or set(output.data) == {"text/plain"}:  # not the name of what cannot be shown
            count = {"execution_count": cell.execution_count} if output.output_type == "execute_result" else {}
            found.append(
                NotebookNode(output_type=output.output_type, metadata=NotebookNode(), data=NotebookNode(data), **count)
            )
    if place := next(filter(None, (PLACE.search(text) for text in [cell.source, printed, *_words(found)])), None):
        raise InputError(
            f"{name} names a place of this machine, below {place[0].strip('/')}: run the study on paths "
            "that are relative to the project"
        )
    if text := PROGRESS.sub("", printed):
        found.insert(0, NotebookNode(output_type="stream", name="stdout", text=text))
    return found


def _words(outputs: list[NotebookNode]) -> list[str]:
    return [text for output in outputs for kind, text in output.data.items() if kind.startswith("text/")]


def _fit(notebook: NotebookNode, name: str) -> None:
    """Quantise every picture; while the notebook is too large, make its largest picture smaller."""
    pictures = [
        output.data
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    originals = [Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) for data in pictures]
    widths = [image.width for image in originals]
    for data, image in zip(pictures, originals):
        data["image/png"] = quantised(image)
    while (size := len(_text(notebook).encode())) >= LIMIT:
        left = [i for i, width in enumerate(widths) if width * 0.9 >= NARROWEST]
        if not left:
            raise InputError(
                f"{name} stays at {size / 1000:,.0f} kB, a committed notebook is under {LIMIT // 1000:,}: "
                "show less in it"
            )
        i = max(left, key=lambda i: len(pictures[i]["image/png"]))
        widths[i] = int(widths[i] * 0.9)
        pictures[i]["image/png"] = quantised(originals[i], widths[i])


def quantised(image: Image.Image, width: int = 0) -> str:
    """A picture as base64 of a PNG of 256 colours, on white, not dithered; `width` px wide if given.

    Colours are chosen to cover the range and then moved to the means of their pixels (k-means, until less than 1 % of
    the pixels change theirs): the small parts of a figure keep their colours, as the steps of a colour bar beside
    tissue do not when colours are chosen by area.
    """
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    if width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    small = image.quantize(
        256, Image.Quantize.MAXCOVERAGE, kmeans=image.width * image.height // 100, dither=Image.Dither.NONE
    )
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


# ------------------------------------------------------------------------------------------------ record cells


def compare(notebooks: str | Path, fresh: str | Path, within: float = 0.0) -> pd.DataFrame:
    """Where the record cells of the notebooks in two folders differ: columns notebook, key, published, fresh.

    notebooks: the committed ones; fresh: the executed ones of a study with the same parameters. Keys of dicts in dicts
    are joined with ' · '. Numbers that differ by no more than `within` are alike. A key that one of both lacks is
    'absent' there. Raises InputError when a notebook is missing, or has no record.
    """
    rows = []
    for path in sorted(Path(notebooks).glob("[0-9][0-9]_*.ipynb")):
        old, new = record(path), record(Path(fresh) / path.name)
        for key in dict.fromkeys([*old, *new]):
            a, b = old.get(key, "absent"), new.get(key, "absent")
            if a != b and not (_number(a) and _number(b) and abs(a - b) <= within):
                rows.append((path.stem, key, a, b))
    return pd.DataFrame(rows, columns=["notebook", "key", "published", "fresh"])


def record(path: str | Path) -> dict[str, object]:
    """What the record cell of an executed notebook says: the last value of its last code cell, a dict, flat."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"there is no {path.name} in {path.parent.name}/ to compare: run the study to its end")
    cells = [cell for cell in nbformat.read(path, 4).cells if "record" in cell.metadata.get("tags", [])]
    said = [output.data["text/plain"] for cell in cells for output in cell.outputs if output.get("data")]
    try:
        return _flat(ast.literal_eval(_Spelled().visit(ast.parse(said[-1], mode="eval"))))
    except (IndexError, ValueError, SyntaxError, AttributeError) as error:
        raise InputError(f"{path.name} has no record, a dict as the value of its last cell: run the study") from error


class _Spelled(ast.NodeTransformer):
    """nan and inf, which are no literals, as words."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(node.id) if node.id in ("nan", "inf") else node


def _flat(found: dict, above: str = "") -> dict[str, object]:
    flat: dict = {}
    for key, value in found.items():
        flat |= _flat(value, f"{above}{key} · ") if isinstance(value, dict) else {f"{above}{key}": value}
    return flat


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def main(argv: list[str] | None = None, notebooks: Path = ROOT / "notebooks") -> int:
    """Publish the notebooks of a study."""
    parser = argparse.ArgumentParser(
        "python -m dmsmil.book.publish", description="commit a study's notebooks, with outputs"
    )
    parser.add_argument("study", help="the folder of a finished study, such as outputs/demo")
    try:
        publish(parser.parse_args(argv).study, notebooks)
    except InputError as error:
        print(f"dmsmil.book.publish: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
