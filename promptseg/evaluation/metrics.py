"""Overlap of masks and label maps: arrays in, numbers out; undefined is NaN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Voxel counts of one label: true and false positives, false and true negatives."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN); NaN when the label is in neither segmentation."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN); NaN when the label is in neither segmentation."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)


def confusion_counts(
    reference: np.ndarray,
    prediction: np.ndarray,
    labels: Sequence[int],
    ignore_label: int | None = None,
) -> dict[int, Confusion]:
    """Count the voxels of each label once through two segmentations.

    One joint histogram, added up slice by slice: memory and time do not grow with the number of
    labels times the volume.

    Args:
        reference: (z, y, x) integer labels, the truth.
        prediction: (z, y, x) integer labels.
        labels: the values to count; every other value is background.
        ignore_label: voxels with this value in the reference count nowhere.

    Raises:
        ValueError: if the shapes differ.
    """
    if reference.shape != prediction.shape:
        raise ValueError(
            f"reference and prediction must have one shape, found {reference.shape} and "
            f"{prediction.shape} (zyx, voxels)"
        )
    known = np.unique(np.asarray(labels, np.int64))
    bins = len(known) + 1  # the last one is background
    joint = np.zeros(bins * bins, np.int64)
    for true_slice, predicted_slice in zip(reference, prediction, strict=True):
        if ignore_label is not None:
            used = true_slice != ignore_label
            true_slice, predicted_slice = true_slice[used], predicted_slice[used]
        codes = _index_among(known, true_slice) * bins + _index_among(known, predicted_slice)
        joint += np.bincount(codes.ravel(), minlength=bins * bins)
    joint = joint.reshape(bins, bins)
    counts, total = {}, int(joint.sum())
    for label in labels:
        i = int(np.searchsorted(known, label))
        tp, n_ref, n_pred = int(joint[i, i]), int(joint[i].sum()), int(joint[:, i].sum())
        tn = total - n_ref - n_pred + tp
        counts[label] = Confusion(tp=tp, fp=n_pred - tp, fn=n_ref - tp, tn=tn)
    return counts


def volume_ml(voxels: int, spacing: Sequence[float]) -> float:
    """The volume of so many voxels in millilitres; spacing in mm."""
    return float(voxels * np.prod(spacing) / 1000.0)


def _index_among(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The position of each value in the sorted `known`, or `len(known)` for all others."""
    if known.size == 0:
        return np.zeros(values.shape, np.int64)
    index = np.searchsorted(known, values)
    index[known[np.minimum(index, known.size - 1)] != values] = known.size
    return index


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else float("nan")
