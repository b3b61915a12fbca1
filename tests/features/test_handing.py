"""A study's bags for other programs: what each loads is what the study has, and nothing has to be known beforehand."""

import json

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from dmsmil.cohorts.splits import read_splits
from dmsmil.cohorts.table import save_cohort
from dmsmil.features.bags import load_bags
from dmsmil.features.handing import hand_out
from dmsmil.jobs.files import InputError
from dmsmil.slides.store import Store
from dmsmil.study.cli import main
from tests.conftest import assert_one_line
from tests.features.test_formats import PX, own_study, same, take

NAMES = ["one", "TCGA-3.uuid", "three", "four"]
COHORT = pd.DataFrame(
    {
        "slide_id": NAMES,
        "patient_id": ["p1", "p2", "p3", "p1"],
        "label": ["b", "a", "b", "b"],
        "site": "",
        "path": "",
        "mpp": 0.0,
    }
)
FOLDS = COHORT[["slide_id", "patient_id", "label"]].assign(fold_0=["test", "train", "val", "test"])


@pytest.fixture
def store(tmp_path):
    """Three slides of 40x and one of 20x; the last of the cohort has no features."""
    own_study(tmp_path / "study", ["one", "three"])
    return own_study(tmp_path / "study", ["TCGA-3.uuid"], magnification=20.0)


def test_for_torchmil_labels_are_numbers_and_places_of_all_slides_are_in_one_unit(store, tmp_path):
    assert hand_out("torchmil", store, COHORT, FOLDS, tmp_path / "out") == NAMES[:3]
    labels = pd.read_csv(tmp_path / "out/labels.csv", index_col="slide_id")
    assert labels.label.to_dict() == {"one": 1, "TCGA-3.uuid": 0, "three": 1} and labels.label.dtype == np.int64
    assert labels["class"].tolist() == ["b", "a", "b"] and labels.fold_0.tolist() == ["test", "train", "val"]
    assert labels.file.tolist() == [f"{name}.h5" for name in NAMES[:3]]
    for name in NAMES[:3]:
        found, side = store.read_features(name), 512 if name == "TCGA-3.uuid" else 1024
        for scale in (10, 20):
            folder = tmp_path / f"out/{scale}x_256px_0px_overlap"
            with h5py.File(folder / f"features_net-a-b/{name}.h5") as file:
                np.testing.assert_array_equal(file["features"][:], found[scale].features)
            with h5py.File(folder / f"patches/{name}_patches.h5") as file:
                at = file["coords"][:] * (side * 10 // scale) / PX
                assert np.abs(at - found[scale].coords).max() <= 2, "rounded to a px of the scale"
                if scale == 10:
                    assert sorted(map(tuple, (file["coords"][:] // PX).tolist())) == sorted(
                        (x, y) for y in range(3) for x in range(4) if 4 * y + x < 9
                    ), "its cells of the grid"


def test_torchmil_loads_it_as_readme_says(store, tmp_path):
    datasets = pytest.importorskip("torchmil.datasets", reason="needs torchmil, of the extra [interop]")
    hand_out("torchmil", store, COHORT, FOLDS, tmp_path / "out")
    text = (tmp_path / "out/README.txt").read_text()
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ") and "import" not in line]
    told = {"TridentWSIDataset": datasets.TridentWSIDataset}
    exec(" ".join(lines).replace("HERE", str(tmp_path / "out")), told)
    dataset = told["dataset"]
    assert len(dataset) == 3
    for number, name in enumerate(dataset.get_bag_names()):
        bag = dataset[number]
        np.testing.assert_array_equal(bag["X"], store.read_features(name)[10].features)
        assert int(bag["Y"]) == (name != "TCGA-3.uuid")
        assert (bag["adj"].to_dense() > 0).sum() > 9, "neighbours on the grid are joined, whatever the scan"


@pytest.mark.slow
def test_for_clam_all_scales_and_tables_of_the_slides_that_are_there(store, tmp_path):
    hand_out("clam", store, COHORT, FOLDS, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/tables/dataset.csv")
    assert table.slide_id.tolist() == NAMES[:3] and list(table) == ["case_id", "slide_id", "label"]
    rows = read_splits(tmp_path / "out/tables")
    assert dict(zip(rows.name, rows.part)) == {"one": "test", "TCGA-3.uuid": "train", "three": "val"}
    tensor = torch.load(tmp_path / "out/20x/pt_files/one.pt", weights_only=True)
    np.testing.assert_array_equal(tensor, store.read_features("one")[20].features)
    other = Store(tmp_path / "other", PX, (10, 20), "net:a/b")
    take(other, tmp_path / "out/{scale}x", COHORT.iloc[:3])
    same(load_bags(store, COHORT.iloc[:3], 9), load_bags(other, COHORT.iloc[:3], 9))


@pytest.mark.slow
def test_for_stamp_places_in_micrometres_and_tables_of_patients_and_slides(store, tmp_path):
    hand_out("stamp", store, COHORT, FOLDS, tmp_path / "out")
    assert pd.read_csv(tmp_path / "out/clini.csv").values.tolist() == [["p1", "b"], ["p2", "a"], ["p3", "b"]]
    slides = pd.read_csv(tmp_path / "out/slide.csv")
    assert slides.values.tolist() == [["p1", "one.h5"], ["p2", "TCGA-3.uuid.h5"], ["p3", "three.h5"]]
    with h5py.File(tmp_path / "out/20x/one.h5") as file:
        assert set(file) == {"feats", "coords"} and file.attrs["unit"] == "um" and file.attrs["tile_size_um"] == 128
        np.testing.assert_array_equal(file["coords"][:], store.read_features("one")[20].coords * 0.25)
    other = Store(tmp_path / "other", PX, (10, 20), "net:a/b")
    table = COHORT.iloc[:3].assign(mpp=[0.25, 0.5, 0.25])
    take(other, tmp_path / "out/{scale}x", table)
    same(load_bags(store, table, 9), load_bags(other, table, 9))


@pytest.mark.parametrize("kind", ["torchmil", "clam", "stamp"])
def test_readme_says_how_and_no_file_knows_this_machine(kind, store, tmp_path):
    hand_out(kind, store, COHORT, FOLDS, tmp_path / "out")
    assert "HERE" in (tmp_path / "out/README.txt").read_text()
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in (tmp_path / "out").rglob("*.*"))


def test_wrong_wishes_are_one_line(store, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    empty = Store(tmp_path / "study", PX, (10, 20), "resnet18")
    for wish, reason in [
        (("mil", store, COHORT, FOLDS, tmp_path / "a"), "'mil' is not one of torchmil, clam, stamp"),
        (("clam", store, COHORT, FOLDS, tmp_path / "full"), "full is there and holds something"),
        (("clam", empty, COHORT, FOLDS, tmp_path / "b"), "no slide of the study has features by"),
    ]:
        with pytest.raises(InputError, match=reason) as caught:
            hand_out(*wish)
        assert_one_line(caught, reason.split()[0].strip("'"))


def test_the_command_writes_them(store, tmp_path, capsys):
    save_cohort(store.home, COHORT, FOLDS, [])
    params = tmp_path / "mine.yaml"
    params.write_text(json.dumps({"study": "study", "outputs": str(tmp_path), "tile_px": PX, "encoder": "net:a/b"}))
    assert main(["export-bags", str(params), str(tmp_path / "out"), "--for", "stamp"]) == 0
    assert "3 of 4 slides in" in capsys.readouterr().out and (tmp_path / "out/10x/three.h5").exists()
    assert main(["export-bags", str(params), str(tmp_path / "out"), "--for", "stamp"]) == 2
