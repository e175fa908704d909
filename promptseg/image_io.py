"""Image files to arrays and back, through SimpleITK; the only place where xyz and zyx meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from promptseg.files import replacing
from promptseg.itk_reading import count_channels, is_dicom_folder, read_itk

__all__ = [
    "FILE_ENDINGS",
    "WRITABLE_ENDINGS",
    "Geometry",
    "as_labels",
    "count_channels",
    "file_ending",
    "is_dicom_folder",
    "read_image",
    "read_segmentation",
    "write_image",
]

FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl.gz", ".gipl", ".hdr")
WRITABLE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")  # one file, and it keeps the direction


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

    def differences_from(
        self, other: Geometry, tolerance: float = 1e-3
    ) -> list[tuple[str, str, str]]:
        """Every field in which two geometries differ: its name, this one's value, the other's.

        Spacing and direction are compared to `tolerance` (relative and absolute), the origin to
        `tolerance` times the smallest spacing times 100, since scanners round it in the file.
        """
        allowed_mm = 100 * tolerance * min(self.spacing)
        agree = {
            "shape": self.shape == other.shape,
            "spacing": np.allclose(self.spacing, other.spacing, rtol=tolerance, atol=1e-6),
            "direction": np.allclose(self.direction, other.direction, rtol=0, atol=tolerance),
            "origin": np.allclose(self.origin, other.origin, rtol=0, atol=allowed_mm),
        }
        units = {"shape": " (zyx, voxels)", "spacing": " (zyx, mm)", "origin": " (xyz, mm)"}
        return [
            (name, _short(getattr(self, name)), _short(getattr(other, name)) + units.get(name, ""))
            for name, same in agree.items()
            if not same
        ]

    def difference_from(self, other: Geometry, tolerance: float = 1e-3) -> str | None:
        """The first of `differences_from` in words, or None when the two agree."""
        for name, mine, others in self.differences_from(other, tolerance):
            return f"{name} {mine} and {others}"
        return None


def file_ending(path: Path | str) -> str | None:
    """The image ending of a file name (`.nii.gz`), or None when it is no image we read."""
    name = Path(path).name.lower()
    return next((ending for ending in FILE_ENDINGS if name.endswith(ending)), None)


def read_image(paths: Path | str | Sequence[Path | str]) -> tuple[np.ndarray, Geometry]:
    """Read one case: a file or DICOM folder, or one file for each channel.

    Returns:
        (c, z, y, x) array in the files' own number type, and its geometry. A file with several
        components a voxel gives as many channels.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: naming the file if it cannot be read, is damaged, is not three-dimensional or
            is empty, or if the channels' geometries differ.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not paths:
        raise ValueError("a case needs at least one image file, got none")
    images = [read_itk(path) for path in paths]
    geometries = [_geometry(image) for image in images]
    for path, geometry in zip(paths, geometries, strict=True):
        if difference := geometries[0].difference_from(geometry):
            raise ValueError(
                f"{paths[0]} and {path} are channels of one case but differ: {difference}; "
                f"resample one onto the other's grid"
            )
    views = [sitk.GetArrayViewFromImage(image) for image in images]
    channels = [v[None] if v.ndim == 3 else np.moveaxis(v, -1, 0) for v in views]
    return np.concatenate(channels), geometries[0]  # the only copy of the voxels


def read_segmentation(path: Path | str) -> tuple[np.ndarray, Geometry]:
    """Read a label file.

    Returns:
        (z, y, x) array of integers in the smallest fitting of uint8, int16 and int32, and its
        geometry.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it cannot be read, has several channels or values that are not whole
            numbers.
    """
    array, geometry = read_image(path)
    if array.shape[0] != 1:
        raise ValueError(f"{path}: a segmentation has one channel, found {array.shape[0]}")
    try:
        return as_labels(array[0]), geometry
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def as_labels(array: np.ndarray) -> np.ndarray:
    """The same whole numbers in the smallest fitting of uint8, int16 and int32.

    Raises:
        ValueError: if a value is not a whole number or fits into none of the three.
    """
    if not np.issubdtype(array.dtype, np.integer):
        odd = array[array != np.rint(array)]  # NaN differs from itself
        if odd.size:
            raise ValueError(f"labels must be whole numbers, found {odd[0]:g}")
    lowest, highest = array.min(), array.max()
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= lowest and highest <= np.iinfo(dtype).max:
            return array.astype(dtype, copy=False)
    raise ValueError(f"label values {lowest:g} to {highest:g} do not fit into 32 bits")


def write_image(path: Path | str, array: np.ndarray, geometry: Geometry) -> None:
    """Write a (z, y, x) array with its geometry, in one step; the ending gives the format.

    Raises:
        ValueError: if the shapes disagree, or the format needs two files (they could not be
            replaced in one step) or drops the direction.
    """
    if not str(path).lower().endswith(WRITABLE_ENDINGS):
        raise ValueError(
            f"{path}: images are written as {', '.join(WRITABLE_ENDINGS)}; other formats need a "
            f"second file or lose the direction"
        )
    if array.shape != geometry.shape:
        raise ValueError(f"{path}: array has shape {array.shape}, its geometry {geometry.shape}")
    if array.dtype == bool:
        array = array.astype(np.uint8)
    elif array.dtype == np.float16:  # no image format has it
        array = array.astype(np.float32)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in geometry.spacing[::-1]])
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    with replacing(path) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)


def _geometry(image: sitk.Image) -> Geometry:
    return Geometry(
        shape=tuple(int(n) for n in image.GetSize()[::-1]),
        spacing=tuple(float(s) for s in image.GetSpacing()[::-1]),
        origin=tuple(float(v) for v in image.GetOrigin()),
        direction=tuple(float(v) for v in image.GetDirection()),
    )


def _short(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in values) + ")"
