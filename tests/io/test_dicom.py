from __future__ import annotations

import locale

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from promptseg.io.images import count_channels, is_dicom_folder, read_image
from tests.io.test_images import random_volume
from tests.real_data import require_real_data


def write_series(folder, volume, uid="1.2.840.1", skip=()):
    """A series of CT slices 2.5 mm apart, written by SimpleITK, in shuffled file order."""
    folder.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-12.5, 30.25, 7.0))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(volume.shape[0]):
        if z in skip:
            continue
        slice_ = image[:, :, z]
        position = "\\".join(str(v) for v in image.TransformIndexToPhysicalPoint((0, 0, z)))
        tags = {
            "0008|0060": "CT",
            "0008|0018": f"{uid}.{z + 1}",
            "0020|000d": "1.2.840.99",
            "0020|000e": uid,
            "0020|0013": str(z + 1),
            "0020|0032": position,
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0018|0050": "2.5",
            "0028|1052": "-1000",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            slice_.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid}_{(3 * z) % 7}.dcm"))
        before = locale.setlocale(locale.LC_ALL)
        writer.Execute(slice_)
        locale.setlocale(locale.LC_ALL, before)  # GDCM leaves "C": text would be read as ASCII


def test_a_dicom_series_is_read_in_spatial_order_and_in_hu(tmp_path):
    volume = random_volume((6, 5, 7))
    write_series(tmp_path / "series", volume)

    image, geometry = read_image(tmp_path / "series")

    assert is_dicom_folder(tmp_path / "series") and count_channels(tmp_path / "series") == 1
    np.testing.assert_array_equal(image[0], volume)
    assert geometry.shape == (6, 5, 7)
    np.testing.assert_allclose(geometry.spacing, (2.5, 0.8, 0.7))
    np.testing.assert_allclose(geometry.origin, (-12.5, 30.25, 7.0))


def test_a_dicom_series_without_one_slice_is_refused(tmp_path):
    write_series(tmp_path / "series", random_volume((6, 5, 7)), skip=(2,))

    with pytest.raises(ValueError, match=r"series: its 5 slices are 2\.5 to 5 mm apart; a slice"):
        read_image(tmp_path / "series")


def test_two_dicom_series_in_a_folder_are_refused_with_advice(tmp_path):
    write_series(tmp_path / "series", random_volume((6, 5, 7)))
    write_series(tmp_path / "series", random_volume((4, 5, 7)), uid="1.2.840.2")

    with pytest.raises(ValueError, match="found 2 with .*put each series into a folder of its own"):
        read_image(tmp_path / "series")


def test_a_folder_without_dicom_is_refused(tmp_path):
    assert not is_dicom_folder(tmp_path)
    assert not is_dicom_folder(tmp_path / "missing")
    with pytest.raises(ValueError, match="no DICOM series in it"):
        read_image(tmp_path)


def edited(folder, change):
    """Change the header of every slice of a series; `change` gets it, and the slice's number."""
    for path in sorted(folder.iterdir()):
        header = pydicom.dcmread(path)
        change(header, int(header.InstanceNumber) - 1)
        syntax = header.file_meta.TransferSyntaxUID
        implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
        pydicom.dcmwrite(path, header, implicit_vr=implicit, little_endian=little)


def moved(axis, by):
    def change(header, number):
        position = [float(v) for v in header.ImagePositionPatient]
        position[axis] += by(number)
        header.ImagePositionPatient = position

    return change


def turned(header, number):
    if number == 3:
        header.ImageOrientationPatient = [1, 0, 0, 0, 0.9998, 0.02]


def localizer(header, number):
    header.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def frames(header, number):
    header.NumberOfFrames = 3


def valued(**values):
    def change(header, number):
        for name, value in values.items():
            setattr(header, name, value)

    return change


def big_endian(header, number):
    header.BitsAllocated = header.BitsStored = 32
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian


def without(name):
    return lambda header, number: delattr(header, name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moved(1, lambda n: 0.44 * n), r"stacked aslant, by 10\.0 degrees \(gantry tilt\)"),
        (moved(2, lambda n: -2.5 * (n == 3)), "1 of its 6 images lie where another one does"),
        (moved(2, lambda n: -2.5 * n), "5 of its 6 images lie where another one does"),
        (moved(2, lambda n: 0.6 * (n == 3)), r"slices are 1\.9 to 3\.1 mm apart; a slice is"),
        (
            moved(2, lambda n: 372.5 * n),
            r"slices of 2\.5 mm, 375 mm apart; they do not make a volume",
        ),
        (turned, "its slices lie at different angles"),
        (frames, "6 files of several frames each; put each into a folder"),
        (localizer, "a localizer, to plan a scan by; choose another series"),
        (without("ImagePositionPatient"), "a DICOM slice without its position"),
        (without("ImageOrientationPatient"), "a DICOM slice without its orientation"),
        (valued(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "are mosaics of slices"),
        # what GDCM would give in other values than those that are stored
        (valued(PhotometricInterpretation="MONOCHROME1"), "values are stored as MONOCHROME1; save"),
        (valued(PhotometricInterpretation="PALETTE COLOR"), "stored as PALETTE COLOR; save them"),
        (valued(SamplesPerPixel=3, BitsAllocated=16), "colours of 16 bits; save them with 8 bits"),
        (big_endian, "32 bits in big endian; save it in little endian"),
        (valued(SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4"), "a DICOM segmentation, not an image"),
        (valued(SOPClassUID="1.2.840.10008.5.1.4.1.1.66.7"), "a DICOM segmentation, not an image"),
        (valued(SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2"), "a radiotherapy dose, not an image"),
        (without("Rows"), "no DICOM series in it"),
    ],
)
def test_images_that_do_not_make_a_volume_are_refused_with_the_reason(tmp_path, change, message):
    write_series(tmp_path / "series", random_volume((6, 5, 7)))
    edited(tmp_path / "series", change)
    with pytest.raises(ValueError, match=message):
        read_image(tmp_path / "series")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (valued(SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4"), "a DICOM segmentation, not an image"),
        (without("Rows"), "a DICOM file without an image"),
        (frames, "several frames that do not tell where they lie"),
        (localizer, "a localizer, to plan a scan by"),
        (valued(PhotometricInterpretation="MONOCHROME1"), "stored as MONOCHROME1"),
    ],
)
def test_a_file_by_itself_is_checked_like_a_folder(tmp_path, change, message):
    volume = random_volume((1, 5, 7))
    write_series(tmp_path / "series", volume)
    [file] = (tmp_path / "series").iterdir()
    image, geometry = read_image(file)
    np.testing.assert_array_equal(image[0], volume)
    assert geometry == read_image(tmp_path / "series")[1]
    edited(tmp_path / "series", change)
    with pytest.raises(ValueError, match=message):
        read_image(file)


@pytest.mark.parametrize(
    ("thickness", "between", "expected"),
    [("10", "", 10), ("", "3.5", 3.5), ("4", "5", 5), ("", "", 1)],
)
@pytest.mark.parametrize(
    "kind", ["1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"]
)  # CT, MR
def test_a_single_slice_is_as_thick_as_it_says(tmp_path, kind, thickness, between, expected):
    write_series(tmp_path / "series", random_volume((1, 5, 7)))
    change = valued(SliceThickness=thickness, SpacingBetweenSlices=between, SOPClassUID=kind)
    edited(tmp_path / "series", valued(SpecificCharacterSet="ISO_IR 100"))
    edited(tmp_path / "series", change)
    _, geometry = read_image(tmp_path / "series")
    np.testing.assert_allclose(geometry.spacing, (expected, 0.8, 0.7))


def test_what_dicom_has_before_its_header_is_not_taken_for_nifti(tmp_path):
    # the first 128 bytes are free; nibabel's 0.dcm begins with four that are a NIfTI's size
    volume = random_volume((6, 5, 7))
    write_series(tmp_path / "series", volume)
    for file in (tmp_path / "series").iterdir():
        content = file.read_bytes()
        file.write_bytes((348).to_bytes(4, "little") + content[4:])
    np.testing.assert_array_equal(read_image(tmp_path / "series")[0][0], volume)
    assert read_image(file)[0].shape == (1, 1, 5, 7)


def test_other_objects_beside_a_series_do_not_hide_it(tmp_path):
    volume = random_volume((6, 5, 7))
    write_series(tmp_path / "series", volume)
    write_series(tmp_path / "report", random_volume((1, 5, 7)), uid="1.2.840.2")
    edited(tmp_path / "report", without("Rows"))
    [report] = (tmp_path / "report").iterdir()
    assert not is_dicom_folder(tmp_path / "report")
    report.rename(tmp_path / "series" / "report.dcm")
    (tmp_path / "series" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "series" / "readme.txt").write_text("of the scanner")
    np.testing.assert_array_equal(read_image(tmp_path / "series")[0][0], volume)


@pytest.mark.parametrize(
    ("whole", "damage"),
    [(b"-12.5", b"-12x5"), (b"123456", b"12x456"), (b"2.5 ", b"2x5 ")],
)
def test_numbers_of_a_header_that_are_none_are_told_by_name(tmp_path, whole, damage):
    write_series(tmp_path / "series", random_volume((6, 5, 7)))
    edited(tmp_path / "series", valued(NumberOfFrames=123456 if whole == b"123456" else 1))
    file = sorted((tmp_path / "series").iterdir())[0]
    assert whole in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(whole, damage))
    with pytest.raises(ValueError, match=r"series.* cannot be read as DICOM: .*; copy it again"):
        read_image(tmp_path / "series")


def test_a_file_that_is_cut_is_told_by_name(tmp_path):
    write_series(tmp_path / "series", random_volume((6, 5, 7)))
    file = sorted((tmp_path / "series").iterdir())[2]
    whole = file.read_bytes()
    for length in (150, 400, len(whole) - 8):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"series"):
            read_image(tmp_path / "series")


def test_rounded_positions_and_axes_are_a_volume(tmp_path):
    volume = random_volume((6, 5, 7))
    write_series(tmp_path / "series", volume)

    def rounded(header, number):
        header.ImageOrientationPatient = [1, 0.0001, 0, -0.0001 * (number % 2), 1, 0]
        moved(0, lambda n: 0.01 * n)(header, number)
        moved(2, lambda n: 0.004 * (n % 3))(header, number)

    edited(tmp_path / "series", rounded)
    image, geometry = read_image(tmp_path / "series")
    np.testing.assert_array_equal(image[0], volume)
    np.testing.assert_allclose(geometry.spacing, (2.5, 0.8, 0.7), rtol=2e-3)


@pytest.mark.parametrize("size", ["24x38x3", "23x38x3"])
def test_an_enhanced_multi_frame_file_is_read_as_the_series_that_it_was_made_of(size):
    source = require_real_data("odd") / "dcmqi_DICOMSEG_BSD3" / size
    image, geometry = read_image(source / "image")
    for path in (source / "multiframe", source / "multiframe" / "mf.dcm"):
        found, grid = read_image(path)
        np.testing.assert_array_equal(found, image)
        assert grid.difference_from(geometry) is None


def _frames(content):
    return [frame.PlanePositionSequence[0] for frame in content.PerFrameFunctionalGroupsSequence]


def _two_at_one_place(content):
    _frames(content)[1].ImagePositionPatient = _frames(content)[0].ImagePositionPatient


def _a_missing_slice(content):
    x, y, z = _frames(content)[2].ImagePositionPatient
    _frames(content)[2].ImagePositionPatient = [x, y, float(z) + 2.5]


def _in_another_order(content):
    first, second = (list(_frames(content)[n].ImagePositionPatient) for n in (0, 1))
    _frames(content)[0].ImagePositionPatient = second
    _frames(content)[1].ImagePositionPatient = first


def _without_places(content):
    for frame in content.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_two_at_one_place, "1 of its 3 images lie where another one does"),
        (_a_missing_slice, "its 3 slices are 2.5 to 5 mm apart"),
        (_in_another_order, "are not in the order of their places"),
        (_without_places, "several frames that do not tell where they lie"),
        (lambda c: delattr(c, "PerFrameFunctionalGroupsSequence"), "several frames that do not"),
    ],
)
def test_frames_that_do_not_make_a_volume_are_refused_with_the_reason(tmp_path, change, message):
    source = require_real_data("odd") / "dcmqi_DICOMSEG_BSD3" / "24x38x3" / "multiframe"
    content = pydicom.dcmread(source / "mf.dcm")
    change(content)
    content.save_as(tmp_path / "mf.dcm")
    with pytest.raises(ValueError, match=message):
        read_image(tmp_path)
