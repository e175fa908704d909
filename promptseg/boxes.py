"""Half-open (2, 3) voxel boxes, lower and upper corner, zyx: found, moved, clipped and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import find_objects

from promptseg.labels import Values, label_mask, members, stored_values

WHOLE_VOLUME = 0.9  # of the volume: a box this large says nothing about where the object is


def mask_box(mask: np.ndarray) -> np.ndarray | None:
    """The smallest integer box around a (z, y, x) bool mask, or None when the mask is empty."""
    plane = mask.any(axis=0)
    return _box_of_lines(mask.any(axis=(1, 2)), plane.any(axis=1), plane.any(axis=0))


def value_box(segmentation: np.ndarray, values: Values) -> np.ndarray | None:
    """The smallest box around a label of a (z, y, x) segmentation, or None when it is absent.

    The same as `mask_box(label_mask(segmentation, values))`, slice by slice, without that mask.
    """
    masks = (label_mask(plane, values) for plane in segmentation)
    rows, columns = zip(*((mask.any(axis=1), mask.any(axis=0)) for mask in masks), strict=True)
    rows = np.array(rows)
    return _box_of_lines(rows.any(axis=1), rows.any(axis=0), np.any(columns, axis=0))


def value_boxes(segmentation: np.ndarray, largest: int = 0) -> dict[int, np.ndarray]:
    """The smallest box around each value above 0 that occurs in a segmentation, in one pass.

    Args:
        segmentation: (z, y, x) integers.
        largest: values above this one are left out; 0 leaves out none.

    Returns:
        Value to (2, 3) box, in ascending order of the values.
    """
    found = enumerate(find_objects(segmentation, largest), start=1)
    return {
        value: np.array([[s.start for s in slices], [s.stop for s in slices]])
        for value, slices in found
        if slices is not None
    }


def label_boxes(
    segmentation: np.ndarray, labels: Mapping[str, Values]
) -> dict[str, np.ndarray | None]:
    """The smallest box around each label in a (z, y, x) segmentation; None for an absent one."""
    boxes = value_boxes(segmentation, max(stored_values(labels), default=0))
    return {
        name: enclosing_box([boxes[value] for value in members(values) if value in boxes])
        for name, values in labels.items()
    }


def enclosing_box(boxes: Sequence[np.ndarray] | np.ndarray) -> np.ndarray | None:
    """The smallest box around several boxes, or None when there are none."""
    if not len(boxes):
        return None
    boxes = np.asarray(boxes)
    return np.stack([boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)])


def widen_box(box: np.ndarray, margin: ArrayLike) -> np.ndarray:
    """Move both corners outward by `margin` voxels, one number or one per axis, zyx."""
    return np.stack([box[0] - margin, box[1] + margin])


def clip_box(box: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The part of a box inside a volume of `shape`, zyx; empty where they do not meet."""
    return np.clip(box, 0, shape)


def clip_nonempty(box: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A box clipped to a volume of `shape`, zyx, and kept at least one voxel wide."""
    clipped = clip_box(box, shape)
    lower = np.minimum(clipped[0], np.asarray(shape) - 1.0)
    return np.stack([lower, np.maximum(clipped[1], lower + 1)])


def mirror_box(box: np.ndarray, axes: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """A float box in a volume of `shape`, zyx, that is mirrored along axes of 0, 1, 2 = z, y, x."""
    mirrored = np.array(box, float)
    for axis in axes:
        mirrored[:, axis] = shape[axis] - mirrored[::-1, axis]
    return mirrored


def box_slices(box: np.ndarray) -> tuple[slice, slice, slice]:
    """The slices of an array's last three axes that hold an integer box."""
    return tuple(slice(int(lower), int(upper)) for lower, upper in np.transpose(box))


def to_bbox(box: np.ndarray) -> list[list[int]]:
    """An integer box as acvl-utils has it: half-open [lower, upper] for each axis, zyx."""
    return np.transpose(box).astype(int).tolist()


def box_volume(box: ArrayLike) -> np.ndarray:
    """Voxels in boxes (..., 2, 3), as floats; 0 for one that is empty along an axis."""
    box = np.asarray(box)
    return np.maximum(box[..., 1, :] - box[..., 0, :], 0).prod(axis=-1, dtype=float)


def box_iou(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """Intersection over union of boxes (..., 2, 3), broadcast; NaN where both are empty.

    Boxes of one frame, which may be mm as well as voxels.
    """
    first, second = np.asarray(first), np.asarray(second)
    lower = np.maximum(first[..., 0, :], second[..., 0, :])
    upper = np.minimum(first[..., 1, :], second[..., 1, :])
    common = box_volume(np.stack([lower, upper], axis=-2))
    union = box_volume(first) + box_volume(second) - common
    return np.divide(common, union, out=np.full_like(union, np.nan), where=union > 0)[()]


def box_recall(
    boxes: Sequence[np.ndarray], mask: np.ndarray, corner: Sequence[int] = (0, 0, 0)
) -> float:
    """Fraction of a mask's voxels inside any of several boxes; NaN for an empty mask.

    Args:
        boxes: (2, 3) each, in voxels, zyx.
        mask: (z, y, x) bool.
        corner: where the mask's first voxel lies in the frame of the boxes.
    """
    total, missed = np.count_nonzero(mask), mask.copy()
    for box in boxes:
        missed[box_slices(clip_box(np.subtract(box, corner), mask.shape))] = False
    return 1 - np.count_nonzero(missed) / total if total else float("nan")


def is_nearly_whole(box: np.ndarray, shape: Sequence[int]) -> bool:
    """Whether the part of a box inside the volume is at least `WHOLE_VOLUME` of the volume."""
    return bool(box_volume(clip_box(box, shape)) >= WHOLE_VOLUME * np.prod(shape))


def _box_of_lines(*axes: np.ndarray) -> np.ndarray | None:
    """From where to where the three axes are occupied; None where nowhere."""
    filled = [np.flatnonzero(axis) for axis in axes]
    if not len(filled[0]):
        return None
    return np.array([[at[0] for at in filled], [at[-1] + 1 for at in filled]])
