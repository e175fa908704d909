"""What the benchmarks share that run commands: one at a time, measured, and resumable."""

from __future__ import annotations

import csv
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from promptseg.files import read_json

HERE = Path(sys.executable).parent  # where the commands of this environment are


class Stopped(Exception):
    """SIGTERM or Ctrl-C came; the command under way, if any, has ended and used this much."""

    def __init__(self, usage: dict[str, float] | None = None) -> None:
        self.usage = usage


class Runner:
    """Runs commands one at a time, passes SIGTERM and Ctrl-C on to them, and measures them.

    Args:
        logs: folder of their output, one file for each name.
    """

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.process: subprocess.Popen | None = None
        self.stop_requested = False
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)

    def _stop(self, number: int, frame: object) -> None:
        self.stop_requested = True
        if self.process is not None and self.process.returncode is None:
            self._tell_to_stop()

    def _tell_to_stop(self) -> None:
        # send_signal would take the exit status that wait4 needs
        os.kill(self.process.pid, signal.SIGTERM)

    def run(
        self,
        name: str,
        command: Sequence[object],
        *,
        environment: Mapping[str, object] | None = None,
        metrics: Path | None = None,
        stop_after: float | None = None,
    ) -> dict[str, float]:
        """Run a command with its output in a log file.

        Args:
            name: of the log file.
            command: program and arguments.
            environment: variables that are added to this process's own.
            metrics: a `metrics.csv` of a training whose new rows are printed as they appear.
            stop_after: seconds after which the command is told to stop, as by SIGTERM.

        Returns:
            Wall seconds, processor seconds of all its processes, and the largest resident memory
            of any one of them, in bytes.

        Raises:
            Stopped: if a signal came, once the command has ended.
            RuntimeError: if the command failed, with the end of its log.
        """
        if self.stop_requested:
            raise Stopped
        log = self.logs / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        printed = metrics_rows(metrics)
        with open(log, "a", encoding="utf-8") as output:
            start = time.monotonic()
            # a session of its own: Ctrl-C at the terminal reaches it once, from here
            self.process = subprocess.Popen(
                [str(word) for word in command],
                env={**os.environ, **{k: str(v) for k, v in (environment or {}).items()}},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            asked, is_told = time.monotonic(), False
            while True:
                if stop_after and not is_told and time.monotonic() - start > stop_after:
                    is_told = True
                    self._tell_to_stop()
                if self.stop_requested and time.monotonic() - asked > 10:
                    asked = time.monotonic()
                    self._stop(0, None)  # a process that was just starting may have missed it
                pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
                if len(rows := metrics_rows(metrics)) > len(printed):
                    printed = rows
                    print(f"  {_row_line(rows[-1])}", flush=True)
                if pid:
                    break
                time.sleep(0.05 if metrics is None else 0.5)
            wall = time.monotonic() - start
            self.process.returncode = os.waitstatus_to_exitcode(status)
            with suppress(ProcessLookupError):  # workers that outlived the command
                os.killpg(self.process.pid, signal.SIGKILL)
        measured = {
            "wall_seconds": wall,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_resident_bytes": usage.ru_maxrss * 1024,  # Linux counts it in KiB
        }
        if self.stop_requested:
            raise Stopped(measured)
        if self.process.returncode and not is_told:
            text = log.read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"{command[0]} failed, see {log}:\n{text[-1500:]}")
        return measured


def metrics_rows(metrics: Path | None) -> list[dict[str, str]]:
    """The rows of a training's `metrics.csv`; none while there is no such file."""
    if metrics is None or not metrics.is_file():
        return []
    with open(metrics, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _row_line(row: dict[str, str]) -> str:
    dice = row["val_dice_auto"] or row["val_dice_label"]
    return f"step {row['step']}, {float(row['seconds']):.0f} s, validation patches {dice[:6]}"


def machine() -> str:
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, {platform.machine()}, Python {platform.python_version()}"


def load_results(path: Path, wanted: Mapping[str, Any], parts: str) -> dict[str, Any]:
    """The results so far, or none; what is not comparable with this command is refused.

    Args:
        path: the JSON file.
        wanted: by name, what must be the same for all results in one file.
        parts: name of the object that the results themselves are in.
    """
    if not path.is_file():
        return {**wanted, "machine": machine(), parts: {}}
    results = read_json(path)
    for name, value in wanted.items():
        if results[name] != value:
            raise SystemExit(
                f"error: {path} has results for {name} {results[name]!r}, this command has "
                f"{value!r}; name another --work folder"
            )
    return results
