"""The report of a prediction run and the prompts it used, written while it goes on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from promptseg.files import read_json, write_json
from promptseg.prompts.prompts import write_prompts_file

SECONDS_BETWEEN_WRITING = 10.0
_PROMPT_FIELDS = ("boxes", "points", "point_labels", "source", "score", "reason")


class Report:
    """An entry for every case, in `predict_report.json`; its prompts in `prompts_used.json`.

    Args:
        output: folder of the two files.
        auto_prompt: of the run.
        suffix: of the files' names.
        goes_on: segmentations of an earlier run stay, but those that its report calls failed.
    """

    def __init__(
        self, output: Path, auto_prompt: str | None, *, suffix: str = "", goes_on: bool = False
    ) -> None:
        self.auto_prompt = auto_prompt
        self.goes_on = goes_on
        self.entries: dict[str, dict[str, Any]] = {}
        self._report_file = output / f"predict_report{suffix}.json"
        self._prompts_file = output / f"prompts_used{suffix}.json"
        self._written = time.monotonic()
        if goes_on and self._report_file.is_file():
            self.entries = read_json(self._report_file)["cases"]

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
