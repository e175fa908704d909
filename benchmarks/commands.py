"""Running commands one at a time, measured and resumably, for the benchmarks."""

from __future__ import annotations

import csv
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from promptseg.files import read_json

HERE = Path(sys.executable).parent  # folder of the commands of this environment


class Stopped(Exception):
    """SIGTERM or Ctrl-C was received; `usage` is that of the running command, which has ended."""

    def __init__(self, usage: dict[str, float] | None = None) -> None:
        self.usage = usage


class Runner:
    """Runs commands one at a time, measures them, and forwards SIGTERM and Ctrl-C to them.

    Args:
        logs: folder of the log files, one for each name.
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
            name: name of the log file.
            command: program and its arguments.
            environment: variables to add to those of this process.
            metrics: `metrics.csv` of a training run, whose new rows are printed as they appear.
            stop_after: seconds after which SIGTERM is sent to the command; None lets it finish.

        Returns:
            Wall seconds, CPU seconds of all its processes, and the largest resident memory of any
            of them in bytes.

        Raises:
            Stopped: if a signal was received, after the command has ended.
            RuntimeError: if the command failed, with the end of its log.
        """
        if self.stop_requested:
            raise Stopped
        log = self.logs / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as output:
            start = time.monotonic()
            # in a new session, so that Ctrl-C at the terminal reaches it once, from here
            self.process = subprocess.Popen(
                [str(word) for word in command],
                env={**os.environ, **{k: str(v) for k, v in (environment or {}).items()}},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            status, usage, is_told = self._wait(metrics, stop_after)
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

    def _wait(
        self, metrics: Path | None, stop_after: float | None
    ) -> tuple[int, resource.struct_rusage, bool]:
        """Wait for the process: its status, its usage, and whether `stop_after` has passed."""
        printed = metrics_rows(metrics)
        start = asked = time.monotonic()
        is_told = False
        while True:
            if stop_after and not is_told and time.monotonic() - start > stop_after:
                is_told = True
                self._tell_to_stop()
            if self.stop_requested and time.monotonic() - asked > 10:
                asked = time.monotonic()
                self._stop(0, None)  # again, as a process that was just starting may have missed it
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if len(rows := metrics_rows(metrics)) > len(printed):
                printed = rows
                print(f"  {_row_line(rows[-1])}", flush=True)
            if pid:
                return status, usage, is_told
            time.sleep(0.05 if metrics is None else 0.5)


def metrics_rows(metrics: Path | None) -> list[dict[str, str]]:
    """The rows of a `metrics.csv`; none while there is no such file."""
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


def status_bytes(field: str) -> int:
    """A size in /proc/self/status in bytes: `VmRSS`, the resident memory, or `VmHWM`, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def load_results(path: Path, wanted: Mapping[str, Any], parts: str) -> dict[str, Any]:
    """The results so far, or an empty table; results that are not comparable are refused.

    Args:
        path: path of the JSON file.
        wanted: settings by name that must be the same for all results in one file.
        parts: name of the object in the file that holds the results.
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
