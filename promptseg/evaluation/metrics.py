"""Overlap of label maps and of their components, from arrays; undefined values are NaN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from promptseg.components import components
from promptseg.labels import Values, all_members, members


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


@dataclass(frozen=True, kw_only=True)
class Lesions:
    """The 26-connected components of two masks; one counts as found if it shares a voxel.

    Attributes:
        reference: number of components of the ground truth.
        found: how many of them share a voxel or more with the prediction.
        prediction: number of components of the prediction.
        right: how many of them share a voxel or more with the ground truth.
    """

    reference: int = 0
    found: int = 0
    prediction: int = 0
    right: int = 0

    @property
    def precision(self) -> float:
        """Fraction of the predicted components that are right; NaN if there are none."""
        return _ratio(self.right, self.prediction)

    @property
    def recall(self) -> float:
        """Fraction of the components of the ground truth that are found; NaN if there are none."""
        return _ratio(self.found, self.reference)

    @property
    def f1(self) -> float:
        """Harmonic mean of both; 0 if only one mask has components, NaN if neither."""
        if not self.found:  # then none is right either
            return _ratio(0, self.reference + self.prediction)
        return 2 * self.precision * self.recall / (self.precision + self.recall)


def count_lesions(reference: np.ndarray, prediction: np.ndarray) -> Lesions:
    """Count the components of two (z, y, x) bool masks that share a voxel with the other mask."""
    n_reference, found = _count_touching(reference, prediction)
    n_prediction, right = _count_touching(prediction, reference)
    return Lesions(reference=n_reference, found=found, prediction=n_prediction, right=right)


def _count_touching(mask: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """Number of components of a mask, and of those with a voxel in another."""
    numbered, counts = components(mask)
    touched = np.zeros(len(counts), bool)
    for plane, inside in zip(numbered, other, strict=True):
        touched[plane[inside]] = True
    return len(counts) - 1, int(np.count_nonzero(touched[1:]))


def mask_dice(mask: np.ndarray, target: np.ndarray) -> float:
    """Dice of two (z, y, x) bool masks; NaN when both are empty."""
    total = np.count_nonzero(mask) + np.count_nonzero(target)
    return _ratio(2 * np.count_nonzero(mask & target), total)


def confusion_counts(
    reference: np.ndarray,
    prediction: np.ndarray,
    labels: Sequence[Values],
    ignore_label: int | None = None,
) -> dict[Values, Confusion]:
    """Count the voxels of every label in a single pass over two segmentations.

    Sums up one joint histogram slice by slice, so neither memory nor time grows with the product
    of labels and volume.

    Args:
        reference: (z, y, x) integer labels of the ground truth.
        prediction: (z, y, x) integer labels.
        labels: values or regions to count; every other value is background.
        ignore_label: value of the reference whose voxels are not counted at all.

    Raises:
        ValueError: if the shapes differ.
    """
    if reference.shape != prediction.shape:
        raise ValueError(
            f"reference and prediction must have the same shape, found {reference.shape} and "
            f"{prediction.shape} (zyx, voxels)"
        )
    known = np.array(all_members(labels), np.int64)
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
        i = np.searchsorted(known, members(label))
        tp, n_ref, n_pred = (int(j.sum()) for j in (joint[np.ix_(i, i)], joint[i], joint[:, i]))
        tn = total - n_ref - n_pred + tp
        counts[label] = Confusion(tp=tp, fp=n_pred - tp, fn=n_ref - tp, tn=tn)
    return counts


def volume_ml(voxels: int, spacing: Sequence[float]) -> float:
    """Volume of a number of voxels in millilitres, given their spacing in mm."""
    return float(voxels * np.prod(spacing) / 1000.0)


def _index_among(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Position of each value in the sorted `known`; `len(known)` for values that are not in it."""
    if known.size == 0:
        return np.zeros(values.shape, np.int64)
    index = np.searchsorted(known, values)
    index[known[np.minimum(index, known.size - 1)] != values] = known.size
    return index


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else float("nan")
