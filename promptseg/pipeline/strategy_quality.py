"""Which automatic prompts lead to the best masks, measured on validation cases."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.evaluation.metrics import confusion_counts
from promptseg.inference.predictor import Predictor
from promptseg.inference.prompting import COARSE, HYBRID, NAME, PLANS
from promptseg.io.dataset import RawCase
from promptseg.io.images import read_segmentation
from promptseg.pipeline.prompt_quality import evenly
from promptseg.prompts.given import CasePrompts
from promptseg.prompts.types import Prompts
from promptseg.tables import aligned

MOST_CASES, MOST_SECONDS = 20, 240.0  # so that it takes some minutes
LEAST_CASES = 3  # on fewer the plans' choice is kept

log = logging.getLogger(__name__)


def measure_strategies(
    predictor: Predictor,
    cases: Sequence[RawCase],
    ground_truth: Mapping[str, Path],
    planned: Mapping[str, CasePrompts],
) -> dict[str, Any]:
    """Predict cases by the labels' names, as planned, and by the network's own prompts.

    Begins no further case after `MOST_SECONDS` once `LEAST_CASES` are measured. Logs a table.

    Args:
        predictor: of a fold that was not trained on these cases; its image is replaced.
        cases: at most `MOST_CASES` of them are predicted.
        ground_truth: segmentation file of each case.
        planned: for each case the prompts of the plans' strategies, fitted without it.

    Returns:
        The identifiers of the `cases`; `dice`, for each label the mean of each strategy over the
        cases that have the label, if these are `LEAST_CASES`; `seconds`, the mean of each strategy
        a case. The last two are empty if fewer than `LEAST_CASES` were measured.
    """
    labels, began = predictor.plans.labels, time.monotonic()
    dice: dict[str, dict[str, list[float]]] = {label: defaultdict(list) for label in labels}
    seconds: dict[str, list[float]] = defaultdict(list)
    done: list[str] = []
    for case in evenly(cases, MOST_CASES):
        if len(done) >= LEAST_CASES and time.monotonic() - began > MOST_SECONDS:
            break
        segmentation, _ = read_segmentation(ground_truth[case.case_id])
        try:
            predicted = list(_predicted(predictor, case, planned[case.case_id]))
        except (ValueError, OSError):  # told when all cases are predicted
            continue
        for strategy, found, spent in predicted:
            counts = confusion_counts(
                segmentation, found, list(labels.values()), predictor.plans.ignore_label
            )
            for label, value in labels.items():
                planned_for = predictor.proposer.planned_strategy(label)
                name = planned_for if strategy == PLANS else strategy
                if name == "none":  # as by name
                    continue
                seconds[name].append(spent)
                if counts[value].tp + counts[value].fn:  # the same cases for every strategy
                    dice[label][name].append(counts[value].dice)
        done.append(case.case_id)
    return _means(done, dice, seconds)


def _means(
    done: list[str],
    dice: Mapping[str, Mapping[str, list[float]]],
    seconds: Mapping[str, list[float]],
) -> dict[str, Any]:
    if len(done) < LEAST_CASES:
        log.info(
            "Prompts follow the plans: only %d validation case(s) could be predicted, and %d are "
            "needed to tell which prompts lead to the best masks.",
            len(done),
            LEAST_CASES,
        )
        return {"cases": done, "dice": {}, "seconds": {}}
    measured = {
        "cases": done,
        "dice": {
            label: {strategy: float(np.mean(values)) for strategy, values in of_label.items()}
            for label, of_label in dice.items()
            if of_label and len(next(iter(of_label.values()))) >= LEAST_CASES
        },
        "seconds": {strategy: float(np.mean(spent)) for strategy, spent in seconds.items()},
    }
    for line in table(measured):
        log.info("%s", line)
    return measured


def _predicted(
    predictor: Predictor, case: RawCase, planned: CasePrompts
) -> Iterator[tuple[str, np.ndarray, float]]:
    """Each strategy, the label map that it leads to, and the seconds that it took."""
    labels, proposer = list(predictor.plans.labels), predictor.proposer
    has_planned = any(proposer.planned_strategy(label) != "none" for label in labels)
    for strategy in (NAME, PLANS, COARSE, HYBRID) if has_planned else (NAME, COARSE):
        prepared, geometry = predictor.prepare_files(case.images)  # nothing is encoded yet
        began = time.monotonic()
        predictor.set_prepared(prepared)
        prompts: Mapping[str, Prompts] = {}
        if strategy in (PLANS, HYBRID):
            prompts = planned.on(geometry)
        if strategy in (COARSE, HYBRID):
            prompts = proposer.ask_network(prepared, labels, strategy, prompts)
        found = predictor.predict_prompts(prompts, labels=labels).segmentation
        yield strategy, found, time.monotonic() - began


def table(measured: Mapping[str, Any]) -> list[str]:
    """The lines of a table of what `measure_strategies` returns."""
    strategies = list(measured["seconds"])
    rows = [
        [label, *(f"{of_label[s]:.4f}" if s in of_label else "-" for s in strategies)]
        for label, of_label in measured["dice"].items()
    ]
    rows.append(["seconds a case", *(f"{measured['seconds'][s]:.2f}" for s in strategies)])
    return aligned([["Dice by", *strategies], *rows])
