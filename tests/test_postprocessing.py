import numpy as np
import pytest
from scipy import ndimage

from promptseg.inference_plan import PostProcessing
from promptseg.postprocessing import postprocess, postprocessed
from tests.small_plans import small_plans

SPACING = (3.0, 1.0, 0.5)
PLANS = small_plans(labels={"1": 1, "2": 2, "3": 3, "4": 4})


@pytest.fixture
def scattered():
    """A ring with a hole, a large and a small blob, and a voxel of another label in the hole."""
    segmentation = np.zeros((6, 20, 30), np.uint8)
    segmentation[1:5, 2:10, 2:12] = 1
    segmentation[2:4, 4:8, 4:10] = 0  # the hole
    segmentation[3, 5, 5] = 2
    segmentation[1:4, 14:17, 20:24] = 1  # 36 voxels, 54 mm3
    segmentation[0, 0, 29] = 1  # 1 voxel, 1.5 mm3
    return segmentation


def test_the_largest_component_is_scipys(scattered):
    mask = scattered == 1
    components, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    largest = components == 1 + np.bincount(components.ravel())[1:].argmax()
    found = postprocessed(mask, SPACING, PostProcessing(largest_component=True))
    assert np.array_equal(found, largest) and found.sum() < mask.sum()


@pytest.mark.parametrize(("size", "kept"), [(0.1, 37), (1.5, 37), (1.6, 36), (54, 36), (54.1, 0)])
def test_components_below_a_volume_are_removed(scattered, size, kept):
    mask = scattered == 1
    mask[1:5, 2:10, 2:12] = False
    assert postprocessed(mask, SPACING, PostProcessing(min_mm3=size)).sum() == kept


def test_holes_are_filled_but_for_other_labels(scattered):
    filled = postprocess(scattered, SPACING, PLANS, {"1": PostProcessing(fill_holes=True)})
    assert (filled[2:4, 4:8, 4:10] == 1).sum() == 2 * 4 * 6 - 1
    assert filled[3, 5, 5] == 2
    changed = filled != scattered
    assert changed[2:4, 4:8, 4:10].sum() == changed.sum()


def test_labels_without_steps_stay_and_the_input_too(scattered):
    before = scattered.copy()
    result = postprocess(scattered, SPACING, PLANS, {"1": PostProcessing(min_mm3=1e9)})
    assert np.array_equal(scattered, before)
    assert not (result == 1).any() and np.array_equal(result == 2, before == 2)


def test_labels_are_processed_in_turn_as_whole_masks_would_be():
    segmentation = np.random.default_rng(7).integers(0, 5, (9, 11, 8)).astype(np.uint8)
    segmentation[segmentation == 3] = 0  # a label that is not there
    filled = PostProcessing(min_mm3=4, fill_holes=True)
    steps = {1: filled, 3: filled, 4: PostProcessing(largest_component=True)}
    expected = segmentation.copy()
    for value, of_label in steps.items():
        new = postprocessed(segmentation == value, SPACING, of_label)
        expected[(segmentation == value) & ~new] = 0
        expected[new & (expected == 0)] = value
    by_name = {str(value): of_label for value, of_label in steps.items()}
    np.testing.assert_array_equal(postprocess(segmentation, SPACING, PLANS, by_name), expected)
    assert (expected != segmentation).any()


def test_an_empty_mask_stays_empty():
    steps = PostProcessing(largest_component=True, min_mm3=5, fill_holes=True)
    assert not postprocessed(np.zeros((3, 4, 5), bool), SPACING, steps).any()
    assert steps.in_words == "largest component, components from 5 mm3, holes filled"
    assert PostProcessing().in_words == "none"
