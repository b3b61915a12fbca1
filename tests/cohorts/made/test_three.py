"""The cohort of three classes: three arrangements that differ in which side of the border is the round one."""

import cv2
import numpy as np
import pytest

from dmsmil.cohorts.made.histology import paint_slide
from dmsmil.cohorts.made.three import ARRANGEMENTS, LABELS, RECIPE, make_three, plan_three
from dmsmil.jobs.files import InputError


def test_patients_come_in_threes_one_of_each_class_of_one_site():
    plan = plan_three(18, 3)
    assert plan.label.value_counts().to_dict() == dict.fromkeys(LABELS, 6) and plan.slide_id.is_unique
    assert (plan.groupby(plan.patient // 3).site.nunique() == 1).all() and plan.site.nunique() == 3
    assert plan.label.map(dict(zip(LABELS, ARRANGEMENTS))).tolist() == plan.arrangement.tolist()
    means = plan_three(300).groupby("label")["size"].mean()  # says nothing of the class: 0.06 is one deviation
    assert means.abs().max() < 0.25
    assert plan_three(6, 3).equals(plan.head(6)), "a slide does not depend on how many there are"


def border(row, side=1536):
    """How long the border of the painted epithelium is, by its area, in the signal region; all else is the same."""
    _, truth = paint_slide(row, 3, side, RECIPE)
    x, y = (truth[name][truth["kind"] == "tumour"].astype(int) for name in "xy")
    cells = np.zeros((side, side), np.uint8)
    cells[y, x] = 1
    drawn = cv2.dilate(cells, np.ones((41, 41), np.uint8))
    contours, _ = cv2.findContours(drawn, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return sum(len(contour) for contour in contours) / drawn.sum()


@pytest.mark.slow
def test_a_maze_has_the_longest_border():
    """Of one patient painted in all three arrangements: as much epithelium, and far more of a border in the maze."""
    row = plan_three(6, 3).to_dict("records")[0]
    islands, maze, pockets = (border({**row, "arrangement": way}) for way in ARRANGEMENTS)
    assert maze > 1.2 * max(islands, pockets)


def test_two_of_each_class_are_needed(tmp_path):
    with pytest.raises(InputError, match="the three cohort needs at least 6 patients, got 5: two of each class"):
        make_three(tmp_path, 5)
    assert not list(tmp_path.iterdir())
