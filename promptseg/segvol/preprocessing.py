"""SegVol's preprocessing: its normalization, its crop to the foreground, its resizing.

Of the original, two things are kept because the released weights were used with them, and two are
not reproduced.

Kept:
- Volumes are used as stored, in their own voxels: neither reoriented (the original requests RAS,
  but has dropped the affine by then) nor resampled to a common spacing.
- The whole volume is resized by nearest neighbours, without averaging.

Not reproduced:
- The original pads to the patch before it crops, so that the crop removes the padding again, but
  its corners include the padding. Here corners are voxels of the volume, and nothing is padded.
- A constant volume divides by zero there; here it is all 0 and is not cropped.

Source:
    SegVol, data_process/demo_data_process.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from promptseg.boxes import box_slices, mask_box
from promptseg.plans import Normalization
from promptseg.preprocessing.normalize import check_finite, intensity_range, rescale_part


class NormalizedView:
    """Raw voxels that are normalized when they are read.

    It slices like a (c, z, y, x) float32 array in [0, 255].

    Args:
        raw: (c, z, y, x) raw intensities; not copied.
        limits: the raw intensities that become 0 and 255.
    """

    def __init__(self, raw: np.ndarray, limits: tuple[float, float]) -> None:
        self.raw, self.limits, self.shape = raw, limits, raw.shape

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        return rescale_part(self.raw[region], *self.limits)

    def part(self, box: np.ndarray) -> NormalizedView:
        """The part in a (2, 3) half-open box, zyx, normalized with the limits of the whole."""
        return NormalizedView(self.raw[(slice(None), *box_slices(box))], self.limits)


class SegVolImage(NormalizedView):
    """A raw image as SegVol sees it.

    Normalization and nearest neighbours commute, so that no second copy of the volume is held.

    Args:
        raw: (1, z, y, x) raw intensities; not copied.
        normalization: from raw intensities to [0, 255].

    Attributes:
        foreground: (2, 3) half-open box, zyx, around the voxels above 0 after normalization; the
            whole volume if there are none.

    Raises:
        ValueError: if there are several channels, or a voxel is NaN or infinite.
    """

    def __init__(self, raw: np.ndarray, normalization: Normalization) -> None:
        if raw.ndim != 4 or len(raw) != 1:
            raise ValueError(f"SegVol takes one channel, (1, z, y, x); got shape {raw.shape}")
        check_finite(raw[0])
        super().__init__(raw, intensity_range(raw[0], normalization))
        lower, upper = self.limits
        bright = mask_box(raw[0] > lower) if lower < upper else None
        self.foreground = np.array([(0, 0, 0), raw.shape[1:]]) if bright is None else bright

    def resized(self, size: Sequence[int]) -> np.ndarray:
        """(1, *size) float32: the foreground box, resized by nearest neighbours."""
        axes = [
            low + nearest_indices(high - low, n, "nearest-exact")
            for low, high, n in zip(*self.foreground, size, strict=True)
        ]
        return self[(slice(None), *np.ix_(*axes))]


def nearest_indices(old: int, new: int, mode: str) -> np.ndarray:
    """For each of `new` voxels along an axis, the one of `old` that PyTorch's resizing takes.

    Args:
        old, new: numbers of voxels along the axis.
        mode: `nearest-exact` (the voxel that holds the new one's centre) or `nearest` (the one
            that holds its lower face).

    Returns:
        (new,) indices, in PyTorch's own rounding.
    """
    import torch  # here, so that worker processes never import torch

    line = torch.arange(int(old), dtype=torch.float32).view(1, 1, -1, 1, 1)
    resized = torch.nn.functional.interpolate(line, (int(new), 1, 1), mode=mode)
    return resized.flatten().long().numpy()
