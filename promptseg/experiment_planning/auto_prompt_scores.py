"""How well the boxes of an automatic prompt match the ground truth, over cross-validated cases."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from promptseg.boxes import box_recall, box_slices, is_nearly_whole
from promptseg.experiment_planning.auto_prompt_cases import FitCase
from promptseg.experiment_planning.several_objects import (
    are_several,
    best_ious,
    detection_figures,
)
from promptseg.prompts.auto_prompter import Proposal
from promptseg.prompts.strategies.expected_iou import evidence, expected_iou, fit_expected_iou
from promptseg.prompts.strategies.fitted import FittedPrompter


def assign_folds(count: int, folds: int = 5) -> np.ndarray:
    """(count,) fold numbers: at least 5 even folds, always alike; leave-one-out below 10 cases."""
    if count < 10:
        return np.arange(count)
    return np.random.default_rng(12345).permutation(np.arange(count) % max(folds, 5))


def folds_of(cases: Sequence[FitCase], folds: int = 5) -> np.ndarray:
    """(n,) fold numbers of cases, as `assign_folds` draws them for their groups."""
    numbers = {group: i for i, group in enumerate(dict.fromkeys(case.group for case in cases))}
    return assign_folds(len(numbers), folds)[[numbers[case.group] for case in cases]]


def out_of_fold(
    strategy: type[FittedPrompter], cases: Sequence[FitCase], label: str, fold_of: np.ndarray
) -> list[FittedPrompter]:
    """For every case the strategy fitted on the other folds; cases of one fold share it."""
    samples = [case.sample(label) for case in cases]
    fitted = {
        fold: strategy(**strategy.fit([samples[i] for i in np.flatnonzero(fold_of != fold)]))
        for fold in np.unique(fold_of)
    }
    return [fitted[fold] for fold in fold_of]


def off_centre(case: FitCase, label: str) -> FitCase:
    """The case cropped at random around a label, to see how much a strategy owes to position.

    On each side a fraction of the margin between the volume's border and the label, uniform in
    [0, 1), is cut off, in whole view voxels; it depends on the case identifier alone.
    """
    view, truth = case.view, case.truths[label]
    step, shape = np.array(view.step), np.array(view.shape)
    margins = np.stack([truth.box[0], shape - truth.box[1]]) / step
    fractions = np.random.default_rng(zlib.crc32(case.case_id.encode())).uniform(size=(2, 3))
    lower, upper = np.floor(margins * fractions).astype(int)
    end = np.array(view.image.shape) - upper
    cropped = replace(
        view,
        image=view.image[box_slices(np.stack([lower, end]))],
        shape=tuple(int(n) for n in np.minimum(end * step, shape) - lower * step),
    )
    moved = replace(
        truth,
        box=truth.box - lower * step,
        objects=tuple(box - lower * step for box in truth.objects),
    )
    return replace(case, view=cropped, truths={label: moved})


def ious_of(proposals: Sequence[Proposal], cases: Sequence[FitCase], label: str) -> np.ndarray:
    """(n,) box IoU with the ground truth: the mean over its objects of that of the nearest box."""
    truths = [case.truths[label] for case in cases]
    return np.array(
        [
            best_ious(proposal, truth.objects).mean()
            for proposal, truth in zip(proposals, truths, strict=True)
        ]
    )


def figures(proposals: Sequence[Proposal], cases: Sequence[FitCase], label: str) -> dict[str, Any]:
    """The figures of a candidate in the plans: box IoU, recall, empty and nearly whole boxes."""
    ious = ious_of(proposals, cases, label)
    pairs = list(zip(proposals, cases, strict=True))
    whole = [p.box is not None and is_nearly_whole(p.box, c.view.shape) for p, c in pairs]
    truths = [case.truths[label] for case in cases]
    recalls = [
        box_recall(p.boxes, t.mask, t.box[0]) for p, t in zip(proposals, truths, strict=True)
    ]
    detected = {}
    if are_several(cases, label):
        detected = {"detection": detection_figures(proposals, [t.objects for t in truths])}
    return {
        "iou_mean": float(ious.mean()),
        "iou_std": float(ious.std()),
        "recall_mean": float(np.mean(recalls)),
        "empty_fraction": float(np.mean([p.box is None for p in proposals])),
        "whole_fraction": float(np.mean(whole)),
        **detected,
    }


def fit_score(
    proposals: Sequence[Proposal], cases: Sequence[FitCase], label: str, fold_of: np.ndarray
) -> tuple[dict[str, Any], float | None]:
    """The model that predicts a proposal's box IoU, and how well it ranks cases it has not seen.

    Args:
        proposals: one per case, from a fit without the case.
        cases: the cases, all of which have the label.
        label: name of the label.
        fold_of: (n,) fold of each case.

    Returns:
        Plain JSON for `propose_boxes`, and Spearman's correlation of predicted and true IoU with
        the folds held out in turn (None where it is undefined).
    """
    boxes = [case.truths[label].box / case.view.shape for case in cases]
    usual = np.median(boxes, axis=0)
    ious = ious_of(proposals, cases, label)
    found = [i for i, p in enumerate(proposals) if p.box is not None]
    rows = {i: evidence(cases[i].view, proposals[i].box, usual) for i in found}
    predicted = np.zeros(len(cases))
    for fold in np.unique(fold_of):
        seen = [i for i in found if fold_of[i] != fold]
        if not seen:
            continue
        model = fit_expected_iou([rows[i] for i in seen], ious[seen])
        for i in found:
            if fold_of[i] == fold:
                predicted[i] = expected_iou(model, rows[i])
    if not found:
        return {}, None
    model = fit_expected_iou([rows[i] for i in found], ious[found])
    return {**model, "usual": usual.tolist()}, rank_correlation(predicted, ious)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's, None when either is constant."""
    ranks = [_ranks(np.asarray(values, float)) for values in (a, b)]
    if min(np.ptp(r) for r in ranks) == 0:
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks with ties averaged."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
