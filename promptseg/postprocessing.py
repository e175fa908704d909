"""What is done to the masks of labels after prediction: components and holes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.ndimage import binary_fill_holes

from promptseg.boxes import box_slices, mask_box, value_box
from promptseg.components import components
from promptseg.inference_plan import PostProcessing
from promptseg.labels import label_mask, members
from promptseg.plans import Plans


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
    segmentation: np.ndarray,
    spacing: Sequence[float],
    plans: Plans,
    steps: Mapping[str, PostProcessing],
) -> np.ndarray:
    """A segmentation after the steps of some of its labels, in their order.

    Removed voxels become background, or what they are without a region: part of the next larger
    one. Holes are filled where no other label is.

    Args:
        segmentation: (z, y, x) label values; is not changed.
        spacing: mm, zyx.
        plans: with the labels.
        steps: by label.
    """
    result = segmentation.copy()
    for label in plans.labels:
        box = value_box(result, plans.labels[label]) if label in steps else None
        if box is not None:
            part = result[box_slices(box)]
            mask = label_mask(part, plans.labels[label])
            new = _after_steps(mask, spacing, steps[label])
            part[mask & ~new] = _value_without(label, plans)
            part[new & (part == 0)] = plans.written_values[label]
    return result


def _value_without(label: str, plans: Plans) -> int:
    """The value of voxels that a label loses: of the smallest region around it, else 0."""
    own = set(members(plans.labels[label]))
    around = [name for name, values in plans.labels.items() if own < set(members(values))]
    smallest = min(around, key=lambda name: len(members(plans.labels[name])), default=None)
    return 0 if smallest is None else plans.written_values[smallest]
