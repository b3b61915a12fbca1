"""The walkthroughs: strict nbval, every stored output compared with a fresh run (figures apart, which nbval cannot)."""

import os
import re
import subprocess
import sys

import nbformat
import pytest

from dmsmil.jobs.files import ROOT

WALKTHROUGHS = sorted((ROOT / "notebooks/walkthroughs").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", WALKTHROUGHS, ids=lambda p: p.stem)
def test_a_walkthrough_gives_what_it_shows(notebook):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--nbval",
            "--nbval-current-env",
            "-q",
            "-o",
            "addopts=",
            "-p",
            "no:cacheprovider",
            str(notebook),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"\d+ passed", done.stdout)


@pytest.mark.parametrize("notebook", WALKTHROUGHS, ids=lambda p: p.stem)
def test_a_walkthrough_is_short_executed_in_order_and_clean(notebook):
    cells = nbformat.read(notebook, 4).cells
    code = [c for c in cells if c.cell_type == "code"]
    lines = sorted(len([line for line in c.source.splitlines() if line.strip()]) for c in code)
    assert len(cells) < 30 and lines[len(lines) // 2] < 5
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert not re.search(r"^\s*(def|class)\s", "\n".join(c.source for c in code), re.M)
    text = notebook.read_text()
    assert not re.search(r"/(home|root|work|tmp|Users)/|Warning", text) and len(text) < 1_000_000
