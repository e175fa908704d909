"""A raw dataset in nnU-Net's layout: dataset.json, its labels, its cases and their files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptseg.case_files import RawCase, cases_in_folder, training_cases
from promptseg.dataset_json import problems_of_content
from promptseg.files import read_json

__all__ = ["RawCase", "RawDataset", "cases_in_folder", "read_raw_dataset"]


@dataclass(frozen=True, kw_only=True)
class RawDataset:
    """A folder in nnU-Net's raw format.

    Attributes:
        folder: the dataset's folder.
        name: its name, `Dataset004_Hippocampus`.
        channel_names: as in dataset.json, in channel order.
        labels: foreground labels by name, ordered by value (1, 2, ...); background is 0.
        file_ending: `.nii.gz`, as in dataset.json.
        cases: training cases, sorted by case identifier.
        content: dataset.json as read.
    """

    folder: Path
    name: str
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    file_ending: str
    cases: tuple[RawCase, ...]
    content: dict[str, Any]


def read_raw_dataset(folder: Path | str) -> RawDataset:
    """Read dataset.json and list the training cases, without opening any image.

    A case whose images or label are missing is listed too, so that the integrity check can
    report it.

    Raises:
        FileNotFoundError: if the folder, dataset.json, imagesTr or labelsTr does not exist.
        ValueError: naming every problem of dataset.json at once.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such dataset folder")
    path = folder / "dataset.json"
    content = read_json(path)
    if problems := problems_of_content(content):
        raise ValueError(f"{path} has {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    ending = content["file_ending"]
    if "dataset" in content:
        cases = _cases_in_content(folder, content["dataset"])
    else:
        cases = training_cases(folder / "imagesTr", folder / "labelsTr", ending)
    labels = {name: v for name, v in content["labels"].items() if name != "background"}
    channel_names = content["channel_names"]
    return RawDataset(
        folder=folder,
        name=folder.resolve().name,
        channel_names=tuple(channel_names[str(i)] for i in range(len(channel_names))),
        labels=dict(sorted(labels.items(), key=lambda item: item[1])),
        file_ending=ending,
        cases=tuple(sorted(cases, key=lambda case: case.case_id)),
        content=content,
    )


def _cases_in_content(folder: Path, entries: dict[str, Any]) -> list[RawCase]:
    """Cases that dataset.json lists itself, with paths relative to its folder or absolute."""

    def locate(text: str) -> Path:
        return folder / os.path.expandvars(text)

    return [
        RawCase(
            case_id=case_id,
            images=tuple(path for path in map(locate, entry["images"]) if path.exists()),
            label=locate(entry["label"]) if locate(entry["label"]).exists() else None,
        )
        for case_id, entry in entries.items()
    ]
