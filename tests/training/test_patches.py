import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from promptseg.boxes import mask_box
from promptseg.preprocessing.dataset import PreprocessedDataset
from promptseg.preprocessing.patch import cut_patch
from promptseg.training.patches import carry_box, faces_before, mirrored, zoom_in, zoom_out
from tests.training.samples import sample_with


def test_a_box_is_carried_with_its_object():
    # The object moves from z 10..20 to z 30..45, from y 0..4 to 2..4 and not along x. The box
    # reached 2 beyond it in z, and began 1 after it; in y it was a voxel narrower on both sides.
    before = np.array([[10, 0, 0], [20, 4, 5.0]])
    after = np.array([[30, 2, 0], [45, 4, 5.0]])
    box = np.array([[11, 1, 0], [22, 3, 5.0]])
    moved = carry_box(box, before, after)
    np.testing.assert_allclose(moved, [[31, 2.5, 0], [47, 3.5, 5]])


def test_a_box_of_a_label_that_the_patch_cuts_keeps_its_size():
    # A label of z 38..98, of which the patch of 40 shows 2 voxels, and 9 after a rotation.
    before, after = np.array([[38, 9, 9], [40, 20, 20]]), np.array([[31, 9, 9], [40, 20, 20]])
    moved = carry_box(np.array([[38, 9, 9], [98, 20, 20]]), before, after)
    np.testing.assert_allclose(moved, [[31, 9, 9], [98, 20, 20]])


def test_the_faces_of_an_object_before_are_its_own_or_the_borders_of_the_patch():
    size = (20, 20, 20)
    # z: cut by the patch (0..20) at its upper face, beyond which the margin shows 4 voxels more.
    # y: entirely in view. x: began in the margin.
    inside = np.array([[12, 3, 0], [20, 9, 8]])
    around = np.array([[12, 3, -3], [24, 9, 8]])
    whole = np.array([[12, 3, -3], [31, 9, 8.0]])
    # Shrunk: nothing is cut but the upper face in z.
    after = np.array([[11, 5, 2], [20, 9, 9]])
    before = faces_before(inside, around, after, size)
    np.testing.assert_array_equal(before, [[12, 3, -3], [20, 9, 8]])
    np.testing.assert_array_equal(carry_box(whole, before, after), [[11, 5, 2], [31, 9, 9]])
    # Grown: in x it is cut as well, and stays 3 voxels longer than what is seen.
    after = np.array([[13, 1, 0], [20, 11, 9]])
    before = faces_before(inside, around, after, size)
    np.testing.assert_array_equal(carry_box(whole, before, after), [[13, 1, -3], [31, 11, 9]])
    # What was in the margin alone has nothing but its own faces.
    np.testing.assert_array_equal(faces_before(None, around, after, size), around)


@given(st.lists(st.integers(0, 9), min_size=18, max_size=18))
@settings(max_examples=200, deadline=None)
def test_a_carried_box_is_never_empty(numbers):
    corners = np.array(numbers).reshape(2, 3, 3)
    box, before, after = np.stack([corners.min(axis=0), corners.max(axis=0) + 1], axis=1)
    moved = carry_box(box, before, after)
    assert (moved[0] < moved[1]).all()


def test_zoom_in_cuts_image_segmentation_and_boxes_alike(planned_case):
    folder, plans, _ = planned_case
    dataset = PreprocessedDataset(folder)
    shape = dataset.properties("case_1")["shape"]
    segmentation = np.asarray(dataset.segmentation("case_1")[:])
    tight = mask_box(segmentation == 1)
    # raw and preprocessed grids are the same here, so a raw box is a preprocessed one
    assert list(shape) == dataset.properties("case_1")["raw"]["shape"]
    start = np.array([2, -3, 1])

    boxes = {"case_1": {"label_1": [tight.tolist()]}}
    sample = zoom_in(dataset, "case_1", plans, boxes, start)

    np.testing.assert_array_equal(
        sample.segmentation, cut_patch(segmentation, start, plans.patch_size)
    )
    expected = np.clip(tight - start, 0, plans.patch_size)
    np.testing.assert_allclose(sample.auto_boxes["label_1"], expected)
    np.testing.assert_array_equal(mask_box(sample.segmentation == 1), expected)

    # A box that begins in the margin keeps its face there, as its object does.
    start, margin = tight[0] + 2, np.array([1, 3, 2])
    sample = zoom_in(dataset, "case_1", plans, boxes, start, margin)
    around = mask_box(sample.segmentation == 1) - margin
    np.testing.assert_array_equal(around[0], [-1, -2, -2])
    np.testing.assert_allclose(sample.auto_boxes["label_1"], around)
    # One that meets nothing but the margin is there, too: the object may come into the patch.
    beyond = zoom_in(dataset, "case_1", plans, boxes, tight[1] + (0, 1, 1), margin)
    np.testing.assert_allclose(beyond.auto_boxes["label_1"][1], [0, -1, -1])


def test_zoom_out_shows_the_whole_volume_in_one_patch(planned_case):
    folder, plans, _ = planned_case
    small = dataclasses.replace(plans, patch_size=(8, 8, 8))
    dataset = PreprocessedDataset(folder)
    segmentation = np.asarray(dataset.segmentation("case_0")[:])
    tight = mask_box(segmentation == 2)

    sample = zoom_out(dataset, "case_0", small, {"case_0": {"label_2": [tight.tolist()]}})

    assert sample.image.shape == (1, 8, 8, 8)
    scaled = tight * (8 / np.array(segmentation.shape))
    np.testing.assert_allclose(sample.auto_boxes["label_2"], scaled)
    # resampled labels lie in the scaled box, to within half a voxel of rounding
    found = mask_box(sample.segmentation == 2)
    assert np.abs(found - scaled).max() <= 0.75


def test_boxes_of_whole_labels_follow_the_patch(planned_case):
    folder, plans, _ = planned_case
    dataset = PreprocessedDataset(folder)
    segmentation = np.asarray(dataset.segmentation("case_1")[:])
    start = mask_box(segmentation == 1)[0] + 1  # cuts the label's lower faces off
    sample = zoom_in(dataset, "case_1", plans, {}, start)
    assert (mask_box(sample.segmentation == 1)[0] == 0).all()
    assert set(sample.whole_boxes) == set(plans.labels)
    for name, value in plans.labels.items():
        expected = mask_box(segmentation == value) - start
        np.testing.assert_array_equal(sample.whole_boxes[name], expected)

    small = dataclasses.replace(plans, patch_size=(8, 8, 8))
    whole = zoom_out(dataset, "case_1", small, {}).whole_boxes["label_2"]
    expected = mask_box(segmentation == 2) * (8 / np.array(segmentation.shape))
    np.testing.assert_allclose(whole, expected)


def test_a_mirrored_sample_is_mirrored_in_all_its_parts():
    sample = sample_with(np.s_[2:5, 3:7, 4:9], {"organ": np.array([[1, 2, 3], [9, 8, 12.0]])})
    sample.whole_boxes["organ"] = np.array([[2, 3, 4], [42, 7, 9.0]])
    sample.image[0] = 100 * sample.segmentation
    turned = mirrored(sample, [0, 2])
    np.testing.assert_array_equal(turned.image[0], 100 * turned.segmentation)
    # 8 slices: 2..5 is 3..6 from the other end; 12 columns: 4..9 is 3..8
    np.testing.assert_array_equal(mask_box(turned.segmentation == 1), [[3, 3, 3], [6, 7, 8]])
    np.testing.assert_array_equal(turned.whole_boxes["organ"], [[-34, 3, 3], [6, 7, 8]])
    np.testing.assert_array_equal(turned.auto_boxes["organ"], [[-1, 2, 0], [7, 8, 9]])
    again = mirrored(turned, [0, 2])
    np.testing.assert_array_equal(again.segmentation, sample.segmentation)
    np.testing.assert_array_equal(again.whole_boxes["organ"], sample.whole_boxes["organ"])
