"""A method against itself in other forms: DMSMIL under other readings of the paper, DMSMIL-Select without its parts.

A reading is one way to understand a point on which the paper is silent. The study's default is one reading of each
point; every other one is named in `VARIANTS` and can be run. `PARTS` takes from DMSMIL-Select one part at a time.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field

import pandas as pd

from dmsmil.analysis.comparison import ALPHA, EQUIVALENT_WITHIN, TESTED, compare, equivalent, equivalents, sentence
from dmsmil.features.bags import Bags
from dmsmil.jobs.files import InputError
from dmsmil.jobs.text import as_written
from dmsmil.training.config import RunConfig, configure
from dmsmil.training.metrics import METRICS, called, counted_classes, score_by_fold
from dmsmil.training.results import EFFECTIVE, NO_MARKS, marked_sentences, marks, note
from dmsmil.training.runs import Runs

OPEN = {
    1: "the map that attention reads",
    2: "reshape and interpolate",
    3: "keys and values of eq. (6)",
    4: "softmax of eq. (4)",
    5: "reach c of the offsets",
    6: "what OT compares",
    8: "fusion, eq. (10)-(11)",
    9: "classifier, eq. (12)-(13)",
    10: "weights of the scales",
    12: "after the projection",
    13: "training",
    14: "scale of the features",
    15: "where a tile lies on the map",
}


POINTS = {"beyond_reach": "points near the end of reach", "at_border": "points off the map"}


@dataclass(frozen=True)
class Variant:
    """Another form of a method: the point in which it differs, in words how, and the options and settings that make it.

    point: the number of an open point of the paper (`OPEN`), or what a part is for.
    """

    point: int | str
    reading: str
    options: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)

    @property
    def heading(self) -> str:
        """The point, as a table or a figure names it."""
        return self.point if isinstance(self.point, str) else f"{self.point} · {OPEN[self.point]}"


VARIANTS = {
    "map_tile": Variant(1, "each tile is a 4×4 map of its own", {"map": "tile"}),
    "grid_square": Variant(2, "resampled to 14×14 cells", {"grid": "square"}),
    "attention_dot": Variant(3, "logits are dot products of keys", {"attention": "dot"}),
    "softmax_all": Variant(4, "over heads and points", {"softmax": "all"}),
    "offset_cells": Variant(5, "c = U + 1 cells, on rings", {"offset": "cells"}),
    "offset_lr_1": Variant(5, "offsets learn at the full rate", {"offset_lr": 1.0}),
    "query_plain": Variant(5, "offsets of the query as it is", {"query": "plain"}),
    "first_default": Variant(
        5, "all three: the default up to 0.1", {"offset": "cells", "offset_lr": 1.0, "query": "plain"}
    ),
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
    "relu_ot_on_unit": Variant(12, "ReLU, OT on unit-norm features", {"activation": "relu", "ot_on": "unit"}),
    "batch_size_16": Variant(13, "16 slides a step", settings={"batch_size": 16}),
    "select_val_loss": Variant(13, "best epoch by validation loss", settings={"select": "val_loss"}),
    "standardise": Variant(14, "features standardised first", {"standardise": True}),
    "grid_position": Variant(15, "where it lies in the slide", {"grid": "position"}),
}


PARTS = {
    "no_gate": Variant("selection", "the plain mean over tiles", {"gates": False}),
    "own_gates": Variant("selection", "each scale weighs its own tiles", {"joint": False}),
    "free_gate": Variant("selection", "no bound on what a tile may weigh", {"bound": 0}),
    "lone_gates": Variant("space", "a gate is of its tile alone", {"smooth": False}),
    "no_attention": Variant("content", "no deformable attention", {"deformable": False}),
    "no_keys": Variant("content", "logits from the query alone", {"attention": "linear"}),
    "transport": Variant("transport", "with L_ot, by gates", {"transport": "gates"}),
    "equal_weights": Variant("transport", "with L_ot, of equal weights", {"transport": "plain"}),
    "link": Variant("transport", "with L_link", {"link": True}),
    "transport_link": Variant("transport", "with L_ot and L_link", {"transport": "gates", "link": True}),
    "fill": Variant("space", "tiles fill the map row by row", {"grid": "fill"}),
    "whitened": Variant("small samples", "features whitened wholly", {"power": 1.0}),
    "standardised": Variant("small samples", "features standardised, not whitened", {"inputs": "standardised"}),
    "given": Variant("small samples", "features as the encoder gives them", {"inputs": "given"}),
}
BASES = {"dmsmil": VARIANTS, "dmsmil_select": PARTS}  # method: its other forms, by name


def choose_variants(names: list, base: str = "dmsmil") -> dict[str, Variant]:
    """The forms of the method `base` that are named, in the registry's order; "all" among the names takes every one.

    Raises InputError for a name that is not in `BASES[base]`, naming the nearest.
    """
    known = BASES[base]
    for name in names:
        if name not in known and name != "all":
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean '{near[0]}'?" if near else "known: all, " + ", ".join(known)
            raise InputError(f"unknown variant '{name}' of {base}: {hint}")
    return {name: v for name, v in known.items() if name in names or "all" in names}


def variant_configs(
    bags: Bags, folds: pd.DataFrame, variants: dict[str, Variant], base: str = "dmsmil", **settings
) -> tuple[dict[str, RunConfig], dict[str, str]]:
    """name -> RunConfig with "default", the method `base` as the study has it, first; and name -> why for what cannot
    run here."""
    default = configure(bags, folds, base, **settings)
    configs, left_out = {"default": default}, {}
    no_validation = any("val" not in set(folds[c]) for c in folds if c.startswith("fold_"))
    for name, variant in variants.items():
        try:
            config = configure(bags, folds, base, 0, variant.options, **{**settings, **variant.settings})
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


def variant_table(runs: dict[str, Runs], positive: str = "") -> pd.DataFrame:
    """One row a reading, against runs["default"].

    Columns: name, point (its `Variant.heading`), reading; for AUC and ACC <metric>_difference (default minus reading,
    mean over folds), _low, _high (its 95 % interval), _p_holm, _p_equivalent_holm and _note, of `comparison.compare`;
    `results.marks`; beyond_reach and at_border, shares of the sampling points (`health.examine`) on the tested slides,
    at the scale where they are largest; ACC_mean, ACC_std and so for F1 and AUC, over runs; of more than two classes
    classes.
    A collapsed reading is no result: it is not compared and its differences are empty, as all are if the default
    collapsed.
    """
    default = runs["default"]
    others = {name: r for name, r in runs.items() if name != "default"}
    whole = {name: r.predictions for name, r in others.items() if not r.collapsed and not default.collapsed}
    tests = compare(default.predictions, whole, positive, default.test_share).set_index("name") if whole else None
    compared = [
        f"{m}_{part}"
        for m in ("AUC", "ACC")
        for part in ("difference", "low", "high", "p_holm", "p_equivalent_holm", "note")
    ]
    fallen = {c: "collapsed" if c.endswith("note") else math.nan for c in compared}
    rows, known = [], VARIANTS | PARTS
    for name, r in others.items():
        scores = score_by_fold(r.predictions, positive)
        rows.append(
            {
                "name": name,
                "point": known[name].heading,
                "reading": known[name].reading,
                **(tests.loc[name, compared].to_dict() if name in whole else fallen),
                **marks(r),
                **{kind: _points(r, kind) for kind in POINTS},
                **{f"{m}_{part}": getattr(scores[m], part)() for m in METRICS for part in ("mean", "std")},
            }
        )
    return pd.DataFrame(
        rows,
        columns=[
            "name",
            "point",
            "reading",
            *compared,
            "runs",
            *NO_MARKS,
            *POINTS,
            *(f"{m}_{part}" for m in METRICS for part in ("mean", "std")),
        ],
    ).assign(**counted_classes(default.predictions))


def _points(runs: Runs, kind: str) -> float:
    """A share of the sampling points, mean over runs, of the scale where it is largest; NaN of a method without any."""
    seen = pd.DataFrame(list(runs.records.attention))
    return float(seen[[name for name in seen if name.startswith(kind)]].mean().max())


def pretty_variants(table: pd.DataFrame) -> pd.DataFrame:
    """The readings to read: mean ± deviation; default minus reading with its 95 % interval; over how many of the tiles
    attention is spread, and how many sampling points are near the end of their reach and off the map."""
    shown = pd.DataFrame({"": table.name, "point": table.point, "reading": table.reading})
    for metric in METRICS:
        shown[called(metric, table)] = [
            "not defined" if math.isnan(m) else f"{m:.3f} ± {s:.3f}"
            for m, s in zip(table[f"{metric}_mean"], table[f"{metric}_std"])
        ]
    for metric in ("AUC", "ACC"):
        parts = table[[f"{metric}_{part}" for part in ("difference", "low", "high")]].itertuples(index=False)
        shown[f"default minus reading, {called(metric, table)}"] = [
            "" if math.isnan(d) else f"{d:+.3f}" if math.isnan(low) else f"{d:+.3f} [{low:.2f}, {high:.2f}]"
            for d, low, high in parts
        ]
    for column, words in {EFFECTIVE: "effective tiles", **POINTS}.items():
        if column in table:  # which older tables have not
            shown[words] = ["" if math.isnan(share) else f"{share:.0%}" for share in table[column]]
    shown["note"] = ["; ".join(filter(None, (note(row), _alike(row)))) for _, row in table.iterrows()]
    return shown.set_index("")


def _alike(row: pd.Series) -> str:
    """In which metrics a reading is equivalent to the default, in words."""
    metrics = [called(metric, row) for metric in ("AUC", "ACC") if equivalent(row, metric)]
    return f"equivalent in {' and '.join(metrics)}" if metrics else ""


def variant_sentences(table: pd.DataFrame, left_out: dict[str, str]) -> str:
    """Markdown: which readings differ from the default beyond noise or are equivalent to it, which collapse, which
    cannot run here."""
    if table.empty and not left_out:
        return "No other reading was asked for (`variants`)."
    metric = "AUC" if table.AUC_difference.notna().any() else "ACC"  # leave-one-out has no AUC of a fold
    tried, fallen = table[table[f"{metric}_difference"].notna()], table[table.collapsed > 0]
    lines = [
        f"`{row['name']}` collapsed in {row.collapsed} of {row.runs} runs: no result." for _, row in fallen.iterrows()
    ]
    found = [
        as_written(sentence(row, "The default", tested))
        for _, row in tried.iterrows()
        for tested in TESTED
        if row[f"{tested}_p_holm"] < ALPHA
    ]
    if table.empty:
        lines.append("No reading but the default could run here.")
    elif tried.empty:
        lines.append("No reading can be compared: the default or all of them collapsed.")
    elif not found:
        far = tried.loc[tried[f"{metric}_difference"].abs().idxmax()]
        lines.append(
            f"None of the {len(tried)} readings compared is shown to differ from the default, which is what "
            f"these folds can say, not that the readings are equal. Furthest in {called(metric, table)} is "
            f"`{far['name']}`: " + as_written(sentence(far, "the default", metric))
        )
    if same := equivalents(tried):
        lines.append(f"Equivalent to the default, less than {EQUIVALENT_WITHIN:g} from it: {as_written(same)}.")
    lines += marked_sentences(table)
    lines += found + [f"`{name}` cannot run here: {reason}" for name, reason in left_out.items()]
    return "\n".join(f"- {line}" for line in lines)
