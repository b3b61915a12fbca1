"""What each part of DMSMIL is worth: the rows of the paper's Tables 4 and 5, and the null control of transport.

The points that the paper leaves open, each read another way, are in `variants`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from dmsmil.analysis.comparison import sentence
from dmsmil.analysis.paper import COHORTS, printed_ablation
from dmsmil.features.bags import Bags
from dmsmil.jobs.text import as_written
from dmsmil.training.config import RunConfig, configure, configure_all
from dmsmil.training.metrics import class_names
from dmsmil.training.results import marked_sentences, no_result, pretty, result_table
from dmsmil.training.runs import Runs

PARTS = ("fusion", "ot", "deformable")


# ------------------------------------------------------------------------------------------------ Tables 4 and 5


def ablation_configs(bags: Bags, folds: pd.DataFrame, **settings) -> list[RunConfig]:
    """The rows of Tables 4 and 5, in their order; the last is DMSMIL. settings: as for `training.config.configure`.

    Without fusion there is one scale, so the first two rows are DAMIL; the paper does not say at which scale, so each
    of them is run at every scale.
    """
    rows = [
        {"damil": {"deformable": False}},
        "damil",
        {"dmsmil": {"ot": "none", "deformable": False}},
        {"dmsmil": {"deformable": False}},
        {"dmsmil": {"ot": "none"}},
        "dmsmil",
    ]
    return configure_all(bags, folds, rows, **settings)


def parts_of(config: RunConfig) -> tuple[bool, bool, bool]:
    """Which of fusion, inter-scale OT and deformable attention a configuration has."""
    options = config.record()["options"]
    return config.method == "dmsmil", options.get("ot", "none") != "none", options["deformable"]


def ablation_table(
    runs: list[Runs], bags: Bags, folds: pd.DataFrame, cohort: pd.DataFrame, positive: str = ""
) -> pd.DataFrame:
    """`training.results.result_table` of the rows, with fusion, ot and deformable after the name (empty for the rules
    that are not trained)."""
    table = result_table(runs, bags, folds, cohort, positive)
    marks = [parts_of(r.config) for r in runs] + [(None,) * 3] * (len(table) - len(runs))
    for place, (part, column) in enumerate(zip(PARTS, zip(*marks)), 1):
        table.insert(place, part, pd.Series(column, dtype=object))
    return table


def pretty_ablation(table: pd.DataFrame, paper: str = "") -> pd.DataFrame:
    """The ablation to read, as `training.results.pretty`; paper: brca or nsclc adds the ACC that the paper prints."""
    shown, printed = pretty(table), printed_ablation(paper)
    keys = [tuple(row) for row in table[list(PARTS)].itertuples(index=False)]
    for place, part in enumerate(PARTS):
        shown.insert(place, part, ["" if key[place] is None else "✓" if key[place] else "–" for key in keys])
    if printed:
        shown.insert(
            shown.columns.get_loc("ACC") + 1,
            f"ACC in the paper, {COHORTS[paper]}",
            [printed.get(key, "") for key in keys],
        )
    return shown


def part_gains(table: pd.DataFrame) -> pd.DataFrame:
    """What each part adds, from every two rows of `ablation_table` that differ in it alone; none that is `no_result`.

    Columns: part, without, with (names of rows), ACC_gain. Rows of one scale are paired with rows of the same scale,
    but for fusion, whose partner is each single scale.
    """
    whole, pairs = table[table.fusion.notna() & ~no_result(table)].astype(dict.fromkeys(PARTS, bool)), []
    for part in PARTS:
        rest = [p for p in PARTS if p != part]
        for _, new in whole[whole[part]].iterrows():
            alike = whole[~whole[part] & (whole[rest] == new[rest]).all(axis=1)]
            pairs += [
                (part, old["name"], new["name"], new.ACC_mean - old.ACC_mean)
                for _, old in alike.iterrows()
                if part == "fusion" or old.scales == new.scales
            ]
    return pd.DataFrame(pairs, columns=["part", "without", "with", "ACC_gain"])


def ablation_sentences(table: pd.DataFrame, tests: pd.DataFrame) -> str:
    """Markdown: in how many pairs each part raises ACC, and whether DMSMIL differs from the row that lacks it alone.

    tests: `report.paired_tests` of DMSMIL against the other rows.
    """
    gains, lines = part_gains(table), []
    for part, words in zip(PARTS, ("Fusion of the scales", "Transport between them", "Deformable attention")):
        mine = gains[gains.part == part]
        said = ", ".join(f"{gain:+.3f}" for gain in mine.ACC_gain) or "none could be compared"
        lines.append(
            f"**{words}** raises ACC in {(mine.ACC_gain > 0).sum()} of {len(mine)} pairs of rows that differ "
            f"in it alone: {said}."
        )
        lines += [
            as_written(sentence(row, row.reference, "ACC"))
            for _, row in tests.iterrows()
            if part != "fusion" and ((mine["with"] == row.reference) & (mine.without == row["name"])).any()
        ]
    lines += [
        f"{as_written(row['name'])} collapsed in {row.collapsed} of {row.runs} runs: no result."
        for _, row in table[table.collapsed > 0].iterrows()
    ]
    lines += marked_sentences(table)
    return "\n".join(f"- {line}" for line in lines)


# ------------------------------------------------------------------------------------------------ the null control


def null_configs(bags: Bags, folds: pd.DataFrame, **settings) -> list[RunConfig]:
    """DMSMIL with L_ot on the frozen features, and DMSMIL without L_ot."""
    return [configure(bags, folds, "dmsmil", 0, options, **settings) for options in ({"ot_on": "raw"}, {"ot": "none"})]


def null_table(raw: Runs, none: Runs) -> pd.DataFrame:
    """One row a fold and seed of both: largest_difference of any predicted probability (inf if the slides differ).

    Features that are not trained give L_ot no gradient, so the two must agree to the last digit.
    """
    keys, rows = ["fold", "seed", "slide_id"], []
    columns = [f"prob_{name}" for name in class_names(raw.predictions)]
    both = raw.predictions[keys + columns].merge(none.predictions[keys + columns], "outer", keys)
    for (fold, seed), part in both.groupby(["fold", "seed"]):
        if (fold, seed) in raw.folders.keys() & none.folders.keys():
            gap = np.abs(part[[f"{c}_x" for c in columns]].to_numpy() - part[[f"{c}_y" for c in columns]].to_numpy())
            rows.append({"fold": fold, "seed": seed, "largest_difference": float(np.nan_to_num(gap, nan=np.inf).max())})
    return pd.DataFrame(rows, columns=["fold", "seed", "largest_difference"])


def is_exact(null: pd.DataFrame) -> bool:
    """True when at least one run was compared and none differs in any digit."""
    return bool(len(null)) and bool((null.largest_difference == 0).all())


def null_sentence(null: pd.DataFrame) -> str:
    """Markdown: whether OT on frozen features is the same as no OT."""
    if is_exact(null):
        return (
            f"OT on frozen features gives **exactly** the predictions of no OT, in all {len(null)} runs. Whatever "
            "L_ot does elsewhere, it does through the projection."
        )
    if null.empty:
        return "**The null control was not made**: the two have no run in common."
    wrong = null[null.largest_difference > 0]
    return (
        f"**The null control fails**: in {len(wrong)} of {len(null)} runs OT on frozen features changes the "
        f"predictions, by up to {wrong.largest_difference.max():.2g}. Something besides the gradient of L_ot "
        "reaches the model (on a GPU: sums in no fixed order), and the effect of OT cannot be told apart from it."
    )
