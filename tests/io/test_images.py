from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from promptseg.io.images import (
    FILE_ENDINGS,
    WRITABLE_ENDINGS,
    Geometry,
    count_channels,
    file_ending,
    read_image,
    read_segmentation,
    write_image,
)
from tests.real_data import require_real_data

SHAPE = (4, 5, 7)
GEOMETRY = Geometry(
    shape=SHAPE,
    spacing=(2.5, 0.8, 0.7),
    origin=(-12.5, 30.25, 7.0),
    direction=(0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0),
)


def random_volume(shape=SHAPE, dtype=np.int16):
    return np.random.default_rng(7).integers(-900, 2000, shape).astype(dtype)


@pytest.mark.parametrize("ending", WRITABLE_ENDINGS)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_values_type_and_geometry_survive_a_round_trip(tmp_path, ending, dtype):
    volume = random_volume(dtype=dtype)

    write_image(tmp_path / f"a{ending}", volume, GEOMETRY)
    image, geometry = read_image(tmp_path / f"a{ending}")

    assert image.shape == (1, *SHAPE) and image.dtype == dtype
    np.testing.assert_array_equal(image[0], volume)
    assert geometry.differences_from(GEOMETRY, tolerance=1e-6) == []


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    spacing=st.tuples(*[st.floats(0.05, 20)] * 3),
    origin=st.tuples(*[st.floats(-2000, 2000)] * 3),
    turns=st.tuples(*[st.floats(-180, 180)] * 3),
    ending=st.sampled_from(WRITABLE_ENDINGS),
)
def test_any_oblique_geometry_survives_a_round_trip(tmp_path, spacing, origin, turns, ending):
    matrix = Rotation.from_euler("zyx", turns, degrees=True).as_matrix()
    geometry = Geometry(
        shape=SHAPE, spacing=spacing, origin=origin, direction=tuple(matrix.ravel())
    )

    write_image(tmp_path / f"a{ending}", random_volume(), geometry)
    _, found = read_image(tmp_path / f"a{ending}")

    # NIfTI keeps float32, and the direction as a matrix and as a quaternion.
    np.testing.assert_allclose(found.spacing, spacing, rtol=1e-6)
    np.testing.assert_allclose(found.origin, origin, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(found.direction, geometry.direction, atol=2e-6)
    # What was read once and is written again does not drift.
    write_image(tmp_path / f"b{ending}", random_volume(), found)
    again = read_image(tmp_path / f"b{ending}")[1]
    assert again.differences_from(found, tolerance=1e-6) == []


def test_axes_are_zyx_as_an_independent_writer_says(tmp_path):
    # One bright voxel at x=5, y=2, z=1 of a 7x5x4 image, set by SimpleITK itself.
    itk_image = sitk.Image([7, 5, 4], sitk.sitkInt16)
    itk_image[5, 2, 1] = 9
    itk_image.SetSpacing((0.7, 0.8, 2.5))
    sitk.WriteImage(itk_image, str(tmp_path / "a.nrrd"))

    image, geometry = read_image(tmp_path / "a.nrrd")

    assert np.argwhere(image[0]).tolist() == [[1, 2, 5]]
    assert geometry.shape == (4, 5, 7)
    assert geometry.spacing == (2.5, 0.8, 0.7)


def test_channels_are_stacked_in_the_order_given(tmp_path):
    for i, name in enumerate(("b", "a")):
        write_image(tmp_path / f"{name}.mha", random_volume() + i, GEOMETRY)

    image, _ = read_image([tmp_path / "b.mha", tmp_path / "a.mha"])

    np.testing.assert_array_equal(image, [random_volume(), random_volume() + 1])


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_components_of_one_file_are_channels(tmp_path, ending):
    parts = [sitk.GetImageFromArray(random_volume() + i) for i in range(3)]
    sitk.WriteImage(sitk.Compose(parts), str(tmp_path / f"a{ending}"))

    image, _ = read_image(tmp_path / f"a{ending}")

    assert count_channels(tmp_path / f"a{ending}") == 3
    np.testing.assert_array_equal(image, [random_volume() + i for i in range(3)])


def test_channels_on_different_grids_are_refused_by_name(tmp_path):
    write_image(tmp_path / "a.mha", random_volume(), GEOMETRY)
    moved = Geometry(shape=SHAPE, spacing=(2.5, 0.8, 0.9), direction=GEOMETRY.direction)
    write_image(tmp_path / "b.mha", random_volume(), moved)

    with pytest.raises(ValueError, match=r"a\.mha and .*b\.mha are channels .* spacing \(2\.5"):
        read_image([tmp_path / "a.mha", tmp_path / "b.mha"])


# Segmentations


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ((0, 255), "float32", "uint8"),
        ((0, 300), "uint16", "int16"),
        ((0, -3), "float64", "int16"),
        ((0, 70000), "int64", "int32"),
    ],
)
def test_labels_come_as_the_smallest_integers(tmp_path, values, dtype, expected):
    volume = np.resize(values, SHAPE).astype(dtype)
    write_image(tmp_path / "a.nrrd", volume, GEOMETRY)

    segmentation, _ = read_segmentation(tmp_path / "a.nrrd")

    assert segmentation.dtype == expected
    np.testing.assert_array_equal(segmentation, volume)


@pytest.mark.parametrize("odd", [0.5, np.nan, np.inf])
def test_labels_that_are_no_whole_numbers_are_refused(tmp_path, odd):
    volume = np.zeros(SHAPE, np.float32)
    volume[1, 2, 3] = odd
    write_image(tmp_path / "a.nii.gz", volume, GEOMETRY)

    with pytest.raises(ValueError, match=r"a\.nii\.gz: .*must be whole numbers, found"):
        read_segmentation(tmp_path / "a.nii.gz")


def test_labels_beyond_32_bits_and_with_channels_are_refused(tmp_path):
    write_image(tmp_path / "a.nrrd", np.full(SHAPE, 2**40), GEOMETRY)
    two = sitk.GetImageFromArray(np.zeros((*SHAPE, 2), np.uint8), isVector=True)
    sitk.WriteImage(two, str(tmp_path / "b.nrrd"))

    with pytest.raises(ValueError, match=r"a\.nrrd: label values .* do not fit into 32 bits"):
        read_segmentation(tmp_path / "a.nrrd")
    with pytest.raises(ValueError, match=r"b\.nrrd: a segmentation has one channel, found 2"):
        read_segmentation(tmp_path / "b.nrrd")


def test_masks_are_written_as_0_and_1_and_half_floats_as_float32(tmp_path):
    mask = random_volume() > 0
    write_image(tmp_path / "mask.nii.gz", mask, GEOMETRY)
    write_image(tmp_path / "half.nii.gz", mask.astype(np.float16), GEOMETRY)

    assert read_segmentation(tmp_path / "mask.nii.gz")[0].dtype == np.uint8
    np.testing.assert_array_equal(read_segmentation(tmp_path / "mask.nii.gz")[0], mask)
    np.testing.assert_array_equal(read_image(tmp_path / "half.nii.gz")[0][0], mask)


# Refusals


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr", "a.hdr", "a.gipl", "a.jpg", "a", "a.nii.bz2"])
def test_formats_of_two_files_or_without_direction_are_not_written(tmp_path, name):
    with pytest.raises(ValueError, match=r"images are written as \.nii\.gz"):
        write_image(tmp_path / name, random_volume(), GEOMETRY)
    assert list(tmp_path.iterdir()) == []


def test_an_array_that_does_not_fit_its_geometry_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(7, 5, 4\), its geometry \(4, 5, 7\)"):
        write_image(tmp_path / "a.mha", random_volume().T, GEOMETRY)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("damage", ["text", "empty", "header only", "half"])
def test_a_damaged_file_gives_one_line_that_names_it(tmp_path, ending, damage):
    path = tmp_path / f"a{ending}"
    write_image(path, random_volume(), GEOMETRY)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "text": b"this was a picture once\n" * 40,
            "empty": b"",
            "header only": whole[:100],
            "half": whole[: len(whole) * 2 // 3],
        }[damage]
    )

    with pytest.raises(ValueError, match=rf"a{ending}.*(cannot be read|damaged|cut short)") as info:
        read_image(path)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_a_file_whose_compressed_bytes_were_changed_is_refused(tmp_path, ending):
    # ITK itself returns noise from the changed byte on, and says nothing.
    path = tmp_path / f"a{ending}"
    volume = random_volume((60, 70, 80))
    write_image(path, volume, Geometry(shape=volume.shape, spacing=(2.5, 0.8, 0.7)))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20] = bytes(255 - b for b in content[middle : middle + 20])
    path.write_bytes(content)

    with pytest.raises(ValueError, match=rf"a{ending} (is damaged|cannot be read)"):
        read_image(path)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd"])
def test_a_file_that_lacks_one_byte_is_refused(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    write_image(path, random_volume(), GEOMETRY)
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(ValueError, match=rf"a{ending} is (damaged or )?cut short"):
        read_image(path)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".hdr"])
@pytest.mark.parametrize("components", [1, 2])
def test_nan_and_infinite_voxels_are_read_as_they_are(tmp_path, ending, dtype, components):
    # ITK's own NIfTI reader turns them into 0.
    volume = np.random.default_rng(1).normal(size=(components, *SHAPE)).astype(dtype)
    volume[-1, 1, 2, 3] = np.nan
    volume[0, 3, 0, 6], volume[0, 0, 4, 0] = np.inf, -np.inf
    parts = [sitk.GetImageFromArray(part) for part in volume]
    image = sitk.Compose(parts) if components > 1 else parts[0]
    image.SetSpacing((0.7, 0.8, 2.5))
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"))

    found, geometry = read_image(tmp_path / f"a{ending}")

    np.testing.assert_array_equal(found, volume)
    np.testing.assert_allclose(geometry.spacing, (2.5, 0.8, 0.7))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_other_than_three_dimensions_are_refused(tmp_path, ending):
    image = sitk.GetImageFromArray(random_volume())
    sitk.WriteImage(sitk.JoinSeries([image, image]), str(tmp_path / f"four{ending}"))
    sitk.WriteImage(image[:, :, 1], str(tmp_path / f"two{ending}"))

    with pytest.raises(ValueError, match=r"four.*expected three dimensions, found 4.*\(7, 5, 4, 2"):
        read_image(tmp_path / f"four{ending}")
    with pytest.raises(ValueError, match=r"two.*expected three dimensions, found 2"):
        read_image(tmp_path / f"two{ending}")


@pytest.mark.parametrize("name", ["a.jpg", "a.mnc", "a.vtk", "a.PAR", "a.BRIK.gz", "a.dcm", "a"])
def test_files_of_other_formats_are_refused_before_any_library_tries(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything at all" * 50)
    for read in (read_image, read_segmentation, count_channels):
        with pytest.raises(ValueError, match=f"{name} is not an image that is read here.*convert"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.hdr"])
def test_what_does_not_begin_as_nifti_does_is_told_as_such(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything at all" * 50)
    with pytest.raises(ValueError, match=f"{name} cannot be read.*does not begin as NIfTI does"):
        read_image(tmp_path / name)


def test_complex_voxels_are_refused(tmp_path):
    image = sitk.GetImageFromArray(random_volume().astype(np.complex64))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))

    with pytest.raises(ValueError, match="complex numbers; save their magnitude"):
        read_image(tmp_path / "a.nrrd")


def test_missing_files_and_an_empty_list_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.nii\.gz: no such file"):
        read_image(tmp_path / "gone.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"gone\.nii\.gz: no such file"):
        count_channels(tmp_path / "gone.nii.gz")
    with pytest.raises(ValueError, match="at least one image file"):
        read_image([])


# Names


@pytest.mark.parametrize(
    ("name", "ending"),
    [("a.nii.gz", ".nii.gz"), ("A.NII", ".nii"), ("x.y.mha", ".mha"), ("a.gz", None), ("a", None)],
)
def test_endings_are_found_whatever_their_case(name, ending):
    assert file_ending(name) == ending
    assert ending is None or ending in FILE_ENDINGS


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("pyradiomics_brain1_image.nrrd", (25, 256, 256)),
        ("totalsegmentator_example_ct_sm.nii.gz", None),
        ("totalsegmentator_example_mr_sm.nii.gz", None),
    ],
)
def test_real_volumes_survive_a_change_of_format(tmp_path, name, shape):
    source = require_real_data("single") / name
    image, geometry = read_image(source)
    for ending in (".nii.gz", ".nrrd", ".mha"):
        write_image(tmp_path / f"a{ending}", image[0], geometry)
        again, found = read_image(tmp_path / f"a{ending}")
        np.testing.assert_array_equal(again, image)
        assert found.differences_from(geometry, tolerance=1e-5) == []
    assert shape is None or geometry.shape == shape


def test_a_copy_under_another_name_of_the_same_format_is_read(tmp_path):
    write_image(tmp_path / "a.nii.gz", random_volume(), GEOMETRY)
    shutil.copy(tmp_path / "a.nii.gz", tmp_path / "B.NII.GZ")
    np.testing.assert_array_equal(read_image(tmp_path / "B.NII.GZ")[0][0], random_volume())


@pytest.mark.parametrize("read", [read_image, read_segmentation, count_channels])
def test_a_file_that_may_not_be_read_is_told_as_such(tmp_path, monkeypatch, read):
    # the superuser, who runs these tests in a container, may read everything
    path = tmp_path / "a.nii.gz"
    write_image(path, np.ones((2, 3, 4), np.uint8), Geometry(shape=(2, 3, 4), spacing=(1, 1, 1)))
    monkeypatch.setattr(os, "access", lambda file, mode: False)
    with pytest.raises(PermissionError, match=r"a\.nii\.gz may not be read by this user"):
        read(path)
