"""Two folders of segmentations to one row a case and label, the means, and what went wrong."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.evaluation.metrics import (
    Confusion,
    bounding_box,
    box_iou,
    confusion_counts,
    enclosing_box,
    volume_ml,
)
from promptseg.evaluation.report import format_table
from promptseg.files import read_json, replacing, write_json
from promptseg.image_io import file_ending, read_segmentation
from promptseg.parallel import map_cases

__all__ = ["evaluate_folders", "format_table"]
logger = logging.getLogger(__name__)

_NNUNET_METRICS = ("Dice", "IoU", "TP", "FP", "FN", "TN", "n_pred", "n_ref")
_OUR_METRICS = ("volume_ml_reference", "volume_ml_prediction", "box_iou")
_CSV_COLUMNS = ("case", "label", "name", "dice", "iou", *_OUR_METRICS, "prompt_source")


def evaluate_folders(
    ground_truth: Path | str,
    predictions: Path | str,
    *,
    labels: dict[str, int] | None = None,
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
    references, several_references = _label_files(ground_truth, "ground truth")
    predicted, several_predicted = _label_files(predictions, "predictions")
    failures = [*several_references.values(), *several_predicted.values()]
    pairs = [(references[case], predicted[case]) for case in sorted(references.keys() & predicted)]
    if not pairs:
        raise ValueError(
            f"no case is in both folders: {ground_truth} has {_some(references)}, {predictions} "
            f"has {_some(predicted)}; the names without ending must agree"
        )
    missing = sorted(references.keys() - predicted.keys() - several_predicted.keys())
    if missing and not missing_ok:
        failures.append(f"cases without prediction ({len(missing)}): {', '.join(missing)}")
    warnings = []
    if unmatched := sorted(predicted.keys() - references.keys() - several_references.keys()):
        warnings.append(f"predictions without ground truth, not evaluated: {', '.join(unmatched)}")

    if labels is None:
        labels = _labels_of_dataset(ground_truth, predictions)
    names, ignore_label = _names_by_value(labels) if labels else (None, None)
    prompts, problem = _read_prompts(predictions)
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
        case = _case_id(reference_file)
        if error is not None:
            broken[case] = f"case {case!r}: {error}"
        else:
            rows[case] = row
    failures += [broken[case] for case in sorted(broken)]
    cases = [rows[case] for case in sorted(rows)]
    warnings += [message for row in cases for message in row.pop("warnings")]
    if names is None:
        names = {value: str(value) for row in cases for value in row["metrics"]}
        names = dict(sorted(names.items()))
        _add_absent_labels(cases, names, prompts)
    summary = {**_means(cases, names), "missing": missing}
    summary |= {"warnings": warnings, "failures": failures}
    write_json(predictions / "summary.json", summary)
    _write_csv(predictions / "metrics.csv", cases, names)
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
    case, warnings = _case_id(reference_file), []
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
            truth = bounding_box(reference == label)
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


def _means(cases: list[dict], names: dict[int, str]) -> dict[str, Any]:
    """nnU-Net's summary of the cases, with the number of undefined values beside the means."""
    mean, undefined = {}, {}
    for label in names:
        values = {
            metric: [row["metrics"][label][metric] for row in cases]
            for metric in (*_NNUNET_METRICS, *_OUR_METRICS)
        }
        mean[str(label)] = {metric: _mean(column) for metric, column in values.items()}
        undefined[str(label)] = {
            metric: int(np.isnan(values[metric]).sum()) for metric in ("Dice", "box_iou")
        }
    return {
        "foreground_mean": {
            metric: _mean([row[metric] for row in mean.values()])
            for metric in (*_NNUNET_METRICS, *_OUR_METRICS)
        },
        "mean": mean,
        "metric_per_case": [
            {
                "case": row["case"],
                "metrics": {str(label): row["metrics"][label] for label in names},
                "prediction_file": row["prediction_file"],
                "reference_file": row["reference_file"],
            }
            for row in cases
        ],
        "labels": {str(label): name for label, name in names.items()},
        "undefined": undefined,
    }


def _mean(values: Sequence[float]) -> float:
    """The mean without NaN; NaN when nothing is left."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _write_csv(path: Path, cases: list[dict], names: dict[int, str]) -> None:
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _CSV_COLUMNS)
        writer.writeheader()
        for row in cases:
            for label, name in names.items():
                numbers = row["metrics"][label]
                line = {"dice": numbers["Dice"], "iou": numbers["IoU"]}
                line |= {key: numbers[key] for key in _OUR_METRICS}
                line = {k: "" if np.isnan(v) else f"{v:.6g}" for k, v in line.items()}
                line |= {"case": row["case"], "label": label, "name": name}
                writer.writerow(line | {"prompt_source": numbers["prompt_source"] or ""})


def _label_files(folder: Path, what: str) -> tuple[dict[str, Path], dict[str, str]]:
    """The label file of each case; a sentence for each case that has several instead."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{what}: there is no folder {folder.absolute()}")
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and path.is_file() and file_ending(path):
            files.setdefault(_case_id(path), []).append(path)
    if not files:
        there = _some([path.name for path in sorted(folder.iterdir())])
        raise FileNotFoundError(
            f"{what}: {folder.absolute()} has no label file (such as case.nii.gz), only {there}"
        )
    several = {
        case: f"case {case!r}: {what} has several files: {', '.join(p.name for p in paths)}; "
        f"keep one"
        for case, paths in files.items()
        if len(paths) > 1
    }
    return {case: paths[0] for case, paths in files.items() if len(paths) == 1}, several


def _labels_of_dataset(ground_truth: Path, predictions: Path) -> dict[str, int] | None:
    for path in (predictions / "dataset.json", ground_truth.parent / "dataset.json"):
        if path.is_file():
            labels = read_json(path).get("labels")
            if not isinstance(labels, dict):
                raise ValueError(f"{path}: expected an object `labels` of names and values")
            return labels
    return None


def _names_by_value(labels: dict[str, int]) -> tuple[dict[int, str], int | None]:
    """Foreground names by value, and the value to ignore."""
    for name, value in labels.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ValueError(
                f"label {name!r}: expected one whole number, found {value!r}; labels made of "
                f"several values (regions) cannot be evaluated"
            )
    ignore_label = labels.get("ignore")
    foreground = {value: name for name, value in labels.items() if value not in (0, ignore_label)}
    return dict(sorted(foreground.items())), ignore_label


def _read_prompts(predictions: Path) -> tuple[dict[str, dict], list[str]]:
    """Prompts by case and label name, or none of them and a sentence about what is wrong."""
    path = predictions / "prompts_used.json"
    if not path.is_file():
        return {}, []
    try:
        content = read_json(path)
        frame = {key: content.get(key) for key in ("format_version", "frame", "axes")}
        expected = {"format_version": 1, "frame": "voxel", "axes": "zyx"}
        if frame != expected:
            raise ValueError(f"{path}: expected {expected}, found {frame}")
        for case, by_label in content["cases"].items():
            for name, used in by_label.items():
                for box in used.get("boxes", []):
                    if np.asarray(box, float).shape != (2, 3):
                        raise ValueError(
                            f"{path}: case {case!r}, label {name!r}: a box is "
                            f"[[z, y, x], [z, y, x]], found {box}"
                        )
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        return {}, [f"box IoU left out, prompts_used.json cannot be used: {error!s}"]
    return content["cases"], []


def _case_id(path: Path) -> str:
    return path.name[: -len(file_ending(path))]


def _some(names: Any) -> str:
    """A few of many names."""
    names = list(names)
    return (", ".join(names[:5]) + (", ..." if len(names) > 5 else "")) or "nothing"
