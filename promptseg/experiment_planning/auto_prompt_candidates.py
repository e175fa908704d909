"""One automatic prompt for one label: fitted, cross-validated, and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from promptseg.experiment_planning.auto_prompt_cases import UNFITTED, FitCase
from promptseg.experiment_planning.auto_prompt_scores import (
    figures,
    fit_score,
    folds_of,
    ious_of,
    off_centre,
    out_of_fold,
)
from promptseg.parallel import Workers
from promptseg.prompts.auto_prompter import LOCATOR, Proposal
from promptseg.prompts.strategies import AUTO_PROMPTERS
from promptseg.prompts.strategies.fitted import FittedPrompter

if TYPE_CHECKING:
    from promptseg.networks.locator import Locator

OFF_CENTRE_CASES = 50
OFF_CENTRE_VIEWS = 200  # that the locator looks at, of all labels together

Candidate = tuple[dict[str, Any], list[Proposal], list[Proposal], list[Proposal]]
"""Entry in the plans; proposals where the label is, on the same cases cropped off-centre (both
from fits without the case), and where the label is not."""


@dataclass(frozen=True, kw_only=True)
class FitTask:
    """One strategy to be fitted and cross-validated for one label; sent to a worker as a whole.

    Attributes:
        label: name of the label.
        strategy: the class, not its name: pickling it imports its module in the worker.
        cases: reduced to what the two need.
    """

    label: str
    strategy: type
    cases: tuple[FitCase, ...] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.strategy.name} for {self.label!r}"


def fitted_candidate(task: FitTask, folds: int) -> Candidate:
    """One strategy for one label, fitted and cross-validated."""
    label, strategy, cases = task.label, task.strategy, task.cases
    name = strategy.name
    present, absent = _by_presence(cases, label)
    if name in UNFITTED:
        parameters = {}
        found = [_proposal(case.unfitted[name]) for case in present]
        needless = [_proposal(case.unfitted[name]) for case in absent]
        moved = []  # it ran on the whole volume, which is not available here
    else:
        prompters = out_of_fold(strategy, present, label, folds_of(present, folds))
        pairs = list(zip(prompters, present, strict=True))
        found = [_propose(prompter, case) for prompter, case in pairs]
        moved = [prompter.propose(off_centre(case, label).view) for prompter, case in _every(pairs)]
        parameters = strategy.fit([case.sample(label) for case in present])
        fitted = strategy(**parameters)
        needless = [_propose(fitted, case) for case in absent]
    return _judged(parameters, found, moved, needless, present, label, folds)


def combined_candidate(
    name: str,
    label: str,
    cases: Sequence[FitCase],
    folds: int,
    results: dict[tuple[str, str], Candidate],
) -> Candidate:
    """The same for a strategy that combines others, from what these proposed."""
    strategy = AUTO_PROMPTERS.get(name)
    members = {member: results[label, member] for member in strategy.members}
    found, moved, needless = (
        [
            _proposal(() if box is None else (box,))
            for box in (
                strategy.combine([proposal.box for proposal in of_case])
                for of_case in zip(*(member[which] for member in members.values()), strict=True)
            )
        ]
        for which in (1, 2, 3)
    )
    parameters = {"members": {m: entry["parameters"] for m, (entry, *_) in members.items()}}
    present, _ = _by_presence(cases, label)
    return _judged(parameters, found, moved, needless, present, label, folds)


def located_candidates(
    cases: Sequence[FitCase],
    labels: Sequence[str],
    others: Mapping[tuple[str, str], Candidate],
    folds: int,
    processes: int | Workers,
) -> tuple[Locator, dict[tuple[str, str], Candidate]]:
    """The same for `locator`, which is trained for all labels together.

    Args:
        cases: all cases.
        labels: all labels.
        others: by label and strategy; `locator` is measured for the same labels. The less these
            reach, the longer it is trained.
        folds: of the cross-validation of scores.
        processes: worker processes.
    """
    from promptseg.experiment_planning.locator_fit import fit_locator  # with torch, for seconds

    fitted = [label for label in labels if any(of == label for of, _ in others)]
    reached = float(np.mean([_reached(label, others) for label in fitted]))
    split = {label: _by_presence(cases, label) for label in fitted}
    most = max(1, OFF_CENTRE_VIEWS // len(fitted))
    cropped = {label: _every(present, most) for label, (present, _) in split.items()}
    moved = {(case.case_id, label) for label, part in cropped.items() for case in part}
    fit = fit_locator(cases, labels, moved, reached=reached, processes=processes)
    parameters = {"networks": fit.locator.digest}
    results = {}
    for label, (present, absent) in split.items():
        found = [fit.found[case.case_id][label] for case in present]
        needless = [fit.found[case.case_id][label] for case in absent]
        off = [fit.moved[case.case_id][label] for case in cropped[label]]
        results[label, LOCATOR] = _judged(parameters, found, off, needless, present, label, folds)
    return fit.locator, results


def _reached(label: str, candidates: Mapping[tuple[str, str], Candidate]) -> float:
    """The box IoU of the best candidate of a label: the mean of as it is and cropped off-centre."""
    entries = [entry for (of, _), (entry, *_) in candidates.items() if of == label]
    best = max(entries, key=lambda entry: entry["iou_mean"])
    off_centre = best["iou_off_centre"]
    return best["iou_mean"] if off_centre is None else (best["iou_mean"] + off_centre) / 2


def _judged(
    parameters: dict[str, Any],
    found: list[Proposal],
    moved: list[Proposal],
    needless: list[Proposal],
    cases: Sequence[FitCase],
    label: str,
    folds: int,
) -> Candidate:
    score, correlation = fit_score(found, cases, label, folds_of(cases, folds))
    entry = {
        "parameters": parameters,
        **figures(found, cases, label),
        "iou_off_centre": _mean_off_centre(moved, cases, label),
        "score": score,
        "score_correlation": correlation,
        "proposed_without_label": sum(p.box is not None for p in needless),
        "cases_without_label": len(needless),
    }
    return entry, found, moved, needless


def _mean_off_centre(moved: list[Proposal], cases: Sequence[FitCase], label: str) -> float | None:
    if not moved:
        return None
    cropped = [off_centre(case, label) for case in _every(cases, len(moved))]
    return float(ious_of(moved, cropped, label).mean())


def _every(cases: Sequence[Any], most: int = OFF_CENTRE_CASES) -> Sequence[Any]:
    """At most so many cases, evenly spaced: enough for a mean used only to warn."""
    return cases[:: -(-len(cases) // most)]


def _by_presence(cases: Sequence[FitCase], label: str) -> tuple[list[FitCase], list[FitCase]]:
    """The cases that have the label, and the others."""
    present = [case for case in cases if label in case.truths]
    return present, [case for case in cases if label not in case.truths]


def _propose(prompter: FittedPrompter, case: FitCase) -> Proposal:
    return prompter.propose(case.view, described=case.described.get(prompter.name))


def _proposal(boxes: tuple[np.ndarray, ...]) -> Proposal:
    """The proposal that had these boxes."""
    return Proposal(
        box=boxes[0] if boxes else None,
        boxes=tuple(boxes),
        score=0.0,
        reason="ok" if boxes else "nothing_found",
    )
