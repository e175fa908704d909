"""Files beside the segmentations: report and prompts used, written during a run; review list."""

from __future__ import annotations

import csv
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from promptseg.files import read_json, replacing, write_json
from promptseg.inference.options import PredictionOptions
from promptseg.inference.results import NOT_LIKE_TRAINING
from promptseg.prompts.types import write_prompts_file

SECONDS_BETWEEN_WRITING = 10.0
STATUSES = ("done", "kept", "failed")
COLUMNS = ("case", "quality", "label", "reasons")  # of the review list
_QUALITIES = ("predicted_iou", "prompt_consistency")
_PROMPT_FIELDS = ("boxes", "points", "point_labels", "source", "score", "reason")
_LINE_FIELDS = ("scribbles", "scribble_labels", "lassos")  # where there are any
_RESULT_FIELDS = {*_PROMPT_FIELDS, *_QUALITIES, "flags"}  # of a label, those that are read again
_FORMER_NAMES = {"agreement": "prompt_consistency"}  # of fields, in earlier reports


class Report:
    """An entry for every case, in `predict_report.json`; its prompts in `prompts_used.json`.

    Args:
        output: folder of the two files.
        options: of the run.
        case_ids: of the run; an earlier run's entries for other cases are dropped.

    Raises:
        ValueError: naming the file that should be the report of an earlier run and is not.
    """

    def __init__(self, output: Path, options: PredictionOptions, case_ids: Collection[str]) -> None:
        self.options = options
        self.entries: dict[str, dict[str, Any]] = {}
        self._report_file = output / f"predict_report{options.suffix}.json"
        self._prompts_file = output / f"prompts_used{options.suffix}.json"
        self._written = time.monotonic()
        if options.continue_prediction and self._report_file.is_file():
            earlier, wanted = _read_entries(self._report_file), set(case_ids)
            self.entries = {name: entry for name, entry in earlier.items() if name in wanted}

    def keeps(self, case_id: str) -> bool:
        """Whether an existing segmentation of the case is kept."""
        has_failed = self.entries.get(case_id, {}).get("status") == "failed"
        return self.options.continue_prediction and not has_failed

    def keep(self, case_id: str) -> None:
        """Enter that a case's segmentation of an earlier run is kept."""
        self.entries.setdefault(case_id, {"status": "kept"})

    def add(self, case_id: str, entry: dict[str, Any]) -> None:
        """Enter the outcome of a case."""
        self.entries[case_id] = entry
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITING:
            self.write()

    def write(self) -> dict[str, Any]:
        """Write both files; returns the report's content."""
        entries = dict(sorted(self.entries.items()))
        used = {
            case_id: {
                label: {
                    name: result[name]
                    for name in (*_PROMPT_FIELDS, *_LINE_FIELDS)
                    if name in result
                }
                for label, result in entry["labels"].items()
            }
            for case_id, entry in entries.items()
            if "labels" in entry
        }
        report = {
            "auto_prompt": self.options.auto_prompt,
            "failed": sum(entry["status"] == "failed" for entry in entries.values()),
            "cases": entries,
        }
        write_json(self._report_file, report)
        write_prompts_file(self._prompts_file, used)
        self._written = time.monotonic()
        return report


def _read_entries(path: Path) -> dict[str, dict[str, Any]]:
    """The cases of an earlier run's report."""
    content = read_json(path)
    entries = content.get("cases") if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        found = str(content)[:80]
    else:
        entries = {name: _with_present_names(entry) for name, entry in entries.items()}
        wrong = [name for name, entry in entries.items() if not _is_entry(entry)]
        if not wrong:
            return entries
        found = f"for the case {wrong[0]!r}: {str(entries[wrong[0]])[:80]}"
    raise ValueError(
        f"{path} is not a report that --continue_prediction can use: expected `cases` with "
        f"`status` ({', '.join(STATUSES)}), and the fields of each status, for each; found "
        f"{found}. Remove the file, and every existing segmentation is kept"
    )


def _with_present_names(entry: Any) -> Any:
    """An entry of an earlier version with the field names of this one."""
    if not isinstance(entry, dict) or not isinstance(entry.get("labels"), dict):
        return entry
    labels = {
        label: {_FORMER_NAMES.get(name, name): value for name, value in result.items()}
        if isinstance(result, dict)
        else result
        for label, result in entry["labels"].items()
    }
    return {**entry, "labels": labels}


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.get("status") not in STATUSES:
        return False
    labels = entry.get("labels", {})
    if entry["status"] == "failed":
        return isinstance(entry.get("error"), str) and not labels
    return isinstance(labels, dict) and all(
        isinstance(result, dict) and _RESULT_FIELDS <= set(result) for result in labels.values()
    )


def write_review_list(path: Path, report: Mapping[str, Any]) -> None:
    """Write `review_rows` as CSV, atomically."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in review_rows(report):
            quality = "" if row["quality"] is None else f"{row['quality']:.3f}"
            writer.writerow({**row, "quality": quality})


def review_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per case, worst first.

    The quality of a case is that of its worst label; that of a label is its predicted Dice, where
    there is one, else its predicted IoU or its prompt consistency, whichever is lower. A label with
    a reason code comes before every label without, and a case that does not look like the training
    images before the others. Cases that failed come first of all; those of which nothing is known
    (kept from an earlier run without a report, or without labels to segment) are left out.

    Args:
        report: of `predict_files`.

    Returns:
        Rows of `COLUMNS`: quality in [0, 1] or None, the label that it belongs to, and that
        label's reason codes.
    """
    rows = []
    for case_id, entry in report["cases"].items():
        if entry["status"] == "failed":
            rows.append(((0, 0.0), case_id, None, "", f"failed: {entry['error']}"))
        elif entry.get("labels"):
            worst = min(
                (not result["flags"], _quality(result), label, "; ".join(result["flags"]))
                for label, result in entry["labels"].items()
            )
            unflagged, quality, label, reasons = worst
            group = 1 if NOT_LIKE_TRAINING in reasons else 2 + unflagged
            rows.append(((group, quality), case_id, quality, label, reasons))
    return [dict(zip(COLUMNS, row[1:], strict=True)) for row in sorted(rows, key=lambda r: r[:2])]


def _quality(result: Mapping[str, Any]) -> float:
    """The predicted Dice, or else the lower of two estimates; 0 when nothing was decoded."""
    if "predicted_dice" in result:
        return result["predicted_dice"]
    known = [result[name] for name in _QUALITIES if result[name] is not None]
    return min(known, default=0.0)
