"""How a volume's axes lie in the patient, and how arrays and positions are turned another way."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt2axcodes, ornt_transform

MOST_OBLIQUE = 35.0  # degrees between an axis and the anatomical one that it counts as
ORIENTATIONS = tuple(  # the 48 ways in which axes can lie
    "".join(code)
    for order in itertools.permutations(("LR", "PA", "SI"))
    for code in itertools.product(*order)
)
_TO_RAS = np.diag([-1.0, -1.0, 1.0])  # from SimpleITK's world, LPS


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Axes of (z, y, x) arrays put into another order, and some of them mirrored.

    Attributes:
        axes: for each axis afterwards the one before, 0 to 2.
        mirrored: whether each axis afterwards runs the other way.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    mirrored: tuple[bool, bool, bool] = (False, False, False)

    @cached_property
    def back(self) -> Turn:
        """The turn that undoes this one."""
        axes = [self.axes.index(axis) for axis in range(3)]
        return Turn(axes=tuple(axes), mirrored=tuple(self.mirrored[axis] for axis in axes))

    @property
    def changes_nothing(self) -> bool:
        return self == Turn()

    def array(self, array: np.ndarray) -> np.ndarray:
        """An (..., z, y, x) array turned, as a view of it."""
        before = array.ndim - 3
        order = [*range(before), *(before + axis for axis in self.axes)]
        mirrored = [before + axis for axis in range(3) if self.mirrored[axis]]
        return np.flip(array.transpose(order), mirrored)

    def of_axes(self, values: Sequence[Any]) -> tuple[Any, Any, Any]:
        """What belongs to the axes z, y and x, such as a shape or a spacing, in their new order."""
        return tuple(values[axis] for axis in self.axes)

    def points(self, points: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """(..., 3) voxel indices turned with the array.

        Args:
            points: zyx; an index is the centre of its voxel.
            shape: of the array before it is turned.
        """
        return self._mirrored(np.asarray(points)[..., list(self.axes)], shape, last=-1)

    def boxes(self, boxes: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """(..., 2, 3) half-open boxes turned with the array of a shape, see `points`."""
        turned = self._mirrored(np.asarray(boxes)[..., list(self.axes)], shape, last=0)
        return np.where(self.mirrored, turned[..., ::-1, :], turned)

    def _mirrored(self, positions: np.ndarray, shape: Sequence[int], last: int) -> np.ndarray:
        other_way = np.array(self.of_axes(shape)) + last - positions
        return np.where(self.mirrored, other_way, positions)


def orientation_of(direction: Sequence[float]) -> str | None:
    """Where each axis of a file leads, its first one first: `RAS` for right, anterior, superior.

    The first axis of a file is the last of its array. None where an axis lies oblique to all
    anatomical ones, by more than `MOST_OBLIQUE`: then small differences between scans would decide
    which axis counts as which.

    Args:
        direction: 3x3 direction cosines, row by row, of `Geometry`.

    Raises:
        ValueError: for other than nine numbers.
    """
    if np.size(direction) != 9:
        raise ValueError(f"expected 9 direction cosines, row by row, found {np.size(direction)}")
    directions = _TO_RAS @ np.reshape(direction, (3, 3))
    affine = np.eye(4)
    affine[:3, :3] = directions
    axes = io_orientation(affine)
    if not np.isfinite(axes).all():
        return None
    along = np.abs(directions[axes[:, 0].astype(int), range(3)])
    return "".join(ornt2axcodes(axes)) if along.min() >= np.cos(np.radians(MOST_OBLIQUE)) else None


def turn_to(orientation: str, direction: Sequence[float]) -> Turn:
    """What brings arrays of a file with direction cosines to an orientation, see `turn_between`."""
    return turn_between(orientation_of(direction), orientation)


def turn_onto(direction: Sequence[float], other: Sequence[float]) -> Turn:
    """What brings arrays of a file with the direction cosines `other` to the axes of another.

    Unlike `turn_to` for oblique files, too: the axes of both are the same lines, in another order
    or the other way. Where they are not, nothing is turned.

    Args:
        direction: 3x3 direction cosines, row by row, of the file to turn to.
        other: of the file to turn.
    """
    along = np.reshape(direction, (3, 3)).T @ np.reshape(other, (3, 3))
    along = along[::-1, ::-1]  # axes z, y, x of the first file, of the other
    axes = np.abs(along).argmax(axis=1)
    cosines = along[range(3), axes]
    if sorted(axes) != [0, 1, 2] or not np.allclose(np.abs(cosines), 1, atol=1e-3):
        return Turn()
    return Turn(axes=tuple(axes.tolist()), mirrored=tuple((cosines < 0).tolist()))


def turn_between(before: str | None, after: str) -> Turn:
    """What brings arrays from one of `ORIENTATIONS` to another; others leave them as they are."""
    if before not in ORIENTATIONS or after not in ORIENTATIONS:
        return Turn()
    axes, mirrored = [0, 1, 2], [False, False, False]
    for first, (second, way) in enumerate(
        ornt_transform(axcodes2ornt(before), axcodes2ornt(after)).astype(int).tolist()
    ):
        axes[2 - second], mirrored[2 - second] = 2 - first, way < 0
    return Turn(axes=tuple(axes), mirrored=tuple(mirrored))
