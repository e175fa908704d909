"""The figures of all cases as nnU-Net's summary, with more about them, and as a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.files import replacing
from promptseg.labels import Values

RESAMPLES, SEED = 2000, 12345  # of the bootstrap
_COUNTS = ("TP", "FP", "FN", "TN", "n_pred", "n_ref")
_CSV_NAMES = {"Dice": "dice", "IoU": "iou"}  # others have the same name in both files

DEFINITIONS = {
    "cases": "Means, medians and intervals are over the cases in which a figure is defined; "
    "`undefined` counts the others. The foreground mean is the mean of the labels' means.",
    "empty masks": "A label in neither segmentation has no figures but counts and volumes. A label "
    "in only one has Dice, IoU, NSD and lesion F1 0, and as HD95 and ASSD the diagonal of the "
    "image. `empty_masks` counts both.",
    "interval": f"Percentile bootstrap over cases: 95 % of the means of {RESAMPLES} resamples "
    f"(seed {SEED}).",
    "nsd, hd95_mm, assd_mm": "Distances between the surface elements of DeepMind's "
    "surface-distance, weighted by area: fraction within the tolerance; the larger 95th percentile "
    "of the two surfaces; mean over both.",
    "volume_error": "In ml the absolute difference; relative (prediction - reference) / reference.",
    "lesions": "26-connected components. One of the reference is found, and one of the prediction "
    "right, if it shares a voxel with the other segmentation.",
    "box": "The prompts' boxes: IoU of the box around them with the one around the label; recall, "
    "the fraction of the label's voxels in them.",
}


def summarize(cases: Sequence[Mapping], names: Mapping[Values, str]) -> dict[str, Any]:
    """nnU-Net's summary of the cases, medians, intervals, and what is undefined.

    Args:
        cases: what `evaluate_case` returns of each.
        names: of the labels by value.
    """
    values = {label: _table(cases, label) for label in names}
    means = {label: _means(table) for label, table in values.items()}
    resampled = _resampled_means(values, len(cases))
    keys = list(dict.fromkeys(key for table in values.values() for key in table))
    of_labels = {key: [means[label].get(key, np.nan) for label in names] for key in keys}
    # as often as the cases are drawn, the mean of the labels' means is taken
    overall = {
        key: _mean([found[key] for found in resampled.values() if key in found]) for key in keys
    }
    return {
        "foreground_mean": {key: mean_of_defined(column) for key, column in of_labels.items()},
        "foreground_interval_95": _intervals(overall),
        "mean": {str(label): means[label] for label in names},
        "median": {
            str(label): {key: _median(column) for key, column in values[label].items()}
            for label in names
        },
        "interval_95": {str(label): _intervals(resampled[label]) for label in names},
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
        "undefined": {
            str(label): {
                key: int(np.isnan(column).sum())
                for key, column in values[label].items()
                if key not in _COUNTS
            }
            for label in names
        },
        "empty_masks": {str(label): _empty_masks(values[label]) for label in names},
        "definitions": DEFINITIONS,
    }


def mean_of_defined(values: Sequence[float]) -> float:
    """The mean of the values that are not NaN; NaN if there are none."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def write_csv(path: Path, cases: Sequence[Mapping], names: Mapping[Values, str]) -> None:
    """Write one row per case and label; undefined figures are left empty.

    The columns are those of all labels together: tolerances may differ.
    """
    keys = [key for label in names for key in _table(cases, label) if key not in _COUNTS]
    columns = [_CSV_NAMES.get(key, key) for key in dict.fromkeys(keys)]
    header = ["case", "label", "name", *columns, "prompt_source"]
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header, extrasaction="ignore", restval="")
        writer.writeheader()
        for row in cases:
            for label, name in names.items():
                numbers = dict(row["metrics"][label])
                source = numbers.pop("prompt_source")
                line = {
                    _CSV_NAMES.get(key, key): "" if np.isnan(value) else f"{value:.6g}"
                    for key, value in numbers.items()
                }
                line |= {"case": row["case"], "label": label, "name": name}
                writer.writerow(line | {"prompt_source": source or ""})


def _table(cases: Sequence[Mapping], label: Values) -> dict[str, np.ndarray]:
    """Every figure of a label, over the cases."""
    rows = [row["metrics"][label] for row in cases]
    keys = rows[0] if rows else ("Dice", "IoU", *_COUNTS)
    return {
        key: np.array([row[key] for row in rows], float) for key in keys if key != "prompt_source"
    }


def _means(table: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {key: mean_of_defined(column) for key, column in table.items()}


def _median(column: np.ndarray) -> float:
    defined = column[~np.isnan(column)]
    return float(np.median(defined)) if len(defined) else float("nan")


def _resampled_means(
    values: Mapping[Values, Mapping[str, np.ndarray]], count: int
) -> dict[Values, dict[str, np.ndarray]]:
    """For each label and figure its (`RESAMPLES`,) means over cases drawn with replacement.

    All of them see the same draws. NaN where fewer than two cases define a figure.
    """
    times = np.zeros((RESAMPLES, 0))  # that each case is drawn
    if count:
        rng = np.random.default_rng(SEED)
        times = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(float)
    found = {}
    for label, table in values.items():
        columns = np.stack([*table.values()], axis=1)
        defined = ~np.isnan(columns)
        defined &= defined.sum(axis=0) > 1
        with np.errstate(invalid="ignore"):
            means = times @ np.where(defined, columns, 0) / (times @ defined)
        found[label] = dict(zip(table, means.T, strict=True))
    return found


def _mean(columns: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of several columns, in each row of those that are defined there."""
    defined = ~np.isnan(columns)
    with np.errstate(invalid="ignore"):
        return np.where(defined, columns, 0).sum(axis=0) / defined.sum(axis=0)


def _intervals(resampled: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    found = {}
    for key, column in resampled.items():
        defined = column[~np.isnan(column)]
        limits = np.percentile(defined, (2.5, 97.5)) if len(defined) else (np.nan, np.nan)
        found[key] = [float(limit) for limit in limits]
    return found


def _empty_masks(table: Mapping[str, np.ndarray]) -> dict[str, int]:
    """In how many cases a label is in neither segmentation, or in only one of them."""
    no_reference, no_prediction = (table.get(key, np.ones(0)) == 0 for key in ("n_ref", "n_pred"))
    return {
        "both": int((no_reference & no_prediction).sum()),
        "only_prediction_empty": int((no_prediction & ~no_reference).sum()),
        "only_reference_empty": int((no_reference & ~no_prediction).sum()),
    }
