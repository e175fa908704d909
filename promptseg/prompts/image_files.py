"""Automatic prompts for image files, without model or dataset: `promptseg_auto_prompt`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.files import write_json
from promptseg.io.images import (
    NPZ,
    Geometry,
    file_ending,
    is_dicom_folder,
    read_image,
    without_screenshots,
)
from promptseg.parallel import map_cases
from promptseg.plans import Normalization
from promptseg.preprocessing.modality import channel_statistics, declared_modality, looks_like_hu
from promptseg.preprocessing.normalize import (
    CT_WINDOWS,
    ct_window,
    default_normalization,
    normalize,
)
from promptseg.prompts.auto_prompter import Proposal
from promptseg.prompts.automatic import auto_prompt, make_prompter
from promptseg.prompts.picture import draw_boxes
from promptseg.prompts.types import PROMPTS_HEADER, Prompts
from promptseg.prompts.world import voxel_to_world
from promptseg.words import some


@dataclass(frozen=True, kw_only=True)
class AutoPromptOptions:
    """How `auto_prompt_files` proposes boxes.

    Attributes:
        strategy: a name in `AUTO_PROMPTERS`.
        parameters: of the strategy, by name.
        modality: `CT`, `MRI`, `PET` or `US` (or a common synonym) for all files; guessed from
            each file's intensities when not given.
        window: the clinical window for CT, a name in `CT_WINDOWS`; implies the modality CT.
        label: the name under which the boxes are filed; the strategy does not know what it found.
    """

    strategy: str = "intensity"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    modality: str | None = None
    window: str | None = None
    label: str = "object"

    def normalization(self) -> Normalization | None:
        """What modality and window ask for; None where each file's modality is to be guessed.

        Raises:
            ValueError: if either is unknown, or the two contradict each other.
        """
        named = declared_modality(self.modality) if self.modality else None
        if self.modality and named is None:
            raise ValueError(f"modality must be CT, MRI, PET or US, found {self.modality!r}")
        if self.window is None:
            return default_normalization(named) if named else None
        if self.window not in CT_WINDOWS:
            known = ", ".join(CT_WINDOWS)
            raise ValueError(f"window must be one of {known}, found {self.window!r}")
        if named not in (None, "CT"):
            raise ValueError(
                f"window {self.window!r} is for CT, but the modality is {named}; leave one out"
            )
        return ct_window(self.window)


def auto_prompt_files(
    inputs: Path | str,
    output: Path | str,
    options: AutoPromptOptions | None = None,
    *,
    png: bool = False,
    processes: int = 0,
) -> dict[str, Any]:
    """Propose boxes for image files and write them as a prompts file.

    Every file is one case, also where several are channels of one patient; `_0000` at the end of
    a name is left off, as in a raw dataset. A file that cannot be prompted is reported and does
    not stop the others.

    Args:
        inputs: an image file, a DICOM folder, or a folder of such files and folders; also .npz
            files of the CVPR 2025 BiomedSegFM challenge, whose images lie in [0, 255] already.
        output: the JSON file to write; `promptseg_predict --prompts` reads it, for a label that
            its model knows or for an unnamed object (`is_unnamed`).
        options: strategy, parameters, modality and label; the defaults when not given.
        png: whether to draw each case's boxes into the folder `<output>_png`.
        processes: worker processes; 0 runs everything in this one, on large volumes in threads.

    Returns:
        What was written: the prompts by case under `cases`, how each came about under `report`,
        and an error message for each failed case under `failed`.

    Raises:
        FileNotFoundError: if there is no image to prompt.
        ValueError: if strategy, parameters, modality or window are not known.
    """
    inputs, output = Path(inputs), Path(output)
    options = options or AutoPromptOptions()
    make_prompter(options.strategy, dict(options.parameters))  # a mistake fails here, once
    options.normalization()
    pictures = output.with_name(f"{output.stem}_png") if png else None
    images = find_images(inputs)
    cases, report, failed = {}, {}, {}
    outcomes = map_cases(
        _prompt_file,
        sorted(images.items()),
        *(options, pictures),
        processes=processes,
        description="prompting",
    )
    for (case_id, path), result, error in outcomes:
        if error is None:
            cases[case_id], report[case_id] = result
        else:
            failed[case_id] = str(error) if str(path) in str(error) else f"{path}: {error}"
    content = {
        **PROMPTS_HEADER,
        "strategy": options.strategy,
        "parameters": dict(options.parameters),
        "cases": dict(sorted(cases.items())),
        "report": dict(sorted(report.items())),
        "failed": dict(sorted(failed.items())),
    }
    write_json(output, content)
    return content


def find_images(inputs: Path) -> dict[str, Path]:
    """The images to prompt, by case identifier: a file, a DICOM folder, or a folder's contents.

    Raises:
        FileNotFoundError: if there are none, naming what was found.
        ValueError: if two files have the same case identifier.
    """
    if not inputs.exists():
        raise FileNotFoundError(f"{inputs}: no such file or folder")
    candidates = [inputs]
    if inputs.is_dir():
        candidates = sorted(path for path in inputs.iterdir() if not path.name.startswith("."))
        if not any(map(_is_image, candidates)) and is_dicom_folder(inputs):
            candidates = [inputs]
    images: dict[str, Path] = {}
    for path in without_screenshots(candidates):
        if path.is_dir() and is_dicom_folder(path):
            case_id = path.resolve().name
        elif path.is_file() and (ending := _ending(path)):
            case_id = path.name[: -len(ending)].removesuffix("_0000")
        else:
            continue
        if case_id in images:
            raise ValueError(
                f"{images[case_id]} and {path} are both the case {case_id!r}; rename or move one"
            )
        images[case_id] = path
    if not images:
        names = some(path.name for path in candidates)
        raise FileNotFoundError(
            f"{inputs}: no image to prompt, found {names}; expected images that SimpleITK reads "
            f"(.nii.gz, .nrrd, .mha, ...), a folder for each DICOM series, or .npz with `imgs`"
        )
    return images


def _is_image(path: Path) -> bool:
    return is_dicom_folder(path) or (path.is_file() and _ending(path) is not None)


def _ending(path: Path) -> str | None:
    """The ending of an image file; None for other files, the challenge's labels among them."""
    return None if path.name.lower().endswith(f"_gt{NPZ}") else file_ending(path)


def _prompt_file(
    case: tuple[str, Path], options: AutoPromptOptions, pictures: Path | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One file's entries under `cases` and `report`."""
    case_id, path = case
    start = time.perf_counter()
    image, geometry, how = _read_normalized(path, options.normalization())
    proposal = auto_prompt(image, options.strategy, geometry.spacing, **options.parameters)
    if pictures is not None:
        draw_boxes(
            image,
            proposal.boxes,
            geometry.spacing,
            pictures / f"{case_id}.png",
            title=f"{case_id}   {options.strategy}: {proposal.reason}",
        )
    report = {
        "image": str(path),
        "shape": geometry.shape,
        "spacing": geometry.spacing,
        "normalization": how,
        "boxes_mm": [_in_world(box, geometry) for box in proposal.boxes],
        "seconds": round(time.perf_counter() - start, 3),
    }
    return {options.label: _prompts(proposal, options.strategy).to_json()}, report


def _read_normalized(
    path: Path, normalization: Normalization | None
) -> tuple[np.ndarray, Geometry, str]:
    """(z, y, x) image in [0, 255], its geometry, and how it was normalized, in words."""
    channels, geometry = read_image(path)
    image = channels[0]
    if file_ending(path) == NPZ:
        return image, geometry, "none, npz in [0, 255]"
    if not np.isfinite(image).all():
        bad = np.count_nonzero(~np.isfinite(image))
        raise ValueError(f"{path}: {bad} voxels are NaN or infinite; replace them first")
    how = "as given"
    if normalization is None:
        is_ct = looks_like_hu(channel_statistics(image))
        normalization = default_normalization("CT" if is_ct else "unknown")
        how = f"guessed: intensities {'look' if is_ct else 'do not look'} like HU"
    if len(channels) > 1:
        how += f"; the first of {len(channels)} channels"
    what = f"{normalization.kind} {normalization.lower:g} to {normalization.upper:g}"
    return normalize(image, normalization), geometry, f"{what}, {how}"


def _prompts(proposal: Proposal, strategy: str) -> Prompts:
    return Prompts(
        boxes=np.array(proposal.boxes, dtype=int).reshape(-1, 2, 3),
        points=np.zeros((0, 3)),
        point_labels=np.zeros(0, int),
        source=strategy,
        score=round(proposal.score, 4),
        reason=proposal.reason,
    )


def _in_world(box: np.ndarray, geometry: Geometry) -> list[list[float]]:
    """Outer edges of a box's first and last voxel: x, y, z in mm (LPS, as SimpleITK)."""
    return np.round(voxel_to_world(box - 0.5, geometry), 3).tolist()
