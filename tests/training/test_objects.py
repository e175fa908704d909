"""Objects without names lie where they should, and are what they are said to be."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.optimize import linprog

from promptseg.training.objects import (
    BLOCK,
    FEWEST_VOXELS,
    component,
    cut,
    supervoxel,
    unnamed_object,
)

CORNERS_TOUCH = np.ones((3, 3, 3))
seeds = st.integers(0, 2**32 - 1)


def random_mask(seed, shape=(6, 9, 8), fraction=0.15):
    mask = np.random.default_rng(seed).random(shape) < fraction
    mask[2, 3, 4] = True
    return mask


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_a_component_is_one_of_scipys(seed):
    mask = random_mask(seed)
    part = component(mask, np.random.default_rng(seed + 1))
    labels, _ = ndimage.label(mask, CORNERS_TOUCH)
    (number,) = np.unique(labels[part])
    assert number > 0
    np.testing.assert_array_equal(part, labels == number)


def test_every_component_is_drawn_alike_whatever_its_size():
    mask = np.zeros((4, 8, 12), bool)
    mask[0, 0, 0] = mask[2:, 3:7, 5:11] = True
    rng = np.random.default_rng(0)
    small = sum(component(mask, rng).sum() == 1 for _ in range(200))
    assert 70 < small < 130


@settings(deadline=None, max_examples=60)
@given(seeds)
def test_a_cut_part_is_on_one_side_of_a_plane(seed):
    mask = random_mask(seed, fraction=0.5)
    part = cut(mask, np.random.default_rng(seed + 1))
    rest = mask & ~part
    assert not part[~mask].any() and rest.any()  # the plane's own voxel is left
    if not part.any():
        return
    # a plane n x + d that is at least 1 on one side, and at most -1 on the other
    voxels = np.concatenate([np.argwhere(part), np.argwhere(rest)])
    side = np.repeat([1.0, -1.0], [part.sum(), rest.sum()])[:, None]
    rows = -side * np.column_stack([voxels, np.ones(len(voxels))])
    found = linprog(np.zeros(4), rows, -np.ones(len(rows)), bounds=(None, None))
    assert found.status == 0, found.message


@settings(deadline=None, max_examples=15)
@given(seeds, st.sampled_from([(10, 40, 36), (6, 9, 8), (70, 12, 90)]))
def test_a_supervoxel_lies_together_in_one_block(seed, shape):
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.uniform(0, 255, (1, *shape)), (0, 2, 2, 2))
    found = supervoxel(image, rng)
    assert found.shape == shape and found.dtype == bool and found.any()
    voxels = np.argwhere(found)
    assert (np.ptp(voxels, axis=0) < max(BLOCK)).all()


def test_a_supervoxel_follows_the_edges_of_the_image():
    # Two halves of 50 and 200: a piece of the image lies in one of them.
    image = np.full((1, 12, 20, 24), 50.0)
    image[..., 13:] = 200
    for seed in range(12):
        found = supervoxel(image, np.random.default_rng(seed))
        assert len(np.unique(image[0][found])) == 1


def test_an_image_of_one_intensity_has_no_supervoxels():
    rng = np.random.default_rng(0)
    assert not supervoxel(np.full((1, 5, 6, 7), 80, np.uint8), rng).any()
    mask, is_label = unnamed_object(
        np.full((1, 5, 6, 7), 80), np.zeros((5, 6, 7), np.uint8), {}, rng
    )
    assert not mask.any() and not is_label


def kinds_of_objects(count=400):
    """What is drawn from two labels, the second of two components, each with its kind."""
    segmentation = np.zeros((10, 16, 20), np.uint8)
    segmentation[1:6, 2:8, 2:9] = 1
    segmentation[7:, 1:5, 3:8] = segmentation[7:, 9:15, 12:19] = 4
    rng = np.random.default_rng(3)
    image = rng.uniform(0, 255, (1, *segmentation.shape))
    values = {"one": 1, "four": 4}
    for _ in range(count):
        mask, is_label = unnamed_object(image, segmentation, values, rng)
        inside = set(np.unique(segmentation[mask]).tolist())
        whole = [v for v in (1, 4) if (mask == (segmentation == v)).all()]
        yield mask, is_label, inside, whole


def test_objects_are_labels_components_unions_parts_and_pieces_of_the_image():
    seen = {"label": 0, "union": 0, "part": 0, "other": 0}
    for mask, is_label, inside, whole in kinds_of_objects():
        assert mask.sum() >= FEWEST_VOXELS
        if is_label:
            assert len(whole) == 1
            seen["label"] += 1
        elif inside == {1, 4}:
            seen["union"] += 1
        elif 0 not in inside and len(inside) == 1:
            seen["part"] += 1
        else:
            seen["other"] += 1
    # 0.3 labels, and what is too small; 0.1 each of components, unions and cuts; 0.4 pieces
    assert seen["label"] > 100 and seen["union"] > 20
    assert seen["part"] > 30 and seen["other"] > 100


def test_a_part_of_too_few_voxels_becomes_the_label():
    segmentation = np.zeros((6, 8, 9), np.uint8)
    segmentation[1:3, 2:4, 2:6] = 2  # 16 voxels
    rng = np.random.default_rng(1)
    image = np.full((1, *segmentation.shape), 9)
    for _ in range(40):
        mask, is_label = unnamed_object(image, segmentation, {"small": 2}, rng)
        assert is_label and (mask == (segmentation == 2)).all()
