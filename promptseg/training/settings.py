"""Hyperparameters of a training run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Hyperparameters: a trainer sets defaults, the caller overrides, the checkpoint records them.

    Attributes:
        recipe: `scratch` (AdamW, warm-up, cosine to zero) or `paper` (Adam, halved at intervals).
        epochs: length of the whole run.
        iterations_per_epoch: optimizer steps in one epoch.
        time_budget: seconds of training, in place of `epochs`; the schedule then follows the time.
        initial_lr: learning rate after the warm-up.
        weight_decay: weight decay of AdamW.
        warmup: fraction of the run in which the learning rate rises (`scratch`).
        halve_every: epochs after which the learning rate halves (`paper`).
        gradient_clip: largest norm of the gradient.
        dice_weight, focal_weight, iou_weight: weights of the loss terms (paper, equation 2: 1 and
            1 for the first two).
        focal_gamma: gamma of the focal loss; 0 makes it the cross-entropy.
        zoom_out_fraction: fraction of samples that are whole volumes resized to the patch, among
            volumes larger than the patch.
        foreground_fraction: fraction of zoom-in patches that are placed on a label.
        rare_label_fraction: fraction of the cases without the scheduled label that are replaced
            by a case with it.
        objects_per_step: objects that are prompted in a step, spread over the images of the
            batch, at least one in each.
        answer_every: of so many steps one answers its prompts, on average: at first a third as
            many, and at the end, when the features are nearly what they will be, five thirds. The
            others, which take a third of the time, learn names, and what prompts without a name
            mean.
        unnamed_fraction: fraction of them that carry no name; labels, and objects that are none.
        rounds: most rounds of corrections after the first prompts of an object.
        click_weight: weight of the loss at the clicked voxels.
        match_weight: weight of the loss of which label a prompt without a name means.
        box_jitter: bound of the noise on box faces, as a fraction of the side (paper, section
            2.2).
        prompt_dropout: fraction of boxes that are left out where there are points beside them
            (section 2.2).
        auto_box_fraction: fraction of boxes taken from the automatic prompts, where there are any.
        augment: whether to apply spatial and intensity augmentation.
        mirror_axes: axes, of z, y, x = 0, 1, 2, mirrored in training and therefore at test time.
        ema: decay of the average of the weights that validates and predicts; 0 for no average.
        early_stopping: epochs without a better validation score that end the run; 0 never does.
        precision: precision of training steps, `fp32`, `bf16` or `fp16`; None suits the device.
        seed: seed of weights, samples and augmentation.
        pretrained_weights: file the run started from: SegVol's, or the checkpoint of another run.
        freeze: `encoder` keeps the image encoder's weights unchanged, None trains everything.
        teacher: trained model, a folder or zip file, whose answers are learned beside the labels.
        teacher_weight: weight of the teacher's term of the loss.
        teacher_temperature: divisor of the teacher's and the student's logits in that term.
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
    foreground_fraction: float = 0.5
    rare_label_fraction: float = 0.25
    objects_per_step: int = 4
    answer_every: int = 1
    unnamed_fraction: float = 0.35
    rounds: int = 3
    click_weight: float = 0.1
    match_weight: float = 0.1
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
            "objects_per_step",
            "answer_every",
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
        if self.rounds < 0:
            raise ValueError(f"rounds must be 0 or more, got {self.rounds}")
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
        """Read what `to_json` of this or an older version wrote."""
        mirror_axes = tuple(content["mirror_axes"])
        content = {
            _FORMER_NAMES.get(name, name): value
            for name, value in content.items()
            if name not in _GONE
        }
        # what versions did that do not mention these settings
        without = {"precision": "fp32", "rare_label_fraction": 0.0}
        return cls(**{**without, **content, "mirror_axes": mirror_axes})

    def is_answered(self, step: int, progress: float) -> bool:
        """Whether a step answers its prompts, at a fraction of the run, 0 to 1.

        The multiples of the golden ratio are spread evenly, so that the part of them below a
        fraction is that fraction of any few steps.
        """
        wanted = (1 + 4 * min(progress, 1.0)) / 3 / self.answer_every
        return self.answer_every == 1 or step * GOLDEN % 1 < wanted

    def learning_rate(self, progress: float, epoch: int) -> float:
        """The learning rate at a fraction of the run, 0 to 1 (`scratch`), or an epoch (`paper`)."""
        if self.recipe == "paper":
            return self.initial_lr * 0.5 ** (epoch // self.halve_every)
        if progress < self.warmup:
            return self.initial_lr * max(progress / self.warmup, 0.01)
        left = min((progress - self.warmup) / (1 - self.warmup), 1.0)
        return self.initial_lr * 0.5 * (1 + math.cos(math.pi * left))


GOLDEN = (5**0.5 - 1) / 2
_FORMER_NAMES = {  # of settings, in earlier checkpoints
    f"{name}_share": f"{name}_fraction"
    for name in ("zoom_out", "foreground", "rare_label", "auto_box")
}
_GONE = ("labels_per_image",)  # settings of earlier checkpoints that have no successor
EXTENDING = ("epochs", "time_budget", "early_stopping", "teacher")  # may change in a continued run
FREEZABLE = ("encoder",)
PRECISIONS = ("fp32", "bf16", "fp16")
RECIPES: dict[str, dict[str, Any]] = {
    "scratch": {},
    # Paper, section 3.3: Adam, 1e-5, halved every 200 epochs, up to 3000 epochs.
    "paper": {"epochs": 3000, "initial_lr": 1e-5, "weight_decay": 0.0, "halve_every": 200},
}


def extended(settings: TrainingSettings, changes: Mapping[str, Any]) -> TrainingSettings:
    """A continued run's settings with another end, or with its teacher in another place.

    Args:
        settings: settings of the checkpoint.
        changes: settings of `EXTENDING`, None where unchanged; `epochs` alone ends a time budget.
    """
    if changes.get("epochs") is not None and changes.get("time_budget") is None:
        settings = dataclasses.replace(settings, time_budget=None)
    return settings.replace(**changes)
