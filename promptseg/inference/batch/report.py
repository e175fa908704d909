"""The report of a prediction run and the prompts it used, written while it goes on."""

from __future__ import annotations

import csv
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from promptseg.files import read_json, replacing, write_json
from promptseg.prompts.types import write_prompts_file

SECONDS_BETWEEN_WRITING = 10.0
STATUSES = ("done", "kept", "failed")
_PROMPT_FIELDS = ("boxes", "points", "point_labels", "source", "score", "reason")
_RESULT_FIELDS = {
    *_PROMPT_FIELDS,
    "predicted_iou",
    "prompt_consistency",
    "flags",
}  # that are read again


class Report:
    """An entry for every case, in `predict_report.json`; its prompts in `prompts_used.json`.

    Args:
        output: folder of the two files.
        auto_prompt: of the run.
        case_ids: of the run; what an earlier one wrote of other cases is dropped.
        suffix: of the files' names.
        goes_on: segmentations of an earlier run stay, but those that its report calls failed.

    Raises:
        ValueError: naming the earlier run's report if it is none.
    """

    def __init__(
        self,
        output: Path,
        auto_prompt: str | None,
        case_ids: Collection[str],
        *,
        suffix: str = "",
        goes_on: bool = False,
    ) -> None:
        self.auto_prompt = auto_prompt
        self.goes_on = goes_on
        self.entries: dict[str, dict[str, Any]] = {}
        self._report_file = output / f"predict_report{suffix}.json"
        self._prompts_file = output / f"prompts_used{suffix}.json"
        self._written = time.monotonic()
        if goes_on and self._report_file.is_file():
            earlier, wanted = _read_entries(self._report_file), set(case_ids)
            self.entries = {name: entry for name, entry in earlier.items() if name in wanted}

    def keeps(self, case_id: str) -> bool:
        """Whether a segmentation of the case that is there stays."""
        return self.goes_on and self.entries.get(case_id, {}).get("status") != "failed"

    def keep(self, case_id: str) -> None:
        """Note that a case's segmentation of an earlier run stays."""
        self.entries.setdefault(case_id, {"status": "kept"})

    def add(self, case_id: str, entry: dict[str, Any]) -> None:
        """Note what came of a case."""
        self.entries[case_id] = entry
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITING:
            self.write()

    def write(self) -> dict[str, Any]:
        """Write both files; returns the report's content."""
        entries = dict(sorted(self.entries.items()))
        used = {
            case_id: {
                label: {name: result[name] for name in _PROMPT_FIELDS}
                for label, result in entry["labels"].items()
            }
            for case_id, entry in entries.items()
            if "labels" in entry
        }
        report = {
            "auto_prompt": self.auto_prompt,
            "failed": sum(entry["status"] == "failed" for entry in entries.values()),
            "cases": entries,
        }
        write_json(self._report_file, report)
        write_prompts_file(self._prompts_file, used)
        self._written = time.monotonic()
        return report


def _read_entries(path: Path) -> dict[str, dict[str, Any]]:
    """The cases of a report that was written before."""
    content = read_json(path)
    entries = content.get("cases") if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        found = str(content)[:80]
    elif wrong := [name for name, entry in entries.items() if not _is_entry(entry)]:
        found = f"for the case {wrong[0]!r}: {str(entries[wrong[0]])[:80]}"
    else:
        return entries
    raise ValueError(
        f"{path} is no report that --continue_prediction can go on with: expected `cases` with "
        f"`status` ({', '.join(STATUSES)}), and what goes with it, for each; found {found}. Remove "
        f"the file, and every segmentation that is there is kept"
    )


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.get("status") not in STATUSES:
        return False
    labels = entry.get("labels", {})
    if entry["status"] == "failed":
        return isinstance(entry.get("error"), str) and not labels
    return isinstance(labels, dict) and all(
        isinstance(result, dict) and _RESULT_FIELDS <= set(result) for result in labels.values()
    )


COLUMNS = ("case", "quality", "label", "reasons")


def review_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a case, worst first.

    A case is as good as its worst label, and a label as its predicted IoU or its prompt
    consistency, whichever is lower; a label with a reason code comes before every label
    without. Cases that failed come first of all; those of which nothing is known (kept from an
    earlier run without a report, or asked for no label) are left out.

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
    """Write `review_rows` as CSV, atomically."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in review_rows(report):
            quality = "" if row["quality"] is None else f"{row['quality']:.3f}"
            writer.writerow({**row, "quality": quality})


def _quality(result: Mapping[str, Any]) -> float:
    """The lower of predicted IoU and prompt_consistency; 0 when the network was not asked."""
    known = [
        result[name] for name in ("predicted_iou", "prompt_consistency") if result[name] is not None
    ]
    return min(known, default=0.0)
