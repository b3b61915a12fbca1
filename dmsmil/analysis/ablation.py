"""What each part of DMSMIL is worth: the paper's ablation, the readings that it leaves open, and the null control.

A reading is one way to understand a point on which the paper is silent. The study's default is one reading of each
point; every other one is named in `VARIANTS` and can be run.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from dmsmil.analysis.comparison import ALPHA, EQUIVALENT_WITHIN, TESTED, compare, equivalent, equivalents, sentence
from dmsmil.analysis.paper import COHORTS, printed_ablation
from dmsmil.features.bags import Bags
from dmsmil.jobs.files import InputError
from dmsmil.jobs.text import as_written
from dmsmil.training.config import RunConfig, configure, configure_all
from dmsmil.training.metrics import METRICS, class_names, score_by_fold
from dmsmil.training.results import NO_MARKS, marked_sentences, marks, note, pretty, result_table
from dmsmil.training.runs import Runs

PARTS = ("fusion", "ot", "deformable")


# ------------------------------------------------------------------------------------------------ Tables 4 and 5


def ablation_configs(bags: Bags, folds: pd.DataFrame, **settings) -> list[RunConfig]:
    """The rows of Tables 4 and 5, in their order; the last is DMSMIL. settings: as for `training.configure`.

    Without fusion there is one scale, so the first two rows are DAMIL; the paper does not say at which scale, so each
    of them is run at every scale.
    """
    rows = [{"damil": {"deformable": False}}, "damil", {"dmsmil": {"ot": "none", "deformable": False}},
            {"dmsmil": {"deformable": False}}, {"dmsmil": {"ot": "none"}}, "dmsmil"]
    return configure_all(bags, folds, rows, **settings)


def parts_of(config: RunConfig) -> tuple[bool, bool, bool]:
    """Which of fusion, inter-scale OT and deformable attention a configuration has."""
    options = config.record()["options"]
    return config.method == "dmsmil", options.get("ot", "none") != "none", options["deformable"]


def ablation_table(runs: list[Runs], bags: Bags, folds: pd.DataFrame, cohort: pd.DataFrame,
                   positive: str = "") -> pd.DataFrame:
    """`report.result_table` of the rows, with fusion, ot and deformable after the name (empty for the baselines)."""
    table = result_table(runs, bags, folds, cohort, positive)
    marks = [parts_of(r.config) for r in runs] + [(None,) * 3] * (len(table) - len(runs))
    for place, (part, column) in enumerate(zip(PARTS, zip(*marks)), 1):
        table.insert(place, part, pd.Series(column, dtype=object))
    return table


def pretty_ablation(table: pd.DataFrame, paper: str = "") -> pd.DataFrame:
    """The ablation to read, as `report.pretty`; paper: brca or nsclc adds the ACC that the paper prints."""
    shown, printed = pretty(table), printed_ablation(paper)
    keys = [tuple(row) for row in table[list(PARTS)].itertuples(index=False)]
    for place, part in enumerate(PARTS):
        shown.insert(place, part, ["" if key[place] is None else "✓" if key[place] else "–" for key in keys])
    if printed:
        shown.insert(shown.columns.get_loc("ACC") + 1, f"ACC in the paper, {COHORTS[paper]}",
                     [printed.get(key, "") for key in keys])
    return shown


def part_gains(table: pd.DataFrame) -> pd.DataFrame:
    """What each part adds, from every two rows of `ablation_table` that differ in it alone and did not collapse.

    Columns: part, without, with (names of rows), ACC_gain. Rows of one scale are paired with rows of the same scale,
    but for fusion, whose partner is each single scale.
    """
    whole, pairs = table[table.fusion.notna() & (table.collapsed == 0)].astype(dict.fromkeys(PARTS, bool)), []
    for part in PARTS:
        rest = [p for p in PARTS if p != part]
        for _, new in whole[whole[part]].iterrows():
            alike = whole[~whole[part] & (whole[rest] == new[rest]).all(axis=1)]
            pairs += [(part, old["name"], new["name"], new.ACC_mean - old.ACC_mean) for _, old in alike.iterrows()
                      if part == "fusion" or old.scales == new.scales]
    return pd.DataFrame(pairs, columns=["part", "without", "with", "ACC_gain"])


def ablation_sentences(table: pd.DataFrame, tests: pd.DataFrame) -> str:
    """Markdown: in how many pairs each part raises ACC, and whether DMSMIL differs from the row that lacks it alone.

    tests: `report.paired_tests` of DMSMIL against the other rows.
    """
    gains, lines = part_gains(table), []
    for part, words in zip(PARTS, ("Fusion of the scales", "Transport between them", "Deformable attention")):
        mine = gains[gains.part == part]
        said = ", ".join(f"{gain:+.3f}" for gain in mine.ACC_gain) or "none could be compared"
        lines.append(f"**{words}** raises ACC in {(mine.ACC_gain > 0).sum()} of {len(mine)} pairs of rows that differ "
                     f"in it alone: {said}.")
        lines += [as_written(sentence(row, row.reference, "ACC")) for _, row in tests.iterrows()
                  if part != "fusion" and ((mine["with"] == row.reference) & (mine.without == row["name"])).any()]
    lines += [f"{as_written(row['name'])} collapsed in {row.collapsed} of {row.runs} runs: no result."
              for _, row in table[table.collapsed > 0].iterrows()]
    lines += marked_sentences(table)
    return "\n".join(f"- {line}" for line in lines)


# ------------------------------------------------------------------------------------------------ readings

OPEN = {1: "the map that attention reads", 2: "reshape and interpolate", 3: "keys and values of eq. (6)",
        4: "softmax of eq. (4)", 5: "reach c of the offsets", 6: "what OT compares", 8: "fusion, eq. (10)-(11)",
        9: "classifier, eq. (12)-(13)", 10: "weights of the two scales", 12: "after the projection", 13: "training"}


@dataclass(frozen=True)
class Variant:
    """Another reading of open point `ambiguity`: in words, and the options and settings that make it."""

    ambiguity: int
    reading: str
    options: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)


VARIANTS = {
    "map_tile": Variant(1, "each tile is a 4×4 map of its own", {"map": "tile"}),
    "grid_square": Variant(2, "resampled to 14×14 cells", {"grid": "square"}),
    "grid_position": Variant(2, "a tile lies where it lies in the slide", {"grid": "position"}),
    "attention_dot": Variant(3, "logits are dot products of keys", {"attention": "dot"}),
    "softmax_all": Variant(4, "over heads and points", {"softmax": "all"}),
    "offset_dat": Variant(5, "c = s/H with s = 2, as DAT", {"offset": "dat"}),
    "offset_lr": Variant(5, "offsets learn at a tenth of the rate, as Deformable DETR", {"offset_lr": 0.1}),
    "query_norm": Variant(5, "offsets of a normalised query, as DAT", {"query": "norm"}),
    "ot_paired": Variant(6, "a tile with its own child", {"ot": "paired"}),
    "ot_squared": Variant(6, "squared distance", {"ot": "squared"}),
    "ot_entropic": Variant(6, "entropic coupling", {"ot": "entropic"}),
    "ot_on_raw": Variant(6, "frozen features (null control)", {"ot_on": "raw"}),
    "gate_projection": Variant(8, "weights from the tiles, before attention", {"gate": "projection"}),
    "gate_projected": Variant(8, "weights through one more layer", {"gate": "projected"}),
    "fusion_mean": Variant(8, "plain mean of the scales", {"fusion": "mean"}),
    "head_sigmoid": Variant(9, "one logit", {"head": "sigmoid"}),
    "shared": Variant(10, "shared", {"shared": True}),
    "activation_relu": Variant(12, "ReLU", {"activation": "relu"}),
    "activation_gelu": Variant(12, "GELU", {"activation": "gelu"}),
    "activation_layernorm": Variant(12, "LayerNorm", {"activation": "layernorm"}),
    "activation_layernorm_relu": Variant(12, "LayerNorm, then ReLU", {"activation": "layernorm_relu"}),
    "ot_on_unit": Variant(12, "OT on unit-norm features", {"ot_on": "unit"}),
    "ot_relative": Variant(12, "OT by the bag's own mean distance", {"ot_on": "relative"}),
    "standardise": Variant(12, "features standardised first", {"standardise": True}),
    "relu_ot_on_unit": Variant(12, "ReLU, OT on unit-norm features", {"activation": "relu", "ot_on": "unit"}),
    "batch_size_16": Variant(13, "16 slides a step", settings={"batch_size": 16}),
    "select_val_loss": Variant(13, "best epoch by validation loss", settings={"select": "val_loss"}),
}


def choose_variants(names: list) -> dict[str, Variant]:
    """The readings named, in the registry's order; "all" among the names takes every one.

    Raises InputError for no name, or one that is not in `VARIANTS`, naming the nearest.
    """
    for name in names:
        if name not in VARIANTS and name != "all":
            near = difflib.get_close_matches(str(name), VARIANTS, 1)
            hint = f"did you mean '{near[0]}'?" if near else "known: all, " + ", ".join(VARIANTS)
            raise InputError(f"unknown variant '{name}': {hint}")
    if not names:
        raise InputError("variants is empty: name at least one reading, such as map_tile, or all")
    return {name: v for name, v in VARIANTS.items() if name in names or "all" in names}


def variant_configs(bags: Bags, folds: pd.DataFrame, variants: dict[str, Variant],
                    **settings) -> tuple[dict[str, RunConfig], dict[str, str]]:
    """name -> RunConfig with "default", DMSMIL as the study has it, first; and name -> why for what cannot run here."""
    default = configure(bags, folds, "dmsmil", **settings)
    configs, left_out = {"default": default}, {}
    no_validation = any("val" not in set(folds[c]) for c in folds if c.startswith("fold_"))
    for name, variant in variants.items():
        try:
            config = configure(bags, folds, "dmsmil", 0, variant.options, **{**settings, **variant.settings})
        except InputError as error:
            left_out[name] = str(error)
            continue
        if config.name == default.name:
            left_out[name] = "it is what this study does by default"
        elif variant.settings.get("select") and no_validation:
            left_out[name] = "a fold has no validation part: raise val_share"
        else:
            configs[name] = config
    return configs, left_out


def variant_table(runs: dict[str, Runs], slides: int, positive: str = "") -> pd.DataFrame:
    """One row a reading, against runs["default"]; slides: how many the study has.

    Columns: name, ambiguity, reading; for AUC and ACC <metric>_difference (default minus reading, mean over folds),
    _low, _high (its 95 % interval), _p_holm, _p_equivalent_holm and _note, of `comparison.compare`; runs, collapsed;
    ACC_mean, ACC_std and so for F1 and AUC, over runs.
    A collapsed reading is no result: it is not compared and its differences are empty, as all are if the default
    collapsed.
    """
    default = runs["default"]
    others = {name: r for name, r in runs.items() if name != "default"}
    whole = {name: r.predictions for name, r in others.items() if not r.collapsed and not default.collapsed}
    tests = compare(default.predictions, whole, positive, slides).set_index("name") if whole else None
    compared = [f"{m}_{part}" for m in ("AUC", "ACC")
                for part in ("difference", "low", "high", "p_holm", "p_equivalent_holm", "note")]
    fallen = {c: "collapsed" if c.endswith("note") else math.nan for c in compared}
    rows = []
    for name, r in others.items():
        scores = score_by_fold(r.predictions, positive)
        rows.append({"name": name, "ambiguity": VARIANTS[name].ambiguity, "reading": VARIANTS[name].reading,
                     **(tests.loc[name, compared].to_dict() if name in whole else fallen), **marks(r),
                     **{f"{m}_{part}": getattr(scores[m], part)() for m in METRICS for part in ("mean", "std")}})
    return pd.DataFrame(rows, columns=["name", "ambiguity", "reading", *compared, "runs", *NO_MARKS,
                                       *(f"{m}_{part}" for m in METRICS for part in ("mean", "std"))])


def pretty_variants(table: pd.DataFrame) -> pd.DataFrame:
    """The readings to read: mean ± deviation, and in brackets default minus reading with its 95 % interval."""
    shown = pd.DataFrame({"": table.name, "open point": [f"{n} · {OPEN[n]}" for n in table.ambiguity],
                          "reading": table.reading})
    for metric in METRICS:
        shown[metric] = ["not defined" if math.isnan(m) else f"{m:.3f} ± {s:.3f}"
                         for m, s in zip(table[f"{metric}_mean"], table[f"{metric}_std"])]
    for metric in ("AUC", "ACC"):
        parts = table[[f"{metric}_{part}" for part in ("difference", "low", "high")]].itertuples(index=False)
        shown[f"default minus reading, {metric}"] = ["" if math.isnan(d) else f"{d:+.3f}" if math.isnan(low) else
                                                     f"{d:+.3f} [{low:.2f}, {high:.2f}]" for d, low, high in parts]
    shown["note"] = ["; ".join(filter(None, (note(row), _alike(row)))) for _, row in table.iterrows()]
    return shown.set_index("")


def _alike(row: pd.Series) -> str:
    """In which metrics a reading is equivalent to the default, in words."""
    metrics = [metric for metric in ("AUC", "ACC") if equivalent(row, metric)]
    return f"equivalent in {' and '.join(metrics)}" if metrics else ""


def variant_sentences(table: pd.DataFrame, left_out: dict[str, str]) -> str:
    """Markdown: which readings differ from the default beyond noise or are equivalent to it, which collapse, which
    cannot run here."""
    metric = "AUC" if table.AUC_difference.notna().any() else "ACC"  # leave-one-out has no AUC of a fold
    tried, fallen = table[table[f"{metric}_difference"].notna()], table[table.collapsed > 0]
    lines = [f"`{row['name']}` collapsed in {row.collapsed} of {row.runs} runs: no result."
             for _, row in fallen.iterrows()]
    found = [as_written(sentence(row, "The default", tested)) for _, row in tried.iterrows() for tested in TESTED
             if row[f"{tested}_p_holm"] < ALPHA]
    if tried.empty:
        lines.append("No reading can be compared: the default or all of them collapsed.")
    elif not found:
        far = tried.loc[tried[f"{metric}_difference"].abs().idxmax()]
        lines.append(f"None of the {len(tried)} readings compared is shown to differ from the default, which is what "
                     f"these folds can say, not that the readings are equal. Furthest in {metric} is `{far['name']}`: "
                     + as_written(sentence(far, "the default", metric)))
    if same := equivalents(tried):
        lines.append(f"Equivalent to the default, less than {EQUIVALENT_WITHIN:g} from it: {as_written(same)}.")
    lines += marked_sentences(table)
    lines += found + [f"`{name}` cannot run here: {reason}" for name, reason in left_out.items()]
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
        return (f"OT on frozen features gives **exactly** the predictions of no OT, in all {len(null)} runs. Whatever "
                "L_ot does elsewhere, it does through the projection.")
    if null.empty:
        return "**The null control was not made**: the two have no run in common."
    wrong = null[null.largest_difference > 0]
    return (f"**The null control fails**: in {len(wrong)} of {len(null)} runs OT on frozen features changes the "
            f"predictions, by up to {wrong.largest_difference.max():.2g}. Something besides the gradient of L_ot "
            "reaches the model (on a GPU: sums in no fixed order), and the effect of OT cannot be told apart from it.")
