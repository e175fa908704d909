"""Connected components of a mask, and the boxes of the largest."""

from __future__ import annotations

import cc3d
import numpy as np

from promptseg.boxes import value_box

_COUNTED_AT_ONCE = 2**20  # voxels; bincount makes int64 of them


def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label the 26-connected components.

    Args:
        mask: (z, y, x) bool.

    Returns:
        (z, y, x) unsigned labels, 0 background, the others numbered from 1 in raster order of
        their first voxels, and (n + 1,) voxels of each label; the background's count is set
        to 0, so that `counts.argmax()` is the largest component, the first on a tie.
    """
    # Contiguous, as cc3d numbers in memory order; in bytes, as it expects too few components of
    # small bool masks, and fails (version 4.1.1).
    mask = np.ascontiguousarray(mask, bool).view(np.uint8)
    labels, n = cc3d.connected_components(mask, connectivity=26, return_N=True)
    counts = np.zeros(n + 1, np.int64)
    flat = labels.reshape(-1)
    for start in range(0, flat.size, _COUNTED_AT_ONCE):
        some = np.bincount(flat[start : start + _COUNTED_AT_ONCE])
        counts[: len(some)] += some
    counts[0] = 0
    return labels, counts


def largest_component_box(mask: np.ndarray) -> tuple[np.ndarray, int] | None:
    """Box and voxel count of the largest 26-connected component, first in raster order on a tie.

    Args:
        mask: (z, y, x) bool.

    Returns:
        (2, 3) half-open box in voxels, zyx, and its component's voxels; None for an empty mask.
    """
    labels, counts = components(mask)
    if len(counts) == 1:
        return None
    largest = int(counts.argmax())
    return value_box(labels, largest), int(counts[largest])


def largest_component_boxes(
    mask: np.ndarray, most: int | None = None, min_voxels: int = 1
) -> list[tuple[np.ndarray, int]]:
    """Box and voxel count of the largest 26-connected components, largest first.

    Args:
        mask: (z, y, x) bool.
        most: largest number of boxes; None for all.
        min_voxels: smaller components are left out.

    Returns:
        one (2, 3) half-open box in voxels, zyx, and voxel count for each; ties in raster order.
    """
    labels, counts = components(mask)
    order = np.argsort(-counts[1:], kind="stable")[:most] + 1
    chosen = order[counts[order] >= min_voxels]
    if len(chosen) == 0:
        return []
    ranges = cc3d.statistics(labels, no_slice_conversion=True)["bounding_boxes"]
    ends = ranges.reshape(-1, 3, 2).astype(np.int64) + (0, 1)  # cc3d's ends are inclusive
    return [(ends[label].T, int(counts[label])) for label in chosen]
