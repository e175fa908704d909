"""Voxels to millimetres in the patient and back: points, and the boxes that enclose boxes."""

from __future__ import annotations

import numpy as np

from promptseg.io.images import Geometry

RAS = np.array([-1.0, -1.0, 1.0])  # turns LPS (ITK, DICOM) into RAS (NIfTI, FreeSurfer) and back
_CORNERS = np.array(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij")).reshape(3, 8).T


def voxel_to_world(points: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(..., 3) continuous voxel indices, zyx, to x, y, z in mm (LPS).

    Index i is the centre of voxel i, which reaches from i - 0.5 to i + 0.5.
    """
    return geometry.origin + np.asarray(points)[..., ::-1] @ _step_mm(geometry).T


def world_to_voxel(points_mm: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(..., 3) x, y, z in mm (LPS) to continuous voxel indices, zyx; the inverse of the above."""
    steps = (points_mm - np.array(geometry.origin)) @ np.linalg.inv(_step_mm(geometry)).T
    return steps[..., ::-1]


def corners(boxes: np.ndarray) -> np.ndarray:
    """(n, 8, 3) corners of (n, 2, 3) boxes, in whatever frame these are."""
    return np.stack([boxes[:, _CORNERS[:, axis], axis] for axis in range(3)], axis=-1)


def boxes_to_world(boxes: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(n, 8, 3) corners in mm (LPS) of (n, 2, 3) half-open voxel boxes, outer edges of voxels."""
    return voxel_to_world(corners(boxes) - 0.5, geometry)


def world_to_boxes(corners_mm: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The smallest (n, 2, 3) half-open voxel boxes around (n, 8, 3) corners in mm (LPS).

    A box that is rotated relative to the image grows: the voxel box encloses all of it. Its faces
    need not lie between voxels.
    """
    edges = world_to_voxel(corners_mm, geometry) + 0.5
    return np.stack([edges.min(axis=1), edges.max(axis=1)], axis=1)


def extent_mm(geometry: Geometry) -> np.ndarray:
    """(2, 3) smallest and largest x, y, z in mm (LPS) that the image reaches."""
    whole = np.array([[(0, 0, 0), geometry.shape]])
    reached = boxes_to_world(whole, geometry)[0]
    return np.stack([reached.min(axis=0), reached.max(axis=0)])


def _step_mm(geometry: Geometry) -> np.ndarray:
    """(3, 3) columns: the step of one voxel along x, y and z, in mm."""
    return np.reshape(geometry.direction, (3, 3)) * geometry.spacing[::-1]
