"""Hyperparameters of a training run, and its options that are not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Hyperparameters: a trainer gives defaults, the caller overrides, the checkpoint records.

    Attributes:
        recipe: `scratch` (AdamW, warm-up, cosine to zero) or `paper` (Adam, halved at intervals).
        epochs: of the whole run.
        iterations_per_epoch: optimizer steps in one epoch.
        time_budget: seconds of training in place of `epochs`: the schedule then runs over time.
        initial_lr: learning rate after the warm-up.
        weight_decay: of AdamW.
        warmup: share of the run in which the learning rate rises (`scratch`).
        halve_every: epochs after which the learning rate halves (`paper`).
        gradient_clip: largest norm of the gradient.
        dice_weight, focal_weight, iou_weight: of the loss terms (paper, equation 2: 1 and 1).
        focal_gamma: of the focal loss.
        zoom_out_fraction: share of samples that are whole volumes resized to the patch, where
            volumes are larger than it.
        foreground_fraction: share of zoom-in patches that are placed on a label.
        rare_label_fraction: chance that a patch's case, where it lacks the label whose turn it is,
            gives way to a case that has it.
        labels_per_image: most labels asked for in one image.
        box_jitter: bound of the noise on box faces, as a share of the side (paper, section 2.2).
        prompt_dropout: chance that one of a query's prompt types is left out (section 2.2).
        auto_box_fraction: share of boxes that come from the plans' automatic prompts.
        augment: spatial and intensity augmentation.
        mirror_axes: axes, of z, y, x = 0, 1, 2, mirrored in training and so at test time.
        ema: decay of the average of the weights that validates and predicts; 0 averages nothing.
        early_stopping: epochs without a better validation score that end the run; 0 never.
        precision: of training steps, `fp32`, `bf16` or `fp16`; None takes what suits the device.
        seed: of weights, samples and augmentation.
        pretrained_weights: file that the run started from: SegVol's, or another run's.
        freeze: `encoder` keeps the image encoder's weights as they are, None trains everything.
        teacher: trained model, a folder or zip file, whose answers are learned beside the labels.
        teacher_weight: of that term of the loss.
        teacher_temperature: that the teacher's and the student's logits are divided by in it.
    """

    recipe: str = "scratch"
    epochs: int = 200
    iterations_per_epoch: int = 100
    time_budget: float | None = None
    initial_lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.03
    halve_every: int = 200
    gradient_clip: float = 1.0
    dice_weight: float = 1.0
    focal_weight: float = 1.0
    iou_weight: float = 0.1
    focal_gamma: float = 2.0
    zoom_out_fraction: float = 0.3
    foreground_fraction: float = 0.7
    rare_label_fraction: float = 0.25
    labels_per_image: int = 4
    box_jitter: float = 0.1
    prompt_dropout: float = 0.2
    auto_box_fraction: float = 0.5
    augment: bool = True
    mirror_axes: tuple[int, ...] = ()
    ema: float = 0.0
    early_stopping: int = 0
    precision: str | None = None
    seed: int = 0
    pretrained_weights: str | None = None
    freeze: str | None = None
    teacher: str | None = None
    teacher_weight: float = 1.0
    teacher_temperature: float = 2.0

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ValueError(f"unknown recipe {self.recipe!r}; there are {', '.join(RECIPES)}")
        for name in (
            "epochs",
            "iterations_per_epoch",
            "initial_lr",
            "labels_per_image",
            "teacher_weight",
            "teacher_temperature",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.freeze not in (None, *FREEZABLE):
            raise ValueError(
                f"freeze must be {' or '.join(FREEZABLE)}, or not given; got {self.freeze!r}"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be a decay of at least 0 and below 1, got {self.ema}")
        if self.early_stopping < 0:
            raise ValueError(f"early_stopping must be epochs, or 0, got {self.early_stopping}")
        if self.precision not in (None, *PRECISIONS):
            raise ValueError(
                f"precision must be {', '.join(PRECISIONS)}, or not given; got {self.precision!r}"
            )
        if self.time_budget is not None and not self.time_budget > 0:
            raise ValueError(f"time_budget must be positive seconds, got {self.time_budget}")

    def replace(self, **changes: Any) -> TrainingSettings:
        """A copy in which every change that is not None is made."""
        given = {name: value for name, value in changes.items() if value is not None}
        return dataclasses.replace(self, **given)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> TrainingSettings:
        """Read what `to_json` wrote; what older versions did not write was not done by them."""
        mirror_axes = tuple(content["mirror_axes"])
        content = {_FORMER_NAMES.get(name, name): value for name, value in content.items()}
        earlier = {"precision": "fp32", "rare_label_fraction": 0.0}
        return cls(**{**earlier, **content, "mirror_axes": mirror_axes})

    def learning_rate(self, progress: float, epoch: int) -> float:
        """The learning rate at a share of the run in [0, 1] (`scratch`) or an epoch (`paper`)."""
        if self.recipe == "paper":
            return self.initial_lr * 0.5 ** (epoch // self.halve_every)
        if progress < self.warmup:
            return self.initial_lr * max(progress / self.warmup, 0.01)
        left = min((progress - self.warmup) / (1 - self.warmup), 1.0)
        return self.initial_lr * 0.5 * (1 + math.cos(math.pi * left))


_FORMER_NAMES = {  # of settings, in checkpoints of version 0.1.0
    "zoom_out_share": "zoom_out_fraction",
    "foreground_share": "foreground_fraction",
    "rare_label_share": "rare_label_fraction",
    "auto_box_share": "auto_box_fraction",
}
FREEZABLE = ("encoder",)
PRECISIONS = ("fp32", "bf16", "fp16")
RECIPES: dict[str, dict[str, Any]] = {
    "scratch": {},
    # Paper, section 3.3: Adam, 1e-5, halved every 200 epochs, up to 3000 epochs.
    "paper": {"epochs": 3000, "initial_lr": 1e-5, "weight_decay": 0.0, "halve_every": 200},
}


def extended(settings: TrainingSettings, changes: Mapping[str, Any]) -> TrainingSettings:
    """A resumed run's settings with another end, or with its teacher in another place.

    `epochs` alone ends a time budget.
    """
    if changes.get("epochs") is not None and changes.get("time_budget") is None:
        settings = dataclasses.replace(settings, time_budget=None)
    return settings.replace(**changes)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What belongs to one run on one machine and is stored nowhere.

    Attributes:
        device: `cpu`, `cuda`, `cuda:1`, `mps`.
        workers: processes that make samples; 0 makes them in the training process.
        resume: continue from the last checkpoint there is.
        overwrite: start again although the fold has been trained before.
        compile: let torch.compile speed up the training steps.
        tensorboard: write metrics as event files into the fold's folder, too.
        wandb: project at Weights & Biases that gets the metrics; None sends nothing.
        checkpoint_seconds: longest time between two writes of `checkpoint_latest.pth`.
    """

    device: str = "cpu"
    workers: int = 1
    resume: bool = False
    overwrite: bool = False
    compile: bool = False
    tensorboard: bool = False
    wandb: str | None = None
    checkpoint_seconds: float = 300.0
