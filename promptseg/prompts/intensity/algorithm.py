"""Lines 1 to 7 of the paper's Algorithm 1: from a volume to the mask whose components get boxes.

smooth -> mean_and_deviation -> between -> close_with_ball
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from promptseg.prompts.intensity.closing import close_with_ball
from promptseg.prompts.intensity.on_device import candidate_mask_on_device, is_tensor
from promptseg.prompts.intensity.smoothing import mean_and_deviation, smooth
from promptseg.prompts.intensity.threads import map_pieces

if TYPE_CHECKING:
    import torch

SLAB_VOXELS = 2**18  # compared in one call: slices of a large volume, all of a small one


def candidate_mask(
    image: np.ndarray | torch.Tensor, *, sigma: float, low: float, high: float, radius: float
) -> np.ndarray:
    """Smooth a volume, keep a band of intensities, and close the gaps in it.

    Args:
        image: (z, y, x) finite numbers, of any real type; of a tensor, on its device.
        sigma: of the Gaussian, voxels.
        low, high: ends of the band, in standard deviations above the mean of the smoothed volume.
        radius: of the ball that closes gaps, voxels.

    Returns:
        (z, y, x) bool on the CPU.

    Source:
        Paper, section 2.3 and Algorithm 1.
    """
    if is_tensor(image):
        return candidate_mask_on_device(image, sigma=sigma, low=low, high=high, radius=radius)
    smoothed = smooth(image, sigma)
    mean, deviation = mean_and_deviation(smoothed)
    mask = between(smoothed, mean + low * deviation, mean + high * deviation)
    del smoothed  # four bytes per voxel, not needed for closing
    return close_with_ball(mask, radius)


def between(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """(z, y, x) bool: strictly between two numbers, compared in float64 whatever the image's dtype.

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
