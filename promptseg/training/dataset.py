"""The batch of each training step, made of patches of preprocessed cases and queries about them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from promptseg.boxes import box_volume, clip_box, clip_nonempty, label_boxes
from promptseg.labels import IGNORED
from promptseg.networks.prompt_encoder import PromptBatch, Query, batch_queries
from promptseg.plans import Plans
from promptseg.preprocessing.dataset import PreprocessedDataset
from promptseg.preprocessing.patch import cut_patch
from promptseg.training.augmentation import augment, augmentation_margin, make_augmentation
from promptseg.training.patches import (
    AutoBoxes,
    Sample,
    carry_box,
    faces_before,
    mirrored,
    zoom_in,
    zoom_out,
)
from promptseg.training.sampling import draw_patch_start, training_queries
from promptseg.training.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The data of one training step.

    Attributes:
        image: (b, c, z, y, x) float32 in [0, 255].
        segmentation: (b, z, y, x) int16 label values, or `IGNORED`.
        prompts: n queries.
        targets: (n, z, y, x) bool, the voxels that each query asks for.
        seed: of what is drawn while the step is under way.
        first_query: number of the first query, if others of the step are in other processes.
    """

    image: Tensor
    segmentation: Tensor
    prompts: PromptBatch
    targets: Tensor
    seed: tuple[int, ...] = (0,)
    first_query: int = 0

    @property
    def ignored(self) -> Tensor | None:
        """(n, z, y, x) bool, voxels of each query that count nowhere; None without any."""
        ignored = self.segmentation == IGNORED
        return ignored[self.prompts.image_index] if bool(ignored.any()) else None

    def generators(self) -> list[np.random.Generator]:
        """The source of randomness of each query, the same in whichever process it is."""
        numbers = range(self.first_query, self.first_query + len(self.prompts))
        return [np.random.default_rng([*self.seed, number]) for number in numbers]

    def to(self, device: str | torch.device) -> Batch:
        moving = ("image", "segmentation", "prompts", "targets")
        return replace(self, **{name: getattr(self, name).to(device) for name in moving})


def make_batch(
    samples: Sequence[Sample],
    queries: Sequence[Query],
    targets: Sequence[np.ndarray],
    seed: tuple[int, ...] = (0,),
    first_query: int = 0,
) -> Batch:
    """Stack samples and pack their queries, each with its (z, y, x) bool mask."""
    images = np.stack([sample.image for sample in samples]).astype(np.float32, copy=False)
    segmentations = np.stack([sample.segmentation for sample in samples]).astype(np.int16)
    return Batch(
        image=torch.from_numpy(images),
        segmentation=torch.from_numpy(segmentations),
        prompts=batch_queries(queries),
        targets=torch.from_numpy(np.stack(targets)),
        seed=seed,
        first_query=first_query,
    )


class TrainingSteps(Dataset):
    """Item `i` is the batch of step `i`, a function of settings, seed and `i` alone.

    So any number of worker processes gives the same batches, and a resumed run continues with the
    very next one. Each image has random numbers of its own, so that of several processes that
    train together each makes only the images of its part.

    Args:
        folder: folder of the preprocessed cases.
        case_ids: the training cases.
        plans: plans of the dataset.
        settings: settings of the run.
        auto_boxes: automatic boxes of the cases.
        images: indices of the images of each batch to make; all when not given.
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
        self.margin = augmentation_margin(plans.patch_size, plans.spacing) * self.settings.augment
        self.transform = make_augmentation(plans.patch_size, plans.spacing)
        self.cases_with: dict[str, list[str]] = defaultdict(list)
        for case_id in self.case_ids if settings.rare_label_fraction > 0 else ():
            for name in self.dataset.labels(case_id, plans.labels):
                self.cases_with[name].append(case_id)

    def __getitem__(self, step: int) -> Batch:
        samples, queries, targets = [], [], []
        for index, image in enumerate(self.images):
            number = step * self.plans.batch_size + image
            rng = np.random.default_rng([self.settings.seed, 3, number])
            sample, scheduled = self._sample(number, rng)
            if self.settings.augment:
                sample = self._augmented(sample, rng)
            drawn = training_queries(
                sample,
                index,
                self.plans.labels,
                self.settings,
                rng,
                scheduled=scheduled,
                count=self._objects(image),
            )
            samples.append(sample)
            queries += [query for query, _ in drawn]
            targets += [target for _, target in drawn]
        before = sum(self._objects(image) for image in range(self.images[0]))
        return make_batch(samples, queries, targets, (self.settings.seed, 4, step), before)

    def _objects(self, image: int) -> int:
        """Number of objects that are prompted in an image of the batch."""
        each = self.settings.objects_per_step / self.plans.batch_size
        return max(round((image + 1) * each) - round(image * each), 1)

    def _sample(self, number: int, rng: np.random.Generator) -> tuple[Sample, str | None]:
        """A patch, and the label that it was placed on; None where it was on none.

        Where labels of voxels are not known, every patch is placed on one whose label is.
        """
        case_id, scheduled = self._case(number), None
        if self._is_larger_than_patch(case_id) and rng.random() < self.settings.zoom_out_fraction:
            return zoom_out(self.dataset, case_id, self.plans, self.auto_boxes), None
        if rng.random() < self.settings.foreground_fraction:
            case_id, scheduled = self._scheduled(case_id, number, rng)
        properties = self.dataset.properties(case_id)
        locations = properties["annotated"]
        if scheduled is not None:
            locations = self.dataset.labels(case_id, self.plans.labels)[scheduled]["locations"]
        start = draw_patch_start(properties["shape"], self.plans.patch_size, locations, rng)
        return zoom_in(
            self.dataset, case_id, self.plans, self.auto_boxes, start, self.margin
        ), scheduled

    def _case(self, number: int) -> str:
        """Each case once per round, in a new order each round."""
        round_, place = divmod(number, len(self.case_ids))
        order = np.random.default_rng([self.settings.seed, 1, round_])
        return self.case_ids[order.permutation(len(self.case_ids))[place]]

    def _is_larger_than_patch(self, case_id: str) -> bool:
        shape = self.dataset.properties(case_id)["shape"]
        return any(n > w for n, w in zip(shape, self.plans.patch_size, strict=True))

    def _scheduled(
        self, case_id: str, number: int, rng: np.random.Generator
    ) -> tuple[str, str | None]:
        """The case to take and the scheduled label.

        A case that lacks the label is sometimes replaced by one that has it, so that a label of
        few cases is seen. Otherwise the label is replaced by any that the case has, or None.
        """
        names = list(self.plans.labels)
        name = names[number % len(names)]
        present = list(self.dataset.labels(case_id, self.plans.labels))
        if name in present:
            return case_id, name
        holders = self.cases_with[name]
        if holders and rng.random() < self.settings.rare_label_fraction:
            return holders[rng.integers(len(holders))], name
        return case_id, present[rng.integers(len(present))] if present else None

    def _augmented(self, sample: Sample, rng: np.random.Generator) -> Sample:
        # Spatial augmentation moves the labels but not the boxes: these follow what of their label
        # was cut.
        labels, size = self.plans.labels, self.plans.patch_size
        margin = np.subtract(sample.segmentation.shape, size) // 2
        around = label_boxes(sample.segmentation, labels)
        inside = label_boxes(cut_patch(sample.segmentation, margin, size), labels)
        image, segmentation = augment(self.transform, sample.image, sample.segmentation, rng)
        after = label_boxes(segmentation, labels)

        def carried(boxes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            moved = {}
            for name, box in boxes.items():
                if after[name] is not None:
                    before = faces_before(inside[name], around[name] - margin, after[name], size)
                    moved[name] = carry_box(box, before, after[name])
            return moved

        auto = carried(sample.auto_boxes).items()
        moved = Sample(
            image=image,
            segmentation=segmentation,
            whole_boxes=carried(sample.whole_boxes),
            auto_boxes={
                name: clip_nonempty(box, size)
                for name, box in auto
                if box_volume(clip_box(box, size)) > 0
            },
        )
        return mirrored(moved, [a for a in self.settings.mirror_axes if rng.random() < 0.5])
