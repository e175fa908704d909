"""What may stand in a dataset.json: every problem of one in words."""

from __future__ import annotations

from typing import Any

from promptseg.files import is_file_name
from promptseg.image_io import ITK_ENDINGS


def problems_of_content(content: Any) -> list[str]:
    """Everything in a dataset.json that must be put right, in words; empty when it is sound.

    Source:
        nnU-Net v2, documentation/dataset_format.md. Differs: region-based labels and the ignore
        label are refused; `numTraining` may be missing.
    """
    if not isinstance(content, dict):
        return [f"expected an object {{...}}, found {type(content).__name__}"]
    problems = _problems_of_channel_names(content) + _problems_of_labels(content.get("labels"))
    ending = content.get("file_ending")
    if ending not in ITK_ENDINGS:
        expected = ", ".join(ITK_ENDINGS)
        problems.append(f"file_ending: expected one of {expected}, found {ending!r}")
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


def _problems_of_channel_names(content: dict[str, Any]) -> list[str]:
    names = content.get("channel_names")
    if names is None and "modality" in content:
        return [
            "channel_names: missing, but there is `modality`: this is a dataset.json of the "
            "Medical Segmentation Decathlon or of nnU-Net v1; rename it to channel_names, write "
            "labels as name: value, add file_ending, and end the images' names in _0000, one file "
            "a channel (promptseg_convert does all of this)"
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


def _problems_of_labels(labels: Any) -> list[str]:
    if not isinstance(labels, dict) or not labels:
        return [f'labels: expected {{"background": 0, "name": 1, ...}}, found {labels!r}']
    if all(isinstance(value, str) for value in labels.values()):
        return [
            f"labels: expected names with their values, found values with their names, {labels}; "
            f"write name: value, as nnU-Net v2 does"
        ]
    problems, values = [], []
    for name, value in labels.items():
        if name == "ignore":
            problems.append(
                "labels: `ignore` is not supported; remove it and set its voxels to background"
            )
        elif isinstance(value, list):
            problems.append(
                f"labels: {name!r} is a region of several values, {value}; region-based labels "
                f"are not supported; give every label one value of its own"
            )
        elif not _is_int(value):
            problems.append(f"labels: expected a whole number for {name!r}, found {value!r}")
        else:
            values.append(value)
    if labels.get("background") != 0:
        problems.append(
            f'labels: expected "background": 0, found {labels.get("background", "no background")}'
        )
    if not problems and len(labels) < 2:
        problems.append("labels: expected at least one label besides background")
    if not problems and sorted(values) != list(range(len(values))):
        problems.append(
            f"labels: expected the values 0 to {len(values) - 1}, each once, found {sorted(values)}"
        )
    return problems


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
