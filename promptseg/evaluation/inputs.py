"""What there is to evaluate: label files by case, label names, the prompts that were used."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from promptseg.files import read_json
from promptseg.io.images import file_ending
from promptseg.prompts.types import read_prompts_file
from promptseg.words import some


def label_files(folder: Path, what: str) -> tuple[dict[str, Path], dict[str, str]]:
    """The label file of each case; a sentence for each case that has several instead.

    Raises:
        FileNotFoundError: if there is no such folder, or no label file in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{what}: there is no folder {folder.absolute()}")
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and path.is_file() and file_ending(path):
            files.setdefault(case_id_of(path), []).append(path)
    if not files:
        there = some(path.name for path in sorted(folder.iterdir()))
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


def labels_of_dataset(ground_truth: Path, predictions: Path) -> dict[str, int] | None:
    """`labels` of the dataset.json in the predictions folder, else beside the ground truth."""
    for path in (predictions / "dataset.json", ground_truth.parent / "dataset.json"):
        if path.is_file():
            content = read_json(path)
            labels = content.get("labels") if isinstance(content, dict) else None
            if not isinstance(labels, dict):
                raise ValueError(f"{path}: expected an object `labels` of names and values")
            return labels
    return None


def names_by_value(labels: dict[str, int]) -> tuple[dict[int, str], int | None]:
    """Foreground names by value, in the order of values, and the value to ignore.

    Raises:
        ValueError: naming the label whose value is no whole number.
    """
    for name, value in labels.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ValueError(
                f"label {name!r}: expected one whole number, found {value!r}; labels made of "
                f"several values (regions) cannot be evaluated"
            )
    ignore_label = labels.get("ignore")
    foreground = {value: name for name, value in labels.items() if value not in (0, ignore_label)}
    return dict(sorted(foreground.items())), ignore_label


def read_prompts(predictions: Path) -> tuple[dict[str, dict], list[str]]:
    """Prompts by case and label name, or none of them and a sentence about what is wrong."""
    path = predictions / "prompts_used.json"
    if not path.is_file():
        return {}, []
    try:
        return read_prompts_file(path), []
    except ValueError as error:
        return {}, [f"box IoU left out, prompts_used.json cannot be used: {error!s}"]


def case_id_of(path: Path) -> str:
    """The name of a label file without its ending."""
    return path.name[: -len(file_ending(path))]
