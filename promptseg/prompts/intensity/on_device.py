"""Lines 1 to 7 of Algorithm 1 on a torch tensor, on the device where the volume already lives.

The arithmetic is that of `smoothing.py` and `closing.py`: double precision within an axis, float32
between them, the same runs of the ball. Labelling stays on the CPU, which gets one byte per voxel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from promptseg.prompts.intensity.closing import half_widths
from promptseg.prompts.intensity.smoothing import smoothing_matrix

if TYPE_CHECKING:
    import torch


def is_tensor(image: Any) -> bool:
    """Whether this is a torch tensor, without importing torch to know."""
    return hasattr(image, "is_cuda")


def candidate_mask_on_device(
    image: torch.Tensor, *, sigma: float, low: float, high: float, radius: float
) -> np.ndarray:
    """The closed mask between the thresholds; parameters as in `IntensityPrompter`.

    Args:
        image: (z, y, x) finite numbers, on a device that computes in double precision.

    Returns:
        (z, y, x) bool on the CPU.
    """
    smoothed = image.float()
    for axis in range(3):
        smoothed = _smooth_along(smoothed, axis, sigma)
    exact = smoothed.double()  # else torch would round the thresholds to float32
    mean, deviation = exact.mean(), exact.std(correction=0)
    mask = (exact > mean + low * deviation) & (exact < mean + high * deviation)
    del exact, smoothed
    return _close(mask, half_widths(radius, (1.0, 1.0, 1.0))).cpu().numpy()


def _smooth_along(image: torch.Tensor, axis: int, sigma: float) -> torch.Tensor:
    import torch

    rows = image.movedim(axis, 0)
    matrix = torch.as_tensor(smoothing_matrix(len(rows), sigma), device=image.device)
    product = matrix @ rows.reshape(len(rows), -1).double()
    return product.float().reshape(rows.shape).movedim(0, axis)


def _close(mask: torch.Tensor, runs: np.ndarray) -> torch.Tensor:
    from torch.nn.functional import pad

    reach_z, reach_y, reach_x = runs.shape[0] // 2, runs.shape[1] // 2, int(runs.max())
    padded = pad(mask, [2 * reach_x] * 2 + [2 * reach_y] * 2 + [2 * reach_z] * 2)
    return ~_dilate(~_dilate(padded, runs), runs)


def _dilate(mask: torch.Tensor, runs: np.ndarray) -> torch.Tensor:
    """Dilation by runs along x, for the places at which all of the element lies inside `mask`."""
    reach = int(runs.max())
    depth, height = (size - n + 1 for size, n in zip(mask.shape[:2], runs.shape, strict=True))
    width = mask.shape[2] - 2 * reach
    widened = [mask[..., reach : reach + width]]
    for half in range(1, reach + 1):
        left, right = mask[..., reach - half :], mask[..., reach + half :]
        widened.append(widened[-1] | left[..., :width] | right[..., :width])
    dilated = mask.new_zeros((depth, height, width))
    for dz, dy in np.argwhere(runs >= 0):
        dilated |= widened[runs[dz, dy]][dz : dz + depth, dy : dy + height]
    return dilated
