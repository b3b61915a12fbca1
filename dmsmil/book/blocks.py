"""What stands between the markers of a page: results of one study as Markdown, each from the files of docs/results."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from dmsmil.analysis.ablation import PARTS, pretty_ablation
from dmsmil.analysis.claims import HELD, tally, worth
from dmsmil.analysis.comparison import ALPHA, equivalent
from dmsmil.analysis.power import power_sentences
from dmsmil.analysis.report import ranking, saved_results, saved_times
from dmsmil.analysis.sweep import collapse_sentences, pretty_lams
from dmsmil.analysis.variants import pretty_variants, variant_sentences
from dmsmil.book.best import best_rows, by_auc, loses, mine_of, ranked, tested
from dmsmil.book.grid import markdown
from dmsmil.book.names import named, retold
from dmsmil.book.results import MACHINE, PICTURE, PLANTED, SETTINGS, Study
from dmsmil.cost.tables import cost_sentences, pretty_costs
from dmsmil.interpret.faithfulness import map_sentences
from dmsmil.jobs.text import as_written, listed, many
from dmsmil.training.baselines import CHEAP
from dmsmil.training.metrics import called
from dmsmil.training.results import (
    EFFECTIVE,
    all_scales_mean,
    cell,
    marked,
    no_result,
    note,
    number,
    pretty,
    with_marks,
)

MEASURED = (
    "Mean ± standard deviation over folds and seeds [95 % interval, patients drawn again]. "
    "The highest AUC stands first, what collapsed, or learned nothing in every run, last."
)


# ------------------------------------------------------------------------------------------------ the main table


def best_block(study: Study) -> str:
    """The main table in at most ten rows, and where the whole of it stands."""
    table = study.table("04_compare")
    rows = best_rows(table)
    return (
        f"{_results(rows)}\n\nThe study `{study.name}`: {_run(study)}. A method of one scale stands here "
        f"at its better one: {len(rows)} of {len(table)} rows, DMSMIL, DAMIL, mean pooling and the rules that know no "
        f"tissue, then the best others; all of them on [the page of the study]({study.link('README.md')}). {MEASURED}"
    )


def result_block(study: Study) -> str:
    """Methods and baselines by AUC: who is best stands first, what is no result last."""
    values, table = study.settings(), ranked(named(study.table("04_compare")))
    return (
        f"{_results(table)}\n\n{_run(study)}; K = {values['k']} tiles a scale, features by "
        f"{values['encoder']}, {values['epochs']} epochs where the options say no other. {MEASURED}"
    )


def _results(table: pd.DataFrame) -> str:
    """A result table that is `named`, with the options in a column of their own."""
    shown = pretty(table.assign(name=table.said))
    shown.insert(0, "options", list(table.options))
    return markdown(shown, "method")


def _run(study: Study) -> str:
    """How many slides, of whom, in how many folds."""
    values = study.settings()
    classes = ", ".join(f"{count} {as_written(name)}" for name, count in values["classes"].items())
    repeats = f" × {values['repeats']} repeats" if values.get("repeats", 1) > 1 else ""
    seeds = many(len(values["seeds"]), "seed")
    return (
        f"{many(values['slides'], 'slide')} of {many(values['patients'], 'patient')} ({classes}), "
        f"{values['folds']} folds{repeats} × {seeds}"
    )


def words_block(study: Study) -> str:
    """The main table in three sentences: how good DMSMIL is, against whom it loses, and what of that is shown."""
    table = study.table("04_compare")
    auc, mine = by_auc(table), mine_of(table)
    if auc.isna().all():
        return "AUC is not defined: in each fold one class was tested."
    sound = auc[~no_result(table)].dropna()
    top = named(table).loc[(auc if sound.empty else sound).idxmax()]
    if mine is None or no_result(table)[mine.name]:
        said = "DMSMIL was not run here" if mine is None else f"DMSMIL has no result here: {note(mine)}"
        return f"{said}. The highest AUC is {_auc(top)}."
    mean = all_scales_mean(table)
    first = "the highest of all" if top.name == mine.name else f"the highest is {_auc(top)}"
    second = "".join(
        f"; mean pooling, which looks at all tiles alike, reaches {auc[place]:.3f}"
        for place in mean.index
        if place != top.name
    )
    marks = f" ({note(mine)})" if note(mine) else ""
    name = number(mine, "AUC")[0]
    a = "an" if name.startswith("A") else "a"
    reached = f"{a} {name} of {auc[mine.name]:.3f} [{mine.AUC_low:.2f}, {mine.AUC_high:.2f}]{marks}"
    return "\n".join(
        [
            f"- DMSMIL reaches {reached}; {first}{second}.",
            f"- {as_written(loses(table))}",
            f"- {as_written(tested(table, study.tables()))}",
        ]
    )


def _auc(row: pd.Series) -> str:
    """A row with its AUC and interval, in a sentence."""
    called, value = number(row, "AUC")
    return f"{as_written(row.said)} with {value:.3f} [{row.AUC_low:.2f}, {row.AUC_high:.2f}]" + (
        ", pooled" if called.startswith("pooled ") else ""
    )


def findings_block(study: Study) -> str:
    """All that the main table says: who is best, whether it is worth its effort, which differences hold when tested."""
    table, tables = study.table("04_compare"), study.tables()
    results = saved_results(study.folder)
    said = [ranking(results), worth(study.folder, results)]
    if "04_tests" in tables:
        said.append(_tested(tables["04_tests"]))
    return retold("\n".join(said), table, as_written)


def _tested(tests: pd.DataFrame) -> str:
    """How many methods the reference of `report.paired_tests` is better than, equivalent to, and worse."""
    name, sure = tests.reference.iloc[0], tests.AUC_p_holm < ALPHA
    better, worse = tests.name[sure & (tests.AUC_difference > 0)], tests.name[sure & (tests.AUC_difference < 0)]
    same = tests.name[tests.apply(equivalent, axis=1, metric="AUC") & ~sure]
    return "- " + as_written(
        f"{name} against the {len(tests)} other runs, by AUC (corrected resampled t-test, Holm's correction): it is "
        f"shown to be better than {', '.join(better) or 'none'}, and worse than {', '.join(worse) or 'none'}"
        + (f"; equivalent to {', '.join(same)}." if len(same) else ".")
    )


# ------------------------------------------------------------------------------------------------ the other tables


def purpose_block(study: Study) -> str:
    """What the study is, in a sentence of its params file."""
    return as_written(study.settings().get("purpose") or f"The study {study.name}.")


def picture_block(study: Study) -> str:
    """A slide as the method sees it, and the main table as a picture."""
    study.needs(PICTURE)
    return (
        f"![A slide of the study {study.name} with its tile scores at each scale; the AUC of each method with its "
        f"interval]({study.link(PICTURE)})"
    )


def claims_block(study: Study) -> str:
    """The checklist of `claims.claims`: of the number that decides, its first sentence; then how many held."""
    table, tables = study.table("09_claims"), study.tables()
    numbers = [text.split(". ")[0].removesuffix(".") for text in table.number]
    sources = [tables.get(name) for name in table["tested in"]]
    told = [
        text if source is None or "scales" not in source else retold(text, source)
        for text, source in zip(numbers, sources)
    ]
    board = markdown(table.assign(number=told).set_index("claim"), "claim")
    return f"{board}\n\nOf {len(table)} claims: {_counts(table)}."


def held_block(study: Study) -> str:
    """How many claims of the paper held, and which."""
    table = study.table("09_claims")
    held = [as_written(claim) for claim in table.claim[table.verdict == HELD]]
    return (
        f"Of {len(table)} claims of the paper ([the board]({study.link('README.md')}#what-held-of-the-paper)): "
        f"{_counts(table)}. Held: {'; '.join(held) or 'none'}."
    )


def _counts(table: pd.DataFrame) -> str:
    """How many claims have each verdict."""
    return ", ".join(f"{count} {verdict}" for verdict, count in tally(table).items())


def ablation_block(study: Study) -> str:
    """The six rows of Tables 4 and 5, beside what the paper prints where the study is on its cohort."""
    table = study.table("05_ablation")
    table = table.assign(**{part: [None if value == "" else value for value in table[part]] for part in PARTS})
    table = named(table)
    shown = pretty_ablation(table.assign(name=table.short), study.settings()["paper"])
    shown.insert(len(PARTS), "options", list(table.options))
    return markdown(shown, "method")


def rules_block(study: Study) -> str:
    """What the rules that know no tissue reach, before any method is looked at."""
    table = study.table("04_compare")
    rules = table[table.name.isin(CHEAP) & table.AUC_mean.notna()]
    if rules.empty:
        return "No rule that knows no tissue has an AUC here."
    said = listed(
        [
            f"{as_written(row['name'])} {row.AUC_mean:.3f} [{row.AUC_low:.2f}, {row.AUC_high:.2f}]"
            for _, row in rules.iterrows()
        ]
    )
    return f"Before any method, what the rules that know no tissue reach, in {called('AUC', table)}: {said}."


def power_block(study: Study) -> str:
    """Which difference between two methods the study could find."""
    return power_sentences(study.table("04_power"))


def probes_block(study: Study) -> str:
    """How far a linear rule comes on the mean features of a slide, at each scale and at all."""
    table = study.table("02_probes")
    spread = [f"{mean:.3f} ± {std:.3f}" for mean, std in zip(table.AUC, table["std"])]
    whose = ["all its tiles" if tiles == "all" else "its tiles weighted by the planted signal" for tiles in table.tiles]
    shown = pd.DataFrame({"of a slide": whose, called("AUC", table): spread}, index=list(table.scales))
    return markdown(shown, "mean features at")


def variants_block(study: Study) -> str:
    """The default against every other reading that was trained."""
    table = study.table("05_variants")
    said = variant_sentences(table, {})
    return said if table.empty else f"{markdown(pretty_variants(table), 'key')}\n\n{said}"


def collapse_block(study: Study) -> str:
    """Both terms of the loss against λ, where L_ot is asked of features as they are and of features without a unit."""
    table = study.table("05_collapse")
    if table.empty:
        return collapse_sentences(table)
    shown = pd.DataFrame(
        {
            "λ": [f"{value:g}" for value in table.lam],
            "pull of L_ot": [f"{value:.2g}" for value in table.gradient_ot],
            "pull of λ L_ce": [f"{value:.2g}" for value in table.gradient_ce],
            "L_ce at the end": [f"{value:.2f}" for value in table.ce_relative],
            "spread at the end": [f"{value:.2g}" for value in table.spread_relative],
            "effective tiles": [f"{value:.0%}" for value in table[EFFECTIVE]],
            "note": [", ".join(marked(row)) for _, row in table.iterrows()],
        },
        index=list(table.placement),
    )
    return (
        f"{markdown(shown, 'L_ot asked of')}\n\nPulls: norms of the gradients on the projection before the first step. "
        "At the end: L_ce by the entropy of the class shares, the spread of features by that of the start.\n\n"
        f"{collapse_sentences(table)}"
    )


def witness_block(study: Study) -> str:
    """AUC where fewer and fewer tiles carry the signal: a share a column."""
    table = study.table("05_witness")
    rows = named(table.drop_duplicates("name"))
    shown = pd.DataFrame({"options": list(rows.options)}, index=list(rows.said))
    for rate, part in table.groupby("rate"):
        here = part.set_index("name", drop=False).loc[rows["name"]]
        shown[f"{100 * rate:.3g} % of the tiles"] = [with_marks(cell(row, "AUC"), row) for _, row in here.iterrows()]
    first = table.iloc[0]
    return (
        f"{markdown(shown, 'method')}\n\n{called('AUC', table)}; {many(int(first.slides), 'slide')}, "
        f"{many(int(first.tiles), 'tile')} of each."
    )


def maps_block(study: Study) -> str:
    """What the tile scores of each method are worth, by tests that do not ask how they look."""
    table = study.table("07_maps")
    return f"Of {many(int(table.slides.max()), 'tested slide')}:\n\n{map_sentences(table)}"


def lambda_block(study: Study) -> str:
    """The metrics and the loss terms at each λ."""
    return markdown(pretty_lams(study.table("06_lambda")), "λ")


def cost_block(study: Study) -> str:
    """Table 3: what each method costs, on which device, and whether DMSMIL is the cheapest."""
    table = named(study.table("08_cost"))
    table = table.assign(name=table.said)
    first, shown = table.iloc[0], pretty_costs(table)
    shown.insert(0, "options", list(table.options))
    return (
        f"{markdown(shown, 'method')}\n\nOn {first.device}; K = {first.k} tiles a scale of "
        f"{first.dim} channels, an epoch of {first.slides} slides; median [least, most].\n\n"
        f"{cost_sentences(table)}"
    )


def settings_block(study: Study) -> str:
    """What was run, on what machine, and on which day."""
    values = study.settings()
    values["classes"] = [f"{count} {name}" for name, count in values["classes"].items()]
    order = ("date", "slides", "patients", "classes", *PLANTED, *SETTINGS, *MACHINE)
    rows = {key: values[key] for key in order if values.get(key, "") != ""}
    told = [", ".join(map(str, value)) if isinstance(value, list) else str(value) for value in rows.values()]
    return markdown(pd.DataFrame({"value": told}, index=list(rows)), "setting")


def time_block(study: Study) -> str:
    """How long the study took when it first ran, in one sentence."""
    study.needs("times.csv")
    times, values = saved_times(study.folder), study.settings()
    gpu = "no GPU" if values["gpu"] == "none" else values["gpu"]
    whole = times.dropna(subset="first")
    if whole.empty:
        return f"No notebook of the study `{study.name}` was timed from its first beginning to its end."
    longest = whole.loc[whole["first"].idxmax()]
    left_out = sorted(set(times.notebook) - set(whole.notebook))
    return (
        f"On {values['cores']} cores and {gpu} the notebooks of the study `{study.name}` took "
        f"{whole['first'].sum() / 60:.0f} minutes when they first ran, {longest['first'] / 60:.0f} of them for "
        f"{longest.notebook}."
        + (f" Not counted, for they were interrupted: {', '.join(left_out)}." if left_out else "")
    )


BLOCKS: dict[str, Callable[[Study], str]] = {
    "purpose": purpose_block,
    "best": best_block,
    "words": words_block,
    "picture": picture_block,
    "rules": rules_block,
    "table": result_block,
    "findings": findings_block,
    "power": power_block,
    "probes": probes_block,
    "claims": claims_block,
    "held": held_block,
    "ablation": ablation_block,
    "variants": variants_block,
    "lambda": lambda_block,
    "collapse": collapse_block,
    "witness": witness_block,
    "maps": maps_block,
    "cost": cost_block,
    "settings": settings_block,
    "time": time_block,
}
