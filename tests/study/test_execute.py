"""One notebook through papermill: whole or absent, by our own interpreter, and what stops it in one line."""

import errno
import json
import sys

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec

from dmsmil.jobs.files import DiskFull
from dmsmil.study.execute import OwnKernel, execute
from dmsmil.study.params import known_parameters

PARAMS = {name: p.default for name, p in known_parameters().items()}


@pytest.fixture
def notebook(tmp_path):
    """Writes a notebook of a few cells: notebook(cell, cell) -> path."""

    def write(*cells, name="00_try"):
        first = nbformat.v4.new_code_cell("epochs: int = 1  # passes", metadata={"tags": ["parameters"]})
        book = nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, cells)])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, tmp_path / f"{name}.ipynb")
        return tmp_path / f"{name}.ipynb"

    return write


@pytest.mark.slow
def test_it_runs_by_the_interpreter_that_runs_us_whatever_jupyter_calls_python3(notebook, tmp_path, monkeypatch):
    broken = tmp_path / "data/kernels/python3"
    broken.mkdir(parents=True)
    (broken / "kernel.json").write_text(
        json.dumps(
            {"argv": ["/nowhere/python", "{connection_file}"], "language": "python", "display_name": "elsewhere"}
        )
    )
    for variable in ("JUPYTER_PATH", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "data"))
    said = []
    path = notebook("import sys\nprint(sys.executable, epochs)")
    assert execute(path, tmp_path / "{out}", {**PARAMS, "epochs": 3}, said.append) == ""
    assert said == [f"    {sys.executable} 3"]
    assert [p.name for p in (tmp_path / "{out}").iterdir()] == ["00_try.ipynb"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell, told",
    [
        ("from dmsmil.jobs.files import InputError\nraise InputError('one\\n line')", "one line"),
        (
            "import os\nos._exit(9)",
            "its process died (killed by the system, or out of memory): try again with workers: 1",
        ),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_cell_that_stops_is_one_line_and_the_notebook_as_far_as_it_came(notebook, tmp_path, cell, told):
    out = tmp_path / "out"
    assert execute(notebook("print(1)", cell), out, PARAMS, print) == told
    assert [p.name for p in out.iterdir()] == ["00_try.failed.ipynb"]
    assert execute(notebook("print(1)"), out, PARAMS, print) == ""
    assert [p.name for p in out.iterdir()] == ["00_try.ipynb"], "what failed is gone with its cause"


@pytest.mark.slow
def test_a_full_disk_while_the_notebook_is_saved_is_one_line(notebook, tmp_path, monkeypatch):
    from papermill import engines

    def full(nb, path):
        if any(cell.get("outputs") for cell in nb.cells):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(engines, "write_ipynb", full)
    with pytest.raises(DiskFull, match="no space left on the disk while writing 00_try.ipynb: free some space"):
        execute(notebook("print(1)"), tmp_path / "out", PARAMS, print)
    assert not list((tmp_path / "out").iterdir())


def test_a_kernel_that_does_not_start_is_one_line(notebook, tmp_path, monkeypatch):
    """Papermill's own error was a traceback that ended the study."""
    spec = KernelSpec(argv=["false"], display_name="Python 3", language="python")
    monkeypatch.setattr(OwnKernel, "kernel_spec", spec)
    told = execute(notebook("print(1)"), tmp_path / "out", PARAMS, print)
    assert told.startswith("its process did not start (") and told.endswith("start the same command again")
    assert not list((tmp_path / "out").glob("*.ipynb"))
