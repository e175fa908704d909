"""Image files to arrays and back; the only place where SimpleITK's xyz and zyx meet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from promptseg.files import replacing
from promptseg.io.challenge_npz import LABEL_KEYS, NPZ, read_npz_volume, write_npz_labels
from promptseg.io.dicom import is_dicom_file, is_dicom_folder
from promptseg.io.geometry import Geometry, check_volume
from promptseg.io.itk import count_itk_channels, read_itk
from promptseg.io.mgh import MGH_ENDINGS, read_mgh
from promptseg.io.nifti import count_nifti_channels, is_nifti, read_nifti, write_nifti
from promptseg.io.pictures import FLAT_ENDINGS, PICTURE_ENDINGS, read_picture, write_picture

__all__ = [
    "FILE_ENDINGS",
    "VOLUME_ENDINGS",
    "NPZ",
    "SEGMENTATION_ENDINGS",
    "WRITABLE_ENDINGS",
    "Geometry",
    "as_labels",
    "count_channels",
    "file_ending",
    "is_dicom_folder",
    "is_windowed",
    "read_channels",
    "read_image",
    "read_segmentation",
    "without_screenshots",
    "write_image",
]

VOLUME_ENDINGS = (
    *(".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl.gz", ".gipl", ".hdr"),
    *MGH_ENDINGS,
    *PICTURE_ENDINGS,
)
_OF_NIFTI = (".nii.gz", ".nii", ".hdr")
ROUNDING = 1e-3  # of labels that are stored as floats
FILE_ENDINGS = (*VOLUME_ENDINGS, NPZ)
WRITABLE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")  # one file, and it keeps the direction
SEGMENTATION_ENDINGS = (*WRITABLE_ENDINGS, *PICTURE_ENDINGS, NPZ)


def file_ending(path: Path | str) -> str | None:
    """The image ending of a file name (`.nii.gz`), or None for any other format."""
    name = Path(path).name.lower()
    return next((ending for ending in FILE_ENDINGS if name.endswith(ending)), None)


def without_screenshots(paths: Sequence[Path]) -> list[Path]:
    """Paths without PNG and BMP files, unless these are the only files that are images."""
    others = [path for path in paths if file_ending(path) not in FLAT_ENDINGS]
    return others if any(map(file_ending, others)) else list(paths)


def read_image(paths: Path | str | Sequence[Path | str]) -> tuple[np.ndarray, Geometry]:
    """Read one case: a file or DICOM folder, or one file for each channel.

    Returns:
        (c, z, y, x) array in the files' dtype, and its geometry. A file with several
        components per voxel gives as many channels; of an .npz file, `imgs` is read.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: naming the file if it cannot be read, is damaged, is not three-dimensional or
            is empty, or if the channels' geometries differ.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not paths:
        raise ValueError("a case needs at least one image file, found none")
    channels, geometries = zip(*map(read_channels, paths), strict=True)
    for path, geometry in zip(paths, geometries, strict=True):
        if difference := geometries[0].difference_from(geometry):
            raise ValueError(
                f"{paths[0]} and {path} are channels of one case but differ: {difference}; "
                f"resample one onto the other's grid"
            )
    return channels[0] if len(channels) == 1 else np.concatenate(channels), geometries[0]


def read_channels(path: Path | str, *, channels_last: bool = False) -> tuple[np.ndarray, Geometry]:
    """Read one file or DICOM folder; for the values and errors see `read_image`.

    Args:
        path: the file or folder.
        channels_last: a fourth dimension counts channels, as in the Medical Segmentation Decathlon.
    """
    if _is_npz(path):
        return _read_npz(path, ("imgs",))
    path = _existing(path)
    if path.is_file() and is_nifti(path):
        return read_nifti(path, channels_last=channels_last)
    if file_ending(path) in MGH_ENDINGS:
        return read_mgh(path, channels_last=channels_last)
    if file_ending(path) in PICTURE_ENDINGS:
        return read_picture(path)
    _check_kind(path)
    image = read_itk(path, channels_last=channels_last)
    view = sitk.GetArrayViewFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        check_volume(path, image.GetSize())
        view = np.moveaxis(view, -1, 0)
    array = np.array(view, order="C").reshape(-1, *view.shape[-3:])  # the only copy of the voxels
    return array, _geometry(image[..., 0] if image.GetDimension() == 4 else image)


def read_segmentation(path: Path | str) -> tuple[np.ndarray, Geometry]:
    """Read a label file; of an .npz file, `segs`, else `gts`.

    Returns:
        (z, y, x) array of integers in the smallest fitting of uint8, int16 and int32, and its
        geometry.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it cannot be read, has several channels or values that are not whole
            numbers.
    """
    array, geometry = _read_npz(path, LABEL_KEYS) if _is_npz(path) else read_image(path)
    if array.shape[0] != 1:
        raise ValueError(f"{path}: a segmentation has one channel, found {array.shape[0]}")
    try:
        return as_labels(array[0]), geometry
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def is_whole(array: np.ndarray) -> np.ndarray:
    """Where numbers are whole, but for what programs leave that compute with labels."""
    with np.errstate(invalid="ignore"):
        return np.abs(array - np.rint(array)) <= ROUNDING  # neither NaN nor infinity


def as_labels(array: np.ndarray) -> np.ndarray:
    """The whole numbers, see `is_whole`, in the smallest fitting of uint8, int16 and int32.

    Raises:
        ValueError: if a value is not a whole number or fits into none of the three.
    """
    if not np.issubdtype(array.dtype, np.integer):
        odd = array[~is_whole(array)]
        if odd.size:
            raise ValueError(f"labels must be whole numbers, found {odd[0]:g}")
        array = np.rint(array)
    lowest, highest = array.min(), array.max()
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= lowest and highest <= np.iinfo(dtype).max:
            return array.astype(dtype, copy=False)
    raise ValueError(f"label values {lowest:g} to {highest:g} do not fit into 32 bits")


def write_image(
    path: Path | str, array: np.ndarray, geometry: Geometry, like: Path | None = None
) -> None:
    """Write a (z, y, x) array with its geometry, atomically; the ending gives the format.

    An .npz file is written in the challenge's layout. It takes labels only, as do TIFF, PNG and
    BMP.

    Args:
        path: the file.
        array: numbers or bool.
        geometry: of the array.
        like: file with that geometry; from NIfTI to NIfTI its qform and sform are kept both.

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
    if file_ending(path) in PICTURE_ENDINGS:
        write_picture(path, array, geometry)
        return
    if like is not None and file_ending(path) in _OF_NIFTI and is_nifti(like):
        with replacing(path) as temporary:
            write_nifti(temporary, array, like)
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
    if _is_npz(path):
        return 1
    path = _existing(path)
    if path.is_dir():
        return 1
    if file_ending(path) in MGH_ENDINGS:
        return 1
    if file_ending(path) in PICTURE_ENDINGS:
        return len(read_picture(path)[0])
    if is_nifti(path):
        return count_nifti_channels(path)
    _check_kind(path)
    return count_itk_channels(path)


def is_windowed(path: Path | str) -> bool:
    """Whether CT in a file is windowed to [0, 255], as in the challenge's npz files."""
    return _is_npz(path)


def _existing(path: Path | str) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path} may not be read by this user; change its permissions")
    if path.is_file() and not path.stat().st_size:
        raise ValueError(f"{path} cannot be read as an image: it has 0 bytes; copy it again")
    return path


def _check_kind(path: Path) -> None:
    """Raise for a file of none of the formats that are read here; ITK would try dozens."""
    if path.is_dir() or is_dicom_file(path):
        return
    ending = file_ending(path)
    if ending is None:
        raise ValueError(
            f"{path} is not an image that is read here: it does not begin as NIfTI or DICOM does "
            f"and has none of the endings {', '.join(FILE_ENDINGS)}; convert it"
        )
    if ending in _OF_NIFTI:
        raise ValueError(
            f"{path} cannot be read as an image: it does not begin as NIfTI does, or is damaged; "
            f"copy or convert it again"
        )


def _is_npz(path: Path | str) -> bool:
    return file_ending(path) == NPZ


def _read_npz(path: Path | str, keys: Sequence[str]) -> tuple[np.ndarray, Geometry]:
    volume, spacing = read_npz_volume(path, keys)
    return volume[None], Geometry(shape=volume.shape, spacing=spacing)


def _geometry(image: sitk.Image) -> Geometry:
    return Geometry(
        shape=tuple(int(n) for n in image.GetSize()[::-1]),
        spacing=tuple(float(s) for s in image.GetSpacing()[::-1]),
        origin=tuple(float(v) for v in image.GetOrigin()),
        direction=tuple(float(v) for v in image.GetDirection()),
    )
