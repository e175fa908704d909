"""Prompts drawn from masks stay where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from promptseg.prompts.simulated import (
    error_click,
    error_scribble,
    jitter_box,
    loosen_box,
    middle_slice_box,
    sample_points,
)


@st.composite
def boxes_in_images(draw):
    shape = tuple(draw(st.integers(1, 40)) for _ in range(3))
    lower = [draw(st.integers(0, n - 1)) for n in shape]
    upper = [draw(st.integers(low + 1, n)) for low, n in zip(lower, shape, strict=True)]
    return shape, np.array([lower, upper])


@settings(deadline=None)
@given(boxes_in_images(), st.floats(0, 0.4), st.integers(0, 2**32 - 1))
def test_a_jittered_box_is_in_the_image_a_voxel_wide_and_no_face_moves_further(case, share, seed):
    shape, box = case
    moved = jitter_box(box, shape, np.random.default_rng(seed), share)
    assert moved.shape == (2, 3)
    assert (moved[0] >= 0).all() and (moved[1] <= shape).all()
    side = box[1] - box[0]
    assert (moved[1] - moved[0] >= 1 - 1e-9).all()
    # A face moves by a share of its side, or by a voxel where the box would become too thin.
    assert (
        np.abs(moved - box)
        <= np.maximum(share * side, np.where(side * (1 - 2 * share) < 1, 1, 0)) + 1e-9
    ).all()


def test_jitter_is_uniform_within_its_bound_for_every_face():
    box, shape = np.array([[10, 20, 30], [20, 60, 110]]), (100, 100, 200)
    rng = np.random.default_rng(0)
    moves = np.array([jitter_box(box, shape, rng) - box for _ in range(4000)])
    bound = 0.1 * np.array([10, 40, 80])
    assert (np.abs(moves) <= bound).all()
    # Uniform on [-b, b]: mean 0 and standard deviation b / sqrt(3), each within five errors.
    assert (np.abs(moves.mean(axis=0)) < 5 * bound / np.sqrt(3 * 4000)).all()
    np.testing.assert_allclose(
        moves.std(axis=0), np.broadcast_to(bound, (2, 3)) / 3**0.5, rtol=0.05
    )
    correlation = np.corrcoef(moves.reshape(4000, 6).T) - np.eye(6)
    assert np.abs(correlation).max() < 0.1


@pytest.mark.parametrize("box", [[[1, 2, 3], [1, 5, 6]], [[4, 2, 3], [1, 5, 6]]])
def test_an_empty_box_is_not_jittered(box):
    with pytest.raises(ValueError, match=r"box .* is empty along an axis \(zyx, upper exclusive\)"):
        jitter_box(np.array(box), (9, 9, 9), np.random.default_rng(0))


@settings(deadline=None)
@given(boxes_in_images(), st.integers(0, 2**32 - 1))
def test_a_loosened_box_holds_the_box_and_ends_in_the_image(case, seed):
    shape, box = case
    loose = loosen_box(box, shape, np.random.default_rng(seed))
    side = box[1] - box[0]
    assert (loose[0] <= box[0]).all() and (loose[1] >= box[1]).all()
    assert (loose[0] >= np.maximum(box[0] - 0.25 * side, 0) - 1e-9).all()
    assert (loose[1] <= np.minimum(box[1] + 0.25 * side, shape) + 1e-9).all()


def test_faces_of_a_loosened_box_move_apart_from_one_another():
    box, shape = np.array([[10, 20, 30], [20, 60, 110]]), (100, 100, 200)
    rng = np.random.default_rng(0)
    moves = np.array([loosen_box(box, shape, rng) - box for _ in range(2000)])
    # uniform from 0 to a quarter of 10, 40 and 80: an eighth in the mean
    mean = np.array([1.25, 5, 10])
    np.testing.assert_allclose(moves.mean(axis=0), [-mean, mean], rtol=0.05)
    correlation = np.corrcoef(moves.reshape(2000, 6).T) - np.eye(6)
    assert np.abs(correlation).max() < 0.1


def test_points_lie_inside_and_outside_as_asked_and_cover_the_mask():
    mask = np.zeros((3, 5, 7), bool)
    mask[1:, 2:4, 1:6] = True  # 20 voxels
    points, labels = sample_points(mask, 400, 30, np.random.default_rng(0))
    assert points.shape == (430, 3) and labels.tolist() == [1] * 400 + [0] * 30
    np.testing.assert_array_equal(mask[tuple(points.T)], labels == 1)
    counts = np.unique(points[:400], axis=0, return_counts=True)[1]
    assert len(counts) == 20 and counts.max() < 45  # 20 each expected


@pytest.mark.parametrize(
    ("fill", "foreground", "background", "expected"),
    [(False, 3, 2, [0, 0]), (True, 3, 2, [1, 1, 1]), (True, 0, 2, []), (False, 0, 0, [])],
)
def test_what_a_mask_does_not_have_is_not_drawn(fill, foreground, background, expected):
    mask = np.full((2, 3, 4), fill)
    points, labels = sample_points(mask, foreground, background, np.random.default_rng(0))
    assert labels.tolist() == expected and points.shape == (len(expected), 3)


def test_the_same_seed_draws_the_same_prompts():
    mask = np.random.default_rng(1).random((4, 6, 5)) < 0.3
    first, second = (sample_points(mask, 4, 4, np.random.default_rng(7))[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_box_of_the_challenge_encloses_the_median_slice_loosely():
    mask = np.zeros((9, 256, 512), bool)
    mask[1, 100:101, 200:201] = mask[2, 90:120, 180:190] = mask[7, 0:256, 0:512] = True
    found = {tuple(middle_slice_box(mask, np.random.default_rng(n)).ravel()) for n in range(60)}
    expected = {  # slices 1 to 7; pixels of slice 2, the second of three, plus 0 to 5 of 256
        (1, 90 - s, 180 - 2 * s, 8, 120 + s, 190 + 2 * s)
        for s in range(6)
    }  # fmt: skip
    assert found == expected


def test_a_box_of_the_challenge_ends_in_the_image():
    full = np.ones((2, 300, 400), bool)
    for seed in range(10):
        box = middle_slice_box(full, np.random.default_rng(seed))
        assert box.tolist() == [[0, 0, 0], [2, 300, 400]]


def test_a_perfect_mask_needs_no_click():
    mask = np.zeros((3, 5, 7), bool)
    mask[1, 2:4] = True
    assert error_click(mask, mask.copy()) is None


def test_a_click_goes_to_the_middle_of_the_largest_error_and_says_what_is_there():
    target, mask = np.zeros((9, 12, 15), bool), np.zeros((9, 12, 15), bool)
    target[2:7, 3:8, 4:9] = True  # 125 voxels, missing altogether: their middle is (4, 5, 6)
    mask[0:2, 0:2, 12:15] = True  # 12 voxels too many, elsewhere
    point, kind = error_click(mask, target)
    assert point.tolist() == [4, 5, 6] and kind == 1
    point, kind = error_click(mask | target, target)
    # Of 2x2x3 voxels all are one voxel from the border, as the border of the image counts too.
    assert point.tolist() == [0, 0, 12] and kind == 0


def test_the_border_of_the_image_counts_as_the_border_of_the_error():
    # Without padding the deepest voxel of this slab would lie at the end of the image, z = 8.
    target = np.zeros((9, 11, 13), bool)
    target[4:] = True
    point, kind = error_click(np.zeros_like(target), target)
    # z = 6 is the middle of 4 to 8, three voxels from either border; y = x = 2 is as far from one.
    assert point.tolist() == [6, 2, 2] and kind == 1


def test_components_that_touch_at_corners_are_one_error():
    target = np.zeros((4, 10, 12), bool)
    target[0, 0, 0:3] = target[1, 1, 3:5] = True  # 5 voxels, joined by a corner
    target[3, 5, 5:9] = True  # 4 voxels in a row
    point, _ = error_click(np.zeros_like(target), target)
    assert point.tolist() == [0, 0, 0]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_a_click_is_as_deep_as_any_voxel_of_the_largest_error(seed):
    rng = np.random.default_rng(seed)
    target, mask = rng.random((2, 6, 9, 8)) < 0.4
    point, kind = error_click(mask, target)
    error = mask ^ target
    assert error[tuple(point)] and kind == target[tuple(point)]
    labels, count = ndimage.label(np.pad(error, 1), np.ones((3, 3, 3)))
    sizes = ndimage.sum_labels(np.ones(labels.shape), labels, range(1, count + 1))
    own = labels[tuple(point + 1)]
    assert sizes[own - 1] == sizes.max()
    depth = ndimage.distance_transform_edt(labels == own)
    assert depth[tuple(point + 1)] == depth.max()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.9))
def test_a_scribble_runs_through_one_error_on_one_slice(seed, fraction):
    rng = np.random.default_rng(seed)
    target, mask = rng.random((2, 6, 9, 8)) < fraction
    points, kind = error_scribble(mask, target, rng)
    voxels = tuple(points.T)
    assert len(points) and (mask != target)[voxels].all() and (target[voxels] == kind).all()
    assert len(set(points[:, 0].tolist())) == 1
    # of one kind of error alone, and in one of its pieces
    labels, _ = ndimage.label((mask != target) & (target == kind), np.ones((3, 3, 3)))
    assert len(set(labels[voxels].tolist())) == 1


def test_a_scribble_goes_from_end_to_end_of_a_long_error():
    target = np.zeros((5, 9, 30), bool)
    target[2, 3:6, 4:26] = True
    points, kind = error_scribble(np.zeros_like(target), target, np.random.default_rng(0))
    assert kind == 1 and (points[:, 0] == 2).all()
    assert points[:, 2].tolist() == list(range(4, 26))
    turned, _ = error_scribble(
        np.zeros((5, 30, 9), bool), target.swapaxes(1, 2), np.random.default_rng(0)
    )
    assert turned[:, 1].tolist() == list(range(4, 26))


def test_scribbles_are_of_both_kinds_as_often_as_there_is_of_either():
    target, mask = np.zeros((2, 4, 10, 12), bool)
    target[:2, 2:7, 2:8] = True  # 60 voxels are missing
    mask[3, 2:6, 2:7] = True  # 20 are too many
    rng = np.random.default_rng(0)
    kinds = [error_scribble(mask, target, rng)[1] for _ in range(400)]
    assert 270 < sum(kinds) < 330
    assert error_scribble(target, target, rng) is None


def test_a_drawn_click_is_the_deepest_of_a_component_that_large_ones_are_likelier_to_be():
    target = np.zeros((5, 12, 20), bool)
    target[1:4, 2:5, 2:5] = True  # 27 voxels, the middle at (2, 3, 3)
    target[1:4, 8, 10:13] = True  # 9 voxels, all one deep: the first is (1, 8, 10)
    rng = np.random.default_rng(0)
    clicks = [tuple(error_click(np.zeros_like(target), target, rng)[0]) for _ in range(400)]
    assert set(clicks) == {(2, 3, 3), (1, 8, 10)}
    assert 270 < clicks.count((2, 3, 3)) < 330
