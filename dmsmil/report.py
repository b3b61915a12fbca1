"""Tables and the sentences that follow from them: what a study found, said from its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml
from pandas.api.types import is_numeric_dtype

from dmsmil.baselines import CHEAP, COLOUR, SITE, baseline_predictions
from dmsmil.comparison import Ranks, compare, friedman_nemenyi, metric_table, sentence
from dmsmil.files import InputError, fingerprint, read_failures, read_json, write_csv
from dmsmil.metrics import METRICS, summarise
from dmsmil.models import METHODS, method
from dmsmil.runs import Runs
from dmsmil.training import RunConfig

COLLAPSED = "collapsed"
SECONDS = "epoch_seconds"
SETTINGS = ("lr", "weight_decay", "batch_size", "select")  # of RunConfig, besides epochs


def result_table(runs: list[Runs], bags, folds: pd.DataFrame, cohort: pd.DataFrame,
                 positive: str = "") -> pd.DataFrame:
    """One row a method, the baselines (colour, site, majority) below: what each number is worth.

    Columns: name, method (registry key, empty for a baseline), scales (10x, 20x or 10x+20x, empty for a baseline),
    <metric>_mean, _std (over folds and seeds), _low, _high (95 %, bootstrap of patients on the pooled out-of-fold
    predictions) for ACC, F1 and AUC, runs, collapsed (how many runs), parameters, and epoch_seconds (the median run's
    time by its epochs; 0 for what is not trained by epochs).
    """
    rows = [{"name": name, "method": r.config.method, "scales": scales_name(r.config.scales),
             **summarise(r.predictions, positive), "runs": len(r.records),
             COLLAPSED: r.collapsed, "parameters": int(r.records.parameters[0]),
             SECONDS: float(r.records.seconds.median()) / r.config.epochs}
            for name, r in zip(run_names(runs), runs)]
    for name, predictions in baseline_predictions(bags, folds, cohort).items():
        rows.append({"name": name, "method": "", "scales": "", **summarise(predictions, positive),
                     "runs": predictions.groupby(["fold", "seed"]).ngroups, COLLAPSED: 0, "parameters": 0,
                     SECONDS: 0.0})
    return pd.DataFrame(rows)


def scales_name(scales: Sequence[int]) -> str:
    """Scales as tables write them: 10x, or 10x+20x."""
    return "+".join(f"{s}x" for s in scales)


def run_name(config: RunConfig) -> str:
    """How a run is called in tables: the method, its scale where it has only one, and options that are not default."""
    scales = f" {scales_name(config.scales)}" if len(config.scales) == 1 else ""
    options = "".join(f", {k}={v}" for k, v in sorted(config.options.items()))
    return f"{method(config.method).title}{scales}{options}"


def run_names(runs: list[Runs]) -> list[str]:
    """Names of the runs of one table: `run_name`, with the settings in which a run is not like the first."""
    usual, names = runs[0].config, []
    for r in runs:
        own = [f", {key}={getattr(r.config, key)}" for key in SETTINGS if getattr(r.config, key) != getattr(usual, key)]
        epochs = f", {r.config.epochs} epochs" if r.config.epochs != usual.epochs else ""
        names.append(run_name(r.config) + "".join(own) + epochs)
    return names


def is_pooling(name: str) -> bool:
    """Whether a method (registry key) is plain pooling, which is no published method but what one must beat."""
    return name in METHODS and METHODS[name].reference.startswith("baseline")


def part(table: pd.DataFrame, scale: int = 0) -> pd.DataFrame:
    """The rows of a result table that the paper compares with each other: of one scale, or of most scales at once (0).

    Published methods first, then pooling at these scales, then the rules that know nothing of tissue.
    """
    wanted = scales_name([scale]) if scale else max(table.scales, key=lambda s: s.count("x"))
    chosen = table[(table.scales == wanted) | table.name.isin(CHEAP)]
    place = chosen.method.map(is_pooling).astype(int) + 2 * chosen.name.isin(CHEAP)
    return chosen.iloc[place.to_numpy().argsort(kind="stable")].reset_index(drop=True)


def beside(table: pd.DataFrame, printed: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    """What the paper prints (a table of dmsmil.paper) for each row: of a method that sees several scales, the first."""
    if not printed:
        return [{}] * len(table)
    several = table.method.where(table.scales.str.contains("+", regex=False), "")
    return [printed.get(name, {}) for name in several.where(~several.duplicated(), "")]


def pretty(table: pd.DataFrame, printed: dict[str, dict[str, str]] | None = None) -> pd.DataFrame:
    """A result table to read: mean ± deviation [95 % interval]; a collapsed row says so instead of pretending.

    printed: what the paper prints (`paper.printed_results`); then each metric has a column of it, a dash where the
    paper has nothing.
    """
    shown = pd.DataFrame({"": table.name})
    theirs = beside(table, printed or {})
    for metric in METRICS:
        shown[metric] = [f"{m:.3f} ± {s:.3f} [{low:.2f}, {high:.2f}]" for m, s, low, high in
                         table[[f"{metric}_{part}" for part in ("mean", "std", "low", "high")]].itertuples(index=False)]
        if printed:
            shown[f"{metric} in the paper"] = [row.get(metric, "—") for row in theirs]
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
    """The tables a study has written, by name; an empty cell of text is empty text."""
    found = {path.stem: pd.read_csv(path) for path in sorted((Path(home) / "tables").glob(f"{pattern}.csv"))}
    return {name: table.fillna({c: "" for c in table if not is_numeric_dtype(table[c])})
            for name, table in found.items()}


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


def saved_times(home: str | Path) -> pd.DataFrame:
    """How long each notebook of a study took: columns notebook and seconds (no row where nothing was timed)."""
    path = Path(home) / "times.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame({"notebook": [], "seconds": []})


def run_ledger(home: str | Path) -> pd.DataFrame:
    """All finished runs of a study by configuration (options that are not default): runs, collapsed, median seconds."""
    records = [read_json(path) for path in sorted((Path(home) / "runs").glob("*/*/config.json"))]
    rows = pd.DataFrame([{"method": r["config"]["method"], "scales": scales_name(r["config"]["scales"]),
                          "options": _own(r["config"]), "epochs": r["config"]["epochs"], "parameters": r["parameters"],
                          "seconds": r["seconds"], "device": r["device"], COLLAPSED: r[COLLAPSED],
                          "key": fingerprint(r["config"])} for r in records])
    keys = ["method", "scales", "options", "epochs", "parameters", "device", "key"]
    table = rows.groupby(keys).agg(runs=("seconds", "size"), collapsed=(COLLAPSED, "sum"),
                                   seconds=("seconds", "median")).reset_index()
    return table.drop(columns="key").rename(columns={"seconds": "median seconds a run"}).set_index("method")


def _own(config: dict) -> str:
    """The options and settings of a recorded configuration that are not default."""
    usual = {**METHODS[config["method"]].options(), **{k: getattr(RunConfig, k) for k in SETTINGS}}
    given = {**config["options"], **{k: config[k] for k in SETTINGS}}
    usual = {k: list(v) if isinstance(v, tuple) else v for k, v in usual.items()}  # as JSON has it
    return ", ".join(f"{k}={v}" for k, v in sorted(given.items()) if usual.get(k) != v)


def paired_tests(runs: list[Runs], slides: int, positive: str = "") -> pd.DataFrame:
    """The first of `runs`, in column reference, against each other: `comparison.compare`, names as in result tables."""
    first, *others = run_names(runs)
    tables = {name: r.predictions for name, r in zip([first, *others], runs)}
    found = compare(tables.pop(first), tables, positive, slides)
    found.insert(0, "reference", first)
    return found


def paired_sentences(tests: pd.DataFrame, name: str) -> str:
    """Markdown: for each method, whether `name` (the first of the runs) is better, worse, or not shown to be either."""
    return "\n".join(f"- {sentence(row, name)}" for _, row in tests.iterrows())


def average_ranks(runs: list[Runs], positive: str = "") -> Ranks:
    """Average ranks by AUC over folds, with the Nemenyi critical difference."""
    return friedman_nemenyi(metric_table(dict(zip(run_names(runs), (r.predictions for r in runs))), "AUC", positive))


def ranking(table: pd.DataFrame) -> str:
    """Markdown: who is highest by AUC, where DMSMIL stands, and who does not beat the cheap rules."""
    ordered = table[table[COLLAPSED] == 0].sort_values("AUC_mean", ascending=False, kind="stable")
    best, colour = ordered.iloc[0], table[table.name == COLOUR]
    lines = [f"Highest AUC: **{best['name']}**, {best.AUC_mean:.3f} [{best.AUC_low:.2f}, {best.AUC_high:.2f}]."]
    if (table.name == "DMSMIL").any():
        mine = table[table.name == "DMSMIL"].iloc[0]
        above = table[(table.AUC_mean > mine.AUC_mean) & (table[COLLAPSED] == 0)]
        lines.append(f"DMSMIL's AUC is {mine.AUC_mean:.3f}; "
                     + (f"{len(above)} of {len(table) - 1} rows are above it: {_some(above.name)}." if len(above)
                        else "no row is above it."))
    if len(colour):
        weak = table[(table.AUC_mean <= colour.AUC_mean.iloc[0]) & ~table.name.isin(CHEAP)]
        lines.append("Not above the six colour numbers: " + (", ".join(weak.name) or "none") + ".")
    fallen = table[table[COLLAPSED] > 0]
    if len(fallen):
        lines.append("Collapsed, and so no result: " + ", ".join(fallen.name) + ".")
    lines.append("Intervals that overlap widely are no ranking.")
    return "\n".join(f"- {line}" for line in lines)


def is_published(method_name: str) -> bool:
    """Whether a method decides the paper's claims; one of the reader's own does not."""
    return method_name not in METHODS or METHODS[method_name].published


def _some(names: pd.Series, most: int = 6) -> str:
    """Names in a sentence: all of a few, the first of many."""
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


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
