"""The zoomable slide: its overlay lies where the tiles are, and a person sees it; a program gets the figure."""

import base64
import io
import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import openslide
import pandas as pd
import pytest
from jupyter_client.manager import start_new_kernel
from matplotlib import colormaps
from matplotlib.figure import Figure
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from dmsmil.interpret import viewer
from tests.book import browser
from tests.slides.pyramids import make_slide

ROOT = Path(__file__).resolve().parents[2]
SIDE, SIZE = {10: 512, 20: 256}, (1536, 1280)
ROWS = [
    (10, 0, 0, 0.0),
    (10, 1024, 0, 1.0),
    (10, 512, 512, 0.5),
    (20, 256, 0, 1.0),
    (20, 1024, 256, 0.0),
    (20, 700, 1000, 0.5),
]


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A slide of 1536 x 1280 px at 20x."""
    return make_slide(tmp_path_factory.mktemp("viewer") / "slide.svs", *SIZE)


def scores_of(rows=ROWS):
    return pd.DataFrame(rows, columns=["scale", "x", "y", "normalised"])


def view_of(path):
    return {"path": path, "side": SIDE, "dimensions": SIZE}


def at(picture, x, y, dimensions=SIZE):
    """The pixel of an overlay under a level-0 point, as a viewer finds it: stretched over the whole slide."""
    pixels = np.asarray(picture)
    return pixels[int(y * pixels.shape[0] / dimensions[1]), int(x * pixels.shape[1] / dimensions[0])].tolist()


def decoded(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))))


# ------------------------------------------------------------------------------------------------ the overlay


@pytest.mark.parametrize("scale", SIDE)
def test_each_tile_has_its_colour_and_all_else_is_clear(scale):
    picture, covered = viewer.overlay(scores_of(), SIDE, SIZE, scale), 0
    for own, x, y, value in ROWS:
        if own == scale:
            expected = colormaps["inferno"](np.float32(value), bytes=True)[:3]
            for dx, dy in ((0.1, 0.1), (0.5, 0.5), (0.9, 0.9)):
                pixel = at(picture, x + dx * SIDE[scale], y + dy * SIDE[scale])
                np.testing.assert_array_equal(pixel[:3], expected)
                assert pixel[3] == int(255 * (0.2 + 0.6 * value))
            covered += SIDE[scale] ** 2
    assert np.isclose((np.asarray(picture)[..., 3] > 0).mean(), covered / np.prod(SIZE), rtol=0.02)
    under_the_other_scale_only = {10: (800, 1150), 20: (100, 400)}[scale]
    assert at(picture, 1500, 1250)[3] == at(picture, *under_the_other_scale_only)[3] == 0


@pytest.mark.parametrize("dimensions", [(1100, 700), (699, 6211), (90001, 40003), (300, 270)])
def test_the_overlay_has_the_slides_shape_and_stays_in_place(dimensions):
    side = 256 if max(dimensions) < 10000 else 512
    corner = (dimensions[0] - side, dimensions[1] - side)
    picture = viewer.overlay(scores_of([(20, *corner, 1.0)]), {20: side}, dimensions, 20)
    assert picture.mode == "RGBA"
    assert abs(picture.width * dimensions[1] / (picture.height * dimensions[0]) - 1) < 0.005
    inside = np.asarray(picture)[..., 3] > 0
    top, left = (np.flatnonzero(inside.any(axis))[0] / n for axis, n in ((1, picture.height), (0, picture.width)))
    assert abs(left * dimensions[0] - corner[0]) < side / 8 and abs(top * dimensions[1] - corner[1]) < side / 8
    assert inside[-4, -4] and not inside[:, 0].any()


def test_a_tile_without_a_score_is_clear():
    picture = viewer.overlay(scores_of([(10, 0, 0, np.nan), (10, 512, 0, 0.0)]), SIDE, SIZE, 10)
    assert at(picture, 100, 100)[3] == 0 < at(picture, 600, 100)[3]


# ------------------------------------------------------------------------------------------------ who watches


def test_a_script_gets_the_figure():
    figure = Figure()
    assert not viewer.watched() and viewer.zoomable({}, scores_of(), figure) is figure


@pytest.mark.slow
def test_a_kernel_is_watched_when_questions_are_answered():
    manager, client = start_new_kernel(cwd=ROOT)
    try:
        assert client.execute_interactive("from dmsmil.interpret.viewer import watched")["content"]["status"] == "ok"
        for answered in (True, False, True):
            reply = client.execute_interactive("", user_expressions={"seen": "watched()"}, allow_stdin=answered)
            assert reply["content"]["user_expressions"]["seen"]["data"]["text/plain"] == str(answered)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.slow
def test_an_executed_notebook_keeps_the_figure():
    cells = [
        "from matplotlib.figure import Figure\nfrom dmsmil.interpret.viewer import watched, zoomable",
        "zoomable({}, None, 'the figure'), watched()",
    ]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, resources={"metadata": {"path": ROOT}}).execute()
    assert notebook.cells[1].outputs[0]["data"]["text/plain"] == "('the figure', False)"


# ------------------------------------------------------------------------------------------------ the widget


@pytest.fixture
def person(monkeypatch):
    monkeypatch.setattr(viewer, "watched", lambda: True)


@pytest.mark.slow
def test_the_controls_change_what_is_laid_over(slide, person):
    box = viewer.zoomable(view_of(slide), scores_of(), Figure())
    (scale, opacity, legend), shown = box.children[0].children, box.children[1]
    try:
        assert shown.slide_open and [value for _, value in scale.options] == [10, 20]
        for chosen in (10, 20, 10):
            scale.value = chosen
            expected = np.asarray(viewer.overlay(scores_of(), SIDE, SIZE, chosen))
            np.testing.assert_array_equal(decoded(shown.overlay_img), expected)
        opacity.value = 0.25
        assert shown.overlay_alpha == 0.25
        scale.value = 20
        assert shown.overlay_alpha == 0.25, "another scale keeps the opacity"
        assert legend.value.index("#000004") < legend.value.index("#fcffa4"), "dark is low"
    finally:
        shown.close()


@pytest.mark.slow
def test_a_slide_of_awkward_size_is_shown(tmp_path, person):
    path = make_slide(tmp_path / "odd.svs", 1100, 700, factors=(1,))
    box = viewer.zoomable(view_of(path) | {"dimensions": (1100, 700)}, scores_of(), Figure())
    assert box.children[1].overlay_img
    box.children[1].close()


@pytest.mark.parametrize("content", [b"no slide at all", None])
def test_what_the_viewer_cannot_open_is_a_figure(tmp_path, person, content):
    path, figure = tmp_path / "slide.xyz", Figure()
    if content is not None:
        path.write_bytes(content)
    assert viewer.zoomable(view_of(path), scores_of(), figure) is figure


# ------------------------------------------------------------------------------------------------ in a browser


@contextmanager
def laboratory(folder):
    """The address of a JupyterLab server of its own, with nothing of this user's settings."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = (
        "HOME",
        "IPYTHONDIR",
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "JUPYTERLAB_SETTINGS_DIR",
        "JUPYTERLAB_WORKSPACES_DIR",
    )
    home = {place: str(folder / place.lower()) for place in places}
    for place in home.values():
        Path(place).mkdir()
    asked = Path(home["JUPYTERLAB_SETTINGS_DIR"], "@jupyterlab/apputils-extension/notification.jupyterlab-settings")
    asked.parent.mkdir(parents=True)
    asked.write_text('{"fetchNews": "false"}')  # or its question lies over the page
    log = folder / "lab.log"
    with log.open("w") as said:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--allow-root",
                f"--ServerApp.root_dir={folder}",
                f"--ServerApp.port={port}",
                "--ServerApp.port_retries=0",
                "--ServerApp.ip=127.0.0.1",
                "--IdentityProvider.token=",
                "--LabApp.expose_app_in_browser=True",
                "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            ],
            stdout=said,
            stderr=said,
            env=os.environ | home | {"PYTHONPATH": str(ROOT)},
        )

    def answers():
        assert server.poll() is None, log.read_text()[-2000:]
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        browser.until(answers, "JupyterLab")
        yield f"http://127.0.0.1:{port}/lab"
    finally:
        server.terminate()  # it ends its kernels
        server.wait(60)


@pytest.mark.slow
@browser.needed
@pytest.mark.xdist_group("browser")
def test_in_jupyterlab_a_person_zooms_and_chooses(slide, tmp_path):
    cells = [
        "import pandas as pd\nfrom dmsmil.interpret.viewer import zoomable",
        f"view = {view_of(str(slide))}",
        f"scores = pd.DataFrame({ROWS}, columns=['scale', 'x', 'y', 'normalised'])",
        "zoomable(view, scores, 'no viewer')",
    ]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "nb.ipynb")
    points = [(384, 128), (1152, 384), (64, 1216)]  # lowest at 10x and highest at 20x; the other way; no tile
    with openslide.OpenSlide(slide) as file:
        tissue = [np.asarray(file.read_region((x - 20, y - 20), 0, (40, 40)))[..., :3].mean((0, 1)) for x, y in points]
    canvas = "canvas.islide-canvas"

    def seen(scale, opacity):
        """Whether the canvas shows the whole slide in its middle, and at each point tissue and score as they should."""
        picture = page.canvas(canvas)[..., :3]
        height, width = picture.shape[:2]
        zoom = min(width / SIZE[0], height / SIZE[1])
        laid = viewer.overlay(scores_of(), SIDE, SIZE, scale)
        for point, under in zip(points, tissue):
            x, y = (round(n / 2 + zoom * (p - s / 2)) for n, p, s in zip((width, height), point, SIZE))
            *colour, alpha = at(laid, *point)
            share = opacity * alpha / 255
            shown = picture[y - 8 : y + 8, x - 8 : x + 8].mean((0, 1))
            if np.abs(shown - (share * np.array(colour) + (1 - share) * under)).max() > 8:
                return False
        return True

    with laboratory(tmp_path) as address, browser.browse(f"{address}/tree/nb.ipynb", tmp_path) as page:
        page.until("!!window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel")
        page.js("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.until(f"!!document.querySelector('{canvas}')")
        browser.until(lambda: seen(10, 0.6), "the slide with its scores at 10x")
        page.photograph(tmp_path / "10x.png")
        page.js(
            "(s => (s.selectedIndex = 1, s.dispatchEvent(new Event('change', {bubbles: true}))))"
            "(document.querySelector('.jp-OutputArea select'))"
        )
        browser.until(lambda: seen(20, 0.6), "its scores at 20x")
        page.photograph(tmp_path / "20x.png")
        page.key(".jp-OutputArea .noUi-handle", "Home", 36)
        browser.until(lambda: seen(20, 0), "the bare slide")
        fits = page.js("document.querySelector('.islide-readout').textContent")
        page.wheel(canvas, -240)
        zoomed = page.until(
            "(t => t != " + json.dumps(fits) + " && t)(document.querySelector('.islide-readout').textContent)"
        )
        assert float(zoomed.split("×")[0]) > float(fits.split("×")[0])
        assert page.js(
            "[...document.querySelectorAll('.jp-OutputArea .widget-label')]"
            ".every(label => label.scrollWidth <= label.clientWidth)"
        ), "a label is clipped"
        assert [error for error in page.errors if "islide" in error or "widget" in error] == []
        page.js("void setTimeout(() => { throw new Error('a broken widget') })")
        browser.until(lambda: page.js("1") and any("a broken widget" in e for e in page.errors), "an error on purpose")


@pytest.mark.slow
def test_a_slider_shows_a_figure_for_each_value_to_a_person():
    """In a kernel whose questions are answered: a picture comes with the widget, and another when the slider moves."""
    code = (
        "from functools import partial\nfrom matplotlib import pyplot as plt\n"
        "from dmsmil.interpret.viewer import slider\ndef draw(title, bars):\n"
        "    figure = plt.figure(figsize=(1, 1))\n    plt.bar(range(bars), 1)\n"
        "    plt.close(figure)\n    return figure\nbox = slider(partial(draw, 'b'), bars=[2, 1, 3])"
    )
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        seen = []
        for cell in (code, "box.children[0].value = 3"):
            client.execute_interactive(cell, allow_stdin=True, timeout=120, output_hook=seen.append)
        options = client.execute_interactive("", user_expressions={"o": "box.children[0].options"}, allow_stdin=True)
        assert options["content"]["user_expressions"]["o"]["data"]["text/plain"] == "(1, 2, 3)"
        pictures = [m["content"]["data"]["image/png"] for m in seen if "image/png" in m["content"].get("data", {})]
        assert len(set(pictures)) == 2
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_page_gets_the_first_value():
    assert viewer.slider(lambda a, b: (a, b), a=[3, 1, 2], b=["x", "y"]) == (3, "x")
