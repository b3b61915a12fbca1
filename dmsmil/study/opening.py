"""What a notebook opens first: a study's cohort and where it comes from, its tiles, its bags, its slides to draw."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dmsmil.cohorts.download import Remote
from dmsmil.cohorts.fetching import downloadable, fetch_all
from dmsmil.cohorts.gdc import COHORTS
from dmsmil.cohorts.made.demo import make_demo
from dmsmil.cohorts.made.planted import make_planted
from dmsmil.cohorts.made.three import make_three
from dmsmil.cohorts.manifest import keep_source, source_of, tcga_table
from dmsmil.cohorts.table import load_cohort, read_cohort
from dmsmil.features.bags import Bags, load_bags
from dmsmil.features.rehearsal import DRAWN
from dmsmil.features.truth import known_shares
from dmsmil.features.views import slide_views
from dmsmil.jobs.failures import failure_row, write_failures
from dmsmil.jobs.files import InputError
from dmsmil.slides.store import Store
from dmsmil.study.place import folder_of, resolve

PAINTED = ("demo", "planted", "three")  # cohorts that are painted here, and whose truth is known


@dataclass(frozen=True)
class Study:
    """An opened study: its folder, its cohort and folds (as 00_cohort wrote them), and the store of its tiles and
    features. mpp: micrometres a pixel of slides that do not say."""

    home: Path
    cohort: pd.DataFrame
    folds: pd.DataFrame
    store: Store
    mpp: float = 0.0

    @property
    def source(self) -> Remote | None:
        """The server that has the slides which are not on the disk, if one has."""
        return source_of(self.home, self.cohort)

    def bags(self, k: int) -> Bags:
        """The bags of all its slides: at most `k` tiles a slide and scale. A slide whose features were made and are not
        whole any more is a row of failures.csv and a line. Raises InputError for a class that would be lost."""
        bags = load_bags(self.store, self.cohort, k, self.store.scales)
        known = self.store.failed()
        lost = {name: reason for name, reason in bags.missing.items() if name not in known}
        for name, reason in lost.items():
            print(f"{name} is left out: {reason}. Run 02_features, which makes it anew")
        write_failures(self.home, "bags", [failure_row(name, "bags", InputError(lost[name])) for name in lost])
        if gone := sorted(set(self.cohort.label) - set(bags.classes)):
            name = self.cohort.slide_id[self.cohort.label == gone[0]].iloc[0]
            raise InputError(
                f"no slide of the class '{gone[0]}' has features ({bags.missing[name]}): make them, or take the class "
                "out of the cohort table"
            )
        return bags

    def views(self, limit: int) -> list[dict]:
        """Slides to draw with all their tiles, the classes in turn: as `slide_views`."""
        return slide_views(self.cohort, self.store, limit, mpp=self.mpp, source=self.source)

    def view(self, slide_id: str, bags: Bags) -> dict:
        """One slide to draw, with the tiles of its bag: as `slide_views`."""
        return slide_views(self.cohort, slide_ids=[slide_id], bags=bags, mpp=self.mpp, source=self.source)[0]

    def truth(self, bags: Bags) -> np.ndarray | None:
        """(N, S, K) share of each tile of a painted cohort that was painted as signal; None of any other cohort."""
        return known_shares(bags, self.home / "cohort")


def open_study(study: str, outputs: str, scales: list[int], tile_px: int, encoder: str, mpp: float = 0.0) -> Study:
    """Open a study by the parameters of a notebook, to read it; InputError when 00_cohort has not run."""
    home = folder_of(study, outputs)
    cohort, folds = read_cohort(home)
    return Study(home, cohort, folds, Store(home, tile_px, tuple(scales), encoder), mpp)


def cohort_table(
    cohort: str,
    home: Path,
    patients: int,
    rate: float,
    side: int,
    seed: int,
    workers: int = 0,
    scheduler: str = "",
    folder: Path | str = "",
    remote: Remote | None = None,
) -> Path:
    """The CSV of a study's cohort: the one named; a painted one, made if need be; or a TCGA cohort by its name, asked
    of the GDC (`remote`) the first time. patients, rate (of planted alone), side: of a painted cohort; folder: of the
    slides, as `slides_folder` says."""
    if cohort in PAINTED:
        if cohort == "demo":
            make_demo(home / "cohort", patients, seed, side, workers, scheduler)
        elif cohort == "three":
            make_three(home / "cohort", patients, seed, side, workers, scheduler)
        else:
            make_planted(home / "cohort", patients, rate, seed, side, workers, scheduler)
        return home / "cohort" / "cohort.csv"
    if remote is not None:
        keep_source(home, remote)
    return tcga_table(cohort, home, folder, remote) if cohort in COHORTS else resolve(cohort)


def with_features(home: Path, store: Store | None = None) -> set[str]:
    """The slides of which a study has a file of features: of the store's tiles and encoder, at every scale, or where
    none is given of whatever."""
    if store is None:
        return {path.stem for path in (home / "features").glob("*/features_*/*.h5")}
    folders = [store.features_path(scale, "x").parent for scale in store.scales]
    return set.intersection(*({path.stem for path in folder.glob("*.h5")} for folder in folders))


def slides_folder(slides: str, cohort: str, home: Path) -> Path | str:
    """Where a study's slides are or will be: the folder named, or <home>/slides of a TCGA cohort, made if need be; ""
    where the table of the cohort says it itself."""
    if cohort not in COHORTS:
        return resolve(slides) if slides else ""
    folder = resolve(slides) if slides else home / "slides"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch_slides(table: Path, folder: Path | str, remote: Remote, encoded: Collection[str] = ()) -> list[dict]:
    """Bring every slide that the table says a server has; returns a failure row for each that could not be had.
    encoded: as `load_cohort` takes it."""
    cohort, _ = load_cohort(table, folder, fetched_later=True, report=lambda line: None, encoded=encoded)
    return fetch_all(remote, cohort, folder or table.parent) if downloadable(cohort) else []


def feature_source(features: str) -> str:
    """The key `features` as `take_features` takes it: a folder, or a word."""
    return features if features in ("", DRAWN) else str(resolve(features))


def tile_source(tiles: str, features: str = "") -> str:
    """The key `tiles` as `tile_cohort` takes it: a table or a folder. InputError beside the key `features`, whose tiles
    are in its files."""
    if tiles and features:
        raise InputError(
            "the keys 'tiles' and 'features' are both given, and features that were made elsewhere have "
            "tiles of their own: leave one of them empty"
        )
    return str(resolve(tiles)) if tiles else ""
