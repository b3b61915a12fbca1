"""A rehearsal's features: as many, as linked and as marked as they say, and the same whoever draws them."""

import numpy as np
import pandas as pd
import pytest

from dmsmil.features.bags import load_bags
from dmsmil.features.rehearsal import CHANNELS, MARK, SHARE, SIGNAL, draw_features
from dmsmil.jobs.files import InputError
from dmsmil.slides.magnification import tile_size_level0
from dmsmil.slides.store import Store

K, DIM = 40, 64


@pytest.fixture(scope="module")
def cohort():
    rows = [(f"s{i:02d}", f"p{i // 2:02d}", "AB"[i % 2 if i < 4 else i // 2 % 2], f"site{i % 3}") for i in range(24)]
    return pd.DataFrame(rows, columns=["slide_id", "patient_id", "label", "site"])


@pytest.fixture(scope="module")
def store(tmp_path_factory, cohort):
    store = Store(tmp_path_factory.mktemp("rehearsal"), 512, (10, 20), "drawn")
    draw_features(store, cohort, K, DIM, workers=1, report=[].append)
    return store


@pytest.mark.slow
def test_every_tile_has_its_child_inside_it(store, cohort):
    bags = load_bags(store, cohort, K)
    assert bags.x.shape == (len(cohort), 2, K, DIM) and bags.mask.all()
    inside = (bags.coords[:, 1] - bags.coords[:, 0]).numpy()
    room = tile_size_level0(40, 10, 512) - tile_size_level0(40, 20, 512)
    assert inside.min() >= 0 and inside.max() <= room
    for row in bags.coords[:, 0].numpy():
        assert len({tuple(corner) for corner in row}) == K, "two tiles in one place"


@pytest.mark.slow
def test_class_and_site_are_planted_as_said(store, cohort):
    bags = load_bags(store, cohort, K)
    means = bags.x.mean((1, 2)).numpy()
    labels = np.asarray(bags.classes)[bags.labels]
    apart = (means[labels == "B"] - means[labels == "A"].mean(0))[:, :CHANNELS].mean()
    assert apart == pytest.approx(2 * SHARE * SIGNAL, abs=0.05)
    site = cohort.set_index("slide_id").site.loc[bags.slide_ids].to_numpy()
    own = means[:, CHANNELS:] - means[:, CHANNELS:].mean(0)
    between = np.stack([own[site == name].mean(0) for name in np.unique(site)]).var(0, ddof=1).mean()
    noise = 1 / (2 * K * (site == site[0]).sum())
    assert between == pytest.approx(MARK**2 + noise, rel=0.5) and between > 1.2 * noise


@pytest.mark.slow
def test_they_depend_on_the_slide_alone_and_are_drawn_once(store, cohort, tmp_path):
    other = Store(tmp_path, 512, (10, 20), "drawn")
    draw_features(other, cohort.iloc[::-1].iloc[:5], K, DIM, workers=1, report=[].append)
    name = cohort.slide_id.iloc[-1]
    assert np.array_equal(other.read_features(name)[20].features, store.read_features(name)[20].features)
    before = store.features_path(10, name).stat().st_mtime_ns
    said = []
    draw_features(store, cohort, K, DIM, workers=1, report=said.append)
    assert store.features_path(10, name).stat().st_mtime_ns == before and "24 of 24 slides were done before" in said
    draw_features(store, cohort, K, DIM, seed=1, workers=1, report=said.append)
    assert store.features_path(10, name).stat().st_mtime_ns > before
    draw_features(store, cohort, K, DIM, workers=1, report=[].append)  # as the other tests expect it


@pytest.mark.slow
def test_three_classes_are_refused(store, cohort):
    with pytest.raises(InputError, match="two classes"):
        draw_features(store, cohort.assign(label=["A", "B", "C"] * 8), K, DIM)
