"""Segmentations to DICOM SEG objects, read back slice by slice with pydicom."""

from __future__ import annotations

import sys

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from promptseg.commands import convert
from promptseg.conversion.dicom_seg import convert_predictions_to_dicom
from promptseg.files import write_json
from promptseg.io.images import Geometry, read_image, write_image

SHAPE, SPACING = (4, 7, 6), (2.5, 0.8, 0.7)
TILTED = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])  # columns: directions of x, y, z
ORIGIN = np.array([-12.5, 30.25, 7.0])
LABELS = {"background": 0, "liver": 1, "spleen": 2, "lesion": 5}


def position(z):
    """World x, y, z of the first voxel of slice z, from the definition."""
    return ORIGIN + TILTED @ np.array([0, 0, z * SPACING[0]])


def write_series(folder):
    """A CT series as a scanner writes it, its files named in no order of position."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(4)
    study, series, frame = (generate_uid(entropy_srcs=[str(folder), n]) for n in "abc")
    for z, name in enumerate(rng.permutation(SHAPE[0])):
        dataset = pydicom.Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
        uid = generate_uid(entropy_srcs=[str(folder), str(z)])
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid
        dataset.update(
            {
                **{"PatientID": "p1", "PatientName": "A^B", "PatientBirthDate": "19700101"},
                **{"PatientSex": "O", "StudyInstanceUID": study, "SeriesInstanceUID": series},
                **{"FrameOfReferenceUID": frame, "StudyID": "1", "SeriesNumber": 3},
                **{"StudyDate": "20260101", "StudyTime": "120000", "AccessionNumber": "7"},
                **{"ReferringPhysicianName": "", "Modality": "CT", "Manufacturer": "X"},
                **{"InstanceNumber": z + 1, "PositionReferenceIndicator": ""},
                **{"PixelSpacing": [SPACING[1], SPACING[2]], "SliceThickness": SPACING[0]},
                **{"ImageOrientationPatient": [*TILTED[:, 0], *TILTED[:, 1]]},
                **{"ImagePositionPatient": [*position(z)], "Rows": SHAPE[1], "Columns": SHAPE[2]},
                **{"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "SamplesPerPixel": 1},
                **{"PixelRepresentation": 1, "PhotometricInterpretation": "MONOCHROME2"},
                **{"RescaleSlope": 1, "RescaleIntercept": 0},
            }
        )
        dataset.PixelData = rng.integers(-900, 900, SHAPE[1:]).astype("<i2").tobytes()
        dataset.save_as(folder / f"{name}.dcm", enforce_file_format=True)


def segmentation(*values):
    array = np.zeros(SHAPE, np.uint8)
    for i, value in enumerate(values):
        array[1 + i % 2 : 3, 1 + i : 4, i : 2 * i + 2] = value
    return array


@pytest.fixture
def folders(tmp_path):
    """Two series, predictions on their grids with the label names, and where to write."""
    for name, values in (("a", (1, 5)), ("b", (2,))):
        write_series(tmp_path / "dicom" / name)
        geometry = read_image(tmp_path / "dicom" / name)[1]
        write_image(tmp_path / "preds" / f"{name}.nii.gz", segmentation(*values), geometry)
    write_json(tmp_path / "preds" / "dataset.json", {"labels": LABELS})
    return tmp_path / "preds", tmp_path / "out", tmp_path / "dicom"


def read_back(file):
    """Label to (z, y, x) mask, and the series it refers to; by pydicom and the positions alone."""
    dataset = pydicom.dcmread(file)
    masks = {s.SegmentNumber: np.zeros(SHAPE, bool) for s in dataset.SegmentSequence}
    frames = dataset.pixel_array.reshape(-1, *SHAPE[1:])
    shared = dataset.SharedFunctionalGroupsSequence[0]
    np.testing.assert_allclose(shared.PixelMeasuresSequence[0].PixelSpacing, SPACING[1:])
    np.testing.assert_allclose(
        shared.PlaneOrientationSequence[0].ImageOrientationPatient, TILTED[:, :2].T.ravel()
    )
    for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        found = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        (z,) = (z for z in range(SHAPE[0]) if np.allclose(position(z), found, atol=1e-4))
        one = groups if "SegmentIdentificationSequence" in groups else shared
        masks[one.SegmentIdentificationSequence[0].ReferencedSegmentNumber][z] = frame
    names = {s.SegmentNumber: s.SegmentLabel for s in dataset.SegmentSequence}
    return {names[number]: mask for number, mask in masks.items()}, dataset


def test_each_label_is_a_segment_where_its_voxels_lie(folders):
    preds, out, dicom = folders
    result = convert_predictions_to_dicom(preds, out, dicom)
    assert result.done == ("a", "b") and not result.failed
    for name, values in (("a", {"liver": 1, "lesion": 5}), ("b", {"spleen": 2})):
        masks, dataset = read_back(out / f"{name}.dcm")
        expected = segmentation(*values.values())
        assert list(masks) == list(values)
        for label, value in values.items():
            np.testing.assert_array_equal(masks[label], expected == value)
        source = pydicom.dcmread(dicom / name / "0.dcm")
        for field in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
            assert dataset[field].value == source[field].value
        assert dataset.SeriesInstanceUID != source.SeriesInstanceUID
        assert dataset.Modality == "SEG" and dataset.SegmentationType == "BINARY"
        referenced = dataset.ReferencedSeriesSequence[0]
        assert referenced.SeriesInstanceUID == source.SeriesInstanceUID


def test_the_command_names_labels_from_the_model_and_lists_what_failed(folders, capsys):
    preds, out, dicom = folders
    (preds / "dataset.json").rename(preds.parent / "dataset.json")
    geometry = Geometry(shape=SHAPE, spacing=SPACING)
    write_image(preds / "c.nii.gz", segmentation(1), geometry)
    write_series(dicom / "elsewhere")
    write_image(preds / "elsewhere.nii.gz", segmentation(1), geometry)
    right = read_image(dicom / "a")[1]
    for name, values in (("empty", ()), ("unnamed", (3,))):
        write_series(dicom / name)
        write_image(preds / f"{name}.nii.gz", segmentation(*values), right)
    arguments = ["--to", "dicom-seg", "-i", str(preds), "-o", str(out), "--dicom", str(dicom)]

    assert convert.main([*arguments, "-np", "0"]) == 1
    assert "dataset.json: no such file" in capsys.readouterr().err
    assert convert.main([*arguments, "-m", str(preds.parent), "-np", "0"]) == 1

    output = capsys.readouterr().out
    for text in (
        "c: no such folder; it must contain the series of c",
        "is not on the grid of the segmentation: direction",
        "empty.nii.gz: the segmentation is empty",
        "no name for label value(s) [3]",
        "2 of 6 case(s) written to",
    ):
        assert text in output
    assert sorted(path.name for path in out.iterdir()) == ["a.dcm", "b.dcm"]
    assert convert.main([*arguments, "-m", str(preds.parent), "-np", "0"]) == 1
    assert "already contains a.dcm, b.dcm" in capsys.readouterr().err


def test_one_prediction_needs_no_folder_around_its_series(folders):
    preds, out, dicom = folders
    (preds / "b.nii.gz").unlink()
    assert convert_predictions_to_dicom(preds, out, dicom / "a").done == ("a",)


def test_a_missing_library_says_what_to_install(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ImportError, match=r"pip install promptseg\[dicom\]"):
        convert_predictions_to_dicom(*folders)


def test_segments_of_regions_overlap(folders):
    preds, out, dicom = folders
    regions = {"background": 0, "organ": [1, 5], "lesion": 5, "absent": [2, 3]}
    write_json(preds / "dataset.json", {"labels": regions})
    (preds / "b.nii.gz").unlink()
    assert convert_predictions_to_dicom(preds, out, dicom).done == ("a",)
    masks, dataset = read_back(out / "a.dcm")
    stored = segmentation(1, 5)
    assert list(masks) == ["organ", "lesion"] and dataset.SegmentationType == "BINARY"
    np.testing.assert_array_equal(masks["organ"], stored > 0)
    np.testing.assert_array_equal(masks["lesion"], stored == 5)
