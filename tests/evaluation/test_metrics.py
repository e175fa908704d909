"""Metrics against hand-worked numbers, scipy, MONAI and plain masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import distance

from promptseg.evaluation.metrics import (
    Confusion,
    Lesions,
    confusion_counts,
    count_lesions,
    volume_ml,
)

SHAPE = (5, 9, 7)


def mask_of(box, shape=SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    (z0, y0, x0), (z1, y1, x1) = np.clip(box, 0, None)
    mask[z0:z1, y0:y1, x0:x1] = True
    return mask


def overlap(reference: np.ndarray, prediction: np.ndarray) -> Confusion:
    return confusion_counts(reference.astype(np.uint8), prediction.astype(np.uint8), [1])[1]


def test_dice_and_iou_of_two_overlapping_blocks_are_what_a_pencil_says():
    # 2x3x4 = 24 and 2x3x2 = 12 voxels, 2x2x2 = 8 in common.
    first = mask_of([[0, 0, 0], [2, 3, 4]])
    second = mask_of([[0, 1, 2], [2, 4, 4]])

    found = overlap(first, second)
    assert (found.dice, found.iou) == (pytest.approx(16 / 36), pytest.approx(8 / 28))


def test_dice_and_iou_agree_with_scipy_and_monai():
    torch = pytest.importorskip("torch")
    from monai.metrics import compute_dice, compute_iou

    rng = np.random.default_rng(3)
    first, second = rng.random((2, *SHAPE)) < 0.4
    tensors = [torch.from_numpy(m[None, None].astype(np.float32)) for m in (second, first)]

    found = overlap(first, second)
    assert found.dice == pytest.approx(1 - distance.dice(first.ravel(), second.ravel()))
    assert found.iou == pytest.approx(1 - distance.jaccard(first.ravel(), second.ravel()))
    assert found.dice == pytest.approx(compute_dice(*tensors).item(), abs=1e-6)
    assert found.iou == pytest.approx(compute_iou(*tensors).item(), abs=1e-6)


def test_two_empty_masks_have_no_dice_and_one_empty_mask_has_dice_zero():
    empty, full = np.zeros(SHAPE, bool), np.ones(SHAPE, bool)

    neither = overlap(empty, empty)
    assert math.isnan(neither.dice) and math.isnan(neither.iou)
    for one in (overlap(empty, full), overlap(full, empty)):
        assert one.dice == one.iou == 0.0
    both = overlap(full, full)
    assert both.dice == both.iou == 1.0


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_counts_of_every_label_equal_those_of_its_masks(dtype):
    rng = np.random.default_rng(5)
    values = np.array([0, 1, 3, 4, 100], dtype)
    reference, prediction = rng.choice(values, (2, *SHAPE))

    counts = confusion_counts(reference, prediction, [100, 3, 1, 77])  # 4 is background, 77 absent

    assert list(counts) == [100, 3, 1, 77]
    for label, found in counts.items():
        r, p = reference == label, prediction == label
        expected = ((r & p).sum(), (~r & p).sum(), (r & ~p).sum(), (~r & ~p).sum())
        assert (found.tp, found.fp, found.fn, found.tn) == expected
    assert math.isnan(counts[77].dice)


def test_ignored_voxels_count_nowhere_and_negative_values_are_background():
    reference = np.array([[[1, 1, 9, 9, -2]]], np.int16)
    prediction = np.array([[[1, 0, 1, 0, 1]]], np.int16)

    found = confusion_counts(reference, prediction, [1], ignore_label=9)[1]

    assert (found.tp, found.fp, found.fn, found.tn) == (1, 1, 1, 0)


def test_counting_no_label_gives_nothing_and_unequal_shapes_are_refused():
    zeros = np.zeros(SHAPE, np.uint8)
    assert confusion_counts(zeros, zeros, []) == {}
    with pytest.raises(ValueError, match=r"the same shape, found \(5, 9, 7\) and \(5, 9, 6\)"):
        confusion_counts(zeros, zeros[..., 1:], [1])


def test_volume_is_in_millilitres():
    assert volume_ml(500, (4.0, 0.5, 1.0)) == pytest.approx(1.0)  # 500 voxels of 2 mm3


def test_lesions_count_as_found_that_share_a_voxel():
    reference, prediction = np.zeros((2, 5, 9, 12), bool)
    reference[0, 0, 0:3] = reference[1, 1, 3] = True  # one: 26-connected over a corner
    reference[4, 8, 11] = True  # missed
    reference[2:4, 5, 5:9] = True  # found twice
    prediction[0, 0, 2:5] = prediction[2, 5, 5] = prediction[3, 5, 8] = True
    prediction[4, 0, 0] = prediction[4, 2, 0] = True  # invented
    found = count_lesions(reference, prediction)
    assert found == Lesions(reference=3, found=2, prediction=5, right=3)
    assert (found.recall, found.precision) == (2 / 3, 3 / 5)
    assert found.f1 == pytest.approx(2 * (2 / 3) * (3 / 5) / (2 / 3 + 3 / 5))


def test_lesions_are_scipys_components_on_random_masks():
    rng = np.random.default_rng(4)
    for _ in range(20):
        reference, prediction = rng.random((2, *rng.integers(4, 15, 3))) < 0.05
        found = count_lesions(reference, prediction)
        numbered, n = ndimage.label(reference, np.ones((3, 3, 3)))
        assert found.reference == n
        assert found.found == sum(prediction[numbered == i].any() for i in range(1, n + 1))
        assert count_lesions(prediction, reference) == Lesions(
            reference=found.prediction, found=found.right, prediction=n, right=found.found
        )


def test_lesions_of_empty_masks():
    neither = Lesions()
    assert all(math.isnan(x) for x in (neither.precision, neither.recall, neither.f1))
    missed, invented = Lesions(reference=2), Lesions(prediction=3)
    assert missed.recall == missed.f1 == invented.precision == invented.f1 == 0.0
    assert math.isnan(missed.precision) and math.isnan(invented.recall)
    apart = Lesions(reference=2, prediction=1)
    assert apart.precision == apart.recall == apart.f1 == 0.0
