"""The demo cohort: the same bytes every time, whole or absent, and a truth that the pixels bear out."""

import itertools
from pathlib import Path

import cv2
import numpy as np
import openslide
import pandas as pd
import pytest
from scipy.spatial import cKDTree

from dmsmil.cohorts.made.demo import LABELS, make_demo, plan_cohort
from dmsmil.cohorts.made.histology import KINDS, RADIUS_STEP, paint_slide
from dmsmil.cohorts.made.painted import SITES, read_truth
from dmsmil.jobs.files import InputError

SMALL = dict(patients=8, seed=3, side=1536)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A small cohort, made in this process: folder and table."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, make_demo(folder, workers=1, **SMALL)


def contents(folder) -> dict[str, bytes]:
    """Every file below `folder`, by its relative path."""
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def pixels(path, level=0) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))[..., :3]


@pytest.mark.slow
def test_two_processes_make_the_same_bytes_as_one(demo, tmp_path):
    folder, table = demo
    again = make_demo(tmp_path, workers=2, **SMALL)
    pd.testing.assert_frame_equal(table, again)
    assert contents(folder) == contents(tmp_path)


@pytest.mark.slow
def test_a_slide_does_not_depend_on_the_size_of_the_cohort(demo, tmp_path):
    folder, _ = demo
    fewer = make_demo(tmp_path, workers=1, **{**SMALL, "patients": 4})
    for path in fewer.path:
        assert (tmp_path / path).read_bytes() == (folder / path).read_bytes()


def test_another_seed_makes_other_slides():
    ours, other = plan_cohort(8, seed=0), plan_cohort(8, seed=1)
    assert (ours.label == other.label).all()
    assert not np.isclose(ours.arrangement, other.arrangement).any()


@pytest.mark.slow
def test_what_is_missing_or_broken_is_made_again_and_the_rest_is_kept(demo, tmp_path):
    wanted = contents(demo[0])
    table = make_demo(tmp_path, workers=1, **SMALL)
    slides = [tmp_path / path for path in table.path]
    truths = [tmp_path / "truth" / f"{slide_id}.npz" for slide_id in table.slide_id]
    slides[0].unlink()
    truths[1].unlink()
    slides[2].write_bytes(slides[2].read_bytes()[:5000])
    truths[3].write_bytes(truths[3].read_bytes()[:500])
    half = slides[0].with_name(f".{slides[0].name}.1.tmp")  # what a killed process leaves behind
    half.write_bytes(b"half a slide")
    (tmp_path / "cohort.csv").unlink()
    kept = [path.stat().st_mtime_ns for path in slides[4:] + truths[4:]]
    pd.testing.assert_frame_equal(make_demo(tmp_path, workers=1, **SMALL), table)
    assert kept == [path.stat().st_mtime_ns for path in slides[4:] + truths[4:]]
    half.unlink()
    assert contents(tmp_path) == wanted


@pytest.mark.slow
def test_slides_of_other_settings_are_not_kept(demo, tmp_path):
    make_demo(tmp_path, patients=4, seed=3, side=1024, workers=1)
    table = make_demo(tmp_path, patients=4, seed=3, side=1536, workers=1)
    for path in table.path:
        assert (tmp_path / path).read_bytes() == (demo[0] / path).read_bytes()


@pytest.mark.slow
def test_openslide_reads_an_aperio_pyramid(demo):
    folder, table = demo
    for path in table.path:
        with openslide.OpenSlide(folder / path) as slide:
            assert slide.properties["openslide.vendor"] == "aperio"
            assert float(slide.properties["openslide.objective-power"]) == 20
            assert float(slide.properties["openslide.mpp-x"]) == float(slide.properties["openslide.mpp-y"]) == 0.5
            assert slide.level_dimensions == ((1536, 1536), (384, 384), (96, 96))
            assert slide.properties["openslide.level[0].tile-width"] == "256"


def test_the_levels_show_the_same_picture(demo):
    folder, table = demo
    path = folder / table.path[0]
    shrunk = cv2.resize(pixels(path), (384, 384), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk.astype(int) - pixels(path, 1)).mean() < 3


@pytest.mark.slow
def test_the_table_names_files_that_exist_and_is_what_is_stored(demo):
    folder, table = demo
    assert list(table) == ["slide_id", "patient_id", "site", "label", "path"]
    assert table.slide_id.is_unique and all((folder / path).exists() for path in table.path)
    stored = pd.read_csv(folder / "cohort.csv", dtype=str)
    pd.testing.assert_frame_equal(stored, table.astype(object), check_dtype=False)


def test_site_is_independent_of_class_and_some_patients_have_two_slides():
    plan = plan_cohort(40)
    patients = plan.drop_duplicates("patient_id")
    counts = pd.crosstab(patients.site, patients.label)
    assert list(counts.index) == list(SITES) and set(counts) == set(LABELS)
    assert (counts[LABELS[0]] == counts[LABELS[1]]).all() and counts.to_numpy().min() >= 6
    slides = plan.groupby(["label", "patient_id"]).size()
    assert len(plan) == 50 and set(slides) == {1, 2}
    assert (slides == 2).groupby("label").sum().tolist() == [5, 5]
    assert (plan.groupby("patient_id")[["site", "label", "arrangement", "size"]].nunique() == 1).all(axis=None)


def test_neither_arrangement_nor_size_alone_gives_the_class_but_both_do():
    plan = plan_cohort(400).drop_duplicates("patient_id")
    sign = np.where(plan.label == LABELS[0], 1, -1)
    for one in (plan.arrangement, plan["size"]):
        assert 0.7 < (np.sign(one) == sign).mean() < 0.9
    assert (np.sign(plan.arrangement + plan["size"]) == sign).mean() > 0.95


@pytest.mark.slow
def test_nuclei_are_darker_than_what_surrounds_them(demo):
    folder, table = demo
    seen = set()
    for row in table.itertuples():
        grey = cv2.cvtColor(pixels(folder / row.path), cv2.COLOR_RGB2GRAY).astype(float)
        truth = read_truth(folder, row.slide_id)
        seen.update(truth["kind"])
        for kind in set(truth["kind"]):
            of_kind = truth["kind"] == kind
            x, y, radius = (truth[name][of_kind] for name in ("x", "y", "radius"))
            around = np.linspace(0, 2 * np.pi, 8, endpoint=False)[:, None]
            ring_x, ring_y = x + 2.2 * radius * np.cos(around), y + 2.2 * radius * np.sin(around)
            ring = grey[ring_y.astype(int), ring_x.astype(int)]
            centre = cv2.blur(grey, (5, 5))[y.astype(int), x.astype(int)]
            assert (ring.mean(0) - centre).mean() > 15
            assert (ring.mean(0) > centre).mean() > 0.8
    assert seen == set(KINDS)


@pytest.mark.slow
def test_the_signal_region_lies_in_the_tissue_and_holds_the_tumour(demo):
    folder, table = demo
    for row in table.itertuples():
        truth = read_truth(folder, row.slide_id)
        step = int(truth["downsample"])
        signal, tissue = truth["signal"], truth["tissue"]
        assert signal.shape == tissue.shape == (1536 // step, 1536 // step)
        assert not (signal & ~tissue).any()
        assert 0.3 < signal.sum() / tissue.sum() < 0.65
        # the tissue is where the picture is not white, but for fat and lumens
        shown = cv2.resize(pixels(folder / row.path), tissue.shape, interpolation=cv2.INTER_AREA).min(2) < 210
        assert shown[tissue].mean() > 0.75 and shown[~tissue].mean() < 0.05
        cell = (truth["y"] / step).astype(int), (truth["x"] / step).astype(int)
        for kind, low, high in (("tumour", 0.97, 1.0), ("benign", 0.0, 0.4)):
            of_kind = truth["kind"] == kind
            assert not of_kind.any() or low <= signal[cell][of_kind].mean() <= high


def elongation(places, reach) -> float:
    """How stretched the crowd within `reach` px of a cell is, on average: 0.5 round, 1 a line."""
    crowds = [places[near] for near in cKDTree(places).query_ball_point(places, reach) if len(near) > 5]
    spread = np.array([np.linalg.eigvalsh(np.cov(crowd.T)) for crowd in crowds])
    return (spread[:, 1] / spread.sum(1)).mean()


@pytest.mark.slow
def test_arrangement_and_size_are_painted_apart_and_share_one_nuclear_area():
    row = plan_cohort(4).to_dict("records")[0]
    stretched, radius, share = {}, {}, {}
    for key in itertools.product((-0.9, 0.9), (-0.9, 0.9)):
        truth = paint_slide({**row, "arrangement": key[0], "size": key[1]}, seed=0, side=2048)[1]
        tumour = truth["kind"] == "tumour"
        stretched[key] = elongation(np.stack([truth["x"][tumour], truth["y"][tumour]], 1), reach=150)
        radius[key] = truth["radius"][tumour].mean()
        share[key] = (truth["radius"][tumour] ** 2).sum() / truth["tissue"].sum()
    for end in (-0.9, 0.9):
        assert stretched[-0.9, end] > stretched[0.9, end] + 0.02  # nests are round, streams of files are long
        assert radius[end, 0.9] - radius[end, -0.9] == pytest.approx(1.8 * RADIUS_STEP, rel=0.15)
    assert max(share.values()) < 1.15 * min(share.values())


@pytest.mark.slow
def test_colour_differs_less_between_classes_than_between_sites(tmp_path):
    table = make_demo(tmp_path, patients=24, seed=0, side=1024, workers=1)
    colours = []
    for path in table.path:
        image = pixels(tmp_path / path, 1)
        tissue = image[image.min(2) < 200]
        colours.append(np.concatenate([tissue.mean(0), tissue.std(0)]))
    colours = np.array(colours)

    def gap(groups):
        means = np.stack([colours[groups == group].mean(0) for group in sorted(set(groups))])
        return max(np.linalg.norm(a - b) for a in means for b in means)

    assert gap(table.label.to_numpy()) < 0.5 * gap(table.site.to_numpy())


def test_the_painter_paints_the_demo_as_ever():
    """What other cohorts ask of the painter must not change this one: read off before there was another."""
    rgb, truth = paint_slide(plan_cohort(8, seed=3).to_dict("records")[0], seed=3, side=1024)
    grey = cv2.resize(rgb, (4, 4), interpolation=cv2.INTER_AREA).mean(2)
    np.testing.assert_allclose(
        grey, [[228, 188, 212, 240], [202, 165, 167, 207], [212, 170, 180, 193], [239, 209, 211, 223]], atol=1
    )
    assert [(truth["kind"] == kind).sum() for kind in KINDS] == [74, 11, 133, 50]
    assert truth["signal"].sum() == 1118 and truth["x"].mean() == pytest.approx(534.79, abs=0.01)


@pytest.mark.parametrize("wrong", [dict(patients=3), dict(side=512), dict(side=1100)])
def test_impossible_settings_are_refused_in_one_line(tmp_path, wrong):
    with pytest.raises(InputError) as error:
        make_demo(tmp_path, **{**SMALL, **wrong})
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_slide_without_truth_is_named(tmp_path):
    with pytest.raises(InputError, match="no truth for slide mine"):
        read_truth(tmp_path, "mine")
