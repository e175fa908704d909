"""Ellipsoids in millimetres, and images and labels painted from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation


@dataclass(frozen=True, kw_only=True)
class Ellipsoid:
    """A rotated ellipsoid.

    Attributes:
        center: position in mm, zyx, relative to the middle of the volume.
        radii: radii in mm along the ellipsoid's own z, y and x axes.
        degrees: rotation about the z axis (in the axial plane), then about y, then about x.
    """

    center: tuple[float, float, float]
    radii: tuple[float, float, float]
    degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def rotation(self) -> np.ndarray:
        """(3, 3) matrix from the ellipsoid's own axes to the volume's, both zyx."""
        xyz = Rotation.from_euler("zyx", self.degrees, degrees=True).as_matrix()
        return xyz[::-1, ::-1]

    def half_extents(self) -> np.ndarray:
        """(3,) extent in mm, zyx, from its centre along the axes of the volume."""
        return np.linalg.norm(self.rotation() * np.asarray(self.radii), axis=1)

    def signed_distance(self, points: np.ndarray) -> np.ndarray:
        """Approximate distance to the surface in mm, negative inside; the sign is exact.

        Args:
            points: (..., 3) positions in mm, zyx.

        Source:
            Quilez, "Ellipsoid distance estimation": k0 (k0 - 1) / k1, with k0 and k1 the norms
            of the point divided by the radii once and twice.
        """
        own = (points - np.asarray(self.center)) @ self.rotation()
        own /= np.asarray(self.radii)
        k0 = np.linalg.norm(own, axis=-1)
        k1 = np.linalg.norm(own / np.asarray(self.radii), axis=-1)
        return k0 * (k0 - 1.0) / np.maximum(k1, 1e-6)


@dataclass(frozen=True, kw_only=True)
class Structure:
    """One anatomical structure: a union of ellipsoids, optionally clipped by another one.

    Attributes:
        tissue: name of its tissue.
        parts: ellipsoids whose union it is.
        within: ellipsoid outside of which the structure is cut off, if any.
        label: name of the label of its voxels; None for anatomy without a label.
    """

    tissue: str
    parts: tuple[Ellipsoid, ...]
    within: Ellipsoid | None = None
    label: str | None = None

    def bounds(self) -> np.ndarray:
        """(2, 3) corners in mm, zyx, of the smallest box that contains the parts."""
        centers = np.array([part.center for part in self.parts])
        reach = np.array([part.half_extents() for part in self.parts])
        return np.stack([(centers - reach).min(axis=0), (centers + reach).max(axis=0)])

    def signed_distance(self, points: np.ndarray) -> np.ndarray:
        """The distance of `Ellipsoid.signed_distance` for the whole structure."""
        distance = self.parts[0].signed_distance(points)
        for part in self.parts[1:]:
            np.minimum(distance, part.signed_distance(points), out=distance)
        if self.within is not None:
            np.maximum(distance, self.within.signed_distance(points), out=distance)
        return distance


def grid_points(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> np.ndarray:
    """(z, y, x, 3) voxel centres in mm, zyx, from the middle of the volume."""
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def paint(
    structures: tuple[Structure, ...],
    tissues: dict[str, float],
    labels: dict[str, int],
    points: np.ndarray,
    edge_mm: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Paint structures into a volume of air, later ones on top of earlier ones.

    Args:
        structures: structures in the order of painting.
        tissues: intensity of each tissue, by name.
        labels: value of each label, by name.
        points: (z, y, x, 3) voxel centres in mm, as returned by `grid_points`.
        edge_mm: width over which voxels at a surface mix both sides (partial volume).

    Returns:
        (z, y, x) float64 intensities with partial volumes, and (z, y, x) uint8 labels: each voxel
        has the label of the topmost structure that contains its centre.
    """
    image = np.full(points.shape[:3], float(tissues["air"]))
    segmentation = np.zeros(points.shape[:3], np.uint8)
    for structure in structures:
        block = _block(points, structure.bounds() + [[-edge_mm], [edge_mm]])
        distance = structure.signed_distance(points[block])
        fraction = np.clip(0.5 - distance / edge_mm, 0.0, 1.0)
        image[block] += fraction * (tissues[structure.tissue] - image[block])
        segmentation[block][distance < 0] = labels[structure.label] if structure.label else 0
    return image, segmentation


def _block(points: np.ndarray, bounds: np.ndarray) -> tuple[slice, slice, slice]:
    """The part of the grid that lies between two corners (2, 3) in mm."""
    axes = (points[:, 0, 0, 0], points[0, :, 0, 1], points[0, 0, :, 2])
    return tuple(
        slice(*np.searchsorted(axis, corner)) for axis, corner in zip(axes, bounds.T, strict=True)
    )
