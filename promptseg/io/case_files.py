"""File names to cases: CASE_0000.nii.gz is channel 0 of CASE."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from promptseg.io.images import (
    FILE_ENDINGS,
    NPZ,
    count_channels,
    file_ending,
    is_dicom_folder,
    without_screenshots,
)
from promptseg.words import some

_CHANNEL = re.compile(r"(?P<case_id>.+)_(?P<channel>\d{4})")
_COMPANIONS = (".raw", ".zraw", ".img", ".raw.gz", ".json", ".txt", ".csv", ".md")


@dataclass(frozen=True, kw_only=True)
class RawCase:
    """One case: a file for each channel in channel order (those that exist), and its labels.

    `label` is None when there is no label file; a DICOM series counts as one file.
    """

    case_id: str
    images: tuple[Path, ...]
    label: Path | None


def cases_in_folder(
    folder: Path | str, channel_count: int, file_ending: str | None = None
) -> tuple[list[RawCase], list[str], dict[str, str]]:
    """Cases to predict: a folder of images, a folder of DICOM series, one series, or one file.

    Files are named CASE_0000.nii.gz, where the number is the channel. A file without the number is
    a whole case where one channel, or one file with all channels as its components, is expected.
    Every subfolder with a DICOM series is a case (or a channel, if its name says so).

    Args:
        folder: the folder or the file.
        channel_count: channels that the model expects per case.
        file_ending: accept only files with this ending; by default, any that is read.

    Returns:
        the cases, sorted by identifier, with no labels; notes on what was assumed or ignored;
        and for each case with missing, surplus or clashing files, what is wrong.

    Raises:
        FileNotFoundError: if there is no image, listing what was found and expected.
    """
    path = Path(folder)
    endings = FILE_ENDINGS if file_ending is None else (file_ending,)
    if path.is_file():
        images, others = _images_beside(path, channel_count, endings)
    elif path.is_dir():
        images, others = _images_in(path, endings)
    else:
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not images:
        expected = " or ".join(f"CASE_0000{ending}" for ending in endings[:3])
        raise FileNotFoundError(
            f"{path} holds no image to predict: found {len(others)} other file(s) or folder(s)"
            f"{': ' + some(others) if others else ''}; expected {expected}"
            f"{', ...' if len(endings) > 3 else ''} with {channel_count} channel(s) per case, or "
            f"one folder per DICOM series"
        )
    cases, notes, problems = _group(images, channel_count)
    if ignored := [name for name in others if not name.lower().endswith(_COMPANIONS)]:
        notes.append(
            f"{len(ignored)} file(s) or folder(s) are not images and are ignored: {some(ignored)}"
        )
    return cases, notes, problems


def training_cases(images: Path, labels: Path, ending: str) -> list[RawCase]:
    """The cases of imagesTr and labelsTr: all that have an image or a label.

    Raises:
        FileNotFoundError: if one of the folders does not exist.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; a raw dataset needs it")
    label_of = _by_stem(labels, ending)
    images_of: dict[str, list[Path]] = {case_id: [] for case_id in label_of}
    for stem, path in _by_stem(images, ending).items():
        match = _CHANNEL.fullmatch(stem)
        paths = images_of.setdefault(match["case_id"] if match else stem, [])
        if match:
            paths.append(path)
    return [
        RawCase(case_id=case_id, images=tuple(sorted(paths)), label=label_of.get(case_id))
        for case_id, paths in images_of.items()
    ]


def unused_images(folders: Iterable[Path], cases: Iterable[RawCase]) -> list[Path]:
    """The image files in folders that belong to no case: of another ending, or found twice."""
    used = {path for case in cases for path in (*case.images, case.label)}
    paths = (Path(entry.path) for folder in folders for entry in os.scandir(folder))
    return sorted(
        path
        for path in paths
        if path not in used and not path.name.startswith(".") and file_ending(path) is not None
    )


def channel_numbers(case: RawCase) -> list[int]:
    """The numbers in the names of a case's image files; of files without one none."""
    stems = (path.name[: -len(file_ending(path) or "")] for path in case.images)
    return [int(match["channel"]) for stem in stems if (match := _CHANNEL.fullmatch(stem))]


def _by_stem(folder: Path, ending: str) -> dict[str, Path]:
    """The files with an ending, in upper or lower case, by what comes before it, in order."""
    names = (entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    found: dict[str, Path] = {}
    for name in sorted(names):
        if name.lower().endswith(ending.lower()):
            found.setdefault(name[: -len(ending)], folder / name)
    return dict(sorted(found.items()))


def _images_in(folder: Path, endings: tuple[str, ...]) -> tuple[list[tuple[str, Path]], list[str]]:
    """Images of a folder with the names that carry case and channel; names of all else."""
    images, others = [], []
    paths = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    kept = set(without_screenshots(paths))
    for path in paths:
        ending = file_ending(path) if path in kept else None
        if path.is_file() and ending in endings:
            images.append((path.name[: -len(ending)], path))
        elif path.is_dir() and is_dicom_folder(path):
            images.append((path.name, path))
        else:
            others.append(path.name)
    if not images and is_dicom_folder(folder):
        return [(folder.resolve().name, folder)], []
    return images, others


def _images_beside(
    file: Path, channel_count: int, endings: tuple[str, ...]
) -> tuple[list[tuple[str, Path]], list[str]]:
    """The one file, and the other channels of its case if the model expects several."""
    ending = file_ending(file)
    if ending not in endings:
        return [], [file.name]
    stem = file.name[: -len(ending)]
    match = _CHANNEL.fullmatch(stem)
    if channel_count == 1 or not match or ending == NPZ:
        return [(stem, file)], []
    stems = [f"{match['case_id']}_{channel:04d}" for channel in range(channel_count)]
    paths = [file.with_name(stem + file.name[-len(ending) :]) for stem in stems]
    return [(stem, p) for stem, p in zip(stems, paths, strict=True) if p.exists()], []


def _group(
    images: list[tuple[str, Path]], channel_count: int
) -> tuple[list[RawCase], list[str], dict[str, str]]:
    """Named images to cases; notes on what was assumed; problems by case."""
    numbered: dict[str, dict[int, list[Path]]] = {}
    whole: dict[str, list[Path]] = {}
    for stem, path in images:
        match = None if file_ending(path) == NPZ else _CHANNEL.fullmatch(stem)
        if match:
            channels = numbered.setdefault(match["case_id"], {})
            channels.setdefault(int(match["channel"]), []).append(path)
        else:
            whole.setdefault(stem, []).append(path)
    # A number that is not a channel belongs to the name: LIVER_0007.nii.gz, one channel.
    for case_id, channels in list(numbered.items()):
        if min(channels) >= channel_count:
            for number, paths in channels.items():
                whole.setdefault(f"{case_id}_{number:04d}", []).extend(paths)
            del numbered[case_id]

    files: dict[str, tuple[Path, ...]] = {}
    problems: dict[str, str] = {}
    for case_id, channels in numbered.items():
        files[case_id] = tuple(found[0] for _, found in sorted(channels.items()))
        if problem := _problem_of_channels(channels, channel_count, case_id):
            problems[case_id] = problem
    for case_id, paths in whole.items():
        clashing = paths + [p for found in numbered.get(case_id, {}).values() for p in found]
        files[case_id] = (paths[0],)
        if len(clashing) > 1:
            names = ", ".join(path.name for path in clashing)
            problems[case_id] = f"found more than once: {names}; keep one"
        elif channel_count > 1 and (problem := _problem_of_whole(paths[0], channel_count, case_id)):
            problems[case_id] = problem
    cases = [RawCase(case_id=c, images=images, label=None) for c, images in sorted(files.items())]
    unnumbered = [path for paths in whole.values() for path in paths if path.is_file()]
    notes = _notes_on_names([path for path in unnumbered if file_ending(path) != NPZ])
    return cases, notes, problems


def _problem_of_whole(path: Path, channel_count: int, case_id: str) -> str | None:
    """What is wrong with one file that should hold all channels."""
    try:
        count = count_channels(path)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    if count == channel_count:
        return None
    return (
        f"{path.name} holds {count} channel(s) and has no channel number in its name; expected "
        f"{channel_count} files {_channel_names(case_id, range(channel_count), path)}"
    )


def _problem_of_channels(
    channels: dict[int, list[Path]], channel_count: int, case_id: str
) -> str | None:
    names = ", ".join(path.name for _, found in sorted(channels.items()) for path in found)
    first = channels[min(channels)][0]
    if any(len(found) > 1 for found in channels.values()):
        return f"a channel was found more than once: {names}; keep one of each"
    if missing := sorted(set(range(channel_count)) - set(channels)):
        expected = _channel_names(case_id, missing, first)
        return f"found {names}, missing {expected}"
    if len(channels) > channel_count:
        return (
            f"found {names}, but the model takes {channel_count} channel(s); "
            f"if the number belongs to the case, add _0000 to each name"
        )
    return None


def _channel_names(case_id: str, channels: Iterable[int], like: Path) -> str:
    ending = file_ending(like) or ""
    return ", ".join(f"{case_id}_{channel:04d}{ending}" for channel in channels)


def _notes_on_names(paths: list[Path]) -> list[str]:
    if not paths:
        return []
    names = some((path.name for path in sorted(paths)), most=3)
    return [
        f"{len(paths)} file(s) have no channel number (_0000) in their name and are read as whole "
        f"cases: {names}"
    ]
