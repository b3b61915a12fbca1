"""TCGA cohorts by query: the rule, what a server may send in place of an answer, a manifest that lasts, real counts."""

import hashlib
import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from dmsmil.cohorts import gdc as rooms
from dmsmil.cohorts.fetching import fetch_all
from dmsmil.cohorts.gdc import COHORTS, connect, query_cohort, sort_out
from dmsmil.cohorts.manifest import counts_table, read_manifest, tcga_table
from dmsmil.cohorts.table import load_cohort
from dmsmil.jobs.files import InputError
from tests.cohorts.gdc_server import RELEASE, GdcServer, slide_record
from tests.conftest import ROOT, assert_one_line

MANIFESTS = ROOT / ".." / "shared" / "data" / "manifests"
BRCA, NSCLC = COHORTS["tcga-brca"], COHORTS["tcga-nsclc"]


def name(patient="TCGA-AA-0001", slide="01Z-00-DX1", suffix=".svs"):
    return f"{patient}-{slide}.{'F6E9A5DF-D8FB-45CF-B4BD'}{suffix}"


def quick(gdc, **options):
    return connect(gdc.url, **{"pause": 0.0, "timeout": (5.0, 5.0), **options})


def silent(line):
    """Nobody listens."""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def gdc():
    with GdcServer() as server:
        yield server


def fill(gdc, slides=6):
    """A small BRCA: slides of as many patients, IDC and ILC in turn, of two sites."""
    for i in range(slides):
        gdc.add(
            name(f"TCGA-A{i % 2}-{i:04}"),
            bytes([i]) * (1000 + i),
            diagnoses=[["8500/3", "8520/3"][i % 2]],
            site=f"Site {i % 2}",
        )


# ------------------------------------------------------------------------------------------------ the query


def test_a_cohort_by_query(gdc):
    fill(gdc)
    gdc.add(name("TCGA-A0-0009"), b"x", project="TCGA-LUAD")  # another project
    gdc.records.append(slide_record(name("TCGA-A0-0010"), b"x", data_type="Biospecimen"))
    gdc.records.append(slide_record(name("TCGA-A0-0011", "01A-01-TS1"), b"x", experimental_strategy="Tissue Slide"))
    manifest, left_out = query_cohort("tcga-brca", quick(gdc), silent)
    assert list(manifest) == rooms.COLUMNS and left_out.empty and list(left_out) == rooms.LEFT_OUT
    assert manifest.slide_id.is_monotonic_increasing and len(manifest) == 6
    row = manifest[manifest.patient_id == "TCGA-A1-0001"].iloc[0]
    assert (row.label, row.site, row.site_code, row["size"]) == ("ILC", "Site 1", "A1", 1001)
    assert (row.morphology, row.diagnosis) == ("8520/3", "name of 8520/3")
    assert row.slide_id + ".svs" == row.file_name and row.file_id in gdc.contents
    assert row.md5 == hashlib.md5(gdc.contents[row.file_id]).hexdigest()
    query = json.loads(gdc.log[0]["body"])
    assert gdc.log[0]["method"] == "POST" and set(query["fields"].split(",")) == set(rooms.FIELDS)


def test_a_cohort_larger_than_a_page_and_pages_that_come_short(gdc, monkeypatch):
    fill(gdc, 11)
    monkeypatch.setattr(rooms, "PAGE", 4)
    whole, _ = query_cohort("tcga-brca", quick(gdc), silent)
    assert len(whole) == 11 and [json.loads(e["body"])["from"] for e in gdc.log] == [0, 4, 8]
    gdc.fault("files", "half a page", times=2, count=3)
    assert query_cohort("tcga-brca", quick(gdc), silent)[0].equals(whole)
    gdc.fault("files", "answer", content=b'{"data": {"hits": [')  # cut JSON: asked again
    gdc.fault("files", "status", code=503, headers={"Retry-After": "0"})
    assert query_cohort("tcga-brca", quick(gdc), silent)[0].equals(whole)
    gdc.fault("files", "half a page", times=1, count=3)
    gdc.fault("files", "half a page", times=1, count=0)
    with pytest.raises(InputError, match="speaks of 11 files and lists 3") as caught:
        query_cohort("tcga-brca", quick(gdc), silent)
    assert_one_line(caught, "again later")
    gdc.fault("files", "half a page", times=1, count=0)
    with pytest.raises(InputError, match="speaks of 11 files and lists 0"):
        query_cohort("tcga-brca", quick(gdc), silent)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html>log in</html>", "not JSON .2 times in a row"),
        (b"[]", "not a JSON object"),
        (b"{}", "as the GDC does"),
        (b'{"data": null}', "as the GDC does"),
        (b'{"data": {"hits": null, "pagination": {"total": 3}}}', "as the GDC"),
        (b'{"data": {"hits": [], "pagination": {"total": "many"}}}', "as the GDC does"),
        (b'{"data": {"hits": [], "pagination": null}}', "as the GDC does"),
        (b'{"data": {"hits": [], "pagination": {"total": 0}}}', "lists no usable slide of tcga-brca$"),
        (
            b'{"data": {"hits": [null], "pagination": {"total": 1}}}',
            "no usable slide.*1 left out, the first: no file name",
        ),
    ],
)
def test_answers_that_are_none(gdc, content, said):
    gdc.fault("files", "answer", times=9, content=content)
    with pytest.raises(InputError, match=said) as caught:
        query_cohort("tcga-brca", quick(gdc, attempts=2), silent)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_warnings_of_the_server_are_passed_on(gdc):
    fill(gdc)
    gdc.fault("files", "warnings")
    lines = []
    query_cohort("tcga-brca", quick(gdc), lines.append)
    assert len(lines) == 1 and "cases.moon" in lines[0]


def test_unknown_cohorts():
    for call in (lambda: query_cohort("tcga-ov"), lambda: tcga_table("tcga-ov", "nowhere")):
        with pytest.raises(InputError, match="unknown cohort 'tcga-ov': choose tcga-brca or tcga-nsclc"):
            call()


# ------------------------------------------------------------------------------------------------ the rule


def decided(*diagnoses, cohort=BRCA, **fields):
    """(label or None, reason) that the rule gives a slide with these diagnoses."""
    manifest, left_out = sort_out([slide_record(name(), b"x", diagnoses=list(diagnoses), **fields)], cohort)
    assert len(manifest) + len(left_out) == 1
    return (manifest.label[0], "") if len(manifest) else (None, left_out.reason[0])


def of(morphology, primary=None, kind=None):
    said = {"morphology": morphology, "primary_diagnosis": f"name of {morphology}"}
    return said | {
        key: value
        for key, value in (("diagnosis_is_primary_disease", primary), ("classification_of_tumor", kind))
        if value is not None
    }


def test_the_morphology_decides_in_breast():
    assert decided("8500/3") == ("IDC", "") and decided("8520/3") == ("ILC", "")
    for mixed in ("8522/3", "8523/3", "8524/3", "8480/3", "8500/2"):
        assert decided(mixed) == (None, f"morphology {mixed} (name of {mixed})")
    assert decided("8520/3", "8500/3") == (None, "morphology 8500/3 + 8520/3 (name of 8500/3 + name of 8520/3)")
    assert decided("8520/3", "8520/3") == ("ILC", "")
    assert decided() == (None, "no morphology of the primary disease")
    assert decided({"morphology": "8523/3"}) == (None, "morphology 8523/3 (no name)")


@pytest.mark.parametrize("yes", [True, "true", "True", "yes"])
@pytest.mark.parametrize("no", [False, "false", "no"])
def test_only_the_primary_disease_counts_where_it_is_said(yes, no):
    assert decided(of("8520/3", yes), of("8500/3", no)) == ("ILC", "")
    assert decided(of("8500/3", no), of("8520/3")) == ("ILC", "")
    assert decided(of("8500/3", yes), of("8500/3", yes, "metastasis")) == ("IDC", "")
    assert decided(of("8500/3", yes), of("8520/3", yes))[0] is None
    assert decided(of("", yes), of("8500/3")) == (None, "no morphology of the primary disease")
    assert decided(of("", yes), of("8500/3", yes)) == ("IDC", "")
    assert decided(of("8500/3", no)) == (None, "no morphology of the primary disease")


def test_the_kind_of_tumour_counts_where_nothing_else_is_said():
    for kind in ("metastasis", "recurrence", "Prior primary", "Subsequent Primary", "Synchronous primary", "other"):
        assert decided(of("8520/3", kind="primary"), of("8500/3", kind=kind)) == ("ILC", "")
        assert decided(of("8520/3", kind="not reported"), of("8500/3", kind=kind)) == ("ILC", "")
        assert decided(of("8500/3", kind=kind))[0] is None
    assert decided(of("8500/3", kind="Unknown"), of("8500/3", kind="")) == ("IDC", "")
    assert decided(of("8500/3", kind="unknown"), of("8520/3", kind="unknown"))[0] is None


def test_the_project_decides_in_lung():
    assert decided("8140/3", cohort=NSCLC, project="TCGA-LUAD") == ("LUAD", "")
    assert decided("8070/3", "8500/3", cohort=NSCLC, project="TCGA-LUSC") == ("LUSC", "")
    assert decided(cohort=NSCLC, project="TCGA-LUSC") == ("LUSC", ""), "no diagnosis is needed"
    assert decided("8500/3", cohort=NSCLC) == (None, "not of the cohort's projects")


@pytest.mark.parametrize(
    ("file_name", "said"),
    [
        (name(slide="01A-01-TSA"), "no diagnostic slide"),
        (name(slide="01A-01-BS1"), "no diagnostic slide"),
        (name(suffix=".tif"), "no diagnostic slide"),
        ("slide.svs", "no diagnostic slide"),
        ("../../" + name(), "not plain"),
        ("/etc/" + name(), "not plain"),
        ("..\\" + name(), "not plain"),
        (".svs", "not plain"),
        ("", "no file name"),
        (None, "no file name"),
        (7, "no diagnostic slide"),
        (["a"], "no file name"),
        ({"a": 1}, "no file name"),
    ],
)
def test_file_names_that_are_none(file_name, said):
    label, reason = decided("8500/3", file_name=file_name)
    assert label is None and said in reason


@pytest.mark.parametrize("field", ["file_id", "md5sum", "file_size", "cases"])
@pytest.mark.parametrize("value", ["absent", None, "", [], {}, [None], "../x", 0.5])
def test_fields_that_are_missing_or_odd_leave_the_slide_out(field, value):
    record = slide_record(name(), b"x")
    record = {k: v for k, v in record.items() if k != field} if value == "absent" else record | {field: value}
    manifest, left_out = sort_out([record, slide_record(name("TCGA-AA-0002"), b"y")], BRCA)
    assert list(manifest.patient_id) == ["TCGA-AA-0002"]
    reason = "not of the case that its name says" if field == "cases" else "no file id, MD5 or size"
    assert left_out.values.tolist() == [[name().removesuffix(".svs"), "TCGA-AA-0001", reason]]


@pytest.mark.parametrize(
    "path",
    [
        "submitter_id",
        "project",
        "diagnoses",
        "tissue_source_site",
        "project.project_id",
        "tissue_source_site.name",
        "tissue_source_site.code",
    ],
)
@pytest.mark.parametrize("value", ["absent", None, "", [], {}, [None], 3])
def test_cases_that_lack_something_never_break(path, value):
    record = slide_record(name(), b"x")
    *outer, last = path.split(".")
    part = record["cases"][0]
    for key in outer:
        part = part[key]
    if value == "absent":
        del part[last]
    else:
        part[last] = value
    manifest, left_out = sort_out([record], BRCA)
    assert len(manifest) + len(left_out) == 1
    if "site" in path:  # a slide of an unknown site can be used
        assert manifest.site_code[0] in ("AA", "3") and manifest.site[0] in ("", "Here", "3")
    else:
        assert left_out.reason[0] in (
            "not of the case that its name says",
            "not of the cohort's projects",
            "no morphology of the primary disease",
        )


def test_a_file_of_two_cases_is_that_of_its_name():
    record, other = slide_record(name(), b"x"), slide_record(name("TCGA-AA-0002"), b"x", diagnoses=["8520/3"])
    record["cases"] = [None, *other["cases"], *record["cases"]]
    assert sort_out([record], BRCA)[0].label.tolist() == ["IDC"]
    assert sort_out([record | {"cases": other["cases"]}], BRCA)[0].empty


def test_names_and_patients_that_are_given_twice():
    same = slide_record(name(), b"x")
    manifest, left_out = sort_out([same, same | {"file_id": "zz"}, same | {"file_id": "yy"}], BRCA)
    assert manifest.file_id.tolist() == [same["file_id"]]
    assert left_out.reason.tolist() == ["the same file under another id"] * 2
    manifest, left_out = sort_out([same, slide_record(name(), b"y", file_id="zz")], BRCA)
    assert manifest.empty and left_out.reason.tolist() == ["several different files have its name"] * 2
    both = [
        slide_record(name(slide=f"01Z-00-DX{i}"), b"x", project=f"TCGA-LU{letters}")
        for i, letters in enumerate(("AD", "SC", "AD"), 1)
    ]
    alone = slide_record(name("TCGA-AA-0002"), b"x", project="TCGA-LUAD")
    manifest, left_out = sort_out([*both, alone], NSCLC)
    assert manifest.patient_id.tolist() == ["TCGA-AA-0002"]
    assert left_out.reason.tolist() == ["patient in two classes (LUAD and LUSC)"] * 3


def test_the_order_of_records_does_not_matter():
    records = [
        slide_record(
            name(f"TCGA-AA-{i % 20:04}", f"01Z-00-DX{i // 20 + 1}"),
            bytes([i]),
            diagnoses=[["8500/3", "8520/3", "8522/3"][i % 3]],
        )
        for i in range(40)
    ]
    manifest, left_out = sort_out(records, BRCA)
    shuffled = [records[i] for i in np.random.default_rng(0).permutation(40)]
    again, left_again = sort_out(shuffled, BRCA)
    assert manifest.equals(again) and left_out.equals(left_again) and len(manifest) + len(left_out) == 40


# ------------------------------------------------------------------------------------------------ the study's cohort


def test_counts_stand_beside_the_papers(gdc):
    fill(gdc, 5)
    gdc.add(name("TCGA-A0-0000", "01Z-00-DX2"), b"z")
    gdc.add(name("TCGA-A0-0020"), b"z", diagnoses=["8522/3"])
    gdc.add(name("TCGA-A0-0021"), b"z", diagnoses=["8522/3"])
    gdc.add(name("TCGA-A0-0022"), b"z", diagnoses=[])
    table = counts_table(*query_cohort("tcga-brca", quick(gdc), silent), "tcga-brca")
    assert table.loc["IDC"].tolist() == [4, 3, 426] and table.loc["ILC"].tolist() == [2, 2, 120]
    assert table.loc["all"].tolist() == [6, 5, 546]
    assert table.index[3:].tolist() == [
        "left out: morphology 8522/3 (name of 8522/3)",
        "left out: no morphology of the primary disease",
    ]
    assert table.slides.tolist()[3:] == [2, 1] and table["slides in the paper"].tolist()[3:] == ["", ""]


def test_the_papers_counts_are_those_of_its_table():
    assert (sum(BRCA.paper.values()), sum(NSCLC.paper.values())) == (546, 790)
    assert set(BRCA.paper) == set(BRCA.classes.values()) and set(NSCLC.paper) == set(NSCLC.classes.values())


def test_the_manifest_is_frozen(gdc, tmp_path):
    fill(gdc)
    gdc.add(name("TCGA-A0-0020"), b"z", diagnoses=["8522/3"])
    lines = []
    path = tcga_table("tcga-brca", tmp_path, remote=quick(gdc), report=lines.append)
    assert path == tmp_path / "cohort" / "cohort.csv" and "6 slides of 6 patients, 1 left out" in lines[0]
    before, asked = (tmp_path / "manifest.csv").read_bytes(), len(gdc.log)
    manifest, left_out, facts = read_manifest(tmp_path, "tcga-brca")
    assert len(manifest) == 6 and left_out.reason.tolist() == ["morphology 8522/3 (name of 8522/3)"]
    assert facts["data_release"] == RELEASE and facts["slides"] == {"IDC": 3, "ILC": 3} and facts["date"] > "2020"
    assert "8500/3" in facts["rule"] and facts["server"] == gdc.url
    gdc.records.clear()
    assert tcga_table("tcga-brca", tmp_path, remote=quick(gdc), report=silent).exists()
    assert (tmp_path / "manifest.csv").read_bytes() == before and len(gdc.log) == asked, "nothing is asked again"
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(tmp_path / "manifest.csv", copy)  # brought from another study, alone
    assert tcga_table("tcga-brca", copy).read_text().replace("/copy/", "/") == path.read_text()
    assert read_manifest(copy, "tcga-brca")[1:][1] == {} and len(gdc.log) == asked


def test_two_queries_freeze_the_same_bytes(gdc, tmp_path):
    fill(gdc)
    for home in ("a", "b"):
        tcga_table("tcga-brca", tmp_path / home, tmp_path / "slides", quick(gdc), silent)
        gdc.records.reverse()
    for file in ("manifest.csv", "left_out.csv", "cohort/cohort.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_manifest_of_something_else_is_refused(gdc, tmp_path):
    fill(gdc)
    tcga_table("tcga-brca", tmp_path, remote=quick(gdc), report=silent)
    before = (tmp_path / "manifest.csv").read_text()
    with pytest.raises(InputError, match="manifest.csv.*not of TCGA-NSCLC") as caught:
        tcga_table("tcga-nsclc", tmp_path)
    assert_one_line(caught, "manifest.csv")
    (tmp_path / "manifest.csv").write_text(before.replace("md5", "hash"))
    with pytest.raises(InputError, match="no column 'md5'"):
        tcga_table("tcga-brca", tmp_path)
    (tmp_path / "manifest.csv").write_text(before.splitlines()[0] + "\n")
    with pytest.raises(InputError, match="not of TCGA-BRCA"):
        tcga_table("tcga-brca", tmp_path)


def test_sizes_that_a_spreadsheet_wrote_into_a_manifest(gdc, tmp_path):
    fill(gdc)
    tcga_table("tcga-brca", tmp_path, remote=quick(gdc), report=silent)
    kept = pd.read_csv(tmp_path / "manifest.csv", dtype=str)
    kept.assign(size=kept["size"] + ".0").to_csv(tmp_path / "manifest.csv", index=False)
    assert read_manifest(tmp_path, "tcga-brca")[0]["size"].tolist() == kept["size"].tolist()
    for size in ("1.2E+09", "0", ""):
        kept.assign(size=size).to_csv(tmp_path / "manifest.csv", index=False)
        with pytest.raises(
            InputError, match="gives TCGA-.*svs the size .* no number of bytes: put the whole"
        ) as caught:
            read_manifest(tmp_path, "tcga-brca")
        assert_one_line(caught, "manifest.csv")


def test_a_name_in_a_manifest_that_leads_elsewhere_is_one_row_of_failures(gdc, tmp_path):
    fill(gdc)
    tcga_table("tcga-brca", tmp_path, remote=quick(gdc), report=silent)
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("TCGA-A0-0000-01Z", "../TCGA-A0-0000-01Z"))
    (tmp_path / "slides").mkdir()
    cohort, failures = load_cohort(tcga_table("tcga-brca", tmp_path), tmp_path / "slides", fetched_later=True)
    assert len(failures) == 1 and "is not a plain file name" in failures[0]["reason"] and len(cohort) == 5
    assert all(path.startswith(str(tmp_path / "slides")) for path in cohort.path)


def test_a_query_that_breaks_off_freezes_nothing(gdc, tmp_path):
    fill(gdc)
    gdc.fault("files", "hang up", times=2)
    with pytest.raises(InputError, match="no connection .2 times"):
        tcga_table("tcga-brca", tmp_path / "study", remote=quick(gdc, attempts=2), report=silent)
    assert not (tmp_path / "study").exists()
    gdc.fault("status", "status", code=500)  # the release is a courtesy
    tcga_table("tcga-brca", tmp_path / "study", remote=quick(gdc), report=silent)
    assert read_manifest(tmp_path / "study", "tcga-brca")[2]["data_release"] == "not told"


def test_slides_one_has_are_joined_by_file_name(gdc, tmp_path):
    fill(gdc)
    slides = tmp_path / "slides"
    by_name = {r["file_name"]: gdc.contents[r["file_id"]] for r in gdc.records}
    names = sorted(by_name)
    places = {names[0]: slides / names[0], names[1]: slides / "0a-old-uuid" / names[1]}  # as gdc-client lays them
    for file_name, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(by_name[file_name])
    (slides / "another").mkdir()
    (slides / "another" / names[2]).write_bytes(b"cut")
    (slides / "the whole").mkdir()
    (slides / "the whole" / names[2]).write_bytes(by_name[names[2]])
    (slides / (names[3] + ".partial")).write_bytes(b"of gdc-client")
    (slides / names[4]).symlink_to(tmp_path / "away.svs")
    table = pd.read_csv(tcga_table("tcga-brca", tmp_path / "study", slides, quick(gdc), silent), dtype=str)
    paths = dict(zip(table.slide_id + ".svs", table.path))
    assert paths[names[0]] == str(places[names[0]]) and paths[names[1]] == str(places[names[1]])
    assert paths[names[2]] == str(slides / "the whole" / names[2])
    assert paths[names[3]] == str(slides / names[3]) and paths[names[4]] == str(slides / names[4])


def test_from_a_name_to_a_cohort(gdc, tmp_path):
    """What the study does: table, slides, cohort; with a manifest frozen long ago, whose ids have rotted since."""
    fill(gdc)
    table = tcga_table("tcga-brca", tmp_path, remote=quick(gdc), report=silent)
    for record in gdc.records[:3]:
        gdc.contents["new-" + record["file_id"]] = gdc.contents.pop(record["file_id"])
        record["file_id"] = "new-" + record["file_id"]
    frame = pd.read_csv(table, dtype=str, keep_default_na=False)
    remote = pickle.loads(pickle.dumps(quick(gdc, checked=tmp_path / "checked.txt")))
    assert fetch_all(remote, frame, tmp_path / "slides", report=silent) == []
    assert len(gdc.asked("data")) == 9, "three were asked for under the old id first"
    cohort, failures = load_cohort(table)
    assert len(cohort) == 6 and not failures and set(cohort.site) == {"Site 0", "Site 1"}
    assert fetch_all(remote, frame, tmp_path / "slides", report=silent) == [] and len(gdc.asked("data")) == 9


def test_a_slide_replaced_or_withdrawn_since_is_a_clear_failure(gdc, tmp_path):
    fill(gdc, 3)
    frame = pd.read_csv(tcga_table("tcga-brca", tmp_path, remote=quick(gdc), report=silent), dtype=str)
    replaced, withdrawn = gdc.records[0], gdc.records.pop(1)
    gdc.contents["new"] = gdc.contents.pop(replaced["file_id"])
    replaced |= {"file_id": "new", "md5sum": "0" * 32}
    del gdc.contents[withdrawn["file_id"]]
    failures = {
        f["unit"] + ".svs": f["reason"] for f in fetch_all(quick(gdc), frame, tmp_path / "slides", report=silent)
    }
    assert "was replaced by another file" in failures[replaced["file_name"]] and len(failures) == 2
    assert "was withdrawn" in failures[withdrawn["file_name"]] and "manifest.csv" in failures[withdrawn["file_name"]]


def test_connect_is_the_gdc_unless_told_otherwise():
    assert connect().server == connect("").server == rooms.SERVER == "https://api.gdc.cancer.gov"
    remote = connect("http://x", "token.txt", "log.txt", attempts=3)
    assert (remote.token, remote.checked, remote.attempts) == ("token.txt", "log.txt", 3)
    assert remote.renew.args[0] == replace(remote, checked="", renew=None)


# ------------------------------------------------------------------------------------------------ TCGA's own records


def tcga_records():
    """Records as the GDC would give them, from public lists: names, MD5 and sizes of the GDC's manifests, classes of
    HIPT (slides, BRCA with every kind of tumour) and RRT-MIL (patients), sites by their code."""
    if not MANIFESTS.exists():
        pytest.skip("needs ../shared/data/manifests beside the checkout")
    files = pd.read_csv(MANIFESTS / "gdc_manifest_brca_luad_lusc.tsv", sep="\t", dtype=str)
    hipt = pd.read_csv(MANIFESTS / "hipt_tcga_brca_subset.csv", dtype=str)
    kinds = {"IDC": ["8500/3"], "ILC": ["8520/3"], "MDLC": ["8522/3"], "IMMC": ["8480/3"]}
    patients = dict(pd.read_csv(MANIFESTS / "rrtmil_label_brca.csv", header=None).values)
    patients = {patient: kinds[kind] for patient, kind in patients.items()}
    patients |= {row.case_id: kinds.get(row.oncotree_code, [f"of {row.oncotree_code}"]) for row in hipt.itertuples()}
    lung = pd.read_csv(MANIFESTS / "tcga_lung_slides_1053.csv", dtype=str)
    lung = dict(zip(lung.patient_id, lung.cancer_type))
    codes = pd.read_csv(MANIFESTS / "tcga_tss_codes.csv", dtype=str, keep_default_na=False)
    sites = dict(zip(codes["TSS Code"], codes["Source Site"]))
    for row in files.itertuples():
        patient = row.filename[:12]
        yield slide_record(
            row.filename,
            project=f"TCGA-{lung.get(patient, 'BRCA')}",
            site=sites[row.filename[5:7]],
            diagnoses=patients.get(patient, []) if patient not in lung else ["8140/3"],
            file_id=row.id,
            md5sum=row.md5,
            file_size=int(row.size),
            experimental_strategy="Diagnostic Slide" if "-DX" in row.filename else "Tissue Slide",
        )


def counted(manifest, *labels):
    return [
        (int((manifest.label == label).sum()), manifest[manifest.label == label].patient_id.nunique())
        for label in labels
    ]


@pytest.mark.slow
def test_the_rule_on_tcgas_own_list():
    """Slides and patients by class as the lists that were published have them."""
    records = list(tcga_records())
    with GdcServer(records) as gdc:
        brca, left_out = query_cohort("tcga-brca", quick(gdc), silent)
        nsclc, nothing = query_cohort("tcga-nsclc", quick(gdc), silent)
    assert counted(nsclc, "LUAD", "LUSC") == [(541, 478), (512, 478)] and nothing.empty
    assert counted(brca, "IDC", "ILC") == [(837, 787), (211, 198)]
    table = counts_table(brca, left_out, "tcga-brca")
    assert table.slides.iloc[2:].sum() == sum("-DX" in r["file_name"] for r in records) - len(nsclc) == 1133
    assert table.loc["left out: morphology 8522/3 (name of 8522/3)"].tolist() == [26, 25, ""]
    hipt = pd.read_csv(MANIFESTS / "hipt_tcga_brca_subset.csv")
    ours = dict(zip(brca.file_name, brca.label))
    pure = hipt[hipt.oncotree_code.isin(["IDC", "ILC"])]
    assert all(ours.get(row.slide_id) == row.oncotree_code for row in pure.itertuples()) and len(pure) == 875
    assert not set(hipt.slide_id) - set(pure.slide_id) & set(ours)


@pytest.mark.slow
def test_sites_by_name_do_not_tell_the_classes_apart_as_codes_do():
    nsclc, _ = sort_out([r for r in tcga_records() if r["experimental_strategy"] == "Diagnostic Slide"], NSCLC)
    for column, sites, mixed in (("site_code", 68, 0), ("site", 38, 28)):
        kinds = nsclc.groupby(column).label.nunique()
        assert (len(kinds), int((kinds > 1).sum())) == (sites, mixed), column
