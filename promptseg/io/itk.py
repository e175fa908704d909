"""One image file or DICOM series to a SimpleITK image, refusing what ITK would read wrongly."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from promptseg.io.nifti import accept_shear, permissive_sform, restore_voxels, strict_sform

_CHUNK = 1 << 18  # bytes read at a time; no header is as long
_MOST_UNEVEN = 0.1  # of a DICOM series' slice distance; a missing slice gives 1

_quiet = threading.Lock()
_quiet_reads = 0  # of all threads: ITK has one switch for the whole process
_shown_before = True


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
    with _quiet_itk(), _itk_errors_name(path), permissive_sform():
        reader.ReadImageInformation()
    return reader.GetNumberOfComponents()


def read_itk(path: Path | str) -> sitk.Image:
    """Read a file or a DICOM folder as a three-dimensional image; for the errors see `read_image`.

    Besides what ITK itself refuses, damaged files and DICOM series without a slice are refused; an
    sform that is perpendicular up to rounding is accepted; NaN in NIfTI files stays NaN. ITK's
    warnings are not printed.
    """
    return _checked(path, _read(path))


def read_itk_channels(path: Path | str) -> list[sitk.Image]:
    """An image for each channel of a file whose fourth dimension, if it has one, counts them.

    For the errors see `read_image`.
    """
    image = _read(path)
    if image.GetDimension() != 4:
        return [_checked(path, image)]
    return [_checked(path, image[:, :, :, i]) for i in range(image.GetSize()[3])]


def _read(path: Path | str) -> sitk.Image:
    path = _existing(path)
    if path.is_file() and not path.stat().st_size:
        raise ValueError(f"{path} cannot be read as an image: it has 0 bytes; copy it again")
    with _quiet_itk(), _itk_errors_name(path):
        return _read_dicom_series(path) if path.is_dir() else _read_file(path)


def _checked(path: Path | str, image: sitk.Image) -> sitk.Image:
    size = image.GetSize()
    if len(size) != 3:
        raise ValueError(
            f"{path}: expected three dimensions, found {len(size)} (size {size}, xyz); write each "
            f"time point or channel to a file of its own, or a single slice with depth 1"
        )
    if 0 in size:
        raise ValueError(f"{path}: the image has no voxels (size {size}, xyz); export it again")
    if "complex" in image.GetPixelIDTypeAsString():
        raise ValueError(f"{path}: voxels are complex numbers; save their magnitude")
    return image


def _read_file(path: Path) -> sitk.Image:
    try:
        with strict_sform():
            image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        if "orthonormal" not in str(error):
            raise
        with permissive_sform():
            image = sitk.ReadImage(str(path))
        accept_shear(path, image)
    if path.name.lower().endswith((".nii.gz", ".nii", ".hdr")):
        image = restore_voxels(path, image)
    elif path.name.lower().endswith((".mha", ".nrrd")):
        _check_compressed_voxels(path)
    return image


def _check_compressed_voxels(path: Path) -> None:
    """Raise if a compressed .mha or .nrrd is damaged; ITK makes up the voxels and goes on."""
    mha = path.suffix.lower() == ".mha"
    end = b"ElementDataFile = LOCAL\n" if mha else b"\n\n"
    mark = b"CompressedData = True" if mha else b"encoding: gz"
    stream = zlib.decompressobj(zlib.MAX_WBITS | (0 if mha else 16))
    with open(path, "rb") as file:
        header, _, voxels = file.read(_CHUNK).partition(end)
        if mark not in header or not voxels:
            return
        try:
            while voxels:
                stream.decompress(voxels)
                voxels = file.read(_CHUNK)
        except zlib.error as error:
            raise ValueError(f"{path} is damaged ({error}); copy it again") from error
    if not stream.eof:  # its checksum is at the end
        raise ValueError(f"{path} is cut short; copy it again")


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
        raise ValueError(
            f"{path} cannot be read as an image: {cause}; copy or convert it again"
        ) from error


@contextmanager
def _quiet_itk() -> Iterator[None]:
    """Keep ITK's warnings off the terminal; what matters is checked and raised or logged here.

    The first of several threads turns them off, the last back to what they were.
    """
    global _quiet_reads, _shown_before
    with _quiet:
        if not _quiet_reads:
            _shown_before = sitk.ProcessObject.GetGlobalWarningDisplay()
            sitk.ProcessObject.SetGlobalWarningDisplay(False)
        _quiet_reads += 1
    try:
        yield
    finally:
        with _quiet:
            _quiet_reads -= 1
            if not _quiet_reads:
                sitk.ProcessObject.SetGlobalWarningDisplay(_shown_before)
