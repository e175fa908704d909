"""Fit the automatic prompts on the training cases and choose one per label by cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from promptseg.experiment_planning.auto_prompt_cases import (
    UNFITTED,
    FitCase,
    fitted_strategies,
)
from promptseg.experiment_planning.auto_prompt_scores import (
    figures,
    fit_score,
    folds_of,
    ious_of,
    off_centre,
    out_of_fold,
)
from promptseg.parallel import Workers, map_cases
from promptseg.prompts.auto_prompter import Proposal
from promptseg.prompts.strategies import AUTO_PROMPTERS
from promptseg.prompts.strategies.fitted import FittedPrompter
from promptseg.tables import aligned

USABLE_IOU = 0.3  # below it a box misleads the network more than the label's name alone
FEWEST_CASES = 3
OFF_CENTRE_CASES = 50
POSITION_ALONE = 0.7  # fraction of the box IoU left off-centre below which the reason warns

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
        """One line for each label and candidate, the winner marked.

        The column `cropped` is the box IoU of the same fits on the same cases cropped off-centre
        at random: where it is much lower, the box depends on how the volumes are cropped.
        """
        titles = ("label", "  automatic prompt", "box IoU", "cropped", "recall", "empty", "whole")
        rows, reasons = [[*titles, "score rank"]], []
        for label, entry in self.labels.items():
            for name, c in entry["candidates"].items():
                mark = "*" if name == entry["strategy"] else " "
                rows.append([label, f"{mark} {name}", *_figures(c)])
            reasons.append((len(rows), f"{label} -> {entry['strategy']}: {entry['reason']}"))
        lines = aligned(rows, left=(0, 1))
        for number, reason in reversed(reasons):
            lines.insert(number, reason)
        return "\n".join(lines)


def fit_auto_prompts(
    cases: Mapping[str, FitCase],
    labels: Sequence[str],
    *,
    processes: int | Workers,
    folds: int = 5,
    groups: Mapping[str, str] | None = None,
) -> AutoPromptFit:
    """Fit every strategy for every label and choose by box IoU.

    A strategy is never scored on a case that it was fitted on, nor on another one of the same
    group, nor is anything that it selects while fitting: 5 folds, leave-one-out below 10 groups.
    Cases without the label are left out of its fit and its box IoU, and counted when a box is
    proposed nevertheless.

    Args:
        cases: the training cases, reduced, by case identifier.
        labels: names of the foreground labels.
        processes: worker processes; 0 works in this one.
        folds: number of folds of the cross-validation, at least 5.
        groups: group of each case, such as its patient; by default each case is its own.

    Raises:
        ValueError: if there are no cases.
    """
    if not cases:
        raise ValueError("automatic prompts are fitted on training cases, but there are none")
    groups = groups or {case_id: case_id for case_id in cases}
    in_order = [replace(cases[case_id], group=groups[case_id]) for case_id in sorted(cases)]
    return fit_labels(in_order, labels, folds=folds, processes=processes)


def fit_labels(
    cases: Sequence[FitCase], labels: Sequence[str], *, folds: int = 5, processes: int | Workers = 0
) -> AutoPromptFit:
    """The fit proper, on cases in their order that know their groups."""
    combined = [n for n in fitted_strategies() if AUTO_PROMPTERS.get(n).members]
    names = [*UNFITTED, *(n for n in fitted_strategies() if n not in combined)]
    present = {label: [case for case in cases if label in case.truths] for label in labels}
    fitted = [label for label in labels if _number_of_groups(present[label]) >= FEWEST_CASES]
    tasks = [
        FitTask(
            label=label,
            strategy=AUTO_PROMPTERS.get(name),
            cases=tuple(case.for_fit(label, name) for case in cases),
        )
        for name in reversed(names)  # the slow ones first, so that all workers end together
        for label in fitted
    ]
    results = {}
    outcomes = map_cases(
        _candidate, tasks, folds, processes=processes, description="fitting automatic prompts"
    )
    for task, result, error in outcomes:
        if isinstance(error, RuntimeError):  # a cluster did not finish it
            raise RuntimeError(f"fitting {task}: {error}") from error
        if error is not None:
            raise error
        results[task.label, task.strategy.name] = result
    for label in fitted:
        for name in combined:
            results[label, name] = _combination(name, label, cases, folds, results)
    entries, proposals = {}, {case.case_id: {} for case in cases}
    for label in labels:
        fold_of = folds_of(present[label], folds)
        of_label = {
            name: results[label, name]
            for name in sorted(names + combined)
            if (label, name) in results
        }
        entries[label] = choose(of_label, present[label], label, fold_of)
        chosen = of_label.get(entries[label]["strategy"])
        for i, case in enumerate(present[label]):
            boxes = chosen[1][i].boxes if chosen else ()
            proposals[case.case_id][label] = [box.tolist() for box in boxes]
    return AutoPromptFit(labels=entries, proposals=proposals)


def choose(
    candidates: dict[str, Candidate],
    cases: Sequence[FitCase],
    label: str,
    fold_of: np.ndarray,
) -> dict[str, Any]:
    """The label's entry in the plans: the candidate with the highest mean box IoU, or `none`.

    The winner of several is a little lucky, so the reason also states the box IoU of choosing
    without each fold in turn; that figure is measured on cases the choice has not seen.
    """
    if not candidates:
        few, groups = f"{len(cases)} training cases", _number_of_groups(cases)
        if groups < len(cases):
            few = f"{groups} groups of training cases"
        reason = f"only {few} have the label; {FEWEST_CASES} are needed"
        return {"strategy": "none", "reason": reason, "candidates": {}}
    ious = {name: ious_of(found, cases, label) for name, (_, found, *_) in candidates.items()}
    best = max(ious, key=lambda name: ious[name].mean())
    reached = ious[best].mean()
    unseen = np.concatenate(
        [
            ious[max(ious, key=lambda n: ious[n][fold_of != fold].mean())][fold_of == fold]  # noqa: B023
            for fold in np.unique(fold_of)
        ]
    ).mean()
    if reached < USABLE_IOU:
        best, reason = "none", f"{best} is best with box IoU {reached:.2f}, below {USABLE_IOU:.2f}"
    else:
        reason = f"highest box IoU, {reached:.3f} ({unseen:.3f} with the choice cross-validated)"
        cropped = candidates[best][0].get("iou_off_centre")
        if cropped is not None and cropped < POSITION_ALONE * reached:
            reason += (
                f"; but {cropped:.3f} on the same volumes cropped off-centre, so only for volumes "
                f"cropped as these are"
            )
    return {
        "strategy": best,
        "reason": reason,
        "candidates": {name: entry for name, (entry, *_) in candidates.items()},
    }


def _candidate(task: FitTask, folds: int) -> Candidate:
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


def _combination(
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
    cropped = [off_centre(case, label) for case in _every(cases)]
    return float(ious_of(moved, cropped, label).mean())


def _every(cases: Sequence[Any]) -> Sequence[Any]:
    """At most `OFF_CENTRE_CASES` cases, evenly spaced: enough for a mean used only to warn."""
    return cases[:: -(-len(cases) // OFF_CENTRE_CASES)]


def _number_of_groups(cases: Sequence[FitCase]) -> int:
    return len({case.group for case in cases})


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


def _figures(candidate: dict[str, Any]) -> list[str]:
    """The cross-validated figures of a candidate, as the table shows them."""
    return [
        f"{candidate['iou_mean']:.3f} +- {candidate['iou_std']:.3f}",
        _number(candidate["iou_off_centre"]),
        f"{candidate['recall_mean']:.2f}",
        f"{candidate['empty_fraction']:.0%}",
        f"{candidate['whole_fraction']:.0%}",
        _number(candidate["score_correlation"]),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
