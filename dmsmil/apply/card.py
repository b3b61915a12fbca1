"""What a model that travels is, and what it must not be used for, in words."""

from __future__ import annotations

import math

from dmsmil.apply.kit import Kit
from dmsmil.apply.words import NOT_FOR
from dmsmil.jobs.text import as_written, listed, many
from dmsmil.slides.given import BY
from dmsmil.training.metrics import METRICS, called
from dmsmil.training.results import in_brackets, number


def made_in_words(made: dict) -> str:
    """What tiles and features are made by, in a line."""
    encoder = made["encoder"]
    eyes = f"{encoder['name']}" + (f" at {encoder['px']} px, {encoder['precision']}" if "px" in encoder else "")
    scales = listed([f"{scale:g}x" for scale in made["scales"]])
    whose = f", chosen elsewhere ({BY[made['tiles']]})" if "tiles" in made else ""
    return f"at most {made['k']} tiles of {made['tile_px']} px at {scales}{whose}, features by {eyes}"


def card(kit: Kit) -> str:
    """The model card of an exported kit, as Markdown."""
    about, first = kit.about, kit.results.iloc[0]
    lines = [
        f"# {as_written(about['name'])}, trained in the study {as_written(about['study'])}",
        "",
        f"**{NOT_FOR}**",
        "",
        f"**What it is.** {many(len(kit.panels[about['name']]), 'model')} (folds and seeds) to give a slide a "
        f"probability for {listed([as_written(name) for name in kit.classes])}; the mean counts. It needs "
        f"{made_in_words(about['made'])}: `dmsmil apply` makes them so, and refuses what differs.",
        "",
        f"**Trained on** {many(about['slides'], 'slide')} of {many(about['patients'], 'patient')}, for "
        f"{about['config']['epochs']} epochs. Slides and patients that it was trained on are recognised by hashes "
        "of their ids and of what their tiles show.",
        "",
        "**In the study**, out of fold, with 95 % intervals that draw patients:",
        "",
        "| | " + " | ".join(called(metric, kit.results) for metric in METRICS) + " |",
        "| --- " * (1 + len(METRICS)) + "|",
    ]
    for _, row in kit.results.iterrows():
        cells = [_cell(row, metric) for metric in METRICS]
        lines.append(f"| {as_written(row['name'])} | " + " | ".join(cells) + " |")
    if about["note"]:
        lines += ["", f"**Note** on {as_written(first['name'])}: {as_written(about['note'])}."]
    lines += [
        "",
        "Slides of another hospital, scanner, stain or disease are other slides: `dmsmil apply` says which "
        "are unlike those it learned from, and not that the others are safe.",
        "",
    ]
    return "\n".join(lines)


def _cell(row, metric: str) -> str:
    """A number of the study and its interval: the pooled one where no run has it, as in leave-one-out."""
    name, value = number(row, metric)
    if math.isnan(value):
        return "not defined"
    interval = in_brackets(row[f"{metric}_low"], row[f"{metric}_high"])
    return f"{'pooled ' if name.startswith('pooled') else ''}{value:.3f}{interval}"
