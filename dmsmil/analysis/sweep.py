"""λ of eq. (14), and what L_ot does to the features: Fig. 3 of the paper, and when and where a run collapses.

L_train = L_ot + λ L_ce. Nothing in L_ot keeps tiles apart: it is least when all of them coincide, and λ says how
strongly L_ce objects. What counts as a collapse, and what as having learned nothing: `training.health`.
"""

from __future__ import annotations

import math

import pandas as pd

from dmsmil.analysis.comparison import ALPHA, EQUIVALENT_WITHIN, TESTED, compare, equivalents, sentence
from dmsmil.features.bags import Bags
from dmsmil.jobs.files import InputError
from dmsmil.jobs.text import as_written, listed
from dmsmil.training.config import RunConfig, configure, positive_number
from dmsmil.training.health import SHRUNK, STUCK, at_the_end
from dmsmil.training.metrics import METRICS, called, summarise
from dmsmil.training.results import COLLAPSED, EFFECTIVE, GATHERED, NOTHING, marked_sentences, marks, no_result, pretty
from dmsmil.training.runs import Runs

NEARER = 0.1  # by so much L_ot must fall, measured by the spread, before the scales are said to come nearer
ALONE = math.inf  # stands for cross-entropy alone, the limit of large λ
LINEAR = "linear projection"
PLACEMENTS = {
    LINEAR: {"ot_on": "projection"},
    "ReLU": {"ot_on": "projection", "activation": "relu"},
    "LayerNorm, ReLU": {"ot_on": "projection", "activation": "layernorm_relu"},
    "unit norm": {"ot_on": "unit"},
    "ReLU, unit norm": {"ot_on": "unit", "activation": "relu"},
    "relative distances": {"ot_on": "relative"},
    "frozen features": {"ot_on": "raw"},
}


def check_lams(lams: list) -> list[float]:
    """λ values, ascending, each once. Raises InputError for none, or one that is no positive number."""
    if not lams:
        raise InputError("the list of λ is empty: give at least one, such as [0.1, 1.0, 10.0]")
    return sorted({positive_number("λ", lam) for lam in lams})


def lam_name(lam: float) -> str:
    """How a λ is called in tables and sentences."""
    return "L_ce alone" if lam == ALONE else f"λ = {lam:g}"


def final_terms(runs: Runs) -> pd.DataFrame:
    """One row a run: L_ot, L_ce and spread that it ends at (`health.at_the_end`), spread_relative (to the spread before
    the first step), ce_relative (L_ce by the entropy of the class shares) and collapsed."""
    known = runs.records.set_index(["fold", "seed"])
    ends = {run: at_the_end(history, known.epoch_used[run]) for run, history in runs.history.groupby(["fold", "seed"])}
    end = pd.DataFrame(ends).T[["L_ot", "L_ce", "spread"]].rename_axis(["fold", "seed"])
    return end.assign(
        spread_relative=end.spread / known.spread_start,
        ce_relative=end.L_ce / known.prior_entropy,
        collapsed=known.collapsed,
    ).reset_index()


# ------------------------------------------------------------------------------------------------ Fig. 3


def lam_configs(bags: Bags, folds: pd.DataFrame, lams: list, **settings) -> dict[float, RunConfig]:
    """λ -> DMSMIL at that λ, ascending, and cross-entropy alone under `ALONE`; λ = 1, the paper's, is always there.

    settings: as for `training.config.configure`, without lam. Raises InputError as `check_lams`.
    """
    values = check_lams([*check_lams(lams), 1.0])
    return {
        **{lam: configure(bags, folds, "dmsmil", lam=lam, **settings) for lam in values},
        ALONE: configure(bags, folds, "dmsmil", 0, {"ot": "none"}, **settings),
    }


def lam_table(runs: dict[float, Runs], positive: str = "") -> pd.DataFrame:
    """One row a λ: name, lam (inf: L_ce alone), the metrics as in `metrics.summarise`; L_ot, L_ce, spread and
    spread_relative as in `final_terms`, means over runs (L_ot is empty where it is not computed); runs, collapsed,
    parameters."""
    rows = []
    for lam, r in runs.items():
        terms = final_terms(r)[["L_ot", "L_ce", "spread", "spread_relative"]].mean()
        if lam == ALONE:
            terms["L_ot"] = math.nan
        rows.append(
            {
                "name": lam_name(lam),
                "lam": lam,
                **summarise(r.predictions, positive),
                **terms,
                **marks(r),
                "parameters": int(r.records.parameters[0]),
            }
        )
    return pd.DataFrame(rows)


def lam_tests(runs: dict[float, Runs], positive: str = "") -> pd.DataFrame:
    """λ = 1 against every other λ that did not collapse, as `comparison.compare`; no row if λ = 1 collapsed."""
    others = {lam_name(lam): r.predictions for lam, r in runs.items() if lam != 1 and not r.collapsed}
    if runs[1.0].collapsed or not others:
        return pd.DataFrame(columns=["name"])
    return compare(runs[1.0].predictions, others, positive, runs[1.0].test_share)


def pretty_lams(table: pd.DataFrame) -> pd.DataFrame:
    """The λ table to read: the metrics as `training.results.pretty` writes them, and the loss terms."""
    shown = pretty(table).drop(columns="parameters")
    for place, term in enumerate(("L_ot", "L_ce", "spread"), len(METRICS)):
        shown.insert(place, term, ["not computed" if math.isnan(value) else f"{value:.3g}" for value in table[term]])
    return shown


def lam_sentences(table: pd.DataFrame, tests: pd.DataFrame) -> str:
    """Markdown: which λ is best here, whether it is the paper's λ = 1, whether beyond noise or equivalent, what
    collapsed, and whether a small λ aligns the scales or only shrinks the features."""
    fallen, whole = table[table.collapsed > 0], table[~no_result(table)]
    lines = [f"{row.name} collapsed in {row.collapsed} of {row.runs} runs: no result." for row in fallen.itertuples()]
    lines += marked_sentences(table)
    metrics = [m for m in METRICS if whole[f"{m}_mean"].notna().any()]  # leave-one-out has no AUC of a fold
    rounded = whole[[f"{m}_mean" for m in metrics]].round(12)  # one AUC comes out in two ways
    best = {m: whole[rounded[f"{m}_mean"] == rounded[f"{m}_mean"].max()].name.tolist() for m in metrics}
    if len(whole):
        where = {m: "everywhere" if len(names) == len(table) else "at " + ", ".join(names) for m, names in best.items()}
        lines.append(
            "Highest here: "
            + "; ".join(f"{called(m, table)} {whole[f'{m}_mean'].max():.3f} {where[m]}" for m in metrics)
            + "".join(f"; {called(m, table)} is not defined" for m in METRICS if m not in metrics)
            + "."
        )
        alone = [called(m, table) for m in metrics if best[m] == [lam_name(1)]]
        shared = [called(m, table) for m in metrics if lam_name(1) in best[m] and len(best[m]) > 1]
        some = f"in {listed(alone)} only" if alone else "in none of them"
        held = "in each of them" if len(alone) == len(metrics) else some
        lines.append(
            f"The paper finds λ = 1 best. Here it is so {held}"
            + (f"; in {listed(shared)} it shares the first place." if shared else ".")
        )
    found = [
        as_written(sentence(row, lam_name(1), m))
        for _, row in tests.iterrows()
        for m in TESTED
        if row[f"{m}_p_holm"] < ALPHA
    ]
    if len(tests) and not found:
        highest = tests[tests["name"].isin(best.get("AUC", []))]
        lines.append(
            f"None of the {len(tests)} others is shown to differ from λ = 1, so these folds do not tell "
            "which λ is best. " + " ".join(as_written(sentence(row, lam_name(1))) for _, row in highest.iterrows())
        )
    if same := equivalents(tests):
        lines.append(f"Equivalent to λ = 1, less than {EQUIVALENT_WITHIN:g} from it: {as_written(same)}.")
    if tests.empty:
        lines.append("Nothing can be compared with λ = 1.")
    swept = whole[whole.lam != ALONE]
    if len(swept) > 1:
        small, large = swept.loc[swept.lam.idxmin()], swept.loc[swept.lam.idxmax()]
        before, after = large.L_ot / large.spread, small.L_ot / small.spread
        found.append(
            f"From {large['name']} down to {small['name']} the spread goes from {large.spread:.2g} to "
            f"{small.spread:.2g} and L_ot from {large.L_ot:.2g} to {small.L_ot:.2g}. Measured by the spread, "
            f"L_ot goes from {before:.2g} to {after:.2g}: "
            + (
                "the scales come nearer by more than the shrinking."
                if after < (1 - NEARER) * before
                else "the scales come no nearer, or hardly: the features shrink."
            )
        )
    return "\n".join(f"- {line.strip()}" for line in [*lines, *found])


# ------------------------------------------------------------------------------------------------ collapse


def collapse_configs(bags: Bags, folds: pd.DataFrame, lams: list, **settings) -> dict[tuple[str, float], RunConfig]:
    """(placement of L_ot, λ) -> RunConfig, every placement at every λ; none without λ. InputError as `check_lams`."""
    if not lams:
        return {}
    return {
        (name, lam): configure(bags, folds, "dmsmil", 0, options, lam=lam, **settings)
        for name, options in PLACEMENTS.items()
        for lam in check_lams(lams)
    }


def collapse_table(runs: dict[tuple[str, float], Runs]) -> pd.DataFrame:
    """One row a placement and λ, means over the runs: placement, lam; spread_relative and ce_relative as in
    `final_terms`; effective, as in `results.marks`; gradient_ot and gradient_ce, of λ L_ce, before the first step;
    collapsed, learned_nothing and gathered (True if any run did)."""
    rows = []
    for (placement, lam), r in runs.items():
        means = final_terms(r)[["spread_relative", "ce_relative"]].mean()
        start = pd.DataFrame(list(r.records.start))[["gradient_ot", "gradient_ce"]].mean()
        rows.append(
            {
                "placement": placement,
                "lam": lam,
                **means,
                **start,
                EFFECTIVE: r.effective,
                **{mark: marks(r)[mark] > 0 for mark in (COLLAPSED, NOTHING, GATHERED)},
            }
        )
    return pd.DataFrame(
        rows,
        columns=[
            "placement",
            "lam",
            "spread_relative",
            "ce_relative",
            "gradient_ot",
            "gradient_ce",
            EFFECTIVE,
            COLLAPSED,
            NOTHING,
            GATHERED,
        ],
    )


def collapse_sentences(table: pd.DataFrame) -> str:
    """Markdown: for each placement at which λ it collapsed, how far the spread fell without a collapse, where nothing
    was learned though the spread is not small enough to be called a collapse, and over how many tiles attention is
    spread; and at which λ both terms pull equally at the projection before the first step."""
    if table.empty:
        return "Not asked for here: `collapse_lams` is empty."
    lines, equal = [], []
    for name, part in table.groupby("placement", sort=False):
        said = [_how_it_ended(part)]
        stuck = part[part.learned_nothing & ~part.collapsed]
        if len(stuck):
            said.append(
                f"At λ = {_list(stuck.lam)} nothing was learned all the same: L_ce stays above "
                f"{100 * STUCK:.0f} % of the entropy of the class shares, with the spread down to "
                f"{stuck.spread_relative.min():.2g} times its start."
            )
        few, many = (part.loc[place] for place in (part.effective.idxmin(), part.effective.idxmax()))
        said.append(
            f"Attention is spread over {few.effective:.0%} of the tiles at λ = {few.lam:g}"
            + (f", {many.effective:.0%} at {many.lam:g}." if len(part) > 1 else ".")
        )
        if part.gathered.any():
            said.append(f"It has gathered at λ = {_list(part.lam[part.gathered])}.")
        lines.append(f"**{name}**: " + " ".join(said))
        lam = (part.lam * part.gradient_ot / part.gradient_ce).mean()  # gradient_ce grows with λ: the same in all rows
        equal.append(f"{name} λ = {lam:.2g}" if lam > 0 else f"{name} never, for L_ot has no gradient there")
    lines.append(
        "Before the first step L_ot and λ L_ce pull equally hard at the projection: "
        + "; ".join(equal)
        + ". Below that λ, L_ot has the stronger arm."
    )
    return "\n".join(f"- {line}" for line in lines)


def _how_it_ended(part: pd.DataFrame) -> str:
    """Whether and where a placement collapsed, in a sentence."""
    fallen, stood = part[part.collapsed], part[~part.collapsed]
    least = part.loc[part.spread_relative.idxmin()]
    if len(fallen):
        return f"collapsed at λ = {_list(fallen.lam)}" + (
            f", not at {_list(stood.lam)}." if len(stood) else ", that is, at every λ tried."
        )
    if least.spread_relative < SHRUNK and not least.learned_nothing:
        return (
            f"at λ = {least.lam:g} the spread falls to {least.spread_relative:.2g} times its start, yet the "
            f"classifier still reads the features: L_ce is {least.ce_relative:.2f} of the entropy of the class "
            "shares."
        )
    return f"no collapse. The spread is least at λ = {least.lam:g}: {least.spread_relative:.2g} times its start."


def _list(values) -> str:
    return ", ".join(f"{value:g}" for value in values)
