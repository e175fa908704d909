"""Signals that come while sample workers start are not lost, and never reach the workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from promptseg.signals import STOPPING, signal_handlers, signals_held_out


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_in_the_block_is_not_lost(number):
    seen = []
    with signal_handlers(lambda came, frame: seen.append(came)):
        with signals_held_out():
            os.kill(os.getpid(), number)  # another thread of this process may take it at once
        assert seen == [number]


def test_a_thread_is_not_interrupted_in_the_block():
    seen = []
    with signal_handlers(lambda came, frame: seen.append(came)):
        with signals_held_out():
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            assert seen == []
        assert seen == [signal.SIGTERM]


def test_a_process_started_in_the_block_outlives_the_signal():
    with signals_held_out():
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    child.send_signal(signal.SIGTERM)
    child.communicate(b"go on\n", timeout=60)
    assert child.returncode == 0


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in STOPPING]
    with signal_handlers(signal.SIG_IGN):
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    assert [signal.getsignal(number) for number in STOPPING] == before
