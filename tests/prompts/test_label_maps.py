"""Label maps as scribbles and as masks to correct, on images turned any way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label

from promptseg.io.images import Geometry, read_image, write_image
from promptseg.prompts.label_maps import _walk, mask_file, read_masks, read_scribbles
from tests.prompts.test_world import TURNED

LABELS = {"liver": 1, "spleen": 2, "lesion": 5}
SHAPE = (7, 11, 13)
OBLIQUE = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
FLIPPED = np.diag([-1.0, 1.0, -1.0])
PLAIN = Geometry(shape=SHAPE, spacing=(3.0, 2.0, 1.0))


def turned(direction: np.ndarray) -> Geometry:
    return Geometry(
        shape=SHAPE, spacing=(3.0, 1.0, 0.5), origin=(-9.0, 40.0, 7.5),
        direction=tuple(np.ravel(direction).tolist()),
    )  # fmt: skip


def save(folder: Path, array: np.ndarray, geometry: Geometry = PLAIN, ending: str = ".nii.gz"):
    write_image(folder / f"case{ending}", array, geometry)
    return folder / f"case{ending}"


def painted() -> np.ndarray:
    """A curve and a dab of the liver, a line of the lesion, and a cross of 7."""
    array = np.zeros(SHAPE, np.uint8)
    array[2, 3, 1:9], array[2, 4:9, 9], array[6, 10, 12] = 1, 1, 1
    array[1:5, 6, 3] = 5
    array[4, 2, 4:9], array[4, 0:5, 6] = 7, 7
    return array


def voxels_of(lines) -> set:
    return {tuple(position) for line in lines for position in np.rint(line).astype(int).tolist()}


def where(mask: np.ndarray) -> set:
    return set(map(tuple, np.argwhere(mask).tolist()))


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("direction", [np.eye(3), FLIPPED, OBLIQUE, OBLIQUE @ FLIPPED])
def test_scribbles_are_the_voxels_that_were_painted(tmp_path, ending, direction):
    array, geometry = painted(), turned(direction)
    path = save(tmp_path, array, geometry, ending)
    write_image(tmp_path / f"image{ending}", np.zeros(SHAPE, np.float32), geometry)
    _, of_image = read_image(tmp_path / f"image{ending}")
    found = read_scribbles(path, LABELS, "case").on(of_image)
    assert list(found) == ["liver", "lesion", "object 2"]
    for name, value, count in (("liver", 1, 2), ("lesion", 5, 1), ("object 2", 7, 1)):
        prompts = found[name]
        assert prompts.scribble_labels.tolist() == [1] * count + [0] * (4 - count)
        assert voxels_of(prompts.scribbles[:count]) == where(array == value)
        assert voxels_of(prompts.scribbles[count:]) == where((array != value) & (array != 0))


def test_a_background_value_is_background_for_every_label(tmp_path):
    array = painted()
    array[0, 0, :4] = 3
    found = read_scribbles(save(tmp_path, array), LABELS, "case", 3).on(PLAIN)
    assert list(found) == ["liver", "lesion", "object 2"]
    for prompts in found.values():
        kinds = zip(prompts.scribbles, prompts.scribble_labels, strict=True)
        outside = [line for line, kind in kinds if not kind]
        assert where(array == 3) <= voxels_of(outside)


def test_with_0_for_background_the_value_after_the_last_label_is_not_annotated(tmp_path):
    # As in nnU-Net, whose ignore label is the highest; so are the scribbles made for ACDC.
    array = np.full(SHAPE, 6, np.uint8)
    array[2, 3, 1:9], array[4, 4, 4:6], array[0, :3, 0] = 1, 2, 0
    path = save(tmp_path, array)
    found = read_scribbles(path, LABELS, "case", 0).on(PLAIN)
    assert list(found) == ["liver", "spleen"]
    assert voxels_of(found["liver"].scribbles[:1]) == where(array == 1)
    assert voxels_of(found["liver"].scribbles[1:]) == where((array == 2) | (array == 0))
    with pytest.raises(
        ValueError, match=r"the value 6 fills 99% of the image.*\(--background-value 0"
    ):
        read_scribbles(path, LABELS, "case")


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_a_walk_covers_its_component_in_steps_of_one_voxel(seed):
    rng = np.random.default_rng(seed)
    numbers, count = label(rng.random((4, 5, 6)) < rng.uniform(0.1, 0.6), np.ones((3, 3, 3)))
    for number in range(1, count + 1):
        voxels = np.argwhere(numbers == number)
        walk = _walk(voxels)
        assert voxels_of([walk]) == set(map(tuple, voxels.tolist()))
        assert (np.abs(np.diff(walk, axis=0)).max(axis=1) == 1).all() or len(walk) == 1
        assert len(walk) <= 2 * len(voxels) and walk[0].tolist() == voxels[0].tolist()


def test_a_line_is_walked_once_from_its_end():
    line = np.array([[0, 0, x] for x in range(9)])
    assert _walk(line).tolist() == line.tolist()


BAD = [
    (
        np.zeros(SHAPE, np.uint8),
        PLAIN,
        None,
        "has no scribble of a label: found the value 0 only, ",
    ),
    (np.full(SHAPE, 2, np.uint8), PLAIN, None, "the value 2 fills 100% of the image"),
    (
        np.eye(11, 13)[None].repeat(7, 0).astype(int) * 4,
        PLAIN,
        None,
        "unknown label.s. 4, by value;",
    ),
    (
        np.eye(11, 13)[None].repeat(7, 0).astype(int) * 4,
        PLAIN,
        4,
        "found background only, expected ",
    ),
    (np.eye(11, 13)[None].repeat(7, 0).astype(np.int16) * -1, PLAIN, None, "unknown label.s. -1"),
    (
        np.eye(11, 13)[None].repeat(7, 0).astype(np.float32) / 2,
        PLAIN,
        None,
        "must be whole numbers",
    ),
]


@pytest.mark.parametrize(("array", "geometry", "background", "message"), BAD)
def test_wrong_scribbles_are_named(tmp_path, array, geometry, background, message):
    path = save(tmp_path, array, geometry)
    with pytest.raises(ValueError, match=rf"case\.nii\.gz.*{message}"):
        read_scribbles(path, LABELS, "case", background)


def test_a_segmentation_is_not_taken_for_scribbles(tmp_path):
    array = np.zeros((60, 70, 120), np.uint8)
    array[:51, :, :60] = 2  # 214200 voxels, less than half of the image
    geometry = Geometry(shape=array.shape, spacing=(1.0, 1.0, 1.0))
    message = r"case.nii.gz: case 'case': 214200 voxels with the value 2 touch .*\(--initial\)"
    with pytest.raises(ValueError, match=message):
        read_scribbles(save(tmp_path, array, geometry), LABELS, "case")


OTHER_GRIDS = [
    (PLAIN, TURNED, r"shape \(7, 11, 13\) and \(4, 5, 6\) \(zyx, voxels\); expected one grid"),
    (PLAIN, Geometry(shape=SHAPE, spacing=(3.0, 2.0, 1.1)), r"spacing \(3, 2, 1\) and"),
    (PLAIN, Geometry(shape=SHAPE, spacing=PLAIN.spacing, origin=(0.0, 5.0, 0.0)), "origin"),
    (turned(FLIPPED), turned(np.eye(3)), "direction .*: save it on the image that is predicted"),
]


@pytest.mark.parametrize(("grid", "of_image", "message"), OTHER_GRIDS)
def test_a_label_map_on_another_grid_is_refused(tmp_path, grid, of_image, message):
    path = save(tmp_path, painted(), grid)
    given = read_scribbles(path, LABELS, "case")
    expected = rf"case.nii.gz: case 'case'.*the label map and its image differ: .*{message}"
    with pytest.raises(ValueError, match=expected):
        given.on(of_image)
    with pytest.raises(ValueError, match=expected):
        read_masks(path, LABELS, of_image, "case")


@pytest.mark.parametrize("direction", [np.eye(3), FLIPPED, OBLIQUE])
def test_masks_are_the_voxels_of_each_value(tmp_path, direction):
    array, geometry = painted(), turned(direction)
    path = save(tmp_path, array, geometry)
    found = read_masks(path, LABELS, geometry, "case")
    assert list(found) == ["liver", "lesion", "object 2"]
    for name, value in (("liver", 1), ("lesion", 5), ("object 2", 7)):
        assert found[name].dtype == bool
        np.testing.assert_array_equal(found[name], array == value)
    assert read_masks(save(tmp_path, array * 0, geometry), LABELS, geometry, "case") == {}


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.full(SHAPE, 3, np.uint8),
            "unknown label.s. 3, by value; the model knows 1 .liver., 2 ",
        ),
        (np.full(SHAPE, -2, np.int16), "expected values of labels, found -2"),
        (np.full(SHAPE, 0.5, np.float32), "labels must be whole numbers, found 0.5"),
    ],
)
def test_wrong_masks_are_named(tmp_path, array, message):
    path = save(tmp_path, array)
    with pytest.raises(ValueError, match=rf"case\.nii\.gz.*{message}"):
        read_masks(path, LABELS, PLAIN, "case")


def test_a_case_has_one_mask_or_none(tmp_path):
    assert mask_file(tmp_path, "case") is None
    path = save(tmp_path, painted())
    assert mask_file(tmp_path, "case") == path and mask_file(tmp_path, "cas") is None
    save(tmp_path, painted(), ending=".nrrd")
    with pytest.raises(ValueError, match="case 'case': found case.nii.gz, case.nrrd; keep one"):
        mask_file(tmp_path, "case")


def test_scribbles_and_masks_of_a_value_are_of_all_its_regions(tmp_path):
    array = np.zeros(SHAPE, np.uint8)
    array[2, 3, 1:9], array[1:5, 6, 3], array[4, 2, 4:9] = 1, 3, 4
    path, regions = save(tmp_path, array), {"whole": (1, 2, 3), "core": (2, 3), "hot": 3}
    masks = read_masks(path, regions, PLAIN, "case")
    assert list(masks) == ["whole", "core", "hot", "object 1"]
    expected = {"whole": [1, 3], "core": [3], "hot": [3], "object 1": [4]}
    scribbles = read_scribbles(path, regions, "case").on(PLAIN)
    assert list(scribbles) == list(expected)
    for name, values in expected.items():
        own, prompts = np.isin(array, values), scribbles[name]
        np.testing.assert_array_equal(masks[name], own)
        lines = zip(prompts.scribbles, prompts.scribble_labels, strict=True)
        found = {kind: set() for kind in (0, 1)}
        for line, kind in lines:
            found[int(kind)] |= voxels_of([line])
        assert found[1] == where(own) and found[0] == where(~own & (array > 0))
