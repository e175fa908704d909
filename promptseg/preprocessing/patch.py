"""One patch of a volume, wherever it lies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

from promptseg.boxes import to_bbox


def cut_patch(volume, start: np.ndarray, patch_size: Sequence[int]) -> np.ndarray:
    """Cut a patch from the last three axes of a volume, with zeros outside it.

    Args:
        volume: (..., z, y, x) array, or a stored one that slices like an array, of which only the
            patch is read. One that is neither NumPy's nor blosc2's must meet the patch.
        start: first voxel, zyx; may be negative.
        patch_size: voxels, zyx.

    Returns:
        (..., *patch_size); a view where the patch lies inside a NumPy array.
    """
    return crop_and_pad_nd(volume, to_bbox(np.stack([start, np.add(start, patch_size)])))
