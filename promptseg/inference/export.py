"""Logits of regions, label by label, to one segmentation on the raw voxel grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def resample_region(
    logits: Tensor, lower: Sequence[int], shape: Sequence[int], raw_shape: Sequence[int]
) -> tuple[Tensor, np.ndarray]:
    """Carry the logits of a region to the raw grid, by linear interpolation.

    Both grids cover the same field of view; a voxel i covers [i, i + 1). Equal to resampling the
    whole volume (torch's `trilinear`, `align_corners=False`) and cutting out the raw voxels whose
    centre lies in the region, without ever holding that volume.

    Args:
        logits: (z, y, x) of the region.
        lower: its first voxel in the preprocessed volume, zyx.
        shape: of the preprocessed volume, zyx.
        raw_shape: of the raw volume, zyx.

    Returns:
        (z, y, x) logits of a region of the raw volume, and that region's first voxel, zyx.
    """
    if tuple(shape) == tuple(raw_shape):
        return logits, np.asarray(lower, int)
    firsts = []
    for axis, (low, n, raw) in enumerate(zip(lower, shape, raw_shape, strict=True)):
        extent = logits.shape[axis]
        centres = (torch.arange(raw, dtype=torch.float64) + 0.5) * (n / raw)
        inside = ((centres >= low) & (centres <= low + extent)).nonzero()[:, 0]
        first = int(inside[0]) if len(inside) else 0
        position = (centres[inside] - 0.5 - low).clamp(0, extent - 1)
        left = position.floor().long()
        right = (left + 1).clamp(max=extent - 1)
        share = (position - left).to(logits).view([-1 if a == axis else 1 for a in range(3)])
        logits = torch.lerp(
            logits.index_select(axis, left), logits.index_select(axis, right), share
        )
        firsts.append(first)
    return logits, np.array(firsts)


class LabelMap:
    """The winning label of every raw voxel, one label's logits at a time.

    A voxel goes to the label with the largest logit above 0, to the lowest value when several
    are equal, whatever the order in which labels come. Memory: the label map and one float32
    volume, however many labels there are.
    """

    def __init__(self, raw_shape: Sequence[int], largest_value: int) -> None:
        self.labels = np.zeros(tuple(raw_shape), np.uint8 if largest_value < 256 else np.int16)
        self._best = np.zeros(tuple(raw_shape), np.float32)

    def add(self, value: int, logits: Tensor, lower: np.ndarray) -> None:
        """Enter the (z, y, x) raw-grid logits of one label's region."""
        region = tuple(slice(int(a), int(a + n)) for a, n in zip(lower, logits.shape, strict=True))
        new, best, labels = logits.numpy(), self._best[region], self.labels[region]
        wins = (new > best) | ((new == best) & (labels > value))
        best[wins] = new[wins]
        labels[wins] = value
