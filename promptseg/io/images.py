"""Image files to arrays and back; the only place where SimpleITK's xyz and zyx meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from promptseg.files import replacing
from promptseg.io.challenge_npz import LABEL_KEYS, read_npz_volume, write_npz_labels
from promptseg.io.itk import count_channels as count_itk_channels
from promptseg.io.itk import is_dicom_folder, read_itk
from promptseg.words import rounded

__all__ = [
    "FILE_ENDINGS",
    "ITK_ENDINGS",
    "NPZ",
    "SEGMENTATION_ENDINGS",
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

ITK_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl.gz", ".gipl", ".hdr")
NPZ = ".npz"  # of the BiomedSegFM challenge: one channel, and image and labels in one file or two
FILE_ENDINGS = (*ITK_ENDINGS, NPZ)
WRITABLE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")  # one file, and it keeps the direction
SEGMENTATION_ENDINGS = (*WRITABLE_ENDINGS, NPZ)


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
        differing = [name for name, same in agree.items() if not same]
        values = [[rounded(getattr(g, name)) for g in (self, other)] for name in differing]
        return [
            (name, mine, its + units.get(name, ""))
            for name, (mine, its) in zip(differing, values, strict=True)
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
        (c, z, y, x) array in the files' own dtype, and its geometry. A file with several
        components a voxel gives as many channels; of an .npz file `imgs` is read.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: naming the file if it cannot be read, is damaged, is not three-dimensional or
            is empty, or if the channels' geometries differ.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not paths:
        raise ValueError("a case needs at least one image file, got none")
    channels, geometries = zip(*map(_read_channels, paths), strict=True)
    for path, geometry in zip(paths, geometries, strict=True):
        if difference := geometries[0].difference_from(geometry):
            raise ValueError(
                f"{paths[0]} and {path} are channels of one case but differ: {difference}; "
                f"resample one onto the other's grid"
            )
    return channels[0] if len(channels) == 1 else np.concatenate(channels), geometries[0]


def read_segmentation(path: Path | str) -> tuple[np.ndarray, Geometry]:
    """Read a label file; of an .npz file `segs`, else `gts`.

    Returns:
        (z, y, x) array of integers in the smallest fitting of uint8, int16 and int32, and its
        geometry.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it cannot be read, has several channels or values that are not whole
            numbers.
    """
    array, geometry = _read_channels(path, LABEL_KEYS) if _is_npz(path) else read_image(path)
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
    """Write a (z, y, x) array with its geometry, atomically; the ending gives the format.

    An .npz file is written in the challenge's layout and takes labels only.

    Raises:
        ValueError: if the shapes disagree, or the format needs two files (they could not be
            replaced atomically) or drops the direction.
    """
    if not str(path).lower().endswith(SEGMENTATION_ENDINGS):
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
    if _is_npz(path):
        write_npz_labels(path, array, geometry.spacing)
        return
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in geometry.spacing[::-1]])
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    with replacing(path) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)


def count_channels(path: Path | str) -> int:
    """How many channels a file has, from its header; 1 for a DICOM folder and for .npz.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file if its header cannot be read.
    """
    return 1 if _is_npz(path) else count_itk_channels(path)


def _is_npz(path: Path | str) -> bool:
    return file_ending(path) == NPZ


def _read_channels(
    path: Path | str, npz_keys: Sequence[str] = ("imgs",)
) -> tuple[np.ndarray, Geometry]:
    """(c, z, y, x) voxels of one file, and their geometry."""
    if _is_npz(path):
        volume, spacing = read_npz_volume(path, npz_keys)
        return volume[None], Geometry(shape=volume.shape, spacing=spacing)
    image = read_itk(path)
    view = sitk.GetArrayViewFromImage(image)
    channels = view[None] if view.ndim == 3 else np.moveaxis(view, -1, 0)
    return np.array(channels, order="C"), _geometry(image)  # the only copy of the voxels


def _geometry(image: sitk.Image) -> Geometry:
    return Geometry(
        shape=tuple(int(n) for n in image.GetSize()[::-1]),
        spacing=tuple(float(s) for s in image.GetSpacing()[::-1]),
        origin=tuple(float(v) for v in image.GetOrigin()),
        direction=tuple(float(v) for v in image.GetDirection()),
    )
