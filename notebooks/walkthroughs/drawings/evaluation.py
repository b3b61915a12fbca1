"""Figures of the walkthrough on honest evaluation, and the simulated cohorts and predictions that they show."""

from __future__ import annotations

from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.spatial.distance import pdist
from scipy.special import expit, ndtri
from scipy.stats import norm
from sklearn.model_selection import PredefinedSplit

from dmsmil.analysis.paper import NOT_LEGIBLE
from dmsmil.models import method
from dmsmil.training.metrics import METRICS, bootstrap, draw_metrics, patient_draws, predictions_table, score

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"


def _closed(figure: Figure) -> Figure:
    plt.close(figure)
    return figure


# ------------------------------------------------------------------------------------------------ what is simulated


def draw_cohort(
    patients: int,
    slides: int,
    sites: int = 1,
    tilt: float = 0.0,
    signal: float = 0.0,
    seed: int = 0,
    channels: int = 200,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Features (N, channels) of slides that look like their patient and their site, and the cohort (N rows).

        x = site / 2 + 0.7 patient + slide,  each standard normal;  class b adds `signal` to the first channel

    N = patients · slides; patients are dealt out to the sites in equal numbers. Half of a site's patients are of class
    b; with a `tilt`, a share 0.5 + tilt of every second site's and 0.5 - tilt of the others', to the nearest patient.
    """
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), slides)
    site, place = np.arange(patients) % sites, np.arange(patients) // sites  # place: number within the site
    share = np.where(site % 2, 0.5 + tilt, 0.5 - tilt)
    b = place < np.rint(share * np.bincount(site)[site])
    look = rng.normal(size=(sites, channels))[site] / 2 + 0.7 * rng.normal(size=(patients, channels))
    x = look[patient] + rng.normal(size=(len(patient), channels))
    x[:, 0] += signal * b[patient]
    return x, pd.DataFrame(
        {
            "slide_id": [f"slide{i:04d}" for i in range(len(patient))],
            "patient_id": [f"patient{i:04d}" for i in patient],
            "label": np.where(b, "b", "a")[patient],
            "site": [f"site{i:02d}" for i in site[patient]],
        }
    )


def as_split(folds: pd.DataFrame) -> PredefinedSplit:
    """A folds table (rows in the order of the features) in the form that scikit-learn takes as `cv`."""
    return PredefinedSplit((folds.filter(like="fold_") == "test").to_numpy().argmax(1))


def draw_predictions(
    patients: int, slides: int = 1, auc: float = 0.8, alike: float = 0.8, seed: int = 0
) -> pd.DataFrame:
    """Predictions of a classifier whose true AUC is known; `alike`: correlation between the scores of one patient's
    slides. Scores are normal with variance 1, the classes √2 Φ⁻¹(auc) apart; half of the patients are of class b."""
    rng = np.random.default_rng(seed)
    patient, gap = np.repeat(np.arange(patients), slides), np.sqrt(2) * ndtri(auc)
    b = patient % 2 == 1
    value = (
        np.sqrt(alike) * rng.normal(size=patients)[patient]
        + np.sqrt(1 - alike) * rng.normal(size=len(patient))
        + gap * (b - 0.5)
    )
    p = expit(gap * value)  # the probability that is calibrated for two such normals
    return predictions_table(
        [f"slide{i:04d}" for i in range(len(patient))],
        [f"patient{i:04d}" for i in patient],
        np.where(b, "b", "a"),
        np.stack([1 - p, p], 1),
        ["a", "b"],
    )


# ------------------------------------------------------------------------------------------------ numbers that fool


def beside_rule(printed: dict[str, dict[str, str]], rule: dict[str, float], name: str) -> Figure:
    """What a paper prints for each method, mean and deviation, beside a rule that knows nothing (the line).

    printed: `paper.printed_results`; rule: `metrics.score` of the rule called `name`.
    """
    figure, axes = plt.subplots(1, 3, figsize=(8.0, 0.3 * len(printed) + 1.1), sharey=True)
    for ax, metric in zip(axes, METRICS):
        ax.axvline(rule[metric], color=ORANGE, linestyle="--")
        for y, row in enumerate(reversed(printed.values())):
            mean, _, deviation = row[metric].partition("±")
            if mean == NOT_LEGIBLE:
                ax.text(rule[metric], y, "  " + NOT_LEGIBLE, va="center", fontsize=7, color=GREY)
                continue
            ax.plot(float(mean), y, "o", color=BLUE)
            ax.hlines(y, float(mean) - float(deviation or 0), float(mean) + float(deviation or 0), color=BLUE)
        ax.set(
            title=metric,
            yticks=range(len(printed)),
            ylim=(-0.6, len(printed) - 0.4),
            yticklabels=[method(key).title for key in reversed(printed)],
        )
        ax.annotate(
            f"{rule[metric]:.3f}",
            (rule[metric], 1),
            xycoords=("data", "axes fraction"),
            color=ORANGE,
            textcoords="offset points",
            xytext=(3, -3),
            fontsize=8,
            va="top",
        )
        ax.margins(x=0.12)
    figure.supxlabel(f"points: printed mean ± deviation, where it is legible; line: {name}", fontsize=8)
    return _closed(figure)


def constant_scores(share: np.ndarray) -> dict[str, np.ndarray]:
    """What `always the commoner class` scores where that class has this share of the slides, in closed form."""
    return {
        "F1, positive = commoner class": 2 * share / (1 + share),
        "accuracy": share,
        "AUC, and balanced accuracy": np.full_like(share, 0.5),
        "F1, positive = rarer class": np.zeros_like(share),
    }


def constant_answer(marked: dict[str, float]) -> Figure:
    """The scores of a rule that always names the commoner class, against the share of that class.

    marked: cohort -> its share.
    """
    share = np.linspace(0.5, 0.98, 97)
    figure, ax = plt.subplots(figsize=(6.0, 2.9))
    for (name, value), colour, line in zip(
        constant_scores(share).items(), (ORANGE, BLUE, GREEN, "#444444"), ("-", "-", "--", ":")
    ):
        ax.plot(100 * share, value, line, color=colour, linewidth=2, label=name)
    for name, where in marked.items():
        ax.axvline(100 * where, color=GREY, linewidth=1)
        ax.text(100 * where + 0.5, 1.06, name, fontsize=8, color="#555555", va="bottom")
    ax.set(xlabel="slides of the commoner class, of 100", ylabel="score", ylim=(-0.03, 1.03), xlim=(49.5, 98))
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return _closed(figure)


# ------------------------------------------------------------------------------------------------ leakage


def distances(x: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances between two rows of the same group, and between two of different groups, each pair once."""
    first, second = np.triu_indices(len(x), 1)  # the order of pdist
    apart, same = pdist(x), groups[first] == groups[second]
    return apart[same], apart[~same]


def same_patient(x: np.ndarray, patients: np.ndarray, aucs: dict[str, np.ndarray]) -> Figure:
    """Distances between slides of one patient and of two, and the AUC of each fold by how the folds were made."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 2.7), width_ratios=(1.25, 1))
    for value, colour, name in zip(distances(x, patients), (ORANGE, BLUE), ("one patient", "two patients")):
        left.hist(value, bins=40, density=True, color=colour, alpha=0.55, label=f"of {name}")
    left.set(title="Distance between two slides", xlabel="distance of their features", yticks=[])
    left.legend()
    _dots(right, aucs, (ORANGE, BLUE))
    right.set(title="AUC of five folds", ylim=(0, 1.03), xlim=(-0.6, len(aucs) - 0.4))
    return _closed(figure)


def _dots(ax, aucs: dict[str, np.ndarray], colours) -> None:
    """A column of dots a name, with its mean as a bar and in numbers, over the line of chance."""
    ax.axhline(0.5, color=GREY, linestyle=":", linewidth=1.2)
    for place, (values, colour) in enumerate(zip(aucs.values(), colours)):
        spread = place + 0.16 * np.linspace(-1, 1, len(values))
        ax.plot(spread, values, "o", color=colour, markersize=4.5, alpha=0.7)
        ax.hlines(np.mean(values), place - 0.28, place + 0.28, color=colour, linewidth=2.5)
        ax.text(
            place + 0.31,
            np.mean(values),
            f"{np.mean(values):.2f}",
            va="center",
            fontsize=8,
            color=colour,
            fontweight="bold",
        )
    ax.set(xticks=range(len(aucs)), xticklabels=[fill(name, 9) for name in aucs])
    ax.grid(axis="x", visible=False)


def by_site(cohort: pd.DataFrame, results: pd.DataFrame) -> Figure:
    """Share of class b at each site, and the AUC of simulated cohorts by how their folds were made, beside the AUC at
    hospitals that no fold has seen.

    results: one row a simulated cohort, with its signal in `signal` and an AUC a way to split in every other column.
    """
    signals = sorted(results.signal.unique())
    figure, (left, *others) = plt.subplots(1, 1 + len(signals), figsize=(9.0, 3.1), width_ratios=(0.8, 1.1, 1.1))
    patients = cohort.drop_duplicates("patient_id")
    share = 100 * patients.label.eq("b").groupby(patients.site).mean()
    left.barh(range(len(share)), share, color=np.where(share > 50, ORANGE, BLUE), height=0.75)
    left.set(title="Patients of class b", xlabel="of 100 at the site", ylabel="site", yticks=[], xlim=(0, 100))
    left.grid(axis="y", visible=False)
    for ax, signal in zip(others, signals):
        aucs = results[results.signal == signal].drop(columns="signal")
        _dots(ax, {name: aucs[name].to_numpy() for name in aucs}, (ORANGE, BLUE, GREEN, "#444444"))
        ax.set(
            title="AUC, something to learn" if signal else "AUC, nothing to learn",
            ylim=(0.25, 1.03),
            xlim=(-0.5, len(aucs.columns) - 0.2),
        )
        ax.tick_params(axis="x", labelsize=7.5)
    return _closed(figure)


# ------------------------------------------------------------------------------------------------ how sure


def studies(patients: list[int], repeats: int = 25, auc: float = 0.8, draws: int = 300) -> Figure:
    """95 % intervals of the AUC of many studies of one classifier, by the number of their patients; those that miss
    the true value, the line, are orange. Below, their mean width and how many miss."""
    figure, ax = plt.subplots(figsize=(8.0, 3.0))
    ax.axhline(auc, color="#444444", linestyle="--", linewidth=1.2)
    for group, number in enumerate(patients):
        widths, missed = [], 0
        for study in range(repeats):
            table = draw_predictions(number, auc=auc, seed=study)
            low, high = (edge["AUC"] for edge in bootstrap(table, draws=draws, seed=study))
            holds = low <= auc <= high
            colour = BLUE if holds else ORANGE
            x = group + 0.8 * (study / (repeats - 1) - 0.5)
            ax.vlines(x, low, high, color=colour, linewidth=1.4)
            ax.plot(x, score(table)["AUC"], "o", color=colour, markersize=3)
            widths.append(high - low)
            missed += not holds
        ax.text(group, 0.335, f"width {np.mean(widths):.2f}\n{missed} of {repeats} miss", ha="center", fontsize=8)
    ax.set(
        title=f"{repeats} studies of each size, one classifier (AUC {auc:g})",
        ylim=(0.32, 1.02),
        ylabel="AUC",
        xticks=range(len(patients)),
        xticklabels=patients,
        xlabel="patients in the study",
    )
    ax.grid(axis="x", visible=False)
    return _closed(figure)


def interval(patients: int, slides: int, auc: float = 0.8, draws: int = 2000) -> Figure:
    """One study's AUC when its patients are drawn again, and when its slides are, as if each were a patient.

    The dashed line is the AUC of the study, the dotted one the true AUC of the classifier.
    """
    table = draw_predictions(patients, slides, auc, seed=1)
    figure, ax = plt.subplots(figsize=(6.4, 2.6))
    again = {"patients drawn again": table, "slides drawn again": table.assign(patient_id=table.slide_id)}
    bins, top = np.linspace(0.4, 1, 61), 0.0
    for (name, drawn), colour in zip(again.items(), (BLUE, ORANGE)):
        values = draw_metrics(drawn, patient_draws(drawn, draws, np.random.default_rng(0))).AUC
        low, high = values.quantile([0.025, 0.975])
        heights, _, _ = ax.hist(values, bins, weights=np.full(draws, 100 / draws), color=colour, alpha=0.45)
        top = max(top, heights.max())
        ax.hlines(
            0.9 if colour == BLUE else 0.82,
            low,
            high,
            color=colour,
            linewidth=3.5,
            transform=ax.get_xaxis_transform(),
            label=f"{name}: {low:.2f} to {high:.2f}",
        )
    ax.axvline(score(table)["AUC"], color="#444444", linestyle="--", linewidth=1.2)
    ax.axvline(auc, color="#444444", linestyle=":", linewidth=1.6)
    ax.annotate(
        "truth",
        (auc, 0.66),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        xytext=(-4, 0),
        ha="right",
        fontsize=8,
        color="#444444",
    )
    ax.set(xlabel="AUC", ylabel="of 100 draws", xlim=(0.4, 1.005), ylim=(0, 1.35 * top))
    ax.legend(
        loc="upper left",
        title=f"{patients} patients, {slides} slide{'s' * (slides > 1)} each, 95 % interval",
        title_fontsize=8,
        alignment="left",
    )
    return _closed(figure)


# ------------------------------------------------------------------------------------------------ chosen on the test


def aucs(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """AUC of scores (..., N) for truth (N,) bool, over any leading axes: the share of ordered pairs, ties half."""
    gap = scores[..., truth][..., :, None] - scores[..., ~truth][..., None, :]
    return ((gap > 0) + 0.5 * (gap == 0)).mean((-2, -1))


def wandering(test: np.ndarray, reported: dict[str, float]) -> Figure:
    """Test AUC by epoch of models that know nothing, (folds, epochs), the best epoch of each fold ringed; and what is
    reported, by how the epoch was chosen."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 2.9), width_ratios=(1.7, 1))
    for fold, line in enumerate(test):
        left.plot(range(1, len(line) + 1), line, linewidth=0.9, label=f"fold {fold}")
        left.plot(line.argmax() + 1, line.max(), "o", markersize=8, markerfacecolor="none", markeredgecolor="black")
    left.axhline(0.5, color=GREY, linestyle=":", linewidth=1.2)
    left.set(title="Test AUC after each epoch", xlabel="epoch", ylim=(0.2, 0.85))
    names = list(reported)[::-1]
    right.barh(
        range(len(names)),
        [reported[name] for name in names],
        height=0.6,
        color=[ORANGE if "test" in name else BLUE for name in names],
    )
    for y, name in enumerate(names):
        right.text(reported[name] + 0.01, y, f"{reported[name]:.2f}", va="center", fontsize=8)
    right.axvline(0.5, color="#444444", linestyle=":", linewidth=1.2)
    right.set(
        title="What is reported",
        xlim=(0, 0.85),
        yticks=range(len(names)),
        yticklabels=[fill(name, 15) for name in names],
    )
    right.grid(axis="y", visible=False)
    return _closed(figure)


def best_of_chance(tries: int, slides: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUC axis, its density for one model that knows nothing, and for the best of `tries` independent ones.

    On `slides` slides, half of either class, a chance AUC is normal about 0.5 with variance (n + 1) / (3 n²) (Mann and
    Whitney, Annals of Mathematical Statistics 18, 1947); the best of t has the distribution function F to the power t.
    """
    axis, deviation = np.linspace(0, 1, 2001), np.sqrt((slides + 1) / 3) / slides
    one, below = norm.pdf(axis, 0.5, deviation), norm.cdf(axis, 0.5, deviation)
    return axis, one, tries * one * below ** (tries - 1)


def best_of(tries: int, slides: int) -> Figure:
    """The AUC of one model that knows nothing, and of the best of many, on the same test slides."""
    axis, one, best = best_of_chance(tries, slides)
    mean = float((axis * best).sum() / best.sum())
    figure, ax = plt.subplots(figsize=(6.4, 2.2))
    for density, colour, name in ((one, BLUE, "one try"), (best, ORANGE, f"the best of {tries}")):
        ax.fill_between(axis, density, color=colour, alpha=0.35, linewidth=0)
        ax.plot(axis, density, color=colour, label=name)
    ax.axvline(mean, color=ORANGE, linestyle="--", linewidth=1.2)
    ax.annotate(
        f"{mean:.2f} on average",
        (mean, 1),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        xytext=(4, -4),
        va="top",
        fontsize=8,
        color=ORANGE,
    )
    ax.set(xlabel=f"AUC on {slides} slides", yticks=[], xlim=(0.15, 1), ylim=(0, None))
    ax.grid(False)
    ax.legend(loc="upper left")
    return _closed(figure)
