"""A prediction: segmentation, a result with reason codes per label, and probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from torch import Tensor

from promptseg.boxes import box_slices, is_nearly_whole, label_boxes, to_bbox
from promptseg.evidence import evidence_by_label
from promptseg.files import replacing
from promptseg.inference.decoder import PreparedImage
from promptseg.inference.prompting import NAME
from promptseg.inference_plan import PostProcessing
from promptseg.io.npz import read_npz
from promptseg.io.orientation import Turn
from promptseg.labels import Values, label_mask
from promptseg.plans import Plans
from promptseg.postprocessing import postprocess
from promptseg.predicted_dice import DiceEstimator, PredictedDice
from promptseg.prompts.types import Prompts

LOW_QUALITY = 0.5  # predicted IoU below which a label is flagged
LOW_DICE = 2 * LOW_QUALITY / (1 + LOW_QUALITY)  # the Dice of that IoU
LOW_PREDICTED_DICE = "low_predicted_dice"
NOT_LIKE_TRAINING = "not_like_training"  # flag of every label of such an image
LOW_CONSISTENCY = 0.7  # prompt consistency below which it is
MOST_BYTES = 2**36  # into which a file of probabilities may unpack


@dataclass(frozen=True, kw_only=True)
class LabelResult:
    """The result for one label of one image.

    Attributes:
        prompts: those used, in raw voxels.
        predicted_iou: the network's own estimate, in [0, 1]; None when nothing was decoded.
        prompt_consistency: mean IoU with the masks of slightly perturbed prompts, in [0, 1]; None
            without perturbed prompts, or when there was no box or point to perturb. Where a
            volume exceeds a patch, a label prompted by its name has a box to perturb, too: the
            one found in the whole volume.
        voxels: number that the label has in the segmentation.
        flags: codes for what a person should review.
        predicted_dice: the Dice to expect, learned in validation; None where nothing was learned,
            for an empty mask, and where a person prompted.
        evidence: what it is predicted from; None where nobody needs it.
    """

    prompts: Prompts
    predicted_iou: float | None
    prompt_consistency: float | None
    voxels: int
    flags: tuple[str, ...]
    predicted_dice: PredictedDice | None = None
    evidence: Mapping[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {}
        if self.predicted_dice is not None:
            dice = self.predicted_dice
            told["predicted_dice"] = dice.value
            told["predicted_dice_interval"] = [dice.low, dice.high]
        if self.evidence is not None:
            told["evidence"] = dict(self.evidence)
        return {
            **self.prompts.to_json(),
            "predicted_iou": self.predicted_iou,
            "prompt_consistency": self.prompt_consistency,
            **told,
            "voxels": self.voxels,
            "flags": list(self.flags),
        }

    def rated(
        self, dice: PredictedDice | None, evidence: Mapping[str, float] | None
    ) -> LabelResult:
        """The result with a predicted Dice, and flagged where that is low."""
        low = dice is not None and dice.value < LOW_DICE
        return replace(
            self,
            predicted_dice=dice,
            evidence=evidence,
            flags=(*self.flags, LOW_PREDICTED_DICE) if low else self.flags,
        )


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The result for one image.

    Attributes:
        segmentation: (z, y, x) label values on the raw grid.
        labels: by name, those that were to be segmented.
        probabilities: None unless the predictor keeps them.
        unlike: in what the image is not like those of the training, in words.
    """

    segmentation: np.ndarray
    labels: dict[str, LabelResult]
    probabilities: RegionProbabilities | None = None
    unlike: tuple[str, ...] = ()

    def of_unlike(self, unlike: Sequence[str]) -> Prediction:
        """The result for an image that is not like those of the training, flagged as such."""
        if not unlike:
            return self
        labels = {
            name: replace(result, flags=(NOT_LIKE_TRAINING, *result.flags))
            for name, result in self.labels.items()
        }
        return replace(self, labels=labels, unlike=tuple(unlike))

    def turned(self, turn: Turn, shape: Sequence[int]) -> Prediction:
        """The result for the image, of that shape, once it is turned."""
        if turn.changes_nothing:
            return self
        labels = {
            name: replace(result, prompts=result.prompts.turned(turn, shape))
            for name, result in self.labels.items()
        }
        probabilities = self.probabilities
        return replace(
            self,
            segmentation=np.ascontiguousarray(turn.array(self.segmentation)),
            labels=labels,
            probabilities=probabilities and probabilities.turned(turn, shape),
        )


def label_result(
    prompts: Prompts,
    predicted_iou: float | None,
    voxels: int,
    shape: Sequence[int],
    prompt_consistency: float | None = None,
) -> LabelResult:
    """The result of a label in an image of a raw shape, with its flags."""
    flags = []
    if prompts.reason != "ok":
        flags.append(prompts.reason)
    if prompts.is_empty and prompts.source != NAME:  # which validation found to need no box
        flags.append("no_box")
    if prompts.says_only_where_not:
        flags.append("only_background")
    if any(is_nearly_whole(box, shape) for box in prompts.boxes):
        flags.append("box_is_whole_volume")
    if predicted_iou is not None and predicted_iou < LOW_QUALITY:
        flags.append("low_predicted_quality")
    if prompt_consistency is not None and prompt_consistency < LOW_CONSISTENCY:
        flags.append("disagreement")
    if not voxels:
        flags.append("empty")
    return LabelResult(
        prompts=prompts,
        predicted_iou=predicted_iou,
        prompt_consistency=prompt_consistency,
        voxels=voxels,
        flags=tuple(dict.fromkeys(flags)),
    )


def postprocessed_prediction(
    prediction: Prediction,
    plans: Plans,
    spacing: Sequence[float],
    steps: Mapping[str, PostProcessing],
) -> Prediction:
    """A prediction whose segmentation went through the steps of some labels.

    Args:
        prediction: its probabilities stay as they are.
        plans: with the labels.
        spacing: of the image, mm, zyx.
        steps: by label name.
    """
    if not steps:
        return prediction
    segmentation = postprocess(prediction.segmentation, spacing, plans, steps)
    results, boxes = dict(prediction.labels), label_boxes(segmentation, plans.labels)
    for label in results.keys() & plans.labels.keys():  # what a region loses others may lose
        box, voxels = boxes[label], 0
        if box is not None:
            voxels = int(label_mask(segmentation[box_slices(box)], plans.labels[label]).sum())
        flags = results[label].flags
        if not voxels and "empty" not in flags:
            flags = (*flags, "empty")
        results[label] = replace(results[label], voxels=voxels, flags=flags)
    return replace(prediction, segmentation=segmentation, labels=results)


def with_predicted_dice(
    prediction: Prediction,
    image: PreparedImage,
    labels: Mapping[str, Values],
    estimator: DiceEstimator | None,
    keep_evidence: bool,
) -> Prediction:
    """A prediction with the Dice to expect of each mask that no person prompted.

    Args:
        prediction: on the raw grid of the image.
        image: what was segmented.
        labels: of the plans.
        estimator: None predicts no Dice.
        keep_evidence: whether the results have what it is predicted from.
    """
    if estimator is None and not keep_evidence:
        return prediction
    results = prediction.labels
    wanted = {
        label: values
        for label, values in labels.items()
        if label in results and not results[label].prompts.is_of_person
    }
    rated = {}
    seen = evidence_by_label(
        prediction.segmentation, wanted, image.decoder.image.rescaled, image.spacing
    )
    for label, evidence in seen.items():
        result = results[label]
        evidence["unlike"] = float(len(image.unlike))
        for name in ("predicted_iou", "prompt_consistency"):
            if (value := getattr(result, name)) is not None:
                evidence[name] = value
        dice = estimator and estimator.predict(label, evidence)
        rated[label] = result.rated(dice, evidence if keep_evidence else None)
    return replace(prediction, labels={**results, **rated})


def probabilities_file(output: Path, case_id: str) -> Path:
    """The file of a case's probabilities: apart from segmentations, which may be `.npz` as well."""
    return output / "probabilities" / f"{case_id}.npz"


class RegionProbabilities:
    """Probabilities of each label, in the regions in which it was decoded.

    Labels are independent: where they overlap, their probabilities may sum to more than 1. With
    several objects of a label, a voxel has the largest probability of any.
    """

    def __init__(self) -> None:
        self._slabs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def add(self, label: str, logits: Tensor, lower: Sequence[int]) -> None:
        """Enter (z, y, x) raw-grid logits whose first voxel is `lower`, zyx."""
        if logits.numel():
            values = logits.float().sigmoid().half().numpy()
            self._slabs.setdefault(label, []).append((np.asarray(lower), values))

    def turned(self, turn: Turn, shape: Sequence[int]) -> RegionProbabilities:
        """Those of the image, of that shape, once it is turned; uses the same memory."""
        turned = RegionProbabilities()
        for label, slabs in self._slabs.items():
            for lower, values in slabs:
                box = turn.boxes(np.stack([lower, lower + values.shape]), shape)
                turned._slabs.setdefault(label, []).append((box[0], turn.array(values)))
        return turned

    def region(self, label: str) -> tuple[np.ndarray, np.ndarray]:
        """First voxel (3,), zyx, and (z, y, x) float16 probabilities; empty if never decoded."""
        slabs = self._slabs.get(label, [])
        if not slabs:
            return np.zeros(3, int), np.zeros((0, 0, 0), np.float16)
        lower = np.min([start for start, _ in slabs], axis=0)
        upper = np.max([start + values.shape for start, values in slabs], axis=0)
        region = np.zeros(upper - lower, np.float16)
        for start, values in slabs:
            first = start - lower
            here = tuple(slice(a, a + n) for a, n in zip(first, values.shape, strict=True))
            np.maximum(region[here], values, out=region[here])
        return lower, region

    def forget(self, label: str) -> None:
        """Free the memory of a label."""
        self._slabs.pop(label, None)


def write_probabilities(
    path: Path, probabilities: RegionProbabilities, labels: Sequence[str], shape: Sequence[int]
) -> None:
    """Write an npz: `shape`, `labels`, and for label number i `lower_i` and `probabilities_i`.

    One label's region is assembled at a time, and forgotten once it is written.

    Args:
        path: ends in `.npz`.
        probabilities: of one image; empty afterwards.
        labels: those that were to be segmented.
        shape: of the image, voxels, zyx.
    """
    with replacing(path) as temporary, ZipFile(temporary, "w", ZIP_DEFLATED) as archive:
        _add(archive, "shape", np.array(shape, np.int64))
        _add(archive, "labels", np.array(labels, str))
        for number, label in enumerate(labels):
            lower, region = probabilities.region(label)
            probabilities.forget(label)
            _add(archive, f"lower_{number}", np.asarray(lower, np.int64))
            _add(archive, f"probabilities_{number}", region)


def _add(archive: ZipFile, name: str, array: np.ndarray) -> None:
    """Add an array to an npz file, as `np.savez_compressed` does."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def read_probabilities(path: Path | str) -> dict[str, np.ndarray]:
    """Read (z, y, x) float16 probabilities of each label on the image's grid, 0 where not decoded.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or holds something else.
    """
    try:
        head = read_npz(path, ("shape", "labels"))
        shape, labels = head["shape"].astype(int), head["labels"].astype(str).tolist()
        names = [f"{kind}_{i}" for i in range(len(labels)) for kind in ("lower", "probabilities")]
        arrays = read_npz(path, names, MOST_BYTES)
        regions = [(arrays[f"lower_{i}"], arrays[f"probabilities_{i}"]) for i in range(len(labels))]
        return {label: _full(*of, shape) for label, of in zip(labels, regions, strict=True)}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{path}: no probabilities as promptseg_predict --save_probabilities writes them: "
            f"{reason}"
        ) from error


def _full(lower: np.ndarray, region: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """A region's values on the grid of the whole image."""
    upper = lower + region.shape
    if not ((lower >= 0) & (upper <= shape)).all():
        raise ValueError(
            f"the region from {lower.tolist()} to {upper.tolist()} leaves the image of shape "
            f"{shape.tolist()} (zyx)"
        )
    box = to_bbox(np.stack([lower, upper]))
    return insert_crop_into_image(np.zeros(shape, np.float16), region, box)
