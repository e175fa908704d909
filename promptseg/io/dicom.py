"""DICOM series: found and put into order by pydicom's headers, decoded by GDCM."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
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
    *("PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "SOPClassUID", "Rows"),
    *("PhotometricInterpretation", "SamplesPerPixel", "BitsAllocated"),
)
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_DOSE = "1.2.840.10008.5.1.4.1.1.481.2"
_CHANGED_BY_GDCM = ("MONOCHROME1", "PALETTE COLOR")  # inverted, and cut to 8 bits


def series_in(folder: Path) -> dict[str, list[str]]:
    """The images in a folder of each DICOM series, by its identifier, in the order of their names.

    Raises:
        ValueError: naming a file whose header is damaged.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for path in _dicom_files(folder):
        header = header_of(path, "SeriesInstanceUID", "Rows")
        if header.get("Rows"):
            found[str(header.get("SeriesInstanceUID") or "")].append(path)
    return dict(found)


def is_dicom_folder(path: Path | str) -> bool:
    """Whether a folder holds at least one DICOM image, which may be damaged."""
    path = Path(path)
    return path.is_dir() and any(_may_be_image(file) for file in _dicom_files(path))


def _dicom_files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.is_file() and os.access(path, os.R_OK) and is_dicom_file(path):
            yield str(path)


def _may_be_image(file: str) -> bool:
    try:
        return bool(header_of(file, "Rows").get("Rows"))
    except ValueError:
        return True


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
    if len(series) > 1:
        raise ValueError(
            f"{folder}: expected one DICOM series, found {len(series)} with "
            f"{sorted(map(len, series.values()))} files; put each series into a folder of its own"
        )
    [files] = series.values()
    return read_slices(folder, files)


def read_slices(folder: Path, files: Sequence[str]) -> sitk.Image:
    """Read the images of one series as a volume in rescaled values.

    Args:
        folder: for errors.
        files: of one series, in any order.

    Raises:
        ValueError, RuntimeError: as `read_dicom_series`.
    """
    headers = _headers(files)
    _check_series(folder, files, headers)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(_ordered(files, headers))
    image = reader.Execute()
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:  # of an enhanced file
        image = image[..., 0]
        _check_grid(folder, files[0], image)
    elif len(files) == 1:  # ITK does not always take its thickness
        names = ("SpacingBetweenSlices", "SliceThickness")
        thickness = max(_number(files[0], headers[0], name) for name in names)
        image.SetSpacing((*image.GetSpacing()[:2], thickness if thickness > 0 else 1.0))
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
    return _ordered(files, _headers(files))


def _headers(files: Sequence[str]) -> list[Dataset]:
    return [header_of(file, *_TAGS) for file in files]


def _ordered(files: Sequence[str], headers: Sequence[Dataset]) -> list[str]:
    if len(files) < 2:
        return list(files)
    axes = _axes(files[0], headers[0])
    positions = [_position(*of_one) for of_one in zip(files, headers, strict=True)]
    along = np.array(positions) @ np.cross(axes[:3], axes[3:])
    return [files[place] for place in np.argsort(along, kind="stable")]


def modality_of_series(folder: Path) -> str | None:
    """How the images of a folder's series were made, one of `MODALITIES`; None for another way."""
    for files in series_in(folder).values():
        return MODALITIES.get(str(header_of(files[0], "Modality").get("Modality")))
    return None


def check_slices(folder: Path, files: Sequence[str]) -> None:
    """Raise unless the images of a series are the slices of one volume, with right angles.

    ITK stacks whatever it is given, with the distance of the first two images, or of 1 mm.
    """
    _check_series(folder, files, _headers(files))


def _check_series(folder: Path, files: Sequence[str], headers: Sequence[Dataset]) -> None:
    for file, header in zip(files, headers, strict=True):
        _check_pixels(file, header)
    if any("LOCALIZER" in str(header.get("ImageType")) for header in headers):
        raise ValueError(f"{folder}: a localizer, to plan a scan by; choose another series")
    if any("MOSAIC" in str(header.get("ImageType")) for header in headers):
        raise ValueError(
            f"{folder}: its images are mosaics of slices (Siemens); convert it with dcm2niix"
        )
    is_enhanced = any(_number(folder, header, "NumberOfFrames") > 1 for header in headers)
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


def _check_pixels(file: str, header: Dataset) -> None:
    """Raise unless a file holds an image, with values that GDCM gives as they are stored."""
    if header.get("SOPClassUID") in SEGMENTATIONS:
        raise ValueError(f"{file}: a DICOM segmentation, not an image; take it as the mask of one")
    if header.get("SOPClassUID") == _DOSE:
        raise ValueError(f"{file}: a radiotherapy dose, not an image")
    if not header.get("Rows"):
        raise ValueError(f"{file}: a DICOM file without an image")
    kind, bits = header.get("PhotometricInterpretation"), _number(file, header, "BitsAllocated")
    if kind in _CHANGED_BY_GDCM:
        raise ValueError(f"{file}: its values are stored as {kind}; save them as MONOCHROME2")
    if _number(file, header, "SamplesPerPixel") > 1 and bits > 8:
        raise ValueError(f"{file}: colours of {bits:g} bits; save them with 8 bits")
    if bits > 16 and header.original_encoding == (False, False):  # GDCM swaps bytes in pairs
        raise ValueError(f"{file}: {bits:g} bits in big endian; save it in little endian")


def _frames(file: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions (n, 3) and directions (n, 6) of the frames of a file."""
    header = header_of(file, "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
    positions, axes = [], []
    try:
        shared = [*header.get("SharedFunctionalGroupsSequence", [])][:1]
        for frame in header.get("PerFrameFunctionalGroupsSequence", []):
            groups = [frame, *shared]
            place = _first(groups, "PlanePositionSequence", "ImagePositionPatient")
            turn = _first(groups, "PlaneOrientationSequence", "ImageOrientationPatient")
            positions.append(_numbers(file, place))
            axes.append(_numbers(file, turn))
    except (AttributeError, TypeError) as error:  # no sequences, or of other than data sets
        raise _damaged(file, error) from error
    if len(positions) > 1 and {*map(len, positions)} == {3} and {*map(len, axes)} == {6}:
        return np.array(positions), np.array(axes)
    raise ValueError(
        f"{file}: several frames that do not tell where they lie, as those of a film; expected the "
        f"slices of a volume"
    )


def _first(groups: Sequence[Dataset], sequence: str, name: str) -> Sequence[float]:
    """A value of the first functional group that has it; empty if none has."""
    for group in groups:
        for item in group.get(sequence, []):
            if item.get(name):
                return item.get(name)
    return ()


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
    thickness = _number(folder, header, "SliceThickness")
    if thickness and distances.max() > max(_FAR_APART * thickness, _MOST_MM):
        raise ValueError(
            f"{folder}: slices of {thickness:.4g} mm, {distances.max():.4g} mm apart; they do "
            f"not make a volume, or slices between them are missing"
        )


def _check_stack(folder: Path, header: Dataset, height: float, sideways: np.ndarray) -> None:
    """Raise if slices are stacked aslant, by more than half a pixel from the first to the last."""
    pixels = header.get("PixelSpacing") or (1.0, 1.0)
    shift = np.linalg.norm(sideways, axis=1).max()
    if shift > min(_numbers(folder, pixels)) / 2:
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
    return _numbers(file, position)


def _axes(file: str, header: Dataset) -> list[float]:
    """World directions of a slice's rows and columns, six numbers."""
    axes = header.get("ImageOrientationPatient")
    if not axes or len(axes) != 6:
        raise ValueError(f"{file}: a DICOM slice without its orientation (0020,0037)")
    return _numbers(file, axes)


def _numbers(file: Path | str, values: Sequence[object]) -> list[float]:
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise _damaged(file, error) from error


def _number(file: Path | str, header: Dataset, name: str) -> float:
    """An entry of one number; 0 if it is missing or empty."""
    return _numbers(file, [header.get(name) or 0])[0]


def _damaged(file: Path | str, error: Exception) -> ValueError:
    return ValueError(f"{file} cannot be read as DICOM: {error}; copy it again")


def begins_as_dicom(file: BinaryIO) -> bytes | None:
    """The first bytes of a DICOM file, read from it; None if it is another."""
    start = file.read(_PREAMBLE + 4)
    return start if start[_PREAMBLE:] == b"DICM" else None


def is_dicom_file(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    with open(path, "rb") as file:
        return begins_as_dicom(file) is not None


def header_of(file: Path | str, *tags: str) -> Dataset:
    """The named entries of a file's header, or all without names; no pixels.

    Raises:
        ValueError: naming the file, if they are damaged.
    """
    import pydicom  # a third of a second that most images do not need

    try:
        header = pydicom.dcmread(
            file, stop_before_pixels=True, specific_tags=list(tags) or None, force=True
        )
        for _ in header.iterall():  # which parses them
            pass
    except Exception as error:  # there are many kinds
        raise _damaged(file, error) from error
    return header
