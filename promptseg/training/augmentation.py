"""Spatial and intensity augmentation, by batchgenerators."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from batchgenerators.transforms.abstract_transforms import AbstractTransform, Compose
from batchgenerators.transforms.color_transforms import (
    BrightnessMultiplicativeTransform,
    ContrastAugmentationTransform,
    GammaTransform,
)
from batchgenerators.transforms.noise_transforms import (
    GaussianBlurTransform,
    GaussianNoiseTransform,
)
from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform
from batchgenerators.transforms.spatial_transforms import SpatialTransform

ROTATION = np.deg2rad(20)
SCALE = (0.7, 1.4)  # above 1 the patch shows more of the volume
MARGIN = 0.2  # of the patch on each side


def make_augmentation(patch_size: Sequence[int], spacing: Sequence[float]) -> AbstractTransform:
    """The augmentation pipeline, after nnU-Net's but somewhat milder.

    Args:
        patch_size: voxels, zyx.
        spacing: mm, zyx.
    """
    transforms = [
        spatial_transform(patch_size, spacing),
        GaussianNoiseTransform(noise_variance=(0, 0.02), p_per_sample=0.15),
        GaussianBlurTransform((0.5, 1.0), p_per_sample=0.1, p_per_channel=1.0),
        BrightnessMultiplicativeTransform((0.75, 1.25), p_per_sample=0.2),
        ContrastAugmentationTransform((0.75, 1.25), p_per_sample=0.2),
        SimulateLowResolutionTransform(zoom_range=(0.5, 1.0), p_per_sample=0.1),
        GammaTransform((0.7, 1.5), retain_stats=True, p_per_sample=0.25),
    ]
    return Compose(transforms)


def spatial_transform(patch_size: Sequence[int], spacing: Sequence[float]) -> AbstractTransform:
    """Rotation and scaling; in the plane of the slices where these are thick.

    Between slices that are more than three times as far apart as the pixels of one, interpolation
    would mix what lies far apart.

    Args:
        patch_size: voxels, zyx.
        spacing: mm, zyx.
    """
    angle = (-ROTATION, ROTATION)
    options = {
        "patch_center_dist_from_border": None,
        "do_elastic_deform": False,
        "angle_x": angle,
        "angle_y": angle,
        "angle_z": angle,
        "p_rot_per_sample": 0.4,
        "scale": SCALE,
        "p_scale_per_sample": 0.4,
        "order_data": 1,
        "order_seg": 0,
        "border_mode_data": "constant",
        "border_mode_seg": "constant",
        "border_cval_seg": 0,
        "random_crop": False,
    }
    axis = thick_axis(spacing)
    if axis is None:
        return SpatialTransform(tuple(patch_size), **options)
    return _InSlices(SpatialTransform(tuple(np.delete(patch_size, axis)), **options), axis)


def thick_axis(spacing: Sequence[float]) -> int | None:
    """The axis across thick slices, of z, y, x = 0, 1, 2; None where there are none."""
    return int(np.argmax(spacing)) if max(spacing) > 3 * min(spacing) else None


def augmentation_margin(patch_size: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """Voxels on each side of a patch, zyx, that are cut with it to be rotated into it."""
    margin = np.ceil(MARGIN * np.array(patch_size)).astype(int)
    if (axis := thick_axis(spacing)) is not None:
        margin[axis] = 0
    return margin


class _InSlices(AbstractTransform):
    """A two-dimensional transform of volumes, alike in all slices across an axis."""

    def __init__(self, transform: AbstractTransform, axis: int) -> None:
        self.transform, self.axis = transform, axis + 2

    def __call__(self, **sample: np.ndarray) -> dict[str, np.ndarray]:
        volumes = {name: np.moveaxis(array, self.axis, 2) for name, array in sample.items()}
        slices = {name: a.reshape(len(a), -1, *a.shape[3:]) for name, a in volumes.items()}
        moved = self.transform(**slices)
        return {
            name: np.moveaxis(
                moved[name].reshape(*a.shape[:3], *moved[name].shape[2:]), 2, self.axis
            )
            for name, a in volumes.items()
        }


def augment(
    transform: AbstractTransform,
    image: np.ndarray,
    segmentation: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Apply a pipeline to one sample.

    batchgenerators draws from the global generators of NumPy and Python; both are seeded from
    `rng` here and restored afterwards, so that a sample depends on `rng` alone.

    Args:
        transform: from `make_augmentation`.
        image: (c, z, y, x) in [0, 255], the patch with a margin or without one.
        segmentation: (z, y, x) integers, likewise.
        rng: source of randomness.

    Returns:
        (c, z, y, x) float32 in [0, 255] and (z, y, x) int16, of the patch alone.
    """
    states = np.random.get_state(), random.getstate()
    np.random.seed(rng.integers(2**32))
    random.seed(int(rng.integers(2**32)))
    try:
        data = image[None].astype(np.float32) / 255
        sample = transform(data=data, seg=segmentation[None, None].astype(np.float32))
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
    augmented = np.clip(sample["data"][0] * 255, 0, 255).astype(np.float32)
    return augmented, np.rint(sample["seg"][0, 0]).astype(np.int16)
