"""Walkthrough 1: what its figures draw is what the package computes, and the answers to its exercises run."""

import contextlib
import io
import re

import cv2
import nbformat
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from dmsmil.interpret import viewer
from dmsmil.jobs.files import ROOT
from dmsmil.slides.reader import open_slide
from dmsmil.slides.tiles import select_tiles
from drawings import bags
from tests.slides.pyramids import make_slide

PX, SIDE = 64, 128  # of a tile, and of a 10x tile in level-0 pixels


def done(notebook: str) -> tuple[dict, list[str]]:
    """What a walkthrough leaves in memory when its cells and the hidden answers run in order; what the answers say."""
    memory, said = {}, []
    for cell in nbformat.read(ROOT / "notebooks/walkthroughs" / notebook, 4).cells:
        answer = cell.cell_type == "markdown"
        codes = re.findall(r"```python\n(.*?)```", cell.source, re.S) if answer else [cell.source]
        for code in codes:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(code, memory)
            said += [printed.getvalue()] if answer else []
    return memory, said


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    with open_slide(make_slide(tmp_path_factory.mktemp("lesson") / "s.svs", 1536, 1280, seed=3, coverage=0.5)) as slide:
        yield slide


@pytest.fixture(scope="module")
def every(slide):
    return select_tiles(slide, k=1000, tile_px=PX, min_density=0, pixels=True)


def corners(boxes):
    """Top-left corners of the squares of a collection."""
    return {tuple(path.vertices.min(0).round().astype(int).tolist()) for path in boxes.get_paths()}


@pytest.mark.slow
@pytest.mark.parametrize("k, least", [(1, 0.05), (20, 0.05), (20, 0.9), (1000, 0.3)])
def test_the_densest_tiles_outlined_are_those_that_the_package_takes(slide, every, k, least):
    figure = bags.densest(slide, every, k, least)
    taken = select_tiles(slide, k=k, tile_px=PX, min_density=least).coords[10]
    assert corners(figure.axes[0].collections[1]) == set(map(tuple, taken.tolist()))
    assert figure.axes[0].get_title(loc="left") == f"K = {k}: {len(taken)} tiles"


@pytest.mark.slow
def test_each_tile_carries_its_density(slide, every):
    grid = bags.densities(slide, every).axes[1]
    shown = {text.get_position(): float(text.get_text()) for text in grid.texts}
    for (x, y), tile in zip(every.coords[10].tolist(), every.pixels[10]):
        share = 1 - np.mean(tile.min(-1) >= 200)
        assert abs(shown.get((x + SIDE / 2, y + SIDE / 2), 0) - share) < 0.006


def test_the_share_below_a_tile_is_of_pixels_with_a_channel_below_200(every):
    figure = bags.counted(every.pixels[10][::20], ["a"] * len(every.pixels[10][::20]))
    told = [float(ax.get_title(loc="left")[8:]) for ax in figure.axes if "density" in ax.get_title(loc="left")]
    channel = (every.pixels[10][::20] < 200).reshape(len(told), -1, 3)
    np.testing.assert_allclose(told, channel.max(-1).mean(-1), atol=0.005)


def test_levels_are_drawn_to_scale(slide):
    figure = bags.pyramid(slide, (512, 512), 64)
    widths = [np.ptp(image.get_extent()[:2]) for image in figure.axes[0].images]
    assert widths == [level.width for level in slide.levels]
    assert [ax.images[0].get_array().shape[0] for ax in figure.axes[1:]] == [64, 16, 4]


def test_a_square_is_the_field_beside_it(slide, every):
    """The middle of the 20x tile, shrunk by two, is the middle of its place in the 10x tile, and no other place is."""
    middles = every.pixels[20][:, PX // 4 : -PX // 4, PX // 4 : -PX // 4]
    row = int(np.argmax(middles.std((1, 2)).sum(1)))  # of most contrast there
    coarse, fine = (ax.images[0].get_array().astype(float) for ax in bags.linked_pair(every, row).axes[1:])
    assert coarse.shape == (PX // 4, PX // 4, 3) and fine.shape == (PX // 2, PX // 2, 3)
    shrunk = cv2.resize(fine, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    assert 2 * np.abs(shrunk - coarse).mean() < np.abs(shrunk - np.roll(coarse, (6, 6), (0, 1))).mean()


def test_magnifications_tell_their_length(slide):
    told = [ax.get_title(loc="left") for ax in bags.magnifications(slide, (700, 600), 64).axes]
    assert told == [f"{s}x: {10 / s:g} µm a pixel,\n{640 / s:g} µm wide" for s in (5, 10, 20)]


@pytest.mark.parametrize("tiles", [1, 5, 8])
def test_a_bag_is_drawn_as_it_is(tiles):
    x, mask = torch.rand(1, 2, 8, 3), torch.arange(8).expand(1, 2, 8) < tiles
    figure = bags.picture(x, mask)
    for number in (0, 1):
        features, there = (ax.images[0].get_array() for ax in figure.axes[2 * number : 2 * number + 2])
        np.testing.assert_array_equal(features, x[0, number].T)
        assert there.sum() == tiles
        assert f"{tiles} tiles" in [text.get_text() for text in figure.axes[2 * number + 1].texts]


@pytest.mark.slow
def test_the_notebook_its_sliders_and_its_answers(monkeypatch):
    slid = []
    monkeypatch.setattr(viewer, "slider", lambda draw, **values: slid.append((draw, values)))
    memory, (sizes, coverage) = done("1_two_bags.ipynb")
    assert sizes.split() == ["10", "2048", "512.0", "20", "1024", "256.0"]
    share = [float(value) for value in re.findall(r"[\d.]+\d", coverage)]
    np.testing.assert_allclose(share, [1 / 257, 129 / 257, 256 / 257, 1 / 257, 1 / 4], atol=6e-4)
    assert not (ROOT / memory["folder"].name).exists()

    monkeypatch.undo()
    monkeypatch.setattr(viewer, "watched", lambda: True)
    ((draw, values),) = slid
    assert [child.description for child in viewer.slider(draw, **values).children[:-1]] == list(values)
    assert all(isinstance(draw(k=k, min_density=0.05), Figure) for k in values["k"])
