"""The results that README and the model card show, copied out of a study, written between markers, typed by nobody.

    python -m dmsmil.book.readme outputs/demo    copies what README shows of a study to docs/results/demo/, then writes
    python -m dmsmil.book.readme                 writes the blocks of the pages from docs/results/ alone

A block lies between the lines `<!-- begin: demo-table -->` and `<!-- end: demo-table -->`: the name of a study, and
which of its results is shown (BLOCKS). docs/results/demo/ is laid out as the study is, and so is read as one.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import yaml
from PIL import Image

from dmsmil.analysis.ablation import PARTS, pretty_ablation
from dmsmil.analysis.claims import tally, worth
from dmsmil.analysis.comparison import ALPHA, equivalent
from dmsmil.analysis.report import ranking, saved_results, saved_tables, saved_times
from dmsmil.analysis.sweep import pretty_lams
from dmsmil.cost.tables import cost_sentences, pretty_costs
from dmsmil.jobs.files import ROOT, InputError, atomic, read_json, write_json, write_text
from dmsmil.jobs.text import as_written
from dmsmil.training.results import pretty, unlearned

RESULTS = "docs/results"  # committed, so small: tables of a few kilobytes, and one picture
PAGES = ("README.md", "README.zh-CN.md", "docs/model_card.md")
NEEDED = "tables/04_compare.csv"
COPIED = (NEEDED, "tables/04_tests.csv", "tables/04_tests_cheap.csv", "tables/05_ablation.csv", "tables/06_lambda.csv",
          "tables/08_cost.csv", "tables/09_claims.csv", "times.csv")
PICTURE, WIDTH = "figures/cover.png", 1200  # px at most, in 256 colours
SETTINGS = ("folds", "repeats", "seeds", "epochs", "k", "encoder", "paper")  # of params.yaml
MACHINE = ("cores", "gpu")  # of environment.json
MARKER = re.compile(r"^<!-- (?:begin|end):.*$", re.MULTILINE)
BLOCK = re.compile(r"^<!-- begin: (\S+) -->\n(?:(?!<!-- (?:begin|end):).*\n)*<!-- end: \1 -->$", re.MULTILINE)


def collect(home: str | Path, results: str | Path) -> Path:
    """Copy what README shows of the study `home` into <results>/<study>/, and return that folder.

    What the study no longer has is removed there: no two numbers come from different studies. study.json says what was
    run: slides, patients, classes, settings, machine. No slide or patient is named but by the picture, which shows one.
    Raises InputError when `home` is no study that has been compared.
    """
    home = Path(home)
    for name in ("cohort.csv", "params.yaml", "environment.json", NEEDED):
        if not (home / name).is_file():
            raise InputError(f"{home.name} is no study that has been compared, it has no {name}: run the study first")
    params = yaml.safe_load((home / "params.yaml").read_text(encoding="utf-8"))
    cohort, machine = pd.read_csv(home / "cohort.csv", dtype=str), read_json(home / "environment.json")
    folder = Path(results) / params["study"]
    write_json({"slides": len(cohort), "patients": cohort.patient_id.nunique(),
                "classes": cohort.label.value_counts().sort_index().to_dict(),
                **{key: params[key] for key in SETTINGS if key in params}, **{key: machine[key] for key in MACHINE}},
               folder / "study.json")
    for name in COPIED:
        _mirror(home / name, folder / name, shutil.copyfile)
    _mirror(home / PICTURE, folder / PICTURE, _shrink)
    return folder


def _mirror(source: Path, target: Path, copy: Callable) -> None:
    if source.is_file():
        with atomic(target) as temporary:
            copy(source, temporary)
    else:
        target.unlink(missing_ok=True)


def _shrink(source: Path, target: Path) -> None:
    with Image.open(source) as image:
        small = image.convert("RGB")
    small.thumbnail((WIDTH, WIDTH))
    small.quantize(256, dither=Image.Dither.NONE).save(target, "PNG", optimize=True)


# ------------------------------------------------------------------------------------------------ blocks


def result_block(folder: Path) -> str:
    """Methods and baselines by AUC: who is best stands first, what collapsed or learned nothing last."""
    table = _table(folder, "04_compare").sort_values("AUC_mean", ascending=False, kind="stable")
    study = read_json(folder / "study.json")
    classes = ", ".join(f"{count} {as_written(name)}" for name, count in study["classes"].items())
    seeds = f"{len(study['seeds'])} seed" + "s" * (len(study["seeds"]) > 1)
    repeats = f" × {study['repeats']} repeats" if study.get("repeats", 1) > 1 else ""
    return (f"{_markdown(pretty(table.iloc[unlearned(table).argsort(kind='stable')]), 'method')}\n\n"
            f"{study['slides']} slides of {study['patients']} patients ({classes}); "
            f"{study['folds']} folds{repeats} × {seeds}, "
            f"K = {study['k']} tiles a scale, features by {study['encoder']}, {study['epochs']} epochs where a name "
            "says no other. Mean ± standard deviation over folds and seeds [95 % interval, patients drawn again]. "
            "The highest AUC stands first.")


def words_block(folder: Path) -> str:
    """What the main table says: who is best, whether it is worth its effort, and which differences hold when tested."""
    _table(folder, "04_compare")
    results, tests = saved_results(folder), saved_tables(folder, "04_tests")
    said = [ranking(results), worth(folder, results), *(_tested(table) for table in tests.values())]
    return "\n".join(said)


def _tested(tests: pd.DataFrame) -> str:
    """How many methods the reference of `report.paired_tests` is better than, equivalent to, and worse."""
    name, sure = tests.reference.iloc[0], tests.AUC_p_holm < ALPHA
    better, worse = tests.name[sure & (tests.AUC_difference > 0)], tests.name[sure & (tests.AUC_difference < 0)]
    same = tests.name[tests.apply(equivalent, axis=1, metric="AUC") & ~sure]
    return "- " + as_written(
        f"{name} against the {len(tests)} other runs, by AUC (corrected resampled t-test, Holm's correction): it is "
        f"shown to be better than {', '.join(better) or 'none'}, and worse than {', '.join(worse) or 'none'}"
        + (f"; equivalent to {', '.join(same)}." if len(same) else "."))


def picture_block(folder: Path) -> str:
    """A slide as the method sees it, and the main table as a picture."""
    if not (folder / PICTURE).is_file():
        raise InputError(f"the study {folder.name} has no {PICTURE}: dmsmil book draws it; then collect it again")
    return (f"![A slide of the study {folder.name} with its tile scores at each scale; the AUC of each method with its "
            f"interval]({RESULTS}/{folder.name}/{PICTURE})")


def claims_block(folder: Path) -> str:
    """The checklist of `claims.claims`: of the number that decides, its first sentence; then how many held."""
    table = _table(folder, "09_claims")
    shown = table.assign(number=[text.split(". ")[0].removesuffix(".") for text in table.number]).set_index("claim")
    counts = ", ".join(f"{count} {verdict}" for verdict, count in tally(table).items())
    return f"{_markdown(shown, 'claim')}\n\nOf {len(table)} claims: {counts}."


def ablation_block(folder: Path) -> str:
    """The six rows of Tables 4 and 5, beside what the paper prints where the study is on its cohort."""
    table = _table(folder, "05_ablation")
    table = table.assign(**{part: [None if value == "" else value for value in table[part]] for part in PARTS})
    return _markdown(pretty_ablation(table, read_json(folder / "study.json")["paper"]), "method")


def lambda_block(folder: Path) -> str:
    """The metrics and the loss terms at each λ."""
    return _markdown(pretty_lams(_table(folder, "06_lambda")), "λ")


def cost_block(folder: Path) -> str:
    """Table 3: what each method costs, on which device, and whether DMSMIL is the cheapest."""
    table = _table(folder, "08_cost")
    first = table.iloc[0]
    return (f"{_markdown(pretty_costs(table), 'method')}\n\nOn {first.device}; K = {first.k} tiles a scale of "
            f"{first.dim} channels, an epoch of {first.slides} slides; median [least, most].\n\n"
            f"{cost_sentences(table)}")


def time_block(folder: Path) -> str:
    """How long the study took when it first ran, in one sentence."""
    times, study = saved_times(folder), read_json(folder / "study.json")
    if times.empty:
        raise InputError(f"the study {folder.name} has no times.csv: dmsmil run writes it; then collect it again")
    gpu = "no GPU" if study["gpu"] == "none" else study["gpu"]
    whole = times.dropna(subset="first")
    if whole.empty:
        return f"No notebook of the study `{folder.name}` was timed from its first beginning to its end."
    longest = whole.loc[whole["first"].idxmax()]
    left_out = sorted(set(times.notebook) - set(whole.notebook))
    return (f"On {study['cores']} cores and {gpu} the notebooks of the study `{folder.name}` took "
            f"{whole['first'].sum() / 60:.0f} minutes when they first ran, {longest['first'] / 60:.0f} of them for "
            f"{longest.notebook}." + (f" Not counted, for they were interrupted: {', '.join(left_out)}." if left_out
                                      else ""))


def _table(folder: Path, name: str) -> pd.DataFrame:
    found = saved_tables(folder, name)
    if name not in found:
        raise InputError(f"README shows {name}.csv of the study {folder.name}, which {RESULTS}/{folder.name}/ does not "
                         f"hold: run the study, then python -m dmsmil.book.readme outputs/{folder.name}")
    return found[name]


def _markdown(table: pd.DataFrame, index: str) -> str:
    """`table` in Markdown, its index first, called `index`; a column without any text is left out."""
    cells = table.rename_axis(index).reset_index().astype(str)
    cells = cells.loc[:, (cells != "").any()]
    head, *rows = ["| " + " | ".join(map(as_written, row)) + " |" for row in [cells.columns, *cells.to_numpy()]]
    return "\n".join([head, "|" + " --- |" * cells.shape[1], *rows])


BLOCKS: dict[str, Callable[[Path], str]] = {
    "picture": picture_block, "table": result_block, "words": words_block, "claims": claims_block,
    "ablation": ablation_block, "lambda": lambda_block, "cost": cost_block, "time": time_block}


def fill(text: str, results: str | Path) -> str:
    """`text` with every block written anew from the files under `results`; the rest as it was.

    Raises InputError for a block that is unknown, not closed or nested, and for files that are not there.
    """
    if stray := MARKER.search(BLOCK.sub("", text)):
        raise InputError(f"README has '{stray.group()}' alone: a block needs its begin and its end, each on a line of "
                         "its own, and no block in between")
    return BLOCK.sub(lambda found: f"<!-- begin: {found[1]} -->\n{_block(found[1], Path(results))}\n"
                                   f"<!-- end: {found[1]} -->", text)


def _block(name: str, results: Path) -> str:
    study, _, what = name.rpartition("-")
    if not study or what not in BLOCKS:
        raise InputError(f"README has an unknown block '{name}': it is called <study>-<what>, and what is one of "
                         f"{', '.join(BLOCKS)}")
    return BLOCKS[what](results / study)


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Collect the studies named, then write the blocks of the pages below `root`."""
    parser = argparse.ArgumentParser("python -m dmsmil.book.readme", description="write the results that README shows")
    parser.add_argument("studies", nargs="*", help="finished studies to show as they are now, such as outputs/demo")
    studies = parser.parse_args(argv).studies
    try:
        for home in studies:
            collect(home, root / RESULTS)
        for page in [root / name for name in PAGES if (root / name).exists()]:
            write_text(fill(page.read_text(encoding="utf-8"), root / RESULTS), page)
    except InputError as error:
        print(f"dmsmil.book.readme: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
