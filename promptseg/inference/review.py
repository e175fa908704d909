"""Which cases a person should look at first."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from promptseg.files import replacing

COLUMNS = ("case", "quality", "label", "reasons")


def review_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a case, worst first.

    A case is as good as its worst label, and a label as its predicted IoU or its agreement,
    whichever is lower; a label with a reason code comes before every label without. Cases that
    failed come first of all; those of which nothing is known (kept from an earlier run without
    a report, or asked for no label) are left out.

    Args:
        report: of `predict_files`.

    Returns:
        Rows of `COLUMNS`: quality in [0, 1] or None, the label it is of, and its reason codes.
    """
    rows = []
    for case_id, entry in report["cases"].items():
        if entry["status"] == "failed":
            rows.append((-1.0, case_id, None, "", f"failed: {entry['error']}"))
        elif entry.get("labels"):
            worst = min(
                (not result["flags"], _quality(result), label, "; ".join(result["flags"]))
                for label, result in entry["labels"].items()
            )
            unflagged, quality, label, reasons = worst
            rows.append((unflagged + quality, case_id, quality, label, reasons))
    return [dict(zip(COLUMNS, row[1:], strict=True)) for row in sorted(rows, key=lambda r: r[:2])]


def write_review_list(path: Path, report: Mapping[str, Any]) -> None:
    """Write `review_rows` as CSV, in one step."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in review_rows(report):
            quality = "" if row["quality"] is None else f"{row['quality']:.3f}"
            writer.writerow({**row, "quality": quality})


def _quality(result: Mapping[str, Any]) -> float:
    """The lower of predicted IoU and agreement; 0 when the network was not asked."""
    known = [result[name] for name in ("predicted_iou", "agreement") if result[name] is not None]
    return min(known, default=0.0)
