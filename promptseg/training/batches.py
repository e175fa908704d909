"""The batches of a run, one a step, made in worker processes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.utils.data import DataLoader

from promptseg.signals import set_up_worker, signals_held_out
from promptseg.training.sampling import Batch, TrainingSteps

NO_END = 10**9  # steps of a run that ends by time
PREFETCHED = 4  # batches that each worker keeps ready


def batches(steps: TrainingSteps, first: int, workers: int, *, on_cpu: bool) -> Iterator[Batch]:
    """The batches from a step to the run's end; worker errors arrive with their own traceback.

    Args:
        steps: what each batch is; their settings say how many there are.
        first: step.
        workers: processes that make batches; 0 makes them in this process.
        on_cpu: whether the steps run on the same cores as the workers, which then give way.
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
        prefetch_factor=PREFETCHED if workers else None,
        worker_init_fn=partial(set_up_worker, gives_way=on_cpu),
        # the loader draws a seed when it starts; from torch's own generator, a continued run would
        # draw one more
        generator=torch.Generator(),
    )
    # Ctrl-C reaches every process of the terminal. Workers inherit that it is held out, so that
    # they go on until the trainer has stopped and saved.
    with signals_held_out():
        return iter(loader)


@contextmanager
def deaths_explained(workers: int) -> Iterator[None]:
    """Says what to do about a worker that was killed, wherever the loader's error arrives.

    PyTorch raises it from a signal handler, so in the middle of a step, too: the weights may then
    be between two steps, and are not to be saved.

    Raises:
        RuntimeError: in place of the loader's.
    """
    try:
        yield
    except RuntimeError as error:
        if not re.search(r"DataLoader worker .*(killed by signal|exited unexpectedly)", str(error)):
            raise
        raise RuntimeError(
            f"a process that makes samples was killed, most often because memory ran out "
            f"({error}); continue with --c and fewer of them (-np, here {workers}; 0 makes samples "
            f"in the training process)"
        ) from error
