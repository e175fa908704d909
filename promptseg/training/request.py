"""What a caller or the command line says of a run: what to train, and how on this machine."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from promptseg.plans import DEFAULT_PLANS_NAME
from promptseg.training.settings import EXTENDING, TrainingSettings


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """Which fold to train with which trainer, and settings in place of the trainer's own.

    A setting that is None keeps the trainer's value. A continued run keeps the settings of its
    checkpoint, except `epochs`, `time_budget` and `early_stopping`, which may extend it, and
    `teacher`, which may have been moved.

    Attributes:
        trainer: name of a registered trainer; None for the one that the plans name.
        fold: `0`, `1`, ..., or `all` (every case trains, none validates).
        plans_name: as given to `plan_dataset`.
        group_regex: finds the patient in a case identifier, see `groups_by_regex`; no patient is
            then in both halves of a fold. Takes the place of `groups` in dataset.json.
        recipe: `scratch` or `paper`, see `RECIPES`; None is `paper` with pretrained weights and
            `scratch` without.
        epochs: length of the run.
        iterations_per_epoch: optimizer steps in one epoch.
        time_budget: seconds of training, in place of `epochs`.
        initial_lr: learning rate after the warm-up.
        seed: seed of weights, samples and augmentation.
        pretrained_weights: SegVol's checkpoint or one of ours to start from, see
            `load_pretrained`.
        freeze: `encoder` trains everything but the image encoder.
        teacher: folder or zip file of a trained model of the same plans, see `load_teacher`; for
            trainers that learn from one.
        ema: decay of an average of the weights, such as 0.999, that then validates and predicts.
        early_stopping: epochs without a better validation score that end the run; 0 never does.
        precision: precision of training steps, `fp32`, `bf16` or `fp16`; None is `bf16` on a GPU
            that computes in it, else `fp32`.
    """

    trainer: str | None = None
    fold: str | int = "0"
    plans_name: str = DEFAULT_PLANS_NAME
    group_regex: str | None = None
    recipe: str | None = None
    epochs: int | None = None
    iterations_per_epoch: int | None = None
    time_budget: float | None = None
    initial_lr: float | None = None
    seed: int | None = None
    pretrained_weights: Path | str | None = None
    freeze: str | None = None
    teacher: Path | str | None = None
    ema: float | None = None
    early_stopping: int | None = None
    precision: str | None = None

    @property
    def recipe_name(self) -> str:
        """The requested recipe, or the usual one."""
        return self.recipe or ("scratch" if self.pretrained_weights is None else "paper")

    def overrides(self) -> dict[str, Any]:
        """The settings that are given, by their names in `TrainingSettings`; paths are absolute."""
        names = {field.name for field in fields(TrainingSettings)} - {"recipe"}
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {name: given[name] for name in given if name in names and given[name] is not None}
        for name in ("pretrained_weights", "teacher"):
            if name in given:
                given[name] = str(Path(given[name]).absolute())
        return given

    def extensions(self) -> dict[str, Any]:
        """Those of the given settings that a continued run takes."""
        return {name: value for name, value in self.overrides().items() if name in EXTENDING}

    def ignored_flags(self) -> list[str]:
        """Flags of the given settings that a continued run takes from its checkpoint instead."""
        given = {} if self.recipe is None else {"recipe": self.recipe}
        given |= self.overrides()
        return [_flag(name) for name in given if name not in EXTENDING]


def _flag(name: str) -> str:
    return f"-{name}" if name == "pretrained_weights" else f"--{name.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What belongs to one run on one machine and is stored nowhere.

    Attributes:
        device: `cpu`, `cuda`, `cuda:1` or `mps`; None is a GPU if there is one, see
            `choose_device`.
        processes: worker processes that make samples; 0 makes them in the training process.
        resume: continue from the latest checkpoint.
        overwrite: start again although the fold has been trained before.
        compile: let torch.compile speed up the encoder in training steps.
        tensorboard: write metrics also as event files into the fold's folder.
        wandb: project at Weights & Biases that gets the metrics; None sends nothing.
        checkpoint_seconds: longest time between two writes of `checkpoint_latest.pth`.
    """

    device: str | None = None
    processes: int = 1
    resume: bool = False
    overwrite: bool = False
    compile: bool = False
    tensorboard: bool = False
    wandb: str | None = None
    checkpoint_seconds: float = 300.0
