"""The box IoU to expect of a proposed box, estimated without ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from promptseg.boxes import box_iou, box_slices, widen_box
from promptseg.prompts.strategies.fitted import View

PENALTY = 0.3  # of the ridge regression on standardized evidence, as a fraction of the cases


def evidence(view: View, box: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """(5,) measurements that speak for or against a box.

    Overlap with the usual place, distance of the size from the usual one (log), contrast of the
    inside against a shell of a quarter of the side (in standard deviations, unsigned), spread of
    the inside, and how many of the six faces lie on the volume's border.

    Args:
        view: the case.
        box: (2, 3) voxels of the volume.
        usual: (2, 3) relative box of the label in the training cases.
    """
    expected = usual * view.shape
    sides, usual_sides = box[1] - box[0], expected[1] - expected[0]
    image = view.image.astype(np.float32)
    deviation = max(float(image.std()), 1e-3)
    inner = box / view.step
    quarter = (inner[1] - inner[0]) / 4
    inside = image[_slices(inner, image.shape)]
    around = image[_slices(widen_box(inner, quarter), image.shape)]
    shell = (around.sum() - inside.sum()) / max(around.size - inside.size, 1)
    return np.array(
        [
            box_iou(box.astype(float), expected),
            np.abs(np.log(sides / np.maximum(usual_sides, 1e-6))).mean(),
            abs(float(inside.mean() - shell)) / deviation,
            float(inside.std()) / deviation,
            (box[0] == 0).sum() + (box[1] == view.shape).sum(),
        ]
    )


def fit_expected_iou(rows: Sequence[np.ndarray], ious: Sequence[float]) -> dict[str, Any]:
    """A ridge regression from evidence to box IoU; plain JSON.

    Args:
        rows: evidence of boxes that come from fits without their case.
        ious: of those boxes with the ground truth.
    """
    x, y = np.stack(rows), np.asarray(ious, float)
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    x = (x - mean) / scale
    weights = np.linalg.solve(x.T @ x + PENALTY * len(x) * np.eye(x.shape[1]), x.T @ (y - y.mean()))
    return {
        "weights": (weights / scale).tolist(),
        "constant": float(y.mean() - (weights / scale) @ mean),
    }


def expected_iou(model: dict[str, Any], row: np.ndarray) -> float:
    """The expected box IoU in [0, 1] of one row of evidence."""
    return float(np.clip(np.dot(model["weights"], row) + model["constant"], 0, 1))


def _slices(box: np.ndarray, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """At least one view voxel along each axis."""
    low = np.floor(box[0] + 0.5).clip(0, np.array(shape) - 1).astype(int)
    high = np.maximum(np.floor(box[1] + 0.5).clip(0, shape).astype(int), low + 1)
    return box_slices(np.stack([low, high]))
