"""Which ten rows of a main table a first page shows, and the three sentences that it says of them."""

from __future__ import annotations

import pandas as pd

from dmsmil.analysis.comparison import ALPHA, equivalent, seen_from
from dmsmil.book.names import named
from dmsmil.jobs.text import listed
from dmsmil.training.baselines import CHEAP, MAJORITY
from dmsmil.training.results import all_scales_mean, no_result, plain_row

MOST = 10  # rows
MEAN = "meanpool"
NAMED = 6  # names in a sentence


def by_auc(table: pd.DataFrame) -> pd.Series:
    """The AUC of each row: the mean over runs, or the pooled one where no run has an AUC, as in leave-one-out."""
    if table.AUC_mean.notna().any():
        return table.AUC_mean
    return table.get("AUC_pooled", table.AUC_mean)


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """A result table by AUC, the highest first; what is `no_result` stands last."""
    ordered = table.loc[by_auc(table).sort_values(ascending=False, kind="stable").index]
    return ordered.iloc[no_result(ordered).argsort(kind="stable")]


def mine_of(table: pd.DataFrame) -> pd.Series | None:
    """The row of DMSMIL, as it is meant if there are several; None where there is none."""
    return plain_row(table, "dmsmil")


def trained(table: pd.DataFrame) -> pd.DataFrame:
    """The other methods than DMSMIL: no cheap rule, nothing that is no result."""
    mine = mine_of(table)
    rows = table[(table.method != "") & ~no_result(table)]
    return rows if mine is None else rows.drop(index=mine.name, errors="ignore")


def best_rows(table: pd.DataFrame) -> pd.DataFrame:
    """At most `MOST` rows, best first: DMSMIL, DAMIL, mean pooling and the cheap rules always; then the best others.

    They are called as in the whole table (`named`). A method is there once: DMSMIL without options of its own, mean
    pooling with all scales if it was run so, every other one at the scale where its AUC is highest.
    """
    order, mine = ranked(named(table)), mine_of(table)
    means = order[order.method == MEAN]
    several = all_scales_mean(order)
    first = [] if mine is None else [mine.name]
    first += list(order.index[order.method == "damil"][:1])
    first += list((means if several.empty else several).index[:1])
    first += list(order.index[order["name"].isin(CHEAP)])
    others = order[(order.method != "") & ~order.method.isin(["dmsmil", "damil", MEAN])].drop_duplicates("method")
    kept = [*first, *others.index[: max(0, MOST - len(first))]]
    return order[order.index.isin(kept)]


def loses(table: pd.DataFrame) -> str:
    """When DMSMIL loses: to how many rows of one scale and of several, to which, and by how much AUC. A method of one
    scale is a row at each."""
    auc, mine, others = by_auc(table), mine_of(table), trained(table)
    gap = (auc[others.index] - auc[mine.name]).sort_values(ascending=False, kind="stable")
    above = gap[gap > 0]
    cheap = [name for place, name in table["name"].items() if name in CHEAP and auc[place] > auc[mine.name]]
    rules = f" It also loses to {' and '.join(cheap)}." if cheap else ""
    if above.empty:
        return f"In AUC it loses to none of the {len(others)} other trained rows." + rules
    one = ~others.scales.str.contains("+", regex=False)
    counts = [
        f"to {(gap[one == single] > 0).sum()} of {(one == single).sum()} rows of {words}"
        for single, words in ((True, "one scale"), (False, "several scales"))
        if (one == single).any()
    ]
    said = named(table).said
    names = [f"{said[place]} by {difference:.3f}" for place, difference in above[:NAMED].items()]
    more = [f"{len(above) - NAMED} more"] if len(above) > NAMED else []
    return f"In AUC it loses {' and '.join(counts)}: to {_list(names + more)}." + rules


def tested(table: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> str:
    """Which differences from DMSMIL the paired tests of 04_compare show; by AUC, of the majority rule by ACC."""
    families = [tables[name] for name in ("04_tests", "04_tests_cheap") if name in tables]
    name = mine_of(table)["name"]
    rows = pd.concat([seen_from(family, name) for family in families]) if families else None
    if rows is None or rows.empty:
        return "No difference was tested."
    said = named(table).set_index("name").said
    found: dict[str, list[str]] = {"better": [], "worse": [], "same": [], "open": []}
    for _, row in rows.iterrows():
        found[_answer(row)].append(said.get(row["name"], row["name"]))
    said = f"Tested fold by fold, it is shown to be better than {_list(found['better'])}"
    said += f", and worse than {_list(found['worse'])}"
    if found["same"]:
        said += f"; equivalent to {_list(found['same'])}"
    if found["open"]:
        said += f"; against the {len(found['open'])} others no difference is shown, in either direction"
    return said + "."


def _answer(row: pd.Series) -> str:
    """better, worse, same (equivalent) or open, of a row of `comparison.compare`."""
    metric = "ACC" if row["name"] == MAJORITY else "AUC"
    if row[f"{metric}_p_holm"] < ALPHA:
        return "better" if row[f"{metric}_difference"] > 0 else "worse"
    return "same" if equivalent(row, metric) else "open"


def _list(names: list[str]) -> str:
    """Names in a sentence: a, b and c; "none" of none."""
    return listed(names) or "none"
