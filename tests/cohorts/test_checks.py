"""What `dmsmil check` asks about a person's table before anything is computed."""

from dmsmil.jobs.files import ROOT
from dmsmil.study.params import read_params
from dmsmil.study.preflight import findings


def test_check_asks_about_classes_that_differ_in_case_and_says_what_was_converted(tmp_path):
    rows = [f"S{i};P{i};{label};0,25" for i, label in enumerate(["IDC", "idc ", "ILC", "ILC", "NA"])]
    (tmp_path / "own.csv").write_text("slide_id;patient_id;label;MPP\n" + "\n".join(rows))
    params = {
        **read_params(ROOT / "params/smoke.yaml"),
        "outputs": str(tmp_path),
        "features": "drawn",
        "cohort": str(tmp_path / "own.csv"),
    }
    found = []
    for good, line in findings(params):
        if line.startswith("folds"):
            break
        found.append((good, line))
    asked = "the classes 'IDC' (1 slide) and 'idc' (1 slide) differ in case, spaces, dashes or zeros alone: write them"
    assert any(not good and asked in line for good, line in found)
    assert any(not good and "S4: no label ('NA' counts as none)" in line for good, line in found)
    read = "mpp of 5 slides is read as micrometres a pixel, '0,25' as 0.25"
    assert any(good and read in line for good, line in found)
