"""Result tables: one row a method, the cheap rules below, and the names by which tables call a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mode

import pandas as pd

from dmsmil.jobs.files import write_csv
from dmsmil.jobs.text import as_written
from dmsmil.models import METHODS, method
from dmsmil.training.baselines import CHEAP, COLOUR, SITE, baseline_predictions
from dmsmil.training.config import RunConfig, scales_name
from dmsmil.training.metrics import METRICS, called, summarise
from dmsmil.training.runs import Runs

COLLAPSED, NOTHING, GATHERED, EFFECTIVE = "collapsed", "learned_nothing", "gathered", "effective"
NO_MARKS = {COLLAPSED: 0, NOTHING: 0, GATHERED: 0, EFFECTIVE: math.nan}  # of a rule that is not trained
HOLLOW = "hollow: a run of it collapsed or learned nothing"  # in legends

FITTED = ("lr", "weight_decay", "batch_size", "select")  # of RunConfig, besides epochs


def result_table(runs: list[Runs], bags, folds: pd.DataFrame, cohort: pd.DataFrame, positive: str = "") -> pd.DataFrame:
    """One row a method, the baselines (colour, site, majority) below: what each number is worth.

    Columns: name, method (registry key, empty for a baseline), scales (10x, 20x or 10x+20x, empty for a baseline),
    what `metrics.summarise` says of ACC, F1 and AUC, runs and their `marks`, and parameters.
    """
    rows = [
        {
            "name": name,
            "method": r.config.method,
            "scales": scales_name(r.config.scales),
            **summarise(r.predictions, positive),
            **marks(r),
            "parameters": int(r.records.parameters[0]),
        }
        for name, r in zip(run_names(runs), runs)
    ]
    for name, predictions in baseline_predictions(bags, folds, cohort).items():
        rows.append(
            {
                "name": name,
                "method": "",
                "scales": "",
                **summarise(predictions, positive),
                "runs": predictions.groupby(["fold", "seed"]).ngroups,
                **NO_MARKS,
                "parameters": 0,
            }
        )
    return pd.DataFrame(rows)


def marks(runs: Runs) -> dict[str, float]:
    """How the runs of a row went: runs; how many of them collapsed, have learned_nothing, have gathered their
    attention; and effective, the share of a slide's tiles over which it is spread."""
    return {
        "runs": len(runs.records),
        COLLAPSED: runs.collapsed,
        NOTHING: runs.learned_nothing,
        GATHERED: runs.gathered,
        EFFECTIVE: runs.effective,
    }


def unlearned(table: pd.DataFrame) -> pd.Series:
    """Rows of a result table of which a run collapsed or learned nothing: figures draw them hollow, as `HOLLOW`."""
    return (table[COLLAPSED] > 0) | (table.get(NOTHING, 0) > 0)


def no_result(table: pd.DataFrame) -> pd.Series:
    """Rows whose numbers say nothing of their method: a run collapsed, or none has learned anything."""
    if NOTHING not in table:  # of before that mark
        return table[COLLAPSED] > 0
    return (table[COLLAPSED] > 0) | ((table[NOTHING] > 0) & (table[NOTHING] >= table.runs))


def marked(row: pd.Series) -> list[str]:
    """The marks of a row of a result table, in words; who collapsed has learned nothing, which is not said again. Where
    some runs have learned nothing, or gathered, and others not, how many: their mean is a result."""
    marks = [mark for mark in (COLLAPSED, NOTHING, GATHERED) if row.get(mark, 0)]
    said = {mark: mark.replace("_", " ") for mark in marks if mark != NOTHING or COLLAPSED not in marks}
    for mark in said:
        if mark != COLLAPSED and row[mark] < row.get("runs", 0):
            said[mark] += f" in {row[mark]:.0f} of {row.runs:.0f} runs"
    return list(said.values())


def with_marks(name: str, row: pd.Series) -> str:
    """A name with the marks of its row, as a sentence has it."""
    marks = ", ".join(marked(row))
    return f"{name} ({marks})" if marks else name


def marked_sentences(table: pd.DataFrame) -> list[str]:
    """Which rows of a result table learned nothing without a collapse, and which have gathered their attention."""
    nothing = table[(table[COLLAPSED] == 0) & (table.get(NOTHING, 0) > 0)]
    gathered = table[(table[COLLAPSED] == 0) & (table.get(GATHERED, 0) > 0)]
    lines = []
    if len(nothing):
        names = [f"{row['name']} ({row[NOTHING]} of {row.runs} runs)" for _, row in nothing.iterrows()]
        lines.append(f"Learned nothing: {as_written('; '.join(names))}.")
    if len(gathered):
        names = [
            f"{row['name']} ({row[GATHERED]} of {row.runs} runs{', ' if row[GATHERED] == row.runs else '; all on '}"
            f"{row[EFFECTIVE]:.0%} of the tiles)"
            for _, row in gathered.iterrows()
        ]
        lines.append(f"Attention gathered on few tiles: {as_written('; '.join(names))}.")
    return lines


def whole_history(runs: Runs) -> pd.DataFrame:
    """history.csv of all runs, and as epoch 0 what was seen before the first step."""
    start = pd.DataFrame(list(runs.records.start)).assign(
        epoch=0, fold=list(runs.records.fold), seed=list(runs.records.seed)
    )
    return pd.concat([start[[name for name in runs.history if name in start]], runs.history], ignore_index=True)


def run_name(config: RunConfig) -> str:
    """How a run is called in tables: the method, its scale where it has only one, and options that are not default."""
    scales = f" {scales_name(config.scales)}" if len(config.scales) == 1 else ""
    return f"{method(config.method).title}{scales}{config.own_options}"


def run_names(runs: list[Runs]) -> list[str]:
    """Names of the runs of one table: `run_name`, with the settings in which a run is not like most of them."""
    settings = [{key: getattr(r.config, key) for key in (*FITTED, "epochs")} for r in runs]
    usual, names = {key: mode(one[key] for one in settings) for key in settings[0]}, []  # the first of equally many
    for r, values in zip(runs, settings):
        own = [f", {key}={values[key]}" for key in FITTED if values[key] != usual[key]]
        epochs = f", {values['epochs']} epochs" if values["epochs"] != usual["epochs"] else ""
        names.append(run_name(r.config) + "".join(own) + epochs)
    return names


def is_pooling(name: str) -> bool:
    """Whether a method (registry key) is plain pooling, which is no published method but what one must beat."""
    return name in METHODS and METHODS[name].reference.startswith("baseline")


def all_scales_mean(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of mean pooling over several scales, of a table (method, scales): it looks at all tiles alike."""
    return table[(table.method == "meanpool") & table.scales.str.contains("+", regex=False)]


def part(table: pd.DataFrame, scale: int = 0) -> pd.DataFrame:
    """The rows of a result table that the paper compares with each other: of one scale, or of most scales at once (0).

    Published methods first, then pooling at these scales, then the rules that know nothing of tissue.
    """
    wanted = scales_name([scale]) if scale else max(table.scales, key=lambda s: s.count("x"))
    chosen = table[(table.scales == wanted) | table.name.isin(CHEAP)]
    place = chosen.method.map(is_pooling).astype(int) + 2 * chosen.name.isin(CHEAP)
    return chosen.iloc[place.to_numpy().argsort(kind="stable")].reset_index(drop=True)


def plain_row(table: pd.DataFrame, name: str) -> pd.Series | None:
    """The row of a method (registry key) as it is meant: without options of its own, else its first; None without."""
    rows, title = table[table.method == name], METHODS[name].title if name in METHODS else ""
    bare = rows[[called in (title, f"{title} {scales}") for called, scales in zip(rows["name"], rows.scales)]]
    return None if rows.empty else (rows if bare.empty else bare).iloc[0]


def beside(table: pd.DataFrame, printed: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    """What the paper prints for each row (a table of analysis.paper): for a method of several scales its
    `plain_row`."""
    if not printed:
        return [{}] * len(table)
    table = table.reset_index(drop=True)
    several = table[table.scales.str.contains("+", regex=False)]
    rows = {name: plain_row(several, name) for name in several.method.unique()}
    theirs = {row.name: printed.get(name, {}) for name, row in rows.items() if row is not None}
    return [theirs.get(place, {}) for place in table.index]


def number(row, metric: str) -> tuple[str, float]:
    """How a metric of a row of a result table is called, and its value: the mean over runs, or the pooled one where it
    is defined in no run, as AUC is in leave-one-out."""
    mean, name = row[f"{metric}_mean"], called(metric, row)
    return (f"pooled {name}", row[f"{metric}_pooled"]) if math.isnan(mean) else (name, mean)


def in_brackets(low: float, high: float) -> str:
    """An interval as it stands behind its number, nothing where there is none."""
    return "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"


def cell(row, metric: str) -> str:
    """A metric of a row to read: mean ± deviation [95 % interval]; "not defined" and the pooled one beside it."""
    mean, deviation, low, high = (row[f"{metric}_{part}"] for part in ("mean", "std", "low", "high"))
    interval = in_brackets(low, high)
    if math.isnan(mean):
        _, pooled = number(row, metric)
        return "not defined" if math.isnan(pooled) else f"not defined, pooled {pooled:.3f}{interval}"
    return f"{mean:.3f}{'' if math.isnan(deviation) else f' ± {deviation:.3f}'}{interval}"


def pretty(table: pd.DataFrame, printed: dict[str, dict[str, str]] | None = None) -> pd.DataFrame:
    """A result table to read: mean ± deviation [95 % interval]; a collapsed row says so instead of pretending.

    printed: what the paper prints (`paper.printed_results`); then each metric has a column of it, a dash where the
    paper has nothing.
    """
    shown = pd.DataFrame({"": table.name})
    theirs = beside(table, printed or {})
    for metric in METRICS:
        shown[called(metric, table)] = [cell(row, metric) for _, row in table.iterrows()]
        if printed:
            shown[f"{metric} in the paper"] = [row.get(metric, "—") for row in theirs]
    shown["parameters"] = [f"{n:,}" if n else "" for n in table.parameters]
    shown["note"] = [note(row) for _, row in table.iterrows()]
    return shown.set_index("")


def note(row: pd.Series) -> str:
    """What a reader of a row must know besides its numbers."""
    said = []
    if row[COLLAPSED]:
        said.append(f"{row[COLLAPSED]} of {row.runs} runs collapsed")
    if row.get(NOTHING, 0) > row[COLLAPSED]:
        said.append(f"{row[NOTHING]} of {row.runs} runs learned nothing")
    if row.get(GATHERED, 0):
        where = f", on {row[EFFECTIVE]:.0%} of the tiles"
        if row[GATHERED] < row.runs:
            where = f" (all runs: on {row[EFFECTIVE]:.0%} of the tiles)"
        said.append(f"attention gathered in {row[GATHERED]} of {row.runs} runs{where}")
    if row.get("undefined", 0):
        f1, auc = called("F1", row), called("AUC", row)
        said.append(f"{f1} or {auc} not defined in {row.undefined} of {row.runs} runs, which test one class")
    return "; ".join(said)


def verdict(table: pd.DataFrame) -> str:
    """Markdown: what the first row of a result table is worth beside the baselines below it."""
    first, lines = table.iloc[0], []
    title = as_written(first["name"])
    if first[COLLAPSED]:
        lines.append(
            f"**{title} collapsed in {first[COLLAPSED]} of {first.runs} runs**: the features shrank "
            "to a point while L_ce stayed at the entropy of the class shares. Its numbers are no result."
        )
    elif first.get(NOTHING, 0):
        lines.append(
            f"**{title} learned nothing in {first[NOTHING]} of {first.runs} runs**: L_ce stayed at the "
            "entropy of the class shares. Its numbers say what these runs are, not what the method can."
        )
    if first.get(GATHERED, 0):
        lines.append(
            f"**Its attention has gathered in {first[GATHERED]} of {first.runs} runs**: at the scale where it "
            f"is least it is spread over {first[EFFECTIVE]:.0%} of a slide's tiles, mean over the runs."
        )
    for name in [name for name in CHEAP if (table.name == name).any()]:
        other = table[table.name == name].iloc[0]
        metric = "AUC" if name in (COLOUR, SITE) else "ACC"
        (said, mine), (_, theirs) = number(first, metric), number(other, metric)
        if math.isnan(mine) or math.isnan(theirs):
            lines.append(f"{title} cannot be compared with *{name}*: {metric} is not defined, one class was tested.")
            continue
        word = "above" if mine > theirs else "not above"
        lines.append(f"{title} is {word} *{name}*: {said} {mine:.3f} against {theirs:.3f}.")
    low, high = first.AUC_low, first.AUC_high
    if not math.isnan(low) and first.get(NOTHING, 0) < max(first.runs, 1):
        sure = "excludes" if low > 0.5 or high < 0.5 else "includes"
        lines.append(
            f"The 95 % interval of its {number(first, 'AUC')[0]}, [{low:.2f}, {high:.2f}], {sure} 0.5, "
            "which is guessing."
        )
    return "\n".join(f"- {line}" for line in lines)


def health_sentences(runs: Runs, bags) -> str:
    """Markdown: how strong L_ot is beside λ L_ce, where a method has both, at the first step and at the end; over how
    many tiles of a tested slide the scores are spread; and which runs are marked. Means over the runs."""
    seen, lam, lines = whole_history(runs).groupby("epoch").mean(), runs.config.options.get("lam", 1.0), []
    weighed = "lam" in method(runs.config.method).options()  # other methods weigh their terms in other ways
    if weighed and seen.get("gradient_ot", pd.Series([0.0])).max() > 0:
        looked = seen[seen.gradient_ot.notna()]
        sizes = [_times(row.L_ot, lam * row.L_ce) for row in looked.itertuples()]
        pulls = [_times(row.gradient_ot, row.gradient_ce) for row in looked.itertuples()]
        lines.append(
            f"Before the first step L_ot is {sizes[0]} λ L_ce and pulls {pulls[0]} as hard at the projection; at the "
            f"end it is {sizes[-1]} λ L_ce and pulls {pulls[-1]} as hard."
        )
        if len(looked) > 2:
            between = zip(looked.index[1:-1], sizes[1:-1], pulls[1:-1])
            steps = [f"{epoch:.0f}: {size} and {pull}" for epoch, size, pull in between]
            lines.append(f"In between, by epoch: {'; '.join(steps)}.")
    tiles = bags.view(runs.config.scales).mask.sum(-1).float().mean(0).tolist()
    shares = [pd.DataFrame(list(runs.records.attention))[f"effective_{s:g}x"].mean() for s in runs.config.scales]
    spread = [
        f"{share:.0%} at {scale}x (about {share * count:.0f} of {count:.0f})"
        for share, count, scale in zip(shares, tiles, runs.config.scales)
        if not math.isnan(share)
    ]
    if spread:
        lines.append(f"On the tested slides the scores are spread over so many of the tiles: {', '.join(spread)}.")
    marked = note(pd.Series(marks(runs), dtype=object))
    lines.append(
        f"Marked: {marked}."
        if marked
        else "No run is marked: none collapsed, learned nothing, or gathered its attention on few tiles."
    )
    return " ".join(lines)


def _times(one: float, other: float) -> str:
    """How many times `other` is in `one`, in words."""
    ratio = one / other if other else math.inf
    return f"{ratio:,.0f} times" if ratio >= 100 else f"{ratio:.2g} times"


def save_table(table: pd.DataFrame, home: str | Path, name: str) -> pd.DataFrame:
    """Write tables/<name>.csv of a study and return the table."""
    write_csv(table, Path(home) / "tables" / f"{name}.csv", digits=6)
    return table


def save_run_tables(home: str | Path, runs: Runs, table: pd.DataFrame) -> str:
    """Write the result table and the pooled predictions of a method; returns the stem their figures share."""
    config = runs.config
    stem = run_stem(config.method, config.scales)
    save_table(table, home, f"{stem}_results")
    save_table(runs.predictions, home, f"{stem}_predictions")
    return stem


def run_stem(method_name: str, scales: Sequence[int]) -> str:
    """How the tables and figures of 03_train are called, for a method at its scales."""
    return f"03_{method_name}" + (f"_{scales[0]}x" if len(scales) == 1 else "")


def is_published(method_name: str) -> bool:
    """Whether a method decides the paper's claims; one of the reader's own does not."""
    return method_name not in METHODS or METHODS[method_name].published


def multi_scale(table: pd.DataFrame) -> pd.DataFrame:
    """The published multi-scale methods of a table (method, scales): what the paper compares. Pooling is none of them,
    nor is a method of the reader's own."""
    compared = [
        "+" in scales and is_published(name) and not is_pooling(name)
        for name, scales in zip(table.method, table.scales)
    ]
    return table[compared]
