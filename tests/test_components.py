"""Connected components against SciPy and against results worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from promptseg.components import (
    components,
    largest_component_box,
    largest_component_boxes,
)
from promptseg.inference_plan import PostProcessing
from promptseg.postprocessing import postprocessed
from tests.prompts.intensity.volumes import SHAPES, random_mask


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_components_are_scipys_in_the_same_order(shape, share):
    mask = random_mask(shape, share)
    expected, n = ndimage.label(mask, np.ones((3, 3, 3)))

    labels, counts = components(mask)

    np.testing.assert_array_equal(labels, expected)
    assert counts[0] == 0
    assert counts[1:].tolist() == np.bincount(expected.ravel(), minlength=n + 1)[1:].tolist()


@pytest.mark.parametrize(
    "shape", [(1, 1, 17), (17, 1, 1), (1, 40, 1), (3, 1, 3), (1, 5, 3), (1, 1, 1)]
)
def test_components_of_masks_one_voxel_wide(shape):
    for seed in range(40):
        mask = np.random.default_rng(seed).random(shape) < 0.6
        labels, counts = components(mask)
        expected, n = ndimage.label(mask, np.ones((3, 3, 3)))
        np.testing.assert_array_equal(labels, expected)
        assert len(counts) == n + 1
        if n:
            steps = PostProcessing(largest_component=True, min_mm3=1.0)
            kept = postprocessed(mask, (1.0, 1.0, 1.0), steps)
            assert kept.dtype == bool and kept.sum() == counts.max()
            assert not (kept & ~mask).any()


@pytest.mark.parametrize("axes", [(2, 1, 0), (1, 0, 2)])
def test_components_of_a_transposed_view_are_numbered_in_raster_order(axes):
    mask = random_mask((8, 12, 9), 0.05).transpose(axes)

    np.testing.assert_array_equal(components(mask)[0], ndimage.label(mask, np.ones((3, 3, 3)))[0])


def test_voxels_that_touch_at_a_corner_are_one_component():
    mask = np.zeros((3, 4, 5), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True

    box, voxels = largest_component_box(mask)

    assert box.tolist() == [[0, 0, 0], [3, 3, 3]]
    assert voxels == 3


def test_of_two_equal_components_the_first_in_raster_order_is_chosen():
    mask = np.zeros((5, 6, 7), bool)
    mask[3, 1, 1:4] = True
    mask[1, 4, 3:6] = True  # as large, and met first: z is the slowest axis

    assert largest_component_box(mask)[0].tolist() == [[1, 4, 3], [2, 5, 6]]
    assert [box[0].tolist() for box, _ in largest_component_boxes(mask)] == [[1, 4, 3], [3, 1, 1]]


def test_components_are_sorted_by_size_and_small_ones_left_out():
    mask = np.zeros((4, 9, 12), bool)
    mask[0, 0, :2] = True  # 2
    mask[2:4, 4:7, 0:2] = True  # 12
    mask[0:3, 0:2, 8] = True  # 6
    mask[3, 8, 11] = True  # 1

    found = largest_component_boxes(mask)

    assert [voxels for _, voxels in found] == [12, 6, 2, 1]
    assert found[1][0].tolist() == [[0, 0, 8], [3, 2, 9]]
    assert [voxels for _, voxels in largest_component_boxes(mask, most=2)] == [12, 6]
    assert [voxels for _, voxels in largest_component_boxes(mask, min_voxels=6)] == [12, 6]
    assert largest_component_boxes(mask, min_voxels=13) == []


def test_an_empty_mask_has_no_component():
    mask = np.zeros((2, 3, 4), bool)

    assert largest_component_box(mask) is None
    assert largest_component_boxes(mask) == []
    assert components(mask)[1].tolist() == [0]
