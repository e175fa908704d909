"""However a file's axes lie, the same prompts give the same mask in the patient."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from promptseg.inference.predictor import Predictor
from promptseg.io.orientation import ORIENTATIONS, orientation_of
from promptseg.prompts.world import voxel_to_world, world_to_voxel
from tests.inference.fakes import LevelNetwork
from tests.small_plans import small_plans

SHAPE, SPACING = (9, 14, 21), (3.0, 1.2, 0.7)  # zyx
PLANS = small_plans(orientation="RPI")
CLICK, BOX = np.array([4.0, 6.0, 9.0]), np.array([(2.0, 3.0, 5.0), (7.0, 11.0, 16.0)])


def stored(orientation: str) -> sitk.Image:
    rng = np.random.default_rng(3)
    blobs = gaussian_filter(rng.normal(size=SHAPE), 1.5)
    image = sitk.GetImageFromArray((255 * (blobs - blobs.min()) / np.ptp(blobs)).astype(np.float32))
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin((11.0, -7.0, 3.0))
    return sitk.DICOMOrient(image, orientation)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor([LevelNetwork(click=2.5)], PLANS, keep_probabilities=True)


def in_voxels(places: np.ndarray, geometry, of_original) -> np.ndarray:
    return world_to_voxel(voxel_to_world(places, of_original), geometry).round(6)


def answers(predictor: Predictor, orientation: str, folder) -> list[np.ndarray]:
    """Masks of an image in a file, by name, a box and a click, and of a session; all as LPS."""
    path, original = folder / f"{orientation}.nii.gz", folder / "LPS.nii.gz"
    for name in (path, original):
        sitk.WriteImage(stored(name.name[:3]), str(name))
    _, of_original = predictor.prepare_files([original])
    prepared, geometry = predictor.prepare_files([path])
    assert orientation_of(geometry.direction) == orientation
    assert prepared.file_shape == geometry.shape
    predictor.set_prepared(prepared)

    click = in_voxels(CLICK, geometry, of_original)
    faces = in_voxels(BOX - 0.5, geometry, of_original) + 0.5
    box = np.stack([faces.min(axis=0), faces.max(axis=0)])
    result = predictor.predict(boxes={"liver": box}, points={"object": [click]}, labels=None)
    np.testing.assert_allclose(result.labels["liver"].prompts.boxes, [box])
    np.testing.assert_allclose(result.labels["object"].prompts.points, [click])
    by_name = predictor.predict(labels=["spleen"])
    session = predictor.new_object("lesion")
    found = [result.segmentation, by_name.segmentation]
    for change in (session.add_point, session.add_scribble, session.add_box, session.set_mask):
        given = {"add_point": click, "add_scribble": [click], "add_box": box}
        before = session.mask.copy()
        mask, changed = change(given.get(change.__name__, result.segmentation == 1))
        assert mask is session.mask and mask.shape == geometry.shape
        where = np.argwhere(mask != before)
        if len(where):
            np.testing.assert_array_equal(changed, [where.min(axis=0), where.max(axis=0) + 1])
        found.append(mask.astype(np.uint8))
    lower, region = by_name.probabilities.region("spleen")
    assert region.shape == geometry.shape and not np.any(lower)
    found.append((1000 * region).astype(np.int16))

    def as_lps(array: np.ndarray) -> np.ndarray:
        image = sitk.GetImageFromArray(array)
        image.SetDirection(geometry.direction)
        return sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS"))

    return [as_lps(array) for array in found]


@pytest.fixture(scope="module")
def expected(predictor, tmp_path_factory) -> list[np.ndarray]:
    masks = answers(predictor, "LPS", tmp_path_factory.mktemp("LPS"))
    assert all(0 < np.count_nonzero(mask) < mask.size for mask in masks[:4])
    return masks


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_file_in_any_orientation_gives_the_same_masks(predictor, expected, orientation, tmp_path):
    for found, mask in zip(answers(predictor, orientation, tmp_path), expected, strict=True):
        np.testing.assert_array_equal(found, mask)


def test_an_array_is_turned_where_its_direction_is_given(predictor, expected):
    image = stored("SLA")
    array, spacing = sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]
    predictor.set_image(array, spacing, image.GetDirection())
    turned = predictor.predict(labels=["spleen"]).segmentation
    back = sitk.GetImageFromArray(turned)
    back.SetDirection(image.GetDirection())
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(sitk.DICOMOrient(back, "LPS")), expected[1]
    )
    predictor.set_image(array, spacing)
    assert not np.array_equal(predictor.predict(labels=["spleen"]).segmentation, turned)
