"""What is done to the masks of labels after prediction: components and holes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.ndimage import binary_fill_holes

from promptseg.boxes import box_slices, mask_box, value_boxes
from promptseg.components import components
from promptseg.inference_plan import PostProcessing


def postprocessed(mask: np.ndarray, spacing: Sequence[float], steps: PostProcessing) -> np.ndarray:
    """A mask after the steps of its label.

    Args:
        mask: (z, y, x) bool.
        spacing: mm, zyx.
        steps: of the label.
    """
    box = mask_box(mask)
    if box is None:
        return mask
    result = np.zeros_like(mask)
    result[box_slices(box)] = _after_steps(mask[box_slices(box)], spacing, steps)
    return result


def _after_steps(part: np.ndarray, spacing: Sequence[float], steps: PostProcessing) -> np.ndarray:
    if steps.largest_component:
        numbered, counts = components(part)
        part = numbered == counts.argmax()
    if steps.min_mm3 > 0:
        numbered, counts = components(part)  # of the background the count is 0
        part = (counts * np.prod(spacing) >= steps.min_mm3)[numbered]
    if steps.fill_holes:
        part = binary_fill_holes(part)
    return part


def postprocess(
    segmentation: np.ndarray, spacing: Sequence[float], steps: Mapping[int, PostProcessing]
) -> np.ndarray:
    """A segmentation after the steps of some of its labels.

    Removed voxels become background; holes are filled where no other label is.

    Args:
        segmentation: (z, y, x) label values; is not changed.
        spacing: mm, zyx.
        steps: by label value.
    """
    result = segmentation.copy()
    boxes = value_boxes(segmentation, max(steps, default=0))
    for value in steps:
        if value in boxes:
            here = box_slices(boxes[value])
            mask, part = segmentation[here] == value, result[here]
            new = _after_steps(mask, spacing, steps[value])
            part[mask & ~new] = 0
            part[new & (part == 0)] = value
    return result
