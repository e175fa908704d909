"""A trainer that is ready for its first step in this process, set up as by `promptseg_train`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from promptseg.files import read_json
from promptseg.networks.device import choose_device
from promptseg.plans import load_plans
from promptseg.preprocessing.dataset import PreprocessedDataset
from promptseg.training.dataset import TrainingSteps
from promptseg.training.settings import RunOptions
from promptseg.training.splits import cases_of_fold
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
    plans = load_plans(source / f"{plans_name}.json")
    preprocessed = source / plans.data_identifier
    training_cases, validation_cases = cases_of_fold(
        source, str(fold), PreprocessedDataset(preprocessed).case_ids
    )
    auto_boxes = read_json(source / f"{plans_name}_auto_prompt_boxes.json")
    trainer_class = TRAINERS.get(trainer)
    with TemporaryDirectory() as scratch:
        run = trainer_class(
            plans=plans,
            preprocessed=preprocessed,
            folder=Path(scratch) / f"fold_{fold}",
            training_cases=training_cases,
            validation_cases=validation_cases,
            auto_boxes=auto_boxes,
            settings=trainer_class.settings_for("scratch").replace(precision=precision),
            options=RunOptions(device=choose_device(), workers=0),
        )
        run.prepare()
        run.network.train()
        yield run, TrainingSteps(preprocessed, training_cases, plans, run.settings, auto_boxes)
