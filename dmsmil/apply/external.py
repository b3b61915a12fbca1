"""External evaluation: what a study's numbers are worth on slides that it does not know, and what cheap rules reach."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from dmsmil.apply.kit import Kit
from dmsmil.apply.predict import Applied
from dmsmil.jobs.text import as_written, many
from dmsmil.training.metrics import (
    DRAWS,
    METRICS,
    bootstrap,
    calibration_error,
    called,
    counted_classes,
    draw_metrics,
    patient_draws,
    score,
)
from dmsmil.training.results import in_brackets, number

WHERE = {"study": "in the study, one model", "one": "here, one model", "mean": "here, the mean of all"}


def external_predictions(applied: Applied) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """(each, means) of `Applied` for the slides that have a label and that the study does not know in any way. A slide
    without a patient counts as a patient of its own; of several that show the same one counts, and none where their
    labels differ."""
    table = applied.table[(applied.table.label != "") & (applied.table.known == "")]
    shown = table.copy_of.where(table.copy_of != "", table.slide_id)
    one_label = table.label.groupby(shown).transform("nunique") == 1
    chosen = set(table.slide_id[one_label & ~shown.duplicated()])

    def mine(predictions: pd.DataFrame) -> pd.DataFrame:
        part = predictions[predictions.slide_id.isin(chosen)].reset_index(drop=True)
        return part.assign(patient_id=part.patient_id.where(part.patient_id != "", part.slide_id))

    return tuple(
        {name: mine(predictions) for name, predictions in found.items()} for found in (applied.each, applied.means)
    )


def external_table(kit: Kit, applied: Applied) -> pd.DataFrame:
    """Three rows for the method and each of its rivals: what one model reached in the study, out of fold; what one
    model reaches on the new slides, mean over the models; and what their mean prediction reaches.

    Columns: name, where (study, one, mean), slides, patients, and for ACC, F1 and AUC <metric>, _low, _high, 95 %
    intervals that draw patients; ECE, the calibration error (of the study's rows for the method alone); of more than
    two classes classes. One model is to
    be compared with one model: the mean of several is a little better than each. No rows where there is nothing to
    evaluate.
    """
    each, means = external_predictions(applied)
    positive, rows = kit.about["positive"], []
    for _, row in kit.results.iterrows():
        name = row["name"]
        if name not in means or means[name].empty:
            continue
        study = {metric: number(row, metric)[1] for metric in METRICS}
        low, high = ({metric: row[f"{metric}_{end}"] for metric in METRICS} for end in ("low", "high"))
        error = calibration_error(kit.tested, positive) if name == kit.about["name"] else math.nan
        rows.append(
            {
                "name": name,
                "where": "study",
                "slides": kit.about["slides"],
                "patients": kit.about["patients"],
                **_columns(study, low, high),
                "ECE": error,
            }
        )
        one = pd.DataFrame([score(part, positive) for _, part in each[name].groupby(["fold", "seed"])]).mean().to_dict()
        here = {"slides": means[name].slide_id.nunique(), "patients": means[name].patient_id.nunique()}
        for where, values, predictions, interval in (
            ("one", one, each[name], _one_model(each[name], positive)),
            ("mean", score(means[name], positive), means[name], bootstrap(means[name], positive)),
        ):
            if math.isnan(values["AUC"]):  # of one class F1 is 0, 1 or nothing, by which class it is
                values = {**values, "F1": math.nan}
            rows.append(
                {
                    "name": name,
                    "where": where,
                    **here,
                    **_columns(values, *interval),
                    "ECE": calibration_error(predictions, positive),
                }
            )
    columns = ["name", "where", "slides", "patients", *_columns(*[dict.fromkeys(METRICS)] * 3), "ECE"]
    return pd.DataFrame(rows, columns=columns).assign(**counted_classes(kit.tested))


def _one_model(predictions: pd.DataFrame, positive: str) -> tuple[dict[str, float], dict[str, float]]:
    """The interval of the mean over models, each asked about the same drawn patients; as `metrics.bootstrap`."""
    drawn = [
        draw_metrics(part, patient_draws(part, DRAWS, np.random.default_rng(0)), positive)
        for _, part in predictions.groupby(["fold", "seed"])
    ]
    mean = sum(drawn) / len(drawn)
    return mean.quantile(0.025).to_dict(), mean.quantile(0.975).to_dict()


def _columns(values: dict, low: dict, high: dict) -> dict:
    found: dict = {}
    for metric in METRICS:
        found |= {metric: values[metric], f"{metric}_low": low[metric], f"{metric}_high": high[metric]}
    return found


def external_shown(table: pd.DataFrame) -> pd.DataFrame:
    """`external_table` to read."""
    shown = pd.DataFrame({"": table.name, "where": table["where"].map(WHERE), "slides": table.slides})
    for metric in METRICS:
        shown[called(metric, table)] = [_cell(row, metric) for _, row in table.iterrows()]
    shown["calibration error"] = ["" if math.isnan(value) else f"{value:.3f}" for value in table.ECE]
    return shown.set_index(["", "where"])


def _cell(row: pd.Series, metric: str) -> str:
    if math.isnan(row[metric]):
        return "not defined"
    return f"{row[metric]:.3f}{in_brackets(row[f'{metric}_low'], row[f'{metric}_high'])}"


def external_sentences(table: pd.DataFrame) -> str:
    """Markdown: how far the method falls from the study to these slides, and whether it beats what needs no method."""
    if table.empty:
        return "No slide with a label that the study does not know: nothing to evaluate."
    names = list(dict.fromkeys(table.name))
    rows = {where: table[(table.name == names[0]) & (table["where"] == where)].iloc[0] for where in WHERE}
    title, one, study = as_written(names[0]), rows["one"], rows["study"]
    lines = [f"{many(one.slides, 'slide')} of {many(one.patients, 'patient')} that the study does not know."]
    metric = "ACC" if math.isnan(one.AUC) or math.isnan(study.AUC) else "AUC"
    name = called(metric, table)
    if math.isnan(one.AUC):  # the share of one class that is told is no ACC of all classes, and 0 or 1 of the majority
        lines += [
            "AUC and F1 are not defined, one class was tested: ACC is the share of its slides that are told rightly, "
            "and neither the study's ACC nor that of *always the majority* can be set beside it.",
            f"One model of {title} reaches {_cell(one, metric)} here, the mean of its models "
            f"{_cell(rows['mean'], metric)}.",
        ]
        return "\n".join(f"- {line}" for line in lines)
    if metric == "ACC":
        lines.append("AUC is not defined in the study.")
    gap, inside = study[metric] - one[metric], one[f"{metric}_low"] <= study[metric] <= one[f"{metric}_high"]
    word = f"{gap:.3f} lower" if gap > 0 else f"{-gap:.3f} higher" if gap < 0 else "the same"
    told = "holds the study's value: no change is shown" if inside else "does not hold the study's value"
    if one[f"{metric}_low"] == one[f"{metric}_high"]:  # of patients who are all told rightly every draw is the same
        told = "has no width, so nothing follows from it"
    lines.append(
        f"One model of {title} reached {name} {_cell(study, metric)} in the study and reaches "
        f"{_cell(one, metric)} here, {word}; the interval here {told}."
    )
    lines.append(f"The mean of its models reaches {_cell(rows['mean'], metric)}.")
    for rival in names[1:]:
        other = table[(table.name == rival) & (table["where"] == "mean")].iloc[0]
        word = "above" if rows["mean"][metric] > other[metric] else "not above"
        lines.append(f"It is {word} *{as_written(rival)}*: {_cell(other, metric)}.")
    return "\n".join(f"- {line}" for line in lines)
