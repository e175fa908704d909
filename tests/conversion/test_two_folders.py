"""Images in one folder and masks in another to raw datasets that planning accepts."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from promptseg.commands import convert
from promptseg.conversion.masks import parse_labels
from promptseg.conversion.two_folders import convert_two_folders
from promptseg.experiment_planning.examine import examine_dataset
from promptseg.files import read_json
from promptseg.io.dataset import read_raw_dataset
from promptseg.io.images import Geometry, read_image, read_segmentation, write_image
from promptseg.parallel import Workers
from tests.conversion.test_msd import GEOMETRY, SHAPE
from tests.io.test_dicom import write_series
from tests.real_data import require_real_data


def volume(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(100, 9, SHAPE).astype(np.float32)


def mask(number: int) -> np.ndarray:
    """Values 3 and 7."""
    array = np.zeros(SHAPE, np.uint8)
    array[1:3, 2:5, 1 + number % 2 : 4] = 3
    array[1, 5, 3] = 7
    return array


@pytest.fixture
def folders(tmp_path):
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    return images, masks


def converted(folders, tmp_path, **options):
    given = {"number": 12, "name": "Mine", "modality": "MRI"} | options
    return convert_two_folders(*folders, tmp_path / "raw", **given)


def good_cases(dataset) -> list[str]:
    with Workers(0) as workers:
        examination = examine_dataset(dataset, workers, None)
    assert not examination.problems
    return [case.case_id for case in examination.good_cases]


@pytest.mark.parametrize("suffix", ["", "_seg", "-mask", ".label", "_GT"])
@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_masks_are_found_by_name_and_values_numbered_without_a_gap(
    folders, tmp_path, suffix, ending, capsys
):
    images, masks = folders
    for number in range(3):
        write_image(images / f"p {number}{ending}", volume(number), GEOMETRY)
        write_image(masks / f"p {number}{suffix}.nii.gz", mask(number), GEOMETRY)
    write_image(images / "unlabelled.nii.gz", volume(9), GEOMETRY)
    write_image(masks / "lost.nii.gz", mask(9), GEOMETRY)
    (images / ".DS_Store").write_bytes(b"of a Mac")
    code = convert.main(
        ["--images", str(images), "--masks", str(masks), "--labels", "node=7, organ=3"]
        + ["--modality", "MRI", "-d", "12", "--name", "Mine", "--raw", str(tmp_path / "raw")]
        + ["-np", "0"]
    )
    said = capsys.readouterr().out
    assert code == 0, said
    assert "left out, as they have no mask: unlabelled" in said
    assert "left out, as they have no image: lost" in said
    folder = tmp_path / "raw" / "Dataset012_Mine"
    content = read_json(folder / "dataset.json")
    assert content["labels"] == {"background": 0, "node": 1, "organ": 2}
    assert content["channel_names"] == {"0": "MRI"} and content["numTraining"] == 3
    raw = read_raw_dataset(folder)
    assert good_cases(raw) == ["p 0", "p 1", "p 2"]
    for number, case in enumerate(raw.cases):
        image, geometry = read_image(case.images)
        found, grid = read_segmentation(case.label)
        np.testing.assert_array_equal(image[0], volume(number))
        expected = np.select([mask(number) == 7, mask(number) == 3], [1, 2])
        np.testing.assert_array_equal(found, expected)
        assert geometry.difference_from(GEOMETRY) is None is grid.difference_from(GEOMETRY)


def test_a_file_of_each_structure_names_it(folders, tmp_path):
    images, masks = folders
    for number, inner in enumerate(("", "segmentations")):  # as TotalSegmentator writes them
        write_image(images / f"s{number}.nii.gz", volume(number), GEOMETRY)
        folder = masks / f"s{number}" / inner
        folder.mkdir(parents=True)
        for value, name in ((3, "spleen"), (7, "aorta")):
            write_image(folder / f"{name}.nii.gz", (mask(number) == value) * 255, GEOMETRY)
    both = np.zeros(SHAPE, np.uint8)
    both[1:4, 5, 3] = 1  # over the voxel of the aorta, and beside it
    write_image(masks / "s1" / "segmentations" / "stomach.nii.gz", both, GEOMETRY)
    result = converted(folders, tmp_path, modality="CT")
    assert "structures overlap in 1 case(s), by up to 1 voxels" in result.report()
    content = read_json(result.output / "dataset.json")
    assert content["labels"] == {"background": 0, "aorta": 1, "spleen": 2, "stomach": 3}
    first, second = (read_segmentation(c.label)[0] for c in read_raw_dataset(result.output).cases)
    np.testing.assert_array_equal(first, np.select([mask(0) == 7, mask(0) == 3], [1, 2]))
    expected = np.select([both > 0, mask(1) == 7, mask(1) == 3], [3, 1, 2])
    np.testing.assert_array_equal(second, expected)
    # only some of them are wanted, in an order
    wanted = {"spleen": 1, "aorta": 2, "liver": 3}
    result = converted(folders, tmp_path, modality="CT", labels=wanted, overwrite=True)
    assert result.notes == ("in no case: liver",)
    _, second = (read_segmentation(c.label)[0] for c in read_raw_dataset(result.output).cases)
    np.testing.assert_array_equal(second, np.select([mask(1) == 3, mask(1) == 7], [1, 2]))


def test_slicers_segmentations_name_their_segments(folders, tmp_path):
    images, masks = folders
    for number in range(2):
        write_image(images / f"scan{number}.nrrd", volume(number), GEOMETRY)
        image = sitk.GetImageFromArray(mask(number))
        image.SetSpacing(GEOMETRY.spacing[::-1])
        image.SetOrigin(GEOMETRY.origin)
        image.SetDirection(GEOMETRY.direction)
        for segment, (name, value) in enumerate((("Organ at risk", 3), ("Node", 7))):
            image.SetMetaData(f"Segment{segment}_Name", name)
            image.SetMetaData(f"Segment{segment}_LabelValue", str(value))
            image.SetMetaData(f"Segment{segment}_Layer", "0")
        sitk.WriteImage(image, str(masks / f"scan{number}.seg.nrrd"))
    result = converted(folders, tmp_path)
    content = read_json(result.output / "dataset.json")
    assert content["labels"] == {"background": 0, "Organ at risk": 1, "Node": 2}
    for number, case in enumerate(read_raw_dataset(result.output).cases):
        expected = np.select([mask(number) == 3, mask(number) == 7], [1, 2])
        np.testing.assert_array_equal(read_segmentation(case.label)[0], expected)


def test_dicom_folders_and_channels_are_images(folders, tmp_path):
    images, masks = folders
    scan = np.random.default_rng(1).integers(0, 500, (5, 8, 6)).astype(np.int16)
    write_series(images / "patient1", scan)
    _, geometry = read_image(images / "patient1")
    write_image(masks / "patient1.nii.gz", (scan > 250).astype(np.uint8), geometry)
    result = converted(folders, tmp_path, labels={"bright": 1})
    [case] = read_raw_dataset(result.output).cases
    image, grid = read_image(case.images)
    np.testing.assert_array_equal(image[0], scan)
    assert grid.difference_from(geometry) is None

    other = tmp_path / "channels"
    other.mkdir()
    for number in range(2):
        write_image(other / f"brain_{number:04d}.nii.gz", volume(number), GEOMETRY)
    write_image(masks / "brain.nii.gz", mask(0), GEOMETRY)
    options = {"labels": {"a": 3, "b": 7}, "modality": "T1, T2", "number": 13}
    result = converted((other, masks), tmp_path, **options)
    assert read_json(result.output / "dataset.json")["channel_names"] == {"0": "T1", "1": "T2"}
    [case] = read_raw_dataset(result.output).cases
    np.testing.assert_array_equal(read_image(case.images)[0], [volume(0), volume(1)])


DCMQI = "odd/dcmqi_DICOMSEG_BSD3"


def test_dicom_segs_are_read_as_dcmqi_reads_them(folders, tmp_path):
    images, masks = folders
    source = require_real_data(DCMQI)
    shutil.copytree(source / "24x38x3" / "image", images / "one")
    shutil.copy(source / "24x38x3" / "seg" / "label.seg", masks / "one.dcm")
    shutil.copytree(source / "24x38x3" / "image", images / "sparse")
    (masks / "sparse").mkdir()
    shutil.copy(source / "sparse-labelmap-ppv5.dcm", masks / "sparse" / "IM1")
    result = converted(folders, tmp_path, modality="CT")
    assert result.done == ("one", "sparse")
    assert read_json(result.output / "dataset.json")["labels"] == {"background": 0, "Liver": 1}
    one, sparse = (read_segmentation(c.label) for c in read_raw_dataset(result.output).cases)
    for (found, grid), name in (
        (one, "24x38x3/nrrd/label.nrrd"),
        (sparse, "sparse_labelmap_noppv_seg.nrrd"),
    ):
        expected, its_grid = read_segmentation(source / name)
        np.testing.assert_array_equal(found, expected > 0)
        assert found.any() and grid.difference_from(its_grid) is None


def test_a_damaged_dicom_seg_is_one_failed_case(folders, tmp_path):
    images, masks = folders
    source = require_real_data(DCMQI)
    for name in ("good", "cut", "other"):
        shutil.copytree(source / "24x38x3" / "image", images / name)
        shutil.copy(source / "24x38x3" / "seg" / "label.seg", masks / f"{name}.dcm")
    content = pydicom.dcmread(masks / "cut.dcm")
    content.PixelData = content.PixelData[:10]
    content.save_as(masks / "cut.dcm")
    content = pydicom.dcmread(masks / "other.dcm")
    content.SegmentSequence[0].SegmentLabel = "Kidney"
    content.save_as(masks / "other.dcm")
    result = converted(folders, tmp_path, modality="CT", labels={"Liver": 1})
    assert result.done == ("good",)
    assert "cut.dcm cannot be read as segments of a volume" in result.failed["cut"]
    assert "other.dcm: has Kidney, and none of Liver" in result.failed["other"]


def test_overlapping_segments_of_a_dicom_seg(folders, tmp_path):
    images, masks = folders
    source = require_real_data(DCMQI)
    shutil.copytree(source / "ct-3slice", images / "ct")
    shutil.copy(source / "partial_overlaps.dcm", masks / "ct_seg.dcm")
    result = converted(folders, tmp_path, modality="CT")
    names = ["GREEN", "ORANGE", "PURPLE", "LIGHT_BLUE", "DARK_BLUE"]
    assert list(read_json(result.output / "dataset.json")["labels"])[1:] == names
    assert "structures overlap in 1 case(s)" in result.report()
    expected = np.zeros((3, 512, 512), np.uint8)
    files = [source / f"partial_overlaps-{number}.nrrd" for number in (1, 2, 3)]
    layers = [sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in files]
    for value in range(1, 6):  # the later of two stays
        for layer in layers:
            expected[layer == value] = value
    [case] = read_raw_dataset(result.output).cases
    np.testing.assert_array_equal(read_segmentation(case.label)[0], expected)


def write_rtstruct(path, structures):
    """Structures of contours, (n, 3) mm each, as a treatment planning system writes them."""
    content = pydicom.Dataset()
    content.file_meta = pydicom.dataset.FileMetaDataset()
    content.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    content.SOPClassUID = pydicom.uid.RTStructureSetStorage
    content.SOPInstanceUID = pydicom.uid.generate_uid()
    rois, outlines = [], []
    for number, (name, contours) in enumerate(structures.items(), start=1):
        roi, outline = pydicom.Dataset(), pydicom.Dataset()
        roi.ROINumber = outline.ReferencedROINumber = number
        roi.ROIName, outline.ContourSequence = name, []
        for points in contours:
            contour = pydicom.Dataset()
            contour.ContourGeometricType = "POINT" if len(points) == 1 else "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{value:.6g}" for value in np.ravel(points)]
            outline.ContourSequence.append(contour)
        rois.append(roi)
        outlines.append(outline)
    content.StructureSetROISequence, content.ROIContourSequence = rois, outlines
    content.save_as(path, enforce_file_format=True)


def in_world(points, geometry=GEOMETRY) -> np.ndarray:
    """(n, 3) voxels, zyx, to mm, x, y, z."""
    mm = np.multiply(points, geometry.spacing)[:, ::-1]
    return mm @ np.reshape(geometry.direction, (3, 3)).T + geometry.origin


def test_contours_of_an_rtstruct_are_filled_on_the_image(folders, tmp_path):
    images, masks = folders
    write_image(images / "p.nii.gz", volume(0), GEOMETRY)
    # y 0.6 to 5.3, x 0.5 to 4.4: rows 1 to 5, columns 1 to 4, with a hole of rows 2 to 3, column 2
    square = [[1, 0.6, 0.55], [1, 5.3, 0.55], [1, 5.3, 4.4], [1, 0.6, 4.4]]
    hole = [[1, 1.5, 1.6], [1, 1.5, 2.4], [1, 3.4, 2.4], [1, 3.4, 1.6]]
    triangle = [[3, -0.4, -0.4], [3, 6.4, -0.4], [3, -0.4, 5.2]]
    structures = {
        "Liver": [in_world(square), in_world(hole)],
        "Node": [in_world(triangle)],
        "Isocentre": [in_world([[2, 2, 2]])],
    }
    write_rtstruct(masks / "p.dcm", structures)
    result = converted(folders, tmp_path)
    labels = read_json(result.output / "dataset.json")["labels"]
    assert labels == {"background": 0, "Liver": 1, "Node": 2}
    expected = np.zeros(SHAPE, np.uint8)
    expected[1, 1:6, 1:5] = 1
    expected[1, 2:4, 2] = 0
    y, x = np.mgrid[:7, :6]
    expected[3][(x + 0.4) / 5.6 + (y + 0.4) / 6.8 < 1] = 2
    [case] = read_raw_dataset(result.output).cases
    np.testing.assert_array_equal(read_segmentation(case.label)[0], expected)


def test_contours_of_another_image_are_refused(folders, tmp_path):
    images, masks = folders
    for name, height in (("good", 1.0), ("between", 1.4)):
        write_image(images / f"{name}.nii.gz", volume(0), GEOMETRY)
        square = [[height, 1, 1], [height, 1, 4], [height, 4, 4], [height, 4, 1]]
        write_rtstruct(masks / f"{name}.dcm", {"Liver": [in_world(square)]})
    result = converted(folders, tmp_path)
    assert result.done == ("good",)
    assert "contours of Liver do not lie in the image's slices" in result.failed["between"]
    shutil.copytree(masks, masks / "good")
    with pytest.raises(ValueError, match="expected one DICOM SEG .*found between.dcm, good"):
        converted(folders, tmp_path, overwrite=True)


def test_images_and_masks_may_lie_in_one_folder(folders, tmp_path):
    images, _ = folders
    write_image(images / "a.nii.gz", volume(0), GEOMETRY)
    write_image(images / "a_mask.nii.gz", mask(0), GEOMETRY)
    write_image(images / "b.nii.gz", volume(1), GEOMETRY)
    result = converted((images, images), tmp_path, labels={"x": 3, "y": 7})
    assert result.done == ("a",) and result.notes == ("left out, as they have no mask: b",)


def test_a_mask_of_a_part_of_the_image_is_put_in_its_place(folders, tmp_path):
    images, masks = folders
    for name, start in (("part", (1, 2, 0)), ("larger", (0, 0, 0)), ("half_a_voxel", (0, 1, 0))):
        write_image(images / f"{name}.nii.gz", volume(0), GEOMETRY)
        image = sitk.ReadImage(str(images / f"{name}.nii.gz"))
        found = sitk.GetImageFromArray(mask(0))
        found.CopyInformation(image)
        z, y, x = start
        found = found[x:5, y:, z:]
        if name == "larger":
            found = sitk.ConstantPad(found, (2, 0, 1), (0, 3, 0))
        if name == "half_a_voxel":
            found.SetOrigin(np.add(found.GetOrigin(), (0, 0, 1.25)).tolist())
        sitk.WriteImage(found, str(masks / f"{name}.nii.gz"))
    result = converted(folders, tmp_path, labels={"a": 3, "b": 7})
    assert result.done == ("larger", "part")
    assert "lie on other grids: shape" in result.failed["half_a_voxel"]
    for case in read_raw_dataset(result.output).cases:
        found, grid = read_segmentation(case.label)
        np.testing.assert_array_equal(found, np.select([mask(0) == 3, mask(0) == 7], [1, 2]))
        assert grid.difference_from(GEOMETRY) is None


def test_slicers_own_example_is_converted(folders, tmp_path):
    source = require_real_data("odd") / "slicerio_MIT" / "slicerio" / "data"
    images, masks = folders
    shutil.copy(source / "CTChest4.nrrd", images / "chest.nrrd")
    shutil.copy(source / "SegmentationOverlapping.seg.nrrd", masks / "chest.seg.nrrd")
    result = converted(folders, tmp_path, modality="CT")
    labels = read_json(result.output / "dataset.json")["labels"]
    assert list(labels)[1:] == [
        *("ribs", "cervical vertebral column", "thoracic vertebral column"),
        *("lumbar vertebral column", "right lung", "left lung", "tissue", "overlapping sphere"),
    ]
    assert "structures overlap in 1 case(s)" in result.report()
    [case] = read_raw_dataset(result.output).cases
    layers = sitk.GetArrayFromImage(sitk.ReadImage(str(masks / "chest.seg.nrrd")))
    expected = np.where(layers[..., 1] == 1, 8, layers[..., 0])
    np.testing.assert_array_equal(read_segmentation(case.label)[0], expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("liver=1,tumour=2", {"liver": 1, "tumour": 2}),
        ("liver: 1; left kidney : 20", {"liver": 1, "left kidney": 20}),
        ("1 liver\n2 left kidney\n", {"liver": 1, "left kidney": 2}),
        ('# ITK-SNAP\n0 0 0 0 0 0 0 "Clear Label"\n4 255 0 0 1 1 1 "L4"', {"L4": 4}),
        ("17 Left-Hippocampus 220 216 20 0", {"Left-Hippocampus": 17}),
        ('{"background": 0, "liver": 5}', {"liver": 5}),
        ("background=0, Liver=2", {"Liver": 2}),
    ],
)
def test_labels_are_read_as_people_write_them(text, expected, tmp_path):
    assert parse_labels(text) == expected
    path = tmp_path / "labels.txt"
    path.write_text(text, encoding="utf-8")
    assert parse_labels(str(path)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found nothing"),
        ("liver", "'liver': expected"),
        ("liver=one", "found the value 'one'"),
        ("liver=1,liver=2", "each occur once"),
        ("liver=1,spleen=1", "each occur once"),
        ("liver=-1", "values from 1"),
        ('{"liver": [1]}', "found the value"),
        ('{"liver": 1.7}', "found the value 1.7"),
        ('{"liver": 1', "not valid JSON"),
        ("labels.txt", "'labels.txt': expected"),
    ],
)
def test_other_labels_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_labels(text)


def test_numbers_of_cases_are_not_taken_for_channels(folders, tmp_path):
    images, masks = folders
    for number in (1, 4, 7):
        write_image(images / f"amos_{number:04d}.nii.gz", volume(number), GEOMETRY)
        write_image(masks / f"amos_{number:04d}.nii.gz", mask(number), GEOMETRY)
    result = converted(folders, tmp_path, labels={"a": 3, "b": 7})
    assert result.done == ("amos_0001", "amos_0004", "amos_0007")
    for case, number in zip(read_raw_dataset(result.output).cases, (1, 4, 7), strict=True):
        np.testing.assert_array_equal(read_image(case.images)[0][0], volume(number))
    # of two channels, the numbers of one case begin with the second
    for case, first in (("x", 0), ("y", 1)):
        for number in (first, first + 1):
            write_image(images / f"{case}_{number:04d}.nii.gz", volume(number), GEOMETRY)
        write_image(masks / f"{case}.nii.gz", mask(0), GEOMETRY)
    options = {"labels": {"a": 3, "b": 7}, "modality": "T1,T2", "number": 13}
    result = converted(folders, tmp_path, **options)
    assert result.done == ("x",) and "y_0001, y_0002" in " ".join(result.notes)


def test_contours_beside_the_image_are_refused(folders, tmp_path):
    images, masks = folders
    square = np.array([[1, 1, 1], [1, 1, 4], [1, 4, 4], [1, 4, 1]], float)
    for name, shift in (("here", 0), ("beside", (0, 90, 0)), ("above", (7, 0, 0))):
        write_image(images / f"{name}.nii.gz", volume(0), GEOMETRY)
        write_rtstruct(masks / f"{name}.dcm", {"Liver": [in_world(square + shift)]})
    result = converted(folders, tmp_path)
    assert result.done == ("here",)
    for name in ("beside", "above"):
        assert "contours of Liver lie outside the image" in result.failed[name]


def test_only_named_structures_are_read(folders, tmp_path):
    images, masks = folders
    write_image(images / "p.nii.gz", volume(0), GEOMETRY)
    (masks / "p").mkdir()
    write_image(masks / "p" / "liver.nii.gz", (mask(0) == 3).astype(np.uint8), GEOMETRY)
    (masks / "p" / "spleen.nii.gz").write_bytes(b"damaged")
    assert converted(folders, tmp_path, labels={"liver": 1}).done == ("p",)
    with pytest.raises(ValueError, match="spleen.nii.gz"):
        converted(folders, tmp_path, labels={"spleen": 1}, overwrite=True)


def test_what_cannot_be_converted_is_told_case_by_case(folders, tmp_path):
    images, masks = folders
    for name in ("good", "unknown_value", "other_grid", "broken", "channels"):
        write_image(images / f"{name}.nii.gz", volume(0), GEOMETRY)
        write_image(masks / f"{name}.nii.gz", mask(0), GEOMETRY)
    write_image(masks / "unknown_value.nii.gz", mask(0) + 5 * (mask(0) > 0), GEOMETRY)
    moved = Geometry(shape=SHAPE, spacing=(2.5, 0.8, 0.9), origin=(1, 2, 3))
    write_image(masks / "other_grid.nii.gz", mask(0), moved)
    data = (images / "broken.nii.gz").read_bytes()
    (images / "broken.nii.gz").write_bytes(data[: len(data) // 2])
    (images / "channels.nii.gz").unlink()
    two = sitk.GetImageFromArray(np.stack([volume(0), volume(1)], axis=-1), isVector=True)
    sitk.WriteImage(two, str(images / "channels.nrrd"))
    result = converted(folders, tmp_path, labels={"a": 3, "b": 7})
    assert result.done == ("good",)
    assert "found value(s) 8, 12, which --labels does not name" in result.failed["unknown_value"]
    assert "lie on other grids: spacing" in result.failed["other_grid"]
    assert "broken.nii.gz" in result.failed["broken"]
    assert "found 2 channel(s), but --modality names 1" in result.failed["channels"]


def test_what_is_missing_is_said_before_anything_is_written(folders, tmp_path, capsys):
    images, masks = folders
    with pytest.raises(FileNotFoundError, match="expected images or DICOM folders, found none"):
        converted(folders, tmp_path)
    write_image(images / "a.nii.gz", volume(0), GEOMETRY)
    with pytest.raises(ValueError, match=r"no image in .* \(a\) has a mask .* \(nothing\)"):
        converted(folders, tmp_path)
    write_image(masks / "a.nii.gz", mask(0), GEOMETRY)
    with pytest.raises(ValueError, match="it has 0, 3, 7; give --labels"):
        converted(folders, tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        converted((images, tmp_path / "nowhere"), tmp_path)
    assert not (tmp_path / "raw" / "Dataset012_Mine").exists()
    for flags, message in (
        ([], "give -i FOLDER, or --images"),
        (["--images", "x", "-i", "y"], "give -i FOLDER, or --images"),
        (["--images", "x", "--to", "npz", "-o", "z"], "give -i FOLDER, or --images"),
        (["--images", "x", "--masks", "y"], "--images needs --modality, -d, --name too"),
    ):
        with pytest.raises(SystemExit):
            convert.main(flags)
        assert message in capsys.readouterr().err


def test_a_long_list_of_labels_is_not_taken_for_a_file():
    text = ",".join(f"vertebra number {number}={number}" for number in range(1, 25))
    assert parse_labels(text)["vertebra number 24"] == 24 and len(text) > 400


def test_labels_may_be_a_json_file(folders, tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"organ": 3, "node": 7}))
    assert parse_labels(str(path)) == {"organ": 3, "node": 7}
