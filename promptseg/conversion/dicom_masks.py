"""Masks of DICOM: segmentations (SEG) and radiotherapy structure sets (RTSTRUCT)."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from skimage.draw import polygon2mask

from promptseg.io.geometry import Geometry

if TYPE_CHECKING:
    from pydicom import Dataset

_RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
_SEG = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # the second: label maps
_BETWEEN_SLICES = 0.1  # of a slice: contours that are further off lie in other planes
_BACKGROUND = "background"


def dicom_mask(path: Path) -> Path | None:
    """The file itself, or the only such file of a folder, if it is a SEG or an RTSTRUCT.

    Raises:
        ValueError: if a folder holds several, naming them.
    """
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.is_file())
    found = [file for file in files if _class_of(file) in (*_SEG, _RTSTRUCT)]
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(f"{path}: expected one DICOM SEG or RTSTRUCT, found {names}; keep one")
    return found[0] if found else None


def structure_names(path: Path) -> list[str]:
    """The names of what a SEG or an RTSTRUCT outlines, in its order."""
    header = _read(path)
    if header.SOPClassUID == _RTSTRUCT:
        return list(_contours(path, header))
    return [name for name in _segments(header).values() if name.lower() != _BACKGROUND]


def read_dicom_mask(path: Path, onto: Geometry) -> tuple[dict[str, np.ndarray], Geometry]:
    """The (z, y, x) bool mask of each structure by its name, and the grid of all.

    Args:
        path: of a SEG or an RTSTRUCT.
        onto: grid of the image; contours are filled on it.

    Raises:
        ValueError: naming the file, if its contours do not lie in slices of the image, or two
            structures have the same name.
        ImportError: for a SEG if highdicom is not installed.
    """
    header = _read(path)
    if header.SOPClassUID == _RTSTRUCT:
        contours = _contours(path, header)
        return {name: _filled(path, name, of, onto) for name, of in contours.items()}, onto
    return _read_seg(path)


def _read_seg(path: Path) -> tuple[dict[str, np.ndarray], Geometry]:
    try:
        from highdicom.seg import segread
    except ImportError as error:
        raise ImportError(
            f"{path}: a DICOM SEG needs highdicom ({error}): pip install promptseg[dicom]"
        ) from error
    content = segread(path)
    try:
        volume = content.get_volume(combine_segments=False)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: its frames do not make a volume: {error}") from error
    names = _segments(content)
    array, step = np.asarray(volume.array) > 0, 1
    direction, origin = np.array(volume.direction), np.array(volume.position)
    if np.linalg.det(direction[:, ::-1]) < 0:  # as ITK orders slices
        step, direction = -1, direction * (-1, 1, 1)
        origin = np.asarray(volume.affine) @ (array.shape[0] - 1, 0, 0, 1)
    grid = Geometry(
        shape=array.shape[:3],
        spacing=tuple(float(mm) for mm in volume.spacing),
        origin=tuple(float(mm) for mm in origin[:3]),
        direction=tuple(direction[:, ::-1].ravel().tolist()),
    )
    layers = {
        names[number]: array[::step, :, :, place]
        for place, number in enumerate(content.segment_numbers)
        if names[number].lower() != _BACKGROUND
    }
    return layers, grid


def _segments(content: Dataset) -> dict[int, str]:
    """Name of each segment by its number; the number is added where a name occurs again."""
    names: dict[int, str] = {}
    for segment in content.SegmentSequence:
        name, number = str(segment.SegmentLabel), int(segment.SegmentNumber)
        names[number] = f"{name} {number}" if name in names.values() else name
    return names


def _contours(path: Path, content: Dataset) -> dict[str, list[np.ndarray]]:
    """The (n, 3) closed contours of each structure, mm, x, y, z."""
    named = {
        int(roi.ROINumber): str(roi.ROIName) for roi in content.get("StructureSetROISequence", [])
    }
    if len(set(named.values())) < len(named):
        raise ValueError(f"{path}: two structures have the same name: {sorted(named.values())}")
    found: dict[str, list[np.ndarray]] = {}
    for roi in content.get("ROIContourSequence", []):
        closed = [
            np.array(contour.ContourData, float).reshape(-1, 3)
            for contour in roi.get("ContourSequence", [])
            if str(contour.ContourGeometricType).startswith("CLOSED")
        ]
        name = named.get(int(roi.ReferencedROINumber))
        if closed and name is not None:
            found[name] = closed
    return found


def _filled(path: Path, name: str, contours: list[np.ndarray], grid: Geometry) -> np.ndarray:
    """The voxels whose centres lie within contours; one within another is a hole."""
    mask = np.zeros(grid.shape, bool)
    axes = np.reshape(grid.direction, (3, 3))
    inner: dict[int, list[np.ndarray]] = defaultdict(list)
    for contour in contours:
        voxels = ((contour - grid.origin) @ axes)[:, ::-1] / grid.spacing
        number = int(np.rint(voxels[:, 0].mean()))
        if np.abs(voxels[:, 0] - number).max() > _BETWEEN_SLICES:
            raise ValueError(
                f"{path}: contours of {name} do not lie in the image's slices; is it the image "
                f"that they were drawn on?"
            )
        inner[number].append(voxels[:, 1:])
    for number, polygons in inner.items():
        if 0 <= number < grid.shape[0]:
            for polygon in polygons:
                mask[number] ^= polygon2mask(grid.shape[1:], polygon)
    return mask


def _class_of(path: Path) -> str | None:
    """The SOP class of a DICOM file; None for any other."""
    if not _is_dicom(path):
        return None
    header = _read(path, "SOPClassUID")
    return str(header.get("SOPClassUID"))


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _read(path: Path, *tags: str) -> Dataset:
    """A file's content without pixels; only some tags where these are given."""
    from pydicom import dcmread

    try:
        return dcmread(path, stop_before_pixels=True, specific_tags=list(tags) or None)
    except Exception as error:  # pydicom raises many kinds for damaged files
        raise ValueError(f"{path} cannot be read as DICOM: {error}; copy it again") from error
