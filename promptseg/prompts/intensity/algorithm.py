"""The steps of the intensity strategies on arrays, under one name.

smooth -> mean_and_deviation -> between -> close_with_ball -> components -> boxes
"""

from __future__ import annotations

import numpy as np

from promptseg.prompts.intensity.closing import close_with_ball, close_with_ellipsoid
from promptseg.prompts.intensity.components import (
    box_of,
    clip_box,
    components,
    is_nearly_whole,
    largest_component_box,
    largest_component_boxes,
    widen_box,
)
from promptseg.prompts.intensity.smoothing import mean_and_deviation, smooth
from promptseg.prompts.intensity.threads import map_pieces

__all__ = [
    "between",
    "box_of",
    "clip_box",
    "close_with_ball",
    "close_with_ellipsoid",
    "components",
    "is_nearly_whole",
    "largest_component_box",
    "largest_component_boxes",
    "mean_and_deviation",
    "smooth",
    "widen_box",
]

SLAB_VOXELS = 2**18  # compared in one call: slices of a large volume, all of a small one


def between(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """(z, y, x) bool: strictly between two numbers, compared in float64 whatever the image's type.

    NumPy would round a Python float to the image's float32 first and could turn a strict
    comparison into an equality.
    """
    mask = np.empty(image.shape, bool)
    low, high = np.float64(low), np.float64(high)
    slices = max(1, SLAB_VOXELS // image[0].size)

    def compare(z: int) -> None:
        slab = slice(z, z + slices)
        np.logical_and(image[slab] > low, image[slab] < high, out=mask[slab])

    map_pieces(compare, range(0, len(image), slices), image.size)
    return mask
