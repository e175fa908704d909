"""SegVol's two views of a volume, all of it and a region, and prompts in the voxels of each.

All coordinates are in voxels of the foreground crop, zyx, unless noted otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from promptseg.boxes import clip_box, mask_box, widen_box
from promptseg.networks.prompt_encoder import Query
from promptseg.segvol.preprocessing import nearest_indices

# Kept: SegVol was trained with this box, -1 to -1 inclusive, for patches without any of the
# object. Half-open, it ends at 0.
NOTHING_HERE = np.array([(-1.0, -1.0, -1.0), (0.0, 0.0, 0.0)])


def is_prompt(query: Query) -> bool:
    """Whether a query has a box or points, and not only a label's name."""
    return query.box is not None or len(query.points) > 0


def in_region(query: Query, region: np.ndarray, size: Sequence[int]) -> Query:
    """A query in voxels of a region that is resized to `size`: whole voxels, as in SegVol.

    A box becomes the voxels whose centres lie in it, at least one along each axis; a point the
    voxel that contains it. Prompts outside the region are dropped.

    Args:
        query: in voxels of the volume.
        region: (2, 3) half-open integer box, zyx, in the same voxels as the query.
        size: size of the resized region in voxels, zyx.

    Source:
        SegVol's demo draws prompts from ground truth that it resized to the patch by nearest
        neighbours; the boxes here are the same.
    """
    lower, upper = np.asarray(region)
    scale, size = np.asarray(size) / (upper - lower), np.asarray(size)
    points = np.asarray(query.points, float).reshape(-1, 3)
    points = np.floor((points + 0.5 - lower) * scale)
    inside = ((points >= 0) & (points < size)).all(axis=1)
    return replace(
        query,
        box=None if query.box is None else _whole_voxels((query.box - lower) * scale, size),
        points=points[inside],
        point_labels=np.asarray(query.point_labels)[inside],
    )


def _whole_voxels(box: np.ndarray, size: np.ndarray) -> np.ndarray | None:
    """The voxels whose centres lie in a continuous box; None if it lies outside the volume."""
    box = clip_box(box, size)
    if not (box[0] < box[1]).all():
        return None
    lower, upper = np.ceil(box - 0.5)
    thin = lower >= upper  # no centre lies in it: the voxel at its middle
    lower = np.where(thin, np.floor(box.mean(axis=0)), lower)
    return np.stack([lower, np.where(thin, lower + 1, upper)])


class CoarseMask:
    """The mask found in the whole volume, on the volume's own voxels.

    Only the small mask is held; each voxel has the value of the coarse one that contains its
    lower face.

    Kept: this is PyTorch's `nearest`, not `nearest-exact` as when resizing to the patch, so that
    the mask can be off by half a coarse voxel.

    Args:
        mask: (z, y, x) bool, of the volume resized to one patch.
        shape: voxels of the volume, zyx.
    """

    def __init__(self, mask: np.ndarray, shape: Sequence[int]) -> None:
        self.mask = mask
        self.axes = [
            nearest_indices(n, m, "nearest") for n, m in zip(mask.shape, shape, strict=True)
        ]

    def box(self) -> np.ndarray | None:
        """(2, 3) half-open box around the mask; None if it is empty."""
        return self.box_in(np.array([(0, 0, 0), [len(axis) for axis in self.axes]]))

    def box_in(self, region: np.ndarray) -> np.ndarray | None:
        """(2, 3) half-open box, in voxels of the volume, around the mask in a (2, 3) region."""
        axes = [axis[low:high] for axis, low, high in zip(self.axes, *region, strict=True)]
        used = [np.unique(axis) for axis in axes]  # a smaller volume skips coarse voxels
        box = mask_box(self.mask[np.ix_(*used)])
        if box is None:
            return None
        ends = [
            (np.searchsorted(axis, cells[low]), np.searchsorted(axis, cells[high - 1], "right"))
            for axis, cells, low, high in zip(axes, used, *box, strict=True)
        ]
        return region[0] + np.transpose(ends)


def grown_to_patch(box: np.ndarray, patch_size: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """The region of the second look: the box, grown to a patch where it is smaller.

    Kept: both sides grow by half of the difference, rounded down, so that the region can be one
    voxel smaller than a patch; and at the volume's border, the other side does not grow instead.

    Args:
        box: (2, 3) half-open integers, zyx.
        patch_size: voxels, zyx.
        shape: voxels of the volume, zyx.

    Source:
        SegVol, utils/monai_inferers_utils.py, logits2roi_coor.
    """
    missing = np.maximum(np.asarray(patch_size) - (box[1] - box[0]), 0) // 2
    return clip_box(widen_box(box, missing), shape)


def region_starts(shape: Sequence[int], patch_size: Sequence[int], step_size: float) -> np.ndarray:
    """Where patches start in a region; negative along axes shorter than a patch, which are centred.

    Steps are whole, and the last patch is moved back to end with the region, as in MONAI; those
    of `patch_starts` are spread evenly.

    Returns:
        (n, 3) integer starts in voxels of the region, zyx, in raster order.
    """
    axes = []
    for n, w in zip(shape, patch_size, strict=True):
        step = max(int(w * step_size), 1)
        count = int(np.ceil(max(n - w, 0) / step)) + 1
        axes.append([min(i * step, n - w) for i in range(count)] if n > w else [-((w - n) // 2)])
    return np.array(np.meshgrid(*axes, indexing="ij")).reshape(3, -1).T


def in_patch_of_region(
    query: Query,
    coarse: CoarseMask,
    region: np.ndarray,
    start: np.ndarray,
    patch_size: Sequence[int],
    alone: bool,
) -> Query:
    """A query in voxels of one patch of the region.

    A single patch that contains the whole region gets the given box. Each of several patches gets
    the box around what the first look found in it, since the given box may extend far beyond it;
    queries with points alone get that box too, in addition to their points. Queries with only a
    label's name have no box in any patch.

    Not reproduced: where a region is smaller than the patch, SegVol pads the image but not the
    map that it takes the given box from, so that the box is off by the padding; and it resizes a
    given box to the coarse patch and back although its place in the volume is known.
    Differs: a given box outside the region is replaced by the box around what was found;
    negative points are used here as well; a query can have a box and points.

    Args:
        query: in voxels of the volume.
        coarse: the mask of the first look.
        region: (2, 3) half-open integer box, zyx.
        start: start of the patch in voxels of the region, zyx.
        patch_size: voxels, zyx.
        alone: whether it is the only patch.

    Source:
        SegVol, utils/monai_inferers_utils.py, sliding_window_inference.
    """
    if not is_prompt(query):
        return query
    size, patch_size = region[1] - region[0], np.asarray(patch_size)
    inside = in_region(query, region, size)
    box = inside.box if alone else None
    if box is None:
        seen = np.stack([np.maximum(start, 0), np.minimum(start + patch_size, size)])
        found = coarse.box_in(region[0] + seen)
        box = None if found is None else found - region[0]
    points = inside.points - start
    here = ((points >= 0) & (points < patch_size)).all(axis=1)
    return replace(
        query,
        box=NOTHING_HERE if box is None else box - start,
        points=points[here],
        point_labels=inside.point_labels[here],
    )
