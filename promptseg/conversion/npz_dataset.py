"""Training files of the BiomedSegFM challenge (.npz) to a raw dataset."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from promptseg.conversion.result import Conversion, convert_cases
from promptseg.files import replacing_folder, write_json
from promptseg.folders import new_dataset_folder
from promptseg.io.challenge_npz import read_npz_volume
from promptseg.io.images import NPZ, Geometry, as_labels, write_image
from promptseg.io.npz import read_npz
from promptseg.words import some

_ENDING = ".nii.gz"
_CHANNEL_NAMES = {"MR": "MRI"}  # where a file name's prefix is no name that plans know
_MOST_LABELS = 255


def npz_files(folder: Path | str, only: str = "") -> dict[str, Path]:
    """The .npz files of a folder whose names begin with `only`, by case identifier."""
    paths = sorted(Path(folder).glob(f"*{NPZ}")) if Path(folder).is_dir() else []
    return {
        path.name.removesuffix(NPZ): path
        for path in paths
        if path.name.startswith(only) and not path.name.startswith(".")
    }


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

    The channel's name comes from the first word of the files' names (`CT_`, `MR_`, ...). Label
    values stay as they are and are named `label_1`, `label_2`, ...; a value that no file has gets
    a name too, since labels of a raw dataset have no gaps.

    Args:
        folder: of NAME.npz with `imgs`, `spacing` and `gts`.
        raw: folder of raw datasets.
        number, name: of the new dataset.
        only: take the files only whose names begin so, such as `CT_` or `MR_BraTS`.
        ground_truth: folder of files of the same names that hold `gts`, where the images' do not.
        spacing_order: of `spacing` in the files, see `spacing_zyx`.
        merge_instances: whether all objects of a file that numbers them (`instance_label` 1)
            become label 1; else such files are refused, as their values name no structure.
        overwrite: whether an existing folder of that name is replaced.
        processes: worker processes; 0 does all in this one.

    Raises:
        FileExistsError: if there is such a dataset and `overwrite` is not set.
        FileNotFoundError: if there is no such file.
        ValueError: if the files are of several modalities, if they have more than 255 label
            values, or if no file at all can be converted, with what is wrong with each.
    """
    files = npz_files(folder, only)
    if not files:
        raise FileNotFoundError(f"{folder}: expected files {only}NAME{NPZ}, found none")
    modality = _modality(files)
    truths = files if ground_truth is None else npz_files(ground_truth)
    cases = {case_id: (path, truths.get(case_id)) for case_id, path in files.items()}
    output = new_dataset_folder(Path(raw), number, name)
    with replacing_folder(output, overwrite) as new:
        done, failed = convert_cases(
            _convert_case, cases, new, spacing_order, merge_instances, processes=processes
        )
        values = sorted(set().union(*done.values()))
        labels = _labels(values)
        content = {
            "channel_names": {"0": _CHANNEL_NAMES.get(modality, modality)},
            "labels": labels,
            "numTraining": len(done),
            "file_ending": _ENDING,
        }
        write_json(new / "dataset.json", content)
    notes = _notes(files, values)
    return Conversion(output=output, done=tuple(done), failed=failed, notes=notes)


def _convert_case(
    case_id: str,
    paths: tuple[Path, Path | None],
    folder: Path,
    spacing_order: str,
    merge_instances: bool,
) -> set[int]:
    """Write one case; returns the label values that it has."""
    path, truth = paths
    if truth is None:
        raise ValueError(f"{path}: there is no file {path.name} with its labels")
    image, spacing = read_npz_volume(path, ("imgs",), spacing_order)
    try:
        labels = as_labels(read_npz_volume(truth, ("gts",), spacing_order)[0])
    except ValueError as error:
        advice = "; for files whose labels lie elsewhere give --ground-truth FOLDER"
        raise ValueError(f"{error}{advice if truth == path else ''}") from error
    if labels.shape != image.shape:
        raise ValueError(f"{truth}: gts: shape {labels.shape}, but imgs has {image.shape}")
    values = set(np.unique(labels).tolist()) - {0}
    if values and min(values) < 0:
        raise ValueError(f"{truth}: gts: label values from 0 expected, found {min(values)}")
    if _has_instances(path, truth):
        if not merge_instances:
            raise ValueError(
                f"{path}: its {len(values)} label values number the objects of one kind "
                f"(instance_label 1), so they name no structure; --merge-instances makes all of "
                f"them label 1"
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
    """The first word of the files' names, the same for all."""
    of_modality = _by_prefix(files, 1)
    if len(of_modality) > 1:
        found = "; ".join(f"{key}: {len(n)} ({some(n)})" for key, n in of_modality.items())
        raise ValueError(
            f"{len(files)} files are of {len(of_modality)} modalities, by the first word of their "
            f"names: {found}. A dataset has one: choose with --only, such as "
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
            f"label values reach {highest}, at most {_MOST_LABELS} are supported; do they number "
            f"objects of one kind? --merge-instances makes label 1 of those that say so"
        )
    if not values:
        raise ValueError("gts of all files are empty: there is no label to learn")
    return {"background": 0} | {f"label_{value}": value for value in range(1, highest + 1)}


def _notes(files: Mapping[str, Path], values: list[int]) -> tuple[str, ...]:
    notes = []
    sources = _by_prefix(files, 2)
    if len(sources) > 1:
        notes.append(
            f"the files are of {len(sources)} sources ({some(sources)}): a label value must "
            f"mean the same structure in all; if not, choose one with --only"
        )
    if unused := sorted(set(range(1, max(values) + 1)) - set(values)):
        names = some([f"label_{value}" for value in unused])
        notes.append(f"no file has {names}; named all the same, so that values have no gap")
    notes.append("labels are named after their values: give them names in dataset.json")
    return tuple(notes)
