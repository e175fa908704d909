from __future__ import annotations

import gzip
import os
import tracemalloc

import numpy as np
import pytest
import SimpleITK as sitk

from promptseg.io.images import read_image
from promptseg.io.itk import _quiet_itk, read_itk
from tests.io.test_images import random_volume
from tests.io.test_nifti import write_sheared


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_an_uncompressed_file_is_read_and_refused_cut_short(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(random_volume()), str(path), useCompression=False)
    np.testing.assert_array_equal(read_image(path)[0][0], random_volume())
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(ValueError, match=rf"a{ending} cannot be read"):
        read_image(path)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize("compressed", [False, True])
def test_checking_compressed_voxels_holds_no_second_copy(tmp_path, ending, compressed):
    path = tmp_path / f"a{ending}"
    noise = np.random.default_rng(0).integers(0, 256, (20, 400, 500), np.uint8)  # 4 MB either way
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(path), useCompression=compressed)
    tracemalloc.start()
    read_itk(path)  # ITK's own memory is not traced
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 3_900_000 and peak < 2_000_000


def test_reading_leaves_itks_settings_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setenv("ITK_NIFTI_SFORM_PERMISSIVE", "OFF")
    sitk.ProcessObject.SetGlobalWarningDisplay(True)
    write_sheared(tmp_path / "a.nii", 0.01)
    read_image(tmp_path / "a.nii")

    assert os.environ["ITK_NIFTI_SFORM_PERMISSIVE"] == "OFF"
    assert sitk.ProcessObject.GetGlobalWarningDisplay()


KINDS = [  # file, and whether its voxels are compressed
    *(("a.mha", True), ("a.mha", False), ("a.mhd", True), ("a.mhd", False), ("a.nhdr", True)),
    *(("a.nhdr", False), ("a.nrrd", True), ("a.nrrd", False), ("a.gipl", False)),
    ("a.gipl.gz", True),
]


def written(folder, name, compressed):
    """A file, and the one that has its voxels."""
    image = sitk.GetImageFromArray(random_volume())
    sitk.WriteImage(image, str(folder / name), useCompression=compressed)
    others = [path for path in folder.iterdir() if path.name != name]
    return folder / name, others[0] if others else folder / name


@pytest.mark.parametrize(("name", "compressed"), KINDS)
def test_a_file_that_is_cut_anywhere_is_refused_by_name(tmp_path, name, compressed):
    path, data = written(tmp_path, name, compressed)
    np.testing.assert_array_equal(read_image(path)[0][0], random_volume())
    whole = data.read_bytes()
    for length in (0, 1, 100, 200, 260, len(whole) // 2, *range(len(whole) - 12, len(whole))):
        data.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.[a-z.]+ .*(damaged|cut short|cannot be read)"):
            read_image(path)


@pytest.mark.parametrize(("name", "compressed"), [kind for kind in KINDS if kind[1]])
def test_compressed_voxels_that_were_changed_are_refused(tmp_path, name, compressed):
    path, data = written(tmp_path, name, compressed)
    whole = bytearray(data.read_bytes())
    for at in range(len(whole) // 2, len(whole), 7):
        changed = whole.copy()
        changed[at] ^= 255
        data.write_bytes(changed)
        try:  # some bytes do not matter, as the name of the system that packed it
            found = read_image(path)[0][0]
        except ValueError as error:
            assert name in str(error)
        else:
            np.testing.assert_array_equal(found, random_volume())


@pytest.mark.parametrize("count", [-1, 0, 1, 6, 99999, 2**40])
@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_a_number_of_axes_that_ends_the_library_is_refused(tmp_path, name, count):
    path, _ = written(tmp_path, name, False)
    content = path.read_bytes()
    content = content.replace(b"NDims = 3", b"NDims = %d" % count)
    path.write_bytes(content.replace(b"dimension: 3", b"dimension: %d" % count))
    with pytest.raises(ValueError, match=f"expected three dimensions, found {count}"):
        read_image(path)


def test_lines_before_compressed_voxels_are_left_out_as_the_header_says(tmp_path):
    voxels = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    header = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 3 4\nencoding: gzip\nline skip: 2\n"
    packed = gzip.compress(voxels.tobytes())
    for skipped in ("one\ntwo\n", "\n\n"):
        (tmp_path / "a.nrrd").write_bytes(f"{header}\n{skipped}".encode() + packed)
        np.testing.assert_array_equal(read_image(tmp_path / "a.nrrd")[0][0], voxels)
    (tmp_path / "a.nrrd").write_bytes(f"{header}\none\ntwo\n".encode() + packed[:-5])
    with pytest.raises(ValueError, match=r"a\.nrrd (is cut short|cannot be read)"):
        read_image(tmp_path / "a.nrrd")


@pytest.mark.parametrize("shown", [True, False])
def test_threads_that_read_at_once_leave_itks_warnings_as_they_were(shown):
    display = sitk.ProcessObject.GetGlobalWarningDisplay
    sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    try:
        first, second = _quiet_itk(), _quiet_itk()  # two threads' blocks, which overlap
        first.__enter__(), second.__enter__()
        first.__exit__(None, None, None)
        assert not display()  # the second still reads
        second.__exit__(None, None, None)
        assert display() == shown
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(True)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii.gz"])
def test_a_fourth_dimension_of_one_point_in_time_is_no_more_than_the_volume(tmp_path, ending):
    volume = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-12.5, 30.25, 7.0))
    image.SetDirection((0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0))
    for name, stored in (("three", image), ("four", sitk.JoinSeries([image]))):
        sitk.WriteImage(stored, str(tmp_path / f"{name}{ending}"))
    (three, its_grid), (four, grid) = (
        read_image(tmp_path / f"{name}{ending}") for name in ("three", "four")
    )
    np.testing.assert_array_equal(four, three)
    assert grid.difference_from(its_grid) is None
    sitk.WriteImage(sitk.JoinSeries([image, image]), str(tmp_path / f"two{ending}"))
    with pytest.raises(ValueError, match="expected three dimensions, found 4"):
        read_image(tmp_path / f"two{ending}")


NRRD = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 3 4\nencoding: raw\ndata file: {}\n"
META = (
    "ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\nElementType = MET_UCHAR\n"
    "ElementDataFile = {}\n"
)


@pytest.mark.parametrize(("ending", "header"), [(".nhdr", NRRD), (".mhd", META), (".mha", META)])
def test_a_header_takes_its_voxels_from_a_file_beside_it_and_from_nowhere_else(
    tmp_path, ending, header
):
    folder = tmp_path / "images"
    folder.mkdir()
    voxels = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    (folder / "a b.raw").write_bytes(voxels.tobytes())
    (tmp_path / "secret.raw").write_bytes(voxels.tobytes())
    path = folder / f"image{ending}"
    path.write_text(header.format("a b.raw"))
    np.testing.assert_array_equal(read_image(path)[0][0], voxels)
    for name in (
        *("../secret.raw", str(tmp_path / "secret.raw"), "/dev/zero", "/etc/passwd"),
        *("LIST\n../secret.raw\n", "LIST 2\na b.raw\n/etc/passwd"),
        *("sub/a.raw", "..\\secret.raw", "C:\\secret.raw", "./../secret.raw"),
    ):
        path.write_text(header.format(name))
        with pytest.raises(
            ValueError, match="its header takes the voxels from .*; expected a file"
        ):
            read_image(path)
    path.write_text(header.format("gone.raw"))
    with pytest.raises(ValueError, match="takes the voxels from 'gone.raw', which is missing"):
        read_image(path)
