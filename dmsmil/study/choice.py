"""`dmsmil choose`: the default among the readings, by the rule of docs/readings.md."""

from __future__ import annotations

import pandas as pd

from dmsmil.analysis import readings
from dmsmil.study.opening import open_study
from dmsmil.study.place import folder_of
from dmsmil.study.run import run
from dmsmil.study.terminal import say
from dmsmil.training.results import save_table
from dmsmil.training.runs import get_runs

SEED, PATIENTS = 1, 120  # of the cohorts that choose: other patients than those of any study
NAME = "choice"


def choose(several: list[dict]) -> int:
    """Make the cohorts of these studies anew, train every candidate on each, apply the rule; 0, or what a study that
    could not be made returned."""
    parts = []
    for params in several:
        mine = {**params, "study": f"{params['study']}_{NAME}", "seed": SEED, "demo_patients": PATIENTS}
        status = run(mine, ["00", "01", "02"])
        if status:
            return status
        parts.append(_judge(mine))
    name, table = readings.choose(pd.concat(parts, ignore_index=True))
    home = folder_of(NAME, several[0]["outputs"])
    save_table(pd.concat(parts, ignore_index=True), home, f"{NAME}_runs")
    say(save_table(table, home, NAME).round(3).to_string(index=False))
    say(readings.choice_sentence(name, table))
    return 0


def _judge(params: dict) -> pd.DataFrame:
    """Train what is missing of every candidate on one study: its rows, as `readings.choice_rows`."""
    opened = open_study(*(params[key] for key in ("study", "outputs", "scales", "tile_px", "encoder")))
    bags = opened.bags(params["k"])
    configs = readings.candidate_configs(
        bags,
        opened.folds,
        lr=params["lr"],
        weight_decay=params["weight_decay"],
        batch_size=params["batch_size"],
        select=params["select"],
    )
    runs = get_runs(
        opened.home,
        bags,
        opened.folds,
        list(configs.values()),
        readings.SEEDS,
        params["workers"],
        params["device"],
        say,
        NAME,
        params["scheduler"],
        readings.FOLDS,
    )
    return readings.choice_rows(params["study"], dict(zip(configs, runs)), params["positive"])
