"""Samples: a patch of a case, and the queries about it with their prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import find_objects
from torch import Tensor
from torch.utils.data import Dataset

from promptseg.networks.prompt_encoder import PromptBatch, Query, batch_queries
from promptseg.plans import Plans
from promptseg.preprocessing.dataset import PreprocessedDataset
from promptseg.preprocessing.patch import cut_patch
from promptseg.preprocessing.resample import (
    resample_image,
    resample_segmentation,
    scale_coordinates,
)
from promptseg.prompts.simulated import clip_nonempty, jitter_box, sample_points
from promptseg.training.augmentation import augment, make_augmentation
from promptseg.training.settings import TrainingSettings

# case identifier -> label name -> boxes (n, 2, 3) in raw voxels
AutoBoxes = Mapping[str, Mapping[str, Sequence]]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One training step's data.

    Attributes:
        image: (b, c, z, y, x) float32 in [0, 255].
        segmentation: (b, z, y, x) int16.
        prompts: n queries.
        values: (n,) label value each query asks for.
    """

    image: Tensor
    segmentation: Tensor
    prompts: PromptBatch
    values: Tensor

    def targets(self) -> Tensor:
        """(n, z, y, x) bool: what each query should answer."""
        return self.segmentation[self.prompts.image_index] == self.values[:, None, None, None]

    def to(self, device: str | torch.device) -> Batch:
        return Batch(
            image=self.image.to(device),
            segmentation=self.segmentation.to(device),
            prompts=self.prompts.to(device),
            values=self.values.to(device),
        )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A patch of one case, with boxes (2, 3) in the patch's voxels by label name.

    Attributes:
        image: (c, z, y, x).
        segmentation: (z, y, x).
        whole_boxes: tight ones of whole labels, which may reach beyond the patch.
        auto_boxes: automatic ones, clipped to the patch.
    """

    image: np.ndarray
    segmentation: np.ndarray
    whole_boxes: Mapping[str, np.ndarray]
    auto_boxes: Mapping[str, np.ndarray]


class TrainingSteps(Dataset):
    """Item `i` is the batch of step `i`, a function of settings, seed and `i` alone.

    So any number of worker processes gives the same batches, and a resumed run goes on with the
    very next one. Each image has random numbers of its own, so that one of several processes that
    train together makes the images of its share alone.

    Args:
        folder: of the preprocessed cases.
        case_ids: that train.
        plans: of the dataset.
        settings: of the run.
        auto_boxes: the plans' automatic boxes.
        images: which images of each batch to make; all of them when not given.
    """

    def __init__(
        self,
        folder: Path,
        case_ids: Sequence[str],
        plans: Plans,
        settings: TrainingSettings,
        auto_boxes: AutoBoxes,
        images: Sequence[int] | None = None,
    ) -> None:
        self.dataset = PreprocessedDataset(folder)
        self.case_ids = list(case_ids)
        self.plans = plans
        self.settings = settings
        self.auto_boxes = auto_boxes
        self.images = range(plans.batch_size) if images is None else images
        self.transform = make_augmentation(plans.patch_size, plans.spacing)
        self.cases_with: dict[int, list[str]] = defaultdict(list)
        for case_id in self.case_ids if settings.rare_label_fraction > 0 else ():
            for value in self.dataset.properties(case_id)["labels"]:
                self.cases_with[value].append(case_id)

    def __getitem__(self, step: int) -> Batch:
        samples, queries, values = [], [], []
        for index, image in enumerate(self.images):
            number = step * self.plans.batch_size + image
            rng = np.random.default_rng([self.settings.seed, 3, number])
            sample, scheduled = self._sample(number, rng)
            if self.settings.augment:
                sample = self._augmented(sample, rng)
            asked = training_queries(
                sample, index, self.plans.labels, self.settings, rng, scheduled
            )
            samples.append(sample)
            queries += [query for query, _ in asked]
            values += [value for _, value in asked]
        return make_batch(samples, queries, values)

    def _sample(self, number: int, rng: np.random.Generator) -> tuple[Sample, int | None]:
        """A patch, and the label value it was drawn for, None where for none."""
        case_id, scheduled, locations = self._case(number), None, None
        if self._is_larger_than_patch(case_id) and rng.random() < self.settings.zoom_out_fraction:
            return zoom_out(self.dataset, case_id, self.plans, self.auto_boxes), None
        if rng.random() < self.settings.foreground_fraction:
            case_id, scheduled = self._sought(case_id, number, rng)
        properties = self.dataset.properties(case_id)
        if scheduled is not None:
            locations = properties["labels"][scheduled]["locations"]
        start = draw_patch_start(properties["shape"], self.plans.patch_size, locations, rng)
        return zoom_in(self.dataset, case_id, self.plans, self.auto_boxes, start), scheduled

    def _case(self, number: int) -> str:
        """Every case once in each round, in another order each round."""
        round_, place = divmod(number, len(self.case_ids))
        order = np.random.default_rng([self.settings.seed, 1, round_])
        return self.case_ids[order.permutation(len(self.case_ids))[place]]

    def _is_larger_than_patch(self, case_id: str) -> bool:
        shape = self.dataset.properties(case_id)["shape"]
        return any(n > w for n, w in zip(shape, self.plans.patch_size, strict=True))

    def _sought(
        self, case_id: str, number: int, rng: np.random.Generator
    ) -> tuple[str, int | None]:
        """The label whose turn it is, and the case to look for it in.

        Where the case lacks it, one that has it sometimes takes its place, so that a label of few
        cases is seen; else any label that the case has takes its turn, None if it has none.
        """
        values = list(self.plans.labels.values())
        value = values[number % len(values)]
        present = list(self.dataset.properties(case_id)["labels"])
        if value in present:
            return case_id, value
        holders = self.cases_with[value]
        if holders and rng.random() < self.settings.rare_label_fraction:
            return holders[rng.integers(len(holders))], value
        return case_id, present[rng.integers(len(present))] if present else None

    def _augmented(self, sample: Sample, rng: np.random.Generator) -> Sample:
        # Spatial augmentation moves the labels but knows no boxes: these follow what the patch
        # shows of their labels.
        before = label_boxes(sample.segmentation, self.plans.labels)
        image, segmentation = augment(self.transform, sample.image, sample.segmentation, rng)
        after = label_boxes(segmentation, self.plans.labels)

        def carried(boxes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {
                name: carry_box(box, before[name], after[name])
                for name, box in boxes.items()
                if before[name] is not None and after[name] is not None
            }

        auto = carried(sample.auto_boxes).items()
        moved = Sample(
            image=image,
            segmentation=segmentation,
            whole_boxes=carried(sample.whole_boxes),
            auto_boxes={name: clip_nonempty(box, self.plans.patch_size) for name, box in auto},
        )
        return mirrored(moved, [a for a in self.settings.mirror_axes if rng.random() < 0.5])


def mirrored(sample: Sample, axes: Sequence[int]) -> Sample:
    """Image, segmentation and boxes, turned about axes of 0, 1, 2 = z, y, x."""
    shape = sample.segmentation.shape

    def turned(boxes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        boxes = {name: np.array(box, float) for name, box in boxes.items()}
        for box in boxes.values():
            for axis in axes:
                box[:, axis] = shape[axis] - box[::-1, axis]
        return boxes

    return Sample(
        image=np.flip(sample.image, [axis + 1 for axis in axes]),
        segmentation=np.flip(sample.segmentation, axes),
        whole_boxes=turned(sample.whole_boxes),
        auto_boxes=turned(sample.auto_boxes),
    )


def training_queries(
    sample: Sample,
    image: int,
    labels: Mapping[str, int],
    settings: TrainingSettings,
    rng: np.random.Generator,
    scheduled: int | None = None,
) -> list[tuple[Query, int]]:
    """Two queries for each label asked: its name alone, and a box or points with or without it.

    The label that the patch was drawn for (value `scheduled`) goes first, so that a small one among
    many is asked for as often as any; then the others in the patch, then absent ones, since an
    empty mask is the right answer to their names. Where the labels in the patch take all places,
    the last one is an absent label's in half of the images.

    Returns:
        The queries with the label values they ask for.
    """
    boxes = label_boxes(sample.segmentation, labels)
    names = sorted(
        labels, key=lambda name: (boxes[name] is None, labels[name] != scheduled, rng.random())
    )
    absent = [name for name in names if boxes[name] is None]
    asked, most = [], settings.labels_per_image
    if absent and 1 < most <= len(names) - len(absent) and rng.random() < 0.5:
        names.insert(most - 1, absent[0])
    for name in names[:most]:
        index, value = list(labels).index(name), labels[name]
        asked.append((Query(image=image, label=index), value))
        if boxes[name] is not None:
            mask = sample.segmentation == value
            auto = sample.auto_boxes.get(name)
            tight = sample.whole_boxes[name]
            query = prompted_query(mask, tight, auto, image, index, settings, rng)
            asked.append((query, value))
    return asked


def prompted_query(
    mask: np.ndarray,
    tight_box: np.ndarray,
    auto_box: np.ndarray | None,
    image: int,
    label: int,
    settings: TrainingSettings,
    rng: np.random.Generator,
) -> Query:
    """A box, in half of the cases points as well, sometimes with one prompt type left out.

    Args:
        mask: (z, y, x) bool, what the patch shows of the label.
        tight_box: of the whole label, in the patch's voxels: it is jittered and then clipped to
            the patch, as a box drawn round the label is at prediction.
        auto_box: clipped to the patch; None where there is none.
        image, label: indices in the batch and in the plans.
        settings: chances.
        rng: source of randomness.

    Source:
        Paper, section 2.2: jittered boxes, points inside and outside, 20 % dropout of one type.
    """
    if auto_box is not None and rng.random() < settings.auto_box_fraction:
        box = auto_box
    else:
        box = jitter_box(tight_box, mask.shape, rng, settings.box_jitter)
    points, kinds = np.zeros((0, 3)), np.zeros(0, int)
    if rng.random() < 0.5:
        points, kinds = sample_points(mask, rng.integers(1, 4), rng.integers(0, 4), rng)
    if rng.random() < settings.prompt_dropout:
        present = ["label", "box", "points"] if len(points) else ["label"]
        dropped = rng.choice(present)
        label = -1 if dropped == "label" else label
        box = None if dropped == "box" else box
        if dropped == "points":
            points, kinds = points[:0], kinds[:0]
    return Query(image=image, label=label, box=box, points=points, point_labels=kinds)


def zoom_in(
    dataset: PreprocessedDataset,
    case_id: str,
    plans: Plans,
    auto_boxes: AutoBoxes,
    start: np.ndarray,
) -> Sample:
    """The patch that starts at a voxel, at the plans' spacing; 0 outside the volume."""
    shape = dataset.properties(case_id)["shape"]
    boxes = preprocessed_boxes(dataset, case_id, auto_boxes)
    patch_size = np.array(plans.patch_size)
    inside = {name: np.clip(box - start, 0, patch_size) for name, box in boxes.items()}
    whole = whole_label_boxes(dataset, case_id, plans.labels)
    return Sample(
        image=cut_patch(dataset.image(case_id), shape, start, plans.patch_size),
        segmentation=cut_patch(dataset.segmentation(case_id), shape, start, plans.patch_size),
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


def whole_label_boxes(
    dataset: PreprocessedDataset, case_id: str, labels: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """The tight box of each label that a preprocessed case has, in its voxels."""
    present = dataset.properties(case_id)["labels"]
    return {
        name: np.asarray(present[value]["box"], float)
        for name, value in labels.items()
        if value in present
    }


def preprocessed_boxes(
    dataset: PreprocessedDataset, case_id: str, auto_boxes: AutoBoxes
) -> dict[str, np.ndarray]:
    """The first automatic box of each label, from raw to preprocessed voxels."""
    properties = dataset.properties(case_id)
    return {
        name: scale_coordinates(
            np.asarray(boxes[0], float), properties["raw"]["shape"], properties["shape"]
        )
        for name, boxes in auto_boxes.get(case_id, {}).items()
        if len(boxes)
    }


def draw_patch_start(
    shape: Sequence[int],
    patch_size: Sequence[int],
    locations: Sequence[Sequence[int]] | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """Where a patch starts, in voxels zyx; negative where the volume is smaller than it.

    Args:
        shape: of the volume, zyx.
        patch: zyx.
        locations: voxels of a label, one of which shall lie in the patch's middle half (as far
            as the volume's border lets it); None for a place drawn uniformly.
        rng: source of randomness.
    """
    shape, patch_size = np.asarray(shape), np.asarray(patch_size)
    lowest, highest = np.minimum(shape - patch_size, 0), np.maximum(shape - patch_size, 0)
    if locations is None or not len(locations):
        return rng.integers(lowest, highest + 1)
    voxel = np.asarray(locations[rng.integers(len(locations))])
    wanted = voxel - np.floor(rng.uniform(0.25, 0.75, 3) * patch_size).astype(int)
    return np.clip(wanted, lowest, highest)


def label_boxes(
    segmentation: np.ndarray, labels: Mapping[str, int]
) -> dict[str, np.ndarray | None]:
    """The tight box of each label in a (z, y, x) segmentation; None for an absent one."""
    found = find_objects(segmentation, max(labels.values(), default=0))
    slices = {name: found[value - 1] for name, value in labels.items()}
    return {
        name: None if s is None else np.array([[a.start for a in s], [a.stop for a in s]])
        for name, s in slices.items()
    }


def carry_box(box: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Move a box with the object it is about: each face by as much as the object's.

    A face inside the object comes nearer to the object's as that shrinks, so that the box does not
    end before it begins. One outside keeps its distance in voxels: a patch may show a thin slice
    of an object, whose sides tell nothing of how far the rest reaches.

    Args:
        box: (2, 3).
        before, after: box of the object before and after a spatial transform, neither empty.
    """
    offsets = box - before
    outside = offsets * [[-1], [1]] > 0
    shrunk = np.minimum(1, (after[1] - after[0]) / (before[1] - before[0]))
    return after + np.where(outside, offsets, offsets * shrunk)


def make_batch(samples: Sequence[Sample], queries: Sequence[Query], values: Sequence[int]) -> Batch:
    """Stack samples and pack their queries."""
    images = np.stack([sample.image for sample in samples]).astype(np.float32, copy=False)
    segmentations = np.stack([sample.segmentation for sample in samples]).astype(np.int16)
    return Batch(
        image=torch.from_numpy(images),
        segmentation=torch.from_numpy(segmentations),
        prompts=batch_queries(queries),
        values=torch.tensor(values, dtype=torch.int16),
    )
