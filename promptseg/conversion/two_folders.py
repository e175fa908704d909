"""Images in one folder and masks in another to a raw dataset."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.conversion.dicom_masks import dicom_mask
from promptseg.conversion.masks import (
    Labels,
    is_volume,
    labels_of,
    placed,
    read_mask,
    stem,
    structures,
)
from promptseg.conversion.result import Conversion, convert_cases
from promptseg.files import replacing, replacing_folder, write_json
from promptseg.folders import new_dataset_folder
from promptseg.io.images import (
    file_ending,
    is_dicom_folder,
    read_image,
    without_screenshots,
    write_image,
)
from promptseg.words import some

_ENDING = ".nii.gz"
_CHANNEL = re.compile(r"_\d{4}$")
_OF_MASKS = re.compile(r"[._-](seg|segmentation|masks?|labels?|labelmap|gt)$", re.IGNORECASE)


def convert_two_folders(
    images: Path | str,
    masks: Path | str,
    raw: Path | str,
    *,
    number: int,
    name: str,
    modality: str,
    labels: Mapping[str, int] | None = None,
    overwrite: bool = False,
    processes: int = 0,
) -> Conversion:
    """Write images and their masks as a raw dataset in nnU-Net's layout.

    A case is an image file, several with `_0000`, `_0001`, ... at the end of their names, or a
    folder with a DICOM series. Its mask has the same name, also with `_seg`, `_mask`, `_label` or
    the like behind it; or it is a folder of the case's name with a file of each structure, named
    after it, as TotalSegmentator writes them; or a DICOM SEG or RTSTRUCT, alone in a folder of the
    case's name or with that name itself. Values are renumbered from 1 without a gap.

    More parameters than usual: each of them is one flag of `promptseg_convert`.

    Args:
        images: folder of images.
        masks: folder of masks; may be the same.
        raw: folder of raw datasets.
        number: number of the new dataset.
        name: name of the new dataset.
        modality: name of the channel, such as CT; of several channels separated by commas.
        labels: value of each label in the masks; by default the names of structures' files, or
            those in the header of Slicer's `.seg.nrrd` or of DICOM. Structures that are not named
            are left out; values that are not are refused.
        overwrite: whether an existing dataset of the same number and name is replaced.
        processes: number of worker processes; 0 converts in this process.

    Raises:
        FileExistsError: if the dataset already exists and `overwrite` is not set.
        FileNotFoundError: if a folder is missing or has no images.
        ValueError: if no image has a mask, the labels are not named, or no case can be converted,
            listing the problem of each.
    """
    images, masks, channels = Path(images), Path(masks), modality.split(",")
    found = _images(images, len(channels))
    targets = _masks(masks, {file for files in found.values() for file in files})
    pairs = {case: (files, mask) for case, files in found.items() if (mask := targets.get(case))}
    if not pairs:
        raise ValueError(
            f"no image in {images} ({some(found)}) has a mask of its name in {masks} "
            f"({some(targets)}); rename one or the other"
        )
    known = dict(labels) if labels else labels_of([mask for _, mask in pairs.values()])
    output = new_dataset_folder(Path(raw), number, name)
    with replacing_folder(output, overwrite) as folder:
        done, failed = convert_cases(
            _convert_case, pairs, folder, known, len(channels), processes=processes
        )
        write_json(folder / "dataset.json", _dataset_json(channels, known, len(done)))
    notes = _notes(found, targets, known, done)
    return Conversion(output=output, done=tuple(done), failed=failed, notes=notes)


def _dataset_json(channels: Sequence[str], labels: Labels, count: int) -> dict[str, Any]:
    values = {label: place for place, label in enumerate(labels, start=1)}
    return {
        "channel_names": {str(i): channel.strip() for i, channel in enumerate(channels)},
        "labels": {"background": 0} | values,
        "numTraining": count,
        "file_ending": _ENDING,
    }


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return without_screenshots(paths)


def _images(folder: Path, channels: int) -> dict[str, list[Path]]:
    """The image files or DICOM folder of each case.

    A number at the end of names counts channels where these are just `_0000` to that of the last.
    """
    found: dict[str, list[Path]] = {}
    numbered: dict[str, list[Path]] = defaultdict(list)
    last = [f"_{number:04d}" for number in range(channels)]
    for path in _visible(folder):
        if path.is_dir() and is_dicom_folder(path):
            found[path.name] = [path]
        elif is_volume(path) and not _OF_MASKS.search(name := stem(path)):
            numbered[_CHANNEL.sub("", name)].append(path)
    for case, files in numbered.items():
        if [stem(file).removeprefix(case) for file in files] == last:
            found[case] = files
        else:
            found.update({stem(file): [file] for file in files})
    if not found:
        raise FileNotFoundError(f"{folder}: expected images or DICOM folders, found none")
    return found


def _masks(folder: Path, images: Collection[Path]) -> dict[str, Path]:
    """The mask file, or folder of structures or of a DICOM mask, of each case."""
    found: dict[str, Path] = {}
    for path in _visible(folder):
        if is_volume(path):
            if path not in images:  # which may lie beside their masks
                found[_OF_MASKS.sub("", stem(path))] = path
        elif path.is_dir() and structures(path):
            found[path.name] = path
        elif (mask := dicom_mask(path)) is not None:
            found[_OF_MASKS.sub("", path.name.removesuffix(".dcm"))] = mask
    return found


def _convert_case(
    case_id: str, case: tuple[list[Path], Path], folder: Path, labels: Labels, channel_count: int
) -> tuple[set[str], int]:
    """Write one case; returns the labels that it has, and how many voxels are of several."""
    files, mask = case
    image, geometry = read_image(files)
    if len(image) != channel_count:
        raise ValueError(
            f"{some(str(path) for path in files)}: found {len(image)} channel(s), but --modality "
            f"names {channel_count}"
        )
    found, overlap, grid = read_mask(mask, labels, geometry)
    if difference := geometry.difference_from(grid):
        moved = placed(found, grid, geometry)
        if moved is None:
            raise ValueError(
                f"{files[0]} and {mask} lie on other grids: {difference}; resample the mask onto "
                f"the image, by nearest neighbours"
            )
        found = moved
    for number, channel in enumerate(image):
        target = folder / "imagesTr" / f"{case_id}_{number:04d}{_ENDING}"
        if len(files) == channel_count and file_ending(files[number]) == _ENDING:
            with replacing(target) as temporary:
                shutil.copyfile(files[number], temporary)
        else:
            write_image(target, channel, geometry)
    write_image(folder / "labelsTr" / f"{case_id}{_ENDING}", found, geometry)
    names = list(labels)
    return {names[value - 1] for value in np.unique(found).tolist() if value}, overlap


def _notes(
    images: Mapping[str, object],
    masks: Mapping[str, object],
    labels: Labels,
    done: Mapping[str, tuple[set[str], int]],
) -> tuple[str, ...]:
    """What was left out, and labels that no case has."""
    notes = []
    if alone := sorted(set(images) - set(masks)):
        notes.append(f"left out, as they have no mask: {some(alone)}")
    if alone := sorted(set(masks) - set(images)):
        notes.append(f"left out, as they have no image: {some(alone)}")
    if empty := [label for label in labels if not any(label in of for of, _ in done.values())]:
        notes.append(f"in no case: {some(empty)}")
    if several := [case for case, (_, voxels) in done.items() if voxels]:
        most = max(voxels for _, voxels in done.values())
        notes.append(
            f"structures overlap in {len(several)} case(s), by up to {most} voxels; there the one "
            f"that comes later among the labels stays: {some(labels)}"
        )
    return tuple(notes)
