"""One training step: a network, and the loss, optimizer, precision and average of its weights.

The trainer's loop supplies the batches. The state of all of these enters checkpoints here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from promptseg.boxes import mask_box
from promptseg.labels import Values
from promptseg.networks.encoding import Encoding
from promptseg.networks.prompt_encoder import NO_LABEL, PromptBatch, Query, batch_queries
from promptseg.prompts.simulated import jitter_box
from promptseg.training.averaging import weight_average
from promptseg.training.checkpoint import load_weights
from promptseg.training.dataset import Batch
from promptseg.training.distillation import Teacher, distillation_loss
from promptseg.training.distributed import mean_of_all
from promptseg.training.losses import (
    NameLoss,
    PromptLoss,
    about_objects,
    click_loss,
    labels_meant,
    match_loss,
    without_ignored,
)
from promptseg.training.optimizer import make_optimizer
from promptseg.training.precision import MixedPrecision, choose_precision
from promptseg.training.request import RunOptions
from promptseg.training.rounds import answers_by_round
from promptseg.training.settings import TrainingSettings

log = logging.getLogger(__name__)


class Learner:
    """A network and everything that changes its weights.

    Args:
        network: network with its initial weights; is moved to the device.
        settings: settings of the run.
        options: device, and whether to compile the encoder.
        labels: what each name stands for.
        teacher: networks whose answers are learned beside the labels; is moved to the device.

    Attributes:
        network: the network in training.
        loss, name_loss: of queries and of names, in float32.
        optimizer: optimizer of the weights that train.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: TrainingSettings,
        options: RunOptions,
        labels: Mapping[str, Values],
        teacher: Teacher | None = None,
    ) -> None:
        if settings.freeze == "encoder":
            network.image_encoder.requires_grad_(False)
        # channels last is 1.5 times as fast for 3D convolutions on a CPU
        self.network = network.to(options.device, memory_format=torch.channels_last_3d)
        self.teacher = None if teacher is None else teacher.to(options.device)
        self.settings = settings
        weights, gamma = (settings.dice_weight, settings.focal_weight), settings.focal_gamma
        self.loss = PromptLoss(*weights, settings.iou_weight, gamma)
        self.name_loss = NameLoss(labels, *weights, gamma)
        self.labels = labels
        self.optimizer = make_optimizer(network, settings)
        precision = choose_precision(settings.precision, options.device)
        self.mixed_precision = MixedPrecision(precision, options.device)
        self.average = weight_average(network, settings.ema) if settings.ema else None
        # only for training steps, and not the decoder: its regions have a new shape at every query,
        # each of which would be compiled anew
        self.encode = torch.compile(network.encode) if options.compile else network.encode
        if settings.freeze is not None:
            sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
            trained = sum(size for size, trains in sizes if trains)
            every = sum(size for size, _ in sizes)
            log.info("the %s is frozen: %d of %d parameters train", settings.freeze, trained, every)
        log.info(
            "precision %s%s%s",
            precision,
            f", weights averaged with decay {settings.ema}" if settings.ema else "",
            ", compiled: the first steps take minutes" if options.compile else "",
        )

    @property
    def answering(self) -> nn.Module:
        """The network to validate and predict with: the average, where there is one."""
        return self.network if self.average is None else self.average.module

    def compute_loss(self, batch: Batch, *, is_answered: bool = True) -> Tensor:
        """The loss on a batch on the network's device: of the names, and of every round.

        Where the queries are not to be answered, of what they mean instead of the rounds.
        Of several processes each has a part of the batch, and gets the loss of the whole.
        """
        settings, count = self.settings, len(batch.prompts)
        rng = np.random.default_rng(batch.seed)
        rounds = int(rng.integers(1, settings.rounds + 1)) if settings.rounds else 0
        losses, first, prompts, ignored = [], None, batch.prompts, batch.ignored
        with self.mixed_precision.autocast():
            encoding = self.encode(batch.image)
            if not is_answered and encoding.names is not None:
                return self._names_loss(encoding, batch, prompts)
            answers = answers_by_round(
                self.network,
                encoding,
                batch.prompts,
                batch.targets,
                rounds,
                batch.generators(),
                ignored,
            )
            for prompts, logits, iou in answers:
                first = logits if first is None else first
                asked = self._where_objects_are(logits, iou, batch.targets, ignored)
                clicked = settings.click_weight * click_loss(logits, prompts)
                losses.append(mean_of_all(asked, count) + clicked)
        loss = sum(losses) / len(losses)
        if encoding.names is not None:
            loss = loss + self._names_loss(encoding, batch, prompts)
        if self.teacher is None:
            return loss
        temperature = settings.teacher_temperature
        with self.mixed_precision.autocast():
            probabilities = self.teacher.probabilities(batch, temperature)
        taught = mean_of_all(distillation_loss(first, probabilities, temperature), count)
        return loss + settings.teacher_weight * taught

    def _names_loss(self, encoding: Encoding, batch: Batch, last: PromptBatch) -> Tensor:
        """The loss of the names, and of what is meant by queries without one."""
        loss = self.name_loss(encoding.names, batch.segmentation)
        return loss + self.settings.match_weight * self._match_loss(encoding, batch, last)

    def _match_loss(self, encoding: Encoding, batch: Batch, last: PromptBatch) -> Tensor:
        """What the queries without a name mean, by their first and by their last prompts.

        And what a box about each object means, however the object was prompted: few queries come
        without a name, and without one this decides the whole mask.
        """
        stored = batch.segmentation[batch.prompts.image_index]
        meant = labels_meant(batch.targets, stored, self.labels)
        unnamed = batch.prompts.labels == NO_LABEL
        rated = [(*boxes_about_objects(batch), 1.0)]
        if last is batch.prompts:
            rated.append((last, unnamed, 1.0))
        else:
            rated += [(batch.prompts, unnamed, 0.5), (last, unnamed, 0.5)]
        total = 0.0
        for prompts, some, weight in rated:
            loss, count = 0.0 * self.network.name_match.no_label, int(some.sum())
            if count:
                weights = self.network.meant_labels(encoding, prompts[some])
                loss = match_loss(weights, meant[some])
            total = total + weight * mean_of_all(loss, count)
        return total

    def _where_objects_are(
        self, logits: Tensor, iou: Tensor, targets: Tensor, ignored: Tensor | None
    ) -> Tensor:
        """The mean loss of queries, each in the part of the patch about its object."""
        losses = [
            self.loss(
                logits[part],
                iou[part[0]],
                targets[part],
                None if ignored is None else ignored[part],
            )
            for part in about_objects(without_ignored(logits, ignored), targets)
        ]
        return sum(losses) / len(losses)

    def optimizer_step(self, loss: Tensor, learning_rate: float) -> None:
        """Make one step of the optimizer, and update the average."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        clip = self.settings.gradient_clip
        self.mixed_precision.optimizer_step(loss, self.optimizer, self.network, clip)
        if self.average is not None:
            self.average.update_parameters(self.network)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last step."""
        return self.optimizer.param_groups[0]["lr"]

    def state(self) -> dict[str, Any]:
        """The entries of a checkpoint; `network` is what predictions are made with.

        When weights are averaged, `network` is the average, and `unaveraged` has the weights in
        training and the number of updates; otherwise `unaveraged` is None.
        """
        unaveraged = None
        if self.average is not None:
            updates = int(self.average.n_averaged)
            unaveraged = {"network": self.network.state_dict(), "updates": updates}
        return {
            "network": self.answering.state_dict(),
            "unaveraged": unaveraged,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.mixed_precision.scaler.state_dict(),
            "teacher": None if self.teacher is None else self.teacher.digest,
        }

    def restore(self, content: Mapping[str, Any], where: object = "the checkpoint") -> None:
        """Continue from a checkpoint; old ones have no average.

        Args:
            content: content of the checkpoint.
            where: its file or folder, for messages.

        Raises:
            ValueError: if the checkpoint was written with another teacher, or if the encoder has
                changed since.
        """
        if self.teacher is not None:
            self.teacher.check_same(content.get("teacher"))
        load_weights(self.answering, content["network"], where)
        saved = content["optimizer"]
        # older checkpoints were written by an optimizer that was not fused
        groups = [{**group, "fused": True} for group in saved["param_groups"]]
        self.optimizer.load_state_dict({**saved, "param_groups": groups})
        if self.average is not None:
            self.network.load_state_dict(content["unaveraged"]["network"])
            self.average.n_averaged.fill_(content["unaveraged"]["updates"])
        if content.get("scaler"):
            self.mixed_precision.scaler.load_state_dict(content["scaler"])


def boxes_about_objects(batch: Batch) -> tuple[PromptBatch, Tensor]:
    """A query without a name by the jittered box of each object; (n,) bool, which have one."""
    queries = []
    images, shape = batch.prompts.image_index.tolist(), tuple(batch.targets.shape[1:])
    for image, target, rng in zip(images, batch.targets, batch.generators(), strict=True):
        box = mask_box(target.cpu().numpy())
        box = None if box is None else jitter_box(box, shape, rng)
        queries.append(Query(image=image, label=NO_LABEL, box=box))
    prompts = batch_queries(queries).to(batch.targets.device)
    return prompts, prompts.has_box
