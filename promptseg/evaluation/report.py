"""The summary of an evaluation as a table for the terminal, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from promptseg.evaluation.inputs import nsd_keys, tolerance_of
from promptseg.tables import aligned

WIDTH = 100
_WORST = 3
_MOST_NSD = 2  # columns
_LEGEND = (
    "means over n cases; 95 %: interval of the mean; median: of Dice; NSD at a tolerance in mm;",
    "HD95, ASSD: mm; vol %: error of the volume; F1: of components that share a voxel",
)


def format_table(summary: Mapping[str, Any]) -> str:
    """Lay out the means per label, the worst cases, and all warnings and failures.

    Args:
        summary: what `evaluate_folders` returned, or the content of `summary.json`.
    """
    means = summary["mean"]
    shared = [
        key
        for key in nsd_keys(summary["foreground_mean"])
        if all(key in mean for mean in means.values())
    ]
    columns = {
        "Dice": ("Dice", "{:.3f}"),
        **{f"NSD {tolerance_of(key):g}": (key, "{:.3f}") for key in shared[:_MOST_NSD]},
        "HD95": ("hd95_mm", "{:.1f}"),
        "ASSD": ("assd_mm", "{:.2f}"),
        "vol %": ("volume_error_relative", "{:+.1%}"),
        "F1": ("lesion_f1", "{:.3f}"),
    }
    if _is_number(summary["foreground_mean"].get("box_iou")):
        columns["box IoU"] = ("box_iou", "{:.3f}")
    header = ["label", "n", *columns]
    header[3:3] = ["95 %", "median"]
    rows = []
    for label, mean in means.items():
        n = len(summary["metric_per_case"]) - summary["undefined"][label]["Dice"]
        interval = summary["interval_95"][label]["Dice"]
        median = summary["median"][label]["Dice"]
        rows.append([summary["labels"][label], n, *_cells(mean, columns, interval, median)])
    interval = summary["foreground_interval_95"].get("Dice")
    overall = _cells(summary["foreground_mean"], columns, interval, None)
    table = _fitted([header, *rows, ["mean", "", *overall]])
    first, *middle, last = table
    rule = "-" * max(map(len, table))
    lines = [first, rule, *middle, rule, last, *_LEGEND]
    lines += _other_tolerances(summary, shared[:_MOST_NSD])
    lines += _empty_masks(summary["empty_masks"])
    if worst := _worst_cases(summary):
        lines.append("worst:  " + ";  ".join(worst))
    lines += [f"warning: {message}" for message in summary["warnings"]]
    if summary["failures"]:
        lines.append(f"{len(summary['failures'])} problems:")
        lines += [f"  - {message}" for message in summary["failures"]]
    return "\n".join(lines)


def _cells(
    mean: Mapping[str, Any],
    columns: Mapping[str, tuple[str, str]],
    interval: list | None,
    median: float | None,
) -> list[str]:
    cells = [_number(mean.get(key), form) for key, form in columns.values()]
    low, high = interval or (None, None)
    limits = f"{low:.3f}-{high:.3f}" if _is_number(low) else "-"
    cells[1:1] = [limits, _number(median, "{:.3f}")]
    return [cell.removesuffix("%") for cell in cells]


def _fitted(rows: list[list[Any]]) -> list[str]:
    """The lines of a table whose first column, of names, is cut so that it fits."""
    lines = aligned(rows)
    longest = max(len(str(row[0])) for row in rows)
    room = longest - max(0, max(map(len, lines)) - WIDTH)
    if room < longest:
        for row in rows:
            row[0] = row[0] if len(row[0]) <= room else f"{row[0][: room - 3]}..."
        lines = aligned(rows)
    return lines


def _other_tolerances(summary: Mapping[str, Any], shown: list[str]) -> list[str]:
    """What has no column: labels with tolerances of their own, and further ones."""
    lines = []
    for label, mean in summary["mean"].items():
        keys = [key for key in nsd_keys(mean) if key not in shown]
        if keys:
            found = ", ".join(
                f"{_number(mean[key], '{:.3f}')} at {tolerance_of(key):g} mm" for key in keys
            )
            lines.append(f"NSD of {summary['labels'][label]}: {found}")
    return lines


def _empty_masks(of_labels: Mapping[str, Mapping[str, int]]) -> list[str]:
    """How often a label was in one or neither of the segmentations, and how that counts."""
    kinds = ("both", "only_prediction_empty", "only_reference_empty")
    neither, missed, invented = (sum(of[kind] for of in of_labels.values()) for kind in kinds)
    lines = []
    if neither:
        lines.append(f"a label in neither segmentation: {neither} times, left out")
    if missed or invented:
        lines += [
            f"in only one of them: {missed} missed, {invented} invented; Dice, NSD and F1 are 0,",
            "HD95 and ASSD the diagonal of the image",
        ]
    return lines


def _worst_cases(summary: Mapping[str, Any]) -> list[str]:
    scored = [
        (row["metrics"][label]["Dice"], row["case"], name)
        for row in summary["metric_per_case"]
        for label, name in summary["labels"].items()
        if _is_number(row["metrics"][label]["Dice"])
    ]
    return [f"{case} {name} {value:.3f}" for value, case, name in sorted(scored)[:_WORST]]


def _number(value: float | None, form: str) -> str:
    return form.format(value) if _is_number(value) else "-"


def _is_number(value: float | None) -> bool:
    return value is not None and value == value
