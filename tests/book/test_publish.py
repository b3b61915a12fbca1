"""Published notebooks show what the study showed, in few bytes, the same each time, and nothing of this machine."""

import base64
import io
import json
import shutil

import nbformat
import numpy as np
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from dmsmil.book import publish as publishing
from dmsmil.book.publish import INJECTED, LIMIT, compare, main, publish, quantised, record
from dmsmil.jobs.files import ROOT, InputError
from dmsmil.study.params import notebook_parameters
from tests.conftest import assert_one_line
from tests.slides.pyramids import texture

pytestmark = pytest.mark.slow

SOURCES = (("markdown", "# 03 · Train"), ("code", "k: int = 3  # K: tiles"), ("code", "show(k)"), ("code", "record"))

HOME = "/".join(["", "home", "me"])  # a place of a machine


def png(width=600, height=400, colours=0):
    """A picture as base64: tissue, or stripes of a few colours; with a transparent corner."""
    pixels = texture(height, width)
    if colours:
        table = np.random.default_rng(0).integers(0, 256, (colours, 3), dtype=np.uint8)
        pixels = table[np.arange(width)[None] * np.ones((height, 1), int) % colours]
    image = Image.fromarray(pixels).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 9, 9))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def opened(data):
    return Image.open(io.BytesIO(base64.b64decode(data)))


def shown(count=1, **data):
    return new_output(
        "execute_result", {name.replace("_", "/", 1): value for name, value in data.items()}, execution_count=count
    )


@pytest.fixture
def project(tmp_path):
    """(home, notebooks): a committed notebook, and a study that executed it, as papermill leaves it."""
    home, notebooks = tmp_path / "outputs/mine", tmp_path / "notebooks"
    (home / "notebooks").mkdir(parents=True)
    notebooks.mkdir()
    source = new_notebook(
        cells=[
            new_markdown_cell(text, id=f"cell-{i}") if kind == "markdown" else new_code_cell(text, id=f"cell-{i}")
            for i, (kind, text) in enumerate(SOURCES)
        ]
    )
    source.cells[1].metadata["tags"], source.cells[3].metadata["tags"] = ["parameters"], ["record"]
    source.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(source, notebooks / "03_train.ipynb")
    source.cells.insert(2, new_code_cell("# Parameters\nk = 12\n", metadata={"tags": [INJECTED]}))
    for count, cell in enumerate([cell for cell in source.cells if cell.cell_type == "code"], 1):
        cell.execution_count = count
        cell.metadata["papermill"] = {"duration": 0.1, "start_time": "2026"}
        cell.metadata["execution"] = {"iopub.execute_input": "2026"}
    source.cells[3].outputs = [shown(3, image_png=png(), text_plain="<Figure>")]
    source.cells[4].outputs = [shown(4, text_plain="{'AUC': 0.87,\n 'parts': {'a': 1, 'b': nan}}")]
    source.metadata["papermill"] = {"input_path": "/".join(["", "home", "me", "03_train.ipynb"])}
    source.metadata["language_info"]["version"] = "3.11.7"
    source.metadata["widgets"] = {"state": {}}
    nbformat.write(source, home / "notebooks/03_train.ipynb")
    return home, notebooks


@pytest.fixture
def change(project):
    """Change the executed notebook by a function of its cells."""

    def make(how):
        path = project[0] / "notebooks/03_train.ipynb"
        notebook = nbformat.read(path, 4)
        how(notebook.cells)
        nbformat.write(notebook, path)

    return make


def read(notebooks):
    notebook = nbformat.read(notebooks / "03_train.ipynb", 4)
    nbformat.validate(notebook)
    return notebook


def test_what_a_study_showed_is_published_without_what_ran_it(project):
    home, notebooks = project
    before, said = read(notebooks), []
    publish(home, notebooks, said.append)
    after = read(notebooks)
    assert after.metadata == before.metadata and len(said) == 1 and "03_train.ipynb" in said[0]
    assert [(c.id, c.source, c.metadata) for c in after.cells if c.id != INJECTED] == [
        (c.id, c.source, c.metadata) for c in before.cells
    ]
    assert after.cells[2].source == "# Parameters\nk = 12\n" and after.cells[2].metadata == {"tags": [INJECTED]}
    assert [c.execution_count for c in after.cells if c.cell_type == "code"] == [1, 2, 3, 4]
    assert opened(after.cells[3].outputs[0].data["image/png"]).size == (600, 400)
    assert record(notebooks / "03_train.ipynb") == {"AUC": 0.87, "parts · a": 1, "parts · b": "nan"}
    text = (notebooks / "03_train.ipynb").read_text()
    assert not [word for word in ("papermill", "iopub", "2026", "/home", "widgets", "3.11") if word in text]


def test_twice_gives_the_same_bytes_and_a_published_notebook_is_a_source(project, change):
    home, notebooks = project
    publish(home, notebooks)
    first = (notebooks / "03_train.ipynb").read_bytes()

    def again(cells):  # another run of the study: papermill names its cell anew, and times differ
        cells[2].id, cells[3].metadata["papermill"] = "0bb4635a", {"duration": 7.0}

    change(again)
    publish(home, notebooks)
    assert (notebooks / "03_train.ipynb").read_bytes() == first and first.endswith(b"}\n")


def test_lines_of_progress_go_other_lines_stay(project, change):
    parts = [
        "[1/2] dmsmil  fold 0  12.3 s\n",
        "[2/2] dmsm",
        "il  fold 1\n50 of 50 slides were done before\n",
        "48 left\n",
    ]
    change(lambda cells: cells[3].outputs.extend(new_output("stream", name="stdout", text=text) for text in parts))
    publish(*project)
    assert [o.get("text") for o in read(project[1]).cells[3].outputs] == ["48 left\n", None]
    change(lambda cells: cells[3].outputs.pop())
    publish(*project)
    assert [o.output_type for o in read(project[1]).cells[3].outputs] == ["execute_result"]


def test_what_a_static_page_cannot_show_is_dropped(project, change):
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "VBox(children=())"}
    outputs = [
        new_output("display_data", widget),
        shown(3, text_html="<table><tr><td>1</td></tr></table>", text_plain="1"),
        shown(3, text_html="<script>alert(1)</script>", text_plain="words"),
        shown(3, text_markdown="- **so**"),
        new_output("display_data", {"application/javascript": "x", "text/plain": "<Javascript>"}),
    ]
    change(lambda cells: cells[3].outputs.extend(outputs))
    publish(*project)
    data = [dict(output.data) for output in read(project[1]).cells[3].outputs]
    assert [set(d) for d in data] == [{"image/png", "text/plain"}, {"text/html", "text/plain"}, {"text/markdown"}]


@pytest.mark.parametrize(
    "how, message",
    [
        (lambda cells: cells[3].update(source="show(k + 1)"), "other cells"),
        (lambda cells: cells.pop(), "other cells"),
        (lambda cells: cells[0].update(source="# Another"), "other cells"),
        (lambda cells: cells[3].update(execution_count=9), "in order"),
        (lambda cells: cells[3].update(execution_count=None), "in order"),
        (lambda cells: cells[3].outputs.append(new_output("error", ename="E", evalue="x", traceback=[])), "stopped"),
        (
            lambda cells: cells[3].outputs.append(
                new_output(
                    "stream",
                    name="stderr",
                    text=f"{HOME}/a/base.py:24: UserWarning: the layout collapsed\n  figure.savefig()",
                )
            ),
            "UserWarning: the layout collapsed",
        ),
        (
            lambda cells: cells[3].outputs.append(shown(3, text_plain=f"read {HOME}/slides/a.svs")),
            "place of this machine",
        ),
        (lambda cells: cells[2].update(source="cohort = '/tmp/mine.csv'"), "place of this machine"),
    ],
)
def test_what_must_not_be_committed_is_one_clear_line(project, change, how, message, capsys):
    home, notebooks = project
    before = (notebooks / "03_train.ipynb").read_bytes()
    change(how)
    with pytest.raises(InputError, match=message) as caught:
        publish(home, notebooks)
    assert_one_line(caught, "03_train")
    assert "/home" not in str(caught.value)
    assert main([str(home)], notebooks) == 2 and "03_train" in capsys.readouterr().err
    assert (notebooks / "03_train.ipynb").read_bytes() == before


def test_a_study_that_is_not_finished_publishes_nothing(project):
    home, notebooks = project
    before = (notebooks / "03_train.ipynb").read_bytes()
    shutil.copy(notebooks / "03_train.ipynb", notebooks / "04_compare.ipynb")
    for missing in ("04_compare", "03_train"):
        with pytest.raises(InputError) as caught:
            publish(home, notebooks)
        assert_one_line(caught, missing)
        assert (notebooks / "03_train.ipynb").read_bytes() == before
        (notebooks / "04_compare.ipynb").unlink(missing_ok=True)
        (home / "notebooks/03_train.failed.ipynb").write_text("{}")
    with pytest.raises(InputError, match="no notebooks"):
        publish(home, home)


# ------------------------------------------------------------------------------------------------ pictures


def test_few_colours_stay_exact_and_many_stay_near():
    for colours, nearest, saved in ((0, 36, 2), (200, 99, 1)):
        given = png(colours=colours)
        small = quantised(opened(given))
        before = Image.alpha_composite(Image.new("RGBA", (600, 400), "white"), opened(given))
        assert opened(small).mode == "P" and opened(small).size == before.size and saved * len(small) < len(given)
        a, b = (np.asarray(image.convert("RGB"), float) for image in (before, opened(small)))
        assert 10 * np.log10(255**2 / max(((a - b) ** 2).mean(), 1e-9)) > nearest, "dB"
        assert (b[0, 0] > 250).all(), "what was transparent is white"


def test_a_small_colour_bar_keeps_its_colours_beside_tissue():
    image = opened(png(900, 600)).convert("RGB")
    steps = np.linspace(0, 255, 60).astype(np.uint8)
    bar = np.stack([steps, 255 - steps, np.full(60, 255, np.uint8)], -1)[:, None].repeat(6, 1)
    image.paste(Image.fromarray(bar), (20, 20))
    after = np.asarray(opened(quantised(image)).convert("RGB"), float)[20:80, 20:26]
    assert np.abs(after - bar).max() < 30


def test_a_notebook_that_is_too_large_gets_smaller_pictures_the_largest_first(project, change, monkeypatch):
    small = png(300, 200, colours=5)
    change(lambda cells: cells[3].outputs.append(shown(3, image_png=small)))
    publish(*project)
    whole = (project[1] / "03_train.ipynb").stat().st_size
    monkeypatch.setattr(publishing, "LIMIT", int(0.8 * whole))
    publish(*project)
    sizes = [opened(output.data["image/png"]).size for output in read(project[1]).cells[3].outputs]
    assert (project[1] / "03_train.ipynb").stat().st_size < 0.8 * whole
    assert 480 <= sizes[0][0] < 600 and abs(sizes[0][0] / sizes[0][1] - 1.5) < 0.01 and sizes[1] == (300, 200)
    monkeypatch.setattr(publishing, "LIMIT", 2000)
    before = (project[1] / "03_train.ipynb").read_bytes()
    with pytest.raises(InputError) as caught:
        publish(*project)
    assert_one_line(caught, "03_train")
    assert (project[1] / "03_train.ipynb").read_bytes() == before


# ------------------------------------------------------------------------------------------------ record cells


def test_differences_of_records_are_rows(project, change):
    home, notebooks = project
    publish(home, notebooks)
    assert compare(notebooks, home / "notebooks").empty
    change(
        lambda cells: (
            cells[4].outputs[0].data.update({"text/plain": "{'AUC': 0.88, 'parts': {'a': 1, 'c': True}, 'b': nan}"})
        )
    )
    table = compare(notebooks, home / "notebooks")
    assert table.to_dict("list") == {
        "notebook": ["03_train"] * 4,
        "key": ["AUC", "parts · b", "parts · c", "b"],
        "published": [0.87, "nan", "absent", "absent"],
        "fresh": [0.88, "absent", True, "nan"],
    }
    assert list(compare(notebooks, home / "notebooks", within=0.011).key) == ["parts · b", "parts · c", "b"]


def test_a_missing_record_is_one_line(project, change):
    home, notebooks = project
    with pytest.raises(InputError) as caught:
        compare(notebooks, home / "notebooks")  # never executed
    assert_one_line(caught, "03_train")
    publish(home, notebooks)
    for how in (
        lambda cells: cells[4].outputs.clear(),
        lambda cells: cells[4].outputs.append(shown(4, text_plain="<object>")),
    ):
        change(how)
        with pytest.raises(InputError) as caught:
            compare(notebooks, home / "notebooks")
        assert_one_line(caught, "03_train")
    with pytest.raises(InputError) as caught:
        compare(notebooks, home)
    assert_one_line(caught, "03_train")


# ------------------------------------------------------------------------------------------------ run again


def test_a_published_notebook_runs_with_other_values_and_has_one_cell_of_them(project, tmp_path):
    """As dmsmil run does it, through papermill and a kernel."""
    home, notebooks = project
    source = nbformat.read(notebooks / "03_train.ipynb", 4)
    source.cells[2].source, source.cells[3].source = "print(k)", '{"k": k}'
    nbformat.write(source, notebooks / "03_train.ipynb")
    for k in (12, 7):
        papermill.execute_notebook(
            notebooks / "03_train.ipynb",
            home / "notebooks/03_train.ipynb",
            {"k": k},
            progress_bar=False,
            kernel_name="python3",
            log_output=False,
        )
        publish(home, notebooks)
        cells = read(notebooks).cells
        assert [INJECTED in cell.metadata.get("tags", []) for cell in cells] == [False, False, True, False, False]
        assert record(notebooks / "03_train.ipynb") == {"k": k} and cells[3].outputs[0].text == f"{k}\n"
        parameters = notebook_parameters(notebooks / "03_train.ipynb")
        assert {name: p.default for name, p in parameters.items()} == {"k": 3}


def test_the_smoke_study_can_be_published(smoke, tmp_path):
    home, notebooks = tmp_path / "smoke", tmp_path / "notebooks"
    for folder in (home / "notebooks", notebooks):
        folder.mkdir(parents=True)
    for path in (ROOT / "notebooks").glob("0[0-9]*.ipynb"):  # 10 runs only where there is something to apply to
        shutil.copy(path, notebooks)
        text = (smoke[0] / "notebooks" / path.name).read_text()
        (home / "notebooks" / path.name).write_text(text.replace(str(smoke[0].parent), "outputs"))  # it ran elsewhere
    publish(home, notebooks)
    first = {path.name: path.read_bytes() for path in notebooks.iterdir()}
    assert len(first) >= 10 and max(map(len, first.values())) < LIMIT
    assert 1.4 * sum(map(len, first.values())) < sum((home / "notebooks" / name).stat().st_size for name in first)
    assert compare(notebooks, home / "notebooks").empty
    before = {name: json.loads((ROOT / "notebooks" / name).read_text()) for name in first}
    for name, text in first.items():
        cells = [c for c in json.loads(text)["cells"] if INJECTED not in c["metadata"].get("tags", [])]
        own = [c for c in before[name]["cells"] if INJECTED not in c["metadata"].get("tags", [])]
        assert [(c["id"], c["source"]) for c in cells] == [(c["id"], c["source"]) for c in own]
    publish(home, notebooks)
    assert {path.name: path.read_bytes() for path in notebooks.iterdir()} == first
