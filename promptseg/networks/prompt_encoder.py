"""Prompts of queries as tensors, and as maps over a patch: clicks, boxes and regions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from promptseg.networks.grid import Grid

NO_POINT = -1  # point label of padding
NO_LABEL = -1  # label index of a query without a label, which may mean any or none
NEW_OBJECT = -2  # label index of an object that is none of the labels
NEAREST = 1.0  # width within which two clicks share a voxel, in units of the shortest side
TINY = 1e-30
LOOSE = 0.25  # of a box's side: how far the object may reach beyond the box that was drawn


@dataclass(frozen=True, kw_only=True, eq=False)
class Query:
    """One mask to predict in one image of a batch, from any prompts.

    Attributes:
        image: index of the image in the batch.
        label: index of the label in the plans, starting at 0, `NO_LABEL` or `NEW_OBJECT`.
        box: (2, 3) half-open, continuous voxel coordinates of the patch, zyx, or None.
        points: (k, 3) voxel indices in the patch, zyx; a scribble is a row of them.
        point_labels: (k,) 1 foreground, 0 background.
        region: (z, y, x) of 1 inside, -1 outside and 0 elsewhere, of 2D boxes and lassos, which
            concern the slice that they are drawn on; None without any.
        previous: (z, y, x) logits of a mask to correct; None without one.
        limit: (2, 3) half-open, beyond which nothing of the object lies, as a person's box says;
            it is for what is done with answers, see `within_limits`, and unknown to networks.
    """

    image: int = 0
    label: int = NO_LABEL
    box: np.ndarray | None = None
    points: np.ndarray | Sequence = ()
    point_labels: np.ndarray | Sequence = ()
    region: np.ndarray | None = None
    previous: np.ndarray | None = None
    limit: np.ndarray | None = None

    @property
    def is_name(self) -> bool:
        """Whether the label's name, or nothing, is the only prompt."""
        empty = self.box is None and self.region is None and self.previous is None
        return empty and not len(self.points)


@dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """Queries as tensors.

    Attributes:
        image_index: (n,) index of each query's image in the batch.
        labels: (n,) label index, `NO_LABEL` or `NEW_OBJECT`.
        boxes: (n, 2, 3) corners in voxels, zyx; zeros where `has_box` is False.
        has_box: (n,) bool.
        points: (n, k, 3) voxel indices, zyx.
        point_labels: (n, k) 1, 0, or `NO_POINT` for padding.
        regions: (n, z, y, x), zeros where a query has none; None if no query has one.
        previous: (n, z, y, x) logits, zeros where a query has none; None if no query has any.
        has_previous: (n,) bool.
    """

    image_index: Tensor
    labels: Tensor
    boxes: Tensor
    has_box: Tensor
    points: Tensor
    point_labels: Tensor
    regions: Tensor | None = None
    previous: Tensor | None = None
    has_previous: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, some: slice | Tensor) -> PromptBatch:
        """Some of the queries."""
        return self._each(lambda tensor: tensor[some])

    def to(self, device: torch.device | str) -> PromptBatch:
        return self._each(lambda tensor: tensor.to(device))

    def in_image(self, index: int) -> PromptBatch:
        """The same queries about the image of another index."""
        return replace(self, image_index=torch.full_like(self.image_index, index))

    def alone(self, index: int) -> PromptBatch:
        """One of the queries, about the first image, without points that pad it to the others'.

        What points cost grows with their number, and a scribble beside a click has dozens.
        """
        one = self[index : index + 1].in_image(0)
        given = one.point_labels[0] != NO_POINT
        return replace(one, points=one.points[:, given], point_labels=one.point_labels[:, given])

    def corrected(
        self,
        previous: Tensor,
        points: Sequence[np.ndarray],
        kinds: Sequence[np.ndarray],
        has_previous: Sequence[bool] | None = None,
    ) -> PromptBatch:
        """The same queries with the mask to correct and further points.

        Args:
            previous: (n, z, y, x) logits.
            points: for each query (k, 3) voxel indices, zyx.
            kinds: for each query (k,) 1 foreground, 0 background.
            has_previous: whether each query gets the mask to correct; all do when not given.
        """
        added = batch_queries(
            [Query(points=p, point_labels=k) for p, k in zip(points, kinds, strict=True)]
        ).to(self.points.device)
        given = torch.ones_like(self.has_previous)
        if has_previous is not None:
            given &= torch.tensor(has_previous, device=given.device)
        return replace(
            self,
            points=torch.cat([self.points, added.points], dim=1),
            point_labels=torch.cat([self.point_labels, added.point_labels], dim=1),
            previous=previous.detach(),
            has_previous=given,
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> PromptBatch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return PromptBatch(**{n: None if v is None else change(v) for n, v in values.items()})

    @property
    def label_given(self) -> Tensor:
        """(n,) bool."""
        return self.labels >= 0

    @property
    def is_prompted(self) -> Tensor:
        """(n,) bool, whether a query has more than a label's name."""
        has_points = (self.point_labels != NO_POINT).any(dim=1)
        prompted = self.has_box | has_points | self.has_previous
        if self.regions is not None:
            prompted = prompted | (self.regions != 0).flatten(1).any(dim=1)
        return prompted


def batch_queries(queries: Sequence[Query]) -> PromptBatch:
    """Pack queries into tensors; points are padded at the end to the longest list."""
    n, k = len(queries), max((len(q.points) for q in queries), default=0)
    boxes, has_box = np.zeros((n, 2, 3), np.float32), np.zeros(n, bool)
    points, point_labels = np.zeros((n, k, 3), np.float32), np.full((n, k), NO_POINT)
    for i, query in enumerate(queries):
        if query.box is not None:
            boxes[i], has_box[i] = query.box, True
        if len(query.points):
            points[i, : len(query.points)] = query.points
            point_labels[i, : len(query.points)] = query.point_labels
    return PromptBatch(
        image_index=torch.tensor([q.image for q in queries], dtype=torch.long),
        labels=torch.tensor([q.label for q in queries], dtype=torch.long),
        boxes=torch.from_numpy(boxes),
        has_box=torch.from_numpy(has_box),
        points=torch.from_numpy(points),
        point_labels=torch.from_numpy(point_labels).long(),
        regions=_stacked([q.region for q in queries]),
        previous=_stacked([q.previous for q in queries]),
        has_previous=torch.tensor([q.previous is not None for q in queries], dtype=torch.bool),
    )


def _stacked(maps: Sequence[np.ndarray | None]) -> Tensor | None:
    """(n, z, y, x) float32, zeros for None; None if all are."""
    given = [m for m in maps if m is not None]
    if not given:
        return None
    nothing = np.zeros(np.shape(given[0]), np.float32)
    return torch.from_numpy(
        np.stack([nothing if m is None else np.asarray(m, np.float32) for m in maps])
    )


def click_maps(points: Tensor, point_labels: Tensor, grid: Grid, widths: Sequence[float]) -> Tensor:
    """Gaussian bumps at the points, equally wide in mm along all axes.

    Bumps add up, to at most 1. Along an axis whose elements are long the standard deviation is
    at least half an element, so that a click on thick slices does not fall between them.

    Args:
        points: (n, k, 3) voxel indices in the patch, zyx.
        point_labels: (n, k) 1, 0 or `NO_POINT`.
        grid: of the maps.
        widths: standard deviations, in units of the shortest side of a voxel.

    Returns:
        (n, 2 * widths, z, y, x): for each width, foreground and background.
    """
    kinds = torch.stack([point_labels == 1, point_labels == 0], dim=1).float()  # (n, 2, k)
    maps = []
    for width in widths:
        z, y, x = (
            _bumps_along(points[:, :, axis], grid, axis, width).to(kinds) for axis in range(3)
        )
        plane = torch.einsum("nck,nkz,nky->nczyk", kinds, z, y)
        maps.append(torch.einsum("nczyk,nkx->nczyx", plane, x).clamp(max=1))
    return torch.cat(maps, dim=1)


def click_pushes(
    points: Tensor, point_labels: Tensor, pushes: Tensor, grid: Grid, widths: Sequence[float]
) -> Tensor:
    """What clicks add to logits at their voxels, fading with the distance.

    Each voxel takes that of its nearest click, so that opposite clicks beside each other do not
    cancel out.

    Args:
        points: (n, k, 3) voxel indices in the patch, zyx.
        point_labels: (n, k) 1, 0 or `NO_POINT`.
        pushes: (n, k) what each adds.
        grid: of the maps.
        widths: standard deviations, in units of the shortest side of a voxel.

    Returns:
        (n, widths, z, y, x).
    """

    # float64, as far from clicks numbers are tiny; without any point there is still one of padding
    padding = torch.zeros(points.shape[0], 1, 3, dtype=torch.float64, device=points.device)
    points = torch.cat([points.double(), padding], dim=1)
    given = torch.cat([(point_labels != NO_POINT).double(), padding[:, :, 0]], dim=1)
    pushes = torch.cat([pushes.double(), padding[:, :, 0]], dim=1)

    def summed(values: Tensor, *widths: float) -> Tensor:
        axes = []
        for axis in range(3):
            bumps = [_bumps_along(points[:, :, axis], grid, axis, width) for width in widths]
            axes.append(math.prod(bumps))
        plane = torch.einsum("nk,nkz,nky->nkzy", values, axes[0], axes[1])
        return torch.einsum("nkzy,nkx->nzyx", plane, axes[2])

    with torch.autocast(points.device.type, enabled=False):
        nearness = summed(given, NEAREST).clamp(min=TINY)
        maps = [summed(pushes, NEAREST, width) / nearness for width in widths]
    return torch.stack(maps, dim=1).float()


def _bumps_along(positions: Tensor, grid: Grid, axis: int, width: float) -> Tensor:
    """(n, k, elements) values along one axis of a bump at each of (n, k) positions."""
    stride, length = grid.stride[axis], grid.spacing[axis]
    distances = (grid.centres(axis, positions.device) - (positions.unsqueeze(-1) + 0.5)) * length
    return torch.exp(-0.5 * (distances / max(width, 0.5 * stride * length)) ** 2)


def box_maps(boxes: Tensor, grid: Grid) -> Tensor:
    """(n, z, y, x) fractions, 0 to 1, of each element that lies in (n, 2, 3) boxes in voxels."""
    fractions = []
    for axis in range(3):
        lower = grid.edges(axis, boxes.device)
        from_, to = boxes[:, 0, axis, None], boxes[:, 1, axis, None]
        overlap = torch.minimum(lower + grid.stride[axis], to) - torch.maximum(lower, from_)
        fractions.append((overlap / grid.stride[axis]).clamp(0, 1))
    z, y, x = fractions
    return z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]
