"""Compare two folders of segmentations: figures per case and label, their means, and problems."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.boxes import box_iou, enclosing_box, value_box
from promptseg.evaluation.inputs import (
    case_id_of,
    labels_of_dataset,
    match_cases,
    names_by_value,
    read_prompts,
)
from promptseg.evaluation.metrics import Confusion, confusion_counts, volume_ml
from promptseg.evaluation.report import format_table
from promptseg.evaluation.summary import summarize, write_csv
from promptseg.files import write_json
from promptseg.io.images import read_segmentation
from promptseg.labels import Values, all_members
from promptseg.parallel import map_cases

__all__ = ["evaluate_folders", "format_table"]
logger = logging.getLogger(__name__)


def evaluate_folders(
    ground_truth: Path | str,
    predictions: Path | str,
    *,
    labels: Mapping[str, int | list[int]] | None = None,
    cases: Sequence[str] | None = None,
    processes: int = 0,
    missing_ok: bool = False,
) -> dict[str, Any]:
    """Compare predictions with the ground truth, case by case and label by label.

    Cases are matched by file name without its ending, so `a.nii.gz` is compared with `a.nrrd`.
    Writes `summary.json` and `metrics.csv` into the predictions folder.

    Args:
        ground_truth: folder of label files.
        predictions: folder of label files; a `prompts_used.json` in it adds the box IoU of the
            prompts.
        labels: value of each label by name, or values of a region, as in dataset.json, where
            `background` and `ignore` are special; by default those of `dataset.json` in the
            predictions folder or beside the ground truth, or else all values found.
        cases: identifiers of the cases to evaluate; by default all that have ground truth.
        processes: number of worker processes; 0 evaluates in this process.
        missing_ok: whether cases without a prediction are accepted instead of being failures.

    Returns:
        The content of `summary.json`, with NaN where the file has null: nnU-Net's keys
        `foreground_mean`, `mean` and `metric_per_case`, and `labels` (name by value), `undefined`
        (number of NaN left out of each mean), `missing` (cases without a prediction), `warnings`
        and `failures` (one sentence each; no failures if all went well).

    Raises:
        FileNotFoundError: if a folder is missing or contains no label file.
        ValueError: if a label value is not a whole number, or no case is in both folders.

    Source:
        nnU-Net's `evaluate_predictions.py` for the format. Differs: the foreground mean leaves
        out labels that are undefined in every case, and the file has null in place of NaN.
    """
    ground_truth, predictions = Path(ground_truth), Path(predictions)
    matched = match_cases(ground_truth, predictions, cases, missing_ok=missing_ok)
    if labels is None:
        labels = labels_of_dataset(ground_truth, predictions)
    names, ignore_label = names_by_value(labels) if labels else (None, None)
    prompts, problems = read_prompts(predictions)
    rows, broken = _evaluate_pairs(matched.pairs, names, ignore_label, prompts, processes)
    if names is None:
        names = _label_every_case(rows, prompts)
    warnings = [*matched.warnings, *(message for row in rows for message in row["warnings"])]
    summary = {**summarize(rows, names), "missing": matched.missing, "warnings": warnings}
    summary["failures"] = [*matched.failures, *problems, *broken]
    write_json(predictions / "summary.json", summary)
    write_csv(predictions / "metrics.csv", rows, names)
    for message in warnings:
        logger.warning(message)
    return summary


def _evaluate_pairs(
    pairs: Sequence[tuple[Path, Path]],
    names: dict[Values, str] | None,
    ignore_label: int | None,
    prompts: dict[str, dict],
    processes: int,
) -> tuple[list[dict[str, Any]], list[str]]:
    """The results of the cases and what is wrong with the others, both ordered by identifier."""
    rows, broken = {}, {}
    shared = (names, ignore_label, prompts)
    outcomes = map_cases(
        _evaluate_case, pairs, *shared, processes=processes, description="evaluating"
    )
    for (reference_file, _), row, error in outcomes:
        case = case_id_of(reference_file)
        if error is not None:
            broken[case] = f"case {case!r}: {error}"
        else:
            rows[case] = row
    return [rows[case] for case in sorted(rows)], [broken[case] for case in sorted(broken)]


def _evaluate_case(
    files: tuple[Path, Path],
    names: dict[Values, str] | None,
    ignore_label: int | None,
    prompts: dict[str, dict],
) -> dict[str, Any]:
    """All figures of one case; runs in a worker process."""
    reference_file, prediction_file = files
    reference, geometry = read_segmentation(reference_file)
    prediction, predicted_geometry = read_segmentation(prediction_file)
    if difference := geometry.difference_from(predicted_geometry):
        raise ValueError(
            f"{reference_file} and {prediction_file} must lie on one voxel grid but differ: "
            f"{difference}; predict on the image that the ground truth belongs to"
        )
    case, warnings = case_id_of(reference_file), []
    found = sorted({int(v) for array in (reference, prediction) for v in np.unique(array)} - {0})
    if names is None:
        names = {value: str(value) for value in found}
    known = {ignore_label, *all_members(names)}
    if unknown := [value for value in found if value not in known]:
        warnings.append(f"case {case!r}: values {unknown} are not labels and count as background")
    metrics = {}
    for label, counts in confusion_counts(reference, prediction, [*names], ignore_label).items():
        used = prompts.get(case, {}).get(names[label], {})
        metrics[label] = _numbers(counts, geometry.spacing, used.get("source"))
        if (box := enclosing_box(used.get("boxes", []))) is not None:
            tight = value_box(reference, label)
            metrics[label]["box_iou"] = float("nan") if tight is None else box_iou(tight, box)
    return {
        "case": case,
        "metrics": metrics,
        "prediction_file": str(prediction_file),
        "reference_file": str(reference_file),
        "spacing": geometry.spacing,
        "warnings": warnings,
    }


def _numbers(counts: Confusion, spacing: Sequence[float], source: str | None) -> dict[str, Any]:
    n_ref, n_pred = counts.tp + counts.fn, counts.tp + counts.fp
    return {
        "Dice": counts.dice,
        "IoU": counts.iou,
        "TP": counts.tp,
        "FP": counts.fp,
        "FN": counts.fn,
        "TN": counts.tn,
        "n_pred": n_pred,
        "n_ref": n_ref,
        "volume_ml_reference": volume_ml(n_ref, spacing),
        "volume_ml_prediction": volume_ml(n_pred, spacing),
        "box_iou": float("nan"),
        "prompt_source": source,
    }


def _label_every_case(rows: list[dict], prompts: dict) -> dict[int, str]:
    """Give every case an entry for labels that only others have; the names of all, by value."""
    names = {value: str(value) for value in sorted({v for row in rows for v in row["metrics"]})}
    for row in rows:
        for label in names.keys() - row["metrics"].keys():
            other = next(iter(row["metrics"].values()), None)
            voxels = sum(other[key] for key in ("TP", "FP", "FN", "TN")) if other else 0
            source = prompts.get(row["case"], {}).get(names[label], {}).get("source")
            absent = Confusion(tp=0, fp=0, fn=0, tn=voxels)
            row["metrics"][label] = _numbers(absent, row["spacing"], source)
        row["metrics"] = {label: row["metrics"][label] for label in names}
    return names
