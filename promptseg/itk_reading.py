"""One image file or DICOM series to a SimpleITK image, refusing what ITK would read wrongly."""

from __future__ import annotations

import gzip
import logging
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

_MOST_SHEAR = 0.05  # cosine between two axes, about 3 degrees; header rounding gives 1e-4 to 1e-2
_MOST_UNEVEN = 0.1  # of a DICOM series' slice distance; a missing slice gives 1

_log = logging.getLogger(__name__)


def is_dicom_folder(path: Path | str) -> bool:
    """Whether a folder holds at least one DICOM series."""
    path = Path(path)
    with _quiet_itk():
        return path.is_dir() and bool(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path)))


def count_channels(path: Path | str) -> int:
    """How many components a voxel of a file has, from its header; 1 for a DICOM folder.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file if its header cannot be read.
    """
    path = _existing(path)
    if path.is_dir():
        return 1
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with _quiet_itk(), _itk_errors_name(path), _permissive_sform():
        reader.ReadImageInformation()
    return reader.GetNumberOfComponents()


def read_itk(path: Path | str) -> sitk.Image:
    """Read a file or a DICOM folder as a three-dimensional image; for the errors see `read_image`.

    Besides what ITK itself refuses, damaged NIfTI files and DICOM series without a slice are
    refused; an sform that is perpendicular up to rounding is accepted. ITK prints nothing.
    """
    path = _existing(path)
    with _quiet_itk(), _itk_errors_name(path):
        image = _read_dicom_series(path) if path.is_dir() else _read_file(path)
    size = image.GetSize()
    if len(size) != 3:
        raise ValueError(
            f"{path}: expected three dimensions, found {len(size)} (size {size}, xyz); write each "
            f"time point or channel to a file of its own, or a single slice with depth 1"
        )
    if 0 in size:
        raise ValueError(f"{path}: the image is empty (size {size}, xyz)")
    if "complex" in image.GetPixelIDTypeAsString():
        raise ValueError(f"{path}: voxels are complex numbers; save their magnitude")
    return image


def _read_file(path: Path) -> sitk.Image:
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        if "orthonormal" not in str(error):
            raise
        with _permissive_sform():
            image = sitk.ReadImage(str(path))
        _accept_shear(path, image)
    if path.name.lower().endswith((".nii.gz", ".nii", ".hdr")):
        _check_nifti_is_whole(path, image)
    return image


def _accept_shear(path: Path, image: sitk.Image) -> None:
    """Warn of axes that are nearly perpendicular, refuse those that are not.

    Many public NIfTI files have an sform that is perpendicular only up to rounding, which ITK
    refuses unless told otherwise; it then takes the nearest perpendicular axes.
    """
    rows = [image.GetMetaData(f"srow_{axis}").split()[:3] for axis in "xyz"]
    axes = np.array(rows, dtype=np.float64)
    axes /= np.linalg.norm(axes, axis=0)
    shear = np.abs(axes.T @ axes - np.eye(3)).max()
    if not shear <= _MOST_SHEAR:
        raise ValueError(
            f"{path}: its axes are not perpendicular (cosine {shear:.3g} between two of them, at "
            f"most {_MOST_SHEAR} is accepted); resample it onto a rectangular grid"
        )
    _log.warning(
        "%s: its axes are not quite perpendicular (cosine %.2g between two of them); "
        "the nearest perpendicular ones are used",
        path,
        shear,
    )


def _check_nifti_is_whole(path: Path, image: sitk.Image) -> None:
    """Raise if voxels are missing: ITK's NIfTI reader leaves memory noise there, silently."""
    if not image.HasMetaDataKey("bitpix"):
        return  # the header is of another format
    dimensions = int(image.GetMetaData("dim[0]"))
    voxels = math.prod(int(image.GetMetaData(f"dim[{i}]")) for i in range(1, dimensions + 1))
    header_bytes = int(float(image.GetMetaData("vox_offset")))
    expected = header_bytes + voxels * int(image.GetMetaData("bitpix")) // 8
    data = path.with_suffix(".img") if path.suffix.lower() == ".hdr" else path
    try:
        found = _gunzipped_size(data) if data.suffix.lower() == ".gz" else data.stat().st_size
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); copy it again") from error
    if found < expected:
        raise ValueError(
            f"{path} is cut short: its header promises {expected} bytes, the file holds {found}; "
            f"copy it again"
        )


def _gunzipped_size(path: Path) -> int:
    """Size after decompression, which checks the file's own checksum on the way."""
    with gzip.open(path) as stream:
        return sum(len(chunk) for chunk in iter(lambda: stream.read(1 << 20), b""))


def _read_dicom_series(folder: Path) -> sitk.Image:
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise ValueError(f"{folder}: a folder, but no DICOM series in it")
    if len(series) > 1:
        counts = [
            len(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), s)) for s in series
        ]
        raise ValueError(
            f"{folder}: expected one DICOM series, found {len(series)} with {counts} files; "
            f"put each series into a folder of its own"
        )
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series[0]))
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
    if image.HasMetaDataKey("ITK_non_uniform_sampling_deviation"):
        _check_slice_distances(folder, reader)
    return image


def _check_slice_distances(folder: Path, reader: sitk.ImageSeriesReader) -> None:
    """Raise if a DICOM series lacks a slice, which would shift all slices behind it."""
    positions = np.array(
        [
            [float(v) for v in reader.GetMetaData(i, "0020|0032").split("\\")]
            for i in range(len(reader.GetFileNames()))
        ]
    )
    distances = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    if np.ptp(distances) > _MOST_UNEVEN * np.median(distances):
        raise ValueError(
            f"{folder}: its {len(positions)} slices are {distances.min():.4g} to "
            f"{distances.max():.4g} mm apart; a slice is missing or there twice"
        )


def _existing(path: Path | str) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    return path


@contextmanager
def _itk_errors_name(path: Path) -> Iterator[None]:
    """Turn ITK's many-lined errors into one line that starts with the file."""
    try:
        yield
    except RuntimeError as error:
        cause = str(error).strip().splitlines()[-1].strip()
        if "Unable to determine ImageIO" in cause:
            cause = "its content is not of the format that its ending says, or it is cut short"
        raise ValueError(f"{path} cannot be read as an image: {cause}") from error


@contextmanager
def _quiet_itk() -> Iterator[None]:
    """Keep ITK's warnings off the terminal; what matters is checked and raised or logged here."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


@contextmanager
def _permissive_sform() -> Iterator[None]:
    """Let ITK's NIfTI reader accept an sform that is not quite orthonormal."""
    name = "ITK_NIFTI_SFORM_PERMISSIVE"  # read by itk::NiftiImageIO, ITK 5.3 and later
    before = os.environ.get(name)
    os.environ[name] = "ON"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
