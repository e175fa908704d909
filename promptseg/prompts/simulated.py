"""Prompts drawn from a ground-truth mask, for training and for measuring."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt

from promptseg.boxes import box_slices, clip_nonempty, mask_box
from promptseg.components import components


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


def loosen_box(
    box: np.ndarray, shape: tuple[int, int, int], rng: np.random.Generator, most: float = 0.25
) -> np.ndarray:
    """Move each face of a box outwards, by up to a fraction of its side, as people do in haste.

    Args:
        box: (2, 3) as in `jitter_box`.
        shape: image shape in voxels, zyx; the result is clipped to it.
        rng: source of the noise.
        most: bound of the uniform distances, as a fraction of the side.
    """
    side = box[1] - box[0]
    return clip_nonempty(box + rng.uniform(0, most, (2, 3)) * side * [[-1], [1]], shape)


def middle_slice_box(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A box as the BiomedSegFM challenge gives it: drawn on one slice, through all of the object's.

    Along z it is exact; along y and x it encloses what the median slice shows, loosely, so that it
    may cut off what other slices show.

    Args:
        mask: (z, y, x) bool with a voxel or more.
        rng: of the loose margin, 0 to 5 pixels of a slice of 256x256.

    Returns:
        (2, 3) half-open box in voxels, zyx.

    Source:
        The challenge's `get_boxes.py`, as of May 2025.
    """
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    middle = int(slices[len(slices) // 2])
    (_, *lower), (_, *upper) = mask_box(mask[middle : middle + 1])
    shape = np.array(mask.shape[1:])
    margin = (int(rng.integers(0, 6)) * shape / 256).astype(int)
    lower, upper = np.maximum(lower - margin, 0), np.minimum(upper + margin, shape)
    return np.array([[slices[0], *lower], [slices[-1] + 1, *upper]])


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


def error_click(
    mask: np.ndarray, target: np.ndarray, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, int] | None:
    """Click where a person would who corrects a mask: deep inside its largest error.

    Args:
        mask: (z, y, x) bool.
        target: (z, y, x) bool, what the mask should be.
        rng: takes a component at random, the likelier the larger it is, in place of the largest.

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
    box = mask_box(error)
    if box is None:
        return None
    component, corner = _component(error[box_slices(box)], rng), box[0]
    depth = distance_transform_edt(np.pad(component, 1))[1:-1, 1:-1, 1:-1]
    point = np.array(np.unravel_index(np.argmax(depth), depth.shape)) + corner.astype(int)
    return point, int(target[tuple(point)])


def error_scribble(
    mask: np.ndarray, target: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, int] | None:
    """A stroke through an error, on one slice: from end to end along its longer side, unsteadily.

    Args:
        mask: (z, y, x) bool.
        target: (z, y, x) bool, what the mask should be.
        rng: source of randomness.

    Returns:
        (k, 3) voxel indices inside the error, zyx, and 1 or 0 as in `error_click`; None for a
        mask without error.
    """
    error = mask != target
    error &= target == (rng.random() < error[target].sum() / max(error.sum(), 1))
    box = mask_box(error)
    if box is None:
        return None
    component, corner = _component(error[box_slices(box)], rng), box[0].astype(int)
    number = int(np.argmax(component.sum(axis=(1, 2))))
    voxels = np.argwhere(component[number])
    along = int(np.argmax(np.ptp(voxels, axis=0)))
    steps = np.unique(voxels[:, along])
    steps = steps[:: max(1, len(steps) // 24)]
    across = [rng.choice(voxels[voxels[:, along] == step][:, 1 - along]) for step in steps]
    middle = np.convolve(np.pad(across, 2, mode="edge"), np.full(5, 0.2), mode="valid")
    points = np.empty((len(steps), 3), int)
    points[:, 0], points[:, 1 + along], points[:, 2 - along] = number, steps, middle.round()
    points = points[component[tuple(points.T)]]
    if not len(points):
        points = np.concatenate([[number], voxels[len(voxels) // 2]])[None]
    points = points + corner
    return points, int(target[tuple(points[0])])


def _component(error: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """The largest 26-connected component of a mask, or a random one."""
    numbered, counts = components(error)
    sizes = counts[1:]
    number = np.argmax(sizes) if rng is None else rng.choice(len(sizes), p=sizes / sizes.sum())
    return numbered == 1 + int(number)
