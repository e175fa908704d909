"""Distances between the surfaces of two masks: NSD, HD95 and average surface distance.

A surface is what DeepMind's surface-distance makes of a mask: an element at every corner where
voxels inside and outside meet, with the area that marching cubes gives it. So distances count by
area, whatever the voxels' shape. MONAI's Hausdorff and average surface distance count voxels at
the border instead, each once, and differ from these by up to about a voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.spatial import KDTree


@dataclass(frozen=True, kw_only=True, eq=False)
class SurfaceDistances:
    """From every element of two surfaces to the nearest element of the other.

    Attributes:
        distances: for each surface (n,) mm, float32, ascending.
        areas: for each surface (n,) mm2, of the same elements.
    """

    distances: tuple[np.ndarray, np.ndarray]
    areas: tuple[np.ndarray, np.ndarray]

    def dice(self, tolerance: float) -> float:
        """Normalized surface Dice: fraction of both areas within `tolerance` mm of the other."""
        near = sum(
            area[distance <= np.float32(tolerance)].sum()
            for distance, area in zip(self.distances, self.areas, strict=True)
        )
        return float(near / sum(area.sum() for area in self.areas))

    def percentile(self, percent: float) -> float:
        """Robust Hausdorff distance in mm: the larger percentile, by area, of the two surfaces."""
        found = []
        for distance, area in zip(self.distances, self.areas, strict=True):
            reached = np.cumsum(area)
            index = np.searchsorted(reached, percent / 100 * reached[-1])
            found.append(distance[min(index, len(distance) - 1)])
        return float(max(found))

    @property
    def mean(self) -> float:
        """Average symmetric surface distance in mm: the mean over both areas together."""
        weighted = sum(d @ a for d, a in zip(self.distances, self.areas, strict=True))
        return float(weighted / sum(area.sum() for area in self.areas))


def surface_distances(
    first: np.ndarray, second: np.ndarray, spacing: Sequence[float]
) -> SurfaceDistances:
    """Distances between the surfaces of two (z, y, x) bool masks, neither of them empty.

    Args:
        first, second: of one shape; beyond their borders there is nothing.
        spacing: mm, zyx.

    Raises:
        ValueError: if one is empty.

    Source:
        Nikolov et al. (2018), arXiv:1809.04430, and its code, surface-distance. Differs: neighbours
        are found in a tree, not in a distance map of the volume, and one slice is examined at a
        time, so that memory grows with the surface. MONAI has the same surface Dice
        (`use_subvoxels`), at many times the memory.
    """
    surfaces = [_surface(mask, spacing) for mask in (first, second)]
    if not all(len(places) for places, _ in surfaces):
        raise ValueError("an empty mask has no surface")
    trees = [KDTree(places, balanced_tree=False) for places, _ in surfaces]
    distances, areas = [], []
    for (places, area), other in zip(surfaces, reversed(trees), strict=True):
        # float32 takes 1.9999999 and 2.0000001 mm, which are both 2 mm rounded, for the same
        distance = other.query(places)[0].astype(np.float32)
        order = np.argsort(distance, kind="stable")
        distances.append(distance[order])
        areas.append(area[order])
    return SurfaceDistances(distances=tuple(distances), areas=tuple(areas))


def _surface(mask: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The elements of a mask's surface: (n, 3) places in mm, zyx, and (n,) areas in mm2.

    An element lies at a corner of voxels; its place counts from the first voxel's first corner.
    """
    depth, height, width = mask.shape
    below = nothing = np.zeros((height + 1, width + 1), np.uint8)
    places, codes = [], []
    for z in range(depth + 1):
        above = _corners(mask[z]) if z < depth else nothing
        code = below << 4 | above
        y, x = np.nonzero((code != 0) & (code != 255))
        places.append(np.stack([np.full(len(y), z), y, x], axis=1))
        codes.append(code[y, x])
        below = above
    return np.concatenate(places) * np.asarray(spacing), _areas(spacing)[np.concatenate(codes)]


def _corners(plane: np.ndarray) -> np.ndarray:
    """Which of the four pixels at each corner of a (y, x) mask are inside, one bit for each."""
    inside = np.pad(plane, 1).view(np.uint8)
    return inside[:-1, :-1] << 3 | inside[:-1, 1:] << 2 | inside[1:, :-1] << 1 | inside[1:, 1:]


def _areas(spacing: Sequence[float]) -> np.ndarray:
    """(256,) area in mm2 of an element, by which of the eight voxels around it are inside."""
    z, y, x = map(float, spacing)
    return np.linalg.norm(_normals() * (y * x, z * x, z * y), axis=2).sum(axis=1)


@cache
def _normals() -> np.ndarray:
    """(256, 5, 3) of the triangles of an element in a grid of 1 mm, as long as their areas.

    Four voxels or fewer are enclosed as marching cubes does. More are the outside of the others:
    the same surface, seen from the other side.
    """
    from skimage.measure import marching_cubes

    normals = np.zeros((256, 5, 3))
    for code in range(1, 255):
        cell = np.array([code >> bit & 1 for bit in range(7, -1, -1)], np.float32)
        cell = cell if cell.sum() <= 4 else 1 - cell
        vertices, faces, *_ = marching_cubes(cell.reshape(2, 2, 2), 0.5, method="lorensen")
        first, second, third = np.moveaxis(vertices[faces].astype(float), 1, 0)
        normals[code, : len(faces)] = np.cross(second - first, third - first) / 2
    return normals
