"""A notebook is passed over only when nothing that it read, nothing that it made and nothing before it has changed."""

import json
import os

import pytest

from dmsmil.analysis.leftovers import other_tables, read_state
from dmsmil.jobs.failures import failure_row, write_failures
from dmsmil.study import unchanged as room
from dmsmil.study.params import known_parameters, notebooks
from dmsmil.study.times import begin_time, end_time
from dmsmil.study.unchanged import Memory, files

pytestmark = pytest.mark.slow


@pytest.fixture
def study(tmp_path, monkeypatch):
    """(home, params) of a study whose notebooks were all executed, and its book built."""
    monkeypatch.setattr(room, "code", lambda: "code")
    home, mine = tmp_path / "mine", tmp_path / "own"
    mine.mkdir()
    for name in ("table.csv", "tiles.csv", "slides/a.svs", "slides/b.svs"):
        path = mine / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    params = {name: p.default for name, p in known_parameters().items()}
    params |= {"cohort": str(mine / "table.csv"), "slides": str(mine / "slides"), "tiles": str(mine / "tiles.csv")}
    write(home / "cohort.csv", f"slide_id,path\na,{mine}/slides/a.svs\n")
    memory = Memory(home, params)
    for notebook in notebooks():
        memory.begin(notebook)
        write(home / "notebooks" / notebook.name, json.dumps(EXECUTED))
        write(home / "tables" / f"{notebook.stem}.csv", "table")
        memory.end(notebook)
    write(home / "book/index.html", "book")
    memory.end_book()
    return home, params


CELL = {"cell_type": "code", "source": ["1 + 1"], "execution_count": 3, "outputs": []}
EXECUTED = {"cells": [{"cell_type": "markdown", "source": ["# Why"]}, CELL]}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def known(home, params):
    memory = Memory(home, params)
    return [notebook.stem[:2] for notebook in notebooks() if memory.knows(notebook)]


ALL = [notebook.stem[:2] for notebook in notebooks()]


def test_untouched_all_are_known_and_so_is_the_book(study):
    assert known(*study) == ALL and Memory(*study).knows_book()


def test_a_parameter_concerns_the_notebooks_that_have_it(study):
    home, params = study
    assert known(home, params | {"lams": [3.0]}) == [name for name in ALL if name != "06"]


@pytest.mark.parametrize("name", ["table.csv", "tiles.csv", "slides/a.svs", "slides/b.svs"])
def test_an_edited_file_of_the_person_changes_everything(study, name):
    home, params = study
    path = home.parent / "own" / name
    path.write_text("edited, and longer")
    assert known(home, params) == []


def test_features_of_each_scale_are_looked_at(study):
    home, params = study
    mine = home.parent / "own"
    for scale in (10, 20):
        write(mine / f"feats_{scale}x/a.h5", "features")
    params |= {"features": str(mine / "feats_{scale}x")}
    memory = Memory(home, params)
    for notebook in notebooks():
        memory.begin(notebook)
        memory.end(notebook)
    assert known(home, params) == ALL
    write(mine / "feats_20x/a.h5", "others, and longer")
    assert known(home, params) == []


def test_what_was_changed_stays_so_whatever_is_executed_afterwards(study):
    home, params = study
    write(home / "tables/04_compare.csv", "edited")
    memory = Memory(home, params)
    memory.begin(notebooks()[-1])
    memory.end(notebooks()[-1])
    assert set(known(home, params)) <= {ALL[-1]}


def test_what_is_edited_while_a_notebook_runs_was_not_read_by_it_but_what_it_fetches_was(study):
    home, params = study
    memory = Memory(home, params)
    for notebook in notebooks():
        memory.begin(notebook)
        if notebook.stem.startswith("00"):
            write(home.parent / "own/slides/fetched.svs", "slide")
        if notebook.stem.startswith("04"):
            write(home.parent / "own/table.csv", "a label was corrected")
        memory.end(notebook)
    assert known(home, params) == [name for name in ALL if name >= "05"], "each of those began afterwards"


def test_a_new_slide_changes_everything(study):
    home, params = study
    write(home.parent / "own/slides/c.svs", "new")
    assert known(home, params) == []


@pytest.mark.parametrize(
    "change",
    [lambda path: path.unlink(), lambda path: path.write_text("edited"), lambda path: os.utime(path, ns=(0, 0))],
)
def test_a_result_that_is_not_as_it_was_left_changes_everything(study, change):
    home, params = study
    change(home / "tables/05_ablation.csv")
    assert known(home, params) == [] and not Memory(home, params).knows_book()


def test_what_failed_is_tried_again(study):
    home, params = study
    write_failures(home, "train", [failure_row("run", "train", ValueError("broken"))])
    assert known(home, params) == []


def test_a_new_code_changes_everything(study, monkeypatch):
    monkeypatch.setattr(room, "code", lambda: "other")
    assert known(*study) == []


def test_a_style_is_code_too(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "ROOT", tmp_path)
    write(tmp_path / "dmsmil/a.py", "x = 1")
    write(tmp_path / "dmsmil/figures/x.mplstyle", "figure.dpi: 100")
    first = room.code()
    for name in ("__pycache__/a.cpython-311.pyc", "__pycache__/a.cpython-311.pyc.140234", ".a.py.swp", ".DS_Store"):
        write(tmp_path / "dmsmil" / name, "of no consequence")
    assert room.code() == first
    write(tmp_path / "dmsmil/figures/x.mplstyle", "figure.dpi: 200")
    assert room.code() != first


def test_every_package_that_is_required_is_looked_at():
    found = room.versions()
    assert {"torch", "opencv-python-headless", "scikit-image", "torchstain"} <= set(found)
    assert "pytest" not in found and "absent" not in found.values()


def test_a_lost_notebook_is_executed_and_so_are_those_after_it(study):
    home, params = study
    (home / "notebooks/04_compare.ipynb").unlink()
    memory = Memory(home, params)
    passed = []
    for notebook in notebooks():  # as `run` does
        if memory.knows(notebook):
            passed.append(notebook.stem[:2])
        else:
            memory.begin(notebook)
    assert passed == ALL[:4] and not memory.knows_book()


def test_an_interrupted_study_goes_on_where_it_was(study):
    """Killed in 05: what was whole is known, 05 and all after it are not, whatever they gave before."""
    home, params = study
    Memory(home, params).begin(notebooks()[5])
    write(home / "runs/new/fold0-seed0/config.json", "{}")
    assert known(home, params) == ALL[:5]


@pytest.mark.parametrize("text", ["{", "{}", "[]", "null", '{"notebooks": []}', '{"files": 3}', ""])
def test_a_damaged_memory_is_no_memory(study, text):
    home, params = study
    (home / "done.json").write_text(text)
    assert known(home, params) == []
    Memory(home, params).begin(notebooks()[0])


def test_an_edited_cohort_table_is_known_to_be_another_until_00_reads_it(study):
    home, params = study
    assert not Memory(home, params).table_changed()
    (home.parent / "own/table.csv").write_text("edited, and longer")
    memory = Memory(home, params)
    assert memory.table_changed()
    memory.begin(notebooks()[3])
    memory.end(notebooks()[3])
    assert memory.table_changed()
    memory.begin(notebooks()[0])
    memory.end(notebooks()[0])
    assert not Memory(home, params).table_changed()


def test_a_table_that_its_notebook_makes_no_more_is_none_of_the_present_ones(study):
    """As the one of `witness_rates`, once the key is empty."""
    home, params = study
    memory, notebook = Memory(home, params), notebooks()[5]
    write(home / "tables/05_witness.csv", "table")
    memory.begin(notebook)
    write(home / "tables/05_ablation.csv", "table")
    memory.end(notebook)
    assert read_state(home)["left"]["05_ablation"] == ["05_witness"]
    assert other_tables(home) == {"05_witness": "not asked for any more"}
    memory.begin(notebook)
    write(home / "tables/05_witness.csv", "table")
    memory.end(notebook)
    assert read_state(home)["left"]["05_ablation"] == ["05_ablation"]


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", json.dumps({"cells": [{**CELL, "execution_count": None}]})])
def test_an_executed_copy_that_somebody_emptied_is_made_anew(study, text):
    home, params = study
    write(home / "notebooks/04_compare.ipynb", text)
    assert "04" not in known(home, params) and "03" in known(home, params)


def test_what_a_book_or_a_checkpoint_adds_changes_nothing(study):
    home, params = study
    for name in ("book/new.html", "figures/cover.png", "figures/cover.csv", "times.csv", "running.lock", "features/.x"):
        write(home / name, "new")
    assert known(home, params) == ALL


def test_files_are_listed_by_their_path(tmp_path):
    write(tmp_path / "a/b.txt", "12345")
    assert list(files(tmp_path)) == ["a/b.txt"] and files(tmp_path)["a/b.txt"][0] == 5
    assert list(files(tmp_path / "a/b.txt")) == ["b.txt"] and files(tmp_path, ("a",)) == {}


def test_the_first_time_and_the_latest_are_kept_apart(tmp_path):
    first = begin_time(tmp_path, "03_train")
    end_time(tmp_path, "03_train", 100.04, first)
    again = begin_time(tmp_path, "03_train")
    end_time(tmp_path, "03_train", 2.0, again)
    assert (first, again) == (True, False)
    assert (tmp_path / "times.csv").read_text() == "notebook,first,latest\n03_train,100.0,2.0\n"


def test_an_interrupted_first_time_is_not_known(tmp_path):
    begin_time(tmp_path, "03_train")  # killed here
    end_time(tmp_path, "03_train", 5.0, begin_time(tmp_path, "03_train"))
    assert (tmp_path / "times.csv").read_text() == "notebook,first,latest\n03_train,,5.0\n"
