"""One pass over a raw dataset: every file is read once, checked, summarized and reduced."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from promptseg.experiment_planning.auto_prompt_cases import FitCase, Reduction, reduce_case
from promptseg.experiment_planning.fingerprint import (
    CaseFingerprint,
    Fingerprint,
    LabelStatistics,
    hu_histogram,
    label_statistics,
)
from promptseg.experiment_planning.integrity import (
    Problem,
    check_channels,
    check_dataset,
    check_geometry,
    check_image,
    check_label,
    check_label_exists,
    no_foreground,
    unused_labels,
)
from promptseg.io.dataset import RawCase, RawDataset
from promptseg.io.images import Geometry, as_labels, read_image
from promptseg.io.orientation import orientation_of
from promptseg.labels import Values, meanings, with_ignored
from promptseg.parallel import Workers, map_cases
from promptseg.preprocessing.modality import (
    ChannelStatistics,
    channel_statistics,
    declared_modality,
    looks_like_hu,
    looks_windowed,
    modality_of,
)
from promptseg.words import some


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What one pass over a dataset finds.

    Attributes:
        problems: those of the dataset, then those of each broken case.
        warnings: what a person should know, but a run can continue with.
        fingerprint: of the good cases.
        good_cases: the cases without a problem.
        fit_cases: the good cases reduced for the automatic prompts, by case identifier; empty
            where no reduction was asked for.
    """

    problems: list[Problem]
    warnings: list[str]
    fingerprint: Fingerprint
    good_cases: tuple[RawCase, ...]
    fit_cases: dict[str, FitCase] = field(repr=False)


@dataclass(frozen=True)
class _CaseResult:
    problems: list[Problem]
    fingerprint: CaseFingerprint | None
    hu_histograms: dict[int, dict[int, np.ndarray]]  # channel -> label value -> counts
    fit_case: FitCase | None = None


def examine_dataset(
    dataset: RawDataset, processes: int | Workers, reduction: Reduction | None = None
) -> Examination:
    """Check and fingerprint all training cases; broken cases are reported, never raised.

    Args:
        dataset: from `read_raw_dataset`.
        processes: worker processes; 0 does everything in this one.
        reduction: how to reduce the cases for the automatic prompts as well, where their
            normalization does not depend on the fingerprint.
    """
    results: dict[str, _CaseResult] = {}
    arguments = (dataset, reduction)
    for case, result, error in map_cases(
        _examine_case, dataset.cases, *arguments, processes=processes, description="reading cases"
    ):
        results[case.case_id] = result if error is None else _failed(case, error)
    problems = check_dataset(dataset)
    for case in dataset.cases:  # in their own order, not in that of completion
        problems += results[case.case_id].problems
    good_cases = tuple(c for c in dataset.cases if results[c.case_id].fingerprint is not None)
    if good_cases and not any(results[case.case_id].fingerprint.labels for case in good_cases):
        problems.append(no_foreground(dataset))
        good_cases = ()
    fingerprint = _summary(dataset, [results[case.case_id] for case in good_cases])
    return Examination(
        problems=problems,
        warnings=[*_unused_files(dataset), *_negative(fingerprint), *_warnings(fingerprint)],
        fingerprint=fingerprint,
        good_cases=good_cases,
        fit_cases={
            case.case_id: results[case.case_id].fit_case for case in good_cases if reduction
        },
    )


def _failed(case: RawCase, error: Exception) -> _CaseResult:
    found = f"{type(error).__name__}: {error}"
    advice = "if memory ran out, use fewer processes; otherwise check the case's files"
    problem = Problem(case.case_id, case.label, found, "a case that can be examined", advice)
    return _CaseResult([problem], None, {})


def _examine_case(case: RawCase, dataset: RawDataset, reduction: Reduction | None) -> _CaseResult:
    """Runs in a worker; holds the segmentation and one image file at a time."""
    problems = check_label_exists(case, dataset)
    segmentation, label_geometry = _read_label(case, dataset, problems)
    channels: list[ChannelStatistics] = []
    histograms: dict[int, dict[int, np.ndarray]] = {}
    labels: dict[Values, LabelStatistics] = {}
    first: tuple[Path, Geometry] | None = None
    fit_case = None
    count = 0
    for path in case.images:
        image, geometry = _read(case, path, problems)
        if image is None:
            count += 1
            continue
        if first is None:
            first = path, geometry
            if label_geometry is not None:
                problems += check_geometry(case.case_id, case.label, label_geometry, *first)
        else:
            problems += check_geometry(case.case_id, path, geometry, *first)
        for channel in image:
            count += 1
            problems += check_image(case.case_id, path, channel)
            if problems or count > len(dataset.channel_names):
                continue  # the case is left out, so that its statistics are not needed
            channels.append(channel_statistics(channel))
            if count == 1:
                labels = label_statistics(segmentation, channel, dataset.labels.values())
                if reduction:
                    fit_case = reduce_case(
                        case.case_id, channel, segmentation, geometry.spacing, reduction
                    )
            if _is_hu(dataset.channel_names[count - 1], channels[-1]):
                histograms[count - 1] = hu_histogram(channel, segmentation)
    problems += check_channels(case, dataset, count)
    if problems:
        return _CaseResult(problems, None, {})
    fingerprint = CaseFingerprint(
        case_id=case.case_id,
        orientation=orientation_of(first[1].direction),
        shape=first[1].shape,
        spacing=first[1].spacing,
        channels=tuple(channels),
        labels=labels,
    )
    return _CaseResult([], fingerprint, histograms, fit_case)


def _read(
    case: RawCase, path: Path, problems: list[Problem]
) -> tuple[np.ndarray, Geometry] | tuple[None, None]:
    """The file's channels and geometry; if it cannot be read, a problem is added instead."""
    try:
        return read_image(path)
    except (ValueError, FileNotFoundError) as error:
        cause = str(error).removeprefix(str(path)).lstrip(": ")
        advice = "copy or export the file again"
        found = f"no usable file ({cause})"
        problems.append(Problem(case.case_id, path, found, "a three-dimensional image", advice))
        return None, None


def _read_label(
    case: RawCase, dataset: RawDataset, problems: list[Problem]
) -> tuple[np.ndarray | None, Geometry | None]:
    """The (z, y, x) segmentation, ignored voxels marked, and its geometry.

    None in place of it after adding what is wrong with it.
    """
    if case.label is None:
        return None, None
    array, geometry = _read(case, case.label, problems)
    if array is None:
        return None, None
    found = check_label(
        case.case_id, case.label, array, meanings(dataset.labels, dataset.ignore_label)
    )
    problems += found
    known = None if found else with_ignored(as_labels(array[0]), dataset.ignore_label)
    return known, geometry


def _is_hu(channel_name: str, statistics: ChannelStatistics) -> bool:
    modality = declared_modality(channel_name)
    return modality == "CT" or (modality is None and looks_like_hu(statistics))


def _summary(dataset: RawDataset, results: list[_CaseResult]) -> Fingerprint:
    cases = tuple(result.fingerprint for result in results)
    modalities = [
        modality_of(name, [case.channels[i] for case in cases])
        for i, name in enumerate(dataset.channel_names)
    ]
    ct_channels = [i for i, (modality, _) in enumerate(modalities) if modality == "CT"]
    return Fingerprint(
        dataset=dataset.name,
        channel_names=dataset.channel_names,
        modalities=tuple(modality for modality, _ in modalities),
        modality_sources=tuple(source for _, source in modalities),
        labels=dataset.labels,
        cases=cases,
        hu_histograms={
            i: _sum_histograms([r.hu_histograms[i] for r in results if i in r.hu_histograms])
            for i in ct_channels
        },
    )


def _sum_histograms(histograms: list[dict[int, np.ndarray]]) -> dict[int, tuple[int, ...]]:
    total: dict[int, np.ndarray] = {}
    for histogram in histograms:
        for label, counts in histogram.items():
            total[label] = total.get(label, 0) + counts
    return {label: tuple(counts.tolist()) for label, counts in sorted(total.items())}


def _unused_files(dataset: RawDataset) -> list[str]:
    if not dataset.unused:
        return []
    names = some([path.relative_to(dataset.folder).as_posix() for path in dataset.unused])
    return [
        f"{len(dataset.unused)} image file(s) belong to no case, for their names do not end in "
        f"{dataset.file_ending!r} (file_ending of dataset.json), or the case has another such "
        f"file: {names}; convert or rename them to train on them"
    ]


def _negative(fingerprint: Fingerprint) -> list[str]:
    """Which cases have no label: right for negative ones, wrong for those not labelled yet."""
    without = [case.case_id for case in fingerprint.cases if not case.labels]
    if not without:
        return []
    return [
        f"{len(without)} of {len(fingerprint.cases)} cases have no label in their label file and "
        f"are trained on as negative cases: {some(without)}"
    ]


def _warnings(fingerprint: Fingerprint) -> list[str]:
    seen = {label for case in fingerprint.cases for label in case.labels}
    warnings = unused_labels(fingerprint.labels, seen)
    modalities = zip(fingerprint.modalities, fingerprint.modality_sources, strict=True)
    for i, (modality, source) in enumerate(modalities):
        statistics = [case.channels[i] for case in fingerprint.cases]
        lowest = min((s.min for s in statistics), default=None)
        if source.startswith("guessed"):
            warnings.append(f"channel {i} is treated as {modality}; {source}")
        elif modality == "CT" and looks_windowed(statistics):
            warnings.append(
                f"channel {i} is declared CT and all its values lie within 0 to 255: taken as "
                f"windowed before and kept as they are; images to predict must be windowed alike"
            )
        elif modality == "CT" and lowest is not None and lowest >= 0:
            warnings.append(
                f"channel {i} is declared CT, but no case has a value below 0; CT is expected in "
                f"HU, with air at -1000: subtract the offset, or declare another modality"
            )
    return warnings
