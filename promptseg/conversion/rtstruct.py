"""Segmentations to radiotherapy structure sets (RTSTRUCT): the outline of every label by slice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from skimage.measure import find_contours

import promptseg
from promptseg.io.geometry import Geometry
from promptseg.labels import Values, label_mask
from promptseg.prompts.world import voxel_to_world

if TYPE_CHECKING:
    from pydicom import Dataset, FileDataset

_STORAGE = "1.2.840.10008.5.1.4.1.1.481.3"
_FROM_STUDY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
_COLOURS = ((255, 80, 60), (60, 150, 255), (80, 200, 90), (250, 190, 40), (190, 90, 230))
_DIGITS = 3  # of a coordinate, behind the point: micrometres


def make_rtstruct(
    segmentation: np.ndarray,
    geometry: Geometry,
    sources: Sequence[Dataset],
    names: Mapping[Values, str],
) -> FileDataset:
    """An RTSTRUCT object of a segmentation on the grid of a DICOM series.

    Outlines run between voxels, so that filling them gives the masks back; one within another is
    a hole.

    Args:
        segmentation: (z, y, x) labels; 0 is background.
        geometry: of the segmentation and of the series.
        sources: the images of the series, in the order of the slices.
        names: name of each label value, or region, that occurs.

    Raises:
        ValueError: if the series is one file of several frames.

    Source:
        DICOM PS3.3, A.19 and C.8.8.5 to C.8.8.8.
    """
    if len(sources) != len(segmentation):
        raise ValueError(
            f"expected an image for each of {len(segmentation)} slices, found {len(sources)}; the "
            f"contours of an RTSTRUCT refer to classic DICOM images, not to enhanced ones"
        )
    made = _described(sources)
    frame = made.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID
    numbered = list(enumerate(names, start=1))
    made.StructureSetROISequence = [
        _item(
            ROINumber=number,
            ReferencedFrameOfReferenceUID=frame,
            ROIName=names[value][:64],
            ROIGenerationAlgorithm="AUTOMATIC",
        )
        for number, value in numbered
    ]
    made.ROIContourSequence = [
        _item(
            ROIDisplayColor=list(_COLOURS[number % len(_COLOURS)]),
            ReferencedROINumber=number,
            ContourSequence=list(_contours(label_mask(segmentation, value), geometry, sources)),
        )
        for number, value in numbered
    ]
    made.RTROIObservationsSequence = [
        _item(
            ObservationNumber=number,
            ReferencedROINumber=number,
            RTROIInterpretedType="",
            ROIInterpreter="",
        )
        for number, _ in numbered
    ]
    return made


def _described(sources: Sequence[Dataset]) -> FileDataset:
    """An RTSTRUCT without structures: whose, of which study, and on which images."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    now, uid, first = datetime.now(), generate_uid(), sources[0]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = _STORAGE, uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    for keyword in _FROM_STUDY:
        setattr(made, keyword, first.get(keyword, ""))
    _set(
        made,
        SOPClassUID=_STORAGE,
        SOPInstanceUID=uid,
        SpecificCharacterSet="ISO_IR 192",
        Modality="RTSTRUCT",
        SeriesInstanceUID=generate_uid(),
        SeriesNumber=int(first.get("SeriesNumber") or 0) + 1001,
        SeriesDescription="promptseg structures",
        Manufacturer="promptseg",
        ManufacturerModelName="promptseg",
        SoftwareVersions=promptseg.__version__,
        OperatorsName="",
        StructureSetLabel="promptseg",
        StructureSetDate=now.strftime("%Y%m%d"),
        StructureSetTime=now.strftime("%H%M%S"),
        ApprovalStatus="UNAPPROVED",
        ReferencedFrameOfReferenceSequence=[_frame_of_reference(sources)],
    )
    return made


def _contours(
    mask: np.ndarray, geometry: Geometry, sources: Sequence[Dataset]
) -> Iterator[Dataset]:
    """The closed contours of a mask, slice by slice, in mm."""
    for number in np.flatnonzero(mask.any(axis=(1, 2))):
        for outline in find_contours(np.pad(mask[number], 1).astype(float), 0.5):
            inside = outline[:-1] - 1  # the last point is the first again
            voxels = np.column_stack([np.full(len(inside), number), inside])
            mm = voxel_to_world(voxels, geometry)
            yield _item(
                ContourImageSequence=[_reference(sources[number])],
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(mm),
                ContourData=[f"{value:.{_DIGITS}f}" for value in mm.ravel()],
            )


def _frame_of_reference(sources: Sequence[Dataset]) -> Dataset:
    """What the structures lie in: frame, study, series and images."""
    from pydicom.uid import generate_uid

    series = _item(
        SeriesInstanceUID=sources[0].SeriesInstanceUID,
        ContourImageSequence=[_reference(source) for source in sources],
    )
    study = _item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=sources[0].StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    frame = sources[0].get("FrameOfReferenceUID") or generate_uid()  # some series have none
    return _item(FrameOfReferenceUID=frame, RTReferencedStudySequence=[study])


def _reference(source: Dataset) -> Dataset:
    return _item(
        ReferencedSOPClassUID=source.SOPClassUID, ReferencedSOPInstanceUID=source.SOPInstanceUID
    )


def _item(**values: Any) -> Dataset:
    from pydicom import Dataset

    return _set(Dataset(), **values)


def _set(dataset: Dataset, **values: Any) -> Dataset:
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset
