"""What a prediction tells about each label, and what a person should look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from promptseg.boxes import WHOLE_VOLUME, box_volume
from promptseg.inference.probabilities import RegionProbabilities
from promptseg.prompts.prompts import Prompts

LOW_QUALITY = 0.5  # predicted IoU below which a prediction is flagged
LOW_AGREEMENT = 0.7  # mean IoU of masks from moved prompts below which it is


@dataclass(frozen=True, kw_only=True)
class LabelResult:
    """What happened to one label of one image.

    Attributes:
        prompts: used, in raw voxels.
        predicted_iou: the network's own estimate, in [0, 1]; None when nothing was decoded.
        agreement: mean IoU with the masks that the same prompts give when they are moved a little,
            in [0, 1]; None when that was not asked for, or when there was no box or point to move.
            Where a volume exceeds a window, a label asked for by name has a box to move, too: the
            one found in the whole volume.
        voxels: of the label in the result.
        flags: codes for what a person should look at.
    """

    prompts: Prompts
    predicted_iou: float | None
    agreement: float | None
    voxels: int
    flags: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            **self.prompts.to_json(),
            "predicted_iou": self.predicted_iou,
            "agreement": self.agreement,
            "voxels": self.voxels,
            "flags": list(self.flags),
        }


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A segmentation (z, y, x) on the raw grid, and what happened to each label asked for.

    `probabilities` are there if the predictor keeps them.
    """

    segmentation: np.ndarray
    labels: dict[str, LabelResult]
    probabilities: RegionProbabilities | None = None


def label_result(
    prompts: Prompts,
    predicted_iou: float | None,
    voxels: int,
    shape: Sequence[int],
    agreement: float | None = None,
) -> LabelResult:
    """The result of a label in an image of a raw shape, with its flags."""
    flags = []
    if prompts.reason != "ok":
        flags.append(prompts.reason)
    if prompts.is_empty:
        flags.append("no_box")
    if any(box_volume(box) >= WHOLE_VOLUME * np.prod(shape) for box in prompts.boxes):
        flags.append("box_is_whole_volume")
    if predicted_iou is not None and predicted_iou < LOW_QUALITY:
        flags.append("low_predicted_quality")
    if agreement is not None and agreement < LOW_AGREEMENT:
        flags.append("disagreement")
    if not voxels:
        flags.append("empty")
    return LabelResult(
        prompts=prompts,
        predicted_iou=predicted_iou,
        agreement=agreement,
        voxels=voxels,
        flags=tuple(dict.fromkeys(flags)),
    )
