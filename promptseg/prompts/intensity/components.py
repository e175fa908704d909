"""Connected components of a mask and their boxes; boxes widened and clipped."""

from __future__ import annotations

import cc3d
import numpy as np

from promptseg.boxes import WHOLE_VOLUME, box_volume
from promptseg.prompts.intensity.threads import map_pieces

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
    mask = np.ascontiguousarray(mask)  # cc3d numbers in memory order
    labels, n = cc3d.connected_components(mask, connectivity=26, binary_image=True, return_N=True)
    counts = np.zeros(n + 1, np.int64)
    flat = labels.reshape(-1)
    for start in range(0, flat.size, _COUNTED_AT_ONCE):
        some = np.bincount(flat[start : start + _COUNTED_AT_ONCE])
        counts[: len(some)] += some
    counts[0] = 0
    return labels, counts


def box_of(labels: np.ndarray, label: int) -> np.ndarray:
    """(2, 3) half-open box, voxels, zyx, of a label that occurs in (z, y, x) `labels`."""

    def rows_and_columns(z: int) -> tuple[np.ndarray, np.ndarray]:
        here = labels[z] == label
        return here.any(axis=1), here.any(axis=0)

    lines = map_pieces(rows_and_columns, range(len(labels)), labels.size)
    rows, columns = (np.array(line) for line in zip(*lines, strict=True))
    ends = [_ends(line) for line in (rows.any(axis=1), rows.any(axis=0), columns.any(axis=0))]
    return np.array(ends).T


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
    return box_of(labels, largest), int(counts[largest])


def largest_component_boxes(
    mask: np.ndarray, most: int | None = None, min_voxels: int = 1
) -> list[tuple[np.ndarray, int]]:
    """Box and voxel count of the largest 26-connected components, largest first.

    Args:
        mask: (z, y, x) bool.
        most: how many at most; None for all.
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


def widen_box(box: np.ndarray, margin: int | np.ndarray) -> np.ndarray:
    """Move both corners outward by `margin` voxels, one number or one for each axis, zyx."""
    return np.stack([box[0] - margin, box[1] + margin])


def clip_box(box: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The part of a half-open box inside a volume of `shape`; both in voxels, zyx."""
    return np.clip(box, 0, shape)


def is_nearly_whole(box: np.ndarray, shape: tuple[int, int, int]) -> bool:
    """Whether the part of a box inside the volume is at least `WHOLE_VOLUME` of the volume."""
    return bool(box_volume(clip_box(box, shape)) >= WHOLE_VOLUME * np.prod(shape))


def _ends(line: np.ndarray) -> tuple[int, int]:
    """First true index and one past the last."""
    true = np.flatnonzero(line)
    return int(true[0]), int(true[-1]) + 1
