"""Is the map right? Four questions to a method's tile scores, each answered with an interval by patient.

does it decide?     take the highest places out first, or the lowest: the first should undo the prediction sooner
do others agree?    occlusion and gradient x input are other answers to the same question
was it learned?     a map that random weights draw as well says nothing of training (Adebayo et al., NeurIPS 2018)
does it find it?    where the truth is known (painted cohorts): does the signal score higher than the rest?
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from dmsmil.features.bags import Bags
from dmsmil.interpret.explain import EXPLANATIONS, Case, cases, is_flat, own, own_scores, probabilities
from dmsmil.jobs.files import fingerprint
from dmsmil.jobs.parallel import one_thread, run_units
from dmsmil.jobs.text import as_written
from dmsmil.models import create
from dmsmil.training.metrics import mean_interval
from dmsmil.training.results import run_names
from dmsmil.training.runs import Runs

STEPS = np.linspace(0, 0.9, 10)  # shares of the places that are gone
RANDOM = 3  # random orders, averaged
TWINS = 3  # models with fresh weights, averaged: one draw of them decides too much
SURVIVES = 0.5  # a rank correlation with the map of random weights above this: the map is not what was learned
WAYS = ("removed", "replaced")
MEASURES = (*WAYS, "occlusion", "gradient", "random_weights")


def removal(case: Case, score: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """Probability of the class predicted from the whole bag, as more and more places go in the order of score (P,).

    Columns: order (which go first: 'highest', 'lowest', 'random'), share (of the places that are gone), removed (they
    are taken out of the bag) and replaced (they stay where they are and show the slide's mean tile: for a method that
    lays tiles out on a map, the first also moves every other tile). 'highest' is the deletion curve, and 'lowest', read
    from the right, the insertion curve. At least one place stays, with a tile at every scale where there is one. Ties
    are broken at random, alike in both directions, and otherwise in each slide: else a constant map would be tested by
    one and the same order of places in all.
    """
    rng, count = np.random.default_rng([seed, int(fingerprint(case.slide_id, 8), 16)]), len(score)
    best_first = np.lexsort((rng.permutation(count), -score))
    orders = [
        ("highest", best_first),
        ("lowest", best_first[::-1]),
        *(("random", rng.permutation(count)) for _ in range(RANDOM)),
    ]
    gone = np.minimum(np.round(STEPS * count).astype(int), count - 1)
    keep = np.array([_kept(order, n, case) for _, order in orders for n in gone])
    table = pd.DataFrame(
        {
            "order": np.repeat([name for name, _ in orders], len(gone)),
            "share": np.tile(STEPS, len(orders)),
            "removed": probabilities(case, keep),
            "replaced": probabilities(case, keep, replace=True),
        }
    )
    return table.groupby(["order", "share"], as_index=False).mean()


def _kept(order: np.ndarray, gone: int, case: Case) -> np.ndarray:
    """(P,) which places are left when the first `gone` of `order` are taken, but for the last one of all scales."""
    keep = np.argsort(order) >= gone
    whole = order[case.mask[0].all(0).numpy()[case.places][order]]
    keep[whole[-1:]] = True
    return keep


def area(curves: pd.DataFrame, way: str) -> float:
    """Area between the curves of 'lowest' and 'highest' first, over their steps: a difference of mean probabilities,
    above 0 when the highest places carry the prediction."""
    mean = curves.groupby("order")[way].mean()
    return float(mean.lowest - mean.highest)


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two maps of one slide; NaN where one of them `is_flat`."""
    if is_flat(first) or is_flat(second):
        return float("nan")
    return float(spearmanr(first, second).statistic)


def random_twin(case: Case, runs: Runs, seed: int = 0) -> Case:
    """The same slide before the same model with fresh weights. What is not trained but taken from the training slides,
    such as the mean of the features, is kept: it is part of what a model is given."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = create(
            runs.config.method, case.model.in_dim, case.model.n_classes, case.model.scales, **runs.config.options
        )
    finally:
        torch.random.set_rng_state(state)
    given = {name: value for name, value in case.model.named_parameters() if not value.requires_grad}
    model.load_state_dict(given, strict=False)
    return replace(case, model=model.eval())


def truth_auc(case: Case, truth: np.ndarray, score: np.ndarray) -> list[float]:
    """AUC of (S, K) scores against (S, K) truth (share of a tile in the signal region, more than half is signal), one
    a scale; NaN where a slide has tiles of one kind only."""
    found = []
    for s, there in enumerate(case.mask[0].numpy()):
        signal = truth[s, there] > 0.5
        mixed = 0 < signal.sum() < len(signal)
        own = np.zeros(len(signal)) if is_flat(score[s, there]) else score[s, there]
        found.append(float(roc_auc_score(signal, own)) if mixed else float("nan"))
    return found


def slide_measures(
    runs: Runs, bags: Bags, truth: np.ndarray | None, slides: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All measures of a method on the slides it tested, and its mean removal curves.

    truth: (N, S, K) share of each tile of the bags in the signal, or None. slides: at most so many, spread over the
    cohort; 0 for all.
    First table, one row a slide: slide_id, patient_id, label, removed, replaced (areas), occlusion, gradient
    (agreement), random_weights (mean agreement with the maps of fresh weights), and truth_<scale>x with
    truth_random_<scale>x (the mean AUC of the fresh weights' maps). Second: order, share, removed, replaced, means
    over patients.
    """
    names = sorted(runs.predictions.slide_id.unique())
    if slides and slides < len(names):
        names = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, slides).round().astype(int))]
    rows, curves = [], []
    for case in cases(runs, bags, names):
        twins, mine = [random_twin(case, runs, seed + i) for i in range(TWINS)], own(case)
        curve = removal(case, mine, seed)
        row = {
            "slide_id": case.slide_id,
            "patient_id": case.patient_id,
            "label": bags.classes[case.label],
            **{what: area(curve, what) for what in WAYS},
            **{other: agreement(mine, EXPLANATIONS[other](case)) for other in ("occlusion", "gradient")},
            "random_weights": _mean([agreement(mine, own(twin)) for twin in twins]),
        }
        if truth is not None:
            known = truth[bags.slide_ids.index(case.slide_id)]
            known = known[[bags.scales.index(scale) for scale in runs.config.scales]]
            for which, asked in (("truth", [case]), ("truth_random", twins)):
                found = np.mean([truth_auc(case, known, own_scores(one)) for one in asked], axis=0)
                row |= {f"{which}_{scale}x": float(value) for scale, value in zip(runs.config.scales, found)}
        rows.append(row)
        curves.append(curve.assign(patient_id=case.patient_id))
    by_patient = pd.concat(curves).groupby(["order", "share", "patient_id"], as_index=False).mean()
    mean = by_patient.drop(columns="patient_id").groupby(["order", "share"], as_index=False).mean()
    return pd.DataFrame(rows), mean


def _mean(values: list[float]) -> float:
    """The mean of those that are numbers; NaN where none is, as where no fresh weights prefer a tile."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def measure(
    several: list[Runs],
    bags: Bags,
    truth: np.ndarray | None = None,
    slides: int = 0,
    workers: int = 0,
    seed: int = 0,
    scheduler: str = "",
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Every method's maps, measured.

    Returns (summary, by slide, curves), the latter two those of `slide_measures` with a column name. Summary, one row a
    method: name, method, slides, and <measure>, <measure>_low, <measure>_high (mean over patients, 95 % interval, NaN
    where a map is constant) of MEASURES and the truth columns, and `map`, the verdict in a word (`judge`).
    """
    names = run_names(several)
    units = {name: (runs, truth, slides, seed) for name, runs in zip(names, several)}
    found = {}
    for name, result, error in run_units(_unit, units, workers, _hold, (bags.share(),), scheduler):
        if error is not None:
            raise error
        found[name] = result
    by_slide = pd.concat([found[name][0].assign(name=name) for name in names], ignore_index=True)
    curves = pd.concat([found[name][1].assign(name=name) for name in names], ignore_index=True)
    columns = [*MEASURES, *(c for c in by_slide if c.startswith("truth_"))]
    rows = []
    for name, runs in zip(names, several):
        part, row = by_slide[by_slide.name == name], {"name": name, "method": runs.config.method}
        row["slides"] = len(part)
        for column in columns:
            row |= dict(zip((column, f"{column}_low", f"{column}_high"), mean_interval(part[column], part.patient_id)))
        rows.append(row | {"map": judge(row)})
    return pd.DataFrame(rows), by_slide, curves


_held: Bags | None = None


def _hold(bags: Bags) -> None:
    global _held
    _held = bags


def _unit(runs: Runs, truth, slides: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    with one_thread():
        return slide_measures(runs, _held, truth, slides, seed)


def judge(row: dict) -> str:
    """A map in a word: 'constant', 'misleading' (its highest tiles matter less than its lowest), 'not shown to be
    faithful', 'faithful but not learned' (fresh weights draw it too), or 'faithful'.

    By the area with places replaced, whose 95 % interval must lie above 0, and the agreement with fresh weights, whose
    interval must lie below SURVIVES, or which is NaN, for fresh weights prefer no tile.
    """
    if np.isnan(row["occlusion"]) and np.isnan(row["random_weights"]):
        return "constant"
    if row["replaced_high"] < 0:
        return "misleading"
    if not row["replaced_low"] > 0:
        return "not shown to be faithful"
    learned = np.isnan(row["random_weights"]) or row["random_weights_high"] < SURVIVES
    return "faithful" if learned else "faithful but not learned"


def against_truth(row: dict) -> dict[str, float]:
    """Scale, such as 10x -> AUC of a map against the truth, of a row of `measure`'s summary; where it is known."""
    columns = [column for column in row if column.startswith("truth_") and column.count("_") == 1]
    return {column[6:]: row[column] for column in columns if not np.isnan(row[column])}


def map_sentences(summary: pd.DataFrame) -> str:
    """Markdown: what each method's map is worth, in words that follow from `measure`'s summary."""
    lines = []
    for row in summary.to_dict("records"):
        name = as_written(row["name"])
        if row["map"] == "constant":
            lines.append(f"**{name}** prefers no tile: its map is constant and explains nothing.")
            continue
        said = (
            f"**{name}**: {row['map']}. When its highest tiles go first, rather than its lowest, the "
            f"predicted class's probability is {_less(row, 'replaced')} with tiles replaced, "
            f"{_less(row, 'removed')} with tiles removed; rank agreement with occlusion {row['occlusion']:.2f}, "
            f"with gradient x input {row['gradient']:.2f}, {_fresh(row)}"
        )
        said += "".join(
            f"; AUC against the truth at {scale} {value:.2f} (fresh weights {row[f'truth_random_{scale}']:.2f})"
            for scale, value in against_truth(row).items()
        )
        if row["map"] != "misleading" and row["removed_high"] < 0:
            said += ". The word follows the test by replacement; **by removal the map misleads**"
        lines.append(said + ".")
    return "\n".join(f"- {line}" for line in lines)


def _fresh(row: dict) -> str:
    """How far the map is that of fresh weights."""
    if np.isnan(row["random_weights"]):
        return "fresh weights prefer no tile"
    return f"with fresh weights {row['random_weights']:.2f}"


def _less(row: dict, way: str) -> str:
    """'0.41 [0.32, 0.50] lower', or higher, with the interval in the same direction."""
    sign = 1 if row[way] >= 0 else -1
    low, high = sorted((sign * row[f"{way}_low"], sign * row[f"{way}_high"]))
    return f"{sign * row[way]:.2f} [{low:.2f}, {high:.2f}] {'lower' if sign > 0 else 'higher'}"
