"""Fit the automatic prompts on the training cases and choose one per label by cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from promptseg.experiment_planning.auto_prompt_candidates import (
    Candidate,
    FitTask,
    combined_candidate,
    fitted_candidate,
    located_candidates,
)
from promptseg.experiment_planning.auto_prompt_cases import (
    UNFITTED,
    FitCase,
    fitted_strategies,
)
from promptseg.experiment_planning.auto_prompt_scores import (
    folds_of,
    ious_of,
)
from promptseg.experiment_planning.several_objects import with_objects
from promptseg.parallel import Workers, map_cases
from promptseg.prompts.auto_prompter import LOCATOR
from promptseg.prompts.strategies import AUTO_PROMPTERS
from promptseg.tables import aligned

if TYPE_CHECKING:
    from promptseg.networks.locator import Locator

USABLE_IOU = 0.3  # below it a box misleads the network more than the label's name alone
FEWEST_CASES = 3
CLOSE, STEADIER = 0.05, 0.2  # box IoU that a choice may lose where it gains so much off-centre
POSITION_ALONE = 0.7  # fraction of the box IoU left off-centre below which the reason warns


@dataclass(frozen=True, kw_only=True)
class AutoPromptFit:
    """What the planner learned about automatic prompts.

    Attributes:
        labels: for each label name the strategy that the plans use, the reason, and every
            candidate with its parameters and cross-validated figures; plain JSON.
        proposals: for each case and label the chosen strategy's boxes from the fold that did
            not see the case: what a user would get, for training with realistic prompts.
        locator: the networks of the strategy of that name; None if they were not trained.
    """

    labels: dict[str, dict[str, Any]]
    proposals: dict[str, dict[str, list]]
    locator: Locator | None = None

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
    locator: bool = True,
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
        locator: whether to train the networks of `locator`, which takes minutes.

    Raises:
        ValueError: if there are no cases.
    """
    if not cases:
        raise ValueError("automatic prompts are fitted on training cases, but there are none")
    groups = groups or {case_id: case_id for case_id in cases}
    in_order = [replace(cases[case_id], group=groups[case_id]) for case_id in sorted(cases)]
    return fit_labels(in_order, labels, folds=folds, processes=processes, locator=locator)


def fit_labels(
    cases: Sequence[FitCase],
    labels: Sequence[str],
    *,
    folds: int = 5,
    processes: int | Workers = 0,
    locator: bool = False,
) -> AutoPromptFit:
    """The fit proper, on cases in their order that know their groups."""
    cases = with_objects(cases)
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
        fitted_candidate, tasks, folds, processes=processes, description="fitting automatic prompts"
    )
    for task, result, error in outcomes:
        if isinstance(error, RuntimeError):  # a cluster did not finish it
            raise RuntimeError(f"fitting {task}: {error}") from error
        if error is not None:
            raise error
        results[task.label, task.strategy.name] = result
    for label in fitted:
        for name in combined:
            results[label, name] = combined_candidate(name, label, cases, folds, results)
    networks = None
    if locator and fitted:
        networks, located = located_candidates(cases, labels, results, folds, processes)
        results.update(located)
    entries, proposals = {}, {case.case_id: {} for case in cases}
    for label in labels:
        fold_of = folds_of(present[label], folds)
        of_label = {
            name: results[label, name]
            for name in sorted([*names, *combined, LOCATOR])
            if (label, name) in results
        }
        entries[label] = choose(of_label, present[label], label, fold_of)
        chosen = of_label.get(entries[label]["strategy"])
        for i, case in enumerate(present[label]):
            boxes = chosen[1][i].boxes if chosen else ()
            proposals[case.case_id][label] = [box.tolist() for box in boxes]
    return AutoPromptFit(labels=entries, proposals=proposals, locator=networks)


def choose(
    candidates: dict[str, Candidate],
    cases: Sequence[FitCase],
    label: str,
    fold_of: np.ndarray,
) -> dict[str, Any]:
    """The label's entry in the plans: the candidate with the highest mean box IoU, or `none`.

    One that is hardly worse, and much better on volumes that are cropped off-centre, is preferred:
    it looks at the image, where the other relies on where labels usually lie.

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
    steadier = _steadier(best, {name: entry for name, (entry, *_) in candidates.items()})
    if steadier is not None and reached >= USABLE_IOU:
        return _entry(steadier, _reason_of(steadier, best, candidates), candidates)
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
    return _entry(best, reason, candidates)


def _entry(strategy: str, reason: str, candidates: Mapping[str, Candidate]) -> dict[str, Any]:
    chosen = candidates[strategy][0] if strategy in candidates else {}
    if detection := chosen.get("detection"):
        reason += (
            f"; {detection['objects']:g} objects a case: F1 {detection['f1_0.5']:.2f} at box IoU "
            f"0.5 (precision {detection['precision_0.5']:.2f}, recall "
            f"{detection['recall_0.5']:.2f}), {detection['f1_0.3']:.2f} at 0.3"
        )
    return {
        "strategy": strategy,
        "reason": reason,
        "candidates": {name: entry for name, (entry, *_) in candidates.items()},
    }


def _steadier(best: str, entries: Mapping[str, Mapping[str, Any]]) -> str | None:
    """A candidate within `CLOSE` of the best, and by `STEADIER` better off-centre; or None."""
    off = {
        n: e["iou_off_centre"] for n, e in entries.items() if e.get("iou_off_centre") is not None
    }
    close = [n for n in off if entries[n]["iou_mean"] >= entries[best]["iou_mean"] - CLOSE]
    if best not in off or not close:
        return None
    found = max(close, key=lambda name: off[name])
    return found if off[found] >= off[best] + STEADIER else None


def _reason_of(steadier: str, best: str, candidates: Mapping[str, Candidate]) -> str:
    mine, its = candidates[steadier][0], candidates[best][0]
    return (
        f"box IoU {mine['iou_mean']:.3f}, and {mine['iou_off_centre']:.3f} on the same volumes "
        f"cropped off-centre; {best} has {its['iou_mean']:.3f} and {its['iou_off_centre']:.3f}"
    )


def _number_of_groups(cases: Sequence[FitCase]) -> int:
    return len({case.group for case in cases})


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
