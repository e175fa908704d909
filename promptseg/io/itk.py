"""Image files and DICOM folders through SimpleITK, refusing what it would read wrongly."""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import SimpleITK as sitk

from promptseg.io.dicom import is_dicom_file, read_dicom_series, read_slices
from promptseg.io.geometry import check_volume

_CHUNK = 1 << 18  # bytes read at a time; no header is as long

_DATA_FILE = re.compile(rb"^(?:ElementDataFile\s*=|data ?file:)([^\r\n]*)", re.I | re.M)

_quiet = threading.Lock()
_quiet_reads = 0  # of all threads: ITK has one switch for the whole process
_shown_before = True


def count_itk_channels(path: Path) -> int:
    """The number of components per voxel, from a file's header.

    Raises:
        ValueError: naming the file if its header cannot be read.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with _quiet_itk(), _itk_errors_name(path):
        reader.ReadImageInformation()
    return reader.GetNumberOfComponents()


def read_itk(path: Path | str, *, channels_last: bool = False) -> sitk.Image:
    """Read a file or a DICOM folder as a three-dimensional image.

    ITK's warnings are not printed.

    Args:
        path: a file of any format but NIfTI, or a folder.
        channels_last: four dimensions are read too, the last counting channels.

    Raises:
        ValueError: naming the file, if ITK refuses it; if its header takes the voxels from
            elsewhere than a file beside it; if it is damaged and ITK would invent
            voxels; if it has other dimensions or complex voxels; if a series lacks a slice.
    """
    path = Path(path)
    if path.name.lower().endswith((".mha", ".mhd", ".nrrd", ".nhdr")):
        _check_names_of_data(path)
    with _quiet_itk(), _itk_errors_name(path):
        if path.is_dir():
            image = read_dicom_series(path)
        elif is_dicom_file(path):
            image = read_slices(path, [str(path)])
        else:
            image = sitk.ReadImage(str(path))
    if path.name.lower().endswith((".mha", ".nrrd")):
        _check_compressed_voxels(path)
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[..., 0]  # one point in time, as of enhanced DICOM
    check_volume(path, image.GetSize(), channels_last=channels_last)
    if "complex" in image.GetPixelIDTypeAsString():
        raise ValueError(f"{path}: voxels are complex numbers; save their magnitude")
    return image


def _check_names_of_data(path: Path) -> None:
    """Raise if a header takes its voxels from anywhere but a file beside it."""
    with open(path, "rb") as file:
        header = file.read(_CHUNK)
    match = _DATA_FILE.search(header.partition(b"\n\n")[0])
    if match is None:
        return
    names = [match[1]]
    if match[1].split()[:1] == [b"LIST"]:
        names = header[match.end() :].split(b"\n")
    for raw in names:
        name = raw.strip().strip(b'"').decode("utf-8", "replace")
        if name != Path(name).name or "\\" in name or ":" in name:
            raise ValueError(
                f"{path}: its header takes the voxels from {name!r}; expected a file beside it, or "
                f"none; write it again as one file"
            )


def _check_compressed_voxels(path: Path) -> None:
    """Raise if a compressed .mha or .nrrd is damaged; ITK invents the missing voxels silently."""
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


@contextmanager
def _itk_errors_name(path: Path) -> Iterator[None]:
    """Turn ITK's multi-line errors into one line that starts with the file."""
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

    The first of several threads turns them off; the last restores them.
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
