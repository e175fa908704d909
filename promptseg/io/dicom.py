"""DICOM series: found, put into order and decoded by GDCM, their headers read by pydicom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import SimpleITK as sitk

if TYPE_CHECKING:
    from pydicom import Dataset

MODALITIES = {"CT": "CT", "MR": "MRI", "PT": "PET", "US": "US"}  # of DICOM, and as plans have them
_PREAMBLE = 128  # bytes before the letters DICM
_MOST_UNEVEN = 0.1  # of a series' slice distance; a missing slice gives 1
_ROUNDING = 1e-3  # of direction cosines
_SAME_PLACE = 1e-3  # mm
# Slices that are further apart than both, in thicknesses and in mm, do not make a volume.
_FAR_APART, _MOST_MM = 4.0, 25.0
_TAGS = (
    *("ImageType", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "SliceThickness"),
)


def series_in(folder: Path) -> list[str]:
    """The identifiers of the DICOM series whose files lie in a folder."""
    return list(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))


def read_dicom_series(folder: Path) -> sitk.Image:
    """Read the one series of a folder as a volume in rescaled values (HU for CT).

    Raises:
        ValueError: naming the folder, if it holds no series or several, or images that are not
            the slices of one volume with right angles.
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
    return read_slices(folder, files[0])


def read_slices(folder: Path, files: Sequence[str]) -> sitk.Image:
    """Read the images of one series, in their order, as a volume in rescaled values.

    Args:
        folder: for errors.
        files: of one series; see `in_order`.

    Raises:
        ValueError, RuntimeError: as `read_dicom_series`.
    """
    check_slices(folder, files)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    image = reader.Execute()
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:  # of an enhanced file
        image = image[..., 0]
        _check_grid(folder, files[0], image)
    return image


def _check_grid(folder: Path, file: str, image: sitk.Image) -> None:
    """Raise if ITK puts frames elsewhere than their header says."""
    positions, _ = _frames(file)
    places = [image.TransformIndexToPhysicalPoint((0, 0, z)) for z in range(image.GetSize()[2])]
    off = np.abs(np.array(places) - positions).max() if len(places) == len(positions) else np.inf
    if off > _SAME_PLACE * 10:
        raise ValueError(
            f"{folder}: the frames of {file} lie {off:.3g} mm from where they would be read; "
            f"convert it with dcm2niix"
        )


def in_order(files: Sequence[str]) -> list[str]:
    """The images of a series from the first slice to the last, as GDCM orders them.

    Raises:
        ValueError: naming an image that does not tell where it lies.
    """
    if len(files) < 2:
        return list(files)
    headers = [header_of(file, *_TAGS) for file in files]
    axes = _axes(files[0], headers[0])
    positions = [_position(*of_one) for of_one in zip(files, headers, strict=True)]
    along = np.array(positions) @ np.cross(axes[:3], axes[3:])
    return [files[place] for place in np.argsort(along, kind="stable")]


def modality_of_series(folder: Path) -> str | None:
    """How the images of a folder's series were made, one of `MODALITIES`; None for another way."""
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    return MODALITIES.get(str(header_of(names[0], "Modality").get("Modality"))) if names else None


def check_slices(folder: Path, files: Sequence[str]) -> None:
    """Raise unless the images of a series are the slices of one volume, with right angles.

    ITK stacks whatever it is given, with the distance of the first two images, or of 1 mm.
    """
    headers = [header_of(file, *_TAGS) for file in files]
    if any("LOCALIZER" in (header.get("ImageType") or ()) for header in headers):
        raise ValueError(f"{folder}: a localizer, to plan a scan by; choose another series")
    is_enhanced = any(int(header.get("NumberOfFrames") or 1) > 1 for header in headers)
    if is_enhanced and len(files) > 1:
        raise ValueError(
            f"{folder}: {len(files)} files of several frames each; put each into a folder"
        )
    if len(files) == 1 and not is_enhanced:
        return
    if is_enhanced:
        positions, axes = _frames(files[0])
    else:
        positions = np.array([_position(*of_one) for of_one in zip(files, headers, strict=True)])
        axes = np.array([_axes(*of_one) for of_one in zip(files, headers, strict=True)])
    _check_places(folder, positions, axes, headers[0])
    along = positions @ np.cross(axes[0, :3], axes[0, 3:])
    if is_enhanced and not (np.diff(along) > 0).all() and not (np.diff(along) < 0).all():
        raise ValueError(f"{folder}: the frames of {files[0]} are not in the order of their places")


def _frames(file: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions (n, 3) and directions (n, 6) of the frames of a file."""
    header = header_of(file, "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
    shared = [*header.get("SharedFunctionalGroupsSequence", []), None][0]
    positions, axes = [], []
    for frame in header.get("PerFrameFunctionalGroupsSequence", []):
        groups = [group for group in (frame, shared) if group is not None]
        place = _first(groups, "PlanePositionSequence", "ImagePositionPatient")
        turn = _first(groups, "PlaneOrientationSequence", "ImageOrientationPatient")
        if place is None or turn is None:
            break
        positions.append([float(value) for value in place])
        axes.append([float(value) for value in turn])
    else:
        if len(positions) > 1:
            return np.array(positions), np.array(axes)
    raise ValueError(
        f"{file}: several frames that do not tell where they lie, as those of a film; expected the "
        f"slices of a volume"
    )


def _first(groups: Sequence[Dataset], sequence: str, name: str) -> Sequence[float] | None:
    """A value of the first functional group that has it."""
    for group in groups:
        for item in group.get(sequence, []):
            if item.get(name):
                return item.get(name)
    return None


def _check_places(folder: Path, positions: np.ndarray, axes: np.ndarray, header: Dataset) -> None:
    """Raise unless slices at these positions, in these directions, make a volume."""
    count = len(positions)
    if np.abs(axes - axes[0]).max() > _ROUNDING:
        raise ValueError(f"{folder}: its slices lie at different angles and do not make a volume")
    normal = np.cross(axes[0, :3], axes[0, 3:])
    offsets = positions - positions[0]
    along = offsets @ normal
    distances = np.abs(np.diff(np.sort(along)))
    if twice := int((distances < _SAME_PLACE).sum()):
        raise ValueError(
            f"{folder}: {twice} of its {count} images lie where another one does, as time "
            f"points, echoes and copies do; put the images of each volume into a folder of its own"
        )
    if np.ptp(distances) > _MOST_UNEVEN * np.median(distances):
        raise ValueError(
            f"{folder}: its {count} slices are {distances.min():.4g} to "
            f"{distances.max():.4g} mm apart; a slice is missing or duplicated"
        )
    _check_stack(folder, header, np.abs(along).max(), offsets - np.outer(along, normal))
    thickness = float(header.get("SliceThickness") or 0)
    if thickness and distances.max() > max(_FAR_APART * thickness, _MOST_MM):
        raise ValueError(
            f"{folder}: slices of {thickness:.4g} mm, {distances.max():.4g} mm apart; they do "
            f"not make a volume, or slices between them are missing"
        )


def _check_stack(folder: Path, header: Dataset, height: float, sideways: np.ndarray) -> None:
    """Raise if slices are stacked aslant, by more than half a pixel from the first to the last."""
    pixels = header.get("PixelSpacing") or (1.0, 1.0)
    shift = np.linalg.norm(sideways, axis=1).max()
    if shift > min(map(float, pixels)) / 2:
        angle = np.rad2deg(np.arctan2(shift, height))
        raise ValueError(
            f"{folder}: its slices are stacked aslant, by {angle:.1f} degrees (gantry tilt), which "
            f"no grid with right angles has; resample it first, as dcm2niix does"
        )


def _position(file: str, header: Dataset) -> list[float]:
    """World x, y, z of a slice's first voxel, in mm."""
    position = header.get("ImagePositionPatient")
    if not position or len(position) != 3:
        raise ValueError(f"{file}: a DICOM slice without its position (0020,0032)")
    return [float(value) for value in position]


def _axes(file: str, header: Dataset) -> list[float]:
    """World directions of a slice's rows and columns, six numbers."""
    axes = header.get("ImageOrientationPatient")
    if not axes or len(axes) != 6:
        raise ValueError(f"{file}: a DICOM slice without its orientation (0020,0037)")
    return [float(value) for value in axes]


def begins_as_dicom(file: BinaryIO) -> bytes | None:
    """The first bytes of a DICOM file, read from it; None if it is another."""
    start = file.read(_PREAMBLE + 4)
    return start if start[_PREAMBLE:] == b"DICM" else None


def is_dicom_file(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    with open(path, "rb") as file:
        return begins_as_dicom(file) is not None


def header_of(file: str, *tags: str) -> Dataset:
    """The named entries of a file's header."""
    import pydicom  # a third of a second that most images do not need

    return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags), force=True)
