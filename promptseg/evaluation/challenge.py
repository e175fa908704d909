"""The interactive protocol of the CVPR 2025 BiomedSegFM challenge, on our own predictor.

A box for every object, then five rounds of one click each in the largest error of each object.
What the challenge measures after each round, without its containers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.integrate import trapezoid

from promptseg.evaluation.case import masks_of_label
from promptseg.evaluation.metrics import confusion_counts
from promptseg.evaluation.surfaces import surface_distances
from promptseg.inference.predictor import Predictor
from promptseg.inference.session import Session
from promptseg.prompts.simulated import error_click

CLICKS = 5
ROUNDS = 1 + CLICKS  # the first is of boxes
TOLERANCE = 2.0  # mm, of NSD
DICE_FOR_NSD = 0.2  # which a mean Dice must exceed, or NSD counts as 0
SECONDS_PER_CLASS = 90.0  # that the challenge allows


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """What was measured on one case, each a tuple with one number per round.

    Attributes:
        dice: mean Dice over the objects of the ground truth; 0 in a round without prompts.
        nsd: mean normalized surface Dice likewise.
        seconds: that the predictor took, without reading the image.
        classes: number of objects.
    """

    dice: tuple[float, ...]
    nsd: tuple[float, ...]
    seconds: tuple[float, ...]
    classes: int

    def row(self, case: str) -> dict[str, Any]:
        """The case in the columns of the challenge's CSV."""
        numbered = range(1, ROUNDS + 1)
        return {
            "CaseName": case,
            "TotalRunningTime": sum(self.seconds),
            **{f"RunningTime_{n}": self.seconds[n - 1] for n in numbered},
            "DSC_AUC": area_under_clicks(self.dice),
            "NSD_AUC": area_under_clicks(self.nsd),
            "DSC_Final": self.dice[-1],
            "NSD_Final": self.nsd[-1],
            **{f"DSC_{n}": self.dice[n - 1] for n in numbered},
            **{f"NSD_{n}": self.nsd[n - 1] for n in numbered},
            "num_class": self.classes,
            "runtime_upperbound": SECONDS_PER_CLASS * self.classes,
        }


def area_under_clicks(values: Sequence[float]) -> float:
    """Area under the values after each of the five clicks, by trapezoids: from 0 to 4.

    The round of boxes, if it is there, comes before and is left out.
    """
    return float(trapezoid(values[-CLICKS:], dx=1.0))


def mean_dice(reference: np.ndarray, prediction: np.ndarray, values: Sequence[int]) -> float:
    """Mean over labels of the ground truth; what is predicted of others costs nothing."""
    return float(
        np.mean([c.dice for c in confusion_counts(reference, prediction, values).values()])
    )


def mean_nsd(
    reference: np.ndarray, prediction: np.ndarray, values: Sequence[int], spacing: Sequence[float]
) -> float:
    """Mean normalized surface Dice at 2 mm over labels of the ground truth; missed ones have 0."""
    found = []
    for value in values:
        masks = masks_of_label(reference, prediction, value)
        is_found = masks[1].any()
        found.append(surface_distances(*masks, spacing).dice(TOLERANCE) if is_found else 0.0)
    return float(np.mean(found))


def score(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]
) -> tuple[float, float]:
    """Mean Dice and NSD of a segmentation, as the challenge takes them after each round.

    Args:
        reference: (z, y, x) labels; 0 is background.
        prediction: (z, y, x) labels.
        spacing: mm, zyx.
    """
    values = values_of(reference)
    dice = mean_dice(reference, prediction, values)
    is_measured = dice > DICE_FOR_NSD
    return dice, mean_nsd(reference, prediction, values, spacing) if is_measured else 0.0


def values_of(reference: np.ndarray) -> list[int]:
    """The labels of a ground truth, ascending."""
    return [int(value) for value in np.unique(reference) if value]


def segment_in_rounds(
    predictor: Predictor,
    reference: np.ndarray,
    boxes: Mapping[int, np.ndarray],
    spacing: Sequence[float],
    *,
    names: Mapping[int, str] | None = None,
    ignored: np.ndarray | None = None,
) -> Rounds:
    """Segment all objects of an image by boxes, then by clicks, and measure after each round.

    Where masks of several objects claim a voxel, the smaller one has it.

    Args:
        predictor: with the image set. One session is open per object, each as large as the image.
        reference: (z, y, x) ground truth; each of its values but 0 stands for an object.
        boxes: (2, 3) by value, in voxels, zyx, half-open; without any, the first round is skipped.
        spacing: mm, zyx, for NSD.
        names: of values that the model knows by name; objects have no name when not given, as in
            the challenge.
        ignored: (z, y, x) bool, voxels without ground truth, where nothing is wrong.

    Raises:
        ValueError: if there is no object, or only some have a box.

    Source:
        The challenge's `CVPR25_iter_eval.py`. Differs: among voxels of an error that are equally
        deep the first is clicked, where the challenge draws one; and one process answers all
        rounds, so that the image is read and encoded once.
    """
    values = values_of(reference)
    if not values:
        raise ValueError("the ground truth has no object")
    if boxes and (without := [value for value in values if value not in boxes]):
        raise ValueError(f"objects {without} have no box, but others have")
    rounds = [] if boxes else [(0.0, 0.0, 0.0)]
    began = time.perf_counter()
    sessions = {value: predictor.new_object((names or {}).get(value)) for value in values}
    spent = time.perf_counter() - began  # part of the first round that is asked for
    segmentation = merged(sessions, ignored)
    while len(rounds) < ROUNDS:
        clicks = {}
        if rounds:
            clicks = {v: error_click(segmentation == v, reference == v) for v in values}
        began = time.perf_counter()
        for value, session in sessions.items():
            if not rounds:
                session.add_box(boxes[value])
            elif clicks[value] is not None:
                point, is_foreground = clicks[value]
                session.add_point(point, foreground=bool(is_foreground))
        segmentation = merged(sessions, ignored)
        spent += time.perf_counter() - began
        rounds.append((*score(reference, segmentation, spacing), spent))
        spent = 0.0
    dice, nsd, seconds = zip(*rounds, strict=True)
    return Rounds(dice=dice, nsd=nsd, seconds=seconds, classes=len(values))


def merged(sessions: Mapping[int, Session], ignored: np.ndarray | None = None) -> np.ndarray:
    """One (z, y, x) segmentation of sessions by value; smaller masks lie on top.

    Args:
        sessions: one for each value, of the same image.
        ignored: (z, y, x) bool, voxels that become background.
    """
    by_size = sorted(sessions, key=lambda value: -np.count_nonzero(sessions[value].mask))
    segmentation = np.zeros(sessions[by_size[0]].mask.shape, np.int32)
    for value in by_size:
        segmentation[sessions[value].mask] = value
    if ignored is not None:
        segmentation[ignored] = 0
    return segmentation
