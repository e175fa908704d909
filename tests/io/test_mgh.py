"""FreeSurfer's files against nibabel, which has the format, and against NIfTI."""

import gzip
import struct

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from promptseg.io.dataset import problems_of_content
from promptseg.io.images import count_channels, read_image, read_segmentation, write_image

SHAPE = (7, 5, 4)  # x, y, z


def affine_of(degrees: float = 20.0) -> np.ndarray:
    """Conformed FreeSurfer axes (left, inferior, anterior), rotated, with three spacings."""
    axes = np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]])
    turn = Rotation.from_euler("xyz", [degrees, degrees / 2, -degrees], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes * (0.7, 1.5, 3.0)
    affine[:3, 3] = (-12.0, 34.5, 8.25)
    return affine


def save(path, dtype=np.int16, shape=SHAPE, affine=None) -> np.ndarray:
    values = np.random.default_rng(1).integers(0, 200, shape).astype(dtype)
    nibabel.MGHImage(values, affine_of() if affine is None else affine).to_filename(path)
    return values


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
@pytest.mark.parametrize("ending", [".mgz", ".mgh", ".MGZ"])
def test_values_and_places_are_nibabels_and_those_of_the_same_nifti(tmp_path, dtype, ending):
    path = tmp_path / f"a{ending}"
    values = save(tmp_path / f"a{ending.lower()}", dtype)
    (tmp_path / f"a{ending.lower()}").rename(path)
    nibabel.Nifti1Image(values, affine_of()).to_filename(tmp_path / "b.nii")

    array, geometry = read_image(path)
    expected, there = read_image(tmp_path / "b.nii")
    np.testing.assert_array_equal(array, expected)
    assert array.dtype == dtype and array.dtype.isnative and array.flags.c_contiguous
    assert geometry.shape == SHAPE[::-1] == there.shape
    assert geometry.difference_from(there, tolerance=1e-5) is None
    assert count_channels(path) == 1


def test_the_content_says_whether_it_is_packed(tmp_path):
    values = save(tmp_path / "a.mgh")
    content = (tmp_path / "a.mgh").read_bytes()
    (tmp_path / "plain.mgz").write_bytes(content)
    (tmp_path / "packed.mgh").write_bytes(gzip.compress(content))
    for name in ("plain.mgz", "packed.mgh"):
        np.testing.assert_array_equal(read_image(tmp_path / name)[0][0], values.T)


def test_frames_are_refused_unless_they_count_as_channels(tmp_path):
    from promptseg.io.images import read_channels

    values = save(tmp_path / "a.mgz", shape=(*SHAPE, 3))
    with pytest.raises(ValueError, match=r"a\.mgz.*expected three dimensions, found 4"):
        read_image(tmp_path / "a.mgz")
    found, _ = read_channels(tmp_path / "a.mgz", channels_last=True)
    np.testing.assert_array_equal(found, values.T)


def test_a_label_file_is_read_and_a_mask_of_it_written_as_nifti(tmp_path):
    values = save(tmp_path / "a.mgz", np.float32)
    found, geometry = read_segmentation(tmp_path / "a.mgz")
    np.testing.assert_array_equal(found, values.T)
    write_image(tmp_path / "m.nii.gz", found, geometry, like=tmp_path / "a.mgz")
    written = nibabel.load(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), values)
    np.testing.assert_allclose(written.affine, affine_of(), atol=1e-5)


def test_a_dataset_may_have_the_ending():
    content = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "a": 1}}
    assert problems_of_content({**content, "file_ending": ".mgz"}) == []


def changed(at: int, form: str, *values):
    return lambda content: (
        content[:at] + struct.pack(f">{form}", *values) + content[at + struct.calcsize(form) :]
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "it has 0 bytes"),
        (lambda content: content[:100], "is damaged or cut short"),
        (lambda content: content[:400], "is damaged or cut short"),
        (lambda content: content[: 284 + 2 * 140 - 1], "is damaged or cut short"),
        (lambda content: b"not an image" * 50, "is damaged or cut short"),
        (changed(4, "3i", 0, 5, 4), "is damaged or cut short"),
        (changed(4, "3i", -7, -5, 4), "is damaged or cut short"),
        (changed(4, "3i", 2**20, 2**20, 2**20), "is damaged or cut short"),
        (changed(20, "i", 77), "is damaged or cut short"),  # the type
        (changed(30, "f", np.nan), "axes are not perpendicular, or of no length"),
        (changed(30, "f", 0.0), "axes are not perpendicular, or of no length"),
        (changed(42, "f", 0.9), "axes are not perpendicular, or of no length"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_files_are_refused_by_name(tmp_path, damage, message, packed):
    save(tmp_path / "a.mgh")
    content = damage((tmp_path / "a.mgh").read_bytes())
    if packed and content:
        content = gzip.compress(content)
    (tmp_path / "a.mgh").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.mgh.*{message}"):
        read_image(tmp_path / "a.mgh")


def test_a_packed_file_that_is_cut_is_refused(tmp_path):
    save(tmp_path / "a.mgz")
    content = (tmp_path / "a.mgz").read_bytes()
    for length in (30, len(content) // 2, len(content) - 4):
        (tmp_path / "a.mgz").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"a\.mgz is damaged or cut short"):
            read_image(tmp_path / "a.mgz")
