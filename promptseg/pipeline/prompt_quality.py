"""How well prompts work on validation cases: from several starts, then corrected by clicks."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from promptseg.boxes import mask_box
from promptseg.evaluation.metrics import mask_dice
from promptseg.inference.predictor import Predictor
from promptseg.inference.session import Session
from promptseg.io.dataset import RawCase
from promptseg.io.images import read_segmentation
from promptseg.labels import label_mask
from promptseg.prompts.simulated import error_click
from promptseg.tables import aligned
from promptseg.words import some

STARTS = ("name", "name and box", "box", "click")  # the last two without the name
REPORTED = (0, 1, 3, 5)  # numbers of clicks
MOST_CASES, MOST_OBJECTS, MOST_SECONDS = 20, 60, 240.0  # so that it takes some minutes

log = logging.getLogger(__name__)


@dataclass
class Measured:
    """What was measured from one start.

    Attributes:
        dice: for each object, the Dice after 0, 1, ... clicks.
        right: for each kind of click, 1 foreground and 0 background, whether its voxel was on the
            right side afterwards.
        distances: for each click that changed voxels, their mean distance from it, in mm.
        seconds: of each prompt after the first.
        ious: predicted and true IoU of every answer.
    """

    dice: list[list[float]] = field(default_factory=list)
    right: Mapping[int, list[bool]] = field(default_factory=lambda: defaultdict(list))
    distances: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    ious: list[tuple[float, float]] = field(default_factory=list)


def measure_prompts(
    predictor: Predictor, cases: Sequence[RawCase], ground_truth: Mapping[str, Path]
) -> dict[str, Any]:
    """Measure prompts on at most `MOST_CASES` cases, and a few labels of each in turn.

    Begins no further object after `MOST_SECONDS`. Logs what was measured as a table.

    Args:
        predictor: of a fold that was not trained on these cases; its image is replaced.
        cases: cases with their image files.
        ground_truth: segmentation file of each case.

    Returns:
        The identifiers of the `cases`, the number of `objects`, `clicks` (the numbers of clicks
        after which the Dice was taken), and for each of the `starts` that list of mean `dice`, the
        fraction of the clicked voxels that were on the right side afterwards (`clicked_right`),
        and the rank correlation of the predicted IoU with the true one
        (`iou_rank_correlation`); NaN where it is undefined.
    """
    began, measured = time.monotonic(), {start: Measured() for start in STARTS}
    chosen = evenly(cases, MOST_CASES)
    done: list[str] = []
    for number, case in enumerate(chosen):
        if time.monotonic() - began > MOST_SECONDS:
            break
        prepared, geometry = predictor.prepare_files(case.images)
        predictor.set_prepared(prepared)
        segmentation, _ = read_segmentation(ground_truth[case.case_id])
        labels = predictor.plans.labels
        there = [name for name, v in labels.items() if label_mask(segmentation, v).any()]
        most = max(1, MOST_OBJECTS // len(chosen))
        for label in _in_turn(there, most, number):
            if time.monotonic() - began > MOST_SECONDS:
                break
            target = label_mask(segmentation, labels[label])
            ignored = segmentation == predictor.plans.ignore_label  # nowhere for None
            measure_object(
                predictor, label, target, geometry.spacing, max(REPORTED), measured, ignored
            )
        done.append(case.case_id)
    found = {
        "cases": done,
        "objects": len(measured[STARTS[0]].dice),
        "clicks": list(REPORTED),
        "starts": {start: _in_numbers(m) for start, m in measured.items() if m.dice},
    }
    if len(done) < len(cases):
        names = some(done, most=MOST_CASES)
        log.info("prompts were measured on %d of %d cases: %s", len(done), len(cases), names)
    for line in table(found):
        log.info("%s", line)
    return found


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many items, evenly spread, the first and the last among them."""
    count = min(len(items), most)
    return [items[int(place)] for place in np.linspace(0, len(items) - 1, count).round()]


def _in_turn(names: Sequence[str], most: int, number: int) -> list[str]:
    """At most so many names; the next ones for the next number."""
    count = min(most, len(names))
    return [names[(number * count + place) % len(names)] for place in range(count)]


def measure_object(
    predictor: Predictor,
    label: str,
    target: np.ndarray,
    spacing: Sequence[float],
    clicks: int,
    into: Mapping[str, Measured],
    ignored: np.ndarray | bool = False,
) -> None:
    """Segment an object from each start, and correct it click by click.

    Args:
        predictor: with the image set.
        label: the object's.
        target: (z, y, x) bool, ground truth with a voxel or more.
        spacing: mm, zyx.
        clicks: number of clicks.
        into: what is measured from each start is added here; starts without an entry are left out.
        ignored: (z, y, x) bool, voxels that do not count and are not clicked.
    """
    for start, measured in into.items():
        session = predictor.new_object(label if "name" in start else None)
        if "box" in start:
            session.add_box(mask_box(target))
        elif start == "click":
            point, _ = error_click(session.mask, target)
            session.add_point(point)
        correct(session, target, spacing, clicks, measured, ignored)


def correct(
    session: Session,
    target: np.ndarray,
    spacing: Sequence[float],
    clicks: int,
    into: Measured,
    ignored: np.ndarray | bool = False,
) -> None:
    """Correct the mask of a session click by click, each in its largest error (`error_click`).

    Args:
        session: with its first prompts.
        target: (z, y, x) bool, ground truth.
        spacing: mm, zyx.
        clicks: number of clicks; fewer where the mask is right before.
        into: what is measured is added here.
        ignored: (z, y, x) bool, voxels that do not count and are not clicked.
    """
    known = ~np.broadcast_to(ignored, target.shape)
    scores = [mask_dice(session.mask & known, target)]
    into.ious.append((session.predicted_iou, _iou(scores[-1])))
    for _ in range(clicks):
        click = error_click(session.mask & known, target)
        if click is None:
            scores.append(scores[-1])
            continue
        point, kind = click
        before = session.mask.copy()
        began = time.perf_counter()
        mask, box = session.add_point(point, foreground=bool(kind))
        into.seconds.append(time.perf_counter() - began)
        into.right[kind].append(bool(mask[tuple(point)]) == bool(kind))
        if box is not None:
            offsets = (np.argwhere(mask != before) - point) * np.asarray(spacing)
            into.distances.append(float(np.linalg.norm(offsets, axis=1).mean()))
        scores.append(mask_dice(mask & known, target))
        into.ious.append((session.predicted_iou, _iou(scores[-1])))
    into.dice.append(scores)


def table(found: Mapping[str, Any]) -> list[str]:
    """The lines of a table of what `measure_prompts` returns."""
    header = ["start", *(f"{n} clicks" for n in found["clicks"]), "clicked right", "IoU rank"]
    rows = [
        [start, *(f"{dice:.4f}" for dice in m["dice"])]
        + [f"{m[name]:.2f}" for name in ("clicked_right", "iou_rank_correlation")]
        for start, m in found["starts"].items()
    ]
    return aligned([header, *rows])


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's, NaN where either of the numbers is the same in all pairs."""
    if len(pairs) < 2 or (np.ptp(pairs, axis=0) == 0).any():
        return float("nan")
    return float(spearmanr(pairs).statistic)


def _in_numbers(measured: Measured) -> dict[str, Any]:
    mean = np.mean(measured.dice, axis=0)
    right = [value for of_kind in measured.right.values() for value in of_kind]
    return {
        "dice": [float(mean[number]) for number in REPORTED],
        "clicked_right": float(np.mean(right)) if right else float("nan"),
        "iou_rank_correlation": rank_correlation(measured.ious),
    }


def _iou(dice: float) -> float:
    """The IoU of the same two masks."""
    return dice / (2 - dice)
