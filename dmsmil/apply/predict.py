"""What a study's models say of new slides: the mean of those that have not seen a slide, and how far they are apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dmsmil.apply.kit import Kit
from dmsmil.apply.known import recognise
from dmsmil.apply.members import Colour, Member
from dmsmil.apply.novelty import likeness
from dmsmil.features.bags import Bags
from dmsmil.interpret.explain import score_rows
from dmsmil.jobs.text import as_written
from dmsmil.training.metrics import predictions_table, told_class


@dataclass(frozen=True)
class Applied:
    """What came out of a kit on some slides.

    table: one row a slide: slide_id, patient_id, label ("" where not known), pred, prob_<class>, spread (standard
    deviation over the models), lowest and highest, of the class that `told_class` names; models (how many were asked),
    of more than two classes others (how many of them say another class), known (by what the study knows the slide:
    slide, patient, content), copy_of (the slide of this table that shows the same), unlike (in what it is unlike its
    slides: features, colours), distance_features, distance_colours (1: the border), tiles (of the first scale), note
    (how the models' runs went, only where that must be known). Where every model has seen a slide nothing is predicted.
    scores: as `explain.tile_scores`, the mean over the models. each: by panel, a predictions table of every member
    (fold, seed) on the slides that it has not seen; means: by panel, that of their means.
    """

    table: pd.DataFrame
    scores: pd.DataFrame
    each: dict[str, pd.DataFrame]
    means: dict[str, pd.DataFrame]


def apply_kit(kit: Kit, bags: Bags, slides: pd.DataFrame) -> Applied:
    """Ask every panel of a kit about the slides of `bags` (of `features.new_bags`); slides: as `read_slides`."""
    rows = slides.set_index("slide_id").loc[bags.slide_ids].reset_index()
    marks = recognise(kit.trained, rows, bags.store)
    unseen = {fold: np.array([fold not in seen for seen in marks.seen]) for fold in _folds(kit)}
    each, means, spread, scores = {}, {}, None, None
    for name, members in kit.panels.items():
        if isinstance(members[0], Colour) and bags.colour.isnan().any():
            continue  # features made elsewhere do not tell them
        answers = [member.ask(bags) for member in members]
        there = np.stack([unseen[member.fold] for member in members])
        said = np.where(there[..., None], np.stack([answer[0] for answer in answers]), np.nan)
        each[name] = _each(rows, members, there, said, kit.classes)
        mean = _mean(said, there)
        means[name] = predictions_table(rows.slide_id, rows.patient_id, rows.label, np.nan_to_num(mean), kit.classes)
        means[name] = means[name][there.any(0)].reset_index(drop=True)
        if spread is None:  # of the first panel, the method's
            spread = _spread(said, mean, there, kit.classes, kit.about["positive"])
            scores = _scores(kit, bags, rows, [answer[1] for answer in answers], there)
    table = pd.concat(
        [
            rows[["slide_id", "patient_id", "label"]],
            spread,
            marks[["known", "copy_of"]].reset_index(drop=True),
            likeness(kit.vectors, kit.own, bags).reset_index(drop=True),
        ],
        axis=1,
    )
    table = table.assign(tiles=bags.mask[:, 0].sum(1).numpy())
    for line in in_the_study(kit.about):
        table["note"] = line
    return Applied(table, scores, each, means)


def in_the_study(about: dict) -> list[str]:
    """How the runs of `Kit.about` went, a sentence, where a reader of what they say must know it."""
    return [f"In the study, {about['note']}."] if about["note"] else []


def _folds(kit: Kit) -> set[int]:
    return {member.fold for members in kit.panels.values() for member in members}


def _mean(said: np.ndarray, there: np.ndarray) -> np.ndarray:
    """(N, n) mean over the members that may be asked, NaN where there is none; said (M, N, n), there (M, N)."""
    count = there.sum(0)[:, None]
    return np.where(count > 0, np.nansum(said, 0) / np.maximum(count, 1), np.nan)


def _spread(said: np.ndarray, mean: np.ndarray, there: np.ndarray, classes: list[str], positive: str) -> pd.DataFrame:
    """The columns of `Applied.table` from pred to models: said (M, N, n), mean (N, n)."""
    asked, count = there.any(0), there.sum(0)
    pred, more = np.nan_to_num(mean).argmax(1), {}
    which = np.array([classes.index(told_class(classes[number], classes, positive)) for number in pred])
    own = np.take_along_axis(said, which[None, :, None], 2)[..., 0]
    middle = np.take_along_axis(mean, which[:, None], 1)[:, 0]
    if len(classes) > 2:
        more = {"others": (there & (np.nan_to_num(said).argmax(2) != pred)).sum(0)}
    variance = np.nansum((own - middle) ** 2, 0) / np.maximum(count, 1)
    lowest, highest = np.nan_to_num(own, nan=np.inf).min(0), np.nan_to_num(own, nan=-np.inf).max(0)
    table = pd.DataFrame({"pred": np.where(asked, np.asarray(classes)[pred], "")})
    for number, name in enumerate(classes):
        table[f"prob_{name}"] = mean[:, number]
    return table.assign(
        spread=np.where(asked, np.sqrt(variance), np.nan),
        lowest=np.where(asked, lowest, np.nan),
        highest=np.where(asked, highest, np.nan),
        models=count,
        **more,
    )


def _each(
    rows: pd.DataFrame, members: list[Member], there: np.ndarray, said: np.ndarray, classes: list[str]
) -> pd.DataFrame:
    """What each member says of the slides that it has not seen."""
    parts = []
    for member, mine, values in zip(members, there, said):
        part = rows[mine]
        table = predictions_table(part.slide_id, part.patient_id, part.label, values[mine], classes)
        parts.append(table.assign(fold=member.fold, seed=member.seed))
    return pd.concat(parts, ignore_index=True)


def _scores(kit: Kit, bags: Bags, rows: pd.DataFrame, answers: list[np.ndarray], there: np.ndarray) -> pd.DataFrame:
    """Tile scores: each model's as shares of their sum, the mean over those that have not seen the slide."""
    data, parts = bags.view(kit.scales), []
    for number, row in enumerate(rows.itertuples()):
        asked = [answer[number] for answer, may in zip(answers, there[:, number]) if may]
        if not asked:
            continue
        shares = np.mean([_shares(score) for score in asked], 0)
        about = {"slide_id": row.slide_id, "patient_id": row.patient_id, "label": row.label, "fold": -1}
        parts.append(score_rows(shares, data.mask[number].numpy(), data.coords[number].numpy(), kit.scales, about))
    columns = ["slide_id", "patient_id", "label", "fold", "scale", "place", "x", "y", "score", "normalised"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _shares(score: np.ndarray) -> np.ndarray:
    """(S, K) scores as shares of their sum at each scale."""
    total = score.sum(1, keepdims=True)
    return score / np.where(total > 0, total, 1)


def said_sentences(table: pd.DataFrame) -> str:
    """Markdown: how many slides are predicted, on how many the models disagree, what is known and what unlike."""
    asked = table[table.models > 0]
    counts = asked.pred.value_counts().sort_index()
    told = ", ".join(f"{count} {as_written(name)}" for name, count in counts.items())
    lines = [
        f"{len(asked)} of {len(table)} slides are predicted: {told}."
        if len(asked)
        else f"None of {len(table)} slides is predicted: every model has seen them, or their patients."
    ]
    if "note" in table:
        lines.insert(0, f"**{as_written(table.note.iloc[0])}**")  # before any answer
    torn = asked[asked.others > 0] if "others" in asked else asked[(asked.lowest < 0.5) & (asked.highest > 0.5)]
    if len(torn):
        lines.append(f"On {len(torn)} of them the models do not agree about the class.")
    if (known := table.known != "").any():
        who = "; only models that have not seen them were asked" if len(asked) else ""
        lines.append(f"The study knows {known.sum()} of the slides{who}.")
    if copies := table.slide_id[table.copy_of != ""].tolist():
        lines.append(f"What another of these slides shows, under another name: {_some(copies)}")
    odd = table.slide_id[table.unlike != ""].tolist()
    lines.append(f"**Unlike the training slides**: {_some(odd)}" if odd else "No slide is unlike the training slides.")
    return "\n".join(f"- {line}" for line in lines)


def _some(names: list[str]) -> str:
    """The first of many slides by name."""
    return ", ".join(map(as_written, names[:8])) + (f" and {len(names) - 8} more." if len(names) > 8 else ".")
