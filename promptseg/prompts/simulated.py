"""Prompts drawn from a ground-truth mask, for training and for measuring."""

from __future__ import annotations

import cc3d
import numpy as np
from scipy.ndimage import distance_transform_edt

from promptseg.boxes import box_slices, clip_nonempty, mask_box


def jitter_box(
    box: np.ndarray, shape: tuple[int, int, int], rng: np.random.Generator, fraction: float = 0.1
) -> np.ndarray:
    """Move each face of a box by up to a fraction of its side, as a hand-drawn box would be off.

    Args:
        box: (2, 3) lower and upper corner in voxels, zyx; the upper corner is exclusive.
        shape: image shape in voxels, zyx; the result is clipped to it.
        rng: source of the noise.
        fraction: bound of the uniform noise, as a fraction of the side.

    Returns:
        (2, 3) float box inside the image, at least one voxel wide on every axis.

    Raises:
        ValueError: if the box is empty along an axis.

    Source:
        Paper, section 2.2: "perturbed with +-10 % spatial jitter"; read as a bound on each face.
    """
    box = np.asarray(box, float)
    side = box[1] - box[0]
    if not (side > 0).all():
        raise ValueError(f"box {box.tolist()} is empty along an axis (zyx, upper exclusive)")
    return clip_nonempty(box + rng.uniform(-fraction, fraction, (2, 3)) * side, shape)


def sample_points(
    mask: np.ndarray, foreground: int, background: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw voxels inside and outside a mask, uniformly and with replacement.

    Args:
        mask: (z, y, x) bool.
        foreground, background: number of points to draw of each; none where the mask has no such
            voxel.
        rng: source of randomness.

    Returns:
        (k, 3) voxel indices, zyx, and (k,) labels, 1 inside and 0 outside.

    Source:
        Paper, section 2.2.
    """
    points, labels = [], []
    for wanted, count, label in ((mask, foreground, 1), (~mask, background, 0)):
        flat = np.flatnonzero(wanted)
        if len(flat) and count:
            chosen = rng.choice(flat, count)
            points.append(np.stack(np.unravel_index(chosen, mask.shape), axis=1))
            labels.append(np.full(count, label))
    if not points:
        return np.zeros((0, 3), int), np.zeros(0, int)
    return np.concatenate(points), np.concatenate(labels)


def error_click(mask: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, int] | None:
    """Click where a person would who corrects a mask: deep inside its largest error.

    Args:
        mask: (z, y, x) bool.
        target: (z, y, x) bool, what the mask should be.

    Returns:
        (3,) voxel indices, zyx, and 1 where the mask lacks the voxel or 0 where it should not have
        it; None for a mask without error. Of equally large components and of equally deep voxels
        the first in raster order counts.

    Source:
        The interactive protocol of the CVPR 2025 BiomedSegFM challenge: the largest 26-connected
        component of the error, and in it a voxel with the largest Euclidean distance to its
        border, in voxels, the border of the image counting as one. Differs: ties go by order
        where the challenge draws, and components are never reduced in resolution.
    """
    error = mask != target
    if not error.any():
        return None
    components = cc3d.connected_components(error, connectivity=26)
    sizes = np.bincount(components.ravel())
    largest = components == 1 + int(np.argmax(sizes[1:]))
    box = mask_box(largest)
    depth = distance_transform_edt(np.pad(largest[box_slices(box)], 1))[1:-1, 1:-1, 1:-1]
    point = np.array(np.unravel_index(np.argmax(depth), depth.shape)) + box[0]
    return point, int(target[tuple(point)])
