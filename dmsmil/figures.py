"""Every plot of the study. Each function draws one figure, saves it as PNG with the data behind it, and returns it.

`out` is the figure's path without suffix: the picture goes to `<out>.png`, its data to `<out>.csv` (or `.npz` for
arrays), so that a figure can be checked against numbers.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from dmsmil.files import atomic, write_csv
from dmsmil.metrics import calibration, class_names, confusion, positive_class, roc_points, score_by_fold

plt.style.use(Path(__file__).with_name("dmsmil.mplstyle"))
SCALE_COLOURS = {10: "#0072B2", 20: "#D55E00"}


def _finish(figure: Figure, out: str | Path, data: pd.DataFrame | dict[str, np.ndarray]) -> Figure:
    """Save picture and data, close the figure (a notebook shows what is returned), and return it."""
    out = Path(out)
    with atomic(out.with_suffix(".png")) as temporary:
        figure.savefig(temporary, format="png")
    if isinstance(data, pd.DataFrame):
        write_csv(data, out.with_suffix(".csv"), digits=6)
    else:
        with atomic(out.with_suffix(".npz")) as temporary, open(temporary, "wb") as handle:
            np.savez_compressed(handle, **data)
    plt.close(figure)
    return figure


def _bare(ax) -> None:
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _show_slide(ax, thumbnail: np.ndarray, dimensions: tuple[int, int]) -> None:
    """A thumbnail in level-0 pixel coordinates."""
    width, height = dimensions
    ax.imshow(thumbnail, extent=(0, width, height, 0), interpolation="antialiased")
    _bare(ax)


def _boxes(ax, coords: np.ndarray, side: int, values: np.ndarray | None = None, **style) -> PatchCollection:
    """Squares of `side` level-0 pixels at `coords` (N, 2), coloured by `values` where given."""
    boxes = PatchCollection([Rectangle(xy, side, side) for xy in coords], **style)
    if values is not None:
        boxes.set_array(values)
    return ax.add_collection(boxes)


# ------------------------------------------------------------------------------------------------ cohort and tiles


def cohort_overview(cohort: pd.DataFrame, folds: pd.DataFrame, out) -> Figure:
    """Slides by class and site, and the patients of each class tested in each fold."""
    sites = cohort.assign(site=cohort.site.replace("", "not given"))
    counts = sites.groupby(["site", "label"]).size().unstack(fill_value=0)
    tested = pd.concat([folds[folds[c] == "test"].assign(fold=int(c[5:])) for c in folds if c.startswith("fold_")])
    by_fold = tested.groupby(["fold", "label"]).patient_id.nunique().unstack(fill_value=0)
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), width_ratios=[1, 1.3])
    counts.plot.bar(stacked=True, ax=axes[0], rot=0, width=0.6)
    axes[0].set(title="Slides by site", xlabel="site", ylabel="slides")
    axes[0].legend(title="", loc="lower left", bbox_to_anchor=(0, 1.1), ncols=2)
    by_fold.plot.bar(ax=axes[1], rot=0, width=0.7, legend=False)
    axes[1].set(title="Patients tested in each fold", xlabel="fold", ylabel="patients")
    for ax in axes:
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    data = pd.concat([counts.stack().rename("slides").reset_index().assign(panel="sites"),
                      by_fold.stack().rename("patients").reset_index().assign(panel="folds")])
    return _finish(figure, out, data)


def slide_thumbnails(slides: list[dict], out, columns: int = 4) -> Figure:
    """A row of slides. Each dict: slide_id, label, thumbnail (H, W, 3), dimensions (w, h)."""
    rows = -(-len(slides) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2 * columns, 2.3 * rows), squeeze=False)
    for ax in axes.flat:
        _bare(ax)
    for ax, slide in zip(axes.flat, slides):
        _show_slide(ax, slide["thumbnail"], slide["dimensions"])
        ax.set_title(f"{slide['slide_id']}\n{slide['label']}", fontsize=8, fontweight="normal")
    data = pd.DataFrame([{k: s[k] for k in ("slide_id", "label")} for s in slides])
    return _finish(figure, out, data)


def chosen_tiles(slides: list[dict], out) -> Figure:
    """Chosen 10x tiles outlined on each slide and coloured by density, with their linked 20x tiles inside.

    Each dict: slide_id, thumbnail, dimensions, coords {10: (N, 2), 20: (N, 2)}, side {10: px, 20: px}, density (N,).
    """
    figure, axes = plt.subplots(1, len(slides), figsize=(3.3 * len(slides) + 0.6, 3.5), squeeze=False)
    for ax, slide in zip(axes[0], slides):
        _show_slide(ax, slide["thumbnail"], slide["dimensions"])
        for scale in sorted(slide["coords"]):
            first = scale == min(slide["coords"])
            boxes = _boxes(ax, slide["coords"][scale], slide["side"][scale], slide["density"] if first else None,
                           facecolor="none", linewidth=1.2 if first else 0.6,
                           **({"cmap": "plasma"} if first else {"edgecolor": "black"}))
            if first:
                boxes.set_clim(0, 1)
                shown = boxes
        ax.set_title(f"{slide['slide_id']}: {len(slide['density'])} tiles", fontsize=9)
    figure.colorbar(shown, ax=axes[0].tolist(), shrink=0.7, label="density of the 10x tile")
    data = pd.concat([pd.DataFrame({"slide_id": s["slide_id"], "x": s["coords"][min(s["coords"])][:, 0],
                                    "y": s["coords"][min(s["coords"])][:, 1], "density": s["density"]})
                      for s in slides])
    return _finish(figure, out, data)


def linked_pairs(pairs: list[dict], out) -> Figure:
    """10x tiles above, their linked 20x tiles below; the square in the upper one is where the lower one lies.

    Each dict: title, tiles {10: image, 20: image}, offset (x, y) and share: the 20x tile inside its parent, in units
    of the parent's side.
    """
    figure, axes = plt.subplots(2, len(pairs), figsize=(1.9 * len(pairs), 4.2), squeeze=False)
    for column, pair in zip(axes.T, pairs):
        for ax, scale in zip(column, sorted(pair["tiles"])):
            ax.imshow(pair["tiles"][scale])
            _bare(ax)
        side = pair["tiles"][min(pair["tiles"])].shape[0]
        column[0].add_patch(Rectangle(np.array(pair["offset"]) * side, pair["share"] * side, pair["share"] * side,
                                      fill=False, edgecolor="black", linewidth=1.5))
        column[0].set_title(pair["title"], fontsize=8, fontweight="normal")
    for ax, scale in zip(axes[:, 0], sorted(pairs[0]["tiles"])):
        ax.set_ylabel(f"{scale}x")
    data = pd.DataFrame([{"title": p["title"], "offset_x": p["offset"][0], "offset_y": p["offset"][1],
                          "share": p["share"]} for p in pairs])
    return _finish(figure, out, data)


def tile_counts(summary: pd.DataFrame, k: int, out) -> Figure:
    """How many tiles each slide gave (K at most), and how dense they are. Columns: slide_id, label, tiles, density."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.6))
    sns.histplot(summary, x="tiles", hue="label", multiple="stack", ax=axes[0], binrange=(0, k + 1),
                 bins=min(k + 1, 25))
    axes[0].yaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].axvline(k, color="#444444", linestyle=":", linewidth=1)
    axes[0].set(title=f"Tiles a slide (K = {k})", xlabel="tiles", ylabel="slides")
    sns.stripplot(summary, x="density", y="label", hue="label", ax=axes[1], size=4, legend=False, jitter=0.25)
    axes[1].set(title="Mean density of the chosen tiles", xlabel="density", ylabel="", xlim=(0, 1.02))
    return _finish(figure, out, summary[["slide_id", "label", "tiles", "density"]])


# ------------------------------------------------------------------------------------------------ features


def feature_map(points: np.ndarray, slides: pd.DataFrame, out) -> Figure:
    """A cohort in two dimensions: one point a slide, coloured by class, by site, and by patient.

    points (N, 2); slides: slide_id, label, site in the same order.
    """
    data = slides[["slide_id", "label", "site"]].assign(x=points[:, 0], y=points[:, 1])
    hues = ["label"] + (["site"] if data.site.nunique() > 1 else [])
    figure, axes = plt.subplots(1, len(hues), figsize=(4 * len(hues), 3.4), squeeze=False)
    for ax, hue in zip(axes[0], hues):
        sns.scatterplot(data, x="x", y="y", hue=hue, ax=ax, s=28, palette="deep" if hue == "site" else None)
        ax.set(title=f"by {'class' if hue == 'label' else hue}", xlabel="component 1", ylabel="component 2")
        ax.legend(title="")
    return _finish(figure, out, data)


def scale_similarity(table: pd.DataFrame, out) -> Figure:
    """Cosine of a 10x tile with its own 20x child against another tile's child. Columns: slide_id, linked, other."""
    figure, ax = plt.subplots(figsize=(4.5, 2.8))
    long = table.melt("slide_id", ["linked", "other"], var_name="pair", value_name="cosine")
    sns.kdeplot(long, x="cosine", hue="pair", fill=True, common_norm=False, ax=ax, linewidth=1.2)
    ax.set(title="A tile and its child, or another's child", xlabel="cosine of the features", yticks=[], ylabel="")
    return _finish(figure, out, table)


# ------------------------------------------------------------------------------------------------ training


def learning_curves(history: pd.DataFrame, out, prior_entropy: float | None = None) -> Figure:
    """L_ce, L_ot and the feature spread by epoch: one thin line a run, the mean thick."""
    terms = [name for name in ("L_ce", "L_ot", "spread") if name in history] or ["loss"]
    labels = {"L_ce": "L_ce (cross-entropy)", "L_ot": "L_ot (optimal transport)", "spread": "feature spread"}
    figure, axes = plt.subplots(1, len(terms), figsize=(3.2 * len(terms), 2.7), squeeze=False)
    for ax, term in zip(axes[0], terms):
        for _, part in history.groupby(["fold", "seed"]):
            ax.plot(part.epoch, part[term], color="#bbbbbb", linewidth=0.8)
        mean = history.groupby("epoch")[term].mean()
        ax.plot(mean.index, mean, color="#0072B2", linewidth=2)
        ax.set(title=labels.get(term, term), xlabel="epoch")
        ax.set_ylim(bottom=0)
        if term == "L_ce" and prior_entropy is not None:
            ax.axhline(prior_entropy, color="#D55E00", linestyle=":", linewidth=1.2)
            ax.text(mean.index[-1], prior_entropy, "knowing only the class shares ", ha="right", va="bottom",
                    fontsize=7, color="#D55E00")
    return _finish(figure, out, history)


def roc(predictions: pd.DataFrame, out, positive: str = "") -> Figure:
    """ROC curve of each fold (thin), and of the pooled out-of-fold predictions (thick)."""
    name = positive_class(class_names(predictions), positive)
    points = roc_points(predictions, positive)
    pooled = roc_points(predictions.assign(fold=-1, seed=-1), positive)
    by_fold = score_by_fold(predictions, positive)
    figure, ax = plt.subplots(figsize=(4.6, 3.4))
    for row, (_, part) in zip(by_fold.itertuples(), points.groupby(["fold", "seed"])):
        ax.plot(part.fpr, part.tpr, linewidth=0.9, alpha=0.8,
                label=f"fold {row.fold}, AUC {row.AUC:.2f}" if len(by_fold) <= 10 else None)
    ax.plot(pooled.fpr, pooled.tpr, color="black", linewidth=2, label="all folds pooled")
    ax.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1)
    ax.set(title=f"ROC, positive = {name}", xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return _finish(figure, out, pd.concat([points, pooled]))


def confusion_matrix(predictions: pd.DataFrame, out) -> Figure:
    """Pooled confusion matrix: counts, coloured by the share of the true class."""
    matrix = confusion(predictions)
    share = matrix.div(matrix.sum(axis=1).clip(lower=1), axis=0)
    figure, ax = plt.subplots(figsize=(1.2 * len(matrix) + 1.6, 1.1 * len(matrix) + 1))
    notes = matrix.astype(str) + "\n" + (share * 100).round().astype(int).astype(str) + " %"
    sns.heatmap(share, annot=notes, fmt="", cmap="Blues", vmin=0, vmax=1, cbar=False, square=True, ax=ax)
    ax.set(title="Confusion, all folds", xlabel="predicted", ylabel="truth")
    return _finish(figure, out, matrix.reset_index())


def calibration_curve(predictions: pd.DataFrame, out, positive: str = "") -> Figure:
    """Said against observed probability in bins of equal count, with the expected calibration error."""
    table, error = calibration(predictions, positive)
    figure, ax = plt.subplots(figsize=(3.4, 3.2))
    ax.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1)
    ax.plot(table.predicted, table.observed, marker="o")
    for row in table.itertuples():
        ax.annotate(str(row.slides), (row.predicted, row.observed), textcoords="offset points", xytext=(5, -9),
                    fontsize=7, color="#666666")
    name = positive_class(class_names(predictions), positive)
    ax.set(title=f"Calibration, ECE {error:.3f}", xlabel=f"said: P({name})",
           ylabel="observed share", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    return _finish(figure, out, table)


def result_intervals(table: pd.DataFrame, out) -> Figure:
    """Each row's metrics with their 95 % intervals. Columns: name, and <metric>_mean, _low, _high."""
    metrics = ("ACC", "F1", "AUC")
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 0.42 * len(table) + 1.1), sharey=True)
    y = np.arange(len(table))[::-1]
    for ax, metric in zip(axes, metrics):
        ax.hlines(y, table[f"{metric}_low"], table[f"{metric}_high"], color="#0072B2", linewidth=2)
        ax.plot(table[f"{metric}_mean"], y, "o", color="#0072B2", markersize=5)
        ax.set(title=metric, xlim=(0, 1.02), yticks=y, yticklabels=table.name)
    return _finish(figure, out, table)


def toy_comparison(runs: dict[str, list], out: str | Path | None = None) -> Figure:
    """AUC by fold of methods on toy cohorts, runs {cohort: [Runs, ...]}; saved only if `out` is given."""
    data = pd.concat([score_by_fold(r.predictions).assign(cohort=name, method=r.config.method)
                      for name, several in runs.items() for r in several if len(r.config.scales) > 1])
    figure, ax = plt.subplots(figsize=(4.6, 2.8))
    sns.stripplot(data, x="cohort", y="AUC", hue="method", dodge=True, ax=ax, size=6)
    ax.axhline(0.5, color="#999999", linestyle=":", linewidth=1)
    ax.set(title="AUC of each fold", xlabel="tiles that carry the signal", ylim=(0, 1.03))
    ax.legend(title="", loc="center left", bbox_to_anchor=(1, 0.5))
    if out is not None:
        return _finish(figure, out, data)
    plt.close(figure)
    return figure


# ------------------------------------------------------------------------------------------------ DMSMIL's insides


def transport_plan(slide: dict, plan: np.ndarray, out, lines: int = 40) -> Figure:
    """The OT plan of one slide, drawn between its two scales: each 10x tile tied to the 20x tile it is matched with.

    slide: thumbnail, dimensions, coords {10, 20}, side {10, 20}; plan (K10, K20), rows sum to 1 / K10. The heaviest
    `lines` ties are drawn; a tie is dark when it joins a tile with its own child.
    """
    figure, ax = plt.subplots(figsize=(7.4, 3.9))
    width, height = slide["dimensions"]
    gap = 0.12 * width
    scales = sorted(slide["coords"])
    centres = {}
    for column, scale in enumerate(scales):
        shift = column * (width + gap)
        ax.imshow(slide["thumbnail"], extent=(shift, shift + width, height, 0), alpha=0.75)
        moved = slide["coords"][scale] + [shift, 0]
        _boxes(ax, moved, slide["side"][scale], facecolor="none", edgecolor=SCALE_COLOURS.get(scale, "black"),
               linewidth=0.8)
        centres[scale] = moved + slide["side"][scale] / 2
        ax.text(shift + width / 2, -0.02 * height, f"{scale}x", ha="center", va="bottom", fontweight="bold")
    rows, columns = np.nonzero(plan > 0)
    order = np.argsort(-plan[rows, columns], kind="stable")
    order = order[np.linspace(0, len(order) - 1, min(lines, len(order))).astype(int)]
    rows, columns = rows[order], columns[order]
    ends = np.stack([centres[scales[0]][rows], centres[scales[-1]][columns]], 1)
    own = rows == columns
    for which, colour, line in ((~own, "#666666", 0.9), (own, "#111111", 1.8)):
        ax.add_collection(LineCollection(ends[which], colors=colour, linewidths=line, alpha=0.8))
    ax.set(xlim=(0, 2 * width + gap), ylim=(height, -0.1 * height), aspect="equal")
    _bare(ax)
    share, chance = float(np.trace(plan) / plan.sum()), 1 / len(plan)
    ax.set_title(f"OT plan: {share:.0%} of the mass goes from a tile to its own child (dark); chance {chance:.0%}",
                 fontsize=9)
    coords = {f"coords_{s}": slide["coords"][s] for s in scales}
    return _finish(figure, out, {"plan": plan.astype(np.float32), **coords})


def sampling_points(slide: dict, query: np.ndarray, points: np.ndarray, weights: np.ndarray, out) -> Figure:
    """Where queries look: reference points (rings) and their deformed sampling points on the slide.

    query (Q, 2) and points (Q, N, 2) in level-0 pixels; weights (Q, N), drawn as the size of a point.
    """
    figure, ax = plt.subplots(figsize=(5.6, 5.2))
    _show_slide(ax, slide["thumbnail"], slide["dimensions"])
    palette = sns.color_palette("bright", len(query))
    for colour, start, ends, weight in zip(palette, query, points, weights):
        ax.add_collection(LineCollection([(start, end) for end in ends], colors=[colour], linewidths=0.7, alpha=0.7))
        ax.scatter(*ends.T, s=10 + 90 * weight / weight.max(), color=[colour], edgecolor="white", linewidth=0.5,
                   zorder=3)
        ax.scatter(*start, s=90, facecolor="none", edgecolor="black", linewidth=1.6, zorder=4)
    ax.set_title("Reference tiles (rings) and their sampling points", fontsize=9)
    return _finish(figure, out, {"query": query, "points": points, "weights": weights})


def tile_scores(slide: dict, scores: dict[int, np.ndarray], out) -> Figure:
    """Tile scores in place, a panel a scale beside the plain slide; min-max normalised within the slide."""
    figure, axes = plt.subplots(1, 1 + len(scores), figsize=(3.2 * (1 + len(scores)), 3.3))
    _show_slide(axes[0], slide["thumbnail"], slide["dimensions"])
    axes[0].set_title(slide["slide_id"], fontsize=9)
    for ax, scale in zip(axes[1:], sorted(scores)):
        _show_slide(ax, slide["thumbnail"], slide["dimensions"])
        value = scores[scale]
        value = (value - value.min()) / max(np.ptp(value), 1e-12)
        boxes = _boxes(ax, slide["coords"][scale], slide["side"][scale], value, cmap="inferno", alpha=0.65)
        boxes.set_clim(0, 1)
        ax.set_title(f"score at {scale}x", fontsize=9)
    figure.colorbar(boxes, ax=axes.tolist(), shrink=0.7, label="normalised score")
    return _finish(figure, out, {f"scores_{s}": v for s, v in scores.items()})


# ---------------------------------------------------------------------------------------------- comparison


def _cliques(ranks: np.ndarray, cd: float) -> list[tuple[int, int]]:
    """First and last of each largest group of ascending ranks that spans less than cd, groups of one left out."""
    ends = [int(np.searchsorted(ranks, rank + cd)) - 1 for rank in ranks]
    return [(i, end) for i, end in enumerate(ends) if end > i and (i == 0 or end > ends[i - 1])]


def critical_difference(ranks: pd.Series, cd: float, out) -> Figure:
    """Critical-difference diagram: methods on the axis of average ranks (1 = best, left), bars join what is not told
    apart.

    ranks: method -> average rank; cd: Nemenyi's critical difference (dmsmil.comparison.friedman_nemenyi).
    Data: name, rank, cd, and the numbers of the bars that a method lies under.
    """
    ranks = ranks.sort_values(kind="stable")
    values, names, k = ranks.to_numpy(float), [str(n) for n in ranks.index], len(ranks)
    groups, low, high = _cliques(values, cd), 1, max(k, 2)
    left = -(-k // 2)
    first = 0.5 + 0.24 * len(groups)  # below the axis: bars, then names
    depth = first + 0.42 * (left - 1)
    figure, ax = plt.subplots(figsize=(6.8, 0.62 * (depth + 1.9)))
    ax.hlines(0, low, high, color="#222222", linewidth=1.2)
    for rank in range(low, high + 1):
        ax.vlines(rank, -0.14, 0, color="#222222", linewidth=1.2)
        ax.text(rank, -0.22, str(rank), ha="center", va="bottom", fontsize=8)
    ax.text((low + high) / 2, -0.56, "average rank over folds (1 = best)", ha="center", va="bottom", fontsize=8,
            color="#444444")
    reach = min(cd, high - low)  # a CD longer than the axis is drawn open-ended
    ax.hlines(-1.15, low, low + reach, color="#222222", linewidth=1.2)
    ax.vlines([low] if reach < cd else [low, low + cd], -1.23, -1.07, color="#222222", linewidth=1.2)
    ax.text(low + reach / 2, -1.26, f"CD = {cd:.2f}" + (", longer than the axis" if reach < cd else ""), ha="center",
            va="bottom", fontsize=8)
    margin = 0.04 * (high - low)
    for i, (rank, name) in enumerate(zip(values, names)):
        side = i < left
        y = first + 0.42 * (i if side else k - 1 - i)
        x = low - margin if side else high + margin
        ax.plot([rank, rank, x], [0, y, y], color="#888888", linewidth=0.8, solid_joinstyle="miter")
        ax.plot(rank, 0, "o", color="#0072B2", markersize=4, zorder=3)
        label = f"{name}  {rank:.2f}" if side else f"{rank:.2f}  {name}"
        ax.text(x, y, f" {label} ", ha="right" if side else "left", va="center", fontsize=8.5)
    for i, (start, end) in enumerate(groups):
        pad = 0.012 * (high - low)
        ax.hlines(0.28 + 0.24 * i, values[start] - pad, values[end] + pad, color="#D55E00", linewidth=3.2, zorder=2)
    ax.set(xlim=(low - 0.42 * (high - low), high + 0.42 * (high - low)), ylim=(depth + 0.3, -1.65))
    _bare(ax)
    under = [" ".join(str(g + 1) for g, (start, end) in enumerate(groups) if start <= i <= end) for i in range(k)]
    return _finish(figure, out, pd.DataFrame({"name": names, "rank": values, "cd": cd, "bars": under}))


def paired_differences(table: pd.DataFrame, out, reference: str = "DMSMIL") -> Figure:
    """Forest plot of dmsmil.comparison.compare: reference minus method, 95 % interval, p after Holm's correction.

    Filled and coloured: told apart at .05 after correction (blue for the reference, orange against it).
    """
    panels = {"AUC": "AUC, mean over folds", "ACC": "ACC, mean over folds", "DeLong": "AUC, pooled (DeLong)"}
    figure, axes = plt.subplots(1, len(panels), figsize=(9.4, 0.36 * len(table) + 1.25), sharex=True,
                                sharey=True)
    y = np.arange(len(table))[::-1]
    for ax, (metric, title) in zip(axes, panels.items()):
        part = [table[f"{metric}_{c}"].to_numpy(float) for c in ("difference", "low", "high", "p_holm")]
        ax.axvline(0, color="#444444", linewidth=1)
        for row, difference, low, high, p in zip(y, *part):
            colour = "#777777" if not p < 0.05 else "#0072B2" if difference > 0 else "#D55E00"
            ax.plot([low, high], [row, row], color=colour, linewidth=1.8, solid_capstyle="butt")
            ax.plot(difference, row, "o", markersize=5.5, color=colour,
                    markerfacecolor=colour if p < 0.05 else "white")
            said = "not tested" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"
            ax.text(1.02, row, said, transform=ax.get_yaxis_transform(), va="center", fontsize=7.5,
                    color=colour if p < 0.05 else "#555555")
        ax.text(1.02, len(table) - 0.35, "p (Holm)", transform=ax.get_yaxis_transform(), va="center", fontsize=7.5,
                color="#555555")
        ax.set(title=title, yticks=y, yticklabels=table.name, ylim=(-0.6, len(table) - 0.1),
               xlabel=f"{reference} minus method")
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    shown = table[[f"{metric}_{c}" for metric in panels for c in ("difference", "low", "high")]].to_numpy(float)
    low, high = np.nanmin(np.append(shown, -0.02)), np.nanmax(np.append(shown, 0.02))
    axes[0].set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    return _finish(figure, out, table)
