"""DICOM series: found, put into order and decoded by GDCM, their headers read by pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

if TYPE_CHECKING:
    from pydicom import Dataset

MODALITIES = {"CT": "CT", "MR": "MRI", "PT": "PET", "US": "US"}  # of DICOM, and as plans have them
_MOST_UNEVEN = 0.1  # of a series' slice distance; a missing slice gives 1


def series_in(folder: Path) -> list[str]:
    """The identifiers of the DICOM series whose files lie in a folder."""
    return list(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))


def read_dicom_series(folder: Path) -> sitk.Image:
    """Read the one series of a folder as a volume in rescaled values (HU for CT).

    Raises:
        ValueError: naming the folder, if it holds no series or several, or if slices are missing.
        RuntimeError: if ITK cannot read a file.
    """
    series = series_in(folder)
    if not series:
        raise ValueError(f"{folder}: a folder, but no DICOM series in it")
    files = [sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), s) for s in series]
    if len(series) > 1:
        raise ValueError(
            f"{folder}: expected one DICOM series, found {len(series)} with "
            f"{[len(names) for names in files]} files; put each series into a folder of its own"
        )
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files[0])
    image = reader.Execute()
    if image.HasMetaDataKey("ITK_non_uniform_sampling_deviation"):
        _check_slice_distances(folder, files[0])
    return image


def modality_of_series(folder: Path) -> str | None:
    """How the images of a folder's series were made, one of `MODALITIES`; None for another way."""
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    return MODALITIES.get(str(_header(names[0], "Modality").get("Modality"))) if names else None


def _check_slice_distances(folder: Path, files: tuple[str, ...]) -> None:
    """Raise if a series lacks a slice, which would shift all slices behind it."""
    positions = np.array([_position(file) for file in files])
    distances = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    if np.ptp(distances) > _MOST_UNEVEN * np.median(distances):
        raise ValueError(
            f"{folder}: its {len(positions)} slices are {distances.min():.4g} to "
            f"{distances.max():.4g} mm apart; a slice is missing or duplicated"
        )


def _position(file: str) -> list[float]:
    """World x, y, z of a slice's first voxel, in mm."""
    position = _header(file, "ImagePositionPatient").get("ImagePositionPatient")
    if not position or len(position) != 3:
        raise ValueError(f"{file}: a DICOM slice without its position (0020,0032)")
    return [float(value) for value in position]


def _header(file: str, *tags: str) -> Dataset:
    """The named entries of a file's header."""
    import pydicom  # a third of a second that most images do not need

    return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags), force=True)
