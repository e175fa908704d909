"""Orientations and turns against SimpleITK, on a grid whose axes all differ."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from promptseg.io.geometry import Geometry, turned_geometry
from promptseg.io.orientation import (
    ORIENTATIONS,
    Turn,
    orientation_of,
    turn_between,
    turn_onto,
)

SHAPE, SPACING = (3, 4, 5), (3.0, 2.0, 1.0)  # zyx
ARRAY = np.arange(60).reshape(SHAPE)


def stored(orientation: str) -> sitk.Image:
    """The same image of numbers, its voxels in another order."""
    image = sitk.GetImageFromArray(ARRAY.astype(np.int32))
    image.SetSpacing(SPACING[::-1])
    return sitk.DICOMOrient(image, orientation)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_image_stored_in_any_orientation_is_turned_as_simpleitk_does(orientation):
    image = stored(orientation)
    assert orientation_of(image.GetDirection()) == orientation
    array, turn = sitk.GetArrayFromImage(image), turn_between(orientation, "LPS")
    np.testing.assert_array_equal(turn.array(array), ARRAY)
    np.testing.assert_array_equal(turn.array(np.stack([array, -array]))[1], -ARRAY)
    np.testing.assert_array_equal(turn.back.array(ARRAY), array)
    assert turn.of_axes(image.GetSpacing()[::-1]) == SPACING
    assert turn.of_axes(array.shape) == SHAPE
    assert turn.changes_nothing == (orientation == "LPS")

    voxels = np.array([(0, 1, 2), (2, 3, 4), (1, 0, 3)])
    there = turn.back.points(voxels, SHAPE)
    np.testing.assert_array_equal(array[tuple(there.T)], ARRAY[tuple(voxels.T)])
    np.testing.assert_array_equal(turn.points(there, array.shape), voxels)
    box = np.array([(0, 1, 2), (2, 3, 5)])
    (z, y, x) = (slice(*ends) for ends in turn.back.boxes(box, SHAPE).T)
    np.testing.assert_array_equal(turn.array(array[z, y, x]), ARRAY[0:2, 1:3, 2:5])
    np.testing.assert_array_equal(turn.boxes(turn.back.boxes(box, SHAPE), array.shape), box)


@given(*3 * [st.sampled_from(ORIENTATIONS)])
def test_turns_one_after_the_other_are_one(first, second, third):
    two = turn_between(second, third).array(turn_between(first, second).array(ARRAY))
    np.testing.assert_array_equal(two, turn_between(first, third).array(ARRAY))
    assert turn_between(first, second).back == turn_between(second, first)


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5])
def test_one_file_is_turned_onto_another_with_its_place_even_if_both_are_oblique(orientation):
    oblique = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]

    def geometry_of(image: sitk.Image) -> Geometry:
        return Geometry(
            shape=image.GetSize()[::-1],
            spacing=image.GetSpacing()[::-1],
            origin=tuple(oblique @ image.GetOrigin()),
            direction=tuple((oblique @ np.reshape(image.GetDirection(), (3, 3))).ravel()),
        )

    straight, image = geometry_of(stored("LPS")), stored(orientation)
    other = geometry_of(image)
    turn = turn_onto(straight.direction, other.direction)
    np.testing.assert_array_equal(turn.array(sitk.GetArrayFromImage(image)), ARRAY)
    assert straight.difference_from(turned_geometry(other, turn)) is None
    assert other.difference_from(turned_geometry(straight, turn.back)) is None


def test_files_whose_axes_are_other_lines_are_not_turned():
    cosine, sine = np.cos(0.1), np.sin(0.1)
    tilted = [cosine, -sine, 0, sine, cosine, 0, 0, 0, 1]
    assert turn_onto(np.eye(3).ravel(), tilted) == turn_onto(tilted, np.eye(3).ravel()) == Turn()
    # two axes of one file, both nearest to one of the other
    assert turn_onto(np.eye(3).ravel(), [1, 0.9, 0, 0.5, 0.4, 0, 0, 0, 1]) == Turn()


def test_there_are_48_orientations():
    assert len(ORIENTATIONS) == len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize(("degrees", "expected"), [(0, "LPS"), (34, "LPS"), (36, None)])
def test_what_lies_too_oblique_has_no_orientation(degrees, expected):
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    direction = [cosine, -sine, 0, sine, cosine, 0, 0, 0, 1]  # about the axis to the head
    assert orientation_of(direction) == expected


def test_an_image_without_an_orientation_is_not_turned():
    assert turn_between(None, "RAS") == turn_between("RAS", "stored") == Turn()


def test_other_than_nine_cosines_are_refused():
    with pytest.raises(ValueError, match="expected 9 direction cosines, row by row, found 4"):
        orientation_of([1, 0, 0, 1])
