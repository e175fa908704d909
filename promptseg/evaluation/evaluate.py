"""Two folders of segmentations to one row a case and label, the means, and what went wrong."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.boxes import box_iou, enclosing_box, mask_box
from promptseg.evaluation.inputs import (
    case_id_of,
    label_files,
    labels_of_dataset,
    names_by_value,
    read_prompts,
)
from promptseg.evaluation.metrics import Confusion, confusion_counts, volume_ml
from promptseg.evaluation.report import format_table
from promptseg.evaluation.summary import summarize, write_csv
from promptseg.files import write_json
from promptseg.io.images import read_segmentation
from promptseg.parallel import map_cases
from promptseg.words import some

__all__ = ["evaluate_folders", "format_table"]
logger = logging.getLogger(__name__)


def evaluate_folders(
    ground_truth: Path | str,
    predictions: Path | str,
    *,
    labels: dict[str, int] | None = None,
    cases: Sequence[str] | None = None,
    processes: int = 0,
    missing_ok: bool = False,
) -> dict[str, Any]:
    """Compare the predictions with the ground truth, case by case and label by label.

    Cases are matched by file name without its ending, so `a.nii.gz` meets `a.nrrd`. Writes
    `summary.json` and `metrics.csv` into the predictions folder.

    Args:
        ground_truth: folder of label files.
        predictions: folder of label files; a `prompts_used.json` in it adds the box IoU of the
            prompts.
        labels: value of each label by name, as in dataset.json; without it, those of
            `dataset.json` in the predictions folder or beside the ground truth, else the values
            found. The labels named `background` (or 0) and `ignore` mean what they mean there.
        cases: identifiers of the cases to evaluate, whatever else the folders hold; by default
            all that have ground truth.
        processes: worker processes; 0 runs in this one.
        missing_ok: whether a case without prediction is no failure.

    Returns:
        The content of `summary.json`, with NaN where a file has null. nnU-Net's keys are
        `foreground_mean`, `mean` and `metric_per_case`. Added are `labels` (name by value),
        `undefined` (NaN left out of each mean), `missing` (cases without prediction),
        `warnings` and `failures` (what could not be evaluated, one sentence each; empty when all
        went well).

    Raises:
        FileNotFoundError: if a folder is missing or has no label file.
        ValueError: if a label of `labels` or dataset.json is no whole number, or no case is in
            both folders.

    Source:
        nnU-Net's `evaluate_predictions.py` for the file's shape. Differs: the foreground mean
        leaves out a label that is undefined in every case instead of becoming NaN, and undefined
        values are null in the file, which is then valid JSON.
    """
    ground_truth, predictions = Path(ground_truth), Path(predictions)
    references, several_references = label_files(ground_truth, "ground truth")
    predicted, several_predicted = label_files(predictions, "predictions")
    if cases is not None:
        references, several_references, predicted, several_predicted = (
            {case: found[case] for case in cases if case in found}
            for found in (references, several_references, predicted, several_predicted)
        )
    failures = [*several_references.values(), *several_predicted.values()]
    pairs = [(references[case], predicted[case]) for case in sorted(references.keys() & predicted)]
    if not pairs:
        asked = "case" if cases is None else f"case among {some(cases)}"
        raise ValueError(
            f"no {asked} is in both folders: {ground_truth} has {some(references)}, {predictions} "
            f"has {some(predicted)}; the names without ending must agree"
        )
    wanted = references.keys() if cases is None else set(cases) - several_references.keys()
    if unknown := sorted(wanted - references.keys()):
        failures.append(f"cases without ground truth ({len(unknown)}): {', '.join(unknown)}")
    missing = sorted(wanted - predicted.keys() - several_predicted.keys())
    if missing and not missing_ok:
        failures.append(f"cases without prediction ({len(missing)}): {', '.join(missing)}")
    warnings = []
    if unmatched := sorted(predicted.keys() - references.keys() - several_references.keys()):
        warnings.append(f"predictions without ground truth, not evaluated: {', '.join(unmatched)}")

    if labels is None:
        labels = labels_of_dataset(ground_truth, predictions)
    names, ignore_label = names_by_value(labels) if labels else (None, None)
    prompts, problem = read_prompts(predictions)
    failures += problem

    rows, broken = {}, {}
    outcomes = map_cases(
        _evaluate_case,
        pairs,
        names,
        ignore_label,
        prompts,
        processes=processes,
        description="evaluating",
    )
    for (reference_file, _), row, error in outcomes:
        case = case_id_of(reference_file)
        if error is not None:
            broken[case] = f"case {case!r}: {error}"
        else:
            rows[case] = row
    failures += [broken[case] for case in sorted(broken)]
    numbers = [rows[case] for case in sorted(rows)]
    warnings += [message for row in numbers for message in row.pop("warnings")]
    if names is None:
        names = {value: str(value) for row in numbers for value in row["metrics"]}
        names = dict(sorted(names.items()))
        _add_absent_labels(numbers, names, prompts)
    summary = {**summarize(numbers, names), "missing": missing}
    summary |= {"warnings": warnings, "failures": failures}
    write_json(predictions / "summary.json", summary)
    write_csv(predictions / "metrics.csv", numbers, names)
    for message in warnings:
        logger.warning(message)
    return summary


def _evaluate_case(
    files: tuple[Path, Path],
    names: dict[int, str] | None,
    ignore_label: int | None,
    prompts: dict[str, dict],
) -> dict[str, Any]:
    """All numbers of one case; runs in a worker."""
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
    elif unknown := [v for v in found if v not in names and v != ignore_label]:
        warnings.append(f"case {case!r}: values {unknown} are no label and count as background")
    metrics = {}
    for label, counts in confusion_counts(reference, prediction, [*names], ignore_label).items():
        used = prompts.get(case, {}).get(names[label], {})
        metrics[label] = _numbers(counts, geometry.spacing, used.get("source"))
        if (box := enclosing_box(used.get("boxes", []))) is not None:
            truth = mask_box(reference == label)
            metrics[label]["box_iou"] = float("nan") if truth is None else box_iou(truth, box)
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


def _add_absent_labels(cases: list[dict], names: dict[int, str], prompts: dict) -> None:
    """Give every case an entry for the labels that only other cases have."""
    for row in cases:
        for label in names.keys() - row["metrics"].keys():
            other = next(iter(row["metrics"].values()), None)
            voxels = sum(other[key] for key in ("TP", "FP", "FN", "TN")) if other else 0
            source = prompts.get(row["case"], {}).get(names[label], {}).get("source")
            absent = Confusion(tp=0, fp=0, fn=0, tn=voxels)
            row["metrics"][label] = _numbers(absent, row["spacing"], source)
        row["metrics"] = {label: row["metrics"][label] for label in names}
