"""Boxes against SciPy, plain masks and hand-worked numbers."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import find_objects

from promptseg.boxes import box_iou, box_volume, enclosing_box, mask_box

SHAPE = (5, 9, 7)
corners = st.tuples(*(st.integers(0, n) for n in SHAPE))


def mask_of(box) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    (z0, y0, x0), (z1, y1, x1) = box
    mask[z0:z1, y0:y1, x0:x1] = True
    return mask


@given(corners, corners, corners, corners)
def test_volume_and_iou_are_those_of_the_boxes_as_masks(a, b, c, d):
    first, second = np.sort([a, b], axis=0), np.sort([c, d], axis=0)
    in_first, in_second = mask_of(first), mask_of(second)

    assert box_volume(first) == in_first.sum()
    union = (in_first | in_second).sum()
    expected = (in_first & in_second).sum() / union if union else math.nan
    np.testing.assert_equal(box_iou(first, second), expected)


def test_iou_takes_lists_and_counts_what_lies_outside_the_volume():
    # 4x4x4 = 64 voxels against 2x4x4 = 32, half of which (2x2x4 = 16) are in common.
    assert box_iou([[-2, 0, 0], [2, 4, 4]], [[0, 2, 0], [2, 6, 4]]) == 16 / (64 + 32 - 16)
    assert box_iou([[0, 0, 0], [2, 2, 2]], [[2, 0, 0], [4, 2, 2]]) == 0.0  # half-open: they touch
    # Continuous boxes: half a voxel moved along x, 3.5 of 4 in common.
    assert box_iou([[0, 0, 0], [1, 1, 4]], [[0, 0, 0.5], [1, 1, 4.5]]) == 3.5 / 4.5


def test_an_inverted_box_is_empty_also_when_two_axes_are_inverted():
    assert box_volume([[3, 3, 0], [1, 1, 5]]) == 0


def test_mask_box_agrees_with_scipy_and_is_none_for_an_empty_mask():
    rng = np.random.default_rng(8)
    for _ in range(20):
        mask = rng.random(SHAPE) < 0.02
        expected = find_objects(mask.astype(np.uint8))
        found = mask_box(mask)
        if not expected:
            assert found is None
            continue
        np.testing.assert_array_equal(found, np.transpose([(s.start, s.stop) for s in expected[0]]))
    assert mask_box(np.zeros(SHAPE, bool)) is None


@given(corners, corners)
def test_the_box_of_a_painted_box_is_that_box(a, b):
    box = np.sort([a, b], axis=0)
    if (box[0] < box[1]).all():
        np.testing.assert_array_equal(mask_box(mask_of(box)), box)


def test_enclosing_box_holds_every_box():
    boxes = [[[1, 2, 3], [4, 5, 6]], [[0, 3, 3], [2, 9, 5]]]
    np.testing.assert_array_equal(enclosing_box(boxes), [[0, 2, 3], [4, 9, 6]])
    np.testing.assert_array_equal(enclosing_box(boxes[:1]), boxes[0])
    assert enclosing_box([]) is None and enclosing_box(np.zeros((0, 2, 3))) is None
