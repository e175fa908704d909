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
    summary: Mapping[str, Any],
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
        summary: of their evaluation.
    """
    numbers = {case.case_id: number for number, case in enumerate(cases)}
    samples = validated_samples(report, summary, numbers)
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
    for line in told(samples):
        log.info("%s", line)
    return samples


def validated_samples(
    report: Mapping[str, Any], summary: Mapping[str, Any], numbers: Mapping[str, int]
) -> list[DiceSample]:
    """Those of predicted and evaluated cases.

    Args:
        report: of a prediction, with evidence.
        summary: of its evaluation.
        numbers: of the cases.
    """
    samples = []
    for row in summary["metric_per_case"]:
        results = report["cases"][row["case"]]["labels"]
        for key, name in summary["labels"].items():
            evidence = results[name].get("evidence")
            if evidence and np.isfinite(dice := row["metrics"][key]["Dice"]):
                group = numbers[row["case"]]
                samples.append(
                    DiceSample(group=group, copy="", label=name, dice=dice, evidence=evidence)
                )
    return samples


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
    labels, ignored = predictor.plans.labels, predictor.plans.ignore_label
    rng, samples = np.random.default_rng([SEED, number]), []
    for kind in kinds_for(rng, COPIES):
        copy, expected = degraded(image, segmentation, kind, rng)
        try:
            predictor.set_image(copy, spacing)
        except ValueError:  # it is refused, as no image of a user would be segmented
            continue
        found = predictor.predict(auto_prompt=PLANS)
        counts = confusion_counts(expected, found.segmentation, list(labels.values()), ignored)
        for label, result in found.labels.items():
            dice = float(counts[labels[label]].dice)
            if result.evidence and np.isfinite(dice):
                evidence = dict(result.evidence)
                samples.append(
                    DiceSample(group=number, copy=kind, label=label, dice=dice, evidence=evidence)
                )
    return samples


def told(samples: Sequence[DiceSample]) -> list[str]:
    """In words, how well the Dice of masks is predicted on cases that were left out."""
    if not are_enough(samples):
        return [f"No Dice will be predicted for new images: {len(samples)} masks are too few."]
    estimator = DiceEstimator(samples)
    dice = np.array([sample.dice for sample in samples])
    expected, spread = estimator.left_out
    low, high = estimator.interval(expected, spread)
    errors, plain = np.abs(expected - dice), np.array([not sample.copy for sample in samples])
    rank = rank_correlation(np.column_stack([expected, dice]).tolist())
    return [
        f"Predicted Dice, with cases left out: {plain.sum()} masks of images (mean error "
        f"{errors[plain].mean():.3f}) and {(~plain).sum()} of degraded copies "
        f"({errors[~plain].mean():.3f}); rank correlation with the Dice {rank:.2f}; intervals "
        f"of {COVERAGE:.0%} hold {((low <= dice) & (dice <= high)).mean():.0%}."
    ]
