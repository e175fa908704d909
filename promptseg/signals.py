"""What SIGTERM and Ctrl-C (SIGINT) do to training and prediction, and to processes they start."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import resource_tracker
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signal_handlers(handler: Any) -> Iterator[None]:
    """One handler for SIGINT and SIGTERM while the block runs; the former ones are put back.

    Python handles signals in the main thread alone: in any other, nothing is changed.
    """
    try:
        before = {number: signal.signal(number, handler) for number in STOPPING}
    except ValueError:  # not the main thread
        before = {}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def interrupted_by_signals() -> AbstractContextManager[None]:
    """SIGTERM, as batch systems send it, raises KeyboardInterrupt in the block, as Ctrl-C does."""
    return signal_handlers(_interrupt)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Processes started in the block never get SIGINT and SIGTERM; this one gets them later.

    A signal waits until the block ends, or until another thread of this process takes it. Ignoring
    signals would also protect those processes, but would lose a signal that arrives meanwhile.
    Where the system cannot block signals (Windows), nothing is changed.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its start would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
