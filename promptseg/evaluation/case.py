"""All figures of one case: overlap, surfaces, volumes, lesions, and the boxes of its prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.boxes import box_iou, box_recall, box_slices, enclosing_box, value_box
from promptseg.evaluation.inputs import Tolerances, case_id_of, nsd_key
from promptseg.evaluation.metrics import (
    Confusion,
    Lesions,
    confusion_counts,
    count_lesions,
    volume_ml,
)
from promptseg.evaluation.surfaces import surface_distances
from promptseg.io.geometry import Geometry, turned_geometry
from promptseg.io.images import read_segmentation
from promptseg.io.orientation import Turn, turn_onto
from promptseg.labels import Values, all_members, label_mask

NAN = float("nan")


def evaluate_case(
    files: tuple[Path, Path],
    names: Mapping[Values, str] | None,
    ignore_label: int | None,
    prompts: Mapping[str, Mapping[str, Any]],
    tolerances: Tolerances,
) -> dict[str, Any]:
    """All figures of one case; runs in a worker process.

    Args:
        files: of the ground truth and of the prediction.
        names: of the labels by value; None takes every value that is found.
        ignore_label: value of the ground truth whose voxels count as background in both.
        prompts: by case and label name, as in a prompts file.
        tolerances: of the normalized surface Dice.

    Raises:
        ValueError: if the two do not lie on one grid, or a file cannot be used.
    """
    reference_file, prediction_file = files
    reference, prediction, geometry, turn = _on_one_grid(reference_file, prediction_file)
    case, warnings = case_id_of(reference_file), []
    found = sorted({int(v) for array in (reference, prediction) for v in np.unique(array)} - {0})
    if names is None:
        names = {value: str(value) for value in found}
    known = {ignore_label, *all_members(names)}
    if unknown := [value for value in found if value not in known]:
        warnings.append(f"case {case!r}: values {unknown} are not labels and count as background")
    metrics: dict[Values, dict[str, Any]] = {}
    for label, counts in confusion_counts(reference, prediction, [*names], ignore_label).items():
        masks = masks_of_label(reference, prediction, label, ignore_label)
        metrics[label] = figures(counts, masks, geometry, tolerances.of(names[label]))
        used = prompts.get(case, {}).get(names[label], {})
        metrics[label] |= prompt_figures(used, reference, label, turn)
    return {
        "case": case,
        "metrics": metrics,
        "prediction_file": str(prediction_file),
        "reference_file": str(reference_file),
        "geometry": geometry,
        "warnings": warnings,
    }


def _on_one_grid(
    reference_file: Path, prediction_file: Path
) -> tuple[np.ndarray, np.ndarray, Geometry, Turn]:
    """Both segmentations with the axes of the first, its geometry, and how the second was turned.

    Raises:
        ValueError: if the two grids differ in more than the order and the direction of their axes.
    """
    reference, geometry = read_segmentation(reference_file)
    prediction, predicted_geometry = read_segmentation(prediction_file)
    turn = turn_onto(geometry.direction, predicted_geometry.direction)
    turned = turned_geometry(predicted_geometry, turn)
    if difference := geometry.difference_from(turned):
        raise ValueError(
            f"{reference_file} and {prediction_file} must lie on one voxel grid but differ: "
            f"{difference}; predict on the image that the ground truth belongs to"
        )
    return reference, np.ascontiguousarray(turn.array(prediction)), geometry, turn


def masks_of_label(
    reference: np.ndarray, prediction: np.ndarray, label: Values, ignore_label: int | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """The two (z, y, x) masks of a label, cropped to a box around both; None if it is in neither.

    Args:
        reference, prediction: (z, y, x) integer labels.
        label: value or values of a region.
        ignore_label: value of the reference whose voxels are in neither mask.
    """
    boxes = [value_box(array, label) for array in (reference, prediction)]
    box = enclosing_box([box for box in boxes if box is not None])
    if box is None:
        return None
    crop = box_slices(box)
    masks = label_mask(reference[crop], label), label_mask(prediction[crop], label)
    if ignore_label is not None:
        known = reference[crop] != ignore_label
        masks = masks[0] & known, masks[1] & known
    return masks if masks[0].any() or masks[1].any() else None


def figures(
    counts: Confusion,
    masks: tuple[np.ndarray, np.ndarray] | None,
    geometry: Geometry,
    tolerances: Sequence[float],
) -> dict[str, Any]:
    """The figures of one label in one case, without those of its prompts.

    Args:
        counts: of its voxels.
        masks: (z, y, x) bool of the ground truth and the prediction; None if it is in neither.
        geometry: of the case.
        tolerances: mm, of the normalized surface Dice.
    """
    n_ref, n_pred = counts.tp + counts.fn, counts.tp + counts.fp
    reference_ml, prediction_ml = (volume_ml(n, geometry.spacing) for n in (n_ref, n_pred))
    lesions = Lesions() if masks is None else count_lesions(*masks)
    return {
        "Dice": counts.dice,
        "IoU": counts.iou,
        "TP": counts.tp,
        "FP": counts.fp,
        "FN": counts.fn,
        "TN": counts.tn,
        "n_pred": n_pred,
        "n_ref": n_ref,
        **_of_surfaces(masks, geometry, tolerances),
        "volume_ml_reference": reference_ml,
        "volume_ml_prediction": prediction_ml,
        "volume_error_ml": abs(prediction_ml - reference_ml),
        "volume_error_relative": (n_pred - n_ref) / n_ref if n_ref else NAN,
        "lesions_reference": lesions.reference,
        "lesions_prediction": lesions.prediction,
        "lesion_precision": lesions.precision,
        "lesion_recall": lesions.recall,
        "lesion_f1": lesions.f1,
    }


def _of_surfaces(
    masks: tuple[np.ndarray, np.ndarray] | None, geometry: Geometry, tolerances: Sequence[float]
) -> dict[str, float]:
    """Undefined without either mask; with one, nothing is near, and all as far as it can be."""
    keys = [nsd_key(tolerance) for tolerance in tolerances]
    if masks is None:
        return dict.fromkeys([*keys, "hd95_mm", "assd_mm"], NAN)
    if not all(mask.any() for mask in masks):
        diagonal = float(np.linalg.norm(np.multiply(geometry.shape, geometry.spacing)))
        return {**dict.fromkeys(keys, 0.0), "hd95_mm": diagonal, "assd_mm": diagonal}
    found = surface_distances(*masks, geometry.spacing)
    nsd = {key: found.dice(mm) for key, mm in zip(keys, tolerances, strict=True)}
    return {**nsd, "hd95_mm": found.percentile(95), "assd_mm": found.mean}


def prompt_figures(
    used: Mapping[str, Any],
    reference: np.ndarray | None = None,
    label: Values = 0,
    turn: Turn | None = None,
) -> dict[str, Any]:
    """How well the boxes that prompted a label enclose it; undefined without either.

    Args:
        used: its entry in a prompts file, in voxels of the prediction.
        reference: (z, y, x) ground truth; None if it is known not to have the label.
        label: value or values of a region.
        turn: by which the prediction was brought to the axes of the ground truth.
    """
    found = {"box_iou": NAN, "box_recall": NAN, "prompt_source": used.get("source")}
    boxes = np.array(used.get("boxes", []), float).reshape(-1, 2, 3)
    tight = None if reference is None else value_box(reference, label)
    if not len(boxes) or tight is None:
        return found
    if turn is not None:
        boxes = turn.boxes(boxes, turn.back.of_axes(reference.shape))
    mask = label_mask(reference[box_slices(tight)], label)
    found["box_iou"] = float(box_iou(tight, enclosing_box(boxes)))
    found["box_recall"] = box_recall(boxes, mask, tight[0])
    return found
