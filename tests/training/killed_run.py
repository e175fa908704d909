"""promptseg_train in a forked process, held on request at one moment, for tests that kill it.

A fork server imports what training needs once, so that a start takes a fraction of a second.
"""

import io
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

# Nothing else is imported here but in the process itself: the fork server stays without threads
# of torch, and this module can be asked for on systems that cannot fork.
IMPORTED_ONCE = [
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "promptseg.commands.train",
    "promptseg.pipeline.train",
    "sklearn",
    "torch._dynamo",  # by the first optimizer
]


def start_fork_server():
    """Start the server and wait until it has imported everything, so that what follows is quick."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)
    process = context.Process(target=int)
    process.start()
    process.join()


class KilledRun:
    """A training run whose process group can be killed at a chosen moment.

    Args:
        arguments: of promptseg_train.
        folder: for what the process reports.
        hold: how and at which file to stand still, `half FILE` in the middle of torch's writing
            it, or `move FILE` when it is whole and not yet in its place; None for never.
        nth: which such writing, from 1.
    """

    def __init__(self, arguments, folder, hold=None, nth=1):
        folder.mkdir()
        self._held, self._steps, self.output = (folder / n for n in ("held", "steps", "output"))
        self._steps.touch()
        context = multiprocessing.get_context("forkserver")
        self.process = context.Process(target=_train, args=(arguments, folder, hold, nth))
        self.process.start()
        self.wait_for(self.output.exists)  # it leads its process group now

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.running:  # a test that failed while it stood still
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.join(60)

    @property
    def steps(self) -> int:
        """Steps of the optimizer that this process has made."""
        return self._steps.stat().st_size

    @property
    def held(self) -> bool:
        return self._held.exists()

    @property
    def running(self) -> bool:
        return self.process.is_alive()

    def wait_for(self, condition, seconds=200.0):
        """Wait for a condition while the process runs; an end before it fails the test."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.running, f"ended too early:\n{self._printed()}"
            assert time.monotonic() < deadline, f"waited too long:\n{self._printed()}"
            time.sleep(0.002)

    def kill(self):
        """SIGKILL to the whole process group, which must be running."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join(60)
        assert self.process.exitcode == -signal.SIGKILL, self._printed()

    def end(self, seconds=300.0):
        """Let it run to its end."""
        self.process.join(seconds)
        assert self.process.exitcode == 0, self._printed()

    def _printed(self) -> str:
        return self.output.read_text() if self.output.exists() else ""


def _train(arguments, folder, hold, nth):
    os.setsid()
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    steps = os.open(folder / "steps", os.O_WRONLY)

    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from promptseg.commands import train

    torch.set_num_threads(1)  # sums of floats depend on it
    register_optimizer_step_post_hook(lambda *_: os.write(steps, b"."))

    @dataclass(frozen=True, kw_only=True)
    class SavedAfterEveryStep(train.RunOptions):  # as if each took minutes
        checkpoint_seconds: float = 0.0

    train.RunOptions = SavedAfterEveryStep
    if hold is not None:
        how, name = hold.split()
        {"half": _hold_in_the_middle, "move": _hold_before_the_move}[how](
            name, nth, folder / "held"
        )
    sys.exit(train.main(arguments))


def _stand_still(held: Path):
    held.touch()
    while True:
        signal.pause()


def _hold_in_the_middle(name, nth, held):
    """Make `torch.save` write files of that name as it does, but stop half way the nth time."""
    import torch

    save, seen = torch.save, []

    class Half(io.FileIO):
        def write(self, data):
            size = super().write(data)
            # as large as the one it will replace; at the first checkpoint any part will do
            old = Path(self.name).parent.parent / name
            if self.tell() > (old.stat().st_size // 2 if old.exists() else 0):
                _stand_still(held)
            return size

    def save_half(content, path):
        if Path(path).name == name:
            seen.append(path)
        if len(seen) < nth:
            return save(content, path)
        with Half(path, "w") as file:
            return save(content, file)

    torch.save = save_half


def _hold_before_the_move(name, nth, held):
    """Stop at the nth `os.replace` that would put a file of that name into its place."""
    replace, seen = os.replace, []

    def replace_or_hold(source, target):
        if Path(target).name == name:
            seen.append(target)
            if len(seen) == nth:
                _stand_still(held)
        return replace(source, target)

    os.replace = replace_or_hold
