"""A trainer that is ready for its first step in this process, set up as by `promptseg_train`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from promptseg.networks.device import choose_device
from promptseg.training.dataset import TrainingSteps
from promptseg.training.fold import load_fold
from promptseg.training.request import RunOptions
from promptseg.training.trainer import BaseTrainer
from promptseg.training.trainers import TRAINERS


@contextmanager
def ready_trainer(
    source: Path, plans_name: str, trainer: str, fold: int = 0, precision: str | None = None
) -> Iterator[tuple[BaseTrainer, TrainingSteps]]:
    """The trainer and its batches, which are prepared on access; its files are removed at the end.

    Args:
        source: folder of the preprocessed dataset.
        plans_name: name of its plans.
        trainer: name of the trainer.
        fold: number of the fold.
        precision: precision of training steps; None for the trainer's default.
    """
    given = load_fold(source, plans_name, str(fold))
    trainer_class = TRAINERS.get(trainer)
    with TemporaryDirectory() as scratch:
        run = trainer_class(
            given,
            Path(scratch) / f"fold_{fold}",
            trainer_class.settings_for("scratch").replace(precision=precision),
            RunOptions(device=choose_device(), processes=0),
        )
        run.prepare()
        run.network.train()
        yield (
            run,
            TrainingSteps(
                given.preprocessed,
                given.training_cases,
                given.plans,
                run.settings,
                given.auto_boxes,
            ),
        )
