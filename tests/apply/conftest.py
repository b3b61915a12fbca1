"""A small study that has run: painted slides, two patients held out, two folds of two methods, nothing learned."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from dmsmil.apply.features import new_bags
from dmsmil.apply.incoming import read_slides
from dmsmil.apply.kit import Kit, study_kit
from dmsmil.apply.predict import Applied, apply_kit
from dmsmil.cohorts.folds import make_folds
from dmsmil.cohorts.made.demo import make_demo
from dmsmil.cohorts.table import load_cohort, save_cohort
from dmsmil.features.bags import Bags, load_bags
from dmsmil.features.stages import encode_cohort
from dmsmil.slides.store import Store
from dmsmil.training.config import configure
from dmsmil.training.runs import get_runs

ENCODER, SCALES, K, TILE = "efficientnet_lite0", (10, 20), 6, 256
SETTINGS = {"epochs": 2, "lr": 1e-3}
HELD = ("A006", "A007")  # patients; the first has two slides
NEW = ["demo-A006-1", "demo-A006-2", "demo-A007-1"]


def quiet(line):
    pass


@dataclass
class Made:
    """The study, and its painted slides, with those that were held out of it."""

    place: Path
    home: Path
    bags: Bags
    folds: pd.DataFrame
    cohort: pd.DataFrame
    kit: Kit

    @property
    def slides(self):
        return self.place / "cohort/slides"

    def apply(self, what, kit=None, home=None, **options) -> tuple[Applied, Bags]:
        kit = kit or self.kit
        slides, failures = read_slides(what, kit.classes, report=quiet)
        bags = new_bags(kit, home or self.home, slides, failures, workers=1, report=quiet, **options)
        return apply_kit(kit, bags, slides), bags


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("apply")
    make_demo(place / "cohort", 8, 0, 1536, workers=1)
    table = pd.read_csv(place / "cohort/cohort.csv")
    kept = table[~table.patient_id.isin(HELD)]
    kept.assign(path=[str(place / "cohort" / path) for path in kept.path]).to_csv(place / "kept.csv", index=False)
    home = place / "mine"
    cohort, failures = load_cohort(place / "kept.csv")
    folds = make_folds(cohort, 2)
    save_cohort(home, cohort, folds, failures)
    store = Store(home, TILE, SCALES, ENCODER)
    encode_cohort(store, cohort, K, workers=1, report=quiet)
    bags = load_bags(store, cohort, K, SCALES)
    configs = [configure(bags, folds, name, **SETTINGS) for name in ("dmsmil", "meanpool")]
    get_runs(home, bags, folds, configs, workers=1, report=quiet)
    return Made(place, home, bags, folds, cohort, study_kit(home, bags, folds, cohort, "dmsmil", **SETTINGS))


@pytest.fixture(scope="session")
def whole(made):
    """(Applied, bags) of all painted slides: those of the study, and those held out."""
    return made.apply(made.slides)
