"""One function over many cases in worker processes or a cluster, with progress and real errors."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from threadpoolctl import threadpool_limits

from promptseg.progress_bar import progress_bar

if TYPE_CHECKING:
    from distributed import Client

Item = TypeVar("Item")
log = logging.getLogger(__name__)

_QUEUED = 3  # items per worker: one running, two waiting, so that results do not pile up unread
_CONNECT_SECONDS = 10
_GONE = "the Dask scheduler no longer answers; start it again, and run the same command again"


def cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class Workers:
    """Worker processes that several `map_cases` share, so that they start once.

    They are spawned when first needed, not forked (forking a process with running threads can
    hang), and end with the `with` block.

    Args:
        processes: how many; 0 means that everything runs in this process.

    Raises:
        ValueError: if `processes` is negative.
    """

    def __init__(self, processes: int) -> None:
        if processes < 0:
            raise ValueError(f"processes must be 0 (run in this process) or more, got {processes}")
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None

    @property
    def pool(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.processes,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_use_one_thread,
            )
        return self._pool

    def start(self, module: str) -> None:
        """Have them import a module now, while this process continues with its own imports."""
        for _ in range(self.processes):
            self.pool.submit(_load, module)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class ClusterWorkers(Workers):
    """The workers of a Dask cluster, which must see the same files under the same paths.

    Args:
        address: of its scheduler, see `connect`. It is left again at the end of the `with` block.
    """

    def __init__(self, address: str) -> None:
        self._client = connect(address)
        self._pool = self._client.get_executor(pure=False)

    @property
    def processes(self) -> int:
        """Threads of the workers that are there now; one before the first has come.

        Raises:
            RuntimeError: if the scheduler no longer answers.
        """
        if self._client.status != "running":
            raise RuntimeError(_GONE)
        return max(1, sum(self._client.nthreads().values()))

    def start(self, module: str) -> None:
        """Have every worker import a module, which shows whether it is installed there."""
        self._client.run(_load, module)

    def __exit__(self, *_: object) -> None:
        self._client.close()


def connect(address: str) -> Client:
    """A client of the scheduler at an address such as `tcp://host:8786`.

    Raises:
        ImportError: if Dask is not installed, with what to install.
        ConnectionError: if no scheduler answers there, with how to start one.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(
            f"--dask needs Dask, which is not installed here ({error}); install it on every "
            f'machine with: pip install "promptseg[dask]"'
        ) from error
    try:
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no Dask scheduler at {address!r} ({error}); expected tcp://HOST:PORT of a running "
            f"`dask scheduler`, with one `dask worker tcp://HOST:PORT --nthreads 1` per machine or "
            f"GPU"
        ) from error
    if not client.scheduler_info()["workers"]:
        log.warning("no worker has joined the cluster yet; waiting for the first")
    return client


class LostWorkersError(RuntimeError):
    """Several workers in a row were lost while a task was theirs."""


def unfinished(cause: Exception, advice: str = "run the same command again") -> RuntimeError:
    """The error of a task that did not finish on a cluster, with what to do, in words."""
    found = f"{type(cause).__name__}: {cause}"
    if type(cause).__name__ == "KilledWorker":
        return LostWorkersError(
            f"its workers were lost ({found}); most often they ran out of memory: give each more, "
            f"and {advice}"
        )
    return RuntimeError(
        f"its task did not finish on the cluster ({found}); the worker's log may say more; then "
        f"{advice}"
    )


def map_cases(
    function: Callable[..., Any],
    items: Sequence[Item],
    *arguments: Any,
    processes: int | Workers,
    description: str,
) -> Iterator[tuple[Item, Any, Exception | None]]:
    """Call `function(item, *arguments)` for every item; yield results as they are completed.

    `function` must be defined at the top level of a module, and everything passed must pickle. A
    caller that stops early waits only for the calls that have begun, on a cluster not for those.

    Args:
        function: called in a worker.
        items: one call is made for each.
        arguments: passed to every call.
        processes: number of worker processes, or the `Workers` to use; 0 runs everything in this
            process.
        description: of the progress bar.

    Yields:
        item, result, None, or item, None, the exception that its call raised.

    Raises:
        ValueError: if `processes` is negative.
        RuntimeError: naming what was being worked on, if a worker died (out of memory, a signal).
    """
    own = None if isinstance(processes, Workers) else Workers(min(processes, max(len(items), 1)))
    workers = own or processes
    with progress_bar(total=len(items), desc=description, unit="case") as bar:
        if workers.processes == 0 or len(items) < 2:
            outcomes = ((item, *_outcome_of_call(function, item, arguments)) for item in items)
        else:
            outcomes = _outcomes_of_pool(function, items, arguments, workers, description)
        with own or nullcontext():
            for outcome in outcomes:
                bar.update()
                yield outcome


def _outcomes_of_pool(
    function: Callable[..., Any],
    items: Sequence[Item],
    arguments: tuple,
    workers: Workers,
    description: str,
) -> Iterator[tuple[Item, Any, Exception | None]]:
    remaining, lost, is_alone = iter(items), [], False
    running: dict[Future, Item] = {}
    try:
        while True:
            for item in islice(remaining, max(_QUEUED * workers.processes - len(running), 0)):
                running[workers.pool.submit(function, item, *arguments)] = item
            if not running and lost:  # workers may have been lost to another case of theirs
                is_alone, item = True, lost.pop(0)
                running[workers.pool.submit(function, item, *arguments)] = item
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                result, error = _outcome_of_future(future)
                item = running.pop(future)
                if isinstance(error, LostWorkersError) and not is_alone:
                    lost.append(item)
                else:
                    yield item, result, error
    except BrokenProcessPool as error:
        names = ", ".join(str(getattr(item, "case_id", item)) for item in running.values())
        raise RuntimeError(
            f"a worker process died during {description!r}, at one of: {names}. Most often the "
            f"machine ran out of memory: try fewer processes, or 0 to run everything in one. A "
            f'script that calls promptseg needs `if __name__ == "__main__":` around its calls'
        ) from error
    finally:
        for future in running:
            future.cancel()


def _outcome_of_call(
    function: Callable[..., Any], item: Any, arguments: tuple
) -> tuple[Any, Exception | None]:
    try:
        return function(item, *arguments), None
    except Exception as error:
        return None, error


def _load(module: str) -> None:
    importlib.import_module(module)


def _use_one_thread() -> None:
    """Keep numerical libraries in a worker to one thread: the workers are the parallelism.

    Threads of several workers that wait for one another on the same cores cost several times
    the work. The variables hold for libraries still to be loaded, the limit for those that are.
    """
    for library in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM", "NUMEXPR"):
        os.environ[f"{library}_NUM_THREADS"] = "1"
    threadpool_limits(1)


def _outcome_of_future(future: Future) -> tuple[Any, Exception | None]:
    try:
        return future.result(), None
    except BrokenProcessPool:
        raise
    except CancelledError as error:  # nobody here cancels what is waited for
        raise RuntimeError(_GONE) from error
    except Exception as error:
        of_cluster = type(error).__module__.startswith("distributed.")
        return None, unfinished(error) if of_cluster else error
