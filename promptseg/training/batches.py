"""The batches of a run, one a step, made in worker processes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from promptseg.training.patches import Batch, TrainingSteps
from promptseg.training.signals import exit_at_once, signals_held_back

NO_END = 10**9  # steps of a run that ends by time


def batches(steps: TrainingSteps, first: int, workers: int) -> Iterator[Batch]:
    """The batches from a step to the run's end; worker errors arrive with their own traceback.

    Args:
        steps: what each batch is; their settings say how many there are.
        first: step.
        workers: processes that make batches; 0 makes them in this process.
    """
    settings, last = steps.settings, NO_END
    if settings.time_budget is None:
        last = settings.epochs * settings.iterations_per_epoch
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=range(first, last),
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
        worker_init_fn=exit_at_once,
        # the loader draws a number when it starts, which a run that is continued would draw again
        generator=torch.Generator(),
    )
    # Ctrl-C reaches every process of the terminal. Workers inherit that it is held back, so that
    # they go on until the trainer has stopped and saved.
    with signals_held_back():
        return iter(loader)
