"""Slides to draw: each at its own magnification, and what was scanned of it."""

import numpy as np
import pandas as pd
import pytest

from dmsmil.features.views import pair_views, slide_views
from dmsmil.interpret.explain import extremes
from dmsmil.slides.stages import tile_cohort
from dmsmil.slides.store import Store
from tests.slides.pyramids import make_slide, texture, write_scn


@pytest.mark.slow
def test_a_view_is_read_as_its_slide_was_tiled(tmp_path):
    sizes = dict(width=1024, height=1024, coverage=1)
    paths = {
        "changer": make_slide(tmp_path / "changer.svs", **sizes, objective=20, mpp=0.25),
        "bare": make_slide(tmp_path / "bare.svs", **sizes, objective=None, mpp=None),
        "told": make_slide(tmp_path / "told.svs", **sizes, objective=40, mpp=0.25),
        "begins": write_scn(tmp_path / "begins.scn", texture(1024, 1024, coverage=1), (512, 256)),
    }
    cohort = pd.DataFrame(
        [
            {"slide_id": name, "patient_id": name, "label": "a", "path": str(path), "mpp": 0.5 * (name == "told")}
            for name, path in paths.items()
        ]
    )
    store = Store(tmp_path / "study", 64)
    tile_cohort(store, cohort, k=4, mpp=0.5, workers=1, report=lambda line: None)
    views = slide_views(cohort, store, slide_ids=list(paths), mpp=0.5)
    assert [view["slide_id"] for view in views] == list(paths)
    assert [view["mpp"] for view in views] == [0.25, 0.5, 0.5, 0.5]
    assert [view["bounds"] for view in views] == [(0, 0, 1024, 1024)] * 3 + [(512, 256, 1024, 1024)]
    for view in views:
        assert view["side"] == ({10: 256, 20: 128} if view["slide_id"] == "changer" else {10: 128, 20: 64})
        first = pair_views(view, store, 1)[0]["tiles"]
        x, y = view["coords"][10][0].tolist()
        scores = pd.DataFrame({"scale": 10, "place": [0], "x": [x], "y": [y], "normalised": 0.5})
        np.testing.assert_array_equal(extremes(view, scores, 1)[10]["highest"][0]["tile"], first[10])
