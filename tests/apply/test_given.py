"""A study whose tiles were chosen elsewhere: whose they are goes with its features, its runs and its models."""

import numpy as np
import pandas as pd
import pytest

from dmsmil.apply.card import card, made_in_words
from dmsmil.apply.features import new_bags
from dmsmil.apply.folder import read_model
from dmsmil.apply.incoming import read_slides
from dmsmil.apply.kit import check_same, made_by, study_kit
from dmsmil.apply.travel import read_kit, write_kit
from dmsmil.cohorts.folds import make_folds
from dmsmil.features.bags import load_bags
from dmsmil.features.stages import encode_cohort
from dmsmil.jobs.files import InputError
from dmsmil.slides.store import Store
from dmsmil.training.config import configure
from dmsmil.training.runs import get_runs
from tests.apply.conftest import NEW, SCALES, SETTINGS, TILE, quiet
from tests.conftest import assert_one_line
from tests.features.test_formats import own_study

pytestmark = pytest.mark.xdist_group("apply")
ENCODER, K = "random:resnet18", 3
CORNERS = [(100, 37), (640, 211), (11, 700), (900, 800)]  # of 512 px, on slides of 1536


def table_of(path, names, shift=0):
    rows = [{"slide_id": name, "x": x + shift, "y": y} for name in names for x, y in CORNERS]
    pd.DataFrame(rows).to_csv(path, index=False)
    return str(path)


@pytest.fixture(scope="module")
def study(made, tmp_path_factory):
    """(kit, home, bags, the cohort's folds) of a study on the painted slides, with the tiles of a table."""
    home = tmp_path_factory.mktemp("given") / "mine"
    store, tiles = Store(home, TILE, SCALES, ENCODER), table_of(home.parent / "tiles.csv", made.cohort.slide_id)
    encode_cohort(store, made.cohort, K, px=32, workers=1, report=quiet, tiles=tiles)
    bags, folds = load_bags(store, made.cohort, K, SCALES), make_folds(made.cohort, 2)
    get_runs(home, bags, folds, [configure(bags, folds, "meanpool", **SETTINGS)], workers=1, report=quiet)
    return study_kit(home, bags, folds, made.cohort, "meanpool", **SETTINGS), home, bags, folds


def ask(kit, made, home, **more):
    slides, failures = read_slides(made.slides / f"{NEW[0]}.svs", kit.classes, report=quiet)
    return new_bags(kit, home, slides, failures, workers=1, report=quiet, **more)


@pytest.mark.slow
def test_the_table_is_in_the_features_and_another_one_renames_features_and_runs(made, study, tmp_path):
    _, _, bags, folds = study
    given = {tuple(at) for at in bags.coords[0, 0][bags.mask[0, 0]].tolist()}
    assert len(given) == K and given < set(CORNERS)
    config = bags.store.features_made_by(bags.slide_ids[0]).config
    assert config["tiles"] == "table" and len(config["corners"]) == 16 and "min_density" not in config
    store = Store(tmp_path / "study", TILE, SCALES, ENCODER)
    encode_cohort(
        store,
        made.cohort,
        K,
        px=32,
        workers=1,
        report=quiet,
        tiles=table_of(tmp_path / "tiles.csv", made.cohort.slide_id, shift=1),
    )
    other = load_bags(store, made.cohort, K, SCALES)
    assert other.identity != bags.identity
    names = {configure(one, folds, "meanpool", **SETTINGS).name for one in (bags, other)}
    assert len(names) == 2


@pytest.mark.slow
def test_new_slides_need_tiles_of_their_own(made, study, tmp_path):
    kit = study[0]
    with pytest.raises(InputError, match="of this study were chosen elsewhere .in a table.: name those") as caught:
        ask(kit, made, tmp_path)
    assert_one_line(caught, "tiles")
    with pytest.raises(InputError, match="tiles.csv has no tiles of [^,]*, .*: name") as caught:
        ask(kit, made, tmp_path, tiles=table_of(tmp_path / "tiles.csv", made.cohort.slide_id))
    assert_one_line(caught, "tiles")
    with pytest.raises(InputError, match="were chosen in a table, and those of the new slides by hs2p") as caught:
        ask(kit, made, tmp_path, tiles=str(tmp_path))
    assert_one_line(caught, "tiles")
    bags = ask(kit, made, tmp_path, tiles=table_of(tmp_path / "new.csv", NEW))
    assert {tuple(at) for at in bags.coords[0, 0][bags.mask[0, 0]].tolist()} < set(CORNERS)


def test_a_study_that_chose_its_own_takes_none(made, tmp_path):
    with pytest.raises(InputError, match="this study chose its tiles itself, .*: leave the key") as caught:
        ask(made.kit, made, tmp_path, tiles=table_of(tmp_path / "tiles.csv", NEW))
    assert_one_line(caught, "tiles")
    assert "chosen elsewhere" not in made_in_words(made.kit.about["made"])


@pytest.mark.slow
def test_a_model_that_travels_says_whose_tiles_it_needs(made, study, tmp_path):
    kit, home = study[:2]
    folder = write_kit(kit, tmp_path / "model")
    said = read_model(folder)["about"]["made"]
    assert said["tiles"] == "table" and "corners" not in said, "nobody's corners travel"
    assert "3 tiles of 256 px at 10x and 20x, chosen elsewhere (in a table), features by random:resnet18" in card(kit)
    with pytest.raises(InputError, match="name those of the new slides with the key 'tiles'"):
        ask(read_kit(folder), made, tmp_path / "elsewhere")
    check_same({"tile_px": TILE, "min_density": 0.3}, made_by(home, made.cohort.slide_id))  # no density was asked
    assert np.isfinite(
        ask(read_kit(folder), made, tmp_path / "elsewhere", tiles=table_of(tmp_path / "new.csv", NEW)).x.numpy()
    ).all()


def test_what_made_the_features_of_a_slide_with_brackets_is_found(tmp_path):
    own_study(tmp_path, names=("a [HE]",))
    assert made_by(tmp_path, ["a [HE]"])[-1]["encoder"]["name"] == "net:a/b"
