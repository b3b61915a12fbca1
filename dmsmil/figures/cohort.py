"""Notebook 00: who is in the cohort, who is tested in which fold, and where they come from."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from dmsmil.cohorts.folds import fold_count, repeat_of, slides_tested
from dmsmil.figures.base import DARK, bare, finish, in_legend, show_slide

SITES, LETTERS = 45, 28  # columns and characters of a name that stay readable at a notebook's width
LABELS = 20  # folds whose numbers stand side by side
NONE = "not given"


def cohort_overview(cohort: pd.DataFrame, folds: pd.DataFrame, out) -> Figure:
    """Slides by class and site, and the patients of each class tested in each fold."""
    sites = cohort.assign(site=cohort.site.replace("", NONE))
    counts = sites.groupby(["site", "label"]).size().unstack(fill_value=0)
    tested = pd.concat([folds[folds[c] == "test"].assign(fold=int(c[5:])) for c in folds if c.startswith("fold_")])
    by_fold = tested.groupby(["fold", "label"]).patient_id.nunique().unstack(fill_value=0)
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), width_ratios=[1, 1.3])
    names = [_site(name) for name in counts.index]
    turned = 90 * (len("".join(names)) > 36)
    counts.set_axis(names).rename(columns=in_legend).plot.bar(stacked=True, ax=axes[0], rot=turned, width=0.6)
    axes[0].set(title="Slides by site", xlabel="site", ylabel="slides")
    axes[0].legend(title="", loc="lower left", bbox_to_anchor=(0, 1.1), ncols=2)
    by_fold.plot.bar(ax=axes[1], rot=0, width=0.7, legend=False)
    axes[1].set(title="Patients tested in each fold", xlabel="fold", ylabel="patients")
    shown = range(0, len(by_fold), -(-len(by_fold) // LABELS))
    axes[1].set_xticks(shown, [str(by_fold.index[place]) for place in shown])
    for ax in axes:
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    data = pd.concat(
        [
            counts.stack().rename("slides").reset_index().assign(panel="sites"),
            by_fold.stack().rename("patients").reset_index().assign(panel="folds"),
        ]
    )
    return finish(figure, out, data)


def slide_thumbnails(slides: list[dict], out, columns: int = 4) -> Figure:
    """Slides side by side. Each dict: slide_id, label, thumbnail (H, W, 3), dimensions (w, h)."""
    rows = -(-len(slides) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2 * columns, 2.3 * rows), squeeze=False)
    for ax in axes.flat:
        bare(ax)
    for ax, slide in zip(axes.flat, slides):
        show_slide(ax, slide["thumbnail"], slide["dimensions"])
        ax.set_title(f"{slide['slide_id']}\n{slide['label']}", fontsize=8, fontweight="normal")
    data = pd.DataFrame([{k: s[k] for k in ("slide_id", "label")} for s in slides])
    return finish(figure, out, data)


def site_balance(cohort: pd.DataFrame, folds: pd.DataFrame, out) -> Figure:
    """Patients tested in each fold: of each class, and of each site. A site in two rows is on two sides of a fold.

    A box's area is the number of patients (one is drawn larger, to be seen), its colours are their classes; above each
    column is the site's total. Of several repeats the first is drawn, which the title says; the data have all.
    """
    whole = tested_by_site(cohort, folds)
    classes, (number, repeats) = sorted(folds.label.unique()), _first_repeat(folds)
    data = whole[whole.fold < number]
    colours = dict(zip(classes, plt.rcParams["axes.prop_cycle"].by_key()["color"]))
    sites = _columns(data)
    shown = data.assign(site=data.site.where(data.site.isin(sites), sites[-1]))
    shown = shown.groupby(["fold", "site", "label"], as_index=False).patients.sum()
    cell, letters = min(0.42, 7.0 / len(sites)), min(max(map(len, sites)), LETTERS)
    wide, row = max(cell * len(sites), 1.7), max(0.17 * len(classes), cell)
    figure, (left, right) = plt.subplots(
        1, 2, sharey=True, width_ratios=[2.4, wide], figsize=(2.9 + wide, 1.1 + row * number + 0.08 * letters)
    )
    _bars(left, folds, classes, colours, number)
    _matrix(right, shown, sites, classes, colours, turned=letters > 3 or len(sites) > 15)
    left.set(ylim=(number - 0.5, -0.5), yticks=range(number), ylabel="fold")
    tested = "Patients tested" + (f", repeat 1 of {repeats}" if repeats > 1 else "")
    for ax, title in ((left, tested), (right, "by site")):
        ax.set_title(title, pad=18)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=len(classes))
    return finish(figure, out, whole)


def _first_repeat(folds: pd.DataFrame) -> tuple[int, int]:
    """(how many folds the first repeat has, how many repeats there are). Folds that are no repeats of each other, for
    the first does not test every slide that is tested, as in Monte-Carlo splits, are all of one."""
    tested = slides_tested(folds)
    repeat = tested.fold.map(repeat_of(tested))
    if tested.slide_id[repeat == 0].nunique() < tested.slide_id.nunique():
        return fold_count(folds), 1
    return int(tested.fold[repeat == 0].nunique()), int(repeat.max()) + 1


def tested_by_site(cohort: pd.DataFrame, folds: pd.DataFrame) -> pd.DataFrame:
    """How many patients of each class and site a fold tests: columns fold, site, label, patients.

    A patient with slides of two sites counts in both.
    """
    site = folds.slide_id.map(cohort.set_index("slide_id").site).fillna("").replace("", NONE)
    tested = pd.concat(
        [folds.assign(site=site, fold=int(c[5:]))[folds[c] == "test"] for c in folds if c.startswith("fold_")]
    )
    return tested.groupby(["fold", "site", "label"]).patient_id.nunique().rename("patients").reset_index()


def _columns(data: pd.DataFrame) -> list[str]:
    """Sites in the order of the fold that tests them where each is tested in one, else the largest first."""
    known = (
        data[data.site != NONE]
        .groupby("site")
        .agg(folds=("fold", "nunique"), fold=("fold", "first"), size=("patients", "sum"))
    )
    order = ["size"] if (known.folds > 1).any() else ["fold", "size"]
    largest = known.sort_values("size", ascending=False, kind="stable").index[:SITES]
    known = known.sort_values(order, ascending=[name == "fold" for name in order], kind="stable")
    sites = [site for site in known.index if site in largest]
    rest = len(known) - len(sites)
    return sites + [NONE] * (NONE in set(data.site)) + [f"{rest} other sites"] * (rest > 0)


def _bars(ax, folds: pd.DataFrame, classes: list[str], colours: dict, number: int) -> None:
    """Patients tested in each fold, a bar a class."""
    height = 0.8 / len(classes)
    for i, name in enumerate(classes):
        counts = [
            folds.patient_id[(folds[f"fold_{fold}"] == "test") & (folds.label == name)].nunique()
            for fold in range(number)
        ]
        bars = ax.barh(
            np.arange(number) - 0.4 + (i + 0.5) * height,
            counts,
            height * 0.9,
            color=colours[name],
            label=in_legend(name),
        )
        ax.bar_label(bars, padding=2, fontsize=7)
    ax.margins(x=0.15)
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="patients")


def _matrix(ax, shown: pd.DataFrame, sites: list[str], classes: list[str], colours: dict, turned: bool) -> None:
    """Folds x sites: boxes whose area is the number of patients, split by class."""
    totals = shown.groupby("site").patients.sum().reindex(sites, fill_value=0)
    cells = shown.pivot_table(index=["fold", "site"], columns="label", values="patients", fill_value=0)
    cells = cells.reindex(columns=classes, fill_value=0)
    largest, boxes, faces = cells.sum(axis=1).max(), [], []
    for (fold, site), counts in cells.iterrows():
        side = max(0.9 * np.sqrt(counts.sum() / largest), 0.2)
        x = sites.index(site) - side / 2
        for name, share in (counts / counts.sum()).items():
            boxes.append(Rectangle((x, fold - side / 2), side * share, side))
            faces.append(colours[name])
            x += side * share
    ax.add_collection(PatchCollection(boxes, facecolors=faces, linewidths=0))
    for x, total in enumerate(totals):
        ax.text(x, -0.6, f"{total}", ha="center", va="bottom", fontsize=6, rotation=90 * turned, color=DARK)
    ax.set_xticks(range(len(sites)), map(_site, sites), fontsize=7, rotation=90 * turned)
    ax.tick_params(length=0)
    ax.set(xlim=(-0.6, len(sites) - 0.4), xlabel="site")


def _site(name: str) -> str:
    """The name of a site, without its middle where it is long: hospitals of one group differ at their ends."""
    return name if len(name) <= LETTERS else f"{name[:8].rstrip()}…{name[9 - LETTERS :].lstrip()}"
