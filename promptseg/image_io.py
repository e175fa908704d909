"""Image files to arrays and back, through SimpleITK; the only place where xyz and zyx meet."""

from __future__ import annotations

import gzip
import logging
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from promptseg.files import replacing

FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl.gz", ".gipl", ".hdr")
WRITABLE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")  # one file, and it keeps the direction

_MOST_SHEAR = 0.05  # cosine between two axes, about 3 degrees; header rounding gives 1e-4 to 1e-2
_MOST_UNEVEN = 0.1  # of a DICOM series' slice distance; a missing slice gives 1

_log = logging.getLogger(__name__)


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
    images = [_read(Path(path)) for path in paths]
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


def _read(path: Path) -> sitk.Image:
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
    if file_ending(path) in (".nii.gz", ".nii", ".hdr"):
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


def _geometry(image: sitk.Image) -> Geometry:
    return Geometry(
        shape=tuple(int(n) for n in image.GetSize()[::-1]),
        spacing=tuple(float(s) for s in image.GetSpacing()[::-1]),
        origin=tuple(float(v) for v in image.GetOrigin()),
        direction=tuple(float(v) for v in image.GetDirection()),
    )


def _short(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in values) + ")"
