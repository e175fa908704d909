"""What can be wrong with a raw dataset: every problem in words, with what to do about it.

A problem makes a case unusable and fails the check: files that are missing or cannot be read,
too many or too few channels, NaN or infinite values, a constant image, an image and label whose
shape, spacing, origin or direction differ, and labels that are not whole numbers or not declared.
A dataset that has no cases, not as many as `numTraining` says, or no label in any of them, has a
problem itself. Whatever does not make a run wrong is a warning: a declared label that no case has,
a case without any, a channel declared CT whose values are not HU.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from promptseg.io.case_files import channel_numbers
from promptseg.io.dataset import RawCase, RawDataset
from promptseg.io.images import Geometry, is_whole
from promptseg.labels import Values
from promptseg.words import some

_CHECK_HEADERS = "find out which is right and correct the other, or resample it onto the image grid"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and what to do; `case_id` is None for the dataset as a whole."""

    case_id: str | None
    path: Path | None
    found: str
    expected: str
    advice: str

    def __str__(self) -> str:
        where = ": ".join(str(part) for part in (self.case_id, self.path) if part is not None)
        return f"{where}: found {self.found}, expected {self.expected}; {self.advice}"


def check_label_exists(case: RawCase, dataset: RawDataset) -> list[Problem]:
    """Whether a case has a label file."""
    if case.label is not None:
        return []
    path = dataset.folder / "labelsTr" / f"{case.case_id}{dataset.file_ending}"
    advice = "add the label file, or move the image to imagesTs"
    return [Problem(case.case_id, path, "no file", "the labels of this case", advice)]


def check_channels(case: RawCase, dataset: RawDataset, found: int) -> list[Problem]:
    """Whether a case's files have as many channels together as dataset.json names.

    Args:
        case: the case.
        dataset: its dataset.
        found: channels of all its image files together; one file may hold several.
    """
    expected = len(dataset.channel_names)
    numbers = channel_numbers(case)
    is_numbered = len(numbers) == len(case.images) and "dataset" not in dataset.content
    if is_numbered and sorted(numbers) != list(range(len(numbers))):
        return _missing_channels(case, dataset)
    if found == expected:
        return []
    if found == len(case.images) < expected:  # one channel per file, and too few files
        return _missing_channels(case, dataset)
    names = ", ".join(path.name for path in case.images)
    return [
        Problem(
            case.case_id,
            case.images[0],
            f"{found} channel(s) ({names})",
            f"{expected}, as channel_names in dataset.json says",
            "add or remove image files, or correct channel_names",
        )
    ]


def _missing_channels(case: RawCase, dataset: RawDataset) -> list[Problem]:
    folder = dataset.folder / "imagesTr"
    unnumbered = folder / f"{case.case_id}{dataset.file_ending}"
    there, numbers = ", ".join(path.name for path in case.images), channel_numbers(case)
    problems = []
    for channel, channel_name in enumerate(dataset.channel_names):
        name = f"{case.case_id}_{channel:04d}{dataset.file_ending}"
        if channel in numbers:
            continue
        if unnumbered.exists():
            found, advice = unnumbered.name, "add the channel number to its name"
        else:
            found = f"no file, but {there}" if there else "no file"
            advice = "add the image, correct the numbers, or remove the other files of the case"
        expected = f"channel {channel} ({channel_name})"
        problems.append(Problem(case.case_id, folder / name, found, expected, advice))
    return problems


def check_image(case_id: str, path: Path, channel: np.ndarray) -> list[Problem]:
    """NaN, infinite values and constant images.

    Args:
        case_id: for the report.
        path: for the report.
        channel: (z, y, x) raw intensities.
    """
    if not np.issubdtype(channel.dtype, np.integer):
        bad = channel.size - int(np.count_nonzero(np.isfinite(channel)))
        if bad:
            found = f"{bad} NaN or infinite of {channel.size} voxels"
            advice = "replace them, for example by the value of air"
            return [Problem(case_id, path, found, "finite values only", advice)]
    if channel.min() == channel.max():
        found = f"the value {channel.flat[0]:g} in every voxel"
        advice = "the file was probably written wrongly; export the image again"
        return [Problem(case_id, path, found, "an image", advice)]
    return []


def check_label(
    case_id: str, path: Path, segmentation: np.ndarray, meanings: Mapping[int, str]
) -> list[Problem]:
    """Values that are not whole numbers or not declared.

    Args:
        case_id: for the report.
        path: for the report.
        segmentation: (1, z, y, x) values of any dtype, as read.
        meanings: the name of each value that is declared, 0 among them.
    """
    if segmentation.shape[0] != 1:
        found = f"{segmentation.shape[0]} channels"
        advice = "write one file with one value per voxel"
        return [Problem(case_id, path, found, "one", advice)]
    values, counts = _values_with_counts(segmentation)
    if not np.issubdtype(values.dtype, np.integer):
        odd = ~is_whole(values)
        values = np.where(odd, values, np.rint(values))
        if odd.any():
            found = f"values that are not whole numbers, {_listed(values[odd], counts[odd])}"
            advice = "write labels as integers, and resample them with nearest neighbour"
            return [Problem(case_id, path, found, "whole numbers", advice)]
    unknown = ~np.isin(values, list(meanings))
    if unknown.any():
        found = f"undeclared label values {_listed(values[unknown], counts[unknown])}"
        expected = ", ".join(f"{value} ({name})" for value, name in meanings.items())
        advice = "correct the label file, or add the label to dataset.json"
        return [Problem(case_id, path, found, expected, advice)]
    return []


def no_foreground(dataset: RawDataset) -> Problem:
    """The problem of a dataset none of whose usable cases has a label.

    A single case may be without one: it is a negative case.
    """
    found, expected = "no foreground voxel in any usable case", "at least one"
    advice = "label some of the cases, or check that the label files are those of the images"
    return Problem(None, dataset.folder / "labelsTr", found, expected, advice)


def _values_with_counts(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """np.unique with counts, much faster where the values are small whole numbers."""
    if array.dtype == np.uint8:
        counts = np.bincount(array.ravel(), minlength=256)
        values = np.flatnonzero(counts)
        return values, counts[values]
    return np.unique(array, return_counts=True)


def _listed(values: np.ndarray, counts: np.ndarray) -> str:
    pairs = zip(values, counts, strict=True)
    return some((f"{v:g} ({n} voxel{'s' if n > 1 else ''})" for v, n in pairs), most=5)


def check_geometry(
    case_id: str, path: Path, geometry: Geometry, reference_path: Path, reference: Geometry
) -> list[Problem]:
    """One problem for each of shape, spacing, origin and direction in which two files differ.

    Args:
        case_id: for the report.
        path: the file in question.
        geometry: its geometry.
        reference_path: the file it belongs to (the case's first image).
        reference: that file's geometry.
    """
    return [
        Problem(
            case_id, path, f"{name} {found}", f"{expected} as in {reference_path}", _CHECK_HEADERS
        )
        for name, found, expected in geometry.differences_from(reference)
    ]


def check_dataset(dataset: RawDataset) -> list[Problem]:
    """Problems of the dataset as a whole: no case at all, or not as many as `numTraining` says."""
    path = dataset.folder / "dataset.json"
    if not dataset.cases:
        images = dataset.folder / "imagesTr"
        names = sorted(p.name for p in images.iterdir()) if images.is_dir() else []
        return [
            Problem(
                None,
                images,
                f"no training case (there are {some(names)})",
                f"CASE_0000{dataset.file_ending} and labelsTr/CASE{dataset.file_ending}",
                "check file_ending in dataset.json and the file names",
            )
        ]
    declared = dataset.content.get("numTraining")
    if declared is not None and declared != len(dataset.cases):
        return [
            Problem(
                None,
                path,
                f"{len(dataset.cases)} training cases in the folders",
                f"{declared}, as numTraining says",
                "copy what is missing, or correct numTraining",
            )
        ]
    return []


def unused_labels(labels: Mapping[str, Values], seen: Collection[Values]) -> list[str]:
    """A warning for each declared label that no case has.

    Args:
        labels: foreground labels, name to value or values.
        seen: what occurs in at least one usable case.
    """
    return [
        f"label {name!r} ({value}) is declared in dataset.json, but no usable case has it; "
        f"nothing can be learned for it"
        for name, value in labels.items()
        if value not in seen
    ]


def report(problems: Sequence[Problem], case_count: int) -> str:
    """All problems as text, one line for each kind, after the number of broken cases."""
    broken = {problem.case_id for problem in problems if problem.case_id is not None}
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        kinds.setdefault((problem.expected, problem.advice), []).append(problem)
    lines = [f"{len(problems)} problem(s), {len(broken)} of {case_count} cases broken:"]
    return "\n".join(lines + [f"  {_in_one_line(alike)}" for alike in kinds.values()])


def _in_one_line(alike: Sequence[Problem]) -> str:
    """Problems with the same expectation and advice as text that names each of their files."""
    first, found = alike[0], {problem.found for problem in alike}
    if len(alike) == 1:
        return str(first)
    files = [problem.path.name if problem.path else str(problem.case_id) for problem in alike]
    if len(found) == 1:
        return (
            f"{len(alike)} files: found {first.found}, expected {first.expected}; {first.advice}: "
            f"{', '.join(files)}"
        )
    each = ", ".join(
        f"{file} ({problem.found})" for file, problem in zip(files, alike, strict=True)
    )
    return f"{len(alike)} files: expected {first.expected}; {first.advice}; found in {each}"
