"""The paper's claims as a checklist, judged by the tables a study has written.

A verdict is one of five words.

- `held`: the direction is the paper's, and the paired test says so (p < .05 after Holm's correction); for what is
  counted or timed and has no test (parameters, seconds, slopes), the order is the paper's;
- `equivalent`: no difference is shown, and two one-sided tests say that it is below `EQUIVALENT_WITHIN`, either way;
- `not shown`: the direction is the paper's, but no test lifts it above noise, or there is none;
- `not held`: the other direction, a tie, or a collapse of what the claim is about;
- `not run`: the table that decides was not made, or lacks the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from dmsmil.analysis.ablation import PARTS, is_exact
from dmsmil.analysis.comparison import ALPHA, EQUIVALENT_WITHIN, equivalent, seen_from, sentence
from dmsmil.analysis.paper import growth_as_claimed
from dmsmil.analysis.report import saved_tables
from dmsmil.analysis.sweep import lam_name
from dmsmil.analysis.variants import PARTS as SELECT_PARTS
from dmsmil.analysis.verdicts import best_other, cheap_sentences
from dmsmil.training.metrics import METRICS, called
from dmsmil.training.results import (
    COLLAPSED,
    NOTHING,
    all_scales_mean,
    multi_scale,
    no_result,
    part,
    plain_row,
    verdict,
    with_marks,
)

HELD, EQUIVALENT, NOT_SHOWN, NOT_HELD, NOT_RUN = "held", "equivalent", "not shown", "not held", "not run"
VERDICTS = (HELD, EQUIVALENT, NOT_SHOWN, NOT_HELD, NOT_RUN)
COLUMNS = ["claim", "in the paper", "tested in", "verdict", "number"]

Tables = dict[str, pd.DataFrame]
Judged = tuple[str, str]  # verdict, and the number that decides in words


class _Absent(Exception):
    """The rows that a claim needs were not made; the message says which."""


def claims(home: str | Path) -> pd.DataFrame:
    """The checklist of a study: claim, in the paper, tested in (notebook), verdict, and the number that decides."""
    tables, rows = saved_tables(home), []
    for claim, where, notebook, answer in _questions():
        try:
            judged = answer(tables)
        except _Absent as absent:
            judged = NOT_RUN, f"{notebook}: {absent}"
        rows.append((claim, where, notebook, *judged))
    return pd.DataFrame([*rows, *_interpretation(tables)], columns=COLUMNS)


def tally(checklist: pd.DataFrame, without: str = "") -> dict[str, int]:
    """How many claims have each verdict, every verdict named; without: a notebook whose claims do not count."""
    counts = checklist.verdict[checklist["tested in"] != without].value_counts()
    return {word: int(counts.get(word, 0)) for word in VERDICTS}


def worth(home: str | Path, results: pd.DataFrame) -> str:
    """Markdown: is the first method better than mean pooling, colour and the majority? As 04_compare tested it.

    results: `report.saved_results`; where nothing was tested, or the method collapsed, `training.results.verdict`
    speaks.
    """
    tests = saved_tables(home, "04_tests*")
    if "04_tests_cheap" not in tests or no_result(results).iloc[0]:
        return verdict(results)
    cheap = tests["04_tests_cheap"]
    mean = seen_from(tests["04_tests"], cheap.reference[0]) if "04_tests" in tests else cheap[:0]
    return cheap_sentences(pd.concat([mean[mean["name"].isin(all_scales_mean(results).name)], cheap]))


def decide(difference: float, p: float = math.nan, p_equivalent: float = math.nan) -> str:
    """The verdict on a difference that the paper says is above 0; its p value and that of equivalence, NaN: not tested.

    A difference that is shown decides before equivalence does: it may be shown and yet small.
    """
    if p_equivalent < ALPHA and not p < ALPHA:
        return EQUIVALENT
    return NOT_HELD if not difference > 0 else HELD if p < ALPHA else NOT_SHOWN


def _questions() -> Iterator[tuple[str, str, str, Callable[[Tables], Judged]]]:
    """Claim, where the paper makes it, the notebook that tests it, and what judges it."""
    yield (
        "DMSMIL has the highest ACC of the multi-scale methods (by more than 4 % on TCGA-BRCA, 6 % on TCGA-NSCLC)",
        "Tables 1, 2",
        "04_compare",
        lambda t: _highest(part(_table(t, "04_compare")), t, "dmsmil", "04_tests"),
    )
    yield (
        "DMSMIL has the highest ACC of all methods, here with plain pooling",
        "Tables 1, 2, Fig. 4, 5",
        "04_compare",
        lambda t: _highest(_table(t, "04_compare"), t, "dmsmil", "04_tests", pooling=True),
    )
    for scale, lead, figure in ((10, "3 %", "Fig. 4"), (20, "4 %", "Fig. 5")):
        yield (
            f"DAMIL leads the methods of one scale by about {lead} ACC at {scale}x",
            figure,
            "04_compare",
            lambda t, scale=scale: _highest(part(_table(t, "04_compare"), scale), t, "damil", "04_tests_scales"),
        )
    yield "λ = 1 is best, in ACC, F1 and AUC", "Fig. 3", "06_lambda", _lam
    for words, place in (("Multi-scale fusion", 0), ("Inter-scale OT", 1), ("Deformable attention", 2)):
        yield (
            f"{words} adds accuracy, wherever it is added",
            "Tables 4, 5",
            "05_ablation",
            lambda t, place=place: _adds(t, place),
        )
    yield "The full model is best", "Tables 4, 5", "05_ablation", _full
    for words, column, text in (
        ("has the fewest parameters", "parameters", "{:,.0f} parameters"),
        ("trains fastest", "epoch_median_s", "{:.3g} s an epoch"),
        ("answers fastest", "inference_median_ms", "{:.3g} ms a slide"),
    ):
        yield (
            f"DMSMIL {words} of the multi-scale methods",
            "Table 3",
            "08_cost",
            lambda t, column=column, text=text: _least(t, column, text),
        )
    yield (
        "Deformable attention grows linearly with the number of tiles, full attention with its square",
        "section 2.4",
        "08_cost",
        _growth,
    )


def _table(tables: Tables, name: str) -> pd.DataFrame:
    if name not in tables or tables[name].empty:
        raise _Absent("not run")
    return tables[name]


def _row(rows: pd.DataFrame, what: str) -> pd.Series:
    if rows.empty:
        raise _Absent(f"{what} was not run")
    return rows.iloc[0]


def _plain(table: pd.DataFrame, name: str) -> pd.Series:
    """`plain_row` of a method (registry key)."""
    row = plain_row(table, name)
    if row is None:
        raise _Absent(f"{name.upper()} was not run")
    return row


def _test(tables: Tables, tests: str, mine: str, other: str) -> pd.Series | None:
    """The row of `mine` against `other` in the table `tests`, whichever is its reference; None where there is none."""
    rows = tables.get(tests, pd.DataFrame(columns=["name"]))
    if "reference" in rows:
        rows = seen_from(rows, mine)
    rows = rows[rows["name"] == other]
    return rows.iloc[0] if len(rows) else None


def _p(tables: Tables, tests: str, mine: str, other: str, gap: float) -> tuple[float, float, str]:
    """The p value, that of equivalence, and the sentence, of `mine` against `other` by ACC; NaN where not tested, and
    where the test says the contrary of `gap`, the difference of the means: these may be of more folds than both have.
    """
    row = _test(tables, tests, mine, other)
    if row is None:
        return math.nan, math.nan, "Not tested."
    said = sentence(row, mine, "ACC")
    if gap * row.ACC_difference < 0:
        return math.nan, math.nan, said
    return row.ACC_p_holm, row.get("ACC_p_equivalent_holm", math.nan), said


def _empty(row: pd.Series, name: str) -> str:
    """Why the numbers of a row say nothing of its method (`no_result`), "" where they do."""
    if not no_result(row.to_frame().T).iloc[0]:
        return ""
    word, count = ("collapsed", row[COLLAPSED]) if row[COLLAPSED] else ("learned nothing", row[NOTHING])
    return f"{name} {word} in {count} of {row.runs} runs"


def _better(tables: Tables, mine: pd.Series, other: pd.Series, tests: str) -> Judged:
    """Has `mine` a higher ACC than `other`?"""
    if empty := _empty(mine, mine["name"]):
        return NOT_HELD, empty
    gap = mine.ACC_mean - other.ACC_mean
    p, p_equivalent, said = _p(tables, tests, mine["name"], other["name"], gap)
    whose = with_marks(other["name"], other)
    number = f"{with_marks(f'ACC {mine.ACC_mean:.3f}', mine)} against {other.ACC_mean:.3f} of {whose}, the best other"
    return decide(gap, p, p_equivalent), f"{number}. {said}"


# ------------------------------------------------------------------------------------------------ 04


def _highest(table: pd.DataFrame, tables: Tables, name: str, tests: str, pooling: bool = False) -> Judged:
    """Has the `plain_row` of method `name` a higher ACC than every other method in `table`?"""
    mine, other = _plain(table, name), best_other(table, name, pooling)
    if other is None:
        raise _Absent("no other method was run, or none has learned anything")
    return _better(tables, mine, other, tests)


# ------------------------------------------------------------------------------------------------ 05


def _rows(tables: Tables) -> dict[tuple[bool, ...], pd.DataFrame]:
    """(fusion, ot, deformable) -> the rows of the ablation with these parts: one, or one a scale."""
    table = _table(tables, "05_ablation")
    table = table[table.method != ""].astype({name: bool for name in PARTS})
    return dict(iter(table.groupby(list(PARTS))))


def _adds(tables: Tables, place: int) -> Judged:
    """Does adding part `place` of PARTS raise ACC in every pair of rows that differ in it alone?

    The pair with the full model is tested; equivalent is said only where no other pair is further apart than that.
    """
    gains, p, p_equivalent, said = [], math.nan, math.nan, "Not tested."
    for old, new in _pairs(_rows(tables), place):
        if empty := _empty(new, new["name"]):
            return NOT_HELD, empty
        gains.append(new.ACC_mean - old.ACC_mean)
        if all(new[name] for name in PARTS) and new.scales == old.scales:
            p, p_equivalent, said = _p(tables, "05_tests", new["name"], old["name"], gains[-1])
    if not gains:
        raise _Absent("no row with it and without it, or those without it have learned nothing")
    number = f"ACC rises in {sum(g > 0 for g in gains)} of {len(gains)} pairs: {', '.join(f'{g:+.3f}' for g in gains)}"
    if PARTS[place] == "ot" and "05_null" in tables:
        said += " Control: OT on frozen features " + (
            "changes nothing, as it must."
            if is_exact(tables["05_null"])
            else "changes predictions, as it must not (on a GPU: sums in no fixed order)."
        )
    alike = max(map(abs, gains)) < EQUIVALENT_WITHIN
    return decide(min(gains), p, p_equivalent if alike else math.nan), f"{number}. {said}"


def _pairs(rows: dict[tuple[bool, ...], pd.DataFrame], place: int) -> Iterator[tuple[pd.Series, pd.Series]]:
    """(without, with) part `place`, of the same scale where neither has fusion; none without it that is `no_result`."""
    for key, after in rows.items():
        before = rows.get((*key[:place], False, *key[place + 1 :]))
        if key[place] and before is not None:
            for _, new in after.iterrows():
                same = before[((before.scales == new.scales) | key[0]) & ~no_result(before)]
                yield from ((old, new) for _, old in same.iterrows())


def _full(tables: Tables) -> Judged:
    rows = _rows(tables)
    mine = _row(rows.pop((True,) * 3, pd.DataFrame()), "the full model")
    others = pd.concat([row[~no_result(row)] for row in rows.values()] or [pd.DataFrame()])
    if others.empty:
        raise _Absent("no other row was run, or none has learned anything")
    found, number = _better(tables, mine, others.loc[others.ACC_mean.idxmax()], "05_tests")
    readings = tables.get("05_variants", pd.DataFrame({"name": []}))
    if len(readings) and set(readings.name).isdisjoint(SELECT_PARTS):  # which are no readings of the paper
        above = readings.name[(readings.ACC_p_holm < ALPHA) & (readings.ACC_difference < 0)]
        number += (
            f" Of {len(readings)} other readings of the text, shown to have a higher ACC: {', '.join(above) or 'none'}."
        )
    return found, number


# ------------------------------------------------------------------------------------------------ 06


def _lam(tables: Tables) -> Judged:
    """Is each metric highest at λ = 1? Tested by ACC against the λ with the highest ACC among the others; equivalent to
    the best of them only where that is shown by AUC, too."""
    table = _table(tables, "06_lambda")
    one = _row(table[table.lam == 1], "λ = 1")
    if empty := _empty(one, "λ = 1"):
        return NOT_HELD, empty
    others = table[(table.lam != 1) & ~no_result(table)]
    if others.empty:
        raise _Absent("no other λ was run, or none has learned anything")
    if undefined := [called(metric, one) for metric in METRICS if math.isnan(one[f"{metric}_mean"])]:
        raise _Absent(f"{' and '.join(undefined)} is not defined: each fold tests one class")
    tops = {metric: others.loc[others[f"{metric}_mean"].idxmax()] for metric in METRICS}
    gaps = [one[f"{metric}_mean"] - top[f"{metric}_mean"] for metric, top in tops.items()]
    whose = {metric: with_marks(lam_name(top.lam), top) for metric, top in tops.items()}
    mine = with_marks("", one)
    number = "; ".join(
        f"{called(m, one)} {one[f'{m}_mean']:.3f}{mine} against {top[f'{m}_mean']:.3f} at {whose[m]}"
        for m, top in tops.items()
    )
    p, p_equivalent, said = _p(tables, "06_tests", lam_name(1), lam_name(tops["ACC"].lam), gaps[METRICS.index("ACC")])
    by_auc = _test(tables, "06_tests", lam_name(1), lam_name(tops["AUC"].lam))
    alike = by_auc is not None and equivalent(by_auc, "AUC")
    return decide(min(gaps), p, p_equivalent if alike else math.nan), f"{number}, the best others. {said}"


# ------------------------------------------------------------------------------------------------ 08


def _least(tables: Tables, column: str, text: str) -> Judged:
    """Has DMSMIL the least of `column` among the published multi-scale methods?"""
    table = _table(tables, "08_cost")
    several = multi_scale(table[table[column].notna()])
    mine = _plain(several, "dmsmil")
    others = several[several.method != "dmsmil"]
    if others.empty:
        raise _Absent("no other multi-scale method was run")
    best, rank = others.loc[others[column].idxmin()], 1 + int((others[column] <= mine[column]).sum())
    number = (
        f"{text.format(mine[column])} against {text.format(best[column])} of {best['name']}, the least of the "
        f"others; place {rank} of {len(others) + 1}"
    )
    return HELD if mine[column] < best[column] else NOT_HELD, number


def _growth(tables: Tables) -> Judged:
    """The powers of K that time follows, judged as 08_cost does."""
    slope = _table(tables, "08_growth").groupby("part").slope_time.last().dropna()
    if not {"deformable", "full"} <= set(slope.index):
        raise _Absent("deformable and full attention were not both run")
    number = "time grows with the number of tiles to the power " + ", ".join(
        f"{slope[what]:.2f} ({what})" for what in ("deformable", "full", "ot") if what in slope
    )
    words = {"holds": HELD, "direction": NOT_SHOWN, "not": NOT_HELD}
    return words[growth_as_claimed(slope["deformable"], slope["full"])], number


# ------------------------------------------------------------------------------------------------ 07


def _interpretation(tables: Tables) -> list[tuple[str, ...]]:
    """What 07_interpret found about Fig. 6 and 7, as it says it."""
    if "07_claims" not in tables:
        return [
            (
                "Scores differ by class, and high ones lie on what pathologists look at",
                "Fig. 6, 7",
                "07_interpret",
                NOT_RUN,
                "07_interpret: not run",
            )
        ]
    return [
        (row.claim, row["where"], "07_interpret", row.verdict, str(row.number))
        for _, row in tables["07_claims"].iterrows()
    ]
