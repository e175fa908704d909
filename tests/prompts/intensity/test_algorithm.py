"""The array steps against SciPy and against results worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from benchmarks.literal_chain import BALL
from promptseg.boxes import box_volume
from promptseg.prompts.intensity import threads
from promptseg.prompts.intensity.algorithm import (
    between,
    box_of,
    clip_box,
    close_with_ball,
    close_with_ellipsoid,
    components,
    is_nearly_whole,
    largest_component_box,
    largest_component_boxes,
    mean_and_deviation,
    smooth,
    widen_box,
)
from promptseg.prompts.intensity.smoothing import gaussian_kernel

SHAPES = [(9, 31, 20), (1, 40, 17), (3, 5, 70), (40, 2, 1), (1, 1, 1), (7, 64, 130), (25, 18, 19)]


def random_mask(shape, share, seed=0):
    return np.random.default_rng(seed).random(shape) < share


# smoothing


@pytest.mark.parametrize("shape", SHAPES)
def test_smoothing_equals_scipys_to_the_last_bit_but_for_rare_roundings(shape):
    image = np.random.default_rng(1).uniform(0, 255, shape).astype(np.float32)

    expected = ndimage.gaussian_filter(image, 2.0, mode="reflect", truncate=4.0)

    # Only the order of additions differs: at most one unit in the last place, almost never.
    np.testing.assert_array_max_ulp(smooth(image), expected, maxulp=1)
    assert np.count_nonzero(smooth(image) != expected) <= 1


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.7, (0.0, 2.0, 0.5), (5.0, 0.0, 0.0)])
def test_smoothing_with_another_sigma_equals_scipys(sigma):
    image = np.random.default_rng(2).uniform(0, 255, (11, 13, 40)).astype(np.float32)

    np.testing.assert_array_max_ulp(
        smooth(image, sigma), ndimage.gaussian_filter(image, sigma, truncate=4.0), maxulp=1
    )


def test_smoothing_without_width_changes_nothing():
    image = np.random.default_rng(3).uniform(0, 255, (4, 6, 5)).astype(np.float32)

    np.testing.assert_array_equal(smooth(image, 0.0), image)


def test_the_kernel_is_that_of_a_smoothed_impulse():
    impulse = np.zeros(41)
    impulse[20] = 1

    expected = ndimage.gaussian_filter1d(impulse, 2.0, truncate=4.0)[12:29]

    np.testing.assert_allclose(gaussian_kernel(2.0), expected, rtol=1e-15)


def test_an_image_in_threads_is_smoothed_as_in_one(monkeypatch):
    image = np.random.default_rng(4).uniform(0, 255, (6, 33, 50)).astype(np.float32)
    alone = smooth(image)
    monkeypatch.setattr(threads, "WORTH_THREADS", 1)
    monkeypatch.setattr(threads, "_cores", lambda: 3)

    np.testing.assert_array_equal(smooth(image), alone)


def test_mean_and_deviation_are_numpys_in_double_precision():
    image = np.random.default_rng(5).gamma(2, 30, (7, 40, 31)).astype(np.float32)

    mean, deviation = mean_and_deviation(image)

    assert mean == pytest.approx(image.mean(dtype=np.float64), rel=1e-14)
    assert deviation == pytest.approx(image.std(dtype=np.float64), rel=1e-13)


@pytest.mark.parametrize("value", [0, 0.1, 7, 254.7, 255])
def test_a_constant_volume_has_a_deviation_of_exactly_zero(value):
    image = smooth(np.full((7, 30, 41), value, np.float32))

    assert mean_and_deviation(image) == (float(np.float32(value)), 0.0)


def test_thresholds_are_strict_and_not_rounded_to_the_images_type():
    image = np.array([[[1.0, 1.5, 2.0, np.nextafter(np.float32(1), np.float32(2))]]], np.float32)

    assert between(image, 1.0, 2.0).tolist() == [[[False, True, False, True]]]
    # 1 - 1e-12 rounds to 1 in float32, yet 1 lies above it.
    assert between(image, 1 - 1e-12, 2 + 1e-12).all()


# closing


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.005, 0.03, 0.5])
def test_closing_equals_scipys_on_a_padded_mask(shape, share):
    mask = random_mask(shape, share)
    padded = np.pad(mask, 6)
    expected = ndimage.binary_erosion(ndimage.binary_dilation(padded, BALL), BALL)

    np.testing.assert_array_equal(close_with_ball(mask, 3), expected[6:-6, 6:-6, 6:-6])


@pytest.mark.parametrize("radius", [1, 2, 2.5, 5])
def test_closing_with_another_radius_equals_scipys(radius):
    mask = random_mask((13, 30, 66), 0.02)
    reach = int(radius)
    grid = np.mgrid[-reach : reach + 1, -reach : reach + 1, -reach : reach + 1]
    ball = (grid**2).sum(axis=0) <= radius**2
    padded = np.pad(mask, 2 * reach)
    expected = ndimage.binary_erosion(ndimage.binary_dilation(padded, ball), ball)
    inner = slice(2 * reach, -2 * reach)

    np.testing.assert_array_equal(close_with_ball(mask, radius), expected[inner, inner, inner])


def test_a_ball_in_mm_closes_less_along_the_axis_of_large_spacing():
    # Radius 3 mm at 3.3 x 1.1 x 0.8 mm reaches 0 x 2 x 3 voxels, offsets within 9 mm^2.
    spacing = (3.3, 1.1, 0.8)
    mask = random_mask((8, 30, 41), 0.03)
    y, x = np.mgrid[-2:3, -3:4]
    element = ((1.1 * y) ** 2 + (0.8 * x) ** 2 <= 9)[None]
    padded = np.pad(mask, ((0, 0), (4, 4), (6, 6)))
    expected = ndimage.binary_erosion(ndimage.binary_dilation(padded, element), element)

    closed = close_with_ellipsoid(mask, 3.0, spacing)

    np.testing.assert_array_equal(closed, expected[:, 4:-4, 6:-6])


def test_closing_along_the_first_axis_alone():
    mask = np.zeros((9, 2, 3), bool)
    mask[[2, 6], 1, 1] = True

    closed = close_with_ellipsoid(mask, 2.0, (1.0, 5.0, 5.0))

    assert np.argwhere(closed).tolist() == [[z, 1, 1] for z in range(2, 7)]


def test_closing_with_radius_zero_returns_a_copy():
    mask = random_mask((3, 4, 5), 0.5)

    closed = close_with_ball(mask, 0)

    np.testing.assert_array_equal(closed, mask)
    assert not np.shares_memory(closed, mask)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 12)] * 2, st.integers(1, 70)))
def test_closing_contains_the_mask_and_closing_again_changes_nothing(seed, shape):
    mask = random_mask(shape, 0.05, seed)
    closed = close_with_ball(mask)

    assert (closed >= mask).all()
    np.testing.assert_array_equal(close_with_ball(closed), closed)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.permutations([0, 1, 2]))
def test_closing_does_not_know_the_axes(seed, axes):
    mask = random_mask((5, 9, 66), 0.04, seed)

    np.testing.assert_array_equal(
        close_with_ball(mask.transpose(axes)), close_with_ball(mask).transpose(axes)
    )


# components and boxes


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_components_are_scipys_in_the_same_order(shape, share):
    mask = random_mask(shape, share)
    expected, n = ndimage.label(mask, np.ones((3, 3, 3)))

    labels, counts = components(mask)

    np.testing.assert_array_equal(labels, expected)
    assert counts[0] == 0
    assert counts[1:].tolist() == np.bincount(expected.ravel(), minlength=n + 1)[1:].tolist()


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


def test_the_box_of_a_label_is_scipys():
    labels = np.random.default_rng(0).integers(0, 4, (5, 7, 9)) * (random_mask((5, 7, 9), 0.05))
    for label, slices in enumerate(ndimage.find_objects(labels), start=1):
        expected = [[s.start for s in slices], [s.stop for s in slices]]
        assert box_of(labels, label).tolist() == expected


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


@pytest.mark.parametrize(("wanted", "most"), [("1", 1), ("64", 64), ("", 64), ("many", 64)])
def test_omp_num_threads_lowers_the_number_of_threads(monkeypatch, wanted, most):
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)

    assert 1 <= threads._cores() <= most
