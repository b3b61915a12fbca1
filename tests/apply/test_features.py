"""A study whose features were made elsewhere, asked about slides whose features were made elsewhere too."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dmsmil.apply.features import new_bags
from dmsmil.apply.incoming import read_slides
from dmsmil.apply.kit import study_kit
from dmsmil.apply.pages import make_pages
from dmsmil.apply.predict import apply_kit
from dmsmil.apply.travel import read_kit, write_kit
from dmsmil.cohorts.folds import make_folds
from dmsmil.features.bags import load_bags
from dmsmil.features.stages import take_features
from dmsmil.jobs.files import InputError
from dmsmil.slides.store import Store
from dmsmil.training.config import configure
from dmsmil.training.runs import get_runs
from tests.apply.conftest import quiet
from tests.conftest import assert_one_line
from tests.features.test_formats import clam, grids, trident

pytestmark = pytest.mark.xdist_group("apply")
SETTINGS, K, PX = {"epochs": 2, "lr": 1e-3}, 8, 256
OWN, NEW = ["a1", "a2", "b1", "b2"], ["n1", "n2"]


def job_of(place, names, **more):
    """A TRIDENT job folder with these slides."""
    for name in names:
        trident(place, name, grids(name), **more)
    return str(place)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study on features of TRIDENT: its kit, its cohort with two slides that it has not, and all their bags."""
    place = tmp_path_factory.mktemp("foreign")
    job, home = job_of(place / "job", OWN + NEW), place / "mine"
    whole = pd.DataFrame(
        {"slide_id": OWN + NEW, "patient_id": OWN + NEW, "label": list("ababab"), "site": "", "path": "", "mpp": 0.25}
    )
    cohort, store = whole[:4], Store(home, PX, (10, 20), "uni_v1")
    take_features(store, cohort, job, K, workers=1, report=quiet)
    bags, folds = load_bags(store, cohort, K), make_folds(cohort, 2)
    configs = [configure(bags, folds, name, **SETTINGS) for name in ("dmsmil", "meanpool")]
    get_runs(home, bags, folds, configs, workers=1, report=quiet)
    kit = study_kit(home, bags, folds, cohort, "dmsmil", **SETTINGS)
    return SimpleNamespace(place=place, kit=kit, whole=whole, job=job)


@pytest.fixture
def slides(study, tmp_path):
    study.whole[["slide_id", "mpp"]].to_csv(tmp_path / "new.csv", index=False)
    return read_slides(tmp_path / "new.csv", study.kit.classes, slides_needed=False, report=quiet)[0]


def ask(study, slides, home, source, kit=None):
    return new_bags(kit or study.kit, home, slides, [], source, workers=1, report=quiet)


@pytest.mark.slow
def test_new_slides_are_seen_as_the_study_would_have_seen_them(study, slides, tmp_path):
    bags = ask(study, slides, tmp_path / "a", study.job)
    store = Store(tmp_path / "b", PX, (10, 20), "uni_v1")
    take_features(store, study.whole, study.job, K, workers=1, report=quiet)
    theirs = load_bags(store, study.whole, K)
    assert bags.slide_ids == theirs.slide_ids and (bags.x == theirs.x).all() and (bags.coords == theirs.coords).all()
    said = apply_kit(study.kit, bags, slides)
    table = said.table.set_index("slide_id")
    assert (table.known[NEW] == "").all() and (table.models[NEW] == 2).all()
    assert table.known[OWN].str.contains("slide").all() and (table.models[OWN] == 1).all()
    page = make_pages(study.kit, said, slides, bags.store, workers=1, report=quiet)
    assert all((page.parent / f"pages/{name}.html").exists() for name in OWN + NEW), "without any slide file"


@pytest.mark.slow
def test_a_model_that_travels_takes_them_too(study, slides, tmp_path):
    folder = write_kit(study.kit, tmp_path / "model")
    bags = ask(study, slides, tmp_path / "there", study.job, kit=read_kit(folder))
    there = apply_kit(read_kit(folder), bags, slides).table
    here = apply_kit(study.kit, ask(study, slides, tmp_path / "here", study.job), slides).table
    assert np.allclose(there.prob_a, here.prob_a, atol=1e-6)


REFUSED = {
    "none": (lambda place: "", "features of this study were made elsewhere: name those of the new slides with the key"),
    "another width": (
        lambda place: job_of(place / "job", NEW + OWN, dim=9),
        "the encoder's dim is 9, and the study was made with 6: it is applied as it was made",
    ),
    "another encoder": (
        lambda place: job_of(place / "job", NEW + OWN, encoder="conch_v15"),
        "has no features by the study's encoder 'uni_v1', but by conch_v15",
    ),
    "another program": (
        lambda place: str([clam(place / "feats_{scale}x", name, grids(name)) for name in NEW + OWN][0]),
        "the encoder's made by is 'CLAM', and the study was made with 'TRIDENT'",
    ),
    "random numbers": (lambda place: "drawn", "and the study was made with"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_differs_is_refused_before_anything_is_read(name, study, slides, tmp_path):
    make, message = REFUSED[name]
    with pytest.raises(InputError) as caught:
        ask(study, slides.assign(label=list("ababab")), tmp_path / "new", make(tmp_path))
    assert message in str(caught.value)
    assert_one_line(caught, "")
    assert not list(tmp_path.glob("new/**/*.h5"))


@pytest.mark.slow
def test_a_study_that_made_its_own_takes_none(made, study, tmp_path):
    slides, _ = read_slides(made.slides, made.kit.classes, report=quiet)
    with pytest.raises(InputError, match="made its features itself, .*: leave the key 'features' empty") as caught:
        new_bags(made.kit, tmp_path, slides, [], study.job, workers=1, report=quiet)
    assert_one_line(caught, "features")
