"""Masks of DICOM: segmentations (SEG) and radiotherapy structure sets (RTSTRUCT)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from skimage.draw import polygon2mask

from promptseg.io.dicom import SEGMENTATIONS, header_of, is_dicom_file
from promptseg.io.geometry import Geometry
from promptseg.prompts.world import world_to_voxel

if TYPE_CHECKING:
    from highdicom import Volume
    from pydicom import Dataset

_RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
_BETWEEN_SLICES = 0.1  # of a slice: contours that are further off lie in other planes
_BACKGROUND = "background"
_INSIDE = 0.5  # of a fractional segment


def dicom_mask(path: Path) -> Path | None:
    """The file itself, or the only such file of a folder, if it is a SEG or an RTSTRUCT.

    Raises:
        ValueError: if a folder holds several, naming them.
    """
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.is_file())
    found = [file for file in files if _class_of(file) in (*SEGMENTATIONS, _RTSTRUCT)]
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(f"{path}: expected one DICOM SEG or RTSTRUCT, found {names}; keep one")
    return found[0] if found else None


def structure_names(path: Path) -> list[str]:
    """The names of what a SEG or an RTSTRUCT outlines, in its order."""
    header = header_of(path)
    if header.SOPClassUID == _RTSTRUCT:
        return list(_contours(path, header))
    return [name for name in _segments(header).values() if name.lower() != _BACKGROUND]


def read_dicom_mask(
    path: Path, names: Sequence[str], onto: Geometry
) -> tuple[Iterator[tuple[str, np.ndarray]], Geometry]:
    """Name and (z, y, x) bool mask of structures, one at a time, and the grid of all.

    Args:
        path: of a SEG or an RTSTRUCT.
        names: those that are wanted, in this order; others are left out.
        onto: grid of the image; contours are filled on it.

    Raises:
        ValueError: naming the file, if it is damaged, its contours do not lie in slices of the
            image, or two structures have the same name.
        ImportError: for a SEG if highdicom is not installed.
    """
    header = header_of(path)
    if header.SOPClassUID == _RTSTRUCT:
        contours = _contours(path, header)
        found = [name for name in names if name in contours]
        return ((name, _filled(path, name, contours[name], onto)) for name in found), onto
    return _read_seg(path, names)


def _read_seg(
    path: Path, names: Sequence[str]
) -> tuple[Iterator[tuple[str, np.ndarray]], Geometry]:
    try:
        from highdicom.seg import segread
    except ImportError as error:
        raise ImportError(
            f"{path}: a DICOM SEG needs highdicom ({error}): pip install promptseg[dicom]"
        ) from error
    with _named(path):
        content = segread(path)
        numbers = {name: number for number, name in _segments(content).items()}
    found = [name for name in names if name in numbers]
    if not found:
        raise ValueError(f"{path}: has {', '.join(numbers)}, and none of {', '.join(names)}")

    def volume_of(name: str) -> Volume:
        with _named(path):
            return content.get_volume(segment_numbers=[numbers[name]], combine_segments=False)

    grid, step = _grid_of(volume_of(found[0]))

    def masks() -> Iterator[tuple[str, np.ndarray]]:
        for name in found:
            yield name, np.asarray(volume_of(name).array)[::step, :, :, 0] >= _INSIDE

    return masks(), grid


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of pydicom and highdicom, of which there are many kinds, name the file."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} cannot be read as segments of a volume: {error}") from error


def _grid_of(volume: Volume) -> tuple[Geometry, int]:
    """The grid of a volume of highdicom as ITK has it, and the step along its slices."""
    direction, origin, step = np.array(volume.direction), np.array(volume.position), 1
    shape = volume.array.shape[:3]
    if np.linalg.det(direction[:, ::-1]) < 0:  # ITK orders slices the other way
        step, direction = -1, direction * (-1, 1, 1)
        origin = np.asarray(volume.affine) @ (shape[0] - 1, 0, 0, 1)
    grid = Geometry(
        shape=shape,
        spacing=tuple(float(mm) for mm in volume.spacing),
        origin=tuple(float(mm) for mm in origin[:3]),
        direction=tuple(direction[:, ::-1].ravel().tolist()),
    )
    return grid, step


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
    inner: dict[int, list[np.ndarray]] = defaultdict(list)
    for contour in contours:
        voxels = world_to_voxel(contour, grid)
        number = int(np.rint(voxels[:, 0].mean()))
        if np.abs(voxels[:, 0] - number).max() > _BETWEEN_SLICES:
            raise ValueError(
                f"{path}: contours of {name} do not lie in the image's slices; is it the image "
                f"that they were drawn on?"
            )
        upper = np.array(grid.shape) - 0.5
        if (voxels.max(axis=0) < -0.5).any() or (voxels.min(axis=0) > upper).any():
            raise ValueError(
                f"{path}: contours of {name} lie outside the image; is it the image that they were "
                f"drawn on?"
            )
        inner[number].append(voxels[:, 1:])
    for number, polygons in inner.items():
        for polygon in polygons:
            mask[number] ^= polygon2mask(grid.shape[1:], polygon)
    return mask


def _class_of(path: Path) -> str | None:
    """The SOP class of a DICOM file; None for any other."""
    if not is_dicom_file(path):
        return None
    header = header_of(path, "SOPClassUID")
    return str(header.get("SOPClassUID"))
