"""Tables and the sentences that follow from them: what a study found, said from its numbers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from pandas.api.types import is_numeric_dtype

from dmsmil.analysis.comparison import compare, metric_table, sentence
from dmsmil.analysis.leftovers import other_tables, parameters, records
from dmsmil.analysis.ranks import Ranks, friedman_nemenyi
from dmsmil.cohorts.table import describe, read_cohort
from dmsmil.jobs.failures import read_failures
from dmsmil.jobs.files import InputError, fingerprint, read_json
from dmsmil.jobs.text import as_written
from dmsmil.models import METHODS
from dmsmil.slides.given import whose_tiles
from dmsmil.training.baselines import CHEAP, COLOUR
from dmsmil.training.config import RunConfig, scales_name
from dmsmil.training.metrics import called, scored
from dmsmil.training.results import COLLAPSED, FITTED, GATHERED, NOTHING, marked_sentences, no_result, run_names
from dmsmil.training.runs import Runs

DECIDE = (  # packages that numbers and pictures come from
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
    "torch",
    "torchvision",
    "timm",
    "openvino",
    "POT",
    "h5py",
    "openslide-python",
    "openslide-bin",
    "tifffile",
    "imagecodecs",
    "opencv-python-headless",
    "scikit-image",
    "papermill",
    "matplotlib",
    "seaborn",
)


def failures_table(home: str | Path) -> pd.DataFrame:
    """What failed in a study: unit, stage, reason."""
    return read_failures(home)[["unit", "stage", "reason"]]


def saved_tables(home: str | Path, pattern: str = "*") -> dict[str, pd.DataFrame]:
    """The tables that a study's present parameters made, by name; an empty cell of text is empty text.

    What other parameters left there is `leftovers.other_tables`.
    """
    other = other_tables(home)
    found = {
        path.stem: pd.read_csv(path)
        for path in sorted((Path(home) / "tables").glob(f"{pattern}.csv"))
        if path.stem not in other
    }
    return {
        name: table.fillna({c: "" for c in table if not is_numeric_dtype(table[c])}) for name, table in found.items()
    }


def saved_results(home: str | Path) -> pd.DataFrame:
    """The result tables of 03_train and 04_compare as one: DMSMIL first, each baseline once, last."""
    tables = saved_tables(home, "04_compare") | saved_tables(home, "03_*_results")
    if not tables:
        raise InputError("the study has no result table of its present parameters: run 03_train first")
    table = pd.concat(tables.values()).drop_duplicates("name")
    place = table.name.map(lambda name: 2 if name in CHEAP else name != "DMSMIL")
    return table.iloc[place.argsort(kind="stable")].reset_index(drop=True)


def saved_cohort(home: str | Path) -> pd.DataFrame:
    """Patients and slides of a study by class and site, as `describe`."""
    return describe(read_cohort(home)[0])


def saved_tiles(home: str | Path) -> str:
    """Markdown: who chose the tiles of a study."""
    values = parameters(home)
    return whose_tiles(values.get("tiles", ""), values.get("k", 0), values.get("features", ""))


def saved_settings(home: str | Path) -> pd.DataFrame:
    """The parameters a study was run with, from its params.yaml."""
    values = parameters(home)
    return pd.DataFrame({"value": [str(v) for v in values.values()]}, index=pd.Index(values, name="parameter"))


def saved_environment(home: str | Path) -> pd.DataFrame:
    """What a study ran on, from its environment.json: processor, memory, GPU, Python, and the versions of the packages
    that numbers come from (environment.json has all)."""
    found = read_json(Path(home) / "environment.json")
    values = {key: value for key, value in found.items() if key != "packages"}
    values |= {name: version for name, version in found["packages"].items() if name in DECIDE}
    return pd.DataFrame({"value": [str(v) for v in values.values()]}, index=pd.Index(values, name=""))


def saved_times(home: str | Path) -> pd.DataFrame:
    """How long each notebook of a study took, in seconds: columns notebook, first (with all its work; NaN where the
    first attempt did not end) and latest (which may only have read). No row where nothing was timed."""
    path = Path(home) / "times.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame({"notebook": [], "first": [], "latest": []})


def saved_meaning(home: str | Path) -> str:
    """Markdown: what F1 and AUC of a study are about."""
    classes = sorted(read_cohort(home)[0].label.unique())
    return as_written(scored(classes, parameters(home).get("positive", "")))


RUN = ["method", "scales", "options", "epochs", "parameters", "device", "key"]  # what runs of one row share
MARKS = (COLLAPSED, NOTHING, GATHERED)


def run_ledger(home: str | Path) -> pd.DataFrame:
    """The finished runs of a study, of its present folds, seeds and code, by configuration (options that are not
    default): runs, how many of them have which mark, median seconds."""
    rows = pd.DataFrame(
        [
            {
                "method": r["config"]["method"],
                "scales": scales_name(r["config"]["scales"]),
                "options": _own(r["config"]),
                "epochs": r["config"]["epochs"],
                "parameters": r["parameters"],
                "seconds": r["seconds"],
                "device": r["device"],
                **{mark: r[mark] for mark in MARKS},
                "key": fingerprint(r["config"]),
            }
            for r in records(home)[0]
        ],
        columns=[*RUN, "seconds", *MARKS],
    )
    table = (
        rows.groupby(RUN)
        .agg(runs=("seconds", "size"), **{mark: (mark, "sum") for mark in MARKS}, seconds=("seconds", "median"))
        .reset_index()
    )
    return table.drop(columns="key").rename(columns={"seconds": "median seconds a run"}).set_index("method")


def _own(config: dict) -> str:
    """The options and settings of a recorded configuration that are not default."""
    usual = {**METHODS[config["method"]].options(), **{k: getattr(RunConfig, k) for k in FITTED}}
    given = {**config["options"], **{k: config[k] for k in FITTED}}
    usual = {k: list(v) if isinstance(v, tuple) else v for k, v in usual.items()}  # as JSON has it
    return ", ".join(f"{k}={v}" for k, v in sorted(given.items()) if usual.get(k) != v)


def paired_tests(runs: list[Runs], positive: str = "") -> pd.DataFrame:
    """The first of `runs`, in column reference, against each other: `comparison.compare`, names as in result tables."""
    first, *others = run_names(runs)
    tables = {name: r.predictions for name, r in zip([first, *others], runs)}
    found = compare(tables.pop(first), tables, positive, runs[0].test_share)
    found.insert(0, "reference", first)
    return found


def paired_sentences(tests: pd.DataFrame, name: str) -> str:
    """Markdown: for each method, whether `name` (the first of the runs) is better, worse, or not shown to be either."""
    return "\n".join(f"- {as_written(sentence(row, name))}" for _, row in tests.iterrows())


def average_ranks(runs: list[Runs], positive: str = "") -> Ranks | None:
    """Average ranks by AUC over folds, with the Nemenyi critical difference. None for fewer than three methods, or than
    two folds in which the AUC of all is defined."""
    table = metric_table(dict(zip(run_names(runs), (r.predictions for r in runs))), "AUC", positive)
    few = len(table) < 3 or table.dropna(axis=1).shape[1] < 2
    times = runs[0].predictions.groupby("slide_id").fold.nunique().mean()
    return None if few else friedman_nemenyi(table, times)


def ranking(table: pd.DataFrame) -> str:
    """Markdown: who is highest by AUC, where DMSMIL stands, and who does not beat the cheap rules."""
    name, auc = called("AUC", table), table.AUC_mean
    if auc.isna().all():
        name, auc = f"pooled {name}", table.AUC_pooled
    if auc.isna().all():
        return "- AUC is not defined: one class was tested."
    table = table.assign(auc=auc)
    ordered = table[~no_result(table)].sort_values("auc", ascending=False, kind="stable")
    if ordered.empty:
        return f"- No method has learned anything: no {name} here is a result."
    best, colour = ordered.iloc[0], table[table.name == COLOUR]
    lines = [
        f"Highest {name}: **{as_written(best['name'])}**, {best.auc:.3f} [{best.AUC_low:.2f}, {best.AUC_high:.2f}]."
    ]
    if (ordered.name == "DMSMIL").any():
        mine = ordered[ordered.name == "DMSMIL"].iloc[0]
        above = ordered[ordered.auc > mine.auc]
        lines.append(
            f"DMSMIL's {name} is {mine.auc:.3f}; "
            + (
                f"{len(above)} of {len(table) - 1} rows {_are(len(above))} above it: {_some(above.name)}."
                if len(above)
                else "no row is above it."
            )
        )
    if len(colour):
        weak = table[(table.auc <= colour.auc.iloc[0]) & ~table.name.isin(CHEAP)]
        lines.append("Not above the six colour numbers: " + (", ".join(map(as_written, weak.name)) or "none") + ".")
    fallen = table[table[COLLAPSED] > 0]
    if len(fallen):
        lines.append("Collapsed, and so no result: " + ", ".join(map(as_written, fallen.name)) + ".")
    lines += marked_sentences(table)
    lines.append("Intervals that overlap widely are no ranking.")
    return "\n".join(f"- {line}" for line in lines)


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _some(names: pd.Series, most: int = 6) -> str:
    """Names in a sentence of Markdown: all of a few, the first of many."""
    shown = ", ".join(as_written(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


ADAPTED = {
    "multiattn": "MultiAttnMIL reads the tiles of all scales as one bag. It is the multi-attention MIL of Wibawa "
    "(2022), not Konstantinov and Utkin's, which has a convolutional extractor on raw pixels.",
    "hagmil": "HAG-MIL on one scale is one level of the model: its hierarchy is in `hagmil_hier`.",
    "hifuse": "HiFuse comes from image classification: 20x tiles go to its local branch and 10x tiles to its window "
    "attention, on the grid of the slide's tiles. Its score is a gated activation norm, ours.",
    "amgcfn": "AMGCFN comes from hyperspectral imaging: 10x tiles are the nodes of its graph, 20x tiles its image.",
    "dsmil": "DSMIL joins each tile with those that it lies in, a 20x tile with its 10x parent (its pyramidal "
    "concatenation).",
    "transmil": "TransMIL depends on tile order: raster order.",
}


def adaptations(runs: list[Runs]) -> str:
    """Markdown: what was adapted of the methods that were run."""
    names = dict.fromkeys(r.config.method for r in runs)
    return "\n".join(f"- {ADAPTED[name]}" for name in names if name in ADAPTED) or "Nothing was adapted here."
