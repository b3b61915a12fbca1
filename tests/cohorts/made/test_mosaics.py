"""Mosaics: copies of one original are found in any orientation, and never stand in two slides."""

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import openslide
import pandas as pd
import pytest
from skimage.color import rgb2lab
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dmsmil.cohorts.made import mosaics, originals
from dmsmil.cohorts.made.mosaics import GLASS, MARGIN, main, make_mosaics, plan_mosaics, read_truth
from dmsmil.cohorts.made.originals import FIELD, find_fields, group_by_original, read_field
from dmsmil.cohorts.made.stains import WAYS, fit_stains, reference_fields, restain
from dmsmil.cohorts.table import load_cohort
from dmsmil.features.truth import witness_share
from dmsmil.jobs.files import InputError, fingerprint, read_json
from tests.conftest import assert_one_line
from tests.slides.pyramids import texture

SHARED = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "lung_lc25000"
ORIGINALS, COPIES = 4, 4
SMALL = dict(slides_per_class=2, side=3, seed=1, workers=1, normal_share=0, normalise="none")
MIXED = {**SMALL, "normal_share": 0.6, "normalise": "reinhard+macenko"}


def augment(image, rng, flip=False):
    """Another view of `image`: turned, sheared and zoomed within the picture, perhaps flipped, its white moved."""
    side = image.shape[0]
    angle, zoom = np.deg2rad(rng.uniform(-25, 25)), rng.uniform(1.25, 1.6)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inner = turn @ np.array([[1, rng.uniform(-0.15, 0.15)], [0, 1]]) / zoom
    centre = np.array([side / 2, side / 2])
    matrix = np.hstack([inner, (centre - inner @ centre)[:, None]])
    view = cv2.warpAffine(
        image, matrix, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
    )
    view = view[:, ::-1] if flip else view
    return np.clip(view * rng.uniform(0.9, 1.0, 3), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """LC25000 in small, laid out as published: the folder to name, and {field: its true original}."""
    home = tmp_path_factory.mktemp("images")
    truth, rng = {}, np.random.default_rng(0)
    for offset, name in ((0, "lung_aca"), (100, "lung_scc"), (200, "lung_n")):
        folder = home / "lung_colon_image_set" / "lung_image_sets" / name
        folder.mkdir(parents=True)
        numbers = iter(rng.permutation(ORIGINALS * COPIES))
        for original in range(ORIGINALS):
            image = texture(384, 384, seed=offset + original, coverage=1)
            for copy in range(COPIES):
                view = augment(image, rng, flip=copy % 2 == 1)
                path = folder / f"field{next(numbers)}.jpeg"
                cv2.imwrite(str(path), view[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
                truth[f"{name}/{path.name}"] = offset + original
    return home, truth


@pytest.fixture(scope="module")
def mixed(images, tmp_path_factory):
    """A small cohort with normal tissue, in one stain: its folder and table."""
    folder = tmp_path_factory.mktemp("mixed")
    return folder, make_mosaics(images[0], folder, **MIXED)


@pytest.fixture(scope="module")
def made(images, tmp_path_factory):
    """A small cohort: its folder and table."""
    folder = tmp_path_factory.mktemp("mosaics")
    return folder, make_mosaics(images[0], folder, **SMALL)


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def records(folder, table) -> dict[str, list]:
    return {name: read_json(Path(folder) / "fields" / f"{name}.json")["fields"] for name in table.slide_id}


@pytest.mark.slow
def test_copies_of_an_original_are_found(images):
    home, fields = find_fields(images[0])
    for names in fields.values():
        groups = group_by_original(home, names)
        assert sorted(name for group in groups for name in group) == names
        assert [len({images[1][name] for name in group}) for group in groups] == [1] * ORIGINALS


@pytest.mark.slow
def test_the_order_of_the_fields_changes_no_group(images):
    home, fields = find_fields(images[0])
    forward, backward = (group_by_original(home, fields["LUAD"][::step]) for step in (1, -1))
    assert {frozenset(group) for group in forward} == {frozenset(group) for group in backward}


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/lung_lc25000, real fields with known groups")
@pytest.mark.parametrize("label", ["LUAD", "LUSC"])
def test_on_real_fields_no_copies_are_split(label):
    known = pd.read_csv(SHARED / "groups.csv")
    known = known[known.label == label].set_index("image").group
    known = known[known.isin(known.unique()[:12])]
    groups = group_by_original(SHARED, sorted(known.index))
    ours = pd.Series({name: number for number, group in enumerate(groups) for name in group})
    assert len(ours) == len(known), "no real field is too plain"
    assert (ours.groupby(known[ours.index]).nunique() == 1).all()
    assert adjusted_rand_score(known[ours.index], ours) > 0.95  # not 1: some of the known groups overlap


def test_a_mirrored_feature_is_the_feature_of_the_mirror_image():
    rgb = texture(FIELD, FIELD, seed=5, coverage=1)
    places, features = originals._describe(rgb)
    flipped_places, flipped = originals._describe(np.ascontiguousarray(rgb[:, ::-1]))
    there = places * [-1, 1] + [FIELD - 1, 0]
    gap = np.linalg.norm(there[:, None] - flipped_places, axis=-1)
    here = gap.min(1) < 1  # among the strongest of both
    # a place may have several features, of several directions: the best is the one
    mirrored, plain = (
        np.where(gap < 1, part @ flipped.T, 0).max(1)[here] for part in (originals._mirror(features), features)
    )
    assert here.mean() > 0.5 and np.median(mirrored) > 0.98 and np.median(plain) < 0.9
    np.testing.assert_array_equal(originals._mirror(originals._mirror(features)), features)


@pytest.mark.slow
def test_plain_fields_are_left_out(tmp_path, images):
    home, fields = find_fields(images[0])
    (tmp_path / "lung_aca").mkdir()
    for name in fields["LUAD"][:2]:
        (tmp_path / name).write_bytes((home / name).read_bytes())
    cv2.imwrite(str(tmp_path / "lung_aca" / "glass.png"), np.full((300, 300, 3), 240, np.uint8))
    groups = group_by_original(tmp_path, [*fields["LUAD"][:2], "lung_aca/glass.png"])
    assert sorted(name for group in groups for name in group) == fields["LUAD"][:2]


def toy_originals(sizes):
    return {
        label: [[f"{label}{number}-{i}" for i in range(size)] for number, size in enumerate(sizes)]
        for label in ("LUAD", "LUSC")
    }


@pytest.mark.parametrize("sizes", [[3] * 9, [20, 1, 1, 2, 5, 4, 9], [1, 1, 1]])
def test_every_original_is_in_one_slide_and_shown_equally_often(sizes):
    rows = plan_mosaics(toy_originals(sizes), 3, side=6, seed=2)
    assert [row["slide_id"] for row in rows] == [f"{label}-0{n}" for label in ("LUAD", "LUSC") for n in range(3)]
    assert len({row["patient_id"] for row in rows}) == 6
    slides_of, shown = {}, Counter()
    for row in rows:
        cells = [(r, c) for r, c, *_ in row["fields"]]
        middle = MARGIN + 2.5
        assert set(cells) == {(r, c) for r in range(10) for c in range(10) if np.hypot(r - middle, c - middle) <= 3}
        assert len(cells) == len(set(cells)) and {turns for *_, turns, _ in row["fields"]} <= {0, 1, 2, 3}
        for _, _, name, original, _, kind in row["fields"]:
            assert kind == "tumour"
            assert name.startswith(f"{row['label']}{original}-")
            slides_of.setdefault((row["label"], original), set()).add(row["slide_id"])
            shown[name] += 1
    assert all(len(slides) == 1 for slides in slides_of.values())
    assert set(slides_of) == {(label, n) for label in ("LUAD", "LUSC") for n in range(len(sizes))}
    for row in rows:  # no field twice before every field of the slide was there once
        counts = Counter(name for _, _, name, *_ in row["fields"])
        assert max(counts.values()) - min(counts.values()) <= 1


def test_slides_share_the_fields_evenly():
    rows = plan_mosaics(toy_originals([2, 9, 3, 3, 8, 1, 1, 3]), 3, side=12)
    counts = [len({name for _, _, name, *_ in row["fields"]}) for row in rows]
    assert sum(counts) == 60 and max(counts) - min(counts) <= 1


def with_normal(sizes, normal):
    groups = [[f"normal{number}-{i}" for i in range(size)] for number, size in enumerate(normal)]
    return {**toy_originals(sizes), "normal": groups}


def test_without_normal_tissue_the_plan_is_what_it_was_before_there_was_any():
    rows = plan_mosaics(toy_originals([2, 9, 3, 3, 8, 1, 1, 3]), 3, side=6, seed=2)
    assert rows == plan_mosaics(with_normal([2, 9, 3, 3, 8, 1, 1, 3], [1]), 3, side=6, seed=2, normal_share=0)
    for row in rows:
        row["fields"] = [field[:5] for field in row["fields"]]  # without the kind
    assert fingerprint(rows, 32) == "46568b2b955800ec6e98c8efa4bac855"


@pytest.mark.parametrize("share, normal", [(0.4, 28), (0.9, 62)])
def test_every_slide_has_the_share_of_normal_tissue_and_originals_of_its_own(share, normal):
    rows = plan_mosaics(with_normal([3] * 9, [20, 5, 5, 5, 4, 4, 3, 2, 1, 1]), 3, side=9, seed=2, normal_share=share)
    slides_of = {}
    for row in rows:
        kinds = Counter(kind for *_, kind in row["fields"])
        assert kinds == {"normal": normal, "tumour": 69 - normal}
        assert len({(r, c) for r, c, *_ in row["fields"]}) == 69
        for _, _, name, original, _, kind in row["fields"]:
            group = row["label"] if kind == "tumour" else "normal"
            assert name.startswith(f"{group}{original}-")
            slides_of.setdefault((group, original), set()).add(row["slide_id"])
    assert all(len(slides) == 1 for slides in slides_of.values())
    assert {original for group, original in slides_of if group == "normal"} == set(range(10))
    counts = pd.Series(
        {row["slide_id"]: len({name for *_, name, _, _, kind in row["fields"] if kind == "normal"}) for row in rows}
    )
    assert sorted(counts) == [5, 6, 6, 6, 7, 20]  # the largest first, each to the slide that has the fewest


def test_the_tumour_lies_together_in_another_place_of_each_slide():
    rows = plan_mosaics(with_normal([3] * 20, [3] * 40), 20, side=9, normal_share=0.9)
    centres = []
    for row in rows:
        places = {
            kind: np.array([(r, c) for r, c, *_, own in row["fields"] if own == kind], float)
            for kind in ("tumour", "normal")
        }
        away = {
            kind: min(np.hypot(*(own - centre).T).max() for centre in places["tumour"]) for kind, own in places.items()
        }
        assert len(places["tumour"]) == 7 and away["tumour"] < 2.5 < away["normal"]
        centres.append(tuple(places["tumour"].mean(0)))
    assert len(set(centres)) > 20


@pytest.mark.slow
def test_the_truth_is_where_the_record_says(mixed, made):
    folder, table = mixed
    for slide, fields in records(folder, table).items():
        truth = read_truth(folder, slide)
        assert int(truth["downsample"]) == FIELD and truth["signal"].shape == truth["tissue"].shape == (7, 7)
        assert truth["signal"].dtype == truth["tissue"].dtype == bool
        assert {(int(r), int(c)) for r, c in np.argwhere(truth["tissue"])} == {(r, c) for r, c, *_ in fields}
        tumour = [(r, c) for r, c, *_, kind in fields if kind == "tumour"]
        assert {(int(r), int(c)) for r, c in np.argwhere(truth["signal"])} == set(tumour) and len(tumour) == 4
        corners = np.array([(c * FIELD, r * FIELD) for r, c, *_ in fields])
        expected = [float(kind == "tumour") for *_, kind in fields]
        np.testing.assert_allclose(witness_share(truth, corners, FIELD), expected, atol=1e-12)
    whole = read_truth(made[0], made[1].slide_id[0])
    np.testing.assert_array_equal(whole["signal"], whole["tissue"])
    with pytest.raises(InputError) as caught:
        read_truth(folder, "mine")
    assert_one_line(caught, "no record of slide mine")


@pytest.mark.slow
def test_no_original_of_normal_tissue_is_in_two_slides(images, mixed):
    slides_of = {}
    for slide, fields in records(*mixed).items():
        for _, _, name, *_ in fields:
            slides_of.setdefault(images[1][name], set()).add(slide)
    assert len(slides_of) == 3 * ORIGINALS and all(len(slides) == 1 for slides in slides_of.values())


@pytest.mark.slow
def test_a_slide_shows_its_fields_in_the_stain_of_the_reference(images, mixed):
    folder, table = mixed
    home, fields = find_fields(images[0])
    steps = fit_stains("reinhard+macenko", [read_field(home / name) for name in reference_fields(fields)])
    side = (3 + 2 * MARGIN) * FIELD
    row, moved = table.iloc[0], []
    with openslide.OpenSlide(folder / row.path) as slide:
        shown = np.asarray(slide.read_region((0, 0), 0, (side, side)))[..., :3].astype(int)
    for r, c, name, _, turns, _ in records(folder, table)[row.slide_id]:
        field, here = read_field(home / name), shown[r * FIELD : (r + 1) * FIELD, c * FIELD : (c + 1) * FIELD]
        assert np.abs(here - np.rot90(restain(field, steps, name), turns)).mean() < 5
        moved.append(np.abs(here - np.rot90(field, turns)).mean())
    assert len(moved) == 9 and max(moved) > 8


@pytest.mark.slow
def test_another_stain_asks_for_no_new_comparison(images, mixed, tmp_path, monkeypatch):
    make_mosaics(images[0], tmp_path, **{**MIXED, "normalise": "none"})
    before = contents(tmp_path)
    monkeypatch.setattr(mosaics, "group_by_original", lambda *_: pytest.fail("the originals are known"))
    make_mosaics(images[0], tmp_path, **MIXED)
    assert before != contents(tmp_path) == contents(mixed[0])


# ------------------------------------------------------------------------------------------------ stains

STAINS = {
    "LUAD": (((0.62, 0.70, 0.33), (0.12, 0.78, 0.44)), (1.00, 1.00)),  # optical density of haematoxylin and
    "LUSC": (((0.65, 0.69, 0.29), (0.16, 0.79, 0.41)), (1.12, 0.88)),
}  # eosin in R, G, B; how much of each


def stained(label, seed, side=96):
    """A field of one class: its stains, and its own texture, coarse or fine grains that cover some of it."""
    rng = np.random.default_rng([seed, len(label), ord(label[-1])])
    grain = 12 if label == "LUAD" else 4
    noise = cv2.resize(
        rng.normal(size=(side // grain + 2,) * 2).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC
    )
    nuclei = noise > np.quantile(noise, rng.uniform(0.5, 0.8))
    directions, gains = STAINS[label]
    gains = np.array(gains) * rng.normal(1, 0.1, 2)
    amounts = np.stack([np.where(nuclei, 1.0, 0.05) * gains[0], np.where(nuclei, 0.05, 0.6) * gains[1]], -1)
    amounts *= rng.uniform(0.85, 1.15, amounts.shape)
    return np.clip(240 * np.exp(-amounts @ np.array(directions)), 0, 255).astype(np.uint8)


def told_by(numbers, labels):
    """AUC of a linear rule, five folds."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return roc_auc_score(labels, cross_val_predict(model, numbers, labels, cv=folds, method="predict_proba")[:, 1])


@pytest.mark.slow
@pytest.mark.parametrize("way, low, high", [("none", 0.99, 1), ("macenko", 0, 0.65), ("reinhard+macenko", 0, 0.65)])
def test_in_one_stain_colour_tells_nothing_and_texture_stays(way, low, high):
    fields = {label: [stained(label, seed) for seed in range(50)] for label in STAINS}
    steps = fit_stains(way, [rgb for label in STAINS for rgb in fields[label][:8]])
    labels, colours, textures = [], [], []
    for label, pictures in fields.items():
        for number, rgb in enumerate(pictures):
            rgb = restain(rgb, steps, f"{label}{number}")
            assert rgb.dtype == np.uint8 and rgb.shape == (96, 96, 3)
            labels.append(label == "LUSC")
            colours.append(np.concatenate(cv2.meanStdDev(rgb))[:, 0])
            grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(float)
            textures.append([np.abs(np.diff(cv2.GaussianBlur(grey, (0, 0), 1.5))).mean() / grey.std()])
    assert told_by(textures, labels) > 0.99
    assert low <= told_by(colours, labels) <= high


def test_reinhard_gives_each_field_the_mean_and_deviation_of_the_reference():
    reference = [stained(label, seed) for label in STAINS for seed in range(4)]
    steps = fit_stains("reinhard", reference)
    wanted = rgb2lab(np.concatenate(reference)).reshape(-1, 3)
    for label in STAINS:
        before = rgb2lab(stained(label, 9)).reshape(-1, 3)
        after = rgb2lab(restain(stained(label, 9), steps, label)).reshape(-1, 3)
        assert np.abs(before.mean(0) - wanted.mean(0)).max() > 2
        np.testing.assert_allclose(after.mean(0), wanted.mean(0), atol=1)
        np.testing.assert_allclose(after.std(0), wanted.std(0), atol=1)


def test_the_reference_has_equally_many_fields_of_each_class():
    fields = {"LUAD": [f"a{n}" for n in range(1000)], "LUSC": [f"b{n}" for n in range(200)]}
    reference = reference_fields(fields)
    assert Counter(name[0] for name in reference) == {"a": 32, "b": 32} and len(set(reference)) == 64
    few = reference_fields({"LUAD": fields["LUAD"], "LUSC": ["b0", "b1", "b2"]})
    assert few == ["a0", "a499", "a999", "b0", "b1", "b2"]


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_field_without_stain_is_named(way):
    steps = fit_stains(way, [stained("LUAD", 0), stained("LUSC", 0)])
    with pytest.raises(InputError) as caught:
        restain(np.full((32, 32, 3), 250, np.uint8), steps, "lung_n/glass.png")
    assert_one_line(caught, "lung_n/glass.png")


# ------------------------------------------------------------------------------------------------ folders


@pytest.mark.slow
def test_two_processes_make_the_same_bytes_as_one(images, mixed, tmp_path):
    again = make_mosaics(images[0], tmp_path, **{**MIXED, "workers": 2})
    pd.testing.assert_frame_equal(mixed[1], again)
    assert contents(tmp_path) == contents(mixed[0])


@pytest.mark.slow
def test_no_original_is_in_two_slides(images, made):
    slides_of = {}
    for slide, fields in records(*made).items():
        for _, _, name, *_ in fields:
            slides_of.setdefault(images[1][name], set()).add(slide)
    assert len(slides_of) == 2 * ORIGINALS and all(len(slides) == 1 for slides in slides_of.values())


def test_the_cohort_is_one_that_a_study_reads(made):
    folder, table = made
    cohort, failures = load_cohort(folder / "cohort.csv")
    assert not failures and sorted(cohort.slide_id) == sorted(table.slide_id)
    assert cohort.label.value_counts().to_dict() == {"LUAD": 2, "LUSC": 2} and cohort.patient_id.is_unique


@pytest.mark.slow
def test_a_slide_shows_its_fields_where_the_record_says(images, made):
    folder, table = made
    home, _ = find_fields(images[0])
    side = (3 + 2 * MARGIN) * FIELD
    for row in table.itertuples():
        with openslide.OpenSlide(folder / row.path) as slide:
            assert slide.properties["openslide.vendor"] == "aperio"
            assert float(slide.properties["openslide.objective-power"]) == 20
            assert float(slide.properties["openslide.mpp-x"]) == 0.5
            assert slide.level_dimensions == ((side, side), (side // 4,) * 2, (side // 16,) * 2)
            shown = np.asarray(slide.read_region((0, 0), 0, (side, side)))[..., :3].astype(int)
        expected = np.full((side, side, 3), GLASS)
        for r, c, name, _, turns, _ in read_json(folder / "fields" / f"{row.slide_id}.json")["fields"]:
            field = cv2.imread(str(home / name))[..., ::-1]
            field = cv2.resize(field, (FIELD, FIELD), interpolation=cv2.INTER_AREA)
            expected[r * FIELD : (r + 1) * FIELD, c * FIELD : (c + 1) * FIELD] = np.rot90(field, turns)
        assert np.abs(shown - expected).mean() < 4


@pytest.mark.slow
def test_what_is_missing_or_broken_is_made_again_and_the_rest_is_kept(images, made, tmp_path, monkeypatch):
    table = make_mosaics(images[0], tmp_path, **SMALL)
    slides = [tmp_path / path for path in table.path]
    slides[0].unlink()
    slides[1].write_bytes(slides[1].read_bytes()[:5000])
    (tmp_path / "fields" / f"{table.slide_id[2]}.json").write_text("{")
    (tmp_path / "cohort.csv").unlink()
    stamp = slides[3].stat().st_mtime_ns
    monkeypatch.setattr(mosaics, "group_by_original", lambda *_: pytest.fail("the originals are known"))
    make_mosaics(images[0], tmp_path, **SMALL)
    assert contents(tmp_path) == contents(made[0]) and slides[3].stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_slides_of_other_settings_are_not_kept(images, made, tmp_path):
    make_mosaics(images[0], tmp_path, **{**SMALL, "seed": 7})
    before = contents(tmp_path)
    make_mosaics(images[0], tmp_path, **SMALL)
    assert before != contents(tmp_path) == contents(made[0])


@pytest.mark.slow
def test_of_many_fields_as_many_are_compared_as_the_slides_can_use(images, tmp_path, monkeypatch):
    monkeypatch.setattr(mosaics, "SPARE", 0.5)
    table = make_mosaics(images[0], tmp_path, **SMALL)
    found = read_json(tmp_path / "originals.json")["originals"]
    assert {label: sum(map(len, groups)) for label, groups in found.items()} == {"LUAD": 9, "LUSC": 9}
    for slide, fields in records(tmp_path, table).items():
        taken = {name for group in found[slide[:4]] for name in group}
        assert {name for _, _, name, *_ in fields} <= taken


@pytest.mark.slow
def test_bad_input_is_one_line_and_writes_nothing(images, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "half" / "lung_aca").mkdir(parents=True)
    (tmp_path / "empty" / "lung_aca").mkdir(parents=True)
    (tmp_path / "empty" / "lung_scc").mkdir()
    for name in ("lung_aca", "lung_scc"):
        (tmp_path / "no_normal" / name).mkdir(parents=True)
    for name, folder, settings in [
        ("nowhere", tmp_path / "nowhere", {}),
        ("half", tmp_path / "half", {}),
        ("lung_aca", tmp_path / "empty", {}),
        ("side", images[0], {"side": 0}),
        ("LUAD has 4 originals", images[0], {"slides_per_class": 5}),
        ("no folder lung_n", tmp_path / "no_normal", {"normal_share": 0.5}),
        ("normal-share is 1 ", images[0], {"normal_share": 1.0}),
        ("normal-share is -0.1 ", images[0], {"normal_share": -0.1}),
        ("normal-share is nan ", images[0], {"normal_share": float("nan")}),
        ("lung_n has 4 originals, fewer than its 6", images[0], {"normal_share": 0.5, "slides_per_class": 3}),
        ("normalise is 'vahadane'", images[0], {"normalise": "vahadane"}),
    ]:
        with pytest.raises(InputError) as caught:
            make_mosaics(folder, out, **{**SMALL, **settings})
        assert_one_line(caught, name)
    assert not out.exists()


def test_a_broken_image_is_named(tmp_path):
    for name in ("lung_aca", "lung_scc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpeg").write_bytes(b"no image")
    with pytest.raises(InputError) as caught:
        make_mosaics(tmp_path, tmp_path / "out", **SMALL)
    assert_one_line(caught, "lung_aca/a.jpeg")


@pytest.mark.slow
def test_the_command_says_what_it_made_or_one_line(images, tmp_path, capsys):
    arguments = [
        "--slides-per-class",
        "2",
        "--side",
        "3",
        "--workers",
        "1",
        "--normal-share",
        "0.5",
        "--normalise",
        "macenko",
    ]
    assert main([str(images[0]), str(tmp_path / "out"), *arguments]) == 0
    assert "4 slides from" in capsys.readouterr().out and (tmp_path / "out" / "cohort.csv").is_file()
    assert main([str(tmp_path), str(tmp_path / "no")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
