"""A patch of a preprocessed case with the boxes of its labels: cut, resized, mirrored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from promptseg.boxes import clip_box, enclosing_box, mirror_box
from promptseg.labels import Values
from promptseg.plans import Plans
from promptseg.preprocessing.dataset import PreprocessedDataset
from promptseg.preprocessing.patch import cut_patch
from promptseg.preprocessing.resample import (
    resample_image,
    resample_segmentation,
    scale_coordinates,
)

# case identifier -> label name -> boxes (n, 2, 3) in raw voxels
AutoBoxes = Mapping[str, Mapping[str, Sequence]]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A patch of one case, with (2, 3) boxes in the patch's voxels by label name.

    Attributes:
        image: (c, z, y, x) of the patch, with a margin around it until it is augmented.
        segmentation: (z, y, x), likewise.
        whole_boxes: tight boxes of whole labels, which may extend beyond the patch.
        auto_boxes: automatic boxes, clipped to the patch and its margin.
    """

    image: np.ndarray
    segmentation: np.ndarray
    whole_boxes: Mapping[str, np.ndarray]
    auto_boxes: Mapping[str, np.ndarray]


def zoom_in(
    dataset: PreprocessedDataset,
    case_id: str,
    plans: Plans,
    auto_boxes: AutoBoxes,
    start: np.ndarray,
    margin: np.ndarray | int = 0,
) -> Sample:
    """The patch that starts at a preprocessed voxel; 0 outside the volume.

    Image and segmentation have a margin of so many voxels, zyx, on each side more; boxes count
    from the patch without it.
    """
    boxes = preprocessed_boxes(dataset, case_id, auto_boxes)
    patch_size = np.array(plans.patch_size)
    size = patch_size + 2 * margin
    inside = {name: clip_box(box - start + margin, size) - margin for name, box in boxes.items()}
    whole = whole_label_boxes(dataset, case_id, plans.labels)
    return Sample(
        image=cut_patch(dataset.image(case_id), start - margin, size),
        segmentation=cut_patch(dataset.segmentation(case_id), start - margin, size),
        whole_boxes={name: box - start for name, box in whole.items()},
        auto_boxes={name: box for name, box in inside.items() if (box[0] < box[1]).all()},
    )


def zoom_out(
    dataset: PreprocessedDataset, case_id: str, plans: Plans, auto_boxes: AutoBoxes
) -> Sample:
    """The whole volume resized to the patch."""
    shape = dataset.properties(case_id)["shape"]
    boxes = preprocessed_boxes(dataset, case_id, auto_boxes)
    whole = whole_label_boxes(dataset, case_id, plans.labels)
    return Sample(
        image=resample_image(np.asarray(dataset.image(case_id)[:]), plans.patch_size),
        segmentation=resample_segmentation(
            np.asarray(dataset.segmentation(case_id)[:]), plans.patch_size
        ),
        whole_boxes={
            name: scale_coordinates(box, shape, plans.patch_size) for name, box in whole.items()
        },
        auto_boxes={
            name: scale_coordinates(box, shape, plans.patch_size) for name, box in boxes.items()
        },
    )


def mirrored(sample: Sample, axes: Sequence[int]) -> Sample:
    """Image, segmentation and boxes, mirrored along axes of 0, 1, 2 = z, y, x."""
    shape = sample.segmentation.shape

    def flipped(boxes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: mirror_box(box, axes, shape) for name, box in boxes.items()}

    return Sample(
        image=np.flip(sample.image, [axis + 1 for axis in axes]),
        segmentation=np.flip(sample.segmentation, axes),
        whole_boxes=flipped(sample.whole_boxes),
        auto_boxes=flipped(sample.auto_boxes),
    )


def whole_label_boxes(
    dataset: PreprocessedDataset, case_id: str, labels: Mapping[str, Values]
) -> dict[str, np.ndarray]:
    """The tight box of each label that a preprocessed case has, in preprocessed voxels."""
    present = dataset.labels(case_id, labels)
    return {name: of_label["box"].astype(float) for name, of_label in present.items()}


def preprocessed_boxes(
    dataset: PreprocessedDataset, case_id: str, auto_boxes: AutoBoxes
) -> dict[str, np.ndarray]:
    """The automatic box of each label, or that around its several boxes, in preprocessed voxels."""
    properties = dataset.properties(case_id)
    return {
        name: scale_coordinates(
            enclosing_box(np.asarray(boxes, float)), properties["raw"]["shape"], properties["shape"]
        )
        for name, boxes in auto_boxes.get(case_id, {}).items()
        if len(boxes)
    }


def faces_before(
    inside: np.ndarray | None, around: np.ndarray, after: np.ndarray, patch_size: Sequence[int]
) -> np.ndarray:
    """Where the faces were that an object shows in a patch after a spatial transform.

    A face that the patch does not cut is the object's own, which may have come in from the margin.
    One that it cuts is the border of what the patch showed.

    Args:
        inside: (2, 3) box of what the patch showed of the object; None if it showed nothing.
        around: of what the patch with its margin showed, in voxels of the patch.
        after: of what the patch shows afterwards.
        patch_size: voxels, zyx.
    """
    is_cut = after == np.stack([np.zeros(3, int), patch_size])
    return around if inside is None else np.where(is_cut, inside, around)


def carry_box(box: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Move the faces of a box with those of its object.

    A face inside the object approaches the object's face as that shrinks, so that the box never
    becomes empty. One outside keeps its distance in voxels: a patch may show a thin slice of an
    object, whose sides do not tell how far the rest extends.

    Args:
        box: (2, 3) box to move.
        before, after: boxes of the object before and after a spatial transform, neither empty.
    """
    offsets = box - before
    outside = offsets * [[-1], [1]] > 0
    shrunk = np.minimum(1, (after[1] - after[0]) / (before[1] - before[0]))
    return after + np.where(outside, offsets, offsets * shrunk)
