"""Every command that README and the guide show is executed by a test: here, or in the test that is named for it."""

import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from tests.conftest import ROOT, dmsmil

WORDS = r"(?:make|dmsmil|papermill|python|conda)\b "
EXECUTED = {  # command: the file and test that types it, or its equal at smoke scale
    "make demo": ("study/test_commands.py", "test_a_make_target_is_the_command_it_stands_for"),
    "make test": ("test_project.py", "test_ci_runs_the_readmes_test_command_and_nothing_else"),
    "make lab": ("study/test_commands.py", "test_a_make_target_is_the_command_it_stands_for"),
    "make book": ("study/test_commands.py", "test_a_make_target_is_the_command_it_stands_for"),
    "make notebooks": ("study/test_commands.py", "test_a_make_target_is_the_command_it_stands_for"),
    "make readme": ("study/test_commands.py", "test_a_make_target_is_the_command_it_stands_for"),
    "conda env create -f environment.yml && conda activate dmsmil": (
        "test_project.py",
        "test_conda_users_get_the_same_list",
    ),
    "dmsmil run params/demo.yaml": (
        "study/test_notebooks.py",
        "test_the_smoke_study_runs_and_leaves_what_the_design_says",
    ),
    "dmsmil run params/demo_all.yaml": ("study/test_preflight.py", "test_check_of_the_demo_is_clean"),
    "dmsmil check params/mine.yaml": ("study/test_commands.py", "test_own_slides_as_readme_says"),
    "dmsmil run params/mine.yaml": ("study/test_commands.py", "test_own_slides_as_readme_says"),
    "papermill notebooks/03_train.ipynb out.ipynb -f params/mine.yaml -p epochs 5": (
        "study/test_notebooks.py",
        "test_plain_papermill_works_with_a_params_file",
    ),
    "dmsmil apply params/mine.yaml SLIDES": ("apply/test_command.py", "test_apply_predicts_and_says_it"),
    "dmsmil export params/mine.yaml OUT": (
        "apply/test_command.py",
        "test_an_exported_model_is_asked_without_the_study",
    ),
    "dmsmil check params/tcga_brca.yaml": ("cohorts/test_tcga.py", "test_what_check_says_of_a_cohort_by_name"),
    "dmsmil run params/tcga_brca.yaml": ("cohorts/test_tcga.py", "test_the_papers_study_streams_its_slides"),
    "dmsmil run params/tcga_nsclc.yaml": (
        "cohorts/test_tcga.py",
        "test_the_params_files_of_the_paper_differ_only_where_they_must",
    ),
    "dmsmil check": ("study/test_preflight.py", "test_check_finds_what_is_wrong_in_seconds"),
    "dmsmil bench": ("study/test_bench.py", "test_the_fast_step_is_compared_only_where_it_agrees"),
    "dmsmil methods": ("study/test_cli.py", "test_methods_lists_every_method"),
    "dmsmil methods --check NAME": ("study/test_commands.py", "test_a_method_keeps_its_promises"),
    "python -m tests.reference FOLDER": ("models/test_reference.py", "test_nothing_checked_is_a_failure"),
}


def commands(text):
    """The commands of a page: lines of its code blocks, and code in its sentences."""
    blocks = "\n".join(re.findall(r"^ *```\n(.*?)^ *```", text, re.M | re.S))
    found = [line.split("#")[0].strip() for line in blocks.splitlines() if re.match(f" *{WORDS}", line)]
    prose = re.sub(r"^ *```\n.*?^ *```", "", text, flags=re.M | re.S).replace("\n", " ")
    return {*found, *(code for code in re.findall(r"`([^`]+)`", prose) if re.match(WORDS, code))}


def test_every_command_of_readme_and_guide_has_its_test():
    first, guide = (commands((ROOT / name).read_text(encoding="utf-8")) for name in ("README.md", "docs/guide.md"))
    assert first | guide == set(EXECUTED)
    assert {"make demo", "make test", "dmsmil check params/mine.yaml", "dmsmil run params/mine.yaml"} <= first
    for command, (name, test) in EXECUTED.items():
        assert f"def {test}(" in (ROOT / "tests" / name).read_text(), command


@pytest.mark.parametrize(
    "target, wanted",
    [
        ("demo", "dmsmil run params/demo.yaml"),
        ("lab", "jupyter lab notebooks"),
        ("book", "dmsmil book params/demo.yaml"),
        ("readme", "python -m dmsmil.book.readme outputs/demo"),
        ("notebooks", "python -m dmsmil.book.publish outputs/demo"),
        ("bench", "dmsmil bench"),
        ("test-fast", 'python -m pytest -m "not slow"'),
    ],
)
def test_a_make_target_is_the_command_it_stands_for(target, wanted):
    """What make would type; the commands themselves are executed at smoke scale elsewhere."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and f".venv/bin/{wanted}" in done.stdout, done.stdout + done.stderr


def test_own_slides_as_readme_says(smoke, tmp_path):
    """A table of three columns, a copy of params/own_slides.yaml, check, run: with the smoke study's slides."""
    home, _ = smoke
    cohort = pd.read_csv(home / "cohort/cohort.csv")
    cohort[["slide_id", "patient_id", "label"]].to_csv(tmp_path / "mine.csv", index=False)
    text = (ROOT / "params/own_slides.yaml").read_text().replace("own_slides/cohort.csv", str(tmp_path / "mine.csv"))
    text = text.replace("own_slides/slides", str(home / "cohort/slides")).replace("resnet101", "efficientnet_lite0")
    (tmp_path / "mine.yaml").write_text(text.replace("study: own_slides", "study: mine"))
    small = ["-p", "folds", "2", "-p", "tile_px", "256", "-p", "outputs", tmp_path]
    checked = dmsmil("check", tmp_path / "mine.yaml", *small)
    assert checked.returncode == 0 and f"{len(cohort)} of {len(cohort)} files open" in checked.stdout, checked.stdout
    done = dmsmil("run", tmp_path / "mine.yaml", *small, "-p", "k", "4", "--only", "00", "01")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(pd.read_csv(tmp_path / "mine/cohort.csv")) == len(cohort)
    assert len(list((tmp_path / "mine/features").glob("10x*/patches/*.h5"))) == len(cohort)


@pytest.mark.slow
def test_a_method_keeps_its_promises():
    done = subprocess.run(
        [sys.executable, "-m", "dmsmil.study.cli", "methods", "--check", "topk"],
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0 and "BROKEN" not in done.stdout and "kept" in done.stdout, done.stdout
