"""How well the network's own prompts match ground truth, measured on validation cases."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from promptseg.boxes import box_iou, label_boxes
from promptseg.inference.predictor import Predictor
from promptseg.inference.prompting import COARSE
from promptseg.io.dataset import RawCase
from promptseg.io.images import read_segmentation

log = logging.getLogger(__name__)


def measure_coarse(
    predictor: Predictor, cases: Sequence[RawCase], ground_truth: Mapping[str, Path]
) -> dict[str, float]:
    """Mean IoU of the boxes of `coarse` with the ground-truth boxes, by label.

    A label that a case has but that is not found counts as 0; one that a case does not have does
    not count.

    Args:
        predictor: predictor of a fold that was not trained on these cases.
        cases: cases with their image files.
        ground_truth: segmentation file of each case.

    Returns:
        For each label that any case has, the mean over the cases that have it.
    """
    ious: dict[str, list[float]] = {}
    for case in cases:
        prepared, _ = predictor.prepare_files(case.images)
        segmentation, _ = read_segmentation(ground_truth[case.case_id])
        true = label_boxes(segmentation, predictor.plans.labels)
        present = [label for label, box in true.items() if box is not None]
        found = predictor.proposer.ask_network(prepared, present, COARSE, {})
        for label in present:
            boxes = found[label].boxes
            iou = box_iou(boxes[0], true[label]) if len(boxes) else 0.0
            ious.setdefault(label, []).append(iou)
    means = {label: float(np.mean(values)) for label, values in ious.items()}
    log.info(
        "box IoU of the network's own prompts: %s",
        ", ".join(f"{label} {iou:.3f}" for label, iou in means.items()),
    )
    return means
