"""The training loop. A trainer is a leaf that names an encoder and its default settings."""

from __future__ import annotations

import logging
import shutil
import time
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from promptseg.files import replacing, through_json
from promptseg.networks.promptable import build_network
from promptseg.registry import Registry
from promptseg.signals import signal_handlers
from promptseg.training import distributed
from promptseg.training.batches import batches, deaths_explained
from promptseg.training.checkpoint import (
    checkpoint_to_continue,
    random_state,
    remove_leftovers,
    restore_random_state,
    save_checkpoint,
)
from promptseg.training.dataset import Batch, TrainingSteps
from promptseg.training.distillation import Teacher, check_teacher_is_wanted
from promptseg.training.distributed import is_rank_zero
from promptseg.training.fold import Fold
from promptseg.training.logging import (
    check_installed,
    epochs_since_best,
    metric_loggers,
    write_metrics,
)
from promptseg.training.optimizer import seed_everything
from promptseg.training.pretrained import load_pretrained
from promptseg.training.progress import Progress, run_bar
from promptseg.training.request import RunOptions
from promptseg.training.settings import RECIPES, TrainingSettings, extended
from promptseg.training.step import Learner
from promptseg.training.validation import validate, validation_patches

TRAINERS = Registry("trainer")

log = logging.getLogger(__name__)


class BaseTrainer(ABC):
    """Fits a promptable network on one fold and writes its checkpoints.

    Subclasses set `encoder` and may set `default_settings` and `needs_teacher`; they override
    nothing else.

    Args:
        fold: cases and plans; without validation cases (fold `all`) the fixed validation patches
            come from training cases, and the picture says so.
        folder: where checkpoints, log and pictures go (`.../fold_0`).
        settings: hyperparameters; a continued run takes them from its checkpoint.
        options: options of this run, with a device.
        extend: settings of `EXTENDING` that a continued run changes.
        load_teacher: makes a teacher of the model that `settings.teacher` names.
    """

    encoder: str
    default_settings = TrainingSettings()
    needs_teacher = False

    def __init__(
        self,
        fold: Fold,
        folder: Path,
        settings: TrainingSettings,
        options: RunOptions,
        *,
        extend: Mapping[str, Any] | None = None,
        load_teacher: Callable[[Path], Teacher] | None = None,
    ) -> None:
        self.fold = fold
        self.plans = fold.plans
        self.folder = folder
        self.training_cases = list(fold.training_cases)
        self.validation_cases = list(fold.validation_cases)
        self.settings = settings
        self.options = options
        self.extend = dict(extend or {})
        self.load_teacher = load_teacher
        self.progress = Progress()
        self.patience_before = 0  # `early_stopping` of the run that is continued
        self.stop_requested = False  # in this process
        self.stopped = False  # in all processes, once one of them requested it

    @classmethod
    def settings_for(cls, recipe: str) -> TrainingSettings:
        """This trainer's settings under a recipe."""
        if recipe not in RECIPES:
            raise ValueError(f"unknown recipe {recipe!r}; there are {', '.join(RECIPES)}")
        return cls.default_settings.replace(recipe=recipe, **RECIPES[recipe])

    @property
    def finished(self) -> bool:
        """Whether the run has reached its end."""
        return self.progress.fraction(self.settings) >= 1 or self.progress.ended_early(
            self.settings
        )

    @property
    def final_stays(self) -> bool:
        """Whether `run` will end with the same final weights as the run that is continued."""
        patience, best = self.settings.early_stopping, self.folder / "checkpoint_best.pth"
        same_end = patience == self.patience_before and (not patience or best.is_file())
        return self.finished and same_end

    def run(self) -> bool:
        """Train to the end, or until SIGTERM or Ctrl-C; whether the end was reached.

        Call `prepare` first. With early stopping, the final checkpoint is the best one.
        """
        patches = validation_patches(
            self.fold.preprocessed,
            self.validation_cases or self.training_cases,
            self.plans,
            self.fold.auto_boxes,
            self.settings.seed,
        )
        rows, settings = self.progress.rows, through_json(self.settings.to_json())
        loggers = metric_loggers(self.options, self.folder, rows, self._title(), settings)
        deaths = deaths_explained(self.options.processes)
        with signal_handlers(self._request_stop), loggers as self.log_row, deaths:
            distributed.begin()
            self._train(patches)
        if self.stopped:
            log.info("stopped at step %d; the same command with --c continues", self.progress.step)
            return False
        if self.progress.ended_early(self.settings):
            log.info(
                "ended after %d epochs, %d of them without a better validation score; to "
                "continue, give --c and a larger --early-stopping, or --early-stopping 0",
                len(rows),
                epochs_since_best(rows),
            )
        if not is_rank_zero():
            return True
        best = self.folder / "checkpoint_best.pth"
        if self.settings.early_stopping and best.is_file():
            with replacing(self.folder / "checkpoint_final.pth") as temporary:
                shutil.copyfile(best, temporary)
            return True
        if self.settings.early_stopping:
            log.warning("%s is gone; the final checkpoint is the last epoch's", best)
        self._save("final")
        return True

    def prepare(self) -> None:
        """Build the network, or restore it from the latest checkpoint.

        With `resume` but no checkpoint the run starts from the beginning, and says so. A run that
        starts from the beginning removes what an earlier one left.

        Raises:
            ImportError: if TensorBoard or W&B is requested and not installed.
            FileExistsError: if the fold has checkpoints and neither `resume` nor `overwrite` is
                set, so that no training is lost by a repeated command.
            ValueError: if the checkpoint has another trainer, other plans, other cases or another
                teacher, if a batch has fewer images than there are training processes, and as
                `check_teacher_is_wanted` and `load_teacher` do.
        """
        check_installed(self.options)
        distributed.own_images(self.plans.batch_size)  # an error comes before anything is removed
        content = checkpoint_to_continue(
            self.folder, self.name, self.plans, self._cases(), self.options
        )
        if content is not None:
            kept = TrainingSettings.from_json(content["settings"])
            self.settings = extended(kept, self.extend)
            self.patience_before = kept.early_stopping
        if self.settings.early_stopping and not self.validation_cases:
            raise ValueError(
                "early stopping needs validation cases, and this fold has none; train without "
                "--early-stopping, or one of the folds 0, 1, ... (-f)"
            )
        check_teacher_is_wanted(self.name, self.needs_teacher, self.settings.teacher)
        teacher = self.load_teacher(Path(self.settings.teacher)) if self.needs_teacher else None
        labels = self.plans.labels
        seed_everything(self.settings.seed)
        # sums of parallel threads in a fixed order: the same seed gives the same weights
        torch.use_deterministic_algorithms(self.options.device == "cpu")
        # filling uninitialized memory would take an eighth of a step, and changes no result
        torch.utils.deterministic.fill_uninitialized_memory = False
        self.network = build_network(self.plans, self.encoder)
        if content is None and self.settings.pretrained_weights is not None:
            load_pretrained(self.network, self.plans, self.settings.pretrained_weights)
        self.learner = Learner(self.network, self.settings, self.options, labels, teacher)
        if content is not None:
            self._restore(content)
        distributed.broadcast_weights(self.learner.network, self.progress.step)
        if is_rank_zero():
            remove_leftovers(self.folder, checkpoints=content is None)
        log.info(
            "%s: %s %s, %.2f M parameters, patch %s, stride %s, batch %d, %d training and %d "
            "validation cases, on %s",
            type(self).__name__,
            self.encoder,
            self.plans.size,
            sum(p.numel() for p in self.network.parameters()) / 1e6,
            self.plans.patch_size,
            self.plans.stride,
            self.plans.batch_size,
            len(self.training_cases),
            len(self.validation_cases),
            self.options.device,
        )
        log.info("settings: %s", self.settings)

    def _request_stop(self, number: int, frame: object) -> None:
        """Stop after the step under way."""
        self.stop_requested = True

    def _train(self, patches: Sequence) -> None:
        progress, settings, steps = self.progress, self.settings, self._steps()
        on_cpu = self.options.device == "cpu"
        before, started = progress.seconds, time.monotonic()
        saved = started
        with run_bar(progress.fraction(settings), shown=is_rank_zero()) as bar:
            bar.set_description_str(f"training, epoch {progress.epoch(settings)}")
            for batch in batches(steps, progress.step, self.options.processes, on_cpu=on_cpu):
                self._agree()
                if self.finished or self.stopped:
                    break
                progress.losses.append(self._optimize(batch))
                progress.step += 1
                progress.seconds = before + time.monotonic() - started
                if progress.step % settings.iterations_per_epoch == 0:
                    self._finish_epoch(patches)
                    bar.set_description_str(f"training, epoch {progress.epoch(settings)}")
                    progress.seconds = before + time.monotonic() - started
                    self._save("latest")
                    saved = time.monotonic()
                elif time.monotonic() - saved > self.options.checkpoint_seconds:
                    self._save("latest")
                    saved = time.monotonic()
                bar.update(min(100 * progress.fraction(settings), 100) - bar.n)
                bar.set_postfix_str(f"step {progress.step}, loss {progress.loss:.3f}")
        if progress.losses and not self.stopped:
            self._finish_epoch(patches)
        self._agree()
        self._save("latest")

    def _agree(self) -> None:
        """Let all processes use the first one's clock, and stop together."""
        progress = self.progress
        progress.seconds, self.stopped = distributed.agree(progress.seconds, self.stop_requested)

    def _steps(self) -> TrainingSteps:
        """The batches, each with the images of this process only."""
        own = distributed.own_images(self.plans.batch_size)
        return TrainingSteps(
            self.fold.preprocessed,
            self.training_cases,
            self.plans,
            self.settings,
            self.fold.auto_boxes,
            own,
        )

    def _optimize(self, batch: Batch) -> float:
        batch = batch.to(self.options.device)
        fraction, epoch = self.progress.fraction(self.settings), self.progress.epoch(self.settings)
        is_answered = self.settings.is_answered(self.progress.step, fraction)
        loss = self.learner.compute_loss(batch, is_answered=is_answered)
        value = float(loss.detach())
        try:
            if not np.isfinite(value):
                raise FloatingPointError(f"the loss is {value}")
            self.learner.optimizer_step(loss, self.settings.learning_rate(fraction, epoch))
        except FloatingPointError as error:
            raise RuntimeError(
                f"training diverged at step {self.progress.step}: {error}; start again with a "
                f"lower learning rate (--overwrite --initial-lr, here {self.settings.initial_lr:g})"
            ) from error
        return value

    def _finish_epoch(self, patches: Sequence) -> None:
        progress, answering, device = self.progress, self.learner.answering, self.options.device
        measured = distributed.run_on_rank_zero(
            partial(validate, answering, patches, self.learner.loss, device)
        )
        row = {
            "epoch": len(progress.rows),
            "step": progress.step,
            "seconds": round(progress.seconds, 2),
            "learning_rate": self.learner.learning_rate,
            "train_loss": progress.loss,
            **measured,
        }
        progress.rows.append(row)
        progress.losses = []
        if not is_rank_zero():
            return
        if epochs_since_best(progress.rows) == 0:
            self._save("best")
        self.log_row(row)
        write_metrics(self.folder, progress.rows, self._title())

    def _title(self) -> str:
        held_out = "" if self.validation_cases else " (validation patches from training cases)"
        return f"{self.plans.dataset_name}, {type(self).__name__}, {self.folder.name}{held_out}"

    def _save(self, name: str) -> None:
        if not is_rank_zero():
            return
        save_checkpoint(
            self.folder / f"checkpoint_{name}.pth",
            {
                "trainer": self.name,
                "encoder": self.encoder,
                "plans": through_json(self.plans.to_json()),
                "settings": through_json(self.settings.to_json()),
                **self.learner.state(),
                **self.progress.state(),
                **self._cases(),
                **random_state(self.options.device),
            },
        )

    def _cases(self) -> dict[str, list[str]]:
        return {"training_cases": self.training_cases, "validation_cases": self.validation_cases}

    def _restore(self, content: Mapping[str, Any]) -> None:
        self.learner.restore(content, self.folder)
        self.progress = Progress.of_checkpoint(content)
        # the same cases, but in the order that samples are drawn in
        self.training_cases = content.get("training_cases", self.training_cases)
        restore_random_state(content, self.options.device)
        is_best = self.progress.rows and epochs_since_best(self.progress.rows) == 0
        if is_best and not (self.folder / "checkpoint_best.pth").exists():
            self._save("best")
