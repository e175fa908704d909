"""Preprocess raw cases as the plans say: one case, and many in worker processes."""

from __future__ import annotations

import logging
import tempfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from promptseg.boxes import box_slices, value_boxes
from promptseg.files import WRITING, read_json
from promptseg.io.images import Geometry, read_image, read_segmentation
from promptseg.io.orientation import turn_to
from promptseg.labels import IGNORED, Values, meanings, stored_values, with_ignored
from promptseg.parallel import Workers, map_cases
from promptseg.plans import Plans
from promptseg.preprocessing.dataset import (
    case_files,
    move_case,
    remove_case,
    replace_properties,
    write_case,
    write_files,
)
from promptseg.preprocessing.lazy import LazyImage
from promptseg.preprocessing.resample import resample_segmentation

if TYPE_CHECKING:
    from promptseg.io.dataset import RawCase

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1  # raise it when the same plans give other files
_MOVING = 8  # cases moved into place at a time
MAX_LOCATIONS = 1000  # per label and case: many more than the patches drawn from a case


Summarize = Callable[[str, np.ndarray, np.ndarray, tuple[float, float, float]], Any]
"""Called with the case identifier, (z, y, x) raw intensities of channel 0, (z, y, x) labels and
spacing in mm, all in the plans' orientation; returns something small."""


def preprocess_dataset(
    cases: Sequence[RawCase], plans: Plans, folder: Path, processes: int | Workers
) -> dict[str, str]:
    """Preprocess every case that is not up to date, with a progress bar.

    Cases that the folder already has, made with the same settings from the same files, are kept.

    Args:
        cases: the raw cases.
        plans: their normalizations, spacing and labels are used.
        folder: preprocessed cases of these plans; created if missing.
        processes: number of worker processes; 0 runs everything in this process.

    Returns:
        What went wrong, by case identifier; empty when nothing did.

    Raises:
        ValueError: if two cases would write the same file.
    """
    return preprocess_and_summarize(cases, plans, folder, processes)[0]


def preprocess_and_summarize(
    cases: Sequence[RawCase],
    plans: Plans,
    folder: Path,
    processes: int | Workers,
    summarize: Summarize | None = None,
) -> tuple[dict[str, str], dict[str, Any]]:
    """`preprocess_dataset`, which also takes from the raw voxels whatever else is needed of them.

    Args:
        cases, plans, folder, processes: as of `preprocess_dataset`.
        summarize: a module-level function, or a partial of one; called in a worker.

    Returns:
        What went wrong, and what `summarize` returned, both by case identifier. A case that was
        kept, or could not be read, has no summary.
    """
    _check_names(cases)
    waiting = [case for case in cases if not _is_kept(case, plans, folder)]
    if len(waiting) < len(cases):
        logger.info(
            "%d of %d cases are already in %s, made with the same settings from the same files; "
            "they are kept",
            len(cases) - len(waiting),
            len(cases),
            folder,
        )
    failed, summaries, moves = {}, {}, {}
    folder.mkdir(parents=True, exist_ok=True)
    with (
        # after a failure workers of a cluster may still write there
        tempfile.TemporaryDirectory(
            prefix=WRITING, dir=folder, ignore_cleanup_errors=True
        ) as scratch,
        ThreadPoolExecutor(_MOVING) as disk,  # it is waited for here while workers compute
    ):
        arguments = (plans, Path(scratch), summarize)
        for case, result, error in map_cases(
            _preprocess_to, waiting, *arguments, processes=processes, description="preprocessing"
        ):
            if error is not None:
                remove_case(folder, case.case_id)
                failed[case.case_id] = error
                continue
            written, summary = result
            moves[case.case_id] = disk.submit(move_case, written, folder, case.case_id)
            if summarize:
                summaries[case.case_id] = summary
        failed |= {case_id: e for case_id, move in moves.items() if (e := move.exception())}
    for case_id, error in failed.items():
        logger.error("case %s: %s", case_id, str(error) or repr(error))
    return {case_id: str(error) or repr(error) for case_id, error in failed.items()}, summaries


def preprocess_case(case: RawCase, plans: Plans, folder: Path) -> None:
    """Read one raw case and write it to the preprocessed folder, replacing an earlier version.

    Raises:
        FileNotFoundError, ValueError: naming the file that is missing or does not fit the others
            or the plans. Then nothing of the case is left in the folder.
    """
    remove_case(folder, case.case_id)
    image, segmentation, properties, _ = _preprocessed(case, plans)
    write_case(folder, case.case_id, image, segmentation, properties)


def _preprocess_to(
    case: RawCase, plans: Plans, scratch: Path, summarize: Summarize | None
) -> tuple[Path, Any]:
    """Write one case to a folder of its own that nobody lists; returns that and the summary.

    Of its own, since a worker of a cluster that was given up may still be writing the same case.
    """
    image, segmentation, properties, summary = _preprocessed(case, plans, summarize)
    own = Path(tempfile.mkdtemp(dir=scratch))
    write_files(own, case.case_id, image, segmentation, properties)
    return own, summary


def _preprocessed(
    case: RawCase, plans: Plans, summarize: Summarize | None = None
) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any], Any]:
    """Image, segmentation and properties of a case; the summary of a case with labels."""
    settings = _settings(case, plans)  # before reading, in case a file changes meanwhile
    raw, geometry = read_image(case.images)
    if len(raw) != len(plans.normalizations):
        raise ValueError(
            f"case {case.case_id!r}: {len(raw)} channels in {_names(case.images)}, but the plans "
            f"normalize {len(plans.normalizations)}; see channel_names in dataset.json"
        )
    turn = turn_to(plans.orientation, geometry.direction)
    raw, spacing = np.ascontiguousarray(turn.array(raw)), turn.of_axes(geometry.spacing)
    segmentation, summary, labels, annotated = None, None, {}, {}
    if case.label is not None:
        segmentation = np.ascontiguousarray(turn.array(_read_label(case.label, geometry, plans)))
        if summarize:
            summary = summarize(case.case_id, raw[0], segmentation, spacing)
    lazy = LazyImage(
        raw,
        spacing,
        normalizations=plans.normalizations,
        target_spacing=spacing if plans.keeps_spacing else plans.spacing,
    )
    image, ranges, shape = lazy.everything(), lazy.ranges, lazy.shape[1:]
    del raw, lazy
    if segmentation is not None:
        segmentation = resample_segmentation(segmentation, shape)
        labels = _label_statistics(segmentation, plans.labels, case.case_id)
        annotated = _annotated(segmentation, case.case_id)
    extent_mm = np.multiply(turn.of_axes(geometry.shape), spacing)
    properties = {
        "case_id": case.case_id,
        "raw": {
            "shape": geometry.shape,
            "spacing": geometry.spacing,
            "origin": geometry.origin,
            "direction": geometry.direction,
            "files": _absolute(case.images),
        },
        "shape": shape,
        "spacing": (extent_mm / shape).tolist(),  # the plans' but for rounding to whole voxels
        "settings": settings,
        "intensity_ranges": ranges,
        "constant_channels": [not channel.any() for channel in image],
        "labels": labels,
        **annotated,
    }
    return image, segmentation, properties, summary


def _read_label(path: Path, of_image: Geometry, plans: Plans) -> np.ndarray:
    """The (z, y, x) labels of a case on its image's grid, ignored voxels marked."""
    segmentation, geometry = read_segmentation(path)
    if geometry.shape != of_image.shape:
        raise ValueError(
            f"{path}: the label has shape {geometry.shape}, its image {of_image.shape} (zyx, "
            f"voxels); bring both to one grid"
        )
    known = meanings(plans.labels, plans.ignore_label)
    unknown = set(np.unique(segmentation).tolist()) - set(known)
    if unknown:
        raise ValueError(
            f"{path}: holds the values {sorted(unknown)}, which are not among the labels of "
            f"dataset.json: {known}"
        )
    return with_ignored(segmentation, plans.ignore_label)


def _label_statistics(
    segmentation: np.ndarray, labels: dict[str, Values], case_id: str
) -> dict[int, dict[str, Any]]:
    """Voxel count, half-open box and a random sample of voxels (zyx) of each value that occurs.

    The sample is drawn by a generator seeded with the case identifier: it never changes.
    """
    rng = np.random.default_rng(zlib.crc32(case_id.encode()))
    statistics = {}
    for value, box in value_boxes(segmentation, max(stored_values(labels), default=0)).items():
        inside = segmentation[box_slices(box)] == value
        locations = _sample(inside, rng) + box[0]
        statistics[value] = {
            "voxels": int(inside.sum()),
            "box": box.tolist(),
            "locations": locations.tolist(),
        }
    return statistics


def _annotated(segmentation: np.ndarray, case_id: str) -> dict[str, list[list[int]]]:
    """A random sample of the voxels (zyx) whose label is known, if some are `IGNORED`.

    Where little is known, a patch must be looked for.
    """
    if not (segmentation == IGNORED).any():
        return {}
    rng = np.random.default_rng([zlib.crc32(case_id.encode()), 1])
    return {"annotated": _sample(segmentation != IGNORED, rng).tolist()}


def _sample(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(k, 3) random voxels of a (z, y, x) bool mask, at most `MAX_LOCATIONS`, in their order."""
    inside = np.flatnonzero(mask)
    sample = np.sort(rng.choice(inside, min(len(inside), MAX_LOCATIONS), replace=False))
    return np.stack(np.unravel_index(sample, mask.shape), axis=1)


def _settings(case: RawCase, plans: Plans) -> dict[str, Any]:
    """Everything that determines a preprocessed case, in JSON's types."""
    files = [*case.images, *([] if case.label is None else [case.label])]
    states = [(path, path.stat()) for path in map(Path, files)]
    return {
        "format_version": FORMAT_VERSION,
        "normalizations": [n.to_json() for n in plans.normalizations],
        "orientation": plans.orientation,
        "spacing": "as it is" if plans.keeps_spacing else [float(s) for s in plans.spacing],
        "labels": plans.declared_labels,
        "files": [[path.name, state.st_size, state.st_mtime_ns] for path, state in states],
    }


def _is_kept(case: RawCase, plans: Plans, folder: Path) -> bool:
    """Whether a case is up to date; where its raw files have moved since, that is recorded."""
    image_file, segmentation_file, properties_file = case_files(folder, case.case_id)
    needed = [properties_file, image_file, *([segmentation_file] if case.label else [])]
    if not all(path.is_file() for path in needed):
        return False
    try:
        properties = read_json(properties_file)
        if properties["settings"] != _settings(case, plans):
            return False
        is_moved = properties["raw"]["files"] != _absolute(case.images)
    except (OSError, ValueError, TypeError, LookupError):
        return False  # damaged, or a raw file is gone: preprocessing it again will tell
    if is_moved:
        properties["raw"]["files"] = _absolute(case.images)
        replace_properties(folder, case.case_id, properties)
    return True


def _check_names(cases: Sequence[RawCase]) -> None:
    known = {case.case_id for case in cases}
    clash = sorted(case_id for case_id in known if f"{case_id}_seg" in known)
    if clash:
        raise ValueError(
            f"cases {clash[0]!r} and {clash[0] + '_seg'!r} would share a file; rename one of them"
        )


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(Path(path).name for path in paths)


def _absolute(paths: Sequence[Path]) -> list[str]:
    return [str(Path(path).absolute()) for path in paths]
