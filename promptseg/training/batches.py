"""The batches of a run, one a step, made in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

import torch
from torch.utils.data import DataLoader

from promptseg.training.patches import Batch, TrainingSteps
from promptseg.training.settings import TrainingSettings
from promptseg.training.signals import set_up_worker, signals_held_back


def batches(
    steps: TrainingSteps,
    first: int,
    workers: int,
    time_share: Callable[[], float],
    *,
    on_cpu: bool,
) -> Iterator[Batch]:
    """The batches from a step to the run's end; worker errors arrive with their own traceback.

    Args:
        steps: what each batch is; their settings say how many there are.
        first: step.
        workers: processes that make batches; 0 makes them in this process.
        time_share: how much of the time of a run that ends by time is over.
        on_cpu: whether the steps run on the same cores as the workers, which then give way.
    """
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=_order(steps.settings, first, time_share),
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
        worker_init_fn=partial(set_up_worker, gives_way=on_cpu),
        # the loader draws a seed when it starts; from torch's own generator, a continued run would
        # draw one more
        generator=torch.Generator(),
    )
    # Ctrl-C reaches every process of the terminal. Workers inherit that it is held back, so that
    # they go on until the trainer has stopped and saved.
    with signals_held_back():
        return iter(loader)


def _order(
    settings: TrainingSettings, first: int, time_share: Callable[[], float]
) -> Iterator[tuple[int, float]]:
    """Every step with the share of the run that is done before it."""
    if settings.time_budget is not None:
        yield from ((step, time_share()) for step in count(first))
        return
    last = settings.epochs * settings.iterations_per_epoch
    yield from ((step, step / last) for step in range(first, last))
