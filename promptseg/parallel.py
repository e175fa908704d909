"""One function over many cases in worker processes, with a progress bar and real errors."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def map_cases(
    function: Callable[..., Any],
    items: Sequence[Item],
    *arguments: Any,
    processes: int,
    description: str,
) -> Iterator[tuple[Item, Any, Exception | None]]:
    """Call `function(item, *arguments)` for every item; yield results in the order they come.

    Workers are spawned, not forked (forking a process with running threads can hang), so
    `function` must be a module's own and everything passed must pickle.

    Args:
        function: called in a worker.
        items: one call each.
        arguments: passed to every call.
        processes: worker processes; 0 runs everything in this process.
        description: of the progress bar.

    Yields:
        item, result, None, or item, None, the exception that its call raised.

    Raises:
        RuntimeError: naming what was being worked on, if a worker died (out of memory, a signal).
    """
    bar = tqdm(total=len(items), desc=description, unit="case", leave=True, dynamic_ncols=True)
    with bar:
        if processes == 0 or len(items) < 2:
            for item in items:
                yield (item, *_outcome_of_call(function, item, arguments))
                bar.update()
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(processes, len(items)), mp_context=context) as pool:
            waiting = {pool.submit(function, item, *arguments): item for item in items}
            for future in as_completed(waiting):
                yield (waiting[future], *_outcome_of_future(future, description))
                bar.update()


def _outcome_of_call(function: Callable, item: Any, arguments: tuple) -> tuple[Any, Any]:
    try:
        return function(item, *arguments), None
    except Exception as error:
        return None, error


def _outcome_of_future(future: Future, description: str) -> tuple[Any, Exception | None]:
    try:
        return future.result(), None
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"a worker process died during {description!r}; most often the machine ran out of "
            f"memory: try fewer processes, or 0 to run everything in one process"
        ) from error
    except Exception as error:
        return None, error
