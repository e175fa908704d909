"""The figures of all cases as nnU-Net's summary and as a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.files import replacing

_NNUNET_METRICS = ("Dice", "IoU", "TP", "FP", "FN", "TN", "n_pred", "n_ref")
_OUR_METRICS = ("volume_ml_reference", "volume_ml_prediction", "box_iou")
_CSV_COLUMNS = ("case", "label", "name", "dice", "iou", *_OUR_METRICS, "prompt_source")


def summarize(cases: list[dict], names: dict[int, str]) -> dict[str, Any]:
    """nnU-Net's summary of the cases, and how many undefined values each mean leaves out."""
    mean, undefined = {}, {}
    for label in names:
        values = {
            metric: [row["metrics"][label][metric] for row in cases]
            for metric in (*_NNUNET_METRICS, *_OUR_METRICS)
        }
        mean[str(label)] = {metric: mean_of_defined(column) for metric, column in values.items()}
        undefined[str(label)] = {
            metric: int(np.isnan(values[metric]).sum()) for metric in ("Dice", "box_iou")
        }
    return {
        "foreground_mean": {
            metric: mean_of_defined([row[metric] for row in mean.values()])
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


def mean_of_defined(values: Sequence[float]) -> float:
    """The mean of the values that are not NaN; NaN if there are none."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def write_csv(path: Path, cases: list[dict], names: dict[int, str]) -> None:
    """Write one row per case and label; undefined figures are left empty."""
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
