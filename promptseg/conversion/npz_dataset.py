"""Training files of the BiomedSegFM challenge (.npz) to a raw dataset."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.conversion.result import Conversion, convert_cases
from promptseg.files import replacing_folder, write_json
from promptseg.folders import new_dataset_folder
from promptseg.io.challenge_npz import npz_files, read_npz_volume
from promptseg.io.images import NPZ, Geometry, as_labels, write_image
from promptseg.io.npz import read_npz
from promptseg.words import some

_ENDING = ".nii.gz"
_CHANNEL_NAMES = {"MR": "MRI"}  # prefixes of file names that plans know by another name
_MOST_LABELS = 255


def convert_npz(
    folder: Path | str,
    raw: Path | str,
    *,
    number: int,
    name: str,
    only: str = "",
    ground_truth: Path | str | None = None,
    spacing_order: str = "auto",
    merge_instances: bool = False,
    overwrite: bool = False,
    processes: int = 0,
) -> Conversion:
    """Write a folder of training files as a raw dataset in nnU-Net's layout.

    The channel is named after the first word of the file names (`CT_`, `MR_`, ...). Label values
    are kept and named `label_1`, `label_2`, ..., including values that no file contains, since
    the labels of a raw dataset must be consecutive.

    More parameters than usual: each of them is one flag of `promptseg_convert`.

    Args:
        folder: folder of NAME.npz with `imgs`, `spacing` and `gts`.
        raw: folder of raw datasets.
        number: number of the new dataset.
        name: name of the new dataset.
        only: prefix of the file names to convert, such as `CT_` or `MR_BraTS`; empty for all.
        ground_truth: folder of files of the same names with `gts`, if the images lack it.
        spacing_order: order of `spacing` in the files, see `spacing_zyx`.
        merge_instances: whether files that number the objects of one kind (`instance_label` 1)
            get label 1 for all of them; otherwise they are refused.
        overwrite: whether an existing dataset of the same number and name is replaced.
        processes: number of worker processes; 0 converts in this process.

    Raises:
        FileExistsError: if the dataset already exists and `overwrite` is not set.
        FileNotFoundError: if there is no file to convert.
        ValueError: if the files have several modalities or label values above 255, or no file
            can be converted, listing the problem of each.
    """
    files = npz_files(folder, only)
    if not files:
        raise FileNotFoundError(f"{folder}: expected files {only}NAME{NPZ}, found none")
    modality = _modality(files)
    label_files = files if ground_truth is None else npz_files(ground_truth)
    cases = {case_id: (path, label_files.get(case_id)) for case_id, path in files.items()}
    output = new_dataset_folder(Path(raw), number, name)
    with replacing_folder(output, overwrite) as new:
        done, failed = convert_cases(
            _convert_case, cases, new, spacing_order, merge_instances, processes=processes
        )
        values = sorted(set().union(*done.values()))
        write_json(new / "dataset.json", _dataset_json(modality, values, len(done)))
    notes = _notes(files, values)
    return Conversion(output=output, done=tuple(done), failed=failed, notes=notes)


def _dataset_json(modality: str, values: list[int], count: int) -> dict[str, Any]:
    return {
        "channel_names": {"0": _CHANNEL_NAMES.get(modality, modality)},
        "labels": _labels(values),
        "numTraining": count,
        "file_ending": _ENDING,
    }


def _convert_case(
    case_id: str,
    paths: tuple[Path, Path | None],
    folder: Path,
    spacing_order: str,
    merge_instances: bool,
) -> set[int]:
    """Write one case and return its label values."""
    path, label_path = paths
    if label_path is None:
        raise ValueError(f"{path}: found no file {path.name} with its labels")
    image, spacing = read_npz_volume(path, ("imgs",), spacing_order)
    try:
        labels = as_labels(read_npz_volume(label_path, ("gts",), spacing_order)[0])
    except ValueError as error:
        advice = "; if the labels are in other files, give --ground-truth FOLDER"
        raise ValueError(f"{error}{advice if label_path == path else ''}") from error
    if labels.shape != image.shape:
        raise ValueError(f"{label_path}: gts: shape {labels.shape}, but imgs has {image.shape}")
    values = set(np.unique(labels).tolist()) - {0}
    if values and min(values) < 0:
        raise ValueError(
            f"{label_path}: gts: expected label values of 0 and above, found {min(values)}"
        )
    if _has_instances(path, label_path):
        if not merge_instances:
            raise ValueError(
                f"{path}: its {len(values)} label values number the objects of one kind "
                f"(instance_label 1) and do not name structures; --merge-instances turns all of "
                f"them into label 1"
            )
        labels, values = (labels > 0).astype(np.uint8), {1} if values else set()
    geometry = Geometry(shape=image.shape, spacing=spacing)
    write_image(folder / "imagesTr" / f"{case_id}_0000{_ENDING}", image, geometry)
    write_image(folder / "labelsTr" / f"{case_id}{_ENDING}", labels, geometry)
    return values


def _has_instances(*paths: Path) -> bool:
    texts = [read_npz(path, ["text_prompts"]).get("text_prompts") for path in dict.fromkeys(paths)]
    return any(isinstance(text, dict) and text.get("instance_label") == 1 for text in texts)


def _modality(files: Mapping[str, Path]) -> str:
    """The first word of the file names, which all of them must share."""
    of_modality = _by_prefix(files, 1)
    if len(of_modality) > 1:
        found = "; ".join(f"{key}: {len(n)} ({some(n)})" for key, n in of_modality.items())
        raise ValueError(
            f"{len(files)} files are of {len(of_modality)} modalities, by the first word of their "
            f"names: {found}. A dataset has only one: choose it with --only, such as "
            f"--only {next(iter(of_modality))}_"
        )
    return next(iter(of_modality))


def _by_prefix(case_ids: Iterable[str], words: int) -> dict[str, list[str]]:
    found = defaultdict(list)
    for case_id in case_ids:
        found["_".join(case_id.split("_")[:words])].append(case_id)
    return dict(found)


def _labels(values: list[int]) -> dict[str, int]:
    highest = max(values, default=0)
    if highest > _MOST_LABELS:
        raise ValueError(
            f"label values reach {highest}, at most {_MOST_LABELS} are supported; if they number "
            f"objects of one kind (instance_label 1), --merge-instances turns them into label 1"
        )
    if not values:
        raise ValueError("gts of all files are empty: there are no labels to learn")
    return {"background": 0} | {f"label_{value}": value for value in range(1, highest + 1)}


def _notes(files: Mapping[str, Path], values: list[int]) -> tuple[str, ...]:
    notes = []
    sources = _by_prefix(files, 2)
    if len(sources) > 1:
        notes.append(
            f"the files are of {len(sources)} sources ({some(sources)}): a label value must mean "
            f"the same structure in all of them; otherwise choose one source with --only"
        )
    if unused := sorted(set(range(1, max(values) + 1)) - set(values)):
        names = some([f"label_{value}" for value in unused])
        notes.append(
            f"no file contains {names}; listed nevertheless, as label values must be consecutive"
        )
    notes.append("labels are named after their values; rename them in dataset.json")
    return tuple(notes)
