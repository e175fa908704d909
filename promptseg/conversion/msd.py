"""A task of the Medical Segmentation Decathlon, or of nnU-Net v1, to a raw dataset."""

from __future__ import annotations

import glob
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promptseg.conversion.result import Conversion, convert_cases
from promptseg.files import read_json, replacing, replacing_folder, write_json
from promptseg.folders import new_dataset_folder
from promptseg.io.dataset import problems_of_content
from promptseg.io.images import read_channels, read_image, read_segmentation, write_image
from promptseg.words import some

_ENDING = ".nii.gz"
_TASK = re.compile(r"Task(\d+)_(\w+)")
_KEPT = ("name", "description", "reference", "licence", "license", "release")  # of dataset.json


def is_msd_task(folder: Path | str) -> bool:
    """Whether a folder has a dataset.json in the format of the Decathlon."""
    path = Path(folder) / "dataset.json"
    content = read_json(path) if path.is_file() else None
    return isinstance(content, dict) and "modality" in content and "training" in content


def convert_msd(
    task: Path | str,
    raw: Path | str,
    *,
    number: int | None = None,
    name: str | None = None,
    overwrite: bool = False,
    processes: int = 0,
) -> Conversion:
    """Write the cases listed in the task's dataset.json as a raw dataset in nnU-Net's layout.

    A four-dimensional image becomes one file per channel; all other files are read once, to check
    them, and copied unchanged. nnU-Net v1 lists `NAME.nii.gz` and has a file of each channel,
    `NAME_0000.nii.gz`: these are taken where the listed file is not there. Images of `test` go to
    imagesTs. Files that are not listed, such as hidden ones (`._NAME`), are ignored.

    Args:
        task: folder of the task, with dataset.json, imagesTr and labelsTr.
        raw: folder of raw datasets.
        number: number of the new dataset; by default that of a folder named Task04_Name.
        name: name of the new dataset; by default that of a folder named Task04_Name.
        overwrite: whether an existing dataset of the same number and name is replaced.
        processes: number of worker processes; 0 converts in this process.

    Raises:
        FileExistsError: if the dataset already exists and `overwrite` is not set.
        FileNotFoundError, ValueError: if dataset.json is missing or malformed, or no case can be
            converted, listing the problem of each.

    Source:
        nnU-Net v2's nnUNetv2_convert_MSD_dataset. Differs: labels are checked, and broken cases
        are reported and left out.
    """
    task = Path(task)
    content = read_json(task / "dataset.json")
    number, name = _number_and_name(task, number, name)
    channels, labels = _channels_and_labels(content, task / "dataset.json")
    cases = _cases(content, task)
    output = new_dataset_folder(Path(raw), number, name)
    new_content = {
        **{key: content[key] for key in _KEPT if key in content},
        "channel_names": channels,
        "labels": labels,
        "numTraining": 0,
        "file_ending": _ENDING,
    }
    if problems := problems_of_content(new_content):
        raise ValueError(f"{task / 'dataset.json'}: " + "; ".join(problems))
    with replacing_folder(output, overwrite) as folder:
        done, failed = convert_cases(
            _convert_case, cases, folder, len(channels), processes=processes
        )
        training = [case_id for case_id in done if cases[case_id][1] is not None]
        write_json(folder / "dataset.json", new_content | {"numTraining": len(training)})
    return Conversion(output=output, done=tuple(done), failed=failed, notes=_notes(task, cases))


def _convert_case(
    case_id: str, case: tuple[Path, Path | None], folder: Path, channel_count: int
) -> None:
    listed, label = case
    of_channels = _files_of_channels(listed)
    if of_channels:
        channels, geometry = read_image(of_channels)
    else:
        channels, geometry = read_channels(listed, channels_last=True)
    if len(channels) != channel_count or len(of_channels) not in (0, channel_count):
        files = f" in {some(path.name for path in of_channels)}" if of_channels else ""
        raise ValueError(
            f"{listed}: found {len(channels)} channel(s){files}, expected {channel_count} "
            f"according to `modality` in dataset.json"
        )
    images = folder / ("imagesTs" if label is None else "imagesTr")
    if label is not None:
        read_segmentation(label)
        _copy(label, folder / "labelsTr" / f"{case_id}{_ENDING}")
    for number, channel in enumerate(channels):
        target = images / f"{case_id}_{number:04d}{_ENDING}"
        if channel_count == 1 or of_channels:
            _copy(of_channels[number] if of_channels else listed, target)
        else:
            write_image(target, channel, geometry)


def _files_of_channels(listed: Path) -> list[Path]:
    """A case's files of one channel each, as nnU-Net v1 has them; none where the listed one is."""
    if listed.is_file():
        return []
    name = glob.escape(listed.name.removesuffix(_ENDING))
    return sorted(listed.parent.glob(f"{name}_[0-9][0-9][0-9][0-9]{_ENDING}"))


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def _number_and_name(task: Path, number: int | None, name: str | None) -> tuple[int, str]:
    match = _TASK.fullmatch(task.resolve().name)
    if not match and (number is None or name is None):
        raise ValueError(
            f"{task}: expected a folder named Task04_Name, or else -d ID and --name NAME"
        )
    return (int(match[1]) if number is None else number), name or match[2]


def _channels_and_labels(content: Any, path: Path) -> tuple[dict[str, str], dict[str, int]]:
    """`modality` as channel_names, and `labels` as values by name, of the task's dataset.json."""
    for key, example in (("modality", '{"0": "CT"}'), ("labels", '{"0": "background", ...}')):
        values = content.get(key) if isinstance(content, dict) else None
        if not isinstance(values, dict) or not all(
            str(k).isdecimal() and isinstance(v, str) for k, v in values.items()
        ):
            raise ValueError(f"{path}: {key}: expected {example}, found {values!r}")
    by_value = {int(value): name for value, name in content["labels"].items()}
    if len(set(by_value.values())) < len(by_value):
        raise ValueError(f"{path}: labels: names must be unique, found: {content['labels']}")
    names = {name: value for value, name in sorted(by_value.items())}
    zero = by_value.get(0, "background")  # capitalized in some tasks
    labels = {"background": 0} | {name: value for name, value in names.items() if name != zero}
    return {str(int(k)): v for k, v in sorted(content["modality"].items())}, labels


def _cases(content: dict, task: Path) -> dict[str, tuple[Path, Path | None]]:
    """Image and label file of every listed case; None as the label of test cases."""
    cases: dict[str, tuple[Path, Path | None]] = {}
    for entry in content.get("training", []):
        if not isinstance(entry, dict) or not {"image", "label"} <= set(entry):
            raise ValueError(
                f'{task / "dataset.json"}: training: expected {{"image": "./imagesTr/NAME.nii.gz",'
                f' "label": "./labelsTr/NAME.nii.gz"}}, found {entry!r}'
            )
        _add(cases, _inside(task, entry["image"]), _inside(task, entry["label"]))
    for entry in content.get("test", []):
        image = entry.get("image") if isinstance(entry, dict) else entry
        _add(cases, _inside(task, image), None)
    if not any(label is not None for _, label in cases.values()):
        raise ValueError(f"{task / 'dataset.json'}: training: expected cases, found none")
    return cases


def _add(cases: dict, image: Path, label: Path | None) -> None:
    if not image.name.endswith(_ENDING):
        raise ValueError(f"{image}: expected a file NAME{_ENDING}")
    case_id = image.name.removesuffix(_ENDING)
    if case_id in cases:
        raise ValueError(f"{image}: dataset.json has duplicate entries for {case_id!r}; keep one")
    cases[case_id] = image, label


def _inside(task: Path, entry: Any) -> Path:
    path = (task / str(entry)).resolve()
    if not isinstance(entry, str) or not path.is_relative_to(task.resolve()):
        raise ValueError(f"{task / 'dataset.json'}: expected a file of the task, found {entry!r}")
    return path


def _notes(task: Path, cases: dict[str, tuple[Path, Path | None]]) -> tuple[str, ...]:
    """A note on images in the task's folders that dataset.json does not list."""
    listed = {path for image, _ in cases.values() for path in (image, *_files_of_channels(image))}
    folders: Sequence[Path] = [task.resolve() / name for name in ("imagesTr", "imagesTs")]
    others = [
        path.name
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.glob(f"*{_ENDING}"))
        if path not in listed and not path.name.startswith(".")
    ]
    return (f"left out, as dataset.json does not list them: {some(others)}",) if others else ()
