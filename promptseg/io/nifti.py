"""What ITK's NIfTI reader refuses needlessly or gets wrong silently, put right."""

from __future__ import annotations

import gzip
import logging
import math
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

_MOST_SHEAR = 0.05  # cosine between two axes, about 3 degrees; header rounding gives 1e-4 to 1e-2
_FLOAT_TYPES = {"16": "f4", "64": "f8"}  # the header's datatype
_CHUNK = 1 << 22  # bytes, a multiple of every voxel's

_log = logging.getLogger(__name__)


_strict = threading.Condition()  # the switch holds for all threads: never both at a time
_strict_reads = 0


@contextmanager
def strict_sform() -> Iterator[None]:
    """Keep other threads from reading permissively meanwhile; several may read strictly."""
    global _strict_reads
    with _strict:
        _strict_reads += 1
    try:
        yield
    finally:
        with _strict:
            _strict_reads -= 1
            _strict.notify_all()


@contextmanager
def permissive_sform() -> Iterator[None]:
    """Let ITK's NIfTI reader accept an sform that is not quite orthonormal."""
    name = "ITK_NIFTI_SFORM_PERMISSIVE"  # read by itk::NiftiImageIO, ITK 5.3 and later
    with _strict:
        _strict.wait_for(lambda: not _strict_reads)
        before = os.environ.get(name)
        os.environ[name] = "ON"
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def accept_shear(path: Path, image: sitk.Image) -> None:
    """Warn of axes that are nearly perpendicular, refuse those that are not.

    Many public NIfTI files have an sform that is perpendicular only up to rounding, which ITK
    refuses unless told otherwise (`permissive_sform`); it then takes the nearest perpendicular
    axes.

    Args:
        path: for the messages.
        image: as read permissively.

    Raises:
        ValueError: if two axes are more than about 3 degrees from perpendicular.
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


def restore_voxels(path: Path, image: sitk.Image) -> sitk.Image:
    """The same image with its NaN and infinite voxels, which ITK reads as 0.

    Raises:
        ValueError: if voxels are missing or the compressed file is damaged; ITK reads memory
            noise in their place.
    """
    if not image.HasMetaDataKey("bitpix"):
        return image  # a .hdr of another format
    dimensions = int(image.GetMetaData("dim[0]"))
    voxels = math.prod(int(image.GetMetaData(f"dim[{i}]")) for i in range(1, dimensions + 1))
    header_bytes = int(float(image.GetMetaData("vox_offset")))
    expected = header_bytes + voxels * int(image.GetMetaData("bitpix")) // 8
    try:
        found, indices, values = _scan(path, header_bytes, image.GetMetaData("datatype"))
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); copy it again") from error
    if found < expected:
        raise ValueError(
            f"{path} is cut short: its header promises {expected} bytes, the file holds {found}; "
            f"copy it again"
        )
    inside = indices < voxels
    return _with_values(image, indices[inside], values[inside]) if inside.any() else image


def _scan(path: Path, header_bytes: int, datatype: str) -> tuple[int, np.ndarray, np.ndarray]:
    """Read a file once, which checks a compressed file's checksum on the way.

    Returns:
        its size when not compressed; where its NaN and infinite voxels are, in file order, and
        their values.
    """
    paired = path.suffix.lower() == ".hdr"
    data = path.with_suffix(".img") if paired else path
    indices, values, size = [], [], header_bytes
    with gzip.open(data) if data.suffix.lower() == ".gz" else open(data, "rb") as stream:
        header = path.read_bytes()[:4] if paired else stream.read(header_bytes)[:4]
        order = "<" if int.from_bytes(header, "little") == 348 else ">"  # the header's own size
        dtype = np.dtype(order + _FLOAT_TYPES.get(datatype, "u1"))
        while chunk := stream.read(_CHUNK):
            block = np.frombuffer(chunk, dtype, count=len(chunk) // dtype.itemsize)
            if dtype.kind == "f" and not np.isfinite(block).all():
                odd = np.flatnonzero(~np.isfinite(block))
                indices.append(odd + (size - header_bytes) // dtype.itemsize)
                values.append(block[odd])
            size += len(chunk)
    if not indices:
        return size, np.empty(0, np.intp), np.empty(0)
    return size, np.concatenate(indices), np.concatenate(values)


def _with_values(image: sitk.Image, indices: np.ndarray, values: np.ndarray) -> sitk.Image:
    """A copy with other values at some voxels, counted as NIfTI does: components slowest."""
    array = sitk.GetArrayFromImage(image)
    is_vector = array.ndim > image.GetDimension()
    planar = np.moveaxis(array, -1, 0) if is_vector else array
    planar[np.unravel_index(indices, planar.shape)] = values
    changed = sitk.GetImageFromArray(array, isVector=is_vector)
    changed.CopyInformation(image)
    return changed
