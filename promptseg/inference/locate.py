"""Zoom-out: where in a volume the answer to each query is looked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from promptseg.boxes import enclosing_box, mask_box
from promptseg.inference.decoding import ASKED_AT_ONCE
from promptseg.inference.queries import region_of, widened, windows_that_meet
from promptseg.inference.sliding_window import windows_of_regions
from promptseg.networks.prompt_encoder import Query

AskWhole = Callable[[Sequence[Query]], tuple[Tensor, Tensor]]


def locate(
    queries: Sequence[Query],
    shape: Sequence[int],
    window: Sequence[int],
    ask_whole: AskWhole,
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
        ask_whole: see `boxes_in_whole`.

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


def boxes_in_whole(
    queries: Sequence[Query], ask_whole: AskWhole
) -> list[tuple[np.ndarray | None, float]]:
    """Boxes of the answers about a whole volume, resized to one window; a few asked at once.

    Args:
        queries: in voxels of the resized volume.
        ask_whole: logits (n, *window) and predicted IoU (n,) of queries about that volume.

    Returns:
        For each query the (2, 3) box of its mask, None for an empty one, and the predicted IoU.
    """
    found = []
    for first in range(0, len(queries), ASKED_AT_ONCE):
        logits, ious = ask_whole(queries[first : first + ASKED_AT_ONCE])
        masks = ((answer > 0).cpu().numpy() for answer in logits)
        found += zip(map(mask_box, masks), ious.tolist(), strict=True)
    return found


def windows_of_queries(
    queries: Sequence[Query],
    regions: Sequence[np.ndarray],
    shape: Sequence[int],
    window: Sequence[int],
    step_size: float,
) -> list[np.ndarray]:
    """(n, 3) window starts for each query: those of its region that meet its box.

    Args:
        queries: in preprocessed voxels.
        regions: (2, 3) of each, from `locate`.
        shape, window, step_size: see `windows_of_regions`.
    """
    of_regions = windows_of_regions(shape, window, regions, step_size)
    return [windows_that_meet(*of, window) for of in zip(queries, of_regions, strict=True)]


def _coarse_boxes(
    queries: Sequence[Query], coarse_voxel: np.ndarray, ask_whole: AskWhole
) -> list[np.ndarray | None]:
    """Boxes, in preprocessed voxels, of what queries find in the whole volume at once."""
    scaled = []
    for query in queries:
        points = np.asarray(query.points, float).reshape(-1, 3)
        scaled.append(replace(query, points=(points + 0.5) / coarse_voxel - 0.5))
    boxes = boxes_in_whole(scaled, ask_whole)
    return [None if box is None else box * coarse_voxel for box, _ in boxes]


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
