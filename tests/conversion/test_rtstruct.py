"""Segmentations to RTSTRUCT and back: outlines that run between voxels lose none."""

from __future__ import annotations

import shutil

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Outline

from promptseg.commands import convert
from promptseg.conversion.dicom_masks import read_dicom_mask, structure_names
from promptseg.conversion.dicom_seg import convert_predictions_to_dicom
from promptseg.files import write_json
from promptseg.io.images import read_image, read_segmentation, write_image
from tests.conversion.test_dicom_seg import LABELS, SHAPE, folders, position, write_series
from tests.real_data import require_real_data

__all__ = ["folders"]  # a fixture


def test_every_voxel_comes_back(folders, capsys):
    predictions, output, dicom = folders
    flags = ["--to", "rtstruct", "-i", str(predictions), "-o", str(output), "--dicom", str(dicom)]
    assert convert.main([*flags, "-np", "0"]) == 0
    for case, values in (("a", (1, 5)), ("b", (2,))):
        segmentation, geometry = read_segmentation(predictions / f"{case}.nii.gz")
        by_name = {value: name for name, value in LABELS.items()}
        assert structure_names(output / f"{case}.dcm") == [by_name[value] for value in values]
        masks, grid = read_dicom_mask(output / f"{case}.dcm", list(LABELS), geometry)
        layers = dict(masks)
        assert grid == geometry
        for value in values:
            np.testing.assert_array_equal(layers[by_name[value]], segmentation == value)
    assert convert.main([*flags, "-np", "0"]) == 1
    assert "already contains a.dcm" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(4))
def test_masks_of_any_shape_come_back_with_holes_and_corners(tmp_path, seed):
    write_series(tmp_path / "dicom")
    _, geometry = read_image(tmp_path / "dicom")
    rng = np.random.default_rng(seed)
    segmentation = rng.choice([0, 1, 5], SHAPE).astype(np.uint8)
    segmentation[0, :, :] = 1  # up to the border of the image
    segmentation[0, 2:5, 2:4] = 0
    segmentation[0, 3, 3] = 5  # an island in a hole
    write_image(tmp_path / "preds" / "dicom.nii.gz", segmentation, geometry)
    write_json(tmp_path / "preds" / "dataset.json", {"labels": LABELS})
    result = convert_predictions_to_dicom(
        tmp_path / "preds", tmp_path / "out", tmp_path / "dicom", rtstruct=True
    )
    assert result.done == ("dicom",)
    masks, _ = read_dicom_mask(tmp_path / "out" / "dicom.dcm", list(LABELS), geometry)
    layers = dict(masks)
    for name in ("liver", "lesion"):
        np.testing.assert_array_equal(layers[name], segmentation == LABELS[name])


def test_contours_lie_where_pydicom_says_the_slices_are(folders):
    """By pydicom and matplotlib alone: slice of a contour, side of a voxel's centre."""
    predictions, output, dicom = folders
    convert_predictions_to_dicom(predictions, output, dicom, rtstruct=True)
    content = pydicom.dcmread(output / "b.dcm")
    assert content.SOPClassUID == pydicom.uid.RTStructureSetStorage
    assert (content.Modality, content.PatientID, content.ApprovalStatus) == (
        *("RTSTRUCT", "p1", "UNAPPROVED"),
    )
    slices = [pydicom.dcmread(file) for file in (dicom / "b").iterdir()]
    by_uid = {one.SOPInstanceUID: one for one in slices}
    [frame] = content.ReferencedFrameOfReferenceSequence
    assert frame.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
    [series] = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert series.SeriesInstanceUID == slices[0].SeriesInstanceUID
    assert len(series.ContourImageSequence) == SHAPE[0]
    [roi] = content.StructureSetROISequence
    assert roi.ROIName == "spleen"
    segmentation, _ = read_segmentation(predictions / "b.nii.gz")
    found = np.zeros(SHAPE, bool)
    [outlines] = content.ROIContourSequence
    for contour in outlines.ContourSequence:
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        [image] = contour.ContourImageSequence
        source = by_uid[image.ReferencedSOPInstanceUID]
        row, column = np.reshape(source.ImageOrientationPatient, (2, 3)).astype(float)
        offsets = points - np.array(source.ImagePositionPatient, float)
        assert np.abs(offsets @ np.cross(row, column)).max() < 1e-3
        outline = Outline(np.stack([offsets @ row, offsets @ column], axis=1))
        y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
        spacing_y, spacing_x = map(float, source.PixelSpacing)
        centres = np.stack([x.ravel() * spacing_x, y.ravel() * spacing_y], axis=1)
        number = next(
            z
            for z in range(SHAPE[0])
            if np.allclose(position(z), np.array(source.ImagePositionPatient, float))
        )
        found[number] ^= outline.contains_points(centres).reshape(SHAPE[1:])
    np.testing.assert_array_equal(found, segmentation == 2)


def test_an_empty_mask_and_another_grid_are_told(folders):
    predictions, output, dicom = folders
    _, geometry = read_segmentation(predictions / "a.nii.gz")
    write_image(predictions / "a.nii.gz", np.zeros(SHAPE, np.uint8), geometry)
    result = convert_predictions_to_dicom(predictions, output, dicom, rtstruct=True)
    assert result.done == ("b",)
    assert "is empty; DICOM SEG and RTSTRUCT cannot represent that" in result.failed["a"]


def test_a_file_of_several_frames_is_told_and_does_not_stop_the_others(folders):
    predictions, output, dicom = folders
    source = require_real_data("odd") / "dcmqi_DICOMSEG_BSD3" / "24x38x3" / "multiframe"
    shutil.copytree(source, dicom / "c")
    image, geometry = read_image(dicom / "c")
    write_image(predictions / "c.nii.gz", (image[0] > np.median(image)).astype(np.uint8), geometry)
    result = convert_predictions_to_dicom(predictions, output, dicom, rtstruct=True)
    assert result.done == ("a", "b")
    assert "expected an image for each of 3 slices, found 1" in result.failed["c"]


def test_structures_of_regions_overlap(folders):
    preds, out, dicom = folders
    write_json(preds / "dataset.json", {"labels": {"organ": [1, 5], "lesion": 5, "absent": 2}})
    convert_predictions_to_dicom(preds, out, dicom, rtstruct=True, overwrite=True)
    assert structure_names(out / "a.dcm") == ["organ", "lesion"]
    geometry = read_image(dicom / "a")[1]
    stored, _ = read_segmentation(preds / "a.nii.gz")
    layers, _ = read_dicom_mask(out / "a.dcm", ["organ", "lesion"], geometry)
    masks = dict(layers)
    np.testing.assert_array_equal(masks["organ"], stored > 0)
    np.testing.assert_array_equal(masks["lesion"], stored == 5)
