"""The elements of a map over a patch, and maps brought from one size of element to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The elements of a map over a patch, or over a part of it.

    Attributes:
        shape: elements, zyx.
        stride: voxels of one element, zyx.
        spacing: length of a voxel, zyx, in units of the shortest side.
        first: the part's first element in the patch, zyx.
    """

    shape: tuple[int, int, int]
    stride: tuple[int, int, int]
    spacing: tuple[float, float, float]
    first: tuple[int, int, int] = (0, 0, 0)

    def edges(self, axis: int, device: torch.device) -> Tensor:
        """(elements,) lower edges along an axis, in voxels of the patch."""
        first, stride = self.first[axis], self.stride[axis]
        return (torch.arange(self.shape[axis], device=device) + first) * float(stride)

    def centres(self, axis: int, device: torch.device) -> Tensor:
        """(elements,) of their centres along an axis, in voxels of the patch."""
        return self.edges(axis, device) + self.stride[axis] / 2

    @property
    def slices(self) -> tuple[slice, ...]:
        """Of the elements in a map over the patch, zyx."""
        return tuple(slice(f, f + n) for f, n in zip(self.first, self.shape, strict=True))

    def widened(self, whole: Sequence[int]) -> Grid:
        """The part with an element more on each side, as far as the map has them."""
        first = tuple(max(f - 1, 0) for f in self.first)
        ends = zip(self.first, self.shape, whole, strict=True)
        last = [min(f + n + 1, size) for f, n, size in ends]
        return replace(
            self, first=first, shape=tuple(e - f for f, e in zip(first, last, strict=True))
        )

    def at(self, stride: Sequence[int]) -> Grid:
        """The same part of the patch in elements of a stride that divides this one's."""
        times = [own // other for own, other in zip(self.stride, stride, strict=True)]
        return replace(
            self,
            shape=tuple(n * t for n, t in zip(self.shape, times, strict=True)),
            stride=tuple(stride),
            first=tuple(f * t for f, t in zip(self.first, times, strict=True)),
        )


def elements_at(places: Tensor, shape: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Which element of a map over the patch lies at each place, counted along x, then y, then z.

    Args:
        places: (..., 3) in voxels, zyx; the nearest element stands for one outside.
        shape: elements of the map, zyx.
        stride: voxels of one, zyx.
    """
    last = torch.tensor(shape, device=places.device) - 1
    elements = (places / torch.tensor(stride, device=places.device)).long().clamp(min=0)
    z, y, x = torch.minimum(elements, last).unbind(-1)
    return (z * shape[1] + y) * shape[2] + x


def resized(maps: Tensor, shape: Sequence[int]) -> Tensor:
    """(n, c, ...) maps interpolated linearly to another shape over the same field of view."""
    if tuple(maps.shape[2:]) == tuple(shape):
        return maps
    return F.interpolate(maps.float(), tuple(shape), mode="trilinear", align_corners=False)


def resized_part(maps: Tensor, part: Grid, to: Grid) -> Tensor:
    """What `resized` gives to a part of the patch, from maps over all of it.

    Args:
        maps: (n, c, z', y', x') over the patch.
        part: the part in elements of `maps`.
        to: the same part in the elements to interpolate to, of which whole numbers make one of
            `part`.
    """
    if part.stride == to.stride:
        return maps[(..., *part.slices)]
    sides = zip(part.first, part.shape, maps.shape[2:], strict=True)
    wider = [(max(f - 1, 0), min(f + n + 1, size)) for f, n, size in sides]
    times = [a // b for a, b in zip(part.stride, to.stride, strict=True)]
    around = maps[(..., *(slice(*ends) for ends in wider))]
    shape = [(last - first) * t for (first, last), t in zip(wider, times, strict=True)]
    cut = [
        slice((f - first) * t, (f - first + n) * t)
        for f, n, (first, _), t in zip(part.first, part.shape, wider, times, strict=True)
    ]
    return resized(around, shape)[(..., *cut)]
