"""A slide that is not like the study's is marked, its own are not; the distance is Breunig's, the border its own."""

import numpy as np
import pytest
from sklearn.neighbors import LocalOutlierFactor

from dmsmil.apply import novelty
from dmsmil.apply.novelty import border, in_borders, left_out, likeness, slide_vectors
from dmsmil.apply.pages import warnings_of
from dmsmil.cohorts.made.pyramid import write_svs
from dmsmil.features.bags import toy_bags
from tests.apply.conftest import NEW

pytestmark = pytest.mark.xdist_group("apply")


def strange(tmp_path, kind):
    """A slide of noise, or one that is green all over."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 200, (1536, 1536, 3), dtype=np.uint8)
    if kind == "colours":
        picture = np.clip(np.array([40, 150, 60]) + rng.normal(0, 6, (1536, 1536, 1)), 0, 255).astype(np.uint8)
    write_svs(picture, tmp_path / "strange.svs")
    return tmp_path / "strange.svs"


@pytest.mark.slow
@pytest.mark.parametrize("kind, unlike", [("noise", "features, colours"), ("colours", "colours")])
def test_a_strange_slide_is_marked_in_table_and_words(made, tmp_path, kind, unlike):
    row = made.apply(strange(tmp_path, kind), home=tmp_path)[0].table.iloc[0]
    assert row.unlike == unlike and row.distance_colours > 1.5
    assert row.models == 2 and row.known == "", "models answer whatever they are shown"
    assert next(warnings_of(row.to_dict())) == (
        f"Unlike the training slides, in its {unlike.replace(', ', ' and ')}: what is said of it rests on nothing."
    )


@pytest.mark.slow
def test_slides_of_the_same_painter_are_not_marked(whole):
    table = whole[0].table.set_index("slide_id")
    assert (table.loc[NEW].unlike == "").all() and (table.unlike == "").all()


def test_the_vectors_are_means_of_tiles_that_are_there():
    bags = toy_bags(6, 8, 4)
    found = slide_vectors(bags)["features"]
    x, mask = bags.x.numpy(), bags.mask.numpy()
    for row in range(6):
        own = np.concatenate([x[row, s][mask[row, s]].mean(0) for s in range(2)])
        np.testing.assert_allclose(found[row], own, rtol=1e-5, atol=1e-6)


def test_the_distance_is_the_local_outlier_factor_of_a_slide_without_its_patient():
    """By hand: the other patients' slides, each number brought to their spread, and the factor of the one left out."""
    rng = np.random.default_rng(0)
    values, patients = rng.normal(size=(12, 5)) * [1, 10, 100, 1, 1], [f"p{i // 2}" for i in range(12)]
    found = left_out({"features": values}, patients)["features"]
    for row in range(12):
        rest = [other for other in range(12) if patients[other] != patients[row]]
        mean, spread = values[rest].mean(0), values[rest].std(0)
        detector = LocalOutlierFactor(n_neighbors=len(rest) // 3, novelty=True).fit((values[rest] - mean) / spread)
        assert found[row] == pytest.approx(-detector.score_samples((values[row : row + 1] - mean) / spread)[0])


def test_beyond_the_border_is_one_in_a_hundred_of_its_own():
    values = np.random.default_rng(0).normal(size=1000)
    assert np.mean(values > border(values)) == pytest.approx(0.01, abs=0.002)
    assert border(np.array([1.0, 2.0, 3.0])) == 3.0, "of few slides: the farthest"
    assert in_borders({"features": np.array([1.0, 4.0])})["features"].tolist() == [0.25, 1.0]


def test_new_slides_of_the_same_kind_are_seldom_marked():
    """Slides drawn alike: hardly any is beyond; shifted by ten deviations: all are."""
    rng = np.random.default_rng(1)
    study, patients = rng.normal(size=(120, 6)).astype(np.float32), [str(i) for i in range(120)]
    bags = toy_bags(200, 2, 3)
    new = rng.normal(size=(200, 6)).astype(np.float32)
    own = left_out({"features": study}, patients)
    for shift, low, high in ((0.0, 0.0, 0.05), (10.0, 1.0, 1.0)):
        found = {"features": new + np.float32(shift)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(novelty, "slide_vectors", lambda bags: found)
            share = (likeness({"features": study}, own, bags).unlike != "").mean()
        assert low <= share <= high


@pytest.mark.slow
def test_without_colours_only_features_are_compared(made):
    bags = toy_bags(6, 8, 4)
    bags.colour[2, 1] = np.nan
    assert list(slide_vectors(bags)) == ["features"]
