"""A trained model and images in, segmentations out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from promptseg.inference.decoder import (
    ImageDecoder,
    PreparedImage,
    blended_answers,
    with_channels,
)
from promptseg.inference.label_map import Collector, raw_slabs, wanted_prompts
from promptseg.inference.options import check_step_size
from promptseg.inference.prompting import Proposer, prompts_by_label
from promptseg.inference.queries import as_queries, flips, is_whole_object, patches_of_queries
from promptseg.inference.results import (
    LabelResult,
    Prediction,
    postprocessed_prediction,
    with_predicted_dice,
)
from promptseg.inference.session import Session
from promptseg.inference.sliding_window import gaussian_weights
from promptseg.inference_plan import PostProcessing
from promptseg.io.images import Geometry, is_windowed, read_image
from promptseg.io.orientation import Turn, turn_to
from promptseg.networks.locator import Locator
from promptseg.networks.prompt_encoder import NO_LABEL, Query
from promptseg.networks.promptable import PromptableNetwork
from promptseg.plans import Plans
from promptseg.predicted_dice import DiceEstimator
from promptseg.preprocessing.lazy import LazyImage
from promptseg.preprocessing.modality import other_modalities
from promptseg.preprocessing.normalize import check_windowed, undo_window
from promptseg.preprocessing.training_images import differences
from promptseg.prompts.types import Prompts

__all__ = ["LabelResult", "Prediction", "Predictor", "PreparedImage"]

KEPT_VOXELS = 2**23  # of patches, once for each encoding of them that is kept


class Predictor:
    """Segments images with one or several networks of the same plans.

    Prompts are in voxels of the raw image, zyx. Answers to further prompts on the same image
    reuse the encodings of its patches.

    Example:
        >>> predictor = load_predictor("results/.../ViTTrainer__PromptSegPlans__3d")
        >>> predictor.set_image(image, spacing=(3.0, 0.9, 0.9))
        >>> prediction = predictor.predict(boxes={"liver": [[10, 80, 60], [42, 200, 190]]})

    Attributes:
        decoder_class: what decodes queries about a preprocessed image.
        keep_evidence: whether results have what a `DiceEstimator` learns from.
    """

    decoder_class = ImageDecoder

    def __init__(
        self,
        networks: Sequence[PromptableNetwork],
        plans: Plans,
        *,
        device: str | torch.device = "cpu",
        step_size: float = 0.5,
        mirror_axes: Sequence[int] = (),
        most_encodings: int | None = None,
        n_perturbations: int = 0,
        keep_probabilities: bool = False,
        measured_dice: Mapping[str, Mapping[str, float]] | None = None,
        locator: Locator | None = None,
        dice_estimator: DiceEstimator | None = None,
    ) -> None:
        """Use networks that are in memory; `load_predictor` loads them from a model folder.

        More parameters than usual: each is an independent keyword with a default.

        Args:
            networks: their logits are averaged.
            plans: what they were trained with.
            device: where they run.
            step_size: largest distance of neighbouring patches, as a fraction of the patch.
            mirror_axes: axes 0, 1, 2 of z, y, x for test-time mirroring; logits are averaged
                over all combinations.
            most_encodings: number of patches whose encodings are kept for further prompts. Those
                of all networks and mirrorings together cover at most 8 million voxels, of the
                order of 1 GB; but one patch's are always kept.
            n_perturbations: number of perturbed copies of each prompt whose masks are compared
                (`PromptConsistency`); each costs another decoding, not another encoding.
            keep_probabilities: return them with each prediction.
            measured_dice, locator: see `Proposer`.
            dice_estimator: predicts the Dice of masks that no person prompted.

        Raises:
            ValueError: for a step size outside (0, 1].
        """
        check_step_size(step_size)
        self.networks = [
            n.to(device, memory_format=torch.channels_last_3d).eval() for n in networks
        ]
        self.plans = plans
        self.device = device
        self.step_size = step_size
        self.flips = flips(mirror_axes)
        of_patch = int(np.prod(plans.patch_size)) * len(self.networks) * len(self.flips)
        patches = max(1, KEPT_VOXELS // of_patch)
        self.most_encodings = min(most_encodings or patches, patches)
        self.n_perturbations = n_perturbations
        self.keep_probabilities = keep_probabilities
        self.proposer = Proposer(plans, measured_dice or {}, locator)
        self.dice_estimator, self.keep_evidence = dice_estimator, False
        self._weights = gaussian_weights(plans.patch_size)
        self._image: PreparedImage | None = None

    def set_image(
        self,
        image: np.ndarray,
        spacing: Sequence[float],
        direction: Sequence[float] | None = None,
    ) -> None:
        """Set the image that the next prompts refer to.

        Args:
            image: (z, y, x) or (c, z, y, x) raw intensities.
            spacing: mm, zyx.
            direction: 3x3 direction cosines, row by row, as SimpleITK has them: tells which way
                the image is to be turned. Without it the image lies as those of the training.

        Raises:
            ValueError: for a wrong number of channels or axes, or values that are not finite; no
                image is set then.
        """
        self._image = None
        self.set_prepared(self.prepare(image, spacing, direction))

    def set_prepared(self, image: PreparedImage) -> None:
        """`set_image` for an image that `prepare` or `prepare_files` returned."""
        self._image = image

    def prepare(
        self,
        image: np.ndarray,
        spacing: Sequence[float],
        direction: Sequence[float] | None = None,
    ) -> PreparedImage:
        """The part of `set_image` that other threads can do while an image is being segmented."""
        image, spacing = with_channels(image, self.plans.channel_names), tuple(spacing)
        turn = Turn()
        if direction is not None and len(spacing) == 3:
            turn = turn_to(self.plans.orientation, direction)
        if not turn.changes_nothing:
            image, spacing = np.ascontiguousarray(turn.array(image)), turn.of_axes(spacing)
        decoder = self._decoder(image, spacing)
        check_windowed(image, self.plans.normalizations)
        unlike = tuple(differences(image, spacing, self.plans.training_images))
        return PreparedImage(raw=image, spacing=spacing, decoder=decoder, turn=turn, unlike=unlike)

    def prepare_files(self, files: Sequence[Path]) -> tuple[PreparedImage, Geometry]:
        """Read an image from files, one per channel, and `prepare` it.

        CT in the challenge's npz files is windowed; the plans' window is undone, see
        `undo_window`. Safe to call in several threads.

        Raises:
            FileNotFoundError, ValueError: naming the files that are wrong.
        """
        image, geometry = read_image(files)
        direction = geometry.direction
        if is_windowed(files[0]):  # npz files say nothing of directions
            image, direction = undo_window(image, self.plans.normalizations), None
        try:
            image = self.prepare(image, geometry.spacing, direction)
        except ValueError as error:
            raise ValueError(f"{', '.join(map(str, files))}: {error}") from error
        unlike = (*image.unlike, *other_modalities(files, self.plans.modalities))
        return replace(image, unlike=unlike if direction else ()), geometry

    def predict(
        self,
        *,
        boxes: Mapping[str, Any] | None = None,
        points: Mapping[str, Any] | None = None,
        point_labels: Mapping[str, Sequence[int]] | None = None,
        scribbles: Mapping[str, Any] | None = None,
        scribble_labels: Mapping[str, Sequence[int]] | None = None,
        lassos: Mapping[str, Any] | None = None,
        masks: Mapping[str, np.ndarray] | None = None,
        labels: Sequence[str] | None = None,
        auto_prompt: str | None = None,
    ) -> Prediction:
        """Segment labels of the image that was set.

        With `auto_prompt`, boxes are proposed for the labels without a prompt of their own.
        Otherwise the name alone is the prompt of such a label. Prompts for `object`, `object 2`
        and the like segment objects without a name. Every mask depends on its own prompts alone;
        where two claim a voxel, the surer one has it. More parameters than usual: each is an
        independent keyword with a default.

        Args:
            boxes: by label, (2, 3) or (n, 2, 3) half-open boxes in raw voxels, zyx; several boxes
                are several objects of the label. One that is one voxel thick is drawn on a slice.
            points: by label, (k, 3) voxel indices in raw voxels, zyx.
            point_labels: by label, (k,) 1 foreground, 0 background; foreground when not given.
            scribbles: by label, lines of (k, 3) positions in raw voxels, zyx.
            scribble_labels: by label, 1 or 0 for each scribble; foreground when not given.
            lassos: by label, closed curves on slices, of (k, 3) positions.
            masks: by label, (z, y, x) bool masks to correct.
            labels: which to segment; by default those with prompts, or all when there are none
                or `auto_prompt` is set.
            auto_prompt: `plans` follows the plans' choice for each label, a strategy's name
                forces that strategy, `coarse` and `hybrid` use the network, see `own_prompts`.

        Raises:
            RuntimeError: if no image is set.
            ValueError: for unknown labels or wrong prompts.
        """
        image = self._current_image()
        kinds = {
            "boxes": boxes,
            "points": points,
            "point_labels": point_labels,
            "scribbles": scribbles,
            "scribble_labels": scribble_labels,
            "lassos": lassos,
            "mask": masks,
        }
        given = prompts_by_label(kinds, image.file_shape)
        if labels is None:
            labels = list(given)
            if auto_prompt or not given:
                labels = [*self.plans.labels, *(n for n in given if n not in self.plans.labels)]
        return self.predict_prompts(given, labels=labels, auto_prompt=auto_prompt)

    def predict_prompts(
        self,
        prompts: Mapping[str, Prompts],
        *,
        labels: Sequence[str],
        auto_prompt: str | None = None,
    ) -> Prediction:
        """`predict` for prompts that have been checked; see there."""
        image = self._current_image()
        self.check_prompts(prompts)
        wanted = wanted_prompts(prompts, labels, self.plans, image.file_shape)
        if auto_prompt:
            unprompted = [label for label, p in wanted.items() if p.is_empty]
            wanted.update(self.proposer.propose(image, unprompted, auto_prompt))
            wanted.update(self.proposer.ask_network(image, unprompted, auto_prompt, wanted))
        turned = {label: p.turned(image.turn, image.file_shape) for label, p in wanted.items()}
        queries = {
            label: as_queries(prompts, self._index(label), image.raw_shape, image.shape)
            for label, prompts in turned.items()
        }
        prediction = self._segment(turned, queries)
        one = PostProcessing(largest_component=True)
        single = set(self.plans.single_component)
        whole = [label for label, p in turned.items() if is_whole_object(p, image.raw_shape)]
        steps = {label: one for label in whole if label in single}
        prediction = postprocessed_prediction(prediction, self.plans, image.spacing, steps)
        prediction = with_predicted_dice(
            prediction, image, self.plans.labels, self.dice_estimator, self.keep_evidence
        )
        return prediction.turned(image.turn.back, image.raw_shape).of_unlike(image.unlike)

    def check_prompts(self, prompts: Mapping[str, Prompts]) -> None:
        """Refuse prompts by label that the networks cannot use; ours can use all.

        Raises:
            ValueError: naming the label and what it was given.
        """

    def new_object(self, label: str | None = None) -> Session:
        """Begin to segment one object of the image that was set, prompt by prompt.

        Args:
            label: the object's label, whose name alone gives the first mask; None for an object
                without a name, whose mask is empty before the first prompt.

        Raises:
            RuntimeError: if no image is set.
            ValueError: for an unknown label.
        """
        image = self._current_image()
        if label is not None and label not in self.plans.labels:
            known = ", ".join(self.plans.labels)
            raise ValueError(
                f"unknown label {label!r}; the model knows {known}; give none for another object"
            )
        index = NO_LABEL if label is None else self._index(label)
        is_single = label in self.plans.single_component
        options = self.plans.patch_size, self._weights, self.step_size
        return Session(image, index, *options, is_single)

    def _index(self, label: str) -> int:
        labels = list(self.plans.labels)
        return labels.index(label) if label in labels else NO_LABEL

    def _current_image(self) -> PreparedImage:
        if self._image is None:
            raise RuntimeError("no image is set; call set_image first")
        return self._image

    def _preprocessed(self, image: np.ndarray, spacing: Sequence[float]) -> LazyImage:
        """A (c, z, y, x) raw image as the decoder takes it."""
        return LazyImage(
            image,
            spacing,
            normalizations=self.plans.normalizations,
            target_spacing=spacing if self.plans.keeps_spacing else self.plans.spacing,
        )

    def _decoder(self, image: np.ndarray, spacing: Sequence[float]) -> ImageDecoder:
        """Answers queries about a (c, z, y, x) raw image."""
        return self.decoder_class(
            self._preprocessed(image, spacing),
            self.networks,
            self.plans.patch_size,
            flips=self.flips,
            device=self.device,
            most_encodings=self.most_encodings,
        )

    @torch.inference_mode()
    def _segment(
        self, wanted: Mapping[str, Prompts], queries: Mapping[str, list[Query]]
    ) -> Prediction:
        """Decode the queries of each label; every label in `wanted` gets a result."""
        image, patch_size = self._current_image(), self.plans.patch_size
        asked = [(label, query) for label, of_label in queries.items() for query in of_label]
        names, asked = zip(*asked, strict=True) if asked else ((), ())
        starts = patches_of_queries(asked, image.shape, patch_size, self.step_size)
        collector = Collector(self.plans, list(wanted), image.raw_shape, self.keep_probabilities)
        for answer in blended_answers(
            image.decoder, asked, starts, self._weights, n_perturbations=self.n_perturbations
        ):
            label, grids = names[answer.index], (image.shape, image.raw_shape)
            positive_only = not self.keep_probabilities
            collector.enter(label, raw_slabs(answer.blend, *grids, positive_only=positive_only))
            collector.rate(label, answer.index, answer.predicted_iou, answer.prompt_consistency)
        return collector.prediction(wanted)
