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


def make_augmentation(patch_size: Sequence[int], spacing: Sequence[float]) -> AbstractTransform:
    """The augmentation pipeline, after nnU-Net's but somewhat milder.

    Rotations are kept in the plane where the slices are more than three times as thick as the
    pixels: out-of-plane rotation would interpolate between distant slices.

    Args:
        patch_size: voxels, zyx.
        spacing: mm, zyx.
    """
    thick = max(spacing) > 3 * min(spacing)
    axis = int(np.argmax(spacing))
    radians = np.deg2rad(20)
    angles = [(-radians, radians) if not thick or a == axis else (0, 0) for a in range(3)]
    transforms = [
        SpatialTransform(
            tuple(patch_size),
            patch_center_dist_from_border=None,
            do_elastic_deform=False,
            angle_x=angles[0],
            angle_y=angles[1],
            angle_z=angles[2],
            p_rot_per_sample=0.4,
            scale=(0.8, 1.25),
            p_scale_per_sample=0.4,
            independent_scale_for_each_axis=False,
            order_data=1,
            order_seg=0,
            border_mode_data="constant",
            border_mode_seg="constant",
            border_cval_seg=0,
            random_crop=False,
        ),
        GaussianNoiseTransform(noise_variance=(0, 0.02), p_per_sample=0.15),
        GaussianBlurTransform((0.5, 1.0), p_per_sample=0.1, p_per_channel=1.0),
        BrightnessMultiplicativeTransform((0.75, 1.25), p_per_sample=0.2),
        ContrastAugmentationTransform((0.75, 1.25), p_per_sample=0.2),
        SimulateLowResolutionTransform(zoom_range=(0.5, 1.0), p_per_sample=0.1),
        GammaTransform((0.7, 1.5), retain_stats=True, p_per_sample=0.25),
    ]
    return Compose(transforms)


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
        image: (c, z, y, x) in [0, 255].
        segmentation: (z, y, x) integers.
        rng: source of randomness.

    Returns:
        (c, z, y, x) float32 in [0, 255] and (z, y, x) int16.
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
