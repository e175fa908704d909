"""Fit the automatic prompts on the training cases and choose one per label by cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from promptseg.experiment_planning.auto_prompt_cases import FitCase, LabelTruth, read_fit_case
from promptseg.parallel import map_cases
from promptseg.preprocessing.normalize import Normalization
from promptseg.prompts.automatic.base import AUTO_PROMPTERS, Proposal
from promptseg.prompts.automatic.fitted import FittedPrompter

if TYPE_CHECKING:
    from promptseg.raw_dataset import RawCase

UNFITTED = ("intensity",)  # need no fit; every registered FittedPrompter is fitted
USABLE_IOU = 0.3  # below it a box misleads the network more than the label token alone
WHOLE_VOLUME = 0.9  # share of the volume from which on a box says nothing
FEWEST_CASES = 3

Boxes = tuple[np.ndarray, ...]


@dataclass(frozen=True, kw_only=True)
class AutoPromptFit:
    """What the planner learned about automatic prompts.

    Attributes:
        labels: for each label name the strategy that the plans use, the reason, and every
            candidate with its parameters and cross-validated figures; plain JSON.
        proposals: for each case and label the chosen strategy's boxes from the fold that did
            not see the case: what a user would get, for training with realistic prompts.
    """

    labels: dict[str, dict[str, Any]]
    proposals: dict[str, dict[str, list]]

    def table(self) -> str:
        """One line for each label and candidate, the winner marked."""
        lines = [
            f"{'label':<16} {'automatic prompt':<20} {'box IoU':>13} {'recall':>7} "
            f"{'empty':>6} {'whole':>6} {'score rank':>10}"
        ]
        for label, entry in self.labels.items():
            for name, c in entry["candidates"].items():
                mark = "*" if name == entry["strategy"] else " "
                lines.append(
                    f"{label:<16} {mark + name:<20} {c['iou_mean']:>6.3f}+-{c['iou_std']:.3f} "
                    f"{c['recall_mean']:>7.2f} {c['empty_share']:>6.0%} {c['whole_share']:>6.0%} "
                    f"{_number(c['score_correlation']):>10}"
                )
            lines.append(f"{label:<16} -> {entry['strategy']}: {entry['reason']}")
        return "\n".join(lines)


def fit_auto_prompts(
    cases: Sequence[RawCase],
    labels: dict[str, int],
    *,
    modality: str,
    normalizations: tuple[Normalization, ...],
    processes: int,
    folds: int = 5,
) -> AutoPromptFit:
    """Read every training case once, fit every strategy for every label, choose by score.

    A strategy is never scored on a case that it was fitted on: 5 folds, leave-one-out below 10
    cases. Cases without the label are left out of its fit and its box IoU.

    Args:
        cases: training cases with labels.
        labels: foreground label values by name.
        modality: of channel 0, for the reason given.
        normalizations: of the channels; prompts look at channel 0.
        processes: worker processes that read.
        folds: of the cross-validation, at least 5.

    Raises:
        ValueError: if there is no case, or naming a case that cannot be read.
    """
    if not cases:
        raise ValueError("automatic prompts are fitted on training cases, and there is none")
    read = {}
    outcomes = map_cases(
        read_fit_case,
        list(cases),
        labels,
        normalizations[0],
        fitted_strategies(),
        UNFITTED,
        processes=processes,
        description="automatic prompts",
    )
    for case, fit_case, error in outcomes:
        if error is not None:
            raise ValueError(f"case {case.case_id!r}: {error}") from error
        read[case.case_id] = fit_case
    return fit_labels([read[case_id] for case_id in sorted(read)], list(labels), folds=folds)


def fit_labels(cases: Sequence[FitCase], labels: Sequence[str], *, folds: int = 5) -> AutoPromptFit:
    """The fit proper, on cases already read and reduced."""
    entries, proposals = {}, {case.case_id: {} for case in cases}
    for label in labels:
        present = [case for case in cases if label in case.truths]
        entries[label], boxes = _fit_label(present, label, folds)
        for case, case_boxes in zip(present, boxes, strict=True):
            proposals[case.case_id][label] = [box.tolist() for box in case_boxes]
    return AutoPromptFit(labels=entries, proposals=proposals)


def fitted_strategies() -> tuple[str, ...]:
    """The names of the registered strategies that are fitted."""
    return tuple(n for n in AUTO_PROMPTERS if issubclass(AUTO_PROMPTERS.get(n), FittedPrompter))


def _fit_label(
    cases: Sequence[FitCase], label: str, folds: int
) -> tuple[dict[str, Any], list[Boxes]]:
    if len(cases) < FEWEST_CASES:
        reason = f"only {len(cases)} training cases have the label; {FEWEST_CASES} are needed"
        return {"strategy": "none", "reason": reason, "candidates": {}}, [() for _ in cases]
    candidates, proposed = {}, {}
    for name in UNFITTED:
        found = [_proposal_of(case.unfitted[name]) for case in cases]
        candidates[name] = {"parameters": {}, **score(found, cases, label)}
        proposed[name] = found
    for name in fitted_strategies():
        found = cross_validate(name, cases, label, folds)
        parameters = AUTO_PROMPTERS.get(name).fit([case.sample(label) for case in cases])
        candidates[name] = {"parameters": parameters, **score(found, cases, label)}
        proposed[name] = found
    best = max(candidates, key=lambda name: candidates[name]["iou_mean"])
    reached = candidates[best]["iou_mean"]
    if reached < USABLE_IOU:
        strategy = "none"
        reason = f"best is {best} with box IoU {reached:.2f}, below the usable {USABLE_IOU:.2f}"
    else:
        strategy, reason = best, f"highest cross-validated box IoU, {reached:.2f}"
    entry = {"strategy": strategy, "reason": reason, "candidates": candidates}
    return entry, [p.boxes for p in proposed[best]] if strategy != "none" else [() for _ in cases]


def cross_validate(name: str, cases: Sequence[FitCase], label: str, folds: int) -> list[Proposal]:
    """A fitted strategy's proposal for every case, from a fit that did not see it."""
    strategy = AUTO_PROMPTERS.get(name)
    fold_of = assign_folds(len(cases), folds)
    proposals = [None] * len(cases)
    for fold in np.unique(fold_of):
        training = [case.sample(label) for case, f in zip(cases, fold_of, strict=True) if f != fold]
        prompter = strategy(**strategy.fit(training))
        for i in np.flatnonzero(fold_of == fold):
            proposals[i] = prompter.propose(cases[i].view)
    return proposals


def assign_folds(count: int, folds: int = 5) -> np.ndarray:
    """(count,) fold numbers: at least 5 even folds, drawn once; leave-one-out below 10 cases."""
    if count < 10:
        return np.arange(count)
    return np.random.default_rng(12345).permutation(np.arange(count) % max(folds, 5))


def score(proposals: Sequence[Proposal], cases: Sequence[FitCase], label: str) -> dict[str, Any]:
    """Figures of one candidate over the cases that have the label; no box counts as IoU 0."""
    truths = [case.truths[label] for case in cases]
    ious = np.array([_iou(p, t) for p, t in zip(proposals, truths, strict=True)])
    recalls = [_recall(p, t) for p, t in zip(proposals, truths, strict=True)]
    whole = [
        p.box is not None and np.prod(p.box[1] - p.box[0]) >= WHOLE_VOLUME * np.prod(c.view.shape)
        for p, c in zip(proposals, cases, strict=True)
    ]
    return {
        "iou_mean": float(ious.mean()),
        "iou_std": float(ious.std()),
        "recall_mean": float(np.mean(recalls)),
        "empty_share": float(np.mean([p.box is None for p in proposals])),
        "whole_share": float(np.mean(whole)),
        "score_correlation": rank_correlation([p.score for p in proposals], ious),
    }


def box_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (2, 3), half-open."""
    sides = np.minimum(a[1], b[1]) - np.maximum(a[0], b[0])
    shared = np.prod(sides.clip(0))
    return float(shared / (np.prod(a[1] - a[0]) + np.prod(b[1] - b[0]) - shared))


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


def _iou(proposal: Proposal, truth: LabelTruth) -> float:
    return 0.0 if proposal.box is None else box_iou(proposal.box, truth.box)


def _recall(proposal: Proposal, truth: LabelTruth) -> float:
    """Share of the label's voxels inside any of the proposed boxes."""
    mask = truth.mask
    left = mask.copy()
    for box in proposal.boxes:
        inside = (box - truth.box[0]).clip(0, mask.shape)
        left[tuple(slice(a, b) for a, b in inside.T)] = False
    return 1 - np.count_nonzero(left) / np.count_nonzero(mask)


def _proposal_of(boxes: Boxes) -> Proposal:
    if not boxes:
        return Proposal(box=None, score=0.0, reason="nothing_found")
    return Proposal(box=boxes[0], boxes=tuple(boxes), score=1.0, reason="ok")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
