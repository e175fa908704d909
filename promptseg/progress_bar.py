"""The progress bar of long work: drawn on a terminal, printed line by line in a file or pipe."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

SECONDS = 30.0  # between the lines of a bar that is not on a terminal


def progress_bar(**options: Any) -> tqdm:
    """A bar of tqdm for stderr, with tqdm's options.

    Where stderr is not a terminal, such as in the log of a cluster's job, it prints a line every
    `SECONDS` and one at the end, unless `leave` is false, and never a line that overwrites another.
    """
    if sys.stderr is None:  # of programs without a console
        return tqdm(**options | {"disable": True})
    kind = tqdm if sys.stderr.isatty() else _Lines
    return kind(dynamic_ncols=True, **options)


class _Lines(tqdm):
    def __init__(self, *args: Any, **options: Any) -> None:
        self._printed = time.monotonic()
        super().__init__(*args, **options)

    def display(self, *args: Any, **options: Any) -> None:
        if time.monotonic() - self._printed >= SECONDS:
            self._print()

    def clear(self, *args: Any, **options: Any) -> None:
        """Nothing is drawn, so that nothing is in the way of other messages."""

    def close(self) -> None:
        if not self.disable:
            self.disable = True
            self._decr_instances(self)
            if self.leave:
                self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        values = self.format_dict
        if self.bar_format:
            values["bar_format"] = self.bar_format.replace("|{bar}|", " ")
        else:
            values["ncols"] = 0  # no columns for the bar itself
        print(self.format_meter(**values), file=self.fp, flush=True)
