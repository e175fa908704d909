"""Where an array's voxels lie in the patient, and which sizes count as a volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from promptseg.io.orientation import Turn
from promptseg.words import rounded


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where an array's voxels lie in the world.

    Attributes:
        shape: voxels, zyx.
        spacing: mm, zyx.
        origin: mm, world x, y, z of the first voxel's centre, as SimpleITK counts them (LPS).
        direction: 3x3 direction cosines, row by row, as SimpleITK has them.
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


def turned_geometry(geometry: Geometry, turn: Turn) -> Geometry:
    """Where the voxels of an array lie, once it is turned."""
    directions = np.reshape(geometry.direction, (3, 3))[:, ::-1]  # one column per axis, z first
    steps = directions * geometry.spacing  # mm from voxel to voxel
    last = np.subtract(geometry.shape, 1)
    first = np.zeros(3)
    for axis, is_mirrored in zip(turn.axes, turn.mirrored, strict=True):
        first[axis] = last[axis] if is_mirrored else 0
    turned = directions[:, list(turn.axes)] * np.where(turn.mirrored, -1, 1)
    return Geometry(
        shape=turn.of_axes(geometry.shape),
        spacing=turn.of_axes(geometry.spacing),
        origin=tuple((np.array(geometry.origin) + steps @ first).tolist()),
        direction=tuple(turned[:, ::-1].ravel().tolist()),
    )


def check_volume(path: Path | str, size: Sequence[int], *, channels_last: bool = False) -> None:
    """Raise unless an image is a volume with voxels in it.

    Args:
        path: for the error.
        size: of the image, x first.
        channels_last: also accept four dimensions, of which the last counts channels.

    Raises:
        ValueError: naming the file and its size.
    """
    size = tuple(size)
    if len(size) != 3 and not (channels_last and len(size) == 4):
        raise ValueError(
            f"{path}: expected three dimensions, found {len(size)} (size {size}, xyz); write each "
            f"time point or channel to a file of its own, or a single slice with depth 1"
        )
    if 0 in size:
        raise ValueError(f"{path}: the image has no voxels (size {size}, xyz); export it again")
