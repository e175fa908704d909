"""The summary of an evaluation as a table for the terminal."""

from __future__ import annotations

from typing import Any

from promptseg.tables import aligned

_WORST = 3


def format_table(summary: dict[str, Any]) -> str:
    """Lay out the means per label, the worst cases, and all warnings and failures.

    Args:
        summary: what `evaluate_folders` returned, or the content of `summary.json`.
    """
    count = len(summary["metric_per_case"])
    header = ["label", "Dice", "IoU", "box IoU", "reference ml", "predicted ml", "cases", "no Dice"]
    rows = [
        [
            summary["labels"][label],
            *_columns(mean),
            str(count),
            str(summary["undefined"][label]["Dice"]),
        ]
        for label, mean in summary["mean"].items()
    ]
    undefined = sum(by_label["Dice"] for by_label in summary["undefined"].values())
    total = ["mean", *_columns(summary["foreground_mean"]), str(count), str(undefined)]
    first, *middle, last = aligned([header, *rows, total])
    rule = "-" * len(first)
    lines = [first, rule, *middle, rule, last]
    if undefined:
        lines.append(
            f"no Dice: {undefined} times a label was in neither segmentation; left out of the means"
        )
    if worst := _worst_cases(summary):
        lines.append("worst:  " + ";  ".join(worst))
    lines += [f"warning: {message}" for message in summary["warnings"]]
    if summary["failures"]:
        lines.append(f"{len(summary['failures'])} problems:")
        lines += [f"  - {message}" for message in summary["failures"]]
    return "\n".join(lines)


def _columns(mean: dict[str, Any]) -> list[str]:
    overlaps = [_number(mean[key], "{:.3f}") for key in ("Dice", "IoU", "box_iou")]
    volumes = [
        _number(mean[key], "{:.1f}") for key in ("volume_ml_reference", "volume_ml_prediction")
    ]
    return overlaps + volumes


def _worst_cases(summary: dict[str, Any]) -> list[str]:
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
