"""Images as they should not be: noisy, blurred, of other contrast, cut off."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from monai.transforms import (
    RandAdjustContrast,
    RandBiasField,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandGibbsNoise,
    RandHistogramShift,
)

INVERTED, CROPPED = "inverted", "cropped"
SMALLEST = 8  # voxels that a crop leaves along an axis, where there are as many


def _noise(deviation: float) -> RandGaussianNoise:
    return RandGaussianNoise(prob=1.0, std=1.5 * deviation)  # drawn from 0 to this


def _blur(deviation: float) -> RandGaussianSmooth:
    between = (0.5, 4.0)
    return RandGaussianSmooth(prob=1.0, sigma_x=between, sigma_y=between, sigma_z=between)


CHANGES: dict[str, Callable[[float], Callable]] = {
    "noise": _noise,
    "blur": _blur,
    "ringing": lambda deviation: RandGibbsNoise(prob=1.0, alpha=(0.4, 0.95)),
    "shading": lambda deviation: RandBiasField(prob=1.0, coeff_range=(0.1, 0.5)),
    "contrast": lambda deviation: RandAdjustContrast(prob=1.0, gamma=(0.3, 4.0)),
    "other tissue contrast": lambda deviation: RandHistogramShift(prob=1.0, num_control_points=6),
}
"""What is done to intensities, each a MONAI transform for images of some standard deviation."""


def degraded(
    image: np.ndarray, segmentation: np.ndarray, kind: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A copy of an image in which a mask is harder to find, and the part of the mask in it.

    Args:
        image: (c, z, y, x) raw intensities.
        segmentation: (z, y, x).
        kind: `INVERTED`, `CROPPED` or one of `CHANGES`.
        rng: decides how strong.

    Returns:
        (c, ...) float32 image, in the range of intensities of the other, and segmentation; both
        smaller where it was cropped.
    """
    image = image.astype(np.float32)
    if kind == CROPPED:
        part = _part(np.array(segmentation.shape), rng)
        return image[(slice(None), *part)], segmentation[part]
    lowest, highest = (f(image, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    if kind == INVERTED:
        return lowest + highest - image, segmentation
    change = CHANGES[kind](float(image.std()))
    change.set_random_state(int(rng.integers(2**31)))
    changed = np.asarray(torch.as_tensor(change(image)), np.float32)
    return np.clip(changed, lowest, highest), segmentation


def kinds_for(rng: np.random.Generator, count: int) -> list[str]:
    """So many different kinds of `degraded`, drawn at random."""
    return rng.permutation([*CHANGES, INVERTED, CROPPED])[:count].tolist()


def _part(shape: np.ndarray, rng: np.random.Generator) -> tuple[slice, ...]:
    """A random part of a volume, between half and nine tenths of it along each axis."""
    size = np.rint(shape * rng.uniform(0.5, 0.9, 3)).astype(int)
    size = np.maximum(size, np.minimum(SMALLEST, shape))
    first = rng.integers(0, shape - size + 1)
    return tuple(slice(int(a), int(a + n)) for a, n in zip(first, size, strict=True))
