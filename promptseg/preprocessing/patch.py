"""One patch of a volume, wherever it lies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def cut_patch(volume, shape: Sequence[int], start: np.ndarray, patch_size: Sequence[int]):
    """Cut `patch` voxels from the last three axes of a volume, with zeros outside it.

    Args:
        volume: (..., z, y, x) array, or a stored one that slices like an array.
        shape: its last three axes.
        start: first voxel, zyx; may be negative.
        patch: voxels, zyx.
    """
    lower = np.maximum(start, 0)
    upper = np.minimum(np.asarray(start) + patch_size, shape)
    inside = tuple(slice(int(a), int(max(a, b))) for a, b in zip(lower, upper, strict=True))
    leading = (slice(None),) * (len(volume.shape) - 3)
    piece = np.asarray(volume[leading + inside])
    before = np.minimum(lower - start, patch_size)
    padding = [(0, 0)] * len(leading) + [
        (int(b), int(w - b - n))
        for b, w, n in zip(before, patch_size, piece.shape[-3:], strict=True)
    ]
    return np.pad(piece, padding)
