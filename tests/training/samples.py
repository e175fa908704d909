"""Samples made by hand."""

from __future__ import annotations

import numpy as np

from promptseg.boxes import label_boxes
from promptseg.training.patches import Sample


def sample_with(organ: tuple | None, auto: dict | None = None) -> Sample:
    """A patch that shows the whole of an organ, or none of it."""
    segmentation = np.zeros((8, 10, 12), np.uint8)
    if organ:
        segmentation[organ] = 1
    boxes = label_boxes(segmentation, {"organ": 1})
    return Sample(
        image=np.zeros((1, 8, 10, 12), np.uint8),
        segmentation=segmentation,
        whole_boxes={name: box for name, box in boxes.items() if box is not None},
        auto_boxes=auto or {},
    )
