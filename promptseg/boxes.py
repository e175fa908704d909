"""Half-open (2, 3) voxel boxes, lower and upper corner, zyx: from masks, and compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WHOLE_VOLUME = 0.9  # of the volume: a box this large says nothing about where the object is


def mask_box(mask: np.ndarray) -> np.ndarray | None:
    """The smallest integer box round a (z, y, x) bool mask, or None when it is empty."""
    lower, upper = [], []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if not len(filled):
            return None
        lower.append(filled[0])
        upper.append(filled[-1] + 1)
    return np.array([lower, upper])


def enclosing_box(boxes: Sequence[np.ndarray] | np.ndarray) -> np.ndarray | None:
    """The smallest box round several boxes, or None when there are none."""
    if not len(boxes):
        return None
    boxes = np.asarray(boxes)
    return np.stack([boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)])


def box_volume(box: np.ndarray) -> float:
    """Voxels in a box; 0 when it is empty along an axis."""
    lower, upper = np.asarray(box)
    return float(np.prod(np.maximum(upper - lower, 0)))


def box_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two boxes; NaN when both are empty."""
    first, second = np.asarray(first), np.asarray(second)
    common = box_volume([np.maximum(first[0], second[0]), np.minimum(first[1], second[1])])
    union = box_volume(first) + box_volume(second) - common
    return common / union if union else float("nan")
