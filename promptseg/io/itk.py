"""Image files and DICOM folders through SimpleITK, refusing what it would read wrongly."""

from __future__ import annotations

import math
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import SimpleITK as sitk

from promptseg.io.dicom import is_dicom_file, read_dicom_series, read_slices
from promptseg.io.geometry import check_volume
from promptseg.io.nifti import damaged, opened

_WITH_TEXT = (".mha", ".mhd", ".nrrd", ".nhdr")
GIPL_ENDINGS = (".gipl.gz", ".gipl")
_GIPL_HEADER = 256  # bytes
_GIPL_BYTES = {15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}  # of a voxel, by type; of others one
_CHUNK = 1 << 18  # bytes read at a time; no header is as long

_DATA_FILE = re.compile(rb"^(?:ElementDataFile\s*=|data ?file:)([^\r\n]*)", re.I | re.M)

_MOST_AXES = 5  # some other numbers end the process
_DIMENSIONS = re.compile(rb"^(?:NDims\s*=|dimension:)\s*(-?\d+)", re.I | re.M)
_END = re.compile(rb"\r?\n\r?\n")  # of a NRRD header
_COMPRESSED = re.compile(rb"^(?:CompressedData\s*=\s*True|encoding:\s*gz)", re.I | re.M)
_LINE_SKIP = re.compile(rb"^line ?skip:\s*(\d+)", re.I | re.M)
_WHERE = re.compile(r"^ITK ERROR: \w+\(\w+\): ")  # class and address

_Header = tuple[bytes, list[str], int]  # as `_header` returns it

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
        path: a file of NRRD, MetaImage, GIPL or DICOM, or a folder.
        channels_last: four dimensions are read too, the last counting channels.

    Raises:
        ValueError: naming the file, if ITK refuses it; if its header takes the voxels from
            elsewhere than a file beside it; if it is damaged and ITK would invent
            voxels; if it has other dimensions or complex voxels; if a series lacks a slice.
    """
    path = Path(path)
    name = path.name.lower()
    header = _header(path) if name.endswith(_WITH_TEXT) else None
    if header is not None:
        _check_header(path, header)
    if name.endswith(GIPL_ENDINGS):
        _check_gipl(path)
    with _quiet_itk(), _itk_errors_name(path):
        if path.is_dir():
            image = read_dicom_series(path)
        elif is_dicom_file(path):
            image = read_slices(path, [str(path)])
        else:
            image = sitk.ReadImage(str(path))
    if header is not None:
        _check_compressed_voxels(path, header)
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[..., 0]  # one point in time, as of enhanced DICOM
    check_volume(path, image.GetSize(), channels_last=channels_last)
    if "complex" in image.GetPixelIDTypeAsString():
        raise ValueError(f"{path}: voxels are complex numbers; save their magnitude")
    return image


def _check_header(path: Path, found: _Header) -> None:
    """Raise if a header has a number of axes that ITK does not read, or voxels not beside it."""
    header, names, _ = found
    if (axes := _DIMENSIONS.search(header)) and not 2 <= int(axes[1]) <= _MOST_AXES:
        raise ValueError(f"{path}: expected three dimensions, found {int(axes[1])}")
    for name in names:
        if name != Path(name).name or "\\" in name or ":" in name:
            raise ValueError(
                f"{path}: its header takes the voxels from {name!r}; expected a file beside it, or "
                f"none; write it again as one file"
            )
        if name and "%" not in name and not path.with_name(name).is_file():  # % is of a pattern
            raise ValueError(f"{path}: its header takes the voxels from {name!r}, which is missing")


def _header(path: Path) -> _Header:
    """A header of MetaImage or NRRD, the files that it names, and the bytes before its voxels."""
    with open(path, "rb") as file:
        start = file.read(_CHUNK)
    end = _END.search(start)
    header, length = (start[: end.start()], end.end()) if end else (start, len(start))
    data = _DATA_FILE.search(header)
    if data is None:
        return header, [], length
    names = [data[1]]
    if data[1].split()[:1] == [b"LIST"]:
        names = start[data.end() :].split(b"\n")
    elif data[1].strip() == b"LOCAL":
        return header, [], data.end() + 1
    return header, [raw.strip().strip(b'"').decode("utf-8", "replace") for raw in names], length


def _check_compressed_voxels(path: Path, found: _Header) -> None:
    """Raise if compressed voxels are damaged; ITK invents those that are missing silently."""
    header, names, length = found
    if not _COMPRESSED.search(header):
        return
    lines = _LINE_SKIP.search(header)
    for data in [path.with_name(name) for name in names if name] or [path]:
        with open(data, "rb") as file:
            file.seek(length if data == path else 0)
            for _ in range(int(lines[1]) if lines else 0):
                file.readline(_CHUNK)
            stream = zlib.decompressobj(zlib.MAX_WBITS | 32)  # of zlib or gzip
            try:
                while not stream.eof and (voxels := file.read(_CHUNK)):
                    stream.decompress(voxels)
            except zlib.error as error:
                raise ValueError(f"{path} is damaged ({error}); copy it again") from error
        if not stream.eof:  # its checksum is at the end
            raise ValueError(f"{path} is cut short; copy it again")


def _check_gipl(path: Path) -> None:
    """Raise if a file holds fewer bytes than its header promises; ITK invents the missing ones."""
    try:
        with ExitStack() as stack:
            stream = opened(path, stack)
            header = stream.read(_GIPL_HEADER)
            found = len(header)
            while part := stream.read(_CHUNK):
                found += len(part)
    except (EOFError, OSError, zlib.error) as error:
        raise damaged(path, error) from error
    if len(header) < _GIPL_HEADER:
        raise damaged(path, "it ends within its header")
    *size, kind = struct.unpack(">5H", header[:10])
    promised = _GIPL_HEADER + math.prod(max(n, 1) for n in size) * _GIPL_BYTES.get(kind, 1)
    if found < promised:
        raise damaged(path, f"its header promises {promised} bytes, found {found}")


@contextmanager
def _itk_errors_name(path: Path) -> Iterator[None]:
    """Turn ITK's multi-line errors into one line that starts with the file."""
    try:
        yield
    except RuntimeError as error:
        cause = _WHERE.sub("", str(error).strip().splitlines()[-1].strip())
        if "Unable to determine ImageIO" in cause:
            cause = "its content is not of the format that its ending says, or it is cut short"
        elif cause.startswith("Reason:"):  # of the last call, which was another
            cause = "its voxels are missing, damaged or cut short"
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
