"""Tiles and features of new slides, exactly as the study made its own, kept in its folder apart from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from dmsmil.apply.folder import OTHERS
from dmsmil.apply.kit import Kit, check_same, with_classes
from dmsmil.features.bags import Bags, load_bags
from dmsmil.features.stages import encode_cohort, take_features
from dmsmil.jobs.failures import write_failures
from dmsmil.jobs.files import InputError
from dmsmil.slides.given import BY, chosen_by
from dmsmil.slides.store import Store


def new_bags(
    kit: Kit,
    home: str | Path,
    slides: pd.DataFrame,
    failures: list[dict],
    features: str = "",
    weights: str = "",
    device: str = "auto",
    workers: int = 0,
    scheduler: str = "",
    report: Callable[[str], None] = print,
    tiles: str = "",
) -> Bags:
    """The bags of `slides`, made as the study made its own: what is done is not done again, a slide that fails is a row
    of <home>/apply/failures.csv, beside `failures`, which `read_slides` found.

    features, tiles: where they were made or chosen elsewhere, as `take_features` and `tile_cohort` take them; weights:
    a local file of the encoder's. Raises InputError where the encoder is not the study's, which it names, where
    features were made or tiles chosen otherwise than the study's, and when no slide could be done.
    """
    made, home = kit.about["made"], Path(home) / OTHERS
    store = Store(home, made["tile_px"], tuple(made["scales"]), made["encoder"]["name"])
    if failures or home.exists():
        write_failures(home, "cohort", failures)
    work = dict(
        k=made["k"],
        seed=made.get("seed", 0),
        mpp=made.get("fallback_mpp", 0.0),
        workers=workers,
        scheduler=scheduler,
        report=report,
        agree=lambda identity: check_same({"encoder": identity}, [made]),
    )
    _check_features(made, features)
    if features:
        take_features(store, slides, features, **work)
    else:
        _check_tiles(made, tiles)
        encode_cohort(
            store,
            slides,
            min_density=made.get("min_density", 0.0),
            black=made["black"],
            weights=weights,
            px=made["encoder"]["px"],
            device=device,
            tiles=tiles,
            **work,
        )
    bags = load_bags(store, slides, made["k"], store.scales, report=report)
    return with_classes(bags, kit.classes, slides.set_index("slide_id").label)


def _check_features(made: dict, features: str) -> None:
    """InputError unless the features of new slides are made where those of the study were."""
    here = "weights" in made["encoder"]
    if here and features:
        raise InputError(
            "this study made its features itself, and so it does those of new slides: leave the key 'features' empty"
        )
    if not here and not features:
        raise InputError(
            "the features of this study were made elsewhere: name those of the new slides with the key 'features'"
        )


def _check_tiles(made: dict, tiles: str) -> None:
    """InputError unless the tiles of new slides are chosen by whom those of the study were."""
    theirs, ours = made.get("tiles", ""), chosen_by(tiles)
    if theirs and not ours:
        raise InputError(
            f"the tiles of this study were chosen elsewhere ({BY[theirs]}): name those of the new slides "
            "with the key 'tiles'"
        )
    if ours and not theirs:
        raise InputError(
            "this study chose its tiles itself, and so it does those of new slides: leave the key 'tiles' empty"
        )
    if ours != theirs:
        raise InputError(
            f"the tiles of this study were chosen {BY[theirs]}, and those of the new slides {BY[ours]}: "
            "it is applied as it was made, or not at all"
        )
