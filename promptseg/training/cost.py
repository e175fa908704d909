"""What a training step costs: memory and arithmetic, counted without computing anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from promptseg.networks.cost import Counted, counted, middle_half
from promptseg.networks.prompt_encoder import PromptBatch, Query, batch_queries
from promptseg.networks.promptable import build_network
from promptseg.plans import Plans
from promptseg.training.losses import NameLoss
from promptseg.training.optimizer import make_optimizer
from promptseg.training.precision import MixedPrecision
from promptseg.training.rounds import decoding
from promptseg.training.settings import TrainingSettings

POINTS = 4  # of a query in every round: more than a click, fewer than a scribble


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """The costs of training steps for some plans, encoder and settings.

    Attributes:
        bytes: peak memory of the tensors of a step that answers prompts in the whole patch in
            every round, weights, gradients and optimizer state included.
        flops: floating-point operations, backward pass included, in the mean over steps that
            answer prompts and steps that do not.
        written_bytes: of the results of all operations, likewise.
    """

    bytes: int
    flops: float
    written_bytes: float


def step_cost(
    plans: Plans, encoder: str, settings: TrainingSettings, precision: str = "fp32"
) -> StepCost:
    """Count what training steps cost, on tensors that have shapes but no values.

    It takes seconds and next to no memory, whatever the sizes.

    Args:
        plans: plans, whose batch size, patch and labels count.
        encoder: name of the image encoder.
        settings: number of objects and rounds, and how often prompts are answered.
        precision: of the steps, see `MixedPrecision`.

    Raises:
        ValueError: for an unknown encoder, or a size that it does not have.
    """
    labels = {str(number): values for number, values in enumerate(plans.labels.values(), 1)}
    # what the count does not depend on
    others = {"median_shape": plans.patch_size, "auto_prompts": {}, "reasons": {}, "estimate": {}}
    nameless = replace(plans, dataset_name="any", plans_name="any", labels=labels, **others)
    return _counted(json.dumps(nameless.to_json()), encoder, settings, precision)


@lru_cache(maxsize=256)  # a count takes seconds, and planning asks for some more than once
def _counted(plans_text: str, encoder: str, settings: TrainingSettings, precision: str) -> StepCost:
    plans = Plans.from_json(json.loads(plans_text))
    network = build_network(plans, encoder)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    _forget_values(network, mode)
    with mode:
        step = Step(network, plans, settings, precision)
        few = min(settings.rounds, 1)
        answered = counted(partial(step.answer_prompts, few), step.held)
        others = settings.answer_every - 1 if step.has_names else 0
        learned = counted(lambda _: step.learn_names(), step.held) if others else Counted()
    # further rounds are like the second answer: what it keeps is kept until the backward pass,
    # which computes twice as much as the answer
    first, second = answered.notes[0], answered.notes[few]
    more, steps = settings.rounds - few, 1 + others
    flops = answered.flops + 3 * more * (second.flops - first.flops)
    written = answered.written_bytes + 3 * more * (second.written_bytes - first.written_bytes)
    # the peak may also be the optimizer's step, when all this is gone
    until_gradients = answered.notes[-1].peak_bytes
    kept = until_gradients + more * (second.live_bytes - first.live_bytes)
    return StepCost(
        bytes=max(kept, answered.peak_bytes, learned.peak_bytes),
        flops=(flops + others * learned.flops) / steps,
        written_bytes=(written + others * learned.written_bytes) / steps,
    )


def _forget_values(network: nn.Module, mode: FakeTensorMode) -> None:
    """Put tensors of the same shapes, but without values, in place of a network's."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            shape_only = mode.from_tensor(parameter.detach())
            module.register_parameter(name, nn.Parameter(shape_only))
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, mode.from_tensor(buffer))


class Step:
    """The two kinds of training steps of `Learner`, on images and prompts of the plans' sizes.

    Prompts are answered in the whole patch, so that no shape depends on a value.

    Attributes:
        held: what exists before a step.
        has_names: whether the network answers names by themselves.
    """

    def __init__(
        self, network: nn.Module, plans: Plans, settings: TrainingSettings, precision: str
    ) -> None:
        self.network = network.train()
        weights = (settings.dice_weight, settings.focal_weight)
        self.name_loss = NameLoss(plans.labels, *weights, settings.focal_gamma)
        self.optimizer = make_optimizer(network, settings)
        self.mixed_precision = MixedPrecision(precision, "cpu")
        shape = (plans.batch_size, *plans.patch_size)
        self.image = torch.zeros(shape[0], len(plans.channel_names), *shape[1:])
        self.segmentation = torch.zeros(shape, dtype=torch.uint8)
        self.prompts = _queries(plans, settings)
        self.targets = torch.zeros((len(self.prompts), *shape[1:]), dtype=torch.bool)
        self.held = [network, self.image, self.segmentation, self.targets]
        with self.mixed_precision.autocast(), torch.no_grad():
            self.has_names = network.encode(self.image[:1]).names is not None

    def learn_names(self) -> None:
        with self.mixed_precision.autocast():
            encoding = self.network.encode(self.image)
        self._optimize(self.name_loss(encoding.names, self.segmentation))

    def answer_prompts(self, rounds: int, note: Callable[[], None]) -> None:
        prompts, losses = self.prompts, []
        points = [np.zeros((POINTS, 3))] * len(prompts), [np.ones(POINTS)] * len(prompts)
        with self.mixed_precision.autocast():
            encoding = self.network.encode(self.image)
            decode = decoding(self.network, self.targets.shape[1:])
            for _ in range(1 + rounds):
                logits, iou = decode(encoding, prompts, whole=True)
                losses.append(_prompt_loss(logits, iou, self.targets))
                prompts = prompts.corrected(logits, *points)
                note()
        loss = sum(losses) / len(losses)
        if self.has_names:
            loss = loss + self.name_loss(encoding.names, self.segmentation)
        self._optimize(loss, note)

    def _optimize(self, loss: torch.Tensor, note: Callable[[], None] = lambda: None) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        note()
        self.optimizer.step()


def _prompt_loss(logits: Tensor, iou: Tensor, targets: Tensor) -> Tensor:
    """What `PromptLoss` computes in essence; MONAI's losses would read values."""
    targets, probabilities = targets.float(), logits.float().sigmoid()
    overlap = (probabilities * targets).sum() / (probabilities.sum() + targets.sum())
    hard = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    return hard.mean() - overlap + iou.float().sigmoid().mean()


def _queries(plans: Plans, settings: TrainingSettings) -> PromptBatch:
    """As many queries as a step has, spread over the images: labels with a box."""
    box = middle_half(plans.patch_size)
    count = max(settings.objects_per_step, plans.batch_size)
    return batch_queries(
        [
            Query(image=number % plans.batch_size, label=number % len(plans.labels), box=box)
            for number in range(count)
        ]
    )
