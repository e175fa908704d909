"""Prompts drawn from a ground-truth mask, for training."""

from __future__ import annotations

import numpy as np

from promptseg.boxes import clip_nonempty


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
