"""Signals interrupt; those that arrive while workers start are not lost, and never reach these."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from promptseg.signals import STOPPING, interrupted_by_signals, signal_handlers, signals_blocked


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_in_the_block_is_not_lost(number):
    seen = []
    with signal_handlers(lambda came, frame: seen.append(came)):
        with signals_blocked():
            os.kill(os.getpid(), number)  # another thread of this process may take it, soon
        until = time.monotonic() + 30
        while not seen and time.monotonic() < until:
            time.sleep(0.001)
        assert seen == [number]


def test_a_thread_is_not_interrupted_in_the_block():
    seen = []
    with signal_handlers(lambda came, frame: seen.append(came)):
        with signals_blocked():
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            assert seen == []
        assert seen == [signal.SIGTERM]


def test_a_process_started_in_the_block_outlives_the_signal():
    with signals_blocked():
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    child.send_signal(signal.SIGTERM)
    child.communicate(b"continue\n", timeout=60)
    assert child.returncode == 0


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in STOPPING]
    with signal_handlers(signal.SIG_IGN):
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    assert [signal.getsignal(number) for number in STOPPING] == before


@pytest.mark.parametrize("number", STOPPING)
def test_either_signal_interrupts_as_ctrl_c_does(number):
    with pytest.raises(KeyboardInterrupt), interrupted_by_signals():
        signal.raise_signal(number)


def test_another_thread_than_the_main_one_leaves_signals_alone():
    before, seen = [signal.getsignal(number) for number in STOPPING], []

    def look():
        with interrupted_by_signals():
            seen.extend(signal.getsignal(number) for number in STOPPING)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == before
