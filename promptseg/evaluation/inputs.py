"""The inputs of an evaluation: label files by case, label names, tolerances, prompts used."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.files import read_json
from promptseg.io.images import file_ending, without_screenshots
from promptseg.labels import IGNORE, Values, members, without_lists
from promptseg.prompts.types import read_prompts_file
from promptseg.words import some


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """Distances in mm within which surfaces agree in the normalized surface Dice.

    Attributes:
        default: of every label that has none of its own.
        of_label: by name.

    Raises:
        ValueError: for a negative or infinite distance, or none at all.
    """

    default: Sequence[float] = (1.0, 2.0)
    of_label: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in {"default": self.default, **self.of_label}.items():
            if not len(values) or not all(0 <= mm < float("inf") for mm in values):
                raise ValueError(
                    f"tolerances ({name}): expected distances in mm, 0 or more, found "
                    f"{list(values)}"
                )

    def of(self, label: str) -> tuple[float, ...]:
        """Those of a label, ascending."""
        return tuple(sorted(set(self.of_label.get(label, self.default))))

    def check(self, labels: Collection[str]) -> None:
        """Refuse tolerances of labels that do not exist.

        Raises:
            ValueError: naming them and the labels.
        """
        if unknown := sorted(set(self.of_label) - set(labels)):
            raise ValueError(
                f"tolerances of {some(unknown, quoted=True)}: no such label; there are "
                f"{some(labels, quoted=True)}"
            )


def nsd_key(tolerance: float) -> str:
    """What the normalized surface Dice at a tolerance in mm is called in files."""
    return f"nsd_{tolerance:g}mm"


def tolerance_of(key: str) -> float:
    """The tolerance in mm of what `nsd_key` called so."""
    return float(key.removeprefix("nsd_").removesuffix("mm"))


def nsd_keys(figures: Iterable[str]) -> list[str]:
    """Those of the normalized surface Dice among the names of figures, by tolerance."""
    return sorted((key for key in figures if key.startswith("nsd_")), key=tolerance_of)


@dataclass(frozen=True, kw_only=True)
class MatchedCases:
    """The cases of two folders.

    Attributes:
        pairs: files of the ground truth and the prediction, for each case that has both.
        missing: identifiers of the cases without a prediction, sorted.
        failures: one sentence for each problem that leaves cases out.
        warnings: one sentence for each oddity that does no harm.
    """

    pairs: list[tuple[Path, Path]]
    missing: list[str]
    failures: list[str]
    warnings: list[str]


def match_cases(
    ground_truth: Path, predictions: Path, cases: Sequence[str] | None, *, missing_ok: bool
) -> MatchedCases:
    """Match the label files of two folders by their names without ending.

    Args:
        ground_truth: folder of label files.
        predictions: folder of label files.
        cases: identifiers to match; None matches all that have ground truth.
        missing_ok: whether cases without a prediction are accepted.

    Raises:
        FileNotFoundError: if a folder is missing or contains no label file.
        ValueError: if no case is in both folders.
    """
    references, several_references = label_files(ground_truth, "ground truth")
    predicted, several_predicted = label_files(predictions, "predictions")
    if cases is not None:
        references, several_references, predicted, several_predicted = (
            {case: found[case] for case in cases if case in found}
            for found in (references, several_references, predicted, several_predicted)
        )
    pairs = [(references[case], predicted[case]) for case in sorted(references.keys() & predicted)]
    if not pairs:
        wanted = "case" if cases is None else f"case among {some(cases)}"
        raise ValueError(
            f"no {wanted} is in both folders: {ground_truth} has {some(references)}, {predictions} "
            f"has {some(predicted)}; the names without ending must agree"
        )
    failures, warnings = [*several_references.values(), *several_predicted.values()], []
    expected = references.keys() if cases is None else set(cases) - several_references.keys()
    if unknown := sorted(expected - references.keys()):
        failures.append(f"cases without ground truth ({len(unknown)}): {', '.join(unknown)}")
    missing = sorted(expected - predicted.keys() - several_predicted.keys())
    if missing and not missing_ok:
        failures.append(f"cases without prediction ({len(missing)}): {', '.join(missing)}")
    if unmatched := sorted(predicted.keys() - references.keys() - several_references.keys()):
        warnings.append(f"predictions without ground truth, not evaluated: {', '.join(unmatched)}")
    return MatchedCases(pairs=pairs, missing=missing, failures=failures, warnings=warnings)


def label_files(folder: Path, what: str) -> tuple[dict[str, Path], dict[str, str]]:
    """The label file of each case, and a sentence for each case that has several.

    Args:
        folder: folder to list.
        what: description of the folder for messages, such as `ground truth`.

    Raises:
        FileNotFoundError: if there is no such folder, or it contains no label file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{what}: there is no folder {folder.absolute()}")
    files: dict[str, list[Path]] = {}
    for path in without_screenshots(sorted(folder.iterdir())):
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


def labels_of_dataset(ground_truth: Path, predictions: Path) -> dict[str, Any] | None:
    """`labels` of the dataset.json in the predictions folder or else beside the ground truth."""
    for path in (predictions / "dataset.json", ground_truth.parent / "dataset.json"):
        if path.is_file():
            return read_labels(path)
    return None


def read_labels(path: Path) -> dict[str, Any]:
    """`labels` of a dataset.json: value or values of each label by name, background included.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has no object `labels`.
    """
    content = read_json(path)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict):
        raise ValueError(f"{path}: expected an object `labels` of names and values")
    return labels


def names_by_value(labels: Mapping[str, Any]) -> tuple[dict[Values, str], int | None]:
    """Foreground names by value, or by the values of a region, ascending, and the value to ignore.

    Raises:
        ValueError: naming the label whose value is neither a whole number nor a list of some.
    """
    for name, value in labels.items():
        of_name = value if isinstance(value, list) else [value]
        are_numbers = [
            isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in of_name
        ]
        if not of_name or not all(are_numbers):
            raise ValueError(
                f"label {name!r}: expected one whole number, or several in a list, found {value!r}"
            )
    found = without_lists(labels)
    ignore_label = found.pop(IGNORE, None)
    foreground = {values: name for name, values in found.items() if values != 0}
    return dict(sorted(foreground.items(), key=lambda item: members(item[0]))), ignore_label


def read_prompts(predictions: Path) -> tuple[dict[str, dict], list[str]]:
    """Prompts by case and label name; if unreadable, none, and a sentence about the problem."""
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
