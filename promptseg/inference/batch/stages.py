"""Three steps over many items, where steps of different items run at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

Item = TypeVar("Item")


def overlapped(
    items: Iterable[Item],
    read: Callable[[Item], Any],
    compute: Callable[[Item, Any], Any],
    write: Callable[[Item, Any], Any],
    done: Callable[[Item, Any, Exception | None], None],
    *,
    readers: int,
    writers: int,
) -> None:
    """Call `write(item, compute(item, read(item)))` for every item, and `done` with the outcome.

    `compute` runs in the caller's thread, on one item at a time and in their order, while threads
    read the next items and write the last ones. At most `readers` items are read ahead and at
    most `writers` wait to be written. Threads share arrays without copying, and run at the same
    time while others are in file access or array libraries.

    After an interrupt, nothing is begun; items being written are finished and reported.

    Args:
        items: worked on one after the other.
        read, compute, write: the steps; an exception in one ends that item alone.
        done: called in the caller's thread with item, result, None or item, None, exception, in
            the order of the items; failures are passed on at once.
        readers: threads that read; 0 reads in the caller's thread, when it is needed.
        writers: threads that write; 0 writes in the caller's thread.

    Raises:
        ValueError: if `readers` or `writers` is negative.
    """
    _check_threads(readers, writers)
    remaining = iter(items)
    coming, going = deque[tuple[Item, Future]](), deque[tuple[Item, Future]]()

    def read_ahead(count: int) -> None:
        for item in islice(remaining, max(0, count - len(coming))):
            coming.append((item, reading.submit(read, item)))

    def report(most: int) -> None:
        while going and (len(going) > most or going[0][1].done()):
            item, future = going.popleft()
            done(item, *_outcome(future.result))

    with _executor(readers) as reading, _executor(writers) as writing:
        try:
            while read_ahead(max(readers, 1)) or coming:
                item, future = coming.popleft()
                read_ahead(readers)
                computed, error = _outcome(lambda: compute(item, future.result()))  # noqa: B023
                del future  # which holds the item that was read
                if error is None:
                    going.append((item, writing.submit(write, item, computed)))
                    del computed
                else:
                    done(item, None, error)
                report(writers)
        finally:
            for _, future in coming:
                future.cancel()
            report(0)


def _check_threads(readers: int, writers: int) -> None:
    if readers < 0 or writers < 0:
        raise ValueError(
            f"readers and writers must be 0 (no further thread) or more, got {readers} and "
            f"{writers}"
        )


def _outcome(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return call(), None
    except Exception as error:
        return None, error


def _executor(threads: int) -> Executor:
    return ThreadPoolExecutor(threads) if threads else _InPlace()


class _InPlace(Executor):
    """Calls at once, in the thread that submits."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future:
        future: Future = Future()
        result, error = _outcome(lambda: function(*arguments, **named))
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
        return future
