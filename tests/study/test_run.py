"""Running a study: the times of its notebooks, its book, its folder."""

import errno
import os
import shutil

import pandas as pd
import pytest

from dmsmil.book import build as book
from dmsmil.jobs.files import DiskFull, InputError, write_text
from dmsmil.study.cli import main
from dmsmil.study.params import known_parameters
from dmsmil.study.place import check_writable, is_name, study_folder
from dmsmil.study.run import run
from dmsmil.study.unchanged import EDITED


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Runs a study whose notebooks are executed in no time: quick(only, failures) -> (status, lines said, home)."""

    def execute(notebook, folder, params, say):
        folder.mkdir(exist_ok=True)
        shutil.copy(notebook, folder)
        return ""

    def runner(only=None, failures=0, **changes):
        home, said = tmp_path / "mine", []
        if failures:
            write_text("unit,stage,reason,traceback\n" + failures * "s1,tiles,broken,t\n", home / "failures.csv")
        params = (
            {name: p.default for name, p in known_parameters().items()}
            | {"study": "mine", "outputs": str(tmp_path)}
            | changes
        )
        return run(params, only, said.append), said, home

    monkeypatch.setattr("dmsmil.study.run.execute", execute)
    monkeypatch.setattr(book, "build", lambda home, say: home / "book/index.html")
    return runner


@pytest.mark.slow
def test_how_long_each_notebook_took_the_first_time_and_the_latest(quick):
    _, _, home = quick(["00", "03"])
    table = pd.read_csv(home / "times.csv")
    assert list(table) == ["notebook", "first", "latest"] and list(table.notebook) == ["00_cohort", "03_train"]
    write_text("notebook,first,latest\n00_cohort,88.8,77.7\n03_train,,99.9\n", home / "times.csv")
    quick(["00", "01"])
    times = pd.read_csv(home / "times.csv").set_index("notebook")
    assert list(times.index) == ["00_cohort", "01_tiles", "03_train"]
    assert times.latest["03_train"] == 99.9 and times["first"]["00_cohort"] == 88.8 and times.latest["00_cohort"] < 77


@pytest.mark.slow
def test_the_book_is_built_after_the_report_and_only_then(quick, monkeypatch):
    built = []
    monkeypatch.setattr(book, "build", lambda home, say: built.append(sorted(p.stem for p in home.rglob("*.ipynb"))))
    status, said, _ = quick(["00", "03"])
    assert status == 0 and not built and not any("book/" in line for line in said)
    status, said, _ = quick(["00", "09"])
    assert status == 0 and built == [["00_cohort", "03_train", "09_report"]]
    assert any("mine/book/index.html" in line for line in said)


@pytest.mark.slow
def test_slides_are_predicted_only_where_some_are_named(quick, tmp_path, monkeypatch):
    """Nothing to apply to: 10 is no part of the study. Named: it is, after the report, and its pages are shown."""
    (tmp_path / "slide.svs").write_text("")
    status, said, home = quick()
    assert status == 0 and not (home / "notebooks/10_apply.ipynb").exists() and (home / "params.yaml").exists()
    status, said, _ = quick(apply_to=str(tmp_path / "slide.svs"))
    assert status == 0 and (home / "notebooks/10_apply.ipynb").exists()
    assert any("09_report.ipynb   the result on one page" in line for line in said)
    assert any("apply/index.html" in line for line in said) and any("book/index.html" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("only", [["03"], ["10"]])
def test_an_edited_cohort_table_is_said_by_whatever_still_goes_by_it_as_it_was(quick, tmp_path, only):
    table = tmp_path / "mine.csv"
    table.write_text("slide_id,patient_id,label\na,a,x\n")
    (tmp_path / "slide.svs").write_text("")
    asked = {"cohort": str(table), "apply_to": str(tmp_path / "slide.svs")}
    assert EDITED not in quick(["00"], **asked)[1] + quick(only, **asked)[1]
    table.write_text("slide_id,patient_id,label\na,a,another\n")
    assert EDITED in quick(only, **asked)[1]
    assert EDITED not in quick(["00"], **asked)[1] + quick(only, **asked)[1]


def test_an_export_says_it_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dmsmil.study.unchanged.Memory.table_changed", lambda self: True)
    assert main(["export", "params/smoke.yaml", str(tmp_path / "kit"), "-p", "outputs", str(tmp_path)]) == 2
    assert EDITED in capsys.readouterr().out


@pytest.mark.slow
def test_a_mistake_in_apply_to_costs_the_study_no_book(quick, tmp_path, monkeypatch):
    from dmsmil.study import run as room

    built, whole = [], room.execute
    monkeypatch.setattr(book, "build", lambda home, say: built.append(home))
    monkeypatch.setattr(
        room, "execute", lambda notebook, *rest: "no such table" if "10" in notebook.stem else whole(notebook, *rest)
    )
    status, said, home = quick(["00", "09", "10"], apply_to="params/demo_nwe.csv")
    assert status == 2 and built == [home] and any("10_apply stopped: no such table" in line for line in said)
    assert any("book/index.html" in line for line in said) and not any("apply/index.html" in line for line in said)


@pytest.mark.slow
def test_by_itself_it_changes_nothing_that_is_the_studys(quick, tmp_path):
    """Neither params.yaml nor the settings of its methods: it may be refused for what is named here."""
    _, _, home = quick()
    before = (home / "params.yaml").read_bytes()
    status, _, _ = quick(["10"], apply_to=str(tmp_path), k=7, methods=["no such method"])
    assert status == 0 and (home / "params.yaml").read_bytes() == before
    with pytest.raises(InputError, match="no such method"):
        quick(["04"], methods=["no such method"])


def test_a_slide_that_failed_among_those_is_status_1(quick, tmp_path):
    home = tmp_path / "mine"
    write_text("unit,stage,reason,traceback\ns1,features,broken,t\n", home / "apply/failures.csv")
    assert quick(["00"])[0] == 0 and quick(["10"])[0] == 0, "nothing was asked"
    status, said, _ = quick(["10"], apply_to=str(tmp_path))
    assert status == 1 and any("apply/failures.csv" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize(
    "error, message",
    [
        (InputError("a page would lose a table"), "a page would lose a table"),
        (RuntimeError("no\nroom"), "RuntimeError: no room"),
    ],
)
def test_a_book_that_fails_is_said_and_the_results_stay(quick, monkeypatch, error, message):
    def build(home, say):
        raise error

    monkeypatch.setattr(book, "build", build)
    status, said, home = quick(["09"], failures=2)
    assert status == 2 and f"the book could not be built: {message}" in said
    assert any("2 units failed" in line for line in said), "the other news are not lost"
    assert not any("index.html" in line for line in said) and (home / "notebooks/09_report.ipynb").exists()
    monkeypatch.setattr(book, "build", lambda home, say: None)
    assert quick(["09"], failures=2)[0] == 1


def test_a_book_of_nothing_is_one_line_and_makes_no_folder(capsys, tmp_path):
    assert main(["book", "params/demo.yaml", "-p", "outputs", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "study 'demo' has no executed notebooks" in said and not list(tmp_path.iterdir())
    assert main(["book", "params/demo.yaml", "-p", "study", "../etc"]) == 2
    assert "a name of letters" in capsys.readouterr().err


def test_the_book_can_be_built_again_by_itself(quick, capsys, tmp_path):
    quick(["09"])
    assert main(["book", "params/demo.yaml", "-p", "study", "mine", "-p", "outputs", str(tmp_path)]) == 0
    assert "mine/book/index.html" in capsys.readouterr().out


@pytest.mark.parametrize("error, message", [(DiskFull("no space left"), "no space left"), (InputError("x"), "x")])
def test_what_stops_a_notebook_from_outside_is_status_2_and_lets_go_of_the_study(
    tmp_path, monkeypatch, capsys, error, message
):
    def execute(*args):
        raise error

    monkeypatch.setattr("dmsmil.study.run.execute", execute)
    assert main(["run", "params/smoke.yaml", "-p", "outputs", str(tmp_path), "--only", "00"]) == 2
    assert capsys.readouterr().err == f"dmsmil: {message}\n"
    assert not (tmp_path / "smoke/running.lock").exists()


@pytest.mark.slow
def test_a_notebook_that_stopped_is_status_2_and_units_that_failed_are_1(quick, monkeypatch):
    assert quick(["00"], failures=2)[0] == 1
    monkeypatch.setattr("dmsmil.study.run.execute", lambda *args: "no slide could be done")
    status, said, _ = quick(["00"])
    assert status == 2 and "00_cohort stopped: no slide could be done" in said


@pytest.mark.slow
def test_failures_that_may_be_end_well(quick):
    assert quick(["00"], failures=1)[0] == 1
    assert quick(["00"], failures=1, allow_failures=True)[0] == 0


# ------------------------------------------------------------------------------------------------ its folder

ODD = [
    "..",
    ".",
    "...",
    "../x",
    "a/b",
    "/etc",
    "a\\b",
    "",
    " ",
    "a b",
    "a\nb",
    "~",
    "a\0b",
    "x" * 101,
    "é" * 60,
    "-p;ls",
]


@pytest.mark.parametrize("name", ODD)
def test_nothing_is_ever_written_outside_of_the_studies_folder(tmp_path, name):
    assert not is_name(name)
    with pytest.raises(InputError, match="a name of letters"):
        study_folder(name, str(tmp_path / "outputs"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["demo", "2024", "a.b-c_d", "..a", "研究", "é", "x" * 100])
def test_a_name_is_a_folder_in_the_studies_folder(tmp_path, name):
    assert is_name(name) and study_folder(name, str(tmp_path)).parent == tmp_path and (tmp_path / name).is_dir()


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is no folder"):
        check_writable(tmp_path / "file" / "study")
    monkeypatch.setattr(os, "access", lambda path, how: False)  # a test may run as root, who may write everywhere
    for verb, status in (("run", 2), ("check", 1)):
        assert main([verb, "params/smoke.yaml", "-p", "outputs", str(tmp_path / "new")]) == status
        assert f"the folder {tmp_path.name} cannot be written" in "".join(capsys.readouterr())
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.mkdir", full)
    with pytest.raises(InputError, match="the folder mine cannot be written .No space left on device.: mend that"):
        study_folder("mine", str(tmp_path))


def test_home_is_where_the_person_is_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert study_folder("mine", "~/studies") == tmp_path / "studies/mine"
