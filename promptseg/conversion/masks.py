"""Masks as people store them, and the names of what is in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from promptseg.boxes import box_slices, mask_box
from promptseg.conversion.dicom_masks import read_dicom_mask, structure_names
from promptseg.io.images import (
    VOLUME_ENDINGS,
    Geometry,
    file_ending,
    read_channels,
    read_segmentation,
)
from promptseg.prompts.world import world_to_voxel
from promptseg.words import some

_SEGMENT = re.compile(r"Segment(\d+)_LabelValue")  # of a .seg.nrrd header
_OFF_GRID = 0.02  # of a voxel
_LABELS = '"liver=1,tumour=2", or a text file with a line like that, or `1 liver`, for each label'

Labels = dict[str, int]


def parse_labels(text: str) -> Labels:
    """Names and values of labels, as `liver=1,tumour=2` or from a text file of such lines.

    Lines may also read `1 liver`, as ITK-SNAP and FreeSurfer write them, or be a JSON object.

    Raises:
        ValueError: for anything else, or names or values that occur twice or a value below 1.
    """
    path = Path(text)
    content = path.read_text(encoding="utf-8-sig") if _is_file(path) else text
    if content.lstrip().startswith("{"):
        try:
            pairs = [(str(name), value) for name, value in json.loads(content).items()]
        except json.JSONDecodeError as error:
            raise ValueError(f"labels {text[:80]!r} are not valid JSON: {error}") from error
    else:
        lines = [line.split("#")[0].strip() for line in re.split(r"[,;\n]", content)]
        pairs = [_pair(line) for line in lines if line]
    labels: Labels = {}
    for name, value in pairs:
        try:
            value = int(str(value))
        except ValueError:
            raise ValueError(f"{name!r}: expected {_LABELS}, found the value {value!r}") from None
        if value == 0:  # background
            continue
        if value < 1 or name in labels or value in labels.values() or not name:
            raise ValueError(
                f"labels {content.strip()[:80]!r}: expected names and values that each occur once, "
                f"values from 1, found {name}={value}"
            )
        labels[name] = value
    if not labels:
        raise ValueError(f"labels {text!r}: expected {_LABELS}, found nothing")
    return labels


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a list of labels that is longer than a name may be
        return False


def _pair(line: str) -> tuple[str, str]:
    """Name and value of a line `name=value`, `value name` or `value r g b name`."""
    if match := re.fullmatch(r"(.+?)\s*[=:]\s*(\S+)", line):
        return match[1].strip().strip('"'), match[2].strip('"')
    words = line.split()
    if len(words) > 1 and words[0].isdecimal():
        names = [word for word in words[1:] if not re.fullmatch(r"[\d.]+", word)]
        return " ".join(names).strip('"'), words[0]
    raise ValueError(f"{line!r}: expected {_LABELS}")


def stem(path: Path) -> str:
    """The name of a file without its ending, if it is an image's."""
    return path.name[: -len(file_ending(path) or "")] if file_ending(path) else path.name


def is_volume(path: Path) -> bool:
    """Whether this is a file of a volume, by its name."""
    return path.is_file() and file_ending(path) in VOLUME_ENDINGS


def labels_of(masks: Sequence[Path]) -> Labels:
    """The labels that files of structures, Slicer's segmentations or DICOM name, from 1."""
    names: dict[str, None] = {}
    for mask in masks:
        if not (found := _names_in(mask)):
            values = np.unique(read_segmentation(mask)[0])
            raise ValueError(
                f"{mask} does not tell what its values mean; it has {some(values.tolist())}; give "
                f"--labels {_LABELS}"
            )
        names.update(dict.fromkeys(found))
    return {name: value for value, name in enumerate(names, start=1)}


def _names_in(mask: Path) -> list[str]:
    """What a mask itself says is in it."""
    if mask.is_dir():
        return list(structures(mask))
    return list(_segments(mask)) if is_volume(mask) else structure_names(mask)


def read_mask(mask: Path, labels: Labels, onto: Geometry) -> tuple[np.ndarray, int, Geometry]:
    """A mask in labels numbered from 1 in their order, voxels that several claim, and the grid.

    Args:
        mask: image file, SEG or RTSTRUCT, or folder of structures.
        labels: values by name; of structures and segments the names alone count, and those that
            are not among them are left out.
        onto: grid of the image, on which contours are filled.

    Raises:
        ValueError: for values that are not among the labels, or structures on different grids.
    """
    if mask.is_dir():
        files = structures(mask)
        grid = read_segmentation(next(iter(files.values())))[1]
        wanted = {name: files[name] for name in labels if name in files}
        return *_merged(_structure_masks(wanted, grid), labels, grid.shape), grid
    if not is_volume(mask):
        layers, grid = read_dicom_mask(mask, list(labels), onto)
        return *_merged(layers, labels, grid.shape), grid
    segments = _segments(mask)
    if segments and set(segments) & set(labels):
        array, grid = read_channels(mask)
        if any(layer >= len(array) for layer, _ in segments.values()):
            raise ValueError(f"{mask}: its header names layers that it does not have")
        found = ((name, segments[name]) for name in labels if name in segments)
        layers = ((name, array[layer] == value) for name, (layer, value) in found)
        return *_merged(layers, labels, grid.shape), grid
    array, grid = read_segmentation(mask)
    if unknown := sorted(set(np.unique(array).tolist()) - {0, *labels.values()}):
        raise ValueError(f"{mask}: found value(s) {some(unknown)}, which --labels does not name")
    layers = ((name, array == value) for name, value in labels.items())
    return *_merged(layers, labels, grid.shape), grid


def _structure_masks(files: Mapping[str, Path], grid: Geometry) -> Iterator[tuple[str, np.ndarray]]:
    """The masks of structures, one at a time, if they lie on a grid."""
    for name, path in files.items():
        array, its_grid = read_segmentation(path)
        if difference := grid.difference_from(its_grid):
            raise ValueError(f"{path} lies on another grid than its neighbours: {difference}")
        yield name, array > 0


def placed(labels: np.ndarray, grid: Geometry, onto: Geometry) -> np.ndarray | None:
    """Labels of a part of an image, as Slicer saves them, on the image's grid.

    None where the grids differ in more than their extents, or a label lies outside the image.
    """
    if {name for name, *_ in grid.differences_from(onto)} - {"shape", "origin"}:
        return None
    shift = world_to_voxel(np.array(grid.origin), onto)
    start = np.rint(shift).astype(int)
    box = mask_box(labels > 0)
    if np.abs(shift - start).max() > _OFF_GRID or box is None:
        return None
    there = box + start
    if (there[0] < 0).any() or (there[1] > onto.shape).any():
        return None
    result = np.zeros(onto.shape, labels.dtype)
    result[box_slices(there)] = labels[box_slices(box)]
    return result


def structures(folder: Path) -> dict[str, Path]:
    """The masks of single structures in a folder, by name."""
    inner = folder / "segmentations"
    files = inner if inner.is_dir() else folder
    return {stem(path): path for path in sorted(files.iterdir()) if is_volume(path)}


def _segments(mask: Path) -> dict[str, tuple[int, int]]:
    """Layer and value of each segment that the header of a `.seg.nrrd` names."""
    if file_ending(mask) != ".nrrd":
        return {}
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(mask))
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # told when the case is read
        return {}
    header = {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}
    found = {}
    for key, value in header.items():
        if match := _SEGMENT.fullmatch(key):
            layer = header.get(f"Segment{match[1]}_Layer", "0")
            name = header.get(f"Segment{match[1]}_Name")
            if name and layer.isdecimal() and value.isdecimal():
                found[name] = int(layer), int(value)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _merged(
    layers: Iterable[tuple[str, np.ndarray]], labels: Labels, shape: tuple[int, int, int]
) -> tuple[np.ndarray, int]:
    """Labels, numbered from 1 in their order, and how many voxels several of them claim.

    Args:
        layers: name and (z, y, x) bool mask of some of the labels, in their order: where masks
            overlap, the later one stays. Taken one at a time.
        labels: values by name.
        shape: voxels, zyx.
    """
    result, overlap = np.zeros(shape, np.uint8 if len(labels) < 256 else np.int16), 0
    numbers = {name: number for number, name in enumerate(labels, start=1)}
    for name, mask in layers:
        overlap += np.count_nonzero(result[mask])
        result[mask] = numbers[name]
    return result, overlap
