"""Masks of validation cases and of their degraded copies, to learn from how good masks are."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.evaluation.metrics import confusion_counts
from promptseg.inference.predictor import Predictor
from promptseg.inference.prompting import PLANS
from promptseg.io.dataset import RawCase
from promptseg.io.images import read_segmentation
from promptseg.pipeline.degraded import degraded, kinds_for
from promptseg.pipeline.prompt_quality import evenly, rank_correlation
from promptseg.plans import Plans
from promptseg.predicted_dice import COVERAGE, DiceEstimator, DiceSample, are_enough

COPIES = 3  # of a case
MOST_CASES, MOST_SECONDS = 20, 180.0  # of which copies are made
SEED = 12345

log = logging.getLogger(__name__)


def dice_samples(
    predictor: Predictor,
    cases: Sequence[RawCase],
    ground_truth: Mapping[str, Path],
    report: Mapping[str, Any],
) -> list[DiceSample]:
    """What a predictor's masks of held-out cases looked like, and their Dice.

    Copies are prompted as the predictor finds best, by strategies that may have learned from the
    case; the images themselves were prompted by some that had not. No further case is degraded
    after `MOST_SECONDS`. Logs how well the Dice can be predicted from them.

    Args:
        predictor: of a fold that was not trained on these cases; its image is replaced.
        cases: those that were validated.
        ground_truth: segmentation file of each case.
        report: of their prediction, with evidence.
    """
    numbers, samples = {case.case_id: number for number, case in enumerate(cases)}, []
    for case_id, entry in report["cases"].items():
        found, _ = read_segmentation(entry["prediction"])
        expected, _ = read_segmentation(ground_truth[case_id])
        seen = {label: result.get("evidence") for label, result in entry["labels"].items()}
        samples += samples_of(seen, found, expected, predictor.plans, group=numbers[case_id])
    began = time.monotonic()
    for case in evenly(cases, MOST_CASES):
        if time.monotonic() - began > MOST_SECONDS:
            break
        try:
            image, _ = predictor.prepare_files(case.images)
            segmentation, _ = read_segmentation(ground_truth[case.case_id])
        except (ValueError, OSError):  # told where it was predicted
            continue
        segmentation = image.turn.array(segmentation)
        number = numbers[case.case_id]
        samples += degraded_samples(predictor, image.raw, image.spacing, segmentation, number)
    log.info("%s", told(samples))
    return samples


def samples_of(
    evidence: Mapping[str, Mapping[str, float] | None],
    found: np.ndarray,
    expected: np.ndarray,
    plans: Plans,
    *,
    group: int,
    copy: str = "",
) -> list[DiceSample]:
    """Those of the labels of one segmentation of which there is evidence, and which have a Dice.

    Args:
        evidence: by label; None of an empty mask.
        found: (z, y, x) label values that were predicted.
        expected: (z, y, x) ground truth.
        plans: with the labels.
        group, copy: as in `DiceSample`.
    """
    labels = plans.labels
    counts = confusion_counts(expected, found, list(labels.values()), plans.ignore_label)
    dice = {label: float(counts[labels[label]].dice) for label in evidence}
    return [
        DiceSample(group=group, copy=copy, label=label, dice=dice[label], evidence=dict(seen))
        for label, seen in evidence.items()
        if seen and np.isfinite(dice[label])
    ]


def degraded_samples(
    predictor: Predictor,
    image: np.ndarray,
    spacing: Sequence[float],
    segmentation: np.ndarray,
    number: int,
) -> list[DiceSample]:
    """Those of `COPIES` degraded copies of an image.

    Args:
        predictor: its image is replaced.
        image: (c, z, y, x) raw intensities, in the plans' orientation.
        spacing: mm, zyx.
        segmentation: (z, y, x) ground truth.
        number: of the case; decides how it is degraded.
    """
    rng, samples = np.random.default_rng([SEED, number]), []
    for kind in kinds_for(rng, COPIES):
        copy, expected = degraded(image, segmentation, kind, rng)
        try:
            predictor.set_image(copy, spacing)
        except ValueError:  # it is refused, as no image of a user would be segmented
            continue
        found = predictor.predict(auto_prompt=PLANS)
        seen = {label: result.evidence for label, result in found.labels.items()}
        plans = predictor.plans
        samples += samples_of(seen, found.segmentation, expected, plans, group=number, copy=kind)
    return samples


def told(samples: Sequence[DiceSample]) -> str:
    """In words, how well the Dice of masks is predicted on cases that were left out."""
    if not are_enough(samples):
        return f"No Dice will be predicted for new images: {len(samples)} masks are too few."
    estimator = DiceEstimator(samples)
    dice = np.array([sample.dice for sample in samples])
    expected, spread = estimator.left_out
    low, high = estimator.interval(expected, spread)
    errors, plain = np.abs(expected - dice), np.array([not sample.copy for sample in samples])
    rank = rank_correlation(np.column_stack([expected, dice]).tolist())
    return (
        f"Predicted Dice, with cases left out: {plain.sum()} masks of images (mean error "
        f"{errors[plain].mean():.3f}) and {(~plain).sum()} of degraded copies "
        f"({errors[~plain].mean():.3f}); rank correlation with the Dice {rank:.2f}; intervals "
        f"of {COVERAGE:.0%} hold {((low <= dice) & (dice <= high)).mean():.0%}."
    )
