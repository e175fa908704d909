"""One raw case and the plans to one preprocessed case; many cases in worker processes."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from promptseg.boxes import box_slices, value_boxes
from promptseg.files import read_json
from promptseg.io.images import Geometry, read_image, read_segmentation
from promptseg.parallel import Workers, map_cases
from promptseg.plans import Normalization
from promptseg.preprocessing.dataset import case_files, remove_case, write_case
from promptseg.preprocessing.lazy import LazyImage
from promptseg.preprocessing.resample import resample_segmentation

if TYPE_CHECKING:
    from promptseg.io.dataset import RawCase

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1  # raise it when the same plans give other files
MAX_LOCATIONS = 1000  # a label and case: many more than the patches drawn from a case


class PreprocessingPlans(Protocol):
    """What preprocessing reads of the plans.

    Attributes:
        normalizations: one a channel.
        spacing: of the preprocessed images, mm, zyx.
        keeps_spacing: images stay on their own voxels whatever `spacing` says.
        labels: values by name; 0 is background.
    """

    normalizations: tuple[Normalization, ...]
    spacing: tuple[float, float, float]
    keeps_spacing: bool
    labels: dict[str, int]


def preprocess_dataset(
    cases: Sequence[RawCase], plans: PreprocessingPlans, folder: Path, processes: int | Workers
) -> dict[str, str]:
    """Preprocess every case that is not there yet, with a progress bar.

    Cases that the folder holds already, made by the same settings from the same files, are kept.

    Args:
        cases: the raw cases.
        plans: see `PreprocessingPlans`.
        folder: of this configuration; made when missing.
        processes: worker processes; 0 works in this one.

    Returns:
        what went wrong, by case identifier; empty when nothing did.

    Raises:
        ValueError: if two cases would write the same file.
    """
    _check_names(cases)
    waiting = [case for case in cases if not _is_up_to_date(case, plans, folder)]
    if len(waiting) < len(cases):
        logger.info(
            "%d of %d cases are in %s already, made by the same settings from the same files; "
            "they are kept",
            len(cases) - len(waiting),
            len(cases),
            folder,
        )
    failed = {}
    for case, _, error in map_cases(
        preprocess_case, waiting, plans, folder, processes=processes, description="preprocessing"
    ):
        if error is not None:
            failed[case.case_id] = str(error) or repr(error)
            logger.error("case %s: %s", case.case_id, failed[case.case_id])
    return failed


def preprocess_case(case: RawCase, plans: PreprocessingPlans, folder: Path) -> None:
    """Read one raw case and write it to the preprocessed folder, replacing what is there of it.

    Raises:
        FileNotFoundError, ValueError: naming the file that is missing or does not fit the others
            or the plans. Nothing of the case is left in the folder then.
    """
    remove_case(folder, case.case_id)
    settings = _settings(case, plans)  # before reading: a file changed meanwhile is made anew
    raw, geometry = read_image(case.images)
    if len(raw) != len(plans.normalizations):
        raise ValueError(
            f"case {case.case_id!r}: {len(raw)} channels in {_names(case.images)}, but the plans "
            f"normalize {len(plans.normalizations)}; see channel_names in dataset.json"
        )
    spacing = geometry.spacing if plans.keeps_spacing else plans.spacing
    lazy = LazyImage(
        raw, geometry.spacing, normalizations=plans.normalizations, target_spacing=spacing
    )
    image, ranges, shape = lazy.everything(), lazy.ranges, lazy.shape[1:]
    del raw, lazy
    segmentation, labels = None, {}
    if case.label is not None:
        segmentation = resample_segmentation(_read_label(case.label, geometry, plans), shape)
        labels = _label_statistics(segmentation, plans.labels, case.case_id)
    extent_mm = np.multiply(geometry.shape, geometry.spacing)
    properties = {
        "case_id": case.case_id,
        "raw": {
            "shape": geometry.shape,
            "spacing": geometry.spacing,
            "origin": geometry.origin,
            "direction": geometry.direction,
            "files": [str(Path(path).absolute()) for path in case.images],
        },
        "shape": shape,
        "spacing": (extent_mm / shape).tolist(),  # the plans' but for rounding to whole voxels
        "settings": settings,
        "intensity_ranges": ranges,
        "constant_channels": [not channel.any() for channel in image],
        "labels": labels,
    }
    write_case(folder, case.case_id, image, segmentation, properties)


def _read_label(path: Path, of_image: Geometry, plans: PreprocessingPlans) -> np.ndarray:
    segmentation, geometry = read_segmentation(path)
    if geometry.shape != of_image.shape:
        raise ValueError(
            f"{path}: the label has shape {geometry.shape}, its image {of_image.shape} (zyx, "
            f"voxels); bring both to one grid"
        )
    unknown = set(np.unique(segmentation).tolist()) - {0} - set(plans.labels.values())
    if unknown:
        raise ValueError(
            f"{path}: holds the values {sorted(unknown)}, which are not among the labels of "
            f"dataset.json: {plans.labels}"
        )
    return segmentation


def _label_statistics(
    segmentation: np.ndarray, labels: dict[str, int], case_id: str
) -> dict[int, dict[str, Any]]:
    """Voxel count, half-open box and a random sample of voxels (zyx) of each label that occurs.

    The sample is drawn by a generator seeded with the case identifier: it never changes.
    """
    rng = np.random.default_rng(zlib.crc32(case_id.encode()))
    statistics = {}
    for value, box in value_boxes(segmentation, max(labels.values(), default=0)).items():
        inside = np.flatnonzero(segmentation[box_slices(box)] == value)
        sample = np.sort(rng.choice(inside, min(len(inside), MAX_LOCATIONS), replace=False))
        locations = np.stack(np.unravel_index(sample, box[1] - box[0]), axis=1) + box[0]
        statistics[value] = {
            "voxels": len(inside),
            "box": box.tolist(),
            "locations": locations.tolist(),
        }
    return statistics


def _settings(case: RawCase, plans: PreprocessingPlans) -> dict[str, Any]:
    """Everything that a preprocessed case follows from, in JSON's types."""
    files = [*case.images, *([] if case.label is None else [case.label])]
    states = [(path, path.stat()) for path in map(Path, files)]
    return {
        "format_version": FORMAT_VERSION,
        "normalizations": [n.to_json() for n in plans.normalizations],
        "spacing": "as it is" if plans.keeps_spacing else [float(s) for s in plans.spacing],
        "labels": dict(plans.labels),
        "files": [[path.name, state.st_size, state.st_mtime_ns] for path, state in states],
    }


def _is_up_to_date(case: RawCase, plans: PreprocessingPlans, folder: Path) -> bool:
    image_file, segmentation_file, properties_file = case_files(folder, case.case_id)
    needed = [properties_file, image_file, *([segmentation_file] if case.label else [])]
    if not all(path.is_file() for path in needed):
        return False
    try:
        return read_json(properties_file)["settings"] == _settings(case, plans)
    except (OSError, ValueError, TypeError, LookupError):
        return False  # damaged, or a raw file is gone: making it anew will tell


def _check_names(cases: Sequence[RawCase]) -> None:
    known = {case.case_id for case in cases}
    clash = sorted(case_id for case_id in known if f"{case_id}_seg" in known)
    if clash:
        raise ValueError(
            f"cases {clash[0]!r} and {clash[0] + '_seg'!r} would share a file; rename one of them"
        )


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(Path(path).name for path in paths)
