"""A cohort with everything wrong in it: the good slides are done, each bad one is a row and a line, nothing is lost."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import yaml

from dmsmil.cohorts.download import _identity
from dmsmil.cohorts.table import load_cohort, read_cohort
from dmsmil.features.bags import load_bags
from dmsmil.features.probes import linked_similarity, project
from dmsmil.features.stages import _at_hand, _check_precision, _claim, _finish_fetched, encode_cohort
from dmsmil.features.views import pair_views, slide_views
from dmsmil.jobs.failures import read_failures
from dmsmil.jobs.files import InputError
from dmsmil.slides.stages import tile_cohort
from dmsmil.slides.store import Store
from dmsmil.study.opening import with_features
from tests.conftest import dmsmil
from tests.slides.pyramids import make_slide

pytestmark = [pytest.mark.xdist_group("stages"), pytest.mark.slow]  # its slides are made once

GOOD = [f"good{i}" for i in range(8)]
BAD = {
    "nottissue": "no tissue",
    "nomag": "states no magnification",
    "text": "cannot be read",
    "cut": "cannot be read",
    "gone": "no slide file",
    "tiny": "smaller than one",
    "twice": "2 rows",
    "unlabelled": "no label",
    "both1": "two classes",
    "both2": "two classes",
    "folder": "is a folder",
}


@pytest.fixture(scope="module")
def cohort_folder(tmp_path_factory):
    """A folder of slides and its cohort.csv: eight good slides, one of a single tile, and one of each bad kind."""
    folder = tmp_path_factory.mktemp("cohort")
    for i, name in enumerate(GOOD):
        make_slide(folder / f"{name}.svs", 900, 800, seed=i)
    make_slide(folder / "onetile.svs", 140, 140, coverage=1, factors=(1,))
    make_slide(folder / "nottissue.svs", 600, 600, coverage=0)
    make_slide(folder / "nomag.svs", 600, 600, objective=None, mpp=None)
    make_slide(folder / "tiny.svs", 16, 16, factors=(1,))
    (folder / "text.svs").write_text("this is not a slide")
    whole = make_slide(folder / "cut.svs", 900, 800, coverage=1).read_bytes()
    (folder / "cut.svs").write_bytes(whole[: len(whole) // 2])
    for name in ("twice", "unlabelled", "both1", "both2"):
        make_slide(folder / f"{name}.svs", 300, 300)
    (folder / "folder.svs").mkdir()
    rows = [dict(slide_id=n, patient_id=f"p{i}", label="ab"[i % 2], path="") for i, n in enumerate([*GOOD, "onetile"])]
    for i, name in enumerate(n for n in BAD if not n.startswith("both")):
        rows.append(dict(slide_id=name, patient_id=f"q{i}", label="ab"[i % 2], path=""))
    rows += [
        dict(rows[-1], slide_id="twice"),
        dict(slide_id="both1", patient_id="z", label="a", path=""),
        dict(slide_id="both2", patient_id="z", label="b", path=""),
    ]
    table = pd.DataFrame(rows)
    table.loc[table.slide_id == "unlabelled", "label"] = ""
    table.loc[table.slide_id == "folder", "path"] = "folder.svs"
    table.to_csv(folder / "cohort.csv", index=False)
    return folder


def silent(line):
    """A report that nobody reads."""


@pytest.fixture(scope="module")
def done(cohort_folder, tmp_path_factory):
    """(store, cohort) of the good slides, tiled and encoded."""
    home = tmp_path_factory.mktemp("study")
    cohort, _ = load_cohort(cohort_folder / "cohort.csv")
    cohort = cohort[cohort.slide_id.isin([*GOOD, "onetile"])].reset_index(drop=True)
    store = Store(home, 64, (10, 20), "random:resnet18")
    encode_cohort(store, cohort, k=5, workers=1, report=silent)
    return store, cohort


def test_a_study_of_everything_wrong_ends_with_the_good_slides_and_a_row_for_each_bad_one(cohort_folder, tmp_path):
    params = {
        "study": "wrong",
        "cohort": str(cohort_folder / "cohort.csv"),
        "outputs": str(tmp_path),
        "k": 1000,
        "tile_px": 64,
        "encoder": "random:resnet18",
        "encoder_px": 64,
        "folds": 2,
        "epochs": 2,
        "methods": ["meanpool"],
        "lams": [1.0],
        "variants": ["activation_relu"],
        "collapse_lams": [],
    }
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(params))
    done = dmsmil("run", tmp_path / "wrong.yaml")
    assert done.returncode == 1, done.stdout + done.stderr
    failures = read_failures(tmp_path / "wrong")
    for name, reason in BAD.items():
        rows = failures[failures.unit == name]
        assert len(rows) and rows.reason.str.contains(reason).all(), (name, list(rows.reason))
        assert not rows.reason.str.contains("\n|/tmp").any()
    assert set(failures.unit) == set(BAD)
    predictions = pd.read_csv(tmp_path / "wrong/tables/03_dmsmil_predictions.csv")
    assert set(predictions.slide_id) == {*GOOD, "onetile"}
    assert "random weights (seed 0), as asked for" in done.stdout
    allowed = dmsmil("run", tmp_path / "wrong.yaml", "-p", "allow_failures", "true", "--only", "00")
    assert allowed.returncode == 0, allowed.stdout + allowed.stderr


def test_a_done_slide_is_not_done_again_and_a_changed_setting_is(done):
    store, cohort = done
    lines = []
    encode_cohort(store, cohort, k=5, workers=1, report=lines.append)
    assert lines[-1] == "9 of 9 slides were done before" and len(lines) == 2
    times = {p: p.stat().st_mtime_ns for p in store.home.rglob("*.h5")}
    tile_cohort(store, cohort, k=4, workers=1, report=lines.append)
    changed = [p for p in times if p.stat().st_mtime_ns != times[p]]
    assert changed and all("patches" in str(p) for p in changed)
    tile_cohort(store, cohort, k=5, workers=1, report=silent)


def test_one_decode_or_two_stages_give_the_same_features(done, tmp_path):
    store, cohort = done
    two = Store(tmp_path, 64, (10, 20), store.encoder)
    tile_cohort(two, cohort, k=5, workers=2, report=silent)
    encode_cohort(two, cohort, k=5, workers=1, report=silent)
    for slide_id in cohort.slide_id:
        one, other = store.read_features(slide_id), two.read_features(slide_id)
        for scale in (10, 20):
            np.testing.assert_array_equal(one[scale].features, other[scale].features)
            np.testing.assert_array_equal(one[scale].coords, other[scale].coords)


@pytest.mark.parametrize("first", [tile_cohort, None])
def test_a_slide_that_was_replaced_is_encoded_anew_in_whatever_order(tmp_path, first):
    """01 tiles it anew before 02 looks: its features must go with its old tiles, those by other encoders too."""
    slides = [make_slide(tmp_path / f"{seed}.svs", 1024, 1024, coverage=1, seed=seed) for seed in (1, 2)]
    size = max(path.stat().st_size for path in slides)
    contents = [path.read_bytes().ljust(size, b"\0") for path in slides]
    path, lines = tmp_path / "a.svs", []
    cohort = pd.DataFrame([{"slide_id": "a", "patient_id": "a", "label": "x", "path": str(path), "mpp": 0.0}])
    store, other = (Store(tmp_path / "study", 64, (10, 20), name) for name in ("efficientnet_lite0", "random:resnet18"))
    path.write_bytes(contents[0])
    for one in (store, other):
        encode_cohort(one, cohort, k=4, px=32, workers=1, report=silent)
    before = store.read_features("a")[10].features
    path.write_bytes(contents[1])
    if first is not None:
        first(store, cohort, k=4, workers=1, report=lines.append)
    encode_cohort(store, cohort, k=4, px=32, workers=1, report=lines.append)
    assert any("another one than before" in line for line in lines)
    fresh = Store(tmp_path / "fresh", 64, (10, 20), store.encoder)
    encode_cohort(fresh, cohort, k=4, px=32, workers=1, report=silent)
    now = store.read_features("a")[10].features
    np.testing.assert_array_equal(now, fresh.read_features("a")[10].features)
    assert not np.array_equal(now, before)
    assert not load_bags(store, cohort, 4).missing
    with pytest.raises(InputError, match="the features of slide a are of another file than its tiles"):
        load_bags(other, cohort, 4)
    path.write_bytes(contents[0])  # the first one comes back, and is not encoded again by the other encoder
    lines.clear()
    encode_cohort(other, cohort, k=4, px=32, workers=1, report=lines.append)
    assert load_bags(other, cohort, 4).slide_ids == ["a"]


def test_tiles_by_another_seed_or_density_are_others(tmp_path):
    path = make_slide(tmp_path / "a.svs", 1024, 1024, coverage=0.5, seed=3)
    cohort = pd.DataFrame([{"slide_id": "a", "patient_id": "a", "label": "x", "path": str(path), "mpp": 0.0}])
    store, lines = Store(tmp_path / "study", 64), []
    for settings in ({}, {"seed": 1}, {"seed": 1, "min_density": 0.6}):
        tile_cohort(store, cohort, k=8, workers=1, report=lines.append, **settings)
    assert not any("done before" in line for line in lines)


def test_what_was_said_of_a_slide_is_said_again_when_nothing_is_to_be_done(tmp_path):
    path = make_slide(tmp_path / "a.svs", 1024, 1024, coverage=1, objective=20, mpp=0.25)
    cohort = pd.DataFrame([{"slide_id": "a", "patient_id": "a", "label": "x", "path": str(path), "mpp": 0.0}])
    store = Store(tmp_path / "study", 64)
    first, again = (tile_cohort(store, cohort, k=4, workers=1, report=silent) for _ in range(2))
    assert first.warnings[0] and again.warnings[0] == first.warnings[0]


def test_features_of_another_encoder_are_made_again_not_mixed(done, tmp_path):
    store, cohort = done
    some = cohort.head(2)
    mixed = Store(tmp_path, 64, (10, 20), "random:resnet18")
    encode_cohort(mixed, some, k=5, px=32, workers=1, report=silent)
    before = mixed.read_features(some.slide_id[0])[10].features
    encode_cohort(mixed, some, k=5, workers=1, report=silent)
    assert not np.array_equal(before, mixed.read_features(some.slide_id[0])[10].features)


def test_a_damaged_file_is_made_anew_by_the_features_stage_and_no_other(done):
    store, cohort = done
    for name, scale, path in (("good1", 20, store.features_path), ("good2", 10, store.tiles_path)):
        before = {p: p.stat().st_mtime_ns for p in store.home.rglob("*.h5")}
        content = path(scale, name).read_bytes()
        at = content.index(store.read_tiles(name).coords[scale].tobytes())
        path(scale, name).write_bytes(content[:at] + b"\x07" + content[at + 1 :])
        assert list(load_bags(store, cohort, 5).missing) == [name]
        lines = []
        encode_cohort(store, cohort, k=5, workers=1, report=lines.append)
        assert [line.split()[1] for line in lines if line.startswith("[")] == [name]
        assert path(scale, name).read_bytes() == content and not load_bags(store, cohort, 5).missing
        assert {p.stem.split("_")[0] for p in before if p.stat().st_mtime_ns != before[p]} == {name}


def test_a_slide_that_fails_this_time_leaves_the_study_and_comes_back(done, cohort_folder, tmp_path):
    """Its old features stay on the disk: made of another file, or of other settings."""
    _, cohort = done
    cohort = cohort.head(3).assign(path=[str(tmp_path / f"{name}.svs") for name in cohort.slide_id[:3]])
    store, broken = Store(tmp_path / "study", 64, (10, 20), "random:resnet18"), tmp_path / "good1.svs"
    for name in cohort.slide_id:
        (tmp_path / f"{name}.svs").write_bytes((cohort_folder / f"{name}.svs").read_bytes())

    def study(stages=("tiles", "features")):
        lines = []
        if "tiles" in stages:
            tile_cohort(store, cohort, k=5, workers=1, report=lines.append)
        if "features" in stages:
            encode_cohort(store, cohort, k=5, px=32, workers=1, report=lines.append)
        bags = load_bags(store, cohort, 5)
        assert len(bags) + len(bags.missing) == 3  # nobody is lost without a word
        assert set(bags.missing) == set(read_failures(store.home).unit)
        return bags, lines

    whole, _ = study()
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    bags, lines = study(["tiles"])
    assert bags.slide_ids == ["good0", "good2"] and "its tiles could not be made: " in bags.missing["good1"]
    assert store.features_path(20, "good1").exists() and any("good1 failed" in line for line in lines)
    bags, _ = study(["features"])
    assert "its tiles could not be made" in bags.missing["good1"] or "its features could" in bags.missing["good1"]
    broken.write_bytes(content)
    bags, _ = study(["features"])  # who has features has tiles: both rows go
    assert not bags.missing and bags.identity == whole.identity and read_failures(store.home).empty


def test_no_usable_slide_at_all_is_one_clear_line(tmp_path):
    make_slide(tmp_path / "blank.svs", 600, 600, coverage=0)
    cohort = pd.DataFrame(
        [dict(slide_id="blank", patient_id="p", label="a", site="", path=str(tmp_path / "blank.svs"), mpp=0.0)]
    )
    with pytest.raises(InputError, match="no slide could be done .1 failed, the first: .*no tissue"):
        tile_cohort(Store(tmp_path, 64), cohort, workers=1, report=silent)


def test_views_pass_over_what_cannot_be_opened_and_show_the_classes_in_turn(done, cohort_folder):
    store, cohort = done
    broken = cohort.head(1).assign(slide_id="text", patient_id="none", path=str(cohort_folder / "text.svs"))
    views = slide_views(pd.concat([broken, cohort], ignore_index=True), store, limit=4)
    assert [v["label"] for v in views].count("a") == [v["label"] for v in views].count("b") == 2
    assert views[0]["side"] == {10: 128, 20: 64} and len(views[0]["coords"][10]) == len(views[0]["density"])
    pair = pair_views(views[0], store, 3)[0]
    *offset, share = pair["inside"][20]
    assert share == 0.5 and all(0 <= o <= 0.5 for o in offset)
    assert pair["tiles"][10].shape == (64, 64, 3)


def test_linked_tiles_are_more_alike_than_others_and_the_map_has_a_point_a_slide(done):
    store, cohort = done
    bags = load_bags(store, cohort, 5)
    table = linked_similarity(bags)
    assert (table.linked > table.other).mean() > 0.7 and set(table.scales) == {"10x and 20x"}
    assert project(bags).shape == (len(bags), 2)
    np.testing.assert_array_equal(project(bags), project(bags))


def test_folds_stay_when_a_slide_fails_later(cohort_folder, smoke):
    home, _ = smoke
    cohort, folds = read_cohort(home)
    assert list(cohort.slide_id) == list(folds.slide_id)


def bring(path, claim):
    """What `Remote.fetch` does where no slide is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("whole")
        claim.write_text(_identity(path))


def test_a_slide_that_was_there_is_compared_with_the_servers_and_stays(tmp_path):
    path, asked = tmp_path / "S1.svs", []

    def fetch(claim):
        asked.append(path.exists())
        if path.exists() and path.read_text() != "whole":
            raise InputError("S1.svs is there but has 3 bytes where 5 are due")
        bring(path, claim)

    with _at_hand(str(path), fetch):
        assert path.read_text() == "whole"
    assert not path.exists(), "fetched for this, and gone afterwards"
    path.write_text("cut")
    with pytest.raises(InputError, match="has 3 bytes"), _at_hand(str(path), fetch):
        pass
    assert path.read_text() == "cut"
    path.write_text("whole")
    with _at_hand(str(path), fetch):
        pass
    assert path.exists() and asked == [False, True, True]
    with _at_hand(str(path), None):
        pass
    assert path.exists()


def test_what_a_killed_process_had_fetched_is_gone_after_the_next(tmp_path):
    path = tmp_path / "slides/S1.svs"
    killed = _at_hand(str(path), partial(bring, path))
    killed.__enter__()  # and never left
    with _at_hand(str(path), partial(bring, path)):
        assert path.exists(), "it need not be fetched again"
    assert not list(path.parent.iterdir())


def test_a_slide_that_a_person_put_there_after_a_kill_is_theirs(tmp_path):
    path = tmp_path / "slides/S1.svs"
    killed = _at_hand(str(path), partial(bring, path))
    killed.__enter__()
    path.unlink()
    path.write_text("whole")  # with gdc-client, the same file
    with _at_hand(str(path), partial(bring, path)):
        pass
    assert list(path.parent.iterdir()) == [path], "and the claim is gone"


def test_a_link_to_a_disk_that_is_away_stays(tmp_path):
    path = tmp_path / "S1.svs"
    path.symlink_to(tmp_path / "away/S1.svs")

    def fetch(claim):
        raise InputError("S1.svs is a link to a file that is not there: mend the link, or remove it")

    with pytest.raises(InputError, match="mend the link"), _at_hand(str(path), fetch):
        pass
    assert path.is_symlink()


def test_a_fetched_slide_that_was_encoded_before_a_kill_is_deleted_and_the_persons_own_is_not(done, tmp_path):
    store, cohort = done
    units = {}
    for name in cohort.slide_id[:2]:
        (tmp_path / f"{name}.svs").touch()
        units[name] = (None, None, str(tmp_path / f"{name}.svs"), None, None, None, store.features_made_by(name).config)
    first, second = (tmp_path / f"{name}.svs" for name in cohort.slide_id[:2])
    _claim(str(first)).write_text(_identity(first))
    _finish_fetched(store, units)
    assert list(tmp_path.iterdir()) == [second]


def test_another_kind_of_device_makes_nothing_anew_unasked(done):
    """A GPU whose driver was gone after a restart: the whole cohort was encoded again, and all runs trained again."""
    store, cohort = done
    here = store.features_made_by(cohort.slide_id[0]).config["encoder"]
    _check_precision(store, cohort, here)
    with pytest.raises(InputError, match="made on a CPU, and here is a GPU: set device: cpu to go on"):
        _check_precision(store, cohort, {**here, "precision": "amp"})
    _check_precision(store, cohort, {**here, "precision": "amp", "px": 1})  # another encoder: they are made anew
    assert with_features(store.home) == set(cohort.slide_id)


def test_slides_that_were_moved_away_after_encoding_are_done(done):
    store, cohort = done
    for path in ("", "/nowhere/gone.svs"):
        lines = []
        table = encode_cohort(store, cohort.assign(path=path), k=5, workers=1, report=lines.append)
        assert list(table.slide_id) == list(cohort.slide_id)
        assert lines[-1] == f"{len(cohort)} of {len(cohort)} slides were done before"
