"""Zoom-out: where in a volume the answer to each query is looked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from promptseg.boxes import enclosing_box, mask_box
from promptseg.inference.queries import region_of, widened
from promptseg.networks.prompt_encoder import Query


def locate(
    queries: Sequence[Query],
    shape: Sequence[int],
    window: Sequence[int],
    ask_whole: Callable[[Sequence[Query]], Tensor],
) -> list[tuple[Query, np.ndarray] | None]:
    """Give every query a region of the volume.

    Where the volume exceeds one window, a query without box is asked of the whole volume, resized
    to one window; the box of the answer, with the foreground points in it, becomes its prompt,
    and the region is a voxel of that coarse answer wider. When the answer is empty, a query with
    foreground points is looked for round them, without box.

    Args:
        queries: in preprocessed voxels.
        shape: of the preprocessed volume, zyx.
        window: voxels, zyx.
        ask_whole: logits (n, *window) of queries about the resized volume, in its voxels.

    Returns:
        For each query itself, with its box, and its region (2, 3); None for one that is found
        nowhere.
    """
    shape, window = np.asarray(shape), np.asarray(window)
    vague = [query for query in queries if query.box is None]
    if (shape <= window).all() or not vague:
        return [(query, region_of(query, shape, window)) for query in queries]
    coarse_voxel = shape / window
    boxes = iter(_coarse_boxes(vague, coarse_voxel, ask_whole))
    return [
        _placed(query, next(boxes), coarse_voxel, shape)
        if query.box is None
        else (query, region_of(query, shape, window))
        for query in queries
    ]


def _coarse_boxes(
    queries: Sequence[Query],
    coarse_voxel: np.ndarray,
    ask_whole: Callable[[Sequence[Query]], Tensor],
) -> list[np.ndarray | None]:
    """Boxes, in preprocessed voxels, of what queries find in the whole volume at once."""
    scaled = []
    for query in queries:
        points = np.asarray(query.points, float).reshape(-1, 3)
        scaled.append(replace(query, points=(points + 0.5) / coarse_voxel - 0.5))
    boxes = [mask_box((answer > 0).cpu().numpy()) for answer in ask_whole(scaled)]
    return [None if box is None else box * coarse_voxel for box in boxes]


def _placed(
    query: Query, box: np.ndarray | None, coarse_voxel: np.ndarray, shape: np.ndarray
) -> tuple[Query, np.ndarray] | None:
    """A query with the box that the coarse answer gave it, if any, and its region.

    Where a person clicked there is something, however small it is in the coarse volume.
    """
    clicked = _clicked_box(query, shape)
    if box is None and clicked is None:
        return None
    if box is None:
        return query, widened(clicked, coarse_voxel, shape)
    if clicked is not None:
        box = enclosing_box([box, clicked])
    margin = np.maximum(0.1 * (box[1] - box[0]), coarse_voxel)
    return replace(query, box=box), widened(box, margin, shape)


def _clicked_box(query: Query, shape: np.ndarray) -> np.ndarray | None:
    """The smallest box round the voxels of the foreground points; None when there are none."""
    points = np.asarray(query.points, float).reshape(-1, 3)
    voxels = [(point, point + 1) for point in points[np.asarray(query.point_labels) == 1]]
    box = enclosing_box(np.array(voxels))
    return None if box is None else np.clip(box, 0, shape)
