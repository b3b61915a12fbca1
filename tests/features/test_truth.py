"""The truth of a painted cohort, tile by tile; no other cohort has one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dmsmil.cohorts.made.demo import make_demo
from dmsmil.cohorts.made.painted import read_truth
from dmsmil.cohorts.made.planted import make_planted
from dmsmil.features.bags import toy_bags
from dmsmil.features.truth import known_shares, slide_shares
from dmsmil.jobs.files import InputError
from dmsmil.slides.store import Store


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_demo, make_planted])
def test_a_tiles_share_is_counted_on_the_map_of_its_slide(make, tmp_path):
    table = make(tmp_path, patients=4, side=1024, workers=1)
    bags = toy_bags(len(table), 4, 3)
    corners = torch.tensor([[128, 256], [512, 256], [256, 512], [512, 512]])
    bags = replace(
        bags, slide_ids=table.slide_id.tolist(), store=Store(tmp_path, 128), coords=corners.expand(len(table), 2, 4, 2)
    )
    shares = known_shares(bags, tmp_path)
    np.testing.assert_array_equal(shares, slide_shares(bags, tmp_path))
    for row, slide_id in enumerate(bags.slide_ids):
        signal = read_truth(tmp_path, slide_id)["signal"]
        for s, side in enumerate((256, 128)):
            for tile, (x, y) in enumerate(corners.tolist()):
                if bags.mask[row, s, tile]:
                    part = signal[y // 16 : (y + side) // 16, x // 16 : (x + side) // 16]
                    assert shares[row, s, tile] == pytest.approx(part.mean())
                else:
                    assert np.isnan(shares[row, s, tile])
    assert 0 < np.nanmean(shares) < 1


@pytest.mark.slow
def test_no_other_cohort_has_a_truth_and_half_a_truth_is_refused(tmp_path):
    bags = replace(toy_bags(4, 4, 3), store=Store(tmp_path, 128))
    assert known_shares(bags, tmp_path / "cohort") is None
    table = make_demo(tmp_path, patients=4, side=1024, workers=1)
    assert known_shares(bags, tmp_path) is None, "slides of its own beside a demo that was there before"
    mixed = replace(bags, slide_ids=[table.slide_id[0], *bags.slide_ids[1:]])
    with pytest.raises(InputError, match=f"no truth for slide {bags.slide_ids[1]}") as error:
        known_shares(mixed, tmp_path)
    assert "\n" not in str(error.value)
