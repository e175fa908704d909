"""What is drawn on slices: which voxels 2D boxes, lassos and scribbles stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptseg.prompts.drawn import (
    MOST_POINTS,
    flat_region,
    is_flat,
    lasso_region,
    scribble_points,
)

SHAPE = (5, 8, 11)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flat_box_says_what_is_inside_and_outside_on_its_slice(axis):
    box = np.array([[1.0, 2, 3], [4, 6, 9]])
    box[:, axis] = 3, 4
    region = flat_region(box, SHAPE, axis)
    for voxel in np.ndindex(SHAPE):
        inside = all(box[0][a] <= voxel[a] < box[1][a] for a in range(3))
        expected = 0 if voxel[axis] != 3 else 1 if inside else -1
        assert region[voxel] == expected, voxel


def test_corners_of_a_flat_box_are_rounded_and_clipped():
    region = flat_region(np.array([[2, -3.0, 1.4], [3, 4.6, 20.0]]), SHAPE, 0)
    assert (region[2, :5, 1:] == 1).all() and (region == 1).sum() == 5 * 10
    assert (region[2] == -1).sum() == 88 - 50 and not region[[0, 1, 3, 4]].any()


@pytest.mark.parametrize("number", [-1, 5, 40])
def test_what_is_drawn_outside_the_volume_says_nothing(number):
    box = np.array([[number, 2, 3], [number + 1, 6, 9]], float)
    assert not flat_region(box, SHAPE, 0).any()
    triangle = np.array([[number, 1, 1], [number, 6, 2], [number, 3, 9]], float)
    assert not lasso_region(triangle, SHAPE).any()


@pytest.mark.parametrize(
    ("box", "flat"),
    [
        ([[1, 2, 3], [2, 6, 9]], True),
        ([[1, 2, 3], [4, 6, 3.5]], True),
        ([[1, 2, 3], [2.5, 6, 9]], False),
    ],
)
def test_a_box_of_one_voxels_thickness_is_flat(box, flat):
    assert is_flat(np.array(box)) is flat


def crossings(point, vertices):
    """Whether a ray from a point crosses a closed polygon an odd number of times."""
    y, x = point
    odd = False
    for (y0, x0), (y1, x1) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            odd = not odd
    return odd


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(-1, 8), st.integers(-1, 11)), min_size=3, max_size=7),
    st.integers(0, 2),
)
def test_a_lasso_holds_the_voxels_whose_centres_it_surrounds(corners, axis):
    # off whole numbers, so that no centre lies on an edge that two voxels apart would share
    polygon = np.array(corners) + [[0.31, 0.17]] + 0.013 * np.arange(len(corners))[:, None]
    shape = np.insert(SHAPE[1:], axis, SHAPE[0])
    if np.ptp(polygon, axis=0).min() < 0.5:
        return
    region = lasso_region(np.insert(polygon, axis, 2, axis=1), shape)
    plane = np.moveaxis(region, axis, 0)[2]
    expected = [[crossings((y, x), polygon) for x in range(11)] for y in range(8)]
    np.testing.assert_array_equal(plane == 1, expected)
    np.testing.assert_array_equal(plane == -1, np.logical_not(expected))
    assert (np.delete(np.moveaxis(region, axis, 0), 2, axis=0) == 0).all()


def test_a_lasso_around_a_square_by_hand():
    square = np.array([[3, 1.5, 2.5], [3, 1.5, 6.5], [3, 4.5, 6.5], [3, 4.5, 2.5]])
    region = lasso_region(square, SHAPE)
    assert (region[3, 2:5, 3:7] == 1).all() and (region == 1).sum() == 12


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(*(st.integers(0, n - 1) for n in (20, 30, 40))), min_size=1, max_size=5))
def test_points_of_a_scribble_follow_its_line_closely(corners):
    corners = np.array(corners)
    points = scribble_points(corners)
    assert 1 <= len(points) <= MOST_POINTS and points.shape[1] == 3
    assert points[0].tolist() == corners[0].tolist()
    assert points[-1].tolist() == corners[-1].tolist() or len(points) == 1
    if len(corners) == 1:
        assert points.tolist() == corners.tolist()
        return
    # each is off by half a voxel at most along the two axes across a piece of the line
    start, along = corners[:-1], np.diff(corners, axis=0)
    length = np.maximum((along**2).sum(1), 1)
    for point in points:
        at = np.clip(((point - start) * along).sum(1) / length, 0, 1)
        nearest = start + at[:, None] * along
        assert np.linalg.norm(nearest - point, axis=1).min() <= 0.5**0.5 + 1e-9
    # neighbours are about two voxels apart, or more where the line is too long for that
    if len(points) > 1:
        apart = np.abs(np.diff(points, axis=0)).max(axis=1)
        total = np.abs(along).max(axis=1).sum() + len(along)
        assert apart.max() <= max(4, 2 * np.ceil(total / MOST_POINTS) + 2)


def test_a_straight_scribble_by_hand():
    points = scribble_points([[2, 3, 1], [2, 3, 9]])
    # nine voxels, five points: every second one
    assert points.tolist() == [[2, 3, x] for x in (1, 3, 5, 7, 9)]
    assert len(scribble_points([[0, 0, 0], [0, 0, 1000]])) == MOST_POINTS
