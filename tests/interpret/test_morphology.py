"""Scores against nuclei and between classes: planted links are found, and only those; a slide is segmented once."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from dmsmil.analysis.claims import claims
from dmsmil.interpret import morphology
from dmsmil.interpret.morphology import (
    LEAST,
    WHAT,
    associations,
    claims_table,
    class_scores,
    cohort_nuclei,
    scored_nuclei,
)
from dmsmil.interpret.nuclei import tile_nuclei
from dmsmil.jobs.failures import read_failures
from dmsmil.jobs.files import InputError
from dmsmil.slides.reader import open_slide
from dmsmil.slides.stages import tile_cohort
from dmsmil.slides.store import Store
from dmsmil.training.results import save_table
from tests.slides.pyramids import make_slide


def tiles(link=0.0, level=0.0, slides=16, count=30, seed=0):
    """A table of `scored_nuclei`: inside a slide each measurement follows the score by `link`; `level` moves both by
    slide, as stain and class do. Two slides a patient."""
    rng, parts = np.random.default_rng(seed), []
    for number in range(slides):
        score = rng.normal(size=count)
        parts.append(
            pd.DataFrame(
                {
                    "slide_id": f"s{number:02d}",
                    "patient_id": f"p{number // 2:02d}",
                    "label": "ab"[number // 2 % 2],
                    "scale": 20,
                    "place": np.arange(count),
                    "normalised": score + level * number,
                    **{what: link * score + rng.normal(size=count) + level * number for what in WHAT},
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def row_of(table, what="area_um2", label="all"):
    return table[(table.what == what) & (table.label == label)].iloc[0]


# ------------------------------------------------------------------------------------------------ associations


@pytest.mark.parametrize("sign", [1, -1])
def test_a_link_inside_slides_is_found_with_its_sign(sign):
    found = associations(tiles(link=sign))
    assert (sign * found.rho > 0.5).all() and (np.sign(found.low) == np.sign(found.high)).all()
    assert list(found.label) == ["a", "b", "all"] * 3 and list(found.slides) == [8, 8, 16] * 3


@pytest.mark.slow
def test_a_link_between_slides_is_none():
    """What differs by slide, stain or class, correlates over all tiles at .99, and must not count."""
    table = tiles(level=5.0, slides=60)
    assert spearmanr(table.normalised, table.area_um2).statistic > 0.95
    found = associations(table)
    assert (found.rho.abs() < 0.12).all() and row_of(found).low < 0 < row_of(found).high
    pd.testing.assert_frame_equal(found, associations(tiles(slides=60)))


def test_rho_is_the_mean_over_patients_of_the_mean_over_their_slides():
    table = tiles(link=0.5)
    by_slide = {
        key: spearmanr(part.normalised, part.density_mm2).statistic
        for key, part in table.groupby(["patient_id", "slide_id"])
    }
    by_patient = pd.Series(by_slide).groupby(level=0).mean()
    assert row_of(associations(table), "density_mm2").rho == pytest.approx(by_patient.mean())


@pytest.mark.slow
def test_more_slides_of_the_same_patients_are_no_more_evidence():
    table = tiles(link=0.3)
    copies = [table.assign(slide_id=table.slide_id + f"-{copy}") for copy in range(5)]
    one, five = associations(table), associations(pd.concat(copies, ignore_index=True))
    np.testing.assert_allclose(five[["rho", "low", "high"]], one[["rho", "low", "high"]])
    assert (five.slides == 5 * one.slides).all()


def test_what_was_not_measured_is_left_out():
    """Tiles without nuclei have no area; slides with too few tiles that have one, or with a constant map, no rho."""
    table = tiles(link=1.0)
    holes = table.copy()
    holes.loc[holes.place >= 20, "area_um2"] = np.nan
    kept = associations(table[table.place < 20])
    assert row_of(associations(holes)).equals(row_of(kept))
    holes.loc[(holes.slide_id == "s00") & (holes.place >= LEAST - 1), "area_um2"] = np.nan
    holes.loc[holes.slide_id == "s01", "normalised"] = 0.5
    found = associations(holes)
    assert row_of(found).slides == 14 and row_of(found, "density_mm2").slides == 15
    none = associations(table.assign(normalised=0.5))
    assert none[["rho", "low", "high"]].isna().all(axis=None) and (none.slides == 0).all()


def test_one_patient_has_no_interval():
    table = tiles(link=1.0)
    found = associations(table[table.patient_id == "p00"])
    assert row_of(found).rho > 0.5 and found[["low", "high"]].isna().all(axis=None)


# ------------------------------------------------------------------------------------------------ classes


def scores(means, count=10):
    """A table of `tile_scores`: `means` {(slide, patient, label): mean normalised score}, the same at both scales."""
    spread = np.linspace(-0.1, 0.1, count)
    return pd.concat(
        [
            pd.DataFrame(
                {"slide_id": slide, "patient_id": patient, "label": label, "scale": scale, "normalised": mean + spread}
            )
            for (slide, patient, label), mean in means.items()
            for scale in (10, 20)
        ],
        ignore_index=True,
    )


MEANS = {
    ("s1", "p1", "a"): 0.2,
    ("s2", "p1", "a"): 0.4,
    ("s3", "p2", "a"): 0.5,
    ("s4", "p3", "b"): 0.6,
    ("s5", "p4", "b"): 0.9,
}


def test_a_claim_about_two_classes_is_not_run_where_there_are_three():
    table = scores(MEANS)
    third = table[table.label == "b"].assign(label="c", patient_id=lambda part: part.patient_id + "c")
    between = class_scores(pd.concat([table, third]), "b")
    assert between.empty and list(between) == list(class_scores(table, "b"))
    claims = claims_table(found_at(0.1, 0.3), between, "X", "b", QUALITY, True)
    assert claims.iloc[0].to_dict() == {
        "claim": "Slides of one class score lower than those of the other",
        "where": "Fig. 6 and 7",
        "verdict": "not run",
        "number": "it needs two classes",
    }
    assert list(claims.verdict[1:3]) != ["not run"] * 2


def test_class_scores_by_hand():
    got = class_scores(scores(MEANS), "b")
    assert list(got.scale) == [10, 20]
    np.testing.assert_allclose(got.positive, (0.6 + 0.9) / 2)
    np.testing.assert_allclose(got.others, (0.3 + 0.5) / 2)  # p1: the mean of its two slides
    np.testing.assert_allclose(got.difference, 0.35)
    np.testing.assert_allclose(got.low, 0.6 - 0.5)  # two patients a class: the extremes are often drawn
    np.testing.assert_allclose(got.high, 0.9 - 0.3)


def test_a_slide_counts_alike_however_many_tiles_it_has():
    table = scores(MEANS)
    more = table[table.slide_id == "s1"]
    pd.testing.assert_frame_equal(class_scores(pd.concat([table, more, more]), "b"), class_scores(table, "b"))


def test_the_other_class_gives_the_negative():
    b, a = (class_scores(scores(MEANS), name) for name in "ba")
    np.testing.assert_allclose(a.difference, -b.difference)
    np.testing.assert_allclose(a[["low", "high"]], -b[["high", "low"]])


def test_a_class_of_one_patient_has_no_interval():
    got = class_scores(scores({key: mean for key, mean in MEANS.items() if key[1] != "p4"}), "b")
    assert got.difference.notna().all() and got[["low", "high"]].isna().all(axis=None)


# ------------------------------------------------------------------------------------------------ claims

QUALITY = pd.Series({"map": "faithful", "replaced": 0.2, "replaced_low": 0.1, "replaced_high": 0.3})


def found_at(low, high):
    """A table of `associations` whose rows all have this interval."""
    return pd.DataFrame(
        [
            {"what": what, "label": "all", "rho": (low + high) / 2, "low": low, "high": high, "slides": 9}
            for what in WHAT
        ]
    )


def between_at(low, high):
    return pd.DataFrame(
        [
            {
                "scale": 10,
                "positive": 0.5,
                "others": 0.5 - (low + high) / 2,
                "difference": (low + high) / 2,
                "low": low,
                "high": high,
            }
        ]
    )


@pytest.mark.parametrize(
    "low, high, higher, lower",
    [
        (0.1, 0.3, "held", "not held"),
        (-0.1, 0.3, "not shown", "not shown"),
        (-0.3, -0.1, "not held", "held"),
        (0.0, 0.0, "not shown", "not shown"),
        (np.nan, np.nan, "not shown", "not shown"),
    ],
)
def test_verdicts_turn_with_the_interval_and_with_what_is_claimed(low, high, higher, lower):
    found, between = found_at(low, high), between_at(low, high)
    up = claims_table(found, between, "X", "LUSC", QUALITY, higher=True)
    down = claims_table(found, between, "X", "ILC", QUALITY, higher=False)
    assert (up.claim[0], up.verdict[0]) == ("LUSC slides score higher at 10x", higher)
    assert (down.claim[0], down.verdict[0]) == ("ILC slides score lower at 10x", lower)
    for table in (up, down):  # what is said of nuclei does not depend on the class
        assert table.verdict[table.claim == "High-scoring tiles have larger nuclei"].item() == higher
        assert table.verdict[table.claim == "Low-scoring tiles hold the lymphocytes"].item() == lower


@pytest.mark.parametrize(
    "word, verdict",
    [
        ("faithful", "held"),
        ("misleading", "not held"),
        ("not shown to be faithful", "not shown"),
        ("faithful but not learned", "not shown"),
        ("constant", "not shown"),
    ],
)
def test_a_map_that_is_not_faithful_is_said_to_be_none(word, verdict):
    table = claims_table(found_at(0.1, 0.3), between_at(0.1, 0.3), "X", "b", QUALITY.replace("faithful", word), True)
    assert table.verdict.iloc[-1] == verdict and f"map {word};" in table.number.iloc[-1]
    assert len(claims_table(found_at(0.1, 0.3), between_at(0.1, 0.3), "X", "b", None, True)) == len(table) - 1


def test_a_faithful_map_says_whether_it_finds_the_truth_where_that_is_known():
    """A map can decide, and have nothing to do with what was painted."""
    quality = pd.concat([QUALITY, pd.Series({"truth_10x": 0.5, "truth_20x": math.nan, "truth_random_10x": 0.6})])
    number = claims_table(found_at(0.1, 0.3), between_at(0.1, 0.3), "X", "b", quality, True).number.iloc[-1]
    assert number.endswith("; AUC against the truth 0.50 at 10x")
    unknown = claims_table(found_at(0.1, 0.3), between_at(0.1, 0.3), "X", "b", QUALITY, True)
    assert "truth" not in unknown.number.iloc[-1]


def test_the_studys_checklist_takes_the_claims_as_they_are(tmp_path):
    table = claims_table(found_at(-0.3, -0.1), between_at(0.1, 0.3), "X", "b", QUALITY, higher=True)
    save_table(table, tmp_path, "07_claims")
    last = claims(tmp_path).tail(len(table))
    assert (
        last[["claim", "verdict", "number"]].to_numpy().tolist()
        == table[["claim", "verdict", "number"]].to_numpy().tolist()
    )
    assert set(last["tested in"]) == {"07_interpret"}


# ------------------------------------------------------------------------------------------------ a cohort


def silent(line):
    """A report that nobody reads."""


def tiled(home, cohort, k):
    """The store of a cohort with `k` tiles a slide."""
    store = Store(home, 64, (10, 20))
    tile_cohort(store, cohort, k=k, workers=1, report=silent)
    return store


@pytest.fixture
def study(tmp_path):
    """(store, cohort) of two small slides with six tiles each."""
    cohort = pd.DataFrame(
        [
            {
                "slide_id": name,
                "patient_id": name,
                "label": label,
                "mpp": 0.0,
                "path": str(make_slide(tmp_path / f"{name}.svs", 900, 800, seed=seed, coverage=0.9)),
            }
            for seed, (name, label) in enumerate((("007", "a"), ("s2", "b")))
        ]
    )
    return tiled(tmp_path / "study", cohort, 6), cohort


@pytest.fixture
def segmented(monkeypatch):
    """The slides that are segmented from here on, in order."""
    names = []

    def counted(slide, *args):
        names.append(slide.slide_id)
        return tile_nuclei(slide, *args)

    monkeypatch.setattr(morphology.segmentation, "tile_nuclei", counted)
    return names


def nuclei_of(store, cohort, **options):
    return cohort_nuclei(store, cohort, workers=1, report=silent, **options)


@pytest.mark.slow
def test_one_row_a_tile_and_each_slide_segmented_once(study, segmented):
    store, cohort = study
    table = nuclei_of(store, cohort)
    assert segmented == ["007", "s2"] and len(table) == 12 and table.nuclei.sum() > 12
    for name, path in zip(cohort.slide_id, cohort.path):
        part, coords = table[table.slide_id == name], store.read_tiles(name).coords[20]
        np.testing.assert_array_equal(part[["x", "y"]], coords)
        with open_slide(path) as slide:
            again = tile_nuclei(slide, coords, 20, 64)
        np.testing.assert_allclose(part[["nuclei", *WHAT]], again[["nuclei", *WHAT]], rtol=1e-5)
    pd.testing.assert_frame_equal(nuclei_of(store, cohort), table)
    assert segmented == ["007", "s2"]


@pytest.mark.slow
def test_a_method_of_the_coarse_scale_has_the_nuclei_of_its_tiles(study, segmented):
    store, cohort = study
    fine = nuclei_of(store, cohort)
    table = nuclei_of(store, cohort, scale=10)
    assert segmented == ["007", "s2"] * 2 and set(table.scale) == {10} and table.nuclei.sum() > fine.nuclei.sum()
    scored = table[["slide_id", "scale", "x", "y"]].assign(score=1.0)
    assert len(scored_nuclei(scored, table)) == len(table) and scored_nuclei(scored, fine).empty
    pd.testing.assert_frame_equal(nuclei_of(store, cohort), fine)
    assert segmented == ["007", "s2"] * 2, "neither overwrites the other"


@pytest.mark.slow
def test_scores_meet_the_nuclei_of_their_own_tile(study):
    """A bag of fewer tiles than the store counts its rows otherwise."""
    store, cohort = study
    nuclei = nuclei_of(store, cohort)
    chosen = nuclei.iloc[[1, 3, 7, 10]]
    scored = chosen[["slide_id", "scale", "x", "y"]].assign(place=[0, 1, 0, 1], score=[1.0, 2.0, 3.0, 4.0])
    got = scored_nuclei(pd.concat([scored, scored.assign(scale=10)]), nuclei)
    assert list(got.score) == [1, 2, 3, 4] and list(got.place) == [0, 1, 0, 1]
    np.testing.assert_array_equal(got.nuclei, chosen.nuclei)


@pytest.mark.slow
def test_other_tiles_or_another_mpp_are_segmented_again(study, segmented):
    store, cohort = study
    nuclei_of(store, cohort)
    segmented.clear()
    store = tiled(store.home, cohort, 4)
    assert len(nuclei_of(store, cohort)) == 8 and segmented == ["007", "s2"]
    segmented.clear()
    nuclei_of(store, cohort.assign(mpp=[0.0, 0.52]))
    assert segmented == ["s2"]


@pytest.mark.slow
def test_the_studys_mpp_leaves_the_nuclei_of_slides_that_say_theirs_as_they_are(tmp_path):
    made = {
        name: make_slide(tmp_path / f"{name}.svs", 900, 800, seed=3, coverage=0.9, objective=None, mpp=mpp)
        for name, mpp in (("says", 0.25), ("silent", None))
    }
    cohort = pd.DataFrame(
        [
            {"slide_id": name, "patient_id": name, "label": "a", "mpp": 0.0, "path": str(path)}
            for name, path in made.items()
        ]
    )
    store = Store(tmp_path / "study", 64, (10, 20))
    tile_cohort(store, cohort, k=6, mpp=0.5, workers=1, report=silent)
    found = nuclei_of(store, cohort, mpp=0.5).set_index("slide_id")
    for name, mpp in (("says", 0.25), ("silent", 0.5)):
        with open_slide(made[name], mpp) as slide:
            own = tile_nuclei(slide, store.read_tiles(name).coords[20], 20, 64)
        np.testing.assert_allclose(found.loc[name, list(WHAT)], own[list(WHAT)], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: "not,a\ntable",
        lambda text: text[: len(text) // 2],
        lambda text: text[: text.rstrip().rindex("\n") + 1],  # whole rows, one less
        lambda text: "\0\xff" * 50,
    ],
    ids=["empty", "other", "half", "a row less", "bytes"],
)
def test_a_damaged_table_is_made_again(study, segmented, spoil):
    store, cohort = study
    whole = nuclei_of(store, cohort)
    path = store.home / "nuclei" / "20x_64px" / "s2.csv"
    good = path.read_text()
    path.write_text(spoil(good), encoding="latin-1")
    segmented.clear()
    pd.testing.assert_frame_equal(nuclei_of(store, cohort), whole)
    assert segmented == ["s2"] and path.read_text() == good


@pytest.mark.slow
def test_a_broken_slide_is_a_row_and_the_others_go_on(study, segmented):
    store, cohort = study
    broken, sound = cohort.path
    with open(broken, "rb") as file:
        bytes_of = file.read()
    with open(broken, "wb") as file:
        file.write(b"this is not a slide")
    said = []
    table = cohort_nuclei(store, cohort, workers=1, report=said.append)
    assert set(table.slide_id) == {"s2"} and len(said) == 2 and "007" in said[0]
    failures = read_failures(store.home)
    assert list(failures.unit) == ["007"] and list(failures.stage) == ["nuclei"]
    with open(broken, "wb") as file:
        file.write(bytes_of)
    segmented.clear()
    assert set(nuclei_of(store, cohort).slide_id) == {"007", "s2"} and segmented == ["007"]
    assert read_failures(store.home).empty, "what works now is no longer listed"


@pytest.mark.slow
def test_no_slide_at_all_is_said_in_one_line(study, tmp_path):
    store, cohort = study
    broken = tmp_path / "broken.svs"
    broken.write_bytes(b"this is not a slide")
    with pytest.raises(InputError, match="in no slide: see failures.csv"):
        nuclei_of(store, cohort.assign(path=str(broken)))
    found = nuclei_of(store, cohort.assign(path="gone.svs"))
    assert found.empty and list(found) == morphology.COLUMNS, "slides without a file are passed over"
