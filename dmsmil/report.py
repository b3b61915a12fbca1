"""Tables and the sentences that follow from them: what a study found, said from its numbers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import yaml

from dmsmil.baselines import CHEAP, COLOUR, SITE, baseline_predictions
from dmsmil.comparison import Ranks, compare, friedman_nemenyi, metric_table, sentence
from dmsmil.files import InputError, fingerprint, read_failures, read_json, write_csv
from dmsmil.metrics import METRICS, summarise
from dmsmil.runs import Runs

COLLAPSED = "collapsed"
SECONDS = "epoch_seconds"


def result_table(runs: list[Runs], bags, folds: pd.DataFrame, cohort: pd.DataFrame,
                 positive: str = "") -> pd.DataFrame:
    """One row a method, the baselines (colour, site, majority) below: what each number is worth.

    Columns: name, <metric>_mean, _std (over folds and seeds), _low, _high (95 %, bootstrap of patients on the pooled
    out-of-fold predictions) for ACC, F1 and AUC, runs, collapsed (how many runs), parameters, and epoch_seconds (the
    median run's time by its epochs; 0 for what is not trained by epochs).
    """
    rows = [{"name": name, **summarise(r.predictions, positive), "runs": len(r.records),
             COLLAPSED: r.collapsed, "parameters": int(r.records.parameters[0]),
             SECONDS: float(r.records.seconds.median()) / r.config.epochs}
            for name, r in zip(_mark_epochs(runs), runs)]
    for name, predictions in baseline_predictions(bags, folds, cohort).items():
        rows.append({"name": name, **summarise(predictions, positive),
                     "runs": predictions.groupby(["fold", "seed"]).ngroups, COLLAPSED: 0, "parameters": 0,
                     SECONDS: 0.0})
    return pd.DataFrame(rows)


def run_name(runs: Runs) -> str:
    """How a run is called in tables: the method, its scale where it has only one, and options that are not default."""
    config = runs.config
    scales = f" {config.scales[0]}x" if len(config.scales) == 1 else ""
    options = "".join(f", {k}={v}" for k, v in sorted(config.options.items()))
    return f"{config.method.upper()}{scales}{options}"


def _mark_epochs(runs: list[Runs]) -> list[str]:
    """Names of runs, with their epochs where these are not the first's."""
    usual = runs[0].config.epochs
    return [run_name(r) + (f", {r.config.epochs} epochs" if r.config.epochs != usual else "") for r in runs]


def pretty(table: pd.DataFrame) -> pd.DataFrame:
    """A result table to read: mean ± deviation [95 % interval]; a collapsed row says so instead of pretending."""
    shown = pd.DataFrame({"": table.name})
    for metric in METRICS:
        shown[metric] = [f"{m:.3f} ± {s:.3f} [{low:.2f}, {high:.2f}]" for m, s, low, high in
                         table[[f"{metric}_{part}" for part in ("mean", "std", "low", "high")]].itertuples(index=False)]
    shown["parameters"] = [f"{n:,}" if n else "" for n in table.parameters]
    if SECONDS in table:
        shown["s / epoch"] = [f"{s:.2f}" if s else "" for s in table[SECONDS]]
    shown["note"] = ["" if not c else f"{c} of {n} runs collapsed" for c, n in zip(table[COLLAPSED], table.runs)]
    return shown.set_index("")


def verdict(table: pd.DataFrame) -> str:
    """Markdown: what the first row of a result table is worth beside the baselines below it."""
    first = table.iloc[0]
    lines = []
    if first[COLLAPSED]:
        lines.append(f"**{first['name']} collapsed in {first[COLLAPSED]} of {first.runs} runs**: the features shrank "
                     "to a point while L_ce stayed at the entropy of the class shares. Its numbers are no result.")
    for name in [name for name in CHEAP if (table.name == name).any()]:
        other = table[table.name == name].iloc[0]
        metric = "AUC" if name in (COLOUR, SITE) else "ACC"
        mine, theirs = first[f"{metric}_mean"], other[f"{metric}_mean"]
        word = "above" if mine > theirs else "not above"
        lines.append(f"{first['name']} is {word} *{name}*: {metric} {mine:.3f} against {theirs:.3f}.")
    low, high = first.AUC_low, first.AUC_high
    sure = "excludes" if low > 0.5 or high < 0.5 else "includes"
    lines.append(f"The 95 % interval of its AUC, [{low:.2f}, {high:.2f}], {sure} 0.5, which is guessing.")
    return "\n".join(f"- {line}" for line in lines)


def save_table(table: pd.DataFrame, home: str | Path, name: str) -> pd.DataFrame:
    """Write tables/<name>.csv of a study and return the table.

    What depends on the clock stays out of the file: the same study gives the same bytes, interrupted or not.
    """
    write_csv(table.drop(columns=SECONDS, errors="ignore"), Path(home) / "tables" / f"{name}.csv", digits=6)
    return table


def failures_table(home: str | Path) -> pd.DataFrame:
    """What failed in a study: unit, stage, reason."""
    return read_failures(home)[["unit", "stage", "reason"]]


def saved_tables(home: str | Path, pattern: str = "*") -> dict[str, pd.DataFrame]:
    """The tables a study has written, by name."""
    return {path.stem: pd.read_csv(path) for path in sorted((Path(home) / "tables").glob(f"{pattern}.csv"))}


def save_run_tables(home: str | Path, runs: Runs, table: pd.DataFrame) -> str:
    """Write the result table and the pooled predictions of a method; returns the stem their figures share."""
    config = runs.config
    stem = f"03_{config.method}" + (f"_{config.scales[0]}x" if len(config.scales) == 1 else "")
    save_table(table, home, f"{stem}_results")
    save_table(runs.predictions, home, f"{stem}_predictions")
    return stem


def saved_results(home: str | Path) -> pd.DataFrame:
    """The result tables of all methods trained so far as one: DMSMIL first, each baseline once, last."""
    tables = saved_tables(home, "04_compare") | saved_tables(home, "03_*_results")
    if not tables:
        raise InputError("the study has no result table yet: run 03_train first")
    table = pd.concat(tables.values()).drop_duplicates("name")
    place = table.name.map(lambda name: 2 if name in CHEAP else name != "DMSMIL")
    return table.iloc[place.argsort(kind="stable")].reset_index(drop=True)


def saved_settings(home: str | Path) -> pd.DataFrame:
    """The parameters a study was run with, from its params.yaml."""
    path = Path(home) / "params.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    return pd.DataFrame({"value": [str(v) for v in values.values()]}, index=pd.Index(values, name="parameter"))


def saved_environment(home: str | Path) -> pd.DataFrame:
    """What a study ran on, from its environment.json: processor, memory, GPU, Python, and the packages' versions."""
    found = read_json(Path(home) / "environment.json")
    values = {key: value for key, value in found.items() if key != "packages"} | found["packages"]
    return pd.DataFrame({"value": [str(v) for v in values.values()]}, index=pd.Index(values, name=""))


def run_ledger(home: str | Path) -> pd.DataFrame:
    """All finished runs of a study by configuration: runs, collapsed, parameters, median seconds a run."""
    records = [read_json(path) for path in sorted((Path(home) / "runs").glob("*/*/config.json"))]
    rows = pd.DataFrame([{"method": r["config"]["method"], "scales": "+".join(f"{s}x" for s in r["config"]["scales"]),
                          "epochs": r["config"]["epochs"], "parameters": r["parameters"], "seconds": r["seconds"],
                          "device": r["device"], COLLAPSED: r[COLLAPSED], "key": fingerprint(r["config"])}
                         for r in records])
    keys = ["method", "scales", "epochs", "parameters", "device", "key"]
    table = rows.groupby(keys).agg(runs=("seconds", "size"), collapsed=(COLLAPSED, "sum"),
                                   seconds=("seconds", "median")).reset_index()
    return table.drop(columns="key").rename(columns={"seconds": "median seconds a run"}).set_index("method")


def paired_tests(runs: list[Runs], slides: int, positive: str = "") -> pd.DataFrame:
    """The first of `runs` against each other one: `comparison.compare`, with the names of the result table."""
    first, *others = _mark_epochs(runs)
    tables = {name: r.predictions for name, r in zip([first, *others], runs)}
    return compare(tables.pop(first), tables, positive, slides)


def paired_sentences(tests: pd.DataFrame, name: str) -> str:
    """Markdown: for each method, whether `name` (the first of the runs) is better, worse, or not shown to be either."""
    return "\n".join(f"- {sentence(row, name)}" for _, row in tests.iterrows())


def average_ranks(runs: list[Runs], positive: str = "") -> Ranks:
    """Average ranks by AUC over folds, with the Nemenyi critical difference."""
    return friedman_nemenyi(metric_table(dict(zip(_mark_epochs(runs), (r.predictions for r in runs))), "AUC", positive))


def ranking(table: pd.DataFrame) -> str:
    """Markdown: who is highest by AUC, where DMSMIL stands, and who does not beat the cheap rules."""
    ordered = table[table[COLLAPSED] == 0].sort_values("AUC_mean", ascending=False, kind="stable")
    best, colour = ordered.iloc[0], table[table.name == COLOUR].iloc[0]
    lines = [f"Highest AUC: **{best['name']}**, {best.AUC_mean:.3f} [{best.AUC_low:.2f}, {best.AUC_high:.2f}]."]
    if (table.name == "DMSMIL").any():
        mine = table[table.name == "DMSMIL"].iloc[0]
        above = table[(table.AUC_mean > mine.AUC_mean) & (table[COLLAPSED] == 0)]
        lines.append(f"DMSMIL's AUC is {mine.AUC_mean:.3f}; "
                     + (f"{len(above)} of {len(table) - 1} rows are above it: {', '.join(above.name)}." if len(above)
                        else "no row is above it."))
    weak = table[(table.AUC_mean <= colour.AUC_mean) & ~table.name.isin(CHEAP)]
    lines.append("Not above the six colour numbers: " + (", ".join(weak.name) or "none") + ".")
    fallen = table[table[COLLAPSED] > 0]
    if len(fallen):
        lines.append("Collapsed, and so no result: " + ", ".join(fallen.name) + ".")
    lines.append("Intervals that overlap widely are no ranking.")
    return "\n".join(f"- {line}" for line in lines)


ADAPTED = {
    "multiattn": "MultiAttnMIL reads the tiles of all scales as one bag. It is the multi-attention MIL of Wibawa "
                 "(2022), not Konstantinov and Utkin's, which has a convolutional extractor on raw pixels.",
    "hagmil": "HAG-MIL on one scale is one level of the model: its hierarchy is in `hagmil_hier`.",
    "hifuse": "HiFuse comes from image classification: 20x tiles go to its local branch and 10x tiles to its window "
              "attention, on the grid of the slide's tiles. Its score is a gated activation norm, ours.",
    "amgcfn": "AMGCFN comes from hyperspectral imaging: 10x tiles are the nodes of its graph, 20x tiles its image.",
    "dsmil": "DSMIL joins each 20x tile with its 10x parent (its pyramidal concatenation).",
    "transmil": "TransMIL depends on tile order: raster order.",
}


def adaptations(runs: list[Runs]) -> str:
    """Markdown: what was adapted of the methods that were run."""
    names = dict.fromkeys(r.config.method for r in runs)
    return "\n".join(f"- {ADAPTED[name]}" for name in names if name in ADAPTED) or "Nothing was adapted here."
