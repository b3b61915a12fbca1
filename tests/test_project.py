"""The project's own promises: one list of requirements, a lock that keeps it, a README whose commands exist."""

import re
import shutil
import subprocess
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from dmsmil.study.cli import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [Requirement(line) for line in (ROOT / "requirements.lock").read_text().splitlines()
        if line.strip() and not line.startswith("#")]


def tracked():
    """Text files of the checkout that git tracks (or would)."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    return [ROOT / n for n in names.stdout.splitlines() if (ROOT / n).is_file() and not n.endswith((".png", ".pt"))]


def test_the_lock_pins_everything_and_keeps_what_pyproject_asks():
    pinned = {canonicalize_name(r.name): r for r in LOCK}
    assert all(len(r.specifier) == 1 and str(r.specifier).startswith("==") for r in LOCK)
    assert len(pinned) == len(LOCK), "a package is pinned twice"
    for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]:
        wanted = Requirement(text)
        lock = pinned.get(canonicalize_name(wanted.name))
        assert lock is not None, f"{wanted.name} is not in requirements.lock"
        assert wanted.specifier.contains(Version(str(lock.specifier)[2:])), f"{lock} does not satisfy {wanted}"


def test_the_lock_is_what_runs_here():
    from importlib.metadata import PackageNotFoundError, version

    for requirement in LOCK:
        if requirement.marker is None or requirement.marker.evaluate():
            try:
                assert version(requirement.name) == str(requirement.specifier)[2:], requirement.name
            except PackageNotFoundError:
                pytest.fail(f"{requirement.name} is locked but not installed")


def test_conda_users_get_the_same_list():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    names = [d for d in environment["dependencies"] if isinstance(d, str)]
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert {re.split(r"[=<>]", n)[0] for n in names} == {"python", "pip", "make"}
    assert pip == ["-e .[test]"], "what is needed is said once, in pyproject.toml"


def test_no_path_of_a_machine_and_no_registry_host_in_any_file():
    bad = re.compile(r"/(?:home|root|work|Users)/\w|pypi\.org|files\.pythonhosted|conda\.anaconda|registry\.npmjs")
    for path in tracked():
        if path.name == "test_project.py" or path.name == "test_notebooks.py":
            continue
        try:
            found = bad.search(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
        assert not found, f"{path.relative_to(ROOT)}: {found.group()}"


def test_every_file_and_make_target_the_readme_names_exists():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"make (\w+)", text)) - {"are"} <= targets
    for name in re.findall(r"`(\w+(?:/\w+)?\.py)`", text):
        assert (ROOT / "dmsmil" / name).exists(), name


def test_ci_runs_the_readmes_test_command_and_nothing_else():
    lines = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line and not line.startswith("#")]
    assert lines == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "make test"]


def test_arrows_go_one_way():
    """A room imports only from rooms before it."""
    rooms = ["files", "cluster", "parallel", "meter", "server", "download", "gdc", "cohort", "splits", "folds",
             "leakage", "histology", "demo", "mosaics", "slides", "tiles", "weights", "encoders", "foreign",
             "linking", "store", "formats", "rehearsal", "bags", "features", "models", "metrics", "baselines",
             "training", "runs", "comparison", "explain", "nuclei", "paper", "report", "verdicts", "ablation",
             "sweep", "witness", "faithfulness", "morphology", "growth", "claims", "export", "viewer", "figures",
             "cost", "preflight", "bench", "readme", "reference", "pages", "book", "publish", "study"]
    found = {p.stem for p in (ROOT / "dmsmil").glob("*.py")} - {"__init__"} | {"models", "figures"}
    assert found == set(rooms)
    for room in rooms:
        folder = ROOT / "dmsmil" / room
        paths = folder.glob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
        for path in paths:
            for used in re.findall(r"from dmsmil\.(\w+)", path.read_text()) + \
                    re.findall(r"^\s*from dmsmil import (\w+)", path.read_text(), re.M):
                assert used == room or rooms.index(used) < rooms.index(room), f"{path.name} imports {used}"
