"""Voxels whose label nobody knows: nnU-Net's `ignore`."""

from __future__ import annotations

import numpy as np

IGNORE = "ignore"  # name of their value in dataset.json
IGNORED = -1  # in place of the dataset's value, wherever labels are learned from


def with_ignored(segmentation: np.ndarray, ignore_label: int | None) -> np.ndarray:
    """A (z, y, x) segmentation as stored, with `IGNORED` in place of the value to ignore.

    The segmentation itself if no value is to be ignored; else of int16.
    """
    if ignore_label is None:
        return segmentation
    known = segmentation.astype(np.int16)
    known[segmentation == ignore_label] = IGNORED
    return known
