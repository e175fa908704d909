"""From a fingerprint to plans: the rules called in order, without reading or writing a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from promptseg.experiment_planning.fingerprint import HU_EDGES, CaseFingerprint, Fingerprint
from promptseg.experiment_planning.rules import (
    Budget,
    PatchPlan,
    choose_ct_window,
    labelled_extent,
    plan_patch,
    single_components,
    target_spacing,
)
from promptseg.io.dataset import RawDataset
from promptseg.io.orientation import MOST_OBLIQUE
from promptseg.labels import Values
from promptseg.plans import AS_STORED, DEFAULT_TRAINER, KEEPING_SPACING, Normalization, Plans
from promptseg.preprocessing.modality import declared_modality, looks_windowed
from promptseg.preprocessing.normalize import ct_window, keep_windowed, percentile_clipping
from promptseg.preprocessing.resample import resampled_shape
from promptseg.preprocessing.training_images import describe
from promptseg.presets import Preset, find_preset


def normalization_by_name(channel_name: str, preset: str = "none") -> Normalization | None:
    """A channel's normalization where it follows from the preset or the channel's name alone.

    None where it follows from the intensities of all cases: CT, and names that name no modality.
    """
    if fixed := find_preset(preset):
        return fixed.normalization
    return None if declared_modality(channel_name) in ("CT", None) else percentile_clipping()


def choose_normalizations(
    fingerprint: Fingerprint, preset: str = "none"
) -> tuple[tuple[Normalization, ...], str]:
    """A CT window where a channel is CT, percentile clipping elsewhere, and the reason.

    With a preset every channel has the preset's normalization.
    """
    if fixed := find_preset(preset):
        reason = f"preset {preset}: {fixed.normalization_reason}"
        return (fixed.normalization,) * len(fingerprint.modalities), reason
    chosen, reasons = [], []
    for channel, modality in enumerate(fingerprint.modalities):
        statistics = [case.channels[channel] for case in fingerprint.cases]
        if modality == "CT" and looks_windowed(statistics):
            chosen.append(keep_windowed())
            reasons.append(f"channel {channel}: CT windowed to 0 to 255 before, kept as it is")
        elif modality == "CT":
            name, reason = choose_ct_window(fingerprint.hu_histograms.get(channel, {}), HU_EDGES)
            chosen.append(ct_window(name))
            reasons.append(f"channel {channel}: CT window {name!r}, {reason}")
        else:
            chosen.append(percentile_clipping())
            reasons.append(f"channel {channel}: {modality}, clipped to percentiles 0.5 and 99.5")
    return tuple(chosen), "; ".join(reasons)


def make_plans(
    raw: RawDataset,
    fingerprint: Fingerprint,
    normalizations: tuple[Normalization, ...],
    normalization_reason: str,
    preset: str,
    plans_name: str,
    size: str,
    budget: Budget,
) -> Plans:
    """Call the rules in order; reads no file, writes none and fits no automatic prompts."""
    orientation, orientation_reason = choose_orientation(fingerprint, preset)
    cases = [case.turned(orientation) for case in fingerprint.cases]
    spacings = np.array([case.spacing for case in cases])
    shapes = np.array([case.shape for case in cases])
    spacing, spacing_reason = target_spacing(spacings, shapes)
    own_voxels = preset in KEEPING_SPACING
    median_shape = _median_shape(shapes, spacings, None if own_voxels else spacing)
    if own_voxels:
        spacing_reason += f"; preset {preset}: for the record, every image keeps its own voxels"
    trainer, trainer_reason = DEFAULT_TRAINER, "learns fastest from scratch"
    if fixed := find_preset(preset):
        trainer, trainer_reason = fixed.trainer, f"preset {preset}: of its network's encoder"
        patch = _patch_of_preset(fixed, budget)
    else:
        boxes = [[label.box for label in case.labels.values()] for case in cases]
        extent = labelled_extent(boxes, spacings, spacing)
        patch = plan_patch(median_shape, spacing, budget, extent)
    single, single_reason = single_components(_in_largest_component(cases, raw.labels))
    return Plans(
        dataset_name=raw.name,
        plans_name=plans_name,
        size=size,
        trainer=trainer,
        preset=preset,
        channel_names=raw.channel_names,
        modalities=tuple(fingerprint.modalities),
        normalizations=normalizations,
        orientation=orientation,
        spacing=spacing,
        median_shape=median_shape,
        patch_size=patch.patch_size,
        stride=patch.stride,
        finest_stride=patch.finest_stride,
        batch_size=patch.batch_size,
        labels=raw.labels,
        regions_class_order=raw.regions_class_order,
        ignore_label=raw.ignore_label,
        single_component=single,
        training_images=_described(cases, normalizations),
        reasons={
            "modality": "; ".join(fingerprint.modality_sources),
            "normalization": normalization_reason,
            "orientation": orientation_reason,
            "spacing": spacing_reason,
            "patch_size": patch.reason,
            "trainer": trainer_reason,
            "single_component": single_reason,
        },
    )


def _median_shape(
    shapes: np.ndarray, spacings: np.ndarray, spacing: Sequence[float] | None
) -> tuple[int, ...]:
    """The median of (n, 3) shapes, zyx, resampled to a spacing unless that is None."""
    resampled = [
        shape if spacing is None else resampled_shape(shape, own, spacing)
        for shape, own in zip(shapes, spacings, strict=True)
    ]
    return tuple(int(n) for n in np.median(resampled, axis=0).round())


def _in_largest_component(
    cases: Sequence[CaseFingerprint], labels: Mapping[str, Values]
) -> dict[str, list[float]]:
    """Of each case that has a label, the fraction of it in its largest component."""
    return {
        name: [case.labels[value].largest_component for case in cases if value in case.labels]
        for name, value in labels.items()
    }


def _described(
    cases: Sequence[CaseFingerprint], normalizations: Sequence[Normalization]
) -> dict[str, Any]:
    return describe(
        list(zip(*(case.channels for case in cases), strict=True)),
        np.array([case.spacing for case in cases]),
        np.array([case.shape for case in cases]),
        [normalization.kind == "window" for normalization in normalizations],
    )


def choose_orientation(fingerprint: Fingerprint, preset: str) -> tuple[str, str]:
    """The orientation of most images, and why.

    With a preset images stay as they are: SegVol's weights were trained so.
    """
    counts = fingerprint.orientations
    oblique = counts.pop(None, 0)
    if preset in KEEPING_SPACING:
        return AS_STORED, f"preset {preset}: every image as it is stored"
    if not counts:
        return AS_STORED, f"all images lie oblique, by more than {MOST_OBLIQUE:g} degrees"
    (orientation, count), *others = counts.most_common()
    reason = f"{orientation}, as {count} of {len(fingerprint.cases)} images are stored"
    if others:
        reason += f"; turned to it: {', '.join(f'{n} of {name}' for name, n in others)}"
    if oblique:
        reason += f"; {oblique} oblique ones stay as they are stored"
    return orientation, reason


def _patch_of_preset(preset: Preset, budget: Budget) -> PatchPlan:
    return PatchPlan(
        patch_size=preset.patch_size,
        finest_stride=(1, 1, 1),
        stride=preset.stride,
        batch_size=budget.batch_size,
        reason=f"preset {preset.name}: what the released weights were trained with",
    )
