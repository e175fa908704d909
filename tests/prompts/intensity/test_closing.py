"""Closing against SciPy on a padded mask, and its identities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from benchmarks.literal_chain import BALL
from promptseg.prompts.intensity.closing import close_with_ball, close_with_ellipsoid
from tests.prompts.intensity.volumes import SHAPES, random_mask


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
