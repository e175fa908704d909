"""A raw dataset in nnU-Net's layout: dataset.json, its labels, its cases and their files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptseg.files import is_file_name, read_json
from promptseg.io.case_files import RawCase, cases_in_folder, training_cases, unused_images
from promptseg.io.images import VOLUME_ENDINGS
from promptseg.labels import IGNORE, Values, problem_of_class_order, without_lists
from promptseg.words import some

__all__ = [
    "RawCase",
    "RawDataset",
    "case_groups",
    "cases_in_folder",
    "problems_of_content",
    "read_raw_dataset",
]


@dataclass(frozen=True, kw_only=True)
class RawDataset:
    """A folder in nnU-Net's raw format.

    Attributes:
        folder: the dataset's folder.
        name: its name, `Dataset004_Hippocampus`.
        channel_names: as in dataset.json, in channel order.
        labels: foreground labels by name, ordered by value (1, 2, ...); background is 0. With
            regions, names of one or several values, in the order of dataset.json.
        regions_class_order: the value that is written for each region; empty without regions.
        ignore_label: value of voxels whose label nobody knows; None where there is none.
        file_ending: `.nii.gz`, as in dataset.json.
        cases: training cases, sorted by case identifier.
        content: dataset.json as read.
        unused: image files in imagesTr and labelsTr that belong to no case.
    """

    folder: Path
    name: str
    channel_names: tuple[str, ...]
    labels: dict[str, Values]
    file_ending: str
    cases: tuple[RawCase, ...]
    content: dict[str, Any]
    unused: tuple[Path, ...] = ()
    regions_class_order: tuple[int, ...] = ()
    ignore_label: int | None = None


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
    unused: list[Path] = []
    if "dataset" in content:
        cases = _cases_in_content(folder, content["dataset"])
    else:
        folders = folder / "imagesTr", folder / "labelsTr"
        cases = training_cases(*folders, ending)
        unused = unused_images(folders, cases)
    labels = without_lists(content["labels"])
    ignore_label = labels.pop(IGNORE, None)
    labels.pop("background")
    has_regions = any(isinstance(values, tuple) for values in labels.values())
    if not has_regions:
        labels = dict(sorted(labels.items(), key=lambda item: item[1]))
    channel_names = content["channel_names"]
    return RawDataset(
        folder=folder,
        name=folder.resolve().name,
        channel_names=tuple(channel_names[str(i)] for i in range(len(channel_names))),
        labels=labels,
        regions_class_order=tuple(content["regions_class_order"]) if has_regions else (),
        file_ending=ending,
        cases=tuple(sorted(cases, key=lambda case: case.case_id)),
        content=content,
        unused=tuple(unused),
        ignore_label=ignore_label,
    )


def _cases_in_content(folder: Path, entries: dict[str, Any]) -> list[RawCase]:
    """Cases that dataset.json itself lists, with paths relative to its folder or absolute."""

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


def problems_of_content(content: Any) -> list[str]:
    """Every problem of a dataset.json, in words; empty if it is sound.

    Source:
        nnU-Net v2, its pages on the dataset format, region-based training and the ignore label.
        Differs: the value written for a region must be one of its own; `numTraining` may be
        missing.
    """
    if not isinstance(content, dict):
        return [f"expected an object {{...}}, found {type(content).__name__}"]
    problems = _problems_of_channel_names(content) + _problems_of_labels(content)
    ending = content.get("file_ending")
    if ending not in VOLUME_ENDINGS:
        expected = ", ".join(VOLUME_ENDINGS)
        problems.append(f"file_ending: expected one of {expected}, found {ending!r}")
    if "groups" in content:
        problems += _problems_of_groups(content["groups"])
    count = content.get("numTraining")
    if count is not None and not _is_int(count):
        problems.append(f"numTraining: expected the number of training cases, found {count!r}")
    entries = content.get("dataset", {})
    if not isinstance(entries, dict) or not all(
        isinstance(e, dict)
        and isinstance(e.get("label"), str)
        and isinstance(e.get("images"), list)
        and all(isinstance(i, str) for i in e["images"])
        for e in entries.values()
    ):
        problems.append('dataset: expected {"CASE": {"images": ["..."], "label": "..."}, ...}')
        return problems
    return problems + [
        f"dataset: {case_id!r} cannot be a case identifier, as files are named after it; expected "
        f"a name without / \\ : and NUL, and no dot at its start"
        for case_id in entries
        if not is_file_name(case_id)
    ]


def case_groups(path: Path, case_ids: Sequence[str]) -> dict[str, str] | None:
    """The group (the patient, say) of each of these cases, as a dataset.json has it.

    Returns:
        Case identifier to group name, in the order of `case_ids`; None without a `groups` entry.

    Raises:
        ValueError: if the entry is malformed, or lists cases that have no group.
    """
    content = read_json(path)
    if "groups" not in content:
        return None
    groups = content["groups"]
    problems = _problems_of_groups(groups)
    if not problems and (missing := [case_id for case_id in case_ids if case_id not in groups]):
        problem = (
            f"groups: {len(missing)} of {len(case_ids)} cases have no group, "
            f'{some(missing, quoted=True)}; give each one, "CASE": "GROUP"'
        )
        if unknown := sorted(set(groups) - set(case_ids)):
            problem += f", or correct its name: there are no cases {some(unknown, quoted=True)}"
        problems = [problem]
    if problems:
        raise ValueError(f"{path}: " + "; ".join(problems))
    return {case_id: groups[case_id] for case_id in case_ids}


def _problems_of_groups(groups: Any) -> list[str]:
    if not isinstance(groups, dict) or not groups:
        return [f'groups: expected {{"CASE": "GROUP", ...}}, found {groups!r}']
    if all(isinstance(value, list) for value in groups.values()):
        return [
            "groups: expected each case with its group, found each group with a list of its "
            'cases; write "CASE": "GROUP" for every case'
        ]
    return [
        f"groups: expected the name of a group, as text, for {case_id!r}, found {name!r}"
        for case_id, name in groups.items()
        if not isinstance(name, str) or not name.strip()
    ]


def _problems_of_channel_names(content: dict[str, Any]) -> list[str]:
    names = content.get("channel_names")
    if names is None and "modality" in content:
        return [
            "channel_names: missing, but there is `modality`: this is a dataset.json of the "
            "Medical Segmentation Decathlon or of nnU-Net v1; rename it to channel_names, write "
            "labels as name: value, add file_ending, and end the images' names in _0000, one file "
            "per channel (promptseg_convert does all of this)"
        ]
    if not isinstance(names, dict) or not names:
        return [f'channel_names: expected {{"0": "CT", ...}}, found {names!r}']
    problems = []
    expected = [str(i) for i in range(len(names))]
    if sorted(names) != sorted(expected):
        problems.append(f"channel_names: expected the keys {expected}, found {list(names)}")
    for key, name in names.items():
        if not isinstance(name, str) or not name.strip():
            problems.append(f"channel_names: expected a name for channel {key}, found {name!r}")
    return problems


def _problems_of_labels(content: dict[str, Any]) -> list[str]:
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels:
        return [f'labels: expected {{"background": 0, "name": 1, ...}}, found {labels!r}']
    if all(isinstance(value, str) for value in labels.values()):
        if all(value.strip().isdecimal() for value in labels.values()):
            example = '"{}": {}'.format(*next(iter(labels.items())))
            return [f"labels: the values are texts, {labels}; write them as numbers, {example}"]
        return [
            f"labels: expected names with their values, found values with their names, {labels}; "
            f"write name: value, as nnU-Net v2 does"
        ]
    problems, values = [], []
    for name, value in labels.items():
        of_name = value if isinstance(value, list) and name != IGNORE else [value]
        if not of_name or not all(map(_is_int, of_name)):
            expected = "whole numbers" if isinstance(value, list) else "a whole number"
            problems.append(f"labels: expected {expected} for {name!r}, found {value!r}")
        else:
            values.append(tuple(sorted(set(of_name))))
    if labels.get("background") not in (0, [0]):
        problems.append(
            f'labels: expected "background": 0, found {labels.get("background", "no background")}'
        )
    if not problems and not labels.keys() - {"background", IGNORE}:
        problems.append("labels: expected at least one label besides background")
    return problems or _problems_of_values(content, values)


def _problems_of_values(content: dict[str, Any], values: list[tuple[int, ...]]) -> list[str]:
    """Problems of labels that are well-formed.

    Args:
        content: of dataset.json.
        values: what each of its labels stands for, ascending.
    """
    labels = content["labels"]
    stored = sorted({value for of_name in values for value in of_name})
    if labels.get(IGNORE, stored[-1]) != stored[-1]:
        return [
            f"labels: `{IGNORE}` must be the highest value, {stored[-1]}, as in nnU-Net; found "
            f"{labels[IGNORE]}"
        ]
    if stored != list(range(len(stored))) or len(set(values)) < len(values):
        found = sorted(values)
        if all(len(of_name) == 1 for of_name in values):
            found, stored = [value for (value,) in found], values
        return [f"labels: expected the values 0 to {len(stored) - 1}, each once, found {found}"]
    reserved = {0, labels.get(IGNORE)}
    if any(len(of_name) > 1 and reserved & set(of_name) for of_name in values):
        return ["labels: background and ignored voxels can be part of no region"]
    regions = without_lists({n: v for n, v in labels.items() if n not in ("background", IGNORE)})
    problem = problem_of_class_order(regions, content.get("regions_class_order"))
    return [] if problem is None else [f"regions_class_order: {problem}"]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
