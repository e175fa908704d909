"""Image files to arrays and back, through SimpleITK; the only place where xyz and zyx meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from promptseg.files import replacing

FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl.gz", ".gipl", ".hdr")


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where an array's voxels lie in the world.

    Attributes:
        shape: voxels, zyx.
        spacing: mm, zyx.
        origin: mm, world x, y, z of the first voxel's centre (SimpleITK's).
        direction: 3x3 direction cosines, row by row (SimpleITK's).
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    def difference_from(self, other: Geometry, tolerance: float = 1e-3) -> str | None:
        """The first field in which two geometries differ, in words, or None when they agree.

        Spacing and direction are compared to `tolerance` (relative and absolute), the origin to
        `tolerance` times the smallest spacing times 100, since scanners round it in the file.
        """
        if self.shape != other.shape:
            return f"shape {self.shape} and {other.shape} (zyx, voxels)"
        if not np.allclose(self.spacing, other.spacing, rtol=tolerance, atol=1e-6):
            return f"spacing {_short(self.spacing)} and {_short(other.spacing)} (zyx, mm)"
        if not np.allclose(self.direction, other.direction, atol=tolerance):
            return f"direction {_short(self.direction)} and {_short(other.direction)}"
        allowed_mm = 100 * tolerance * min(self.spacing)
        if not np.allclose(self.origin, other.origin, rtol=0, atol=allowed_mm):
            return f"origin {_short(self.origin)} and {_short(other.origin)} (xyz, mm)"
        return None


def file_ending(path: Path | str) -> str | None:
    """The image ending of a file name (`.nii.gz`), or None when it is no image we read."""
    name = Path(path).name.lower()
    return next((ending for ending in FILE_ENDINGS if name.endswith(ending)), None)


def is_dicom_folder(path: Path | str) -> bool:
    """Whether a folder holds at least one DICOM series."""
    path = Path(path)
    return path.is_dir() and bool(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path)))


def read_image(paths: Path | str | Sequence[Path | str]) -> tuple[np.ndarray, Geometry]:
    """Read one case: a file or DICOM folder, or one file for each channel.

    Returns:
        (c, z, y, x) array in the files' own number type, and its geometry. A file with several
        components a voxel gives as many channels.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: naming the file if it cannot be read, is not three-dimensional, is empty, or
            if the channels' geometries differ.
    """
    if isinstance(paths, (str, Path)):
        paths = [paths]
    channels, first = [], None
    for path in paths:
        image = _read(Path(path))
        geometry = _geometry(image)
        if first is None:
            first = geometry
        elif difference := first.difference_from(geometry):
            raise ValueError(
                f"{paths[0]} and {path} are channels of one case but differ: {difference}"
            )
        array = sitk.GetArrayFromImage(image)
        channels.append(array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0))
    return channels[0] if len(channels) == 1 else np.concatenate(channels), first


def read_segmentation(path: Path | str) -> tuple[np.ndarray, Geometry]:
    """Read a label file.

    Returns:
        (z, y, x) array of integers in the smallest fitting of uint8, int16 and int32, and its
        geometry.

    Raises:
        ValueError: if the file has several channels or values that are not whole numbers.
    """
    array, geometry = read_image(path)
    if array.shape[0] != 1:
        raise ValueError(f"{path}: a segmentation has one channel, found {array.shape[0]}")
    array = array[0]
    if not np.issubdtype(array.dtype, np.integer):
        rounded = np.rint(array)
        if not np.array_equal(rounded, array):
            odd = array[rounded != array][0]
            raise ValueError(f"{path}: labels must be whole numbers, found {odd:g}")
        array = rounded
    lowest, highest = int(array.min()), int(array.max())
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= lowest and highest <= np.iinfo(dtype).max:
            return array.astype(dtype, copy=False), geometry
    raise ValueError(f"{path}: label values {lowest} to {highest} do not fit into 32 bits")


def write_image(path: Path | str, array: np.ndarray, geometry: Geometry) -> None:
    """Write a (z, y, x) array with its geometry, in one step; the ending gives the format."""
    if array.shape != geometry.shape:
        raise ValueError(f"{path}: array has shape {array.shape}, its geometry {geometry.shape}")
    if array.dtype == bool:
        array = array.astype(np.uint8)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in geometry.spacing[::-1]])
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    with replacing(path) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)


def _read(path: Path) -> sitk.Image:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        image = _read_dicom_series(path) if path.is_dir() else sitk.ReadImage(str(path))
    except RuntimeError as error:
        cause = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{path} cannot be read as an image: {cause}") from error
    size = image.GetSize()
    if len(size) != 3:
        raise ValueError(f"{path}: expected three dimensions, found {len(size)} (size {size}, xyz)")
    if 0 in size:
        raise ValueError(f"{path}: the image is empty (size {size}, xyz)")
    return image


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
    return reader.Execute()


def _geometry(image: sitk.Image) -> Geometry:
    return Geometry(
        shape=tuple(int(n) for n in image.GetSize()[::-1]),
        spacing=tuple(float(s) for s in image.GetSpacing()[::-1]),
        origin=tuple(float(v) for v in image.GetOrigin()),
        direction=tuple(float(v) for v in image.GetDirection()),
    )


def _short(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in values) + ")"
