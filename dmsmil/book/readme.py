"""The pages that show results: README, the model card, a page a study; written between markers, typed by nobody.

    python -m dmsmil.book.readme outputs/demo    copies what is shown of a study to docs/results/demo/, begins its page
                                                 if it has none, and then writes
    python -m dmsmil.book.readme                 the blocks of all pages, from docs/results/ alone

A block lies between the lines `<!-- begin: demo-table -->` and `<!-- end: demo-table -->`: the name of a study, and
which of its results is shown (`blocks.BLOCKS`); or the name of a block of several studies (`several.WIDE`).
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from dmsmil.book.blocks import BLOCKS
from dmsmil.book.results import RESULTS, Lacking, Study, collect, shown_studies
from dmsmil.book.several import WIDE
from dmsmil.jobs.files import ROOT, InputError, write_text

PAGES = (
    "README.md",
    "README.zh-CN.md",
    "docs/guide.md",
    "docs/guide.zh-CN.md",
    "docs/model_card.md",
    f"{RESULTS}/README.md",
)  # and the page of each study
MARKER = re.compile(r"^<!-- (?:begin|end):.*$", re.MULTILINE)
BLOCK = re.compile(r"^<!-- begin: (\S+) -->\n(?:(?!<!-- (?:begin|end):).*\n)*<!-- end: \1 -->$", re.MULTILINE)

STUDY = """# The study `{study}`

[purpose]

Written by `python -m dmsmil.book.readme` from the files beside this page. [All studies](../README.md).
[How to read these tables](../../guide.md#how-to-read-the-results).

[picture]

[rules]

[words]

## Main table

[table]

In words:

[findings]

What it could have found:

[power]

## What held of the paper

[claims]

## Part by part

The ablation of the paper's Tables 4 and 5: fusion of the scales, transport between them (ot), deformable attention.

[ablation]

## Other readings of the paper

[variants]

## The weight λ of the loss

L_train = L_ot + λ L_ce, as the paper's Fig. 3.

[lambda]

How both terms pull, and what is learned:

[collapse]

## How few tiles may carry the signal

What a linear rule tells from mean features, of all tiles and of those that carry the signal:

[probes]

What the methods tell where fewer and fewer tiles carry it:

[witness]

## What the maps are worth

[maps]

## Cost

[cost]

## Settings, machine, date

[settings]

[time]
"""


def study_page(study: str) -> str:
    """The page of a study, its blocks still empty."""
    text = STUDY.replace("{study}", study)
    return re.sub(r"^\[(\w+)\]$", rf"<!-- begin: {study}-\1 -->\n<!-- end: {study}-\1 -->", text, flags=re.M)


def pages(root: Path = ROOT) -> list[str]:
    """The pages below `root` that show results, those of the studies last; paths from there."""
    studies = [f"{RESULTS}/{study.name}/README.md" for study in shown_studies(root / RESULTS)]
    return [page for page in (*PAGES, *studies) if (root / page).is_file()]


def fill(text: str, results: str | Path, page: str = "README.md") -> str:
    """`text` with every block written anew from the files under `results`; the rest as it was.

    page: where the text stands, from the project's folder. On the pages in docs/results a block whose file is not there
    says so in a line. Raises InputError for a block that is unknown, not closed or nested, and on other pages for files
    that are not there.
    """
    if stray := MARKER.search(BLOCK.sub("", text)):
        raise InputError(
            f"{page} has '{stray.group()}' alone: a block needs its begin and its end, each on a line of "
            "its own, and no block in between"
        )
    return BLOCK.sub(
        lambda found: f"<!-- begin: {found[1]} -->\n{_block(found[1], Path(results), page)}\n<!-- end: {found[1]} -->",
        text,
    )


def _block(name: str, results: Path, page: str) -> str:
    study, _, what = name.rpartition("-")
    if name not in WIDE and (not study or what not in BLOCKS):
        raise InputError(
            f"{page} has an unknown block '{name}': it is called <study>-<what>, and what is one of "
            f"{', '.join(BLOCKS)}; or it is one of {', '.join(WIDE)}"
        )
    try:
        return WIDE[name](results, page) if name in WIDE else BLOCKS[what](Study(results / study, page))
    except Lacking as lacking:
        if not page.startswith(f"{RESULTS}/"):
            raise
        return f"*Not here: {lacking.short}.*"


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Collect the studies named, then write the blocks of the pages below `root`: all of them or none."""
    parser = argparse.ArgumentParser("python -m dmsmil.book.readme", description="write the results that pages show")
    parser.add_argument("studies", nargs="*", help="finished studies to show as they are now, such as outputs/demo")
    studies = parser.parse_args(argv).studies
    try:
        for home in studies:
            folder = collect(home, root / RESULTS, root / "params")
            _begin(folder)
        written = {page: fill((root / page).read_text(encoding="utf-8"), root / RESULTS, page) for page in pages(root)}
        for page, text in written.items():
            write_text(text, root / page)
    except InputError as error:
        print(f"dmsmil.book.readme: {error}", file=sys.stderr)
        return 2
    return 0


def _begin(folder: Path) -> None:
    """Give the study in docs/results a page, where it has none."""
    if not (folder / "README.md").exists():
        write_text(study_page(folder.name), folder / "README.md")


if __name__ == "__main__":
    sys.exit(main())
