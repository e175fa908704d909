"""What people draw on slices, as voxels: 2D boxes and lassos as regions, scribbles as points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from skimage.draw import line_nd, polygon2mask

from promptseg.prompts.checks import lasso_slice

SPACING = 2  # voxels between the points that stand for a scribble
MOST_POINTS = 64  # of one scribble


def is_flat(box: np.ndarray) -> bool:
    """Whether a box (2, 3) is one voxel thick along an axis: it then concerns that slice only."""
    return bool((np.ptp(np.asarray(box, float), axis=0) <= 1.0).any())


def flat_region(box: np.ndarray, shape: Sequence[int], axis: int) -> np.ndarray:
    """A 2D box as a region: its slice is 1 inside it and -1 outside, all other voxels are 0.

    Args:
        box: (2, 3) half-open, voxels, zyx.
        shape: of the volume, zyx.
        axis: across the slice; the slice is the one that holds the box's middle.

    Returns:
        (z, y, x) float32; zeros where the slice lies outside the volume.
    """
    region = np.zeros(tuple(shape), np.float32)
    number = int(np.floor((box[0][axis] + box[1][axis]) / 2))
    if not 0 <= number < shape[axis]:
        return region
    plane = np.moveaxis(region, axis, 0)[number]
    plane[:] = -1
    others = [a for a in range(3) if a != axis]
    low = np.clip(np.rint([box[0][a] for a in others]), 0, plane.shape).astype(int)
    high = np.clip(np.rint([box[1][a] for a in others]), 0, plane.shape).astype(int)
    plane[low[0] : high[0], low[1] : high[1]] = 1
    return region


def lasso_region(vertices: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A closed curve on a slice as a region, see `flat_region`.

    Args:
        vertices: (k, 3) voxel positions, zyx, all in one slice along an axis.
        shape: of the volume, zyx.
    """
    vertices = np.asarray(vertices, float)
    axis, index = lasso_slice(vertices)
    region, number = np.zeros(tuple(shape), np.float32), int(np.rint(index))
    if not 0 <= number < shape[axis]:
        return region
    plane = np.moveaxis(region, axis, 0)[number]
    inside = polygon2mask(plane.shape, np.delete(vertices, axis, axis=1))
    plane[:] = np.where(inside, 1, -1)
    return region


def scribble_points(vertices: np.ndarray) -> np.ndarray:
    """(k, 3) voxels along a polyline, about every second one, at most `MOST_POINTS`.

    Args:
        vertices: (n, 3) voxel positions, zyx; one is a click.
    """
    vertices = np.rint(np.asarray(vertices, float)).astype(int)
    pieces = [
        np.stack(line_nd(a, b, endpoint=True), axis=1)
        for a, b in zip(vertices[:-1], vertices[1:], strict=True)
    ]
    along = np.concatenate(pieces) if pieces else vertices
    count = int(np.clip(np.ceil(len(along) / SPACING), 1, MOST_POINTS))
    return along[np.linspace(0, len(along) - 1, count).round().astype(int)]
