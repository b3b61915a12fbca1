"""Features of other programs, written here byte by byte as they write them: every number lands where it belongs."""

import pickle
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from dmsmil.features import formats
from dmsmil.features.bags import load_bags
from dmsmil.features.foreign import _number, tensor
from dmsmil.features.formats import export_clam_features, import_features, open_source
from dmsmil.features.views import slide_views
from dmsmil.jobs.failures import read_failures
from dmsmil.jobs.files import InputError
from dmsmil.models import METHODS, create
from dmsmil.slides.store import Store
from dmsmil.slides.tiles import Tiles
from tests.conftest import assert_one_line
from tests.slides.pyramids import make_slide

PX, K, DIM = 256, 20, 6
SIDE = {10: 1024, 20: 512}  # level-0 px of a tile of a 40x slide
KINDS = ["TRIDENT", "CLAM h5", "CLAM pt", "STAMP"]
UNSIZED = "the size of its slide is not known, for neither its files nor a slide file say it"
NAMES = ["one", "two.1-b", "TCGA-3.uuid"]


def grids(slide_id, density=0.7):
    """{scale: (N, 2)} level-0 corners of tissue: part of an 8 x 6 grid of 10x tiles and of the 16 x 12 inside it."""
    rng = np.random.default_rng(list(slide_id.encode()))
    found = {}
    for scale, step in SIDE.items():
        cells = np.stack(np.meshgrid(np.arange(8192 // step), np.arange(6144 // step)), -1).reshape(-1, 2)
        found[scale] = cells[rng.permutation(len(cells))[: int(density * len(cells))]] * step
    return found


def values(coords, scale, dim=DIM):
    """Features that tell scale and place, exact in float16."""
    out = np.zeros((len(coords), dim), np.float32)
    out[:, 0], out[:, 1:3] = scale, coords / 512
    return out


def trident(job, slide_id, coords, encoder="uni_v1", px=PX, overlap=0, base=40, dim=DIM, change=None):
    for scale, at in coords.items():
        folder = job / f"{scale}x_{px}px_{overlap}px_overlap"
        about = {
            "patch_size": px,
            "patch_size_level0": px * base // scale,
            "level0_magnification": base,
            "target_magnification": scale,
            "overlap": overlap,
            "name": slide_id,
            "savetodir": str(folder),
        }
        for path in (folder / f"patches/{slide_id}_patches.h5", folder / f"features_{encoder}/{slide_id}.h5"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(path, "w") as file:
                file.create_dataset("coords", data=at, maxshape=(None, 2), chunks=(1, 2)).attrs.update(about)
                if path.parent.name != "patches":
                    data = file.create_dataset(
                        "features", data=values(at, scale, dim), chunks=(1, dim), maxshape=(None, dim)
                    )
                    data.attrs.update({"encoder": encoder, "name": slide_id, "savetodir": str(folder)})
                if change:
                    change(file, scale)
    return job


def clam(folder, slide_id, coords, pt=False, level=1, downsample=4.0001, patches=True):
    """`folder` has {scale} in it. 10x tiles are 256 px of level 1; 20x tiles 512 px of level 0, as CLAM cuts them."""
    for scale, at in coords.items():
        here = folder.parent / folder.name.format(scale=scale)
        for name in ("h5_files", "pt_files", "patches"):
            (here / name).mkdir(parents=True, exist_ok=True)
        if pt:
            torch.save(torch.from_numpy(values(at, scale)), here / f"pt_files/{slide_id}.pt")
        else:
            with h5py.File(here / f"h5_files/{slide_id}.h5", "w") as file:
                file["features"], file["coords"] = values(at, scale), at.astype(np.int32)
        if patches:
            step, size = (downsample, 256) if scale == 10 else (1.0, 512)
            with h5py.File(here / f"patches/{slide_id}.h5", "w") as file:
                file["coords"] = at
                file["coords"].attrs.update(
                    {
                        "patch_size": size,
                        "patch_level": level if scale == 10 else 0,
                        "downsample": (step, step),
                        "level_dim": (8300 / step, 6200 / step),
                    }
                )
    return folder


def stamp(folder, slide_id, coords, mpp=0.25, px=PX, um=None, name="feats", unit="um", extractor="uni_v1"):
    for scale, at in coords.items():
        path = folder.parent / folder.name.format(scale=scale) / f"{slide_id}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["coords"], file[name] = (at * mpp).astype(np.float32), values(at, scale).astype(np.float16)
            file.attrs.update(
                {
                    "stamp_version": "2.5.0",
                    "extractor": extractor,
                    "unit": unit,
                    "code_hash": "abc",
                    "tile_size_um": um or SIDE[scale] * 0.25,
                    "tile_size_px": px,
                    "feat_type": "tile",
                }
            )
    return folder


def write(kind, place, slide_id, coords, **more):
    """The slide's files as a program of this kind writes them; returns the `source` that names them."""
    if kind == "TRIDENT":
        return trident(place / "job", slide_id, coords, **more)
    if kind == "STAMP":
        return stamp(place / "uni_{scale}x", slide_id, coords, **more)
    return clam(place / "feats_{scale}x", slide_id, coords, pt=kind == "CLAM pt", **more)


def silent(line):
    """A report that nobody reads."""


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "study", PX, (10, 20), "uni_v1")


def cohort(names=NAMES, mpp=0.25, path=""):
    return pd.DataFrame(
        {
            "slide_id": names,
            "patient_id": names,
            "label": list("ababab")[: len(names)],
            "site": "",
            "path": path,
            "mpp": mpp,
        }
    )


def take(store, source, table=None, k=K, **more):
    return import_features(
        store, cohort() if table is None else table, source, k, workers=1, **{"report": silent, **more}
    )


# ------------------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_where_it_belongs(kind, store, tmp_path):
    coords = {name: grids(name) for name in NAMES}
    source = [write(kind, tmp_path, name, at) for name, at in coords.items()][0]
    summary = take(store, source)
    assert list(summary.columns) == ["slide_id", "label", "tiles", "density", "magnification", "warnings", "seconds"]
    assert (summary.tiles == K).all() and summary.density.isna().all()
    assert set(summary.warnings) == {"" if "CLAM" in kind else UNSIZED}
    np.testing.assert_allclose(summary.magnification, 40)
    bags = load_bags(store, cohort(), K)
    assert bags.slide_ids == sorted(NAMES) and bags.x.shape == (3, 2, K, DIM) and not bags.missing
    for row, name in enumerate(bags.slide_ids):
        mask, places = bags.mask[row].numpy(), bags.coords[row].numpy()
        assert mask[0].all() and mask[1].all()  # of 33 tiles most have a child, so all that are taken have one
        for s, scale in enumerate((10, 20)):
            np.testing.assert_array_equal(bags.x[row, s].numpy(), values(places[s], scale))
            assert {tuple(at) for at in places[s].tolist()} <= {tuple(at) for at in coords[name][scale].tolist()}
        inside = places[1] - places[0]
        assert set(inside.ravel().tolist()) == {0, 512}
        tiles = store.read_tiles(name)
        assert tiles.magnification == 40 and np.isnan(tiles.density).all() and np.isnan(tiles.colour).all()
        assert tiles.dimensions == ((8300, 6200) if "CLAM" in kind else (0, 0))
        assert tiles.extent[0] >= places[..., 0].max() + 512 and tiles.extent[1] >= places[..., 1].max() + 512


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_without_a_child_are_masked_and_every_method_honours_it(kind, store, tmp_path):
    coords = grids("one", 1.0)
    lonely = (coords[20] // 1024 == [2, 3]).all(1) | (coords[20] // 1024 == [5, 0]).all(1)
    coords[20] = coords[20][~lonely]
    source = write(kind, tmp_path, "one", coords)
    write(kind, tmp_path, "two", grids("two"))
    table = cohort(["one", "two"])
    take(store, source, table, k=48)
    bags = load_bags(store, table, 48)
    places = bags.coords[0, 0, ~bags.mask[0, 1]] // 1024
    assert sorted(places.tolist()) == [[2, 3], [5, 0]] and bags.mask[0, 0].all()
    if kind != "STAMP":  # once is enough
        return
    other = bags.x.clone()
    other[~bags.mask] = 9.0
    for method in METHODS.values():
        view = bags if method.takes != "one" else bags.view((20,))
        torch.manual_seed(0)
        model = create(method.name, DIM, 2, view.scales).eval()
        said = model(view.x, view.mask, view.coords)
        again = model(other[:, -view.x.shape[1] :], view.mask, view.coords)
        torch.testing.assert_close(said.logits, again.logits)
        assert not said.scores[~view.mask].any() and torch.isfinite(said.logits).all(), method.name


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_rows_in_the_files_changes_no_number(kind, store, tmp_path):
    coords, rng = grids("one"), np.random.default_rng(0)
    take(store, write(kind, tmp_path, "one", coords), cohort(["one"]))
    shuffled = {scale: at[rng.permutation(len(at))] for scale, at in coords.items()}
    other = Store(tmp_path / "other", PX, (10, 20), "uni_v1")
    take(other, write(kind, tmp_path / "b", "one", shuffled), cohort(["one"]))
    one, two = (load_bags(s, cohort(["one"]), K) for s in (store, other))
    assert torch.equal(one.x, two.x) and torch.equal(one.coords, two.coords)
    seeded = Store(tmp_path / "seeded", PX, (10, 20), "uni_v1")
    take(seeded, write(kind, tmp_path, "one", coords), cohort(["one"]), seed=1)
    three = load_bags(seeded, cohort(["one"]), K)
    assert torch.equal(one.coords[:, 0], three.coords[:, 0]) and not torch.equal(one.coords[:, 1], three.coords[:, 1])


@pytest.mark.parametrize("file, slide_id", [("a.1", "a.1.svs"), ("a.1.svs", "a.1"), ("a.1.svs", "a.1.svs")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_slides_suffix_may_be_here_or_there(kind, file, slide_id, store, tmp_path):
    source = write(kind, tmp_path, file, grids("x"))
    write(kind, tmp_path, "a", grids("y"))
    take(store, source, cohort([slide_id]))
    places = {tuple(at) for at in store.read_tiles(slide_id).coords[10].tolist()}
    assert places <= {tuple(at) for at in grids("x")[10].tolist()}


def test_trident_attributes_may_be_only_in_its_patches_or_nowhere(store, tmp_path):
    def bare(file, scale):
        if "features" in file:
            for name in list(file["coords"].attrs):
                del file["coords"].attrs[name]

    job = trident(tmp_path / "job", "one", grids("one"), change=bare)
    take(store, job, cohort(["one"]))
    tiles = store.read_tiles("one")
    for path in job.rglob("*_patches.h5"):
        path.unlink()
    again = Store(tmp_path / "again", PX, (10, 20), "uni_v1")
    take(again, job, cohort(["one"]))  # the step of the grid tells the side of a tile
    assert again.read_tiles("one").magnification == tiles.magnification == 40
    np.testing.assert_array_equal(again.read_tiles("one").coords[20], tiles.coords[20])


def test_a_folder_for_each_scale_may_be_tridents_too_and_one_scale_needs_no_braces(store, tmp_path):
    job = trident(tmp_path / "job", "one", grids("one"))
    take(store, job / "{scale}x_256px_0px_overlap/features_uni_v1", cohort(["one"]))
    fine = Store(tmp_path / "fine", PX, (20,), "uni_v1")
    take(fine, job / "20x_256px_0px_overlap/features_uni_v1", cohort(["one"]))
    assert load_bags(fine, cohort(["one"]), K, (20,)).mask.all()


# ------------------------------------------------------------------------------------------------ scale and place


def test_stamp_micrometres_become_pixels_by_the_slide_the_table_or_a_nominal_scan(tmp_path):
    slide = make_slide(tmp_path / "one.svs", 1536, 1280, objective=40, mpp=0.25)
    coords = {10: np.array([[0, 0], [1024, 0]]), 20: np.array([[0, 0], [1024, 512]])}
    source = stamp(tmp_path / "uni_{scale}x", "one", coords)
    corners = {}
    for name, table in {
        "table": cohort(["one"]),
        "slide": cohort(["one"], 0.0, str(slide)),
        "nominal": cohort(["one"], 0.0),
    }.items():
        store = Store(tmp_path / name, PX, (10, 20), "uni_v1")
        summary = take(store, source, table)
        corners[name] = store.read_tiles("one").coords[10]
        assert summary.magnification[0] == (20 if name == "nominal" else 40)
        assert ("pixels of 0.5 µm" in summary.warnings[0]) == (name == "nominal")
    np.testing.assert_array_equal(corners["table"], corners["slide"])
    np.testing.assert_array_equal(corners["table"], 2 * corners["nominal"])


def test_stamps_own_tiles_of_256_um_and_224_px_pass_for_10x_and_keep_their_size(tmp_path):
    for scale in (10, 20):
        stamp(tmp_path / "ct_{scale}x", "one", {scale: grids("one")[scale]}, mpp=0.2528, px=224, um=2560 / scale)
    store = Store(tmp_path / "study", 224, (10, 20), "uni_v1")
    take(store, tmp_path / "ct_{scale}x", cohort(["one"], 0.2528))
    with h5py.File(store.features_path(10, "one")) as file:
        about = dict(file["coords"].attrs)
    assert about["patch_size_level0"] == round(256 / 0.2528)
    assert about["level0_magnification"] == pytest.approx(10 * round(256 / 0.2528) / 224)
    np.testing.assert_array_equal(store.read_tiles("one").coords[10] % 1024, 0)  # the pixels they were cut at


def test_clam_tells_no_magnification_and_the_table_may_contradict_it(store, tmp_path):
    source = clam(tmp_path / "feats_{scale}x", "one", grids("one"))
    summary = take(store, source, cohort(["one"], 0.0))
    assert summary.warnings[0] == "its magnification is not known: tiles of 1024 level-0 px make it 40x"
    assert store.read_tiles("one").dimensions == (8300, 6200)
    other = Store(tmp_path / "other", PX, (10, 20), "uni_v1")
    with pytest.raises(InputError, match="slide one has tiles of 1024 level-0 px, 256 px at 5x, not at 10x"):
        take(other, source, cohort(["one"], 0.5))


def test_the_tables_magnification_may_not_contradict_that_of_the_features(store, tmp_path):
    source = trident(tmp_path / "job", "one", grids("one"))  # of 40x
    with pytest.raises(InputError, match="slide one is of 40x by its features and of 20x by the `mpp` of the cohort"):
        take(store, source, cohort(["one"], 0.5))
    take(store, source, cohort(["one"], 0.26))


def test_clams_features_are_read_again_when_the_slide_that_tells_their_size_has_come(store, tmp_path):
    source = clam(tmp_path / "feats_{scale}x", "one", grids("one"))
    take(store, source, cohort(["one"], 0.0))
    path = make_slide(tmp_path / "one.svs", objective=20, mpp=0.5)
    with pytest.raises(InputError, match="slide one has tiles of 1024 level-0 px, 256 px at 5x, not at 10x"):
        take(store, source, cohort(["one"], 0.0, str(path)))


def test_attributes_as_bytes_and_numbers_that_are_none(store, tmp_path):
    def change(file, scale):
        file["coords"].attrs["level0_width"] = np.nan
        if "features" in file:
            file["features"].attrs["encoder"] = np.bytes_(b"uni_v1")

    source = trident(tmp_path / "job", "one", grids("one"), change=change)
    assert take(store, source, cohort(["one"])).tiles[0] == K


def test_pt_files_without_patches_say_nothing_of_places_and_h5_files_do(store, tmp_path):
    with pytest.raises(InputError, match="one.pt does not say where its tiles are"):
        take(store, clam(tmp_path / "feats_{scale}x", "one", grids("one"), pt=True, patches=False), cohort(["one"]))
    take(store, clam(tmp_path / "h5_{scale}x", "one", grids("one"), patches=False), cohort(["one"]))
    assert store.read_tiles("one").magnification == 40
    for scale in (10, 20):  # CLAM's folder of coordinates may be that of the features, or the one above it
        clam(tmp_path / f"{scale}x" / "feats", "one", {scale: grids("one")[scale]}, pt=True)
        shutil.move(tmp_path / f"{scale}x" / "feats/patches", tmp_path / f"{scale}x" / "patches")
    other = Store(tmp_path / "other", PX, (10, 20), "uni_v1")
    take(other, tmp_path / "{scale}x/feats", cohort(["one"]))
    np.testing.assert_array_equal(other.read_tiles("one").coords[20], store.read_tiles("one").coords[20])


def sized(width, height):
    """As a newer TRIDENT writes them: with the size of the slide."""

    def change(file, scale):
        file["coords"].attrs.update({"level0_width": width, "level0_height": height})

    return change


def test_sizes_of_an_unknown_level_are_not_taken_for_those_of_the_slide(tmp_path):
    """Patches of level 1 that do not say how much smaller it is: their 256 px are no 256 px of level 0."""
    store = Store(tmp_path / "study", PX, (10,), "uni_v1")
    source = clam(tmp_path / "feats_{scale}x", "one", {10: grids("one")[10]}, level=1, downsample=4.0)
    with h5py.File(tmp_path / "feats_10x/patches/one.h5", "r+") as file:
        del file["coords"].attrs["downsample"]
    take(store, source, cohort(["one"]))
    with h5py.File(store.features_path(10, "one")) as file:
        assert file["coords"].attrs["patch_size_level0"] == SIDE[10] and "level0_width" not in file["coords"].attrs


@pytest.mark.slow
def test_the_size_of_a_slide_is_the_attributes_else_the_slide_files_else_not_known(tmp_path):
    """Never the extent of its tiles: that was 8192 x 6144 for each of these."""
    coords = grids("one", 1.0)
    slide = make_slide(tmp_path / "one.svs", 8300, 6200, objective=40, mpp=0.25, factors=(1, 16), coverage=0)
    bare = trident(tmp_path / "bare", "one", coords)
    newer = trident(tmp_path / "newer", "one", coords, change=sized(8400, 6300))
    for source, path, size, note in [
        (newer, "", (8400, 6300), ""),
        (newer, str(slide), (8400, 6300), ""),
        (bare, str(slide), (8300, 6200), ""),
        (bare, "", (0, 0), UNSIZED),
    ]:
        store = Store(tmp_path / f"{source.name}-{bool(path)}", PX, (10, 20), "uni_v1")
        summary = take(store, source, cohort(["one"], 0.25, path))
        tiles = store.read_tiles("one")
        assert (tiles.dimensions, summary.warnings[0]) == (size, note)
        with h5py.File(store.features_path(20, "one")) as file:
            about = file["coords"].attrs
            assert (about.get("level0_width", 0), about.get("level0_height", 0)) == size
        again = Store(tmp_path / f"again-{source.name}-{bool(path)}", PX, (10, 20), "uni_v1")
        take(again, store.home / "features", cohort(["one"]))  # ours are read as TRIDENT's are
        assert again.read_tiles("one").dimensions == size
        [view] = slide_views(cohort(["one"]), store, 1)
        assert (
            view["dimensions"]
            == tiles.extent
            == (size if size[0] else tuple(np.max([tiles.coords[s].max(0) + SIDE[s] for s in SIDE], 0)))
        )


def test_a_slide_file_that_cannot_be_opened_tells_no_size(tmp_path):
    (tmp_path / "one.svs").write_bytes(b"x" * 5000)
    store = Store(tmp_path / "study", PX, (10, 20), "uni_v1")
    job = trident(tmp_path / "job", "one", grids("one"))
    summary = take(store, job, cohort(["one"], 0.25, str(tmp_path / "one.svs")))
    assert summary.warnings[0] == UNSIZED


def test_tiles_that_jut_out_of_their_slide_are_said_to(store, tmp_path):
    coords = {10: np.array([[0, 0], [1024, 0], [2048, 1024]]), 20: np.array([[0, 0], [1024, 512], [2560, 1536]])}
    job = trident(tmp_path / "job", "one", coords, change=sized(2220, 1500))
    summary = take(store, job, cohort(["one"]))
    assert store.read_tiles("one").dimensions == (2220, 1500)
    assert summary.warnings[0] == (
        "1 of 3 tiles at 10x jut out of the slide of 2220 x 1500 px, by 852 px at most; "
        "1 of 3 tiles at 20x jut out of the slide of 2220 x 1500 px, by 852 px at most"
    )
    for folder, size in (("whole", (3072, 2048)), ("rounded", (3070, 2046))):
        other = Store(tmp_path / folder, PX, (10, 20), "uni_v1")
        job = trident(tmp_path / f"job-{folder}", "one", coords, change=sized(*size))
        assert take(other, job, cohort(["one"])).warnings[0] == ""


@pytest.mark.parametrize("move", [-50_000, 50_000])
def test_tiles_outside_of_their_slide_are_of_another(store, tmp_path, move):
    moved = {scale: at + move for scale, at in grids("one").items()}
    with pytest.raises(InputError, match="of .* tiles at 10x lie outside of the slide, the first at "):
        take(store, trident(tmp_path / "job", "one", moved, change=sized(9000, 7000)), cohort(["one"]))


def test_tiles_before_the_corner_of_a_slide_jut_out_of_it(store, tmp_path):
    coords = {10: np.array([[-512, 0], [1024, 0]]), 20: np.array([[-512, 0], [1024, 512]])}
    summary = take(store, trident(tmp_path / "job", "one", coords, change=sized(9000, 7000)), cohort(["one"]))
    assert "1 of 2 tiles at 10x jut out of the slide of 9000 x 7000 px, by 512 px at most" in summary.warnings[0]


def test_a_finer_scale_of_which_most_is_missing_is_said(store, tmp_path):
    whole = grids("one")
    job = trident(tmp_path / "job", "one", {10: whole[10], 20: whole[20][:3]})
    said = take(store, job, cohort(["one"])).warnings[0]
    assert re.search(r"tiles at 10x have none at 20x inside them: are the features at 20x whole\?", said)
    other = Store(tmp_path / "other", PX, (10, 20), "uni_v1")
    assert "inside them" not in take(other, trident(tmp_path / "job", "one", whole), cohort(["one"])).warnings[0]


def test_a_scan_does_not_show_what_is_finer_than_itself(tmp_path):
    """Coordinates in micrometres, of a file without attributes: 10x tiles of 256 µm are 256 px of a 10x scan."""

    def bare(file, scale):
        for name in list(file["coords"].attrs):
            del file["coords"].attrs[name]

    at = {scale: corners // 4 for scale, corners in grids("one", 1.0).items()}
    store = Store(tmp_path / "study", PX, (10, 20), "uni_v1")
    with pytest.raises(InputError, match="as of a scan of 10x, and features at 20x, which such a scan does not show"):
        take(store, trident(tmp_path / "job", "one", at, change=bare), cohort(["one"], 0.0))


def test_two_slides_with_the_same_features_are_named(store, tmp_path):
    lines = []
    for name in ("one", "two.1-b"):
        job = trident(tmp_path / "job", name, grids("one"))
    for scale in (10, 20):
        folder = job / f"{scale}x_{PX}px_0px_overlap/features_uni_v1"
        shutil.copy(folder / "one.h5", folder / "two.1-b.h5")
    take(store, job, cohort(["one", "two.1-b"]), report=lines.append)
    copy = "slides one and two.1-b have the same features: take one out of the cohort table, it is a copy"
    assert lines.count(copy) == 1


def test_clams_export_says_no_size_that_is_not_known(store, tmp_path):
    take(store, trident(tmp_path / "job", "one", grids("one")), cohort(["one"]))
    export_clam_features(store, cohort(["one"]), tmp_path / "clam", 10)
    with h5py.File(tmp_path / "clam/patches/one.h5") as file:
        assert "level_dim" not in file["coords"].attrs and file["coords"].attrs["patch_size"] == 1024


# ------------------------------------------------------------------------------------------------ once, and again


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_slide_is_imported_once_and_again_when_a_byte_or_a_setting_changed(kind, store, tmp_path):
    source = [write(kind, tmp_path, name, grids(name)) for name in NAMES][0]
    lines = []
    first = take(store, source, report=lines.append)
    assert lines[0] == f"{kind.split()[0]} features in {source.name}: {DIM} numbers a tile" and len(lines) == 4
    stamps = {path: path.stat().st_mtime_ns for path in store.home.rglob("*.h5")}
    lines.clear()
    again = take(store, source, report=lines.append)
    assert lines[1:] == ["3 of 3 slides were done before"]
    assert stamps == {path: path.stat().st_mtime_ns for path in store.home.rglob("*.h5")}
    pd.testing.assert_frame_equal(first[["slide_id", "tiles"]], again[["slide_id", "tiles"]])
    identity = load_bags(store, cohort(), K).identity

    moved = shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-moved", ignore=lambda *_: ["study"])
    take(store, moved / source.name, report=lines.append)  # another place, the same bytes
    assert lines[-1] == "3 of 3 slides were done before"
    write(kind, moved, "one", {scale: at[:-1] for scale, at in grids("one").items()})
    take(store, moved / source.name, report=lines.append)
    assert lines[-2].startswith("[1/1] one ") and lines[-1] == "2 of 3 slides were done before"
    assert load_bags(store, cohort(), K).identity != identity
    for more in (dict(k=K - 1), dict(seed=5)):
        take(store, source, report=lines.append, **more)
        assert lines[-1].startswith("[3/3]")
    store.tiles_path(20, "one").unlink()
    take(store, source, report=lines.append, seed=5)
    assert lines[-2].startswith("[1/1] one ")


def test_bags_of_the_same_files_have_one_identity_everywhere(store, tmp_path):
    job = trident(tmp_path / "job", "one", grids("one"))
    trident(job, "two", grids("two"))
    other = Store(tmp_path / "elsewhere/study", PX, (10, 20), "uni_v1")
    for place in (store, other):
        take(place, job, cohort(["one", "two"]))
    assert load_bags(store, cohort(["one", "two"]), K).identity == load_bags(other, cohort(["one", "two"]), K).identity
    for path in store.home.rglob("*.h5"):
        assert path.read_bytes() == (other.home / path.relative_to(store.home)).read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()


# ------------------------------------------------------------------------------------------------ what is wrong


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil(path):
    with h5py.File(path, "r+") as file:
        file["features" if "features" in file else "feats"][3, 1] = np.nan


def rename(path):
    with h5py.File(path, "r+") as file:
        names = ("features", "feats") if "features" in file else ("feats", "features")
        file.move(*names)


def shorten(path):
    with h5py.File(path, "r+") as file:
        coords = file["coords"][:-1]
        del file["coords"]
        file["coords"] = coords


def widen(path):
    with h5py.File(path, "r+") as file:
        name = "features" if "features" in file else "feats"
        data = np.concatenate([file[name][:]] * 2, 1)
        del file[name]
        file[name] = data


def unfinished(path):
    """The second half was never written: a file that is made as large as it will be has zeros there."""
    with h5py.File(path, "r+") as file:
        data = file["features" if "features" in file else "feats"]
        data[len(data) - 4 :] = 0


def all_alike(path):
    with h5py.File(path, "r+") as file:
        file["features" if "features" in file else "feats"][:] = 0.7


def turned(path):
    with h5py.File(path, "r+") as file:
        coords = file["coords"][:].T
        del file["coords"]
        file["coords"] = coords


def nowhere(path):
    with h5py.File(path, "r+") as file:
        coords = file["coords"][:].astype(float)
        coords[2, 1] = np.nan
        del file["coords"]
        file["coords"] = coords


def worded(path):
    with h5py.File(path, "r+") as file:
        name = "features" if "features" in file else "feats"
        shape = file[name].shape
        del file[name]
        file[name] = np.full(shape, b"1.5")


def without_numbers(path):
    with h5py.File(path, "r+") as file:
        name = "features" if "features" in file else "feats"
        rows = len(file[name])
        del file[name]
        file[name] = np.zeros((rows, 0), np.float32)


def empty(path):
    with h5py.File(path, "r+") as file:
        name = "features" if "features" in file else "feats"
        dim = file[name].shape[1]
        del file[name], file["coords"]
        file[name], file["coords"] = np.zeros((0, dim), np.float32), np.zeros(0)  # as an empty list is saved


def grouped(path):
    """The features are no array, but a folder of some."""
    with h5py.File(path, "r+") as file:
        name = next(key for key in file if key.startswith("fea"))
        del file[name]
        file.create_group(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage, reason",
    [
        (cut, "two.1-b.h5 is damaged or incomplete"),
        (lambda path: path.write_bytes(b"x" * 99), "damaged or incomplete"),
        (lambda path: path.unlink(), "slide two.1-b has no file of features at 20x"),
        (spoil, "slide two.1-b at 20x has 1 tile whose features are NaN"),
        (rename, "two.1-b.h5 has no 'fea.* is it of another program"),
        (shorten, "features of shape .* tiles"),
        (widen, "has 12 numbers a tile, and at 10x 6"),
        (empty, "has no tiles"),
        (grouped, "two.1-b.h5 is damaged or incomplete"),
        (unfinished, "has 4 tiles whose features are all zero"),
        (all_alike, "has the same features in all of its"),
        (turned, r"has coords of shape \(2, [0-9]+\), not \(tiles, 2\)"),
        (nowhere, "has coords that are NaN or infinite"),
        (worded, "has features of type .S3, no numbers"),
        (without_numbers, "has features of no number a tile"),
    ],
)
@pytest.mark.parametrize("kind", ["TRIDENT", "CLAM h5", "STAMP"])
def test_a_bad_slide_is_a_row_and_the_others_are_imported(kind, damage, reason, store, tmp_path):
    source = [write(kind, tmp_path, name, grids(name)) for name in NAMES][0]
    path = next(p for p in tmp_path.rglob("two.1-b.h5") if "20x" in str(p) and p.parent.name != "patches")
    damage(path)
    table = cohort(sorted(NAMES, reverse=True))  # the bad one first
    summary = take(store, source, table)
    assert sorted(summary.slide_id) == ["TCGA-3.uuid", "one"]
    failures = read_failures(store.home)
    assert list(failures.unit) == ["two.1-b"] and list(failures.stage) == ["features"]
    assert failures.reason.str.contains(reason).all(), list(failures.reason)
    assert not failures.reason.str.contains("\n|/tmp").any()
    assert not store.features_path(10, "two.1-b").exists()
    write(kind, tmp_path, "two.1-b", grids("two.1-b"))
    assert len(take(store, source, table)) == 3 and not len(read_failures(store.home))


@pytest.mark.parametrize(
    "value, reason",
    [
        ({"features": torch.zeros(3), "coords": 1}, "holds a dict with features, coords, not one plain tensor"),
        ([1, 2], "holds a list, not one plain tensor"),
        (torch.eye(9).to_sparse(), "holds a sparse, quantised or complex tensor"),
        (torch.ones(9, 6, dtype=torch.complex64), "holds a sparse, quantised or complex tensor"),
        (None, "is damaged, or more than a tensor"),
    ],
)
def test_pt_files_that_are_no_tensor(value, reason, store, tmp_path):
    source = [write("CLAM pt", tmp_path, name, grids(name)) for name in NAMES][0]
    for path in tmp_path.rglob("one.pt"):
        cut(path) if value is None else torch.save(value, path)
    assert len(take(store, source)) == 2
    assert reason in read_failures(store.home).reason[0]


def test_a_tensor_with_its_gradient_is_a_tensor_and_a_word_is_no_number(tmp_path):
    torch.save(torch.ones(3, 2, requires_grad=True), tmp_path / "one.pt")
    assert tensor(tmp_path / "one.pt").shape == (3, 2)
    assert _number({"patch_size": [224, 224]}, "patch_size") == 224 and _number({}, "patch_size") == 0
    for value in ("20x", [], {}):
        with pytest.raises(InputError, match="its attribute target_magnification is .* which is no number"):
            _number({"target_magnification": value}, "target_magnification")


def test_features_in_a_linked_folder_are_found(store, tmp_path):
    source = [write("TRIDENT", tmp_path / "disk", name, grids(name)) for name in NAMES][0]
    whole = Path(source)
    for folder in [path for path in whole.rglob("features_*") if path.is_dir()]:
        moved = tmp_path / "moved" / folder.parent.name
        moved.parent.mkdir(exist_ok=True)
        shutil.move(folder, moved)
        folder.mkdir()
        (folder / "batch1").symlink_to(moved)
    assert len(take(store, source)) == 3


def test_a_link_to_nowhere_is_a_row_and_the_others_are_imported(store, tmp_path):
    """It ended the study with a traceback, before the first slide."""
    source = [write("TRIDENT", tmp_path / "job", name, grids(name)) for name in NAMES][0]
    for path in Path(source).rglob(f"features_*/{NAMES[1]}.h5"):
        path.unlink()
        path.symlink_to(tmp_path / "gone.h5")
    assert len(take(store, source)) == len(NAMES) - 1
    failed = read_failures(store.home)
    assert list(failed.unit) == [NAMES[1]] and "Traceback" not in failed.reason[0]


def test_a_pt_file_runs_no_code(store, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    source = [write("CLAM pt", tmp_path, name, grids(name)) for name in NAMES][0]
    for path in tmp_path.rglob("one.pt"):
        path.write_bytes(pickle.dumps(Trap(), protocol=2))
    assert len(take(store, source)) == 2 and not (tmp_path / "ran").exists()


def test_no_slide_can_be_read(store, tmp_path):
    source = write("TRIDENT", tmp_path, "one", grids("one"))
    for path in source.rglob("features_uni_v1/one.h5"):
        spoil(path)
    with pytest.raises(InputError, match="slide one at 10x has 1 tile whose features are NaN") as caught:
        take(store, source, cohort(["one"]))
    assert_one_line(caught, "one")


def two_encoders(place):
    trident(place / "job", "one", grids("one"), encoder="conch_v15")
    return trident(place / "job", "one", grids("one"), encoder="virchow2")


def one_scale_missing(place):
    shutil.rmtree(trident(place / "job", "one", grids("one")) / "10x_256px_0px_overlap")
    return place / "job"


def rubbish(place):
    (place / "a" / "b").mkdir(parents=True)
    (place / "a/notes.txt").touch()
    return place / "a"


def zarr(place):
    for scale in (10, 20):
        (place / f"z{scale}x").mkdir()
        (place / f"z{scale}x/one.zarr").touch()
    return place / "z{scale}x"


def mixed(place):
    stamp(place / "f_{scale}x", "one", {10: grids("one")[10]})
    clam(place / "f_{scale}x", "one", {20: grids("one")[20]})
    return place / "f_{scale}x"


def moved_by_hand(place):
    job = trident(place / "job", "one", grids("one"), encoder="conch_v15")
    for folder in list(job.glob("*/features_conch_v15")):
        folder.rename(folder.with_name("features_uni_v1"))
    return job


def same_scale_twice(place):
    coords = {10: grids("one")[10], 20: grids("one")[10]}
    source = clam(place / "feats_{scale}x", "one", coords)
    shutil.copy(place / "feats_10x/patches/one.h5", place / "feats_20x/patches/one.h5")
    return source


def overlapping(place):
    coords = grids("one", 1.0)
    return clam(place / "feats_{scale}x", "one", {scale: at // 2 for scale, at in coords.items()})


def two_slides(place):
    coords = grids("one")
    return trident(place / "job", "one", {10: coords[10], 20: coords[20] + 10**6})


def a_file(place):
    (place / "one.h5").write_bytes(b"")
    return place / "one.h5"


WRONG = {  # a line that says what is wrong, and what is there
    "nowhere": (lambda place: place / "nowhere", "folder nowhere does not exist: check the key 'features'"),
    "no folder of a scale": (lambda place: place / "f_{scale}x", "no folder f_10x for the features at 10x"),
    "a file": (a_file, "folder one.h5 is a file: name the folder that holds it"),
    "rubbish": (rubbish, "a is no TRIDENT folder, for it has b, notes.txt: name the one .* a path with {scale} in it"),
    "CLAM's folder": (
        lambda place: clam(place / "clam_10x", "one", {10: grids("one")[10]}),
        r"clam_10x is a folder of CLAM.* one magnification: make one for each of 10x, 20x, .* such as clam_{scale}x",
    ),
    "one scale's folder": (
        lambda place: trident(place / "job", "one", grids("one")) / "10x_256px_0px_overlap",
        "10x_256px_0px_overlap is one scale of a TRIDENT folder: name its parent, job$",
    ),
    "one scale's features": (
        lambda place: trident(place / "job", "one", grids("one")) / "20x_256px_0px_overlap/features_uni_v1",
        "features_uni_v1 is inside of one scale of a TRIDENT folder: name its parent, job$",
    ),
    "another format": (zarr, "z10x has no features of TRIDENT, CLAM, STAMP, LazySlide or slide2vec, but one.zarr"),
    "two formats": (mixed, "the features are STAMP at 10x and CLAM at 20x"),
    "tile_px": (
        lambda place: trident(place / "job", "one", grids("one"), px=512),
        "job has no tiles of 256 px at 10x without overlap, but 10x_512px_0px_overlap, 20x_512px_0px_overlap: "
        "set tile_px and scales",
    ),
    "overlap": (
        lambda place: trident(place / "job", "one", grids("one"), overlap=64),
        "without overlap, but 10x_256px_64px_overlap, .*overlapping tiles have no one parent",
    ),
    "no scale": (one_scale_missing, "no tiles of 256 px at 10x without overlap, but 20x_256px_0px_overlap: set"),
    "encoders": (two_encoders, "features by the study's encoder 'uni_v1', but by conch_v15, virchow2: set encoder"),
    "another encoder inside": (moved_by_hand, "features by 'conch_v15', not by the study's encoder 'uni_v1'"),
    "STAMP's encoder": (
        lambda place: stamp(place / "s_{scale}x", "one", grids("one"), extractor="mahmood-uni"),
        "slide one at 10x has features by 'mahmood-uni', not by the study's encoder 'uni_v1'",
    ),
    "STAMP's tile_px": (
        lambda place: stamp(place / "s_{scale}x", "one", grids("one"), px=224),
        r"one.h5 has tiles of 224 px and 256 µm \(8.75x\), not of 256 px at 10x",
    ),
    "STAMP's scale": (
        lambda place: stamp(place / "s_{scale}x", "one", grids("one"), um=256.0),
        r"one.h5 has tiles of 256 px and 256 µm \(10x\), not of 256 px at 20x",
    ),
    "STAMP's unit": (lambda place: stamp(place / "s_{scale}x", "one", grids("one"), unit="px"), "STAMP before 2.1"),
    "other slides": (
        lambda place: trident(place / "job", "another", grids("one")),
        "no slide of the cohort has TRIDENT .* another, ... at 10x .* its files must be named as the sli",
    ),
    "one scale twice": (
        same_scale_twice,
        "slide one at 20x has tiles of 1024 level-0 px, which do not fit those of 1024 px",
    ),
    "CLAM's overlap": (overlapping, "tiles of 1024 level-0 px, of which 48 of 48 overlap another: overl"),
    "two slides": (two_slides, "slide one has no tile at 10x that holds one of every other scale"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_source_that_the_study_cannot_use_is_one_clear_line(name, store, tmp_path):
    make, reason = WRONG[name]
    with pytest.raises(InputError, match=reason) as caught:
        take(store, make(tmp_path), cohort(["one"]))
    assert "\n" not in str(caught.value) and "/tmp" not in str(caught.value) and len(str(caught.value)) < 300
    assert not list(store.home.rglob("*.h5"))


def test_slides_without_tiles_are_rows_however_many_come_first(store, tmp_path):
    """A folder of which the first slides hold nothing is still a folder of features."""
    empty = [f"a{i}" for i in range(7)]
    for name in empty:
        trident(tmp_path / "job", name, {scale: np.zeros((0, 2), np.int64) for scale in SIDE})
    source = trident(tmp_path / "job", "one", grids("one"))
    table = pd.concat([cohort(["one"]).assign(slide_id=name) for name in [*empty, "one"]], ignore_index=True)
    assert take(store, source, table).slide_id.tolist() == ["one"]
    rows = read_failures(store.home)
    assert rows.unit.tolist() == empty and rows.stage.unique().tolist() == ["features"]
    assert rows.reason.str.contains("has no tiles: look at its tissue").all()
    assert set(load_bags(store, table, K).missing) == set(empty)


def test_settings_that_no_slide_has_are_refused_after_a_few(store, tmp_path, monkeypatch):
    names = [f"a{i}" for i in range(9)]
    for name in names:
        source = stamp(tmp_path / "s_{scale}x", name, grids(name), extractor="another")
    looked, read = [], formats.READERS["STAMP"]
    monkeypatch.setitem(formats.READERS, "STAMP", lambda files, *more: looked.append(files) or read(files, *more))
    table = pd.concat([cohort(["one"]).assign(slide_id=name) for name in names], ignore_index=True)
    with pytest.raises(InputError, match="slide a0 at 10x has features by 'another', not by the study's encoder"):
        take(store, source, table)
    assert len(looked) == 5 * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slide_id", ["two", "two.svs", "two.h5"])
def test_an_id_with_or_without_the_suffix_of_a_file_finds_its_features(kind, slide_id, store, tmp_path):
    source = write(kind, tmp_path, "two", grids("two"))
    assert take(store, source, cohort([slide_id])).slide_id.tolist() == [slide_id]
    other = Store(tmp_path / "other", PX, (10, 20), "uni_v1")
    write(kind, tmp_path / "more", "two.svs", grids("two"))
    source = Path(str(source).replace(str(tmp_path), str(tmp_path / "more")))
    assert take(other, source, cohort([slide_id])).slide_id.tolist() == [slide_id]


@pytest.mark.parametrize("names", [("S3.svs", "S3.tiff"), ("S3", "S3.svs")])
def test_two_files_that_may_be_one_slides_are_refused_by_name(names, store, tmp_path):
    for name in names:
        source = trident(tmp_path / "job", name, grids(name))
    trident(source, "one", grids("one"))
    assert take(store, source, cohort(["S3", "one"])).slide_id.tolist() == ["one"]
    row = read_failures(store.home).iloc[0]
    assert row.unit == "S3" and row.reason.startswith(
        f"slide S3 has 2 files of features at 10x, features_uni_v1/{names[0]}.h5 and features_uni_v1/{names[1]}.h5: "
    )
    assert take(store, source, cohort(["S3.svs", "one"])).slide_id.tolist() == ["S3.svs", "one"]  # the whole name tells
    with h5py.File(source / "20x_256px_0px_overlap/features_uni_v1/S3.svs.h5") as file:
        there = {tuple(at) for at in file["coords"][:].tolist()}
    assert {tuple(at) for at in store.read_tiles("S3.svs").coords[20].tolist()} <= there


def test_one_name_in_two_folders_is_refused_by_name(store, tmp_path):
    """TRIDENT's and STAMP's folders may have folders in them."""
    source = stamp(tmp_path / "s_{scale}x", "one", grids("one"))
    for scale in SIDE:
        for batch in ("batch1", "batch2"):
            folder = tmp_path / f"s_{scale}x/{batch}"
            folder.mkdir()
            shutil.copy(tmp_path / f"s_{scale}x/one.h5", folder / "two.h5")
    assert take(store, source, cohort(["one", "two"])).slide_id.tolist() == ["one"]
    assert "2 files of features at 10x, batch1/two.h5 and batch2/two.h5" in read_failures(store.home).reason[0]


def test_a_study_of_ours_with_a_changed_byte_is_not_imported(store, tmp_path):
    theirs = own_study(tmp_path / "theirs")
    path = theirs.features_path(20, "one")
    content = path.read_bytes()
    at = content.index(theirs.read_features("one")[20].features.tobytes())
    path.write_bytes(content[: at + 2] + b"\x01" + content[at + 3 :])
    ours = Store(tmp_path / "ours", PX, (10, 20), theirs.encoder)
    assert take(ours, theirs.home / "features", cohort(["one", "two"])).slide_id.tolist() == ["two"]
    assert "one.h5 is damaged or incomplete ('features' is not what was written)" in read_failures(ours.home).reason[0]


def test_a_study_is_not_imported_into_itself(store, tmp_path):
    trident(store.home / "features", "one", grids("one"))
    with pytest.raises(InputError, match="names this study's own folder: leave it empty"):
        take(store, store.home / "features", cohort(["one"]))
    with pytest.raises(InputError, match="k is 0"):
        take(store, store.home / "features", cohort(["one"]), k=0)


def test_the_look_at_a_source_tells_what_it_is(store, tmp_path):
    trident(tmp_path / "job", "one", grids("one"), dim=9)
    found = open_source(store, tmp_path / "job", cohort(["gone", "one"]))
    assert (found.kind, found.dim) == ("TRIDENT", 9) and not found.of("gone")[10] and len(found.of("one")[20]) == 2


# ------------------------------------------------------------------------------------------------ what is written


def own_study(home, names=("one", "two"), n=9, magnification=40.0):
    """A study of this package: linked tiles, 20x ones anywhere in theirs, with density and colour."""
    store = Store(home, PX, (10, 20), "net:a/b")
    for name in names:
        rng = np.random.default_rng(list(name.encode()))
        side = round(PX * magnification / 10)
        coords = np.stack([np.arange(n) % 4, np.arange(n) // 4], 1) * side
        fine = coords + rng.integers(0, side // 2 + 1, (n, 2))
        tiles = Tiles(
            name,
            PX,
            {10: coords, 20: fine},
            rng.random(n),
            rng.random((n, 6), dtype=np.float32),
            np.arange(n),
            (9000, 8000),
            magnification,
            n,
            n,
        )
        store.write_tiles(tiles, {"k": n})
        store.write_features(
            name,
            {scale: rng.random((n, DIM), dtype=np.float32) for scale in (10, 20)},
            tiles,
            {"k": n, "encoder": {"name": "net:a/b"}},
        )
    return store


def as_trident_reads(path):
    """What a reader of TRIDENT's files takes from one: features and coords, and the attributes of each."""
    with h5py.File(path, "r") as file:
        return {name: (file[name][:], dict(file[name].attrs)) for name in ("features", "coords")}


@pytest.mark.parametrize("magnification", [20, 40])
def test_a_study_is_a_trident_folder(magnification, tmp_path):
    own_study(tmp_path, magnification=magnification)
    for scale in (10, 20):
        folder = tmp_path / f"features/{scale}x_256px_0px_overlap"
        found = as_trident_reads(folder / "features_net-a-b/one.h5")
        (features, who), (coords, about) = found["features"], found["coords"]
        assert features.shape == (9, DIM) and features.dtype == np.float32
        assert coords.shape == (9, 2) and coords.dtype == np.int64
        assert who["name"] == "one" and who["encoder"] == "net:a/b" and "savetodir" in who
        side = 256 * magnification // scale
        assert about.pop("savetodir").endswith("features_net-a-b")
        assert about == {
            "patch_size": 256,
            "patch_size_level0": side,
            "level0_magnification": magnification,
            "target_magnification": scale,
            "overlap": 0,
            "name": "one",
            "level0_width": 9000,
            "level0_height": 8000,
        }
        if scale == 10:
            assert (coords % side == 0).all() and coords.max() == 3 * side  # level-0 pixels: the stride is the side
        with h5py.File(folder / "patches/one_patches.h5") as file:
            np.testing.assert_array_equal(file["coords"][:], coords)
            assert file["coords"].attrs["patch_size_level0"] == side


def test_a_slide_without_tiles_has_tridents_shapes(tmp_path):
    store = own_study(tmp_path, ["none"], n=0)
    for scale in (10, 20):
        found = as_trident_reads(store.features_path(scale, "none"))
        assert found["features"][0].shape == (0, DIM) and found["coords"][0].shape == (0, 2)


def same(one, other):
    for name in ("x", "mask", "coords", "labels"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("k", [12, 9, 5])
def test_a_study_goes_through_trident_and_is_the_same_bit_for_bit(k, tmp_path):
    store, table = own_study(tmp_path / "first"), cohort(["one", "two"])
    other = Store(tmp_path / "second", PX, (10, 20), "net:a/b")
    summary = take(other, tmp_path / "first/features", table, k=k)
    one, two = load_bags(store, table, k), load_bags(other, table, k)
    same(one, two)  # the densest, when there are more than k: this package's folders tell the density
    assert torch.equal(one.density, two.density) and torch.equal(one.colour, two.colour)
    assert one.identity != two.identity and summary.density.notna().all()
    assert other.read_tiles("one").dimensions == (9000, 8000)


@pytest.mark.slow
def test_a_study_goes_through_clam_and_is_the_same_bit_for_bit(tmp_path):
    """Without `parent`, density or a magnification: the link is found again by place."""
    store, table = own_study(tmp_path / "first"), cohort(["one", "two", "gone"])
    for scale in (10, 20):
        assert export_clam_features(store, table, tmp_path / f"clam/feats_{scale}x", scale) == ["one", "two"]
    with pytest.raises(InputError, match="no slide of the cohort has features by 'net:a/b' at 10x"):
        export_clam_features(store, cohort(["gone"]), tmp_path / "none", 10)
    table = table.iloc[:2]
    for kind in ("h5_files", "pt_files"):
        other = Store(tmp_path / kind, PX, (10, 20), "net:a/b")
        take(other, tmp_path / "clam/feats_{scale}x", table)
        same(load_bags(store, table, 12), load_bags(other, table, 12))
        for folder in tmp_path.glob("clam/*/h5_files"):
            shutil.rmtree(folder)


@pytest.mark.parametrize("scale", [10, 20])
def test_what_clam_reads_of_a_study(scale, tmp_path):
    store = own_study(tmp_path / "study")
    export_clam_features(store, cohort(["one"]), tmp_path / "clam", scale)
    found = store.read_features("one")[scale]
    tensor = torch.load(tmp_path / "clam/pt_files/one.pt", weights_only=True)
    assert isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor, found.features)
    with h5py.File(tmp_path / "clam/h5_files/one.h5") as file:
        assert set(file) == {"features", "coords"} and file["coords"].dtype == np.int32
        assert file["features"].dtype == np.float32 and not file["features"].attrs and not file["coords"].attrs
        np.testing.assert_array_equal(file["coords"][:], found.coords)
    with h5py.File(tmp_path / "clam/patches/one.h5") as file:
        about = dict(file["coords"].attrs)
    assert set(about) == {
        "patch_size",
        "patch_level",
        "downsample",
        "downsampled_level_dim",
        "level_dim",
        "name",
        "save_path",
    }
    assert about["patch_size"] * about["downsample"][0] == SIDE[scale] and about["level_dim"].tolist() == [9000, 8000]
