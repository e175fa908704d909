"""Objects that are prompted without a name: labels, their parts and unions, and pieces of image."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from skimage.segmentation import slic

from promptseg.boxes import box_slices, mask_box
from promptseg.components import components
from promptseg.labels import IGNORED, Values, label_mask

FEWEST_VOXELS = 20  # of an object
BLOCK = (16, 64)  # voxels of the side of a block that is divided into supervoxels


def unnamed_object(
    image: np.ndarray,
    segmentation: np.ndarray,
    labels: Mapping[str, Values],
    rng: np.random.Generator,
) -> tuple[np.ndarray, bool]:
    """Draw an object that has no name, or is prompted without it.

    Args:
        image: (c, z, y, x).
        segmentation: (z, y, x) label values, or `IGNORED`, of which objects have nothing.
        labels: those in it.
        rng: source of randomness.

    Returns:
        (z, y, x) bool, empty if nothing was found; and whether it is a whole label.
    """
    if not labels:
        return supervoxel(image, rng) & (segmentation != IGNORED), False
    values = list(labels.values())
    chosen = [values[number] for number in rng.permutation(len(values))]
    mask, kind = label_mask(segmentation, chosen[0]), rng.random()
    if kind < 0.3:
        return mask, True
    if kind < 0.4:
        part = component(mask, rng)
    elif kind < 0.5 and len(chosen) > 1:
        part = mask | (other := label_mask(segmentation, chosen[1]))
        if part.sum() in (mask.sum(), other.sum()):  # a region and a part of it
            return part, True
    elif kind < 0.6:
        part = cut(mask, rng)
    else:
        part = supervoxel(image, rng) & (segmentation != IGNORED)
    if part.sum() < FEWEST_VOXELS:
        return mask, True
    return part, False


def component(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of the 26-connected components of a mask."""
    numbered, counts = components(mask)
    return numbered == 1 + rng.integers(len(counts) - 1)


def cut(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The part of a mask on one side of a random plane through one of its voxels."""
    box = mask_box(mask)
    inside = mask[box_slices(box)]
    voxels = np.argwhere(inside)
    normal = rng.normal(size=3)
    side = sum(
        (np.arange(n) - c).reshape([-1 if a == axis else 1 for a in range(3)]) * normal[axis]
        for axis, (n, c) in enumerate(
            zip(inside.shape, voxels[rng.integers(len(voxels))], strict=True)
        )
    )
    part = np.zeros_like(mask)
    part[box_slices(box)] = inside & (side > 0)
    return part


def supervoxel(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A supervoxel of a random block of the image: voxels that are alike and lie together."""
    shape = image.shape[1:]
    side = int(rng.integers(*BLOCK, endpoint=True))
    start = [int(rng.integers(0, max(n - side, 0) + 1)) for n in shape]
    block = tuple(slice(s, s + side) for s in start)
    values = image[0][block].astype(np.float32)
    spread = float(np.ptp(values))
    found = np.zeros(shape, bool)
    if spread == 0:
        return found
    pieces = slic(
        values / spread,
        n_segments=int(rng.integers(4, 16)),
        compactness=10 ** rng.uniform(-2.5, -1),
        max_num_iter=4,
        channel_axis=None,
        start_label=0,
    )
    found[block] = pieces == rng.integers(pieces.max() + 1)
    return found
