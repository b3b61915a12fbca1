"""Exports hold the scores, in the shapes that other programs read."""

import json
import uuid

import jsonschema
import numpy as np
import pandas as pd
import pytest
import tifffile

from dmsmil.interpret.explain import normalise
from dmsmil.interpret.export import heatmap, qupath_features, write_heatmap, write_qupath
from dmsmil.jobs.files import InputError
from dmsmil.slides.reader import open_slide
from dmsmil.slides.tiles import select_tiles
from tests.slides.pyramids import make_slide, texture, write_scn

SIDE = {10: 512, 20: 256}
# What qupath-core's QuPathTypeAdapters reads: it skips ids that are no UUIDs and anything outside `properties`.
FEATURE = {
    "type": "object",
    "required": ["type", "id", "geometry", "properties"],
    "additionalProperties": False,
    "properties": {
        "type": {"const": "Feature"},
        "id": {"type": "string", "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"},
        "geometry": {
            "type": "object",
            "required": ["type", "coordinates"],
            "properties": {
                "type": {"const": "Polygon"},
                "coordinates": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "array",
                        "minItems": 4,
                        "items": {
                            "type": "array",
                            "items": {"type": "number", "minimum": 0},
                            "minItems": 2,
                            "maxItems": 2,
                        },
                    },
                },
            },
        },
        "properties": {
            "type": "object",
            "required": ["objectType", "measurements"],
            "properties": {
                "objectType": {"enum": ["annotation", "detection", "tile", "cell", "tmaCore", "root"]},
                "name": {"type": "string"},
                "isLocked": {"type": "boolean"},
                "classification": {
                    "type": "object",
                    "required": ["name", "color"],
                    "properties": {
                        "name": {"type": "string"},
                        "color": {
                            "type": "array",
                            "minItems": 3,
                            "maxItems": 3,
                            "items": {"type": "integer", "minimum": 0, "maximum": 255},
                        },
                    },
                },
                "measurements": {"type": "object", "additionalProperties": {"type": "number"}},
                "childObjects": {"type": "array", "items": {"$ref": "#/$defs/feature"}},
            },
        },
    },
}
SCHEMA = {
    "$defs": {"feature": FEATURE},
    "type": "object",
    "required": ["type", "features"],
    "properties": {
        "type": {"const": "FeatureCollection"},
        "features": {"type": "array", "items": {"$ref": "#/$defs/feature"}},
    },
}


@pytest.fixture
def scores():
    rng, rows = np.random.default_rng(0), []
    for scale in (10, 20):
        value = rng.uniform(size=6)
        for place, (score, norm) in enumerate(zip(value, normalise(value))):
            rows.append(
                dict(
                    slide_id="s",
                    patient_id="p",
                    label="a",
                    fold=0,
                    scale=scale,
                    place=place,
                    x=512 * (place % 3) + 128 * (scale == 20),
                    y=512 * (place // 3) + 64 * (scale == 20),
                    score=score,
                    normalised=norm,
                )
            )
    return pd.DataFrame(rows)


def test_qupath_can_read_it_and_20x_tiles_lie_in_their_parent(scores, tmp_path):
    path, _ = write_qupath(qupath_features(scores, SIDE), tmp_path / "s.geojson")
    found = json.loads(path.read_text())
    jsonschema.validate(found, SCHEMA)
    assert len(found["features"]) == 6
    for feature, row in zip(found["features"], scores[scores.scale == 10].itertuples()):
        (child,) = feature["properties"]["childObjects"]
        outer, inner = (np.array(f["geometry"]["coordinates"][0]) for f in (feature, child))
        assert (outer.min(0) <= inner.min(0)).all() and (inner.max(0) <= outer.max(0)).all()
        assert (np.ptp(outer, 0) == 512).all() and (np.ptp(inner, 0) == 256).all() and (outer[0] == outer[-1]).all()
        assert feature["properties"]["measurements"]["score"] == row.score and uuid.UUID(feature["id"])
        assert child["properties"]["name"] == f"20x tile {row.place}"


def test_tiles_of_three_scales_are_nested_in_the_scale_before_and_flat_ones_name_it(tmp_path):
    side = {5: 1024, 10: 512, 20: 256}
    rows = [
        dict(
            slide_id="s",
            patient_id="p",
            label="a",
            fold=0,
            scale=scale,
            place=place,
            x=1024 * place + shift,
            y=shift,
            score=0.1,
            normalised=0.5,
        )
        for scale, shift in ((5, 0), (10, 64), (20, 96))
        for place in range(3)
        if (scale, place) != (10, 1)
    ]
    path, other = write_qupath(qupath_features(pd.DataFrame(rows), side), tmp_path / "s.geojson")
    found = json.loads(path.read_text())
    jsonschema.validate(found, SCHEMA)
    chains = []
    for top in found["features"]:
        (child,) = top["properties"]["childObjects"]
        chains.append([top, child, *child["properties"].get("childObjects", [])])
    names = [[feature["properties"]["name"] for feature in chain] for chain in chains]
    assert names == [
        ["5x tile 0", "10x tile 0", "20x tile 0"],
        ["5x tile 1", "20x tile 1"],
        ["5x tile 2", "10x tile 2", "20x tile 2"],
    ], "where there is no 10x tile, in the 5x tile"
    flat = json.loads(other.read_text())["features"]
    assert sorted(feature["properties"]["scale"] for feature in flat) == [5, 5, 5, 10, 10, 20, 20, 20]
    parents = {feature["id"]: feature["properties"].get("parent") for feature in flat}
    assert parents == {chain[i]["id"]: chain[i - 1]["id"] if i else None for chain in chains for i in range(len(chain))}


def test_ids_are_unique_and_the_same_each_time(scores):
    def ids(found):
        return [f["id"] for top in found["features"] for f in (top, *top["properties"].get("childObjects", []))]

    first = ids(qupath_features(scores, SIDE))
    assert len(set(first)) == 12 and first == ids(qupath_features(scores, SIDE))
    assert set(first).isdisjoint(ids(qupath_features(scores.assign(slide_id="t"), SIDE)))


def test_nuclei_become_measurements_and_what_is_missing_is_absent(scores):
    nuclei = pd.DataFrame({"scale": 20, "place": range(5), "nuclei": [3.0, 4, 5, 6, np.nan]})
    found = qupath_features(scores, SIDE, nuclei)
    jsonschema.validate(found, SCHEMA)
    children = [top["properties"]["childObjects"][0]["properties"]["measurements"] for top in found["features"]]
    assert [c.get("nuclei", "absent") for c in children] == [3, 4, 5, 6, "absent", "absent"]
    json.loads(json.dumps(found, allow_nan=False))


@pytest.fixture
def flat(scores, tmp_path):
    """The flat file of twelve tiles, of which four 20x tiles have a count of nuclei."""
    nuclei = pd.DataFrame({"scale": 20, "place": range(5), "nuclei": [3.0, 4, 5, 6, np.nan]})
    return write_qupath(qupath_features(scores, SIDE, nuclei), tmp_path / "s.svs.geojson")[1]


def test_the_flat_file_has_every_tile_at_the_top_and_numbers_as_properties(scores, flat):
    found = json.loads(flat.read_text(), parse_constant=pytest.fail)
    nested = json.loads((flat.parent / "s.svs.geojson").read_text())
    assert flat.name == "s.svs_flat.geojson" and len(found["features"]) == 12
    assert [one["properties"]["scale"] for one in found["features"]] == [10, 20] * 6
    own = scores.set_index(["scale", "place"])
    for top in nested["features"]:
        (child,) = top["properties"]["childObjects"]
        at = [one["id"] for one in found["features"]].index(top["id"])
        for given, one in ((top, found["features"][at]), (child, found["features"][at + 1])):
            place, properties = int(given["properties"]["name"].split()[-1]), one["properties"]
            assert one["geometry"] == given["geometry"] and one["id"] == given["id"]
            assert properties["score"] == own.score[properties["scale"], place]
            assert properties.get("parent") == (top["id"] if one is not found["features"][at] else None)
            assert not {"measurements", "childObjects"} & set(properties)
    assert [one["properties"].get("nuclei") for one in found["features"]] == [
        None,
        3,
        None,
        4,
        None,
        5,
        None,
        6,
        None,
        None,
        None,
        None,
    ]


def test_geopandas_reads_all_tiles_with_numbers(scores, flat):
    geopandas = pytest.importorskip("geopandas", reason="needs geopandas, of the extra [interop]")
    table = geopandas.read_file(flat)
    assert len(table) == 12 and table["scale"].tolist() == [10, 20] * 6
    assert table.score.dtype == table.nuclei.dtype == float and table.nuclei.notna().sum() == 4
    expected = scores.sort_values(["place", "scale"]).score
    np.testing.assert_allclose(table.score, expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(table.bounds.maxx - table.bounds.minx, [512, 256] * 6)
    assert table.parent.notna().tolist() == [False, True] * 6


def test_both_files_are_geojson_by_its_standard(flat):
    models = pytest.importorskip("geojson_pydantic", reason="needs geojson-pydantic, of the extra [interop]")
    for path, count in ((flat, 12), (flat.parent / "s.svs.geojson", 6)):
        assert len(models.FeatureCollection.model_validate_json(path.read_text()).features) == count


@pytest.mark.parametrize(
    "kind, names", [("nested", ["s.geojson"]), ("flat", ["s_flat.geojson"]), ("both", ["s.geojson", "s_flat.geojson"])]
)
def test_only_what_is_asked_for_is_written_and_what_was_before_goes(scores, tmp_path, kind, names):
    features = qupath_features(scores, SIDE)
    both = {path.name: path.read_bytes() for path in write_qupath(features, tmp_path / "s.geojson")}
    (tmp_path / "other.geojson").write_text("mine")
    assert [path.name for path in write_qupath(features, tmp_path / "s.geojson", kind)] == names
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "other.geojson": b"mine",
        **{name: both[name] for name in names},
    }


def test_another_kind_is_one_line(scores, tmp_path):
    with pytest.raises(InputError, match="^qupath is 'tall': it is nested, flat or both$"):
        write_qupath(qupath_features(scores, SIDE), tmp_path / "s.geojson", "tall")
    assert not list(tmp_path.iterdir())


def test_lazyslide_takes_every_tile(flat, tmp_path):
    lazyslide = pytest.importorskip("lazyslide", reason="needs lazyslide, of the extra [lazyslide]")
    from wsidata import open_wsi

    wsi = open_wsi(make_slide(tmp_path / "s.svs", 1536, 1024), store=str(tmp_path / "s.zarr"))
    lazyslide.io.load_annotations(wsi, flat, join_with=[], key_added="scores")
    table = wsi.shapes["scores"]
    assert len(table) == 12 and table.nuclei.notna().sum() == 4 and table.score.dtype == float


def test_single_scale_tiles_stand_at_the_top(scores):
    found = qupath_features(scores[scores.scale == 20], SIDE)
    assert len(found["features"]) == 6 and "childObjects" not in found["features"][0]["properties"]


def test_names_with_signs_and_of_any_language_come_out_as_written_and_harmless(scores, tmp_path):
    """A name of a slide is nowhere but in ids; one of a measurement is text in JSON, whatever its signs are."""
    named = scores.assign(slide_id="<script>alert(4)</script>", label='导管癌 <b>&"|\n', patient_id="../x")
    odd = '核 <img src=x onerror="alert(4)"> & | \\ \u2028'
    nuclei = pd.DataFrame({"scale": 20, "place": range(6), odd: 1.5})
    path, _ = write_qupath(qupath_features(named, SIDE, nuclei), tmp_path / "导管癌 & 小叶癌.geojson")
    text = path.read_text(encoding="utf-8")
    found = json.loads(text)
    jsonschema.validate(found, SCHEMA)
    assert found["features"][0]["properties"]["childObjects"][0]["properties"]["measurements"][odd] == 1.5
    assert text.isascii(), "read alike whatever the reader takes for the encoding"
    assert "script" not in text and "导管癌" not in text, "neither slide nor class nor patient is in the file"
    empty = {"type": "FeatureCollection", "features": []}
    assert [written.read_text() for written in write_qupath(empty, path)] == [json.dumps(empty)] * 2


@pytest.mark.slow
def test_both_lie_over_what_qupath_shows_of_a_slide_that_begins_elsewhere(tmp_path):
    """A Leica SCN: QuPath crops the slide to its bounds and counts from there."""
    image = texture(1024, 1536, coverage=1)
    with open_slide(write_scn(tmp_path / "a.scn", image, (2048, 1088))) as slide:
        tiles = select_tiles(slide, 1000, 128, scales=(10,))
        bounds, mpp = slide.bounds, slide.mpp
    x, y = tiles.coords[10].T
    scores = pd.DataFrame(
        dict(
            slide_id="a",
            scale=10,
            place=range(len(x)),
            x=x,
            y=y,
            score=tiles.density,
            normalised=normalise(tiles.density),
        )
    )
    assert x.min() == 2048 and y.min() < 1088 < bounds[1] + 1, "a tile juts out of the image at its upper edge"
    paths = write_qupath(qupath_features(scores, {10: 256}), tmp_path / "a.geojson", origin=bounds[:2])
    corners, whole = (
        np.array([f["geometry"]["coordinates"][0][0] for f in json.loads(path.read_text())["features"]])
        for path in paths
    )
    np.testing.assert_array_equal(corners, np.stack([x, y], 1) - [2048, 1088])
    np.testing.assert_array_equal(whole, np.stack([x, y], 1), "others count from the corner of the whole slide")
    for (left, top), score in list(zip(corners, tiles.density))[:10:3]:
        cut = image[max(top, 0) : top + 256, left : left + 256]  # what QuPath shows there
        assert abs((cut.min(2) < 200).mean() * len(cut) / 256 - score) < 0.08
    path = write_heatmap(scores, {10: 256}, bounds, mpp, tmp_path / "a.ome.tif")
    with tifffile.TiffFile(path) as tif:
        shown = tif.series[0].asarray().reshape(64, 96)
        assert 'PhysicalSizeX="8.0"' in tif.ome_metadata, "as large as what QuPath shows: 1536 x 1024 px of 0.5 um"
    for (left, top), value in zip(corners, scores.normalised):
        assert shown[max(top // 16, 0), left // 16] == pytest.approx(value, abs=1e-6)
    assert np.isfinite(shown).sum() == sum(16 * ((min(top + 256, 1024) - max(top, 0)) // 16) for _, top in corners)


def test_two_slides_are_refused(scores):
    with pytest.raises(InputError, match="2 slides"):
        qupath_features(pd.concat([scores, scores.assign(slide_id="t")]), SIDE)


def test_the_heatmap_shows_each_tile_its_score_and_nothing_elsewhere(scores):
    image, step = heatmap(scores, SIDE, (0, 0, 2048, 1100))
    assert image.shape == (2, 69, 128) and step == 16
    for row in scores.itertuples():
        inside = image[int(row.scale == 20)][row.y // 16 + 1, row.x // 16 + 1]
        assert inside == pytest.approx(row.normalised, abs=1e-6)
    assert np.isnan(image[0][:, 97:]).all() and np.isfinite(image[0]).sum() == 6 * 32 * 32


@pytest.mark.slow
def test_the_ome_tiff_is_a_pyramid_that_says_its_pixel_size(scores, tmp_path):
    path = write_heatmap(scores, SIDE, (0, 0, 40000, 30000), 0.5, tmp_path / "s.ome.tif")
    with tifffile.TiffFile(path) as tif:
        assert tif.is_ome and tif.series[0].axes == "CYX" and len(tif.series[0].levels) == 4
        assert 'PhysicalSizeX="8.0"' in tif.ome_metadata and "score 20x" in tif.ome_metadata
        np.testing.assert_array_equal(tif.series[0].asarray(), heatmap(scores, SIDE, (0, 0, 40000, 30000))[0])
        assert tif.series[0].levels[1].shape == (2, 937, 1250)
