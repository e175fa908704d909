"""Where a box's answer is looked for, and which patches may be asked about it."""

from __future__ import annotations

import numpy as np
import pytest

from promptseg.inference.queries import in_patch, patches_that_meet, region_of
from promptseg.inference.sliding_window import patches_of_regions
from promptseg.networks.prompt_encoder import Query

PATCH_SIZE = (8, 12, 16)


@pytest.mark.parametrize(
    ("lower", "upper", "margin"),
    [
        ((40, 40, 40), (45, 50, 60), (0.5, 1, 2)),  # a tenth of the sides 5, 10, 20
        ((40, 40, 40), (47.6, 51, 56), (0.2, 0.5, 0)),  # as much as the patch has room for
        ((40, 20, 10), (60, 140, 190), (2, 3, 4)),  # a quarter of the patch: 2, 3, 4
    ],
)
def test_a_box_is_widened_by_a_tenth_as_far_as_the_patch_allows(lower, upper, margin):
    query = Query(label=0, box=np.array([lower, upper], float))
    region = region_of(query, (100, 200, 300), PATCH_SIZE)
    np.testing.assert_allclose(region, [np.subtract(lower, margin), np.add(upper, margin)])


def test_only_patches_that_meet_the_box_are_kept_and_all_without_a_box():
    starts = np.array([[0, 0, 0], [8, 0, 0], [8, 12, 15], [9, 0, 0], [4, 5, 40]])
    query = Query(label=0, box=np.array([[8.0, 1, 2], [9.0, 30, 31]]))
    kept = patches_that_meet(query, starts, PATCH_SIZE)
    np.testing.assert_array_equal(kept, starts[[1, 2]])  # the others end at 8, begin at 9 or 40
    assert patches_that_meet(Query(label=0), starts, PATCH_SIZE) is starts


@pytest.mark.parametrize("seed", range(20))
def test_no_patch_sees_an_empty_box_and_together_they_see_all_of_it(seed):
    rng = np.random.default_rng(seed)
    shape, patch_size = np.array([60, 90, 300]), rng.integers(1, 12, 3)
    corners = np.sort(rng.uniform(0, shape, (2, 3)), axis=0)
    query = Query(label=0, box=corners + [[0], [0.1]])
    query.box[1] = np.minimum(query.box[1], shape)
    [starts] = patches_of_regions(shape, patch_size, [region_of(query, shape, patch_size)])
    starts = patches_that_meet(query, starts, patch_size)
    boxes = np.array([in_patch(query, start, patch_size).box for start in starts])
    assert (boxes[:, 0] < boxes[:, 1]).all()
    for axis in range(3):
        pieces = np.unique((boxes + starts[:, None])[:, :, axis], axis=0)
        assert pieces.min() == query.box[0, axis] and pieces.max() == query.box[1, axis]
        assert (pieces[1:, 0] <= np.maximum.accumulate(pieces[:, 1])[:-1]).all()  # no gap
