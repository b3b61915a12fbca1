"""The documents: what they name exists, what they count is so, and their results are those of docs/results/."""

import inspect
import re
import tomllib
from datetime import date
from itertools import pairwise

import pandas as pd
import pytest
import yaml
from packaging.version import Version

from dmsmil import __version__
from dmsmil.book.readme import BLOCKS, RESULTS, fill, pages
from dmsmil.cohorts.gdc import COHORTS
from dmsmil.cohorts.made.demo import plan_cohort
from dmsmil.cohorts.made.mosaics import make_mosaics
from dmsmil.cohorts.made.painted import SITES
from dmsmil.cohorts.table import COLUMNS
from dmsmil.features.bags import toy_bags
from dmsmil.jobs.files import ROOT
from dmsmil.models import METHODS, count_parameters, create
from dmsmil.study.cli import main
from dmsmil.study.params import known_parameters, read_params
from dmsmil.training.config import RunConfig, configure
from dmsmil.training.metrics import score

NAMES = (
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/model_card.md",
    "docs/data_cards.md",
    "docs/guide.md",
    "docs/guide.zh-CN.md",
)
DOCUMENTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
MADE = {"cohort.csv", "manifest.csv"}  # files of a study, not of the checkout
CODE = "\n".join(p.read_text(encoding="utf-8") for folder in ("dmsmil", "tests") for p in (ROOT / folder).rglob("*.py"))


def ticked(name):
    """What a document sets in back ticks, code blocks apart."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", DOCUMENTS[name], flags=re.S | re.M))


def slug(heading):
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("name", NAMES)
def test_every_file_named_exists(name):
    paths = [t for t in ticked(name) if re.fullmatch(r"[\w./-]+(/|\.(py|md|yaml|ipynb|csv|cff))", t)]
    assert len(paths) >= 3
    for path in paths:
        made = path in MADE or path.startswith("outputs/") or re.search(r"NAME|NN_|N_name", path)
        assert made or (ROOT / path).exists(), path


@pytest.mark.parametrize("name", sorted({*NAMES, *pages()}))
def test_every_link_leads_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        page = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
            assert anchor in map(slug, headings), target


@pytest.mark.parametrize("name", NAMES)
def test_every_command_named_is_one(name):
    text = DOCUMENTS[name]
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:`|^)make (\w+)", text, re.M)) <= targets
    for verb in set(re.findall(r"`dmsmil (\w+)", text)):
        with pytest.raises(SystemExit) as told:
            main([verb, "--help"])
        assert told.value.code == 0, verb
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert module == "pytest" or (ROOT / (module.replace(".", "/") + ".py")).exists(), module


@pytest.mark.parametrize("name", NAMES)
def test_every_name_in_back_ticks_is_one_of_the_code(name):
    """Keys, columns, classes, functions, constants: a name that was changed must be changed here too."""
    known = {*known_parameters(), *RunConfig.__dataclass_fields__, *COLUMNS, *METHODS}
    for text in ticked(name):
        for word in re.findall(r"^\w+$", text) + [
            part for part in re.findall(r"^(\w+\.\w+)$", text) if not part.endswith((".py", ".md", ".csv"))
        ]:
            parts = word.split(".")
            assert all(part in known or re.search(rf"\b{part}\b", CODE) for part in parts), word
        if key := re.match(r"(\w+): ", text):
            assert key[1] in known or key[1] == "name", f"{key[1]} is no key of a params file"


def test_what_names_a_run_is_what_contributing_says():
    """The settings it lists are those of RunConfig, and each of them changes the name."""
    text = DOCUMENTS["CONTRIBUTING.md"].split("## What a run's name depends on")[1].split("## Style")[0]
    listed = set(re.findall(r"`(\w+)`", text)) & set(RunConfig.__dataclass_fields__)
    said = {"method", "scales", "options", "features", "labels", "folds"}
    assert listed | said == set(RunConfig.__dataclass_fields__) and all(word in text for word in said)
    bags = toy_bags(8, 4)
    folds = pd.DataFrame({"slide_id": bags.slide_ids})
    other = {"epochs": 7, "lr": 0.5, "weight_decay": 0.5, "batch_size": 7, "select": "val_auc"}
    names = {configure(bags, folds, "dmsmil", **{key: other[key]}).name for key in listed}
    assert len(names | {configure(bags, folds, "dmsmil").name}) == len(listed) + 1


@pytest.mark.parametrize("name", NAMES)
def test_results_in_a_document_are_those_of_the_files(name):
    text = DOCUMENTS[name]
    assert fill(text, ROOT / RESULTS, name) == text, "python -m dmsmil.book.readme writes them anew"


def test_the_model_card_describes_what_the_demo_trains():
    card, params = " ".join(DOCUMENTS["docs/model_card.md"].split()), read_params(ROOT / "params/demo.yaml")
    assert f"{count_parameters(create('dmsmil', in_dim=1280)):,} parameters, for features of 1,280 numbers" in card
    assert (params["folds"], params["seeds"], params["epochs"]) == (5, [0], 30)
    assert "5 folds, one seed, 30 epochs" in card
    assert (params["lr"], params["batch_size"], params["select"]) == (1e-4, 1, "last")
    assert "Adam at 1e-4, one slide a step, no selection" in card and params["encoder"] == "efficientnet_lite0"
    assert {f"demo-{what}" for what in ("findings", "ablation", "lambda")} <= set(re.findall(r"begin: (\S+)", card))
    assert {"findings", "ablation", "lambda"} <= set(BLOCKS)
    for said in ("not for any patient", "not on real slides", "not as pretrained weights", "no medical device"):
        assert said in card.lower().replace("**", "")


def test_the_data_cards_count_as_the_code_does():
    cards, params = " ".join(DOCUMENTS["docs/data_cards.md"].split()), read_params(ROOT / "params/demo.yaml")
    plan = plan_cohort(params["demo_patients"])
    assert (
        f"{len(plan)} painted slides of {plan.patient_id.nunique()} made-up patients from {len(SITES)} made-up "
        f"sites, {plan.label.value_counts().max()} slides of each of two classes"
    ) in cards
    assert plan.label.nunique() == 2 and plan.label.value_counts().nunique() == 1
    assert f"{params['demo_side']} × {params['demo_side']} px" in cards
    assert f"{inspect.signature(make_mosaics).parameters['slides_per_class'].default} slides a class" in cards
    brca, nsclc = COHORTS["tcga-brca"].paper, COHORTS["tcga-nsclc"].paper
    assert f"{brca['IDC']} IDC and {brca['ILC']} ILC slides; {nsclc['LUAD']} LUAD and {nsclc['LUSC']} LUSC" in cards
    always = pd.DataFrame(
        {
            "slide_id": range(546),
            "patient_id": range(546),
            "label": ["IDC"] * 426 + ["ILC"] * 120,
            "pred": "IDC",
            "prob_IDC": 0.9,
            "prob_ILC": 0.1,
        }
    )
    found = score(always, "IDC")
    assert (
        f"right for {100 * found['ACC']:.0f} % of the paper's slides (426 of 546), and has an F1 of "
        f"{found['F1']:.3f}" in cards
    )


# ------------------------------------------------------------------------------------------- CITATION.cff

CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_citation_has_what_cff_1_2_asks_for():
    assert {"cff-version", "message", "title", "authors"} <= set(CITATION) and CITATION["cff-version"] == "1.2.0"
    known = {
        "abstract",
        "authors",
        "cff-version",
        "commit",
        "contact",
        "date-released",
        "doi",
        "identifiers",
        "keywords",
        "license",
        "license-url",
        "message",
        "preferred-citation",
        "references",
        "repository",
        "repository-artifact",
        "repository-code",
        "title",
        "type",
        "url",
        "version",
    }
    assert set(CITATION) <= known and CITATION["type"] in ("software", "dataset")
    for entry in [CITATION, *CITATION["references"]]:
        assert {"authors", "title"} <= set(entry) and entry["type"] and entry["authors"]
        for author in entry["authors"]:
            assert "name" in author or {"family-names", "given-names"} & set(author)
    texts = [CITATION[key] for key in ("message", "title", "abstract", "version", "license", "cff-version")]
    assert all(isinstance(text, str) and text.strip() for text in [*texts, *CITATION["keywords"]])
    assert len(set(CITATION["keywords"])) == len(CITATION["keywords"])


def test_the_citation_is_of_this_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (CITATION["version"], CITATION["license"]) == (__version__, project["license"])
    holder = re.search(r"Copyright \(c\) \d+ (.+)", (ROOT / "LICENSE").read_text())[1]
    assert CITATION["authors"] == [{"name": holder}]
    paper = CITATION["references"][0]
    assert paper["type"] == "article" and paper["languages"] == ["zh"] and "DMSMIL" in paper["title"]
    assert "not known" in paper["notes"], "nothing of the paper is guessed"


# ------------------------------------------------------------------------------------------- the version, CHANGELOG.md

KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")  # of changes, in Keep a Changelog's words


def test_the_version_is_said_once():
    """pyproject.toml reads it of the package, so that a checkout and an installation never disagree."""
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert whole["project"]["dynamic"] == ["version"] and "version" not in whole["project"]
    assert whole["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "dmsmil.__version__"}
    assert str(Version(__version__)) == __version__


def test_the_changelog_keeps_its_form_and_ends_at_this_version():
    text = DOCUMENTS["CHANGELOG.md"]
    headings = re.findall(r"^## (.+)$", text, re.M)
    assert headings[0] == "[Unreleased]"
    releases = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", heading).groups() for heading in headings[1:]]
    assert releases[0][0] == __version__
    for (newer, later), (older, earlier) in pairwise(releases):
        assert Version(newer) > Version(older) and date.fromisoformat(later) >= date.fromisoformat(earlier)
    for part in re.split(r"^## ", text, flags=re.M)[2:]:
        kinds = re.findall(r"^### (.+)$", part, re.M)
        assert kinds and kinds == [kind for kind in KINDS if kind in kinds], part.splitlines()[0]
        for changes in re.split(r"^### .+$", part, flags=re.M)[1:]:
            assert changes.strip().startswith("- "), "a heading without a change"
