"""The lines of docs/interop.md: Python is executed, YAML has keys that a study knows, commands are commands."""

import importlib.util
import re

import pandas as pd
import pytest
import yaml

from dmsmil.features.handing import hand_out
from dmsmil.interpret.export import qupath_features, write_qupath
from dmsmil.jobs.files import ROOT
from dmsmil.slides.given import open_given
from dmsmil.study.cli import _parser
from dmsmil.study.params import known_parameters
from tests.features.test_formats import own_study
from tests.features.test_handing import COHORT, FOLDS
from tests.slides.pyramids import make_slide

TEXT = (ROOT / "docs/interop.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.M | re.S)
PYTHON = [code for kind, code in BLOCKS if kind == "python"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with what the page speaks of: a study with features and scores, its bags for others, a slide."""
    home = tmp_path_factory.mktemp("interop")
    own_study(home / "study", ["one", "three"])
    store = own_study(home / "study", ["TCGA-3.uuid"], magnification=20.0)
    for kind, folder in (("torchmil", "bags"), ("clam", "bags_clam"), ("stamp", "bags_stamp")):
        hand_out(kind, store, COHORT, FOLDS, home / folder)
    rows = [
        dict(slide_id="one", scale=scale, place=place, x=512 * place, y=0, score=place / 7, normalised=place / 7)
        for scale in (10, 20)
        for place in range(6)
    ]
    write_qupath(qupath_features(pd.DataFrame(rows), {10: 512, 20: 256}), home / "study/qupath/one.geojson")
    make_slide(home / "one.svs", 3072, 600)
    return home


@pytest.mark.slow
@pytest.mark.parametrize("code", PYTHON, ids=[re.search(r"import (\w+)|from (\w+)", code)[0] for code in PYTHON])
def test_the_python_of_the_page_runs(code, home, monkeypatch):
    for name in re.findall(r"^(?:import|from) ([\w, ]+?)(?:\.| import|$)", code, re.M):
        for one in name.split(","):
            if importlib.util.find_spec(one.split()[0]) is None:
                pytest.skip(f"needs {one.split()[0]}: docs/interop.md says which extra brings it")
    monkeypatch.chdir(home)
    exec(compile(code, "docs/interop.md", "exec"), {})


def test_every_program_of_the_table_with_a_python_reader_has_its_lines():
    assert len(PYTHON) == 6
    assert {"torchmil", "h5py", "torch", "geopandas", "lazyslide"} <= set(re.findall(r"\w+", " ".join(PYTHON)))


def test_the_yaml_of_the_page_has_keys_of_a_study():
    found = [yaml.safe_load(code) for kind, code in BLOCKS if kind == "yaml"]
    known = known_parameters()
    assert len(found) == 7
    for values in found:
        for key, value in values.items():
            assert not known[key].problem(value), key


def test_the_table_of_tiles_on_the_page_is_one(tmp_path):
    (table,) = [code for kind, code in BLOCKS if code.startswith("slide_id,x,y\n")]
    (tmp_path / "chosen.csv").write_text(table)
    found = open_given(tmp_path / "chosen.csv", ["S-001"], 10, 256)
    assert found["S-001"].corners.tolist() == [[20480, 10240], [21504, 10240]], "neighbours on a 40x slide"


def test_the_commands_of_the_page_are_commands():
    lines = [line for kind, code in BLOCKS if not kind for line in code.splitlines()]
    own = [line.split()[1:] for line in lines if line.startswith("dmsmil")]
    assert len(own) == 3 and {_parser().parse_args(words).kind for words in own} == {"torchmil", "clam", "stamp"}
