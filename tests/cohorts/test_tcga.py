"""The paper's cohorts as a person types them, against a GDC on this machine: query, freeze, fetch, encode, train."""

import json
import shutil

import pandas as pd
import pytest
import yaml

from dmsmil.cohorts.made.demo import make_demo
from dmsmil.cohorts.table import read_cohort
from dmsmil.slides.store import Store
from tests.cohorts.gdc_server import GdcServer
from tests.conftest import ROOT, dmsmil

SMALL = {
    "k": 8,
    "tile_px": 256,
    "encoder": "efficientnet_lite0",
    "encoder_px": 64,
    "folds": 2,
    "seeds": "[0]",
    "epochs": 2,
    "device": "cpu",
}


pytestmark = [pytest.mark.xdist_group("gdc"), pytest.mark.slow]


@pytest.fixture(scope="module")
def gdc(tmp_path_factory):
    """A GDC with the demo's slides under TCGA names: IDC and ILC of three institutions, and a mixed one."""
    folder = tmp_path_factory.mktemp("gdc")
    cohort = make_demo(folder, patients=8, side=2048, workers=1)
    with GdcServer([]) as server:
        for number, row in enumerate(cohort.itertuples()):
            name = f"TCGA-{'AB'[number % 2]}2-{number:04d}-01Z-00-DX1.{number:08X}.svs"
            content = (folder / row.path).read_bytes()
            code = "8500/3" if row.label == "ductal-like" else "8520/3"
            server.add(name, content, diagnoses=[code], site=row.site)
        server.add("TCGA-A2-9999-01Z-00-DX1.FF.svs", b"mixed", diagnoses=["8522/3"])
        server.slides = len(cohort)
        yield server


def typed(gdc, outputs, *more, only=("00", "01", "02", "03"), params="params/tcga_brca.yaml", **values):
    """`dmsmil run`, with the sizes of a laptop."""
    values = {**SMALL, "gdc_server": gdc.url, "outputs": outputs, **values}
    settings = [word for key, value in values.items() for word in ("-p", key, value)]
    return dmsmil("run", params, *settings, "--only", *only)


def test_the_papers_study_streams_its_slides(gdc, tmp_path):
    """keep_slides: false leaves features of every slide and no slide but those that were drawn."""
    gdc.fault("data", "cut", times=2, after=5000)
    done = typed(gdc, tmp_path)
    home = tmp_path / "tcga_brca"
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = pd.read_csv(home / "manifest.csv")
    assert len(manifest) == gdc.slides and set(manifest.label) == {"IDC", "ILC"}
    assert pd.read_csv(home / "left_out.csv").reason.str.contains("8522/3").all()
    assert json.loads((home / "manifest.json").read_text())["slides"] == manifest.label.value_counts().to_dict()
    cohort, _ = read_cohort(home)
    store = Store(home, 256, (10, 20), "efficientnet_lite0")
    assert all(len(store.read_features(name)[20].features) for name in cohort.slide_id)
    kept = list((home / "slides").glob("*.svs"))
    drawn = pd.read_csv(home / "figures/00_slides.csv").slide_id
    tested = pd.read_csv(home / "tables/03_dmsmil_predictions.csv").slide_id[0]
    assert {path.stem for path in kept} == {*drawn, tested} and len(kept) < gdc.slides, "only what was drawn stays"
    assert not list((home / "slides").glob("*.part"))
    assert not (home / "failures.csv").exists()
    # the same command again asks nothing and fetches nothing
    asked = len(gdc.log)
    done = typed(gdc, tmp_path, only=("00", "01", "02"))
    assert done.returncode == 0 and not [e for e in gdc.log[asked:] if e["path"].startswith(("/files", "/data"))]


def test_what_check_says_of_a_cohort_by_name(gdc, tmp_path):
    settings = [
        word
        for key, value in {**SMALL, "gdc_server": gdc.url, "outputs": tmp_path}.items()
        for word in ("-p", key, value)
    ]
    done = dmsmil("check", "params/tcga_brca.yaml", *settings)
    assert f"{gdc.slides} slides" in done.stdout and "each is deleted when it is encoded" in done.stdout
    assert "PROBLEM" not in done.stdout and done.returncode == 0, done.stdout + done.stderr
    assert not list(tmp_path.iterdir()), "a check leaves nothing behind"
    done = dmsmil("check", "params/tcga_brca.yaml", *settings, "-p", "gdc_server", "http://127.0.0.1:9")
    assert done.returncode == 1 and "PROBLEM  cohort" in done.stdout


def test_slides_are_kept_when_asked_and_a_bad_one_is_a_failure(gdc, tmp_path):
    """One slide that the server never gives whole: the others are had, the study goes on, and says so."""
    bad = next(record["file_id"] for record in gdc.records if "-0003-" in record["file_name"])
    content = gdc.contents.pop(bad)
    try:
        done = typed(gdc, tmp_path, only=("00", "01"), keep_slides="true")
    finally:
        gdc.contents[bad] = content
    home = tmp_path / "tcga_brca"
    failures = pd.read_csv(home / "failures.csv")
    assert done.returncode == 1 and list(failures.stage) == ["download"], done.stdout + done.stderr
    assert len(list((home / "slides").glob("*.svs"))) == gdc.slides - 1


def test_a_manifest_of_another_study_repeats_its_cohort(gdc, tmp_path):
    first = tmp_path / "one"
    assert typed(gdc, first, only=["00"]).returncode == 0
    manifest = first / "tcga_brca" / "manifest.csv"
    (tmp_path / "two" / "tcga_brca").mkdir(parents=True)
    shutil.copy(manifest, tmp_path / "two" / "tcga_brca")
    asked = len(gdc.log)
    assert typed(gdc, tmp_path / "two", only=["00"]).returncode == 0
    assert not [e for e in gdc.log[asked:] if e["path"].startswith("/files")]
    ids = [read_cohort(tmp_path / name / "tcga_brca")[0].slide_id.tolist() for name in ("one", "two")]
    assert ids[0] == ids[1]


def test_a_rehearsal_needs_no_slide(gdc, tmp_path):
    done = typed(gdc, tmp_path, params="params/tcga_rehearsal.yaml", split="site")
    home = tmp_path / "tcga_rehearsal"
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list((home / "slides").iterdir()) and (home / "tables/03_dmsmil_results.csv").exists()
    folds = pd.read_csv(home / "folds.csv").merge(pd.read_csv(home / "cohort.csv")[["slide_id", "site"]])
    for name in ("fold_0", "fold_1"):
        tested = set(folds.site[folds[name] == "test"])
        assert not tested & set(folds.site[folds[name] != "test"]), "a site on both sides"


def test_the_params_files_of_the_paper_differ_only_where_they_must():
    brca, nsclc, rehearsal = (
        yaml.safe_load((ROOT / f"params/tcga_{name}.yaml").read_text()) for name in ("brca", "nsclc", "rehearsal")
    )
    assert {key for key in brca if brca[key] != nsclc[key]} <= {"study", "cohort", "positive", "paper", "cost_slides"}
    assert all(rehearsal[key] == brca[key] for key in ("k", "tile_px", "folds", "epochs", "lr", "batch_size", "lam"))
