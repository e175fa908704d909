"""Compare two folders of segmentations: figures per case and label, their means, and problems."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from promptseg.evaluation.case import evaluate_case, figures, prompt_figures
from promptseg.evaluation.inputs import (
    Tolerances,
    case_id_of,
    labels_of_dataset,
    match_cases,
    names_by_value,
    read_prompts,
)
from promptseg.evaluation.metrics import Confusion
from promptseg.evaluation.report import format_table
from promptseg.evaluation.summary import summarize, write_csv
from promptseg.files import write_json
from promptseg.labels import Values
from promptseg.parallel import map_cases

__all__ = ["Tolerances", "evaluate_folders", "format_table"]
logger = logging.getLogger(__name__)


def evaluate_folders(
    ground_truth: Path | str,
    predictions: Path | str,
    *,
    output: Path | str | None = None,
    labels: Mapping[str, int | list[int]] | None = None,
    cases: Sequence[str] | None = None,
    tolerances: Tolerances | None = None,
    processes: int = 0,
    missing_ok: bool = False,
    box_plots: bool = False,
) -> dict[str, Any]:
    """Compare predictions with the ground truth, case by case and label by label.

    Cases are matched by file name without its ending, so `a.nii.gz` is compared with `a.nrrd`; the
    axes of the two may lie in another order or the other way. Writes `summary.json` and
    `metrics.csv`. More parameters than usual: each is an independent keyword with a default.
    Longer than usual: most of it is this text.

    Args:
        ground_truth: folder of label files.
        predictions: folder of label files; a `prompts_used.json` in it adds box IoU and recall of
            the prompts.
        output: folder to write to; that of the predictions when not given.
        labels: value of each label by name, or values of a region, as in dataset.json, where
            `background` and `ignore` are special; by default those of `dataset.json` in the
            predictions folder or beside the ground truth, or else all values found.
        cases: identifiers of the cases to evaluate; by default all that have ground truth.
        tolerances: of the normalized surface Dice; 1 and 2 mm when not given.
        processes: number of worker processes; 0 evaluates in this process.
        missing_ok: whether cases without a prediction are accepted instead of being failures.
        box_plots: whether to draw `metrics.png` too.

    Returns:
        The content of `summary.json`, with NaN where the file has null: nnU-Net's keys
        `foreground_mean`, `mean` and `metric_per_case`, and `median`, `interval_95`,
        `foreground_interval_95`, `labels` (name by value), `undefined` (number of NaN left out of
        each mean), `empty_masks`, `definitions`, `missing` (cases without a prediction), `warnings`
        and `failures` (one sentence each; no failures if all went well).

    Raises:
        FileNotFoundError: if a folder is missing or contains no label file.
        ValueError: if a label value is not a whole number, no case is in both folders, or
            tolerances are of no label.

    Source:
        nnU-Net's `evaluate_predictions.py` for the format. Differs: the foreground mean leaves
        out labels that are undefined in every case, and the file has null in place of NaN.
    """
    ground_truth, predictions = Path(ground_truth), Path(predictions)
    output = predictions if output is None else Path(output)
    tolerances = tolerances or Tolerances()
    matched = match_cases(ground_truth, predictions, cases, missing_ok=missing_ok)
    if labels is None:
        labels = labels_of_dataset(ground_truth, predictions)
    names, ignore_label = names_by_value(labels) if labels else (None, None)
    if names is not None:
        tolerances.check(names.values())
    prompts, problems = read_prompts(predictions)
    shared = (names, ignore_label, prompts, tolerances)
    rows, broken = _evaluate_pairs(matched.pairs, shared, processes)
    if names is None:
        names = _label_every_case(rows, prompts, tolerances)
    warnings = [*matched.warnings, *(message for row in rows for message in row["warnings"])]
    summary = {**summarize(rows, names), "missing": matched.missing, "warnings": warnings}
    summary["failures"] = [*matched.failures, *problems, *broken]
    write_json(output / "summary.json", summary)
    write_csv(output / "metrics.csv", rows, names)
    if box_plots and rows:
        from promptseg.evaluation.box_plots import draw_box_plots  # brings matplotlib

        draw_box_plots(output / "metrics.png", summary)
    for message in warnings:
        logger.warning(message)
    return summary


def _evaluate_pairs(
    pairs: Sequence[tuple[Path, Path]], shared: tuple, processes: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """The results of the cases and what is wrong with the others, both ordered by identifier."""
    rows, broken = {}, {}
    outcomes = map_cases(
        evaluate_case, pairs, *shared, processes=processes, description="evaluating"
    )
    for (reference_file, _), row, error in outcomes:
        case = case_id_of(reference_file)
        if error is not None:
            broken[case] = f"case {case!r}: {error}"
        else:
            rows[case] = row
    return [rows[case] for case in sorted(rows)], [broken[case] for case in sorted(broken)]


def _label_every_case(
    rows: list[dict], prompts: Mapping[str, Mapping], tolerances: Tolerances
) -> dict[Values, str]:
    """Give every case an entry for labels that only others have; the names of all, by value.

    Raises:
        ValueError: for tolerances of no label.
    """
    names = {value: str(value) for value in sorted({v for row in rows for v in row["metrics"]})}
    tolerances.check(names.values())
    for row in rows:
        for label in names.keys() - row["metrics"].keys():
            nothing = Confusion(tp=0, fp=0, fn=0, tn=math.prod(row["geometry"].shape))
            used = prompts.get(row["case"], {}).get(names[label], {})
            found = figures(nothing, None, row["geometry"], tolerances.of(names[label]))
            row["metrics"][label] = found | prompt_figures(used)
        row["metrics"] = {label: row["metrics"][label] for label in names}
    return names
