"""Labels that are several objects in an image: which they are, and how well each is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from promptseg.boxes import box_iou
from promptseg.experiment_planning.auto_prompt_cases import FitCase
from promptseg.prompts.auto_prompter import Proposal

SEVERAL = 2  # objects in half of the cases that have the label
MATCHED = (0.3, 0.5)  # box IoU from which an object counts as found
FALSE_A_CASE = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)  # of the free-response curve


def with_objects(cases: Sequence[FitCase]) -> list[FitCase]:
    """Cases in which a label is one object, unless it is several in half of the cases that have it.

    Where it is not, its pieces in some cases are parts of one.
    """
    counts: dict[str, list[int]] = {}
    for case in cases:
        for label, truth in case.truths.items():
            counts.setdefault(label, []).append(len(truth.objects))
    one = {label for label, of_cases in counts.items() if np.median(of_cases) < SEVERAL}
    return [
        replace(
            case,
            truths={
                label: replace(truth, objects=(truth.box,)) if label in one else truth
                for label, truth in case.truths.items()
            },
        )
        for case in cases
    ]


def are_several(cases: Sequence[FitCase], label: str) -> bool:
    """Whether a label is several objects in any of the cases."""
    return any(len(case.truths[label].objects) > 1 for case in cases if label in case.truths)


def best_ious(proposal: Proposal, objects: Sequence[np.ndarray]) -> np.ndarray:
    """For each of n true boxes the IoU of the proposed one that is nearest; 0 without any."""
    if not proposal.boxes:
        return np.zeros(len(objects))
    proposed = np.stack(proposal.boxes).astype(float)
    return np.array([box_iou(proposed, true).max() for true in objects])


def detection_figures(
    proposals: Sequence[Proposal],
    objects: Sequence[Sequence[np.ndarray]],
) -> dict[str, Any]:
    """How well boxes find objects.

    The proposed boxes of all cases are taken in the order of their scores, the surest first; each
    finds the object of its case that it overlaps most, if that was not found before.

    Args:
        proposals: one per case.
        objects: for each case the (2, 3) boxes of its objects; none where it has none.

    Returns:
        `objects` a case (median); for each IoU in `MATCHED` precision, recall and F1 of all boxes,
        and `recall_at_false_a_case`: the recall that is reached with at most so many wrong boxes a
        case, those of `FALSE_A_CASE`, at the higher IoU.
    """
    counts = [len(of_case) for of_case in objects if len(of_case)]
    found: dict[str, Any] = {"objects": float(np.median(counts)) if counts else 0.0}
    total = sum(counts)
    for iou in MATCHED:
        hits = _hits(proposals, objects, iou)
        right = int(hits.sum())
        found[f"precision_{iou:g}"] = right / len(hits) if len(hits) else 0.0
        found[f"recall_{iou:g}"] = right / total if total else 0.0
        found[f"f1_{iou:g}"] = 2 * right / max(len(hits) + total, 1)
    wrong = np.cumsum(~hits) / len(proposals)
    recall = np.cumsum(hits) / max(total, 1)
    found["recall_at_false_a_case"] = {
        f"{most:g}": float(recall[wrong <= most].max(initial=0.0)) for most in FALSE_A_CASE
    }
    return found


def _hits(
    proposals: Sequence[Proposal], objects: Sequence[Sequence[np.ndarray]], iou: float
) -> np.ndarray:
    """(n,) bool, whether each proposed box finds an object; the surest boxes first."""
    boxes = [
        (-_score(proposal, number), case, number)
        for case, proposal in enumerate(proposals)
        for number in range(len(proposal.boxes))
    ]
    hits, left = [], [list(of_case) for of_case in objects]
    for _, case, number in sorted(boxes):
        box = proposals[case].boxes[number].astype(float)
        ious = [float(box_iou(box, true)) for true in left[case]]
        hits.append(bool(ious) and max(ious) >= iou)
        if hits[-1]:
            left[case].pop(int(np.argmax(ious)))
    return np.array(hits, bool)


def _score(proposal: Proposal, number: int) -> float:
    return proposal.scores[number] if proposal.scores else proposal.score
