"""Voxels and millimetres, compared with SimpleITK on images turned and flipped any way."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from promptseg.io.images import Geometry
from promptseg.prompts.world import (
    boxes_to_world,
    corners,
    extent_mm,
    voxel_to_world,
    world_to_boxes,
    world_to_voxel,
)

TURNED = Geometry(  # x of the array is y of the world, y is -x, z is -z
    shape=(4, 5, 6),
    spacing=(3.0, 2.0, 0.5),
    origin=(10.0, 20.0, 30.0),
    direction=(0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
)


@st.composite
def geometries(draw):
    """Any rotation, one axis flipped or none, any spacing, any origin."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    direction = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    direction[:, 0] *= draw(st.sampled_from((1, -1)))
    return Geometry(
        shape=tuple(int(n) for n in rng.integers(1, 60, 3)),
        spacing=tuple(rng.uniform(0.2, 6, 3).tolist()),
        origin=tuple(rng.uniform(-900, 900, 3).tolist()),
        direction=tuple(direction.ravel().tolist()),
    )


def itk_image(geometry: Geometry) -> sitk.Image:
    image = sitk.Image([int(n) for n in geometry.shape[::-1]], sitk.sitkUInt8)
    image.SetSpacing(geometry.spacing[::-1])
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    return image


@settings(deadline=None, max_examples=60)
@given(geometries(), st.integers(0, 2**32 - 1))
def test_points_go_where_simpleitk_takes_them_and_come_back(geometry, seed):
    points = np.random.default_rng(seed).uniform(-5, 65, (7, 3))
    world = voxel_to_world(points, geometry)
    image = itk_image(geometry)
    for point, mm in zip(points, world, strict=True):
        expected = image.TransformContinuousIndexToPhysicalPoint(point[::-1].tolist())
        np.testing.assert_allclose(mm, expected, rtol=0, atol=1e-6)
        back = image.TransformPhysicalPointToContinuousIndex(mm.tolist())
        np.testing.assert_allclose(back[::-1], point, rtol=0, atol=1e-6)
    np.testing.assert_allclose(world_to_voxel(world, geometry), points, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(geometries(), st.integers(0, 2**32 - 1))
def test_boxes_come_back_from_the_world_as_they_were(geometry, seed):
    rng = np.random.default_rng(seed)
    lower = rng.integers(0, 30, (4, 3))
    boxes = np.stack([lower, lower + rng.integers(1, 30, (4, 3))], axis=1)
    world = boxes_to_world(boxes, geometry)
    back = world_to_boxes(world, geometry)
    np.testing.assert_allclose(back, boxes, rtol=0, atol=1e-6)
    # The first corner is the outer corner of the first voxel: ITK's index -0.5, not 0.
    image = itk_image(geometry)
    outer = image.TransformContinuousIndexToPhysicalPoint((boxes[0, 0, ::-1] - 0.5).tolist())
    np.testing.assert_allclose(world[0, 0], outer, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(geometries(), st.integers(0, 2**32 - 1))
def test_a_world_box_lies_in_its_voxel_box_which_is_no_larger_than_needed(geometry, seed):
    rng = np.random.default_rng(seed)
    box_mm = np.sort(rng.uniform(-80, 80, (1, 2, 3)) + geometry.origin, axis=1)
    [box] = world_to_boxes(corners(box_mm), geometry)
    # The same by ITK, point by point: the inside stays inside, and each face is reached.
    shares = np.vstack([rng.uniform(size=(40, 3)), np.indices((2, 2, 2)).reshape(3, 8).T])
    image = itk_image(geometry)
    inside = np.array(
        [
            image.TransformPhysicalPointToContinuousIndex(point.tolist())[::-1]
            for point in box_mm[0, 0] + shares * (box_mm[0, 1] - box_mm[0, 0])
        ]
    )
    edges = inside + 0.5  # of voxels: voxel i reaches from i to i + 1
    assert (edges >= box[0] - 1e-6).all() and (edges <= box[1] + 1e-6).all()
    np.testing.assert_allclose(edges.min(axis=0), box[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(edges.max(axis=0), box[1], rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(geometries())
def test_the_extent_is_reached_by_the_outer_corners_of_the_image(geometry):
    size = np.array(geometry.shape[::-1])
    image = itk_image(geometry)
    outer = np.array(
        [
            image.TransformContinuousIndexToPhysicalPoint((corner * size - 0.5).tolist())
            for corner in np.indices((2, 2, 2)).reshape(3, 8).T
        ]
    )
    expected = [outer.min(axis=0), outer.max(axis=0)]
    np.testing.assert_allclose(extent_mm(geometry), expected, rtol=0, atol=1e-6)


def test_a_turned_image_by_hand():
    # Voxel (z, y, x) = (1, 2, 3): 1.5 mm along x of the array, 4 along y, 3 along z.
    # World x = 10 - 4, world y = 20 + 1.5, world z = 30 - 3.
    assert voxel_to_world(np.array([1, 2, 3]), TURNED).tolist() == [6.0, 21.5, 27.0]
    # From the outer edge of voxel 0 on: x 11 down to 1, y 19.75 up to 22.75, z 31.5 down to 19.5.
    assert extent_mm(TURNED).tolist() == [[1.0, 19.75, 19.5], [11.0, 22.75, 31.5]]
    # x 3 to 7 is y of the array: (11 - 7) / 2 to (11 - 3) / 2; y 20.75 to 21.25 is x: 2 to 3;
    # z 24 to 30 is z: (31.5 - 30) / 3 to (31.5 - 24) / 3, which is between voxels' edges.
    box = world_to_boxes(corners(np.array([[[3, 20.75, 24], [7, 21.25, 30]]])), TURNED)
    np.testing.assert_allclose(box, [[[0.5, 2, 2], [2.5, 4, 3]]], atol=1e-12)


def test_corners_are_all_eight():
    found = corners(np.array([[[1, 2, 3], [4, 5, 6]], [[0, 0, 0], [1, 1, 1]]]))
    assert found.shape == (2, 8, 3)
    expected = {(z, y, x) for z in (1, 4) for y in (2, 5) for x in (3, 6)}
    assert set(map(tuple, found[0].tolist())) == expected
    assert corners(np.zeros((0, 2, 3))).shape == (0, 8, 3)
