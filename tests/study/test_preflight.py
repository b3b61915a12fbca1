"""What `dmsmil check` finds before a study runs; see also test_study.py, where the command itself is tested."""

import numpy as np
import psutil
import pytest

from dmsmil.features.bags import fits_in_memory
from dmsmil.jobs.files import ROOT
from dmsmil.study.params import read_params
from dmsmil.study.place import resolve
from dmsmil.study.preflight import findings


@pytest.fixture
def said(tmp_path):
    """The findings about params/smoke.yaml with some values changed: {what: (all well, line)}."""
    def look(**changes):
        params = {**read_params(ROOT / "params/smoke.yaml"), "outputs": str(tmp_path), **changes}
        return {line.split()[0]: (good, line) for good, line in findings(params, resolve)}
    return look


def test_nothing_stands_in_the_way_of_the_smoke_study(said):
    found = said()
    assert all(good for good, _ in found.values())
    assert {"cohort", "encoder", "method", "ablation", "paper", "device", "disk", "memory"} <= set(found)


@pytest.mark.parametrize("changes, what, message", [
    ({"variants": ["map_tyle"]}, "ablation", "did you mean 'map_tile'"),
    ({"variants": []}, "ablation", "variants is empty"),
    ({"lams": [0.1, "1e-1"]}, "ablation", "write 1.0e-1"),
    ({"collapse_lams": [0]}, "ablation", "numbers above 0"),
    ({"paper": "luad"}, "paper", "brca, nsclc"),
])
def test_what_a_later_notebook_would_stop_at_is_said_now(said, changes, what, message):
    found = said(**changes)
    assert [name for name, (good, _) in found.items() if not good] == [what]
    assert message in found[what][1]


@pytest.mark.parametrize("paper, words", [("brca", "TCGA-BRCA"), ("nsclc", "TCGA-NSCLC"), ("", "none")])
def test_the_cohort_of_the_paper_is_named(said, paper, words):
    good, line = said(paper=paper)["paper"]
    assert good and words in line


@pytest.mark.parametrize("free", [1e5, 1e12])
def test_memory_is_judged_as_the_bags_will_judge_it(said, monkeypatch, free):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": free}))
    size = np.prod([10, 12, 2, 1280]) * 4  # slides, tiles, scales, channels of the smoke study
    assert ("held in memory" in said()["memory"][1]) == fits_in_memory(size) == (free > 1e6)
