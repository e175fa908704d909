"""What SIGTERM and Ctrl-C do to a run, and to the sample workers of training."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signal_handlers(handler: Any) -> Iterator[None]:
    """One handler for SIGINT and SIGTERM while the block runs, in the main thread."""
    try:
        before = {number: signal.signal(number, handler) for number in STOPPING}
    except ValueError:  # not the main thread: signals are somebody else's business
        before = {}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def interrupt(*_: Any) -> None:
    """A handler that makes SIGTERM, as batch systems send it, end what runs as Ctrl-C does."""
    raise KeyboardInterrupt


@contextmanager
def signals_held_out() -> Iterator[None]:
    """Processes started in the block never get SIGINT and SIGTERM; this one gets them later.

    It waits until the block ends, or until another of its threads takes the signal. Ignoring
    signals would do as much for those processes, but lose one that comes meanwhile.
    Where the system cannot hold signals back (Windows), nothing is done.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which would let the signals through once it has started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def set_up_worker(worker: int, *, gives_way: bool) -> None:
    """Let a sample worker end without cleaning up, and give way to steps on the same cores.

    On a CPU its samples are ready before they are needed, whereas a step waits for its slowest
    thread. It holds nothing that needs cleaning up, and must not try: a run that ends by time
    leaves workers in the middle of sending; Python would stop their sending threads inside torch,
    which aborts the process with a message on the terminal.
    """
    atexit.register(os._exit, 0)
    if gives_way and hasattr(os, "nice"):  # not on Windows
        os.nice(10)
