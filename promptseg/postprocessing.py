"""What is done to the masks of labels after prediction: components and holes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.ndimage import binary_fill_holes

from promptseg.boxes import box_slices, mask_box
from promptseg.components import components
from promptseg.inference_plan import PostProcessing


def postprocessed(mask: np.ndarray, spacing: Sequence[float], steps: PostProcessing) -> np.ndarray:
    """A mask after the steps of its label.

    Args:
        mask: (z, y, x) bool.
        spacing: mm, zyx.
        steps: of the label.
    """
    if not mask.any():
        return mask
    here = box_slices(mask_box(mask))
    part = mask[here]
    if steps.largest_component:
        numbered, counts = components(part)
        part = numbered == counts.argmax()
    if steps.min_mm3 > 0:
        numbered, counts = components(part)  # of the background the count is 0
        part = (counts * np.prod(spacing) >= steps.min_mm3)[numbered]
    if steps.fill_holes:
        part = binary_fill_holes(part)
    result = np.zeros_like(mask)
    result[here] = part
    return result


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
    for value, of_label in steps.items():
        mask = segmentation == value
        new = postprocessed(mask, spacing, of_label)
        result[mask & ~new] = 0
        result[new & (result == 0)] = value
    return result
