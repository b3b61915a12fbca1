"""The project's own promises: one list of requirements, a lock that keeps it, a README whose commands exist."""

import ast
import json
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from dmsmil.jobs.files import ROOT
from dmsmil.study.params import notebooks

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [
    Requirement(line)
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]


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


WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))


def commands(job):
    """What a job of the workflow types."""
    return [step["run"] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]


def test_the_workflow_runs_what_ci_runs_on_each_python():
    """The keys; `make lint` holds the whole file against the schema of workflows."""
    assert set(WORKFLOW["on"]) == {"push", "pull_request"} and WORKFLOW["permissions"] == {"contents": "read"}
    assert commands("test") == ["bash .ci/run"]
    strategy = WORKFLOW["jobs"]["test"]["strategy"]
    assert strategy == {"fail-fast": False, "matrix": {"python": ["3.11", "3.12", "3.13"]}}
    assert f">={strategy['matrix']['python'][0]}" == PROJECT["requires-python"]
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    for name, job in WORKFLOW["jobs"].items():
        assert job["timeout-minutes"] <= 90, name
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step), name
        assert set(re.findall(r"^make (\w+)$", "\n".join(commands(name)), re.M)) <= targets, name
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/setup-python"):
                assert step["with"]["cache"] == "pip" and (ROOT / step["with"]["cache-dependency-path"]).exists(), name
                wanted = "${{ matrix.python }}" if name == "test" else "3.11"
                assert step["with"]["python-version"] == wanted, name


def test_the_workflow_hands_out_the_book_of_the_smoke_study():
    assert commands("book")[-1] == ".venv/bin/dmsmil run params/smoke.yaml"
    study = yaml.safe_load((ROOT / "params/smoke.yaml").read_text())["study"]
    handed = WORKFLOW["jobs"]["book"]["steps"][-1]
    assert handed["uses"].startswith("actions/upload-artifact@")
    assert (handed["with"]["path"], handed["with"]["if-no-files-found"]) == (f"outputs/{study}/book", "error")


DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_the_image_is_the_demo_on_the_lock():
    """What can be said of it without a Docker daemon; `make lint` asks hadolint too, the workflow builds both."""
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.M))
    assert set(arguments) == {"PYTHON", "DEVICE", "USER_ID"} and arguments["DEVICE"] == "cpu"
    assert not set(arguments) & {"UID", "EUID"}, "bash has these for itself"
    assert f">={arguments['PYTHON']}" == PROJECT["requires-python"]
    assert "FROM python:${PYTHON}-slim" in DOCKERFILE and "--requirement requirements.lock" in DOCKERFILE
    command = json.loads(re.search(r"^CMD (.+)$", DOCKERFILE, re.M)[1])
    demo = re.search(r"^demo:.*\n\t\$\(BIN\)/(.+)$", (ROOT / "Makefile").read_text(), re.M)[1]
    assert " ".join(command) == demo
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.M) == ["$USER_ID"], "not root"
    assert WORKFLOW["jobs"]["image"]["strategy"]["matrix"]["device"] == re.findall(r"^ {6}(\w+)\) ", DOCKERFILE, re.M)
    assert "docker build --build-arg DEVICE=${{ matrix.device }} --tag dmsmil ." in commands("image")


def test_the_cpu_image_leaves_out_what_only_a_gpu_needs_and_nothing_else():
    left_out = re.compile(re.search(r"grep -vE '(.+?)'", DOCKERFILE)[1])
    names = {requirement.name for requirement in LOCK if left_out.search(str(requirement))}
    assert names == {r.name for r in LOCK if r.marker is not None and "x86_64" in str(r.marker)}


def test_an_image_holds_nothing_that_git_ignores():
    wanted = {line.strip("/").removeprefix("**/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    there = {line.removeprefix("**/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] != "#"}
    assert wanted <= there and {".git", ".venv"} <= there


def test_tools_that_read_the_code_are_pinned_to_one_version():
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", tool) for tool in PROJECT["optional-dependencies"]["dev"])


def test_types_are_checked_and_each_exception_is_a_module_that_exists():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    tests, *exceptions = settings.pop("overrides")
    assert tests == {"module": ["tests.*"], "follow_imports": "silent"}
    assert settings["packages"] == ["dmsmil"] and f">={settings['python_version']}" == PROJECT["requires-python"]
    assert not {"ignore_errors", "follow_imports", "exclude", "disable_error_code"} & set(settings), "nothing at large"
    for exception in exceptions:
        assert set(exception) == {"module", "disable_error_code"}
        for module in exception["module"]:
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), module
    assert "\t$(BIN)/mypy\n" in (ROOT / "Makefile").read_text()


def test_the_hooks_use_the_tools_of_the_environment():
    """So that each version stands in pyproject.toml alone, and a hook says what `make lint` and `make test` say."""
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    hooks = {hook["id"]: hook for hook in repo["hooks"]}
    assert repo["repo"] == "local" and all(hook["language"] == "system" for hook in hooks.values())
    programs = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks.values()} - {"python"}
    pinned = {tool.split("==")[0].removesuffix("-bin") for tool in PROJECT["optional-dependencies"]["dev"]}
    assert programs == {"ruff", "check-jsonschema", "hadolint"} and programs | {"pre-commit"} <= pinned
    assert "jupyter" in hooks["ruff"]["types_or"] and "jupyter" not in hooks["ruff-format"]["types_or"]
    assert not any("stages" in hook for hook in hooks.values()), "each is asked at each commit"
    walkthroughs = sorted((ROOT / "notebooks/walkthroughs").glob("*.ipynb"))
    assert all(re.search(hooks["nbval"]["files"], str(path.relative_to(ROOT))) for path in walkthroughs)
    strict = (ROOT / "tests/walkthroughs/test_walkthroughs.py").read_text()
    for option in re.findall(r" (-\S+)", hooks["nbval"]["entry"]):
        assert f'"{option}"' in strict, option


def test_a_form_for_an_issue_or_a_pull_request_has_five_lines():
    forms = [*(ROOT / ".github/ISSUE_TEMPLATE").glob("*.md"), ROOT / ".github/pull_request_template.md"]
    assert len(forms) == 3
    for form in forms:
        front, body = re.fullmatch(r"(?:---\n(.*?)---\n)?(.*)", form.read_text(encoding="utf-8"), re.S).groups()
        assert len(body.splitlines()) == 5, form.name
        assert front is None or set(yaml.safe_load(front)) == {"name", "about"}, form.name


WINGS = {  # each imports only from wings above it, and a file only from files of its wing left of it
    "jobs": "limits text files failures cluster parallel",
    "cohorts": "ids server download fetching reading checks dicom finding table gdc manifest splits sites folds "
    "leakage made",
    "cohorts.made": "brushes tissue islands histology pyramid painted demo planted three originals stains mosaics",
    "slides": "tiff wsi ome magnification reader density tiles hdf5 store over linking hs2p given stages",
    "features": "weights encoders foreign lazyslide slide2vec sources faults formats handing rehearsal stages plan "
    "cache bags truth views probes",
    "models": "",  # one file a method
    "training": "metrics baselines config health record progress fit together runs results",
    "analysis": "paper comparison ranks power leftovers report verdicts ablation variants sweep witness readings "
    "claims",
    "interpret": "explain nuclei faithfulness morphology export viewer",
    "cost": "meter tables growth",
    "figures": "",  # one file a notebook
    "apply": "words folder members known novelty finished kit card travel incoming features predict external pages",
    "book": "results names grid best blocks several readme reference pages build publish",
    "study": "place times rules params terminal lock execute environment "
    "unchanged opening trial forecast watch preflight run applying choice bench cli",
}


def imports(path):
    """The modules of the package that a file imports, wherever in it: `wing.file`, or `wing` alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "dmsmil":
            found |= {name.name for name in node.names if name.name != "__version__"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dmsmil."):
            module = node.module.removeprefix("dmsmil.")
            names = [name.name for name in node.names]
            found |= {f"{module}.{name}" for name in names} if module in WINGS else {module}
    return found


def place(module):
    """(wing, file) of `wing.file`; what a wing's own __init__ gives has no file."""
    wing = max((wing for wing in WINGS if f"{module}.".startswith(f"{wing}.")), key=len)
    return wing, module.removeprefix(wing).strip(".").split(".")[0]


def test_the_package_is_its_wings_and_each_says_its_question():
    top = {path.name for path in (ROOT / "dmsmil").iterdir() if path.name != "__pycache__"}
    assert top == {"__init__.py"} | {wing for wing in WINGS if "." not in wing} and len(top) <= 14
    for wing, files in WINGS.items():
        folder = ROOT / "dmsmil" / wing.replace(".", "/")
        words = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert words and words.splitlines()[0].endswith((".", "?", ")")), wing
        if files:
            found = {path.stem for path in folder.iterdir() if path.name not in ("__init__.py", "__pycache__")}
            assert found - {wing} == set(files.split()), wing


@pytest.mark.slow
def test_arrows_go_one_way():
    """A wing imports only from wings above it, a file only from files left of it in its wing."""
    order = list(WINGS)
    for path in sorted((ROOT / "dmsmil").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "dmsmil").with_suffix("").parts).removesuffix(".__init__")
        if name == "__init__":
            continue
        wing, file = place(name)
        for used in imports(path):
            theirs, other = place(used)
            if theirs != wing:
                assert order.index(theirs) < order.index(wing), f"{name} imports {used}"
            elif WINGS[wing] and file:
                files = WINGS[wing].split()
                assert other in files and files.index(other) < files.index(file), f"{name} imports {used}"


def test_a_study_notebook_needs_its_own_wing_and_three_others_at_most():
    own = {
        "00": "cohorts",
        "01": "slides",
        "02": "features",
        "03": "training",
        "04": "analysis",
        "05": "analysis",
        "06": "analysis",
        "07": "interpret",
        "08": "cost",
        "09": "analysis",
        "10": "apply",
    }
    for notebook in notebooks():
        source = "\n".join(
            "".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"
        )
        used = {line.split(".")[0].split(",")[0] for line in re.findall(r"from dmsmil(?:\.| import )([\w.]+)", source)}
        assert own[notebook.stem[:2]] in used, notebook.stem
        assert len(used) <= 4, (notebook.stem, used)


def test_no_module_is_longer_than_a_reader_can_hold():
    for path in (ROOT / "dmsmil").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 360, path.name


@pytest.mark.xdist_group("together")
def test_a_group_of_tests_goes_to_one_worker(request):
    """Where it is lost, two workers make what one would, or wait for each other, and nothing says so."""
    if not hasattr(request.config, "workerinput"):
        pytest.skip("one process: -n 0")
    assert request.node.nodeid.endswith("@together")
