"""Boxes against SciPy, plain masks and hand-worked numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import find_objects

from promptseg.boxes import (
    box_iou,
    box_recall,
    box_slices,
    box_volume,
    clip_box,
    clip_nonempty,
    enclosing_box,
    is_nearly_whole,
    label_boxes,
    mask_box,
    mirror_box,
    to_bbox,
    value_box,
    value_boxes,
    widen_box,
)

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


def test_box_iou_of_known_boxes():
    a = np.array([[0, 0, 0], [2, 4, 6]])
    b = np.array([[1, 2, 3], [3, 6, 9]])
    # Shared 1x2x3 = 6 of 48 + 48 - 6 = 90.
    np.testing.assert_allclose(box_iou(np.stack([a, b]), a), [1.0, 6 / 90])
    assert box_iou(a, a + 10) == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_label_boxes_are_those_of_each_labels_mask(dtype):
    segmentation = np.zeros((6, 9, 11), dtype)
    segmentation[1:3, 4, 2:9] = 3
    segmentation[5, 8, 10] = segmentation[0, 2, 1] = 40
    segmentation[3, 0, 5] = 77  # no label of these
    boxes = label_boxes(segmentation, {"b": 40, "absent": 2, "a": 3, "far": 100})
    assert list(boxes) == ["b", "absent", "a", "far"]
    assert boxes["absent"] is None and boxes["far"] is None
    for name, value in (("a", 3), ("b", 40)):
        np.testing.assert_array_equal(boxes[name], mask_box(segmentation == value))
    assert label_boxes(segmentation, {}) == {}


def test_the_boxes_of_values_are_scipys():
    rng = np.random.default_rng(0)
    segmentation = rng.integers(-1, 4, SHAPE) * (rng.random(SHAPE) < 0.05)
    expected = {}
    for value, slices in enumerate(find_objects(segmentation), start=1):
        if slices is not None:
            expected[value] = [[s.start for s in slices], [s.stop for s in slices]]

    found = value_boxes(segmentation)

    assert {value: box.tolist() for value, box in found.items()} == expected
    assert list(value_boxes(segmentation, 2)) == [value for value in expected if value <= 2]
    assert value_box(segmentation, 7) is None
    for value, box in found.items():
        np.testing.assert_array_equal(value_box(segmentation, value), box)
        assert (segmentation[box_slices(box)] == value).sum() == (segmentation == value).sum()


def test_recall_is_the_fraction_of_a_mask_in_any_of_several_boxes():
    mask = np.zeros((4, 5, 6), bool)
    mask[1, 1:4, 1:5] = mask[3, 4, 5] = True  # 13 voxels
    boxes = [[[1, 1, 1], [2, 3, 3]], [[1, 2, 2], [9, 3, 4]]]  # 4, and 1 more: one is shared
    assert box_recall(np.array(boxes), mask) == pytest.approx(5 / 13)
    moved = np.array(boxes) + (10, 20, 30)
    assert box_recall(moved, mask, corner=(10, 20, 30)) == pytest.approx(5 / 13)
    assert box_recall([], mask) == 0 and math.isnan(box_recall(boxes, mask & False))


def test_boxes_are_widened_clipped_and_measured():
    box = np.array([[2, 0, 4], [5, 3, 6]])

    assert widen_box(box, 5).tolist() == [[-3, -5, -1], [10, 8, 11]]
    assert widen_box(box, np.array([0, 1, 2])).tolist() == [[2, -1, 2], [5, 4, 8]]
    assert clip_box(widen_box(box, 5), (6, 7, 8)).tolist() == [[0, 0, 0], [6, 7, 8]]
    assert box_volume(box) == 3 * 3 * 2
    assert box_volume(np.array([[3, 0, 0], [2, 5, 5]])) == 0


@pytest.mark.parametrize(("upper", "nearly"), [(9, True), (8, False), (30, True)])
def test_a_box_of_nine_tenths_of_the_volume_is_nearly_the_whole(upper, nearly):
    assert is_nearly_whole(np.array([[0, -3, 0], [upper, 8, 7]]), (10, 8, 7)) is nearly


def test_a_box_that_is_clipped_to_nothing_can_be_kept_a_voxel_wide():
    beyond = np.array([[-4.0, 10.5, 3.5], [-2.0, 12.0, 3.75]])

    assert clip_box(beyond, SHAPE).tolist() == [[0, 9, 3.5], [0, 9, 3.75]]
    assert clip_nonempty(beyond, SHAPE).tolist() == [[0, 8, 3.5], [1, 9, 4.5]]


@given(corners, corners, st.sets(st.sampled_from([0, 1, 2])))
def test_a_mirrored_box_is_that_of_the_mirrored_mask(a, b, axes):
    box = np.sort([a, b], axis=0)
    mirrored = mirror_box(box, sorted(axes), SHAPE)

    expected = np.flip(mask_of(box), sorted(axes))
    np.testing.assert_array_equal(mask_of(mirrored.astype(int)), expected)


@given(corners, corners)
def test_acvl_utils_cuts_what_our_slices_cut(a, b):
    from acvl_utils.cropping_and_padding.bounding_boxes import crop_to_bbox

    box = np.sort([a, b], axis=0)
    volume = np.arange(np.prod(SHAPE)).reshape(SHAPE)

    np.testing.assert_array_equal(crop_to_bbox(volume, to_bbox(box)), volume[box_slices(box)])
