"""An automatic prompt that is slow, waits while it is held, and kills its process on one image."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from promptseg.prompts.auto_prompter import AUTO_PROMPTERS, AutoPrompter, Proposal

FOLDER = "PROMPTSEG_TEST_DYING_PROMPTER"  # environment variable: where it notes what it does
DEADLY = 7  # first voxel of the image that kills, once


@AUTO_PROMPTERS.register("dying")
class DyingPrompter(AutoPrompter):
    def propose(self, image, spacing) -> Proposal:
        folder, number = Path(os.environ[FOLDER]), int(image.flat[0])
        with open(folder / "proposed", "a") as file:
            file.write(f"{number} {os.getpid()}\n")
        time.sleep(0.1)
        while (folder / f"hold_{number}").exists():
            time.sleep(0.01)
        if number == DEADLY:
            try:
                (folder / "died").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return Proposal(box=np.array([[1, 2, 1], [4, 8, 9]]), score=0.5, reason="ok")
