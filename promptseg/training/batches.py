"""The batches of a run, one per step, made in worker processes."""

from __future__ import annotations

import atexit
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children
from multiprocessing.process import BaseProcess

import torch
from torch.utils.data import DataLoader

from promptseg.signals import signals_blocked
from promptseg.training.dataset import Batch, TrainingSteps

NO_END = 10**9  # steps of a run that ends by time
PREFETCHED = 4  # batches that each worker keeps ready
SECONDS_TO_NOTICE = 1.0  # that a worker has died, for the loader


def batches(steps: TrainingSteps, first: int, processes: int, *, on_cpu: bool) -> Iterator[Batch]:
    """The batches from a step to the run's end; worker errors arrive with their own traceback.

    Args:
        steps: the batch of each step; their settings say how many steps there are.
        first: step to begin with.
        processes: worker processes that make batches; 0 makes them in this process.
        on_cpu: whether training uses the same cores as the workers, which then give way.
    """
    settings, last = steps.settings, NO_END
    if settings.time_budget is None:
        last = settings.epochs * settings.iterations_per_epoch
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=range(first, last),
        num_workers=processes,
        multiprocessing_context="spawn" if processes else None,
        prefetch_factor=PREFETCHED if processes else None,
        worker_init_fn=partial(_set_up_worker, gives_way=on_cpu),
        # the loader draws a seed when it starts; from torch's own generator, a continued run would
        # draw one more
        generator=torch.Generator(),
    )
    # Ctrl-C reaches every process of the terminal. Workers inherit that it is blocked, so that
    # they continue until the trainer has stopped and saved.
    others = set(active_children())
    with signals_blocked():
        made = iter(loader)
    atexit.register(_kill, set(active_children()) - others)
    return made


def _kill(workers: Iterable[BaseProcess]) -> None:
    """End workers that are left when this process ends.

    After an error that nobody expected its traceback keeps the loader, which would stop them.
    Python would ask them to terminate, and wait for ever: that signal is blocked.
    """
    for worker in workers:
        if worker.is_alive():
            worker.kill()


def _set_up_worker(worker: int, *, gives_way: bool) -> None:
    """Let a worker end without cleaning up, and give way to training on the same cores.

    On a CPU its batches are ready before they are needed, whereas a step waits for its slowest
    thread. It holds nothing that needs cleaning up, and must not try: a run that ends by time
    leaves workers in the middle of sending; Python would stop their sending threads inside torch,
    which aborts the process with a message on the terminal.
    """
    atexit.register(os._exit, 0)
    if gives_way and hasattr(os, "nice"):  # not on Windows
        os.nice(10)


@contextmanager
def deaths_explained(processes: int) -> Iterator[None]:
    """Explain what to do about a worker that was killed, wherever the loader's error arrives.

    PyTorch raises it from a signal handler, possibly in the middle of a step: the weights may then
    be between two steps, and must not be saved.

    Raises:
        RuntimeError: in place of the loader's.
    """
    try:
        try:
            yield
        except (ConnectionError, EOFError) as error:  # it died while it was sending
            if not processes:
                raise
            time.sleep(SECONDS_TO_NOTICE)  # the loader's own error follows from the signal handler
            raise RuntimeError(f"DataLoader worker exited unexpectedly: {error}") from error
    except RuntimeError as error:
        if not re.search(r"DataLoader worker .*(killed by signal|exited unexpectedly)", str(error)):
            raise
        raise RuntimeError(
            f"a process that makes samples was killed, most often because memory ran out "
            f"({error}); continue with --c and fewer of them (-np, here {processes}; 0 makes "
            f"samples in the training process)"
        ) from error
